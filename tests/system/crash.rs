//! Sudden ends: of the daemon, of a sandbox, and what the next start makes of what they left.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::client::UnixClient;
use crate::support::{Daemon, PATIENCE, bench, podman, wait_for, wait_until};

/// Some instant within so many milliseconds.
fn instant(within: u64) -> Duration {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    Duration::from_millis(u64::from_ne_bytes(bytes) % within)
}

#[tokio::test]
async fn sessions_survive_kill_9_of_the_daemon_with_files_and_programs() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let ids =
        join_all((0..3).map(|n| {
            client.session(json!({"name": format!("s{n}"), "env": {"N": format!("{n}")}}))
        }))
        .await;
    for id in &ids {
        client.out(id, "echo kept-$N >/home/user/file").await;
        client.out(id, "i=0; while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.1; done >/dev/null 2>&1 &").await;
    }
    let before = daemon.containers().await;
    daemon.kill9();
    daemon.start().await;
    assert_eq!(daemon.containers().await.len(), before.len());
    for (n, id) in ids.iter().enumerate() {
        // Usable as soon as the daemon says that it is ready; its guest dials again by itself.
        let session = daemon.phase(id, "ready").await;
        assert_eq!(session["name"], format!("s{n}"));
        assert_eq!(session["generation"], 3, "no change of phase: {session}");
        wait_until("its guest has dialled again", async || {
            client.try_run(id, json!({"argv": ["true"]})).await.status == 200
        })
        .await;
        assert_eq!(
            client.out(id, "cat /home/user/file").await,
            format!("kept-{n}\n")
        );
        let count = client.out(id, "cat /tmp/count").await;
        wait_until("its program still counts", async || {
            client.out(id, "cat /tmp/count").await != count
        })
        .await;
    }
    for id in &ids {
        client.end(id).await;
    }
    assert!(daemon.containers().await.is_empty());
}

#[tokio::test]
async fn a_run_that_the_daemon_dies_under_ends_by_itself_in_the_sandbox() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let run = json!({"argv": ["sh", "-c", "touch /tmp/began; sleep 2; touch /tmp/ended"]});
    let running = {
        let (client, id) = (client.clone(), id.clone());
        tokio::spawn(async move {
            let body = run.to_string().into();
            let path = format!("/v1/sessions/{id}/run");
            let json = [("content-type", "application/json")];
            client.try_send(Method::POST, &path, &json, body).await
        })
    };
    wait_until("it runs", async || {
        client.sh(&id, "test -e /tmp/began").await.0 == 0
    })
    .await;
    daemon.kill9();
    assert!(running.await.unwrap().is_err(), "nobody is there to answer");
    daemon.start().await;
    wait_until("the program's end, one way or the other", async || {
        let answer = client
            .try_run(
                &id,
                json!({"argv": ["sh", "-c", "test -e /tmp/ended || ! pgrep -x sleep"]}),
            )
            .await;
        answer.status == 200 && answer.json()["exit_code"] == 0
    })
    .await;
}

#[tokio::test]
async fn kill_9_in_the_middle_of_creates_loses_no_acknowledged_session_and_leaves_no_orphan() {
    const ROUNDS: usize = 12;
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let mut known = Vec::new();
    for round in 0..ROUNDS {
        let mut creates = tokio::task::JoinSet::new();
        for n in 0..2 {
            let client = client.clone();
            let body = json!({"wait": n == 0, "labels": {"round": round.to_string()}}).to_string();
            creates.spawn(async move {
                let json = [("content-type", "application/json")];
                client
                    .try_send(Method::POST, "/v1/sessions", &json, body.into())
                    .await
            });
        }
        tokio::time::sleep(instant(500)).await;
        daemon.kill9();
        while let Some(answer) = creates.join_next().await {
            if let Ok(answer) = answer.unwrap()
                && answer.status == 201
            {
                known.push(answer.json()["id"].as_str().unwrap().to_owned());
            }
        }
        daemon.start().await;
        for id in &known {
            client.look(id).await;
        }
        // What was under way is brought up or ended; then machine and record agree.
        let live = wait_for("all sessions settle", PATIENCE, async || {
            let page = client.get("/v1/sessions?limit=200").await.expect(200);
            let live: Vec<Value> = page["items"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|session| session["ended_at"].is_null())
                .cloned()
                .collect();
            let settled = live.iter().all(|session| session["phase"] == "ready");
            settled.then_some(live)
        })
        .await;
        let mut owned: Vec<String> = live
            .iter()
            .map(|session| session["id"].as_str().unwrap().to_owned())
            .collect();
        owned.sort();
        let containers = daemon.containers().await;
        let mut found: Vec<String> = containers
            .iter()
            .map(|container| container.labels["io.casemate.session"].clone())
            .collect();
        found.sort();
        assert_eq!(found, owned, "round {round}: {containers:?}");
        let mut links = daemon.links();
        links.sort();
        assert_eq!(links, owned, "round {round}");
        assert_eq!(
            daemon.link_entries().len(),
            3 * owned.len(),
            "round {round}"
        );
        for id in &owned {
            client.end(id).await;
        }
    }
    assert!(daemon.containers().await.is_empty());
    assert!(!known.is_empty(), "no round got as far as an answer");
}

