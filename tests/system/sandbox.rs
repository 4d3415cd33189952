//! Inside a sandbox: its own kernel, no network, no privileges, and bounds that hold.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::{Daemon, FORKS};

#[tokio::test]
async fn every_session_has_a_gvisor_kernel_of_its_own() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let (one, two) = (
        client.session(json!({})).await,
        client.session(json!({})).await,
    );
    for id in [&one, &two] {
        let banner = client.out(id, "dmesg | head -n 1").await;
        assert!(banner.contains("Starting gVisor"), "{banner}");
        let version = client.out(id, "cat /proc/version").await;
        let host = std::fs::read_to_string("/proc/version").unwrap();
        assert_ne!(version, host);
    }
    // Neither sees the other, nor the host.
    client
        .out(
            &one,
            "exec -a marked-one sleep 300 >/dev/null & sleep 0.2; echo",
        )
        .await;
    let processes = client.out(&two, "ps -eo args").await;
    assert!(!processes.contains("sleep"), "{processes}");
    assert!(!processes.contains("casemated"), "{processes}");
    let (names, others) = (
        client.out(&one, "hostname").await,
        client.out(&two, "hostname").await,
    );
    assert_ne!(names, others);
}

#[tokio::test]
async fn a_sandbox_has_no_network_but_its_own_loopback() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    let devices = client
        .out(&id, "tail -n +3 /proc/net/dev | cut -d: -f1")
        .await;
    assert_eq!(devices.trim(), "lo");
    let routes = client.out(&id, "tail -n +2 /proc/net/route").await;
    assert_eq!(routes.trim(), "");
    let script = r#"
import socket, sys
def connect(family, address):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(3)
    try:
        s.connect(address)
        return "connected"
    except OSError as e:
        return e.strerror
print(connect(socket.AF_INET, ("1.1.1.1", 443)))
print(connect(socket.AF_INET, ("10.0.2.2", 22)))
print(connect(socket.AF_INET6, ("2606:4700::1111", 443)))
print(connect(socket.AF_INET, ("127.0.0.1", int(sys.argv[1]))))
try:
    socket.getaddrinfo("example.org", 443)
    print("resolved")
except OSError:
    print("no name")
try:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
    print("raw")
except OSError as e:
    print(e.strerror)
"#;
    let port = client.address.rsplit(':').next().unwrap();
    let outcome = client
        .run(
            &id,
            json!({"argv": ["python3", "-c", script, port], "timeout_s": 30}),
        )
        .await;
    let lines: Vec<&str> = outcome["stdout"].as_str().unwrap().lines().collect();
    assert_eq!(lines.len(), 6, "{outcome}");
    for line in &lines[..3] {
        let wanted = [
            "Network is unreachable",
            "No route to host",
            "Cannot assign requested address",
        ];
        assert!(wanted.contains(line), "{lines:?}");
    }
    // The daemon listens there, on the host's loopback; inside nobody does.
    assert_eq!(lines[3], "Connection refused");
    assert_eq!(lines[4], "no name");
    assert_eq!(lines[5], "Operation not permitted");
}

#[tokio::test]
async fn programs_have_no_capability_and_cannot_gain_one() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    let status = client
        .out(&id, "grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status")
        .await;
    for line in status.lines() {
        let bits = line.split_whitespace().last().unwrap();
        assert_eq!(bits.trim_start_matches('0'), "", "{status}");
    }
    let script = "import ctypes; print(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))";
    let outcome = client
        .run(&id, json!({"argv": ["python3", "-c", script]}))
        .await;
    assert_eq!(outcome["stdout"], "1\n", "PR_GET_NO_NEW_PRIVS");
    assert_eq!(
        client.out(&id, "id -u; id -g; id -G").await,
        "1000\n1000\n1000\n"
    );
    for attempt in [
        "unshare -n true",
        "mount -t tmpfs none /mnt",
        "chown root /tmp",
        "mknod /tmp/sda b 8 0; head -c 1 /tmp/sda",
        "chroot / true",
        "hostname other",
    ] {
        let (code, output) = client.sh(&id, attempt).await;
        assert_ne!(code, 0, "{attempt}: {output}");
    }
    // Nobody becomes root by asking; and nobody himself is, seen from inside, whom the link belongs to.
    for user in ["root", "0", "nobody", "65534"] {
        let answer = client
            .try_run(&id, json!({"argv": ["id"], "user": user}))
            .await;
        answer.problem(422, "program_refused");
    }
    let outcome = client
        .run(&id, json!({"argv": ["id", "-u"], "user": "daemon"}))
        .await;
    assert_eq!(outcome["stdout"], "1\n");
}

