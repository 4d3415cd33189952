//! Volumes: what a team keeps beyond its sessions, in sandboxes of podman and gVisor.

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Client, Daemon, PATIENCE, bench, wait_for, wait_until};

const MIB: u64 = 1 << 20;

async fn volume(client: &Client, name: &str, size_bytes: u64) -> Value {
    let wanted = json!({"name": name, "size_bytes": size_bytes});
    client.post("/v1/volumes", wanted).await.expect(201)
}

/// A session with one volume.
async fn with(client: &Client, name: &str, mode: &str) -> String {
    client
        .session(json!({"volumes": [{"name": name, "mode": mode}]}))
        .await
}

async fn end(client: &Client, id: &str) {
    client
        .delete(&format!("/v1/sessions/{id}"))
        .await
        .expect(204);
}

#[tokio::test]
async fn what_is_written_to_a_volume_is_there_in_the_next_session() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let made = volume(client, "data", 64 * MIB).await;
    assert_eq!(made["attached"], json!([]));
    let first = with(client, "data", "rw").await;
    assert_eq!(
        client.out(&first, "id -u; ls /volumes; echo hello >/volumes/data/a; mkdir -p /volumes/data/b/c; cat /volumes/data/a").await,
        "1000\ndata\nhello\n"
    );
    let seen = client.get("/v1/volumes/data").await.expect(200);
    assert_eq!(seen["attached"], json!([{"session": first, "mode": "rw"}]));
    end(client, &first).await;
    let second = with(client, "data", "rw").await;
    assert_eq!(
        client
            .out(&second, "cat /volumes/data/a; ls -d /volumes/data/b/c")
            .await,
        "hello\n/volumes/data/b/c\n"
    );
    end(client, &second).await;
}

#[tokio::test]
async fn a_volume_is_full_at_its_size_and_nothing_else_is() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    volume(client, "small", 32 * MIB).await;
    volume(client, "other", 32 * MIB).await;
    let id = client
        .session(json!({"volumes": [{"name": "small"}, {"name": "other"}]}))
        .await;
    let fill = "dd if=/dev/zero of=/volumes/small/big bs=1M 2>&1 | grep -o 'No space left on device'; \
        stat -c %s /volumes/small/big";
    let out = client.out(&id, fill).await;
    let (said, size) = out.trim().split_once('\n').unwrap();
    assert_eq!(said, "No space left on device");
    let size: u64 = size.parse().unwrap();
    assert!((26 * MIB..32 * MIB).contains(&size), "{size}");
    let elsewhere = "dd if=/dev/zero of=/volumes/other/x bs=1M count=8 2>/dev/null && \
        dd if=/dev/zero of=/home/user/x bs=1M count=8 2>/dev/null && \
        rm /volumes/small/big && echo again >/volumes/small/a && cat /volumes/small/a";
    assert_eq!(client.out(&id, elsewhere).await, "again\n");
    let seen = client.get("/v1/volumes/small").await.expect(200);
    assert!(seen["used_bytes"].as_u64().unwrap() <= 32 * MIB, "{seen}");
    end(client, &id).await;
}

async fn refused(client: &Client, name: &str, mode: &str) -> crate::support::Answer {
    let wanted = json!({"volumes": [{"name": name, "mode": mode}]});
    client.post("/v1/sessions", wanted).await
}

/// What serves a daemon's volumes, by process: fuse2fs with the daemon's own directory in its arguments.
fn servers(daemon: &Daemon) -> Vec<(i32, String)> {
    let mark = daemon.home.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let command = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let pid = path.file_name().unwrap().to_str().unwrap().parse();
        if let (Ok(pid), true) = (
            pid,
            command.starts_with("fuse2fs ") && command.contains(mark),
        ) {
            found.push((pid, command));
        }
    }
    found
}

fn server(daemon: &Daemon) -> i32 {
    let found = servers(daemon);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].0
}

/// Processes of the host whose arguments hold both of these.
fn processes(words: [&str; 2]) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let command = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        let pid = path.file_name().unwrap().to_str().unwrap().parse();
        if let (Ok(pid), true) = (pid, words.iter().all(|word| command.contains(word))) {
            found.push(pid);
        }
    }
    found
}

