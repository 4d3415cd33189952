//! Sessions that stand still: real ones, in which nothing runs meanwhile and everything goes on afterwards.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::support::client::Answer;
use crate::support::{Client, Daemon, wait_for, wait_until};

/// Counts in a file, ten times a second, for as long as it runs.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.1; done";

async fn put(client: &Client, id: &str, what: &str, body: Value) -> Value {
    let method = if what.is_empty() {
        Method::PATCH
    } else {
        Method::POST
    };
    let path = format!("/v1/sessions/{id}{what}");
    asked(client, method, &path, &body).await.expect(200)
}

async fn asked(client: &Client, method: Method, path: &str, body: &Value) -> Answer {
    let json = [("content-type", "application/json")];
    client
        .send(method, path, &json, body.to_string().into())
        .await
}

async fn count(client: &Client, id: &str) -> u64 {
    wait_for("it counts", Duration::from_secs(10), async || {
        let outcome = client.run(id, json!({"argv": ["cat", "/tmp/count"]})).await;
        outcome["stdout"].as_str().unwrap().trim().parse().ok()
    })
    .await
}

/// Starts the counter in the background, and waits until it counts.
async fn counting(client: &Client) -> String {
    let id = client.session(json!({})).await;
    let path = format!("/v1/sessions/{id}/processes");
    let process = json!({"argv": ["sh", "-c", COUNTER], "tag": "counter"});
    client.post(&path, process).await.expect(201);
    count(client, &id).await;
    id
}

#[tokio::test]
async fn nothing_runs_in_a_paused_session_and_whoever_uses_it_wakes_it() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = counting(client).await;
    let output = format!("/v1/sessions/{id}/processes");
    let ticker =
        json!({"argv": ["sh", "-c", "while :; do echo tick; sleep 0.1; done"], "tag": "ticker"});
    client.post(&output, ticker).await.expect(201);
    let processes = client.get(&output).await.expect(200);
    let ticker = processes["processes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|process| process["tag"] == "ticker")
        .unwrap()["pid"]
        .clone();
    let mut events = client
        .events(&format!("{output}/{ticker}/output"), &[])
        .await;
    events.until("stdout").await;

    let before = count(client, &id).await;
    let paused = put(client, &id, "/pause", json!({})).await;
    assert_eq!(
        (paused["phase"].as_str(), paused["reason"].as_str()),
        (Some("paused"), Some("client"))
    );
    assert!(paused["paused_at"].is_string());
    put(client, &id, "/pause", json!({})).await;
    // Looking wakes nobody.
    client
        .get(&format!("/v1/sessions/{id}/usage"))
        .await
        .problem(409, "session_not_ready");
    // Long enough for thirty counts, as another session shows.
    let clock = counting(client).await;
    wait_until("thirty counts", async || count(client, &clock).await > 30).await;
    assert_eq!(client.look(&id).await["phase"], "paused");
    let after = count(client, &id).await;
    assert!(after - before < 15, "it counted from {before} to {after}");
    assert_eq!(client.look(&id).await["phase"], "ready");

    // Who read before reads on.
    while !events.until("stdout").await.iter().any(|_| true) {}
    wait_until("it counts again", async || {
        count(client, &id).await > after + 3
    })
    .await;
}

#[tokio::test]
async fn a_paused_session_survives_kill_9_of_the_daemon_and_ends_when_it_is_told_to() {
    let mut daemon = Daemon::up().await;
    let id = counting(&daemon.client).await;
    let before = count(&daemon.client, &id).await;
    put(&daemon.client, &id, "/pause", json!({})).await;
    let other = counting(&daemon.client).await;
    put(&daemon.client, &other, "/pause", json!({})).await;
    daemon.kill9();
    daemon.start().await;
    let client = &daemon.client;
    assert_eq!(client.look(&id).await["phase"], "paused");
    let after = count(client, &id).await;
    assert!(after >= before && after - before < 15, "{before} {after}");
    client.end(&other).await;
    assert_eq!(client.look(&other).await["phase"], "stopped");
    assert_eq!(daemon.containers().await.len(), 1);
    client.end(&id).await;
    assert!(daemon.containers().await.is_empty());
    assert!(daemon.links().is_empty());
}

