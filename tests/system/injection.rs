//! Credentials that are added to what real programs in real sandboxes send, and that turn up nowhere in there.

use std::net::IpAddr;
use std::sync::Arc;

use casemate::admin::protocol;
use casemate::model::grant::Role;
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::support::client::Client;
use crate::support::hunt::{Found, Hunt};
use crate::support::papers::Papers;
use crate::support::{Daemon, wait_until};

const SECRET: &str = "planted-credential-Vb61-QxT9";
/// The port of programs that say only `http://` or `https://`.
const PORT: u16 = 443;

/// What a server heard: heads of requests, in lower case.
type Heard = Arc<Mutex<Vec<String>>>;

/// A server with TLS on this address that tells whoever asks what it heard of them.
async fn server(papers: &Papers, name: &str, address: &str, port: u16) -> (Heard, u16) {
    let paper = papers.server(name, &[name]);
    let private = PrivateKeyDer::try_from(paper.der).unwrap();
    let text = std::fs::read(&paper.certificate).unwrap();
    let chain: Result<Vec<_>, _> =
        tokio_rustls::rustls::pki_types::pem::PemObject::pem_slice_iter(&text).collect();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.unwrap(), private)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let address: IpAddr = address.parse().unwrap();
    let listener = tokio::net::TcpListener::bind((address, port))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Heard::default();
    let hearing = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, heard) = (acceptor.clone(), Arc::clone(&hearing));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut request = String::new();
                let mut piece = [0; 4096];
                while !request.contains("\r\n\r\n") {
                    match stream.read(&mut piece).await {
                        Ok(count @ 1..) => {
                            request.push_str(&String::from_utf8_lossy(&piece[..count]));
                        }
                        _ => return,
                    }
                }
                heard.lock().await.push(request.to_lowercase());
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nX-Heard: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{request}",
                    request.lines().last().unwrap_or_default(),
                    request.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (heard, port)
}

/// A daemon whose template `base` adds a credential to `GET` below `/v1` of `localhost`.
async fn daemon() -> (Daemon, Papers) {
    let mut daemon = Daemon::new();
    let papers = Papers::new(&daemon, "upstream");
    let rule = json!({
        "hosts": ["localhost"], "methods": ["GET"], "paths": ["/v1"], "networks": ["127.0.0.0/8", "::1"],
        "inject": {"credential": "token", "scrub": true},
    });
    daemon.set("egress.ca_file", json!(papers.ca()));
    daemon.set("templates.base.egress", json!({"api": rule}));
    daemon.set("templates.base.egress_ca", json!(true));
    daemon.set("templates.base.allow_root", json!(true));
    daemon.start().await;
    let created = daemon.admin(protocol::Request::KeyCreate {
        name: "admin".parse().unwrap(),
        team: "tests".parse().unwrap(),
        role: Role::TeamAdmin,
        scopes: None,
        expires_in_s: None,
    });
    let protocol::Answer::Key(view) = created.await else {
        panic!("no key");
    };
    let admin = daemon.client.with_key(&view.key);
    let put = admin.send(
        Method::PUT,
        "/v1/credentials/token",
        &[("content-type", "application/json")],
        json!({"value": SECRET}).to_string().into(),
    );
    put.await.expect(201);
    daemon.client.key = Some(daemon.key("tests").await);
    (daemon, papers)
}

/// A session in which programs find the way out for `localhost` too.
async fn session(client: &Client) -> String {
    let wanted = json!({"env": {"no_proxy": "", "NO_PROXY": ""}});
    client.session(wanted).await
}

/// What is recorded of a session, of one kind.
async fn events(client: &Client, id: &str, kind: &str) -> Vec<Value> {
    let all = client.audit(id).await;
    all.into_iter()
        .filter(|record| record["event"]["kind"] == kind)
        .collect()
}

const CURL: &str = "curl -sS --max-time 30";
const URLLIB: &str = "python3 -c 'import sys, urllib.request as u; r = u.urlopen(sys.argv[1]); print(r.status, r.read().decode())'";

