//! A rogue's files: what it says of what they are and what is in them.

use serde_json::{Value, json};

use super::Ask::{Archive, List, Mkdir, Read, ReadPart, Remove, Stat, Watch, Write};
use super::Fate::{Cut, Fine, Gone, Problem, Told};
use super::{Attack, END, FRAMES, House, MOST, attacked_with, entry, lines, said};
use crate::support::wait_until;

/// Answers to what is asked about files.
fn files() -> Vec<Attack> {
    let item = |changes: Value| lines([FRAMES, &said("23", &entry(changes)), END, "end"]);
    let head = |changes: Value, more: &[&str]| {
        let mut script = lines([FRAMES, &said("21", &entry(changes))]);
        script.extend(more.iter().map(|&line| line.to_owned()));
        script
    };
    let plain = said("23", &entry(json!({})));
    let long = "{{a*4000}}";
    let event = |path: &str| said("23", &json!({"change": "write", "path": path}));
    vec![
        (Stat, item(json!({"modified_ms": i64::MAX})), Fine),
        (Stat, item(json!({"modified_ms": i64::MIN})), Fine),
        (
            Stat,
            item(json!({"uid": u32::MAX, "gid": u32::MAX, "size_bytes": i64::MAX})),
            Fine,
        ),
        (
            Stat,
            item(json!({"path": "../../etc\u{0}\u{1b}]0;x\u{7}\r\n", "owner": "\u{202e}"})),
            Fine,
        ),
        (
            Stat,
            item(json!({"metadata": {"a\r\nb": "c\r\nd", "": ""}})),
            Fine,
        ),
        (Stat, item(json!({"size_bytes": MOST})), Gone),
        (Stat, item(json!({"mode": 0o10000})), Gone),
        (Stat, item(json!({"etag": "\"\r\nx: y"})), Gone),
        (Stat, item(json!({"etag": ""})), Gone),
        (Stat, item(json!({"kind": "symlink"})), Gone),
        (Stat, item(json!({"path": "{{a*4097}}"})), Gone),
        (Stat, item(json!({"path": "{{a*1048576}}"})), Gone),
        (Stat, item(json!({"owner": "{{a*65}}"})), Gone),
        (Stat, item(json!({"metadata": {"a": "{{a*9000}}"}})), Gone),
        (Stat, item(json!({"kind": 7})), Gone),
        (Stat, item(json!({"kind": "door"})), Fine),
        (
            Stat,
            lines([FRAMES, "doc 23 {{[*60000}}", END, "end"]),
            Gone,
        ),
        (Stat, lines([FRAMES, "doc 23 \u{fffd}", END, "end"]), Gone),
        (Stat, lines([FRAMES, &plain, &plain, END, "end"]), Gone),
        (Stat, lines([FRAMES, &plain, "end"]), Gone),
        (Stat, lines([FRAMES, END, "end"]), Gone),
        (Stat, lines([FRAMES, "doc 22 bytes", END, "end"]), Gone),
        (
            Stat,
            lines([FRAMES, &plain, END, "docs 50 22 more", "end"]),
            Fine,
        ),
        (
            Stat,
            lines([
                FRAMES,
                r#"doc 25 {"code":"file_denied","message":"\u0007"}"#,
                "end",
            ]),
            Problem(403, "file_denied"),
        ),
        (Stat, lines([FRAMES, "claim 23 65537 x", "end"]), Gone),
        (
            List(10),
            lines([
                FRAMES,
                &format!("docs 12 23 {}", entry(json!({}))),
                END,
                "end",
            ]),
            Gone,
        ),
        (
            List(10),
            lines([
                FRAMES,
                &format!("docs 11 23 {}", entry(json!({}))),
                END,
                "end",
            ]),
            Fine,
        ),
        (
            List(10_000),
            lines([
                FRAMES,
                &format!("docs 10001 23 {}", entry(json!({"path": "/%n"}))),
                END,
                "end",
            ]),
            Fine,
        ),
        (
            List(10_000),
            lines([
                FRAMES,
                &format!(
                    "docs 10001 23 {}",
                    entry(json!({"path": long, "target": long}))
                ),
                END,
            ]),
            Fine,
        ),
        (
            List(10_000),
            lines([FRAMES, &format!("docs 1000000 23 {}", entry(json!({})))]),
            Gone,
        ),
        (
            Read,
            head(json!({}), &["doc 22 0123456789", END, "end"]),
            Fine,
        ),
        (
            Read,
            head(json!({}), &["doc 22 01234567890", END, "end"]),
            Cut,
        ),
        (
            Read,
            head(json!({}), &["doc 22 012345678", END, "end"]),
            Cut,
        ),
        (Read, head(json!({}), &["doc 22 0123456789", "end"]), Cut),
        (
            Read,
            head(
                json!({}),
                &[
                    "doc 22 0123",
                    "doc 25 {\"code\":\"file_failed\",\"message\":\"\"}",
                    "end",
                ],
            ),
            Cut,
        ),
        (
            Read,
            head(
                json!({"size_bytes": i64::MAX}),
                &["doc 22 0123456789", END, "end"],
            ),
            Cut,
        ),
        (Read, head(json!({"size_bytes": MOST}), &["end"]), Gone),
        (
            Read,
            head(
                json!({"metadata": {"a\r\nb": "c", "d": "e\r\nf", "g": "\u{1}"}}),
                &["doc 22 0123456789", END, "end"],
            ),
            Fine,
        ),
        (Read, head(json!({}), &["reset 8"]), Cut),
        // The look before a part and the reading are told different things: the script answers both alike.
        (ReadPart, item(json!({})), Gone),
        (ReadPart, head(json!({}), &[END, "end"]), Gone),
        (
            Write,
            lines([FRAMES, "doc 21 {}", &plain, END, "end"]),
            Told,
        ),
        (
            Write,
            lines([FRAMES, "doc 21 {}", "pause 300", &plain, END, "end"]),
            Fine,
        ),
        (
            Write,
            lines([FRAMES, "doc 21 {}", "pause 300", "docs 100000 22 x", "end"]),
            Gone,
        ),
        (
            Write,
            lines([
                FRAMES,
                "doc 21 {}",
                "doc 25 {\"code\":\"disk_full\",\"message\":\"full\"}",
                "end",
            ]),
            Problem(507, "disk_full"),
        ),
        (Mkdir, lines([FRAMES, &plain, END, "end"]), Gone),
        (
            Mkdir,
            lines([
                FRAMES,
                &said(
                    "23",
                    &json!({"created": true, "entry": entry(json!({"mode": MOST}))}),
                ),
                END,
                "end",
            ]),
            Gone,
        ),
        (Remove, lines([FRAMES, &plain, END, "end"]), Gone),
        (Remove, lines([FRAMES, END, "end"]), Fine),
        (
            Watch,
            lines([FRAMES, "doc 21 {}", &event("{{a*4097}}"), "end"]),
            Cut,
        ),
        (
            Watch,
            lines([
                FRAMES,
                "doc 21 {}",
                &event("\r\n\r\nevent: forged\n\u{0}"),
                END,
                "end",
            ]),
            Fine,
        ),
        (
            Watch,
            lines([
                FRAMES,
                "doc 21 {}",
                r#"doc 23 {"change":"explode","path":""}"#,
                END,
                "end",
            ]),
            Cut,
        ),
        (
            Watch,
            lines([FRAMES, "doc 21 {}", "doc 22 bytes", "end"]),
            Cut,
        ),
        (
            Archive,
            head(json!({}), &["docs 100 22 {{x*16000}}", "reset 8"]),
            Cut,
        ),
        (
            Archive,
            head(json!({}), &["doc 22 not a tar", END, "end"]),
            Fine,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rogue_guest_says_of_files_ends_in_a_named_error() {
    attacked_with(files()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_counts_as_read_when_the_guest_has_said_that_it_was_all() {
    let mut house = House::new().await;
    let rogue = house.rogue().await;
    house.look();
    for (size, bytes, end, outcome) in [
        (10, "0123456789", END, "ok"),
        (0, "", END, "ok"),
        (10, "0123456789", "pause 0", "failed"),
    ] {
        let head = said("21", &entry(json!({"size_bytes": size})));
        let data = format!("doc 22 {bytes}");
        rogue.told(&lines([FRAMES, &head, &data, end, "end"])).await;
        let answer = rogue.ask(Read).await;
        assert_eq!(answer.is_ok(), outcome == "ok", "{answer:?}");
        let record = "SELECT outcome FROM audit WHERE stage = 'outcome' AND kind = 'file.read' ORDER BY rowid DESC LIMIT 1";
        wait_until("it is recorded", async || {
            house
                .daemon
                .sql::<String>(record)
                .first()
                .is_some_and(|told| told.contains(outcome))
        })
        .await;
    }
    house.unharmed().await;
}
