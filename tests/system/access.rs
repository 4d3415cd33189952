//! Keys, tokens of sessions and rules, with the daemon's own programs on real sandboxes.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::{Daemon, bench};

/// `casemate` as an operator calls it.
fn casemate(daemon: &Daemon, arguments: &[&str]) -> Output {
    Command::new(bench().bin.join("casemate"))
        .arg("--socket")
        .arg(daemon.run.join("admin.sock"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output, code: i32) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    String::from_utf8(output.stdout.clone())
        .unwrap()
        .trim()
        .to_owned()
}

#[tokio::test]
async fn keys_tokens_and_rules_hold_on_the_real_thing_and_over_a_restart() {
    let mut daemon = Daemon::up().await;
    let make = [
        "admin",
        "key",
        "create",
        "boss",
        "--team",
        "red",
        "--role",
        "team-admin",
        "--expires-in",
        "1d",
    ];
    let boss = daemon.client.with_key(&said(&casemate(&daemon, &make), 0));
    let auditor = ["admin", "key", "create", "eyes", "--role", "auditor"];
    let auditor = daemon
        .client
        .with_key(&said(&casemate(&daemon, &auditor), 0));

    // A token reaches its session, from outside and from inside of nothing else.
    let mine = boss.session(json!({"template": "base"})).await;
    let other = boss.session(json!({"template": "base"})).await;
    let path = format!("/v1/sessions/{mine}/tokens");
    let token = boss
        .post(&path, json!({"expires_in_s": 600}))
        .await
        .expect(201);
    let token = boss.with_key(token["key"].as_str().unwrap());
    assert_eq!(token.out(&mine, "echo hello").await, "hello\n");
    token
        .get(&format!("/v1/sessions/{other}"))
        .await
        .problem(404, "session_not_found");
    token.get("/v1/sessions").await.problem(403, "denied");
    token
        .delete(&format!("/v1/sessions/{mine}"))
        .await
        .problem(403, "denied");
    let run = json!({"command": "true"});
    token
        .try_run(&other, run.clone())
        .await
        .problem(404, "session_not_found");

    // A key that may look does not touch.
    let looker = boss.post(
        "/v1/keys",
        json!({"name": "looker", "scopes": ["sessions:read"], "expires_in_s": 3600}),
    );
    let looker = looker.await.expect(201);
    let id = looker["id"].as_str().unwrap().to_owned();
    let looker = boss.with_key(looker["key"].as_str().unwrap());
    assert_eq!(looker.look(&mine).await["phase"], "ready");
    looker
        .try_run(&mine, run.clone())
        .await
        .problem(403, "denied");
    looker
        .get(&format!("/v1/sessions/{mine}/files?path=/etc/hostname"))
        .await
        .problem(403, "denied");
    looker
        .delete(&format!("/v1/sessions/{mine}"))
        .await
        .problem(403, "denied");

    // Rules, from the command line; explained before they are tried.
    let file = daemon.state_dir().with_extension("rule.json");
    let rule = json!({"effect": "deny", "teams": ["red"], "actions": ["create-session"], "reason": "closed for a test"});
    std::fs::write(&file, rule.to_string()).unwrap();
    said(
        &casemate(
            &daemon,
            &["policy", "put", "closed", file.to_str().unwrap()],
        ),
        0,
    );
    let explain = [
        "policy",
        "explain",
        "create-session",
        "--team",
        "red",
        "--template",
        "base",
    ];
    let told = said(&casemate(&daemon, &explain), 1);
    assert!(
        told.starts_with("denied by closed: closed for a test"),
        "{told}"
    );
    let refused = boss.post("/v1/sessions", json!({"template": "base"})).await;
    let detail = refused.problem(403, "denied");
    assert!(detail.contains("closed for a test"), "{detail}");

    // All of it holds after a restart; the session of the token goes on.
    said(&casemate(&daemon, &["admin", "key", "revoke", &id]), 0);
    looker
        .get(&format!("/v1/sessions/{mine}"))
        .await
        .problem(401, "unauthenticated");
    daemon.restart().await;
    looker
        .get(&format!("/v1/sessions/{mine}"))
        .await
        .problem(401, "unauthenticated");
    assert_eq!(token.out(&mine, "echo again").await, "again\n");
    boss.post("/v1/sessions", json!({"template": "base"}))
        .await
        .problem(403, "denied");
    said(&casemate(&daemon, &["policy", "rm", "closed"]), 0);
    let third = boss.session(json!({"template": "base"})).await;

    // With its session a token ends.
    for id in [&mine, &other, &third] {
        boss.end(id).await;
    }
    token
        .get(&format!("/v1/sessions/{mine}"))
        .await
        .problem(401, "unauthenticated");

    // What was done and what was refused is in the record, which the auditor reads and the others do not.
    boss.get("/v1/audit").await.problem(403, "denied");
    let kinds = auditor
        .get("/v1/audit?kind=key.create,key.revoke,policy.put,policy.remove&limit=200")
        .await
        .expect(200);
    let of = |kind: &str| -> Vec<&Value> {
        let items = kinds["items"].as_array().unwrap().iter();
        items
            .filter(|item| item["event"]["kind"] == kind && item["stage"] == "intent")
            .collect()
    };
    assert!(
        of("key.create")
            .iter()
            .any(|made| made["event"]["role"] == "auditor")
    );
    assert!(
        of("key.create")
            .iter()
            .any(|made| made["session"] == mine.as_str())
    );
    assert_eq!(of("key.revoke")[0]["event"]["key"], id.as_str());
    assert_eq!((of("policy.put").len(), of("policy.remove").len()), (1, 1));
    let listed = said(&casemate(&daemon, &["admin", "key", "list", "--json"]), 0);
    assert!(
        listed.contains("\"looker\"") && listed.contains("revoked_at") && !listed.contains("cmk_"),
        "{listed}"
    );
    assert_eq!(auditor.get("/v1/audit/export").await.status, 200);
}

/// An address of this machine that is not loopback. Nothing is sent.
fn own_address() -> std::net::IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.200:9").unwrap();
    socket.local_addr().unwrap().ip()
}

