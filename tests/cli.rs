//! The client as its users meet it: the real binary, against a small HTTP server and a small admin
//! socket that speak the protocols with the library's own types.
//!
//! What the daemon does with a request is not tested here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use casemate::admin::protocol::{Answer, Envelope, KeyView, Request, SessionLine, VERSION};
use casemate::base::clock::Timestamp;
use casemate::base::id::{KeyId, SessionId};
use casemate::model::grant::Role;
use casemate::model::image::ImageDigest;
use casemate::model::session::{Phase, Reason};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

#[path = "cli/admin.rs"]
mod admin;
#[path = "cli/archives.rs"]
mod archives;
#[path = "cli/audit.rs"]
mod audit;
#[path = "cli/copies.rs"]
mod copies;
#[path = "cli/credentials.rs"]
mod credentials;
#[path = "cli/door.rs"]
mod door;
#[path = "cli/logs.rs"]
mod logs;
#[path = "cli/processes.rs"]
mod processes;
#[path = "cli/run.rs"]
mod run;
#[path = "cli/shell.rs"]
mod shell;
#[path = "cli/templates.rs"]
mod templates;
#[path = "cli/volumes.rs"]
mod volumes;

use self::admin::{Daemon, administer};

const ID: &str = "ses_00000000000000000000000001";

/// A request as the server saw it.
#[derive(Clone, Debug)]
struct Seen {
    line: String,
    head: String,
    body: Value,
}

/// Answers requests in their order.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    arrived: mpsc::Receiver<()>,
}

/// What the server does with a request.
enum Reply {
    /// Status, content type, body.
    Say(u16, &'static str, Vec<u8>),
    /// Nothing, until the client goes away.
    Silence,
}

fn serve(answers: Vec<Reply>) -> Server {
    serve_after(None, answers)
}

/// Answers the first request only when told to.
fn serve_after(mut gate: Option<mpsc::Receiver<()>>, answers: Vec<Reply>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (tell, arrived) = mpsc::channel();
    let record = Arc::clone(&seen);
    let mut answers = VecDeque::from(answers);
    std::thread::spawn(move || {
        while let Some(answer) = answers.pop_front() {
            let (stream, _) = listener.accept().unwrap();
            record.lock().unwrap().push(read_request(&stream));
            let _ = tell.send(());
            if let Some(gate) = gate.take() {
                gate.recv().unwrap();
            }
            match answer {
                Reply::Say(status, kind, body) => write_answer(&stream, status, kind, &body),
                // Held open by a thread of its own: the next request must not wait for this one.
                Reply::Silence => drop(std::thread::spawn(move || {
                    let _ = (&stream).read(&mut [0]);
                })),
            }
        }
    });
    Server { url, seen, arrived }
}

fn read_request(stream: &TcpStream) -> Seen {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
    }
    let length = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    // To its end: whoever closes with something unread breaks the answer off too.
    let head_lower = head.to_ascii_lowercase();
    if head_lower.contains("transfer-encoding: chunked") {
        while let Some(piece) = read_chunk(&mut reader) {
            body.extend(piece);
        }
    }
    Seen {
        line: head.lines().next().unwrap().to_owned(),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        head,
    }
}

/// The next piece of a chunked body; `None` at its end, and when it is broken off.
fn read_chunk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut size = String::new();
    reader.read_line(&mut size).ok()?;
    let size = usize::from_str_radix(size.trim(), 16).ok()?;
    let mut piece = vec![0; size + 2];
    reader.read_exact(&mut piece).ok()?;
    piece.truncate(size);
    (size > 0).then_some(piece)
}

fn write_answer(mut stream: &TcpStream, status: u16, kind: &str, body: &[u8]) {
    let length = if status == 204 {
        String::new()
    } else {
        format!("content-length: {}\r\n", body.len())
    };
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{length}\r\n");
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
}

fn answer(status: u16, body: &Value) -> Reply {
    Reply::Say(status, "application/json", body.to_string().into_bytes())
}

