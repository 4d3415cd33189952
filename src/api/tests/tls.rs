//! TLS with real clients: versions, protocols, names, another certificate while connections go on, and whoever is slow or speaks
//! something else.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{BYTES, Door, PATIENCE, config, get, whole};
use crate::api::error::Problem;
use crate::api::line::{Cut, Line, Parting, WRITE_DEADLINE};
use crate::api::route::{BoxError, Call, Reply, Route};
use crate::api::tls::{Material, Tls, TlsError};
use crate::base::clock::{Clock, SystemClock, Timestamp};
use crate::model::settings::TlsConfig;

/// Whom the certificates are of.
const NAME: &str = "x";

/// A certificate in its files.
pub(super) struct Papers {
    directory: tempfile::TempDir,
    der: CertificateDer<'static>,
}

impl Papers {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let der = write(directory.path());
        Self { directory, der }
    }

    /// Another certificate in the place of this one.
    fn renew(&mut self) {
        self.der = write(self.directory.path());
    }

    pub(super) fn der(&self) -> CertificateDer<'static> {
        self.der.clone()
    }

    pub(super) fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn settings(&self) -> TlsConfig {
        let path = |name: &str| {
            let path = self.directory.path().join(name);
            path.to_str().unwrap().to_owned()
        };
        TlsConfig {
            certificate: path("certificate.pem"),
            key: path("key.pem"),
            client_ca: None,
            require_client: false,
            clients: Vec::new(),
        }
    }

    pub(super) fn tls(&self) -> Arc<Tls> {
        Arc::new(Tls::open(self.settings(), None).unwrap())
    }

    /// A client that trusts this certificate and nothing else.
    pub(super) fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
    ) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().into())
            .collect();
        TlsConnector::from(Arc::new(client))
    }
}

fn now() -> Timestamp {
    SystemClock.now()
}

fn write(directory: &Path) -> CertificateDer<'static> {
    write_until(directory, 4000)
}

fn write_until(directory: &Path, year: i32) -> CertificateDer<'static> {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec![NAME.to_owned(), "*.x.example".to_owned()];
    let mut parameters = rcgen::CertificateParams::new(names).unwrap();
    parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
    let certificate = parameters.self_signed(&key).unwrap();
    pem(directory, "certificate", "CERTIFICATE", certificate.der());
    pem(directory, "key", "PRIVATE KEY", &key.serialize_der());
    certificate.der().clone()
}

fn pem(directory: &Path, name: &str, label: &str, der: &[u8]) {
    let text = STANDARD.encode(der);
    let text = format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
    let path = directory.join(format!("{name}.pem"));
    fs::write(&path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

fn routes() -> Vec<Route> {
    async fn give(call: &Call) -> Result<Reply, Problem> {
        let pieces = match call.query.as_str() {
            "broken" => vec![Ok(Bytes::from("hel")), Err(BoxError::from("it broke"))],
            _ => vec![Ok(Bytes::from("hello"))],
        };
        let pieces = stream::iter(pieces);
        Ok(Reply::stream(StatusCode::OK, "text/plain", None, pieces))
    }
    get(BYTES, |call| Box::pin(give(call)))
}

async fn open(tls: Arc<Tls>, header_timeout: Duration) -> Door {
    let config = crate::api::server::ServerConfig {
        tls: Some(tls),
        header_timeout,
        ..config(16)
    };
    Door::open_with(&routes(), config).await
}

pub(super) async fn connect(
    door: &Door,
    client: &TlsConnector,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(NAME).unwrap();
    client.connect(name, door.connect().await).await
}

fn ask() -> Request<Empty<Bytes>> {
    let request = Request::get("https://x/x").header("host", "x");
    request.body(Empty::new()).unwrap()
}

pub(super) const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS12, &version::TLS13];

#[tokio::test]
async fn each_version_and_protocol_that_is_promised_is_spoken() {
    let papers = Papers::new();
    let door = open(papers.tls(), PATIENCE).await;
    for one in [&version::TLS12, &version::TLS13] {
        for (offered, agreed) in [
            (&["h2", "http/1.1"][..], Some("h2")),
            (&["http/1.1", "h2"], Some("h2")),
            (&["http/1.1"], Some("http/1.1")),
            (&[], None),
        ] {
            let stream = connect(&door, &papers.client(&[one], offered))
                .await
                .unwrap();
            let (_, said) = stream.get_ref();
            assert_eq!(said.protocol_version(), Some(one.version));
            assert_eq!(said.alpn_protocol(), agreed.map(str::as_bytes));
            let io = TokioIo::new(stream);
            let answer = if agreed == Some("h2") {
                let (mut sender, connection) =
                    http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(connection);
                sender.send_request(ask()).await.unwrap()
            } else {
                let (mut sender, connection) = http1::handshake(io).await.unwrap();
                tokio::spawn(connection);
                sender.send_request(ask()).await.unwrap()
            };
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(whole(answer).await, "hello", "{offered:?}");
        }
    }
    // Another protocol alone is none.
    let refused = connect(&door, &papers.client(BOTH, &["spdy/3"])).await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("NoApplicationProtocol")
    );
    door.close().await;
}

