//! Real sandboxes that stand ready: a session has one at once, and nothing of it is older than the session.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{Daemon, bench, wait_until};

/// A daemon that holds so many sandboxes of `base` ready, which they are.
async fn with_pool(count: usize) -> Daemon {
    let daemon = Daemon::up_with(&[(
        "templates.base",
        json!({"image": bench().image, "pool": count}),
    )])
    .await;
    stand_ready(&daemon, count).await;
    daemon
}

/// Waits until so many stand ready, by the daemon's own word.
async fn stand_ready(daemon: &Daemon, count: usize) {
    wait_until("sandboxes stand ready", async || {
        let templates = daemon.client.get("/v1/templates").await.expect(200);
        let templates = templates["items"].as_array().unwrap();
        let base = templates.iter().find(|template| template["name"] == "base");
        base.unwrap()["pool_ready"] == count
    })
    .await;
}

/// How many steps it took a session to be ready: fewer where its sandbox stood ready.
async fn steps(daemon: &Daemon, id: &str) -> u64 {
    daemon.client.look(id).await["generation"].as_u64().unwrap()
}

#[tokio::test]
async fn a_session_claims_a_sandbox_in_which_nothing_has_happened() {
    let daemon = with_pool(2).await;
    let client = &daemon.client;
    let wanted = json!({"env": {"MINE": "yes"}});
    let ids = join_all((0..2).map(|_| client.session(wanted.clone()))).await;
    assert_ne!(ids[0], ids[1]);
    for id in &ids {
        assert_eq!(steps(&daemon, id).await, 2);
        let processes = client.get(&format!("/v1/sessions/{id}/processes")).await;
        assert_eq!(processes.expect(200)["processes"], json!([]));
        let suffix = id.strip_prefix("ses_").unwrap();
        assert_eq!(client.out(id, "hostname").await, format!("ses-{suffix}\n"));
        assert_eq!(
            client
                .out(id, "echo $MINE; ls -A /tmp /home/user")
                .await
                .lines()
                .next(),
            Some("yes")
        );
        let random = "head -c 16 /dev/urandom | od -An -tx1; date +%s >/tmp/mark";
        assert_eq!(client.sh(id, random).await.0, 0);
    }
    let (one, two) = (
        client.out(&ids[0], "cat /proc/sys/kernel/random/boot_id 2>/dev/null; head -c 16 /dev/urandom | od -An -tx1").await,
        client.out(&ids[1], "cat /proc/sys/kernel/random/boot_id 2>/dev/null; head -c 16 /dev/urandom | od -An -tx1").await,
    );
    assert_ne!(one, two);
    // The shelf is filled again, and a name is the host name inside.
    stand_ready(&daemon, 2).await;
    let named = client.session(json!({"name": "mine"})).await;
    assert_eq!(client.out(&named, "hostname").await, "mine\n");
    assert_eq!(steps(&daemon, &named).await, 3);
    for id in ids.iter().chain([&named]) {
        client.end(id).await;
    }
    assert_eq!(daemon.containers().await.len(), 2);
}

#[tokio::test]
async fn what_stands_ready_goes_with_the_daemon_and_a_crash_leaves_no_orphan() {
    let mut daemon = with_pool(1).await;
    let id = daemon.client.session(json!({})).await;
    assert_eq!(steps(&daemon, &id).await, 2);
    stand_ready(&daemon, 1).await;
    daemon.kill9();
    assert_eq!(daemon.containers().await.len(), 2);
    daemon.set("templates.base", json!({"image": bench().image}));
    daemon.start().await;
    assert_eq!(
        daemon.client.run(&id, json!({"argv": ["true"]})).await["exit_code"],
        0
    );
    let left: Vec<Value> = daemon.client.get("/v1/sessions").await.expect(200)["items"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(left.len(), 1);
    assert_eq!(daemon.containers().await.len(), 1);
    assert_eq!(daemon.links(), [id.as_str()]);
    daemon.client.end(&id).await;

    daemon.set("templates.base", json!({"image": bench().image, "pool": 2}));
    daemon.restart().await;
    wait_until("sandboxes stand ready", async || {
        daemon.containers().await.len() == 2
    })
    .await;
    assert_eq!(daemon.term().await, 0);
    let left = daemon.containers().await;
    assert!(left.is_empty(), "{left:?} {}", daemon.log());
    assert!(daemon.link_entries().is_empty());
}
