//! Credentials over the door: who may what, and everything that can be wrong with a request.

use std::collections::BTreeMap;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::templates::House;
use crate::api::error::Problem;
use crate::api::route::{Call, Once, Reply};
use crate::api::v1::credentials;
use crate::base::clock::Timestamp;
use crate::base::id::{KeyId, RequestId};
use crate::model::credential::MAX_VALUE_BYTES;
use crate::model::event::{AuditEvent, Outcome, Stage};
use crate::model::grant::{Grant, Role, Scope};
use crate::model::principal::{Client, Principal, Proof};
use crate::model::query::AuditFilter;

/// Somebody of a team.
fn who(team: &str, role: Role, scopes: Option<&[Scope]>) -> Principal {
    Principal::Client(Client {
        by: Proof::Key(KeyId::from_bytes([1; 16])),
        team: team.parse().unwrap(),
        grant: Grant {
            role,
            scopes: scopes.map(|scopes| scopes.iter().copied().collect()),
        },
        session: None,
    })
}

fn admin() -> Principal {
    who("red", Role::TeamAdmin, None)
}

/// What came back: status, entity tag, body.
type Answer = (u16, Option<String>, Value);

impl House {
    fn call(
        &self,
        principal: &Principal,
        name: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Call {
        let mut map = HeaderMap::new();
        map.insert("content-type", HeaderValue::from_static("application/json"));
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            map.insert(name, value.parse().unwrap());
        }
        Call {
            app: self.app.clone(),
            request_id: RequestId::generate(Timestamp::from_millis(0)).unwrap(),
            principal: Some(principal.clone()),
            validity: crate::app::Validity::default(),
            path: BTreeMap::from([("name".to_owned(), name.to_owned())]),
            query: String::new(),
            headers: map,
            authority: None,
            is_tls: false,
            is_head: false,
            body: body.into(),
            watchers: std::sync::Arc::default(),
            stop: CancellationToken::new(),
            once: Mutex::new(Once::default()),
        }
    }

    async fn set(&self, by: &Principal, name: &str, body: &Value) -> Answer {
        self.set_if(by, name, &[], body.to_string()).await
    }

    async fn set_if(
        &self,
        by: &Principal,
        name: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let call = self.call(by, name, headers, body);
        let done = credentials::put(&call).await;
        answer(&call, done).await
    }

    async fn rm(&self, by: &Principal, name: &str, headers: &[(&str, &str)]) -> Answer {
        let call = self.call(by, name, headers, "");
        let done = credentials::delete(&call).await;
        answer(&call, done).await
    }

    async fn list(&self, by: &Principal) -> Answer {
        let call = self.call(by, "", &[], "");
        let done = credentials::list(&call).await;
        answer(&call, done).await
    }
}

async fn answer(call: &Call, done: Result<Reply, Problem>) -> Answer {
    let reply = done.unwrap_or_else(|problem| problem.into_reply(call.request_id));
    let (head, body) = reply.response.into_parts();
    let tag = head.headers.get("etag");
    let tag = tag.map(|tag| tag.to_str().unwrap().to_owned());
    let bytes = body.collect().await.ok().unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    (head.status.as_u16(), tag, body)
}

