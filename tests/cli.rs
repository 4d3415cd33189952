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
#[path = "cli/shell.rs"]
mod shell;
#[path = "cli/templates.rs"]
mod templates;
#[path = "cli/volumes.rs"]
mod volumes;

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
    Seen {
        line: head.lines().next().unwrap().to_owned(),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        head,
    }
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

#[test]
fn run_passes_bytes_and_the_exit_code_unharmed_and_ends_its_session() {
    let ending = ran(
        &json!({"exit_code": 7, "stdout": "/wAKGw==", "stdout_encoding": "base64",
        "stderr": "\u{1b}[31mé\n"}),
    );
    let server = serve(vec![
        answer(201, &session()),
        answer(200, &ending),
        answer(204, &Value::Null),
    ]);
    let output = server
        .command(&[
            "run", "--label", "a=b", "--env", "X=1", "--env", "HANDED", "--", "p", "-q",
        ])
        .env("HANDED", "on")
        .output()
        .unwrap();
    ended(&output, 7);
    assert_eq!(output.stdout, [0xff, 0, b'\n', 0x1b]);
    assert_eq!(output.stderr, "\u{1b}[31mé\n".as_bytes());
    let seen = server.seen();
    assert_eq!(seen[0].body, json!({"labels": {"a": "b"}}));
    let body = json!({"argv": ["p", "-q"], "env": {"X": "1", "HANDED": "on"}});
    assert_eq!(seen[1].body, body);
    for request in &seen {
        assert!(request.head.contains("authorization: Bearer cmk_a_b\r\n"));
    }
    assert_eq!(
        server.lines(),
        [
            "POST /v1/sessions".to_owned(),
            format!("POST /v1/sessions/{ID}/run"),
            format!("DELETE /v1/sessions/{ID}"),
        ]
    );
}

#[test]
fn run_in_a_given_session_sends_standard_input_and_leaves_the_session() {
    let ending = ran(&json!({"exit_code": null, "signal": 9, "truncated": true}));
    let server = serve(vec![answer(200, &ending)]);
    let mut child = server
        .command(&[
            "run",
            "--session",
            ID,
            "--timeout",
            "5",
            "--max-output",
            "9",
            "--",
            "cat",
        ])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"\xff\n").unwrap();
    let output = child.wait_with_output().unwrap();
    ended(&output, 137);
    assert!(text(&output.stderr).contains("--max-output"));
    let body = json!({"argv": ["cat"], "stdin": "/wo=", "stdin_encoding": "base64",
        "timeout_s": 5, "max_output_bytes": 9});
    assert_eq!(server.seen()[0].body, body);
    assert_eq!(server.lines(), [format!("POST /v1/sessions/{ID}/run")]);
}

#[test]
fn run_with_json_prints_the_answer_and_124_says_that_time_was_over() {
    let ending = ran(&json!({"timed_out": true, "stdout": "\u{9b}2J"}));
    let server = serve(vec![answer(200, &ending)]);
    let output = server
        .command(&["run", "--json", "--session", ID, "--", "sleep", "9"])
        .output()
        .unwrap();
    ended(&output, 124);
    assert_eq!(
        serde_json::from_slice::<Value>(&output.stdout).unwrap(),
        ending
    );
    assert!(!text(&output.stdout).contains('\u{9b}'));
}

#[test]
fn a_refused_run_ends_its_session_and_shows_the_problem() {
    let server = serve(vec![
        answer(201, &session()),
        problem(422, "program_refused", "no such \u{1b}[31mprogram"),
        answer(202, &session()),
    ]);
    let output = server.command(&["run", "--", "nope"]).output().unwrap();
    ended(&output, 1);
    assert_eq!(
        text(&output.stderr),
        "casemate: no such \\u{1b}[31mprogram (program_refused, request_id req_1)\n"
    );
    assert!(server.lines()[2].starts_with("DELETE "));
}

#[test]
fn an_interrupted_run_ends_its_session() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let server = serve(vec![
            answer(201, &session()),
            Reply::Silence,
            answer(204, &Value::Null),
        ]);
        let child = server
            .command(&["run", "--", "sleep", "inf"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        server.wait();
        server.wait();
        interrupt(&child, signal);
        server.wait();
        ended(&child.wait_with_output().unwrap(), code);
        assert_eq!(server.lines()[2], format!("DELETE /v1/sessions/{ID}"));
    }
}