#[tokio::test]
async fn the_guest_and_its_link_are_out_of_reach_for_programs() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    for user in ["user", "daemon"] {
        for attempt in [
            "kill -9 1",
            "kill -0 1",
            "ls /run/casemate/link",
            "cat /run/casemate/link/token",
            "cat /proc/1/mem",
            // Being root among oneself is allowed, as on any Linux, and opens nothing.
            "unshare -Ur cat /run/casemate/link/token",
            "unshare -Ur kill -9 1",
            "cp /bin/true /run/casemate/guest",
            "touch /run/casemate/x",
        ] {
            let (code, output) = client.sh_as(&id, user, attempt).await;
            assert_ne!(code, 0, "{user}: {attempt}: {output}");
        }
        let script = r#"
import socket, os
for name in ["link.sock", "egress.sock"]:
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect("/run/casemate/link/" + name)
        print("connected")
    except OSError as e:
        print(e.strerror)
"#;
        let run = json!({"argv": ["python3", "-c", script], "user": user});
        let outcome = client.run(&id, run).await;
        assert_eq!(
            outcome["stdout"], "Permission denied\nPermission denied\n",
            "{outcome}"
        );
    }
    // What the guest has open is either its own alone, or the programs', or empty.
    let fds = "for fd in /proc/1/fd/*; do timeout 2 head -c 20 $fd 2>/dev/null; done; true";
    assert_eq!(client.out(&id, fds).await, "");
    assert_eq!(client.look(&id).await["phase"], "ready");
}

#[tokio::test]
async fn what_is_written_stays_in_its_session_and_off_the_image() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let one = client.session(json!({})).await;
    client
        .out(&one, "echo mine >/home/user/mark && echo mine >/tmp/mark")
        .await;
    assert_eq!(
        client.out(&one, "cat /home/user/mark /tmp/mark").await,
        "mine\nmine\n"
    );
    for place in ["/", "/etc", "/usr/bin", "/root", "/run", "/var/lib"] {
        let (code, output) = client.sh(&one, &format!("touch {place}/x")).await;
        assert_ne!(code, 0, "{place}: {output}");
    }
    let two = client.session(json!({})).await;
    assert_eq!(client.out(&two, "ls -A /tmp").await, "");
    assert!(!client.out(&two, "ls -A /home/user").await.contains("mark"));
    client.end(&one).await;
    let three = client.session(json!({})).await;
    assert!(
        !client
            .out(&three, "ls -A /home/user")
            .await
            .contains("mark")
    );
}

#[tokio::test]
async fn a_full_disk_is_the_programs_problem_and_not_the_sessions() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client
        .session(json!({"limits": {"disk_bytes": 1 << 30}}))
        .await;
    // One bound for all files together.
    let script = r#"
import os
chunk, written = bytes(4 << 20), 0
for name, most in [("one", 600), ("two", 600)]:
    with open("/home/user/" + name, "wb", buffering=0) as file:
        try:
            for _ in range(most // 4):
                written += file.write(chunk)
        except OSError as error:
            print(error.strerror)
print(written)
"#;
    let run = json!({"argv": ["python3", "-c", script], "timeout_s": 100});
    let outcome = client.run(&id, run).await;
    let lines: Vec<&str> = outcome["stdout"].as_str().unwrap().lines().collect();
    assert_eq!(lines.len(), 2, "{outcome}");
    assert_eq!(lines[0], "File too large");
    let written: u64 = lines[1].parse().unwrap();
    assert!(written <= 1 << 30, "{written}");
    assert!(written >= (1 << 30) - (64 << 20), "{written}");
    // The session lives, and has room again when the files are gone.
    client
        .out(
            &id,
            "rm /home/user/one /home/user/two && head -c 100M /dev/zero >/home/user/three",
        )
        .await;
    assert_eq!(client.look(&id).await["phase"], "ready");
}

#[tokio::test]
async fn tmp_and_shared_memory_are_bounded_by_half_the_memory() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client
        .session(json!({"limits": {"memory_bytes": 128 << 20}}))
        .await;
    for place in ["/tmp", "/dev/shm"] {
        let command = format!(
            "dd if=/dev/zero of={place}/big bs=1M count=100 status=none; stat -c %s {place}/big; rm {place}/big"
        );
        let output = client.out(&id, &command).await;
        assert!(output.contains("No space left on device"), "{output}");
        assert!(output.trim().ends_with(&(64 << 20).to_string()), "{output}");
    }
}

#[tokio::test]
async fn a_fork_bomb_meets_the_limit_of_processes() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({"limits": {"pids": 64}})).await;
    let run = json!({"argv": ["python3", "-c", FORKS], "timeout_s": 60});
    let outcome = client.run(&id, run).await;
    let lines: Vec<&str> = outcome["stdout"].as_str().unwrap().lines().collect();
    assert_eq!(lines[0], "Resource temporarily unavailable", "{outcome}");
    let made: u32 = lines[1].parse().unwrap();
    assert!((20..=64).contains(&made), "{made}");

    // A real one: its whole process group ends with its time, and the session goes on.
    let began = Instant::now();
    let bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n";
    let run = json!({"argv": ["python3", "-c", bomb], "timeout_s": 2, "max_output_bytes": 1000});
    let outcome = client.run(&id, run).await;
    assert_eq!(outcome["timed_out"], true, "{outcome}");
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(client.out(&id, "echo alive").await, "alive\n");
}