#[tokio::test]
async fn a_credential_is_set_listed_and_removed_under_its_version() {
    let house = House::open().await;
    let about = json!({"value": "open sesame", "description": "the cave"});
    let new = [("if-none-match", "*")];
    let made = house.set_if(&admin(), "db", &new, about.to_string()).await;
    assert_eq!((made.0, made.1.as_deref()), (201, Some("\"1\"")));
    let again = house.set_if(&admin(), "db", &new, about.to_string()).await;
    assert_eq!(
        (again.0, &again.2["code"]),
        (412, &json!("condition_failed"))
    );
    let other = json!({"value_base64": STANDARD.encode([0, 0xff])}).to_string();
    let stale = house
        .set_if(&admin(), "db", &[("if-match", "\"7\"")], other.clone())
        .await;
    assert_eq!(stale.0, 412);
    let changed = house
        .set_if(&admin(), "db", &[("if-match", "\"1\"")], other)
        .await;
    assert_eq!((changed.0, changed.1.as_deref()), (200, Some("\"2\"")));
    assert_eq!(changed.2["description"], "the cave", "it was not given");

    let (status, _, listed) = house.list(&admin()).await;
    assert_eq!(status, 200);
    let item = listed["items"][0].as_object().unwrap();
    let fields: Vec<_> = item.keys().map(String::as_str).collect();
    let told = [
        "changed_at",
        "changed_by",
        "description",
        "made_at",
        "made_by",
        "name",
        "used_at",
        "used_for",
        "version",
    ];
    assert_eq!(fields, told, "nothing else, and no value");
    assert_eq!(item["changed_by"], KeyId::from_bytes([1; 16]).to_string());

    let stale = house.rm(&admin(), "db", &[("if-match", "\"1\"")]).await;
    assert_eq!(stale.0, 412);
    let gone = house.rm(&admin(), "db", &[("if-match", "\"2\"")]).await;
    assert_eq!(gone, (204, None, Value::Null));
    let again = house.rm(&admin(), "db", &[]).await;
    assert_eq!(
        (again.0, &again.2["code"]),
        (404, &json!("credential_not_found"))
    );
    let anew = house.set(&admin(), "db", &json!({"value": "x"})).await;
    assert_eq!(
        (anew.0, &anew.2["version"], &anew.2["description"]),
        (201, &json!(3), &json!(""))
    );
}

#[tokio::test]
async fn a_member_sees_them_an_admin_sets_them_and_another_team_does_neither() {
    let house = House::open().await;
    let value = json!({"value": "x"});
    assert_eq!(house.set(&admin(), "db", &value).await.0, 201);
    let of_red = [
        // Who, and whether they may see and set.
        (who("red", Role::Member, None), true, false),
        (who("red", Role::Auditor, None), false, false),
        (
            who("red", Role::Member, Some(&[Scope::SessionsUse])),
            false,
            false,
        ),
        (
            who("red", Role::Member, Some(&[Scope::CredentialsWrite])),
            false,
            false,
        ),
        (
            who("red", Role::TeamAdmin, Some(&[Scope::CredentialsRead])),
            true,
            false,
        ),
        (
            who("red", Role::TeamAdmin, Some(&[Scope::CredentialsWrite])),
            false,
            true,
        ),
    ];
    for (one, may_see, may_set) in of_red {
        let (status, _, listed) = house.list(&one).await;
        let seen = if may_see { 200 } else { 403 };
        assert_eq!(status, seen, "{one:?}");
        assert!(!may_see || listed["items"][0]["name"] == "db");
        let (set, removed) = if may_set { (200, 204) } else { (403, 403) };
        assert_eq!(house.set(&one, "db", &value).await.0, set, "{one:?}");
        assert_eq!(house.rm(&one, "db", &[]).await.0, removed, "{one:?}");
    }
    assert_eq!(house.set(&admin(), "db", &value).await.0, 201);
    let blue = who("blue", Role::TeamAdmin, None);
    assert_eq!(house.list(&blue).await.2, json!({"items": []}));
    let (status, _, problem) = house.rm(&blue, "db", &[]).await;
    assert_eq!(
        (status, &problem["code"]),
        (404, &json!("credential_not_found"))
    );
    let own = house.set(&blue, "db", &value).await;
    assert_eq!((own.0, &own.2["version"]), (201, &json!(1)));
    // An operator has no team; what teams have is theirs.
    let operator = Principal::Operator { uid: 0 };
    assert_eq!(house.list(&operator).await.0, 403);
    assert_eq!(house.set(&operator, "db", &value).await.0, 403);

    // The same over the wire, with a member's key.
    let listed = house.get(&house.red, "/v1/credentials").await;
    assert_eq!(listed.body["items"].as_array().unwrap().len(), 1);
    let path = "/v1/credentials/db";
    let put = house.ask(&house.red, Method::PUT, path, &[], &value).await;
    assert_eq!(
        (put.status.as_u16(), &put.body["code"]),
        (403, &json!("denied"))
    );
    let delete = house.ask(&house.red, Method::DELETE, path, &[], &Value::Null);
    assert_eq!(delete.await.status, 403);
    assert_eq!(house.get("nobody", "/v1/credentials").await.status, 401);
    let read = house.get(&house.red, path).await;
    assert_eq!(read.status, 405, "no route gives a value");
}

