//! What may change while the daemon runs, and what needs a restart.

use std::collections::{BTreeMap, BTreeSet};

use super::Config;
use crate::model::issuer::Issuer;
use crate::model::name::Name;
use crate::model::settings::{LogConfig, OperatorConfig, SessionsConfig};
use crate::model::template::TemplateSpec;
use crate::policy::NamedRule;

/// Keys, and maps of keys, whose change takes effect at once for what begins afterwards.
const RELOADABLE: [&str; 4] = ["egress.", "http.operator.", "log.", "sessions."];

/// What among them is settled at the start: launches under way hold places of the old number.
const SETTLED: [&str; 1] = ["sessions.concurrent_launches"];

/// Keys of issuers of tokens, which are compared whole: not all that they say is in the list of values.
const ISSUERS: &str = "jwt.";

/// What a reload changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Reload {
    /// The log's settings.
    pub log: LogConfig,
    /// Bounds and defaults of sessions; those that live keep theirs.
    pub sessions: SessionsConfig,
    /// All templates; sessions that live keep theirs.
    pub templates: BTreeMap<Name, TemplateSpec>,
    /// All rules of the files.
    pub policy: Vec<NamedRule>,
    /// All issuers of tokens; what was verified before is verified anew.
    pub jwt: Vec<Issuer>,
    /// Who may administer from elsewhere.
    pub operator: Option<OperatorConfig>,
    /// The keys that differ, for the log and the record; of a template only `templates.<name>`, of a rule `policy.<name>`, of an
    /// issuer `jwt.<name>`.
    pub changed: Vec<String>,
}

/// A reload that was refused as a whole, because some of it needs a restart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "nothing was reloaded, because these keys take effect only with a restart: {}; set them back, or systemctl restart casemated",
    keys.join(", ")
)]
pub struct NeedsRestart {
    /// The keys that differ and must not.
    pub keys: Vec<String>,
}

