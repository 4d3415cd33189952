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
use super::{End, Gate, Opener, Settings, Warden};
use crate::model::credential::CredentialValue;
use crate::model::egress::EgressRules;
use crate::model::host::{Host, HostName};
use crate::model::inject::Injection;
use crate::model::name::Name;
use crate::policy::egress::{Asked, Bounds, EgressDecision, Whose};

mod bounds;
mod injected;
mod requests;
mod tunnels;

const PATIENCE: Duration = Duration::from_secs(20);

/// What was recorded, in order.
type Told = watch::Sender<Vec<String>>;

struct TestWarden {
    rules: EgressRules,
    settings: Settings,
    told: Told,
    is_full: bool,
    trust: Trust,
}

/// What there is for requests that get something added.
#[derive(Default)]
struct Trust {
    /// Whether the sandbox trusts us.
    is_mutual: bool,
    opener: Option<Arc<Opener>>,
    credentials: HashMap<String, String>,
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

    fn injections(&self, asked: &Asked<'_>) -> Vec<(Name, Injection)> {
        let bounds = self.bounds();
        let added = bounds.injections(asked).into_iter();
        added.map(|(name, it)| (name.clone(), it.clone())).collect()
    }

    fn opens(&self, host: &Host, port: u16) -> bool {
        self.trust.is_mutual && self.bounds().reads_tls(host, port)
    }

    fn opener(&self) -> Option<Arc<Opener>> {
        self.trust.opener.clone()
    }

    async fn lend(&self, credential: &Name) -> Result<CredentialValue, String> {
        self.tell(format!("lend {credential}"));
        let found = self.trust.credentials.get(credential.as_str());
        let found = found.ok_or_else(|| "does not exist".to_owned())?;
        Ok(CredentialValue::new(found.clone().into_bytes()).unwrap())
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
        Self::trusting(rules, settings, is_full, Trust::default())
    }

    fn trusting(rules: &str, settings: Settings, is_full: bool, trust: Trust) -> Self {
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
            trust,
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
