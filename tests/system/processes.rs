//! Processes that outlive a call: over the API, in gVisor.

use serde_json::json;

use crate::support::stream::{Said, said};
use crate::support::{Daemon, wait_until};

#[tokio::test]
async fn a_background_process_is_read_late_listed_fed_and_ended() {
    let daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({"env": {"GREETING": "hello"}})).await;
    let base = format!("/v1/sessions/{id}/processes");

    let script = "echo $GREETING; while read line; do echo got $line; done; echo over >&2; exit 3";
    let body = json!({"command": script, "tag": "worker", "stdin": true});
    let started = client.post(&base, body).await.expect(201);
    let pid = started["pid"].as_u64().unwrap();
    assert_eq!(started["tag"], "worker");

    let mut events = client.events(&format!("{base}/worker/output"), &[]).await;
    let first = events.until("stdout").await;
    assert_eq!(said(&first, "stdout"), "hello\n");
    assert_eq!(first[0].name, "process");
    assert_eq!(first[0].data["running"], true);

    let put = client
        .post_bytes(&format!("{base}/{pid}/input"), "one\n")
        .await;
    assert_eq!(put.expect(200)["written_bytes"], 4);
    let second = events.until("stdout").await;
    assert_eq!(said(&second, "stdout"), "got one\n");
    let seen = second.last().unwrap().id.clone().unwrap();
    drop(events);

    let list = client.get(&base).await.expect(200);
    let found = &list["processes"][0];
    assert_eq!(found["pid"], pid);
    assert_eq!(
        (&found["user"], &found["running"]),
        (&json!("user"), &json!(true))
    );
    assert_eq!(found["stdout"]["total_bytes"], "hello\ngot one\n".len());

    let put = client
        .post_bytes(&format!("{base}/worker/input?end=true"), "two\n")
        .await;
    put.expect(200);
    let path = format!("{base}/worker/output");
    let rest = client
        .events(&path, &[("last-event-id", &seen)])
        .await
        .rest()
        .await;
    assert_eq!(said(&rest, "stdout"), "got two\n");
    assert_eq!(said(&rest, "stderr"), "over\n");
    let exit = rest.last().unwrap();
    assert_eq!(
        (exit.name.as_str(), &exit.data["exit_code"]),
        ("exit", &json!(3))
    );

    // Whoever comes later still finds all of it.
    let late = client.events(&path, &[]).await.rest().await;
    assert_eq!(said(&late, "stdout"), "hello\ngot one\ngot two\n");
    let ended = client.get(&format!("{base}/{pid}")).await.expect(200);
    assert_eq!(
        (&ended["running"], &ended["exit"]["exit_code"]),
        (&json!(false), &json!(3))
    );
    client
        .post_bytes(&format!("{base}/{pid}/input"), "three\n")
        .await
        .problem(409, "no_input");

    let kinds: Vec<String> = client.audit(&id).await.iter().map(kind_and_stage).collect();
    for wanted in [
        "process.start intent",
        "process.start outcome",
        "process.input intent",
        "process.attach intent",
    ] {
        assert!(
            kinds.iter().any(|kind| kind == wanted),
            "{wanted}: {kinds:?}"
        );
    }
    client.end(&id).await;
}

fn kind_and_stage(record: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    format!(
        "{} {}",
        text(&record["event"]["kind"]),
        text(&record["stage"])
    )
}

