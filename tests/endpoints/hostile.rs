//! Bad input from both sides: what is ambiguous reaches no program, what is too large or too slow ends, and what a program says is bounded.

use std::time::Duration;

use casemate::model::settings::EndpointsConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::{AbortOnDrop, Bench, DOMAIN, HELLO, Program, Wants, host};

/// Heads that two parsers read in two ways, with a request hidden behind each (`GET /hidden`). `AUTH` and `HOST` stand for what is right.
const SMUGGLED: &[&str] = &[
    // Two lengths.
    "POST / HTTP/1.1\nHOSTAUTHcontent-length: 5\ncontent-length: 60\n\nGET /hidden HTTP/1.1\nHOST\n",
    "POST / HTTP/1.1\nHOSTAUTHcontent-length: 5, 60\n\nGET /hidden HTTP/1.1\nHOST\n",
    "POST / HTTP/1.1\nHOSTAUTHcontent-length: +5\n\nGET /hidden HTTP/1.1\nHOST\n",
    "POST / HTTP/1.1\nHOSTAUTHcontent-length: 0x5\n\nGET /hidden HTTP/1.1\nHOST\n",
    "POST / HTTP/1.1\nHOSTAUTHcontent-length: 5 \u{b}\n\nGET /hidden HTTP/1.1\nHOST\n",
    "POST / HTTP/1.1\nHOSTAUTHcontent-length : 5\n\nGET /hidden HTTP/1.1\nHOST\n",
    // Encodings that are none.
    "POST / HTTP/1.1\nHOSTAUTHtransfer-encoding: xchunked\n\n0\n\nGET /hidden HTTP/1.1\nHOST\n",
    "POST / HTTP/1.1\nHOSTAUTHtransfer-encoding: chunked, identity\n\n0\n\nGET /hidden HTTP/1.1\nHOST\n",
    "POST / HTTP/1.1\nHOSTAUTHtransfer-encoding : chunked\n\n0\n\nGET /hidden HTTP/1.1\nHOST\n",
    "POST / HTTP/1.1\nHOSTAUTHx: y\n transfer-encoding: chunked\n\n0\n\nGET /hidden HTTP/1.1\nHOST\n",
    "POST / HTTP/1.0\nHOSTAUTHtransfer-encoding: chunked\n\n0\n\nGET /hidden HTTP/1.1\nHOST\n",
    // Chunks that are none.
    "POST / HTTP/1.1\nHOSTAUTHtransfer-encoding: chunked\n\n-1\n\nGET /hidden HTTP/1.1\nHOST\n",
    "POST / HTTP/1.1\nHOSTAUTHtransfer-encoding: chunked\n\nfffffffffffffffff\n\nGET /hidden HTTP/1.1\nHOST\n",
    // Targets and hosts.
    "GET http://HOSTNAME/ HTTP/1.1\nHOSTAUTH\nGET /hidden HTTP/1.1\nHOST\n",
    "GET http://evil.example/ HTTP/1.1\nHOSTAUTH\n",
    "GET / HTTP/1.1\nHOSTHOSTAUTH\n",
    "GET / HTTP/1.1\nHOSTAUTHx-a: b\u{0}c\n\n",
    "GET /\u{0} HTTP/1.1\nHOSTAUTH\n",
    "GET /a b HTTP/1.1\nHOSTAUTH\n",
    "CONNECT HOSTNAME:80 HTTP/1.1\nHOSTAUTH\n",
    "TRACE / HTTP/1.1\nHOSTAUTH\n",
    "GET / HTTP/1.1\nHOSTAUTHx\u{1}: y\n\n",
];

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_in_two_ways_is_refused_and_nothing_hides_behind_it() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    let name = host(&session, program.port);
    for head in SMUGGLED {
        let text = head.replace("HOSTNAME", &name);
        let text = text
            .replace("HOST", &format!("host: {name}\n"))
            .replace("AUTH", &bench.auth().replace("\r\n", "\n"));
        let before = program.heard().len();
        let said = bench.say(text.replace('\n', "\r\n")).await;
        let heard = program.heard();
        for heard in &heard[before..] {
            assert!(
                !heard.contains("hidden"),
                "{head:?} reached the program: {heard}"
            );
        }
        let status = said.get(9..12).unwrap_or_default();
        assert!(
            status.starts_with('4') || status.is_empty(),
            "{head:?}: {said}"
        );
    }
    // A length and an encoding: what is passed on has one of them, and nothing that comes after it is read.
    let both = format!(
        "POST / HTTP/1.1\r\nhost: {name}\r\n{}content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nhost: {name}\r\n\r\n",
        bench.auth()
    );
    let before = program.heard().len();
    let said = bench.say(both).await;
    let heard = program.heard()[before..].join("");
    assert!(!heard.contains("hidden"), "{heard}");
    let is_both = heard.contains("content-length") && heard.contains("transfer-encoding");
    assert!(!is_both, "{heard}");
    assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{said}");
    assert!(said.contains("connection: close"), "{said}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_trailers_cannot_be_injected() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    let body = "transfer-encoding: chunked\r\ntrailer: x-casemate-session, x-a\r\n\r\n1\r\nx\r\n0\r\nx-casemate-session: forged\r\nx-a: b\r\n";
    let said = bench
        .ask(
            "POST / HTTP/1.1",
            &session,
            program.port,
            &format!("{}{body}", bench.auth()),
        )
        .await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert!(
        !program.heard().join("").contains("forged"),
        "{:?}",
        program.heard()
    );
    // What would be a line of its own in another encoding is passed as it is.
    let line = "GET /%0d%0ax-a:%20b?%0d%0a HTTP/1.1";
    let said = bench.ask(line, &session, program.port, &bench.auth()).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let heard = program.heard().pop().unwrap();
    assert!(heard.starts_with(&format!("{line}\r\n")), "{heard}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_on_both_sides() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    let long = format!("{}x-a: {}\r\n", bench.auth(), "a".repeat(40 * 1024));
    let many: Vec<_> = (0..200).map(|n| format!("x-{n}: a\r\n")).collect();
    let many = many.concat();
    for headers in [long, format!("{}{many}", bench.auth())] {
        let said = bench.get(&session, program.port, &headers).await;
        assert!(said.starts_with("HTTP/1.1 431"), "{said}");
    }
    assert_eq!(program.heard(), Vec::<String>::new());
    // Large, and within bounds.
    let large = format!("{}x-a: {}\r\n", bench.auth(), "a".repeat(20 * 1024));
    assert!(
        bench
            .get(&session, program.port, &large)
            .await
            .starts_with("HTTP/1.1 200")
    );
    for answer in [
        format!(
            "HTTP/1.1 200 OK\r\nx-a: {}\r\ncontent-length: 0\r\n\r\n",
            "a".repeat(1 << 20)
        ),
        format!(
            "HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n",
            "x-a: b\r\n".repeat(1000)
        ),
        "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n".to_owned(),
        "HTTP/9.9 200 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nx a: b\r\n\r\n".to_owned(),
    ] {
        let program = Program::says(answer.clone()).await;
        let said = bench.get(&session, program.port, &bench.auth()).await;
        let start: String = answer.chars().take(60).collect();
        assert!(
            said.starts_with("HTTP/1.1 502") && said.contains("bad_answer"),
            "{start}: {said}"
        );
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_with_a_head_is_not_waited_for() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    // The door's patience is a second here; nothing more comes.
    let said = bench
        .say(format!(
            "GET / HTTP/1.1\r\nhost: {}\r\n",
            host(&session, program.port)
        ))
        .await;
    assert!(!said.contains("200"), "{said}");
    assert_eq!(program.heard(), Vec::<String>::new());
    bench.close().await;
}

async fn silent(answer: &'static str) -> (u16, AbortOnDrop) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut all: Vec<TcpStream> = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            all.push(stream);
        }
    });
    (port, AbortOnDrop(task))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_answer_is_given_up() {
    let bench = Bench::with(Wants {
        endpoints: EndpointsConfig {
            domain: Some(DOMAIN.to_owned()),
            answer_timeout: Duration::from_millis(300),
            idle_timeout: Duration::from_millis(300),
            ..EndpointsConfig::default()
        },
        ..Wants::default()
    })
    .await;
    let session = bench.session().await;
    for answer in ["", "HTTP/1.1 200 OK\r\nx-a: "] {
        let (port, _task) = silent(answer).await;
        let said = bench.get(&session, port, &bench.auth()).await;
        assert!(
            said.starts_with("HTTP/1.1 504") && said.contains("no_answer"),
            "{said}"
        );
    }
    // One that begins and does not go on: it must not look whole.
    let (port, _task) = silent("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
    let said = bench.get(&session, port, &bench.auth()).await;
    assert!(
        said.starts_with("HTTP/1.1 200") && said.ends_with("half"),
        "{said}"
    );
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_so_many_requests_at_a_time_and_others_have_theirs() {
    let (port, _task) = silent("").await;
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let (session, other) = (bench.session().await, bench.session().await);
    let head = format!(
        "GET / HTTP/1.1\r\nhost: {}\r\n{}\r\n",
        host(&session, port),
        bench.auth()
    );
    let mut waiting = Vec::new();
    for _ in 0..casemate::endpoint::MAX_AT_ONCE / 2 {
        let mut stream = TcpStream::connect(&bench.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    // HTTP/1.1 is one request a connection, of which the door has 256 here; HTTP/2 fills up the rest.
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(&bench.address).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut more = Vec::new();
    for _ in 0..casemate::endpoint::MAX_AT_ONCE / 2 - 1 {
        let mut sender = sender.clone();
        let request = http::Request::get(format!("http://{}/", host(&session, port)))
            .header("x-api-key", &bench.key)
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .unwrap();
        more.push(AbortOnDrop(tokio::spawn(async move {
            let _ = sender.send_request(request).await;
        })));
    }
    // The last place is found by trying: those above are on their way.
    let refused = async {
        loop {
            let mut stream = TcpStream::connect(&bench.address).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut said = vec![0; 4096];
            match tokio::time::timeout(Duration::from_millis(200), stream.read(&mut said)).await {
                Ok(read) => return String::from_utf8_lossy(&said[..read.unwrap()]).into_owned(),
                Err(_) => waiting.push(stream),
            }
        }
    };
    let said = tokio::time::timeout(crate::PATIENCE, refused)
        .await
        .unwrap();
    assert!(
        said.starts_with("HTTP/1.1 429") && said.contains("endpoint_crowded"),
        "{said}"
    );
    assert!(said.contains("retry-after"), "{said}");
    assert!(
        bench
            .get(&other, program.port, &bench.auth())
            .await
            .starts_with("HTTP/1.1 200")
    );
    drop((more, sender));
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_below_the_domain_are_endpoints_or_nothing() {
    let bench = Bench::new().await;
    for name in [
        "x",
        "80-x",
        "80-01j9z3k4m5n6p7q8r9s0t1v2w3x",
        "a.80-01j9z3k4m5n6p7q8r9s0t1v2w3",
    ] {
        let said = bench
            .say(format!(
                "GET /v1/sessions HTTP/1.1\r\nhost: {name}.{DOMAIN}\r\nconnection: close\r\n{}\r\n",
                bench.auth()
            ))
            .await;
        assert!(
            said.starts_with("HTTP/1.1 404") && said.contains("no_such_endpoint"),
            "{name}: {said}"
        );
    }
    // The domain itself is a name like others: none of the door's, unless it is listed.
    let said = bench
        .say(format!(
            "GET /health HTTP/1.1\r\nhost: {DOMAIN}\r\nconnection: close\r\n\r\n"
        ))
        .await;
    assert!(said.starts_with("HTTP/1.1 421"), "{said}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_are_counted_as_everywhere() {
    let program = Program::says(HELLO).await;
    let limits = casemate::model::settings::HttpLimits {
        failures_per_minute: 3,
        ..casemate::model::settings::HttpLimits::off()
    };
    let bench = Bench::with(Wants {
        limits,
        ..Wants::default()
    })
    .await;
    let session = bench.session().await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        let said = bench
            .get(&session, program.port, "cookie: casemate-endpoint=x\r\n")
            .await;
        statuses.push(said[9..12].to_owned());
    }
    assert_eq!(statuses[..3], ["401", "401", "401"], "{statuses:?}");
    assert!(statuses[3..].contains(&"429".to_owned()), "{statuses:?}");
    let said = bench.get(&session, program.port, &bench.auth()).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    bench.close().await;
}
