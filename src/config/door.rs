//! The sections `http` and `endpoints`: where the door is, its certificate, its names, how much may be asked, and how ports in sessions are
//! reached by it.

use std::time::Duration;

use super::document::Value;
use super::section::{Section, plain_path};
use super::validate::MAX_PATH_BYTES;
use crate::host::credential;
use crate::model::grant::{Role, Unknown};
use crate::model::name::Name;
use crate::model::settings::{
    CertificateMark, ClientCertificate, EndpointsConfig, HttpConfig, HttpLimits, Mode,
    OperatorConfig, TlsConfig,
};
use crate::model::web::Host;

/// How long the operator token before is taken.
const OPERATOR_OVERLAP: Duration = Duration::from_secs(3600);

pub(super) fn http(keys: &Section<'_>, mode: Mode) -> HttpConfig {
    let default = HttpConfig::default();
    let http = HttpConfig {
        listen: keys.address("listen", default.listen),
        max_body_bytes: keys.integer("max_body_bytes", default.max_body_bytes, 1024..=256 << 20),
        max_connections: keys.integer("max_connections", default.max_connections, 1..=65_536),
        header_timeout: keys.seconds("header_timeout_s", default.header_timeout, 1..=300),
        tls: tls(&keys.section("tls")),
        hosts: keys.words("hosts"),
        origins: keys.words("origins"),
        limits: http_limits(&keys.section("limits")),
        operator: operator(&keys.section("operator")),
    };
    let is_exposed = !http.listen.ip().is_loopback() && http.tls.is_none();
    if keys.is_complete() && mode == Mode::Production && is_exposed {
        keys.problem(
            "listen",
            format!(
                "{} would carry keys over the network in the clear; set http.tls, or listen on \
                 127.0.0.1 or [::1] and put a TLS proxy in front",
                http.listen
            ),
        );
    }
    http
}

pub(super) fn endpoints(keys: &Section<'_>) -> EndpointsConfig {
    let default = EndpointsConfig::default();
    let domain = |text: &str| match text.parse() {
        _ if text.is_empty() => Ok(None),
        // A label and the port's own in front of it: names are 253 bytes at most.
        Ok(Host::Name(name)) if name.contains('.') && name.len() <= 200 => Ok(Some(name)),
        _ => Err("is no domain below which names are, as in box.example.com".to_owned()),
    };
    EndpointsConfig {
        domain: keys.text("domain", default.domain, domain, |domain| {
            domain.clone().unwrap_or_default()
        }),
        public: keys.flag("public", default.public),
        trusted_proxies: keys.words("trusted_proxies"),
        answer_timeout: keys.seconds("answer_timeout_s", default.answer_timeout, 1..=3600),
        idle_timeout: keys.seconds("idle_timeout_s", default.idle_timeout, 1..=86_400),
    }
}

fn http_limits(keys: &Section<'_>) -> HttpLimits {
    let default = HttpLimits::default();
    let often = |key, default| keys.integer(key, default, 0..=1_000_000);
    HttpLimits {
        address_per_s: often("address_per_s", default.address_per_s),
        address_burst: often("address_burst", default.address_burst),
        key_per_s: often("key_per_s", default.key_per_s),
        key_burst: often("key_burst", default.key_burst),
        team_per_s: often("team_per_s", default.team_per_s),
        team_burst: often("team_burst", default.team_burst),
        failures_per_minute: often("failures_per_minute", default.failures_per_minute),
        connections_per_address: keys.integer(
            "connections_per_address",
            default.connections_per_address,
            0..=65_536,
        ),
    }
}

fn operator(keys: &Section<'_>) -> Option<OperatorConfig> {
    let token = source(keys, "token");
    let overlap = keys.seconds("overlap_s", OPERATOR_OVERLAP, 0..=7 * 24 * 3600);
    (!token.is_empty()).then_some(OperatorConfig { token, overlap })
}

fn tls(keys: &Section<'_>) -> Option<TlsConfig> {
    let certificate = source(keys, "certificate");
    let key = source(keys, "key");
    if keys.is_complete() && certificate.is_empty() != key.is_empty() {
        let (missing, there) = if key.is_empty() {
            ("key", "certificate")
        } else {
            ("certificate", "key")
        };
        keys.problem(missing, format!("is missing; {there} is of no use alone"));
    }
    let client_ca = Some(source(keys, "client_ca")).filter(|source| !source.is_empty());
    let require_client = keys.flag("require_client", false);
    let clients = keys.entries("clients", client);
    if keys.is_complete() && client_ca.is_none() && (require_client || !clients.is_empty()) {
        let text = "is missing; without it no client is asked for a certificate";
        keys.problem("client_ca", text);
    }
    (!certificate.is_empty() && !key.is_empty()).then_some(TlsConfig {
        certificate,
        key,
        client_ca,
        require_client,
        clients,
    })
}

