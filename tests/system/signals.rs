//! What operators tell the daemon by signals.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::Instant;

use casemate::admin::protocol;

use crate::support::{Client, Daemon, wait_until};

/// Starts a program and waits until it runs; its answer to come.
async fn running(
    client: &Client,
    id: &str,
    seconds: u32,
) -> tokio::task::JoinHandle<crate::support::Answer> {
    let script = format!("touch /tmp/began; sleep {seconds}; echo done");
    let run = json!({"argv": ["sh", "-c", script]});
    let handle = {
        let (client, id) = (client.clone(), id.to_owned());
        tokio::spawn(async move { client.try_run(&id, run).await })
    };
    wait_until("it runs", async || {
        client.sh(id, "test -e /tmp/began").await.0 == 0
    })
    .await;
    handle
}

#[tokio::test]
async fn sigterm_lets_a_run_finish_and_leaves_the_sessions() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let run = running(&client, &id, 3).await;
    daemon.signal(Signal::SIGTERM);
    wait_until("nobody new is let in", async || {
        let request = client.try_send(http::Method::GET, "/health", &[], bytes::Bytes::new());
        request.await.is_err()
    })
    .await;
    let outcome = run.await.unwrap().expect(200);
    assert_eq!(outcome["stdout"], "done\n");
    assert_eq!(daemon.exit().await, 0);
    assert!(!daemon.admin_socket().exists());
    assert_eq!(daemon.containers().await.len(), 1, "its sandbox runs on");
    daemon.start().await;
    assert_eq!(daemon.phase(&id, "ready").await["generation"], 3);
    wait_until("it is usable", async || {
        client.try_run(&id, json!({"argv": ["true"]})).await.status == 200
    })
    .await;
    let kinds =
        daemon.sql::<String>("SELECT kind FROM audit WHERE kind LIKE 'daemon.%' ORDER BY seq");
    assert_eq!(kinds, ["daemon.start", "daemon.stop", "daemon.start"]);
}

#[tokio::test]
async fn a_second_sigterm_forces_the_end() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let run = running(&client, &id, 60).await;
    daemon.signal(Signal::SIGTERM);
    wait_until("it stops", async || daemon.log().contains("stopping")).await;
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.exit().await, 143);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(run.await.is_err(), "the client saw the connection break");
    daemon.forget_intents();
    daemon.start().await;
    daemon.phase(&id, "ready").await;
}

#[tokio::test]
async fn sigint_ends_in_order_as_well() {
    let mut daemon = Daemon::up().await;
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.exit().await, 0);
}

#[tokio::test]
async fn told_to_stop_its_sessions_it_leaves_nothing() {
    let mut daemon = Daemon::up_with(&[("sessions.on_shutdown", json!("stop"))]).await;
    for _ in 0..3 {
        daemon.client.session(json!({})).await;
    }
    daemon
        .client
        .post("/v1/sessions", json!({"wait": false}))
        .await
        .expect(201);
    assert_eq!(daemon.term().await, 0);
    assert!(daemon.containers().await.is_empty());
    assert!(daemon.links().is_empty());
    let ends = daemon.sql::<String>("SELECT phase || ' ' || reason FROM sessions");
    assert_eq!(ends, ["stopped operator"; 4]);
}

#[tokio::test]
async fn sighup_takes_new_templates_and_a_wrong_file_changes_nothing() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let wanted = json!({"template": "second"});
    let detail = client
        .post("/v1/sessions", wanted.clone())
        .await
        .problem(400, "unknown_template");
    assert!(detail.contains("second"), "{detail}");
    let kept = client.session(json!({})).await;

    let base = daemon.config["templates"]["base"].clone();
    daemon.set("templates.second", base);
    daemon.set("templates.second.env", json!({"WHO": "second"}));
    daemon.signal(Signal::SIGHUP);
    wait_until("it was reloaded", async || {
        daemon.log().contains("changed=\"templates.second\"")
    })
    .await;
    let id = client.session(wanted.clone()).await;
    assert_eq!(client.out(&id, "echo $WHO").await, "second\n");
    assert_eq!(client.out(&kept, "echo still").await, "still\n");

    // Wrong, or needing a restart, or an image that is not there: the old settings stay.
    let good = daemon.config.clone();
    for (count, (key, value, word)) in [
        (
            "templates.third",
            json!({"image": "a:tag"}),
            "templates/third.yaml:2: image",
        ),
        ("http.max_connections", json!(7), "http.max_connections"),
        (
            "templates.third",
            json!({"image": format!("sha256:{}", "cd".repeat(32))}),
            "cdcdcd",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        daemon.config = good.clone();
        daemon.set("templates.second.env", json!({"WHO": "nobody"}));
        daemon.set(key, value);
        daemon.signal(Signal::SIGHUP);
        wait_until("it is refused", async || {
            daemon.log().matches("not reloaded").count() == count + 1
        })
        .await;
        assert!(daemon.log().contains(word), "{}", daemon.log());
        match daemon.admin(protocol::Request::Reload).await {
            protocol::Answer::Refused { code, message } => {
                assert_eq!(code, "not_reloaded");
                assert!(message.contains(word), "{message}");
            }
            other => panic!("{other:?}"),
        }
        let id = client.session(wanted.clone()).await;
        assert_eq!(client.out(&id, "echo $WHO").await, "second\n");
        client.end(&id).await;
    }
    daemon.config = good;
    daemon.config["templates"]
        .as_object_mut()
        .unwrap()
        .remove("second");
    daemon.write_config();
    assert!(matches!(
        daemon.admin(protocol::Request::Reload).await,
        protocol::Answer::Done
    ));
    client
        .post("/v1/sessions", wanted)
        .await
        .problem(400, "unknown_template");
    assert_eq!(
        client.out(&id, "echo $WHO").await,
        "second\n",
        "it lives on"
    );
}
