//! What a sandbox may reach: rules, and what must hold of every one, whoever wrote it.
//!
//! What nothing allows is denied, and what denies wins; who decides by them is [`crate::policy::egress`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::host::{Host, HostName};
use super::inject::{Injection, may_have};
use super::name::Name;
use super::network::Network;

/// Most rules of a template, a team or a session.
pub const MAX_RULES: usize = 64;
/// Most entries of one condition.
pub const MAX_ENTRIES: usize = 256;
/// Longest path, in bytes.
pub const MAX_PATH_BYTES: usize = 512;
/// Port of a rule that adds something and names none.
pub const INJECTION_PORT: u16 = 443;
/// Ports of a rule that allows and names none.
pub const DEFAULT_PORTS: [u16; 2] = [80, 443];
/// Schemes of a rule that allows and names none.
pub const DEFAULT_SCHEMES: [Scheme; 2] = [Scheme::Http, Scheme::Https];

/// Rules by name.
pub type EgressRules = BTreeMap<Name, EgressRule>;

/// What a rule says.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum EgressEffect {
    /// It may be reached, unless another rule denies it.
    #[default]
    Allow,
    /// It may not, whatever other rules allow.
    Deny,
}

/// How something is reached.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Requests in the clear, which the proxy reads.
    Http,
    /// TLS, which passes unread once it has named the very host that was asked for.
    Https,
    /// Any bytes.
    Tcp,
}

impl Scheme {
    /// Every scheme.
    pub const ALL: [Self; 3] = [Self::Http, Self::Https, Self::Tcp];

    /// The word in rules and in the record.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
        }
    }
}

/// Which hosts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostPattern {
    /// `*`: every name. Of a rule that denies, every address too.
    Any,
    /// This name.
    Name(HostName),
    /// `*.example.org`: every name below, and not that name itself.
    Below(HostName),
    /// Addresses, where they are what is asked for.
    Network(Network),
}

/// A rule. A condition that is absent is no condition, but for ports and schemes of a rule that allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressRule {
    /// Whether it allows or denies.
    #[serde(default)]
    pub effect: EgressEffect,
    /// Which hosts: `example.org`, `*.example.org` for every name below, `*` for every name, or an address or a network.
    pub hosts: BTreeSet<HostPattern>,
    /// Which ports; a rule that allows and does not say is for 80 and 443.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<BTreeSet<u16>>,
    /// How; a rule that allows and does not say is for `http` and `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schemes: Option<BTreeSet<Scheme>>,
    /// With which methods, where requests can be read: not through TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<BTreeSet<String>>,
    /// Below which paths, likewise: `/v1` is for `/v1` and `/v1/x`, and not for `/v10`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<BTreeSet<String>>,
    /// In which networks the hosts' addresses must be. Without, only addresses of the public internet are reached: private
    /// ones, loopback and the machine's own are reached where an operator's rule names them here or in `hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<BTreeSet<Network>>,
    /// What is added to requests that it allows, of a template's rule for TLS to hosts by their whole names. Such a rule is for port 443 unless
    /// it says, and its methods and paths can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inject: Option<Injection>,
}

/// What is wrong with a rule: the field, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct EgressProblem {
    /// The field.
    pub field: &'static str,
    /// What it must be.
    pub problem: String,
}

impl EgressRule {
    /// A rule that allows these hosts.
    #[must_use]
    pub fn allowing(hosts: impl IntoIterator<Item = HostPattern>) -> Self {
        Self {
            effect: EgressEffect::Allow,
            hosts: hosts.into_iter().collect(),
            ports: None,
            schemes: None,
            methods: None,
            paths: None,
            networks: None,
            inject: None,
        }
    }

    /// Whether a rule that allows is for this port.
    #[must_use]
    pub fn is_for_port(&self, port: u16) -> bool {
        match &self.ports {
            Some(ports) => ports.contains(&port),
            None if self.inject.is_some() => port == INJECTION_PORT,
            None => DEFAULT_PORTS.contains(&port),
        }
    }

