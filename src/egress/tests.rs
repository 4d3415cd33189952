//! The way out as a sandbox sees it: rules of the test's own, servers on loopback, and a resolver that says what it is told.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::hello::tests::client_hello;
use super::resolve::{Resolve, Resolving};
use super::{End, Gate, Settings, Warden};
use crate::model::egress::EgressRules;
use crate::model::host::{Host, HostName};
use crate::policy::egress::{Asked, Bounds, EgressDecision, Whose};

const PATIENCE: Duration = Duration::from_secs(20);

/// What was recorded, in order.
type Told = watch::Sender<Vec<String>>;

struct TestWarden {
    rules: EgressRules,
    settings: Settings,
    told: Told,
    is_full: bool,
}

impl TestWarden {
    fn bounds(&self) -> Bounds<'_> {
        let whose = Whose::Template { is_operators: true };
        Bounds(vec![(whose, Cow::Borrowed(&self.rules))])
    }

    fn tell(&self, line: String) {
        self.told.send_modify(|told| told.push(line));
    }
}

impl Warden for TestWarden {
    type Record = String;

    fn settings(&self) -> Settings {
        self.settings.clone()
    }

    fn decide(&self, asked: &Asked<'_>) -> EgressDecision {
        self.bounds().decide(asked)
    }

    fn decide_address(&self, asked: &Asked<'_>, address: IpAddr, is_own: bool) -> EgressDecision {
        self.bounds().decide_address(asked, address, is_own)
    }

    async fn begin(&self, asked: &Asked<'_>, rule: &str) -> Option<String> {
        let what = format!("{}://{}", asked.scheme, asked.host);
        self.tell(format!("{what} by {rule}"));
        (!self.is_full).then_some(what)
    }

    async fn finish(&self, record: String, end: End) {
        let failure = end.failure.unwrap_or("ok");
        let some = |bytes| if bytes > 0 { "some" } else { "none" };
        let (sent, received) = (some(end.sent_bytes), some(end.received_bytes));
        self.tell(format!(
            "{record} {failure} sent {sent} received {received}"
        ));
    }

    fn denied(&self, host: Option<&Host>, _: u16, rule: &str) {
        let host = host.map_or_else(|| "?".to_owned(), ToString::to_string);
        self.tell(format!("denied {host} by {rule}"));
    }
}

/// Says of each name what the test says, the next answer each time.
#[derive(Default)]
struct Names {
    answers: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    asked: Mutex<Vec<String>>,
}

impl Resolve for Names {
    fn resolve<'a>(&'a self, name: &'a HostName) -> Resolving<'a> {
        self.asked.lock().unwrap().push(name.to_string());
        let mut answers = self.answers.lock().unwrap();
        let answer = answers.get_mut(name.as_str()).map(|all| {
            if all.len() > 1 {
                all.remove(0)
            } else {
                all[0].clone()
            }
        });
        Box::pin(async move { Ok(answer.unwrap_or_default()) })
    }

    fn is_own(&self, _: IpAddr) -> bool {
        false
    }
}

/// A sandbox's way out.
struct Bench {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    names: Arc<Names>,
    told: watch::Receiver<Vec<String>>,
    gate: Gate,
}

impl Bench {
    /// With these rules; each name that ends with `.test` is at 127.0.0.1.
    fn new(rules: &str) -> Self {
        Self::with(rules, Settings::default(), false)
    }

