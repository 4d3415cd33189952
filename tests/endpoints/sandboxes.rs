//! What clients made for E2B meet: tokens, signed addresses, two generations of routes, Connect, and failures in their words.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use casemate::identity::digest;
use serde_json::{Value, json};

use crate::{Bench, DOMAIN, HELLO, Program};

/// A sandbox, as its maker was told of it.
struct Sandbox {
    id: String,
    token: String,
    traffic: String,
}

fn status(said: &str) -> u16 {
    said.split(' ').nth(1).unwrap().parse().unwrap()
}

fn body(said: &str) -> Value {
    let (_, body) = said.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

impl Bench {
    async fn call(&self, line: &str, headers: &str, body: impl AsRef<[u8]>) -> String {
        let body = body.as_ref();
        let head = format!(
            "{line} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
            self.address,
            body.len()
        );
        self.say([head.as_bytes(), body].concat()).await
    }

    /// A control route, with the key of the team `default`.
    async fn control(&self, line: &str, body: &Value) -> String {
        let headers = format!("{}content-type: application/json\r\n", self.auth());
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.call(line, &headers, body).await
    }

    async fn sandbox(&self) -> Sandbox {
        let said = self
            .control("POST /v2/sandboxes", &json!({"templateID": "base"}))
            .await;
        assert_eq!(status(&said), 201, "{said}");
        let made = body(&said);
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        assert_eq!(made["domain"], DOMAIN);
        assert_eq!(made["templateID"], "base");
        Sandbox {
            id: text("sandboxID"),
            token: text("envdAccessToken"),
            traffic: text("trafficAccessToken"),
        }
    }

    /// What is inside a sandbox, with this token.
    async fn inside(&self, line: &str, sandbox: &str, token: &str) -> String {
        let headers = format!(
            "e2b-sandbox-id: {sandbox}\r\ne2b-sandbox-port: 49983\r\nx-access-token: {token}\r\n"
        );
        self.call(line, &headers, "").await
    }
}

const GONE: &str = "The sandbox was not found";

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_its_own_sandbox_and_nothing_else() {
    let bench = Bench::new().await;
    let (one, other) = (bench.sandbox().await, bench.sandbox().await);
    let health = async |id: &str, token: &str| bench.inside("GET /health", id, token).await;
    assert_eq!(status(&health(&one.id, &one.token).await), 204);
    // By host name as well.
    let host = format!("49983-{}.{DOMAIN}", one.id);
    let said = bench
        .say(format!("GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\nx-access-token: {}\r\n\r\n", one.token))
        .await;
    assert_eq!(status(&said), 204, "{said}");
    for (id, token, expected) in [
        (&one.id, &other.token, 502),
        (&one.id, &one.traffic, 401),
        (&one.id, &one.token.replace("cma_", "cmb_"), 401),
        (&one.id, &format!("{}A", one.token), 401),
        (&one.id, &String::new(), 401),
    ] {
        let said = health(id, token).await;
        assert_eq!(status(&said), expected, "{said}");
        if expected == 502 {
            assert_eq!(body(&said)["message"], GONE);
        }
    }
    let nobody = bench
        .call(
            "GET /health",
            &format!("e2b-sandbox-id: {}\r\n", one.id),
            "",
        )
        .await;
    assert_eq!(status(&nobody), 401, "{nobody}");
    // A key of the team does, one of another team does not find it.
    let with_key = |key: &str| format!("e2b-sandbox-id: {}\r\nx-api-key: {key}\r\n", one.id);
    assert_eq!(
        status(&bench.call("GET /health", &with_key(&bench.key), "").await),
        204
    );
    let stranger = bench.other_key("red").await;
    let said = bench.call("GET /health", &with_key(&stranger), "").await;
    assert_eq!(
        (status(&said), body(&said)["message"].clone()),
        (502, json!(GONE))
    );
    let said = bench
        .call(
            &format!("GET /sandboxes/{}", one.id),
            &format!("x-api-key: {stranger}\r\n"),
            "",
        )
        .await;
    assert_eq!(status(&said), 404, "{said}");
    // What it opens it opens at our own routes too, and of no other session; nobody makes anything with it.
    for (line, expected) in [
        (format!("GET /v1/sessions/ses_{}", one.id), 200),
        (format!("GET /v1/sessions/ses_{}", other.id), 404),
        (format!("DELETE /v1/sessions/ses_{}", one.id), 403),
        ("POST /v1/sessions".to_owned(), 403),
    ] {
        let headers = format!(
            "authorization: Bearer {}\r\ncontent-type: application/json\r\n",
            one.token
        );
        let said = bench.call(&line, &headers, "{}").await;
        assert_eq!(status(&said), expected, "{line}: {said}");
        let headers = format!(
            "authorization: Bearer {}\r\ncontent-type: application/json\r\n",
            one.traffic
        );
        let said = bench.call(&line, &headers, "{}").await;
        assert_eq!(status(&said), 401, "{line}: {said}");
    }
    // Once it has ended, whoever has the token is told so; nobody else is.
    let killed = bench
        .control(&format!("DELETE /sandboxes/{}", one.id), &Value::Null)
        .await;
    assert_eq!(status(&killed), 204, "{killed}");
    let said = health(&one.id, &one.token).await;
    assert_eq!(
        (status(&said), body(&said)["message"].clone()),
        (502, json!(GONE))
    );
    assert_eq!(body(&said)["sandboxId"], one.id);
    assert_eq!(status(&health(&one.id, "cma_x").await), 401);
    let again = bench
        .control(&format!("DELETE /sandboxes/{}", one.id), &Value::Null)
        .await;
    assert_eq!(status(&again), 404, "{again}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_reached_by_either_token_and_the_program_hears_of_neither() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let (one, other) = (bench.sandbox().await, bench.sandbox().await);
    let visit = async |headers: &str| {
        let headers = format!(
            "e2b-sandbox-id: {}\r\ne2b-sandbox-port: {}\r\n{headers}",
            one.id, program.port
        );
        bench.call("GET /execute?x=1", &headers, "").await
    };
    for headers in [
        format!("e2b-traffic-access-token: {}\r\n", one.traffic),
        format!(
            "x-access-token: {}\r\ne2b-traffic-access-token: {}\r\n",
            one.token, one.traffic
        ),
        format!("x-access-token: {}\r\n", one.token),
    ] {
        let said = visit(&headers).await;
        assert_eq!(status(&said), 200, "{said}");
        let heard = program.heard().pop().unwrap();
        assert!(
            heard.starts_with("GET /execute?x=1 HTTP/1.1\r\n"),
            "{heard}"
        );
        for ours in ["cma_", "e2b-", "x-access-token"] {
            assert!(
                !heard.to_ascii_lowercase().contains(ours),
                "{ours}: {heard}"
            );
        }
    }
    let heard = program.heard().len();
    for (headers, expected) in [
        (
            format!("e2b-traffic-access-token: {}\r\n", other.traffic),
            502,
        ),
        ("e2b-traffic-access-token: cma_AAAA\r\n".to_owned(), 401),
        (String::new(), 401),
        // A page of another site would have to ask first.
        (
            format!(
                "e2b-traffic-access-token: {}\r\norigin: https://evil.example\r\n",
                one.traffic
            ),
            200,
        ),
    ] {
        let said = visit(&headers).await;
        assert_eq!(status(&said), expected, "{headers}{said}");
        let expected = usize::from(expected == 200);
        assert_eq!(program.heard().len() - heard, expected, "{headers}");
    }
    let wrong = bench
        .call(
            "GET /",
            "e2b-sandbox-id: ../../x\r\ne2b-sandbox-port: 1\r\n",
            "",
        )
        .await;
    assert_eq!(status(&wrong), 400, "{wrong}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_address_is_for_one_file_and_its_time() {
    let bench = Bench::new().await;
    let one = bench.sandbox().await;
    let address = |token: &str, operation: &str, path: &str, end: Option<i64>| {
        let end_text = end.map(|end| format!(":{end}")).unwrap_or_default();
        let signature = digest(format!("{path}:{operation}::{token}{end_text}").as_bytes());
        let signature = STANDARD_NO_PAD.encode(signature).replace('+', "%2B");
        let end = end
            .map(|end| format!("&signature_expiration={end}"))
            .unwrap_or_default();
        format!("/files?path={path}&signature=v1_{signature}{end}")
    };
    let ask = async |line: &str| bench.call(line, "", "").await;
    let good = address(&one.token, "read", "/a", Some(4_000_000_000));
    // The guest of this test has no files: to have asked it is to have been let in.
    let let_in = status(&ask(&format!("GET {good}")).await);
    assert!(![401, 403, 404].contains(&let_in), "{let_in}");
    let named = bench
        .call(
            &format!("GET {good}"),
            &format!("e2b-sandbox-id: {}\r\n", one.id),
            "",
        )
        .await;
    assert_eq!(status(&named), let_in, "{named}");
    let other = bench.sandbox().await;
    let of_other = bench
        .call(
            &format!("GET {good}"),
            &format!("e2b-sandbox-id: {}\r\n", other.id),
            "",
        )
        .await;
    assert_eq!(status(&of_other), 401, "{of_other}");
    for bad in [
        format!(
            "GET {}",
            address(&one.token, "read", "/a", Some(1_000_000_000))
        ),
        format!("GET {}", address("cma_x", "read", "/a", None)),
        format!("GET {}", address(&one.token, "write", "/a", None)),
        format!("POST {good}"),
        format!("GET {}", good.replace("path=/a", "path=/b")),
        format!("GET {good}&username=root"),
        format!("GET {}", good.replace("4000000000", "4000000001")),
    ] {
        assert_eq!(status(&ask(&bad).await), 401, "{bad}");
    }
    // Without a signature there is nothing at this path, and twice is not once.
    assert_eq!(status(&ask("GET /files?path=/a").await), 404);
    assert_eq!(
        status(&ask(&format!("GET {good}&path=/etc/shadow")).await),
        404
    );
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_fails_in_its_own_words() {
    let bench = Bench::new().await;
    let one = bench.sandbox().await;
    let call = async |method: &str, content_type: &str, body: &[u8]| {
        let headers = format!(
            "e2b-sandbox-id: {}\r\nx-access-token: {}\r\ncontent-type: {content_type}\r\n",
            one.id, one.token
        );
        bench.call(&format!("POST /{method}"), &headers, body).await
    };
    let framed =
        |flag: u8, length: u32, body: &[u8]| [&[flag][..], &length.to_be_bytes(), body].concat();
    let unary = "process.Process/SendSignal";
    for (content_type, sent, expected) in [
        ("application/json", &b"{"[..], "invalid_argument"),
        (
            "application/json",
            b"{\"process\":{\"pid\":1},\"signal\":\"SIGNAL_SIGHUP\"}",
            "invalid_argument",
        ),
        (
            "application/json",
            b"{\"signal\":\"SIGNAL_SIGKILL\"}",
            "invalid_argument",
        ),
        ("application/proto", b"\xff\xff\xff", "invalid_argument"),
        ("text/plain", b"{}", "invalid_argument"),
        ("application/connect+json", b"{}", "invalid_argument"),
    ] {
        let said = call(unary, content_type, sent).await;
        assert!(
            said.contains(&format!("\"code\":\"{expected}\"")),
            "{content_type}: {said}"
        );
    }
    let stream = "process.Process/Start";
    for (sent, expected) in [
        (framed(0, 1, b"{"), "invalid_argument"),
        (framed(1, 2, b"{}"), "unimplemented"),
        (framed(0, 5 << 20, b"{}"), "resource_exhausted"),
        (framed(0, 3, b"{}"), "invalid_argument"),
        (Vec::new(), "invalid_argument"),
        (framed(0, 2, b"{}"), "invalid_argument"),
        (
            framed(
                0,
                50,
                b"{\"process\":{\"cmd\":\"x\"},\"pty\":{\"size\":{\"cols\":0}}} ",
            ),
            "invalid_argument",
        ),
    ] {
        let said = call(stream, "application/connect+json", &sent).await;
        // A stream ends well as far as HTTP is concerned; its last message says otherwise.
        assert_eq!(status(&said), 200, "{said}");
        assert!(
            said.contains(&format!("{{\"error\":{{\"code\":\"{expected}\"")),
            "{expected}: {said}"
        );
    }
    let said = call("process.Process/Nothing", "application/json", b"{}").await;
    assert_eq!(status(&said), 404, "{said}");
    let said = bench
        .inside("GET /process.Process/List", &one.id, &one.token)
        .await;
    assert_eq!(status(&said), 405, "{said}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_routes_take_what_they_know_and_refuse_what_they_cannot() {
    let bench = Bench::new().await;
    let create = async |more: Value| {
        let mut wanted = json!({"templateID": "base", "later": {"field": 1}});
        wanted
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        bench.control("POST /v2/sandboxes", &wanted).await
    };
    for (bad, expected) in [
        (json!({"templateID": "nope"}), 404),
        (json!({"templateID": "base:tag"}), 404),
        (json!({"templateID": 7}), 400),
        (json!({"timeout": -1}), 400),
        (json!({"timeout": 1_000_000_000}), 400),
        (json!({"mcp": {"a": {}}}), 400),
        (json!({"iam": {"tokens": {}}}), 400),
        (json!({"network": {"rules": {"x.example": [{}]}}}), 400),
        (json!({"network": {"denyOut": ["not a host"]}}), 400),
        (
            json!({"volumeMounts": [{"name": "v", "path": "/data"}]}),
            400,
        ),
        (json!({"autoPause": true, "autoPauseMemory": false}), 400),
        (json!({"envVars": {"A=B": "c"}}), 400),
    ] {
        let said = create(bad.clone()).await;
        assert_eq!(status(&said), expected, "{bad}: {said}");
        let told = body(&said);
        assert_eq!(told["code"], expected);
        assert!(
            told["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{told}"
        );
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_are_listed_in_pages_each_once() {
    let bench = Bench::new().await;
    let mut made = Vec::new();
    for number in 0..5 {
        let metadata = json!({"templateID": "base", "metadata": {"run": "a b", "n": number.to_string()}, "timeout": 60});
        let said = bench.control("POST /v2/sandboxes", &metadata).await;
        assert_eq!(status(&said), 201, "{said}");
        made.push(body(&said)["sandboxID"].as_str().unwrap().to_owned());
    }
    let ids = |said: &str| -> Vec<String> {
        let all = body(said);
        let ids = all
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["sandboxID"].as_str().unwrap().to_owned());
        ids.collect()
    };
    let get = async |path: &str| bench.control(&format!("GET {path}"), &Value::Null).await;
    assert_eq!(ids(&get("/sandboxes").await).len(), 5);
    // Newest first, in pages of two, each once; oldest first the same.
    for (order, expected) in [
        ("desc", made.iter().rev().cloned().collect::<Vec<_>>()),
        ("asc", made.clone()),
    ] {
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let said = get(&format!("/v2/sandboxes?limit=2&order={order}{token}")).await;
            seen.extend(ids(&said));
            let next = said
                .lines()
                .find_map(|line| line.strip_prefix("x-next-token: "));
            let Some(next) = next else { break };
            token = format!("&nextToken={next}");
        }
        assert_eq!(seen, expected, "{order}");
    }
    // Metadata are a query within the query.
    let found = get("/v2/sandboxes?metadata=run%3Da%2Bb%26n%3D3&state=running").await;
    assert_eq!(ids(&found), made[3..4], "{found}");
    assert!(ids(&get("/v2/sandboxes?state=paused").await).is_empty());
    assert!(ids(&get("/v2/sandboxes?template=other").await).is_empty());
    for bad in [
        "limit=0",
        "limit=101",
        "limit=x",
        "nextToken=x",
        "state=dead",
        "startedAfter=today",
        "nope=1",
    ] {
        assert_eq!(
            status(&get(&format!("/v2/sandboxes?{bad}")).await),
            400,
            "{bad}"
        );
    }
    // An id has one spelling.
    for bad in [
        format!("ses_{}", made[0]),
        made[0].to_uppercase(),
        "x".to_owned(),
    ] {
        assert_eq!(
            status(&get(&format!("/sandboxes/{bad}")).await),
            404,
            "{bad}"
        );
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_is_changed_as_clients_expect() {
    let bench = Bench::new().await;
    let get = async |path: &str| bench.control(&format!("GET {path}"), &Value::Null).await;
    let one = &bench.sandbox().await.id;
    let post = async |what: &str, wanted: Value| {
        bench
            .control(&format!("POST /sandboxes/{one}/{what}"), &wanted)
            .await
    };
    assert_eq!(status(&post("timeout", json!({"timeout": 30})).await), 204);
    assert_eq!(status(&post("timeout", json!({})).await), 400);
    assert_eq!(status(&post("fork", json!({"count": 1})).await), 501);
    assert_eq!(status(&post("resume", json!({})).await), 409);
    // One that runs is connected to, and lives for longer and never for less.
    let ends = async || {
        body(&get(&format!("/sandboxes/{one}")).await)["endAt"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let before = ends().await;
    let shorter = bench
        .control(
            &format!("POST /v2/sandboxes/{one}/connect"),
            &json!({"timeout": 1}),
        )
        .await;
    assert_eq!(
        (status(&shorter), ends().await),
        (200, before.clone()),
        "{shorter}"
    );
    let longer = bench
        .control(
            &format!("POST /sandboxes/{one}/connect"),
            &json!({"timeout": 600}),
        )
        .await;
    assert_eq!(status(&longer), 200, "{longer}");
    assert!(ends().await > before);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_is_repeated_makes_one_sandbox() {
    let bench = Bench::new().await;
    let create = async |timeout: u64| {
        let headers = format!(
            "{}content-type: application/json\r\nidempotency-key: a-b-1\r\n",
            bench.auth()
        );
        let wanted = json!({"templateID": "base", "timeout": timeout}).to_string();
        bench.call("POST /v2/sandboxes", &headers, wanted).await
    };
    let (first, again, other) = (create(60).await, create(60).await, create(61).await);
    assert_eq!(status(&first), 201, "{first}");
    assert_eq!(body(&first), body(&again));
    assert_eq!(status(&other), 409, "{other}");
    assert_eq!(
        bench
            .records("session.create")
            .await
            .iter()
            .filter(|record| record.outcome.is_none())
            .count(),
        1
    );
    bench.close().await;
}
