//! The HTTP door: who is let in, and how it treats those who behave badly.

use std::time::Duration;

use bytes::Bytes;
use casemate::identity::PresentedKey;
use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::{Daemon, PATIENCE, schema};

#[tokio::test]
async fn the_document_is_served_and_names_what_there_is() {
    let daemon = Daemon::up().await;
    let client = daemon.client.stranger();
    let document = client.get("/openapi.json").await.expect(200);
    assert_eq!(&document, schema::document());
    assert_eq!(document["openapi"], "3.1.0");
    client.get("/health").await.expect(200);
    client.get("/ready").await.expect(200);
    for path in [
        "/",
        "/v1",
        "/v2/sessions",
        "/v1/sessions/",
        "/v1//sessions",
        "/openapi.json/x",
        "/admin",
    ] {
        daemon.client.get(path).await.problem(404, "no_such_route");
    }
    for (method, path, allowed) in [
        (Method::PUT, "/v1/sessions", "POST, GET, HEAD"),
        (Method::POST, "/health", "GET, HEAD"),
        (
            Method::PUT,
            "/v1/sessions/ses_00000000000000000000000000",
            "GET, DELETE, PATCH, HEAD",
        ),
        (
            Method::GET,
            "/v1/sessions/ses_00000000000000000000000000/run",
            "POST",
        ),
    ] {
        let answer = client.send(method, path, &[], Bytes::new()).await;
        assert_eq!(answer.headers["allow"], allowed);
        answer.problem(405, "method_not_allowed");
    }
    for path in ["/health", "/openapi.json"] {
        let whole = client.get(path).await;
        let head = client.send(Method::HEAD, path, &[], Bytes::new()).await;
        assert_eq!(head.status, whole.status);
        for name in ["content-type", "content-length", "cache-control"] {
            assert_eq!(head.headers[name], whole.headers[name], "{path} {name}");
        }
        assert!(head.body.is_empty());
    }
}

#[tokio::test]
async fn a_requests_id_comes_back_or_one_is_made() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let given = [("x-request-id", "my-request/7")];
    let answer = client
        .send(Method::GET, "/health", &given, Bytes::new())
        .await;
    assert_eq!(answer.headers["x-request-id"], "my-request/7");
    for bad in ["", "has space", "é"] {
        let answer = client
            .send(
                Method::GET,
                "/health",
                &[("x-request-id", bad)],
                Bytes::new(),
            )
            .await;
        let id = answer.headers["x-request-id"].to_str().unwrap();
        assert!(id.starts_with("req_"), "{id}");
    }
    let answer = client.get("/nothing").await;
    let id = answer.headers["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(answer.json()["request_id"], id.as_str());
    assert_eq!(answer.headers["cache-control"], "no-store");
    assert!(
        daemon.log().contains(&id),
        "the log tells the story of {id}"
    );
}

#[tokio::test]
async fn only_a_right_key_in_one_place_opens_the_door() {
    let mut daemon = Daemon::up().await;
    let key = daemon.key("tests").await;
    let nobody = daemon.client.stranger();
    let e2b = PresentedKey::parse(&key)
        .unwrap()
        .reveal_e2b()
        .expose()
        .clone();
    assert!(
        e2b.starts_with("e2b_")
            && e2b[4..]
                .bytes()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
    );
    let bearer = |key: &str| format!("Bearer {key}");
    let ask = async |headers: &[(&str, &str)]| {
        nobody
            .send(Method::GET, "/v1/sessions", headers, Bytes::new())
            .await
    };
    for headers in [
        [("authorization", bearer(&key).as_str())],
        [("authorization", bearer(&e2b).as_str())],
        [("authorization", format!("bearer  {key}").as_str())],
        [("x-api-key", &key)],
        [("X-API-KEY", &e2b)],
    ] {
        ask(&headers).await.expect(200);
    }
    let (head, secret) = key.rsplit_once('_').unwrap();
    let other = PresentedKey::generate(PresentedKey::parse(&key).unwrap().id).unwrap();
    let garbage = [
        String::new(),
        "x".to_owned(),
        "cmk_".to_owned(),
        format!("{head}_"),
        format!("{head}_{}", "0".repeat(64)),
        format!("{head}_{}", &secret[1..]),
        format!("{key}0"),
        format!("{head}_{}", secret.to_uppercase()),
        format!("e2b_{}", "0".repeat(96)),
        other.reveal().expose().clone(),
        "cmk_00000000000000000000000000_".to_owned() + secret,
        "'; DROP TABLE keys; --".to_owned(),
        "k".repeat(10_000),
    ];
    for wrong in &garbage {
        // A secret has one spelling; if upper case is read as well, it is the same key.
        if wrong.eq_ignore_ascii_case(&key) {
            continue;
        }
        for answer in [
            ask(&[("authorization", &bearer(wrong))]).await,
            ask(&[("x-api-key", wrong)]).await,
        ] {
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            let detail = answer.problem(401, "unauthenticated");
            assert!(wrong.len() < 4 || !detail.contains(wrong.as_str()));
        }
    }
    let basic = format!("Basic {key}");
    for headers in [
        &[][..],
        &[("authorization", basic.as_str())],
        &[("authorization", key.as_str())],
        &[
            ("authorization", bearer(&key).as_str()),
            ("x-api-key", &key),
        ],
        &[("x-api-key", &key), ("x-api-key", &key)],
    ] {
        ask(headers).await.problem(401, "unauthenticated");
    }
    // Every route but the open ones, and before anything of the request is looked at.
    for (method, path) in [
        (Method::POST, "/v1/sessions"),
        (Method::GET, "/v1/sessions?nonsense"),
        (Method::GET, "/v1/sessions/x"),
        (Method::DELETE, "/v1/sessions/x"),
        (Method::POST, "/v1/sessions/x/run"),
        (Method::GET, "/v1/audit"),
    ] {
        let answer = nobody
            .send(method, path, &[], Bytes::from_static(b"{"))
            .await;
        answer.problem(401, "unauthenticated");
    }
    // Keys outlive the daemon.
    daemon.restart().await;
    daemon
        .client
        .with_key(&key)
        .get("/v1/sessions")
        .await
        .expect(200);
}

