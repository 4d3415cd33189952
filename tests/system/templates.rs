//! Templates as teams make them and as sessions live by them: over the API, in gVisor.

use http::Method;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::{Daemon, bench, wait_until};

async fn put(client: &Client, name: &str, body: &Value) -> crate::support::client::Answer {
    let path = format!("/v1/templates/{name}");
    let headers = [("content-type", "application/json")];
    client
        .send(Method::PUT, &path, &headers, body.to_string().into())
        .await
}

fn web() -> Value {
    json!({
        "image": bench().image,
        "limits": {"disk_bytes": 1_u64 << 30},
        "env": {"EDITION": "first"},
        "start": {"command": "exec python3 -m http.server 8000", "cwd": "/tmp"},
        "ready": {"port": 8000},
        "ports": [8000],
    })
}

async fn ports(client: &Client, id: &str) -> Vec<u64> {
    let path = format!("/v1/sessions/{id}/ports");
    let listed = client.get(&path).await.expect(200);
    let ports = listed["ports"].as_array().unwrap().iter();
    ports.map(|open| open["port"].as_u64().unwrap()).collect()
}

async fn started(client: &Client, id: &str) -> Vec<Value> {
    let path = format!("/v1/sessions/{id}/processes");
    let listed = client.get(&path).await.expect(200);
    let all = listed["processes"].as_array().unwrap().clone();
    all.into_iter()
        .filter(|one| one["tag"] == "start")
        .collect()
}

#[tokio::test]
async fn a_changed_template_makes_other_sessions_and_leaves_those_that_run() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let made = put(&client, "web", &web()).await;
    assert_eq!(made.expect(201)["version"], 1);
    assert_eq!(made.headers["etag"], "\"1\"");

    let id = client.session(json!({"template": "web"})).await;
    // It is ready, so the port is open: nobody waits for it here.
    assert_eq!(ports(&client, &id).await, [8000]);
    let fetch = "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8000/\").status)'";
    assert_eq!(client.out(&id, fetch).await, "200\n");
    let session = client.look(&id).await;
    assert_eq!(
        (
            &session["template"],
            &session["template_version"],
            &session["ports"]
        ),
        (&json!("web"), &json!(1), &json!([8000]))
    );

    let mut second = web();
    second["env"]["EDITION"] = json!("second");
    second["start"]["command"] = json!("exec python3 -m http.server 9000");
    second["ready"] = json!({"port": 9000});
    second["ports"] = json!([9000]);
    let changed = put(&client, "web", &second).await;
    assert_eq!(changed.expect(200)["version"], 2);

    assert_eq!(client.look(&id).await["template_version"], 1);
    assert_eq!(client.look(&id).await["ports"], json!([8000]));
    assert_eq!(ports(&client, &id).await, [8000]);
    assert_eq!(client.out(&id, "echo $EDITION").await, "first\n");
    let later = client.session(json!({"template": "web"})).await;
    assert_eq!(client.look(&later).await["template_version"], 2);
    assert_eq!(ports(&client, &later).await, [9000]);
    assert_eq!(client.out(&later, "echo $EDITION").await, "second\n");

    // Neither removing it nor another daemon changes what runs, nor starts it again.
    client.delete("/v1/templates/web").await.expect(204);
    let before = started(&client, &id).await;
    assert_eq!(before.len(), 1);
    daemon.restart().await;
    let client = daemon.client.clone();
    assert_eq!(started(&client, &id).await, before);
    assert_eq!(ports(&client, &id).await, [8000]);
    let then = client.get("/v1/templates/web?version=1").await.expect(200);
    assert_eq!(then["env"], json!({"EDITION": "first"}));
    client
        .post("/v1/sessions", json!({"template": "web"}))
        .await
        .problem(400, "unknown_template");
}

#[tokio::test]
async fn a_daemon_that_is_killed_while_a_session_gets_ready_does_not_start_it_twice() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let mut slow = web();
    slow["start"]["command"] = json!("echo once >>/tmp/starts; exec python3 -m http.server 8000");
    // The first look never ends by itself; the one after it, which is the next daemon's, finds it so.
    slow["ready"] = json!({"command": "test -e /tmp/looked || { touch /tmp/looked; sleep 600; }"});
    put(&client, "slow", &slow).await.expect(201);
    let body = json!({"template": "slow", "wait": false});
    let session = client.post("/v1/sessions", body).await.expect(201);
    let id = session["id"].as_str().unwrap().to_owned();
    wait_until("the start command runs", async || {
        daemon.log().contains("start command was started")
    })
    .await;
    assert_eq!(client.look(&id).await["phase"], "starting");
    daemon.kill9();
    daemon.start().await;
    let client = daemon.client.clone();
    daemon.phase(&id, "ready").await;
    assert_eq!(client.out(&id, "cat /tmp/starts").await, "once\n");
    assert_eq!(started(&client, &id).await.len(), 1);
}

#[tokio::test]
async fn a_start_command_that_fails_is_told_with_its_last_lines() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let mut broken = web();
    broken["start"] = json!({"argv": ["python3", "-c", "import nothing_like_that"]});
    put(client, "broken", &broken).await.expect(201);
    let body = json!({"template": "broken", "name": "broken"});
    let refused = client.post("/v1/sessions", body).await;
    let detail = refused.problem(502, "launch_failed");
    assert!(detail.contains("launch_failed"), "{detail}");
    let listed = client.get("/v1/sessions?name=broken").await.expect(200);
    let message = listed["items"][0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("exit code 1"), "{message}");
    assert!(message.contains("port 8000"), "{message}");
    assert!(
        message.contains("No module named 'nothing_like_that'"),
        "{message}"
    );
}

#[tokio::test]
async fn programs_run_as_the_template_s_user_unless_they_say() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let mut other = json!({"image": bench().image, "user": "daemon", "workdir": "/"});
    put(client, "other", &other).await.expect(201);
    let id = client.session(json!({"template": "other"})).await;
    let own = client.run(&id, json!({"argv": ["id", "-un"]})).await;
    assert_eq!(own["stdout"], "daemon\n");
    assert_eq!(client.sh_as(&id, "user", "id -un").await.1, "user\n");
    let records = client.audit(&id).await;
    let run = records
        .iter()
        .find(|record| record["event"]["kind"] == "session.run")
        .unwrap();
    assert_eq!(run["event"]["user"], "daemon");

    other["user"] = json!("nobody-like-that");
    put(client, "other", &other).await.expect(200);
    let id = client.session(json!({"template": "other"})).await;
    let refused = client.try_run(&id, json!({"argv": ["true"]})).await;
    assert!(refused.status.is_client_error(), "{:?}", refused.body);
}
