//! A session from its creation to nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Daemon, PATIENCE, wait_for, wait_until};

/// `kind stage` of each record, phases as `from>to`.
fn told(records: &[Value]) -> Vec<String> {
    records
        .iter()
        .map(|record| {
            let event = &record["event"];
            match event["kind"].as_str().unwrap() {
                "session.phase" => format!(
                    "{}>{}",
                    event["from"].as_str().unwrap(),
                    event["to"].as_str().unwrap()
                ),
                kind => format!("{kind} {}", record["stage"].as_str().unwrap()),
            }
        })
        .collect()
}

#[tokio::test]
async fn a_session_is_made_used_and_ended_and_its_record_tells_it_in_order() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let id = client.session(json!({"name": "first"})).await;
    wait_until("the creation is recorded", async || {
        told(&client.audit(&id).await).contains(&"session.create outcome".to_owned())
    })
    .await;

    let run = json!({"argv": ["python3", "-c", "import platform; print(platform.node(), 6 * 7)"]});
    let outcome = client.run(&id, run).await;
    assert_eq!(outcome["stdout"], "first 42\n", "{outcome}");
    assert_eq!(outcome["exit_code"], 0);
    assert_eq!(outcome["timed_out"], false);

    let session = client.look(&id).await;
    assert_eq!(session["phase"], "ready");
    assert_eq!(session["generation"], 3);
    assert!(session["ready_at"].is_string() && session["ended_at"].is_null());
    assert_eq!(daemon.containers().await.len(), 1);
    assert_eq!(daemon.links(), [id.as_str()]);

    client.end(&id).await;
    let session = client.look(&id).await;
    assert_eq!(session["phase"], "stopped");
    assert_eq!(session["reason"], "client");
    assert_eq!(session["generation"], 5);
    assert!(session["ended_at"].is_string());
    assert!(daemon.containers().await.is_empty());
    assert!(daemon.links().is_empty());

    let records = client.audit(&id).await;
    assert_eq!(
        told(&records),
        [
            "session.create intent",
            "pending>starting",
            "starting>ready",
            "session.create outcome",
            "session.run intent",
            "session.run outcome",
            "session.delete intent",
            "ready>stopping",
            "stopping>stopped",
            "session.delete outcome",
        ]
    );
    assert_eq!(records[3]["intent"], records[0]["id"]);
    assert_eq!(records[4]["event"]["program"], "python3");
    assert_eq!(records[4]["event"]["arguments"], 2);
    assert_eq!(records[5]["outcome"]["detail"], "exit code 0");
    assert!(records[0]["principal"].as_str().unwrap().contains("key_"));
    assert_eq!(records[7]["principal"], "casemated");
}

#[tokio::test]
async fn a_session_that_ended_runs_nothing_more() {
    let daemon = Daemon::up().await;
    let id = daemon.client.session(json!({})).await;
    daemon.client.end(&id).await;
    let answer = daemon.client.try_run(&id, json!({"argv": ["true"]})).await;
    let detail = answer.problem(409, "session_not_ready");
    assert!(detail.contains("stopped"), "{detail}");
}

#[tokio::test]
async fn without_waiting_the_answer_comes_before_the_sandbox() {
    let daemon = Daemon::up().await;
    let answer = daemon
        .client
        .post("/v1/sessions", json!({"wait": false}))
        .await;
    let location = answer.headers["location"].to_str().unwrap().to_owned();
    let session = answer.expect(201);
    assert!(
        session["phase"] == "pending" || session["phase"] == "starting",
        "{session}"
    );
    let id = session["id"].as_str().unwrap();
    assert_eq!(location, format!("/v1/sessions/{id}"));
    // A run that comes too early is told so, and may come again.
    let early = daemon.client.try_run(id, json!({"argv": ["true"]})).await;
    if early.status != 200 {
        early.problem(409, "session_not_ready");
    }
    daemon.phase(id, "ready").await;
    assert_eq!(daemon.client.out(id, "echo here").await, "here\n");
}

