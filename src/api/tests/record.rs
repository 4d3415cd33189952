//! The record over HTTP: what a member reads of a session, and that the whole is not a member's.

use serde_json::json;

use super::templates::House;
use super::*;
use crate::model::query::AuditFilter;

/// The next whole event of a stream: its position and its data.
async fn event(body: &mut Incoming, read: &mut String) -> (i64, Value) {
    loop {
        if let Some((event, rest)) = read.split_once("\n\n") {
            let field = |name: &str| {
                let line = event.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().to_owned()
            };
            let (id, data) = (field("id: "), field("data: "));
            let rest = rest.to_owned();
            *read = rest;
            if !id.is_empty() {
                return (id.parse().unwrap(), serde_json::from_str(&data).unwrap());
            }
            continue;
        }
        let frame = timeout(PATIENCE, body.frame()).await.unwrap();
        let bytes = frame.unwrap().unwrap().into_data().unwrap();
        read.push_str(std::str::from_utf8(&bytes).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_it_was_left() {
    let house = House::open().await;
    let made = house
        .ask(
            &house.red,
            Method::POST,
            "/v1/sessions",
            &[],
            &json!({"wait": false}),
        )
        .await;
    let id = made.body["id"].as_str().unwrap().to_owned();
    let all = async || {
        let filter = AuditFilter {
            session: Some(id.parse().unwrap()),
            limit: 200,
            ..AuditFilter::default()
        };
        house.store.audit_lines(filter).await.unwrap()
    };
    let path = format!("/v1/audit/stream?session={id}");
    let answer = house.open_stream(&path, &[]).await;
    assert_eq!(answer.status(), 200);
    let (mut body, mut read) = (answer.into_body(), String::new());
    let (first, record) = event(&mut body, &mut read).await;
    assert_eq!(record["event"]["kind"], "session.create");
    assert_eq!(record["seq"], first);
    drop(body);
    house
        .ask(
            &house.red,
            Method::DELETE,
            &format!("/v1/sessions/{id}"),
            &[],
            &Value::Null,
        )
        .await;
    let written = all().await;
    let position = first.to_string();
    let seen = [("last-event-id", position.as_str())];
    let (mut body, mut read) = (
        house.open_stream(&path, &seen).await.into_body(),
        String::new(),
    );
    for (seq, line) in written.iter().filter(|(seq, _)| *seq > first) {
        let (position, record) = event(&mut body, &mut read).await;
        assert_eq!(
            (position, &record),
            (*seq, &serde_json::from_str(line).unwrap())
        );
    }
    // A page of it says the same, and a filter takes of it what it says.
    let page = house
        .get(
            &house.red,
            &format!("/v1/audit?session={id}&kind=session.delete"),
        )
        .await;
    let kinds: Vec<_> = page.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| &item["event"]["kind"])
        .collect();
    assert!(
        !kinds.is_empty() && kinds.iter().all(|kind| *kind == "session.delete"),
        "{kinds:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_record_is_not_a_member_s() {
    let house = House::open().await;
    for path in [
        "/v1/audit",
        "/v1/audit/stream",
        "/v1/audit/export",
        "/v1/audit/verify",
    ] {
        let answer = house.get(&house.red, path).await;
        assert_eq!(
            (answer.status.as_u16(), answer.body["code"].as_str()),
            (403, Some("denied")),
            "{path}"
        );
    }
    for path in [
        "/v1/audit?kind=no.such",
        "/v1/audit?outcome=maybe",
        "/v1/audit?from=yesterday",
        "/v1/audit/stream?after=-1",
        "/v1/audit/stream?last=10001",
        "/v1/audit/stream?kind=no.such",
        "/v1/audit/stream?from=2026-01-31T12:00:00Z",
        "/v1/audit/stream?to=2026-01-31T12:00:00Z",
        "/v1/audit/export?format=xml",
        "/v1/audit/verify?limit=0",
    ] {
        let answer = house.get(&house.red, path).await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.body);
    }
}