#[tokio::test]
async fn real_programs_send_a_credential_that_is_nowhere_in_their_sandbox() {
    let (daemon, papers) = daemon().await;
    let (heard, _) = server(&papers, "localhost", "127.0.0.1", PORT).await;
    let client = daemon.client.clone();
    let id = session(&client).await;
    // In the clear to the proxy, over TLS in a tunnel of either kind; by programs that know nothing of it.
    let socks = format!("{CURL} -x socks5h://127.0.0.1:3128 https://localhost/v1/socks");
    for (at, command) in [
        format!("{CURL} http://localhost/v1/a"),
        format!("{CURL} https://localhost/v1/b"),
        socks,
        format!("{URLLIB} https://localhost/v1/c"),
        format!("{URLLIB} http://localhost/v1/d"),
    ]
    .iter()
    .enumerate()
    {
        let said = client.out(&id, command).await;
        assert!(said.contains("GET /v1/"), "{command}: {said}");
        // What the server repeats is blotted out.
        assert!(
            !said.contains(SECRET) && said.contains("***"),
            "{command}: {said}"
        );
        let heard = heard.lock().await;
        assert_eq!(heard.len(), at + 1);
        let added = format!("authorization: bearer {SECRET}\r\n").to_lowercase();
        assert!(heard[at].contains(&added), "{}", heard[at]);
    }
    // Not for another path or method, nor in place of what is asked for.
    for command in [
        format!("{CURL} -w %{{http_code}} -o /dev/null https://localhost/v2"),
        format!("{CURL} -w %{{http_code}} -o /dev/null -X POST https://localhost/v1/a"),
        format!(
            "{CURL} -w %{{http_code}} -o /dev/null -H 'Host: other.example' https://localhost/v1/a"
        ),
    ] {
        assert_eq!(client.out(&id, &command).await, "403", "{command}");
    }
    assert_eq!(heard.lock().await.len(), 5);

    let uses = events(&client, &id, "credential.use").await;
    assert_eq!(uses.len(), 5, "{uses:?}");
    for used in &uses {
        assert_eq!(used["principal"], format!("session:{id}"));
        let event = &used["event"];
        assert_eq!(
            (&event["credential"], &event["purpose"]),
            (&json!("token"), &json!("egress"))
        );
    }
    let visits = events(&client, &id, "egress.connect").await;
    let is_whole = |visit: &&Value| {
        let event = &visit["event"];
        event["scheme"] == "https" && event["method"] == "GET" && event["rule"] == "api"
    };
    assert!(visits.iter().filter(is_whole).count() >= 5, "{visits:?}");

    // Whoever is root in there looks everywhere, and finds the authority's certificate and no key.
    let mut hunt = Hunt::default();
    let mut found = Found::new();
    hunt.plant("credential", SECRET.as_bytes());
    hunt.plant("key of an authority", b"-----BEGIN PRIVATE KEY-----");
    client
        .sh_as(
            &id,
            "root",
            &format!("echo {} > /root/bait", SECRET.to_uppercase()),
        )
        .await;
    for directory in ["etc", "run", "tmp", "var", "root", "home"] {
        let path = format!("/v1/sessions/{id}/archive?path=/{directory}&user=root");
        let archive = client.get(&path).await;
        assert_eq!(archive.status, 200, "{directory}: {:?}", archive.body);
        hunt.unpack(directory, &archive.body, &mut found);
    }
    let walk = "for f in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do tr '\\0' '\\n' <$f; done 2>/dev/null";
    let (_, text) = client.sh_as(&id, "root", walk).await;
    hunt.look("processes", text.as_bytes(), &mut found);
    hunt.look("log", daemon.log().as_bytes(), &mut found);
    let places: Vec<_> = found.iter().collect();
    let [(place, _)] = places.as_slice() else {
        panic!("{places:?}");
    };
    assert!(place.starts_with("root: "), "{place}");
    let certificate = client.out(&id, "cat /etc/casemate/ca.pem").await;
    assert!(
        certificate.starts_with("-----BEGIN CERTIFICATE-----"),
        "{certificate}"
    );
    client.end(&id).await;
}

#[tokio::test]
async fn a_server_that_is_not_who_it_should_be_hears_nothing() {
    let (mut daemon, papers) = daemon().await;
    let (heard, port) = server(&papers, "other.example", "127.0.0.1", 0).await;
    let strangers = Papers::new(&daemon, "stranger");
    let (heard_too, port_too) = server(&strangers, "localhost", "127.0.0.1", 0).await;
    daemon.set("templates.base.egress.api.ports", json!([port, port_too]));
    daemon.restart().await;
    let client = daemon.client.clone();
    let id = session(&client).await;
    for port in [port, port_too] {
        let command = format!("{CURL} -w '%{{http_code}}' https://localhost:{port}/v1");
        let said = client.out(&id, &command).await;
        assert!(
            said.ends_with("502") && said.contains("TLS to there"),
            "{said}"
        );
    }
    assert!(heard.lock().await.is_empty() && heard_too.lock().await.is_empty());
    assert!(events(&client, &id, "credential.use").await.is_empty());
    wait_until("both ends are recorded", async || {
        let visits = events(&client, &id, "egress.connect").await;
        let is_unverified = |visit: &&Value| visit["outcome"]["code"] == "unverified";
        visits.iter().filter(is_unverified).count() == 2
    })
    .await;
    client.end(&id).await;
}

#[tokio::test]
async fn the_authority_stays_over_a_restart_and_only_whoever_asks_trusts_it() {
    let (mut daemon, papers) = daemon().await;
    let (_, port) = server(&papers, "localhost", "127.0.0.1", 0).await;
    daemon.set("templates.base.egress.api.ports", json!([port]));
    daemon.restart().await;
    let client = daemon.client.clone();
    let id = session(&client).await;
    let ask = format!("{CURL} https://localhost:{port}/v1");
    let before = client.out(&id, "cat /etc/casemate/ca.pem").await;
    assert!(client.out(&id, &ask).await.starts_with("GET /v1"));
    daemon.kill9();
    // Another template asks for nothing: its sandboxes verify the server themselves, and get nothing added.
    daemon.set("templates.base.egress_ca", json!(false));
    daemon.set("templates.base.egress.api.methods", Value::Null);
    daemon.set("templates.base.egress.api.paths", Value::Null);
    daemon.start().await;
    assert!(
        client.out(&id, &ask).await.starts_with("GET /v1"),
        "it is opened with the same key"
    );
    let other = session(&client).await;
    let (code, _) = client.sh(&other, "test -e /etc/casemate").await;
    assert_eq!(code, 1);
    assert_eq!(client.sh(&other, &ask).await.0, 60, "curl cannot verify it");
    let text = std::fs::read_to_string(papers.ca()).unwrap();
    client
        .out(&other, &format!("cat > /tmp/ca.pem <<'X'\n{text}X\n"))
        .await;
    let said = client
        .out(&other, &format!("{ask} --cacert /tmp/ca.pem"))
        .await;
    assert!(
        said.starts_with("GET /v1") && !said.to_lowercase().contains("authorization"),
        "{said}"
    );
    for id in [id, other] {
        client.end(&id).await;
    }
    daemon.set("templates.base.egress_ca", json!(true));
    daemon.restart().await;
    let id = session(&client).await;
    assert_eq!(client.out(&id, "cat /etc/casemate/ca.pem").await, before);
    client.end(&id).await;
}
