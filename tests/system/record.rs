//! The record of a daemon as it is shipped: exported and verified by its own command line, and edited behind its back.

use std::path::Path;
use std::process::Output;

use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::daemon::give_to_daemon;
use crate::support::{Daemon, PATIENCE, wait_for};

/// The command line, as root at this daemon's socket.
async fn casemate(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
    command
        .arg("--socket")
        .arg(daemon.admin_socket())
        .args(arguments);
    command.output().await.unwrap()
}

/// What it prints when all is well.
pub async fn said(daemon: &Daemon, arguments: &[&str]) -> String {
    let done = casemate(daemon, arguments).await;
    assert!(done.status.success(), "{arguments:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn an_export_is_verified_without_the_daemon_and_shows_what_was_done_to_it() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    assert_eq!(client.sh(&id, "echo hush").await.0, 0);
    client.end(&id).await;
    // A member may not read all of it, and a stranger nothing; both are recorded.
    assert_eq!(client.get("/v1/audit/export").await.status, 403);
    assert_eq!(client.stranger().get("/v1/audit").await.status, 401);

    let (key, file) = (
        daemon.home.join("key.pem"),
        daemon.home.join("export.jsonl"),
    );
    std::fs::write(&key, said(&daemon, &["audit", "key"]).await).unwrap();
    let export = said(&daemon, &["audit", "export"]).await;
    std::fs::write(&file, &export).unwrap();
    let verify = ["audit", "verify", text(&file), "--public-key", text(&key)];
    let well = said(&daemon, &verify).await;
    assert!(well.contains("is what was written"), "{well}");
    assert!(
        said(&daemon, &["audit", "verify"])
            .await
            .contains("is what was written")
    );
    let last = said(&daemon, &["--json", "audit", "tail", "-n", "5"]).await;
    assert_eq!(last.lines().count(), 5);
    let events = said(&daemon, &["audit", "export", "--format", "ocsf"]).await;
    assert!(events.lines().count() >= export.lines().count() - 1);
    for event in events.lines() {
        let event: Value = serde_json::from_str(event).unwrap();
        assert_eq!(event["class_uid"], 6003, "{event}");
    }
    let runs = said(
        &daemon,
        &["--json", "audit", "list", "--kind", "session.run"],
    )
    .await;
    let runs: Value = serde_json::from_str(&runs).unwrap();
    assert_eq!(runs["items"].as_array().unwrap().len(), 2, "{runs}");
    let wrong = casemate(&daemon, &["audit", "list", "--kind", "no.such"]).await;
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");

    let records: Vec<Value> = export
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |kind: &str| {
        let found = records
            .iter()
            .find(|record| record["event"]["kind"] == kind);
        found.unwrap_or_else(|| panic!("no {kind} in {export}"))
    };
    let run = &of("session.run")["event"];
    assert_eq!(run["argv_sha256"].as_str().unwrap().len(), 64);
    assert!(!export.contains("hush"), "a command line is in the clear");
    assert_eq!(of("access.denied")["event"]["action"], "read-audit");
    assert_eq!(of("auth.failed")["event"]["address"], "127.0.0.1");

    let lines: Vec<&str> = export.lines().collect();
    let cut = lines[..lines.len() - 3].join("\n") + "\n";
    for (edited, fault) in [
        (
            export.replacen("session.delete", "session.create", 1),
            "was changed",
        ),
        (
            export.replacen(&format!("{}\n", lines[4]), "", 1),
            "is missing",
        ),
        (cut, "its end is missing"),
    ] {
        std::fs::write(&file, edited).unwrap();
        let done = casemate(&daemon, &verify).await;
        let told = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            !done.status.success() && told.contains(fault),
            "{fault}: {told}"
        );
    }
    // Another installation's key is not this one's.
    std::fs::write(&file, &export).unwrap();
    let mut other = Daemon::new();
    other.start().await;
    std::fs::write(&key, said(&other, &["audit", "key"]).await).unwrap();
    let done = casemate(&daemon, &verify).await;
    assert!(
        String::from_utf8_lossy(&done.stderr).contains("by another key"),
        "{done:?}"
    );
    assert_eq!(daemon.term().await, 0);
    assert_eq!(other.term().await, 0);
    // Whoever stopped it in order left a checkpoint of everything.
    let left = daemon
        .sql::<i64>("SELECT (SELECT max(seq) FROM audit) - (SELECT max(seq) FROM checkpoints)");
    assert_eq!(left, [0]);
}

