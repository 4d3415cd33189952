//! Tokens of a real provider of `OpenID` on loopback (`tests/oidc`), with the few lines of configuration that the documentation shows.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::peer::Peer;
use crate::support::{Client, Daemon, wait_until};

const RESOURCE: &str = "https://casemate.example.com";

/// The provider, which does what it is told.
struct Provider(Peer);

impl Provider {
    fn start() -> Self {
        let installed = std::env::var("CASEMATE_TEST_OIDC").expect("run scripts/test");
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oidc/provider.mjs");
        Self(Peer::launch(&program, Path::new(&installed)))
    }

    fn ask(&mut self, command: &Value) -> Value {
        self.0.ask(command)
    }

    fn token(&mut self, command: &Value) -> String {
        self.ask(command)["token"].as_str().unwrap().to_owned()
    }

    /// A token by client credentials.
    fn client(&mut self, resource: &str) -> String {
        self.token(&json!({"do": "client", "resource": resource}))
    }

    /// How often the keys were asked for.
    fn requests(&mut self) -> u64 {
        self.ask(&json!({"do": "requests"}))["requests"]
            .as_u64()
            .unwrap()
    }
}

/// The settings of `docs/authentication.md` for this provider.
fn of_the_page(open: &Value) -> Value {
    let page = include_str!("../../docs/authentication.md");
    let (_, section) = page.split_once("### Any other OpenID provider").unwrap();
    let (_, block) = section.split_once("```yaml\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let here = |name: &str| open[name].as_str().unwrap();
    let block = block.replace("https://openid.example.com/jwks", here("jwks"));
    let block = block.replace("https://openid.example.com", here("issuer"));
    let settings: Value = serde_yaml::from_str(&block).unwrap();
    settings["jwt"]["provider"].clone()
}

/// A daemon that trusts this provider, with these keys of the section beside those of the documentation.
async fn trusting(provider: &mut Provider, more: Value) -> Daemon {
    let open = provider.ask(&json!({"do": "open"}));
    let mut issuer = of_the_page(&open);
    assert_eq!(issuer["audiences"], json!([RESOURCE]));
    for (key, value) in more.as_object().unwrap() {
        issuer[key] = value.clone();
    }
    let level = json!("info,casemate::app=debug");
    Daemon::up_with(&[("jwt", json!({"openid": issuer})), ("log.level", level)]).await
}

/// What a token is answered.
async fn status(client: &Client, token: &str) -> u16 {
    let answer = client.with_key(token).get("/v1/sessions").await;
    answer.status.as_u16()
}

/// Makes sure that a token is refused for this reason, which is in the log and not in the answer.
async fn refused(daemon: &Daemon, token: &str, reason: &str) {
    let logged = format!("reason=\"{reason}\"");
    let before = daemon.log().matches(&logged).count();
    let answer = daemon.client.with_key(token).get("/v1/sessions").await;
    assert!(!answer.problem(401, "unauthenticated").contains(reason));
    assert!(daemon.log().matches(&logged).count() > before, "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn access_and_id_tokens_of_a_provider_are_taken_and_others_are_not() {
    let mut provider = Provider::start();
    let more = json!({"audiences": [RESOURCE, "notebook"], "leeway_s": 0});
    let daemon = trusting(&mut provider, more).await;
    let access = provider.client(RESOURCE);
    let id = provider.token(&json!({"do": "login", "user": "alice"}));
    for (token, subject) in [(&access, "agent"), (&id, "alice")] {
        let client = daemon.client.with_key(token);
        let session = client.session(json!({})).await;
        assert_eq!(client.out(&session, "echo hello").await, "hello\n");
        let who = format!(
            "SELECT principal FROM audit WHERE kind = 'session.create' AND session = '{session}' AND stage = 'intent'"
        );
        assert_eq!(
            daemon.sql::<String>(&who),
            [format!("jwt:openid:{subject}")]
        );
        client.end(&session).await;
    }
    // Of the team that the provider says, and of no other.
    let teams = daemon.sql::<String>("SELECT DISTINCT team FROM sessions");
    assert_eq!(teams, ["research"]);

    let elsewhere = provider.client("https://elsewhere.example");
    refused(&daemon, &elsewhere, "audience").await;
    let impostor = |honest: bool, kid: bool| json!({"do": "impostor", "resource": RESOURCE, "honest": honest, "kid": kid});
    refused(&daemon, &provider.token(&impostor(true, false)), "issuer").await;
    refused(
        &daemon,
        &provider.token(&impostor(false, true)),
        "signature",
    )
    .await;
    refused(
        &daemon,
        &provider.token(&impostor(false, false)),
        "unknown_key",
    )
    .await;
    let (head, signature) = access.rsplit_once('.').unwrap();
    let (_, other) = id.rsplit_once('.').unwrap();
    refused(&daemon, &format!("{head}.{other}"), "signature").await;
    assert_ne!(signature, other);
    let brief = provider.client("https://casemate.example.com/brief");
    wait_until("its time is over", async || {
        status(&daemon.client, &brief).await == 401
    })
    .await;
    refused(&daemon, &brief, "expired").await;
    assert_eq!(status(&daemon.client, &access).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_of_a_provider_is_fetched_once_and_its_keys_outlive_it_for_a_while() {
    const REFRESH: Duration = Duration::from_secs(5);
    let mut provider = Provider::start();
    let more = json!({"refresh_s": REFRESH.as_secs(), "cache_s": 10});
    let daemon = trusting(&mut provider, more).await;
    let old = provider.client(RESOURCE);
    assert_eq!(status(&daemon.client, &old).await, 200);
    provider.ask(&json!({"do": "rotate"}));
    let new = provider.client(RESOURCE);
    wait_until("the new key is known", async || {
        status(&daemon.client, &new).await == 200
    })
    .await;
    assert_eq!(
        status(&daemon.client, &old).await,
        200,
        "the old key is still in the set"
    );

    // Tokens with keys that nobody has do not make the daemon ask each time.
    let strangers: Vec<_> = (0..3)
        .map(|_| provider.token(&json!({"do": "impostor", "resource": RESOURCE})))
        .collect();
    let (began, before) = (Instant::now(), provider.requests());
    for _ in 0..30 {
        for stranger in &strangers {
            assert_eq!(status(&daemon.client, stranger).await, 401);
        }
    }
    let asked = provider.requests() - before;
    let turns = began.elapsed().as_secs() / REFRESH.as_secs() + 1;
    // And it is asked for whatever is ten seconds old, which is within those turns.
    assert!(asked <= turns, "{asked} times in {turns} turns");

    // When it is gone, what it said holds.
    provider.ask(&json!({"do": "close"}));
    let failed = "no keys of an issuer of tokens can be had";
    wait_until("it was asked in vain", async || {
        assert_eq!(status(&daemon.client, &new).await, 200);
        daemon.log().contains(failed)
    })
    .await;
    for token in [&new, &old] {
        assert_eq!(status(&daemon.client, token).await, 200);
    }
}