#[tokio::test]
async fn deadlines_pause_a_session_and_can_be_moved_and_its_events_tell_it() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let wanted =
        json!({"idle_timeout_s": 1, "on_timeout": "pause", "timeout_s": 60, "labels": {"a": "b"}});
    let id = client.session(wanted).await;
    let events = format!("/v1/sessions/{id}/events");
    let mut stream = client.events(&events, &[]).await;
    daemon.phase(&id, "paused").await;
    let told = stream.until("phase").await;
    let session = put(client, &id, "/resume", json!({"timeout_s": 100})).await;
    assert_eq!(session["phase"], "ready");
    let session = put(
        client,
        &id,
        "",
        json!({"idle_timeout_s": 0, "on_timeout": "stop", "labels": {"c": "d"}}),
    )
    .await;
    assert_eq!(session["idle_timeout_s"], Value::Null);
    assert_eq!(session["labels"], json!({"c": "d"}));
    let listed = client.get("/v1/sessions?label=c=d").await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    for wrong in [
        json!({"timeout_s": 0}),
        json!({"timeout_s": 1_u64 << 40}),
        json!({"idle_timeout_s": 1_u64 << 40}),
        json!({"labels": {"": "x"}}),
    ] {
        let path = format!("/v1/sessions/{id}");
        let answer = asked(client, Method::PATCH, &path, &wrong).await;
        answer.problem(400, "invalid_request");
    }
    client.end(&id).await;
    let rest: Vec<_> = told.into_iter().chain(stream.rest().await).collect();
    let went: Vec<_> = rest
        .iter()
        .map(|event| {
            format!(
                "{}>{}",
                event.data["from"].as_str().unwrap(),
                event.data["to"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        went,
        [
            "pending>starting",
            "starting>ready",
            "ready>paused",
            "paused>ready",
            "ready>stopping",
            "stopping>stopped"
        ]
    );
    assert_eq!(rest[2].data["reason"], "idle");
    // Who was there goes on after what was seen, without a gap and without a double.
    let seen = rest[3].id.clone().unwrap();
    let again = client
        .events(&events, &[("last-event-id", &seen)])
        .await
        .rest()
        .await;
    assert_eq!(again.len(), 2);
    assert_eq!(again[0].data, rest[4].data);
}

#[tokio::test]
async fn programs_that_compute_keep_a_session_from_being_idle_where_that_is_asked_for() {
    let daemon = Daemon::up_with(&[("sessions", json!({"busy_cpu_percent": 20}))]).await;
    let client = daemon.client.clone();
    // Longer than two looks, of which the second can tell.
    let wanted = json!({"idle_timeout_s": 40});
    let busy = client.session(wanted.clone()).await;
    let idle = client.session(wanted).await;
    let start = |command: &str| json!({"command": command, "tag": "work"});
    let path = |id: &str| format!("/v1/sessions/{id}/processes");
    let body = start("while :; do :; done");
    let worker = client.post(&path(&busy), body).await.expect(201);
    let body = start("sleep 1000");
    client.post(&path(&idle), body).await.expect(201);

    let ends = async |id: &str| {
        wait_for("it ends", Duration::from_secs(120), async || {
            let session = client.look(id).await;
            let over = session["phase"] == "stopped";
            over.then(|| assert_eq!(session["reason"], "idle", "{session}"))
        })
        .await;
    };
    ends(&idle).await;
    // A whole lease later it is still there.
    let later = Instant::now() + Duration::from_secs(40);
    wait_for("the time passes", Duration::from_secs(60), async || {
        assert_eq!(client.look(&busy).await["phase"], "ready");
        (Instant::now() > later).then_some(())
    })
    .await;
    let signal = format!("{}/{}/signal", path(&busy), worker["pid"]);
    client.post(&signal, json!({"signal": "KILL"})).await;
    ends(&busy).await;
}
