//! Plays the daemon for one guest in a real sandbox: lets it in, checks what only a sandbox can show, and measures.
//!
//! `probe DIR` binds `link.sock` in DIR, where `token` lies already, says `listening`, and waits for the guest.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed check is a panic"
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use casemate_link::ProcessSpec;
use casemate_link::daemon::{Link, LinkError, LinkListener, ProcessEvent};
use casemate_link::guest::read_token;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() {
    let dir = PathBuf::from(std::env::args_os().nth(1).expect("a directory"));
    let token = read_token(&dir.join("token")).unwrap();
    let mut listener = LinkListener::bind(&dir).await.unwrap();
    println!("listening");
    let (link, hello, peer) = timeout(PATIENCE, listener.accept_one(&token))
        .await
        .unwrap()
        .unwrap();
    println!(
        "peer {peer:?}\nkernel {:?}\nguest {}",
        hello.kernel, hello.guest_version
    );
    confinement(&link).await;
    behaviour(&link).await;
    measures(&link).await;

    drop(listener);
    link.close();
    link.closed().await;
    let began = Instant::now();
    let mut listener = LinkListener::bind(&dir).await.unwrap();
    let (link, ..) = timeout(PATIENCE, listener.accept_one(&token))
        .await
        .unwrap()
        .unwrap();
    println!("relinked after {:?}", began.elapsed());
    assert_eq!(sh(&link, "echo again").await.0, "again\n");
    println!("all is well");
}

/// What a process of the sandbox's user can and cannot do.
async fn confinement(link: &Link) {
    println!("{}", sh(link, "id; pwd; env; umask; grep -E '^(Cap|Uid|Gid|Groups)' /proc/self/status; head -3 /etc/passwd").await.0);
    println!("prctl {}", sh(link, "python3 -c 'import ctypes; l=ctypes.CDLL(None); print(\"nnp\", l.prctl(39,0,0,0,0), \"bounding\", sum(l.prctl(23,c,0,0,0)>0 for c in range(41)), \"sid\", __import__(\"os\").getsid(0)==__import__(\"os\").getpid())'").await.0);
    println!(
        "pid 1 {}",
        sh(
            link,
            "grep -E '^(Name|Uid|VmRSS|VmSize|Threads|Cap)' /proc/1/status"
        )
        .await
        .0
    );
    for (what, script) in [
        ("lists the link", "ls /run/casemate/link"),
        ("reads the token", "cat /run/casemate/link/token"),
        (
            "connects",
            "python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"/run/casemate/link/link.sock\")'",
        ),
        ("signals PID 1", "kill -0 1"),
        ("kills PID 1", "kill -9 1"),
        ("reads PID 1's memory", "head -c1 /proc/1/mem"),
        (
            "traces PID 1",
            "python3 -c 'import ctypes,sys; sys.exit(0 if ctypes.CDLL(None).ptrace(16,1,0,0)==0 else 1)'",
        ),
        ("becomes root", "python3 -c 'import os; os.setuid(0)'"),
    ] {
        let (_, stderr, code) = sh(link, script).await;
        println!(
            "user {what}: exit {code:?} {}",
            stderr.lines().last().unwrap_or_default()
        );
        assert_ne!(code, Some(0), "a user's process {what}");
    }
    // gVisor shows it to everybody: nothing secret may be in PID 1's environment.
    println!(
        "PID 1's environment, seen by a user: {}",
        sh(link, "tr '\\0' ' ' </proc/1/environ").await.0
    );
    // It also lists PID 1's descriptors to everybody. The link's socket must not be among what opens.
    let script = "for fd in /proc/1/fd/*; do echo \"$fd $(readlink $fd) $(python3 -c \"
import os,sys
for mode in os.O_RDONLY, os.O_WRONLY, os.O_RDWR:
    try: os.open('$fd', mode | os.O_NONBLOCK); print('OPENS', mode, end=' ')
    except OSError as e: print(e.errno, end=' ')
\" 2>&1)\"; done";
    println!(
        "PID 1's descriptors, opened by a user:\n{}",
        sh(link, script).await.0
    );
    for user in ["root", "0", "nobody", "65534"] {
        let mut spec = ProcessSpec::new(["id"]);
        spec.user = Some(user.into());
        match link.start(spec).await {
            Err(LinkError::Refused { code, .. }) => println!("as {user}: {code}"),
            other => panic!("as {user}: {other:?}"),
        }
    }
    let mut spec = ProcessSpec::new(["id"]);
    spec.user = Some("daemon".into());
    println!("as daemon: {}", run(link, spec).await.0);
}

