//! The operators' socket: who may, and what the rest gets to hear.

use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use casemate::admin::protocol::{Answer, MAX_FRAME_BYTES, Request};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::record::said;
use crate::support::{Daemon, PATIENCE, admin, bench};

#[tokio::test]
async fn root_sees_how_the_daemon_is_and_all_its_sessions() {
    let mut daemon = Daemon::up().await;
    let key = daemon.key("others").await;
    let one = daemon.client.session(json!({"name": "one"})).await;
    let two = daemon.client.with_key(&key).session(json!({})).await;
    let Answer::Status(status) = daemon.admin(Request::Status).await else {
        panic!("no status");
    };
    assert!(status.ready, "{status:?}");
    assert_eq!(status.live_sessions, 2);
    assert!(status.runtime_version.contains("runsc"), "{status:?}");
    assert!(!status.podman_version.is_empty());
    let list = |live| Request::SessionList { live, limit: 10 };
    let Answer::Sessions { items } = daemon.admin(list(true)).await else {
        panic!("no list");
    };
    let mut teams: Vec<_> = items.iter().map(|line| line.team.as_str()).collect();
    teams.sort_unstable();
    assert_eq!(teams, ["others", "tests"]);
    let stop = Request::SessionStop {
        id: two.parse().unwrap(),
    };
    assert!(matches!(daemon.admin(stop).await, Answer::Done));
    let Answer::Sessions { items } = daemon.admin(list(true)).await else {
        panic!("no list");
    };
    assert_eq!(items.len(), 1);
    assert_eq!(items[0].id.to_string(), one);
    let ended = daemon.client.with_key(&key).look(&two).await;
    assert_eq!(ended["reason"], "operator");
    let unknown = Request::SessionStop {
        id: "ses_00000000000000000000000000".parse().unwrap(),
    };
    match daemon.admin(unknown).await {
        Answer::Refused { code, .. } => assert_eq!(code, "session_not_found"),
        other => panic!("{other:?}"),
    }
    let Answer::Images { items } = daemon.admin(Request::ImageList).await else {
        panic!("no images");
    };
    assert!(
        items
            .iter()
            .any(|image| image.digest.to_string() == bench().image)
    );
    let page = said(&daemon, &["--json", "audit", "list", "--limit", "200"]).await;
    let page: Value = serde_json::from_str(&page).unwrap();
    let records = page["items"].as_array().unwrap();
    let kinds: Vec<_> = records
        .iter()
        .map(|record| record["event"]["kind"].as_str().unwrap())
        .collect();
    for kind in [
        "daemon.start",
        "key.create",
        "admin.command",
        "session.create",
    ] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    assert!(
        records
            .windows(2)
            .all(|pair| pair[0]["seq"].as_i64() < pair[1]["seq"].as_i64()),
        "in order"
    );
}

/// A user of the system for one test.
struct User(String);

impl User {
    fn new(name: &str, group: Option<&str>) -> Self {
        let name = format!("{name}{}", std::process::id());
        let mut command = Command::new("/usr/sbin/useradd");
        command.args(["--system", "--no-create-home", "--user-group"]);
        if let Some(group) = group {
            command.args(["--groups", group]);
        }
        assert!(command.arg(&name).status().unwrap().success());
        Self(name)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/userdel").arg(&self.0).status();
    }
}

#[tokio::test]
async fn members_of_the_group_may_and_others_are_refused_logged_and_recorded() {
    let operator = User::new("cmtop", Some("casemate-admin"));
    let stranger = User::new("cmtno", None);
    let daemon = Daemon::up().await;
    let ask =
        |user: &User| admin::ask_as(&user.0, &user.0, &daemon.admin_socket(), Request::Status);
    let answer = ask(&operator);
    assert_eq!(answer["answer"], "status", "{answer}");
    assert_eq!(answer["ready"], true);

    let answer = ask(&stranger);
    assert_eq!(answer["answer"], "refused", "{answer}");
    assert_eq!(answer["code"], "not_an_operator");
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("casemate-admin")
    );
    let uid = nix::unistd::User::from_name(&stranger.0)
        .unwrap()
        .unwrap()
        .uid;
    assert!(
        daemon
            .log()
            .contains("turned a peer of the admin socket away")
    );
    assert!(daemon.log().contains(&format!("uid={uid}")));
    let refused = daemon.sql::<String>("SELECT event FROM audit WHERE kind = 'admin.refused'");
    assert_eq!(refused.len(), 1);
    let event: Value = serde_json::from_str(&refused[0]).unwrap();
    assert_eq!(event["uid"], uid.as_raw());

    // podman's user, which sandboxes run under, is nobody here.
    let socket = daemon.admin_socket();
    let answer = admin::ask_as(
        "casemate-sandbox",
        "casemate-sandbox",
        &socket,
        Request::Status,
    );
    assert_eq!(answer["code"], "not_an_operator");
}

/// Sends bytes and reads what comes back until the daemon hangs up.
async fn raw(daemon: &Daemon, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(daemon.admin_socket()).await.unwrap();
    // It may have hung up already.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("it does not hang up");
    answer
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(bytes);
    frame
}

