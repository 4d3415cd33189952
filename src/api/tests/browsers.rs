//! Browsers at the door, and whoever pretends to be one: a table of heads as they are sent.
//!
//! The door is `x`, was listened on at 127.0.0.1, and lets pages of `https://app.example` call.

use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Bytes, Door, config};
use crate::api::browser::Browsers;
use crate::api::error::Problem;
use crate::api::route::{Answer, Call, Reply, Request as Taken, Route};

fn routes() -> Vec<Route> {
    async fn give(_: &Call) -> Result<Reply, Problem> {
        Ok(Reply::bytes(StatusCode::OK, "text/html", "<script>".into()))
    }
    let route = |method, path, name| {
        Route::new(method, path, name, "X.", |call| Box::pin(give(call)))
            .request(Taken::None)
            .answer(200, Answer::Bytes(&["text/html"]))
    };
    vec![
        route(Method::GET, "/open", "open").open(),
        route(Method::PUT, "/open", "put_open").open(),
        route(Method::GET, "/closed", "closed"),
        route(Method::DELETE, "/closed", "delete_closed"),
    ]
}

/// What is said to one head, status and all.
async fn said(door: &Door, head: &str) -> String {
    let mut stream = door.connect().await;
    let head = head.replace('\n', "\r\n");
    let port = door.address.rsplit(':').next().unwrap();
    let head = head.replace("PORT", port);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    said
}

fn header<'a>(said: &'a str, name: &str) -> Option<&'a str> {
    let (head, _) = said.split_once("\r\n\r\n").unwrap();
    let mut values = head.lines().filter_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    });
    let value = values.next();
    assert_eq!(values.next(), None, "{name} is there twice: {said}");
    value
}

