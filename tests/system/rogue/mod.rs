//! A guest that was taken over (`tests/rogue`): it knows its sandbox's token and says on the link whatever it likes. Each
//! attack ends in a bounded, named error for the one who asked, and other sessions do not feel it.

mod channels;
mod dial;
mod files;
mod http2;
mod lists;
mod programs;
mod silence;
mod snapshot;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::support::{Answer, Client, Daemon, PATIENCE, bench, wait_for, wait_until};

/// What the daemon's memory may have grown by when an attack is over. Its allocator keeps what was used once.
const GROWTH_KB: u64 = 64 * 1024;

/// What an honest session's program may take while another session's guest does its worst, on a machine with two
/// processors that runs other tests beside it.
const HONEST: Duration = Duration::from_secs(10);

/// What an attack without a silence in it may take.
const SOON: Duration = Duration::from_secs(20);

/// What is asked of a rogue's session.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Run,
    Stat,
    List(u32),
    Read,
    ReadPart,
    Write,
    /// Of more bytes than go over the link itself.
    WriteMuch,
    Mkdir,
    Remove,
    Watch,
    Archive,
    Processes,
    Start,
    Output,
    Input,
    Signal,
    Usage,
    Ports,
    Snapshot,
}

use Ask::{
    Archive, Input, List, Mkdir, Output, Ports, Processes, Read, ReadPart, Remove, Run, Signal,
    Snapshot, Start, Stat, Usage, Watch, Write, WriteMuch,
};

/// What becomes of it.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It is answered; what the guest said was within its bounds.
    Fine,
    /// 502 `guest_gone`.
    Gone,
    /// A problem of this status and code.
    Problem(u16, &'static str),
    /// Any of these: the daemon cannot tell a lie that comes at the right moment.
    Told,
    /// It began well and is cut off.
    Cut,
}

use Fate::{Cut, Fine, Gone, Problem, Told};

/// What is asked, what the guest says to that, and what becomes of it.
type Attack = (Ask, Vec<String>, Fate);

/// A daemon with an honest session that works all the time, and the guest's place on the host.
struct House {
    daemon: Daemon,
    guest: PathBuf,
    honest: String,
    stop: Arc<AtomicBool>,
    work: Option<JoinHandle<(u32, Duration)>>,
    before: (u64, usize),
}

impl House {
    async fn new() -> Self {
        let guest = bench().dir.join(format!(
            "guest.{}",
            tempfile::Builder::new()
                .tempdir()
                .unwrap()
                .path()
                .file_name()
                .unwrap()
                .display()
        ));
        std::fs::copy(&bench().guest, &guest).unwrap();
        let daemon = Daemon::up_with(&[("podman.guest", json!(guest))]).await;
        let honest = daemon.client.session(json!({})).await;
        let stop = Arc::new(AtomicBool::new(false));
        let mut house = Self {
            guest,
            honest,
            stop,
            work: None,
            before: (0, 0),
            daemon,
        };
        house.becomes(&bench().rogue.clone());
        house.work = Some(tokio::spawn(work(
            house.daemon.client.clone(),
            house.honest.clone(),
            Arc::clone(&house.stop),
        )));
        house
    }

