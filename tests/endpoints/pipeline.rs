//! The order of things: who asks, what goes, what is looked up, what is said to the program, what there is without one.

use casemate::model::endpoint::Endpoints;
use casemate::model::settings::EndpointsConfig;
use casemate::model::setup::Setup;

use crate::{Bench, DOMAIN, HELLO, Program, Wants, host};

#[tokio::test(flavor = "multi_thread")]
async fn a_request_reaches_the_program_without_what_is_ours_and_with_what_we_say() {
    let setup = Setup {
        endpoints: Endpoints {
            any_port: true,
            ..Endpoints::default()
        },
        ..Setup::default()
    };
    let program = Program::says(HELLO).await;
    let mut setup = setup;
    let extra = [("X-Team".to_owned(), "blue".to_owned())].into();
    setup.endpoints.headers.insert(program.port, extra);
    let bench = Bench::with(Wants {
        setup,
        ..Wants::default()
    })
    .await;
    let session = bench.session().await;
    let headers = format!(
        "x-api-key: {}\r\nauthorization: Basic mine\r\ncookie: a=b; casemate-endpoint=x\r\nx-team: red\r\n\
         x-casemate-session: ses_other\r\nx-forwarded-for: 1.2.3.4\r\nconnection: x-hop\r\nx-hop: 1\r\n",
        bench.key
    );
    let said = bench
        .ask(
            "GET /a/../b?x=%20&casemate-y=1 HTTP/1.1",
            &session,
            program.port,
            &headers,
        )
        .await;
    assert!(
        said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("\r\n\r\nhello"),
        "{said}"
    );
    let heard = program.heard();
    assert_eq!(heard.len(), 1, "{heard:?}");
    let heard = &heard[0];
    assert!(
        heard.starts_with("GET /a/../b?x=%20&casemate-y=1 HTTP/1.1\r\n"),
        "{heard}"
    );
    let host = host(&session, program.port);
    for line in [
        format!("host: {host}"),
        "authorization: Basic mine".to_owned(),
        "cookie: a=b".to_owned(),
        "x-team: blue".to_owned(),
        format!("x-casemate-session: {}", session.id),
        format!("baggage: casemate-session={}", session.id),
        format!("tracestate: casemate={}", session.id),
        "x-forwarded-for: 127.0.0.1".to_owned(),
        format!("x-forwarded-host: {host}"),
        format!("forwarded: for=127.0.0.1;host=\"{host}\";proto=http"),
    ] {
        let line = format!("\r\n{line}\r\n");
        assert_eq!(heard.matches(&line).count(), 1, "{line}: {heard}");
    }
    for gone in [
        &bench.key,
        "casemate-endpoint",
        "x-hop",
        "ses_other",
        "1.2.3.4",
        "red",
    ] {
        assert!(!heard.contains(gone), "{gone}: {heard}");
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_path_it_is_the_same_without_cookies_and_of_no_origin() {
    let answer = "HTTP/1.1 200 OK\r\nset-cookie: a=b\r\nservice-worker-allowed: /\r\ncontent-security-policy: default-src *\r\n\
                  access-control-allow-origin: *\r\ncontent-length: 2\r\n\r\nok";
    let program = Program::says(answer).await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    let path = format!("/v1/sessions/{}/ports/{}", session.id, program.port);
    let ask = async |rest: &str, headers: &str| {
        let head = format!(
            "GET {path}{rest} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n"
        );
        bench.say(head).await
    };
    let said = ask("/x?y", &format!("{}cookie: a=b\r\n", bench.auth())).await;
    assert!(said.starts_with("HTTP/1.1 200 OK"), "{said}");
    assert!(
        said.contains("\r\ncontent-security-policy: sandbox "),
        "{said}"
    );
    for gone in ["set-cookie", "service-worker-allowed", "access-control"] {
        assert!(!said.contains(gone), "{said}");
    }
    let heard = program.heard().remove(0);
    assert!(heard.starts_with("GET /x?y HTTP/1.1\r\n"), "{heard}");
    assert!(
        heard.contains(&format!("\r\nhost: localhost:{}\r\n", program.port)),
        "{heard}"
    );
    assert!(
        heard.contains(&format!("\r\nx-forwarded-prefix: {path}\r\n")),
        "{heard}"
    );
    assert!(!heard.contains("cookie"), "{heard}");
    // No page but a listed one does more than look, and none reads what it did not ask for with a key.
    let foreign = format!("{}origin: null\r\n", bench.auth());
    assert!(ask("/", &foreign).await.starts_with("HTTP/1.1 403"));
    assert!(ask("", &bench.auth()).await.starts_with("HTTP/1.1 200 OK"));
    assert!(program.heard()[1].starts_with("GET / HTTP/1.1\r\n"));
    let said = ask("/", &format!("{}service-worker: script\r\n", bench.auth())).await;
    assert!(
        said.starts_with("HTTP/1.1 403") && said.contains("no_service_worker"),
        "{said}"
    );
    let said = ask("/", "").await;
    assert!(said.starts_with("HTTP/1.1 401"), "{said}");
    assert_eq!(program.heard().len(), 2);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_told_apart_and_what_is_another_teams_is_not() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    let others = bench.session_of("red").await;
    let mut unknown = casemate::model::session::Session::clone(&session);
    unknown.id = casemate::base::id::SessionId::from_bytes([9; 16]);
    let of_others = bench.get(&others, program.port, &bench.auth()).await;
    let of_none = bench.get(&unknown, program.port, &bench.auth()).await;
    let body = |said: &str, id: &str| {
        let body: serde_json::Value =
            serde_json::from_str(said.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        let mut body = body;
        body["request_id"] = "".into();
        body["sandboxId"] = id.into();
        body
    };
    assert!(of_others.starts_with("HTTP/1.1 502"), "{of_others}");
    assert_eq!(
        body(&of_others, ""),
        body(&of_none, ""),
        "one could probe for sessions"
    );
    assert_eq!(body(&of_none, "")["message"], "The sandbox was not found");
    assert_eq!(body(&of_none, "")["code"], "session_not_found");
    // A port at which nothing listens.
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let said = bench.get(&session, closed, &bench.auth()).await;
    assert!(said.starts_with("HTTP/1.1 502"), "{said}");
    assert_eq!(
        body(&said, "")["message"],
        "The sandbox is running but port is not open"
    );
    assert_eq!(body(&said, "")["port"], closed);
    // A page for those who look at it.
    let html = format!("{}accept: text/html,*/*\r\n", bench.auth());
    let said = bench.get(&session, closed, &html).await;
    assert!(
        said.contains("content-type: text/html") && said.contains("port is not open"),
        "{said}"
    );
    assert!(said.contains("default-src 'none'"), "{said}");
    // One that has ended.
    bench
        .app
        .end_session(&bench.member(), session.id)
        .await
        .unwrap();
    let said = bench.get(&session, program.port, &bench.auth()).await;
    assert!(said.starts_with("HTTP/1.1 502"), "{said}");
    let told = body(&said, "");
    assert_eq!(told["code"], "session_not_running");
    assert!(
        told["message"].as_str().unwrap().contains("was not found"),
        "{said}"
    );
    assert_eq!(program.heard(), Vec::<String>::new());
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_ports_that_the_template_declares_are_reached() {
    let (program, other) = (Program::says(HELLO).await, Program::says(HELLO).await);
    let bench = Bench::with(Wants {
        setup: Setup {
            ports: vec![program.port],
            ..Setup::default()
        },
        ..Wants::default()
    })
    .await;
    let session = bench.session().await;
    let said = bench.get(&session, program.port, &bench.auth()).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let said = bench.get(&session, other.port, &bench.auth()).await;
    assert!(
        said.starts_with("HTTP/1.1 403") && said.contains("port_not_declared"),
        "{said}"
    );
    assert_eq!(other.heard(), Vec::<String>::new());
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_public_only_where_template_and_operator_both_say_so_and_by_host_name() {
    let program = Program::says(HELLO).await;
    for (operator, template, status) in [
        (false, false, "401"),
        (false, true, "401"),
        (true, false, "401"),
        (true, true, "200"),
    ] {
        let bench = Bench::with(Wants {
            endpoints: EndpointsConfig {
                domain: Some(DOMAIN.to_owned()),
                public: operator,
                ..EndpointsConfig::default()
            },
            setup: Setup {
                ports: vec![program.port],
                endpoints: Endpoints {
                    public: if template {
                        vec![program.port]
                    } else {
                        Vec::new()
                    },
                    ..Endpoints::default()
                },
                ..Setup::default()
            },
            ..Wants::default()
        })
        .await;
        let session = bench.session().await;
        let said = bench
            .get(
                &session,
                program.port,
                "authorization: Bearer of-the-program\r\n",
            )
            .await;
        assert!(
            said.starts_with(&format!("HTTP/1.1 {status}")),
            "{operator} {template}: {said}"
        );
        let path = format!("/v1/sessions/{}/ports/{}/", session.id, program.port);
        let said = bench
            .say(format!(
                "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            ))
            .await;
        assert!(said.starts_with("HTTP/1.1 401"), "by path: {said}");
        if status == "200" {
            let heard = program.heard().remove(0);
            assert!(
                heard.contains("authorization: Bearer of-the-program"),
                "{heard}"
            );
            let records = bench.records("endpoint.access").await;
            assert_eq!(records[0].principal, "nobody");
        } else {
            assert_eq!(program.heard(), Vec::<String>::new());
        }
        bench.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_session_wakes_and_a_token_reaches_its_own_session_only() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let (session, other) = (bench.session().await, bench.session().await);
    let member = bench.member();
    let life = std::time::Duration::from_secs(60);
    let token = bench
        .app
        .create_session_token(&member, session.id, None, life)
        .await
        .unwrap();
    let auth = format!("authorization: Bearer {}\r\n", token.text.expose());
    bench.app.pause_session(&member, session.id).await.unwrap();
    let said = bench.get(&session, program.port, &auth).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert!(
        !program.heard()[0].contains("authorization"),
        "{:?}",
        program.heard()
    );
    let said = bench.get(&other, program.port, &auth).await;
    assert!(
        said.starts_with("HTTP/1.1 502") && said.contains("session_not_found"),
        "{said}"
    );
    assert_eq!(program.heard().len(), 1);
    bench.close().await;
}
