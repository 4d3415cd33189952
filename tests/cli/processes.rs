//! `casemate exec`, `start`, `ps` and `signal`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::door::{Door, PATIENCE, Talk, say_json, say_problem};
use super::{ID, ended, interrupt, text};

fn started() -> Value {
    json!({"type": "started", "pid": 7})
}

/// A door behind which every socket is `talk`'s.
fn socket(talk: impl Fn(Talk) + Send + Sync + 'static) -> Door {
    Door::open(move |heard, stream| {
        assert_eq!(heard.line, format!("GET /v1/sessions/{ID}/exec"));
        talk(Talk::begin(heard, stream));
    })
}

fn every_byte() -> Vec<u8> {
    let bytes = (0..300_007_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]);
    bytes.collect()
}

#[test]
fn exec_passes_bytes_unharmed_both_ways_and_apart() {
    let door = socket(|mut talk| {
        let start = json!({"argv": ["p", "-q"], "cwd": "/tmp", "user": "root",
            "env": {"A": "1", "HANDED": "on"}, "timeout_s": 9});
        assert_eq!(talk.hear_json(), start);
        talk.say(&started());
        let input = talk.hear_bytes(300_007);
        assert_eq!(talk.hear_json(), json!({"type": "stdin_end"}));
        for piece in input.chunks(70_001) {
            talk.put(1, piece);
            talk.put(2, &piece[..1]);
        }
        talk.exit(&json!({"exit_code": 7}));
    });
    let mut child = door
        .command(&[
            "exec", ID, "-i", "-w", "/tmp", "-u", "root", "-e", "A=1", "-e", "HANDED",
        ])
        .args(["--timeout", "9", "--", "p", "-q"])
        .env("HANDED", "on")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&every_byte()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    ended(&output, 7);
    assert!(output.stdout == every_byte());
    let firsts: Vec<_> = every_byte().chunks(70_001).map(|piece| piece[0]).collect();
    assert_eq!(output.stderr, firsts);
}

#[test]
fn without_interactive_the_input_ends_at_once_and_the_end_is_the_programs() {
    for (end, code) in [
        (json!({"exit_code": 0}), 0),
        (json!({"signal": 9}), 137),
        (json!({"signal": 15, "timed_out": true}), 124),
        (json!({}), 70),
    ] {
        let door = socket(move |mut talk| {
            assert_eq!(talk.hear_json(), json!({"command": "echo $A"}));
            assert_eq!(talk.hear_json(), json!({"type": "stdin_end"}));
            talk.say(&started());
            talk.say(&json!({"type": "lost", "stdout_bytes": 5, "stderr_bytes": 0}));
            talk.exit(&end);
        });
        let output = door
            .command(&["exec", ID, "--command", "echo $A"])
            .output()
            .unwrap();
        ended(&output, code);
        assert!(text(&output.stderr).contains("5 B of stdout are lost"));
    }
}

/// Starts a program that says so on its standard output, and waits for that.
fn begun(door: &Door, arguments: &[&str]) -> Child {
    let mut child = door
        .command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    child
}

#[test]
fn the_first_signal_goes_to_the_program_and_the_second_gives_up() {
    for (signal, name, code) in [
        (Signal::SIGINT, "SIGINT", 130),
        (Signal::SIGTERM, "SIGTERM", 143),
    ] {
        let (heard, signals) = mpsc::channel();
        let door = socket(move |mut talk| {
            talk.hear_json();
            talk.hear_json();
            talk.say(&started());
            talk.put(1, b"up\n");
            heard.send(Some(talk.hear_json())).unwrap();
            assert!(talk.hear().is_none());
            heard.send(None).unwrap();
        });
        let child = begun(&door, &["exec", ID, "--", "p"]);
        interrupt(&child, signal);
        let sent = json!({"type": "signal", "signal": name});
        assert_eq!(signals.recv_timeout(PATIENCE).unwrap(), Some(sent));
        interrupt(&child, signal);
        ended(&child.wait_with_output().unwrap(), code);
        assert_eq!(signals.recv_timeout(PATIENCE).unwrap(), None);
    }
}

#[test]
fn a_program_that_a_signal_ends_says_so_itself() {
    let door = socket(|mut talk| {
        talk.hear_json();
        talk.hear_json();
        talk.say(&started());
        talk.put(1, b"up\n");
        talk.hear_json();
        talk.exit(&json!({"exit_code": 3}));
    });
    let child = begun(&door, &["exec", ID, "--", "p"]);
    interrupt(&child, Signal::SIGINT);
    ended(&child.wait_with_output().unwrap(), 3);
}

