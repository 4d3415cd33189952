//! Programs that behave badly, and those that are asked for badly.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Daemon, wait_until};

/// The bytes of an output, however it is written.
fn bytes(outcome: &Value, which: &str) -> Vec<u8> {
    let text = outcome[which].as_str().unwrap();
    match outcome[format!("{which}_encoding")].as_str().unwrap() {
        "utf-8" => text.as_bytes().to_vec(),
        "base64" => STANDARD.decode(text).unwrap(),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn exit_codes_signals_and_both_outputs_come_back() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    let outcome = client
        .run(
            &id,
            json!({"argv": ["sh", "-c", "echo out; echo err >&2; exit 7"]}),
        )
        .await;
    assert_eq!(outcome["exit_code"], 7);
    assert_eq!(outcome["stdout"], "out\n");
    assert_eq!(outcome["stderr"], "err\n");
    let outcome = client
        .run(&id, json!({"argv": ["sh", "-c", "kill -SEGV $$"]}))
        .await;
    assert_eq!(outcome["signal"], 11, "{outcome}");
    assert!(outcome.get("exit_code").is_none(), "{outcome}");
    let outcome = client
        .run(&id, json!({"command": "echo $0; false | true; echo $?"}))
        .await;
    assert_eq!(outcome["stdout"], "/bin/bash\n0\n");
    let outcome = client
        .run(&id, json!({"argv": ["cat"], "stdin": "héllo"}))
        .await;
    assert_eq!(outcome["stdout"], "héllo");
    // Without input there is an end of input, and not somebody's terminal.
    let outcome = client.run(&id, json!({"argv": ["cat"]})).await;
    assert_eq!(
        (&outcome["stdout"], &outcome["exit_code"]),
        (&json!(""), &json!(0))
    );
}

#[tokio::test]
async fn output_that_is_not_utf8_comes_back_unharmed_and_so_does_input() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    let all: Vec<u8> = (0..=255).cycle().take(102_400).collect();
    let script = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 400); sys.stderr.buffer.write(b'\\xff\\x00\\xfe')";
    let outcome = client
        .run(&id, json!({"argv": ["python3", "-c", script]}))
        .await;
    assert_eq!(outcome["stdout_encoding"], "base64");
    assert_eq!(bytes(&outcome, "stdout"), all);
    assert_eq!(bytes(&outcome, "stderr"), b"\xff\x00\xfe");
    assert_eq!(outcome["truncated"], false);

    let run = json!({"argv": ["cat"], "stdin": STANDARD.encode(&all), "stdin_encoding": "base64"});
    let outcome = client.run(&id, run).await;
    assert_eq!(bytes(&outcome, "stdout"), all);

    for bad in ["@@@", "QQ", "QQ==\n"] {
        let run = json!({"argv": ["cat"], "stdin": bad, "stdin_encoding": "base64"});
        client
            .try_run(&id, run)
            .await
            .problem(400, "invalid_request");
    }
    let run = json!({"argv": ["cat"], "stdin": "", "stdin_encoding": "hex"});
    client
        .try_run(&id, run)
        .await
        .problem(400, "invalid_request");
}

#[tokio::test]
async fn output_is_kept_up_to_its_bound_and_only_then_called_truncated() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    for (written, bound, kept, truncated) in [
        (1000, 1000, 1000, false),
        (1001, 1000, 1000, true),
        (999, 1000, 999, false),
        (0, 0, 0, false),
        (1, 0, 0, true),
        (1 << 20, 1 << 20, 1 << 20, false),
        ((1 << 20) + 1, 1 << 20, 1 << 20, true),
    ] {
        let script = format!("import sys; sys.stdout.write('x' * {written})");
        let run = json!({"argv": ["python3", "-c", script], "max_output_bytes": bound});
        let outcome = client.run(&id, run).await;
        let found = outcome["stdout"].as_str().unwrap().len();
        assert_eq!(found, kept, "{written} of {bound}");
        assert_eq!(outcome["truncated"], truncated, "{written} of {bound}");
        assert_eq!(
            outcome["exit_code"], 0,
            "a program is not hurt by the bound"
        );
    }
    let run = json!({"argv": ["sh", "-c", "printf aé"], "max_output_bytes": 2});
    let outcome = client.run(&id, run).await;
    assert_eq!(outcome["stdout"], "a", "no half character: {outcome}");
}

