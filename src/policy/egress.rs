//! Whether a sandbox may reach what it asks for, by the rules of its template, of its team and of the session.
//!
//! Each of them that says anything must allow it, so that a session narrows what its template allows, and a team's own template
//! what the operator allows the team. Within one, what denies wins, and what nothing allows is denied. What cannot be seen (the
//! method within TLS, what a tunnel of any bytes carries) holds for a rule that denies and does not hold for one that allows.
//!
//! A name is judged first, and then, when it is resolved, each of its addresses: those that are not of the public internet are
//! reached only where an operator's rule names them.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::egress::{
    EgressEffect, EgressRule, EgressRules, HostPattern, Scheme, SessionEgress, is_plain_path,
};
use crate::model::host::Host;
use crate::model::inject::{Injection, may_have};
use crate::model::name::Name;
use crate::model::network::why_not_public;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Where to.
    pub host: &'a Host,
    /// To which port.
    pub port: u16,
    /// How.
    pub scheme: Scheme,
    /// Method and path, where they can be read.
    pub request: Option<(&'a str, &'a str)>,
}

/// Whose rules they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The template's; of a file, or a team's own.
    Template {
        /// Whether it is the operator's.
        is_operators: bool,
    },
    /// What the operator allows the team.
    Team,
    /// The session's own.
    Session,
}

impl Whose {
    const fn is_operators(self) -> bool {
        match self {
            Self::Template { is_operators } => is_operators,
            Self::Team => true,
            Self::Session => false,
        }
    }

    /// In words.
    const fn words(self) -> &'static str {
        match self {
            Self::Template { .. } => "the session's template",
            Self::Team => "what the operator allows the team",
            Self::Session => "the session's own rules",
        }
    }
}

/// All that bounds a session.
#[derive(Clone, Debug, Default)]
pub struct Bounds<'a>(pub Vec<(Whose, Cow<'a, EgressRules>)>);

/// The answer, with the rule that gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressDecision {
    /// Whether it may be reached.
    pub allowed: bool,
    /// The rule's name.
    pub rule: Cow<'static, str>,
    /// Why, for people.
    pub reason: String,
}

/// The name of the rule where no rule allows.
pub const NOTHING_ALLOWS: &str = "nothing-allows";
/// The name of the rule that keeps what is not of the public internet out of reach.
pub const ADDRESSES_ARE_NAMED: &str = "only-named-addresses";

fn denied(rule: impl Into<Cow<'static, str>>, reason: String) -> EgressDecision {
    EgressDecision {
        allowed: false,
        rule: rule.into(),
        reason,
    }
}

impl<'a> Bounds<'a> {
    /// What bounds a session, where the operator has these rules for its team. A template of a team's own needs them.
    #[must_use]
    pub fn of(said: &'a SessionEgress, team: Option<&'a EgressRules>) -> Self {
        let is_operators = said.is_operators;
        let mut all = vec![(
            Whose::Template { is_operators },
            Cow::Borrowed(&said.template),
        )];
        match team {
            Some(rules) => all.push((Whose::Team, Cow::Borrowed(rules))),
            None if is_operators => {}
            None => all.push((Whose::Team, Cow::Owned(EgressRules::new()))),
        }
        all.extend(
            said.own
                .as_ref()
                .map(|own| (Whose::Session, Cow::Borrowed(own))),
        );
        Self(all)
    }
}

