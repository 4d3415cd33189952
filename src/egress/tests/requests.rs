//! Requests with a whole URL.

use super::*;

#[tokio::test]
async fn a_request_goes_on_anew_and_its_end_is_recorded() {
    let (port, mut heard) = server(OK).await;
    let bench = Bench::new(&rules(port, r#""http""#));
    let request = format!(
        "GET http://SERVER.test:{port}/a/b?q=1 HTTP/1.1\r\nHost: server.test:{port}\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\nProxy-Authorization: Basic eA==\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n\r\n"
    );
    let answer = bench.say(request).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"),
        "{answer}"
    );
    assert!(
        answer.contains("x-own: 1") && !answer.contains("keep-alive"),
        "{answer}"
    );
    let heard = heard.recv().await.unwrap().to_lowercase();
    assert!(heard.starts_with("get /a/b?q=1 http/1.1\r\n"), "{heard}");
    assert!(
        heard.contains(&format!("\r\nhost: server.test:{port}\r\n"))
            && heard.contains("\r\nx-end: 2\r\n"),
        "{heard}"
    );
    for gone in ["x-hop", "proxy-", "te:", "keep-alive"] {
        assert!(!heard.contains(gone), "{gone} in {heard}");
    }
    let told = bench
        .told("http://server.test ok sent some received some")
        .await;
    assert_eq!(told[0], "http://server.test by servers");
}

#[tokio::test]
async fn bodies_go_both_ways_in_whatever_framing_and_in_one_of_our_own() {
    let (port, mut heard) = server(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Late: 1\r\n\r\n",
    )
    .await;
    let bench = Bench::new(&rules(port, r#""http""#));
    let begin = format!(
        "POST http://server.test:{port}/ HTTP/1.1\r\nHost: server.test:{port}\r\nConnection: close\r\n"
    );
    let answer = bench
        .say(format!(
            "{begin}Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sly: 1\r\n\r\n"
        ))
        .await;
    assert!(
        answer.contains("abc") && !answer.contains("X-Late"),
        "{answer}"
    );
    let said = heard.recv().await.unwrap().to_lowercase();
    assert!(
        said.contains("transfer-encoding: chunked") && !said.contains("x-sly"),
        "{said}"
    );
    bench
        .say(format!("{begin}Content-Length: 2\r\n\r\nhi"))
        .await;
    let said = heard.recv().await.unwrap().to_lowercase();
    assert!(
        said.contains("content-length: 2") && !said.contains("transfer-encoding"),
        "{said}"
    );
}

#[tokio::test]
async fn what_no_rule_allows_gets_a_refusal_that_says_so() {
    let bench = Bench::new("{}");
    let answer = bench
        .say("GET http://example.org/secret?token=x HTTP/1.1\r\nHost: example.org\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(
        answer.contains("x-casemate-rule: nothing-allows"),
        "{answer}"
    );
    assert!(
        answer.contains("GET http://example.org/secret: ") && !answer.contains("token"),
        "{answer}"
    );
    let answer = bench
        .say("CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let told = bench.told("denied example.org by nothing-allows").await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(
        *bench.names.asked.lock().unwrap(),
        [] as [String; 0],
        "a name that nothing allows is not resolved"
    );
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done() {
    let (port, mut heard) = server(OK).await;
    let bench = Bench::with(&rules(port, r#""http""#), Settings::default(), true);
    let answer = bench
        .say(format!("GET http://server.test:{port}/ HTTP/1.1\r\n\r\n"))
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.1 503 "),
        "{answer}"
    );
    let answer = bench
        .say(format!(
            "GET http://server.test:{port}/ HTTP/1.1\r\nHost: server.test:{port}\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(heard.try_recv().is_err());
    assert!(bench.names.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_host_of_a_request_is_that_of_its_target() {
    let (port, mut heard) = server(OK).await;
    let bench = Bench::new(&rules(port, r#""http","tcp""#));
    for said in [
        "evil.test",
        "server.test.evil.org",
        "x@server.test",
        "server.test:1",
        "server.test\r\nHost: server.test",
    ] {
        for line in [
            format!("GET http://server.test:{port}/"),
            format!("CONNECT server.test:{port}"),
        ] {
            let answer = bench
                .say(format!("{line} HTTP/1.1\r\nHost: {said}\r\n\r\n"))
                .await;
            assert!(
                answer.starts_with("HTTP/1.1 403 ") && answer.contains("host-is-the-target"),
                "{said}: {answer}"
            );
        }
    }
    bench.told("denied server.test by host-is-the-target").await;
    assert!(heard.try_recv().is_err());
}

#[tokio::test]
async fn what_is_no_host_in_its_one_spelling_is_no_host() {
    let bench = Bench::new(
        r#"{"all":{"hosts":["*","0.0.0.0/0"],"ports":[80,443],"schemes":["http","tcp"]}}"#,
    );
    for target in [
        "user@example.org",
        "0x7f.0.0.1",
        "127.1",
        "2130706433",
        "0177.0.0.1",
        "ex%61mple.org",
        "[fe80::1%25eth0]",
        "example.org:0",
        "example..org",
    ] {
        let answer = bench
            .say(format!("GET http://{target}/ HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 40"), "{target}: {answer}");
        let connect = if target.contains(":0") {
            target.to_owned()
        } else {
            format!("{target}:443")
        };
        let answer = bench
            .say(format!("CONNECT {connect} HTTP/1.1\r\n\r\n"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 40"), "{target}: {answer}");
    }
    let told = bench.told("denied ? by hosts-have-one-spelling").await;
    assert!(
        told.iter().all(|line| line.starts_with("denied ? ")),
        "{told:?}"
    );
}

#[tokio::test]
async fn messages_that_could_end_at_two_places_go_nowhere() {
    let (port, mut heard) = server(OK).await;
    let bench = Bench::new(&rules(port, r#""http""#));
    for headers in [
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Content-Length: 5, 5",
        "Content-Length : 5",
        "X: a\r\n folded: b",
        "X: a\0b",
    ] {
        let answer = bench
            .say(format!("POST http://server.test:{port}/ HTTP/1.1\r\nHost: server.test:{port}\r\n{headers}\r\n\r\n0\r\n\r\nGET http://server.test:{port}/smuggled HTTP/1.1\r\n\r\n"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{headers}: {answer}");
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            1,
            "{headers}: {answer}"
        );
    }
    for line in [
        "GET / HTTP/1.1",
        "GET https://server.test/ HTTP/1.1",
        "GET ftp://server.test/ HTTP/1.1",
        "OPTIONS * HTTP/1.1",
    ] {
        let answer = bench
            .say(format!("{line}\r\nHost: server.test\r\n\r\n"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{line}: {answer}");
    }
    bench.told("denied ? by messages-have-one-framing").await;
    assert!(heard.try_recv().is_err(), "something went through");
}

#[tokio::test]
async fn what_says_two_lengths_says_one_to_whoever_is_next() {
    let (port, mut heard) = server(OK).await;
    let bench = Bench::new(&rules(port, r#""http""#));
    let begin = format!("POST http://server.test:{port}/ HTTP/1.1\r\nHost: server.test:{port}\r\n");
    let answer = bench
        .say(format!("{begin}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET http://server.test:{port}/smuggled HTTP/1.1\r\nHost: server.test:{port}\r\n\r\n"))
        .await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    if answer.starts_with("HTTP/1.1 200 ") {
        let heard = heard.recv().await.unwrap().to_lowercase();
        assert!(
            heard.contains("transfer-encoding: chunked") && !heard.contains("content-length"),
            "{heard}"
        );
    }
    assert!(heard.try_recv().is_err(), "something was smuggled");
}

#[tokio::test]
async fn a_name_is_resolved_once_and_every_address_is_judged() {
    let (port, mut heard) = server(OK).await;
    let public =
        format!(r#"{{"public":{{"hosts":["*.test"],"ports":[{port}],"schemes":["http","tcp"]}}}}"#);
    let bench = Bench::new(&public);
    bench.name("mixed.test", &[&["1.1.1.1", "127.0.0.1"]]);
    bench.name("mapped.test", &[&["::ffff:127.0.0.1"]]);
    bench.name("metadata.test", &[&["169.254.169.254"]]);
    bench.name("none.test", &[&[]]);
    for (name, status) in [
        ("server", 403),
        ("mixed", 403),
        ("mapped", 403),
        ("metadata", 403),
        ("none", 502),
    ] {
        let request =
            format!("GET http://{name}.test:{port}/ HTTP/1.1\r\nHost: {name}.test:{port}\r\n\r\n");
        let answer = bench.say(request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{name}: {answer}"
        );
    }
    for address in [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "[fd00:ec2::254]",
    ] {
        let answer = bench
            .say(format!("CONNECT {address}:{port} HTTP/1.1\r\n\r\n"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{address}: {answer}");
    }
    let told = bench
        .told("denied metadata.test by only-named-addresses")
        .await;
    assert!(
        told.contains(&"http://metadata.test denied sent none received none".to_owned()),
        "{told:?}"
    );
    assert!(heard.try_recv().is_err());

    // The address of the first answer is dialled; a second one, which says something else, is never asked for.
    let bench = Bench::new(&rules(port, r#""http""#));
    bench.name("rebinding.test", &[&["127.0.0.1"], &["169.254.169.254"]]);
    let answer = bench.say(format!("GET http://rebinding.test:{port}/ HTTP/1.1\r\nHost: rebinding.test:{port}\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(*bench.names.asked.lock().unwrap(), ["rebinding.test"]);
    let answer = bench.say(format!("GET http://rebinding.test:{port}/ HTTP/1.1\r\nHost: rebinding.test:{port}\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[tokio::test]
async fn a_redirect_is_the_clients_to_follow() {
    let (port, _heard) = server("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    let bench = Bench::new(&rules(port, r#""http""#));
    let answer = bench.say(format!("GET http://server.test:{port}/ HTTP/1.1\r\nHost: server.test:{port}\r\nConnection: close\r\n\r\n")).await;
    assert!(
        answer.starts_with("HTTP/1.1 302 ")
            && answer.contains("location: http://169.254.169.254/latest"),
        "{answer}"
    );
    let answer = bench
        .say("GET http://169.254.169.254/latest HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}
