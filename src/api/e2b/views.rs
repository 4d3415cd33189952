//! Sandboxes as E2B's clients write and read them.

use std::collections::{BTreeMap, BTreeSet};

use casemate_link::Usage;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::envd;
use crate::api::error::Problem;
use crate::app::AccessTokens;
use crate::base::clock::Timestamp;
use crate::model::egress::{EgressEffect, EgressRule, EgressRules, HostPattern};
use crate::model::lease::OnTimeout;
use crate::model::name::Name;
use crate::model::network::Network;
use crate::model::session::{Phase, Session};
use crate::model::volume::VolumeMode;

/// What E2B calls whoever runs a sandbox.
const CLIENT: &str = "casemate";

const MIB: u64 = 1 << 20;

/// A sandbox to make, in either generation of the route. What a client may write and we do not know is not looked at; what we know and
/// cannot do is refused.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NewSandbox {
    #[serde(rename = "templateID")]
    pub(super) template: String,
    pub(super) timeout: Option<u64>,
    pub(super) auto_pause: bool,
    auto_pause_memory: Option<bool>,
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    network: Option<Reachable>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) env_vars: BTreeMap<String, String>,
    mcp: Option<Value>,
    iam: Option<Value>,
    volume_mounts: Vec<VolumeMount>,
}

impl Default for NewSandbox {
    fn default() -> Self {
        Self {
            template: "base".to_owned(),
            timeout: None,
            auto_pause: false,
            auto_pause_memory: None,
            allow_internet_access: None,
            network: None,
            metadata: BTreeMap::new(),
            env_vars: BTreeMap::new(),
            mcp: None,
            iam: None,
            volume_mounts: Vec::new(),
        }
    }
}

/// What a sandbox may reach, and who may reach it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Reachable {
    allow_out: Option<Vec<String>>,
    deny_out: Option<Vec<String>>,
    #[serde(alias = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    allow_public_traffic: Option<bool>,
    rules: Option<BTreeMap<String, Value>>,
    egress_proxy: Option<Value>,
    mask_request_host: Option<String>,
    dns_servers: Option<Vec<String>>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct VolumeMount {
    name: String,
    path: String,
}

/// Something that a client may ask for and that is not to be had here.
fn cannot(what: &str, instead: &str) -> Problem {
    let detail = format!("{what} cannot be had here; {instead}");
    Problem::new(StatusCode::BAD_REQUEST, "not_supported", detail)
}

impl NewSandbox {
    pub(super) const fn on_timeout(&self) -> OnTimeout {
        if self.auto_pause {
            OnTimeout::Pause
        } else {
            OnTimeout::Stop
        }
    }

    /// The template's name.
    pub(super) fn template(&self) -> Result<Name, Problem> {
        template_name(&self.template)
    }

    /// What cannot be done is refused before anything is.
    pub(super) fn check(&self) -> Result<(), Problem> {
        if self.mcp.as_ref().is_some_and(|mcp| !mcp.is_null()) {
            return Err(cannot(
                "mcp: a gateway in the sandbox",
                "a template can start one",
            ));
        }
        if self.iam.as_ref().is_some_and(|iam| !iam.is_null()) {
            return Err(cannot(
                "iam: tokens of a workload",
                "a template's rule can add a credential to requests",
            ));
        }
        if self.auto_pause && self.auto_pause_memory == Some(false) {
            return Err(cannot(
                "a pause that keeps the files only",
                "a pause keeps the memory as well",
            ));
        }
        Ok(())
    }

    pub(super) fn volumes(&self) -> Result<Vec<(Name, VolumeMode)>, Problem> {
        let mounts = self.volume_mounts.iter().map(|mount| {
            let name: Name = mount
                .name
                .parse()
                .map_err(|error| Problem::bad_request(format!("volumeMounts: {error}")))?;
            if mount.path.trim_end_matches('/') != format!("/volumes/{name}") {
                return Err(cannot(
                    "a volume at another path",
                    &format!("mount {name} at /volumes/{name}"),
                ));
            }
            Ok((name, VolumeMode::default()))
        });
        mounts.collect()
    }

    /// The session's own rules, where something is said of what it may reach.
    pub(super) fn egress(&self) -> Result<Option<EgressRules>, Problem> {
        let network = self.network.as_ref();
        let said = network.map(Reachable::egress).transpose()?.flatten();
        if self.allow_internet_access == Some(false) && said.is_none() {
            return Ok(Some(EgressRules::new()));
        }
        Ok(said)
    }
}