/// The file of a volume.
fn image_of(daemon: &Daemon, volume: &Value) -> PathBuf {
    let id = volume["id"].as_str().unwrap();
    let directory = daemon.home.join("state-volumes");
    directory
        .join(daemon.installation())
        .join(format!("{id}.img"))
}

fn kill9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn one_session_writes_or_many_read_and_another_team_knows_nothing_of_it() {
    let mut daemon = Daemon::up().await;
    let other = daemon.key("others").await;
    let client = &daemon.client;
    let other = client.with_key(&other);
    volume(client, "data", 32 * MIB).await;
    let writer = with(client, "data", "rw").await;
    let said = refused(client, "data", "rw")
        .await
        .problem(409, "volume_in_use");
    assert!(said.contains(&writer), "{said}");
    refused(client, "data", "ro")
        .await
        .problem(409, "volume_in_use");
    let held = client.delete("/v1/volumes/data").await;
    assert!(held.problem(409, "volume_in_use").contains(&writer));
    refused(&other, "data", "ro")
        .await
        .problem(400, "unknown_volume");
    other
        .get("/v1/volumes/data")
        .await
        .problem(404, "volume_not_found");
    other
        .delete("/v1/volumes/data")
        .await
        .problem(404, "volume_not_found");
    let theirs = other.get("/v1/volumes").await.expect(200);
    assert_eq!(theirs["items"], json!([]));
    client.out(&writer, "echo kept >/volumes/data/a").await;
    end(client, &writer).await;

    let image = image_of(&daemon, &client.get("/v1/volumes/data").await.expect(200));
    let before = std::fs::read(&image).unwrap();
    let (one, two) = (
        with(client, "data", "ro").await,
        with(client, "data", "ro").await,
    );
    for reader in [&one, &two] {
        assert_eq!(client.out(reader, "cat /volumes/data/a").await, "kept\n");
        let tries = "cd /volumes/data; { echo x >b; mkdir c; rm -f a; ln -s a d; mv a e; } 2>&1 \
            | grep -c 'Read-only file system'; chmod 600 a; ls; stat -c %a a; cd /volumes; touch x 2>/dev/null || echo no";
        let out = client.out(reader, tries).await;
        assert_eq!(out, "5\na\nlost+found\n644\nno\n");
    }
    refused(client, "data", "rw")
        .await
        .problem(409, "volume_in_use");
    end(client, &one).await;
    assert_eq!(client.out(&two, "cat /volumes/data/a").await, "kept\n");
    end(client, &two).await;
    assert!(
        std::fs::read(&image).unwrap() == before,
        "readers changed it"
    );
    client.delete("/v1/volumes/data").await.expect(204);
    client
        .get("/v1/volumes/data")
        .await
        .problem(404, "volume_not_found");
}

#[tokio::test]
async fn what_serves_a_volume_is_no_part_of_its_sandbox_and_holds_nothing_that_it_need_not() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    volume(client, "data", 32 * MIB).await;
    let id = with(client, "data", "rw").await;
    let process = PathBuf::from(format!("/proc/{}", server(&daemon)));
    let container = daemon.container_of(&id).await.unwrap().id;
    let groups = std::fs::read_to_string(process.join("cgroup")).unwrap();
    assert!(!groups.contains(&container), "{groups}");
    let mut open: Vec<_> = std::fs::read_dir(process.join("fd"))
        .unwrap()
        .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    open.sort();
    let image = open
        .iter()
        .find(|name| name.contains(".img"))
        .unwrap()
        .clone();
    assert_eq!(
        open,
        ["data.lock", "fuse", "null", "null", "null", &image, &image]
    );
    let mounts = std::fs::read_to_string(process.join("mountinfo")).unwrap();
    let mount = mounts
        .lines()
        .find(|line| line.contains("/mounts/data "))
        .unwrap();
    let options = mount.split(' ').nth(5).unwrap();
    assert!(
        options.contains("nosuid") && options.contains("nodev"),
        "{mount}"
    );
    // It outlives a pause, too.
    let path = format!("/v1/sessions/{id}");
    client
        .post(&format!("{path}/pause"), json!({}))
        .await
        .expect(200);
    client
        .post(&format!("{path}/resume"), json!({}))
        .await
        .expect(200);
    assert_eq!(
        client
            .out(&id, "echo on >/volumes/data/a; cat /volumes/data/a")
            .await,
        "on\n"
    );
    end(client, &id).await;
    assert_eq!(servers(&daemon), []);
    let left = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!left.contains("/mounts/data"), "{left}");
}