#[tokio::test]
async fn what_was_archived_is_checked_together_with_what_is_left_also_after_a_kill() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    // What the log does not have yet stays: it has it in a moment.
    let archive = ["audit", "archive", "--before", "2100-01-01T00:00:00Z"];
    let begun = std::time::Instant::now();
    while !said(&daemon, &archive).await.starts_with("archived") {
        assert!(begun.elapsed() < std::time::Duration::from_secs(20));
    }
    client.end(&id).await;
    daemon.kill9();
    daemon.start().await;
    daemon.client.get("/ready").await.expect(200);
    let health = daemon.client.get("/health/detailed").await.expect(200);
    assert!(health["audit"]["after"].as_i64().unwrap() > 0, "{health}");
    let gone = daemon
        .client
        .get(&format!("/v1/audit/stream?session={id}&after=1"))
        .await
        .expect(410);
    assert_eq!(gone["code"], "audit_archived");
    let (key, file) = (
        daemon.home.join("key.pem"),
        daemon.home.join("export.jsonl"),
    );
    std::fs::write(&key, said(&daemon, &["audit", "key"]).await).unwrap();
    std::fs::write(&file, said(&daemon, &["audit", "export"]).await).unwrap();
    let listed = said(&daemon, &["--json", "audit", "archives"]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let paths: Vec<_> = listed["items"].as_array().unwrap().iter().collect();
    let mut verify = vec!["audit", "verify", "--public-key", text(&key)];
    verify.extend(paths.iter().map(|item| item["path"].as_str().unwrap()));
    assert!(paths.iter().all(|item| item["present"] == true));
    verify.push(text(&file));
    let well = said(&daemon, &verify).await;
    assert!(well.contains("is what was written"), "{well}");
    assert!(
        !well.contains(" after "),
        "the first records are missing: {well}"
    );
    assert!(
        said(&daemon, &["audit", "verify"])
            .await
            .contains("is what was written")
    );
    assert_eq!(daemon.term().await, 0);
}

#[tokio::test]
async fn a_record_that_was_edited_is_an_alarm_and_no_end() {
    let mut daemon = Daemon::up_with(&[("audit", json!({"checkpoint_records": 5}))]).await;
    daemon.client.get("/v1/sessions").await.expect(200);
    daemon.kill9();
    daemon.start().await;
    daemon.client.get("/ready").await.expect(200);
    assert_eq!(daemon.term().await, 0);
    let database = Connection::open(daemon.database()).unwrap();
    let edit =
        "UPDATE audit SET principal = 'somebody else' WHERE seq = (SELECT max(seq) FROM audit)";
    assert_eq!(database.execute(edit, []).unwrap(), 1);
    drop(database);
    for file in ["state.db-wal", "state.db-shm"] {
        let _ = std::fs::remove_file(daemon.state_dir().join(file));
    }
    daemon.launch();
    let not_ready = wait_for("it answers", PATIENCE, async || {
        let asked = daemon
            .client
            .try_send(http::Method::GET, "/ready", &[], bytes::Bytes::new())
            .await;
        asked.ok().map(|answer| answer.expect(503))
    })
    .await;
    let record = not_ready["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["name"] == "record");
    assert_eq!(record.unwrap()["ok"], false, "{not_ready}");
    // It goes on, records what comes, and says what it found.
    daemon.client.get("/v1/sessions").await.expect(200);
    let alarms = daemon.sql::<String>("SELECT event FROM audit WHERE kind = 'audit.alarm'");
    assert_eq!(alarms.len(), 1);
    assert!(daemon.log().contains("ALARM"));
    let done = casemate(&daemon, &["audit", "verify"]).await;
    assert!(
        String::from_utf8_lossy(&done.stderr).contains("was changed"),
        "{done:?}"
    );
    assert_eq!(daemon.term().await, 0);
}

#[tokio::test]
async fn without_its_key_it_does_not_start_and_says_what_to_do() {
    let mut daemon = Daemon::up().await;
    assert_eq!(daemon.term().await, 0);
    let key = daemon.state_dir().join("vault.key");
    let kept = std::fs::read(&key).unwrap();
    std::fs::write(&key, [9; 32]).unwrap();
    assert!(daemon.refuses(77).await.contains("put the key back"));
    std::fs::remove_file(&key).unwrap();
    assert!(daemon.refuses(77).await.contains("there is no vault key"));
    assert!(!key.exists(), "a new one was made in its place");
    std::fs::write(&key, kept).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    give_to_daemon(&key);
    daemon.start().await;
    assert_eq!(daemon.term().await, 0);
}
