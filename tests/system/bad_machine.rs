//! A machine and settings that are not as they should be: the daemon refuses with a sentence and the
//! right exit code, and touches nothing.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::daemon::give_to_daemon;
use crate::support::{Daemon, bench};

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// The operator's sentence is the last line.
#[track_caller]
fn says(text: &str, words: &[&str]) {
    let last = text.lines().last().unwrap();
    for word in words {
        assert!(last.contains(word), "no {word:?} in: {last}");
    }
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_made_or_written_is_refused() {
    let mut daemon = Daemon::new();
    let locked = daemon.home.join("locked");
    std::fs::create_dir(&locked).unwrap();
    daemon.set("state_dir", json!(locked.join("state")));
    says(
        &daemon.refuses(73).await,
        &["locked/state", "Permission denied"],
    );
    daemon.set("state_dir", json!(locked.join("no/such/state")));
    says(&daemon.refuses(73).await, &["locked/no/such/state"]);

    // A disk that is mounted read-only, in a mount namespace of its own.
    let state = daemon.home.join("state");
    std::fs::create_dir(&state).unwrap();
    give_to_daemon(&state);
    chmod(&state, 0o700);
    daemon.set("state_dir", json!(state));
    let script = format!(
        "mount --bind {0} {0} && mount -o remount,ro,bind {0} && exec setpriv --reuid casemate --regid casemate --init-groups -- {1} --config {2}",
        state.display(),
        bench().bin.join("casemated").display(),
        daemon.config_path().display(),
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(73), "{text}");
    says(&text, &["Read-only file system"]);
}

#[tokio::test]
async fn directories_that_others_could_have_written_are_refused_and_left_as_they_are() {
    let mut daemon = Daemon::new();
    let state = daemon.state_dir();
    std::fs::create_dir(&state).unwrap();
    give_to_daemon(&state);
    chmod(&state, 0o777);
    says(&daemon.refuses(77).await, &["state", "0777", "chmod 0700"]);
    let mode = std::fs::metadata(&state).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o777);
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);

    chmod(&state, 0o755);
    chown(&state, Some(0), Some(0)).unwrap();
    says(&daemon.refuses(77).await, &["belongs to the user root"]);

    std::fs::rename(&state, daemon.home.join("elsewhere")).unwrap();
    symlink(daemon.home.join("elsewhere"), &state).unwrap();
    says(&daemon.refuses(77).await, &["symlink"]);
    std::fs::remove_file(&state).unwrap();
    std::fs::write(&state, "a file").unwrap();
    says(&daemon.refuses(77).await, &["not a directory"]);
    std::fs::remove_file(&state).unwrap();

    chmod(&daemon.run, 0o777);
    says(&daemon.refuses(77).await, &[daemon.run.to_str().unwrap()]);
    chmod(&daemon.run, 0o711);
    daemon.start().await;
    assert_eq!(daemon.term().await, 0);

    let key = state.join("keys.hmac");
    let mode = std::fs::metadata(&key).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    chmod(&key, 0o640);
    says(&daemon.refuses(77).await, &["keys.hmac", "chmod 0600"]);
    chmod(&key, 0o600);
    let whole = std::fs::read(&key).unwrap();
    std::fs::write(&key, &whole[..31]).unwrap();
    says(&daemon.refuses(74).await, &["keys.hmac", "damaged"]);
    std::fs::write(&key, &whole).unwrap();
    daemon.start().await;
}

#[tokio::test]
async fn what_the_daemon_makes_is_for_nobody_else() {
    let daemon = Daemon::up().await;
    daemon.client.session(json!({})).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&daemon.state_dir()), 0o700);
    for entry in std::fs::read_dir(daemon.state_dir()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
    }
    assert_eq!(mode(&daemon.run), 0o711);
    assert_eq!(mode(&daemon.run.join("link")) & 0o007, 0);
    let link = daemon.run.join("link").join(&daemon.links()[0]);
    for path in [link.clone(), link.join("link.sock")] {
        assert_eq!(mode(&path) & 0o007, 0, "{}", path.display());
    }
    assert!(!link.join("token").exists(), "the guest has read it");
    assert_eq!(mode(&link.with_added_extension("token")), 0o600);
}

#[tokio::test]
async fn root_is_refused() {
    let daemon = Daemon::new();
    let (code, text) = daemon.run_to_end("root", &[]).await;
    assert_eq!(code, 77, "{text}");
    says(&text, &["root"]);
    assert!(!daemon.state_dir().exists(), "before the first touch");
}