#[tokio::test]
async fn refusals_by_each_limit_are_recorded_and_a_flood_is_a_few_records() {
    let mut daemon = Daemon::new();
    let (_, port) = daemon.client.address.rsplit_once(':').unwrap();
    let own = format!("{}:{port}", own_address());
    daemon.set("http.listen", json!(format!("0.0.0.0:{port}")));
    for (key, value) in [
        ("key_per_s", 1),
        ("key_burst", 4),
        ("team_per_s", 1),
        ("team_burst", 6),
        ("connections_per_address", 2),
    ] {
        daemon.set(&format!("http.limits.{key}"), json!(value));
    }
    // Those that are held are held until the end.
    daemon.set("http.header_timeout_s", json!(300));
    let began = std::time::Instant::now();
    daemon.start().await;
    let (one, other) = (daemon.key("tests").await, daemon.key("tests").await);
    let mut refused = 0;
    for key in [&one, &other] {
        let client = daemon.client.with_key(key);
        for _ in 0..40 {
            let answer = client.get("/v1/sessions").await;
            refused += i64::from(answer.status == 429);
        }
    }
    // Connections count by an address that is not this machine's own loopback.
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(std::net::TcpStream::connect(&own).unwrap());
    }
    for _ in 0..10 {
        let mut stream = std::net::TcpStream::connect(&own).unwrap();
        let mut byte = [0];
        // Closed at once, or reset.
        let read = std::io::Read::read(&mut stream, &mut byte);
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
    // What is counted is written at the end at the latest.
    drop(held);
    assert_eq!(daemon.term().await, 0);
    let sum = |limits: &str| {
        let query = format!(
            "SELECT coalesce(sum(event ->> 'attempts'), 0) FROM audit WHERE kind = 'access.limited' AND event ->> 'limit' IN ({limits})"
        );
        daemon.sql::<i64>(&query)[0]
    };
    assert_eq!(sum("'key', 'team'"), refused);
    assert!(sum("'key'") > 0 && sum("'team'") > 0, "{refused}");
    assert_eq!(sum("'connections'"), 10);
    let who = "SELECT DISTINCT principal || ' ' || coalesce(event ->> 'address', '') FROM audit WHERE kind = 'access.limited' ORDER BY 1";
    let who = daemon.sql::<String>(who);
    let of = |key: &str| format!("key_{} ", key.split('_').nth(1).unwrap());
    let mut expected = [of(&one), of(&other), format!("nobody {}", own_address())];
    expected.sort();
    assert_eq!(who, expected);
    let records = daemon.sql::<i64>("SELECT count(*) FROM audit WHERE kind = 'access.limited'")[0];
    // Five, of what was counted until each flush: two keys, twice a team, an address.
    let flushes = i64::try_from(began.elapsed().as_secs() / 30).unwrap() + 2;
    assert!(
        records <= 5 * flushes,
        "{records} records, {flushes} flushes"
    );
}
