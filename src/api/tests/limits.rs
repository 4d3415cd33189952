//! Whoever asks too often, and those beside it who do not.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::{Door, PATIENCE, TAKES_BYTES, app, config, problem, whole};
use crate::api::error::Problem;
use crate::api::route::{Answer, Call, Reply, Route};
use crate::api::server::{Server, ServerConfig};
use crate::app::NewKey;
use crate::model::principal::Principal;
use crate::model::settings::HttpLimits;

/// A door for keys at `/x`, of teams red, red again, and blue.
struct Bounded {
    door: Door,
    keys: [String; 3],
}

async fn open(change: impl FnOnce(&mut HttpLimits)) -> Bounded {
    async fn give(_: &Call) -> Result<Reply, Problem> {
        Ok(Reply::empty(StatusCode::NO_CONTENT))
    }
    let route = |method, path, name| {
        Route::new(method, path, name, "X.", |call| Box::pin(give(call))).answer(204, Answer::Empty)
    };
    let routes = [
        route(Method::GET, "/x", "x"),
        route(Method::PUT, "/x", "put").request(TAKES_BYTES),
        route(Method::GET, "/open", "open").open(),
    ];
    let directory = tempfile::tempdir().unwrap();
    let app = app(&directory);
    let operator = Principal::Operator { uid: 0 };
    let key = async |team: &str| {
        let new = NewKey::member("k".parse().unwrap(), team.parse().unwrap());
        let made = app.create_key(&operator, new);
        made.await.unwrap().text.expose().clone()
    };
    let keys = [key("red").await, key("red").await, key("blue").await];
    let mut limits = HttpLimits::off();
    change(&mut limits);
    let config = ServerConfig {
        limits,
        ..config(64)
    };
    let server = Server::with_routes(app, config, &routes).unwrap();
    let door = Door::serve(std::sync::Arc::new(server), directory).await;
    Bounded { door, keys }
}

impl Bounded {
    async fn ask(&self, key: &str) -> u16 {
        let answer = self.door.ask(Method::GET, &[("x-api-key", key)]).await;
        let status = answer.status().as_u16();
        if status == 429 {
            let after = answer.headers()["retry-after"].to_str().unwrap();
            assert!(after.parse::<u64>().unwrap() >= 1, "{after}");
            let (_, code) = problem(answer, 429).await;
            assert_eq!(code, "rate_limited");
        } else {
            whole(answer).await;
        }
        status
    }

    /// What a head is answered whose body never comes.
    async fn start(&self, head: &str) -> String {
        let mut stream = self.door.connect().await;
        let head = head.replace('\n', "\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut said = vec![0; 12];
        let read = timeout(PATIENCE, stream.read_exact(&mut said));
        read.await.expect("it waits for a body").unwrap();
        String::from_utf8(said).unwrap()
    }
}

#[tokio::test]
async fn whoever_guesses_is_limited_and_a_right_key_from_there_is_not() {
    let bounded = open(|limits| limits.failures_per_minute = 3).await;
    let [red, ..] = &bounded.keys;
    // A key of the right shape that nobody has, and no key at all.
    let wrong = format!("{}{}", &red[..red.len() - 4], "0000");
    assert_eq!(bounded.ask(&wrong).await, 401);
    assert_eq!(bounded.ask("nonsense").await, 401);
    let nobody = bounded.door.ask(Method::GET, &[]).await;
    assert_eq!(problem(nobody, 401).await.1, "unauthenticated");
    let began = Instant::now();
    let (headers, _) = problem(bounded.door.ask(Method::GET, &[]).await, 429).await;
    let after: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=20).contains(&after), "{after}");
    // Each guess is late, and the right key is not a guess.
    assert_eq!(bounded.ask(&wrong).await, 429);
    assert!(began.elapsed() >= Duration::from_millis(500));
    for _ in 0..20 {
        assert_eq!(bounded.ask(red).await, 204);
    }
    assert_eq!(bounded.ask(&wrong).await, 429);
    // What is for everybody is not refused for it.
    let head = "GET /open HTTP/1.1\nhost: x\n\n";
    assert_eq!(bounded.start(head).await, "HTTP/1.1 204");
    bounded.door.close().await;
}