/// Method and target, the other headers, what is said.
type Row = (&'static str, &'static str, &'static str);

const TABLE: &[Row] = &[
    // Who is addressed.
    ("GET /open", "host: x", "200"),
    ("GET /open", "host: X", "200"),
    ("GET /open", "host: x.", "200"),
    ("GET /open", "host: x:7272", "200"),
    ("GET /open", "host: 127.0.0.1:PORT", "200"),
    ("GET /open", "host: 127.0.0.1", "200"),
    ("GET /open", "host: localhost:PORT", "200"),
    ("GET /open", "host: LOCALHOST:1", "200"),
    ("GET /open", "host: [::1]:PORT", "200"),
    ("GET /open", "host: [::ffff:127.0.0.1]", "200"),
    ("GET /open", "host: evil.example", "421 host_not_allowed"),
    (
        "GET /open",
        "host: evil.example:PORT",
        "421 host_not_allowed",
    ),
    ("GET /open", "host: x.evil.example", "421 host_not_allowed"),
    (
        "GET /open",
        "host: localhost.evil.example",
        "421 host_not_allowed",
    ),
    (
        "GET /open",
        "host: 127.0.0.1.evil.example",
        "421 host_not_allowed",
    ),
    ("GET /open", "host: evil.localhost", "421 host_not_allowed"),
    ("GET /open", "host: 10.0.0.1", "421 host_not_allowed"),
    ("GET /open", "host: 0.0.0.0:PORT", "421 host_not_allowed"),
    ("GET /open", "host: [::]:PORT", "421 host_not_allowed"),
    ("GET /open", "host: [fe80::1]", "421 host_not_allowed"),
    ("GET /open", "host: app.example", "421 host_not_allowed"),
    ("GET /nothing", "host: evil.example", "421 host_not_allowed"),
    ("PUT /closed", "host: evil.example", "421 host_not_allowed"),
    ("GET /open", "", "400 bad_host"),
    ("GET /open", "host:", "400 bad_host"),
    ("GET /open", "host: x\nhost: x", "400 bad_host"),
    ("GET /open", "host: x\nhost: evil.example", "400 bad_host"),
    ("GET /open", "host: x, evil.example", "400 bad_host"),
    ("GET /open", "host: x evil.example", "400 bad_host"),
    ("GET /open", "host: user@x", "400 bad_host"),
    ("GET /open", "host: x/", "400 bad_host"),
    ("GET /open", "host: http://x", "400 bad_host"),
    ("GET /open", "host: x:0", "400 bad_host"),
    ("GET /open", "host: x:65536", "400 bad_host"),
    ("GET /open", "host: x:", "400 bad_host"),
    ("GET /open", "host: ::1", "400 bad_host"),
    ("GET /open", "host: [::1", "400 bad_host"),
    ("GET /open", "host: [fe80::1%lo]", "400 bad_host"),
    ("GET /open", "host: 127.1", "400 bad_host"),
    ("GET /open", "host: 2130706433", "400 bad_host"),
    ("GET /open", "host: 0x7f.0.0.1", "400 bad_host"),
    ("GET /open", "host: x%00", "400 bad_host"),
    ("GET /open", "host: \u{e9}", "400 bad_host"),
    ("GET http://x/open", "host: x", "200"),
    ("GET http://x/open", "host: x:80", "200"),
    ("GET http://x/open", "", "200"),
    ("GET http://x/open", "host: evil.example", "400 bad_host"),
    ("GET http://evil.example/open", "host: x", "400 bad_host"),
    (
        "GET http://evil.example/open",
        "host: evil.example",
        "421 host_not_allowed",
    ),
    ("GET http://user@x/open", "host: x", "400 bad_host"),
    ("GET http://x:81/open", "host: x", "400 bad_host"),
    // Which page it comes from.
    ("GET /open", "host: x\norigin: http://x", "200"),
    ("GET /open", "host: x\norigin: https://x", "200"),
    ("PUT /open", "host: x:7272\norigin: http://x:7272", "200"),
    (
        "PUT /open",
        "host: x\norigin: https://app.example",
        "200 listed",
    ),
    (
        "GET /open",
        "host: x\norigin: https://app.example:443",
        "200 listed",
    ),
    (
        "GET /closed",
        "host: x\norigin: https://app.example",
        "401 listed",
    ),
    ("GET /open", "host: x\norigin: https://evil.example", "200"),
    ("HEAD /open", "host: x\norigin: https://evil.example", "200"),
    (
        "GET /closed",
        "host: x\norigin: https://evil.example",
        "401",
    ),
    (
        "PUT /open",
        "host: x\norigin: https://evil.example",
        "403 origin_not_allowed",
    ),
    (
        "DELETE /closed",
        "host: x\norigin: https://evil.example",
        "403 origin_not_allowed",
    ),
    (
        "GET /closed",
        "host: x\norigin: https://evil.example\nx-api-key: k",
        "403 origin_not_allowed",
    ),
    (
        "GET /open",
        "host: x\norigin: https://evil.example\nauthorization: Bearer k",
        "403 origin_not_allowed",
    ),
    (
        "GET /open",
        "host: x\norigin: https://evil.example\ncookie: a=b",
        "403 origin_not_allowed",
    ),
    (
        "GET /open",
        "host: x\norigin: https://evil.example\nconnection: upgrade\nupgrade: websocket",
        "403 origin_not_allowed",
    ),
    (
        "PUT /open",
        "host: x\norigin: null",
        "403 origin_not_allowed",
    ),
    ("PUT /open", "host: x\norigin:", "403 origin_not_allowed"),
    ("PUT /open", "host: x\norigin: x", "403 origin_not_allowed"),
    (
        "PUT /open",
        "host: x\norigin: http://app.example",
        "403 origin_not_allowed",
    ),
    (
        "PUT /open",
        "host: x\norigin: https://app.example:8443",
        "403 origin_not_allowed",
    ),
    (
        "PUT /open",
        "host: x\norigin: https://app.example.evil.example",
        "403 origin_not_allowed",
    ),
    (
        "PUT /open",
        "host: x\norigin: https://evil-app.example",
        "403 origin_not_allowed",
    ),
    (
        "PUT /open",
        "host: x\norigin: https://app.example/",
        "403 origin_not_allowed",
    ),
    (
        "PUT /open",
        "host: x\norigin: https://app.example https://evil.example",
        "403 origin_not_allowed",
    ),
    (
        "PUT /open",
        "host: x\norigin: https://app.example\norigin: https://evil.example",
        "403 origin_not_allowed",
    ),
    (
        "PUT /open",
        "host: x\norigin: https://evil@app.example",
        "403 origin_not_allowed",
    ),
    (
        "PUT /open",
        "host: x\norigin: file://",
        "403 origin_not_allowed",
    ),
    (
        "PUT /open",
        "host: x\norigin: http://localhost",
        "403 origin_not_allowed",
    ),
    // What a browser asks first.
    (
        "OPTIONS /open",
        "host: x\norigin: https://app.example\naccess-control-request-method: PUT",
        "204 listed",
    ),
    (
        "OPTIONS /closed",
        "host: x\norigin: https://app.example\naccess-control-request-method: GET",
        "204 listed",
    ),
    (
        "OPTIONS /nothing",
        "host: x\norigin: https://app.example\naccess-control-request-method: PUT",
        "404 no_such_route",
    ),
    (
        "OPTIONS /open",
        "host: x\norigin: https://evil.example\naccess-control-request-method: PUT",
        "403 origin_not_allowed",
    ),
    (
        "OPTIONS /open",
        "host: x\norigin: null\naccess-control-request-method: PUT",
        "403 origin_not_allowed",
    ),
    (
        "OPTIONS /open",
        "host: evil.example\norigin: https://app.example\naccess-control-request-method: PUT",
        "421 host_not_allowed",
    ),
    (
        "OPTIONS /open",
        "host: x\norigin: https://app.example",
        "405 listed",
    ),
    (
        "OPTIONS /open",
        "host: x\naccess-control-request-method: PUT",
        "405 method_not_allowed",
    ),
];

#[tokio::test]
async fn only_those_who_may_come_in_by_the_names_that_are_ours() {
    let door = Door::open(&routes()).await;
    let mut wrong = Vec::new();
    for (target, headers, wanted) in TABLE {
        let headers = format!("{headers}\n");
        let head = format!(
            "{target} HTTP/1.1\n{}connection: close\n\n",
            headers.trim_start()
        );
        // A connection has one such header: that of a row counts.
        let head = if headers.contains("connection:") {
            head.replacen("connection: close\n", "", 1)
        } else {
            head
        };
        let said = said(&door, &head).await;
        let status = said.get(9..12).unwrap_or("nothing");
        let is_listed = header(&said, "access-control-allow-origin").is_some();
        let (wanted_status, word) = wanted.split_once(' ').unwrap_or((wanted, ""));
        let is_as_wanted = status == wanted_status
            && is_listed == (word == "listed" || (word == "no_such_route"))
            && (word.is_empty() || word == "listed" || said.contains(&format!("{word:?}")));
        if !is_as_wanted {
            wrong.push(format!("{target} {headers:?}: {wanted}\n{said}"));
        }
        // Whatever it is, it is no page, no script and no frame.
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            (
                "content-security-policy",
                "default-src 'none'; frame-ancestors 'none'",
            ),
            ("vary", "origin"),
        ] {
            assert_eq!(header(&said, name), Some(value), "{target} {headers}");
        }
        assert!(header(&said, "permissions-policy").is_some());
        let policy = header(&said, "cross-origin-resource-policy");
        assert_eq!(
            policy,
            Some(if is_listed {
                "cross-origin"
            } else {
                "same-origin"
            })
        );
        assert_eq!(header(&said, "strict-transport-security"), None);
        assert_eq!(header(&said, "access-control-allow-credentials"), None);
    }
    assert!(
        wrong.is_empty(),
        "{} rows\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(TABLE.len() >= 80);
    door.close().await;
}

#[tokio::test]
async fn a_preflight_says_what_the_table_of_routes_has() {
    let door = Door::open(&routes()).await;
    let head = "OPTIONS /open HTTP/1.1\nhost: x\norigin: https://app.example\naccess-control-request-method: PUT\n\
         access-control-request-headers: authorization, x-metadata-project, x-metadata-, x-other, x-metadata-a b\nconnection: close\n\n";
    let said = said(&door, head).await;
    let methods = header(&said, "access-control-allow-methods").unwrap();
    assert_eq!(methods, "GET, PUT, HEAD");
    let headers = header(&said, "access-control-allow-headers").unwrap();
    let headers: Vec<_> = headers.split(", ").collect();
    for name in [
        "authorization",
        "x-api-key",
        "content-type",
        "if-match",
        "last-event-id",
        "range",
        "idempotency-key",
    ] {
        assert!(headers.contains(&name), "{name}");
    }
    let metadata: Vec<_> = headers
        .iter()
        .filter(|name| name.starts_with("x-metadata-"))
        .collect();
    assert_eq!(metadata, [&"x-metadata-project"]);
    assert!(!headers.contains(&"x-other"));
    assert_eq!(header(&said, "access-control-max-age"), Some("600"));
    assert_eq!(
        header(&said, "access-control-allow-origin"),
        Some("https://app.example")
    );
    let exposed = header(&said, "access-control-expose-headers").unwrap();
    assert!(exposed.contains("etag") && exposed.contains("retry-after"));
    door.close().await;
}

#[tokio::test]
async fn http2_has_an_authority_in_the_place_of_a_host() {
    let door = Door::open(&routes()).await;
    for (uri, host, wanted) in [
        ("http://x/open", None, 200),
        ("http://x/open", Some("x"), 200),
        ("http://localhost:1/open", None, 200),
        ("http://evil.example/open", None, 421),
        ("http://x/open", Some("evil.example"), 400),
        ("http://evil.example/open", Some("x"), 400),
    ] {
        let io = TokioIo::new(door.connect().await);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = Request::get(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), wanted, "{uri} {host:?}");
        drop((answer, sender));
        let _ = connection.await;
    }
    door.close().await;
}