#[tokio::test]
async fn every_change_is_recorded_before_and_after() {
    let house = House::open().await;
    let value = json!({"value": "x"});
    house.set(&admin(), "db", &value).await;
    house
        .set_if(&admin(), "db", &[("if-match", "\"9\"")], value.to_string())
        .await;
    house.rm(&admin(), "db", &[]).await;
    house.rm(&admin(), "db", &[]).await;
    house
        .set(&who("red", Role::Member, None), "db", &value)
        .await;
    let operator = Principal::Operator { uid: 0 };
    house.app.rotate_key(&operator).await.unwrap();
    let filter = AuditFilter {
        limit: 100,
        ..AuditFilter::default()
    };
    let records = house.store.audit(filter).await.unwrap();
    let told: Vec<_> = records
        .into_iter()
        .map(|(_, record)| record)
        .filter(|record| {
            let kind = record.event.kind();
            kind.starts_with("credential.") || kind.starts_with("vault.")
        })
        .map(|record| match (record.stage, record.outcome) {
            (Stage::Intent, None) => record.event.kind().to_owned(),
            (_, Some(Outcome::Ok { detail })) => format!("ok {}", detail.unwrap_or_default()),
            (_, Some(Outcome::Failed { code })) => code,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        told,
        [
            "credential.put",
            "ok version 1",
            "credential.put",
            "condition_failed",
            "credential.delete",
            "ok version 1",
            "credential.delete",
            "credential_not_found",
            "vault.rotate",
            "ok generation 2, 1 sealed anew",
        ]
    );
    let red = house.app.rotate_key(&admin()).await;
    assert!(red.is_err(), "a team's admin is no operator");
    let event = AuditEvent::VaultRotate { generation: 1 };
    assert_eq!(event.kind(), "vault.rotate");
}

/// Bodies that a client may send, and the status for each.
fn bodies() -> Vec<(&'static str, Vec<u8>, u16)> {
    let text = |body: &str| body.as_bytes().to_vec();
    let value = |value: String| json!({ "value": value }).to_string().into_bytes();
    let base64 = |value: &str| json!({ "value_base64": value }).to_string().into_bytes();
    let about = |about: String| {
        json!({"value": "x", "description": about})
            .to_string()
            .into_bytes()
    };
    let most = "x".repeat(MAX_VALUE_BYTES);
    vec![
        ("nothing", text(""), 400),
        ("no JSON", text("hush"), 400),
        ("half of it", text("{\"value\": \"hush"), 400),
        ("two of it", text("{\"value\": \"hush\"} {}"), 400),
        ("no fields", text("{}"), 400),
        ("null", text("null"), 400),
        ("a text", text("\"hush\""), 400),
        ("a list", text("[\"hush\"]"), 400),
        ("a number", text("7"), 400),
        ("no UTF-8", b"{\"value\": \"\xff\"}".to_vec(), 400),
        ("half a character", text("{\"value\": \"\\ud800\"}"), 400),
        ("a control character", text("{\"value\": \"a\nb\"}"), 400),
        (
            "a deep one",
            ["[".repeat(5_000), String::new()].concat().into_bytes(),
            400,
        ),
        ("value null", text("{\"value\": null}"), 400),
        ("value a number", text("{\"value\": 7}"), 400),
        ("value a list", text("{\"value\": [\"hush\"]}"), 400),
        ("value a map", text("{\"value\": {\"hush\": 1}}"), 400),
        (
            "value twice",
            text("{\"value\": \"a\", \"value\": \"b\"}"),
            400,
        ),
        (
            "both",
            text("{\"value\": \"a\", \"value_base64\": \"YQ==\"}"),
            400,
        ),
        (
            "another field",
            text("{\"value\": \"a\", \"version\": 7}"),
            400,
        ),
        ("a field in capitals", text("{\"Value\": \"a\"}"), 400),
        ("an empty value", value(String::new()), 400),
        ("one byte", value("x".to_owned()), 201),
        ("NUL", value("\0".to_owned()), 201),
        ("lines", value("a\r\nb\n".to_owned()), 201),
        ("no ASCII", value("\u{e9}\u{1f511}".to_owned()), 201),
        ("the longest", value(most.clone()), 201),
        (
            "the longest of NULs",
            value("\0".repeat(MAX_VALUE_BYTES)),
            201,
        ),
        ("longer by one", value(format!("{most}x")), 400),
        (
            "longer by a character",
            value(format!("{}\u{e9}", "x".repeat(MAX_VALUE_BYTES - 1))),
            400,
        ),
        ("base64 of nothing", base64(""), 400),
        (
            "base64 of the longest",
            base64(&STANDARD.encode(&most)),
            201,
        ),
        (
            "base64 longer by one",
            base64(&STANDARD.encode(format!("{most}x"))),
            400,
        ),
        ("base64 of any bytes", base64("AP8="), 201),
        ("base64 unpadded", base64("AP8"), 400),
        ("base64 for URLs", base64("-_-_"), 400),
        ("base64 with a line", base64("AP8=\n"), 400),
        ("base64 with bits left", base64("AP9="), 400),
        ("no base64", base64("hush!"), 400),
        ("the longest description", about("x".repeat(512)), 201),
        ("a longer description", about("x".repeat(513)), 400),
        ("a description of lines", about("a\nb".to_owned()), 400),
        (
            "one that acts on a terminal",
            about("\u{1b}[2J".to_owned()),
            400,
        ),
        (
            "no description",
            text("{\"value\": \"x\", \"description\": null}"),
            201,
        ),
        (
            "a description that is none",
            text("{\"value\": \"x\", \"description\": [1]}"),
            400,
        ),
    ]
}

#[tokio::test]
async fn whatever_is_sent_is_taken_whole_or_refused_without_repeating_it() {
    let house = House::open().await;
    let bodies = bodies();
    assert!(bodies.len() >= 30);
    for (what, body, status) in bodies {
        let (got, _, said) = house.set_if(&admin(), "db", &[], body).await;
        assert_eq!(got, status, "{what}: {said}");
        assert!(!said.to_string().contains("hush"), "{what}: {said}");
        if status == 201 {
            assert_eq!(house.rm(&admin(), "db", &[]).await.0, 204, "{what}");
        } else {
            assert_eq!(said["code"], "invalid_request", "{what}");
            let listed = house.list(&admin()).await.2;
            assert_eq!(listed, json!({"items": []}), "{what}");
        }
    }
    let plain = [("content-type", "text/plain")];
    let value = json!({"value": "hush"}).to_string();
    let (status, _, said) = house.set_if(&admin(), "db", &plain, value).await;
    assert_eq!(status, 415, "{said}");
}

#[tokio::test]
async fn whatever_name_is_asked_for_is_a_name_or_none() {
    let house = House::open().await;
    let value = json!({"value": "x"});
    let long = "a".repeat(63);
    for good in ["a", "0", "db.main", "x_y-z", &long] {
        assert_eq!(house.set(&admin(), good, &value).await.0, 201, "{good}");
        assert_eq!(house.rm(&admin(), good, &[]).await.0, 204, "{good}");
    }
    let longer = "a".repeat(64);
    let bad = [
        "",
        ".",
        "..",
        "-a",
        "_a",
        "A",
        "a b",
        "a/b",
        "a\0",
        "a\n",
        "\u{e9}",
        "%61",
        "a%2fb",
        "a;b",
        "'",
        "a\u{202e}b",
        &longer,
    ];
    for bad in bad {
        let (status, _, said) = house.set(&admin(), bad, &value).await;
        assert_eq!(
            (status, &said["code"]),
            (400, &json!("invalid_request")),
            "{bad:?}"
        );
        let (status, _, said) = house.rm(&admin(), bad, &[]).await;
        assert_eq!(
            (status, &said["code"]),
            (404, &json!("credential_not_found")),
            "{bad:?}"
        );
    }
    for (name, value) in [
        ("if-match", "1"),
        ("if-match", "\"1"),
        ("if-none-match", "\"1\""),
        ("if-none-match", "1"),
    ] {
        let body = json!({"value": "x"}).to_string();
        let (status, _, said) = house.set_if(&admin(), "db", &[(name, value)], body).await;
        assert_eq!(status, 400, "{name}: {value}: {said}");
    }
    // A tag that is none of ours is of no version.
    for tag in ["\"x\"", "\"-1\"", "\"99999999999999999999\"", "\"0\""] {
        let body = json!({"value": "x"}).to_string();
        let (status, ..) = house
            .set_if(&admin(), "db", &[("if-match", tag)], body)
            .await;
        assert_eq!(status, 412, "{tag}");
    }
}
