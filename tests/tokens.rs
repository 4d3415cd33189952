//! Tokens that other people's libraries made, taken with exactly the settings that docs/authentication.md shows.
//!
//! `PyJWT` made those of Clerk's and Keycloak's kind (`mint.py`), `jose` those of Auth.js (`mint.mjs`); the keys are those that the RFCs print.
#![expect(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use casemate::base::clock::Timestamp;
use casemate::config::Config;
use casemate::identity::jwt::Tokens;
use casemate::model::issuer::{Algorithm, Issuer, KeySource};
use casemate::model::principal::Proof;
use serde_json::Value;
use tokio_util::task::TaskTracker;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/jwt").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name)).unwrap()).unwrap()
}

/// The issuers of the page's examples, by name.
fn examples() -> BTreeMap<String, Issuer> {
    let page = fs::read_to_string(root().join("docs/authentication.md")).unwrap();
    let blocks = page.split("```yaml\n").skip(1);
    let mut issuers = BTreeMap::new();
    for block in blocks.map(|rest| rest.split("```").next().unwrap()) {
        let text = format!("version: 1\n{block}");
        let source = ("casemate.yaml".to_owned(), text.into_bytes());
        let config = Config::from_sources(&[source], &[]).unwrap();
        for issuer in config.jwt {
            issuers.insert(issuer.name.to_string(), issuer);
        }
    }
    issuers
}

/// The same issuer with the keys of the tests where it has a server's or a secret.
fn with_keys(issuer: Issuer, secret: &Path) -> Issuer {
    let keys = match &issuer.keys {
        KeySource::JwksUrl { .. } => KeySource::JwksFile(fixture("jwks.json")),
        _ => KeySource::Secret(secret.to_owned()),
    };
    Issuer { keys, ..issuer }
}

#[tokio::test]
async fn tokens_of_clerk_keycloak_and_auth_js_are_taken_with_the_settings_of_the_page() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    let text = json("keys.json")["authjs"].as_str().unwrap().to_owned();
    // As an editor leaves it.
    fs::write(&secret, format!("{text}\n")).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let examples = examples();
    let names: Vec<_> = examples.keys().map(String::as_str).collect();
    assert_eq!(names, ["authjs", "clerk", "keycloak", "provider"]);
    let mut issuers: Vec<_> = examples
        .into_values()
        .map(|issuer| with_keys(issuer, &secret))
        .collect();
    let any = Issuer {
        name: "any".parse().unwrap(),
        issuer: "https://any.example.com".to_owned(),
        algorithms: [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa].into(),
        keys: KeySource::JwksFile(fixture("jwks.json")),
        ..issuers[0].clone()
    };
    issuers.push(any);
    let (mut taken, mut refused) = (BTreeMap::<String, usize>::new(), 0);
    for file in ["pyjwt.json", "jose.json"] {
        let table = json(file);
        let now = Timestamp::from_millis(table["now_s"].as_i64().unwrap() * 1000);
        let tokens = Tokens::new(None, TaskTracker::new());
        tokens.trust(tokens.prepare(issuers.clone(), now).await.unwrap());
        for row in table["tokens"].as_array().unwrap() {
            let name = row["name"].as_str().unwrap();
            let said = tokens
                .authenticate(row["token"].as_str().unwrap(), now)
                .await;
            if let Some(reason) = row["refused"].as_str() {
                assert_eq!(said.unwrap_err().as_str(), reason, "{name}");
                refused += 1;
                continue;
            }
            let (client, _) = said.expect(name);
            let by = Proof::Jwt {
                issuer: row["issuer"].as_str().unwrap().parse().unwrap(),
                subject: row["subject"].as_str().unwrap().to_owned(),
            };
            assert_eq!(client.by, by, "{name}");
            assert_eq!(client.team.as_str(), row["team"], "{name}");
            assert_eq!(client.grant.role.as_str(), row["role"], "{name}");
            assert_eq!(client.grant.scopes, None, "{name}");
            *taken
                .entry(row["issuer"].as_str().unwrap().to_owned())
                .or_default() += 1;
        }
    }
    let counts: Vec<_> = taken.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    assert_eq!(
        counts,
        [("any", 3), ("authjs", 2), ("clerk", 2), ("keycloak", 3)]
    );
    assert_eq!(refused, 14);
}

/// The page's settings name servers and files that are asked for as they stand there.
#[test]
fn the_settings_of_the_page_say_where_keys_are() {
    let examples = examples();
    let url = |name: &str| match &examples[name].keys {
        KeySource::JwksUrl { url, ca_file: None } => url.clone(),
        _ => String::new(),
    };
    assert!(url("clerk").starts_with(&examples["clerk"].issuer));
    assert!(url("keycloak").starts_with(&examples["keycloak"].issuer));
    let secret = KeySource::Secret("/etc/casemate/authjs.secret".into());
    assert_eq!(examples["authjs"].keys, secret);
}