    fn with(rules: &str, settings: Settings, is_full: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("egress.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let rules: EgressRules = serde_json::from_str(rules).unwrap();
        assert_eq!(crate::model::egress::problems_of(&rules), []);
        let names = Arc::new(Names::default());
        let (told_in, told) = watch::channel(Vec::new());
        let warden = TestWarden {
            rules,
            settings,
            told: told_in,
            is_full,
        };
        let gate = Gate::open(listener, warden, Arc::clone(&names) as Arc<dyn Resolve>);
        let bench = Self {
            _directory: directory,
            socket,
            names,
            told,
            gate,
        };
        bench.name("server.test", &[&["127.0.0.1"]]);
        bench
    }

    fn name(&self, name: &str, answers: &[&[&str]]) {
        let answers = answers
            .iter()
            .map(|answer| answer.iter().map(|one| one.parse().unwrap()).collect())
            .collect();
        self.names
            .answers
            .lock()
            .unwrap()
            .insert(name.to_owned(), answers);
    }

    async fn dial(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// Says bytes; all that is answered until the end.
    async fn say(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.dial().await;
        let _ = stream.write_all(bytes.as_ref()).await;
        all(&mut stream).await
    }

    /// All that was recorded and noted once there is this line.
    async fn told(&self, line: &str) -> Vec<String> {
        let mut told = self.told.clone();
        let waiting = told.wait_for(|told| told.iter().any(|one| one == line));
        let Ok(told) = timeout(PATIENCE, waiting).await else {
            panic!("{line:?} is not in {:?}", self.told.borrow());
        };
        told.unwrap().clone()
    }
}

async fn all<S: AsyncRead + Unpin>(stream: &mut S) -> String {
    let mut all = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut all))
        .await
        .expect("no end comes");
    String::from_utf8_lossy(&all).into_owned()
}

/// A server that takes connections one after the other, says `answer` to each when it has heard an end of head, and tells what
/// it heard.
async fn server(answer: &'static str) -> (u16, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heard, hearing) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let heard = heard.clone();
            tokio::spawn(async move {
                let mut text = String::new();
                let mut piece = [0; 1024];
                while !text.contains("\r\n\r\n") {
                    match stream.read(&mut piece).await {
                        Ok(count @ 1..) => text.push_str(&String::from_utf8_lossy(&piece[..count])),
                        _ => break,
                    }
                }
                let _ = heard.send(text).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (port, hearing)
}

/// A server that gives back what it hears.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    port
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\nKeep-Alive: x\r\nX-Own: 1\r\n\r\nok";

/// A rule for the servers of a test, and one more that names their address.
fn rules(port: u16, schemes: &str) -> String {
    format!(
        r#"{{"servers":{{"hosts":["*.test","127.0.0.1"],"ports":[{port}],"schemes":[{schemes}],"networks":["127.0.0.0/8"]}}}}"#
    )
}

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

/// Asks for a tunnel, and gives it when there is one.
async fn connected(bench: &Bench, target: &str) -> UnixStream {
    let mut stream = bench.dial().await;
    stream
        .write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(
            timeout(PATIENCE, stream.read_u8())
                .await
                .expect("no answer")
                .expect("an end"),
        );
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    stream
}

async fn answered<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).await.unwrap();
    let mut back = vec![0; bytes.len()];
    timeout(PATIENCE, stream.read_exact(&mut back))
        .await
        .expect("no answer")
        .expect("an end");
    back
}

