//! The door with a table of its own: streams both ways, events and sockets, over real connections; and over
//! pipes in memory, with the time stopped, where deadlines are what is tested.
#![expect(
    clippy::unused_async,
    reason = "a handler is asynchronous, also one that waits for nothing"
)]

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Wire;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::sync::CancellationToken;

use super::error::Problem;
use super::intake::{BodyError, IDLE_DEADLINE};
use super::line::WRITE_DEADLINE;
use super::openapi;
use super::route::{
    Answer, BoxError, Call, Handler, Reply, Request as Taken, Route, parameter, schema_of,
};
use super::server::{Server, ServerConfig};
use super::socket::{MAX_MESSAGE_BYTES, Message, SocketError};
use super::sse::{self, SseEvent};
use crate::app::{App, Parts};
use crate::audit::AuditLog;
use crate::base::clock::SystemClock;
use crate::base::secret::Secret;
use crate::identity::{HASH_KEY_BYTES, KeyHasher};
use crate::model::settings::SessionsConfig;
use crate::runtime::fake::FakeRuntime;
use crate::runtime::{RuntimeFacts, SandboxRuntime};
use crate::session::manager::{Parts as SessionParts, Sessions, Settings};
use crate::store::Store;

/// Nothing here takes longer, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What may be on its way: the buffers of two kernels' ends and ours.
const ON_ITS_WAY: u64 = 24 << 20;

const MUCH: u64 = 256 << 20;
const PIECE: &[u8] = &[7; 64 * 1024];