#[tokio::test]
async fn a_sudden_end_of_the_daemon_leaves_volumes_as_they_are() {
    let mut daemon = Daemon::up().await;
    volume(&daemon.client, "data", 32 * MIB).await;
    let id = with(&daemon.client, "data", "rw").await;
    let before = server(&daemon);
    daemon.client.out(&id, "echo before >/volumes/data/a").await;
    daemon.kill9();
    daemon.start().await;
    let client = &daemon.client;
    daemon.phase(&id, "ready").await;
    assert_eq!(
        client
            .out(&id, "echo after >>/volumes/data/a; cat /volumes/data/a")
            .await,
        "before\nafter\n"
    );
    assert_eq!(server(&daemon), before);
    refused(client, "data", "rw")
        .await
        .problem(409, "volume_in_use");
    end(client, &id).await;
    let next = with(client, "data", "rw").await;
    assert_eq!(
        client.out(&next, "cat /volumes/data/a").await,
        "before\nafter\n"
    );
    end(client, &next).await;
}

/// Writes a file and makes sure that it is on the disk.
const SYNCED: &str = "python3 -c 'import os; f = open(\"/volumes/data/synced\", \"w\"); f.write(\"kept\"); f.flush(); os.fsync(f.fileno())' && echo x >/volumes/data/other";

#[tokio::test]
async fn when_what_serves_a_volume_is_killed_its_session_ends_and_the_volume_can_be_had_again() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    volume(client, "data", 64 * MIB).await;
    let id = with(client, "data", "rw").await;
    assert_eq!(client.sh(&id, SYNCED).await.0, 0);
    kill9(server(&daemon));
    let session = daemon.phase(&id, "failed").await;
    assert_eq!(session["reason"], "volume_lost", "{session}");
    assert_eq!(servers(&daemon), []);
    let next = with(client, "data", "rw").await;
    assert_eq!(
        client
            .out(&next, "cat /volumes/data/synced; echo on >/volumes/data/b")
            .await,
        "kept"
    );
    end(client, &next).await;
}

#[tokio::test]
async fn what_serves_a_volume_and_stands_still_holds_up_neither_its_session_s_end_nor_the_next() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    volume(client, "data", 64 * MIB).await;
    let id = with(client, "data", "rw").await;
    assert_eq!(client.sh(&id, SYNCED).await.0, 0);
    let stopped = server(&daemon);
    kill(Pid::from_raw(stopped), Signal::SIGSTOP).unwrap();
    // A program that waits for it, for ever.
    let waits = json!({"argv": ["ls", "-l", "/volumes/data"]});
    let path = format!("/v1/sessions/{id}/processes");
    client.post(&path, waits).await.expect(201);
    // What has nothing to do with it goes on.
    assert_eq!(client.out(&id, "echo on").await, "on\n");
    client.delete(&format!("/v1/sessions/{id}")).await;
    daemon.phase(&id, "stopped").await;
    wait_until("it is ended", async || servers(&daemon).is_empty()).await;
    let next = with(client, "data", "rw").await;
    let again = "cat /volumes/data/synced; echo on >/volumes/data/b";
    assert_eq!(client.out(&next, again).await, "kept");
    end(client, &next).await;
}

