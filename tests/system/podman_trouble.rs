//! Podman that is not there, does not listen, or does not answer: at the start and underway.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::podman::{Mood, Proxy};
use crate::support::{Daemon, bench, wait_until};

#[tokio::test]
async fn a_daemon_without_a_podman_that_answers_does_not_start() {
    let proxy = Proxy::start(Mood::Missing).await;
    let mut daemon = Daemon::new();
    daemon.set("podman.socket", json!(proxy.socket));
    daemon.set("podman.call_timeout_s", json!(2));
    for mood in [
        Mood::Missing,
        Mood::Refuse,
        Mood::Hang,
        // Somebody else's socket.
        Mood::Pass("/run/no/such.sock".into()),
    ] {
        proxy.set(mood.clone()).await;
        let began = Instant::now();
        let text = daemon.refuses(69).await;
        assert!(began.elapsed() < Duration::from_secs(20), "{mood:?}");
        let last = text.lines().last().unwrap();
        assert!(last.contains("ERROR"), "{mood:?}: {text}");
        assert!(last.contains("look at the machine"), "{mood:?}: {last}");
    }
    proxy.mend().await;
    daemon.start().await;
}

#[tokio::test]
async fn while_podman_is_away_sessions_go_on_creates_fail_and_all_heals() {
    let proxy = Proxy::before_podman().await;
    let daemon = Daemon::up_with(&[
        ("podman.socket", json!(proxy.socket)),
        ("podman.call_timeout_s", json!(2)),
        ("podman.sandbox_timeout_s", json!(3)),
    ])
    .await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    for mood in [Mood::Missing, Mood::Refuse, Mood::Hang] {
        proxy.set(mood.clone()).await;
        wait_until("readiness says so", async || {
            let answer = client.get("/ready").await;
            answer.status == 503
        })
        .await;
        let answer = client.get("/ready").await;
        assert!(answer.headers.contains_key("retry-after"));
        let ready = answer.expect(503);
        assert_eq!(ready["ready"], false);
        let bad: Vec<&str> = ready["checks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|check| check["ok"] == false)
            .map(|check| check["name"].as_str().unwrap())
            .collect();
        assert_eq!(bad, ["runtime"], "{mood:?}");
        client.get("/health").await.expect(200);

        let began = Instant::now();
        let answer = client.post("/v1/sessions", json!({})).await;
        answer.problem(503, "runtime_unavailable");
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{mood:?}: {:?}",
            began.elapsed()
        );
        assert_eq!(client.out(&id, "echo works").await, "works\n", "{mood:?}");
        assert_eq!(client.look(&id).await["phase"], "ready", "{mood:?}");

        proxy.mend().await;
        wait_until("it is ready again", async || {
            client.get("/ready").await.status == 200
        })
        .await;
        let next = client.session(json!({})).await;
        client.end(&next).await;
    }
    // What failed meanwhile has been cleared up since.
    wait_until("failed launches leave nothing", async || {
        daemon.containers().await.len() == 1 && daemon.links() == [id.clone()]
    })
    .await;
    let failed = client.get("/v1/sessions?phase=failed").await.expect(200);
    let failed = failed["items"].as_array().unwrap().clone();
    assert_eq!(failed.len(), 3);
    assert!(
        failed
            .iter()
            .all(|session| session["reason"] == "runtime_unavailable")
    );
    // A death is noticed also by a watch that was cut in between.
    let container = daemon.container_of(&id).await.unwrap();
    crate::support::podman::kill_sandbox(&container.id).await;
    assert_eq!(daemon.phase(&id, "failed").await["reason"], "sandbox_died");
}

#[tokio::test]
async fn a_session_that_is_ended_while_podman_is_away_ends_when_it_is_back() {
    let proxy = Proxy::before_podman().await;
    let daemon = Daemon::up_with(&[("podman.socket", json!(proxy.socket))]).await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    proxy.set(Mood::Missing).await;
    let path = format!("/v1/sessions/{id}");
    let ending = client.delete(&path);
    let mending = async {
        daemon.phase(&id, "stopping").await;
        let answer = client.try_run(&id, json!({"argv": ["true"]})).await;
        answer.problem(409, "session_not_ready");
        proxy.mend().await;
    };
    let (answer, ()) = tokio::join!(ending, mending);
    answer.expect(204);
    assert!(daemon.containers().await.is_empty());
}

#[tokio::test]
async fn a_clean_up_that_fails_is_seen_is_tried_again_survives_the_daemon_and_ends_well() {
    let proxy = Proxy::before_podman().await;
    let mut daemon = Daemon::up_with(&[("podman.socket", json!(proxy.socket))]).await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    proxy.set(Mood::Missing).await;
    // Nobody is kept waiting for as long as podman is away.
    let began = Instant::now();
    let answer = client.delete(&format!("/v1/sessions/{id}")).await;
    let session = answer.expect(202);
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(session["phase"], "stopping", "{session}");
    assert_eq!(session["reason"], "client", "{session}");
    assert_eq!(session["ended_at"], json!(null), "{session}");
    let tries = |log: String| log.matches("cannot clear a session up yet").count();
    assert!(tries(daemon.log()) > 2, "{}", daemon.log());

    daemon.kill9();
    daemon.refuses(69).await;
    let known = tries(daemon.log());
    // Podman says what there is, and then cannot remove it.
    proxy.set(Mood::KeepAll(bench().socket.clone())).await;
    daemon.start().await;
    wait_until("the next daemon tries it again and again", async || {
        tries(daemon.log()) > known + 2
    })
    .await;
    let session = client.look(&id).await;
    assert_eq!(session["phase"], "stopping", "{session}");
    assert_eq!(session["reason"], "client", "{session}");
    assert_eq!(daemon.containers().await.len(), 1);
    let next = client.session(json!({})).await;
    assert_eq!(client.out(&next, "echo works").await, "works\n");

    proxy.mend().await;
    let session = daemon.phase(&id, "stopped").await;
    assert_eq!(session["reason"], "client", "{session}");
    assert_eq!(daemon.containers().await.len(), 1);
}

#[tokio::test]
async fn podman_that_restarts_does_not_disturb_sessions() {
    let proxy = Proxy::before_podman().await;
    let daemon = Daemon::up_with(&[("podman.socket", json!(proxy.socket))]).await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    for _ in 0..3 {
        proxy.set(Mood::Missing).await;
        proxy.mend().await;
    }
    assert_eq!(client.out(&id, "echo works").await, "works\n");
    assert_eq!(client.look(&id).await["generation"], 3);
    client.session(json!({})).await;
}

#[tokio::test]
async fn an_image_that_podman_does_not_hold_is_refused_at_the_start() {
    let mut daemon = Daemon::new();
    let digest = format!("sha256:{}", "ab".repeat(32));
    daemon.set("templates.other", json!({"image": digest}));
    let text = daemon.refuses(69).await;
    let last = text.lines().last().unwrap();
    assert!(
        last.contains(&digest) && last.contains("other") && last.contains("load"),
        "{last}"
    );
    assert_ne!(digest, bench().image);
}