impl Reachable {
    /// The rules of a session that say the same. They narrow what its template lets it reach.
    ///
    /// # Errors
    /// When it says what rules cannot.
    pub(super) fn egress(&self) -> Result<Option<EgressRules>, Problem> {
        if self.rules.as_ref().is_some_and(|rules| !rules.is_empty()) {
            return Err(cannot(
                "network.rules: headers added to requests",
                "a template's rule can add a credential to them",
            ));
        }
        if self
            .egress_proxy
            .as_ref()
            .is_some_and(|proxy| !proxy.is_null())
        {
            return Err(cannot(
                "network.egressProxy",
                "what leaves a sandbox goes through this machine",
            ));
        }
        if self.mask_request_host.is_some() {
            return Err(cannot(
                "network.maskRequestHost",
                "programs are asked by the name that was asked for",
            ));
        }
        if self
            .dns_servers
            .as_ref()
            .is_some_and(|servers| !servers.is_empty())
        {
            return Err(cannot(
                "network.dnsServers",
                "names are looked up by this machine",
            ));
        }
        if self.allow_internet_access == Some(false) && self.allow_out.is_none() {
            return Ok(Some(EgressRules::new()));
        }
        let (allowed, denied) = (self.allow_out.as_deref(), self.deny_out.as_deref());
        if allowed.is_none_or(<[_]>::is_empty) && denied.is_none_or(<[_]>::is_empty) {
            // Both empty takes back what was said before.
            return Ok((allowed.is_some() || denied.is_some()).then(everything));
        }
        let mut rules = EgressRules::new();
        let denied = patterns("denyOut", denied.unwrap_or_default())?;
        let (all, some): (Vec<_>, Vec<_>) = denied.into_iter().partition(is_everything);
        if all.is_empty() {
            let allowed = patterns("allowOut", allowed.unwrap_or_default())?;
            // What is not denied is allowed, unless only some is.
            rules = if allowed.is_empty() {
                everything()
            } else {
                allowing(allowed)
            };
        } else if let Some(allowed) = allowed.filter(|allowed| !allowed.is_empty()) {
            rules = allowing(patterns("allowOut", allowed)?);
        }
        for (number, pattern) in some.into_iter().enumerate() {
            let mut rule = EgressRule::allowing([pattern.clone()]);
            rule.effect = EgressEffect::Deny;
            if let HostPattern::Network(network) = pattern {
                // By whatever name it is asked for.
                rule.hosts = [HostPattern::Any].into();
                rule.networks = Some([network].into());
            }
            rules.insert(name_of("deny", number)?, rule);
        }
        Ok(Some(rules))
    }
}

fn name_of(what: &str, number: usize) -> Result<Name, Problem> {
    let name = format!("{what}-{number}").parse();
    name.map_err(|_| Problem::internal("a name of ours"))
}

fn allowing(patterns: Vec<HostPattern>) -> EgressRules {
    let name = "allow".parse();
    name.map(|name: Name| EgressRules::from([(name, EgressRule::allowing(patterns))]))
        .unwrap_or_default()
}

fn everything() -> EgressRules {
    let all = ["*", "0.0.0.0/0", "::/0"]
        .into_iter()
        .filter_map(|text| text.parse().ok());
    allowing(all.collect())
}

fn is_everything(pattern: &HostPattern) -> bool {
    match pattern {
        HostPattern::Any => true,
        HostPattern::Network(network) => ["0.0.0.0/0", "::/0"]
            .iter()
            .any(|all| all.parse::<Network>().is_ok_and(|all| all == *network)),
        HostPattern::Name(_) | HostPattern::Below(_) => false,
    }
}

fn patterns(field: &str, texts: &[String]) -> Result<Vec<HostPattern>, Problem> {
    let read = texts.iter().map(|text| {
        text.parse()
            .map_err(|error| Problem::bad_request(format!("{field}: {error}")))
    });
    read.collect()
}

/// A template by its name; `name:tag` is one of E2B's own.
pub(super) fn template_name(text: &str) -> Result<Name, Problem> {
    text.parse().map_err(|_| {
        let detail =
            format!("there is no template {text:?}: templates are known by names, without a tag");
        Problem::new(StatusCode::NOT_FOUND, "template_not_found", detail)
    })
}