#[tokio::test]
async fn of_many_creates_with_one_name_exactly_one_wins() {
    let daemon = Daemon::up().await;
    let wanted = json!({"name": "only", "wait": false});
    let answers =
        join_all((0..8).map(|_| daemon.client.post("/v1/sessions", wanted.clone()))).await;
    let mut winners = Vec::new();
    for answer in answers {
        if answer.status == 201 {
            winners.push(answer.json()["id"].as_str().unwrap().to_owned());
        } else {
            let detail = answer.problem(409, "name_taken");
            assert!(detail.contains("only"), "{detail}");
        }
    }
    assert_eq!(winners.len(), 1);
    daemon.phase(&winners[0], "ready").await;
    assert_eq!(daemon.containers().await.len(), 1);

    // Another team's names are its own; an ended session gives its name back.
    let mut daemon = daemon;
    let key = daemon.key("others").await;
    let theirs = daemon.client.with_key(&key);
    let other = theirs
        .post("/v1/sessions", wanted.clone())
        .await
        .expect(201);
    let again = daemon.client.post("/v1/sessions", wanted.clone()).await;
    again.problem(409, "name_taken");
    daemon.client.end(&winners[0]).await;
    let next = daemon.client.post("/v1/sessions", wanted).await.expect(201);
    assert_ne!(next["id"], winners[0].as_str());
    assert_ne!(next["id"], other["id"]);
}