    /// Whether a rule that allows is for this scheme.
    #[must_use]
    pub fn is_for_scheme(&self, scheme: Scheme) -> bool {
        match &self.schemes {
            Some(schemes) => schemes.contains(&scheme),
            None if self.inject.is_some() => scheme == Scheme::Https,
            None => DEFAULT_SCHEMES.contains(&scheme),
        }
    }

    /// Everything that is wrong with it.
    #[must_use]
    pub fn problems(&self) -> Vec<EgressProblem> {
        let mut problems = Vec::new();
        let mut say = |field, problem: String| problems.push(EgressProblem { field, problem });
        let counts = [
            ("hosts", Some(self.hosts.len())),
            ("ports", self.ports.as_ref().map(BTreeSet::len)),
            ("schemes", self.schemes.as_ref().map(BTreeSet::len)),
            ("methods", self.methods.as_ref().map(BTreeSet::len)),
            ("paths", self.paths.as_ref().map(BTreeSet::len)),
            ("networks", self.networks.as_ref().map(BTreeSet::len)),
        ];
        for (field, count) in counts {
            match count {
                Some(0) => say(
                    field,
                    "is empty, so that the rule would never hold".to_owned(),
                ),
                Some(count) if count > MAX_ENTRIES => {
                    say(field, format!("has {count} entries; at most {MAX_ENTRIES}"));
                }
                _ => {}
            }
        }
        if self.ports.iter().flatten().any(|port| *port == 0) {
            say("ports", "a port is 1 to 65535, not 0".to_owned());
        }
        let is_method = |method: &String| {
            (1..=16).contains(&method.len()) && method.bytes().all(|b| b.is_ascii_uppercase())
        };
        if !self.methods.iter().flatten().all(is_method) {
            say("methods", "a method is in capitals, such as GET".to_owned());
        }
        if !self.paths.iter().flatten().all(|path| is_plain_path(path)) {
            say(
                "paths",
                format!(
                    "a path begins with /, has no . or .. in it, no %, ? and #, and at most {MAX_PATH_BYTES} bytes"
                ),
            );
        }
        let reads = self.methods.is_some() || self.paths.is_some();
        let is_read = |schemes: &BTreeSet<Scheme>| schemes.contains(&Scheme::Http);
        if self.effect == EgressEffect::Allow
            && reads
            && self.inject.is_none()
            && !self.schemes.as_ref().is_none_or(is_read)
        {
            say(
                "schemes",
                "methods and paths can be read of http alone".to_owned(),
            );
        }
        if let Some(problem) = self.inject.as_ref().and_then(|it| self.misfit(it)) {
            say("inject", problem);
        }
        problems
    }

    /// Why the rule cannot add this.
    fn misfit(&self, injection: &Injection) -> Option<String> {
        let is_https = |schemes: &BTreeSet<Scheme>| *schemes == BTreeSet::from([Scheme::Https]);
        let is_name = |host: &HostPattern| matches!(host, HostPattern::Name(_));
        if self.effect != EgressEffect::Allow {
            return Some("is for a rule that allows".to_owned());
        }
        if !self.hosts.iter().all(is_name) {
            return Some("is for hosts by their whole names, such as api.example.org".to_owned());
        }
        if !self.schemes.as_ref().is_none_or(is_https) {
            return Some(
                "goes over verified TLS alone: leave schemes out, or say https".to_owned(),
            );
        }
        if !self.methods.iter().flatten().all(|one| may_have(one)) {
            return Some("is not for TRACE and CONNECT, which could show it".to_owned());
        }
        injection.problem()
    }
}

/// Everything that is wrong with rules that add nothing to requests: those of sessions and teams.
#[must_use]
pub fn problems_of_bounds(rules: &EgressRules) -> Vec<(Vec<String>, String)> {
    let adding = rules.iter().filter(|(_, rule)| rule.inject.is_some());
    let adding = adding.map(|(name, _)| {
        (
            vec![name.to_string(), "inject".to_owned()],
            "is for the rules of templates alone".to_owned(),
        )
    });
    problems_of(rules).into_iter().chain(adding).collect()
}