#[tokio::test]
async fn tls_passes_unread_when_it_names_the_host_and_is_cut_when_it_names_another() {
    let port = echo().await;
    let bench = Bench::new(&rules(port, r#""https""#));
    let target = format!("server.test:{port}");
    let mut tunnel = connected(&bench, &target).await;
    for hello in [
        client_hello("Server.TEST"),
        b"and whatever follows".to_vec(),
    ] {
        assert_eq!(answered(&mut tunnel, &hello).await, hello);
    }
    tunnel.shutdown().await.unwrap();
    assert_eq!(all(&mut tunnel).await, "");
    let told = bench
        .told("https://server.test ok sent some received some")
        .await;
    assert_eq!(told.len(), 2, "{told:?}");

    for bad in [
        client_hello("evil.test"),
        client_hello("server.test\0"),
        client_hello("server.test.evil.org"),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![22, 3, 1, 0, 0],
    ] {
        let mut tunnel = connected(&bench, &target).await;
        tunnel.write_all(&bad).await.unwrap();
        assert_eq!(all(&mut tunnel).await, "", "something came back");
    }
    let told = bench.told("denied server.test by tunnels-are-tls").await;
    let cut = "https://server.test denied sent none received none".to_owned();
    assert!(
        told.contains(&"denied server.test by tls-names-the-host".to_owned())
            && told.contains(&cut),
        "{told:?}"
    );
}

#[tokio::test]
async fn any_bytes_pass_where_a_rule_says_tcp_and_the_server_may_speak_first() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let bench = Bench::new(&rules(port, r#""tcp""#));
    let mut tunnel = connected(&bench, &format!("server.test:{port}")).await;
    let (mut server, _) = listener.accept().await.unwrap();
    server.write_all(b"SSH-2.0").await.unwrap();
    let mut first = [0; 7];
    tunnel.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"SSH-2.0");
    tunnel.write_all(b"hello").await.unwrap();
    let mut hello = [0; 5];
    server.read_exact(&mut hello).await.unwrap();
    drop(server);
    all(&mut tunnel).await;
    // TLS in it still names the host.
    let mut tunnel = connected(&bench, &format!("server.test:{port}")).await;
    tunnel.write_all(&client_hello("evil.test")).await.unwrap();
    all(&mut tunnel).await;
    bench.told("denied server.test by tls-names-the-host").await;
}

async fn socks(bench: &Bench, request: &[u8]) -> (UnixStream, Vec<u8>) {
    let mut stream = bench.dial().await;
    stream.write_all(&[5, 2, 2, 0]).await.unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).await.unwrap();
    assert_eq!(method, [5, 0]);
    stream.write_all(request).await.unwrap();
    let mut reply = vec![0; 10];
    timeout(PATIENCE, stream.read_exact(&mut reply))
        .await
        .expect("no reply")
        .expect("an end");
    (stream, reply)
}

fn socks_name(name: &[u8], port: u16) -> Vec<u8> {
    [
        &[5, 1, 0, 3, u8::try_from(name.len()).unwrap()][..],
        name,
        &port.to_be_bytes(),
    ]
    .concat()
}

#[tokio::test]
async fn socks_goes_the_same_way() {
    let port = echo().await;
    let bench = Bench::new(&rules(port, r#""tcp""#));
    let (mut stream, reply) = socks(&bench, &socks_name(b"server.test", port)).await;
    assert_eq!(reply[..2], [5, 0]);
    assert_eq!(answered(&mut stream, b"hi").await, b"hi");
    drop(stream);
    bench
        .told("tcp://server.test ok sent some received some")
        .await;
    for (request, code) in [
        (socks_name(b"evil.org", port), 2),
        (socks_name(b"server.test\0.evil.org", port), 2),
        (socks_name(b"x@server.test", port), 2),
        (socks_name(b"0x7f.1", port), 2),
        (vec![5, 1, 0, 1, 169, 254, 169, 254, 0, 80], 2),
        (vec![5, 2, 0, 1, 127, 0, 0, 1, 0, 80], 7),
        (vec![5, 1, 0, 9, 0, 0, 0, 0, 0, 0], 8),
        (socks_name(b"nobody.test", port), 4),
    ] {
        let (mut stream, reply) = socks(&bench, &request).await;
        assert_eq!(reply[..2], [5, code], "{request:?}");
        assert_eq!(all(&mut stream).await, "");
    }
    let told = bench.told("denied ? by hosts-have-one-spelling").await;
    assert!(
        told.contains(&"denied 169.254.169.254 by nothing-allows".to_owned()),
        "{told:?}"
    );
    // Whoever insists on a password gets none of this.
    let mut stream = bench.dial().await;
    stream.write_all(&[5, 1, 2]).await.unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).await.unwrap();
    assert_eq!(method, [5, 0xff]);
}

#[tokio::test]
async fn so_many_at_once_so_often_and_so_much() {
    let port = echo().await;
    let tcp = rules(port, r#""tcp""#);
    let target = format!("server.test:{port}");
    let few = Settings {
        connections: 2,
        ..Settings::default()
    };
    let bench = Bench::with(&tcp, few, false);
    let held = (
        connected(&bench, &target).await,
        connected(&bench, &target).await,
    );
    assert_eq!(
        bench.say("CONNECT x:1 HTTP/1.1\r\n\r\n").await,
        "",
        "one too many was let through"
    );
    bench.told("denied ? by egress-bounds").await;
    drop(held);
    bench
        .told("tcp://server.test ok sent none received none")
        .await;

    let seldom = Settings {
        requests_per_s: 1,
        burst: 2,
        ..Settings::default()
    };
    let bench = Bench::with("{}", seldom, false);
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let answer = bench
            .say("GET http://a.org/ HTTP/1.1\r\nHost: a.org\r\n\r\n")
            .await;
        statuses.push(answer[9..12].to_owned());
    }
    assert_eq!(statuses, ["403", "403", "429"]);
    bench.told("denied a.org by egress-bounds").await;

    let little = Settings {
        max_bytes: 1000,
        ..Settings::default()
    };
    let bench = Bench::with(&tcp, little, false);
    let mut tunnel = connected(&bench, &target).await;
    // What comes back of the first counts as well, so that nothing more goes out.
    assert_eq!(answered(&mut tunnel, &[b'x'; 600]).await, [b'x'; 600]);
    let _ = tunnel.write_all(b"x").await;
    assert_eq!(all(&mut tunnel).await, "");
    bench
        .told("tcp://server.test too_much sent some received some")
        .await;
    let answer = bench
        .say(format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
}

#[tokio::test]
async fn nobody_is_waited_for_for_ever() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let hasty = Settings {
        idle_timeout: Duration::from_millis(200),
        ..Settings::default()
    };
    let bench = Bench::with(&rules(port, r#""http","tcp""#), hasty, false);
    // An upstream that never answers, and a tunnel in which nobody says anything.
    let answer = bench
        .say(format!(
            "GET http://server.test:{port}/ HTTP/1.1\r\nHost: server.test:{port}\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    bench
        .told("http://server.test idle sent some received none")
        .await;
    let mut tunnel = connected(&bench, &format!("server.test:{port}")).await;
    assert_eq!(all(&mut tunnel).await, "");
    bench
        .told("tcp://server.test idle sent none received none")
        .await;
}

#[tokio::test]
async fn a_gate_that_is_shut_cuts_everything_and_records_it() {
    let port = echo().await;
    let bench = Bench::new(&rules(port, r#""tcp""#));
    let mut tunnel = connected(&bench, &format!("server.test:{port}")).await;
    answered(&mut tunnel, b"hi").await;
    bench.told("tcp://server.test by servers").await;
    let Bench {
        gate,
        mut told,
        socket,
        _directory,
        ..
    } = bench;
    timeout(PATIENCE, gate.close())
        .await
        .expect("it does not close");
    assert_eq!(all(&mut tunnel).await, "");
    let cut = "tcp://server.test cut sent some received some".to_owned();
    assert!(
        told.borrow_and_update().contains(&cut),
        "{:?}",
        told.borrow()
    );
    assert!(UnixStream::connect(&socket).await.is_err());
}

#[tokio::test]
async fn bytes_are_not_gathered_for_whoever_does_not_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let bench = Bench::new(&rules(port, r#""tcp""#));
    let tunnel = connected(&bench, &format!("server.test:{port}")).await;
    let (server, _) = listener.accept().await.unwrap();
    let written = pour(server).await;
    assert!(written < 64 << 20, "{written} bytes went into nowhere");
    drop(tunnel);
}

/// Writes until nobody takes any more for a while; how much was taken.
async fn pour(mut server: TcpStream) -> usize {
    let piece = vec![0; 256 << 10];
    let mut written = 0;
    while let Ok(Ok(count)) = timeout(Duration::from_secs(1), server.write(&piece)).await {
        written += count;
        if written > 64 << 20 {
            break;
        }
    }
    written
}
