//! The record over HTTP: what a member reads of a session, and that the whole is not a member's.

use serde_json::json;

use super::templates::House;
use super::*;
use crate::base::clock::Timestamp;
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
async fn who_asks_for_what_is_archived_is_told_so() {
    let house = House::open().await;
    let wanted = json!({"wait": false});
    let made = house
        .ask(&house.red, Method::POST, "/v1/sessions", &[], &wanted)
        .await;
    let id = made.body["id"].as_str().unwrap().to_owned();
    let all = format!("/v1/audit?session={id}");
    assert_eq!(
        house.get(&house.red, &all).await.body.get("archived_up_to"),
        None
    );
    let end = house
        .ask(
            &house.red,
            Method::DELETE,
            &format!("/v1/sessions/{id}"),
            &[],
            &Value::Null,
        )
        .await;
    assert!(end.status.is_success());
    let digest = house.store.digest_at(3).await.unwrap().unwrap();
    let archive = crate::model::record::Archive {
        installation: house.store.installation().to_string(),
        first: 1,
        last: 3,
        digest: crate::model::record::hex(&digest),
        from: Timestamp::from_millis(1),
        to: Timestamp::from_millis(2),
        file: "audit-1-3.jsonl.zst".to_owned(),
        size_bytes: 1,
        sha256: String::new(),
        at: Timestamp::from_millis(3),
        key: String::new(),
    };
    let line = crate::model::record::Archive::line(&archive.unsigned().unwrap(), &[0; 64]);
    assert!(
        house
            .store
            .keep_archive(0, (3, digest), line)
            .await
            .unwrap()
    );

    let page = house.get(&house.red, &all).await.body;
    assert_eq!(page["archived_up_to"], 3);
    let first = page["items"][0]["seq"].as_i64().unwrap();
    assert!(first > 3, "{page}");
    let stream = format!("/v1/audit/stream?session={id}");
    for (path, seen) in [
        (format!("{all}&cursor=2"), None),
        (format!("{stream}&after=1"), None),
        (stream.clone(), Some("2")),
    ] {
        let headers: Vec<_> = seen
            .map(|seen| ("last-event-id", seen))
            .into_iter()
            .collect();
        let answer = house
            .ask(&house.red, Method::GET, &path, &headers, &Value::Null)
            .await;
        assert_eq!(
            (answer.status.as_u16(), answer.body["code"].as_str()),
            (410, Some("audit_archived")),
            "{path}"
        );
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(detail.contains("audit-1-3.jsonl.zst"), "{detail}");
        assert!(detail.contains("go on after 3"), "{detail}");
    }
    // From the beginning of what is left, and from where the files end.
    for path in [
        stream.clone(),
        format!("{stream}&after=3"),
        format!("{stream}&last=100"),
    ] {
        let answer = house.open_stream(&path, &[]).await;
        assert_eq!(answer.status(), 200, "{path}");
        let (mut body, mut read) = (answer.into_body(), String::new());
        assert_eq!(event(&mut body, &mut read).await.0, first, "{path}");
    }
    let health = house.get(&house.red, "/health/detailed").await.body;
    assert_eq!(health["audit"]["after"], 3, "{health}");
    assert_eq!(health["audit"]["archives"], 1, "{health}");
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