#[test]
fn a_run_that_is_interrupted_while_its_session_comes_up_ends_it_still() {
    let (open, gate) = mpsc::channel();
    let server = serve_after(
        Some(gate),
        vec![answer(201, &session()), answer(204, &Value::Null)],
    );
    let mut child = server
        .command(&["run", "--", "true"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    server.wait();
    interrupt(&child, Signal::SIGINT);
    let mut told = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut told).unwrap();
    assert!(
        told.contains("waiting for the session to come up"),
        "{told}"
    );
    open.send(()).unwrap();
    server.wait();
    ended(&child.wait_with_output().unwrap(), 130);
    assert_eq!(server.lines()[1], format!("DELETE /v1/sessions/{ID}"));
}

#[test]
fn an_answer_is_bounded_and_one_that_breaks_off_is_told() {
    let long = vec![b' '; (8 << 20) + 1];
    let server = serve(vec![Reply::Say(200, "application/json", long)]);
    let output = server.command(&["session", "list"]).output().unwrap();
    ended(&output, 69);
    assert!(text(&output.stderr).contains("more than 8388608 bytes"));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    std::thread::spawn(move || drop(silent.accept()));
    let output = casemate(&["ready", "--url", &url]).output().unwrap();
    ended(&output, 69);
    assert!(text(&output.stderr).contains("broke the connection off"));
}

fn interrupt(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, signal).unwrap();
}

#[test]
fn too_much_standard_input_is_refused_before_anything_happens() {
    let server = serve(Vec::new());
    let mut child = server
        .command(&["run", "--", "cat"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may stop reading as soon as it has seen enough.
    let _ = stdin.write_all(&vec![b'a'; (1 << 20) + 1]);
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    ended(&output, 64);
    assert!(text(&output.stderr).contains("1048576 bytes"));
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
        vec!["--url", "https://h", "ready"],
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

/// The daemon's side of the admin socket for one connection.
struct Daemon {
    directory: tempfile::TempDir,
    thread: JoinHandle<(Request, Vec<u8>)>,
}

fn administer(answers: Vec<Answer>) -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let envelope: Envelope = serde_json::from_slice(&frame(&mut stream)).unwrap();
        assert_eq!(envelope.version, VERSION);
        let mut archive = Vec::new();
        if matches!(envelope.request, Request::ImageImport) {
            loop {
                let chunk = frame(&mut stream);
                if chunk.is_empty() {
                    break;
                }
                archive.extend(chunk);
            }
        }
        for answer in answers {
            let answer = serde_json::to_vec(&answer).unwrap();
            let length = u32::try_from(answer.len()).unwrap();
            stream.write_all(&length.to_be_bytes()).unwrap();
            stream.write_all(&answer).unwrap();
        }
        (envelope.request, archive)
    });
    Daemon { directory, thread }
}

fn frame(stream: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut frame).unwrap();
    frame
}

impl Daemon {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = casemate(&["admin"]);
        command.args(arguments);
        command.env("CASEMATE_ADMIN_SOCKET", self.directory.path().join("s"));
        command
    }
}

#[test]
fn a_new_key_is_all_that_stands_on_standard_output() {
    let daemon = administer(vec![Answer::Key(KeyView {
        id: KeyId::from_bytes([1; 16]),
        key: "cmk_public_secret".into(),
    })]);
    let output = daemon
        .command(&["key", "create", "ci", "--team", "red"])
        .output()
        .unwrap();
    ended(&output, 0);
    assert_eq!(text(&output.stdout), "cmk_public_secret\n");
    assert!(!text(&output.stderr).contains("secret"));
    let (request, _) = daemon.thread.join().unwrap();
    assert!(
        matches!(request, Request::KeyCreate { name, team, role: Role::Member, scopes: None, expires_in_s: None } if name.as_str() == "ci" && team.as_str() == "red")
    );
}

#[test]
fn a_new_vault_key_says_where_it_is_and_what_to_keep() {
    let rotated = casemate::admin::protocol::RotatedView {
        generation: 2,
        sealed: 5,
        origin: "/state/vault.key".into(),
    };
    let daemon = administer(vec![Answer::Rotated(rotated)]);
    let output = daemon.command(&["rotate-key"]).output().unwrap();
    ended(&output, 0);
    assert_eq!(text(&output.stdout), "2\n");
    let told = text(&output.stderr);
    assert!(
        told.contains("/state/vault.key") && told.contains("keep a copy"),
        "{told}"
    );
    let (request, _) = daemon.thread.join().unwrap();
    assert!(matches!(request, Request::RotateKey));
}

