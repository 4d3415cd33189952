//! Links and cookies: what a browser may have, for what, and for how long.

use std::time::Duration;

use casemate::model::endpoint::Target;
use casemate::model::session::Session;

use crate::{Bench, HELLO, Program, host};

async fn link(bench: &Bench, session: &Session, port: u16) -> String {
    let target = Target {
        session: session.id,
        port,
    };
    let member = bench.member();
    let made = bench
        .app
        .link_endpoint(&member, target, Duration::from_secs(60));
    made.await.unwrap().0
}

/// Opens a link as a browser does; the cookie that it gets.
async fn sign_in(bench: &Bench, session: &Session, port: u16) -> String {
    let link = link(bench, session, port).await;
    let target = format!("GET //evil.example/a?b=c&casemate-link={link} HTTP/1.1");
    let said = bench
        .ask(&target, session, port, "accept: text/html\r\n")
        .await;
    assert!(said.starts_with("HTTP/1.1 303"), "{said}");
    let host = host(session, port);
    let to = format!("\r\nlocation: http://{host}//evil.example/a?b=c\r\n");
    assert!(said.contains(&to), "{said}");
    assert!(
        said.contains("referrer-policy: no-referrer") && said.contains("cache-control: no-store")
    );
    let cookie = said
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "))
        .unwrap();
    for says in ["; Path=/", "; HttpOnly", "; SameSite=Lax"] {
        assert!(cookie.contains(says), "{cookie}");
    }
    assert!(!cookie.contains(&link), "a link is no cookie");
    cookie.split(';').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_becomes_a_cookie_that_is_for_one_port_of_one_session() {
    let (program, other_port) = (Program::says(HELLO).await, Program::says(HELLO).await);
    let bench = Bench::new().await;
    let (session, other) = (bench.session().await, bench.session().await);
    let cookie = format!(
        "cookie: a=b; {}\r\n",
        sign_in(&bench, &session, program.port).await
    );
    assert_eq!(
        program.heard(),
        Vec::<String>::new(),
        "the program never sees the link"
    );
    let said = bench.get(&session, program.port, &cookie).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert!(
        said.contains("cross-origin-resource-policy: same-origin"),
        "{said}"
    );
    let heard = program.heard().remove(0);
    assert!(heard.contains("\r\ncookie: a=b\r\n"), "{heard}");
    for (session, port) in [(&other, program.port), (&session, other_port.port)] {
        let said = bench.get(session, port, &cookie).await;
        assert!(said.starts_with("HTTP/1.1 401"), "{said}");
    }
    // Not by path, where it would be one of the API's, and not at the API.
    let path = format!("/v1/sessions/{}/ports/{}/", session.id, program.port);
    for path in [path.as_str(), "/v1/sessions"] {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{cookie}\r\n");
        let said = bench.say(request).await;
        assert!(said.starts_with("HTTP/1.1 401"), "{path}: {said}");
    }
    // Twice is not at all.
    let twice = format!("{cookie}cookie: casemate-endpoint=x\r\n");
    assert!(
        bench
            .get(&session, program.port, &twice)
            .await
            .starts_with("HTTP/1.1 401")
    );
    assert_eq!((program.heard().len(), other_port.heard().len()), (1, 0));
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_are_tampered_with_expired_or_for_another_port_open_nothing() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let (session, other) = (bench.session().await, bench.session().await);
    let good = link(&bench, &session, program.port).await;
    let ask = async |session: &Session, link: &str| {
        let line = format!("GET /?casemate-link={link} HTTP/1.1");
        bench.ask(&line, session, program.port, "").await
    };
    let said = ask(&session, &good).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert!(
        program.heard()[0].starts_with("GET / HTTP/1.1\r\n"),
        "{:?}",
        program.heard()
    );
    let mut tampered = good.clone().into_bytes();
    tampered[30] = if tampered[30] == b'A' { b'B' } else { b'A' };
    let tampered = String::from_utf8(tampered).unwrap();
    let cookie = sign_in(&bench, &session, program.port).await;
    let cookie = cookie.split_once('=').unwrap().1;
    for (session, link) in [
        (&session, tampered.as_str()),
        (&session, &good[1..]),
        (&session, ""),
        (&session, "%00"),
        (&session, &format!("{good}&casemate-link={good}")),
        (&session, cookie),
        (&other, good.as_str()),
    ] {
        let said = ask(session, link).await;
        assert!(said.starts_with("HTTP/1.1 401"), "{link}: {said}");
    }
    // One second is the shortest life; it is over when the clock says so.
    let target = Target {
        session: session.id,
        port: program.port,
    };
    let member = bench.member();
    let short = bench
        .app
        .link_endpoint(&member, target, Duration::from_secs(1))
        .await
        .unwrap();
    while bench.app.now() < short.1 {
        tokio::task::yield_now().await;
    }
    let said = ask(&session, &short.0).await;
    assert!(said.starts_with("HTTP/1.1 401"), "{said}");
    for life in [0, 24 * 3600 + 1] {
        let made = bench
            .app
            .link_endpoint(&member, target, Duration::from_secs(life))
            .await;
        assert!(made.is_err(), "{life}");
    }
    // It ends with its session.
    bench.app.end_session(&member, session.id).await.unwrap();
    let said = ask(&session, &good).await;
    assert!(
        said.starts_with("HTTP/1.1 502") && said.contains("was not found"),
        "{said}"
    );
    assert_eq!(program.heard().len(), 1);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_key_go_its_links_its_cookies_and_what_is_open() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    // An answer that has no end.
    let program =
        Program::says("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
            .await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    let good = link(&bench, &session, program.port).await;
    let cookie = sign_in(&bench, &session, program.port).await;
    let mut stream = tokio::net::TcpStream::connect(&bench.address)
        .await
        .unwrap();
    let host = host(&session, program.port);
    let head = format!("GET / HTTP/1.1\r\nhost: {host}\r\ncookie: {cookie}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("data: 1") {
        assert_ne!(stream.read_buf(&mut said).await.unwrap(), 0);
    }
    bench
        .app
        .revoke_key(&crate::OPERATOR, bench.id)
        .await
        .unwrap();
    let ended = tokio::time::timeout(crate::PATIENCE, stream.read_to_end(&mut said)).await;
    ended.expect("the stream goes on").ok();
    assert!(
        !String::from_utf8_lossy(&said).ends_with("0\r\n\r\n"),
        "it looks whole"
    );
    let line = format!("GET /?casemate-link={good} HTTP/1.1");
    let by_link = bench.ask(&line, &session, program.port, "").await;
    let by_cookie = bench
        .get(&session, program.port, &format!("cookie: {cookie}\r\n"))
        .await;
    assert!(by_link.starts_with("HTTP/1.1 401"), "{by_link}");
    assert!(by_cookie.starts_with("HTTP/1.1 401"), "{by_cookie}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_cookie_other_pages_lead_here_and_do_nothing_else() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    let cookie = sign_in(&bench, &session, program.port).await;
    let own = format!("http://{}", host(&session, program.port));
    let own_port = format!("{own}:1");
    let own = own.as_str();
    let socket = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let navigates = "sec-fetch-mode: navigate\r\nsec-fetch-dest: document\r\n";
    let rows: Vec<(&str, String, bool)> = vec![
        ("GET", String::new(), true),
        ("GET", format!("origin: {own}\r\n"), true),
        ("POST", format!("origin: {own}\r\n"), true),
        ("GET", "sec-fetch-site: same-origin\r\n".into(), true),
        ("GET", "sec-fetch-site: none\r\n".into(), true),
        (
            "GET",
            format!("sec-fetch-site: cross-site\r\n{navigates}"),
            true,
        ),
        (
            "GET",
            format!("sec-fetch-site: same-site\r\n{navigates}"),
            true,
        ),
        ("GET", "sec-fetch-site: cross-site\r\n".into(), false),
        // What another session's page can do: the sites are the same.
        (
            "GET",
            "sec-fetch-site: same-site\r\nsec-fetch-mode: no-cors\r\nsec-fetch-dest: script\r\n"
                .into(),
            false,
        ),
        (
            "GET",
            "sec-fetch-site: same-site\r\nsec-fetch-mode: navigate\r\nsec-fetch-dest: iframe\r\n"
                .into(),
            false,
        ),
        (
            "POST",
            format!("sec-fetch-site: cross-site\r\n{navigates}"),
            false,
        ),
        ("POST", String::new(), false),
        ("DELETE", String::new(), false),
        ("POST", "origin: null\r\n".into(), false),
        ("POST", "origin: http://evil.example\r\n".into(), false),
        ("POST", format!("origin: {own_port}\r\n"), false),
        ("POST", format!("origin: {own}\r\norigin: {own}\r\n"), false),
        ("GET", "origin: http://evil.example\r\n".into(), false),
        (
            "GET",
            format!("{socket}origin: http://evil.example\r\n"),
            false,
        ),
        ("GET", socket.to_owned(), false),
        ("GET", format!("{socket}origin: {own}\r\n"), true),
    ];
    for (method, headers, is_allowed) in rows {
        let before = program.heard().len();
        let line = format!("{method} / HTTP/1.1");
        let headers = format!("cookie: {cookie}\r\n{headers}");
        let said = bench.ask(&line, &session, program.port, &headers).await;
        let (status, heard) = if is_allowed { ("200", 1) } else { ("403", 0) };
        assert!(
            said.starts_with(&format!("HTTP/1.1 {status}")),
            "{method} {headers}: {said}"
        );
        assert_eq!(program.heard().len() - before, heard, "{method} {headers}");
        // With a key it is a program that asks.
        if !headers.contains("upgrade") {
            let with_key = headers.replace(&format!("cookie: {cookie}\r\n"), &bench.auth());
            let said = bench.ask(&line, &session, program.port, &with_key).await;
            assert!(
                said.starts_with("HTTP/1.1 200"),
                "{method} {with_key}: {said}"
            );
        }
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_sets_no_cookie_of_ours_and_none_for_others() {
    let answer = "HTTP/1.1 200 OK\r\nset-cookie: a=b; Domain=box.test; Path=/\r\nset-cookie: casemate-endpoint=x\r\n\
                  set-cookie: __Host-casemate-endpoint=x; Secure; Path=/\r\nalt-svc: h3=\":1\"\r\ncontent-length: 0\r\n\r\n";
    let program = Program::says(answer).await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    let said = bench.get(&session, program.port, &bench.auth()).await;
    assert!(said.contains("\r\nset-cookie: a=b; Path=/\r\n"), "{said}");
    assert!(
        !said.contains("casemate-endpoint") && !said.contains("alt-svc"),
        "{said}"
    );
    bench.close().await;
}