fn problem(status: u16, code: &str, detail: &str) -> Reply {
    let body = json!({"type": "about:blank", "title": "t", "status": status, "code": code,
        "detail": detail, "request_id": "req_1"});
    let body = body.to_string().into_bytes();
    Reply::Say(status, "application/problem+json", body)
}

fn session() -> Value {
    json!({"id": ID, "name": null, "phase": "ready", "reason": null, "message": null,
        "generation": 3, "template": "base", "image": "sha256:00", "labels": {"a": "b"},
        "limits": {"memory_bytes": 1 << 30, "cpus": 1.0, "pids": 256, "disk_bytes": 1_u64 << 32},
        "timeout_s": 60, "created_at": "2026-01-01T00:00:00.000Z", "ready_at": null,
        "ends_at": "2026-01-01T01:00:00.000Z", "ended_at": null})
}

fn ran(fields: &Value) -> Value {
    let mut whole = json!({"exit_code": 0, "stdout": "", "stdout_encoding": "utf-8",
        "stderr": "", "stderr_encoding": "utf-8", "truncated": false, "timed_out": false,
        "duration_ms": 1});
    for (name, value) in fields.as_object().unwrap() {
        whole[name] = value.clone();
    }
    whole
}

impl Server {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = casemate(arguments);
        command.env("CASEMATE_URL", &self.url);
        command.env("CASEMATE_API_KEY", "cmk_a_b");
        command
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn lines(&self) -> Vec<String> {
        let lines = self.seen().into_iter().map(|seen| seen.line);
        lines.map(|line| line.replace(" HTTP/1.1", "")).collect()
    }

    fn wait(&self) {
        self.arrived.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}

fn casemate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn ended(output: &Output, code: i32) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
}

fn interrupt(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, signal).unwrap();
}