    /// Sandboxes that are made from now on have this guest.
    fn becomes(&self, guest: &PathBuf) {
        let new = self.guest.with_extension("new");
        std::fs::copy(guest, &new).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &self.guest).unwrap();
    }

    async fn rogue(&self) -> Rogue {
        let id = self.daemon.client.session(json!({})).await;
        let client = self.daemon.client.clone();
        Rogue { client, id }
    }

    /// Remembers what the daemon holds.
    fn look(&mut self) {
        self.before = (self.memory_kb("VmRSS"), self.files());
    }

    fn memory_kb(&self, which: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.daemon.pid()));
        let status = status.unwrap();
        let line = status.lines().find(|line| line.starts_with(which)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn files(&self) -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.daemon.pid()));
        files.unwrap().count()
    }

    /// Makes sure that nobody was hurt and nothing is held any more.
    async fn unharmed(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let (runs, slowest) = self
            .work
            .take()
            .unwrap()
            .await
            .expect("an honest session was hurt");
        assert!(runs > 0);
        assert!(slowest < HONEST, "an honest session waited {slowest:?}");
        let (memory, files) = self.before;
        wait_until("the daemon's files are closed", async || {
            self.files() <= files + 2
        })
        .await;
        let now = self.memory_kb("VmRSS");
        let peak = self.memory_kb("VmHWM");
        eprintln!(
            "{runs} honest runs, slowest {slowest:?}; {memory} kB before, {now} after, {peak} at most"
        );
        assert!(now <= memory + GROWTH_KB, "{memory} kB became {now}");
        let log = self.daemon.log();
        assert!(!log.contains("panicked"), "{log}");
        let _ = std::fs::remove_file(&self.guest);
    }
}

/// Runs programs in an honest session until told to stop: how many, and how long the slowest took.
async fn work(client: Client, id: String, stop: Arc<AtomicBool>) -> (u32, Duration) {
    let (mut runs, mut slowest) = (0, Duration::ZERO);
    while !stop.load(Ordering::SeqCst) {
        let began = Instant::now();
        assert_eq!(client.out(&id, "echo alive").await, "alive\n");
        slowest = slowest.max(began.elapsed());
        runs += 1;
    }
    (runs, slowest)
}

/// A session whose guest is the rogue.
struct Rogue {
    client: Client,
    id: String,
}

impl Rogue {
    /// Tells it what to answer from now on. After a lost link it has to come back first.
    async fn told(&self, script: &[String]) {
        let mut argv = vec!["rogue".to_owned()];
        argv.extend_from_slice(script);
        wait_for("the rogue obeys", PATIENCE, async || {
            let answer = self.client.try_run(&self.id, json!({"argv": argv})).await;
            assert_ne!(answer.status, 400, "{answer:?}");
            (answer.status == 200).then_some(())
        })
        .await;
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, String> {
        let path = |rest: &str| format!("/v1/sessions/{}/{rest}", self.id);
        let post = |rest: &str, body: Value| (Method::POST, path(rest), body.to_string());
        let get = |rest: &str| (Method::GET, path(rest), String::new());
        let (method, path, body) = match ask {
            Run => post("run", json!({"argv": ["x"], "timeout_s": 1})),
            Start => post("processes", json!({"argv": ["x"]})),
            Stat => get("files/stat?path=/x"),
            List(limit) => get(&format!("files/list?path=/x&limit={limit}")),
            Read | ReadPart => get("files?path=/x"),
            Write => (Method::PUT, path("files?path=/x"), "bytes".to_owned()),
            WriteMuch => (Method::PUT, path("files?path=/x"), "bytes".repeat(1 << 20)),
            Mkdir => post("files/mkdir", json!({"path": "/x"})),
            Remove => (Method::DELETE, path("files?path=/x"), String::new()),
            Watch => get("files/watch?path=/x"),
            Archive => get("archive?path=/x"),
            Processes => get("processes"),
            Output => get("processes/1/output"),
            Input => (Method::POST, path("processes/1/input"), "bytes".to_owned()),
            Signal => post("processes/1/signal", json!({"signal": "TERM"})),
            Usage => get("usage"),
            Ports => get("ports"),
            Snapshot => post("snapshot", json!({"template": "rogue"})),
        };
        let kind = match ask {
            Write | WriteMuch | Input => "application/octet-stream",
            _ => "application/json",
        };
        let mut headers = vec![];
        if !body.is_empty() {
            headers.push(("content-type", kind));
        }
        if matches!(ask, ReadPart) {
            headers.push(("range", "bytes=2-5"));
        }
        let answer = self
            .client
            .try_send(method.clone(), &path, &headers, Bytes::from(body));
        let answer = answer.await?;
        crate::support::schema::check(&method, &path, &answer);
        Ok(answer)
    }

    /// Attacks, and makes sure of what becomes of it.
    async fn attack(&self, (ask, script, fate): &Attack) -> Result<Option<Answer>, String> {
        self.told(script).await;
        let began = Instant::now();
        let answer = self.ask(*ask).await;
        let took = began.elapsed();
        let shown: Vec<_> = script
            .iter()
            .map(|line| &line[..line.len().min(90)])
            .collect();
        let shown = format!(
            "{ask:?} {shown:?} took {took:?}: {:.300}",
            format!("{answer:?}")
        );
        if took > SOON {
            return Err(format!("too slow: {shown}"));
        }
        match (fate, answer) {
            (Fine, Ok(answer)) if answer.status.is_success() => Ok(Some(answer)),
            (Gone, Ok(answer)) if answer.status == 502 => {
                answer.problem(502, "guest_gone");
                Ok(Some(answer))
            }
            (Problem(status, code), Ok(answer)) if answer.status == *status => {
                answer.problem(*status, code);
                Ok(Some(answer))
            }
            (Told, Ok(answer)) if answer.status == 200 || answer.status == 502 => Ok(Some(answer)),
            (Cut, Err(error)) if !error.contains("no answer") => Ok(None),
            _ => Err(format!("not {fate:?}: {shown}")),
        }
    }
}

/// A script out of its lines.
fn lines<const N: usize>(lines: [&str; N]) -> Vec<String> {
    lines.map(str::to_owned).to_vec()
}

/// A document with other values.
fn with(mut document: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        document[name] = value.clone();
    }
    document
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is written where it is used"
)]
fn entry(changes: Value) -> Value {
    let plain = json!({
        "path": "/x", "is_exact": true, "kind": "file", "size_bytes": 10, "mode": 0o644, "uid": 0, "gid": 0,
        "modified_ms": 0, "etag": "1-2",
    });
    with(plain, &changes)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is written where it is used"
)]
fn process(changes: Value) -> Value {
    with(json!({"process": 1, "pid": 1, "argv": ["x"]}), &changes)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is written where it is used"
)]
fn exit(changes: Value) -> Value {
    let plain = json!({
        "exit_code": 0, "signal": null, "timed_out": false, "stdout_dropped_bytes": 0, "stderr_dropped_bytes": 0,
        "duration_ms": 1,
    });
    with(plain, &changes)
}

