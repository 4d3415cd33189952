//! Tokens as others make them, good ones and those of enemies.

mod good;
mod hostile;
mod mint;
mod mutated;
mod servers;
mod sources;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Refused, Tokens};
use crate::base::clock::Timestamp;
use crate::model::grant::Role;
use crate::model::issuer::{Algorithm, ClaimPath, Issuer, KeySource, KeyTimes, RoleRule, TeamRule};
use crate::model::principal::Client;
use mint::{NOW_S, member, path};

const LEEWAY_S: i64 = 30;

fn now() -> Timestamp {
    after(0)
}

/// So many seconds later.
fn after(seconds: i64) -> Timestamp {
    Timestamp::from_millis((NOW_S + seconds) * 1000)
}

fn claim(text: &str) -> ClaimPath {
    ClaimPath::parse(text).unwrap()
}

/// An issuer with public keys, whose tokens are all a team's.
fn public(name: &str, keys: KeySource) -> Issuer {
    Issuer {
        name: name.parse().unwrap(),
        issuer: format!("https://{name}.example.com"),
        audiences: ["casemate".to_owned()].into(),
        authorized_parties: [].into(),
        algorithms: [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa].into(),
        keys,
        times: KeyTimes::default(),
        leeway: Duration::from_secs(LEEWAY_S.unsigned_abs()),
        max_age: None,
        required: BTreeMap::new(),
        subject: claim("sub"),
        team: TeamRule::Fixed("acme".parse().unwrap()),
        role: RoleRule {
            claim: None,
            otherwise: Some(Role::Member),
        },
        scopes: None,
    }
}

/// An issuer with a secret and all the rules that there are.
fn secret(file: std::path::PathBuf) -> Issuer {
    let values = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
    let role = |name: &str, role| (name.to_owned(), role);
    Issuer {
        authorized_parties: values(&["web", "cli"]),
        algorithms: [Algorithm::Hs256].into(),
        max_age: Some(Duration::from_secs(3600)),
        required: [
            (claim("verified"), values(&["true"])),
            (claim("plan.tier"), values(&["gold", "silver"])),
            (claim("plan.seats"), values(&["7"])),
            (claim("flags"), values(&["b", "c"])),
        ]
        .into(),
        subject: claim("user.id"),
        team: TeamRule::Claim {
            claim: claim("org.team"),
            map: Some(
                [
                    ("/acme", "acme"),
                    ("/acme-too", "acme"),
                    ("/other", "other"),
                ]
                .map(|(from, to)| (from.to_owned(), to.parse().unwrap()))
                .into(),
            ),
        },
        role: RoleRule {
            claim: Some((
                claim("roles"),
                [
                    role("staff", Role::Member),
                    role("boss", Role::TeamAdmin),
                    role("inspector", Role::Auditor),
                ]
                .into(),
            )),
            otherwise: None,
        },
        scopes: Some(claim("scope")),
        ..public("secret", KeySource::Secret(file))
    }
}

/// Whoever is trusted in these tests, with a directory of their own.
struct House {
    tokens: Tokens,
    directory: tempfile::TempDir,
}

impl House {
    /// `public` with three keys in a set, `pem` with one, `secret`, and `named`, whose claim is the team's name.
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        write(&file, &member("hmac", "k"), 0o600);
        let named = Issuer {
            team: TeamRule::Claim {
                claim: claim("team"),
                map: None,
            },
            ..public("named", KeySource::Pem(path("ed.pem")))
        };
        let named = Issuer {
            algorithms: [Algorithm::EdDsa].into(),
            ..named
        };
        // Two keys of one kind: a token must say which.
        let (one, other) = (jwk(&ed25519(1), "one"), jwk(&ed25519(2), "other"));
        let two = directory.path().join("two.json");
        write(&two, set(&[one, other]).as_bytes(), 0o644);
        let issuers = vec![
            public("public", KeySource::JwksFile(path("jwks.json"))),
            public("pem", KeySource::Pem(path("rsa.pem"))),
            Issuer {
                audiences: [].into(),
                authorized_parties: ["web".to_owned()].into(),
                ..public("party", KeySource::Pem(path("ec.pem")))
            },
            public("two", KeySource::JwksFile(two)),
            named,
            secret(file),
        ];
        Self {
            tokens: trusting(issuers).await,
            directory,
        }
    }

    async fn ask(&self, token: &str) -> Result<Client, Refused> {
        let known = self.tokens.authenticate(token, now()).await;
        known.map(|(client, _)| client)
    }
}

async fn trusting(issuers: Vec<Issuer>) -> Tokens {
    let tokens = Tokens::new(None, TaskTracker::new());
    let trusted = tokens.prepare(issuers, now()).await.unwrap();
    tokens.trust(trusted);
    tokens
}

fn write(path: &std::path::Path, bytes: &[u8], mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A key of its own from one byte.
fn ed25519(seed: u8) -> ring::signature::Ed25519KeyPair {
    ring::signature::Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn jwk(key: &ring::signature::Ed25519KeyPair, kid: &str) -> String {
    use ring::signature::KeyPair;
    let x = mint::encode(key.public_key());
    serde_json::json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "use": "sig"})
        .to_string()
}

fn set(keys: &[String]) -> String {
    format!("{{\"keys\":[{}]}}", keys.join(","))
}

/// A token by such a key, of the issuer of this name.
fn token_by(seed: u8, kid: &str, issuer: &str) -> String {
    let draft = mint::Draft::public("EdDSA", kid, mint::By::Bytes(Vec::new()));
    let draft = draft.claim("iss", format!("https://{issuer}.example.com").into());
    let unsigned = draft.token();
    let message = unsigned.trim_end_matches('.');
    let signature = ed25519(seed).sign(message.as_bytes());
    format!("{message}.{}", mint::encode(signature))
}

/// Whoever trusts the example keys, for tests of the front doors.
pub(crate) async fn for_a_door(now: Timestamp) -> Tokens {
    let tokens = Tokens::new(None, TaskTracker::new());
    let issuers = vec![public("public", KeySource::JwksFile(path("jwks.json")))];
    tokens.trust(tokens.prepare(issuers, now).await.unwrap());
    tokens
}

/// A token of theirs that is signed like this and has so many seconds left.
pub(crate) fn token_for_a_door(algorithm: Algorithm, now: Timestamp, left_s: i64) -> String {
    let draft = match algorithm {
        Algorithm::Rs256 => mint::Draft::rsa(),
        Algorithm::Es256 => mint::Draft::public("ES256", "ec", mint::By::Ec),
        Algorithm::EdDsa => mint::Draft::public("EdDSA", "ed", mint::By::Ed),
        Algorithm::Hs256 => mint::Draft::public("HS256", "rsa", mint::By::Hmac),
    };
    let now_s = now.as_millis() / 1000;
    let draft = draft.without("iat").without("nbf");
    draft.claim("exp", (now_s + left_s).into()).token()
}