/// A sandbox that was made or connected to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sandbox {
    #[serde(rename = "templateID")]
    template: Name,
    #[serde(rename = "sandboxID")]
    id: String,
    #[serde(rename = "clientID")]
    client: &'static str,
    alias: Name,
    envd_version: &'static str,
    envd_access_token: String,
    traffic_access_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
}

impl Sandbox {
    pub(super) fn new(session: &Session, tokens: AccessTokens, domain: Option<String>) -> Self {
        Self {
            template: session.spec.template.clone(),
            id: session.id.suffix(),
            client: CLIENT,
            alias: session.spec.template.clone(),
            envd_version: envd::VERSION,
            envd_access_token: tokens.inside,
            traffic_access_token: tokens.ports,
            domain,
        }
    }
}

/// A sandbox in a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listed {
    #[serde(rename = "templateID")]
    template: Name,
    alias: Name,
    #[serde(rename = "sandboxID")]
    id: String,
    #[serde(rename = "clientID")]
    client: &'static str,
    started_at: Timestamp,
    end_at: Timestamp,
    cpu_count: u64,
    #[serde(rename = "memoryMB")]
    memory_mb: u64,
    #[serde(rename = "diskSizeMB")]
    disk_mb: u64,
    metadata: BTreeMap<String, String>,
    state: State,
    envd_version: &'static str,
    volume_mounts: Vec<VolumeMount>,
}

/// Whether a sandbox runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Running,
    Paused,
}

impl State {
    pub(super) const fn of(session: &Session) -> Self {
        if matches!(session.status.phase, Phase::Paused) {
            Self::Paused
        } else {
            Self::Running
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of processors, bounded by the settings"
)]
fn cpus(session: &Session) -> u64 {
    session.spec.limits.cpus.ceil().max(1.0) as u64
}

impl From<&Session> for Listed {
    fn from(session: &Session) -> Self {
        let volumes = session.spec.volumes.iter().map(|volume| VolumeMount {
            name: volume.name.to_string(),
            path: format!("/volumes/{}", volume.name),
        });
        Self {
            template: session.spec.template.clone(),
            alias: session.spec.template.clone(),
            id: session.id.suffix(),
            client: CLIENT,
            started_at: session.created_at,
            end_at: session.lease.ends_at,
            cpu_count: cpus(session),
            memory_mb: session.spec.limits.memory_bytes / MIB,
            disk_mb: session.spec.limits.disk_bytes / MIB,
            metadata: session.spec.labels.clone(),
            state: State::of(session),
            envd_version: envd::VERSION,
            volume_mounts: volumes.collect(),
        }
    }
}

/// All of a sandbox.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Detail {
    #[serde(flatten)]
    listed: Listed,
    envd_access_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    lifecycle: Lifecycle,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Lifecycle {
    auto_resume: bool,
    on_timeout: &'static str,
}

impl Detail {
    pub(super) fn new(session: &Session, tokens: AccessTokens, domain: Option<String>) -> Self {
        Self {
            listed: session.into(),
            envd_access_token: tokens.inside,
            domain,
            lifecycle: Lifecycle {
                // A session that stands still is awake as soon as somebody uses it.
                auto_resume: session.lease.on_timeout == OnTimeout::Pause,
                on_timeout: match session.lease.on_timeout {
                    OnTimeout::Stop => "kill",
                    OnTimeout::Pause => "pause",
                },
            },
        }
    }
}

/// What a sandbox used at a time.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metric {
    timestamp: Timestamp,
    pub(super) timestamp_unix: i64,
    cpu_count: u64,
    cpu_used_pct: f64,
    mem_used: u64,
    mem_total: u64,
    mem_cache: u64,
    disk_used: u64,
    disk_total: u64,
}

