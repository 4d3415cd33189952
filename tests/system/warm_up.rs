//! What templates warm up, in real sandboxes: begun as one checkpoint, and nevertheless each its own.

use casemate::base::clock::{Clock, SystemClock};
use http::Method;
use serde_json::{Value, json};

use crate::support::client::{Answer, Client};
use crate::support::{Daemon, bench, wait_until};

/// Imports, and then tells whoever asks on a socket what it knows. At a signal it takes a new state of random numbers.
const SERVER: &str = r#"
import asyncio, decimal, email.message, json, http.client, os, random, signal, socket, sqlite3, time, unittest, xml.dom.minidom
random.seed(1)
signal.signal(signal.SIGUSR1, lambda *_: random.seed())
began = time.monotonic()
open("/home/user/made", "w").write(os.environ.get("OF", ""))
open("/tmp/made", "w").write("memory")
server = socket.socket(); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", 8001)); server.listen()
while True:
    asker, _ = server.accept()
    said = {"host": socket.gethostname(), "kernel": os.urandom(8).hex(), "own": random.random(), "time": time.time(),
            "age": time.monotonic() - began, "pid": os.getpid(), "env": dict(os.environ), "uid": os.getuid(),
            "caps": [line for line in open("/proc/self/status") if line.startswith("Cap")]}
    asker.sendall(json.dumps(said).encode()); asker.close()
"#;

const ASK: &str = "python3 -c 'import socket; s = socket.create_connection((\"127.0.0.1\", 8001)); print(s.makefile().read())'";

fn warm() -> Value {
    json!({
        "image": bench().image,
        "limits": {"disk_bytes": 1_u64 << 30, "memory_bytes": 256_u64 << 20},
        "max_limits": {"disk_bytes": 1_u64 << 30, "memory_bytes": 512_u64 << 20},
        "env": {"OF": "template"},
        "warm_up": {"argv": ["python3", "-c", SERVER], "env": {"WARM": "up"}, "ready": {"port": 8001, "interval_ms": 50}},
    })
}

async fn put(client: &Client, name: &str, body: &Value) -> Answer {
    let path = format!("/v1/templates/{name}");
    let headers = [("content-type", "application/json")];
    client
        .send(Method::PUT, &path, &headers, body.to_string().into())
        .await
}

async fn checkpoint(client: &Client, name: &str) -> Value {
    let path = format!("/v1/templates/{name}");
    client.get(&path).await.expect(200)["checkpoint"].clone()
}

/// A first session has it made, and its template has a checkpoint then.
async fn made(client: &Client, name: &str) -> String {
    let first = client.session(json!({"template": name})).await;
    there(client, name).await;
    first
}

async fn there(client: &Client, name: &str) {
    wait_until("there is a checkpoint", async || {
        let checkpoint = checkpoint(client, name).await;
        assert_eq!(checkpoint["problem"], Value::Null);
        checkpoint["is_there"] == true
    })
    .await;
}

async fn said(client: &Client, id: &str) -> Value {
    serde_json::from_str(&client.out(id, ASK).await).unwrap()
}

/// Which processes the session has that its template warmed up.
async fn warmed(client: &Client, id: &str) -> Vec<Value> {
    let path = format!("/v1/sessions/{id}/processes");
    let listed = client.get(&path).await.expect(200);
    let all = listed["processes"].as_array().unwrap().clone();
    all.into_iter()
        .filter(|one| one["tag"] == "warm-up")
        .collect()
}

fn seconds() -> f64 {
    let millis = u64::try_from(SystemClock.now().as_millis()).unwrap();
    std::time::Duration::from_millis(millis).as_secs_f64()
}

/// Whether a session's sandbox began as a checkpoint: what was warmed up is older than its own link directory.
async fn is_restored(client: &Client, id: &str) -> bool {
    let times = "stat -c %.9Y /home/user/made; stat -c %.9Z /run/casemate/link";
    let times = client.out(id, times).await;
    let times: Vec<f64> = times.lines().map(|time| time.parse().unwrap()).collect();
    times[0] < times[1]
}

