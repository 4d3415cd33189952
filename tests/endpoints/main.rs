//! Endpoints from end to end: the door, the policy, the record, the link, with a guest that really connects to programs that
//! really listen. What programs get is compared byte by byte.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

mod browsers;
mod hostile;
mod pipeline;
mod protocols;
mod record;
mod sandboxes;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex as Guarded};
use std::time::Duration;

use bytes::Bytes;
use casemate::api::{Browsers, Server, ServerConfig};
use casemate::app::fake::Ground;
use casemate::app::{App, Links, NewKey, Parts};
use casemate::base::clock::{SystemClock, Timestamp};
use casemate::base::id::KeyId;
use casemate::endpoint::Pool;
use casemate::model::endpoint::Endpoints;
use casemate::model::event::AuditRecord;
use casemate::model::image::ImageDigest;
use casemate::model::name::Name;
use casemate::model::principal::{Client, Principal};
use casemate::model::query::AuditFilter;
use casemate::model::sandbox::SandboxSpec;
use casemate::model::session::{Phase, Session};
use casemate::model::settings::{EndpointsConfig, HttpLimits, SessionsConfig};
use casemate::model::setup::Setup;
use casemate::model::template::{Origin, Template, TemplateSpec};
use casemate::runtime::fake::{FakeRuntime, Running};
use casemate::session::manager::{NewSession, Settings};
use casemate::store::Store;
use casemate_link::guest::{Dialer, Introduction};
use casemate_link::handshake::KernelReport;
use casemate_link::port::ConnectRequest;
use casemate_link::refusal::{Refusal, code};
use casemate_link::route;
use casemate_link::wire::{Chunk, FrameReader, TransferFrame};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const IMAGE: ImageDigest = ImageDigest::from_bytes([7; 32]);
const DOMAIN: &str = "box.test";
const OPERATOR: Principal = Principal::Operator { uid: 0 };

/// Nothing here takes longer, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A guest that connects to ports of this machine, and does nothing else.
fn guest(spec: &SandboxSpec) -> Running {
    let directory = spec.link_dir.clone();
    Box::new(AbortOnDrop(tokio::spawn(async move {
        let introduction = Introduction {
            guest_version: "test".into(),
            kernel: KernelReport::default(),
        };
        let mut dialer = Dialer::new(&directory, introduction);
        loop {
            let (stream, _) = dialer.dial(|_| {}).await;
            let service = hyper::service::service_fn(serve);
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // However it ends: dial again.
            let _ended = server.serve_connection(TokioIo::new(stream), service).await;
        }
    })))
}

type GuestBody = http_body_util::combinators::UnsyncBoxBody<Chunk, Infallible>;

async fn serve(request: http::Request<Incoming>) -> Result<http::Response<GuestBody>, Infallible> {
    if request.uri().path() != route::PORT_CONNECT {
        let mut answer = http::Response::new(http_body_util::Empty::new().boxed_unsync());
        *answer.status_mut() = http::StatusCode::NOT_FOUND;
        return Ok(answer);
    }
    let (frames, answer) = mpsc::channel::<Chunk>(8);
    tokio::spawn(carry(request.into_body(), frames));
    let body = futures_util::stream::unfold(answer, async |mut answer| {
        let chunk = answer.recv().await?;
        Some((Ok(Frame::data(chunk)), answer))
    });
    let mut answer = http::Response::new(StreamBody::new(body).boxed_unsync());
    let frames = http::HeaderValue::from_static(route::FRAMES);
    answer.headers_mut().insert("content-type", frames);
    Ok(answer)
}

async fn carry(body: Incoming, out: mpsc::Sender<Chunk>) {
    let mut frames = FrameReader::<TransferFrame>::new(body);
    let Ok(Some(TransferFrame::Head(head))) = frames.next().await else {
        return;
    };
    let asked: ConnectRequest = serde_json::from_slice(&head).unwrap();
    let Ok(stream) = TcpStream::connect(("127.0.0.1", asked.port)).await else {
        let refusal = Refusal {
            code: code::NOT_LISTENING.to_owned(),
            message: String::new(),
        };
        let _ = out
            .send(TransferFrame::Failed(refusal).encode().unwrap())
            .await;
        return;
    };
    let _ = out.send(TransferFrame::head(&()).unwrap()).await;
    let (mut from, mut to) = stream.into_split();
    let inward = async {
        while let Ok(Some(TransferFrame::Data(data))) = frames.next().await {
            if to.write_all(&data).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    let outward = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let data = TransferFrame::Data(Bytes::copy_from_slice(&buffer[..read]));
            if out.send(data.encode().unwrap()).await.is_err() {
                return;
            }
        }
        let _ = out.send(TransferFrame::End.encode().unwrap()).await;
    };
    let both = async { tokio::join!(inward, outward) };
    tokio::select! {
        _ = both => {}
        () = out.closed() => {}
    }
}

/// What a program was sent, a connection at a time.
type Heard = Arc<Guarded<Vec<String>>>;

/// A program that hears a request's head, and what came with it, and says one thing.
struct Program {
    port: u16,
    heard: Heard,
    _task: AbortOnDrop,
}