/// What a sandbox used, from looks at its counters: each part of the time between two of them.
#[expect(clippy::cast_precision_loss, reason = "a share, in percent")]
pub(super) fn metrics(session: &Session, looks: &[Usage]) -> Vec<Metric> {
    let mut before: Option<&Usage> = None;
    let told = looks.iter().map(|look| {
        let since = before.replace(look);
        let (used_us, passed_ms) = since.map_or((look.cpu_us, look.uptime_ms), |since| {
            (
                look.cpu_us.saturating_sub(since.cpu_us),
                look.uptime_ms.saturating_sub(since.uptime_ms),
            )
        });
        let at = Timestamp::claimed(i64::try_from(look.at_ms).unwrap_or(i64::MAX));
        Metric {
            timestamp: at,
            timestamp_unix: at.as_millis() / 1000,
            cpu_count: cpus(session),
            cpu_used_pct: used_us as f64 / 10.0 / (passed_ms.max(1) as f64),
            mem_used: look.memory_bytes,
            mem_total: session.spec.limits.memory_bytes,
            mem_cache: 0,
            disk_used: look.disk_bytes,
            disk_total: session.spec.limits.disk_bytes,
        }
    });
    told.collect()
}

/// How sandboxes are chosen for a list.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    pub(super) metadata: Vec<(String, String)>,
    pub(super) states: BTreeSet<&'static str>,
    pub(super) template: Option<String>,
    pub(super) after: Option<Timestamp>,
}

impl Chosen {
    pub(super) fn takes(&self, session: &Session) -> bool {
        let state = match State::of(session) {
            State::Running => "running",
            State::Paused => "paused",
        };
        (self.states.is_empty() || self.states.contains(state))
            && self
                .template
                .as_ref()
                .is_none_or(|name| session.spec.template.as_str() == name)
            && self.after.is_none_or(|after| session.created_at > after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn egress(network: &Value) -> Result<Option<EgressRules>, Problem> {
        let new = json!({"network": network});
        serde_json::from_value::<NewSandbox>(new).unwrap().egress()
    }

    fn hosts(rules: &EgressRules, name: &str) -> Vec<String> {
        rules[&name.parse::<Name>().unwrap()]
            .hosts
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn networks_become_rules() {
        assert_eq!(egress(&Value::Null).unwrap(), None);
        assert_eq!(egress(&json!({"allowPublicTraffic": false})).unwrap(), None);
        assert_eq!(
            egress(&json!({"denyOut": ["0.0.0.0/0"]})).unwrap(),
            Some(EgressRules::new())
        );
        let some = egress(
            &json!({"allowOut": ["example.org", "*.example.com", "8.8.8.8"], "denyOut": ["0.0.0.0/0"]}),
        );
        let some = some.unwrap().unwrap();
        assert_eq!(some.len(), 1);
        assert_eq!(hosts(&some, "allow").len(), 3);
        let others = egress(&json!({"denyOut": ["10.1.0.0/16", "evil.example"]}))
            .unwrap()
            .unwrap();
        assert_eq!(hosts(&others, "deny-0"), ["*"]);
        assert_eq!(hosts(&others, "deny-1"), ["evil.example"]);
        assert!(hosts(&others, "allow").contains(&"*".to_owned()));
        for refused in [
            json!({"rules": {"api.example.org": [{}]}}),
            json!({"egressProxy": {"address": "10.0.0.1:1080"}}),
            json!({"maskRequestHost": "x"}),
            json!({"allowOut": ["not a host"]}),
        ] {
            assert!(egress(&refused).is_err(), "{refused}");
        }
        let none: NewSandbox =
            serde_json::from_value(json!({"allow_internet_access": false})).unwrap();
        assert_eq!(none.egress().unwrap(), Some(EgressRules::new()));
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        for refused in [
            json!({"mcp": {"x": {}}}),
            json!({"iam": {"tokens": {}}}),
            json!({"autoPause": true, "autoPauseMemory": false}),
        ] {
            let new: NewSandbox = serde_json::from_value(refused.clone()).unwrap();
            assert!(new.check().is_err(), "{refused}");
        }
        let fine: NewSandbox =
            serde_json::from_value(json!({"mcp": null, "autoPause": true, "later": 1})).unwrap();
        assert!(fine.check().is_ok());
        assert_eq!(fine.on_timeout(), OnTimeout::Pause);
        assert_eq!(fine.template().unwrap().as_str(), "base");
        assert!(template_name("base:v2").is_err());
    }

    #[test]
    fn volumes_are_below_volumes() {
        let mounts = |path: &str| {
            let new = json!({"volumeMounts": [{"name": "data", "path": path}]});
            serde_json::from_value::<NewSandbox>(new)
                .unwrap()
                .volumes()
                .is_ok()
        };
        assert!(mounts("/volumes/data") && mounts("/volumes/data/"));
        assert!(!mounts("/data") && !mounts("/volumes/other"));
    }
}