#[tokio::test]
async fn a_program_that_prints_without_end_is_cut_off_in_time() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    let began = Instant::now();
    let run = json!({"argv": ["yes"], "timeout_s": 2, "max_output_bytes": 1000});
    let outcome = client.run(&id, run).await;
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(outcome["timed_out"], true, "{outcome}");
    assert_eq!(outcome["truncated"], true);
    assert_eq!(outcome["stdout"].as_str().unwrap().len(), 1000);
    assert_eq!(outcome["signal"], 15);
    // The daemon kept what was asked for and no more.
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let peak_kb: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(peak_kb < 150_000, "{peak}");
    assert_eq!(client.out(&id, "echo alive").await, "alive\n");
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_is_killed_after_its_grace() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    let began = Instant::now();
    // Its children ignore it as well.
    let script = "trap '' TERM; (while :; do sleep 0.2; done) & while :; do sleep 0.2; done";
    let run = json!({"argv": ["bash", "-c", script], "timeout_s": 1});
    let outcome = client.run(&id, run).await;
    assert_eq!(outcome["timed_out"], true, "{outcome}");
    assert_eq!(outcome["signal"], 9);
    assert!(
        began.elapsed() >= Duration::from_secs(3),
        "1 s and 2 s of grace"
    );
    assert!(began.elapsed() < Duration::from_secs(20));
    wait_until("its whole group is gone", async || {
        !client.out(&id, "ps -eo args").await.contains("trap")
    })
    .await;
}

#[tokio::test]
async fn a_program_that_leaves_a_child_behind_is_answered_at_once_and_the_child_lives() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    let began = Instant::now();
    // The child keeps both outputs open.
    let run = json!({"argv": ["sh", "-c", "sleep 4321 & echo started"], "timeout_s": 30});
    let outcome = client.run(&id, run).await;
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(outcome["stdout"], "started\n");
    assert_eq!(
        (&outcome["exit_code"], &outcome["timed_out"]),
        (&json!(0), &json!(false))
    );
    assert_eq!(
        client.out(&id, "ps -eo args | grep -c '^sleep 4321'").await,
        "1\n"
    );
    client.out(&id, "pkill -f '^sleep 4321'").await;
    wait_until("PID 1 reaps what was left to it", async || {
        let left = client
            .sh(
                &id,
                "ps -eo stat,args | grep -E '^Z|sleep 4321' | grep -v grep",
            )
            .await;
        left.1.is_empty()
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_with_a_sentence() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    client
        .out(&id, "echo text >/home/user/plain && mkdir /home/user/dir")
        .await;
    for (run, word) in [
        (json!({"argv": ["no-such-program"]}), "(not_found)"),
        (json!({"argv": ["/no/such/program"]}), "(not_found)"),
        (json!({"argv": ["/home/user/plain"]}), "(permission_denied)"),
        (json!({"argv": ["/home/user/dir"]}), "(permission_denied)"),
        (
            json!({"argv": ["true"], "cwd": "/no/such/dir"}),
            "(bad_workdir)",
        ),
        (json!({"argv": ["true"], "user": "nobody-knows"}), "user"),
    ] {
        let detail = client
            .try_run(&id, run)
            .await
            .problem(422, "program_refused");
        assert!(detail.contains(word), "{detail}");
    }
    for (run, word) in [
        (json!({}), "argv or command"),
        (json!({"argv": []}), "argv"),
        (json!({"argv": [""]}), ""),
        (
            json!({"argv": ["true"], "command": "true"}),
            "argv or command",
        ),
        (json!({"argv": ["true"], "timeout_s": 0}), "timeout_s"),
        (json!({"argv": ["true"], "timeout_s": 3601}), "3600"),
        (json!({"argv": ["true"], "timeout_s": -1}), "-1"),
        (
            json!({"argv": ["true"], "max_output_bytes": (1 << 20) + 1}),
            "1048576",
        ),
        (json!({"argv": ["true"], "nonsense": 1}), "nonsense"),
        (json!({"argv": ["tr\u{0}ue"]}), ""),
        (json!({"argv": ["true"], "env": {"A=B": "c"}}), ""),
        (json!({"argv": ["true"], "env": {"": "c"}}), ""),
        (json!({"argv": ["true"], "env": {"A": "\u{0}"}}), ""),
        (json!({"argv": "true"}), ""),
        (json!({"argv": ["x".repeat(300_000)]}), ""),
    ] {
        let answer = client.try_run(&id, run.clone()).await;
        let shown = run.to_string();
        let detail = answer.problem(400, "invalid_request");
        assert!(
            detail.contains(word),
            "{}: {detail}",
            &shown[..shown.len().min(80)]
        );
    }
    assert_eq!(client.out(&id, "echo alive").await, "alive\n");
}

#[tokio::test]
async fn many_programs_run_at_once_and_none_gets_anothers_output() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    let runs = (0..24).map(|n| {
        let script = format!("for i in 1 2 3; do echo {n}; done; cat");
        let run = json!({"argv": ["sh", "-c", script], "stdin": format!("in {n}")});
        client.run(&id, run)
    });
    for (n, outcome) in join_all(runs).await.into_iter().enumerate() {
        assert_eq!(
            outcome["stdout"],
            format!("{n}\n{n}\n{n}\nin {n}"),
            "{outcome}"
        );
    }
}