#[tokio::test]
async fn signals_reach_the_group_and_strangers_are_told() {
    let daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let base = format!("/v1/sessions/{id}/processes");
    let body = json!({"argv": ["sh", "-c", "sleep 1000 & wait"], "tag": "sleeper"});
    client.post(&base, body).await.expect(201);
    let path = format!("{base}/sleeper/signal");
    client
        .post(&path, json!({"signal": "SIGBOGUS"}))
        .await
        .problem(400, "invalid_request");
    client
        .post(&path, json!({"signal": "KILL"}))
        .await
        .expect(204);
    let events = client
        .events(&format!("{base}/sleeper/output"), &[])
        .await
        .rest()
        .await;
    assert_eq!(events.last().unwrap().data["signal"], 9);
    wait_until("the whole group is gone", async || {
        let (_, output) = client.sh(&id, "pgrep -c sleep").await;
        output.trim() == "0"
    })
    .await;
    client
        .post(&path, json!({"signal": "TERM"}))
        .await
        .problem(404, "no_such_process");
    for unknown in ["999999", "nobody"] {
        let path = format!("{base}/{unknown}");
        client.get(&path).await.problem(404, "no_such_process");
        client
            .get(&format!("{path}/output"))
            .await
            .problem(404, "no_such_process");
        client
            .post(&format!("{path}/signal"), json!({"signal": "15"}))
            .await
            .problem(404, "no_such_process");
        client
            .post_bytes(&format!("{path}/input"), "x")
            .await
            .problem(404, "no_such_process");
    }
    for bad in [
        json!({}),
        json!({"argv": []}),
        json!({"argv": ["true"], "command": "true"}),
        json!({"argv": ["true"], "tag": "12"}),
        json!({"argv": ["true"], "tag": ""}),
        json!({"argv": ["true"], "pty": {"rows": 0, "cols": 80}}),
        json!({"argv": ["true"], "keep_bytes": 1_u64 << 40}),
        json!({"argv": ["true"], "timeout_s": 0}),
        json!({"argv": ["true"], "bogus": 1}),
    ] {
        client
            .post(&base, bad)
            .await
            .problem(400, "invalid_request");
    }
    client.end(&id).await;
}

#[tokio::test]
async fn a_background_process_goes_on_while_the_daemon_restarts() {
    let mut daemon = Daemon::up().await;
    let id = daemon.client.session(json!({})).await;
    let base = format!("/v1/sessions/{id}/processes");
    let body = json!({"command": "echo before; while ! test -e /tmp/go; do sleep 0.05; done; echo after", "tag": "w"});
    daemon.client.post(&base, body).await.expect(201);
    let path = format!("{base}/w/output");
    let mut events = daemon.client.events(&path, &[]).await;
    let seen = events.until("stdout").await;
    let offset = seen.last().unwrap().id.clone().unwrap();

    daemon.kill9();
    daemon.start().await;
    let client = &daemon.client;
    client.out(&id, "touch /tmp/go").await;
    let rest = client
        .events(&path, &[("last-event-id", &offset)])
        .await
        .rest()
        .await;
    assert_eq!(said(&rest, "stdout"), "after\n");
    assert_eq!(rest.last().unwrap().data["exit_code"], 0);
    client.end(&id).await;
}

#[tokio::test]
async fn a_reader_that_comes_late_is_told_what_it_lost() {
    let daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let base = format!("/v1/sessions/{id}/processes");
    let body = json!({"command": "seq 1 100000", "tag": "much", "keep_bytes": 65536});
    client.post(&base, body).await.expect(201);
    wait_until("it has ended", async || {
        client.get(&format!("{base}/much")).await.expect(200)["running"] == false
    })
    .await;
    let events = client
        .events(&format!("{base}/much/output"), &[])
        .await
        .rest()
        .await;
    let lost = events.iter().find(|event| event.name == "lost").unwrap();
    let kept = said(&events, "stdout");
    let total = (1..=100_000)
        .map(|n: u32| n.to_string().len() + 1)
        .sum::<usize>();
    let lost = usize::try_from(lost.data["stdout_bytes"].as_u64().unwrap()).unwrap();
    assert_eq!(lost + kept.len(), total);
    assert!(kept.len() <= 65536 && kept.ends_with("\n99999\n100000\n"));
    client.end(&id).await;
}