#[test]
fn a_signal_does_not_wait_behind_input_that_nobody_reads() {
    let (signalled, gate) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let door = Door::open(move |heard, stream| {
        if heard.line.starts_with("POST") {
            assert_eq!(
                heard.line,
                format!("POST /v1/sessions/{ID}/processes/7/signal")
            );
            assert_eq!(heard.json(), json!({"signal": "SIGINT"}));
            say_json(stream, 204, &Value::Null);
            signalled.send(()).unwrap();
            return;
        }
        let mut talk = Talk::begin(heard, stream);
        talk.hear_json();
        talk.say(&started());
        talk.put(1, b"up\n");
        // Reads nothing more.
        gate.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        talk.exit(&json!({"signal": 2}));
    });
    let mut child = begun(&door, &["exec", "-i", ID, "--", "sleep", "9"]);
    let mut stdin = child.stdin.take().unwrap();
    let feeding = std::thread::spawn(move || while stdin.write_all(&[b'x'; 4096]).is_ok() {});
    interrupt(&child, Signal::SIGINT);
    ended(&child.wait_with_output().unwrap(), 130);
    feeding.join().unwrap();
}

#[test]
fn what_cannot_be_started_is_told_with_its_code() {
    let door = socket(|mut talk| {
        talk.hear_json();
        talk.say(&json!({"type": "error", "code": "program_refused", "detail": "no \u{1b}p"}));
        while talk.hear().is_some() {}
    });
    let output = door.command(&["exec", ID, "--", "p"]).output().unwrap();
    ended(&output, 1);
    assert_eq!(
        text(&output.stderr),
        "casemate: no \\u{1b}p (program_refused)\n"
    );
    let door = Door::open(|_, stream| say_problem(stream, 404, "session_not_found"));
    let output = door.command(&["exec", ID, "--", "p"]).output().unwrap();
    ended(&output, 1);
    assert!(text(&output.stderr).contains("session_not_found"));
    let door = Door::open(|_, stream| say_json(stream, 200, &json!({})));
    let output = door.command(&["exec", ID, "--", "p"]).output().unwrap();
    ended(&output, 69);
    assert!(text(&output.stderr).contains("not as casemated does"));
}

#[test]
fn a_connection_that_is_lost_is_no_end_of_the_program() {
    let door = socket(|mut talk| {
        talk.hear_json();
        talk.say(&started());
    });
    let output = door.command(&["exec", ID, "--", "p"]).output().unwrap();
    ended(&output, 69);
    assert!(text(&output.stderr).contains("lost"));
}

