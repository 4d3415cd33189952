//! Each bound of a session holds, is in the record by its name, and spares the neighbours: while one session does its worst,
//! a program in another takes no more than twice as long as before.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::support::{Client, Daemon, bench, wait_until};

/// One at a time: they measure.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Measured before a neighbour is disturbed, and at least while it is.
const SAMPLES: usize = 25;

/// How often it is tried before a neighbour counts as disturbed.
const ROUNDS: usize = 4;

/// Half a core, so that a machine of two has some left, and small in all else.
fn small() -> Value {
    json!({"memory_bytes": 256 << 20, "cpus": 0.5, "pids": 64, "disk_bytes": 1 << 30, "open_files": 256})
}

/// The names of the limits that a session has reached, by its records.
async fn reached(client: &Client, id: &str) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for record in client.audit(id).await {
        if record["event"]["kind"] == "session.limit" {
            assert_eq!(record["stage"], "fact");
            let name = record["event"]["limit"].as_str().unwrap().to_owned();
            *names.entry(name).or_default() += 1;
        }
    }
    names
}

/// Waits until a limit is in the record; looking at what a session uses is what finds some of them.
async fn until_reached(client: &Client, id: &str, limit: &str) {
    wait_until(&format!("session.limit {limit}"), async || {
        client.get(&format!("/v1/sessions/{id}/usage")).await;
        reached(client, id).await.contains_key(limit)
    })
    .await;
}

/// How long a program takes in a session.
async fn sample(client: &Client, id: &str) -> Duration {
    let began = Instant::now();
    let outcome = client.run(id, json!({"argv": ["true"]})).await;
    assert_eq!(outcome["exit_code"], 0);
    began.elapsed()
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort();
    samples[samples.len() / 2]
}

/// Does the worst, and makes sure that a neighbour's median stays within twice of what it was. What else the machine does in
/// the meantime may come in between, but not each time.
async fn beside<T>(client: &Client, neighbour: &str, worst: impl AsyncFn() -> T) -> T {
    let mut found = Vec::new();
    while found.len() < ROUNDS {
        let mut before = Vec::new();
        while before.len() < SAMPLES {
            before.push(sample(client, neighbour).await);
        }
        let mut during = Vec::new();
        let mut worst = pin!(worst());
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut worst => break outcome,
                taken = sample(client, neighbour) => during.push(taken),
            }
        };
        assert!(during.len() >= SAMPLES, "only {} samples", during.len());
        let (before, during) = (median(before), median(during));
        found.push((before, during));
        if during <= before * 2 {
            return outcome;
        }
    }
    panic!("a neighbour's time before, and beside: {found:?}");
}

/// A daemon, a session to be bad in, and one to be disturbed.
async fn two() -> (Daemon, String, String, MutexGuard<'static, ()>) {
    let alone = ALONE.lock().await;
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let bad = client.session(json!({"limits": small()})).await;
    let neighbour = client.session(json!({})).await;
    (daemon, bad, neighbour, alone)
}

fn python(script: &str, timeout_s: u64) -> Value {
    json!({"argv": ["python3", "-c", script], "timeout_s": timeout_s})
}

#[tokio::test]
async fn a_memory_hog_is_ended_and_named() {
    let (daemon, bad, neighbour, _alone) = two().await;
    let client = &daemon.client;
    let hog = "
import time
kept = []
while True:
    kept.append(bytearray(b'x') * (4 << 20))
    time.sleep(0.05)
";
    client.end(&bad).await;
    let worst = async || {
        let bad = client.session(json!({"limits": small()})).await;
        let container = daemon.container_of(&bad).await.unwrap().id;
        let answer = client.try_run(&bad, python(hog, 60)).await;
        assert!(!answer.status.is_success(), "{answer:?}");
        let session = daemon.phase(&bad, "failed").await;
        assert_eq!(session["reason"], "limit_memory", "{session}");
        assert_eq!(reached(client, &bad).await["memory"], 1);
        container
    };
    let container = beside(client, &neighbour, worst).await;
    assert_eq!(client.look(&neighbour).await["phase"], "ready");
    // What it left behind as a proof goes with the next sandbox.
    client.session(json!({})).await;
    for place in places() {
        assert!(!place.join(&container).exists());
    }
}

#[tokio::test]
async fn memory_in_tmp_counts_with_that_of_programs() {
    let (daemon, bad, _, _alone) = two().await;
    let client = &daemon.client;
    // Two file systems of half the memory each, and something more than gVisor's own part.
    let hog = "
import mmap
for place in ['/tmp/x', '/dev/shm/x']:
    with open(place, 'wb') as file: file.write(bytes(128 << 20))
print('full', flush=True)
kept = mmap.mmap(-1, 200 << 20)
kept.write(bytes(200 << 20))
";
    client.try_run(&bad, python(hog, 60)).await;
    let session = daemon.phase(&bad, "failed").await;
    assert_eq!(session["reason"], "limit_memory", "{session}");
}

#[tokio::test]
async fn a_fork_bomb_is_named_and_keeps_to_itself() {
    let (daemon, _, neighbour, _alone) = two().await;
    let client = &daemon.client;
    // Python takes 4 MiB for each process, and memory is not what is to be met here.
    let mut limits = small();
    limits["memory_bytes"] = json!(1 << 30);
    let bad = client.session(json!({"limits": limits})).await;
    // A real one: every child forks on.
    let bomb = "
import os
while True:
    try: os.fork()
    except OSError: pass
";
    let run = json!({"argv": ["python3", "-c", bomb], "timeout_s": 6, "max_output_bytes": 1000});
    let outcome = beside(client, &neighbour, async || {
        client.try_run(&bad, run.clone()).await
    })
    .await;
    let outcome = outcome.expect(200);
    assert_eq!(outcome["timed_out"], true, "{outcome}");
    // One that stays is seen by whoever looks.
    let sleeper = "
import os, time
try:
    while os.fork(): pass
except OSError: pass
time.sleep(60)
";
    let run = python(sleeper, 50);
    let (_, ()) = tokio::join!(client.try_run(&bad, run), async {
        until_reached(client, &bad, "processes").await;
        client.end(&bad).await;
    });
    // No bound of the host's was met: it would have been gVisor's end.
    assert_eq!(client.look(&bad).await["reason"], "client");
}