#[tokio::test]
async fn a_key_has_its_bound_and_a_team_another() {
    let bounded = open(|limits| {
        limits.key_per_s = 1;
        limits.key_burst = 2;
    })
    .await;
    let [one, other, _] = &bounded.keys;
    let asked = [
        bounded.ask(one).await,
        bounded.ask(one).await,
        bounded.ask(one).await,
    ];
    assert_eq!(asked, [204, 204, 429]);
    assert_eq!(bounded.ask(other).await, 204, "it is another key");
    bounded.door.close().await;

    let bounded = open(|limits| {
        limits.team_per_s = 1;
        limits.team_burst = 2;
    })
    .await;
    let [one, other, blue] = &bounded.keys;
    let asked = [
        bounded.ask(one).await,
        bounded.ask(other).await,
        bounded.ask(other).await,
    ];
    assert_eq!(asked, [204, 204, 429]);
    assert_eq!(bounded.ask(blue).await, 204, "it is another team");
    // It comes back with time, and says when.
    let again = async { while bounded.ask(one).await != 204 {} };
    timeout(PATIENCE, again).await.expect("it never comes back");
    bounded.door.close().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_opens_http2_and_asks_nothing_is_sent_away() {
    let pipe = super::Pipe::open(&[]);
    let (sender, connection) =
        http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(pipe.far))
            .await
            .unwrap();
    let began = Instant::now();
    // It answers every ping.
    let _ = timeout(PATIENCE * 10, connection)
        .await
        .expect("it goes on for ever");
    let waited = began.elapsed();
    assert!(
        waited >= Duration::from_secs(60) && waited < Duration::from_secs(70),
        "{waited:?}"
    );
    timeout(PATIENCE, pipe.talk)
        .await
        .expect("its place is not free")
        .unwrap();
    drop(sender);
}

#[tokio::test]
async fn an_address_has_its_bound_but_not_for_those_who_are_known() {
    let bounded = open(|limits| {
        limits.address_per_s = 1;
        limits.address_burst = 2;
        limits.key_per_s = 1;
        limits.key_burst = 3;
    })
    .await;
    let [one, other, _] = &bounded.keys;
    let open = "GET /open HTTP/1.1\nhost: x\n\n";
    assert_eq!(bounded.start(open).await, "HTTP/1.1 204");
    assert_eq!(bounded.start(open).await, "HTTP/1.1 204");
    assert_eq!(bounded.start(open).await, "HTTP/1.1 429");
    // Nothing is looked at before: neither who is addressed, nor what for, nor a body.
    for head in [
        "GET /nothing HTTP/1.1\nhost: x\n\n",
        "GET /open HTTP/1.1\nhost: evil.example\n\n",
        "PUT /x HTTP/1.1\nhost: x\ncontent-length: 1000000\n\n",
    ] {
        assert_eq!(bounded.start(head).await, "HTTP/1.1 429", "{head}");
    }
    // A key goes on as far as it may itself.
    for _ in 0..3 {
        assert_eq!(bounded.ask(one).await, 204);
    }
    assert_eq!(bounded.ask(other).await, 204);
    assert_eq!(bounded.ask("nonsense").await, 429);
    // A known one that has nothing left is refused before its body comes.
    let head = format!("PUT /x HTTP/1.1\nhost: x\nx-api-key: {one}\ncontent-length: 1000000\n\n");
    for _ in 0..20 {
        if bounded.start(&head).await == "HTTP/1.1 429" {
            bounded.door.close().await;
            return;
        }
    }
    panic!("it has no bound");
}
