//! Root inside a sandbox: refused unless the template says otherwise, useful where it does, and no nearer to the daemon.

use std::os::unix::fs::PermissionsExt;

use casemate::admin::protocol;
use serde_json::json;

use crate::support::{Client, Daemon, FORKS, wait_until};

/// A daemon with the template `base`, and `rooted` in which programs may be root.
async fn daemon() -> Daemon {
    let mut daemon = Daemon::new();
    let mut rooted = daemon.config["templates"]["base"].clone();
    rooted["allow_root"] = json!(true);
    daemon.set("templates.rooted", rooted);
    daemon.start().await;
    daemon.client.key = Some(daemon.key("tests").await);
    daemon
}

/// A session in which programs may be root.
async fn rooted(client: &Client) -> String {
    client.session(json!({"template": "rooted"})).await
}

/// What a command of root's wrote; it must succeed.
async fn out(client: &Client, id: &str, command: &str) -> String {
    let (code, output) = client.sh_as(id, "root", command).await;
    assert_eq!(code, 0, "{command}: {output}");
    output
}

/// What a Python program of root's wrote.
async fn python(client: &Client, id: &str, script: &str) -> String {
    let run = json!({"argv": ["python3", "-c", script], "user": "root", "timeout_s": 60});
    let outcome = client.run(id, run).await;
    assert_eq!(outcome["exit_code"], 0, "{outcome}");
    outcome["stdout"].as_str().unwrap().to_owned()
}

/// The sets of capabilities in an account of a process: inheritable, permitted, effective, bounding.
const CAPABILITIES: &str = "grep -E '^Cap(Inh|Prm|Eff|Bnd)' /proc/self/status | cut -f 2 | xargs";
const NONE: &str = "0000000000000000 0000000000000000 0000000000000000 0000000000000000\n";
/// `CAP_CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID`, `KILL`, `SETGID`, `SETUID`, `SETPCAP`, `NET_BIND_SERVICE`, `SYS_CHROOT`.
const ROOTS: &str = "0000000000000000 00000000000405fb 00000000000405fb 00000000000405fb\n";

async fn refuses_root(client: &Client, id: &str) {
    for user in ["root", "0"] {
        let answer = client
            .try_run(id, json!({"argv": ["id"], "user": user}))
            .await;
        answer.problem(422, "program_refused");
    }
}

#[tokio::test]
async fn root_is_refused_unless_the_template_allowed_it_when_the_session_began() {
    let mut daemon = daemon().await;
    let client = daemon.client.clone();
    let plain = client.session(json!({})).await;
    let rooted = rooted(&client).await;
    let is_as_ever = async || {
        refuses_root(&client, &plain).await;
        assert_eq!(client.out(&plain, CAPABILITIES).await, NONE);
        assert_eq!(out(&client, &rooted, "id -u").await, "0\n");
    };
    is_as_ever().await;

    // The other way round from now on, for sessions that begin from now on.
    daemon.set("templates.base.allow_root", json!(true));
    daemon.set("templates.rooted.allow_root", json!(false));
    let reloaded = daemon.admin(protocol::Request::Reload).await;
    assert!(matches!(reloaded, protocol::Answer::Done), "{reloaded:?}");
    is_as_ever().await;
    let later = client.session(json!({})).await;
    assert_eq!(out(&client, &later, "id -u").await, "0\n");
    let later = client.session(json!({"template": "rooted"})).await;
    refuses_root(&client, &later).await;

    daemon.restart().await;
    for id in [&plain, &rooted] {
        usable(&client, id).await;
    }
    is_as_ever().await;
}