impl Config {
    /// What changes from this configuration to `new`. Nothing is changed here.
    ///
    /// # Errors
    /// [`NeedsRestart`] with every key that differs and cannot be changed while running.
    pub fn reload_from(&self, new: &Self) -> Result<Reload, NeedsRestart> {
        let keys: BTreeSet<&String> = self.values.keys().chain(new.values.keys()).collect();
        let (mut changed, fixed): (Vec<String>, Vec<String>) = keys
            .into_iter()
            .filter(|key| !key.starts_with(ISSUERS))
            .filter(|key| self.values.get(*key) != new.values.get(*key))
            .cloned()
            .partition(|key| {
                !SETTLED.contains(&key.as_str())
                    && RELOADABLE.iter().any(|prefix| key.starts_with(prefix))
            });
        if !fixed.is_empty() {
            return Err(NeedsRestart { keys: fixed });
        }
        let names: BTreeSet<&Name> = self.templates.keys().chain(new.templates.keys()).collect();
        changed.extend(
            names
                .into_iter()
                .filter(|name| self.templates.get(*name) != new.templates.get(*name))
                .map(|name| format!("templates.{name}")),
        );
        let rule = |rules: &[NamedRule], name: &Name| {
            let found = rules.iter().find(|rule| rule.name == *name);
            found.map(|named| named.rule.clone())
        };
        let rules = self.policy.iter().chain(&new.policy);
        let rules: BTreeSet<&Name> = rules.map(|rule| &rule.name).collect();
        changed.extend(
            rules
                .into_iter()
                .filter(|name| rule(&self.policy, name) != rule(&new.policy, name))
                .map(|name| format!("policy.{name}")),
        );
        let issuers = |config: &Self| -> BTreeMap<Name, Issuer> {
            let issuers = config.jwt.iter();
            issuers
                .map(|issuer| (issuer.name.clone(), issuer.clone()))
                .collect()
        };
        let (old, now) = (issuers(self), issuers(new));
        let names: BTreeSet<&Name> = old.keys().chain(now.keys()).collect();
        changed.extend(
            names
                .into_iter()
                .filter(|name| old.get(*name) != now.get(*name))
                .map(|name| format!("{ISSUERS}{name}")),
        );
        Ok(Reload {
            policy: new.policy.clone(),
            jwt: new.jwt.clone(),
            operator: new.http.operator.clone(),
            log: new.log.clone(),
            sessions: new.sessions.clone(),
            templates: new.templates.clone(),
            changed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        with_template(text, None)
    }

    fn with_template(text: &str, template: Option<&str>) -> Config {
        let text = format!("version: 1\n{text}");
        let main = ("casemate.yaml".to_owned(), text.into_bytes());
        let template =
            template.map(|text| ("templates/base.yaml".to_owned(), text.as_bytes().to_vec()));
        let templates: Vec<_> = template.into_iter().collect();
        Config::from_sources(&[main], &templates).unwrap()
    }

    const TEMPLATE: &str =
        "image: sha256:0000000000000000000000000000000000000000000000000000000000000000\n";

    #[test]
    fn templates_log_and_sessions_change_while_running() {
        let new = with_template("log: {level: debug}\nsessions: {max: 7}", Some(TEMPLATE));
        let reload = config("").reload_from(&new).unwrap();
        assert_eq!(
            reload.changed,
            ["log.level", "sessions.max", "templates.base"]
        );
        assert_eq!(reload.sessions.max, 7);
        assert_eq!(reload.log.level, "debug");
        assert_eq!(reload.templates.len(), 1);
    }

    #[test]
    fn rules_change_while_running() {
        let with = |rule: &str| {
            let main = ("casemate.yaml".to_owned(), b"version: 1".to_vec());
            let rule = ("policy/nights.yaml".to_owned(), rule.as_bytes().to_vec());
            Config::from_sources(&[main], &[rule]).unwrap()
        };
        let deny = with("effect: deny");
        let reload = config("").reload_from(&deny).unwrap();
        assert_eq!(
            (&*reload.changed, reload.policy.len()),
            (&["policy.nights".to_owned()][..], 1)
        );
        assert_eq!(deny.reload_from(&deny).unwrap().changed, [""; 0]);
        let later = with("effect: deny\nhours: '22:00-06:00'");
        assert_eq!(deny.reload_from(&later).unwrap().changed, ["policy.nights"]);
        assert_eq!(deny.reload_from(&config("")).unwrap().policy, []);
    }

    #[test]
    fn issuers_change_while_running_by_their_names() {
        let with = |text: &str| {
            config(&format!(
                "jwt: {{one: {{issuer: a, audiences: [b], algorithms: [HS256], secret_file: /s, team: c{text}}}}}"
            ))
        };
        let changed = |from: &Config, to: &Config| from.reload_from(to).unwrap().changed;
        assert_eq!(changed(&config(""), &with("")), ["jwt.one"]);
        assert_eq!(changed(&with(""), &config("")), ["jwt.one"]);
        assert_eq!(changed(&with(""), &with("")), [""; 0]);
        // As many entries as before, with another value.
        let one = with(", required_claims: {a: b}");
        let other = with(", required_claims: {a: c}");
        assert_eq!(changed(&one, &other), ["jwt.one"]);
        assert_eq!(one.reload_from(&other).unwrap().jwt, other.jwt);
    }

    #[test]
    fn anything_else_is_refused_with_its_keys_and_nothing_changes() {
        let new = config(
            "mode: development\nhttp: {listen: '127.0.0.1:1', max_body_bytes: 2048}\nlog: {level: debug}",
        );
        let error = config("").reload_from(&new).unwrap_err();
        assert_eq!(error.keys, ["http.listen", "http.max_body_bytes", "mode"]);
        assert!(
            error
                .to_string()
                .contains("http.listen, http.max_body_bytes, mode")
        );
    }

    #[test]
    fn writing_a_default_out_is_no_change() {
        let new = config("http: {listen: '127.0.0.1:7272'}\nmode: production");
        assert_eq!(config("").reload_from(&new).unwrap().changed, [""; 0]);
    }

    #[test]
    fn a_changed_environment_is_a_change_of_the_template_without_its_value() {
        let with =
            |value: &str| with_template("", Some(&format!("{TEMPLATE}env: {{KEY: {value}}}\n")));
        let reload = with("hush").reload_from(&with("mum")).unwrap();
        assert_eq!(reload.changed, ["templates.base"]);
    }
}
