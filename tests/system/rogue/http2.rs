//! A rogue's HTTP/2: flow control, settings, pings and heads as no peer of ours would send them.

use serde_json::json;

use super::Ask::{List, Read, Run, Usage};
use super::Fate::{Cut, Gone};
use super::{Attack, FRAMES, JSON, STARTED, attacked_with, entry, lines, said};

/// What is said below the frames of the link, or without regard for them.
fn http2() -> Vec<Attack> {
    let run = |script: Vec<String>| (Run, script, Gone);
    // The rest is said after the head of a program's answer; then the rogue hangs up, where the daemon has not.
    let after = |line: &str| run(lines([FRAMES, STARTED, line, "pause 200", "hang-up"]));
    vec![
        run(lines(["head-wide 60", "pause 200", "hang-up"])),
        run(lines(["head-wide 10000", "pause 200", "hang-up"])),
        run(lines(["head-endless 500", "pause 200", "hang-up"])),
        run(lines(["early 50000", "pause 200", "hang-up"])),
        after("head 200 frames"),
        after("settings 100000"),
        after("set 3 0"),
        after("set 4 4294967295"),
        after("set 4 0"),
        after("set 5 1"),
        after("set 1 4294967295"),
        after("pings 200000"),
        after("windows 1 2147483647"),
        after("windows 1 0"),
        after("windows 100000 1"),
        after("resets 20000"),
        after("open 5000"),
        after("promise 1000"),
        after("goaway"),
        after("long 16777215"),
        after("long 70000"),
        after("garbage 100000"),
        after("crumbs 400000"),
        after("empty 100000"),
        after("padding 100000"),
        after("flood 10000"),
        run(lines(["on +2", FRAMES, STARTED, "pause 200", "hang-up"])),
        run(lines(["on 0", FRAMES, "pause 200", "hang-up"])),
        run(lines(["on 2147483647", "data x", "pause 200", "hang-up"])),
        run(lines(["data x", "pause 200", "hang-up"])),
        run(lines([FRAMES, STARTED, "claim 12 1000 x", "hang-up"])),
        run(lines(["hang-up"])),
        run(lines([FRAMES, "hang-up"])),
        (
            Read,
            lines([
                FRAMES,
                &said("21", &entry(json!({}))),
                "doc 22 0123",
                "pause 200",
                "hang-up",
            ]),
            Cut,
        ),
        (
            List(10_000),
            lines([FRAMES, "docs 3 23 {}", "hang-up"]),
            Gone,
        ),
        (Usage, lines(["hang-up"]), Gone),
        (Usage, lines([JSON, "data {", "hang-up"]), Gone),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rogue_guest_that_abuses_http2_loses_its_own_link_and_hurts_nobody() {
    attacked_with(http2()).await;
}