#[tokio::test]
async fn names_and_pages_are_the_operators_to_list() {
    let browsers = Browsers {
        hosts: vec!["*.x.example".parse().unwrap(), "y:81".parse().unwrap()],
        origins: vec!["*".parse().unwrap()],
    };
    let config = crate::api::server::ServerConfig {
        browsers,
        ..config(4)
    };
    let door = Door::open_with(&routes(), config).await;
    for (host, origin, wanted) in [
        ("a.x.example", "https://a.x.example", "200"),
        ("a.b.x.example", "https://a.x.example", "421"),
        ("y:81", "http://z", "200"),
        ("y", "http://z", "421"),
        ("x", "http://z", "421"),
        // All that have a name: an opaque origin has none.
        ("y:81", "null", "403"),
    ] {
        let head =
            format!("PUT /open HTTP/1.1\nhost: {host}\norigin: {origin}\nconnection: close\n\n");
        let said = said(&door, &head).await;
        assert_eq!(&said[9..12], wanted, "{host} {origin}");
        let allowed = header(&said, "access-control-allow-origin");
        // Never the star, which would be everybody's for as long as it is remembered.
        assert_ne!(allowed, Some("*"));
        assert_eq!(allowed.is_some(), host == "y:81" && origin != "null");
    }
    door.close().await;
}

#[tokio::test]
async fn with_tls_the_name_is_asked_for_by_tls_only() {
    let papers = super::tls::Papers::new();
    let config = crate::api::server::ServerConfig {
        tls: Some(papers.tls()),
        ..config(4)
    };
    let door = Door::open_with(&routes(), config).await;
    for (origin, wanted) in [
        ("https://x", "200"),
        // Whoever is on the way made this page.
        ("http://x", "403"),
        ("https://app.example", "200"),
    ] {
        let client = papers.client(super::tls::BOTH, &["http/1.1"]);
        let mut stream = super::tls::connect(&door, &client).await.unwrap();
        let head = format!(
            "PUT /open HTTP/1.1\r\nhost: x\r\norigin: {origin}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(&said[9..12], wanted, "{origin}");
        let strict = header(&said, "strict-transport-security");
        assert_eq!(strict, Some("max-age=31536000"));
    }
    door.close().await;
}