#[tokio::test]
async fn two_sessions_begin_as_one_checkpoint_and_share_nothing_else() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let mut template = warm();
    template["warm_up"]["signal"] = json!("USR1");
    put(client, "warm", &template).await.expect(201);
    let cold = made(client, "warm").await;
    assert!(!is_restored(client, &cold).await);
    let wanted = json!({"template": "warm", "env": {"MINE": "yes"}});
    let one = client.session(wanted.clone()).await;
    let mut named = wanted;
    named["name"] = json!("a-name-that-is-quite-a-bit-longer");
    let two = client.session(named).await;
    let mut heard = Vec::new();
    for id in [&cold, &one, &two] {
        let before = seconds();
        let said = said(client, id).await;
        let now = said["time"].as_f64().unwrap();
        assert!(now >= before - 1.0 && now <= seconds() + 1.0, "{now}");
        // It was warmed up once, with what the template gives, and by nobody's privileges.
        assert_eq!(warmed(client, id).await.len(), 1);
        assert_eq!(
            (&said["env"]["OF"], &said["env"]["WARM"]),
            (&json!("template"), &json!("up"))
        );
        assert_eq!(
            (&said["env"]["MINE"], &said["uid"]),
            (&Value::Null, &json!(1000))
        );
        for caps in said["caps"].as_array().unwrap() {
            assert!(
                caps.as_str().unwrap().trim().ends_with("0000000000000000"),
                "{caps}"
            );
        }
        assert_eq!(
            client.out(id, "cat /home/user/made /tmp/made").await,
            "templatememory"
        );
        heard.push(said);
    }
    assert!(is_restored(client, &one).await && is_restored(client, &two).await);
    assert_eq!(client.out(&one, "echo $MINE").await, "yes\n");
    // The clock that only goes on went on, also while there was nothing but the checkpoint.
    let made = client.out(&one, "stat -c %.9Y /home/user/made").await;
    let age = heard[1]["time"].as_f64().unwrap() - made.trim().parse::<f64>().unwrap();
    assert!(
        (heard[1]["age"].as_f64().unwrap() - age).abs() < 1.0,
        "{age} {heard:?}"
    );
    let suffix = |id: &str| format!("ses-{}", id.strip_prefix("ses_").unwrap());
    let hosts = [
        suffix(&cold),
        suffix(&one),
        "a-name-that-is-quite-a-bit-longer".to_owned(),
    ];
    for (said, (id, name)) in heard.iter().zip([&cold, &one, &two].iter().zip(&hosts)) {
        assert_eq!(said["host"], *name);
        let shown = client.out(id, "hostname; cat /etc/hostname").await;
        let shown: Vec<_> = shown.split_whitespace().collect();
        // podman's file has no end of line of its own.
        assert!(shown.iter().all(|shown| shown == name), "{shown:?}");
    }
    assert_ne!(heard[1]["kernel"], heard[2]["kernel"]);
    // At the signal each took its own numbers.
    assert_ne!(heard[1]["own"], heard[2]["own"]);
    assert_eq!(heard[1]["pid"], heard[2]["pid"]);
    let random =
        "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid 2>/dev/null; true";
    assert_ne!(
        client.out(&one, random).await,
        client.out(&two, random).await
    );

    assert_eq!(
        client
            .sh(&one, "echo mine >/home/user/mine; echo mine >/tmp/mine")
            .await
            .0,
        0
    );
    assert_eq!(
        client
            .out(&two, "ls /home/user /tmp | grep -c mine; true")
            .await,
        "0\n"
    );
    for id in [&cold, &one, &two] {
        let status = client.out(id, "grep ^Cap /proc/1/status").await;
        for line in status.lines().filter(|line| !line.starts_with("CapBnd")) {
            let held = u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap();
            assert_eq!(held & (1 << 21), 0, "{status}");
        }
        client.end(id).await;
    }
    assert!(daemon.containers().await.is_empty());
}