#[tokio::test]
async fn whatever_of_a_sandbox_is_killed_its_volume_can_be_had_again() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    volume(client, "data", 64 * MIB).await;
    for (which, word) in [
        ("its sandbox", "runsc-sandbox"),
        ("its gofer", "runsc-gofer"),
        ("its conmon", "conmon"),
    ] {
        let id = with(client, "data", "rw").await;
        assert_eq!(client.sh(&id, SYNCED).await.0, 0, "{which}");
        let container = daemon.container_of(&id).await.unwrap().id;
        let found = processes([word, &container]);
        assert!(!found.is_empty(), "{which} is not found");
        found.into_iter().for_each(kill9);
        if word == "conmon" {
            end(client, &id).await;
        } else {
            daemon.phase(&id, "failed").await;
        }
        assert_eq!(servers(&daemon), [], "{which}");
        let next = with(client, "data", "rw").await;
        assert_eq!(
            client
                .out(&next, "cat /volumes/data/synced; rm /volumes/data/synced")
                .await,
            "kept",
            "{which}"
        );
        end(client, &next).await;
    }
}

#[tokio::test]
async fn nothing_in_a_volume_reaches_the_host_or_breaks_it() {
    let daemon = Daemon::up_with(&[("templates.base.allow_root", json!(true))]).await;
    let client = &daemon.client;
    volume(client, "data", 64 * MIB).await;
    volume(client, "other", 32 * MIB).await;
    let id = client
        .session(json!({"volumes": [{"name": "data"}, {"name": "other", "mode": "ro"}]}))
        .await;
    let secret = daemon.home.join("casemate.yaml");
    let room = daemon.run.join(format!("link/{id}.volumes"));
    let hostile = format!(
        "cd /volumes/data; ln -s {secret} out; ln -s {room} room; ln -s ../../../../.. up; ln -s ../other/.. side; \
         cat out 2>/dev/null; ls room 2>/dev/null; ls up/volumes side; \
         mknod dev b 7 0 2>/dev/null; mknod dev c 1 3 2>/dev/null; cp /bin/sh suid; chmod 4755 suid; \
         python3 - <<'END'\n\
import os\n\
os.chdir('/volumes/data')\n\
open('new\\nline \\x1b[31m ' + 'x' * 200, 'w').close()\n\
open(b'\\xff\\xfe', 'w').close()\n\
open('n' * 255, 'w').close()\n\
deep = '.'\n\
for i in range(100):\n    deep += '/d' * 1\n    os.mkdir(deep)\n\
f = open('sparse', 'wb'); f.truncate(1 << 40); f.seek(1 << 39); f.write(b'x'); f.close()\n\
os.link('suid', 'hard')\n\
os.setxattr('suid', 'user.a', b'b' * 100) if False else None\n\
END\n\
         ls -A | wc -l; touch /volumes/other/x 2>/dev/null || echo ro; touch /volumes/x 2>/dev/null || echo top",
        secret = secret.display(),
        room = room.display(),
    );
    for user in ["user", "root"] {
        let outcome = client
            .run(&id, json!({"argv": ["sh", "-c", hostile], "user": user}))
            .await;
        let out = outcome["stdout"].as_str().unwrap();
        assert!(!out.contains("version"), "the host's file was read: {out}");
        assert!(!out.contains("wanted"), "the room was seen: {out}");
        assert!(out.ends_with("ro\ntop\n"), "{outcome}");
        assert!(out.contains("data\nother\n"), "{outcome}");
        client
            .run(
                &id,
                json!({"argv": ["sh", "-c", "rm -rf /volumes/data/*"], "user": "root"}),
            )
            .await;
        assert_eq!(
            client
                .run(&id, json!({"argv": ["sh", "-c", hostile], "user": user}))
                .await["exit_code"],
            0
        );
        client.run(&id, json!({"argv": ["sh", "-c", "rm -rf /volumes/data/d /volumes/data/[a-z]*"], "user": "root"})).await;
    }
    end(client, &id).await;
    let next = with(client, "data", "rw").await;
    assert_eq!(
        client
            .out(&next, "echo well >/volumes/data/a; cat /volumes/data/a")
            .await,
        "well\n"
    );
    end(client, &next).await;
}

