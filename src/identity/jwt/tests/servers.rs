//! Keys from servers: good ones, bad ones, and those that change their mind.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;

/// What a server says to whoever asks; `None`: nothing, and it keeps the connection.
type Answer = Option<Vec<u8>>;

struct Server {
    port: u16,
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<Answer>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    assert!(head.starts_with(b"GET /keys HTTP/1.1\r\n"));
    asked.fetch_add(1, Ordering::SeqCst);
    let answer = answer.lock().unwrap().clone();
    match answer {
        Some(answer) => {
            // Whoever has enough hangs up.
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
        None => std::future::pending().await,
    }
}

impl Server {
    async fn start(answer: Answer, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let answer = Arc::new(Mutex::new(answer));
        let (counter, said) = (Arc::clone(&asked), Arc::clone(&answer));
        let serving = tokio::spawn(async move {
            let mut talks = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (said, counter, tls) = (Arc::clone(&said), Arc::clone(&counter), tls.clone());
                talks.spawn(async move {
                    match tls {
                        None => talk(stream, said, counter).await,
                        Some(tls) => {
                            if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                                talk(stream, said, counter).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            port,
            asked,
            answer,
            serving,
        }
    }

    fn say(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn issuer(&self) -> Issuer {
        let url = format!("http://127.0.0.1:{}/keys", self.port);
        public("public", KeySource::JwksUrl { url, ca_file: None })
    }
}

#[expect(clippy::unnecessary_wraps, reason = "no answer is one too")]
fn answer(head: &str, body: impl AsRef<[u8]>) -> Answer {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n", body.len());
    Some([head.as_bytes(), body].concat())
}

fn json(body: &str) -> Answer {
    answer(
        "200 OK\r\ncontent-type: application/json; charset=utf-8",
        body,
    )
}

/// The keys of these numbers, which are their names too.
fn keys(seeds: &[u8]) -> Answer {
    let keys: Vec<_> = seeds
        .iter()
        .map(|seed| jwk(&ed25519(*seed), &seed.to_string()))
        .collect();
    json(&set(&keys))
}

fn by(seed: u8) -> String {
    token_by(seed, &seed.to_string(), "public")
}

/// A server with these keys, and whoever trusts it.
async fn scene(answer: Answer) -> (Server, Tokens) {
    let server = Server::start(answer, None).await;
    let tokens = trusting(vec![server.issuer()]).await;
    tokens.tasks.close();
    (server, tokens)
}

impl Tokens {
    /// Whether a token is taken so many seconds later.
    async fn says(&self, token: &str, seconds: i64) -> Result<(), Refused> {
        // Short of the tokens' own end.
        self.authenticate(token, after(seconds)).await.map(drop)
    }
}

/// A token that ends long after everything here.
fn lasting(seed: u8) -> String {
    let draft = mint::Draft::public("EdDSA", &seed.to_string(), mint::By::Bytes(Vec::new()));
    let draft = draft.claim("exp", (NOW_S + 10_000_000).into());
    let unsigned = draft.token();
    let message = unsigned.trim_end_matches('.');
    format!(
        "{message}.{}",
        mint::encode(ed25519(seed).sign(message.as_bytes()))
    )
}

#[tokio::test]
async fn a_new_key_is_asked_for_once_in_an_interval() {
    let (server, tokens) = scene(keys(&[1])).await;
    assert_eq!(tokens.says(&by(1), 0).await, Ok(()));
    assert_eq!(server.asked(), 1);
    server.say(keys(&[2]));
    // A flood of names that nobody knows asks for nothing.
    for seed in 2..100 {
        assert_eq!(tokens.says(&by(seed), 29).await, Err(Refused::UnknownKey));
    }
    assert_eq!(server.asked(), 1);
    assert_eq!(tokens.says(&by(2), 30).await, Ok(()));
    assert_eq!(server.asked(), 2);
    // What the server has no more is good no more, known or not.
    assert_eq!(tokens.says(&by(1), 30).await, Err(Refused::UnknownKey));
    for seed in 3..100 {
        assert_eq!(tokens.says(&by(seed), 59).await, Err(Refused::UnknownKey));
    }
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn whoever_is_known_never_waits_and_everybody_else_waits_for_one_answer() {
    let (server, tokens) = scene(keys(&[1])).await;
    assert_eq!(tokens.says(&by(1), 0).await, Ok(()));
    server.say(None);
    let unknown: Vec<String> = (2..22).map(by).collect();
    let waiting =
        futures_util::future::join_all(unknown.iter().map(|token| tokens.says(token, 60)));
    let mut waiting = std::pin::pin!(waiting);
    // Until the server was asked, and does not answer.
    while server.asked() < 2 {
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("they did not wait"),
            () = tokio::task::yield_now() => {}
        }
    }
    let another = by(1);
    let known = tokens.says(&another, 60);
    assert_eq!(futures_util::FutureExt::now_or_never(known), Some(Ok(())));
    assert_eq!(server.asked(), 2);
    // The server's end is the end of the waiting.
    server.serving.abort();
    for said in waiting.await {
        assert_eq!(said, Err(Refused::UnknownKey));
    }
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn old_keys_are_asked_for_anew_and_hold_for_a_while_when_they_cannot_be_had() {
    let (server, tokens) = scene(keys(&[1])).await;
    let (first, second) = (lasting(1), lasting(2));
    tokens.refresh(now());
    tokens.tasks.wait().await;
    assert_eq!(server.asked(), 1);
    assert_eq!(tokens.says(&first, 0).await, Ok(()));
    for seconds in [1, 30, 599] {
        tokens.refresh(after(seconds));
    }
    tokens.tasks.wait().await;
    assert_eq!(server.asked(), 1, "they are not old");
    server.say(answer("500 Broken", ""));
    tokens.refresh(after(600));
    tokens.refresh(after(601));
    tokens.tasks.wait().await;
    assert_eq!(server.asked(), 2);
    tokens.refresh(after(629));
    tokens.tasks.wait().await;
    assert_eq!(server.asked(), 2, "nor too often");
    tokens.refresh(after(630));
    tokens.tasks.wait().await;
    assert_eq!(server.asked(), 3);
    let day = 24 * 3600;
    for seconds in [631, 7200, day] {
        assert_eq!(tokens.says(&first, seconds).await, Ok(()), "{seconds}");
        tokens.tasks.wait().await;
    }
    // Also for a token that is known.
    assert_eq!(tokens.says(&first, day + 1).await, Err(Refused::NoKeys));
    server.say(keys(&[2]));
    assert_eq!(tokens.says(&second, day + 31).await, Ok(()));
    assert_eq!(
        tokens.says(&first, day + 31).await,
        Err(Refused::UnknownKey)
    );
}

#[tokio::test]
async fn a_clock_that_is_set_back_stops_nothing() {
    let (server, tokens) = scene(keys(&[1])).await;
    assert_eq!(tokens.says(&lasting(1), 1_000_000).await, Ok(()));
    server.say(keys(&[1, 2]));
    assert_eq!(tokens.says(&by(2), 0).await, Ok(()));
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn what_is_no_set_of_keys_is_none() {
    let good = set(&[jwk(&ed25519(1), "1")]);
    let typed = |head: &str| answer(head, &good);
    let padded = |bytes: usize| format!("{good}{}", " ".repeat(bytes - good.len()));
    let chunked = {
        let piece = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        Some([head, &piece.repeat(5), "0\r\n\r\n"].concat().into_bytes())
    };
    let private = good.replacen("\"kty\"", "\"d\":\"AAAA\",\"kty\"", 1);
    let rows = [
        ("nothing at all", Some(Vec::new())),
        ("no HTTP", Some(b"220 mail.example.com ready\r\n".to_vec())),
        ("a redirect", answer("302 Found\r\nlocation: /keys2\r\ncontent-type: application/json", &good)),
        ("a redirect for ever", answer("308 Moved\r\nlocation: https://evil.example.com/\r\ncontent-type: application/json", &good)),
        ("not found", typed("404 Not Found\r\ncontent-type: application/json")),
        ("broken", typed("500 Broken\r\ncontent-type: application/json")),
        ("created", typed("201 Created\r\ncontent-type: application/json")),
        ("a part", typed("206 Partial Content\r\ncontent-type: application/json")),
        ("a page", answer("200 OK\r\ncontent-type: text/html", "<html></html>")),
        ("keys that call themselves a page", typed("200 OK\r\ncontent-type: text/html")),
        ("keys that call themselves nothing", typed("200 OK")),
        ("keys that are packed", typed("200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip")),
        ("too long", json(&padded((256 << 10) + 1))),
        ("too long, and nobody says so before", chunked),
        ("no JSON", json("keys")),
        ("JSON that is cut short", json(&good[..good.len() - 1])),
        ("JSON that ends before it said", Some(format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n{good}").into_bytes())),
        ("a list", json("[]")),
        ("an error in JSON", json("{\"error\":\"nope\"}")),
        ("no keys", json("{\"keys\":[]}")),
        ("doubled names", json(&good.replacen('{', "{\"keys\":[],", 1))),
        ("a private key", json(&private)),
        ("heads without end", Some(format!("HTTP/1.1 200 OK\r\n{}", "x: y\r\n".repeat(100_000)).into_bytes())),
    ];
    for (name, said) in rows {
        let (server, tokens) = scene(said.clone()).await;
        assert_eq!(tokens.says(&by(1), 0).await, Err(Refused::NoKeys), "{name}");
        assert_eq!(server.asked(), 1, "{name}");
        assert_eq!(
            tokens.says(&by(1), 29).await,
            Err(Refused::NoKeys),
            "{name}"
        );
        server.say(keys(&[1]));
        assert_eq!(tokens.says(&by(1), 30).await, Ok(()), "{name}");
        assert_eq!(server.asked(), 2, "{name}: it is asked once in an interval");
        // It takes nothing away from who has keys, either.
        server.say(said);
        tokens.refresh(after(630));
        tokens.tasks.wait().await;
        assert_eq!(server.asked(), 3, "{name}");
        assert_eq!(tokens.says(&lasting(1), 630).await, Ok(()), "{name}");
    }
    let (_server, tokens) = scene(json(&padded(256 << 10))).await;
    assert_eq!(tokens.says(&by(1), 0).await, Ok(()), "as long as it may be");
}

/// The time stands still and jumps to the next deadline when there is nothing else to do.
#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_is_given_up() {
    let (_server, tokens) = scene(None).await;
    let began = tokio::time::Instant::now();
    assert_eq!(tokens.says(&by(1), 0).await, Err(Refused::NoKeys));
    assert_eq!(began.elapsed().as_secs(), 5);
    tokens.tasks.wait().await;
}

#[tokio::test]
async fn a_port_where_nobody_is_gives_no_keys() {
    let (server, tokens) = scene(keys(&[1])).await;
    server.serving.abort();
    while !server.serving.is_finished() {
        tokio::task::yield_now().await;
    }
    assert_eq!(tokens.says(&by(1), 0).await, Err(Refused::NoKeys));
}

#[tokio::test]
async fn who_is_trusted_anew_with_the_same_keys_has_them_at_once() {
    let (server, tokens) = scene(keys(&[1])).await;
    assert_eq!(tokens.says(&by(1), 0).await, Ok(()));
    server.say(answer("500 Broken", ""));
    let issuer = Issuer {
        leeway: Duration::from_secs(1),
        ..server.issuer()
    };
    let trusted = tokens.prepare(vec![issuer.clone()], now()).await.unwrap();
    tokens.trust(trusted);
    assert_eq!(tokens.says(&by(1), 0).await, Ok(()));
    assert_eq!(server.asked(), 1);
    // The new leeway holds.
    assert_eq!(tokens.says(&by(1), 302).await, Err(Refused::Expired));
    let other = Issuer {
        keys: KeySource::JwksUrl {
            url: format!("http://127.0.0.1:{}/keys?", server.port),
            ca_file: None,
        },
        ..issuer
    };
    tokens.trust(tokens.prepare(vec![other], now()).await.unwrap());
    assert_eq!(
        tokens.says(&by(1), 0).await,
        Err(Refused::NoKeys),
        "other keys are asked for"
    );
}

#[tokio::test]
async fn keys_are_kept_fresh_until_it_is_told_to_stop() {
    let (server, tokens) = scene(keys(&[1])).await;
    let clock = Arc::new(crate::base::clock::ManualClock::at(now().as_millis()));
    let stop = CancellationToken::new();
    let mut keeping = std::pin::pin!(tokens.keep(clock, stop.clone()));
    while server.asked() < 1 {
        tokio::select! {
            biased;
            () = &mut keeping => panic!("it ended"),
            () = tokio::task::yield_now() => {}
        }
    }
    stop.cancel();
    keeping.await;
    tokens.tasks.wait().await;
    assert_eq!(tokens.says(&by(1), 0).await, Ok(()));
    assert_eq!(server.asked(), 1);
}

/// A certificate authority of our own.
fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn certified(
    authority: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> Arc<ServerConfig> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    change(&mut params);
    let certificate = params.signed_by(&key, authority).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(certificate.der().to_vec())],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        );
    Arc::new(config.unwrap())
}

fn pem(path: &Path, authority: &CertifiedIssuer<'static, KeyPair>) {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(authority.der());
    let text = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    write(path, text.as_bytes(), 0o644);
}

#[tokio::test]
async fn a_server_is_believed_for_its_certificate_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, other) = (authority(), authority());
    let (ca_file, other_file) = (
        directory.path().join("ca.pem"),
        directory.path().join("other.pem"),
    );
    pem(&ca_file, &ours);
    pem(&other_file, &other);
    let empty = directory.path().join("empty.pem");
    write(&empty, b"", 0o644);
    let good = || certified(&ours, "127.0.0.1", |_| {});
    let past = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let cases = [
        ("ours", Some(good()), Some(ca_file.clone()), Ok(())),
        (
            "of nobody whom the system knows",
            Some(good()),
            None,
            Err(Refused::NoKeys),
        ),
        (
            "of another authority",
            Some(good()),
            Some(other_file.clone()),
            Err(Refused::NoKeys),
        ),
        (
            "of no authority",
            Some(good()),
            Some(empty),
            Err(Refused::NoKeys),
        ),
        (
            "with no file of authorities",
            Some(good()),
            Some(directory.path().join("none")),
            Err(Refused::NoKeys),
        ),
        (
            "for another address",
            Some(certified(&ours, "127.0.0.2", |_| {})),
            Some(ca_file.clone()),
            Err(Refused::NoKeys),
        ),
        (
            "for a name",
            Some(certified(&ours, "localhost", |_| {})),
            Some(ca_file.clone()),
            Err(Refused::NoKeys),
        ),
        (
            "of the past",
            Some(certified(&ours, "127.0.0.1", past)),
            Some(ca_file.clone()),
            Err(Refused::NoKeys),
        ),
        (
            "without TLS",
            None,
            Some(ca_file.clone()),
            Err(Refused::NoKeys),
        ),
    ];
    for (name, tls, ca_file, expected) in cases {
        let server = Server::start(keys(&[1]), tls).await;
        let url = format!("https://127.0.0.1:{}/keys", server.port);
        let tokens = trusting(vec![public("public", KeySource::JwksUrl { url, ca_file })]).await;
        assert_eq!(tokens.says(&by(1), 0).await, expected, "{name}");
    }
}
