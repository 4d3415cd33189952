//! A rogue's word of what its session changed, which others would run.

use super::Ask::Snapshot;
use super::Fate::{Gone, Problem};
use super::{Attack, END, FRAMES, attacked_with, lines};

const EIGHT: &str = "00000000010";
const NONE: &str = "00000000000";

fn said(archive: &[&str]) -> Vec<String> {
    let mut script = lines([FRAMES, r#"doc 21 {"whole":true}"#]);
    script.extend(archive.iter().map(|&line| line.to_owned()));
    script.extend(lines([END, "end"]));
    script
}

fn attacks() -> Vec<Attack> {
    let file = |name: &str| format!("tar 0 {EIGHT} {name}");
    let content = ["doc 22 contents", "zeros 505"];
    let end = "zeros 1024";
    let lie = |header: String| said(&[&header, content[0], content[1], end]);
    let damaged = Problem(502, "snapshot_damaged");
    let unfit = Problem(422, "snapshot_unfit");
    let large = Problem(413, "snapshot_too_large");
    vec![
        (Snapshot, lie(file("../x")), damaged),
        (Snapshot, lie(file("/etc/x")), damaged),
        (Snapshot, lie(file("a/../../x")), damaged),
        (Snapshot, lie(file("nowhere/x")), damaged),
        (Snapshot, lie(file("")), damaged),
        (Snapshot, lie(file(".wh.passwd")), unfit),
        // A link to what is not in it, a device, a kind that there is not, a sparse file.
        (Snapshot, said(&[&format!("tar 1 {NONE} x"), end]), damaged),
        (Snapshot, said(&[&format!("tar 3 {NONE} x"), end]), damaged),
        (Snapshot, said(&[&format!("tar Z {NONE} x"), end]), damaged),
        (
            Snapshot,
            said(&[&format!("tar S {EIGHT} x"), content[0], content[1], end]),
            damaged,
        ),
        // Sizes that are none, more than there may be, and more than comes.
        (Snapshot, said(&["tar 0 zzzzzzzzzzz x", end]), damaged),
        (
            Snapshot,
            said(&["tar 0 77777777777 x", content[0], end]),
            large,
        ),
        (
            Snapshot,
            said(&["tar 0 00000004000 x", content[0]]),
            damaged,
        ),
        (
            Snapshot,
            said(&[&file("x"), content[0], content[1]]),
            damaged,
        ),
        (Snapshot, said(&["doc 22 {{no archive*512}}", end]), damaged),
        (Snapshot, said(&[]), damaged),
        (Snapshot, lines([FRAMES, END, "end"]), Gone),
        (Snapshot, lines([FRAMES, "doc 21 {}", "end"]), Gone),
    ]
}

#[tokio::test]
async fn what_a_rogue_says_that_it_changed_becomes_no_image() {
    attacked_with(attacks()).await;
}
