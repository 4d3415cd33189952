//! `casemate logs`.

use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc;

use serde_json::{Value, json};

use super::door::{Door, PATIENCE, begin, chunk, say_json, say_problem};
use super::{ID, ended, text};

fn process(stdout: u64, stderr: u64, running: bool) -> Value {
    json!({"pid": 7, "argv": ["p"], "user": "user", "pty": false, "background": true,
        "started_at": "2026-01-01T00:00:00.000Z", "running": running,
        "stdout": {"kept_from": 0, "total_bytes": stdout},
        "stderr": {"kept_from": 0, "total_bytes": stderr}})
}

fn event(stream: &TcpStream, id: &str, kind: &str, data: &Value) {
    let event = format!("id: {id}\nevent: {kind}\ndata: {data}\n\n");
    chunk(stream, event.as_bytes());
}

fn data(text: &str) -> Value {
    json!({"data": text, "encoding": "utf-8"})
}

fn exit() -> Value {
    json!({"exit_code": 3, "timed_out": false, "duration_ms": 1})
}

/// A process of which every stream is `stream`'s, by its number.
fn streams(process: Value, stream: impl Fn(usize, &TcpStream) + Send + Sync + 'static) -> Door {
    let number = Mutex::new(0);
    Door::open(move |heard, line| {
        if !heard.line.ends_with("/output") {
            return say_json(line, 200, &process);
        }
        let mut number = number.lock().unwrap();
        let this = *number;
        *number += 1;
        drop(number);
        begin(&line, "text/event-stream");
        stream(this, &line);
    })
}

#[test]
fn a_lost_stream_is_taken_up_again_after_its_last_event() {
    let door = streams(process(0, 0, true), |number, line| match number {
        0 => {
            event(line, "3-0", "stdout", &data("one"));
            // Cut in the middle of an event, which does not count.
            chunk(line, b"id: 6-0\nevent: stdout\ndata: {\"da");
            let _ = line.shutdown(Shutdown::Both);
        }
        // The daemon stops: a proper end that is none of the process's.
        1 => {
            event(line, "6-0", "stdout", &data("two"));
            event(
                line,
                "6-2",
                "stderr",
                &json!({"data": "/wA=", "encoding": "base64"}),
            );
            chunk(line, b"");
        }
        _ => {
            event(
                line,
                "9-2",
                "lost",
                &json!({"stdout_bytes": 3, "stderr_bytes": 0}),
            );
            event(line, "14-2", "stdout", &data("three"));
            event(line, "14-2", "exit", &exit());
            chunk(line, b"");
        }
    });
    let output = door.command(&["logs", "-f", ID, "web"]).output().unwrap();
    ended(&output, 0);
    assert_eq!(text(&output.stdout), "onetwothree");
    assert!(output.stderr.starts_with(&[0xff, 0]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("3 B of stdout are lost"));
    let heard = door.heard();
    assert_eq!(
        heard[0].line,
        format!("GET /v1/sessions/{ID}/processes/web")
    );
    let path = format!("GET /v1/sessions/{ID}/processes/7/output");
    let resumed: Vec<_> = heard[1..]
        .iter()
        .map(|heard| (heard.line.clone(), heard.header("last-event-id")))
        .collect();
    assert_eq!(
        resumed,
        [
            (path.clone(), None),
            (path.clone(), Some("3-0")),
            (path, Some("6-2"))
        ]
    );
}

#[test]
fn without_follow_only_what_is_there_is_shown() {
    let (over, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let door = streams(process(6, 2, true), move |_, line| {
        chunk(line, b"event: process\ndata: {}\n\n:\n\n");
        event(line, "3-0", "stdout", &data("one"));
        event(line, "6-0", "stdout", &data("two"));
        event(line, "6-2", "stderr", &data("no"));
        // It goes on, and the stream with it.
        let _ = wait.lock().unwrap().recv_timeout(PATIENCE);
    });
    let output = door.command(&["logs", ID, "7"]).output().unwrap();
    ended(&output, 0);
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("onetwo", "no")
    );
    drop(over);
    let door = streams(process(0, 0, true), |_, _| {});
    ended(&door.command(&["logs", ID, "7"]).output().unwrap(), 0);
    assert_eq!(door.lines().len(), 1);
}

#[test]
fn one_output_alone_is_shown_alone() {
    for (option, stdout, stderr) in [("--stdout", "one", ""), ("--stderr", "", "two")] {
        let door = streams(process(3, 3, false), |_, line| {
            event(line, "3-0", "stdout", &data("one"));
            event(line, "3-3", "stderr", &data("two"));
            event(line, "3-3", "exit", &exit());
        });
        let output = door.command(&["logs", ID, "7", option]).output().unwrap();
        ended(&output, 0);
        assert_eq!(
            (text(&output.stdout), text(&output.stderr)),
            (stdout, stderr)
        );
    }
}

#[test]
fn half_a_character_that_is_kept_back_is_not_waited_for_for_ever() {
    let (over, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let door = streams(process(4, 0, true), move |_, line| {
        event(line, "3-0", "stdout", &data("one"));
        let _ = wait.lock().unwrap().recv_timeout(PATIENCE);
    });
    let output = door.command(&["logs", ID, "7"]).output().unwrap();
    ended(&output, 0);
    assert_eq!(text(&output.stdout), "one");
    drop(over);
}

#[test]
fn a_process_that_is_gone_is_not_asked_for_again() {
    let number = Mutex::new(0);
    let door = Door::open(move |heard, line| {
        if !heard.line.ends_with("/output") {
            return say_json(line, 200, &process(9, 0, true));
        }
        *number.lock().unwrap() += 1;
        if *number.lock().unwrap() > 1 {
            return say_problem(line, 404, "no_such_process");
        }
        begin(&line, "text/event-stream");
        event(&line, "3-0", "stdout", &data("one"));
    });
    let output = door.command(&["logs", "-f", ID, "7"]).output().unwrap();
    ended(&output, 1);
    assert_eq!(text(&output.stdout), "one");
    assert!(text(&output.stderr).contains("no_such_process"));
}

#[test]
fn with_json_what_was_written_is_a_line_for_each_event() {
    let door = streams(process(3, 0, false), |_, line| {
        event(
            line,
            "1-0",
            "lost",
            &json!({"stdout_bytes": 1, "stderr_bytes": 0}),
        );
        event(line, "3-0", "stdout", &data("ne"));
        event(line, "3-0", "exit", &exit());
    });
    let output = door
        .command(&["logs", "-f", "--json", ID, "7"])
        .output()
        .unwrap();
    ended(&output, 0);
    let lines: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let expected = [
        json!({"event": "lost", "output": "stdout", "bytes": 1}),
        json!({"event": "stdout", "data": "ne", "encoding": "utf-8"}),
        json!({"event": "exit", "exit_code": 3, "timed_out": false}),
    ];
    assert_eq!(lines, expected);
}