/// A greeting of TLS 1.1 or 1.0 (RFC 4346 section 7.4.1.2), with the one suite that every server of its time had.
fn old_greeting(minor: u8) -> Vec<u8> {
    let mut hello = vec![3, minor];
    hello.extend([7; 32]);
    // No session, the suite TLS_RSA_WITH_AES_128_CBC_SHA, no compression.
    hello.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let length = u8::try_from(hello.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    record
}

#[tokio::test]
async fn older_versions_are_refused_by_an_alert() {
    let papers = Papers::new();
    let door = open(papers.tls(), PATIENCE).await;
    for minor in [1, 2] {
        let mut stream = door.connect().await;
        stream.write_all(&old_greeting(minor)).await.unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        // An alert, fatal: handshake_failure or protocol_version. Nothing was agreed on before.
        assert_eq!((said[0], said[5], said.len()), (21, 2, 7), "{said:?}");
        assert!([40, 70].contains(&said[6]), "{said:?}");
    }
    door.close().await;
}

#[tokio::test]
async fn the_one_certificate_is_shown_under_every_name() {
    let papers = Papers::new();
    let door = open(papers.tls(), PATIENCE).await;
    let client = papers.client(BOTH, &["h2"]);
    for (name, is_trusted) in [
        ("x", true),
        ("a.x.example", true),
        ("b.x.example", true),
        ("a.b.x.example", false),
        ("other.example", false),
        // Names nobody in its greeting.
        ("127.0.0.1", false),
    ] {
        let server = ServerName::try_from(name).unwrap();
        let shaken = client.connect(server, door.connect().await).await;
        match shaken {
            Ok(_) => assert!(is_trusted, "{name}"),
            // It is the client that refuses, because of what it was shown.
            Err(error) => {
                let told = error.to_string();
                assert!(
                    !is_trusted && told.contains("not valid for name"),
                    "{name}: {told}"
                );
            }
        }
    }
    door.close().await;
}

#[tokio::test]
async fn another_certificate_is_for_new_connections_and_a_broken_one_for_none() {
    let mut papers = Papers::new();
    let tls = papers.tls();
    let door = open(Arc::clone(&tls), PATIENCE).await;
    let old = papers.client(BOTH, &["http/1.1"]);
    let stream = connect(&door, &old).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let first = sender.send_request(ask()).await.unwrap();
    assert_eq!(whole(first).await, "hello");
    assert!(tls.renewed(now()).unwrap().is_none(), "it is the same");

    papers.renew();
    let read = tls.renewed(now()).unwrap().expect("it is another");
    tls.replace(read);
    let new = papers.client(BOTH, &["http/1.1"]);
    assert!(connect(&door, &new).await.is_ok());
    assert!(connect(&door, &old).await.is_err(), "it is gone");

    // The key of the one with the certificate of another, and so on.
    let directory = papers.directory.path();
    let key = fs::read(directory.join("key.pem")).unwrap();
    let der = papers.der.clone();
    write(directory);
    pem(directory, "certificate", "CERTIFICATE", &der);
    assert!(matches!(
        tls.renewed(now()).err(),
        Some(TlsError::Mismatched)
    ));
    fs::write(directory.join("key.pem"), "no key").unwrap();
    assert!(matches!(
        tls.renewed(now()).err(),
        Some(TlsError::Malformed { key: "key", .. })
    ));
    fs::write(directory.join("key.pem"), key).unwrap();
    assert!(tls.renewed(now()).is_ok_and(|read| read.is_none()));
    fs::set_permissions(directory.join("key.pem"), Permissions::from_mode(0o640)).unwrap();
    let exposed = tls.renewed(now()).err().unwrap();
    assert!(
        exposed.is_exposed() && exposed.to_string().contains("chmod 0600"),
        "{exposed}"
    );
    fs::set_permissions(directory.join("key.pem"), Permissions::from_mode(0o600)).unwrap();
    write_until(directory, 2020);
    assert!(matches!(tls.renewed(now()).err(), Some(TlsError::NotValid)));
    pem(directory, "certificate", "CERTIFICATE", b"no certificate");
    assert!(tls.renewed(now()).is_err());
    fs::write(directory.join("certificate.pem"), "").unwrap();
    assert!(tls.renewed(now()).is_err());
    assert!(Material::read(&papers.settings(), None).is_err());

    assert!(
        connect(&door, &new).await.is_ok(),
        "the one before is in force"
    );
    let second = sender.send_request(ask()).await.unwrap();
    assert_eq!(whole(second).await, "hello", "the old connection goes on");
    drop(sender);
    let _ = connection.await;
    door.close().await;
}

#[tokio::test]
async fn whoever_is_slow_to_begin_is_cut_wherever_it_stops() {
    let papers = Papers::new();
    let limit = Duration::from_millis(300);
    let door = open(papers.tls(), limit).await;
    let mut silent = door.connect().await;
    let mut half = door.connect().await;
    half.write_all(&[22, 3, 1, 0, 200, 1]).await.unwrap();
    let mut shaken = connect(&door, &papers.client(BOTH, &["h2"])).await.unwrap();
    let mut begun = connect(&door, &papers.client(BOTH, &["h2"])).await.unwrap();
    begun.write_all(b"PRI * HT").await.unwrap();
    let then = Instant::now();
    let ends = async {
        let mut said = Vec::new();
        let _ = silent.read_to_end(&mut said).await;
        assert!(said.is_empty());
        let _ = half.read_to_end(&mut said).await;
        assert!(said.is_empty());
        // Cut without a farewell, or closed: it ends in any case.
        let _ = shaken.read_to_end(&mut said).await;
        let _ = begun.read_to_end(&mut said).await;
    };
    timeout(PATIENCE, ends)
        .await
        .expect("somebody is still waited for");
    assert!(then.elapsed() < PATIENCE / 2);
    // The places are free again.
    assert!(connect(&door, &papers.client(BOTH, &["h2"])).await.is_ok());
    door.close().await;
}

#[tokio::test]
async fn a_socket_opens_over_tls_and_ends_with_a_farewell() {
    let papers = Papers::new();
    let config = crate::api::server::ServerConfig {
        tls: Some(papers.tls()),
        ..config(16)
    };
    let door = Door::open_with(&super::sockets::echoes(), config).await;
    let mut stream = connect(&door, &papers.client(BOTH, &["http/1.1"]))
        .await
        .unwrap();
    let head = "GET /x HTTP/1.1\r\nhost: x\r\norigin: https://x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // A text of two bytes and the end of it, masked with nothing (RFC 6455 section 5.2).
    stream
        .write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i'])
        .await
        .unwrap();
    let mut said = Vec::new();
    let echo = [0x81, 2, b'h', b'i'];
    while !said.ends_with(&echo) {
        let read = timeout(PATIENCE, stream.read_buf(&mut said)).await;
        assert_ne!(read.unwrap().unwrap(), 0, "{said:?}");
    }
    stream
        .write_all(&[0x88, 0x82, 0, 0, 0, 0, 3, 232])
        .await
        .unwrap();
    // Without a farewell this would be an error.
    let ended = timeout(PATIENCE, stream.read_to_end(&mut said))
        .await
        .unwrap();
    ended.unwrap();
    assert!(said.starts_with(b"HTTP/1.1 101 "));
    assert!(said.ends_with(&[0x88, 2, 3, 232]), "{said:?}");
    door.close().await;
}

#[tokio::test]
async fn http_in_the_clear_is_told_that_this_is_tls() {
    let papers = Papers::new();
    let door = open(papers.tls(), PATIENCE).await;
    for (sent, is_told) in [
        (
            &b"GET / HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\n\r\n"[..],
            true,
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true),
        (b"G", true),
        (b"\0\0\0", false),
        (b"hello", false),
    ] {
        let mut stream = door.connect().await;
        stream.write_all(sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut said = Vec::new();
        // Nobody waits to say nothing.
        let _ = stream.read_to_end(&mut said).await;
        let said = String::from_utf8(said).unwrap();
        assert_eq!(said.starts_with("HTTP/1.1 400 "), is_told, "{said}");
        assert_eq!(said.contains("tls_required"), is_told, "{said}");
        assert!(!said.contains("api-key"));
    }
    door.close().await;
}

#[tokio::test]
async fn a_whole_answer_ends_with_a_farewell_and_a_broken_one_without() {
    let papers = Papers::new();
    let door = open(papers.tls(), PATIENCE).await;
    let client = papers.client(BOTH, &["http/1.1"]);
    for (path, is_whole) in [("/x", true), ("/x?broken", false)] {
        let mut stream = connect(&door, &client).await.unwrap();
        // HTTP/1.0 has nothing but the end to tell where an answer ends.
        let request = format!("GET {path} HTTP/1.0\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut said = Vec::new();
        let ended = stream.read_to_end(&mut said).await;
        assert_eq!(ended.is_ok(), is_whole, "{path}: {ended:?}");
    }
    door.close().await;
}

impl Cut for tokio_rustls::server::TlsStream<tokio::io::DuplexStream> {
    fn cut(&self) {}
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_not_waited_for_beneath_tls_either() {
    let papers = Papers::new();
    let key = rustls::pki_types::PrivateKeyDer::try_from(
        STANDARD
            .decode(
                fs::read_to_string(papers.directory.path().join("key.pem"))
                    .unwrap()
                    .lines()
                    .nth(1)
                    .unwrap(),
            )
            .unwrap(),
    )
    .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![papers.der.clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    for is_closing in [false, true] {
        let (far, near) = duplex(4096);
        let client = papers.client(BOTH, &[]);
        let name = ServerName::try_from(NAME).unwrap();
        let (far, near) = tokio::join!(client.connect(name, far), acceptor.accept(near));
        // Held, and nothing is read of it.
        let _far = far.unwrap();
        let mut line = Line::new(near.unwrap(), Arc::<Parting>::default());
        let began = Instant::now();
        if is_closing {
            // It fits into what TLS holds, and not into the pipe.
            let written = line.write(&vec![0; 32 * 1024]).await.unwrap();
            assert!(written > 4096);
            let error = line.shutdown().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        } else {
            let error = line.write_all(&vec![0; 1 << 20]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            // No farewell, and no wait for one.
            line.shutdown().await.unwrap();
        }
        let waited = began.elapsed();
        assert!(
            waited >= WRITE_DEADLINE && waited < WRITE_DEADLINE * 2,
            "{waited:?}"
        );
    }
}
