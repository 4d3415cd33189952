//! Rules for what sandboxes may reach, one line a key: those of templates, and what the operator allows teams.

use super::document::Value;
use super::section::Section;
use super::validate::MAX_PATH_BYTES;
use crate::model::egress::{EgressEffect, EgressRule, EgressRules, Scheme, problems_of_bounds};
use crate::model::inject::{DEFAULT_HEADER, Injection, InjectionForm};
use crate::model::name::Name;
use crate::model::settings::{EgressConfig, SYSTEM_CA};

/// The bounds of every way out, and what teams are allowed.
pub(super) fn egress(keys: &Section<'_>) -> EgressConfig {
    let default = EgressConfig::default();
    EgressConfig {
        connections: keys.integer("connections", default.connections, 1..=4096),
        requests_per_s: keys.integer("requests_per_s", default.requests_per_s, 0..=100_000),
        burst: keys.integer("burst", default.burst, 1..=100_000),
        max_bytes: keys.integer("max_bytes", default.max_bytes, 0..=1 << 50),
        connect_timeout: keys.seconds("connect_timeout_s", default.connect_timeout, 1..=120),
        idle_timeout: keys.seconds("idle_timeout_s", default.idle_timeout, 1..=86_400),
        ca: keys.path("ca_file", SYSTEM_CA, MAX_PATH_BYTES),
        teams: teams(keys).into(),
    }
}

fn teams(keys: &Section<'_>) -> std::collections::BTreeMap<Name, EgressRules> {
    let teams = keys.sections("teams").into_iter();
    let named = teams.filter_map(|(name, section)| match name.parse::<Name>() {
        Ok(name) => Some((name, rules_in(section))),
        Err(why) => {
            keys.problem_at(&["teams".to_owned(), name], why.to_string());
            drop(section.each());
            None
        }
    });
    named.collect()
}

/// The rules below a key, by name.
pub(super) fn rules(keys: &Section<'_>, key: &'static str) -> EgressRules {
    rules_in(keys.section(key))
}

fn rules_in(section: Section<'_>) -> EgressRules {
    let mut rules = EgressRules::new();
    for (name, keys) in section.each() {
        let rule = rule(&keys);
        match name.parse() {
            Ok(name) => {
                rules.insert(name, rule);
            }
            Err(why) => keys.problem_at(&[], format!("does not name a rule: {why}")),
        }
    }
    rules
}

fn rule(keys: &Section<'_>) -> EgressRule {
    let scheme = |value: &Value| match value {
        Value::Text(text) => text.parse::<Scheme>().map_err(str::to_owned),
        _ => Err("expected text in each entry".to_owned()),
    };
    let port = |value: &Value| match value {
        Value::Integer(port) => {
            u16::try_from(*port).map_err(|_| format!("a port is 1 to 65535, not {port}"))
        }
        _ => Err("a port is 1 to 65535, written as a number".to_owned()),
    };
    let effects = [EgressEffect::Allow, EgressEffect::Deny];
    let word = |effect| match effect {
        EgressEffect::Allow => "allow",
        EgressEffect::Deny => "deny",
    };
    // A list that is not written is none; one that is written and empty is a mistake, which the rule's own check says.
    EgressRule {
        effect: keys.choice("effect", EgressEffect::Allow, &effects, word),
        hosts: keys.words("hosts").into_iter().collect(),
        ports: some(keys, "ports", keys.entries("ports", port)),
        schemes: some(keys, "schemes", keys.entries("schemes", scheme)),
        methods: some(keys, "methods", keys.words("methods")),
        paths: some(keys, "paths", keys.words("paths")),
        networks: some(keys, "networks", keys.words("networks")),
        inject: injection(keys),
    }
}

fn injection(keys: &Section<'_>) -> Option<Injection> {
    let is_set = keys.is_set("inject");
    let keys = keys.section("inject");
    let header = keys.optional("header");
    let form = keys.single("as", |value| match value {
        Value::Text(text) => text.parse::<InjectionForm>().map_err(|why| why.to_string()),
        _ => Err("is a text".to_owned()),
    });
    let scrub = keys.flag("scrub", false);
    if !is_set {
        return None;
    }
    let how = "is missing; it names a credential of the session's team";
    let credential = keys.required("credential", how, |text| {
        text.parse::<Name>().map_err(|why| why.to_string())
    })?;
    Some(Injection {
        credential,
        header: header.unwrap_or_else(|| DEFAULT_HEADER.to_owned()),
        form: form.unwrap_or_default(),
        scrub,
    })
}

fn some<T: Ord>(
    keys: &Section<'_>,
    key: &str,
    entries: Vec<T>,
) -> Option<std::collections::BTreeSet<T>> {
    keys.is_set(key).then(|| entries.into_iter().collect())
}

/// Says what is wrong with the rules of teams; those of templates are looked at with the rest of those.
pub(super) fn check(keys: &Section<'_>, config: &EgressConfig) {
    for (team, rules) in config.teams.iter() {
        for (path, problem) in problems_of_bounds(rules) {
            let whole = ["teams".to_owned(), team.to_string()]
                .into_iter()
                .chain(path);
            keys.problem_at(&whole.collect::<Vec<_>>(), problem);
        }
    }
}