#[test]
fn a_list_shows_hostile_text_without_obeying_it() {
    let mut hostile = session();
    hostile["name"] = json!("\u{1b}]0;owned\u{7}");
    hostile["message"] = json!("a\nb\u{202e}");
    let page = json!({"items": [hostile], "next_cursor": ID});
    let server = serve(vec![answer(200, &page), answer(200, &page)]);
    let list = [
        "session", "list", "--label", "k=a&b", "--phase", "ready", "--limit", "1",
    ];
    let output = server.command(&list).output().unwrap();
    ended(&output, 0);
    let shown = text(&output.stdout);
    assert_eq!(shown.lines().count(), 2, "{shown}");
    assert!(shown.contains("\\u{1b}]0;owned\\u{7}"), "{shown}");
    assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{202e}']));
    assert!(text(&output.stderr).contains("--cursor"));
    assert_eq!(
        server.lines()[0],
        "GET /v1/sessions?limit=1&phase=ready&label=k%3Da%26b"
    );
    let output = server
        .command(&["--json", "session", "list"])
        .output()
        .unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&output.stdout).unwrap(),
        page
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let items: Vec<_> = std::iter::repeat_n(session(), 5_000).collect();
    let page = json!({"items": items, "next_cursor": null});
    let ending = ran(&json!({"exit_code": 3, "stdout": "x".repeat(1 << 20)}));
    let server = serve(vec![answer(200, &page), answer(200, &ending)]);
    for (arguments, code) in [
        (vec!["session", "list"], 0),
        (vec!["run", "--session", ID, "--", "yes"], 3),
    ] {
        let mut child = server
            .command(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        ended(&output, code);
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn several_sessions_are_stopped_although_one_is_not_there() {
    let server = serve(vec![
        problem(404, "session_not_found", "there is no such session"),
        answer(204, &Value::Null),
    ]);
    let other = "ses_00000000000000000000000002";
    let output = server
        .command(&["session", "stop", ID, other])
        .output()
        .unwrap();
    ended(&output, 1);
    assert!(text(&output.stdout).contains(&format!("{other}  stopped")));
    assert!(text(&output.stderr).starts_with(&format!("casemate: {ID}: there is no such")));
}

#[test]
fn ready_needs_no_key_and_tells_what_is_missing() {
    let body = json!({"ready": false, "checks": [{"name": "podman", "ok": false}]});
    let server = serve(vec![answer(503, &body)]);
    let output = casemate(&["ready", "--url", &server.url]).output().unwrap();
    ended(&output, 69);
    assert!(text(&output.stdout).contains("podman  failed"));
    assert!(!server.seen()[0].head.contains("authorization"));
}

#[test]
fn refusals_end_with_the_code_that_says_what_kind() {
    let server = serve(vec![
        problem(401, "unauthenticated", "who?"),
        problem(503, "busy", "too much to do"),
        Reply::Say(404, "text/html", b"<html>".to_vec()),
    ]);
    let get = ["session", "get", ID];
    let output = server.command(&get).output().unwrap();
    ended(&output, 77);
    assert!(text(&output.stderr).contains("casemate admin key create"));
    ended(&server.command(&get).output().unwrap(), 69);
    let output = server.command(&get).output().unwrap();
    ended(&output, 69);
    assert!(text(&output.stderr).contains("not as casemated does"));
}

#[test]
fn wrong_usage_ends_with_64() {
    for arguments in [
        vec![],
        vec!["frobnicate"],
        vec!["run"],
        vec!["run", "echo"],
        vec!["session", "get", "nonsense"],
        vec!["--url", "ftp://h", "ready"],
        vec!["--url", "h", "ready"],
        vec!["exec", ID],
        vec!["exec", ID, "true"],
        vec!["exec", ID, "--command", "x", "--", "y"],
        vec!["exec", "Not A Name", "--", "true"],
        vec!["exec", ID, "--timeout", "0", "--", "true"],
        vec!["shell"],
        vec!["logs", ID],
        vec!["logs", ID, "7", "--stdout", "--stderr"],
        vec!["signal", ID, "7", "SIGNAL"],
        vec!["signal", ID, "7"],
        vec!["cp", "a"],
        vec!["cp", "a", "b"],
        vec!["cp", "-", "b"],
        vec!["cp", "one:a", "two:b"],
        vec!["cp", "One:a", "b"],
        vec!["cp", "", "one:b"],
    ] {
        let output = casemate(&arguments).output().unwrap();
        ended(&output, 64);
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
    for arguments in [
        vec!["--help"],
        vec!["run", "-h"],
        vec!["--version"],
        vec!["version"],
    ] {
        ended(&casemate(&arguments).output().unwrap(), 0);
    }
}

#[test]
fn nobody_there_ends_with_69_and_says_what_to_do() {
    // Bound and closed again: nobody else gets this port for a while.
    let url = format!(
        "http://{}",
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
    );
    let output = casemate(&["ready", "--url", &url]).output().unwrap();
    ended(&output, 69);
    assert!(text(&output.stderr).contains("systemctl status casemated"));
    let output = casemate(&["admin", "status", "--socket", "/nonexistent/admin.sock"])
        .output()
        .unwrap();
    ended(&output, 69);
    assert!(text(&output.stderr).contains("is casemated running"));
}

#[test]
fn a_missing_key_ends_with_77() {
    let output = casemate(&["session", "list"]).output().unwrap();
    ended(&output, 77);
    assert!(text(&output.stderr).contains("casemate admin key create NAME"));
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    let output = casemate(&["completions", "bash"]).output().unwrap();
    ended(&output, 0);
    assert!(text(&output.stdout).contains("--max-output"));
    assert!(text(&output.stdout).contains("--interactive"));
    let directory = tempfile::tempdir().unwrap();
    let output = casemate(&["man"]).arg(directory.path()).output().unwrap();
    ended(&output, 0);
    for page in [
        "admin-image-import",
        "template-put",
        "exec",
        "shell",
        "logs",
        "cp",
    ] {
        let page = directory.path().join(format!("casemate-{page}.1"));
        assert!(page.exists(), "{page:?}");
    }
    let page = std::fs::read_to_string(directory.path().join("casemate-shell.1")).unwrap();
    assert!(page.contains("hangs up"));
}