#[test]
fn a_reader_that_goes_away_ends_the_program() {
    let (gone, seen) = mpsc::channel();
    let door = socket(move |mut talk| {
        talk.hear_json();
        talk.hear_json();
        talk.say(&started());
        talk.put(1, b"up\n");
        while talk.put(1, &[b'y'; 4096]) {}
        gone.send(()).unwrap();
    });
    // The reader of its standard output is gone with this.
    let child = begun(&door, &["exec", ID, "--", "yes"]);
    let output = child.wait_with_output().unwrap();
    ended(&output, 0);
    assert_eq!(text(&output.stderr), "");
    seen.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn with_json_every_event_is_a_line() {
    let door = socket(|mut talk| {
        talk.hear_json();
        talk.say(&started());
        talk.put(1, b"a\n\x1b");
        talk.put(2, &[0xff]);
        talk.say(&json!({"type": "of the future", "x": 1}));
        talk.exit(&json!({"exit_code": 3}));
    });
    let output = door
        .command(&["exec", "--json", ID, "--", "p"])
        .output()
        .unwrap();
    ended(&output, 3);
    let lines: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let expected = [
        json!({"event": "started", "pid": 7}),
        json!({"event": "stdout", "data": "a\n\u{1b}", "encoding": "utf-8"}),
        json!({"event": "stderr", "data": "/w==", "encoding": "base64"}),
        json!({"event": "exit", "exit_code": 3, "timed_out": false}),
    ];
    assert_eq!(lines, expected);
    assert!(!text(&output.stdout).contains('\u{1b}'));
}

#[test]
fn a_terminal_without_a_terminal_is_refused_before_anything_happens() {
    let door = Door::open(|_, _| {});
    for arguments in [&["shell", ID][..], &["exec", "-it", ID, "--", "sh"]] {
        let output = door.command(arguments).output().unwrap();
        ended(&output, 64);
        assert!(text(&output.stderr).contains("standard input is no terminal"));
    }
    let output = door.command(&["shell", "--json", ID]).output().unwrap();
    ended(&output, 64);
    assert!(door.lines().is_empty());
}

#[test]
fn exec_on_a_terminal_of_its_own_gets_a_usual_size() {
    let door = socket(|mut talk| {
        let start =
            json!({"argv": ["top"], "pty": {"rows": 24, "cols": 80}, "env": {"TERM": "vt1"}});
        assert_eq!(talk.hear_json(), start);
        talk.say(&started());
        talk.put(1, b"x\r\n");
        talk.exit(&json!({"exit_code": 0}));
        // A terminal's input has no end.
        assert!(!matches!(talk.hear(), Some(Message::Text(_))));
    });
    let output = door
        .command(&["exec", "-t", ID, "--", "top"])
        .env("TERM", "vt1")
        .output();
    let output = output.unwrap();
    ended(&output, 0);
    assert_eq!(output.stdout, b"x\r\n");
}

fn processes() -> Value {
    let output = json!({"kept_from": 0, "total_bytes": 3});
    let mut first = json!({"pid": 7, "tag": "we\u{1b}b", "argv": ["python3", "-m", "http.server"],
        "user": "user", "pty": false, "background": true, "started_at": "2026-01-01T00:00:00.000Z",
        "running": true, "stdout": output, "stderr": output});
    let mut second = first.clone();
    second["pid"] = json!(8);
    second["running"] = json!(false);
    second["exit"] = json!({"signal": 9, "timed_out": false, "duration_ms": 1});
    first.as_object_mut().unwrap().remove("cwd");
    json!({"processes": [first, second]})
}

#[test]
fn processes_are_listed_of_a_session_by_name() {
    let door = Door::open(|heard, stream| {
        if heard.line.contains("/processes") {
            say_json(stream, 200, &processes());
        } else if heard.line.contains("name=dev") {
            say_json(
                stream,
                200,
                &json!({"items": [{"id": ID}], "next_cursor": null}),
            );
        } else {
            say_json(stream, 200, &json!({"items": [], "next_cursor": null}));
        }
    });
    let output = door.command(&["ps", "dev"]).output().unwrap();
    ended(&output, 0);
    let shown = text(&output.stdout);
    let mut lines = shown.lines();
    let headings: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(headings, ["PID", "TAG", "USER", "AGE", "STATUS", "COMMAND"]);
    let first = lines.next().unwrap();
    assert!(first.contains("we\\u{1b}b") && first.ends_with("running   python3 -m http.server"));
    assert!(lines.next().unwrap().contains("signal 9"));
    assert_eq!(
        door.lines(),
        [
            "GET /v1/sessions?phase=pending&phase=starting&phase=ready&phase=paused&phase=stopping&name=dev"
                .to_owned(),
            format!("GET /v1/sessions/{ID}/processes"),
        ]
    );
    let output = door.command(&["ps", ID, "--json"]).output().unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&output.stdout).unwrap(),
        processes()
    );
    let output = door.command(&["ps", "nobody"]).output().unwrap();
    ended(&output, 1);
    assert!(text(&output.stderr).contains("no live session has the name nobody"));
}

#[test]
fn a_background_process_is_started_and_signalled() {
    let door = Door::open(|heard, stream| {
        if heard.line.ends_with("/signal") {
            say_json(stream, 204, &Value::Null);
        } else {
            say_json(stream, 201, &json!({"pid": 7, "tag": "web"}));
        }
    });
    let output = door
        .command(&["start", ID, "--tag", "web", "-e", "A=1", "--", "p", "-x"])
        .output()
        .unwrap();
    ended(&output, 0);
    assert_eq!(text(&output.stdout), "7\n");
    let output = door
        .command(&["signal", ID, "we/b", "term"])
        .output()
        .unwrap();
    ended(&output, 0);
    assert_eq!(text(&output.stdout), "");
    let heard = door.heard();
    assert_eq!(heard[0].line, format!("POST /v1/sessions/{ID}/processes"));
    let start = json!({"argv": ["p", "-x"], "tag": "web", "env": {"A": "1"}});
    assert_eq!(heard[0].json(), start);
    assert_eq!(
        heard[1].line,
        format!("POST /v1/sessions/{ID}/processes/we%2Fb/signal")
    );
    assert_eq!(heard[1].json(), json!({"signal": "term"}));
}
