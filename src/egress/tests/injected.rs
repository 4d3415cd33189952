//! Credentials on requests over TLS: where they go, and where they do not.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::crypto;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::base::clock::{Clock as _, SystemClock};
use crate::egress::Authority;

const SECRET: &str = "hush-Zr8NcYp3-hush";

/// Who signs for servers.
struct Notary {
    issuer: Issuer<'static, KeyPair>,
    file: tempfile::NamedTempFile,
}

impl Notary {
    fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let made = parameters.self_signed(&key).unwrap();
        let coded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, made.der());
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("-----BEGIN CERTIFICATE-----\n{coded}\n-----END CERTIFICATE-----\n");
        std::fs::write(file.path(), text).unwrap();
        let issuer = Issuer::new(parameters, key);
        Self { issuer, file }
    }

    /// A server that is known by this name; it answers every request alike, and tells what it heard.
    async fn server(&self, name: &str, answer: String) -> (u16, Heard) {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let made = parameters.signed_by(&key, &self.issuer).unwrap();
        let private = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config =
            ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.der().clone()], private.into())
                .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (heard, hearing) = tokio::sync::mpsc::channel(64);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut text = String::new();
                let mut piece = [0; 1024];
                while !text.contains("\r\n\r\n") {
                    match stream.read(&mut piece).await {
                        Ok(count @ 1..) => text.push_str(&String::from_utf8_lossy(&piece[..count])),
                        _ => break,
                    }
                }
                if text.is_empty() {
                    continue;
                }
                heard.send(text).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
                let _ = stream.shutdown().await;
            }
        });
        (port, hearing)
    }
}

type Heard = tokio::sync::mpsc::Receiver<String>;

/// A sandbox's way out, with a rule `api` that adds something to `GET` below `/v1` of `server.test`.
struct Ground {
    bench: Bench,
    authority: CertificateDer<'static>,
}

impl Ground {
    fn new(notary: &Notary, port: u16, inject: &str, is_mutual: bool) -> Self {
        let rules = format!(
            r#"{{"api":{{"hosts":["server.test"],"ports":[{port}],"methods":["GET"],"paths":["/v1"],"networks":["127.0.0.0/8"],"inject":{inject}}}}}"#
        );
        Self::with(notary, &rules, is_mutual)
    }

    fn with(notary: &Notary, rules: &str, is_mutual: bool) -> Self {
        let kept = Authority::make("test", SystemClock.now()).unwrap();
        let authority = Authority::open("test", &kept).unwrap();
        let certificate = authority.certificate().clone();
        let settings = Settings {
            ca: notary.file.path().to_owned(),
            ..Settings::default()
        };
        let trust = Trust {
            is_mutual,
            opener: Some(Arc::new(Opener::new(authority, Arc::new(SystemClock)))),
            credentials: [
                ("token".to_owned(), SECRET.to_owned()),
                ("bad".to_owned(), "a\nb".to_owned()),
            ]
            .into(),
        };
        Self {
            bench: Bench::trusting(rules, settings, false, trust),
            authority: certificate,
        }
    }

    /// TLS through a tunnel, with this name in it, by a client that trusts this authority.
    async fn tls(
        &self,
        target: &str,
        name: &str,
        trusted: &CertificateDer<'static>,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<UnixStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let config =
            ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        let tunnel = tunnels::connected(&self.bench, target).await;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, tunnel)
            .await
    }

    /// Says bytes in TLS to the server; all that is answered until the end.
    async fn say_in_tls(&self, port: u16, bytes: &str) -> String {
        let target = format!("server.test:{port}");
        let mut stream = self
            .tls(&target, "server.test", &self.authority)
            .await
            .unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        all(&mut stream).await
    }
}

fn get(target: &str, host: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: mine\r\nConnection: close, authorization\r\n\r\n"
    )
}

const BEARER: &str = r#"{"credential":"token"}"#;

#[tokio::test]
async fn a_request_in_the_clear_gets_it_on_verified_tls_alone() {
    let notary = Notary::new();
    let (port, mut heard) = notary.server("server.test", OK.to_owned()).await;
    let ground = Ground::new(&notary, port, BEARER, false);
    let host = format!("server.test:{port}");
    let target = format!("https://{host}/v1/x?q=1");
    let answer = ground.bench.say(get(&target, &host)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let heard = heard.recv().await.unwrap().to_lowercase();
    assert!(heard.starts_with("get /v1/x?q=1 http/1.1\r\n"), "{heard}");
    let added = format!("authorization: bearer {SECRET}\r\n").to_lowercase();
    assert!(heard.contains(&added) && !heard.contains("mine"), "{heard}");
    let told = ground
        .bench
        .told("https://server.test ok sent some received some")
        .await;
    assert_eq!(told[..2], ["https://server.test by api", "lend token"]);

    // What the rule does not say gets nothing, and goes nowhere.
    for (method, path) in [("GET", "/v2"), ("POST", "/v1/x"), ("GET", "/v1/../v2")] {
        let asked = get(&format!("https://{host}{path}"), &host).replacen("GET", method, 1);
        let answer = ground.bench.say(asked).await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "{path}: {answer}");
    }
    let plain = ground
        .bench
        .say(get(&format!("http://{host}/v1/x"), &host))
        .await;
    assert!(plain.starts_with("HTTP/1.1 403"), "{plain}");
    let lent = ground
        .bench
        .told
        .borrow()
        .iter()
        .filter(|line| *line == "lend token")
        .count();
    assert_eq!(lent, 1);
}