#[tokio::test]
async fn a_sandbox_that_dies_takes_its_session_with_it_at_once() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let (killed, removed) = (
        client.session(json!({})).await,
        client.session(json!({})).await,
    );
    let began = Instant::now();
    podman::kill_sandbox(&daemon.container_of(&killed).await.unwrap().id).await;
    podman::remove(&daemon.container_of(&removed).await.unwrap().id).await;
    for id in [&killed, &removed] {
        let session = daemon.phase(id, "failed").await;
        assert_eq!(session["reason"], "sandbox_died", "{session}");
        assert!(session["message"].is_string());
        let answer = client.try_run(id, json!({"argv": ["true"]})).await;
        answer.problem(409, "session_not_ready");
        client.end(id).await;
        assert_eq!(
            client.look(id).await["phase"],
            "failed",
            "an end stays as it is"
        );
    }
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    assert!(daemon.containers().await.is_empty());
    assert!(daemon.links().is_empty());
}

#[tokio::test]
async fn a_sandbox_whose_conmon_was_killed_can_be_used_its_death_is_noticed_and_nothing_of_it_stays()
 {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let (ended, paused) = (
        client.session(json!({})).await,
        client.session(json!({})).await,
    );
    let mut containers = Vec::new();
    for id in [&ended, &paused] {
        let container = daemon.container_of(id).await.unwrap().id;
        let record = podman::get(&format!("/containers/{container}/json")).await;
        kill9(&record["State"]["ConmonPid"]);
        assert_eq!(client.out(id, "echo works").await, "works\n");
        containers.push((container, record["State"]["Pid"].clone()));
    }
    client.end(&ended).await;
    let pause = client
        .post(&format!("/v1/sessions/{paused}/pause"), json!({}))
        .await;
    pause.expect(200);
    daemon.kill9();
    kill9(&containers[1].1);
    // Nobody has told podman, which says that it runs.
    daemon.start().await;
    let session = daemon.phase(&paused, "failed").await;
    assert_eq!(session["reason"], "sandbox_died", "{session}");
    // podman asks for no end of what conmon did not tell it of; it comes with the next sandbox.
    client.session(json!({})).await;
    let run = bench().socket.parent().unwrap().parent().unwrap();
    let private = run.join("private");
    let places = std::fs::read_to_string(private.join("casemate.cgroup")).unwrap();
    let mut places: Vec<&Path> = places.split_whitespace().map(Path::new).collect();
    let (runsc, notes) = (private.join("runsc"), private.join("casemate.sandboxes"));
    places.extend([runsc.as_path(), notes.as_path()]);
    for place in places {
        for entry in std::fs::read_dir(place).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let is_left = containers.iter().any(|(id, _)| name.contains(id.as_str()));
            assert!(!is_left, "{name} is left in {}", place.display());
        }
    }
}

fn kill9(pid: &Value) {
    let pid = pid.as_i64().unwrap().try_into().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_run_in_a_sandbox_that_dies_is_answered() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    let container = daemon.container_of(&id).await.unwrap().id;
    let run = client.try_run(
        &id,
        json!({"argv": ["sh", "-c", "touch /tmp/began; sleep 60"]}),
    );
    let killing = async {
        wait_until("it runs", async || {
            client.sh(&id, "test -e /tmp/began").await.0 == 0
        })
        .await;
        podman::kill_sandbox(&container).await;
    };
    let began = Instant::now();
    let (answer, ()) = tokio::join!(run, killing);
    answer.problem(502, "guest_gone");
    assert!(began.elapsed() < Duration::from_secs(20));
    daemon.phase(&id, "failed").await;
}

