//! `casemate credential` against a daemon of which every answer is written here.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use super::shell::Terminal;
use super::{Server, answer, ended, problem, serve, text};

fn credential() -> Value {
    json!({"name": "db", "version": 7, "description": "the cave\u{1b}[2J",
        "made_at": "2026-01-01T00:00:00.000Z", "made_by": "key_x",
        "changed_at": "2026-01-02T00:00:00.000Z", "changed_by": "key_y",
        "used_at": null, "used_for": null})
}

/// Runs it with this at its standard input.
fn fed(server: &Server, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = server
        .command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // What is not read is not wanted.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[test]
fn a_value_comes_from_a_file_or_standard_input_and_is_never_shown() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("value");
    std::fs::write(&file, "open sesame\r\n").unwrap();
    let server = serve(vec![
        answer(201, &credential()),
        answer(200, &credential()),
        answer(200, &credential()),
        problem(412, "condition_failed", "list it again"),
    ]);
    let set = server
        .command(&["credential", "set", "db", "--new", "--file"])
        .arg(&file)
        .output()
        .unwrap();
    ended(&set, 0);
    assert_eq!(text(&set.stdout), "7\n");
    let about = ["credential", "set", "db", "--description", "x", "--json"];
    let piped = fed(&server, &about, b"\0\xff\n");
    ended(&piped, 0);
    let exact = ["credential", "set", "db", "--exact", "--file", "-"];
    ended(&fed(&server, &exact, b"a\n"), 0);
    let stale = ["credential", "set", "db", "--if-version", "6"];
    let stale = fed(&server, &stale, b"hush");
    ended(&stale, 1);
    assert!(text(&stale.stderr).contains("list it again"));
    assert!(!text(&stale.stderr).contains("hush"));
    let seen = server.seen();
    assert!(seen[0].head.contains("if-none-match: *\r\n"));
    assert_eq!(seen[0].body, json!({"value_base64": "b3BlbiBzZXNhbWU="}));
    assert_eq!(
        seen[1].body,
        json!({"value_base64": "AP8=", "description": "x"})
    );
    assert_eq!(seen[2].body, json!({"value_base64": "YQo="}));
    assert!(seen[3].head.contains("if-match: \"6\"\r\n"));
    assert_eq!(server.lines()[0], "PUT /v1/credentials/db");
}

#[test]
fn what_cannot_be_a_value_is_refused_before_anything_is_sent() {
    let server = serve(vec![]);
    for wrong in [Vec::new(), b"\n".to_vec(), vec![b'x'; (64 << 10) + 1]] {
        let refused = fed(&server, &["credential", "set", "db"], &wrong);
        ended(&refused, 64);
        assert!(text(&refused.stderr).contains("the value"));
    }
    // No argument takes one.
    for wrong in [
        &["credential", "set", "db", "hush"][..],
        &["credential", "set", "db", "--value", "hush"],
        &["credential", "set", "Not/A/Name"],
    ] {
        ended(&fed(&server, wrong, b"x"), 64);
    }
    let gone = ["credential", "set", "db", "--file", "/nowhere/at/all"];
    ended(&server.command(&gone).output().unwrap(), 74);
    assert_eq!(server.lines(), [""; 0]);
}

#[test]
fn credentials_are_listed_and_removed() {
    let server = serve(vec![
        answer(200, &json!({"items": [credential()]})),
        answer(204, &Value::Null),
        answer(204, &Value::Null),
    ]);
    let listed = server.command(&["credential", "list"]).output().unwrap();
    ended(&listed, 0);
    let said = text(&listed.stdout);
    assert!(
        said.contains("the cave") && !said.contains('\u{1b}'),
        "{said}"
    );
    ended(
        &server
            .command(&["credential", "rm", "db"])
            .output()
            .unwrap(),
        0,
    );
    let removed = ["credential", "rm", "db", "--if-version", "7", "--json"];
    let removed = server.command(&removed).output().unwrap();
    ended(&removed, 0);
    assert_eq!(text(&removed.stdout), "{\"name\":\"db\"}\n");
    assert_eq!(
        server.lines(),
        [
            "GET /v1/credentials",
            "DELETE /v1/credentials/db",
            "DELETE /v1/credentials/db"
        ]
    );
}

#[test]
fn a_value_that_is_typed_is_not_shown_and_the_terminal_is_as_before() {
    for (keys, code) in [(&b"open sesamE\x7fe\r"[..], 0), (b"open sesame\x03", 130)] {
        let answers = (code == 0).then(|| answer(201, &credential()));
        let server = serve(answers.into_iter().collect());
        let terminal = Terminal::open(24, 80);
        let mut seen = terminal.watch();
        let mut child = server
            .command(&["credential", "set", "db"])
            .stdin(terminal.stdio())
            .stdout(Stdio::piped())
            .stderr(terminal.stdio())
            .spawn()
            .unwrap();
        seen.wait("not shown");
        assert!(terminal.is_raw());
        terminal.press(keys);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(terminal.is_cooked());
        if code == 0 {
            let body = json!({"value_base64": "b3BlbiBzZXNhbWU="});
            assert_eq!(server.seen()[0].body, body);
        } else {
            seen.wait("nothing was set");
        }
        assert!(!seen.text().contains("sesam"), "{}", seen.text());
    }
}