#[tokio::test]
async fn a_repeated_request_makes_one_session() {
    let mut daemon = Daemon::up().await;
    let wanted = json!({"labels": {"n": "1"}});
    let headers = [("idempotency-key", "request-1")];
    let client = daemon.client.clone();
    let once = || client.post_with("/v1/sessions", &headers, wanted.clone());
    let answers = join_all((0..6).map(|_| once())).await;
    let ids: BTreeSet<String> = answers
        .iter()
        .map(|answer| answer.expect(201)["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let replays = answers
        .iter()
        .filter(|answer| answer.headers.contains_key("idempotency-replayed"));
    assert_eq!(replays.count(), 5);
    assert_eq!(daemon.containers().await.len(), 1);

    let other = json!({"labels": {"n": "2"}});
    let answer = daemon
        .client
        .post_with("/v1/sessions", &headers, other)
        .await;
    answer.problem(409, "idempotency_key_reused");

    // The same word of another key's owner is another request.
    let key = daemon.key("others").await;
    let theirs = daemon.client.with_key(&key);
    let answer = theirs
        .post_with("/v1/sessions", &headers, json!({"wait": false}))
        .await;
    let id = answer.expect(201)["id"].as_str().unwrap().to_owned();
    assert!(!ids.contains(&id));

    // Also after the session has ended, and after a restart, it is the same request.
    daemon.client.end(ids.first().unwrap()).await;
    daemon.restart().await;
    let answer = daemon
        .client
        .post_with("/v1/sessions", &headers, wanted)
        .await;
    let session = answer.expect(201);
    assert_eq!(session["id"], ids.first().unwrap().as_str());
    assert_eq!(session["phase"], "stopped");
}

#[tokio::test]
async fn ending_twice_is_as_good_as_once_also_at_the_same_time() {
    let daemon = Daemon::up().await;
    let id = daemon.client.session(json!({})).await;
    let path = format!("/v1/sessions/{id}");
    let answers = join_all((0..4).map(|_| daemon.client.delete(&path))).await;
    for answer in answers {
        assert_eq!(answer.expect(204), Value::Null);
    }
    daemon.client.delete(&path).await.expect(204);
    assert_eq!(daemon.client.look(&id).await["generation"], 5);
}

#[tokio::test]
async fn what_is_unknown_or_another_teams_is_not_found() {
    let mut daemon = Daemon::up().await;
    let id = daemon.client.session(json!({"name": "mine"})).await;
    let key = daemon.key("others").await;
    let stranger = daemon.client.with_key(&key);
    let unknown = "ses_00000000000000000000000000";
    for (client, id) in [
        (&daemon.client, unknown),
        (&daemon.client, "ses_"),
        (&daemon.client, "..%2f..%2fetc"),
        (&stranger, &id),
    ] {
        let path = format!("/v1/sessions/{id}");
        client.get(&path).await.problem(404, "session_not_found");
        client.delete(&path).await.problem(404, "session_not_found");
        let run = client.try_run(id, json!({"argv": ["true"]})).await;
        run.problem(404, "session_not_found");
    }
    let path = format!("/v1/audit?session={id}");
    stranger.get(&path).await.problem(404, "session_not_found");
    stranger.get("/v1/audit").await.problem(403, "denied");
    let list = stranger.get("/v1/sessions").await.expect(200);
    assert_eq!(list["items"], json!([]));
    assert_eq!(daemon.client.look(&id).await["phase"], "ready");
}

#[tokio::test]
async fn a_session_ends_when_its_time_is_over() {
    let daemon = Daemon::up().await;
    let began = Instant::now();
    let created = daemon
        .client
        .post("/v1/sessions", json!({"timeout_s": 3, "wait": false}))
        .await
        .expect(201);
    let id = created["id"].as_str().unwrap();
    // A program that runs at that moment does not keep it.
    let session = wait_for("it ended", PATIENCE, async || {
        let session = daemon.client.look(id).await;
        session["ended_at"].is_string().then_some(session)
    })
    .await;
    assert_eq!(session["phase"], "stopped", "{session}");
    assert_eq!(session["reason"], "deadline");
    assert!(began.elapsed() >= Duration::from_secs(3));
    assert!(began.elapsed() < Duration::from_secs(30));
    assert!(daemon.containers().await.is_empty());
}

#[tokio::test]
async fn a_deadline_ends_a_session_under_a_running_program() {
    let daemon = Daemon::up().await;
    let id = daemon.client.session(json!({"timeout_s": 8})).await;
    let answer = daemon
        .client
        .try_run(&id, json!({"argv": ["sleep", "60"]}))
        .await;
    answer.problem(502, "guest_gone");
    let session = wait_for("it ended", PATIENCE, async || {
        let session = daemon.client.look(&id).await;
        session["ended_at"].is_string().then_some(session)
    })
    .await;
    assert_eq!(session["reason"], "deadline");
}

#[tokio::test]
async fn sessions_are_found_by_label_phase_and_name_page_by_page() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    let mut ids = Vec::new();
    for n in 0..5 {
        let parity = if n % 2 == 0 { "even" } else { "odd" };
        let wanted = json!({
            "name": format!("s{n}"),
            "labels": {"parity": parity, "k=y &é": "a=b %"},
            "wait": false,
        });
        let session = client.post("/v1/sessions", wanted).await.expect(201);
        ids.push(session["id"].as_str().unwrap().to_owned());
    }
    client.end(&ids[0]).await;
    client.end(&ids[3]).await;
    for n in [1, 2, 4] {
        daemon.phase(&ids[n], "ready").await;
    }
    let found = async |query: &str| -> Vec<usize> {
        let page = client
            .get(&format!("/v1/sessions?{query}"))
            .await
            .expect(200);
        let items = page["items"].as_array().unwrap();
        items
            .iter()
            .map(|item| ids.iter().position(|id| item["id"] == id.as_str()).unwrap())
            .collect()
    };
    assert_eq!(found("").await, [4, 3, 2, 1, 0], "newest first");
    assert_eq!(found("label=parity=odd").await, [3, 1]);
    assert_eq!(found("label=parity=odd&phase=ready").await, [1]);
    assert_eq!(found("phase=ready&phase=stopped").await, [4, 3, 2, 1, 0]);
    assert_eq!(found("phase=stopped").await, [3, 0]);
    assert_eq!(found("name=s2").await, [2]);
    assert_eq!(found("name=s9").await, [] as [usize; 0]);
    assert_eq!(
        found("label=parity=even&label=parity=odd").await,
        [] as [usize; 0]
    );
    assert_eq!(found("label=parity=EVEN").await, [] as [usize; 0]);

    let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let path = format!("/v1/sessions?limit=2{cursor}");
        let page = client.get(&path).await.expect(200);
        for item in page["items"].as_array().unwrap() {
            seen.push(item["id"].as_str().unwrap().to_owned());
        }
        pages += 1;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let newest_first: Vec<String> = ids.iter().rev().cloned().collect();
    assert_eq!(seen, newest_first);
    assert_eq!(pages, 3);

    for bad in [
        "limit=0",
        "limit=201",
        "limit=x",
        "cursor=x",
        "phase=done",
        "label=x",
        "name=UPPER",
        "nonsense=1",
        "label=%ff",
    ] {
        let answer = client.get(&format!("/v1/sessions?{bad}")).await;
        assert_eq!(answer.status, 400, "{bad}: {:?}", answer.body);
    }
}

#[tokio::test]
async fn the_record_of_a_session_is_read_page_by_page() {
    let daemon = Daemon::up().await;
    let id = daemon.client.session(json!({})).await;
    daemon.client.end(&id).await;
    let whole = daemon.client.audit(&id).await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/audit?session={id}&limit=3{cursor}");
        let page = daemon.client.get(&path).await.expect(200);
        seen.extend(page["items"].as_array().unwrap().clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, whole);
    assert!(whole.len() > 6);
}

#[tokio::test]
async fn one_session_too_many_is_told_to_come_later() {
    let bounds = [
        ("sessions.max", json!(2)),
        ("sessions.queue_timeout_s", json!(1)),
    ];
    let daemon = Daemon::up_with(&bounds).await;
    let first = daemon.client.session(json!({})).await;
    daemon.client.session(json!({})).await;
    let answer = daemon.client.post("/v1/sessions", json!({})).await;
    answer.problem(429, "too_many_sessions");
    assert!(answer.headers.contains_key("retry-after"));
    daemon.client.end(&first).await;
    daemon.client.session(json!({})).await;
}

#[tokio::test]
async fn a_session_that_is_ended_while_it_starts_leaves_nothing() {
    let daemon = Daemon::up().await;
    let client = &daemon.client;
    // At different moments of a launch, which takes some 300 ms.
    let lives = (0..6).map(|n| async move {
        let created = client.post("/v1/sessions", json!({"wait": false})).await;
        let id = created.expect(201)["id"].as_str().unwrap().to_owned();
        tokio::time::sleep(Duration::from_millis(n * 70)).await;
        client.end(&id).await;
        client.look(&id).await
    });
    for session in join_all(lives).await {
        assert_eq!(session["phase"], "stopped", "{session}");
        assert_eq!(session["reason"], "client");
    }
    assert!(daemon.containers().await.is_empty());
    assert!(daemon.links().is_empty());
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_take_its_session_with_it() {
    let daemon = Daemon::up().await;
    let create = daemon.client.post("/v1/sessions", json!({"name": "left"}));
    // The request has been read when its session is in the list; then the client hangs up.
    let listed = wait_for("it is listed", PATIENCE, async || {
        let page = daemon
            .client
            .get("/v1/sessions?name=left")
            .await
            .expect(200);
        page["items"][0]["id"].as_str().map(str::to_owned)
    });
    let id = tokio::select! {
        id = listed => id,
        _ = create => daemon.client.get("/v1/sessions?name=left").await.json()["items"][0]["id"]
            .as_str().unwrap().to_owned(),
    };
    daemon.phase(&id, "ready").await;
    assert_eq!(
        daemon.client.out(&id, "echo still here").await,
        "still here\n"
    );
}

#[tokio::test]
async fn environment_and_working_directory_come_from_template_session_and_run() {
    let daemon = Daemon::up_with(&[
        (
            "templates.base.env",
            json!({"A": "template", "B": "template", "C": "template"}),
        ),
        ("templates.base.workdir", json!("/usr")),
    ])
    .await;
    let client = &daemon.client;
    let id = client
        .session(json!({"env": {"B": "session", "C": "session"}, "workdir": "/etc"}))
        .await;
    let run = json!({
        "argv": ["sh", "-c", "echo $A $B $C; pwd; id -un; echo $HOME $USER"],
        "env": {"C": "run"},
    });
    let outcome = client.run(&id, run).await;
    assert_eq!(
        outcome["stdout"],
        "template session run\n/etc\nuser\n/home/user user\n"
    );
    let run = json!({"argv": ["pwd"], "cwd": "/var/../tmp"});
    assert_eq!(client.run(&id, run).await["stdout"], "/tmp\n");
    let plain = client.session(json!({})).await;
    assert_eq!(client.out(&plain, "pwd; echo $B").await, "/usr\ntemplate\n");
    let session = client.look(&plain).await;
    assert!(
        session.get("env").is_none(),
        "values are not shown: {session}"
    );
}
