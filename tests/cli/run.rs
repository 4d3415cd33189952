//! `casemate run`: what goes in and comes out, and the session that it leaves or ends.

use super::*;

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