/// Everything that is wrong with some rules: where, as the rule's name and its field, and what.
#[must_use]
pub fn problems_of(rules: &EgressRules) -> Vec<(Vec<String>, String)> {
    if rules.len() > MAX_RULES {
        return vec![(Vec::new(), format!("has more than {MAX_RULES} rules"))];
    }
    let of_each = rules.iter().flat_map(|(name, rule)| {
        let problems = rule.problems().into_iter();
        problems.map(|one| (vec![name.to_string(), one.field.to_owned()], one.problem))
    });
    of_each.collect()
}

/// Whether a path is what every reader understands alike: from `/` on, printable, without an escape, a backslash, and empty
/// segments or those of dots, except that it may end with `/`.
#[must_use]
pub fn is_plain_path(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else {
        return false;
    };
    let segments = rest.strip_suffix('/').unwrap_or(rest);
    let is_plain = |segment: &str| !matches!(segment, "" | "." | "..");
    path.len() <= MAX_PATH_BYTES
        && path
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"%?#\\;".contains(&b))
        && (rest.is_empty() || segments.split('/').all(is_plain))
}

/// The text is no pattern of hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a host: write example.org, *.example.org for every name below, * for every name, or a network such as 192.0.2.0/24"
)]
pub struct BadPattern;

impl FromStr for HostPattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        let (is_below, text) = match text.strip_prefix("*.") {
            Some(parent) => (true, parent),
            None => (false, text),
        };
        match Host::parse(text.as_bytes()) {
            Ok(Host::Name(name)) if is_below => Ok(Self::Below(name)),
            Ok(Host::Name(name)) => Ok(Self::Name(name)),
            Ok(Host::Address(_)) | Err(_) => Err(BadPattern),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Name(name) => name.fmt(f),
            Self::Below(name) => write!(f, "*.{name}"),
            Self::Network(network) => network.fmt(f),
        }
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for HostPattern {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HostPattern".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "example.org, *.example.org for every name below, * for every name, an address, or a network.",
        })
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scheme {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let found = Self::ALL.into_iter().find(|scheme| scheme.as_str() == text);
        found.ok_or("a scheme is one of http, https, tcp")
    }
}

impl FromStr for EgressEffect {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err("an effect is allow or deny"),
        }
    }
}