#[tokio::test]
async fn thousands_of_small_files_are_all_there_afterwards() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    volume(client, "data", 128 * MIB).await;
    let id = with(client, "data", "rw").await;
    let write = "cd /volumes/data && for d in 1 2 3 4 5 6; do mkdir $d; for i in $(seq 500); do echo $d.$i >$d/$i; done; done; \
        find . -type f | wc -l";
    let outcome = client
        .run(&id, json!({"argv": ["sh", "-c", write], "timeout_s": 300}))
        .await;
    assert_eq!(outcome["stdout"], "3000\n", "{outcome}");
    end(client, &id).await;
    let next = with(client, "data", "ro").await;
    assert_eq!(
        client
            .out(
                &next,
                "cd /volumes/data; find . -type f | wc -l; cat 6/500 1/1"
            )
            .await,
        "3000\n6.500\n1.1\n"
    );
    end(client, &next).await;
}

#[tokio::test]
async fn a_sandbox_that_stood_ready_has_its_session_s_volumes() {
    let template = json!({"image": bench().image, "pool": 1});
    let daemon = Daemon::up_with(&[("templates.base", template)]).await;
    let client = &daemon.client;
    volume(client, "data", 32 * MIB).await;
    wait_until("a sandbox stands ready", async || {
        daemon.log().contains("a sandbox stands ready")
    })
    .await;
    let ready: Vec<_> = daemon.containers().await;
    let id = with(client, "data", "rw").await;
    let container = daemon.container_of(&id).await.unwrap().id;
    assert!(
        ready.iter().any(|known| known.id == container),
        "it was not the one that stood ready"
    );
    assert_eq!(
        client
            .out(&id, "echo warm >/volumes/data/a; cat /volumes/data/a")
            .await,
        "warm\n"
    );
    end(client, &id).await;
}

#[tokio::test]
async fn an_archive_fills_a_volume() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    volume(client, "data", 64 * MIB).await;
    let source = daemon.home.join("source");
    std::fs::create_dir_all(source.join("sub")).unwrap();
    std::fs::write(source.join("sub/file"), "from outside").unwrap();
    let archive = daemon.home.join("a.tar");
    let packed = std::process::Command::new("tar")
        .args([
            "-C",
            source.to_str().unwrap(),
            "-cf",
            archive.to_str().unwrap(),
            ".",
        ])
        .status();
    assert!(packed.unwrap().success());
    let filled = tokio::process::Command::new(bench().bin.join("casemate"))
        .args(["volume", "fill", "data", archive.to_str().unwrap()])
        .env("CASEMATE_URL", format!("http://{}", client.address))
        .env("CASEMATE_API_KEY", client.key.as_ref().unwrap())
        .output();
    let filled = filled.await.unwrap();
    assert!(filled.status.success(), "{filled:?}");
    let id = with(client, "data", "ro").await;
    assert_eq!(
        client.out(&id, "cat /volumes/data/sub/file").await,
        "from outside"
    );
    end(client, &id).await;
}

#[tokio::test]
async fn an_archive_that_does_not_fit_says_so_and_the_volume_is_as_good_as_before() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    volume(client, "data", 16 * MIB).await;
    let id = with(client, "data", "rw").await;
    let put = format!("/v1/sessions/{id}/files?path=/volumes/data/big");
    let big = bytes::Bytes::from(vec![7; 20 << 20]);
    let answer = client.send(Method::PUT, &put, &[], big).await;
    assert_eq!(answer.status, 507, "{answer:?}");
    assert_eq!(
        client
            .out(&id, "echo on >/volumes/data/a; cat /volumes/data/a")
            .await,
        "on\n"
    );
    end(client, &id).await;
}

#[tokio::test]
async fn a_removed_volume_takes_nothing_from_the_disk() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let made = volume(client, "data", 32 * MIB).await;
    let file = image_of(&daemon, &made);
    let directory = file.parent().unwrap();
    assert!(file.exists());
    client.delete("/v1/volumes/data").await.expect(204);
    assert!(!file.exists());
    assert_eq!(daemon.sql::<i64>("SELECT count(*) FROM volumes"), [0]);
    // A file that nobody knows is removed by a look that nobody has to ask for.
    let stranger = directory.join("vol_01m81sqd3exyysy61zt3rypv68.img");
    std::fs::write(&stranger, "").unwrap();
    wait_for(
        "it is removed",
        PATIENCE.max(Duration::from_secs(60)),
        async || (!stranger.exists()).then_some(()),
    )
    .await;
}
