//! Requests that are wrong: each is refused with a status, a code and a sentence, and does nothing.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Answer, Client, Daemon};

async fn post(client: &Client, kind: &str, body: impl Into<Bytes>) -> Answer {
    let headers = [("content-type", kind)];
    client
        .send(Method::POST, "/v1/sessions", &headers, body.into())
        .await
}

#[tokio::test]
async fn a_wrong_create_is_refused_and_makes_nothing() {
    let daemon = Daemon::up_with(&[("http.max_body_bytes", json!(4096))]).await;
    let client = &daemon.client;
    for body in [
        "{",
        "nonsense",
        "[]",
        "7",
        "\"text\"",
        "null",
        "{\"template\":\"base\"} x",
        "\u{feff}{}",
        "{'a':1}",
    ] {
        post(client, "application/json", body)
            .await
            .problem(400, "invalid_request");
    }
    post(client, "application/json", &b"{\"name\":\"\xff\"}"[..])
        .await
        .problem(400, "invalid_request");
    let deep = "[".repeat(2000);
    post(client, "application/json", deep)
        .await
        .problem(400, "invalid_request");
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "",
    ] {
        post(client, kind, "{}")
            .await
            .problem(415, "unsupported_media_type");
    }
    let wanted = json!({"labels": {"l": "x".repeat(4096)}}).to_string();
    let detail = post(client, "application/json", wanted)
        .await
        .problem(413, "body_too_large");
    assert!(detail.contains("4096"), "{detail}");

    let template = client
        .post("/v1/sessions", json!({"template": "unknown"}))
        .await;
    let detail = template.problem(400, "unknown_template");
    assert!(detail.contains("unknown"), "{detail}");
    let labels: Value = (0..65)
        .map(|n| (format!("l{n}"), json!("x")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for (wanted, word) in [
        (json!({"nonsense": 1}), "nonsense"),
        (json!({"image": "debian:12"}), "image"),
        (json!({"template": "Upper"}), ""),
        (json!({"template": ""}), ""),
        (json!({"name": "has space"}), ""),
        (json!({"name": "../../etc"}), ""),
        (json!({"name": "x".repeat(64)}), ""),
        (json!({"name": 7}), ""),
        (json!({"timeout_s": 0}), "timeout_s"),
        (json!({"timeout_s": -5}), ""),
        (json!({"timeout_s": 1.5}), ""),
        (json!({"timeout_s": 86_401}), "86400"),
        (json!({"timeout_s": u64::MAX}), "timeout_s"),
        (json!({"limits": {"memory_bytes": 1}}), "memory_bytes"),
        (
            json!({"limits": {"memory_bytes": 1_u64 << 32}}),
            "memory_bytes",
        ),
        (json!({"limits": {"cpus": 0}}), "cpus"),
        (json!({"limits": {"cpus": 3}}), "cpus"),
        (json!({"limits": {"pids": 15}}), "pids"),
        (json!({"limits": {"pids": 1025}}), "pids"),
        (json!({"limits": {"disk_bytes": 1 << 20}}), "disk_bytes"),
        (json!({"limits": {"disk_bytes": 1_u64 << 40}}), "disk_bytes"),
        (json!({"limits": {"nonsense": 1}}), "nonsense"),
        (json!({"env": {"A=B": "c"}}), "env"),
        (json!({"env": {"": "c"}}), "env"),
        (json!({"env": {"A": "b\u{0}c"}}), "env"),
        (json!({"env": {"A": 7}}), ""),
        (json!({"env": ["A=b"]}), ""),
        (json!({"workdir": "relative"}), "workdir"),
        (json!({"workdir": "/a\u{0}b"}), ""),
        (json!({"labels": labels}), "labels"),
        (json!({"labels": {"": "x"}}), "labels"),
        (json!({"labels": {"k": "x".repeat(257)}}), "labels"),
        (json!({"wait": "yes"}), ""),
    ] {
        let answer = client.post("/v1/sessions", wanted.clone()).await;
        let detail = answer.problem(400, "invalid_request");
        assert!(detail.contains(word), "{wanted}: {detail}");
    }
    for key in ["has space", "é", &"x".repeat(256), ""] {
        let headers = [("idempotency-key", key)];
        let answer = client.post_with("/v1/sessions", &headers, json!({})).await;
        let detail = answer.problem(400, "invalid_request");
        assert!(detail.contains("Idempotency-Key"), "{detail}");
    }
    let page = client.get("/v1/sessions").await.expect(200);
    assert_eq!(page["items"], json!([]), "nothing was made");
    let made = "SELECT count(*) FROM audit WHERE kind LIKE 'session.%'";
    assert_eq!(daemon.sql::<i64>(made), [0]);
    assert!(daemon.containers().await.is_empty());
}

#[tokio::test]
async fn a_body_over_the_bound_is_refused_also_when_it_does_not_say_its_length() {
    let daemon = Daemon::up_with(&[("http.max_body_bytes", json!(4096))]).await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    let big = json!({"argv": ["true"], "stdin": "x".repeat(5000)});
    client
        .try_run(&id, big)
        .await
        .problem(413, "body_too_large");
    let fits = json!({"argv": ["wc", "-c"], "stdin": "x".repeat(4000)});
    assert_eq!(client.run(&id, fits).await["stdout"], "4000\n");
    let mut stream = tokio::net::TcpStream::connect(&client.address)
        .await
        .unwrap();
    let head = format!(
        "POST /v1/sessions HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
        client.key.as_ref().unwrap()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
    for _ in 0..3 {
        let _ = stream.write_all(chunk.as_bytes()).await;
    }
    let mut answer = vec![0; 64];
    let read = tokio::time::timeout(crate::support::PATIENCE, stream.read(&mut answer));
    let read = read.await.expect("it waits for more").unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}
