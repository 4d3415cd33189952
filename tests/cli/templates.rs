//! `casemate template` against a daemon of which every answer is written here.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use super::{ID, answer, ended, problem, serve, text};

fn template() -> Value {
    json!({"name": "web", "version": 7, "origin": "api", "made_at": "2026-01-01T00:00:00.000Z",
        "made_by": "key_x", "image": "sha256:00",
        "limits": {"memory_bytes": 1 << 30, "cpus": 1.0, "pids": 256, "disk_bytes": 1_u64 << 32},
        "max_limits": {"memory_bytes": 1_u64 << 31, "cpus": 2.0, "pids": 256, "disk_bytes": 1_u64 << 32},
        "allow_root": false, "env": {"A": "b\u{1b}[2J"}, "workdir": null, "user": "app",
        "timeout_s": 60, "max_timeout_s": 120, "start": {"command": "serve"},
        "ready": {"port": 8000, "timeout_s": 60, "interval_ms": 200}, "ports": [8000, 9000],
        "pool": 0, "teams": ["tests"]})
}

#[test]
fn templates_are_listed_and_shown_for_people_and_for_programs() {
    let server = serve(vec![
        answer(200, &json!({"items": [template()]})),
        answer(200, &template()),
        answer(200, &template()),
    ]);
    let listed = server.command(&["template", "list"]).output().unwrap();
    ended(&listed, 0);
    let row = text(&listed.stdout).lines().nth(1).unwrap();
    let words: Vec<_> = row.split_whitespace().collect();
    assert_eq!(words[..3], ["web", "7", "api"]);
    assert!(row.contains("8000 9000"), "{row}");

    let shown = server
        .command(&["template", "show", "web"])
        .output()
        .unwrap();
    ended(&shown, 0);
    let said = text(&shown.stdout);
    assert!(said.contains("8000") && said.contains("app"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said}");

    let old = ["template", "show", "web", "--version", "3", "--json"];
    let shown = server.command(&old).output().unwrap();
    ended(&shown, 0);
    let said: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(said, template());
    assert_eq!(
        server.lines(),
        [
            "GET /v1/templates",
            "GET /v1/templates/web",
            "GET /v1/templates/web?version=3"
        ]
    );
}

#[test]
fn what_was_shown_can_be_put_again_under_the_name_of_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("web.json");
    std::fs::write(&file, template().to_string()).unwrap();
    let server = serve(vec![
        answer(200, &template()),
        answer(201, &template()),
        problem(412, "condition_failed", "read it again"),
    ]);
    let put = server
        .command(&["template", "put", "--if-version", "6"])
        .arg(&file)
        .output()
        .unwrap();
    ended(&put, 0);
    assert_eq!(text(&put.stdout), "7\n");
    let mut child = server
        .command(&["template", "put", "-", "--name", "other", "--new", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"{\"image\": \"x\"}")
        .unwrap();
    let put = child.wait_with_output().unwrap();
    ended(&put, 0);
    let removed = ["template", "rm", "web", "--if-version", "7"];
    let refused = server.command(&removed).output().unwrap();
    ended(&refused, 1);
    assert!(text(&refused.stderr).contains("read it again (condition_failed"));

    let seen = server.seen();
    assert_eq!(
        server.lines(),
        [
            "PUT /v1/templates/web",
            "PUT /v1/templates/other",
            "DELETE /v1/templates/web"
        ]
    );
    assert!(seen[0].head.contains("if-match: \"6\"\r\n"));
    let mut document = template();
    for field in ["name", "version", "origin", "made_at", "made_by"] {
        document.as_object_mut().unwrap().remove(field);
    }
    assert_eq!(seen[0].body, document);
    assert!(seen[1].head.contains("if-none-match: *\r\n"));
    assert_eq!(seen[1].body, json!({"image": "x"}));
    assert!(seen[2].head.contains("if-match: \"7\"\r\n"));
}

#[test]
fn a_file_that_is_no_template_is_refused_without_repeating_it() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(vec![]);
    for (name, content) in [
        ("web.json", "{hush}"),
        ("list.json", "[\"hush\"]"),
        ("Web.json", "{}"),
    ] {
        let file = directory.path().join(name);
        std::fs::write(&file, content).unwrap();
        let refused = server
            .command(&["template", "put"])
            .arg(&file)
            .output()
            .unwrap();
        ended(&refused, 64);
        assert!(!text(&refused.stderr).contains("hush"));
    }
    let missing = directory.path().join("missing.json");
    let refused = server
        .command(&["template", "put"])
        .arg(&missing)
        .output()
        .unwrap();
    ended(&refused, 74);
    assert_eq!(server.lines(), [""; 0]);
}

#[test]
fn what_a_session_changed_is_kept_as_a_template() {
    let made = json!({"template": "mine", "template_version": 3, "image": "sha256:ab", "entries": 12, "bytes": 5 << 20});
    let server = serve(vec![
        answer(201, &made),
        answer(200, &made),
        problem(409, "template_from_file", "take another name"),
    ]);
    let run = |arguments: &[&str]| {
        let words = [&["session", "snapshot"], arguments].concat();
        server.command(&words).output().unwrap()
    };
    let told = run(&[ID, "mine"]);
    ended(&told, 0);
    let told = text(&told.stdout);
    for word in ["mine", "3", "sha256:ab", "12", "5.0 MiB"] {
        assert!(told.contains(word), "{told}");
    }
    let told = run(&[ID, "mine", "--new", "--json"]);
    ended(&told, 0);
    assert_eq!(serde_json::from_slice::<Value>(&told.stdout).unwrap(), made);
    let told = run(&[ID, "base"]);
    ended(&told, 1);
    assert!(text(&told.stderr).contains("take another name"));
    // Words that are wrong before anybody is asked.
    for wrong in [&["mine"][..], &[ID], &[ID, "A/b"], &["ses_x", "mine"]] {
        ended(&run(wrong), 64);
    }
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    let path = format!("POST /v1/sessions/{ID}/snapshot");
    assert!(seen.iter().all(|seen| seen.line.starts_with(&path)));
    assert_eq!(seen[0].body, json!({"template": "mine"}));
    assert!(!seen[0].head.to_lowercase().contains("if-none-match"));
    assert!(seen[1].head.to_lowercase().contains("if-none-match: *"));
}