#[tokio::test]
async fn whoever_is_there_shows_that_they_are_before_anything_is_sent() {
    let notary = Notary::new();
    let stranger = Notary::new();
    let other_name = notary.server("other.test", OK.to_owned()).await;
    let nobody_knows = stranger.server("server.test", OK.to_owned()).await;
    for (port, mut heard) in [other_name, nobody_knows] {
        let ground = Ground::new(&notary, port, BEARER, false);
        let host = format!("server.test:{port}");
        let answer = ground
            .bench
            .say(get(&format!("https://{host}/v1"), &host))
            .await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
        let told = ground
            .bench
            .told("https://server.test unverified sent some received some")
            .await;
        assert!(!told.contains(&"lend token".to_owned()), "{told:?}");
        assert!(heard.try_recv().is_err());
    }
    // One that speaks no TLS hears no credential either.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hearing = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(OK.as_bytes()).await.unwrap();
        all(&mut stream).await
    });
    let ground = Ground::new(&notary, port, BEARER, false);
    let host = format!("server.test:{port}");
    let answer = ground
        .bench
        .say(get(&format!("https://{host}/v1"), &host))
        .await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(!hearing.await.unwrap().contains(SECRET));
}

#[tokio::test]
async fn tls_is_opened_and_each_request_in_it_is_judged() {
    let notary = Notary::new();
    let (port, mut heard) = notary.server("server.test", OK.to_owned()).await;
    let ground = Ground::new(
        &notary,
        port,
        r#"{"credential":"token","header":"x-api-key","as":"{}"}"#,
        true,
    );
    let host = format!("server.test:{port}");
    let answer = ground.say_in_tls(port, &get("/v1", &host)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let text = heard.recv().await.unwrap();
    assert!(text.contains(&format!("x-api-key: {SECRET}\r\n")), "{text}");
    // Only the header of the rule is taken away.
    assert!(!text.contains("authorization: mine"), "{text}");

    for (request, status, rule) in [
        (get("/v2", &host), "403", "nothing-allows"),
        (get("/v1", "other.test"), "403", "host-is-the-target"),
        (
            get(&format!("https://{host}/v1"), &host),
            "400",
            "messages-have-one-framing",
        ),
        (
            "GET /v1 HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
            "403",
            "host-is-the-target",
        ),
        (
            get("/v1", &host).replacen("GET", "TRACE", 1),
            "403",
            "nothing-allows",
        ),
        (
            format!(
                "GET /v1 HTTP/1.1\r\nHost: {host}\r\nHost: other.test\r\nConnection: close\r\n\r\n"
            ),
            "403",
            "host-is-the-target",
        ),
    ] {
        let answer = ground.say_in_tls(port, &request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {answer}"
        );
        assert!(
            answer.contains(&format!("x-casemate-rule: {rule}\r\n")),
            "{request}: {answer}"
        );
        assert!(!answer.contains(SECRET));
    }
    assert!(heard.try_recv().is_err(), "nothing of it went on");
}

#[tokio::test]
async fn a_tunnel_whose_tls_names_another_host_or_that_is_none_ends() {
    let notary = Notary::new();
    let (port, mut heard) = notary.server("server.test", OK.to_owned()).await;
    let ground = Ground::new(&notary, port, BEARER, true);
    let target = format!("server.test:{port}");
    let named = ground.tls(&target, "other.test", &ground.authority).await;
    assert!(named.is_err());
    ground
        .bench
        .told("denied server.test by tls-names-the-host")
        .await;
    let mut tunnel = tunnels::connected(&ground.bench, &target).await;
    tunnel
        .write_all(get("/v1", &target).as_bytes())
        .await
        .unwrap();
    assert!(!all(&mut tunnel).await.contains("200 OK"));
    ground
        .bench
        .told("denied server.test by tunnels-are-tls")
        .await;
    assert!(heard.try_recv().is_err());
    assert!(
        !ground
            .bench
            .told
            .borrow()
            .contains(&"lend token".to_owned())
    );
}

#[tokio::test]
async fn tls_is_not_opened_where_nothing_needs_it_or_the_sandbox_does_not_ask() {
    let notary = Notary::new();
    let (port, mut heard) = notary.server("server.test", OK.to_owned()).await;
    let spliced = format!(
        r#"{{"api":{{"hosts":["server.test"],"ports":[{port}],"networks":["127.0.0.0/8"]BOTH}}}}"#
    );
    let target = format!("server.test:{port}");
    let own = pem_of(&notary);
    for (rest, is_mutual) in [("", true), (r#","inject":{"credential":"token"}"#, false)] {
        let ground = Ground::with(&notary, &spliced.replace("BOTH", rest), is_mutual);
        // The server's own certificate is what the client sees, and ours is not.
        assert!(
            ground
                .tls(&target, "server.test", &ground.authority)
                .await
                .is_err()
        );
        let mut stream = ground.tls(&target, "server.test", &own).await.unwrap();
        stream
            .write_all(get("/v1", &target).as_bytes())
            .await
            .unwrap();
        assert!(all(&mut stream).await.starts_with("HTTP/1.1 200 OK"));
        let text = heard.recv().await.unwrap();
        assert!(
            text.contains("Authorization: mine") && !text.contains(SECRET),
            "{text}"
        );
    }
}

fn pem_of(notary: &Notary) -> CertificateDer<'static> {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_file(notary.file.path()).unwrap()
}

#[tokio::test]
async fn what_cannot_be_had_or_written_sends_nothing() {
    let notary = Notary::new();
    let (port, mut heard) = notary.server("server.test", OK.to_owned()).await;
    let host = format!("server.test:{port}");
    for (name, why) in [
        ("gone", "does not exist"),
        ("bad", "has bytes that no header may have"),
    ] {
        let inject = format!(r#"{{"credential":"{name}"}}"#);
        let ground = Ground::new(&notary, port, &inject, false);
        let answer = ground
            .bench
            .say(get(&format!("https://{host}/v1"), &host))
            .await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
        assert!(
            answer.contains(&format!("the credential {name} {why} (api)")),
            "{answer}"
        );
        let end = "https://server.test no_credential sent some received some";
        ground.bench.told(end).await;
    }
    assert!(heard.try_recv().is_err());
}

#[tokio::test]
async fn a_redirect_takes_nothing_along() {
    let notary = Notary::new();
    let (elsewhere, mut heard_elsewhere) = server(OK).await;
    let answer = format!(
        "HTTP/1.1 302 Found\r\nLocation: http://server.test:{elsewhere}/v1\r\nContent-Length: 0\r\n\r\n"
    );
    let (port, mut heard) = notary.server("server.test", answer).await;
    let rules = format!(
        r#"{{"api":{{"hosts":["server.test"],"ports":[{port}],"networks":["127.0.0.0/8"],"inject":{BEARER}}},
            "else":{{"hosts":["server.test"],"ports":[{elsewhere}],"networks":["127.0.0.0/8"]}}}}"#
    );
    let ground = Ground::with(&notary, &rules, false);
    let host = format!("server.test:{port}");
    let answer = ground
        .bench
        .say(get(&format!("https://{host}/v1"), &host))
        .await;
    assert!(answer.starts_with("HTTP/1.1 302"), "{answer}");
    assert!(heard.recv().await.unwrap().contains(SECRET));
    let host = format!("server.test:{elsewhere}");
    let answer = ground
        .bench
        .say(get(&format!("http://{host}/v1"), &host))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!heard_elsewhere.recv().await.unwrap().contains(SECRET));
}

