//! A rogue's programs: what it says of one that is started, fed, read or signalled.

use serde_json::json;

use super::Ask::{Input, Output, Run, Signal, Start};
use super::Fate::{Cut, Fine, Gone, Problem};
use super::{Attack, FRAMES, JSON, MOST, STARTED, attacked_with, exit, lines, process, said};

/// Answers to a program that is started.
fn programs() -> Vec<Attack> {
    let exited = said("14", &exit(json!({})));
    let exited = exited.as_str();
    let run = |script: Vec<String>, fate| (Run, script, fate);
    let refused = |code: &str, message: &str| {
        lines([
            FRAMES,
            &said("15", &json!({"code": code, "message": message})),
            "end",
        ])
    };
    vec![
        // What is no answer.
        run(lines(["head 500 frames", "end"]), Gone),
        run(lines(["head 302 frames", "end"]), Gone),
        run(lines(["head 200 json", "end"]), Gone),
        run(lines(["head 200 text/html", "end"]), Gone),
        run(lines(["head-end 200 frames"]), Gone),
        run(lines(["head 404 json", "data {{x*1000000}}", "end"]), Gone),
        run(lines(["head 404 json", "data {{[*15000}}", "end"]), Gone),
        run(lines(["head 404 json", "data []", "end"]), Gone),
        run(lines(["reset 8"]), Gone),
        run(lines([FRAMES, "reset 0"]), Gone),
        // Refusals.
        run(refused("not_found", "no"), Problem(422, "program_refused")),
        run(
            refused("made_up", "\u{1b}[31mred\nline"),
            Problem(422, "program_refused"),
        ),
        run(
            refused("not_found", &"m".repeat(15_000)),
            Problem(422, "program_refused"),
        ),
        run(refused("not\nfound", "no"), Gone),
        run(refused("", "no"), Gone),
        run(refused(&"c".repeat(65), "no"), Gone),
        run(
            refused("file_not_found", "no"),
            Problem(404, "file_not_found"),
        ),
        // Out of order.
        run(
            lines([FRAMES, "doc 12 early", STARTED, exited, "end"]),
            Gone,
        ),
        run(lines([FRAMES, exited, "end"]), Gone),
        run(lines([FRAMES, STARTED, STARTED, exited, "end"]), Gone),
        run(
            lines([FRAMES, STARTED, &said("16", &process(json!({}))), "end"]),
            Gone,
        ),
        run(lines([FRAMES, STARTED, exited, exited, "end"]), Fine),
        run(lines([FRAMES, STARTED, exited, "doc 12 late", "end"]), Fine),
        run(lines([FRAMES, STARTED, "end"]), Gone),
        run(lines([FRAMES, STARTED, "doc 12 x", "reset 8"]), Gone),
        // Too much of everything.
        run(
            lines([FRAMES, STARTED, "docs 200 12 {{x*16000}}", exited, "end"]),
            Gone,
        ),
        run(
            lines([
                FRAMES,
                STARTED,
                &said("17", &json!({"stdout_bytes": MOST, "stderr_bytes": MOST})),
                exited,
                "end",
            ]),
            Gone,
        ),
        run(lines([FRAMES, STARTED, "claim 12 65537 x", "end"]), Gone),
        run(lines([FRAMES, STARTED, "claim 14 16385 x", "end"]), Gone),
        run(
            lines([FRAMES, STARTED, "claim 80 4294967295 x", "end"]),
            Gone,
        ),
        run(lines([FRAMES, STARTED, "claim 12 1000 x", "end"]), Gone),
        run(lines([FRAMES, STARTED, "doc 7f x", exited, "end"]), Gone),
        run(lines([FRAMES, "doc 11 {{x*16000}}", "end"]), Gone),
        run(lines([FRAMES, "doc 11 {{[*16000}}", "end"]), Gone),
        run(
            lines([FRAMES, r#"doc 11 {"process":-1,"pid":1}"#, exited, "end"]),
            Gone,
        ),
        run(
            lines([
                FRAMES,
                r#"doc 11 {"process":1,"pid":1,"pid":2}"#,
                exited,
                "end",
            ]),
            Gone,
        ),
        run(
            lines([
                FRAMES,
                "doc 11 {\"process\":18446744073709551615,\"pid\":4294967295}",
                exited,
                "end",
            ]),
            Fine,
        ),
        run(
            lines([
                FRAMES,
                STARTED,
                &said(
                    "14",
                    &exit(
                        json!({"exit_code": i32::MIN, "duration_ms": MOST, "stdout_dropped_bytes": MOST}),
                    ),
                ),
                "end",
            ]),
            Fine,
        ),
        run(
            lines([
                FRAMES,
                STARTED,
                &said("14", &exit(json!({"exit_code": 1_u64 << 31}))),
                "end",
            ]),
            Gone,
        ),
        run(
            lines([
                FRAMES,
                STARTED,
                &said("14", &exit(json!({"exit_code": null, "signal": -9}))),
                "end",
            ]),
            Fine,
        ),
        // Padding, which is nothing, however much of it there is.
        run(
            lines([FRAMES, STARTED, "padding 20000", exited, "end"]),
            Fine,
        ),
        (Start, lines([FRAMES, STARTED, "stall"]), Fine),
        (
            Input,
            lines([
                JSON,
                r#"data {"written_bytes":18446744073709551615}"#,
                "end",
            ]),
            Fine,
        ),
        (
            Input,
            lines([JSON, r#"data {"written_bytes":1e99}"#, "end"]),
            Gone,
        ),
        (
            Input,
            lines([
                "head 409 json",
                r#"data {"code":"no_input","message":"no"}"#,
                "end",
            ]),
            Problem(409, "no_input"),
        ),
        (Signal, lines([JSON, "data {{[*9000}}", "end"]), Gone),
        (Signal, lines([JSON, "data null", "end"]), Fine),
        (
            Output,
            lines([
                FRAMES,
                &said("16", &process(json!({"stdout_to": MOST}))),
                "end",
            ]),
            Cut,
        ),
        (
            Output,
            lines([
                FRAMES,
                &said("16", &process(json!({"stdout_from": 2, "stdout_to": 1}))),
                "end",
            ]),
            Gone,
        ),
        (
            Output,
            lines([
                FRAMES,
                &said("16", &process(json!({"started_at_ms": MOST}))),
                &said("17", &json!({"stdout_bytes": MOST, "stderr_bytes": 0})),
                exited,
                "end",
            ]),
            Fine,
        ),
        (
            Output,
            lines([
                FRAMES,
                &said("16", &process(json!({}))),
                &said("17", &json!({"stdout_bytes": MOST, "stderr_bytes": 0})),
                "doc 12 one more",
                exited,
                "end",
            ]),
            Cut,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rogue_guest_says_of_programs_ends_in_a_named_error() {
    attacked_with(programs()).await;
}