impl Bounds<'_> {
    /// Decides by what is asked for, before anything is resolved.
    #[must_use]
    pub fn decide(&self, asked: &Asked<'_>) -> EgressDecision {
        let mut speaks: Option<&Name> = None;
        for (whose, rules) in &self.0 {
            if let Some((name, _)) = rules.iter().find(|(_, rule)| denies(rule, asked, None)) {
                let reason = format!("the rule {name} of {} denies it", whose.words());
                return denied(name.to_string(), reason);
            }
        }
        for (whose, rules) in &self.0 {
            let Some((name, _)) = rules.iter().find(|(_, rule)| allows(rule, asked)) else {
                return denied(
                    NOTHING_ALLOWS,
                    format!("{} has no rule that allows it", whose.words()),
                );
            };
            speaks = speaks.or(Some(name));
        }
        match speaks {
            Some(name) => EgressDecision {
                allowed: true,
                rule: name.to_string().into(),
                reason: format!("the rule {name} allows it"),
            },
            None => denied(NOTHING_ALLOWS, "there are no rules".to_owned()),
        }
    }

    /// What is added to a request that is allowed, with the rules that say so, by their names: a header that two would add is the first one's.
    /// Nothing where the request cannot be read, or its answer would repeat it.
    #[must_use]
    pub fn injections(&self, asked: &Asked<'_>) -> Vec<(&Name, &Injection)> {
        let mut added: Vec<(&Name, &Injection)> = Vec::new();
        let is_readable = asked.request.is_some_and(|(method, _)| may_have(method));
        if !is_readable || !self.decide(asked).allowed {
            return added;
        }
        for (name, rule, injection) in self.injecting() {
            let is_new = added
                .iter()
                .all(|(_, other)| other.header != injection.header);
            if is_new && allows(rule, asked) {
                added.push((name, injection));
            }
        }
        added
    }

    /// Whether something may be added to a request over TLS to there, so that it has to be read.
    #[must_use]
    pub fn reads_tls(&self, host: &Host, port: u16) -> bool {
        self.injecting().any(|(_, rule, _)| {
            rule.is_for_port(port) && rule.hosts.iter().any(|one| is_meant(one, host, false))
        })
    }

    /// A session and a team only narrow: what they would add counts for nothing.
    fn injecting(&self) -> impl Iterator<Item = (&Name, &EgressRule, &Injection)> {
        let templates = self
            .0
            .iter()
            .filter(|(whose, _)| matches!(whose, Whose::Template { .. }));
        templates
            .flat_map(|(_, rules)| rules.iter())
            .filter(|(_, rule)| rule.effect == EgressEffect::Allow)
            .filter_map(|(name, rule)| Some((name, rule, rule.inject.as_ref()?)))
    }

    /// Decides whether what is allowed may be reached at this address; `is_own` says that the address is the machine's.
    #[must_use]
    pub fn decide_address(
        &self,
        asked: &Asked<'_>,
        address: IpAddr,
        is_own: bool,
    ) -> EgressDecision {
        let decision = self.decide(asked);
        if !decision.allowed {
            return decision;
        }
        for (whose, rules) in &self.0 {
            let denying = rules
                .iter()
                .find(|(_, rule)| denies(rule, asked, Some(address)));
            if let Some((name, _)) = denying {
                let reason = format!(
                    "the rule {name} of {} denies the address {address}",
                    whose.words()
                );
                return denied(name.to_string(), reason);
            }
            let why = why_not_public(address).or(is_own.then_some("this machine's own"));
            let admits = |rule: &EgressRule| match (&rule.networks, asked.host, why) {
                (Some(networks), ..) => networks.iter().any(|one| one.contains(address)),
                // A rule that allows it is one that names it.
                (None, Host::Address(_), _) | (None, _, None) => true,
                (None, Host::Name(_), Some(_)) => !whose.is_operators(),
            };
            let admitting = rules
                .values()
                .any(|rule| allows(rule, asked) && admits(rule));
            if !admitting {
                let reason = match why {
                    Some(why) => format!(
                        "its address {address} is {why}, which {} would have to name under networks",
                        whose.words()
                    ),
                    None => format!(
                        "its address {address} is in none of the networks that {} names",
                        whose.words()
                    ),
                };
                return denied(ADDRESSES_ARE_NAMED, reason);
            }
        }
        // Some operator has spoken for what is not public, or nobody has.
        let why = why_not_public(address).or(is_own.then_some("this machine's own"));
        if let Some(why) = why
            && !self.0.iter().any(|(whose, _)| whose.is_operators())
        {
            let reason =
                format!("its address {address} is {why}, which only an operator's rule opens");
            return denied(ADDRESSES_ARE_NAMED, reason);
        }
        decision
    }
}

fn allows(rule: &EgressRule, asked: &Asked<'_>) -> bool {
    rule.effect == EgressEffect::Allow
        && rule
            .hosts
            .iter()
            .any(|pattern| is_meant(pattern, asked.host, false))
        && rule.is_for_port(asked.port)
        && rule.is_for_scheme(asked.scheme)
        && reads(rule, asked, false)
}