fn refusal(answer: &[u8]) -> (String, String) {
    let answer: Value = serde_json::from_slice(&answer[4..]).unwrap();
    assert_eq!(answer["answer"], "refused", "{answer}");
    let text = |name: &str| answer[name].as_str().unwrap().to_owned();
    (text("code"), text("message"))
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_sentence() {
    let daemon = Daemon::up().await;
    for garbage in [
        &b"not json"[..],
        b"",
        b"{}",
        b"{\"version\":1}",
        b"{\"version\":1,\"request\":{\"command\":\"explode\"}}",
        b"{\"version\":1,\"request\":{\"command\":\"session-stop\",\"id\":\"x\"}}",
        b"{\"version\":1,\"request\":{\"command\":\"key-create\",\"name\":\"UPPER CASE\",\"team\":\"t\"}}",
        b"\xff\xfe\0",
        "[".repeat(100_000).as_bytes(),
    ] {
        let (code, message) = refusal(&raw(&daemon, &frame(garbage)).await);
        assert_eq!(code, "bad_request", "{message}");
    }
    let other = b"{\"version\":2,\"request\":{\"command\":\"status\"}}";
    let (code, message) = refusal(&raw(&daemon, &frame(other)).await);
    assert_eq!(code, "other_version");
    assert!(message.contains('2') && message.contains('1'), "{message}");
    for length in [u32::try_from(MAX_FRAME_BYTES).unwrap() + 1, u32::MAX] {
        let (code, _) = refusal(&raw(&daemon, &length.to_be_bytes()).await);
        assert_eq!(code, "bad_frame");
    }
    assert!(matches!(
        daemon.admin(Request::Status).await,
        Answer::Status(_)
    ));
    // None of it was carried out.
    let commands = daemon.sql::<String>("SELECT event FROM audit WHERE kind = 'admin.command'");
    assert_eq!(commands.len(), 2, "a key and a status: {commands:?}");
}

#[tokio::test]
async fn silent_and_slow_peers_are_hung_up_on_and_hold_nobody_up_for_long() {
    let daemon = Daemon::up().await;
    let began = Instant::now();
    let half = &frame(b"{\"version\":1}")[..7];
    let mut peers = Vec::new();
    // As many as are served at a time, and more.
    for n in 0..20 {
        let mut stream = UnixStream::connect(daemon.admin_socket()).await.unwrap();
        if n % 2 == 0 {
            stream.write_all(half).await.unwrap();
        }
        peers.push(stream);
    }
    assert!(matches!(
        daemon.admin(Request::Status).await,
        Answer::Status(_)
    ));
    assert!(
        began.elapsed() < Duration::from_secs(40),
        "{:?}",
        began.elapsed()
    );
    for mut peer in peers {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(PATIENCE, peer.read_to_end(&mut rest)).await;
        read.expect("it still holds on").ok();
        assert!(rest.is_empty());
    }
}

fn chunks(bytes: &[u8]) -> Vec<Bytes> {
    let mut chunks: Vec<Bytes> = bytes
        .chunks(512 << 10)
        .map(Bytes::copy_from_slice)
        .collect();
    chunks.push(Bytes::new());
    chunks
}

#[tokio::test]
async fn an_image_is_imported_with_progress_and_garbage_is_refused() {
    let daemon = Daemon::up().await;
    let archive = std::fs::read(&bench().archive).unwrap();
    let (answer, progress) = admin::ask_with(
        &daemon.admin_socket(),
        Request::ImageImport,
        &chunks(&archive),
    )
    .await;
    match answer {
        Answer::Image { digest } => assert_eq!(digest.to_string(), bench().image),
        other => panic!("{other:?}"),
    }
    assert!(progress.len() > 5, "{progress:?}");
    assert!(progress.windows(2).all(|pair| pair[0] < pair[1]));
    drop(archive);

    let zeros = vec![0; 2_000_000];
    for garbage in [&b""[..], b"this is no archive", &zeros] {
        let (answer, _) = admin::ask_with(
            &daemon.admin_socket(),
            Request::ImageImport,
            &chunks(garbage),
        )
        .await;
        match answer {
            Answer::Refused { message, .. } => assert!(!message.is_empty()),
            other => panic!("{other:?}"),
        }
    }
    let outcomes = daemon.sql::<String>(
        "SELECT outcome FROM audit WHERE kind = 'image.import' AND stage = 'outcome' ORDER BY seq",
    );
    assert_eq!(outcomes.len(), 4, "{outcomes:?}");
    assert!(outcomes[0].contains(&bench().image));
    assert!(
        outcomes[1..]
            .iter()
            .all(|outcome| outcome.contains("failed"))
    );
}

#[tokio::test]
async fn an_import_whose_sender_goes_away_fails_and_is_recorded() {
    let daemon = Daemon::up().await;
    let mut stream = UnixStream::connect(daemon.admin_socket()).await.unwrap();
    let request = frame(b"{\"version\":1,\"request\":{\"command\":\"image-import\"}}");
    stream.write_all(&request).await.unwrap();
    stream.write_all(&frame(&[7; 1000])).await.unwrap();
    drop(stream);
    crate::support::wait_until("its outcome is recorded", async || {
        let outcome = "SELECT outcome FROM audit WHERE kind = 'image.import' AND stage = 'outcome'";
        daemon
            .sql::<String>(outcome)
            .first()
            .is_some_and(|outcome| outcome.contains("failed"))
    })
    .await;
}