#[tokio::test]
async fn an_answer_that_repeats_it_is_blotted_where_that_is_asked_for() {
    let notary = Notary::new();
    let body = format!("you sent Bearer {SECRET}.");
    let echo = format!(
        "HTTP/1.1 200 OK\r\nX-Echo: {SECRET}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (port, mut heard) = notary.server("server.test", echo).await;
    let host = format!("server.test:{port}");
    let ask = get(&format!("https://{host}/v1"), &host).replace(
        "Connection",
        "Range: bytes=1-2\r\nAccept-Encoding: gzip\r\nConnection",
    );
    let ground = Ground::new(
        &notary,
        port,
        r#"{"credential":"token","scrub":true}"#,
        false,
    );
    let answer = ground.bench.say(&ask).await;
    let blot = "*".repeat(SECRET.len());
    assert!(answer.contains(&format!("x-echo: {blot}\r\n")), "{answer}");
    assert!(
        answer.ends_with(&format!("you sent Bearer {blot}.")),
        "{answer}"
    );
    let text = heard.recv().await.unwrap().to_lowercase();
    assert!(
        text.contains("accept-encoding: identity") && !text.contains("range"),
        "{text}"
    );
    // Without, it is as it comes.
    let ground = Ground::new(&notary, port, BEARER, false);
    let answer = ground.bench.say(&ask).await;
    assert!(
        answer.contains(&format!("x-echo: {SECRET}\r\n")),
        "{answer}"
    );

    let packed = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx";
    let (port, _heard) = notary.server("server.test", packed.to_owned()).await;
    let host = format!("server.test:{port}");
    let ground = Ground::new(
        &notary,
        port,
        r#"{"credential":"token","scrub":true}"#,
        false,
    );
    let answer = ground
        .bench
        .say(get(&format!("https://{host}/v1"), &host))
        .await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}