#[tokio::test]
async fn root_can_do_what_root_is_for() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let id = &rooted(client).await;
    assert_eq!(out(client, id, CAPABILITIES).await, ROOTS);
    assert_eq!(
        out(client, id, "id").await,
        "uid=0(root) gid=0(root) groups=0(root)\n"
    );

    // Files of everybody, everywhere, also where the mode says no.
    out(
        client,
        id,
        "echo hello >/etc/motd && chown user:user /etc/motd && chmod 0600 /etc/motd && echo more >>/etc/motd",
    )
    .await;
    assert_eq!(client.out(id, "cat /etc/motd").await, "hello\nmore\n");
    out(
        client,
        id,
        "touch /at-the-top && mkdir /opt/x && rm /at-the-top",
    )
    .await;
    out(client, id, "head -c 1 /etc/shadow >/dev/null").await;

    // A package: unpacked, registered, removed.
    let package = "cd /tmp && mkdir -p p/DEBIAN p/opt/thing && echo it >p/opt/thing/file \
        && printf 'Package: thing\\nVersion: 1\\nArchitecture: all\\nMaintainer: m <m@m>\\nDescription: d\\n' >p/DEBIAN/control \
        && printf '#!/bin/sh\\nchown user /opt/thing/file\\n' >p/DEBIAN/postinst && chmod 0755 p/DEBIAN/postinst \
        && dpkg-deb --build --root-owner-group p thing.deb && dpkg -i thing.deb";
    out(client, id, package).await;
    let installed =
        "cat /opt/thing/file; stat -c %U /opt/thing/file; dpkg-query -Wf '${Status}' thing";
    assert_eq!(
        out(client, id, installed).await,
        "it\nuser\ninstall ok installed"
    );
    out(client, id, "dpkg -r thing && ! test -e /opt/thing/file").await;

    // Users, as useradd(8) makes them, and becoming one.
    out(
        client,
        id,
        "echo 'bob:x:1234:1234::/home/bob:/bin/sh' >>/etc/passwd && echo 'bob:*:19000:0:99999:7:::' >>/etc/shadow \
         && echo 'bob:x:1234:' >>/etc/group && mkdir -m 0700 /home/bob && chown bob:bob /home/bob",
    )
    .await;
    let bob = "uid=1234(bob) gid=1234(bob) groups=1234(bob)\n";
    assert_eq!(out(client, id, "su bob -c id").await, bob);
    assert_eq!(out(client, id, "su - bob -c 'touch f && ls'").await, "f\n");
    assert_eq!(client.sh_as(id, "bob", "id").await, (0, bob.to_owned()));
    assert_eq!(
        out(client, id, "su user -c id").await,
        "uid=1000(user) gid=1000(user) groups=1000(user)\n"
    );
    assert_eq!(
        out(client, id, "chroot --userspec=bob / id -u").await,
        "1234\n"
    );

    // Low ports, and other people's processes.
    let low = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 80)); print('bound')";
    assert_eq!(python(client, id, low).await, "bound\n");
    client
        .out(id, "sleep 1000 >/dev/null 2>&1 & echo $! >/tmp/pid")
        .await;
    out(client, id, "kill -9 $(cat /tmp/pid)").await;

    // And no more than that.
    let python = |work: &str| format!("python3 -c 'import ctypes, os, socket; {work}'");
    for (attempt, says) in [
        (
            "mknod /tmp/sda b 8 0; head -c 1 /tmp/sda".to_owned(),
            "No such device",
        ),
        ("hostname other".to_owned(), "you must be root"),
        ("unshare -n true".to_owned(), "Operation not permitted"),
        ("ulimit -n 1000000".to_owned(), "Operation not permitted"),
        (
            python("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"),
            "Operation not permitted",
        ),
        (
            python(
                "libc = ctypes.CDLL(None, use_errno=True); \
                 done = libc.mount(b\"none\", b\"/mnt\", b\"tmpfs\", 0, None); \
                 exit(done and os.strerror(ctypes.get_errno()))",
            ),
            "Operation not permitted",
        ),
        (
            "touch /run/casemate/link/x".to_owned(),
            "Read-only file system",
        ),
        (
            "mv /run/casemate /run/elsewhere".to_owned(),
            "Operation not permitted",
        ),
        (
            "rm /run/casemate/link/link.sock".to_owned(),
            "Read-only file system",
        ),
        (
            "echo >/run/casemate/guest".to_owned(),
            "Read-only file system",
        ),
    ] {
        let (code, output) = client.sh_as(id, "root", &attempt).await;
        assert!(code != 0 && output.contains(says), "{attempt}: {output}");
    }
    assert_eq!(client.look(id).await["phase"], "ready");
}

#[tokio::test]
async fn whoever_is_not_root_has_no_capability_where_root_is_allowed_either() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let id = &rooted(client).await;
    for user in [None, Some("user"), Some("daemon"), Some("4242")] {
        let run = json!({"argv": ["sh", "-c", CAPABILITIES], "user": user});
        assert_eq!(client.run(id, run).await["stdout"], NONE, "{user:?}");
    }
    assert_eq!(client.out(id, "id -u").await, "1000\n");
    // A file of root's with the set-user-id bit makes nobody root.
    out(
        client,
        id,
        "cp /usr/bin/id /usr/local/bin/who && chmod 4755 /usr/local/bin/who",
    )
    .await;
    assert_eq!(client.out(id, "who -u").await, "1000\n");
    let (code, output) = client.sh(id, "su -c id").await;
    assert_ne!(code, 0, "{output}");
    for attempt in [
        "chown root /tmp/x",
        "touch /etc/x",
        "kill -9 1",
        "cat /proc/1/mem",
    ] {
        let (code, output) = client.sh(id, &format!("touch /tmp/x; {attempt}")).await;
        assert_ne!(code, 0, "{attempt}: {output}");
    }
}

/// What the daemon knows the guest by, which the sandbox must not.
fn token(daemon: &Daemon, id: &str) -> String {
    std::fs::read_to_string(daemon.run.join(format!("link/{id}.token"))).unwrap()
}