#[tokio::test]
async fn a_restored_sandbox_has_its_volumes_its_limits_its_pauses_and_its_snapshots() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    put(client, "warm", &warm()).await.expect(201);
    let cold = made(client, "warm").await;
    client.end(&cold).await;
    client
        .post(
            "/v1/volumes",
            json!({"name": "data", "size_bytes": 64 << 20}),
        )
        .await
        .expect(201);
    let id = client
        .session(json!({"template": "warm", "volumes": [{"name": "data"}]}))
        .await;
    assert!(is_restored(client, &id).await);
    assert_eq!(
        client
            .out(&id, "echo kept >/volumes/data/file; cat /volumes/data/file")
            .await,
        "kept\n"
    );
    client
        .post(&format!("/v1/sessions/{id}/pause"), json!({}))
        .await
        .expect(200);
    client
        .post(&format!("/v1/sessions/{id}/resume"), json!({}))
        .await
        .expect(200);
    assert_eq!(said(client, &id).await["uid"], 1000);
    client.out(&id, "echo mine >/home/user/mine").await;
    let snapshot = client
        .post(
            &format!("/v1/sessions/{id}/snapshot"),
            json!({"template": "later"}),
        )
        .await;
    assert!(snapshot.status.is_success(), "{:?}", snapshot.body);
    client.end(&id).await;
    let later = client.session(json!({"template": "later"})).await;
    assert_eq!(
        client
            .out(&later, "cat /home/user/mine /home/user/made")
            .await,
        "mine\ntemplate"
    );
    client.end(&later).await;
    // More memory than it may have ends a sandbox that was restored as it does any other.
    let id = client.session(json!({"template": "warm"})).await;
    assert!(is_restored(client, &id).await);
    let eat = "x = bytearray(400 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1";
    let _ = client
        .try_run(&id, json!({"argv": ["python3", "-c", eat]}))
        .await;
    daemon.phase(&id, "failed").await;
    assert_eq!(client.look(&id).await["reason"], "limit_memory");
    // Who asks for more has it made anew, for itself.
    let more = client
        .session(json!({"template": "warm", "limits": {"memory_bytes": 512_u64 << 20}}))
        .await;
    assert!(!is_restored(client, &more).await);
    assert_eq!(warmed(client, &more).await.len(), 1);
    client.end(&more).await;
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_restored_costs_a_session_nothing_but_time() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    put(client, "warm", &warm()).await.expect(201);
    let cold = made(client, "warm").await;
    client.end(&cold).await;
    let store = bench().podman_state.join("storage/casemate-checkpoints");
    let mine = daemon.checkpoints();
    assert_eq!(mine.len(), 1);
    let pages = store.join(&mine[0]).join("image/pages.img");
    std::fs::OpenOptions::new()
        .write(true)
        .open(&pages)
        .unwrap()
        .set_len(100_000)
        .unwrap();
    let id = client.session(json!({"template": "warm"})).await;
    assert!(!is_restored(client, &id).await);
    assert_eq!(said(client, &id).await["uid"], 1000);
    let problem = checkpoint(client, "warm").await["problem"].clone();
    assert!(problem.as_str().unwrap().contains("restored"), "{problem}");
    assert_eq!(daemon.containers().await.len(), 1);
    client.end(&id).await;
}

#[tokio::test]
async fn shelves_hold_what_began_as_the_checkpoint_and_another_template_has_another() {
    let mut daemon = Daemon::up().await;
    daemon.set("templates.warm", {
        let mut template = warm();
        template["pool"] = json!(2);
        template
    });
    daemon.restart().await;
    let client = daemon.client.clone();
    let ready = async |count: u64| {
        let listed = client.get("/v1/templates").await.expect(200);
        let listed = listed["items"].as_array().unwrap().clone();
        let warm = listed
            .iter()
            .find(|one| one["name"] == "warm")
            .unwrap()
            .clone();
        warm["pool_ready"] == count
    };
    wait_until("sandboxes stand ready", async || ready(2).await).await;
    let first = daemon.checkpoints();
    assert_eq!(first.len(), 1);
    let (one, two) = (
        client.session(json!({"template": "warm"})).await,
        client.session(json!({"template": "warm"})).await,
    );
    for id in [&one, &two] {
        assert_eq!(client.look(id).await["generation"], 2);
        assert!(is_restored(&client, id).await);
        assert_eq!(warmed(&client, id).await.len(), 1);
        assert_eq!(
            said(&client, id).await["host"],
            format!("ses-{}", id.strip_prefix("ses_").unwrap())
        );
    }
    // Another daemon finds it.
    wait_until("sandboxes stand ready", async || ready(2).await).await;
    daemon.restart().await;
    let client = daemon.client.clone();
    there(&client, "warm").await;
    assert_eq!(daemon.checkpoints(), first);
    // What is warmed up otherwise is another's.
    daemon.set("templates.warm", {
        let mut template = warm();
        template["env"]["OF"] = json!("another");
        template
    });
    daemon.restart().await;
    let client = daemon.client.clone();
    let third = client.session(json!({"template": "warm"})).await;
    assert_eq!(client.out(&third, "cat /home/user/made").await, "another");
    there(&client, "warm").await;
    wait_until("the first is gone", async || {
        let now = daemon.checkpoints();
        now.len() == 1 && now != first
    })
    .await;
    let store = bench().podman_state.join("storage/casemate-checkpoints");
    wait_until("its files are gone", async || {
        !store.join(&first[0]).exists()
    })
    .await;
    for id in [&one, &two, &third] {
        client.end(id).await;
    }
}

