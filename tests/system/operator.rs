//! Administering from elsewhere: the operator token, off by default, replaced without a restart.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use casemate::admin::protocol::{Answer, Request};
use casemate::model::record::hex;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Daemon, PATIENCE, bench, daemon::give_to_daemon, wait_for};

/// A file of the daemon's with a new token, and one of the operator's with the same.
struct Token {
    file: PathBuf,
    text: String,
}

impl Token {
    fn new(seed: u8) -> Self {
        let digest = casemate::identity::digest(&[seed]);
        Self::holding(seed, &format!("cmo_{}", hex(&digest)))
    }

    fn holding(seed: u8, text: &str) -> Self {
        let file = bench()
            .dir
            .join(format!("operator.{}.{seed}", std::process::id()));
        write(&file, text, 0o600);
        Self {
            file,
            text: text.to_owned(),
        }
    }

    fn casemate(&self, daemon: &Daemon, arguments: &[&str]) -> Command {
        let mut command = Command::new(bench().bin.join("casemate"));
        command
            .env_clear()
            .arg("--url")
            .arg(format!("http://{}", daemon.client.address))
            .arg("--operator-file")
            .arg(&self.file)
            // Whoever is elsewhere has none.
            .args(["--socket", "/nonexistent/admin.sock"])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, daemon: &Daemon, arguments: &[&str]) -> Output {
        self.casemate(daemon, arguments).output().unwrap()
    }