#[test]
fn a_backup_tells_where_it_is_and_names_its_file_from_the_top() {
    let made = || {
        let progress = Answer::Progress {
            received_bytes: 5,
            total_bytes: Some(10),
        };
        let made = Answer::Backup(casemate::admin::protocol::BackupView {
            path: "/backups/b.tar.zst".into(),
            size_bytes: 7,
            made_at: serde_json::from_str("\"2026-01-01T00:00:00Z\"").unwrap(),
            encrypted: true,
            images: 2,
            images_missing: vec![ImageDigest::from_bytes([7; 32])],
        });
        administer(vec![progress, made])
    };
    let daemon = made();
    let output = daemon
        .command(&["backup", "--images", "--to", "b.tar.zst"])
        .output()
        .unwrap();
    ended(&output, 0);
    assert_eq!(text(&output.stdout), "/backups/b.tar.zst\n");
    let told = text(&output.stderr);
    assert!(
        told.contains("with 2 images, encrypted") && told.contains("sha256:0707"),
        "{told}"
    );
    let (request, _) = daemon.thread.join().unwrap();
    let here = std::env::current_dir().unwrap().join("b.tar.zst");
    assert!(matches!(request, Request::Backup { to: Some(to), images: true } if to == here));
    let daemon = made();
    let output = daemon.command(&["backup", "--json"]).output().unwrap();
    ended(&output, 0);
    let view: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(view["encrypted"], true);
    let (request, _) = daemon.thread.join().unwrap();
    assert!(matches!(
        request,
        Request::Backup {
            to: None,
            images: false
        }
    ));
}

#[test]
fn an_archive_arrives_whole_and_only_its_digest_is_printed() {
    let digest = ImageDigest::from_bytes([7; 32]);
    let archive: Vec<u8> = (0..1_000_003_u32)
        .map(|n| n.to_le_bytes()[0] ^ 0x5a)
        .collect();
    for from_stdin in [false, true] {
        let progress = Answer::Progress {
            received_bytes: 5,
            total_bytes: None,
        };
        let daemon = administer(vec![progress, Answer::Image { digest }]);
        let file = daemon.directory.path().join("archive");
        std::fs::write(&file, &archive).unwrap();
        let name = if from_stdin {
            "-"
        } else {
            file.to_str().unwrap()
        };
        let output = daemon
            .command(&["image", "import", name])
            .stdin(std::fs::File::open(&file).unwrap())
            .output()
            .unwrap();
        ended(&output, 0);
        assert_eq!(text(&output.stdout), format!("{digest}\n"));
        assert_eq!(text(&output.stderr), "");
        assert!(daemon.thread.join().unwrap().1 == archive);
    }
}

#[test]
fn a_peer_that_is_turned_away_unheard_still_learns_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let refused = Answer::Refused {
            code: "not_an_operator".into(),
            message: "for root and the group casemate".into(),
        };
        let answer = serde_json::to_vec(&refused).unwrap();
        let length = u32::try_from(answer.len()).unwrap();
        stream.write_all(&length.to_be_bytes()).unwrap();
        stream.write_all(&answer).unwrap();
    });
    let archive = directory.path().join("archive");
    std::fs::write(&archive, vec![0; 4 << 20]).unwrap();
    let output = casemate(&["admin", "image", "import"])
        .arg(&archive)
        .arg("--socket")
        .arg(&path)
        .output()
        .unwrap();
    ended(&output, 77);
    assert!(text(&output.stderr).contains("for root and the group casemate"));
    thread.join().unwrap();
}

#[test]
fn sessions_of_all_teams_are_listed() {
    let line = SessionLine {
        id: SessionId::from_bytes([1; 16]),
        name: None,
        team: "red".parse().unwrap(),
        template: "base".parse().unwrap(),
        phase: Phase::Failed,
        reason: Some(Reason::LaunchFailed),
        message: Some("no\u{1b}[2J image".into()),
        created_at: Timestamp::from_millis(0),
        ends_at: Timestamp::from_millis(1),
    };
    let daemon = administer(vec![Answer::Sessions { items: vec![line] }]);
    let output = daemon
        .command(&["session", "list", "--all", "--limit", "7"])
        .output()
        .unwrap();
    ended(&output, 0);
    assert!(text(&output.stdout).contains("launch_failed: no\\u{1b}[2J image"));
    let (request, _) = daemon.thread.join().unwrap();
    assert!(matches!(
        request,
        Request::SessionList {
            live: false,
            limit: 7
        }
    ));
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