/// What a session may reach, as far as it was said when it was admitted and since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionEgress {
    /// Its template's rules.
    pub template: EgressRules,
    /// Whether that template is the operator's.
    pub is_operators: bool,
    /// Its own, which only narrow; `None`: it says nothing.
    pub own: Option<EgressRules>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_as_they_are_written() {
        for text in [
            "*",
            "example.org",
            "*.example.org",
            "10.0.0.0/8",
            "192.0.2.1",
            "2001:db8::/32",
        ] {
            assert_eq!(text.parse::<HostPattern>().unwrap().to_string(), text);
        }
        assert_eq!(
            "*.Bücher.example"
                .parse::<HostPattern>()
                .unwrap()
                .to_string(),
            "*.xn--bcher-kva.example"
        );
        for bad in [
            "",
            "*.",
            "**",
            "*example.org",
            "ex*mple.org",
            "*.*.org",
            "example.*",
            "a.*.org",
            "*.1.2.3.4",
            "*.10.0.0.0/8",
            "10.0.0.1/8",
            "127.1",
            "0x7f.1",
            "example.org:80",
            "user@example.org",
            "example.org/x",
            "example.org\0",
            "[::1]",
        ] {
            assert_eq!(bad.parse::<HostPattern>(), Err(BadPattern), "{bad:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_rule_is_said_with_its_field() {
        let rule = EgressRule::allowing(["example.org".parse().unwrap()]);
        assert_eq!(rule.problems(), []);
        let wrong = |rule: EgressRule| {
            rule.problems()
                .iter()
                .map(|one| one.field)
                .collect::<Vec<_>>()
        };
        assert_eq!(wrong(EgressRule::allowing([])), ["hosts"]);
        assert_eq!(
            wrong(EgressRule {
                ports: Some([0].into()),
                ..rule.clone()
            }),
            ["ports"]
        );
        assert_eq!(
            wrong(EgressRule {
                ports: Some((1..=300).collect()),
                ..rule.clone()
            }),
            ["ports"]
        );
        assert_eq!(
            wrong(EgressRule {
                methods: Some(["get".to_owned()].into()),
                ..rule.clone()
            }),
            ["methods"]
        );
        let tls = Some([Scheme::Https].into());
        let methods = Some(["GET".to_owned()].into());
        assert_eq!(
            wrong(EgressRule {
                methods: methods.clone(),
                schemes: tls.clone(),
                ..rule.clone()
            }),
            ["schemes"]
        );
        let denies = EgressRule {
            methods,
            schemes: tls,
            effect: EgressEffect::Deny,
            ..rule.clone()
        };
        assert_eq!(denies.problems(), []);
        for path in [
            "", "v1", "/../x", "/a/./b", "/a//b", "//", "/%2e", "/a?b", "/a\\b", "/a b", "/ä",
            "/a;b",
        ] {
            assert_eq!(
                wrong(EgressRule {
                    paths: Some([path.to_owned()].into()),
                    ..rule.clone()
                }),
                ["paths"],
                "{path}"
            );
        }
        for path in ["/", "/v1", "/v1/", "/a/b.c/..d"] {
            assert!(is_plain_path(path), "{path}");
        }
        let many = (0..=MAX_RULES)
            .map(|n| (format!("r{n}").parse().unwrap(), rule.clone()))
            .collect();
        assert_eq!(problems_of(&many).len(), 1);
    }

    #[test]
    fn only_a_rule_for_tls_to_whole_names_adds_something() {
        let rule = |rest: &str| {
            let text =
                format!(r#"{{"hosts":["api.example.org"],"inject":{{"credential":"c"}}{rest}}}"#);
            serde_json::from_str::<EgressRule>(&text).unwrap()
        };
        let plain = rule("");
        assert_eq!(plain.problems(), []);
        assert!(plain.is_for_port(443) && !plain.is_for_port(80));
        assert!(plain.is_for_scheme(Scheme::Https) && !plain.is_for_scheme(Scheme::Http));
        let good = rule(r#","schemes":["https"],"methods":["GET"],"paths":["/v1"],"ports":[8443]"#);
        assert_eq!(good.problems(), []);
        assert!(good.is_for_port(8443) && !good.is_for_port(443));
        let mut wrong = vec![
            rule(r#","effect":"deny""#),
            rule(r#","schemes":["http"]"#),
            rule(r#","schemes":["http","https"]"#),
            rule(r#","schemes":["tcp"]"#),
            rule(r#","methods":["TRACE"]"#),
        ];
        for host in ["*", "*.example.org", "192.0.2.1", "192.0.2.0/24"] {
            wrong.push(EgressRule {
                hosts: ["a.org", host].map(|host| host.parse().unwrap()).into(),
                ..plain.clone()
            });
        }
        for rule in wrong {
            let fields: Vec<_> = rule.problems().iter().map(|one| one.field).collect();
            assert_eq!(fields, ["inject"], "{rule:?}");
        }
        let rules = EgressRules::from([("a".parse().unwrap(), plain)]);
        assert_eq!(problems_of(&rules), []);
        assert_eq!(problems_of_bounds(&rules).len(), 1);
    }

    #[test]
    fn a_rule_reads_back_and_knows_all_of_its_fields() {
        let text = r#"{"effect":"deny","hosts":["*.example.org","10.0.0.0/8"],"ports":[22],"schemes":["tcp"],"methods":["GET"],"paths":["/v1"],"networks":["::1"],"inject":{"credential":"c"}}"#;
        let rule: EgressRule = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&rule).unwrap(), text);
        assert!(serde_json::from_str::<EgressRule>(r#"{"hosts":["a"],"host":"b"}"#).is_err());
    }
}