/// The promises that depend on the kernel beneath.
async fn behaviour(link: &Link) {
    let process = link.start(ProcessSpec::new(["cat"])).await.unwrap();
    let (input, data) = (process.input.clone(), Bytes::from(vec![7; 10_000_000]));
    let writing = async {
        input.write(data.clone()).await.unwrap();
        input.end().await.unwrap();
    };
    let began = Instant::now();
    let (echoed, ()) = tokio::join!(collect(process), writing);
    assert!(echoed.0 == data);
    println!("10 MB there and back in {:?}", began.elapsed());

    let mut stubborn = ProcessSpec::new(["sh", "-c", "trap '' TERM; while :; do sleep 100; done"]);
    (stubborn.timeout_ms, stubborn.kill_grace_ms) = (Some(300), 300);
    let exit = collect(link.start(stubborn).await.unwrap()).await.2;
    assert!(exit.timed_out && exit.signal == Some(9), "{exit:?}");

    let mut printer = ProcessSpec::new(["yes"]);
    (printer.timeout_ms, printer.max_stdout_bytes) = (Some(500), 100_000);
    let (out, _, exit) = collect(link.start(printer).await.unwrap()).await;
    assert!(out.len() == 100_000 && exit.timed_out && exit.stdout_dropped_bytes > 0);
    println!(
        "printer dropped {} bytes in 500 ms",
        exit.stdout_dropped_bytes
    );

    let began = Instant::now();
    assert_eq!(
        sh(link, "sleep 100 & yes >/dev/null & echo x").await.0,
        "x\n"
    );
    println!("with background children: {:?}", began.elapsed());
    sh(link, "pkill -u $(id -u) sleep; pkill -u $(id -u) yes; true").await;

    for signum in [9, 15, 34] {
        let spec = ProcessSpec::new(["sh", "-c", &format!("kill -{signum} $$")]);
        assert_eq!(
            collect(link.start(spec).await.unwrap()).await.2.signal,
            Some(signum)
        );
    }
    for _ in 0..10 {
        sh(link, "for i in 1 2 3 4 5; do (sleep 0.01) & done").await;
    }
    let deadline = Instant::now() + PATIENCE;
    while sh(
        link,
        "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l",
    )
    .await
    .0 != "0\n"
    {
        assert!(Instant::now() < deadline, "zombies stay");
    }

    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200 {
        let link = link.clone();
        tasks.spawn(async move { (number, sh(&link, &format!("echo {number}")).await.0) });
    }
    while let Some(done) = tasks.join_next().await {
        let (number, text) = done.unwrap();
        assert_eq!(text, format!("{number}\n"));
    }
    println!("200 shells at once in {:?}", began.elapsed());

    let process = link
        .start(ProcessSpec::new(["sleep", "4321"]))
        .await
        .unwrap();
    drop(process);
    let deadline = Instant::now() + PATIENCE;
    while sh(link, "pgrep -f '[s]leep 4321'").await.2 == Some(0) {
        assert!(Instant::now() < deadline, "a dropped process lives on");
    }
}

async fn measures(link: &Link) {
    let mut trues = Vec::new();
    let mut healths = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        run(link, ProcessSpec::new(["/bin/true"])).await;
        trues.push(began.elapsed());
        let began = Instant::now();
        link.health().await.unwrap();
        healths.push(began.elapsed());
    }
    println!("true over the link, median of 200: {:?}", median(trues));
    println!("health over the link, median of 200: {:?}", median(healths));
    let raw = "import os,time\nl=[]\nf=[]\nfor i in range(100):\n a=time.time(); p=os.posix_spawn('/bin/true',['true'],{}); os.waitpid(p,0); l.append(time.time()-a)\n a=time.time(); p=os.fork()\n if p==0: os.execv('/bin/true',['true'])\n os.waitpid(p,0); f.append(time.time()-a)\nl.sort(); f.sort(); print('posix_spawn',l[50],'fork',f[50])";
    println!(
        "python inside: {}",
        run(link, ProcessSpec::new(["python3", "-c", raw])).await.0
    );
    for script in [
        "exec head -c 268435456 /dev/zero",
        "exec dd if=/dev/zero bs=64k count=4096",
        "exec dd if=/dev/zero bs=1M count=256",
    ] {
        let mut spec = ProcessSpec::new(["sh", "-c", script]);
        spec.max_stdout_bytes = u64::MAX;
        let began = Instant::now();
        let mut process = link.start(spec).await.unwrap();
        let (mut bytes, mut pieces) = (0_usize, 0);
        while let Some(Ok(event)) = process.next().await {
            if let ProcessEvent::Stdout(data) = event {
                (bytes, pieces) = (bytes + data.len(), pieces + 1);
            }
        }
        println!(
            "{script}: {bytes} bytes in {pieces} pieces in {:?}",
            began.elapsed()
        );
    }
    let process = link
        .start(ProcessSpec::new(["sh", "-c", "exec cat >/dev/null"]))
        .await
        .unwrap();
    let chunk = Bytes::from(vec![0; 1 << 20]);
    let began = Instant::now();
    for _ in 0..256 {
        process.input.write(chunk.clone()).await.unwrap();
    }
    process.input.end().await.unwrap();
    collect(process).await;
    println!("256 MiB in: {:?}", began.elapsed());
    println!(
        "pid 1 after it all {}",
        sh(link, "grep -E '^VmRSS' /proc/1/status").await.0
    );
    println!("in a pipeline {}", sh(link, "dd if=/dev/zero bs=64k count=4096 2>/dev/null | dd of=/dev/null bs=64k 2>&1 | tail -1; echo out >/dev/stdout; echo err >/dev/stderr").await.0);
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

async fn sh(link: &Link, script: &str) -> (String, String, Option<i32>) {
    run(link, ProcessSpec::new(["sh", "-c", script])).await
}

async fn run(link: &Link, spec: ProcessSpec) -> (String, String, Option<i32>) {
    let process = link.start(spec).await.unwrap();
    let (stdout, stderr, exit) = collect(process).await;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(stdout), text(stderr), exit.exit_code)
}

async fn collect(
    mut process: casemate_link::daemon::Process,
) -> (Vec<u8>, Vec<u8>, casemate_link::ProcessExit) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match timeout(PATIENCE, process.next()).await.expect("it goes on") {
            Some(Ok(ProcessEvent::Stdout(data))) => stdout.extend_from_slice(&data),
            Some(Ok(ProcessEvent::Stderr(data))) => stderr.extend_from_slice(&data),
            Some(Ok(ProcessEvent::Exited(exit))) => return (stdout, stderr, exit),
            other => panic!("{other:?}"),
        }
    }
}
