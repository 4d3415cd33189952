//! `casemate audit`: which door is asked, what is asked there, and how it is shown.

use casemate::admin::protocol::{Answer, Request};
use casemate::model::event::OutcomeResult;
use serde_json::{Value, json};

use super::{Daemon, ID, administer, answer, casemate, ended, serve, text};

const EVENT: &str = "evt_00000000000000000000000001";

fn record(seq: i64) -> Value {
    json!({
        "seq": seq, "id": EVENT, "at": "2026-01-31T12:00:00.000Z", "stage": "intent", "principal": "uid:0",
        "event": {"kind": "key.create", "name": "a\u{1b}b"}, "digest": "00",
    })
}

fn told(end: Answer) -> Daemon {
    let line = |seq| Answer::AuditLines {
        lines: vec![record(seq).to_string()],
    };
    administer(vec![line(7), line(9), end])
}

fn listed(archived_up_to: Option<i64>) -> Daemon {
    told(Answer::AuditListed { archived_up_to })
}

fn asked(daemon: &Daemon, arguments: &[&str]) -> std::process::Output {
    let mut command = casemate(arguments);
    command.env("CASEMATE_ADMIN_SOCKET", daemon.directory.path().join("s"));
    command.output().unwrap()
}

#[test]
fn an_operator_lists_everything_by_every_filter() {
    let daemon = listed(Some(5));
    let output = asked(
        &daemon,
        &[
            "audit",
            "list",
            "--session",
            ID,
            "--kind",
            "key.create,key.use",
            "--principal",
            "uid:0",
            "--outcome",
            "failed",
            "--intent",
            EVENT,
            "--from",
            "2026-01-31T12:00:00Z",
            "--to",
            "2026-02-01T00:00:00+01:00",
            "--cursor",
            "5",
            "--limit",
            "2",
        ],
    );
    ended(&output, 0);
    let shown = text(&output.stdout);
    assert!(
        shown.starts_with("AT ") && shown.contains("key.create"),
        "{shown}"
    );
    assert!(!shown.contains('\u{1b}'), "{shown}");
    let said = text(&output.stderr);
    assert!(
        said.contains("--cursor 9") && said.contains("records up to 5 are archived"),
        "{said}"
    );
    let (request, _) = daemon.thread.join().unwrap();
    let Request::AuditList { filter } = request else {
        panic!("{request:?}");
    };
    assert_eq!(filter.session.unwrap().to_string(), ID);
    assert_eq!(filter.kinds, ["key.create", "key.use"]);
    assert_eq!(filter.principal.as_deref(), Some("uid:0"));
    assert_eq!(filter.result, Some(OutcomeResult::Failed));
    assert_eq!(filter.intent.unwrap().to_string(), EVENT);
    assert_eq!(filter.from.unwrap().to_string(), "2026-01-31T12:00:00.000Z");
    assert_eq!(filter.to.unwrap().to_string(), "2026-01-31T23:00:00.000Z");
    assert_eq!((filter.after, filter.limit), (5, 2));
}

#[test]
fn a_program_reads_a_page_the_same_at_both_doors() {
    let daemon = listed(None);
    let output = asked(&daemon, &["--json", "audit", "list"]);
    ended(&output, 0);
    let page = json!({"items": [record(7), record(9)], "next_cursor": null});
    assert_eq!(
        serde_json::from_slice::<Value>(&output.stdout).unwrap(),
        page
    );
    let server = serve(vec![answer(200, &page)]);
    let filters = [
        "--session",
        ID,
        "--kind",
        "key.create,key.use",
        "--outcome",
        "ok",
        "--from",
        "2026-01-31T12:00:00Z",
    ];
    let mut command = server.command(&["--json", "audit", "list"]);
    let output = command.args(filters).output().unwrap();
    ended(&output, 0);
    assert_eq!(
        serde_json::from_slice::<Value>(&output.stdout).unwrap(),
        page
    );
    let lines = server.lines();
    for part in [
        &format!("session={ID}"),
        "kind=key.create%2Ckey.use",
        "outcome=ok",
        "from=2026-01-31T12%3A00%3A00.000Z",
        "limit=50",
    ] {
        assert!(lines[0].contains(part), "{part} in {lines:?}");
    }
}

#[test]
fn who_may_not_read_everything_is_told_what_may_be_read() {
    let refused = administer(vec![Answer::Refused {
        code: "not_an_operator".into(),
        message: "no".into(),
    }]);
    let output = asked(&refused, &["audit", "list"]);
    ended(&output, 77);
    assert!(text(&output.stderr).contains("--session ID"));
    for (arguments, sentence) in [
        (&["audit", "list", "--from", "yesterday"][..], "a time like"),
        (&["audit", "list", "--outcome", "maybe"], "maybe"),
        (&["audit", "list", "--limit", "201"], "201"),
        (&["audit", "list", "--cursor", "-1"], "-1"),
        (&["audit", "list", "--session", "ses_1"], "ses_1"),
        (&["audit", "list", "--intent", "7"], "7"),
        (
            &["audit", "tail", "--from", "2026-01-31T12:00:00Z"],
            "--from",
        ),
        (&["audit", "export", "--format", "xml"], "xml"),
    ] {
        let output = casemate(arguments).output().unwrap();
        ended(&output, 64);
        assert!(text(&output.stderr).contains(sentence), "{arguments:?}");
    }
}

#[test]
fn a_tail_is_filtered_and_an_export_has_a_format() {
    let daemon = told(Answer::Done);
    let output = asked(
        &daemon,
        &["audit", "tail", "-n", "3", "--kind", "key.create"],
    );
    ended(&output, 0);
    assert_eq!(text(&output.stdout).lines().count(), 2);
    let (request, _) = daemon.thread.join().unwrap();
    assert!(
        matches!(&request, Request::AuditTail { last: 3, filter, follow: false } if filter.kinds == ["key.create"]),
        "{request:?}"
    );
    for (format, is_ocsf) in [("ocsf", true), ("jsonl", false)] {
        let daemon = told(Answer::Done);
        let output = asked(&daemon, &["audit", "export", "--format", format]);
        ended(&output, 0);
        let (request, _) = daemon.thread.join().unwrap();
        assert!(
            matches!(request, Request::AuditExport { after: 0, until: None, ocsf } if ocsf == is_ocsf),
            "{request:?}"
        );
    }
}