#[tokio::test]
async fn a_disk_filler_is_named_and_keeps_to_itself() {
    let (daemon, bad, neighbour, _alone) = two().await;
    let client = &daemon.client;
    let filler = "
import time
written = 0
with open('/home/user/x', 'wb', buffering=0) as file:
    try:
        while True:
            written += file.write(bytes(4 << 20))
            time.sleep(0.01)
    except OSError as error:
        print(error.strerror, written >> 20)
";
    let outcome = beside(client, &neighbour, async || {
        client.run(&bad, python(filler, 100)).await
    })
    .await;
    let said = outcome["stdout"].as_str().unwrap();
    let (why, mib) = said.trim().rsplit_once(' ').unwrap();
    assert_eq!(why, "File too large", "{outcome}");
    assert!((900..=1024).contains(&mib.parse().unwrap()), "{said}");
    until_reached(client, &bad, "disk").await;
    client.out(&bad, "rm /home/user/x").await;
}

#[tokio::test]
async fn a_descriptor_leak_is_named_and_keeps_to_itself() {
    let (daemon, bad, neighbour, _alone) = two().await;
    let client = &daemon.client;
    let limits = client.out(&bad, "ulimit -Sn; ulimit -Hn").await;
    assert_eq!(limits, "256\n256\n");
    let (code, _) = client.sh(&bad, "ulimit -n 257").await;
    assert_ne!(code, 0);
    let leak = "
import os, time
try:
    while True: os.open('/dev/null', os.O_RDONLY)
except OSError as error:
    print(error.strerror)
time.sleep(5)
";
    let outcome = beside(client, &neighbour, async || {
        let run = client.run(&bad, python(leak, 60));
        let (outcome, ()) = tokio::join!(run, until_reached(client, &bad, "open_files"));
        outcome
    });
    assert_eq!(outcome.await["stdout"], "Too many open files\n");
}

#[tokio::test]
async fn a_busy_loop_is_named_and_keeps_to_itself() {
    let (daemon, bad, neighbour, _alone) = two().await;
    let client = &daemon.client;
    // All cores, if it is let.
    let busy = "for n in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait";
    let run = json!({"argv": ["/bin/sh", "-c", busy], "timeout_s": 6});
    let outcome = beside(client, &neighbour, async || {
        client.run(&bad, run.clone()).await
    })
    .await;
    assert_eq!(outcome["timed_out"], true, "{outcome}");
    until_reached(client, &bad, "cpu").await;
    assert_eq!(reached(client, &bad).await["time"], 1);
}

#[tokio::test]
async fn output_and_started_processes_are_named_once_a_minute() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let limits = json!({"processes_started": 4});
    let id = client.session(json!({"limits": limits})).await;
    let run = json!({"argv": ["head", "-c", "100000", "/dev/zero"], "max_output_bytes": 1000});
    for _ in 0..4 {
        assert_eq!(client.run(&id, run.clone()).await["truncated"], true);
    }
    for _ in 0..3 {
        let says = client.try_run(&id, run.clone()).await;
        let says = says.problem(422, "program_refused");
        assert!(says.contains("limit_reached"), "{says}");
    }
    for limit in ["output", "processes_started"] {
        until_reached(client, &id, limit).await;
        assert_eq!(reached(client, &id).await[limit], 1);
    }
    assert_eq!(client.look(&id).await["limits"]["processes_started"], 4);
}

/// Where the bench makes groups, by its OCI runtime's word.
fn places() -> Vec<PathBuf> {
    let run = bench().socket.parent().unwrap().parent().unwrap();
    let places = std::fs::read_to_string(run.join("private/casemate.cgroup")).unwrap();
    places.split_whitespace().map(PathBuf::from).collect()
}

#[tokio::test]
async fn every_limit_is_enforced_here_and_production_mode_takes_it() {
    let daemon = Daemon::up_with(&[("mode", json!("production"))]).await;
    let client = &daemon.client;
    let ready = client.get("/ready").await.expect(200);
    assert_eq!(ready["unenforced_limits"], json!([]));
    let id = client.session(json!({"limits": small()})).await;
    let container = daemon.container_of(&id).await.unwrap().id;
    let read = |file: &str| {
        let mut found = places()
            .into_iter()
            .filter_map(|place| std::fs::read_to_string(place.join(&container).join(file)).ok());
        found.next().map(|text| text.trim().to_owned())
    };
    let either = |one: &str, two: &str| read(one).or_else(|| read(two)).unwrap();
    // gVisor's own on top: 64 MiB, and 384 KiB for each of 64.
    let memory = (256_u64 << 20) + (64 << 20) + 64 * (384 << 10);
    let found = either("memory.max", "memory.limit_in_bytes");
    assert_eq!(found, memory.to_string());
    let quota = either("cpu.max", "cpu.cfs_quota_us");
    assert!(quota.starts_with("50000"), "{quota}");
    assert_eq!(read("pids.max").unwrap(), (512 + 64 * 64).to_string());
    client.end(&id).await;
    for place in places() {
        assert!(!place.join(&container).exists());
    }
}
