//! Backups of a daemon at work, and states made of them: whole whatever comes between, on small disks, for one recipient.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use casemate::admin::protocol::{Answer, BackupView, Request};
use casemate::base::clock::Timestamp;
use casemate::model::record::{Digest, Pieces, digest_after};
use http::Method;
use rusqlite::{Connection, params};
use serde_json::json;

use crate::storm::ground::Podman;
use crate::support::client::UnixClient;
use crate::support::daemon::{DAEMON_USER, give_to_daemon};
use crate::support::{Client, Daemon, PATIENCE, bench, wait_for, wait_until};

async fn backup(daemon: &Daemon, to: Option<PathBuf>) -> Result<BackupView, (String, String)> {
    backup_with(daemon, to, false).await
}

async fn backup_with(
    daemon: &Daemon,
    to: Option<PathBuf>,
    images: bool,
) -> Result<BackupView, (String, String)> {
    match daemon.admin(Request::Backup { to, images }).await {
        Answer::Backup(made) => Ok(made),
        Answer::Refused { code, message } => Err((code, message)),
        other => panic!("{other:?}"),
    }
}

async fn restore(daemon: &Daemon, file: &Path, options: &[&str]) -> (i32, String) {
    let file = file.to_str().unwrap();
    let arguments = [&["restore", file], options].concat();
    daemon.run_to_end(DAEMON_USER, &arguments).await
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Makes templates one after the other until it is told to stop; those that were acknowledged.
async fn write(
    client: Client,
    letter: char,
    stop: Arc<AtomicBool>,
    so_far: Arc<AtomicBool>,
) -> Vec<String> {
    let mut made = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let name = format!("{letter}{}", made.len());
        let body = json!({"image": bench().image}).to_string();
        let headers = [("content-type", "application/json")];
        let answer = client
            .send(
                Method::PUT,
                &format!("/v1/templates/{name}"),
                &headers,
                body.into(),
            )
            .await;
        assert!(answer.status.is_success(), "{}", answer.status);
        made.push(name);
        so_far.store(true, Ordering::SeqCst);
    }
    made
}

