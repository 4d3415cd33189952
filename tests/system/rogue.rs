//! A guest that was taken over (`tests/rogue`): it knows its sandbox's token and says on the link whatever it likes. Each
//! attack ends in a bounded, named error for the one who asked, and other sessions do not feel it.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
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
}

use Ask::{
    Archive, Input, List, Mkdir, Output, Ports, Processes, Read, ReadPart, Remove, Run, Signal,
    Start, Stat, Usage, Watch, Write, WriteMuch,
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

/// What the guest says and then leaves off, what is asked meanwhile, and for how many seconds it waits.
type Silence = (Vec<String>, &'static [(Ask, u64)]);

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

/// Answers to a program that is started.
fn programs() -> Vec<Attack> {
    let exited = said("14", &exit(json!({})));
    let exited = exited.as_str();
    let run = |script: Vec<String>, fate| (Run, script, fate);
    let refused = |code: &str, message: &str| {
        lines([
            FRAMES,
            &said("15", &json!({"code": code, "message": message})),
            "end",
        ])
    };
    vec![
        // What is no answer.
        run(lines(["head 500 frames", "end"]), Gone),
        run(lines(["head 302 frames", "end"]), Gone),
        run(lines(["head 200 json", "end"]), Gone),
        run(lines(["head 200 text/html", "end"]), Gone),
        run(lines(["head-end 200 frames"]), Gone),
        run(lines(["head 404 json", "data {{x*1000000}}", "end"]), Gone),
        run(lines(["head 404 json", "data {{[*15000}}", "end"]), Gone),
        run(lines(["head 404 json", "data []", "end"]), Gone),
        run(lines(["reset 8"]), Gone),
        run(lines([FRAMES, "reset 0"]), Gone),
        // Refusals.
        run(refused("not_found", "no"), Problem(422, "program_refused")),
        run(
            refused("made_up", "\u{1b}[31mred\nline"),
            Problem(422, "program_refused"),
        ),
        run(
            refused("not_found", &"m".repeat(15_000)),
            Problem(422, "program_refused"),
        ),
        run(refused("not\nfound", "no"), Gone),
        run(refused("", "no"), Gone),
        run(refused(&"c".repeat(65), "no"), Gone),
        run(
            refused("file_not_found", "no"),
            Problem(404, "file_not_found"),
        ),
        // Out of order.
        run(
            lines([FRAMES, "doc 12 early", STARTED, exited, "end"]),
            Gone,
        ),
        run(lines([FRAMES, exited, "end"]), Gone),
        run(lines([FRAMES, STARTED, STARTED, exited, "end"]), Gone),
        run(
            lines([FRAMES, STARTED, &said("16", &process(json!({}))), "end"]),
            Gone,
        ),
        run(lines([FRAMES, STARTED, exited, exited, "end"]), Fine),
        run(lines([FRAMES, STARTED, exited, "doc 12 late", "end"]), Fine),
        run(lines([FRAMES, STARTED, "end"]), Gone),
        run(lines([FRAMES, STARTED, "doc 12 x", "reset 8"]), Gone),
        // Too much of everything.
        run(
            lines([FRAMES, STARTED, "docs 200 12 {{x*16000}}", exited, "end"]),
            Gone,
        ),
        run(
            lines([
                FRAMES,
                STARTED,
                &said("17", &json!({"stdout_bytes": MOST, "stderr_bytes": MOST})),
                exited,
                "end",
            ]),
            Gone,
        ),
        run(lines([FRAMES, STARTED, "claim 12 65537 x", "end"]), Gone),
        run(lines([FRAMES, STARTED, "claim 14 16385 x", "end"]), Gone),
        run(
            lines([FRAMES, STARTED, "claim 80 4294967295 x", "end"]),
            Gone,
        ),
        run(lines([FRAMES, STARTED, "claim 12 1000 x", "end"]), Gone),
        run(lines([FRAMES, STARTED, "doc 7f x", exited, "end"]), Gone),
        run(lines([FRAMES, "doc 11 {{x*16000}}", "end"]), Gone),
        run(lines([FRAMES, "doc 11 {{[*16000}}", "end"]), Gone),
        run(
            lines([FRAMES, r#"doc 11 {"process":-1,"pid":1}"#, exited, "end"]),
            Gone,
        ),
        run(
            lines([
                FRAMES,
                r#"doc 11 {"process":1,"pid":1,"pid":2}"#,
                exited,
                "end",
            ]),
            Gone,
        ),
        run(
            lines([
                FRAMES,
                "doc 11 {\"process\":18446744073709551615,\"pid\":4294967295}",
                exited,
                "end",
            ]),
            Fine,
        ),
        run(
            lines([
                FRAMES,
                STARTED,
                &said(
                    "14",
                    &exit(
                        json!({"exit_code": i32::MIN, "duration_ms": MOST, "stdout_dropped_bytes": MOST}),
                    ),
                ),
                "end",
            ]),
            Fine,
        ),
        run(
            lines([
                FRAMES,
                STARTED,
                &said("14", &exit(json!({"exit_code": 1_u64 << 31}))),
                "end",
            ]),
            Gone,
        ),
        run(
            lines([
                FRAMES,
                STARTED,
                &said("14", &exit(json!({"exit_code": null, "signal": -9}))),
                "end",
            ]),
            Fine,
        ),
        // Padding, which is nothing, however much of it there is.
        run(
            lines([FRAMES, STARTED, "padding 20000", exited, "end"]),
            Fine,
        ),
        (Start, lines([FRAMES, STARTED, "stall"]), Fine),
        (
            Input,
            lines([
                JSON,
                r#"data {"written_bytes":18446744073709551615}"#,
                "end",
            ]),
            Fine,
        ),
        (
            Input,
            lines([JSON, r#"data {"written_bytes":1e99}"#, "end"]),
            Gone,
        ),
        (
            Input,
            lines([
                "head 409 json",
                r#"data {"code":"no_input","message":"no"}"#,
                "end",
            ]),
            Problem(409, "no_input"),
        ),
        (Signal, lines([JSON, "data {{[*9000}}", "end"]), Gone),
        (Signal, lines([JSON, "data null", "end"]), Fine),
        (
            Output,
            lines([
                FRAMES,
                &said("16", &process(json!({"stdout_to": MOST}))),
                "end",
            ]),
            Cut,
        ),
        (
            Output,
            lines([
                FRAMES,
                &said("16", &process(json!({"stdout_from": 2, "stdout_to": 1}))),
                "end",
            ]),
            Gone,
        ),
        (
            Output,
            lines([
                FRAMES,
                &said("16", &process(json!({"started_at_ms": MOST}))),
                &said("17", &json!({"stdout_bytes": MOST, "stderr_bytes": 0})),
                exited,
                "end",
            ]),
            Fine,
        ),
        (
            Output,
            lines([
                FRAMES,
                &said("16", &process(json!({}))),
                &said("17", &json!({"stdout_bytes": MOST, "stderr_bytes": 0})),
                "doc 12 one more",
                exited,
                "end",
            ]),
            Cut,
        ),
    ]
}

/// Answers to what is asked about files.
fn files() -> Vec<Attack> {
    let item = |changes: Value| lines([FRAMES, &said("23", &entry(changes)), END, "end"]);
    let head = |changes: Value, more: &[&str]| {
        let mut script = lines([FRAMES, &said("21", &entry(changes))]);
        script.extend(more.iter().map(|&line| line.to_owned()));
        script
    };
    let plain = said("23", &entry(json!({})));
    let long = "{{a*4000}}";
    let event = |path: &str| said("23", &json!({"change": "write", "path": path}));
    vec![
        (Stat, item(json!({"modified_ms": i64::MAX})), Fine),
        (Stat, item(json!({"modified_ms": i64::MIN})), Fine),
        (
            Stat,
            item(json!({"uid": u32::MAX, "gid": u32::MAX, "size_bytes": i64::MAX})),
            Fine,
        ),
        (
            Stat,
            item(json!({"path": "../../etc\u{0}\u{1b}]0;x\u{7}\r\n", "owner": "\u{202e}"})),
            Fine,
        ),
        (
            Stat,
            item(json!({"metadata": {"a\r\nb": "c\r\nd", "": ""}})),
            Fine,
        ),
        (Stat, item(json!({"size_bytes": MOST})), Gone),
        (Stat, item(json!({"mode": 0o10000})), Gone),
        (Stat, item(json!({"etag": "\"\r\nx: y"})), Gone),
        (Stat, item(json!({"etag": ""})), Gone),
        (Stat, item(json!({"kind": "symlink"})), Gone),
        (Stat, item(json!({"path": "{{a*4097}}"})), Gone),
        (Stat, item(json!({"path": "{{a*1048576}}"})), Gone),
        (Stat, item(json!({"owner": "{{a*65}}"})), Gone),
        (Stat, item(json!({"metadata": {"a": "{{a*9000}}"}})), Gone),
        (Stat, item(json!({"kind": 7})), Gone),
        (Stat, item(json!({"kind": "door"})), Fine),
        (
            Stat,
            lines([FRAMES, "doc 23 {{[*60000}}", END, "end"]),
            Gone,
        ),
        (Stat, lines([FRAMES, "doc 23 \u{fffd}", END, "end"]), Gone),
        (Stat, lines([FRAMES, &plain, &plain, END, "end"]), Gone),
        (Stat, lines([FRAMES, &plain, "end"]), Gone),
        (Stat, lines([FRAMES, END, "end"]), Gone),
        (Stat, lines([FRAMES, "doc 22 bytes", END, "end"]), Gone),
        (
            Stat,
            lines([FRAMES, &plain, END, "docs 50 22 more", "end"]),
            Fine,
        ),
        (
            Stat,
            lines([
                FRAMES,
                r#"doc 25 {"code":"file_denied","message":"\u0007"}"#,
                "end",
            ]),
            Problem(403, "file_denied"),
        ),
        (Stat, lines([FRAMES, "claim 23 65537 x", "end"]), Gone),
        (
            List(10),
            lines([
                FRAMES,
                &format!("docs 12 23 {}", entry(json!({}))),
                END,
                "end",
            ]),
            Gone,
        ),
        (
            List(10),
            lines([
                FRAMES,
                &format!("docs 11 23 {}", entry(json!({}))),
                END,
                "end",
            ]),
            Fine,
        ),
        (
            List(10_000),
            lines([
                FRAMES,
                &format!("docs 10001 23 {}", entry(json!({"path": "/%n"}))),
                END,
                "end",
            ]),
            Fine,
        ),
        (
            List(10_000),
            lines([
                FRAMES,
                &format!(
                    "docs 10001 23 {}",
                    entry(json!({"path": long, "target": long}))
                ),
                END,
            ]),
            Fine,
        ),
        (
            List(10_000),
            lines([FRAMES, &format!("docs 1000000 23 {}", entry(json!({})))]),
            Gone,
        ),
        (
            Read,
            head(json!({}), &["doc 22 0123456789", END, "end"]),
            Fine,
        ),
        (
            Read,
            head(json!({}), &["doc 22 01234567890", END, "end"]),
            Cut,
        ),
        (
            Read,
            head(json!({}), &["doc 22 012345678", END, "end"]),
            Cut,
        ),
        (Read, head(json!({}), &["doc 22 0123456789", "end"]), Cut),
        (
            Read,
            head(
                json!({}),
                &[
                    "doc 22 0123",
                    "doc 25 {\"code\":\"file_failed\",\"message\":\"\"}",
                    "end",
                ],
            ),
            Cut,
        ),
        (
            Read,
            head(
                json!({"size_bytes": i64::MAX}),
                &["doc 22 0123456789", END, "end"],
            ),
            Cut,
        ),
        (Read, head(json!({"size_bytes": MOST}), &["end"]), Gone),
        (
            Read,
            head(
                json!({"metadata": {"a\r\nb": "c", "d": "e\r\nf", "g": "\u{1}"}}),
                &["doc 22 0123456789", END, "end"],
            ),
            Fine,
        ),
        (Read, head(json!({}), &["reset 8"]), Cut),
        // The look before a part and the reading are told different things: the script answers both alike.
        (ReadPart, item(json!({})), Gone),
        (ReadPart, head(json!({}), &[END, "end"]), Gone),
        (
            Write,
            lines([FRAMES, "doc 21 {}", &plain, END, "end"]),
            Told,
        ),
        (
            Write,
            lines([FRAMES, "doc 21 {}", "pause 300", &plain, END, "end"]),
            Fine,
        ),
        (
            Write,
            lines([FRAMES, "doc 21 {}", "pause 300", "docs 100000 22 x", "end"]),
            Gone,
        ),
        (
            Write,
            lines([
                FRAMES,
                "doc 21 {}",
                "doc 25 {\"code\":\"disk_full\",\"message\":\"full\"}",
                "end",
            ]),
            Problem(507, "disk_full"),
        ),
        (Mkdir, lines([FRAMES, &plain, END, "end"]), Gone),
        (
            Mkdir,
            lines([
                FRAMES,
                &said(
                    "23",
                    &json!({"created": true, "entry": entry(json!({"mode": MOST}))}),
                ),
                END,
                "end",
            ]),
            Gone,
        ),
        (Remove, lines([FRAMES, &plain, END, "end"]), Gone),
        (Remove, lines([FRAMES, END, "end"]), Fine),
        (
            Watch,
            lines([FRAMES, "doc 21 {}", &event("{{a*4097}}"), "end"]),
            Cut,
        ),
        (
            Watch,
            lines([
                FRAMES,
                "doc 21 {}",
                &event("\r\n\r\nevent: forged\n\u{0}"),
                END,
                "end",
            ]),
            Fine,
        ),
        (
            Watch,
            lines([
                FRAMES,
                "doc 21 {}",
                r#"doc 23 {"change":"explode","path":""}"#,
                END,
                "end",
            ]),
            Cut,
        ),
        (
            Watch,
            lines([FRAMES, "doc 21 {}", "doc 22 bytes", "end"]),
            Cut,
        ),
        (
            Archive,
            head(json!({}), &["docs 100 22 {{x*16000}}", "reset 8"]),
            Cut,
        ),
        (
            Archive,
            head(json!({}), &["doc 22 not a tar", END, "end"]),
            Fine,
        ),
    ]
}

/// Answers to what is asked about the sandbox.
fn lists() -> Vec<Attack> {
    let usage = |text: &str| lines([JSON, &format!("data {text}"), "end"]);
    let processes = |count: u32, changes: Value| {
        lines([
            FRAMES,
            &format!("docs {count} 23 {}", process(changes)),
            END,
            "end",
        ])
    };
    let ports =
        |count: u32, text: &str| lines([FRAMES, &format!("docs {count} 23 {text}"), END, "end"]);
    vec![
        (Usage, usage(&json!({"at_ms": MOST, "uptime_ms": MOST, "cpu_us": MOST, "disk_bytes": MOST, "hostname": "\u{1b}[2J\n\u{0}"}).to_string()), Fine),
        (Usage, usage(r#"{"hostname":"{{h*257}}"}"#), Gone),
        (Usage, usage("{{x*2000000}}"), Gone),
        (Usage, usage("{{[*16000}}"), Gone),
        (Usage, usage(r#"{"cpus":-1}"#), Gone),
        (Usage, usage(r#"{"cpus":1e400}"#), Gone),
        (Usage, usage("[]"), Fine),
        (Usage, usage(""), Gone),
        (Usage, lines(["head 200 frames", "data {}", "end"]), Gone),
        (Usage, lines(["head 404 json", r#"data {"code":"unsupported","message":"no"}"#, "end"]), Problem(501, "unsupported")),
        (Processes, processes(512, json!({"process": 1, "started_at_ms": MOST, "pid": u32::MAX, "stdout_to": MOST})), Fine),
        (Processes, processes(513, json!({})), Gone),
        (Processes, processes(10_000, json!({})), Gone),
        (Processes, processes(512, json!({"argv": vec!["{{\u{1}*256}}"; 16], "cwd": "{{\u{1}*4000}}"})), Gone),
        (Processes, processes(1, json!({"argv": vec!["x"; 17]})), Gone),
        (Processes, processes(1, json!({"argv": ["{{x*257}}"]})), Gone),
        (Processes, processes(1, json!({"user": "{{x*65}}"})), Gone),
        (Processes, processes(1, json!({"stderr_from": 2, "stderr_to": 1})), Gone),
        (Processes, processes(1, json!({"tag": "\u{1b}[31m\r\n\u{0}"})), Fine),
        (Ports, ports(1024, r#"{"port":%n,"address":"::","uid":4294967295}"#), Fine),
        (Ports, ports(1025, r#"{"port":%n,"address":"::","uid":0}"#), Gone),
        (Ports, ports(1, r#"{"port":65536,"address":"::","uid":0}"#), Gone),
        (Ports, ports(1, r#"{"port":1,"address":"localhost\n","uid":0}"#), Gone),
    ]
}

/// What is said below the frames of the link, or without regard for them.
fn http2() -> Vec<Attack> {
    let run = |script: Vec<String>| (Run, script, Gone);
    // The rest is said after the head of a program's answer; then the rogue hangs up, where the daemon has not.
    let after = |line: &str| run(lines([FRAMES, STARTED, line, "pause 200", "hang-up"]));
    vec![
        run(lines(["head-wide 60", "pause 200", "hang-up"])),
        run(lines(["head-wide 10000", "pause 200", "hang-up"])),
        run(lines(["head-endless 500", "pause 200", "hang-up"])),
        run(lines(["early 50000", "pause 200", "hang-up"])),
        after("head 200 frames"),
        after("settings 100000"),
        after("set 3 0"),
        after("set 4 4294967295"),
        after("set 4 0"),
        after("set 5 1"),
        after("set 1 4294967295"),
        after("pings 200000"),
        after("windows 1 2147483647"),
        after("windows 1 0"),
        after("windows 100000 1"),
        after("resets 20000"),
        after("open 5000"),
        after("promise 1000"),
        after("goaway"),
        after("long 16777215"),
        after("long 70000"),
        after("garbage 100000"),
        after("crumbs 400000"),
        after("empty 100000"),
        after("padding 100000"),
        after("flood 10000"),
        run(lines(["on +2", FRAMES, STARTED, "pause 200", "hang-up"])),
        run(lines(["on 0", FRAMES, "pause 200", "hang-up"])),
        run(lines(["on 2147483647", "data x", "pause 200", "hang-up"])),
        run(lines(["data x", "pause 200", "hang-up"])),
        run(lines([FRAMES, STARTED, "claim 12 1000 x", "hang-up"])),
        run(lines(["hang-up"])),
        run(lines([FRAMES, "hang-up"])),
        (
            Read,
            lines([
                FRAMES,
                &said("21", &entry(json!({}))),
                "doc 22 0123",
                "pause 200",
                "hang-up",
            ]),
            Cut,
        ),
        (
            List(10_000),
            lines([FRAMES, "docs 3 23 {}", "hang-up"]),
            Gone,
        ),
        (Usage, lines(["hang-up"]), Gone),
        (Usage, lines([JSON, "data {", "hang-up"]), Gone),
    ]
}

/// Answers to what is asked about large files, and what comes on the channels for them.
fn channels() -> Vec<Attack> {
    let read = |size: u64, more: &[&str]| {
        let entry = with(
            entry(json!({"size_bytes": size})),
            &json!({"on_channel": true}),
        );
        let mut script = lines([FRAMES]);
        script.extend(more.iter().map(|&line| line.to_owned()));
        let at = script.iter().position(|line| line == "HEAD").unwrap();
        script[at] = said("21", &entry);
        script
    };
    let taken = r#"doc 21 {"on_channel":true}"#;
    let done = said("23", &entry(json!({})));
    let full = r#"doc 25 {"code":"disk_full","message":"x"}"#;
    vec![
        (
            Read,
            read(10, &["channel 0123456789", "HEAD", END, "end"]),
            Fine,
        ),
        (
            Read,
            read(
                10,
                &["channels 20", "channel 0123456789", "HEAD", END, "end"],
            ),
            Fine,
        ),
        // Not dialed, too little, too much, not whole after all, nothing said at its end, a link that goes meanwhile.
        (Read, read(10, &["HEAD", END, "end"]), Gone),
        (Read, read(10, &["channel 01234", "HEAD", END, "end"]), Cut),
        (
            Read,
            read(10, &["channel {{0*20}}", "HEAD", END, "end"]),
            Cut,
        ),
        (
            Read,
            read(10, &["channel 0123456789", "HEAD", full, "end"]),
            Cut,
        ),
        (Read, read(10, &["channel 0123456789", "HEAD", "end"]), Cut),
        (Read, read(10, &["channel 01234", "HEAD", "hang-up"]), Cut),
        (
            Read,
            read(
                10,
                &["channel 0123456789", "HEAD", "doc 22 more", END, "end"],
            ),
            Cut,
        ),
        (WriteMuch, lines([FRAMES, taken, "stall"]), Gone),
        (WriteMuch, lines([FRAMES, "channel ", taken, "stall"]), Gone),
        (
            WriteMuch,
            lines([FRAMES, "channel ", taken, full, "end"]),
            Problem(507, "disk_full"),
        ),
        (
            WriteMuch,
            lines([FRAMES, "channel-held", taken, full, "end"]),
            Problem(507, "disk_full"),
        ),
        (
            WriteMuch,
            lines([FRAMES, "channel-held", taken, &done, END, "end"]),
            Gone,
        ),
        (
            WriteMuch,
            lines([FRAMES, "channel-held", taken, "hang-up"]),
            Gone,
        ),
        // It was not offered one, and nothing comes over it.
        (Write, lines([FRAMES, taken, &done, END, "end"]), Fine),
    ]
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rogue_guest_says_of_programs_ends_in_a_named_error() {
    attacked_with(programs()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rogue_guest_says_of_files_ends_in_a_named_error() {
    attacked_with(files()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rogue_guest_does_with_channels_ends_in_a_named_error() {
    attacked_with(channels()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_counts_as_read_when_the_guest_has_said_that_it_was_all() {
    let mut house = House::new().await;
    let rogue = house.rogue().await;
    house.look();
    for (size, bytes, end, outcome) in [
        (10, "0123456789", END, "ok"),
        (0, "", END, "ok"),
        (10, "0123456789", "pause 0", "failed"),
    ] {
        let head = said("21", &entry(json!({"size_bytes": size})));
        let data = format!("doc 22 {bytes}");
        rogue.told(&lines([FRAMES, &head, &data, end, "end"])).await;
        let answer = rogue.ask(Read).await;
        assert_eq!(answer.is_ok(), outcome == "ok", "{answer:?}");
        let record = "SELECT outcome FROM audit WHERE stage = 'outcome' AND kind = 'file.read' ORDER BY rowid DESC LIMIT 1";
        wait_until("it is recorded", async || {
            house
                .daemon
                .sql::<String>(record)
                .first()
                .is_some_and(|told| told.contains(outcome))
        })
        .await;
    }
    house.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rogue_guest_says_of_its_sandbox_ends_in_a_named_error() {
    attacked_with(lists()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rogue_guest_that_abuses_http2_loses_its_own_link_and_hurts_nobody() {
    attacked_with(http2()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rogue_guest_that_stalls_meets_deadlines() {
    let mut house = House::new().await;
    let sessions: [Silence; 5] = [
        // No head; a head and nothing else; a beginning and nothing else; a byte now and then.
        (
            lines(["stall"]),
            &[
                (Run, 15),
                (Start, 15),
                (Stat, 15),
                (Read, 15),
                (Output, 15),
                (Write, 15),
                (Watch, 15),
                (Usage, 5),
                (Processes, 5),
                (Ports, 5),
                (Signal, 5),
                (Input, 15),
                (List(10), 60),
            ],
        ),
        (
            lines([FRAMES, "stall"]),
            &[
                (Run, 15),
                (Stat, 15),
                (Read, 15),
                (Output, 15),
                (Processes, 5),
                (Ports, 5),
                (Archive, 15),
                (List(10), 60),
            ],
        ),
        (
            lines([FRAMES, STARTED, "drip 100000 10 12 x"]),
            &[(Run, 13)],
        ),
        (
            lines([FRAMES, "drip 100000 1000 80 x"]),
            &[
                (Run, 15),
                (Stat, 15),
                (Read, 15),
                (Ports, 5),
                (List(10), 60),
            ],
        ),
        // Nothing is let out any more, while the client asks for more and more.
        (
            lines(["set 3 0", "stall"]),
            &[(Run, 15), (Stat, 15), (Usage, 5), (Processes, 5)],
        ),
    ];
    let mut rogues = Vec::new();
    for (script, asks) in sessions {
        let rogue = house.rogue().await;
        rogue.told(&script).await;
        rogues.push((rogue, asks));
    }
    house.look();
    let asked = rogues.iter().flat_map(|(rogue, asks)| {
        asks.iter().map(async |&(ask, seconds)| {
            let began = Instant::now();
            let answer = rogue
                .ask(ask)
                .await
                .unwrap_or_else(|error| panic!("{ask:?}: {error}"));
            let took = began.elapsed();
            answer.problem(502, "guest_gone");
            let bound = Duration::from_secs(seconds) + Duration::from_secs(8);
            assert!(took < bound, "{ask:?} took {took:?}");
        })
    });
    join_all(asked).await;
    house.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rogue_guest_that_dials_strangely_hurts_nobody() {
    let mut house = House::new().await;
    let rogue = house.rogue().await;
    rogue.told(&[]).await;
    house.look();
    let token = r#""protocol":{"min":1,"max":1},"token":"%TOKEN%""#;
    let strange = [
        "{{x*5000}}".to_owned(),
        "{{[*4000}}".to_owned(),
        "{}".to_owned(),
        "null".to_owned(),
        "\u{1}".to_owned(),
        format!("{{{token},\"kernel\":7}}"),
        r#"{"protocol":{"min":4294967295,"max":4294967295},"token":"%TOKEN%"}"#.to_owned(),
        r#"{"protocol":{"min":4294967296,"max":4294967296},"token":"%TOKEN%"}"#.to_owned(),
        r#"{"protocol":{"min":9,"max":0},"token":"%TOKEN%"}"#.to_owned(),
        r#"{"protocol":{"min":1,"max":1},"token":"{{f*64}}"}"#.to_owned(),
        r#"{"protocol":{"min":1,"max":1},"token":""}"#.to_owned(),
        format!("{{{token},\"token\":\"%TOKEN%\"}}"),
    ];
    // Each is turned away, and the next right one is let in.
    let hellos = format!("hellos {}", strange.join("|"));
    rogue.told(&lines([&hellos, "hang-up"])).await;
    rogue.ask(Run).await.unwrap().problem(502, "guest_gone");
    rogue.told(&[]).await;
    // A thousand capabilities are as good as their first.
    let many = format!(
        "{{{token},\"kernel\":{{\"banner\":\"Starting gVisor\"}},\"guest_version\":\"\\u001b[31m\\n\",\"capabilities\":[{{{{\"a\",*900}}}}\"b\"]}}"
    );
    rogue
        .told(&lines([&format!("hellos {many}"), "hang-up"]))
        .await;
    rogue.ask(Run).await.unwrap().problem(502, "guest_gone");
    rogue.told(&[]).await;
    rogue.ask(Usage).await.unwrap().problem(501, "unsupported");
    // A crowd at the door while the link stands, and while it does not.
    rogue
        .told(&lines(["crowd 100", FRAMES, STARTED, "hang-up"]))
        .await;
    rogue.ask(Run).await.unwrap().problem(502, "guest_gone");
    rogue.told(&lines(["hang-up"])).await;
    rogue.ask(Run).await.unwrap().problem(502, "guest_gone");
    rogue.told(&[]).await;
    // Who claims another kernel is not the sandbox any more, and what it claims reaches no terminal.
    let linux = format!("{{{token},\"kernel\":{{\"banner\":\"\\u001b[31mLinux\\n\"}}}}");
    rogue
        .told(&lines([&format!("hellos {linux}"), "hang-up"]))
        .await;
    rogue.ask(Run).await.unwrap().problem(502, "guest_gone");
    let session = house.daemon.phase(&rogue.id, "failed").await;
    let message = session["message"].as_str().unwrap();
    assert!(!message.chars().any(char::is_control), "{message:?}");
    assert!(!house.daemon.log().contains('\u{1b}'));
    house.unharmed().await;
}