#[tokio::test]
async fn a_sandbox_that_died_while_nobody_looked_is_noticed_at_the_next_start() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let (killed, removed) = (
        client.session(json!({})).await,
        client.session(json!({})).await,
    );
    let first = daemon.container_of(&killed).await.unwrap().id;
    let second = daemon.container_of(&removed).await.unwrap().id;
    daemon.kill9();
    podman::kill_sandbox(&first).await;
    podman::remove(&second).await;
    daemon.start().await;
    for (id, reason) in [(&killed, "sandbox_died"), (&removed, "sandbox_missing")] {
        let session = daemon.phase(id, "failed").await;
        assert_eq!(session["reason"], reason, "{session}");
    }
}

#[tokio::test]
async fn a_session_whose_time_was_over_while_the_daemon_was_down_ends_at_the_next_start() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({"timeout_s": 4})).await;
    daemon.kill9();
    let ends_at = daemon.sql::<i64>("SELECT ends_at FROM sessions")[0];
    wait_until("its time is over", async || {
        std::process::Command::new("date")
            .arg("+%s")
            .output()
            .is_ok_and(|now| {
                let now: i64 = String::from_utf8(now.stdout)
                    .unwrap()
                    .trim()
                    .parse()
                    .unwrap();
                now * 1000 > ends_at
            })
    })
    .await;
    daemon.start().await;
    let session = daemon.phase(&id, "stopped").await;
    assert_eq!(session["reason"], "deadline");
}

/// Creates a container with these labels, as podman's other users could.
async fn foreign(installation: &str, session: &str) -> String {
    let body = json!({
        "image": bench().image,
        "command": ["/bin/true"],
        "netns": {"nsmode": "none"},
        "labels": {"io.casemate.installation": installation, "io.casemate.session": session},
    });
    let podman = UnixClient(bench().socket.clone());
    let answer = podman.post("/v4.0.0/libpod/containers/create", body).await;
    answer.expect(201)["Id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn at_the_start_containers_without_a_session_go_and_those_of_others_stay() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let kept = client.session(json!({})).await;
    let forgotten = client.session(json!({})).await;
    let running = daemon.container_of(&forgotten).await.unwrap().id;
    let installation = daemon.installation();
    assert_eq!(daemon.term().await, 0);

    // One runs, one was never started, one has a label that makes no sense.
    rusqlite::Connection::open(daemon.database())
        .unwrap()
        .execute(
            "UPDATE sessions SET phase = 'stopped', ended_at = created_at WHERE id = ?1",
            [&forgotten],
        )
        .unwrap();
    let ours = [
        running,
        foreign(&installation, "ses_00000000000000000000000000").await,
        foreign(&installation, "nonsense").await,
    ];
    let other = "ins_00000000000000000000000000";
    let theirs = foreign(other, &kept).await;
    let stale = daemon.run.join("link/ses_00000000000000000000000000");
    std::fs::create_dir(&stale).unwrap();
    crate::support::daemon::give_to_daemon(&stale);
    // A crash may have left the one without the other.
    let token = daemon.run.join("link/ses_00000000000000000000000001.token");
    std::fs::write(&token, "stale").unwrap();

    daemon.start().await;
    let left = daemon.containers().await;
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0].labels["io.casemate.session"], kept.as_str());
    assert_eq!(podman::containers(other).await.len(), 1, "it is not ours");
    podman::remove(&theirs).await;
    let mut entries = daemon.link_entries();
    entries.sort();
    let with_room = ["", ".token", ".volumes"].map(|end| format!("{kept}{end}"));
    assert_eq!(entries, with_room);
    let removed = daemon.sql::<String>("SELECT event FROM audit WHERE kind = 'sandbox.orphan'");
    assert_eq!(removed.len(), ours.len(), "{removed:?}");
    assert!(
        ours.iter()
            .all(|id| removed.iter().any(|event| event.contains(id.as_str())))
    );
    daemon.phase(&kept, "ready").await;
}