/// Writes bytes, slowly or not, and reads until the daemon hangs up; `None` when it does not.
async fn raw(address: &str, parts: &[&[u8]], patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    for part in parts {
        // It may have hung up already.
        if stream.write_all(part).await.is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    // A reset is an end as well.
    let _ = tokio::time::timeout(patience, read).await.ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn heads_that_are_too_large_or_make_no_sense_are_refused() {
    let daemon = Daemon::up().await;
    let address = &daemon.client.address;
    let many: String = (0..200).fold(String::new(), |all, n| all + &format!("x-{n}: y\r\n"));
    let long = format!("x-long: {}\r\n", "y".repeat(100_000));
    let endless = "x".repeat(1 << 20);
    for head in [
        format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{many}\r\n"),
        format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{long}\r\n"),
        format!("GET /{endless} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        endless.clone(),
        "GARBAGE\r\n\r\n".to_owned(),
        "GET /health HTTP/9.9\r\n\r\n".to_owned(),
        "GET /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello".to_owned(),
        "GET /health HTTP/1.1\r\nhost: localhost\r\nbad header: x\r\n\r\n".to_owned(),
        "POST /v1/sessions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\nzz\r\n".to_owned(),
    ] {
        let answer = raw(address, &[head.as_bytes()], PATIENCE).await;
        let shown = &head[..head.len().min(60)];
        let answer = answer.unwrap_or_else(|| panic!("it still listens to {shown:?}"));
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"),
            "{shown:?}: {answer}"
        );
    }
    daemon.client.get("/health").await.expect(200);
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let peak_kb: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(peak_kb < 100_000, "{peak}");
}

#[tokio::test]
async fn a_client_that_dawdles_over_its_head_is_cut_off_and_holds_nobody_up() {
    let daemon = Daemon::up_with(&[
        ("http.header_timeout_s", json!(1)),
        ("http.max_connections", json!(4)),
    ])
    .await;
    let address = &daemon.client.address;
    let began = Instant::now();
    let mut dawdlers = tokio::task::JoinSet::new();
    for part in [
        "",
        "PRI * HTTP/2.0\r\n",
        "GET /health HTTP/1.1\r\n",
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx-a: b",
    ] {
        let address = address.clone();
        dawdlers.spawn(async move { raw(&address, &[part.as_bytes()], PATIENCE).await });
    }
    // A byte now and then does not buy more time.
    let dripping = {
        let address = address.clone();
        async move {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            stream
                .write_all(b"GET /health HTTP/1.1\r\nx: ")
                .await
                .unwrap();
            let mut byte = [0];
            loop {
                tokio::select! {
                    read = stream.read(&mut byte) => return read.unwrap_or(0),
                    () = tokio::time::sleep(Duration::from_millis(200)) => {}
                }
                if stream.write_all(b"y").await.is_err() {
                    return 0;
                }
            }
        }
    };
    let dripping = tokio::time::timeout(PATIENCE, dripping);
    assert!(
        dripping.await.is_ok(),
        "a slow drip holds a connection for ever"
    );
    // All places were taken by those; whoever waits gets one.
    daemon.client.get("/health").await.expect(200);
    while let Some(answer) = dawdlers.join_next().await {
        assert!(answer.unwrap().is_some(), "it waits for a head for ever");
    }
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
}
