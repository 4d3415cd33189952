//! `casemate volume` against a daemon of which every answer is written here.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use super::{ID, answer, ended, problem, serve, session, text};

fn volume() -> Value {
    json!({"id": "vol_x", "name": "data", "size_bytes": 1_u64 << 30, "used_bytes": 5 << 20,
        "created_at": "2026-01-01T00:00:00.000Z", "created_by": "key_x",
        "attached": [{"session": ID, "mode": "rw"}]})
}

#[test]
fn volumes_are_made_listed_shown_and_removed() {
    let server = serve(vec![
        answer(201, &volume()),
        answer(200, &json!({"items": [volume()]})),
        answer(200, &volume()),
        answer(204, &Value::Null),
        problem(409, "volume_in_use", "end that first"),
    ]);
    let run = |arguments: &[&str]| server.command(arguments).output().unwrap();
    let made = run(&["volume", "create", "data", "1G"]);
    ended(&made, 0);
    assert_eq!(text(&made.stdout), "data\n");
    let listed = run(&["volume", "list"]);
    ended(&listed, 0);
    assert!(
        text(&listed.stdout).contains(ID),
        "{}",
        text(&listed.stdout)
    );
    let shown = run(&["volume", "show", "data", "--json"]);
    ended(&shown, 0);
    let said: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(said, volume());
    ended(&run(&["volume", "rm", "old"]), 0);
    let held = run(&["volume", "rm", "data"]);
    ended(&held, 1);
    assert!(text(&held.stderr).contains("end that first"));
    ended(&run(&["volume", "create", "data", "1.5G"]), 64);
    assert_eq!(
        server.lines(),
        [
            "POST /v1/volumes",
            "GET /v1/volumes",
            "GET /v1/volumes/data",
            "DELETE /v1/volumes/old",
            "DELETE /v1/volumes/data"
        ]
    );
    let wanted = json!({"name": "data", "size_bytes": 1_u64 << 30});
    assert_eq!(server.seen()[0].body, wanted);
}

#[test]
fn a_session_is_asked_for_with_its_volumes() {
    let mut made = session();
    made["volumes"] = json!([{"name": "a", "mode": "rw"}, {"name": "b", "mode": "ro"}]);
    let server = serve(vec![answer(201, &made), answer(200, &made)]);
    let create = ["session", "create", "--volume", "a", "--volume", "b:ro"];
    ended(&server.command(&create).output().unwrap(), 0);
    assert_eq!(server.seen()[0].body["volumes"], made["volumes"]);
    let shown = server.command(&["session", "get", ID]).output().unwrap();
    assert!(text(&shown.stdout).contains("a:rw b:ro"));
    let wrong = ["session", "create", "--volume", "a:rx"];
    ended(&server.command(&wrong).output().unwrap(), 64);
}

#[test]
fn a_volume_is_filled_through_a_session_that_is_ended_whatever_happens() {
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("a.tar");
    std::fs::write(&archive, "not looked at here").unwrap();
    let unpacked = json!({"entries": 3, "bytes": 4096, "skipped": 0});
    let server = serve(vec![
        answer(201, &session()),
        answer(200, &unpacked),
        answer(204, &Value::Null),
        answer(201, &session()),
        problem(422, "bad_archive", "this is not a tar stream"),
        answer(204, &Value::Null),
    ]);
    let fill = |what: &str| {
        let mut command = server.command(&["volume", "fill", "data", what, "--json"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let written = child
            .stdin
            .take()
            .unwrap()
            .write_all(b"\x28\xb5\x2f\xfdand more");
        drop(written);
        child.wait_with_output().unwrap()
    };
    let filled = fill(archive.to_str().unwrap());
    ended(&filled, 0);
    let said: Value = serde_json::from_slice(&filled.stdout).unwrap();
    assert_eq!(said, unpacked);
    let refused = fill("-");
    ended(&refused, 1);
    assert!(text(&refused.stderr).contains("not a tar stream"));
    let path = format!("/v1/sessions/{ID}/archive?path=%2Fvolumes%2Fdata");
    assert_eq!(
        server.lines(),
        [
            "POST /v1/sessions".to_owned(),
            format!("PUT {path}"),
            format!("DELETE /v1/sessions/{ID}"),
            "POST /v1/sessions".to_owned(),
            format!("PUT {path}&compression=zstd"),
            format!("DELETE /v1/sessions/{ID}"),
        ]
    );
    let wanted = json!([{"name": "data", "mode": "rw"}]);
    assert_eq!(server.seen()[0].body["volumes"], wanted);
    // Mistakes that can be seen before make no session.
    std::fs::write(&archive, b"\x1f\x8b\x08\x00").unwrap();
    ended(&fill(archive.to_str().unwrap()), 64);
    ended(&fill("/nowhere/at/all"), 74);
}
