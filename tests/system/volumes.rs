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
    assert!((28 * MIB..32 * MIB).contains(&size), "{size}");
    let elsewhere = "dd if=/dev/zero of=/volumes/other/x bs=1M count=8 2>/dev/null && \
        dd if=/dev/zero of=/home/user/x bs=1M count=8 2>/dev/null && \
        rm /volumes/small/big && echo again >/volumes/small/a && cat /volumes/small/a";
    assert_eq!(client.out(&id, elsewhere).await, "again\n");
    let seen = client.get("/v1/volumes/small").await.expect(200);
    assert!(seen["used_bytes"].as_u64().unwrap() <= 32 * MIB, "{seen}");
    end(client, &id).await;
}