#[tokio::test]
async fn a_group_that_is_not_the_daemons_or_not_there_is_refused() {
    let mut daemon = Daemon::new();
    daemon.set("podman.sandbox_group", json!("no-such-group"));
    let (code, text) = daemon.run_to_end("casemate", &[]).await;
    assert!([69, 77, 78].contains(&code), "{code}: {text}");
    says(&text, &["no-such-group"]);
    daemon.set("podman.sandbox_group", json!("daemon"));
    let (code, text) = daemon.run_to_end("casemate", &[]).await;
    assert!([73, 77, 78].contains(&code), "{code}: {text}");
    says(&text, &["daemon"]);
}

#[tokio::test]
async fn a_database_of_a_newer_version_or_another_program_is_refused_and_not_touched() {
    let mut daemon = Daemon::up().await;
    assert_eq!(daemon.term().await, 0);
    let database = daemon.database();
    let right = std::fs::read(&database).unwrap();
    for (pragma, words) in [
        ("PRAGMA user_version = 99", ["newer", "99"]),
        (
            "PRAGMA application_id = 7",
            ["not a Casemate database", "0x7"],
        ),
    ] {
        let db = rusqlite::Connection::open(&database).unwrap();
        db.pragma_update(None, "journal_mode", "DELETE").unwrap();
        db.execute_batch(pragma).unwrap();
        drop(db);
        let before = std::fs::read(&database).unwrap();
        says(&daemon.refuses(78).await, &words);
        assert!(
            std::fs::read(&database).unwrap() == before,
            "it was touched"
        );
        std::fs::write(&database, &right).unwrap();
    }
    std::fs::write(
        &database,
        "this is no database, but it is long enough to look like one",
    )
    .unwrap();
    let text = daemon.refuses(65).await;
    says(&text, &["state.db", "damaged", "casemated restore"]);
    std::fs::write(&database, &right).unwrap();
    daemon.start().await;
    daemon.client.get("/v1/sessions").await.expect(200);
}

#[tokio::test]
async fn a_second_daemon_on_the_same_state_is_refused() {
    let first = Daemon::up().await;
    let mut second = Daemon::new();
    second.set("state_dir", json!(first.state_dir()));
    let text = second.refuses(75).await;
    says(&text, &["lock", &first.pid().to_string()]);
    let id = first.client.session(json!({})).await;
    first.client.end(&id).await;
}

#[tokio::test]
async fn an_address_that_is_in_use_is_refused() {
    let first = Daemon::up().await;
    let mut second = Daemon::new();
    second.set("http.listen", json!(first.client.address));
    says(
        &second.refuses(69).await,
        &[&first.client.address, "http.listen"],
    );
    // And the admin socket's place, when something else is there.
    let mut third = Daemon::new();
    std::fs::write(third.admin_socket(), "a file").unwrap();
    says(&third.refuses(73).await, &["admin.sock", "not a socket"]);
    std::fs::remove_file(third.admin_socket()).unwrap();
    third.start().await;
}

#[tokio::test]
async fn wrong_settings_are_told_all_at_once() {
    let daemon = Daemon::new();
    daemon.write_config_text(
        "version: 1\nhttp:\n  listen: nonsense\n  max_bodybytes: 5\nsessions:\n  max: -1\n  on_shutdown: explode\nlog:\n  level: loud\n",
    );
    std::fs::write(
        daemon.home.join("templates/base.yaml"),
        "image: debian:latest\nlimits:\n  pids: 5\n",
    )
    .unwrap();
    let text = daemon.refuses(78).await;
    for word in [
        "http.listen",
        "max_bodybytes",
        "sessions.max",
        "on_shutdown",
        "templates/base.yaml:1: image",
        "debian:latest",
        "limits.pids",
        "log.level",
        "casemate.yaml",
    ] {
        assert!(text.contains(word), "no {word}: {text}");
    }
    assert!(!daemon.state_dir().exists());
    for garbage in [
        "",
        "{",
        "\0\0",
        "- a\n- b\n",
        "version: 9\n",
        "version: 1\n---\nversion: 1\n",
    ] {
        daemon.write_config_text(garbage);
        let text = daemon.refuses(78).await;
        assert!(text.contains("casemate.yaml"), "{garbage:?}: {text}");
    }
    std::fs::remove_file(daemon.config_path()).unwrap();
    let text = daemon.refuses(78).await;
    assert!(text.contains("casemate.yaml"), "{text}");
}