#[tokio::test]
async fn a_terminal_over_the_socket_is_a_terminal() {
    let daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let mut shell = client
        .terminal(&format!("/v1/sessions/{id}/exec"))
        .await
        .unwrap();
    shell
        .tell(json!({"pty": {"rows": 33, "cols": 77}, "env": {"PS1": "$ "}}))
        .await;
    let Some(Said::Json(started)) = shell.next().await else {
        panic!()
    };
    assert_eq!(started["type"], "started");
    shell.write(b"tty; stty size; id -un\n").await;
    let out = shell.until_out("user\r\n").await;
    assert!(out.contains("/dev/pts/") && out.contains("33 77"), "{out}");
    shell
        .write(b"trap 'echo heard-$((40+2))' WINCH; echo set-$((40+2))\n")
        .await;
    shell.until_out("set-42").await;
    shell
        .tell(json!({"type": "resize", "rows": 44, "cols": 88}))
        .await;
    shell.write(b"stty size\n").await;
    // The trap runs when the shell has its line, before the command or after it.
    let mut out = shell.until_out("44 88").await;
    if !out.contains("heard-42") {
        out.push_str(&shell.until_out("heard-42").await);
    }
    // Ctrl-C ends what runs in front, not the shell.
    shell.write(b"echo up; sleep 1000\n").await;
    shell.until_out("up\r\n").await;
    wait_until("it is in front", async || {
        client.sh(&id, "pgrep -fc 'sleep [1]000'").await.1.trim() == "1"
    })
    .await;
    shell.write(b"\x03").await;
    shell.write(b"echo still-$((40+2))\n").await;
    shell.until_out("still-42").await;
    shell.write(b"exit 5\n").await;
    loop {
        match shell.next().await {
            Some(Said::Stdout(_)) => {}
            Some(Said::Json(exit)) => {
                assert_eq!(
                    (&exit["type"], &exit["exit_code"]),
                    (&json!("exit"), &json!(5))
                );
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    client.end(&id).await;
}

#[tokio::test]
async fn a_process_of_a_socket_has_its_outputs_apart_and_ends_with_it() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let path = format!("/v1/sessions/{id}/exec");

    let mut cat = client.terminal(&path).await.unwrap();
    cat.tell(json!({"argv": ["sh", "-c", "tee /dev/stderr; exit 7"]}))
        .await;
    cat.until("started").await;
    cat.write(b"a\xff\0b").await;
    cat.tell(json!({"type": "stdin_end"})).await;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = loop {
        match cat.next().await.unwrap() {
            Said::Stdout(data) => out.extend(data),
            Said::Stderr(data) => err.extend(data),
            Said::Json(exit) => break exit,
        }
    };
    assert_eq!((&out[..], &err[..]), (&b"a\xff\0b"[..], &b"a\xff\0b"[..]));
    assert_eq!(exit["exit_code"], 7);

    let mut sleeper = client.terminal(&path).await.unwrap();
    sleeper.tell(json!({"argv": ["sleep", "4711"]})).await;
    sleeper.until("started").await;
    assert_eq!(
        client.out(&id, "pgrep -fc 'sleep [4]711'").await.trim(),
        "1"
    );
    drop(sleeper);
    wait_until("it ended with its socket", async || {
        client.sh(&id, "pgrep -fc 'sleep [4]711'").await.1.trim() == "0"
    })
    .await;

    let mut bad = client.terminal(&path).await.unwrap();
    bad.tell(json!({"argv": ["no-such-program"]})).await;
    let (_, _, error) = bad.until("error").await;
    assert_eq!(error["code"], "program_refused");
    assert_eq!(bad.next().await, None);
    let other = daemon.key("others").await;
    assert_eq!(
        client.with_key(&other).terminal(&path).await.err(),
        Some(404)
    );
    client.end(&id).await;
}

#[tokio::test]
async fn usage_and_ports_are_those_of_the_sandbox() {
    let daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let path = format!("/v1/sessions/{id}/usage");
    let before = client.get(&path).await.expect(200)["now"].clone();
    client
        .out(&id, "head -c 50000000 /dev/urandom | gzip > /var/tmp/x")
        .await;
    let after = client.get(&path).await.expect(200)["now"].clone();
    let grown = |field: &str| after[field].as_i64().unwrap() - before[field].as_i64().unwrap();
    assert!(grown("cpu_ms") > 100, "{before} {after}");
    assert!(grown("disk_bytes") > 40_000_000, "{before} {after}");
    assert!(after["guest_bytes"].as_u64().unwrap() < 8 << 20, "{after}");
    assert_eq!(after["hostname"], client.out(&id, "hostname").await.trim());

    let script = "import socket,time; s=socket.socket(); s.bind(('127.0.0.1',8123)); s.listen(); time.sleep(1000)";
    let body = json!({"argv": ["python3", "-c", script], "tag": "server"});
    client
        .post(&format!("/v1/sessions/{id}/processes"), body)
        .await
        .expect(201);
    wait_until("the port is open", async || {
        let ports = client
            .get(&format!("/v1/sessions/{id}/ports"))
            .await
            .expect(200);
        ports["ports"] == json!([{"port": 8123, "address": "127.0.0.1", "uid": 1000}])
    })
    .await;
    client.end(&id).await;
}