const FRAMES: &str = "head 200 frames";
const JSON: &str = "head 200 json";
const STARTED: &str = r#"doc 11 {"process":1,"pid":1}"#;
const END: &str = "doc 24 ";

/// Longest numbers that JSON holds here.
const MOST: u64 = u64::MAX;

fn said(kind: &str, document: &Value) -> String {
    format!("doc {kind} {document}")
}

async fn attacked_with(attacks: Vec<Attack>) {
    let mut house = House::new().await;
    let rogue = house.rogue().await;
    rogue.told(&[]).await;
    house.look();
    let mut problems = Vec::new();
    for attack in &attacks {
        match rogue.attack(attack).await {
            Ok(answer) => problems.extend(answer.and_then(|answer| stain(&answer))),
            Err(problem) => problems.push(problem),
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    house.unharmed().await;
}

/// What an answer holds that no terminal and no calendar may see.
fn stain(answer: &Answer) -> Option<String> {
    let body = String::from_utf8_lossy(&answer.body);
    if body.contains('\u{1b}') || body.contains('\0') {
        return Some(format!("{body:.300}"));
    }
    let wrong = times(&body)
        .into_iter()
        .find(|time| time.parse::<jiff::Timestamp>().is_err());
    wrong.map(|time| format!("{time} is no time"))
}

/// The times in an answer.
fn times(body: &str) -> Vec<String> {
    let names = ["\"modified_at\":\"", "\"started_at\":\"", "\"at\":\""];
    let after = names.iter().flat_map(|name| body.split(name).skip(1));
    after
        .filter_map(|rest| rest.split('"').next())
        .map(str::to_owned)
        .collect()
}