fn denies(rule: &EgressRule, asked: &Asked<'_>, address: Option<IpAddr>) -> bool {
    let is_address = |pattern: &HostPattern| match (pattern, address) {
        (HostPattern::Network(network), Some(address)) => network.contains(address),
        _ => false,
    };
    let meant = |pattern: &HostPattern| is_meant(pattern, asked.host, true) || is_address(pattern);
    // What a rule says of networks can only be seen of an address.
    let within = match (&rule.networks, address) {
        (None, _) => true,
        (Some(networks), Some(address)) => networks.iter().any(|one| one.contains(address)),
        (Some(_), None) => false,
    };
    rule.effect == EgressEffect::Deny
        && within
        && rule.hosts.iter().any(meant)
        && rule
            .ports
            .as_ref()
            .is_none_or(|ports| ports.contains(&asked.port))
        && rule
            .schemes
            .as_ref()
            .is_none_or(|schemes| asked.scheme == Scheme::Tcp || schemes.contains(&asked.scheme))
        && reads(rule, asked, true)
}

fn is_meant(pattern: &HostPattern, host: &Host, denies: bool) -> bool {
    match (pattern, host) {
        (HostPattern::Any, Host::Name(_)) => true,
        (HostPattern::Any, Host::Address(_)) => denies,
        (HostPattern::Name(meant), Host::Name(name)) => name == meant,
        (HostPattern::Below(parent), Host::Name(name)) => {
            name.is_below(parent) || (denies && name == parent)
        }
        (HostPattern::Network(network), Host::Address(address)) => network.contains(*address),
        (HostPattern::Name(_) | HostPattern::Below(_), Host::Address(_))
        | (HostPattern::Network(_), Host::Name(_)) => false,
    }
}

/// Whether method and path are those of the rule; what cannot be seen, or be understood in one way, is `unseen`.
fn reads(rule: &EgressRule, asked: &Asked<'_>, unseen: bool) -> bool {
    let Some((method, path)) = asked.request else {
        return rule.methods.is_none() && rule.paths.is_none() || unseen;
    };
    let is_method = rule
        .methods
        .as_ref()
        .is_none_or(|methods| methods.contains(method));
    let is_path = rule.paths.as_ref().is_none_or(|paths| {
        if is_plain_path(path) {
            paths.iter().any(|prefix| is_within(path, prefix))
        } else {
            unseen
        }
    });
    is_method && is_path
}