    fn ok(&self, daemon: &Daemon, arguments: &[&str]) -> String {
        let output = self.run(daemon, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn refused(&self, daemon: &Daemon) {
        let output = self.run(daemon, &["admin", "status"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(77), "{error}");
        assert!(error.contains("unauthenticated"), "{error}");
        assert!(!error.contains(&self.text), "{error}");
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Puts the token where the daemon looks for it.
fn place(daemon: &Daemon, text: &str, mode: u32) -> PathBuf {
    let path = daemon.home.join("operator.token");
    write(&path, &format!("{text}\n"), mode);
    give_to_daemon(&path);
    path
}

/// At the socket: whoever ends the own token does not hear that it is done.
async fn reload(daemon: &Daemon) {
    assert!(matches!(daemon.admin(Request::Reload).await, Answer::Done));
}

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn there_is_no_operator_elsewhere_until_there_is_a_token() {
    let mut daemon = Daemon::up().await;
    let (one, two) = (Token::new(1), Token::new(2));
    one.refused(&daemon);

    // From a reload on: one command after the other, as at the socket.
    let path = place(&daemon, &one.text, 0o600);
    daemon.set("http.operator", json!({"token": path, "overlap_s": 3600}));
    reload(&daemon).await;
    two.refused(&daemon);
    assert!(one.ok(&daemon, &["admin", "status"]).contains("runsc"));
    let made = ["admin", "key", "create", "far", "--team", "red"];
    let member = daemon.client.with_key(&one.ok(&daemon, &made));
    let session = member.session(json!({})).await;
    assert!(
        one.ok(&daemon, &["admin", "session", "list"])
            .contains(&session)
    );
    one.ok(&daemon, &["admin", "session", "stop", &session]);
    assert_eq!(member.look(&session).await["reason"], "operator");
    assert!(one.ok(&daemon, &["audit", "verify"]).contains("records"));
    // So do the routes.
    let keys = daemon.client.with_key(&one.text).get("/v1/keys").await;
    assert!(keys.expect(200)["items"].as_array().unwrap().len() >= 2);

    // What is recorded names the token and does not repeat it.
    let records = one.ok(&daemon, &["--json", "audit", "list", "--limit", "200"]);
    let records: Value = serde_json::from_str(&records).unwrap();
    let whom = records["items"].as_array().unwrap().iter().filter(|line| {
        line["event"]["kind"] == "admin.command"
            && line["principal"]
                .as_str()
                .unwrap()
                .starts_with("operator-token:")
    });
    assert!(whom.count() >= 4, "{records}");
    assert!(!records.to_string().contains(&one.text[4..]));
    assert!(!daemon.log().contains(&one.text[4..]));

    // A key is no operator token, however much it may do.
    let key = Token::holding(22, member.key.as_deref().unwrap());
    let output = key.run(&daemon, &["admin", "status"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(77), "{error}");
    assert!(error.contains("denied"), "{error}");

    // It is there at a start too, and gone when the settings have none.
    daemon.restart().await;
    one.ok(&daemon, &["admin", "status"]);
    daemon.set("http.operator", json!({}));
    reload(&daemon).await;
    one.refused(&daemon);
}

#[tokio::test]
async fn another_token_takes_its_place_while_the_one_before_is_taken_a_while_longer() {
    let mut daemon = Daemon::new();
    let (one, two, three) = (Token::new(11), Token::new(12), Token::new(13));
    let path = place(&daemon, &one.text, 0o600);
    daemon.set("http.operator", json!({"token": path, "overlap_s": 3600}));
    daemon.start().await;

    // Somebody follows the record with the first.
    let mut following = one.casemate(&daemon, &["audit", "tail", "-f"]);
    let following = following.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut following = Running(following.spawn().unwrap());
    let mut lines = BufReader::new(following.0.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("daemon.start"));

    place(&daemon, &two.text, 0o600);
    one.ok(&daemon, &["admin", "reload"]);
    for token in [&one, &two] {
        token.ok(&daemon, &["admin", "status"]);
    }
    let changed = two.ok(
        &daemon,
        &["--json", "audit", "list", "--kind", "daemon.reload"],
    );
    assert!(changed.contains("http.operator"), "{changed}");
    assert!(following.0.try_wait().unwrap().is_none());

    // What is not fit leaves everything as it is, and says what and how.
    for (text, mode, why) in [
        ("cmo_short", 0o600, "is not an operator token"),
        (three.text.as_str(), 0o640, "can be read by others"),
    ] {
        place(&daemon, text, mode);
        match daemon.admin(Request::Reload).await {
            Answer::Refused { code, message } => {
                assert_eq!(code, "not_reloaded");
                assert!(
                    message.contains("http.operator.token") && message.contains(why),
                    "{message}"
                );
                assert!(!message.contains(text), "{message}");
            }
            other => panic!("{other:?}"),
        }
        two.ok(&daemon, &["admin", "status"]);
    }

    // Without an overlap the one before is over at once, and what it opened ends.
    place(&daemon, &three.text, 0o600);
    daemon.set("http.operator.overlap_s", json!(0));
    reload(&daemon).await;
    two.refused(&daemon);
    three.ok(&daemon, &["admin", "status"]);
    // The first has its hour still: its end was said when it was replaced.
    one.ok(&daemon, &["admin", "status"]);
    assert!(following.0.try_wait().unwrap().is_none());
    daemon.set("http.operator", json!({}));
    reload(&daemon).await;
    wait_for("whoever follows is told to go", PATIENCE, async || {
        following.0.try_wait().unwrap()
    })
    .await;
    one.refused(&daemon);
}

#[tokio::test]
async fn many_operators_elsewhere_and_rude_ones_leave_the_desk_as_it_is() {
    let mut daemon = Daemon::new();
    let token = Token::new(21);
    let path = place(&daemon, &token.text, 0o600);
    daemon.set("http.operator", json!({"token": path}));
    daemon.start().await;
    let mut followers = Vec::new();
    for _ in 0..16 {
        let mut follow = token.casemate(&daemon, &["audit", "tail", "-f"]);
        let mut follow = Running(follow.stdout(Stdio::piped()).spawn().unwrap());
        let first = BufReader::new(follow.0.stdout.as_mut().unwrap())
            .lines()
            .next();
        assert!(first.unwrap().is_ok());
        followers.push(follow);
    }
    let output = token.run(&daemon, &["admin", "status"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("too_many_operators"), "{error}");
    // The socket has places of its own.
    assert!(matches!(
        daemon.admin(Request::Status).await,
        Answer::Status(_)
    ));
    // Some go without a word.
    for follow in &followers {
        let pid = Pid::from_raw(i32::try_from(follow.0.id()).unwrap());
        kill(pid, Signal::SIGKILL).unwrap();
    }
    wait_for("there is a place again", PATIENCE, async || {
        let output = token.run(&daemon, &["admin", "status"]);
        output.status.success().then_some(())
    })
    .await;
}