impl Program {
    async fn says(answer: impl Into<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, answer.into())
    }

    fn on(listener: TcpListener, answer: Vec<u8>) -> Self {
        let port = listener.local_addr().unwrap().port();
        let heard = Heard::default();
        let all = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (all, answer) = (Arc::clone(&all), answer.clone());
                tokio::spawn(async move {
                    let mut buffer = vec![0; 64 * 1024];
                    let mut text = String::new();
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
                        while let Some(end) = text.find("\r\n\r\n") {
                            all.lock().unwrap().push(text.drain(..end + 4).collect());
                            if stream.write_all(&answer).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self {
            port,
            heard,
            _task: AbortOnDrop(task),
        }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

struct Bench {
    app: App,
    store: Store,
    address: String,
    /// A key of the team `default`.
    key: String,
    id: KeyId,
    stop: CancellationToken,
    directory: tempfile::TempDir,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// What a test wants otherwise.
struct Wants {
    endpoints: EndpointsConfig,
    setup: Setup,
    limits: HttpLimits,
}

impl Default for Wants {
    fn default() -> Self {
        Self {
            endpoints: EndpointsConfig {
                domain: Some(DOMAIN.to_owned()),
                ..EndpointsConfig::default()
            },
            setup: Setup {
                endpoints: Endpoints {
                    any_port: true,
                    ..Endpoints::default()
                },
                ..Setup::default()
            },
            limits: HttpLimits::off(),
        }
    }
}

impl Bench {
    async fn new() -> Self {
        Self::with(Wants::default()).await
    }

    async fn with(wants: Wants) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        let app = app(&directory, &store, &wants).await;
        let made = app.create_key(&OPERATOR, NewKey::member(name("k"), name("default")));
        let made = made.await.unwrap();
        let config = ServerConfig {
            max_body_bytes: 1024,
            max_connections: 256,
            header_timeout: Duration::from_secs(1),
            tls: None,
            browsers: Browsers::default(),
            limits: wants.limits,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Server::new(app.clone(), config).unwrap();
        let stop = CancellationToken::new();
        let mut tasks = vec![tokio::spawn(server.serve(listener, stop.clone(), PATIENCE))];
        let (accesses, pool, ending) = (app.clone(), app.pool().clone(), stop.clone());
        tasks.push(tokio::spawn(
            async move { accesses.keep_accesses(ending).await },
        ));
        let ending = stop.clone();
        tasks.push(tokio::spawn(async move { pool.keep(ending).await }));
        Self {
            app,
            store,
            address,
            key: made.text.expose().clone(),
            id: made.key.id,
            stop,
            directory,
            tasks,
        }
    }

    fn member(&self) -> Principal {
        Principal::Client(Client::member(self.id, name("default")))
    }

    async fn session(&self) -> Arc<Session> {
        self.session_of("default").await
    }

    async fn session_of(&self, team: &str) -> Arc<Session> {
        let principal = Principal::Client(Client::member(self.id, name(team)));
        let made = self
            .app
            .create_session(&principal, &name(team), NewSession::default(), None, true)
            .await;
        let (session, _) = made.unwrap();
        assert_eq!(session.status.phase, Phase::Ready, "{:?}", session.status);
        session
    }

    /// The key of another team's.
    async fn other_key(&self, team: &str) -> String {
        let made = self
            .app
            .create_key(&OPERATOR, NewKey::member(name("k"), name(team)));
        made.await.unwrap().text.expose().clone()
    }

    /// Sends these bytes, and hears all that is said until the door closes the connection.
    async fn say(&self, text: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        stream.write_all(text.as_ref()).await.unwrap();
        let mut said = Vec::new();
        let heard = stream.read_to_end(&mut said);
        let _end = tokio::time::timeout(PATIENCE, heard).await.unwrap();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// One request by host name, with these headers (each with its line's end).
    async fn get(&self, session: &Session, port: u16, headers: &str) -> String {
        self.ask("GET / HTTP/1.1", session, port, headers).await
    }

    async fn ask(&self, line: &str, session: &Session, port: u16, headers: &str) -> String {
        let host = host(session, port);
        self.say(format!(
            "{line}\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n"
        ))
        .await
    }

    fn auth(&self) -> String {
        format!("x-api-key: {}\r\n", self.key)
    }

    async fn records(&self, kind: &str) -> Vec<AuditRecord> {
        let filter = AuditFilter {
            limit: 1000,
            kinds: vec![kind.to_owned()],
            ..AuditFilter::default()
        };
        let records = self.store.audit(filter).await.unwrap();
        records.into_iter().map(|(_, record)| record).collect()
    }

    /// Stops all of it, and waits for the end.
    async fn close(self) -> tempfile::TempDir {
        self.stop.cancel();
        for task in self.tasks {
            tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
        }
        self.directory
    }
}

fn host(session: &Session, port: u16) -> String {
    format!("{port}-{}.{DOMAIN}", session.id.suffix())
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

async fn app(directory: &tempfile::TempDir, store: &Store, wants: &Wants) -> App {
    let base = Template {
        name: name("base"),
        version: 1,
        origin: Origin::File,
        made_by: "test".into(),
        made_at: Timestamp::from_millis(0),
        spec: TemplateSpec {
            setup: wants.setup.clone(),
            ..TemplateSpec::new(IMAGE)
        },
    };
    let vault = casemate::credential::vault_of(store, None, directory.path())
        .await
        .unwrap();
    let links = Links::open(store, &vault).await.unwrap();
    let ground = Ground {
        runtime: Arc::new(FakeRuntime::new([IMAGE]).with_start_hook(Box::new(guest))),
        settings: Settings {
            sessions: SessionsConfig::default(),
            templates: BTreeMap::from([(name("base"), base)]),
        },
        ..Ground::new(store.clone(), vault, Arc::new(SystemClock))
    };
    App::new(Parts {
        pool: Pool::new(wants.endpoints.clone()),
        links,
        ..ground.parts(directory.path()).unwrap()
    })
}