#[tokio::test]
async fn a_daemon_that_is_killed_while_one_is_made_leaves_nothing_and_the_next_makes_it() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let mut slow = warm();
    slow["warm_up"]["ready"] = json!({"command": "sleep 3", "interval_ms": 50});
    put(&client, "slow", &slow).await.expect(201);
    let first = client.session(json!({"template": "slow"})).await;
    wait_until("it is being made", async || {
        daemon.containers().await.len() == 2
    })
    .await;
    assert_eq!(daemon.checkpoints().len(), 1);
    daemon.kill9();
    daemon.start().await;
    let client = daemon.client.clone();
    wait_until("nothing of it is left", async || {
        daemon.containers().await.len() == 1
    })
    .await;
    let second = client.session(json!({"template": "slow"})).await;
    there(&client, "slow").await;
    assert_eq!(daemon.checkpoints().len(), 1);
    let third = client.session(json!({"template": "slow"})).await;
    assert!(is_restored(&client, &third).await);
    for id in [&first, &second, &third] {
        client.end(id).await;
    }
    client.delete("/v1/templates/slow").await.expect(204);
    wait_until("it goes with its template", async || {
        daemon.checkpoints().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_warm_up_that_fails_or_takes_too_long_is_what_its_sessions_say() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let mut fails = warm();
    fails["warm_up"] = json!({"command": "echo no such module >&2; exit 3"});
    let mut never = warm();
    never["warm_up"]["ready"] = json!({"port": 9, "timeout_s": 1});
    for (name, template, says) in [
        (
            "fails",
            fails,
            ["the warm-up ended with exit code 3", "no such module"],
        ),
        (
            "never",
            never,
            ["port 9 was not there within 1 s", "port 9"],
        ),
    ] {
        put(client, name, &template).await.expect(201);
        let refused = client
            .post("/v1/sessions", json!({"template": name, "name": name}))
            .await;
        refused.problem(502, "launch_failed");
        let listed = client
            .get(&format!("/v1/sessions?name={name}"))
            .await
            .expect(200);
        let message = listed["items"][0]["message"].as_str().unwrap().to_owned();
        for part in says {
            assert!(message.contains(part), "{message}");
        }
        wait_until("the template says so as well", async || {
            let problem = checkpoint(client, name).await["problem"].clone();
            problem
                .as_str()
                .is_some_and(|problem| problem.contains(says[0]))
        })
        .await;
    }
    wait_until("nothing is left", async || {
        daemon.containers().await.is_empty()
    })
    .await;
    assert!(daemon.checkpoints().is_empty());
}

#[tokio::test]
async fn where_programs_may_be_root_none_has_what_the_guest_had_for_a_moment() {
    let daemon =
        Daemon::up_with(&[("sessions", json!({"team_templates": {"allow_root": true}}))]).await;
    let client = &daemon.client;
    let mut template = warm();
    template["allow_root"] = json!(true);
    template["warm_up"] = json!({"command": "grep ^Cap /proc/self/status >/caps", "user": "root"});
    put(client, "root", &template).await.expect(201);
    let cold = made(client, "root").await;
    let restored = client.session(json!({"template": "root"})).await;
    for id in [&cold, &restored] {
        for file in ["/caps", "/proc/self/status", "/proc/1/status"] {
            let (code, status) = client.sh_as(id, "root", &format!("grep ^Cap {file}")).await;
            assert_eq!(code, 0);
            for line in status.lines() {
                let held =
                    u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap();
                assert_eq!(held & (1 << 21), 0, "{file} {status}");
            }
        }
        assert_ne!(client.sh_as(id, "root", "hostname other").await.0, 0);
        client.end(id).await;
    }
}