/// Whether a path is the one that is meant, or below it.
fn is_within(path: &str, prefix: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(text: &str) -> EgressRules {
        let rules: EgressRules = serde_json::from_str(text).unwrap();
        assert_eq!(crate::model::egress::problems_of(&rules), []);
        rules
    }

    fn bounds(layers: &[(Whose, &str)]) -> Bounds<'static> {
        Bounds(
            layers
                .iter()
                .map(|(whose, text)| (*whose, Cow::Owned(rules(text))))
                .collect(),
        )
    }

    const OPERATORS: Whose = Whose::Template { is_operators: true };
    const TEAMS: Whose = Whose::Template {
        is_operators: false,
    };

    /// `scheme://host:port/path`, with GET where the path can be read; and the address, if it is resolved.
    fn told(bounds: &Bounds<'_>, what: &str, address: Option<&str>) -> String {
        told_with(bounds, "GET", what, address)
    }

    fn told_with(bounds: &Bounds<'_>, method: &str, what: &str, address: Option<&str>) -> String {
        let (scheme, rest) = what.split_once("://").unwrap();
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, Some(format!("/{path}"))),
            None => (rest, None),
        };
        let scheme: Scheme = scheme.parse().unwrap();
        let default = if scheme == Scheme::Http { 80 } else { 443 };
        let (host, port) = Host::parse_with_port(authority.as_bytes(), Some(default)).unwrap();
        let asked = Asked {
            host: &host,
            port,
            scheme,
            request: path.as_deref().map(|path| (method, path)),
        };
        let decision = match address {
            Some(address) => {
                bounds.decide_address(&asked, address.parse().unwrap(), address == "9.9.9.9")
            }
            None => bounds.decide(&asked),
        };
        let sign = if decision.allowed { '+' } else { '-' };
        format!("{sign}{}", decision.rule)
    }

    #[test]
    fn what_nothing_allows_is_denied() {
        assert_eq!(
            told(&Bounds::default(), "https://example.org", None),
            "-nothing-allows"
        );
        let empty = bounds(&[(OPERATORS, "{}")]);
        assert_eq!(told(&empty, "https://example.org", None), "-nothing-allows");
    }

    #[test]
    fn hosts_ports_and_schemes_are_what_a_rule_says() {
        let bounds = bounds(&[(
            OPERATORS,
            r#"{"exact":{"hosts":["example.org"]},"below":{"hosts":["*.example.net"],"ports":[8443]},"ssh":{"hosts":["git.example"],"ports":[22],"schemes":["tcp"]},"address":{"hosts":["192.0.2.0/24"]}}"#,
        )]);
        for (asked, answer) in [
            ("https://example.org", "+exact"),
            ("https://EXAMPLE.org.", "+exact"),
            ("http://example.org/x", "+exact"),
            ("tcp://example.org", "-nothing-allows"),
            ("https://example.org:8443", "-nothing-allows"),
            ("https://www.example.org", "-nothing-allows"),
            ("https://notexample.org", "-nothing-allows"),
            ("https://example.org.evil.net", "-nothing-allows"),
            ("https://a.example.net:8443", "+below"),
            ("https://a.b.example.net:8443", "+below"),
            ("https://example.net:8443", "-nothing-allows"),
            ("https://aexample.net:8443", "-nothing-allows"),
            ("tcp://git.example:22", "+ssh"),
            ("https://git.example:22", "-nothing-allows"),
            ("https://192.0.2.9", "+address"),
            ("https://192.0.3.9", "-nothing-allows"),
            ("https://[::ffff:192.0.2.9]", "-nothing-allows"),
        ] {
            assert_eq!(told(&bounds, asked, None), answer, "{asked}");
        }
    }

    #[test]
    fn every_name_is_no_address() {
        let open = bounds(&[(OPERATORS, r#"{"all":{"hosts":["*"]}}"#)]);
        assert_eq!(told(&open, "https://example.org", None), "+all");
        assert_eq!(told(&open, "https://192.0.2.1", None), "-nothing-allows");
        let shut = bounds(&[(
            OPERATORS,
            r#"{"all":{"hosts":["*","0.0.0.0/0"]},"none":{"effect":"deny","hosts":["*"]}}"#,
        )]);
        assert_eq!(told(&shut, "https://192.0.2.1", None), "-none");
    }

    #[test]
    fn what_denies_wins_and_holds_of_what_cannot_be_seen() {
        let bounds = bounds(&[(
            OPERATORS,
            r#"{"all":{"hosts":["*"],"ports":[80,443,22],"schemes":["http","https","tcp"]},
                "no-evil":{"effect":"deny","hosts":["*.evil.org"]},
                "no-admin":{"effect":"deny","hosts":["example.org"],"paths":["/admin"]},
                "no-plain":{"effect":"deny","hosts":["example.com"],"schemes":["http"]},
                "no-test-net":{"effect":"deny","hosts":["1.2.3.0/24"]},
                "no-part":{"effect":"deny","hosts":["*.example.net"],"networks":["5.0.0.0/8"]}}"#,
        )]);
        for (asked, address, answer) in [
            ("https://a.evil.org", None, "-no-evil"),
            ("https://evil.org", None, "-no-evil"),
            ("http://example.org/x", None, "+all"),
            ("http://example.org/admin/x", None, "-no-admin"),
            ("http://example.org/x/../admin", None, "-no-admin"),
            ("http://example.org/%61dmin", None, "-no-admin"),
            ("http://example.org//admin", None, "-no-admin"),
            ("https://example.org", None, "-no-admin"),
            ("https://example.com", None, "+all"),
            ("http://example.com/", None, "-no-plain"),
            ("tcp://example.com", None, "-no-plain"),
            ("https://other.org", Some("1.2.3.4"), "-no-test-net"),
            ("https://other.org", Some("1.2.4.4"), "+all"),
            ("https://a.example.net", Some("5.1.1.1"), "-no-part"),
            ("https://a.example.net", Some("6.1.1.1"), "+all"),
        ] {
            assert_eq!(told(&bounds, asked, address), answer, "{asked}");
        }
    }

    #[test]
    fn methods_and_paths_are_read_of_requests_in_the_clear_alone() {
        let bounds = bounds(&[(
            OPERATORS,
            r#"{"api":{"hosts":["example.org"],"methods":["GET"],"paths":["/v1","/files/"]}}"#,
        )]);
        for (method, asked, answer) in [
            ("GET", "http://example.org/v1", "+api"),
            ("GET", "http://example.org/v1/x", "+api"),
            ("GET", "http://example.org/files/x", "+api"),
            ("GET", "http://example.org/v10", "-nothing-allows"),
            ("GET", "http://example.org/files", "-nothing-allows"),
            ("GET", "http://example.org/", "-nothing-allows"),
            ("POST", "http://example.org/v1", "-nothing-allows"),
            ("get", "http://example.org/v1", "-nothing-allows"),
            ("GET", "http://example.org/v1/../admin", "-nothing-allows"),
            (
                "GET",
                "http://example.org/v1/%2e%2e/admin",
                "-nothing-allows",
            ),
            ("GET", "http://example.org/v1\\..\\admin", "-nothing-allows"),
            ("GET", "https://example.org", "-nothing-allows"),
        ] {
            assert_eq!(
                told_with(&bounds, method, asked, None),
                answer,
                "{method} {asked}"
            );
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "its cases are its lines")]
    fn addresses_that_are_not_public_are_reached_where_an_operators_rule_names_them() {
        let plain = r#"{"one":{"hosts":["example.org","*.corp.example"]}}"#;
        let named = r#"{"one":{"hosts":["*.corp.example"],"networks":["10.0.0.0/8"]},"two":{"hosts":["example.org"]},"three":{"hosts":["127.0.0.1"]}}"#;
        for (layers, asked, address, answer) in [
            (
                vec![(OPERATORS, plain)],
                "https://example.org",
                "1.1.1.1",
                "+one",
            ),
            (
                vec![(OPERATORS, plain)],
                "https://example.org",
                "127.0.0.1",
                "-only-named-addresses",
            ),
            (
                vec![(OPERATORS, plain)],
                "https://example.org",
                "169.254.169.254",
                "-only-named-addresses",
            ),
            (
                vec![(OPERATORS, plain)],
                "https://example.org",
                "::ffff:1.1.1.1",
                "-only-named-addresses",
            ),
            // The machine's own.
            (
                vec![(OPERATORS, plain)],
                "https://example.org",
                "9.9.9.9",
                "-only-named-addresses",
            ),
            (
                vec![(OPERATORS, named)],
                "https://db.corp.example",
                "10.1.2.3",
                "+one",
            ),
            (
                vec![(OPERATORS, named)],
                "https://db.corp.example",
                "1.1.1.1",
                "-only-named-addresses",
            ),
            (
                vec![(OPERATORS, named)],
                "https://db.corp.example",
                "::ffff:10.1.2.3",
                "-only-named-addresses",
            ),
            // What one rule names is not named for another.
            (
                vec![(OPERATORS, named)],
                "https://example.org",
                "10.1.2.3",
                "-only-named-addresses",
            ),
            (
                vec![(OPERATORS, named)],
                "https://127.0.0.1",
                "127.0.0.1",
                "+three",
            ),
            // A team's own template names nothing that the operator does not.
            (
                vec![(TEAMS, named)],
                "https://db.corp.example",
                "10.1.2.3",
                "-only-named-addresses",
            ),
            (
                vec![(TEAMS, named), (Whose::Team, plain)],
                "https://db.corp.example",
                "10.1.2.3",
                "-only-named-addresses",
            ),
            (
                vec![(TEAMS, named), (Whose::Team, named)],
                "https://db.corp.example",
                "10.1.2.3",
                "+one",
            ),
            (
                vec![(TEAMS, plain), (Whose::Team, named)],
                "https://db.corp.example",
                "10.1.2.3",
                "+one",
            ),
            (
                vec![(OPERATORS, named), (Whose::Session, plain)],
                "https://db.corp.example",
                "10.1.2.3",
                "+one",
            ),
            (
                vec![(OPERATORS, plain), (Whose::Session, named)],
                "https://db.corp.example",
                "10.1.2.3",
                "-only-named-addresses",
            ),
        ] {
            assert_eq!(
                told(&bounds(&layers), asked, Some(address)),
                answer,
                "{asked} {address}"
            );
        }
    }

    #[test]
    fn each_must_allow() {
        let wide = r#"{"wide":{"hosts":["*.example.org"]}}"#;
        let narrow = r#"{"narrow":{"hosts":["a.example.org"]}}"#;
        let other = r#"{"other":{"hosts":["evil.org"]}}"#;
        let both = bounds(&[(OPERATORS, wide), (Whose::Session, narrow)]);
        assert_eq!(told(&both, "https://a.example.org", None), "+wide");
        assert_eq!(
            told(&both, "https://b.example.org", None),
            "-nothing-allows"
        );
        let more = bounds(&[(OPERATORS, wide), (Whose::Session, other)]);
        assert_eq!(told(&more, "https://evil.org", None), "-nothing-allows");
        let none = bounds(&[(OPERATORS, wide), (Whose::Session, "{}")]);
        assert_eq!(
            told(&none, "https://a.example.org", None),
            "-nothing-allows"
        );
        let team = bounds(&[(TEAMS, wide), (Whose::Team, "{}")]);
        assert_eq!(
            told(&team, "https://a.example.org", None),
            "-nothing-allows"
        );
    }

    fn any_rule() -> impl Strategy<Value = EgressRule> {
        let host = prop_oneof![
            "\\*",
            "(\\*\\.)?[ab]\\.org",
            "10\\.0\\.0\\.0/8",
            "1\\.1\\.1\\.1"
        ];
        (
            any::<bool>(),
            proptest::collection::btree_set(host.prop_map(|text| text.parse().unwrap()), 1..3),
            proptest::option::of(proptest::collection::btree_set(
                prop_oneof![Just(80_u16), Just(443)],
                1..2,
            )),
            proptest::option::of(proptest::collection::btree_set(
                prop_oneof![Just("/a".to_owned()), Just("/".to_owned())],
                1..2,
            )),
        )
            .prop_map(|(denies, hosts, ports, paths)| EgressRule {
                effect: if denies {
                    EgressEffect::Deny
                } else {
                    EgressEffect::Allow
                },
                ports,
                paths,
                ..EgressRule::allowing(hosts)
            })
    }

    fn any_rules() -> impl Strategy<Value = EgressRules> {
        proptest::collection::btree_map("[a-d]", any_rule(), 0..4).prop_map(|rules| {
            rules
                .into_iter()
                .map(|(name, rule)| (name.parse().unwrap(), rule))
                .collect()
        })
    }

    #[test]
    fn what_is_added_is_what_a_templates_rule_says_of_what_is_allowed() {
        use Scheme::{Http, Https, Tcp};
        let template = r#"{
            "a-all":{"hosts":["*"]},
            "b":{"hosts":["api.org"],"methods":["GET"],"paths":["/v1"],"inject":{"credential":"one"}},
            "c":{"hosts":["api.org"],"inject":{"credential":"two"}},
            "d":{"hosts":["api.org"],"inject":{"credential":"three","header":"x-key"}},
            "e":{"hosts":["deny.org"],"inject":{"credential":"four"}},
            "f":{"effect":"deny","hosts":["deny.org"],"paths":["/secret"]}
        }"#;
        let bounds = Bounds(vec![(OPERATORS, Cow::Owned(rules(template)))]);
        let added = |bounds: &Bounds<'_>, scheme, host: &str, port, request| {
            let host: Host = host.parse().unwrap();
            let asked = Asked {
                host: &host,
                port,
                scheme,
                request,
            };
            let added = bounds.injections(&asked);
            let named = added.iter().map(|(_, it)| it.credential.to_string());
            named.collect::<Vec<_>>().join(" ")
        };
        for (scheme, host, port, request, expected) in [
            (Https, "api.org", 443, Some(("GET", "/v1/x")), "one three"),
            (Https, "api.org", 443, Some(("POST", "/v1/x")), "two three"),
            (
                Https,
                "api.org",
                443,
                Some(("GET", "/v1/../x")),
                "two three",
            ),
            (Https, "api.org", 443, Some(("TRACE", "/v1")), ""),
            (Https, "api.org", 443, None, ""),
            (Https, "api.org", 8443, Some(("GET", "/v1")), ""),
            (Http, "api.org", 80, Some(("GET", "/v1")), ""),
            (Tcp, "api.org", 443, Some(("GET", "/v1")), ""),
            (Https, "www.api.org", 443, Some(("GET", "/v1")), ""),
            (Https, "deny.org", 443, Some(("GET", "/")), "four"),
            (Https, "deny.org", 443, Some(("GET", "/secret/x")), ""),
        ] {
            let found = added(&bounds, scheme, host, port, request);
            assert_eq!(found, expected, "{scheme} {host} {port} {request:?}");
        }
        let host = |text: &str| text.parse::<Host>().unwrap();
        assert!(bounds.reads_tls(&host("api.org"), 443));
        assert!(!bounds.reads_tls(&host("api.org"), 80));
        assert!(!bounds.reads_tls(&host("other.org"), 443));
        // A session or a team that would add something adds nothing, and one that narrows has its way.
        let own =
            rules(r#"{"own":{"hosts":["api.org"],"paths":["/v1"],"schemes":["http","https"]}}"#);
        let layers = |whose| {
            Bounds(vec![
                (OPERATORS, Cow::Owned(rules(template))),
                (whose, Cow::Owned(own.clone())),
            ])
        };
        let asked = Some(("GET", "/v2"));
        assert_eq!(
            added(&layers(Whose::Session), Https, "api.org", 443, asked),
            ""
        );
        let widening: EgressRules = serde_json::from_str(
            r#"{"own":{"hosts":["*"],"inject":{"credential":"mine","header":"x-own"}}}"#,
        )
        .unwrap();
        for whose in [Whose::Session, Whose::Team] {
            let mut bounds = layers(whose);
            bounds.0.push((whose, Cow::Borrowed(&widening)));
            let found = added(&bounds, Https, "api.org", 443, Some(("GET", "/v1")));
            assert_eq!(found, "one three");
        }
    }

    proptest! {
        #[test]
        fn a_session_only_narrows(template in any_rules(), own in any_rules(), host in "(x\\.)?[ab]\\.org|10\\.0\\.0\\.1|1\\.1\\.1\\.1", path in "/a?", port in prop_oneof![Just(80_u16), Just(443)], address in prop_oneof![Just("10.0.0.1"), Just("1.1.1.1"), Just("127.0.0.1")]) {
            let host: Host = host.parse().unwrap();
            let asked = Asked { host: &host, port, scheme: Scheme::Http, request: Some(("GET", &path)) };
            let whole = Bounds(vec![(OPERATORS, Cow::Borrowed(&template))]);
            let narrowed = Bounds(vec![(OPERATORS, Cow::Borrowed(&template)), (Whose::Session, Cow::Borrowed(&own))]);
            let address = address.parse().unwrap();
            prop_assert!(!narrowed.decide(&asked).allowed || whole.decide(&asked).allowed);
            let at = |bounds: &Bounds<'_>| bounds.decide_address(&asked, address, false).allowed;
            prop_assert!(!at(&narrowed) || at(&whole));
            prop_assert!(!at(&whole) || whole.decide(&asked).allowed);
        }

        #[test]
        fn one_more_rule_that_denies_allows_nothing(template in any_rules(), more in any_rule(), host in "(x\\.)?[ab]\\.org|10\\.0\\.0\\.1") {
            let host: Host = host.parse().unwrap();
            let asked = Asked { host: &host, port: 80, scheme: Scheme::Http, request: Some(("GET", "/a")) };
            let mut with = template.clone();
            with.insert("zz".parse().unwrap(), EgressRule { effect: EgressEffect::Deny, ..more });
            let before = Bounds(vec![(OPERATORS, Cow::Owned(template))]).decide(&asked).allowed;
            prop_assert!(before || !Bounds(vec![(OPERATORS, Cow::Owned(with))]).decide(&asked).allowed);
        }
    }
}