/// A file, or a credential of systemd's; empty when there is none.
fn source(keys: &Section<'_>, key: &'static str) -> String {
    let parse = |text: &str| match text.strip_prefix(credential::PREFIX) {
        None if text.is_empty() => Ok(String::new()),
        None => plain_path(text, MAX_PATH_BYTES).map(|_| text.to_owned()),
        // What systemd.exec(5) lets a credential be called.
        Some(name) => {
            let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"/:".contains(&byte);
            if (1..=255).contains(&name.len())
                && name.bytes().all(is_plain)
                && name != "."
                && name != ".."
            {
                Ok(text.to_owned())
            } else {
                Err("is not the name of a credential".to_owned())
            }
        }
    };
    keys.text(key, String::new(), parse, Clone::clone)
}

/// Who has a certificate: name, team, role, and `sha256` or `san`.
fn client(value: &Value) -> Result<ClientCertificate, String> {
    let Value::Map(map) = value else {
        return Err("expected name, team, role and sha256 or san of a certificate".to_owned());
    };
    let text = |key: &str| match map.get(key).map(|node| &node.value) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("expected text for {key}; put it in quotes")),
    };
    let known = ["name", "team", "role", "sha256", "san"];
    if let Some(key) = map.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!(
            "there is no key {key:?} here; they are: {}",
            known.join(", ")
        ));
    }
    let name = |key: &str| -> Result<Name, String> {
        let text = text(key)?.ok_or_else(|| format!("{key} is missing"))?;
        text.parse().map_err(|error| format!("{key}: {error}"))
    };
    let mark = match (text("sha256")?, text("san")?) {
        (Some(digits), None) => CertificateMark::Fingerprint(fingerprint(digits)?),
        (None, Some(san)) if !san.is_empty() => CertificateMark::San(san.to_owned()),
        _ => return Err("expected one of sha256 and san".to_owned()),
    };
    Ok(ClientCertificate {
        name: name("name")?,
        mark,
        team: name("team")?,
        role: match text("role")? {
            None => Role::default(),
            Some(role) => role.parse().map_err(|error: Unknown| error.to_string())?,
        },
    })
}

/// 64 digits, with colons between pairs or without, as openssl prints them.
fn fingerprint(text: &str) -> Result<[u8; 32], String> {
    let wrong = || {
        "sha256 is 32 bytes in hexadecimal, as openssl x509 -fingerprint -sha256 prints them"
            .to_owned()
    };
    let digits: String = text.chars().filter(|digit| *digit != ':').collect();
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    for (n, byte) in bytes.iter_mut().enumerate() {
        let pair = digits.get(2 * n..2 * n + 2).unwrap_or_default();
        *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn tls(text: &str) -> Result<Config, String> {
        let text =
            format!("version: 1\nhttp:\n  tls: {{certificate: /c, key: 'credential:k'{text}}}\n");
        let main = ("casemate.yaml".to_owned(), text.into_bytes());
        Config::from_sources(&[main], &[]).map_err(|problems| problems.to_string())
    }

    #[test]
    fn clients_are_known_by_one_mark_and_act_for_a_team() {
        let digits = "AB:".repeat(31) + "ab";
        let config = tls(&format!(
            ", client_ca: /a, clients: [{{name: ci, team: red, sha256: '{digits}'}}, {{name: lab, team: blue, role: auditor, san: lab.example}}]"
        ));
        let tls_of = config.unwrap().http.tls.unwrap();
        let said: Vec<_> = tls_of.clients.iter().map(ToString::to_string).collect();
        let digits = "ab".repeat(32);
        assert_eq!(
            said,
            [
                format!("ci: sha256 {digits}, member of red"),
                "lab: san lab.example, auditor of blue".to_owned(),
            ]
        );
        for (wrong, told) in [
            (", clients: [{name: a, team: a, san: a}]", "client_ca"),
            (", require_client: true", "client_ca"),
            (
                ", client_ca: /a, clients: [{name: a, team: a}]",
                "one of sha256 and san",
            ),
            (
                ", client_ca: /a, clients: [{name: a, team: a, san: a, sha256: a}]",
                "one of",
            ),
            (
                ", client_ca: /a, clients: [{name: a, team: a, sha256: abc}]",
                "32 bytes",
            ),
            (
                ", client_ca: /a, clients: [{name: a, san: a}]",
                "team is missing",
            ),
            (
                ", client_ca: /a, clients: [{name: A, team: a, san: a}]",
                "name: ",
            ),
            (
                ", client_ca: /a, clients: [{name: a, team: a, san: a, role: root}]",
                "a role is one of",
            ),
            (
                ", client_ca: /a, clients: [{name: a, team: a, san: a, groups: b}]",
                "no key",
            ),
            (", client_ca: /a, clients: [a]", "expected name"),
            (", client_ca: a", "absolute"),
            (", client_ca: 'credential:../a'", "credential"),
        ] {
            let problem = tls(wrong).unwrap_err();
            assert!(problem.contains(told), "{wrong}: {problem}");
        }
    }
}
