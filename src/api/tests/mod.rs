//! The door with a table of its own: streams both ways, events and sockets, over real connections; and over
//! pipes in memory, with the time stopped, where deadlines are what is tested.
#![expect(
    clippy::unused_async,
    reason = "a handler is asynchronous, also one that waits for nothing"
)]

mod bodies_in;
mod bodies_out;
mod browsers;
mod clients;
mod credentials;
mod document;
mod events;
mod head;
mod keys;
mod limits;
mod record;
mod sockets;
mod templates;
mod tls;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::api::browser::Browsers;
use crate::api::route::{Answer, BoxError, Handler, Request as Taken, Route};
use crate::api::server::{Server, ServerConfig};
use crate::app::fake::Ground;
use crate::app::{App, Parts};
use crate::base::clock::SystemClock;
use crate::identity::jwt::Tokens;
use crate::model::settings::HttpLimits;
use crate::store::Store;
use crate::vault::Vault;

/// Nothing here takes longer, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What may be on its way: the buffers of two kernels' ends and ours.
const ON_ITS_WAY: u64 = 24 << 20;

const MUCH: u64 = 256 << 20;
const PIECE: &[u8] = &[7; 64 * 1024];

fn app(directory: &tempfile::TempDir) -> App {
    app_with(directory, Arc::default())
}

/// One that takes these tokens.
fn app_with(directory: &tempfile::TempDir, tokens: Arc<Tokens>) -> App {
    let store = Store::open(&directory.path().join("state.db")).unwrap();
    let vault = Vault::open(None, directory.path(), false).unwrap();
    let ground = Ground::new(store, vault, Arc::new(SystemClock));
    App::new(Parts {
        tokens,
        ..ground.parts(directory.path()).unwrap()
    })
}

const BYTES: Answer = Answer::Bytes(&["application/octet-stream"]);
const TAKES_BYTES: Taken = Taken::bytes("application/octet-stream");

fn route(method: Method, request: Taken, answer: Answer, handler: Handler) -> Route {
    Route::new(method, "/x", "x", "X.", handler)
        .open()
        .request(request)
        .answer(200, answer)
}

fn get(answer: Answer, handler: Handler) -> Vec<Route> {
    vec![route(Method::GET, Taken::None, answer, handler)]
}

fn put(handler: Handler) -> Vec<Route> {
    vec![route(Method::PUT, TAKES_BYTES, Answer::Empty, handler)]
}

/// A served table.
struct Door {
    address: String,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

/// The door is `x` here.
fn browsers() -> Browsers {
    Browsers {
        hosts: vec!["x".parse().unwrap()],
        origins: vec!["https://app.example".parse().unwrap()],
    }
}

fn config(max_connections: usize) -> ServerConfig {
    ServerConfig {
        max_body_bytes: 1024,
        max_connections,
        header_timeout: Duration::from_secs(10),
        tls: None,
        browsers: browsers(),
        limits: HttpLimits::off(),
    }
}

fn server(routes: &[Route], max_connections: usize) -> (Arc<Server>, tempfile::TempDir) {
    server_with(routes, config(max_connections))
}

fn server_with(routes: &[Route], config: ServerConfig) -> (Arc<Server>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with_routes(app(&directory), config, routes).unwrap();
    (Arc::new(server), directory)
}

impl Door {
    async fn open(routes: &[Route]) -> Self {
        Self::open_for(routes, 16).await
    }

    async fn open_for(routes: &[Route], max_connections: usize) -> Self {
        Self::open_with(routes, config(max_connections)).await
    }

    async fn open_with(routes: &[Route], config: ServerConfig) -> Self {
        let (server, directory) = server_with(routes, config);
        Self::serve(server, directory).await
    }

    async fn serve(server: Arc<Server>, directory: tempfile::TempDir) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let server = Arc::into_inner(server).unwrap();
        // Longer than any test has patience for: who needs it to end has failed.
        let serving = server.serve(listener, stop.clone(), PATIENCE * 60);
        Self {
            address,
            stop,
            serving: tokio::spawn(serving),
            _directory: directory,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    /// One connection; it ends with the sender.
    async fn client<B>(&self) -> http1::SendRequest<B>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let io = TokioIo::new(self.connect().await);
        let (sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    async fn get(&self) -> Response<Incoming> {
        self.ask(Method::GET, &[]).await
    }

    async fn ask(&self, method: Method, headers: &[(&str, &str)]) -> Response<Incoming> {
        let mut sender = self.client().await;
        let answer = sender.send_request(request(method, headers)).await.unwrap();
        // What is still to come of the answer needs the connection, not its sender.
        drop(sender);
        answer
    }

    /// Stops, and waits for the end, which must not need the whole grace.
    async fn close(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.serving)
            .await
            .expect("it does not stop")
            .unwrap();
    }
}

fn request(method: Method, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri("http://x/x")
        .header("host", "x");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).unwrap()
}

/// A table behind a pipe in memory.
struct Pipe {
    far: DuplexStream,
    stop: CancellationToken,
    talk: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Pipe {
    fn open(routes: &[Route]) -> Self {
        let (server, directory) = server(routes, 1);
        let (far, near) = duplex(16 * 1024);
        let stop = CancellationToken::new();
        Self {
            far,
            stop: stop.clone(),
            talk: tokio::spawn(server.talk(near, stop)),
            _directory: directory,
        }
    }
}

async fn whole(answer: Response<Incoming>) -> Bytes {
    answer.into_body().collect().await.unwrap().to_bytes()
}

async fn problem(answer: Response<Incoming>, status: u16) -> (HeaderMap, String) {
    assert_eq!(answer.status(), status);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let headers = answer.headers().clone();
    let body: Value = serde_json::from_slice(&whole(answer).await).unwrap();
    (headers, body["code"].as_str().unwrap().to_owned())
}

/// Lets everything else run until it has nothing more to do.
async fn let_run() {
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
}