/// Puts rows into the record of a daemon that does not run, so that its state is so large.
fn grow(database: &Path, rows: i64) {
    let db = Connection::open(database).unwrap();
    db.execute_batch("BEGIN").unwrap();
    let last = "SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1";
    let (mut seq, mut digest): (i64, Digest) = db
        .query_row(last, [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    let event = r#"{"kind":"daemon.stop"}"#;
    for n in 0..rows {
        seq += 1;
        let id = format!("evt_{n:026}");
        let row = Pieces {
            seq,
            id: &id,
            at: Timestamp::from_millis(1),
            stage: "fact",
            intent: None,
            principal: "x",
            session: None,
            event,
            outcome: None,
        };
        digest = digest_after(&digest, &row.body());
        db.execute(
            "INSERT INTO audit (seq, id, at, stage, principal, kind, event, digest)
             VALUES (?1, ?2, 1, 'fact', 'x', 'daemon.stop', ?3, ?4)",
            params![seq, id, event, digest],
        )
        .unwrap();
    }
    db.execute_batch("COMMIT").unwrap();
    drop(db);
    for end in ["", "-wal", "-shm"] {
        let path = PathBuf::from(format!("{}{end}", database.display()));
        if path.exists() {
            give_to_daemon(&path);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_backup_under_load_is_there_in_a_fresh_directory() {
    let mut daemon = Daemon::up_with(&[("sessions.team_templates.max", json!(1024))]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let first = || Arc::new(AtomicBool::new(false));
    let begun = [first(), first()];
    let writers: Vec<_> = begun
        .iter()
        .zip(['a', 'b'])
        .map(|(begun, letter)| {
            let (client, stop, begun) = (daemon.client.clone(), stop.clone(), begun.clone());
            tokio::spawn(write(client, letter, stop, begun))
        })
        .collect();
    wait_until("both write", async || {
        begun.iter().all(|begun| begun.load(Ordering::SeqCst))
    })
    .await;
    let before = daemon.client.get("/v1/templates").await.expect(200);
    let made = backup(&daemon, None).await.unwrap();
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        assert!(!writer.await.unwrap().is_empty());
    }
    assert!(made.path.starts_with(daemon.state_dir().join("backups")));
    let detailed = daemon.client.get("/health/detailed").await.expect(200);
    assert_eq!(detailed["last_backup_at"], json!(made.made_at));
    assert_eq!(detailed["ready"], true);
    daemon
        .client
        .stranger()
        .get("/health/detailed")
        .await
        .expect(401);
    assert_eq!(daemon.term().await, 0);

    let mut other = Daemon::new();
    other.set("sessions.team_templates.max", json!(1024));
    let file = other.home.join("file.tar.zst");
    std::fs::copy(&made.path, &file).unwrap();
    give_to_daemon(&file);
    let (code, text) = restore(&other, &file, &["--dry-run"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("nothing was changed"), "{text}");
    assert!(!other.database().exists());
    let (code, text) = restore(&other, &file, &[]).await;
    assert_eq!(code, 0, "{text}");
    let (code, text) = restore(&other, &file, &[]).await;
    assert_eq!(code, 77, "{text}");
    assert!(text.contains("--replace"), "{text}");
    // What is sealed in it is of no use without the key that is not in it.
    assert!(other.refuses(77).await.contains("there is no vault key"));
    let key = other.state_dir().join("vault.key");
    std::fs::copy(daemon.state_dir().join("vault.key"), &key).unwrap();
    give_to_daemon(&key);
    other.start().await;
    // The key that was made there is known here.
    other.client.key.clone_from(&daemon.client.key);
    let now = other.client.get("/v1/templates").await.expect(200);
    let list = |page: &serde_json::Value| -> BTreeSet<String> {
        let items = page["items"].as_array().unwrap().iter();
        items
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let (before, now) = (list(&before), list(&now));
    assert!(
        before.len() >= 3 && before.is_subset(&now),
        "{before:?} {now:?}"
    );
    let records = other.sql::<i64>("SELECT count(*) FROM audit WHERE kind = 'state.restore'");
    assert_eq!(records, [1]);
    // Of the backup that it is, the intent stands there without an outcome.
    other.forget_intents();
}

/// What is restored runs where podman has no image, and nobody could fetch one.
#[tokio::test]
async fn images_in_a_backup_are_used_on_a_machine_that_has_none() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    client.out(&id, "echo kept >~/file").await;
    let path = format!("/v1/sessions/{id}/snapshot");
    let made = client.post(&path, json!({"template": "mine"})).await;
    made.expect(201);
    client.end(&id).await;
    let began = std::time::Instant::now();
    let without = backup(&daemon, None).await.unwrap();
    assert_eq!(without.images, 0);
    let plain = began.elapsed();
    let began = std::time::Instant::now();
    let made = backup_with(&daemon, None, true).await.unwrap();
    eprintln!(
        "{} bytes in {plain:?} without images, {} bytes in {:?} with two",
        without.size_bytes,
        made.size_bytes,
        began.elapsed()
    );
    assert_eq!((made.images, &made.images_missing[..]), (2, &[][..]));
    assert!(made.size_bytes > without.size_bytes + (10 << 20));
    assert!(!names(&daemon.state_dir()).contains("backup-images.partial"));
    assert_eq!(daemon.term().await, 0);

    let podman = Podman::up();
    let images = async |method, path: &str| {
        let path = format!("/v4.0.0/libpod/images/{path}");
        let podman = UnixClient(podman.socket.clone());
        podman.send(method, &path).await.unwrap().expect(200)
    };
    let base = bench().image.trim_start_matches("sha256:");
    images(Method::DELETE, base).await;
    assert_eq!(images(Method::GET, "json?all=true").await, json!([]));

    let mut other = Daemon::on_podman(&podman.socket, &podman.runtime);
    let file = other.home.join("file.tar.zst");
    std::fs::copy(&made.path, &file).unwrap();
    give_to_daemon(&file);
    let (code, text) = restore(&other, &file, &["--dry-run"]).await;
    assert_eq!(code, 0, "{text}");
    let line = format!("the image {} (", bench().image);
    assert!(
        text.contains(&line) && text.contains("would be loaded"),
        "{text}"
    );
    let waiting = other.state_dir().join("images-restored");
    assert!(!waiting.exists());
    let (code, text) = restore(&other, &file, &[]).await;
    assert_eq!(code, 0, "{text}");
    let key = other.state_dir().join("vault.key");
    std::fs::copy(daemon.state_dir().join("vault.key"), &key).unwrap();
    give_to_daemon(&key);
    assert_eq!(names(&waiting).len(), 2);
    // Whoever only checks sees that they will be there, and leaves them.
    let (code, text) = other.run_to_end(DAEMON_USER, &["--check"]).await;
    assert_eq!(code, 0, "{text}");
    assert_eq!(names(&waiting).len(), 2);

    let began = std::time::Instant::now();
    other.start().await;
    eprintln!("ready after {:?}, with two images to load", began.elapsed());
    other.client.key.clone_from(&client.key);
    assert!(!waiting.exists());
    let here = other.client.clone();
    let id = here.session(json!({})).await;
    assert_eq!(
        here.out(&id, "cat ~/file 2>&1 || echo none")
            .await
            .lines()
            .last(),
        Some("none")
    );
    let id = here.session(json!({"template": "mine"})).await;
    assert_eq!(here.out(&id, "cat ~/file").await, "kept\n");
    let loaded = "SELECT count(*) FROM audit WHERE kind = 'image.import' AND result = 'ok'";
    assert_eq!(other.sql::<i64>(loaded), [2]);
    // Of the backup that it is, the intent stands there without an outcome.
    other.forget_intents();
}

#[tokio::test]
async fn a_restore_takes_up_what_still_runs_ends_what_is_gone_and_removes_what_nobody_owns() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let stays = client.session(json!({})).await;
    let goes = client.session(json!({})).await;
    client.out(&stays, "echo kept >/tmp/file").await;
    let made = backup(&daemon, None).await.unwrap();
    client.end(&goes).await;
    let comes = client.session(json!({})).await;
    let orphan = daemon.container_of(&comes).await.unwrap().id;
    assert_eq!(daemon.term().await, 0);
    let running = daemon.sql::<String>("SELECT id FROM sessions WHERE ended_at IS NULL");
    assert_eq!(running.len(), 2);

    let (code, text) = restore(&daemon, &made.path, &["--replace"]).await;
    assert_eq!(code, 0, "{text}");
    daemon.start().await;
    wait_until("its guest has dialled again", async || {
        client
            .try_run(&stays, json!({"argv": ["true"]}))
            .await
            .status
            == 200
    })
    .await;
    assert_eq!(client.out(&stays, "cat /tmp/file").await, "kept\n");
    let ended = daemon.phase(&goes, "failed").await;
    assert_eq!(ended["reason"], "restored", "{ended}");
    client
        .get(&format!("/v1/sessions/{comes}"))
        .await
        .problem(404, "session_not_found");
    let removed = daemon.sql::<String>("SELECT event FROM audit WHERE kind = 'sandbox.orphan'");
    assert!(
        removed.iter().any(|event| event.contains(&orphan)),
        "{removed:?}"
    );
    let aside = names(&daemon.state_dir());
    let aside = aside
        .iter()
        .find(|name| name.starts_with("state.before-restore-"));
    let old = daemon.state_dir().join(aside.unwrap()).join("state.db");
    let old = Connection::open(old).unwrap();
    let known: i64 = old
        .query_row("SELECT count(*) FROM sessions", [], |row| row.get(0))
        .unwrap();
    assert_eq!(known, 3, "what was there before is whole");
    daemon.forget_intents();
}

/// A hundred sudden ends: fifty of a daemon that makes a backup, fifty of a restore.
#[tokio::test]
async fn kill_9_at_any_moment_leaves_no_half_backup_and_the_old_state_or_the_new() {
    const ROUNDS: u32 = 50;
    let mut daemon = Daemon::up().await;
    let installation = daemon.installation();
    assert_eq!(daemon.term().await, 0);
    grow(&daemon.database(), 40_000);
    let backups = daemon.state_dir().join("backups");
    daemon.start().await;
    let began = std::time::Instant::now();
    let whole = backup(&daemon, None).await.unwrap();
    let takes = began.elapsed();
    let mut cut = 0;
    for round in 0..ROUNDS {
        let socket = daemon.admin_socket();
        let asking = tokio::spawn(async move {
            // Nobody answers a daemon that is killed.
            tokio::net::UnixStream::connect(&socket).await.map(drop)?;
            let program = bench().bin.join("casemate");
            let mut asking = tokio::process::Command::new(program);
            asking.args(["--socket", socket.to_str().unwrap(), "admin", "backup"]);
            asking.stdout(Stdio::null()).stderr(Stdio::null());
            asking.kill_on_drop(true).status().await
        });
        tokio::time::sleep(takes.mul_f64(1.2 * f64::from(round) / f64::from(ROUNDS))).await;
        daemon.kill9();
        let _ = asking.await.unwrap();
        let left = names(&backups);
        cut += usize::from(
            left.iter()
                .chain(&names(&daemon.state_dir()))
                .any(|name| name.contains("partial")),
        );
        for name in left.iter().filter(|name| name.ends_with(".tar.zst")) {
            // Each that has a backup's name is one.
            let (code, text) = restore(&daemon, &backups.join(name), &["--dry-run"]).await;
            assert_eq!(code, 0, "round {round}: {name}: {text}");
        }
        daemon.start().await;
        let left = names(&backups)
            .into_iter()
            .chain(names(&daemon.state_dir()));
        let partial: Vec<_> = left.filter(|name| name.contains("partial")).collect();
        assert!(partial.is_empty(), "round {round}: {partial:?}");
        for name in names(&backups) {
            let path = backups.join(name);
            if path != whole.path {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
    assert!(cut > 0, "no backup was cut short in the middle");
    assert_eq!(daemon.term().await, 0);

    // Another state, that differs: what it is afterwards is told by its name.
    let (mut old, mut new) = (0, 0);
    let began = std::time::Instant::now();
    let (code, text) = restore(&daemon, &whole.path, &["--replace"]).await;
    assert_eq!(code, 0, "{text}");
    let takes = began.elapsed();
    for round in 0..ROUNDS {
        for name in names(&daemon.state_dir()) {
            if !["backups", "lock", "vault.key"].contains(&name.as_str()) {
                let path = daemon.state_dir().join(name);
                let _ = std::fs::remove_dir_all(&path);
                let _ = std::fs::remove_file(&path);
            }
        }
        let (code, text) = daemon.run_to_end(DAEMON_USER, &["--check"]).await;
        assert_eq!(code, 0, "{text}");
        let mine = daemon.installation();
        assert_ne!(mine, installation);
        let mut restoring = Command::new("setpriv")
            .args([
                "--reuid",
                DAEMON_USER,
                "--regid",
                DAEMON_USER,
                "--init-groups",
                "--",
            ])
            .arg(bench().bin.join("casemated"))
            .args(["restore", "--replace", "--config"])
            .arg(daemon.config_path())
            .arg(&whole.path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The exchange itself comes at the end: most of the kills are there.
        let share = if round % 5 == 0 {
            0.9 * f64::from(round) / f64::from(ROUNDS)
        } else {
            0.75 + 0.3 * f64::from(round) / f64::from(ROUNDS)
        };
        tokio::time::sleep(takes.mul_f64(share)).await;
        let _ = restoring.kill();
        restoring.wait().unwrap();
        let (code, text) = daemon.run_to_end(DAEMON_USER, &["--check"]).await;
        assert_eq!(code, 0, "round {round}: {text}");
        let now = daemon.installation();
        let count = daemon.sql::<i64>("SELECT count(*) FROM audit")[0];
        if now == mine {
            assert!(count < 40_000, "round {round}");
            old += 1;
        } else {
            assert_eq!(now, installation, "round {round}");
            assert!(count >= 40_000, "round {round}");
            new += 1;
        }
        let left = names(&daemon.state_dir());
        assert!(
            !left.iter().any(|name| name.starts_with("restore.")),
            "round {round}: {left:?}"
        );
    }
    eprintln!("backups cut short: {cut} of {ROUNDS}; restores: {old} old, {new} new");
    assert!(old > 0, "no restore was cut short");
    daemon.forget_intents();
}

/// A small disk as the state's directory.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, mib: u32) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={mib}m,mode=0700,uid={DAEMON_USER},gid={DAEMON_USER}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "backup"])
            .arg(at)
            .status();
        assert!(mounted.unwrap().success());
        Self(at.to_owned())
    }

    fn fill(&self) {
        let mut file = File::create(self.0.join("ballast")).unwrap();
        for size in [1 << 16, 1 << 10] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn on_a_full_disk_new_work_waits_and_reading_ending_and_backups_elsewhere_go_on() {
    let mut daemon = Daemon::new();
    let disk = Disk::mount(&daemon.state_dir(), 96);
    let elsewhere = daemon.home.join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    give_to_daemon(&elsewhere);
    daemon.set("backup", json!({"elsewhere": elsewhere}));
    daemon.start().await;
    daemon.client.key = Some(daemon.key("tests").await);
    let client = daemon.client.clone();
    let sessions = [
        client.session(json!({})).await,
        client.session(json!({})).await,
    ];
    backup(&daemon, None).await.unwrap();
    let backups = daemon.state_dir().join("backups");
    let kept = names(&backups);
    disk.fill();
    let (code, message) = backup(&daemon, None).await.unwrap_err();
    assert!(
        ["no_room", "audit_failed"].contains(&code.as_str()),
        "{code}: {message}"
    );
    // Until the first write has found it, and the room that was held is given back.
    wait_until("the daemon has noticed", async || {
        client.stranger().get("/ready").await.status == 503
    })
    .await;
    let ready = client.stranger().get("/ready").await.expect(503);
    assert!(ready["mend"].as_str().unwrap().contains("disk"), "{ready}");
    for _ in 0..20 {
        let refused = client.post("/v1/sessions", json!({})).await;
        refused.problem(503, "state_full");
    }
    let run = client
        .try_run(&sessions[0], json!({"argv": ["true"]}))
        .await;
    run.problem(503, "state_full");
    // Reading goes on, and so does ending.
    assert_eq!(client.look(&sessions[0]).await["phase"], "ready");
    client.end(&sessions[0]).await;
    assert_eq!(client.look(&sessions[0]).await["phase"], "stopped");
    let (code, message) = backup(&daemon, None).await.unwrap_err();
    assert_eq!(code, "no_room", "{message}");
    assert!(message.contains("make room"), "{message}");
    assert_eq!(
        names(&backups),
        kept,
        "the old ones are kept, nothing is left"
    );
    let (code, message) = backup(&daemon, Some(daemon.home.join("b.tar.zst")))
        .await
        .unwrap_err();
    assert_eq!(code, "bad_name", "{message}");
    assert!(message.contains("backup.elsewhere"), "{message}");
    let made = backup(&daemon, Some(elsewhere.join("b.tar.zst")))
        .await
        .unwrap();
    assert_eq!(names(&elsewhere), BTreeSet::from(["b.tar.zst".to_owned()]));
    disk.free();
    wait_until("there is room again", async || {
        client.stranger().get("/ready").await.status == 200
    })
    .await;
    let again = client.session(json!({})).await;
    client.end(&again).await;
    client.end(&sessions[1]).await;
    let (code, text) = {
        assert_eq!(daemon.term().await, 0, "{}", daemon.log());
        restore(&daemon, &made.path, &["--dry-run"]).await
    };
    assert_eq!(code, 0, "{text}");
    // What it was full for may have no outcome.
    daemon.forget_intents();
    drop(disk);
}

#[tokio::test]
async fn a_backup_is_sealed_for_its_recipient_and_restored_with_its_identity_alone() {
    let mut daemon = Daemon::new();
    let pair = age::x25519::Identity::generate();
    let public = pair.to_public().to_string();
    let private = pair.to_string();
    let private = age::secrecy::ExposeSecret::expose_secret(&private);
    daemon.set("backup", json!({"recipient": public}));
    daemon.start().await;
    daemon.client.key = Some(daemon.key("tests").await);
    let made = backup(&daemon, None).await.unwrap();
    assert!(made.encrypted);
    let key = std::fs::read(daemon.state_dir().join("keys.hmac")).unwrap();
    let bytes = std::fs::read(&made.path).unwrap();
    assert!(!bytes.windows(key.len()).any(|found| found == key));
    assert_eq!(daemon.term().await, 0);
    let identity = daemon.home.join("identity");
    let (code, text) = restore(&daemon, &made.path, &["--dry-run"]).await;
    assert_eq!(code, 77, "{text}");
    assert!(text.contains("--identity"), "{text}");
    std::fs::write(&identity, format!("{private}\n")).unwrap();
    give_to_daemon(&identity);
    let with = ["--identity", identity.to_str().unwrap(), "--replace"];
    let (code, text) = restore(&daemon, &made.path, &with).await;
    assert_eq!(code, 0, "{text}");
    daemon.start().await;
    daemon.client.get("/v1/templates").await.expect(200);
    assert!(!daemon.log().contains("AGE-SECRET-KEY"));
    daemon.forget_intents();
}

#[tokio::test]
async fn a_schedule_makes_backups_keeps_the_newest_and_tells_of_a_directory_that_it_may_not_use() {
    let daemon = Daemon::up_with(&[("backup", json!({"every_s": 1, "keep": 2}))]).await;
    let backups = daemon.state_dir().join("backups");
    let first = wait_for("two backups", PATIENCE, async || {
        let found = names(&backups);
        (found.len() == 2).then_some(found)
    })
    .await;
    wait_until("the oldest goes", async || {
        let found = names(&backups);
        found
            .iter()
            .filter(|name| name.ends_with(".tar.zst"))
            .count()
            <= 2
            && found.is_disjoint(&first)
    })
    .await;
    let recorded = daemon.sql::<String>("SELECT principal FROM audit WHERE kind = 'backup.make'");
    assert!(recorded.len() >= 4, "{recorded:?}");
    drop(daemon);

    let mut daemon = Daemon::new();
    let closed = daemon.home.join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, Permissions::from_mode(0o755)).unwrap();
    daemon.set("backup", json!({"directory": closed, "every_s": 0}));
    daemon.start().await;
    let (code, message) = backup(&daemon, None).await.unwrap_err();
    assert_eq!(code, "file", "{message}");
    assert!(
        message.contains("closed") && message.contains("root"),
        "{message}"
    );
    let Answer::Status(status) = daemon.admin(Request::Status).await else {
        panic!("no status");
    };
    assert!(status.ready, "a backup that fails stops no work");
    let told = status.checks.iter().find(|(name, _)| name == "backup");
    assert!(
        told.unwrap().1.as_deref().unwrap().contains("failed"),
        "{told:?}"
    );
    assert!(names(&closed).is_empty());
}

#[tokio::test]
async fn an_upgrade_leaves_a_copy_to_go_back_to() {
    let mut daemon = Daemon::new();
    std::fs::create_dir(daemon.state_dir()).unwrap();
    std::fs::set_permissions(daemon.state_dir(), Permissions::from_mode(0o700)).unwrap();
    give_to_daemon(&daemon.state_dir());
    let db = Connection::open(daemon.database()).unwrap();
    db.execute_batch(include_str!("../../src/store/migrations/0001_init.sql"))
        .unwrap();
    db.execute_batch(include_str!("../fixtures/store/0001.sql"))
        .unwrap();
    db.execute_batch("PRAGMA application_id = 0x43534d54; PRAGMA user_version = 1")
        .unwrap();
    drop(db);
    give_to_daemon(&daemon.database());
    daemon.start().await;
    let live = "SELECT reason FROM sessions WHERE name = 'n'";
    wait_until("what lived then has ended", async || {
        daemon.sql::<Option<String>>(live) == [Some("sandbox_missing".to_owned())]
    })
    .await;
    assert_eq!(daemon.term().await, 0);
    let backups = daemon.state_dir().join("backups");
    let found = names(&backups);
    let copy = found
        .iter()
        .find(|name| name.starts_with("before-schema-2-"));
    std::fs::copy(backups.join(copy.unwrap()), daemon.database()).unwrap();
    give_to_daemon(&daemon.database());
    assert_eq!(
        daemon.sql::<i64>("SELECT user_version FROM pragma_user_version"),
        [1]
    );
    assert_eq!(daemon.sql::<Option<String>>(live), [None]);
    // And forward again.
    daemon.start().await;
    daemon.forget_intents();
}

#[tokio::test]
async fn a_damaged_state_is_refused_at_the_start_and_read_only_when_it_is_found_later() {
    let mut daemon = Daemon::up_with(&[("store", json!({"check_every_s": 1}))]).await;
    assert_eq!(daemon.term().await, 0);
    grow(&daemon.database(), 20_000);
    let whole = std::fs::read(daemon.database()).unwrap();
    let root = |name: &str| {
        let query = format!("SELECT rootpage FROM sqlite_schema WHERE name = '{name}'");
        let page = usize::try_from(daemon.sql::<i64>(&query)[0]).unwrap();
        (page - 1) * 4096
    };
    let spoiled = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at..at + 200].fill(0xa5);
        bytes
    };
    let (header, sessions, audit) = (0, root("sessions"), root("audit"));
    for at in [header, sessions] {
        std::fs::write(daemon.database(), spoiled(at)).unwrap();
        let text = daemon.refuses(65).await;
        assert!(text.contains("casemated restore FILE"), "{text}");
        assert_eq!(std::fs::read(daemon.database()).unwrap(), spoiled(at));
    }
    std::fs::write(daemon.database(), &whole).unwrap();
    daemon.start().await;
    assert_eq!(daemon.term().await, 0);
    // The index of the record: no start reads it, and no call before the whole check.
    std::fs::write(daemon.database(), &whole).unwrap();
    daemon.start().await;
    let client = daemon.client.clone();
    let mut file = File::options().write(true).open(daemon.database()).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(audit as u64)).unwrap();
    file.write_all(&[0xa5; 200]).unwrap();
    wait_until("the check finds it", async || {
        client.stranger().get("/ready").await.status == 503
    })
    .await;
    let ready = client.stranger().get("/ready").await.expect(503);
    assert!(
        ready["mend"]
            .as_str()
            .unwrap()
            .contains("casemated restore"),
        "{ready}"
    );
    let refused = client.post("/v1/sessions", json!({})).await;
    refused.problem(503, "state_damaged");
    client.get("/v1/sessions").await.expect(200);
    client.get("/health/detailed").await.expect(200);
    tokio::time::timeout(Duration::from_secs(60), daemon.term())
        .await
        .unwrap();
    std::fs::write(daemon.database(), &whole).unwrap();
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", daemon.database().display()));
    }
    daemon.forget_intents();
}
