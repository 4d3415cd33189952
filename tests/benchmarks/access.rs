//! What it costs to know who asks: requests a second of one handler that anybody may call and of the same for who is known, with the very
//! same bytes, which hold an API key or a token signed with RS256; all in turn. `cargo bench --bench access -- ROUNDS`.
//!
//! Each round is a tenth of a second of each, by four connections that stay open. Prints a line of JSON for each.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a measurement that fails has no figures, and prints those that it has"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use casemate::api::route::{Access, Reply, Route};
use casemate::api::{Browsers, Server, ServerConfig};
use casemate::app::fake::Ground;
use casemate::app::{App, NewKey, Parts};
use casemate::base::clock::{Clock, ManualClock, Timestamp};
use casemate::config::Config;
use casemate::credential::vault_of;
use casemate::identity::jwt::Tokens;
use casemate::model::principal::Principal;
use casemate::model::settings::HttpLimits;
use casemate::store::Store;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const CONNECTIONS: usize = 4;
const SLICE: Duration = Duration::from_millis(100);

/// A way to ask: its name, the path, and what is presented.
struct Way {
    name: &'static str,
    path: &'static str,
    shown: Option<String>,
}

fn main() {
    // `cargo bench` adds an argument of its own.
    let rounds = std::env::args().skip(1).find_map(|text| text.parse().ok());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure(rounds.unwrap_or(50)));
}

/// The same handler for anybody and for who is known.
fn routes() -> Vec<Route> {
    let route = |path| {
        Route::new(Method::GET, path, "x", "X.", |_| {
            Box::pin(async { Ok(Reply::json(StatusCode::OK, &json!({"ok": true}))) })
        })
    };
    let known = route("/known");
    assert_eq!(known.access, Access::Key);
    vec![known, route("/open").open()]
}

async fn measure(rounds: usize) {
    let directory = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jwt");
    let table: Value =
        serde_json::from_slice(&std::fs::read(fixtures.join("jose.json")).unwrap()).unwrap();
    let now = Timestamp::from_millis(table["now_s"].as_i64().unwrap() * 1000);
    let tokens = tokens(&fixtures, now).await;
    let app = app(directory.path(), now, tokens).await;
    let operator = Principal::Operator { uid: 0 };
    let new = NewKey::member("k".parse().unwrap(), "acme".parse().unwrap());
    let key = app.create_key(&operator, new).await.unwrap();
    let token = rs256(&table);
    let config = ServerConfig {
        max_body_bytes: 1 << 20,
        max_connections: 64,
        header_timeout: Duration::from_secs(10),
        tls: None,
        browsers: Browsers {
            hosts: vec!["x".parse().unwrap()],
            origins: Vec::new(),
        },
        limits: HttpLimits::off(),
    };
    let server = Server::with_routes(app, config, &routes()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(listener, stop.clone(), SLICE));
    let (key, token) = (key.text.expose().clone(), token);
    let way = |name, path, shown: Option<&String>| Way {
        name,
        path,
        shown: shown.cloned(),
    };
    let ways = [
        way("nobody", "/open", None),
        way("API key, not looked at", "/open", Some(&key)),
        way("API key", "/known", Some(&key)),
        way("RS256 token, not looked at", "/open", Some(&token)),
        way("RS256 token", "/known", Some(&token)),
    ];
    // Beside which each stands.
    let beside = [0, 0, 1, 0, 3];
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        clients.push(sender);
    }
    let mut rates: [Vec<f64>; 5] = Default::default();
    for round in 0..=rounds {
        for (way, rates) in ways.iter().zip(&mut rates) {
            let rate = slice(&mut clients, way).await;
            // The first one fills caches.
            if round > 0 {
                rates.push(rate);
            }
        }
    }
    for (n, (way, other)) in ways.iter().zip(beside).enumerate() {
        // Beside the slice of the same round, so that what the machine does meanwhile meets both.
        let pairs = rates[n].iter().zip(&rates[other]);
        let ratio = median(pairs.map(|(rate, other)| rate / other).collect());
        let per_s = median(rates[n].clone());
        let figures = json!({
            "way": way.name, "per_s": per_s, "beside": ways[other].name, "ratio": ratio, "rounds": rounds,
        });
        println!("{figures}");
    }
    drop(clients);
    stop.cancel();
    serving.await.unwrap();
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Requests a second.
async fn slice(clients: &mut [SendRequest<Empty<Bytes>>], way: &Way) -> f64 {
    let began = Instant::now();
    let asking = clients.iter_mut().map(async |client| {
        let mut answered = 0_u64;
        while began.elapsed() < SLICE {
            let mut request = Request::get(way.path).header("host", "x");
            if let Some(shown) = &way.shown {
                request = request.header("authorization", format!("Bearer {shown}"));
            }
            let request = request.body(Empty::new()).unwrap();
            client.ready().await.unwrap();
            let answer = client.send_request(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            answer.into_body().collect().await.unwrap();
            answered += 1;
        }
        answered
    });
    let answered: u64 = futures_util::future::join_all(asking).await.iter().sum();
    answered as f64 / began.elapsed().as_secs_f64()
}

fn rs256(table: &Value) -> String {
    let rows = table["tokens"].as_array().unwrap().iter();
    let mut tokens = rows.filter(|row| row["issuer"] == "any" && row["refused"].is_null());
    let found = tokens.find(|row| row["name"].as_str().unwrap().contains("RS256"));
    found.expect("a token")["token"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn tokens(fixtures: &Path, now: Timestamp) -> Tokens {
    let settings = format!(
        "version: 1\njwt: {{any: {{issuer: 'https://any.example.com', audiences: [casemate], algorithms: [RS256], \
         jwks_file: {}, team: acme}}}}",
        fixtures.join("jwks.json").display()
    );
    let source = ("casemate.yaml".to_owned(), settings.into_bytes());
    let issuers = Config::from_sources(&[source], &[]).unwrap().jwt;
    let tokens = Tokens::default();
    tokens.trust(tokens.prepare(issuers, now).await.unwrap());
    tokens
}

async fn app(directory: &Path, now: Timestamp, tokens: Tokens) -> App {
    let store = Store::open(&directory.join("state.db")).unwrap();
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(now.as_millis()));
    let vault = vault_of(&store, None, directory).await.unwrap();
    App::new(Parts {
        tokens: Arc::new(tokens),
        ..Ground::new(store, vault, clock).parts(directory).unwrap()
    })
}