#[tokio::test]
async fn an_image_by_tag_is_refused_and_told_why() {
    let mut daemon = Daemon::new();
    for tag in [
        "debian:12",
        "localhost/casemate/base:latest",
        "latest",
        "sha256:abc",
    ] {
        daemon.set("templates.base.image", json!(tag));
        let text = daemon.refuses(78).await;
        assert!(text.contains("templates/base.yaml:2: image"), "{text}");
    }
}

#[tokio::test]
async fn check_says_whether_it_would_start_also_beside_a_running_daemon() {
    let mut daemon = Daemon::new();
    let (code, text) = daemon.run_to_end("casemate", &["--check"]).await;
    assert_eq!(code, 0, "{text}");
    says(&text, &["all is well"]);
    assert!(!daemon.admin_socket().exists());

    daemon.start().await;
    let (code, text) = daemon.run_to_end("casemate", &["--check"]).await;
    assert_eq!(code, 0, "{text}");
    daemon.client.get("/ready").await.expect(200);
    assert!(
        daemon.admin_socket().exists(),
        "the running one's doors stay"
    );

    let good = daemon.config["podman"]["runtime"].clone();
    daemon.set("podman.runtime", json!("/usr/bin/crun"));
    let (code, _) = daemon.run_to_end("casemate", &["--check"]).await;
    assert_eq!(code, 77);
    daemon.set("podman.runtime", good);
    daemon.set("nonsense", json!(1));
    let (code, _) = daemon.run_to_end("casemate", &["--check"]).await;
    assert_eq!(code, 78);
    daemon.config.as_object_mut().unwrap().remove("nonsense");
    daemon.write_config();
    daemon.client.get("/ready").await.expect(200);
}

#[tokio::test]
async fn a_guest_that_others_could_have_written_is_refused() {
    let mut daemon = Daemon::new();
    let guest = daemon.home.join("guest");
    std::fs::copy(&bench().guest, &guest).unwrap();
    daemon.set("podman.guest", json!(guest));
    chmod(&guest, 0o777);
    says(&daemon.refuses(77).await, &["guest", "chmod go-w"]);
    chmod(&guest, 0o700);
    says(&daemon.refuses(77).await, &["guest", "chmod 0755"]);
    std::fs::remove_file(&guest).unwrap();
    says(&daemon.refuses(77).await, &["guest"]);
}

#[tokio::test]
async fn a_guest_that_is_not_a_guest_fails_the_launch_with_its_last_words() {
    let mut daemon = Daemon::new();
    let guest = daemon.home.join("guest");
    std::fs::write(
        &guest,
        "#!/bin/sh\necho 'I am not your guest' >&2\nexit 3\n",
    )
    .unwrap();
    chmod(&guest, 0o755);
    daemon.set("podman.guest", json!(guest));
    daemon.start().await;
    let key = daemon.key("tests").await;
    daemon.client.key = Some(key);
    let answer = daemon.client.post("/v1/sessions", json!({})).await;
    answer.problem(502, "launch_failed");
    let page = daemon.client.get("/v1/sessions").await.expect(200);
    let id = page["items"][0]["id"].as_str().unwrap().to_owned();
    let session = daemon.phase(&id, "failed").await;
    let message = session["message"].as_str().unwrap();
    assert!(message.contains("exit code 3"), "{message}");
    assert!(message.contains("I am not your guest"), "{message}");
    assert!(daemon.containers().await.is_empty());
}

#[tokio::test]
async fn a_guest_that_never_dials_fails_the_launch_in_time() {
    let mut daemon = Daemon::new();
    let guest = daemon.home.join("guest");
    std::fs::write(&guest, "#!/bin/sh\nexec sleep 600\n").unwrap();
    chmod(&guest, 0o755);
    daemon.set("podman.guest", json!(guest));
    daemon.set("sessions.link_timeout_s", json!(2));
    daemon.start().await;
    let key = daemon.key("tests").await;
    daemon.client.key = Some(key);
    let began = tokio::time::Instant::now();
    let answer = daemon.client.post("/v1/sessions", json!({})).await;
    answer.problem(502, "launch_failed");
    assert!(began.elapsed() < std::time::Duration::from_secs(30));
}