#[tokio::test]
async fn root_can_neither_read_nor_trace_the_guest() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let id = &rooted(client).await;
    // Where the kernel lets only a parent trace at first (Yama), root may open that up.
    let open = "echo 0 >/proc/sys/kernel/yama/ptrace_scope";
    client.sh_as(id, "root", open).await;
    for attempt in [
        "head -c 1 /proc/1/mem",
        "head -c 1 /proc/1/task/1/mem",
        "ls /proc/1/cwd/",
        "ls /proc/1/root/",
        // Root among oneself has every capability, over nobody else.
        "unshare -Ur head -c 1 /proc/1/mem",
    ] {
        let (code, output) = client.sh_as(id, "root", attempt).await;
        assert_ne!(code, 0, "{attempt}: {output}");
    }
    let script = r#"
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def said(result):
    print(result, errno.errorcode.get(ctypes.get_errno()))
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
said(libc.ptrace(PTRACE_ATTACH, 1, 0, 0))
said(libc.ptrace(PTRACE_SEIZE, 1, 0, 0))
class IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
start = int(open("/proc/1/maps").read().split("-")[0], 16)
buffer = ctypes.create_string_buffer(16)
ours, theirs = IoVec(ctypes.addressof(buffer), 16), IoVec(start, 16)
said(libc.process_vm_readv(1, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0))
# Its sockets cannot be opened a second time.
sockets = opened = 0
for fd in os.listdir("/proc/1/fd"):
    path = "/proc/1/fd/" + fd
    if os.readlink(path).startswith("socket:"):
        sockets += 1
        try:
            os.open(path, os.O_RDWR | os.O_NONBLOCK)
            opened += 1
        except OSError:
            pass
print(sockets > 0, opened)
"#;
    assert_eq!(
        python(client, id, script).await,
        "-1 EPERM\n-1 EPERM\n-1 EPERM\nTrue 0\n"
    );
    // What anybody may read of it tells nothing.
    let told = "cat /proc/1/environ /proc/1/cmdline /proc/1/maps | tr '\\0' '\\n'";
    assert!(!out(client, id, told).await.contains(&token(&daemon, id)));
}

/// Dials as whoever may and has only the token to guess.
const DIALS: &str = r#"
import json, socket, struct, sys
def dial():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    s.connect("/run/casemate/link/link.sock")
    return s
def answer(s):
    try:
        return s.recv(4096)
    except OSError:
        return b""
def hello(token):
    document = json.dumps({"protocol": {"min": 1, "max": 1}, "token": token}).encode()
    return b"CMLK" + struct.pack(">I", len(document)) + document
"#;

#[tokio::test]
async fn root_finds_no_token_and_without_it_gets_nowhere() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let id = &rooted(client).await;
    assert_eq!(
        out(client, id, "ls -A /run/casemate/link").await,
        "egress.sock\nlink.sock\n"
    );
    let (code, _) = client
        .sh_as(id, "root", "cat /run/casemate/link/token")
        .await;
    assert_ne!(code, 0);
    // On the host it is the daemon's alone, and beside what the sandbox sees.
    let kept = daemon.run.join(format!("link/{id}.token"));
    let mode = std::fs::metadata(&kept).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert!(!daemon.run.join(format!("link/{id}/token")).exists());

    let before = client.look(id).await;
    let container = daemon.container_of(id).await.unwrap().id;
    let script = format!(
        r#"{DIALS}
silent, refused, garbage = [], 0, 0
for n in range(100):
    s = dial()
    if n % 3 == 0:
        silent.append(s)
    elif n % 3 == 1:
        s.sendall(hello("%064x" % n))
        refused += b"bad_token" in answer(s)
    else:
        s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        garbage += answer(s) == b""
print(len(silent), refused, garbage)
print(sum(answer(s) != b"" for s in silent))
"#
    );
    // Meanwhile the session goes on.
    let used = async {
        for n in 0..20 {
            let said = client.out(id, &format!("echo {n}")).await;
            assert_eq!(said, format!("{n}\n"));
        }
    };
    let (said, ()) = tokio::join!(python(client, id, &script), used);
    assert_eq!(said, "34 33 33\n0\n");
    assert_eq!(client.look(id).await, before);
    assert_eq!(daemon.container_of(id).await.unwrap().id, container);
    let log = daemon.log();
    assert_eq!(
        log.matches("guest linked").count(),
        1,
        "one link for all time"
    );
    let told = turned_away(&daemon);
    assert!(
        (1..=8).contains(&told),
        "{told} lines of log for a hundred dials"
    );
    assert!(
        !log.contains(&token(&daemon, id)),
        "the token is in the log"
    );
}

