//! `casemate audit archives` and `archive` against a daemon of which every answer is written here. What is verified:
//! `tests/retention.rs`.

use std::process::Output;

use casemate::admin::protocol::{Answer, ArchiveView, Request};
use casemate::base::clock::Timestamp;
use casemate::model::record::Archive;
use serde_json::{Value, json};

use super::{Daemon, ID, administer, answer, casemate, ended, serve, text};

fn run(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = casemate(arguments);
    command.env("CASEMATE_ADMIN_SOCKET", daemon.directory.path().join("s"));
    command.output().unwrap()
}

fn asked(daemon: Daemon) -> Request {
    daemon.thread.join().unwrap().0
}

fn view(first: i64, present: bool) -> ArchiveView {
    ArchiveView {
        path: format!("/a/audit-{first}.jsonl.zst").into(),
        present,
        archive: Archive {
            installation: "ins_x".into(),
            first,
            last: first + 9,
            digest: "00".into(),
            from: Timestamp::from_millis(0),
            to: Timestamp::from_millis(1000),
            file: format!("audit-{first}.jsonl.zst"),
            size_bytes: 2048,
            sha256: "11".into(),
            at: Timestamp::from_millis(2000),
            key: "k".into(),
        },
    }
}

#[test]
fn archives_are_listed_and_what_is_not_there_is_said() {
    let listed = || Answer::AuditArchives {
        items: vec![view(1, true), view(11, false)],
    };
    let daemon = administer(vec![listed()]);
    let output = run(&daemon, &["audit", "archives"]);
    ended(&output, 0);
    let said = text(&output.stdout);
    for wanted in [
        "FIRST",
        "2.0 KiB",
        "/a/audit-11.jsonl.zst",
        "1970-01-01T00:00:01.000Z",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    assert!(text(&output.stderr).contains("1 of them are not there"));
    assert!(matches!(
        asked(daemon),
        Request::AuditArchives { after: 0, .. }
    ));

    let daemon = administer(vec![listed()]);
    let output = run(&daemon, &["audit", "archives", "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["items"][1]["last"], 20);
    assert_eq!(said["items"][1]["present"], false);
    asked(daemon);

    let daemon = administer(vec![Answer::AuditArchives { items: vec![] }]);
    ended(&run(&daemon, &["audit", "archives"]), 0);
    asked(daemon);
}

#[test]
fn records_are_archived_on_demand() {
    let done = |archives| Answer::AuditArchived {
        archives,
        records: 10 * archives,
        up_to: 30,
    };
    let progress = || Answer::Progress {
        received_bytes: 0,
        total_bytes: None,
    };
    let daemon = administer(vec![progress(), done(3)]);
    let output = run(
        &daemon,
        &["audit", "archive", "--before", "2026-01-31T12:00:00Z"],
    );
    ended(&output, 0);
    assert!(text(&output.stdout).contains("archived 30 records in 3 files"));
    let Request::AuditArchive { before } = asked(daemon) else {
        panic!("it asked for something else");
    };
    assert_eq!(before.unwrap().to_string(), "2026-01-31T12:00:00.000Z");

    let daemon = administer(vec![done(0)]);
    let output = run(&daemon, &["audit", "archive"]);
    ended(&output, 0);
    assert!(text(&output.stdout).contains("nothing is to be archived"));
    assert!(matches!(
        asked(daemon),
        Request::AuditArchive { before: None }
    ));

    let daemon = administer(vec![Answer::Refused {
        code: "no_room".into(),
        message: "make room".into(),
    }]);
    let output = run(&daemon, &["audit", "archive", "--json"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("make room"));
    asked(daemon);
}

#[test]
fn what_cannot_be_meant_is_refused_before_anybody_is_asked() {
    for arguments in [
        &["audit", "archive", "--before", "yesterday"][..],
        &["audit", "archive", "FILE"],
        &["audit", "archives", "--limit", "3"],
        &["audit", "verify", "file"],
        &["audit", "verify", "--public-key", "pem"],
        &["audit", "export", "--after", "-1"],
    ] {
        ended(&casemate(arguments).output().unwrap(), 64);
    }
}

#[test]
fn a_list_says_up_to_where_it_did_not_look() {
    let page = json!({"items": [], "archived_up_to": 12});
    let server = serve(vec![answer(200, &page)]);
    let listed = server.command(&["audit", "list", "--session", ID]).output();
    let listed = listed.unwrap();
    ended(&listed, 0);
    assert!(text(&listed.stderr).contains("records up to 12 are archived"));
}
