//! A rogue's sandbox: what it says of its use, its processes and its ports.

use serde_json::{Value, json};

use super::Ask::{Ports, Processes, Usage};
use super::Fate::{Fine, Gone, Problem};
use super::{Attack, END, FRAMES, JSON, MOST, attacked_with, lines, process};

/// Answers to what is asked about the sandbox.
fn lists() -> Vec<Attack> {
    let usage = |text: &str| lines([JSON, &format!("data {text}"), "end"]);
    let processes = |count: u32, changes: Value| {
        lines([
            FRAMES,
            &format!("docs {count} 23 {}", process(changes)),
            END,
            "end",
        ])
    };
    let ports =
        |count: u32, text: &str| lines([FRAMES, &format!("docs {count} 23 {text}"), END, "end"]);
    vec![
        (Usage, usage(&json!({"at_ms": MOST, "uptime_ms": MOST, "cpu_us": MOST, "disk_bytes": MOST, "hostname": "\u{1b}[2J\n\u{0}"}).to_string()), Fine),
        (Usage, usage(r#"{"hostname":"{{h*257}}"}"#), Gone),
        (Usage, usage("{{x*2000000}}"), Gone),
        (Usage, usage("{{[*16000}}"), Gone),
        (Usage, usage(r#"{"cpus":-1}"#), Gone),
        (Usage, usage(r#"{"cpus":1e400}"#), Gone),
        (Usage, usage("[]"), Fine),
        (Usage, usage(""), Gone),
        (Usage, lines(["head 200 frames", "data {}", "end"]), Gone),
        (Usage, lines(["head 404 json", r#"data {"code":"unsupported","message":"no"}"#, "end"]), Problem(501, "unsupported")),
        (Processes, processes(512, json!({"process": 1, "started_at_ms": MOST, "pid": u32::MAX, "stdout_to": MOST})), Fine),
        (Processes, processes(513, json!({})), Gone),
        (Processes, processes(10_000, json!({})), Gone),
        (Processes, processes(512, json!({"argv": vec!["{{\u{1}*256}}"; 16], "cwd": "{{\u{1}*4000}}"})), Gone),
        (Processes, processes(1, json!({"argv": vec!["x"; 17]})), Gone),
        (Processes, processes(1, json!({"argv": ["{{x*257}}"]})), Gone),
        (Processes, processes(1, json!({"user": "{{x*65}}"})), Gone),
        (Processes, processes(1, json!({"stderr_from": 2, "stderr_to": 1})), Gone),
        (Processes, processes(1, json!({"tag": "\u{1b}[31m\r\n\u{0}"})), Fine),
        (Ports, ports(1024, r#"{"port":%n,"address":"::","uid":4294967295}"#), Fine),
        (Ports, ports(1025, r#"{"port":%n,"address":"::","uid":0}"#), Gone),
        (Ports, ports(1, r#"{"port":65536,"address":"::","uid":0}"#), Gone),
        (Ports, ports(1, r#"{"port":1,"address":"localhost\n","uid":0}"#), Gone),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rogue_guest_says_of_its_sandbox_ends_in_a_named_error() {
    attacked_with(lists()).await;
}