/// Waits until a session's guest has dialled again.
async fn usable(client: &Client, id: &str) {
    wait_until("its guest has dialled again", async || {
        client.try_run(id, json!({"argv": ["true"]})).await.status == 200
    })
    .await;
}

#[tokio::test]
async fn a_session_with_root_is_taken_up_after_kill_9_whatever_root_does_to_its_link() {
    let mut daemon = daemon().await;
    let client = daemon.client.clone();
    let id = &rooted(&client).await;
    let before = client.look(id).await;
    out(&client, id, "echo kept >/root/file").await;
    // Root puts a socket of its own where the guest's was, as far as it can, and dials without end.
    let decoy = r#"
import os, socket, subprocess
for old, new in [("/run/casemate/link", "/run/casemate/l"), ("/run/casemate", "/run/c"), ("/run", "/r")]:
    try:
        os.rename(old, new)
        break
    except OSError:
        pass
os.makedirs("/run/casemate/link", exist_ok=True)
try:
    s = socket.socket(socket.AF_UNIX)
    s.bind("/run/casemate/link/link.sock")
    s.listen()
    print("a decoy listens", flush=True)
    heard = s.accept()[0].recv(4096)
    open("/tmp/heard", "wb").write(heard)
except OSError as error:
    print(error.strerror, flush=True)
"#;
    let flood = format!(
        r#"{DIALS}
open("/tmp/floods", "w").close()
while True:
    try:
        s = dial()
        s.sendall(hello("f" * 64))
    except OSError:
        pass
"#
    );
    for (name, script) in [("decoy", decoy), ("flood", &flood)] {
        let background = format!("python3 - >/tmp/{name} 2>&1 <<'END' &\n{script}\nEND\n");
        out(&client, id, &background).await;
    }
    wait_until("root is at it", async || {
        client
            .sh_as(id, "root", "test -e /tmp/floods && test -s /tmp/decoy")
            .await
            .0
            == 0
    })
    .await;
    let token = token(&daemon, id);
    for _ in 0..2 {
        let heard = turned_away(&daemon);
        wait_until("root is heard and turned away", async || {
            turned_away(&daemon) > heard
        })
        .await;
        daemon.kill9();
        daemon.start().await;
        usable(&client, id).await;
        assert_eq!(out(&client, id, "cat /root/file").await, "kept\n");
        let found = out(&client, id, "ls -A /run/casemate/link").await;
        assert_eq!(found, "egress.sock\nlink.sock\n");
    }
    let after = client.look(id).await;
    for field in ["phase", "generation"] {
        assert_eq!(after[field], before[field], "{after}");
    }
    let (code, heard) = client.sh_as(id, "root", "cat /tmp/heard").await;
    assert_ne!(code, 0, "the guest spoke to root's socket: {heard}");
    assert_eq!(self::token(&daemon, id), token);
    client.end(id).await;
    assert_eq!(daemon.link_entries(), [""; 0]);
}

/// The limits are gVisor's and the host's, and no capability of root's lifts them.
#[tokio::test]
async fn limits_hold_for_root_too() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let limits = json!({"pids": 64, "disk_bytes": 1_u64 << 30});
    let id = &client
        .session(json!({"template": "rooted", "limits": limits}))
        .await;
    let forked = python(client, id, FORKS).await;
    let (said, made) = forked.trim().split_once('\n').unwrap();
    assert_eq!(said, "Resource temporarily unavailable");
    assert!(made.parse::<u32>().unwrap() <= 64, "{made}");
    let fills = r#"
written = 0
for name in ["/usr/one", "/etc/two"]:
    with open(name, "wb", buffering=0) as file:
        try:
            for _ in range(150):
                written += file.write(bytes(4 << 20))
        except OSError as error:
            print(error.strerror)
print(written <= 1 << 30)
"#;
    assert_eq!(python(client, id, fills).await, "File too large\nTrue\n");
    out(client, id, "rm /usr/one /etc/two").await;
    assert_eq!(client.look(id).await["phase"], "ready");
}

/// Lines of the log on those who dialled without the token.
fn turned_away(daemon: &Daemon) -> usize {
    daemon.log().matches("turned a dialler away").count()
}

/// An end of root's own making is its own session's end and nobody else's.
#[tokio::test]
async fn root_can_end_its_own_session_and_no_other() {
    let daemon = daemon().await;
    let client = &daemon.client;
    let (one, two) = (&rooted(client).await, &rooted(client).await);
    let run = json!({"argv": ["kill", "-9", "1"], "user": "root"});
    let answer = client.try_run(one, run).await;
    assert_ne!(answer.status, 500, "{answer:?}");
    daemon.phase(one, "failed").await;
    assert_eq!(client.look(one).await["reason"], json!("sandbox_died"));
    assert_eq!(out(client, two, "id -u").await, "0\n");
}