fn app(directory: &tempfile::TempDir) -> App {
    let store = Store::open(&directory.path().join("state.db")).unwrap();
    let clock = Arc::new(SystemClock);
    let audit = AuditLog::new(store.clone(), clock.clone());
    let runtime: Arc<dyn SandboxRuntime> = Arc::new(FakeRuntime::new([]));
    let sessions = Sessions::new(SessionParts {
        runtime: Arc::clone(&runtime),
        store: store.clone(),
        audit: audit.clone(),
        clock: clock.clone(),
        link_root: directory.path().to_owned(),
        settings: Settings {
            sessions: SessionsConfig::default(),
            templates: BTreeMap::new(),
        },
    });
    App::new(Parts {
        sessions,
        store,
        audit,
        runtime,
        facts: RuntimeFacts {
            podman_version: String::new(),
            runtime_path: String::new(),
            runtime_version: String::new(),
            unenforced_limits: Vec::new(),
        },
        hasher: KeyHasher::new(&Secret::new([1; HASH_KEY_BYTES])),
        clock,
        reload: mpsc::channel(1).0,
        calls: tokio_util::task::TaskTracker::new(),
        readiness: tokio::sync::Mutex::new(None),
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

fn server(routes: &[Route], max_connections: usize) -> (Arc<Server>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let config = ServerConfig {
        max_body_bytes: 1024,
        max_connections,
        header_timeout: Duration::from_secs(10),
    };
    let server = Server::with_routes(app(&directory), config, routes).unwrap();
    (Arc::new(server), directory)
}

impl Door {
    async fn open(routes: &[Route]) -> Self {
        Self::open_for(routes, 16).await
    }

    async fn open_for(routes: &[Route], max_connections: usize) -> Self {
        let (server, directory) = server(routes, max_connections);
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

// --- bodies in ---

#[tokio::test]
async fn much_comes_in_and_little_of_it_is_held() {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    async fn take(call: &Call) -> Result<Reply, Problem> {
        let mut reader = call.reader()?;
        assert_eq!(reader.left_bytes(), None);
        while let Some(piece) = reader.next().await {
            let length = piece?.len() as u64;
            SEEN.fetch_add(length, Ordering::Relaxed);
        }
        assert!(call.reader().is_err(), "it is there once");
        Ok(Reply::empty(StatusCode::NO_CONTENT))
    }
    let door = Door::open(&put(|call| Box::pin(take(call)))).await;
    let most = Arc::new(AtomicU64::new(0));
    let pieces = {
        let most = Arc::clone(&most);
        (0..MUCH / PIECE.len() as u64).map(move |n| {
            let held = n * PIECE.len() as u64 - SEEN.load(Ordering::Relaxed);
            most.fetch_max(held, Ordering::Relaxed);
            Ok::<_, BoxError>(Frame::data(Bytes::from_static(PIECE)))
        })
    };
    let mut client = door.client().await;
    let body = StreamBody::new(stream::iter(pieces));
    let request = Request::put("/x").header("host", "x").body(body).unwrap();
    let answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(SEEN.load(Ordering::Relaxed), MUCH);
    let most = most.load(Ordering::Relaxed);
    assert!(most < ON_ITS_WAY, "{most} bytes were held");
    drop(client);
    door.close().await;
}

#[tokio::test]
async fn a_handler_sees_that_its_client_went_away() {
    static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
    static TOLD_ONE: Notify = Notify::const_new();
    async fn take(call: &Call) -> Result<Reply, Problem> {
        let mut reader = call.reader()?;
        let mut seen = 0;
        let error = loop {
            match reader.next().await {
                Some(Ok(piece)) => seen += piece.len(),
                Some(Err(error)) => break error,
                None => panic!("it looks whole"),
            }
        };
        assert!(reader.next().await.is_none());
        let kind = match error {
            BodyError::CutShort(_) => "cut short",
            BodyError::TooSlow => "too slow",
            BodyError::TooLarge { .. } => "too large",
        };
        TOLD.lock().unwrap().push(format!("{kind} after {seen}"));
        TOLD_ONE.notify_one();
        Err(error.into())
    }
    let door = Door::open(&put(|call| Box::pin(take(call)))).await;
    for head in [
        "PUT /x HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhello",
        "PUT /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let mut stream = door.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        drop(stream);
        timeout(PATIENCE, TOLD_ONE.notified()).await.unwrap();
    }
    assert_eq!(
        *TOLD.lock().unwrap(),
        ["cut short after 5", "cut short after 5"]
    );
    door.close().await;
}

async fn swallow(call: &Call) -> Result<Reply, Problem> {
    let mut reader = call.reader()?;
    while let Some(piece) = reader.next().await {
        piece?;
    }
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_nothing_is_not_waited_for() {
    let mut pipe = Pipe::open(&put(|call| Box::pin(swallow(call))));
    let began = Instant::now();
    let head = b"PUT /x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n";
    pipe.far.write_all(head).await.unwrap();
    // Slow is allowed; it is silence that is not.
    for _ in 0..3 {
        tokio::time::sleep(IDLE_DEADLINE * 9 / 10).await;
        pipe.far.write_all(b"x").await.unwrap();
    }
    let mut answer = String::new();
    pipe.far.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("body_too_slow"), "{answer}");
    let waited = began.elapsed();
    assert!(waited >= IDLE_DEADLINE * 37 / 10, "{waited:?}");
    assert!(waited < IDLE_DEADLINE * 38 / 10, "{waited:?}");
    drop(pipe.far);
    pipe.talk.await.unwrap();
}

#[tokio::test]
async fn a_bound_of_the_route_is_kept_with_and_without_a_promise() {
    let mut routes = put(|call| Box::pin(swallow(call)));
    routes[0].request = Taken::Bytes {
        content_type: "application/x-tar",
        max_bytes: Some(10),
    };
    let door = Door::open(&routes).await;
    for (bytes, wanted) in [(10, 204), (11, 413)] {
        let mut client = door.client().await;
        let request = Request::put("/x").header("host", "x");
        let body = Full::new(Bytes::from(vec![0; bytes]));
        let answer = client.send_request(request.body(body).unwrap()).await;
        assert_eq!(answer.unwrap().status(), wanted, "{bytes} promised");
        let mut client = door.client().await;
        let request = Request::put("/x").header("host", "x");
        let pieces = vec![Ok::<_, BoxError>(Frame::data(Bytes::from(vec![0; bytes])))];
        let body = StreamBody::new(stream::iter(pieces));
        let answer = client.send_request(request.body(body).unwrap()).await;
        assert_eq!(answer.unwrap().status(), wanted, "{bytes} in a stream");
    }
    door.close().await;
}

#[tokio::test]
async fn what_a_handler_leaves_unread_harms_nobody() {
    async fn ignore(call: &Call) -> Result<Reply, Problem> {
        let mut reader = call.reader()?;
        if call.query == "first" {
            reader.next().await.unwrap()?;
        }
        Ok(Reply::empty(StatusCode::CONFLICT))
    }
    let door = Door::open(&put(|call| Box::pin(ignore(call)))).await;
    // A body that has arrived already: the connection goes on, or ends as it should.
    let mut stream = door.connect().await;
    let once = b"PUT /x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello";
    stream.write_all(&[&once[..], once].concat()).await.unwrap();
    let mut answers = Vec::new();
    let mut read = [0; 4096];
    while String::from_utf8_lossy(&answers)
        .matches("HTTP/1.1 409")
        .count()
        < 2
    {
        let length = timeout(PATIENCE, stream.read(&mut read)).await.unwrap();
        match length.unwrap() {
            0 => break,
            length => answers.extend_from_slice(&read[..length]),
        }
    }
    let answers = String::from_utf8(answers).unwrap();
    assert_eq!(
        answers.matches("HTTP/1.1 ").count(),
        answers.matches("HTTP/1.1 409").count()
    );
    assert!(answers.starts_with("HTTP/1.1 409"), "{answers}");
    drop(stream);
    // A client that sends all before it reads still gets its answer, and is not held.
    for path in ["/x", "/x?first", "/nothing"] {
        let mut stream = door.connect().await;
        let much = 8 << 20;
        let head = format!("PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {much}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..much / PIECE.len() {
            stream.write_all(PIECE).await.unwrap();
        }
        let mut answer = String::new();
        let read = timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
        read.expect("the connection is held").unwrap();
        assert!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
    }
    door.close().await;
}

// --- bodies out ---

#[tokio::test]
async fn much_goes_out_only_as_fast_as_it_is_taken() {
    static MADE: AtomicU64 = AtomicU64::new(0);
    async fn give(_: &Call) -> Result<Reply, Problem> {
        let pieces = (0..MUCH / PIECE.len() as u64).map(|_| {
            MADE.fetch_add(PIECE.len() as u64, Ordering::Relaxed);
            Ok::<_, BoxError>(Bytes::from_static(PIECE))
        });
        let pieces = stream::iter(pieces);
        Ok(Reply::stream(
            StatusCode::OK,
            "application/octet-stream",
            Some(MUCH),
            pieces,
        ))
    }
    let door = Door::open(&get(BYTES, |call| Box::pin(give(call)))).await;
    let answer = door.get().await;
    assert_eq!(
        answer.headers()["content-length"],
        MUCH.to_string().as_str()
    );
    let mut body = answer.into_body();
    let mut seen = 0;
    let mut most = 0;
    while let Some(frame) = body.frame().await {
        if seen == 0 {
            let_run().await;
        }
        seen += frame.unwrap().into_data().unwrap().len() as u64;
        most = most.max(MADE.load(Ordering::Relaxed) - seen);
    }
    assert_eq!(seen, MUCH);
    assert!(most < ON_ITS_WAY, "{most} bytes were held");
    door.close().await;
}

/// Told when the client has a part of an answer.
static HAS_A_PART: Notify = Notify::const_new();

/// Two pieces, and then what the query says.
async fn fail(call: &Call) -> Result<Reply, Problem> {
    let how = call.query.clone();
    let length = how.contains("length").then_some(10);
    let pieces = stream::iter(["hel", "", "lo"].map(|text| Ok(Bytes::from(text))));
    let end = stream::once(async move {
        match how.as_str() {
            "panic" => panic!("in the middle"),
            "length=more" => Ok(Bytes::from("there is more")),
            "length=less" => Ok(Bytes::from("l")),
            "length=right" => Ok(Bytes::from("there")),
            "whole" => Ok(Bytes::new()),
            "late" => {
                HAS_A_PART.notified().await;
                Err(BoxError::from("the disk is gone"))
            }
            _ => Err(BoxError::from("the disk is gone")),
        }
    });
    Ok(Reply::stream(
        StatusCode::OK,
        "text/plain",
        length,
        pieces.chain(end),
    ))
}

/// An answer to its end, which may come before its head was sent.
async fn read(answer: hyper::Result<Response<Incoming>>) -> hyper::Result<Bytes> {
    let answer = answer?;
    assert_eq!(answer.status(), 200);
    Ok(answer.into_body().collect().await?.to_bytes())
}

#[tokio::test]
async fn an_answer_that_fails_half_way_does_not_look_complete() {
    let door = Door::open(&get(BYTES, |call| Box::pin(fail(call)))).await;
    let ask = async |how: &str| {
        let request = Request::get(format!("/x?{how}")).header("host", "x");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        door.client().await.send_request(request).await
    };
    let failing = [
        "error",
        "panic",
        "length=error",
        "length=more",
        "length=less",
    ];
    for how in failing {
        assert!(read(ask(how).await).await.is_err(), "{how}");
    }
    assert_eq!(read(ask("whole").await).await.unwrap(), "hello");
    assert_eq!(read(ask("length=right").await).await.unwrap(), "hellothere");
    let mut late = ask("late").await.unwrap().into_body();
    assert!(late.frame().await.unwrap().is_ok());
    HAS_A_PART.notify_one();
    assert!(late.collect().await.is_err());
    // HTTP/1.0 has no other end of such a body than that of the connection.
    for how in ["error", "panic", "whole"] {
        let mut stream = door.connect().await;
        let head = format!("GET /x?{how} HTTP/1.0\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let read = stream.read_to_end(&mut Vec::new()).await;
        assert_eq!(read.is_ok(), how == "whole", "{how}: {read:?}");
    }
    // One stream of HTTP/2 ends; the others do not.
    let io = TokioIo::new(door.connect().await);
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    for how in failing.into_iter().chain(["whole"]) {
        let request = Request::get(format!("http://x/x?{how}"));
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let read = read(client.send_request(request).await).await;
        assert_eq!(read.is_ok(), how == "whole", "{how}: {read:?}");
    }
    drop(client);
    let _ = connection.await;
    door.close().await;
}

/// Pieces without end, of which somebody knows whether they are still to be had.
async fn endless(_: &Call) -> Result<Reply, Problem> {
    let pieces = stream::repeat_with(|| Ok::<_, BoxError>(Bytes::from_static(PIECE)));
    Ok(Reply::stream(
        StatusCode::OK,
        "application/octet-stream",
        None,
        pieces,
    ))
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_cut_off() {
    let mut pipe = Pipe::open(&get(BYTES, |call| Box::pin(endless(call))));
    let began = Instant::now();
    pipe.far
        .write_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    pipe.far.read_exact(&mut [0; 100]).await.unwrap();
    pipe.talk.await.unwrap();
    let waited = began.elapsed();
    assert!(
        waited >= WRITE_DEADLINE && waited < WRITE_DEADLINE * 2,
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_http_2_that_nobody_takes_is_cut_off_though_the_connection_lives() {
    let pipe = Pipe::open(&get(BYTES, |call| Box::pin(endless(call))));
    let began = Instant::now();
    let (mut client, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .handshake(TokioIo::new(pipe.far))
        .await
        .unwrap();
    // It answers pings all the time.
    let connection = tokio::spawn(connection);
    let answer = client
        .send_request(request(Method::GET, &[]))
        .await
        .unwrap();
    pipe.talk.await.unwrap();
    let waited = began.elapsed();
    assert!(
        waited >= WRITE_DEADLINE && waited < WRITE_DEADLINE * 2,
        "{waited:?}"
    );
    assert!(answer.into_body().collect().await.is_err());
    let _ = connection.await;
}

// --- HEAD ---

#[tokio::test]
async fn head_is_get_without_the_body() {
    async fn give(call: &Call) -> Result<Reply, Problem> {
        let pieces = stream::iter([Ok::<_, BoxError>(Bytes::from("hello"))]);
        match call.query.as_str() {
            "whole" => Ok(Reply::bytes(StatusCode::OK, "text/plain", "hello".into())),
            "promised" => Ok(Reply::stream(StatusCode::OK, "text/plain", Some(5), pieces)),
            "unknown" => Ok(Reply::stream(StatusCode::OK, "text/plain", None, pieces)),
            "is_head" => Ok(Reply::bytes(
                StatusCode::OK,
                "text/plain",
                call.is_head.to_string().into(),
            )),
            _ => Err(Problem::bad_request("nothing")),
        }
    }
    let door = Door::open(&get(BYTES, |call| Box::pin(give(call)))).await;
    let mut old = door.client::<Empty<Bytes>>().await;
    let io = TokioIo::new(door.connect().await);
    let (mut new, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    for (how, length) in [
        ("whole", Some("5")),
        ("promised", Some("5")),
        ("unknown", None),
        ("is_head", Some("4")),
        ("problem", Some("")),
    ] {
        let ask = |method| {
            let request = Request::builder().method(method).header("host", "x");
            let request = request.uri(format!("http://x/x?{how}"));
            request.body(Empty::<Bytes>::new()).unwrap()
        };
        let got = old.send_request(ask(Method::GET)).await.unwrap();
        let (status, kind) = (got.status(), got.headers()["content-type"].clone());
        whole(got).await;
        for answer in [
            old.send_request(ask(Method::HEAD)).await.unwrap(),
            new.send_request(ask(Method::HEAD)).await.unwrap(),
        ] {
            assert_eq!(answer.status(), status, "{how}");
            assert_eq!(answer.headers()["content-type"], kind);
            assert!(answer.headers().contains_key("x-request-id"));
            let told = answer.headers().get("content-length");
            match length {
                Some("") => assert_ne!(told.unwrap(), "0"),
                _ => assert_eq!(told.map(|told| told.to_str().unwrap()), length, "{how}"),
            }
            assert_eq!(whole(answer).await, "", "{how}");
        }
    }
    let answer = door.ask(Method::POST, &[]).await;
    assert_eq!(answer.headers()["allow"], "GET, HEAD");
    drop((old, new));
    let _ = connection.await;
    door.close().await;
}

// --- events ---

/// Counts from after the last event that the client has seen.
async fn count(call: &Call) -> Result<Reply, Problem> {
    let last: Option<u64> = sse::last_event_id(call)?;
    let first = last.map_or(0, |last| last + 1);
    let events = stream::iter(first..3).map(|n| SseEvent::new("number", Some(&n), &n));
    Ok(sse::reply(
        call.stop.clone(),
        events.chain(stream::pending()),
    ))
}

#[tokio::test]
async fn events_are_taken_up_where_they_were_lost_and_end_when_the_daemon_stops() {
    let events = Answer::Events(schema_of::<u64>);
    let door = Door::open(&get(events, |call| Box::pin(count(call)))).await;
    let mut open = Vec::new();
    for (headers, first) in [(&[][..], 0), (&[("last-event-id", "1")], 2)] {
        let answer = door.ask(Method::GET, headers).await;
        assert_eq!(answer.status(), 200);
        for (name, value) in [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-store"),
            ("x-accel-buffering", "no"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(answer.headers()[name], value);
        }
        assert!(answer.headers().contains_key("x-request-id"));
        let mut body = answer.into_body();
        for n in first..3 {
            let event = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(event, format!("id: {n}\nevent: number\ndata: {n}\n\n"));
        }
        open.push(body);
    }
    let wrong = door.ask(Method::GET, &[("last-event-id", "x")]).await;
    assert_eq!(problem(wrong, 400).await.1, "invalid_last_event_id");
    door.close().await;
    for body in open {
        assert_eq!(body.collect().await.unwrap().to_bytes(), "", "a proper end");
    }
}

// --- sockets ---

type Client<S> = WebSocketStream<S>;

async fn dial<S>(stream: S, protocol: Option<&str>) -> (Client<S>, HeaderMap)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = "ws://x/x".into_client_request().unwrap();
    if let Some(protocol) = protocol {
        let protocol = protocol.parse().unwrap();
        request
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let (socket, answer) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    assert_eq!(answer.status(), 101);
    (socket, answer.headers().clone())
}

/// The code and reason with which a socket is closed; whatever came before is passed over.
async fn closed<S>(client: &mut Client<S>) -> (u16, String)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match timeout(PATIENCE * 60, client.next()).await.unwrap() {
            Some(Ok(Wire::Close(Some(close)))) => {
                return (close.code.into(), close.reason.to_string());
            }
            Some(Ok(_)) => {}
            other => panic!("it ended without a word: {other:?}"),
        }
    }
}

async fn echo(call: &Call) -> Result<Reply, Problem> {
    if call.query == "refused" {
        return Err(Problem::bad_request("not now"));
    }
    Reply::upgrade(call, async |mut socket| {
        while let Some(message) = socket.receive().await {
            match &message {
                Message::Text(text) if text == "leave" => return,
                Message::Text(text) if text == "close" => {
                    return socket.close(4000, "so long").await;
                }
                Message::Text(text) if text == "panic" => panic!("in a socket"),
                Message::Text(text) if text == "large" => {
                    let large = Message::Binary(vec![0; MAX_MESSAGE_BYTES + 1].into());
                    assert_eq!(socket.send(large).await, Err(SocketError::TooLarge));
                }
                _ => {}
            }
            if socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

fn echoes() -> Vec<Route> {
    get(Answer::WebSocket(Some("casemate")), |call| {
        Box::pin(echo(call))
    })
}

#[tokio::test]
async fn a_socket_carries_messages_both_ways_until_either_side_closes_it() {
    let door = Door::open(&echoes()).await;
    let (mut client, headers) = dial(door.connect().await, Some("other, casemate")).await;
    assert_eq!(headers["sec-websocket-protocol"], "casemate");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert!(headers.contains_key("x-request-id"));
    let large = Bytes::from(vec![7; MAX_MESSAGE_BYTES]);
    for message in [
        Wire::Text("hé".into()),
        Wire::Text("".into()),
        Wire::Text("large".into()),
        Wire::Binary(large),
    ] {
        client.send(message.clone()).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), message);
    }
    client.close(None).await.unwrap();
    while let Some(Ok(_)) = client.next().await {}

    for (said, code, reason) in [
        ("leave", 1000, ""),
        ("close", 4000, "so long"),
        ("panic", 1011, "something failed inside casemated"),
    ] {
        let (mut client, headers) = dial(door.connect().await, None).await;
        assert!(!headers.contains_key("sec-websocket-protocol"));
        client.send(Wire::Text(said.into())).await.unwrap();
        assert_eq!(closed(&mut client).await, (code, reason.to_owned()));
    }
    for (bad, code) in [
        (Wire::Binary(vec![0; MAX_MESSAGE_BYTES + 1].into()), 1009),
        (Wire::Binary(vec![0; 16 << 20].into()), 1009),
    ] {
        let (mut client, _) = dial(door.connect().await, None).await;
        // It may be cut off before it has said all.
        let _ = client.feed(bad).await;
        let _ = client.flush().await;
        assert_eq!(closed(&mut client).await.0, code);
    }
    door.close().await;
}

#[tokio::test]
async fn sockets_are_connections_which_the_daemon_ends_when_it_stops() {
    let door = Door::open_for(&echoes(), 1).await;
    let (mut first, _) = dial(door.connect().await, None).await;
    let second = door.connect().await;
    let second = dial(second, None);
    let mut second = std::pin::pin!(second);
    tokio::select! {
        biased;
        _ = second.as_mut() => panic!("there was a place for a second one"),
        () = let_run() => {}
    }
    first.close(None).await.unwrap();
    while let Some(Ok(_)) = first.next().await {}
    drop(first);
    let (mut second, _) = timeout(PATIENCE, second).await.unwrap();
    let (told, ()) = tokio::join!(closed(&mut second), door.close());
    assert_eq!(told, (1001, "casemated is stopping".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_socket_whose_client_does_not_answer_is_closed() {
    let mut pipe = Pipe::open(&echoes());
    let head = "GET /x HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    pipe.far.write_all(head.as_bytes()).await.unwrap();
    let began = Instant::now();
    let mut said = Vec::new();
    pipe.far.read_to_end(&mut said).await.unwrap();
    let waited = began.elapsed().as_secs();
    // A ping after 30 s, 60 s for the answer, 5 s for the farewell.
    assert!((90..=96).contains(&waited), "{waited} s");
    let pings = said.windows(2).filter(|two| two == &[0x89, 0]).count();
    assert!((2..=4).contains(&pings), "{pings} pings");
    let farewell = b"no answer to pings";
    let code = said.len() - farewell.len() - 2;
    assert_eq!(&said[code..code + 2], &1008_u16.to_be_bytes());
    assert!(said.ends_with(farewell));
    pipe.talk.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_quiet_client_and_a_slow_handler_keep_their_socket() {
    async fn late(call: &Call) -> Result<Reply, Problem> {
        Reply::upgrade(call, async |mut socket| {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            for n in 0..20 {
                assert_eq!(socket.receive().await, Some(Message::Text(n.to_string())));
            }
            socket.close(4001, "all of them").await;
        })
    }
    let pipe = Pipe::open(&get(Answer::WebSocket(None), |call| Box::pin(late(call))));
    let (mut client, _) = dial(pipe.far, None).await;
    for n in 0..20 {
        client.send(Wire::Text(n.to_string().into())).await.unwrap();
    }
    assert_eq!(closed(&mut client).await, (4001, "all of them".to_owned()));
    while let Some(Ok(_)) = client.next().await {}
    pipe.talk.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_outlives_its_socket_is_dropped() {
    static HELD: Mutex<Option<std::sync::Weak<()>>> = Mutex::new(None);
    async fn deaf(call: &Call) -> Result<Reply, Problem> {
        let held = Arc::new(());
        *HELD.lock().unwrap() = Some(Arc::downgrade(&held));
        Reply::upgrade(call, async move |socket| {
            pending::<()>().await;
            drop((socket, held));
        })
    }
    let pipe = Pipe::open(&get(Answer::WebSocket(None), |call| Box::pin(deaf(call))));
    let (mut client, _) = dial(pipe.far, None).await;
    let began = Instant::now();
    pipe.stop.cancel();
    assert_eq!(closed(&mut client).await.0, 1001);
    pipe.talk.await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    let held = HELD.lock().unwrap().take().unwrap();
    assert_eq!(held.strong_count(), 0);
}

#[tokio::test]
async fn what_is_no_handshake_gets_an_answer_and_no_socket() {
    let door = Door::open(&echoes()).await;
    let good = [
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let ask = async |without: &str, with: &[(&str, &str)]| {
        let mut headers: Vec<_> = good
            .iter()
            .filter(|(name, _)| *name != without)
            .copied()
            .collect();
        headers.extend_from_slice(with);
        door.ask(Method::GET, &headers).await
    };
    let (headers, code) = problem(ask("upgrade", &[]).await, 426).await;
    assert_eq!(
        (headers["upgrade"].to_str().unwrap(), code.as_str()),
        ("websocket", "upgrade_required")
    );
    let version = [("sec-websocket-version", "8")];
    let (headers, code) = problem(ask("sec-websocket-version", &version).await, 426).await;
    assert_eq!(headers["sec-websocket-version"], "13");
    assert_eq!(code, "websocket_version");
    let (_, code) = problem(ask("sec-websocket-key", &[]).await, 400).await;
    assert_eq!(code, "invalid_request");
    let (_, code) = problem(
        ask("", &[("origin", "https://elsewhere.example")]).await,
        403,
    )
    .await;
    assert_eq!(code, "origin_not_allowed");
    assert_eq!(ask("", &[("origin", "http://x")]).await.status(), 101);
    assert_eq!(ask("", &[]).await.status(), 101);
    let (headers, _) = problem(door.ask(Method::POST, &good).await, 405).await;
    assert_eq!(headers["allow"], "GET");
    assert_eq!(door.ask(Method::HEAD, &good).await.status(), 405);

    // What the handler refuses stays HTTP, and its connection as well.
    let mut client = door.client().await;
    let mut refused = request(Method::GET, &good);
    *refused.uri_mut() = "/x?refused".parse().unwrap();
    for request in [refused.clone(), refused] {
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(problem(answer, 400).await.1, "invalid_request");
        client.ready().await.unwrap();
    }
    drop(client);

    let io = TokioIo::new(door.connect().await);
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let answer = client
        .send_request(request(Method::GET, &[]))
        .await
        .unwrap();
    assert_eq!(problem(answer, 501).await.1, "websocket_needs_http1");
    drop(client);
    let _ = connection.await;
    door.close().await;
}

// --- the document ---

#[test]
fn every_kind_of_route_is_described() {
    let mut all = [
        echoes(),
        get(Answer::Events(schema_of::<u64>), |call| {
            Box::pin(count(call))
        }),
        put(|call| Box::pin(swallow(call))),
        get(BYTES, |call| Box::pin(fail(call))),
    ]
    .concat();
    for (route, path) in all.iter_mut().zip(["/socket", "/events", "/put", "/get"]) {
        route.path = path;
    }
    all[0].status = 101;
    all[1].headers = &[parameter("Last-Event-ID", "Where to go on.")];
    all[3].others = &[
        (206, "A part.", BYTES),
        (304, "It is the same.", Answer::Empty),
    ];
    let document = openapi::document_of(&all);
    let at = |pointer: &str| {
        document
            .pointer(&format!("/paths/{pointer}"))
            .unwrap_or(&Value::Null)
    };
    assert!(at("~1socket/get/responses/101").is_object());
    assert!(at("~1socket/get/responses/101/content").is_null());
    for status in [403, 426, 501] {
        assert!(at(&format!("~1socket/get/responses/{status}")).is_object());
        assert!(at(&format!("~1events/get/responses/{status}")).is_null());
    }
    assert_eq!(at("~1events/get/parameters/0/in"), "header");
    assert_eq!(at("~1events/get/parameters/0/name"), "Last-Event-ID");
    let content = at("~1events/get/responses/200/content");
    assert_eq!(content["text/event-stream"]["schema"]["type"], "string");
    assert_eq!(
        content["text/event-stream"]["x-event-data"]["type"],
        "integer"
    );
    let binary = "application~1octet-stream";
    assert!(at(&format!("~1put/put/requestBody/content/{binary}")).is_object());
    assert!(at("~1put/put/responses/408").is_object());
    for status in [200, 206] {
        assert!(at(&format!("~1get/get/responses/{status}/content/{binary}")).is_object());
    }
    assert!(at("~1get/get/responses/304/content").is_null());
}
