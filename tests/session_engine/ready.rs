//! Start commands and readiness, with a guest that plays one sandbox: what it is asked is written down, and what it answers
//! is the test's word.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, Bytes};
use casemate::model::event::{AuditEvent, Outcome, Stage};
use casemate::model::sandbox::SandboxSpec;
use casemate::model::session::{Phase, Reason, Session};
use casemate::model::setup::{Probe, Program, Readiness, Setup, StartCommand};
use casemate::model::template::TemplateSpec;
use casemate::runtime::fake::{FakeRuntime, Running};
use casemate::session::manager::{NewSession, Settings, is_settled};
use casemate::session::ready::START_TAG;
use casemate_link::guest::{Dialer, Introduction};
use casemate_link::handshake::KernelReport;
use casemate_link::port::OpenPort;
use casemate_link::process::{ProcessInfo, Started};
use casemate_link::refusal::code;
use casemate_link::wire::{Chunk, FrameReader, RequestFrame, ResponseFrame, TransferFrame};
use casemate_link::{OnDetach, ProcessExit, ProcessSpec, Refusal, route};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{AbortOnDrop, Bench, IMAGE, PATIENCE, of, template};

/// The guest's number of the start command.
const NUMBER: u64 = 1;

/// What goes on in a sandbox.
struct World {
    state: watch::Sender<State>,
    /// Hangs up; whoever dials next is another guest of the same sandbox.
    hang_up: Mutex<CancellationToken>,
}

#[derive(Clone, Default)]
struct State {
    /// Every start command that was asked for.
    starts: Vec<ProcessSpec>,
    /// Every other process that was asked for.
    tries: Vec<ProcessSpec>,
    /// Requests for the list of ports.
    looks: usize,
    /// Once the start command has ended.
    exit: Option<ProcessExit>,
    stderr: String,
    ports: Vec<u16>,
    is_file_there: bool,
    /// How the readiness command ends.
    code: i32,
    refusal: Option<Refusal>,
}

type Frames = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

impl World {
    fn new(state: State) -> Arc<Self> {
        Arc::new(Self {
            state: watch::Sender::new(state),
            hang_up: Mutex::default(),
        })
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    async fn until(&self, enough: impl Fn(&State) -> bool) -> State {
        let mut state = self.state.subscribe();
        let waited = tokio::time::timeout(PATIENCE, state.wait_for(enough)).await;
        waited.unwrap().unwrap().clone()
    }

    fn hang_up(&self) {
        let mut hang_up = self.hang_up.lock().unwrap();
        std::mem::take(&mut *hang_up).cancel();
    }

    /// A daemon whose template says this, and whose sandboxes are this one.
    fn bench(self: &Arc<Self>, setup: Setup) -> Bench {
        let world = Arc::clone(self);
        let hook = move |spec: &SandboxSpec| -> Running {
            Box::new(AbortOnDrop(tokio::spawn(live(
                Arc::clone(&world),
                spec.link_dir.clone(),
            ))))
        };
        let bench = Bench::with(FakeRuntime::new([IMAGE]).with_start_hook(Box::new(hook)));
        bench.say(setup);
        bench
    }

    fn info(&self) -> ProcessInfo {
        let state = self.state.borrow();
        serde_json::from_value(json!({
            "process": NUMBER, "pid": 3, "argv": ["serve"], "tag": START_TAG, "kept": true,
            "stderr_to": state.stderr.len(), "exit": state.exit,
        }))
        .unwrap()
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, frames: Frames) {
        let path = request.uri().path().to_owned();
        let body = request.into_body();
        match path.as_str() {
            route::PROCESS_LIST => {
                if !self.state.borrow().starts.is_empty() {
                    say(&frames, TransferFrame::item(&self.info()).unwrap()).await;
                }
                say(&frames, TransferFrame::End.encode().unwrap()).await;
            }
            route::PORT_LIST => {
                self.change(|state| state.looks += 1);
                let ports = self.state.borrow().ports.clone();
                for port in ports {
                    let open = OpenPort {
                        port,
                        address: [127, 0, 0, 1].into(),
                        uid: 1000,
                    };
                    say(&frames, TransferFrame::item(&open).unwrap()).await;
                }
                say(&frames, TransferFrame::End.encode().unwrap()).await;
            }
            route::FILE_STAT => {
                let is_there = self.state.borrow().is_file_there;
                self.change(|state| state.looks += 1);
                if is_there {
                    let entry = json!({"path": "/ready", "is_exact": true, "kind": "file", "size_bytes": 0,
                        "mode": 0o644, "uid": 0, "gid": 0, "modified_ms": 0, "etag": "x", "metadata": {}});
                    say(&frames, TransferFrame::item(&entry).unwrap()).await;
                    say(&frames, TransferFrame::End.encode().unwrap()).await;
                } else {
                    let no = refusal(code::FILE_NOT_FOUND, "there is no such file");
                    say(&frames, TransferFrame::Failed(no).encode().unwrap()).await;
                }
            }
            route::PROCESS_START | route::PROCESS_ATTACH => self.process(body, frames).await,
            // Nothing is said of what nobody waits for, as a detached process.
            _ => {}
        }
    }

    async fn process(&self, body: Incoming, frames: Frames) {
        let mut reader = FrameReader::<RequestFrame>::new(body);
        let started = |process| ResponseFrame::Started(Started { process, pid: 3 });
        match reader.next().await.unwrap().unwrap() {
            RequestFrame::Start(spec) if spec.tag.as_deref() == Some(START_TAG) => {
                let refusal = self.state.borrow().refusal.clone();
                if let Some(refusal) = refusal {
                    return say(&frames, ResponseFrame::Failed(refusal).encode().unwrap()).await;
                }
                self.change(|state| state.starts.push(*spec));
                say(&frames, started(NUMBER).encode().unwrap()).await;
                self.exit(&frames).await;
            }
            RequestFrame::Start(spec) => {
                self.change(|state| state.tries.push(*spec));
                say(&frames, started(99).encode().unwrap()).await;
                let exit = ended(self.state.borrow().code);
                say(&frames, ResponseFrame::Exited(exit).encode().unwrap()).await;
            }
            RequestFrame::Attach(request) => {
                let info = ResponseFrame::Attached(Box::new(self.info()));
                say(&frames, info.encode().unwrap()).await;
                if request.output {
                    let stderr = self.state.borrow().stderr.clone();
                    let rest = stderr[usize::try_from(request.stderr_offset).unwrap()..].to_owned();
                    let rest = ResponseFrame::Stderr(rest.into());
                    say(&frames, rest.encode().unwrap()).await;
                }
                self.exit(&frames).await;
            }
            _ => {}
        }
    }

    /// Says how the start command ended, when it has.
    async fn exit(&self, frames: &Frames) {
        let mut state = self.state.subscribe();
        let exit = tokio::select! {
            state = state.wait_for(|state| state.exit.is_some()) => state.unwrap().exit.unwrap(),
            () = frames.closed() => return,
        };
        say(frames, ResponseFrame::Exited(exit).encode().unwrap()).await;
    }
}

fn ended(code: i32) -> ProcessExit {
    ProcessExit {
        exit_code: Some(code),
        ..ProcessExit::default()
    }
}

fn refusal(code: &str, message: &str) -> Refusal {
    Refusal {
        code: code.into(),
        message: message.into(),
    }
}

async fn say(frames: &Frames, mut chunk: Chunk) {
    let bytes = chunk.copy_to_bytes(chunk.remaining());
    // Whoever asked may not want to hear it any more.
    let _ = frames.send(Ok(Frame::data(bytes))).await;
}

/// A guest of the world: dials, serves, and dials again when it was hung up.
async fn live(world: Arc<World>, directory: std::path::PathBuf) {
    let introduction = Introduction {
        guest_version: "test".into(),
        kernel: KernelReport::default(),
    };
    let mut dialer = Dialer::new(&directory, introduction);
    loop {
        let (stream, _) = dialer.dial(|_| {}).await;
        let hang_up = world.hang_up.lock().unwrap().clone();
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            let world = Arc::clone(&world);
            async move {
                let (frames, body) = mpsc::channel(4);
                tokio::spawn(world.answer(request, frames));
                let body = futures_util::stream::unfold(body, |mut body| async move {
                    body.recv().await.map(|frame| (frame, body))
                });
                let mut response = Response::new(StreamBody::new(Box::pin(body)));
                let kind = http::HeaderValue::from_static(route::FRAMES);
                response
                    .headers_mut()
                    .insert(http::header::CONTENT_TYPE, kind);
                Ok::<_, Infallible>(response)
            }
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::select! {
            _ended = server.serve_connection(TokioIo::new(stream), service) => {}
            () = hang_up.cancelled() => {}
        }
    }
}

impl Bench {
    /// Gives the template this.
    fn say(&self, setup: Setup) {
        let template = of(TemplateSpec {
            setup,
            ..template().spec
        });
        self.sessions.reload(Settings {
            sessions: self.config.clone(),
            templates: [(template.name.clone(), template)].into(),
        });
    }

    async fn settled(&self, session: &Session) -> Arc<Session> {
        self.until(session, is_settled).await
    }

    /// Makes a session that must fail; its explanation.
    async fn fails(&self) -> String {
        let session = self.create().await;
        let ended = self.ended(&session).await;
        assert_eq!(ended.status.phase, Phase::Failed, "{:?}", ended.status);
        assert_eq!(ended.status.reason, Some(Reason::LaunchFailed));
        assert_eq!(ended.ready_at, None);
        self.nothing_is_left();
        let message = ended.status.message.clone().unwrap();
        assert!(!message.contains(char::is_control), "{message:?}");
        message
    }
}

fn serve() -> StartCommand {
    StartCommand {
        program: Program::Argv(vec!["serve".into(), "hush".into()]),
        env: [("A".to_owned(), "start".to_owned())].into(),
        cwd: None,
        user: None,
    }
}

fn when(probe: Probe) -> Readiness {
    Readiness {
        probe,
        timeout_s: 60,
        interval_ms: 50,
    }
}

fn setup(probe: Probe) -> Setup {
    Setup {
        user: Some("app".into()),
        start: Some(serve()),
        ready: Some(when(probe)),
        ports: vec![8000],
        ..Setup::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_ready_when_its_start_command_has_opened_its_port() {
    let world = World::new(State::default());
    let bench = world.bench(setup(Probe::Port(8000)));
    let new = NewSession {
        env: [
            ("A".into(), "session".into()),
            ("B".into(), "session".into()),
        ]
        .into(),
        workdir: Some("/srv".into()),
        ..NewSession::default()
    };
    let session = bench.try_create(new).await.unwrap();
    // It has looked in vain, and more than once.
    let state = world.until(|state| state.looks > 2).await;
    assert_eq!(state.starts.len(), 1);
    let now = bench.sessions.get(session.id).await.unwrap();
    assert_eq!(now.status.phase, Phase::Starting);
    let start = &state.starts[0];
    assert_eq!(start.argv, ["serve", "hush"]);
    assert_eq!(start.env["A"], "start");
    assert_eq!(start.env["B"], "session");
    assert_eq!(start.cwd.as_deref(), Some("/srv"));
    assert_eq!(start.user.as_deref(), Some("app"));
    assert_eq!(start.on_detach, OnDetach::Keep);
    assert!(!start.stdin);

    world.change(|state| state.ports = vec![22, 8000]);
    let ready = bench.settled(&session).await;
    assert_eq!(ready.status.phase, Phase::Ready, "{:?}", ready.status);
    assert_eq!(ready.spec.template_version, 1);
    assert_eq!(ready.spec.setup.ports, [8000]);
    let created = bench
        .audit()
        .await
        .into_iter()
        .find(|record| record.stage == Stage::Intent && record.session == Some(session.id));
    assert!(matches!(
        created.unwrap().event,
        AuditEvent::SessionCreate {
            version: Some(1),
            ..
        }
    ));
    bench.sessions.end_all(PATIENCE).await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_ready_when_its_file_is_there_or_its_command_succeeds() {
    let world = World::new(State::default());
    let bench = world.bench(setup(Probe::File("/ready".into())));
    let session = bench.create().await;
    world.until(|state| state.looks > 1).await;
    world.change(|state| state.is_file_there = true);
    let ready = bench.settled(&session).await;
    assert_eq!(ready.status.phase, Phase::Ready, "{:?}", ready.status);
    bench.sessions.end_all(PATIENCE).await;

    let world = World::new(State {
        code: 1,
        ..State::default()
    });
    let bench = world.bench(setup(Probe::Command("test -e hush".into())));
    let session = bench.create().await;
    let state = world.until(|state| state.tries.len() > 1).await;
    let one = &state.tries[0];
    let line = one.shell.as_ref().unwrap().command.as_deref();
    assert_eq!(line, Some("test -e hush"));
    assert_eq!(one.user.as_deref(), Some("app"));
    assert!(one.timeout_ms.unwrap() <= 10_000);
    assert_eq!(one.on_detach, OnDetach::Kill);
    world.change(|state| state.code = 0);
    let ready = bench.settled(&session).await;
    assert_eq!(ready.status.phase, Phase::Ready, "{:?}", ready.status);
    bench.sessions.end_all(PATIENCE).await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_not_ready_in_time_fails_and_says_what_it_waited_for() {
    let world = World::new(State {
        stderr: format!("{}\nhalf \x1b[31mway\nstuck\n", "x".repeat(4000)),
        code: 1,
        ..State::default()
    });
    let bench = world.bench(Setup {
        ready: Some(Readiness {
            timeout_s: 1,
            ..when(Probe::Port(8000))
        }),
        ..setup(Probe::Port(8000))
    });
    let message = bench.fails().await;
    assert!(message.contains("port 8000"), "{message}");
    assert!(message.contains("1 s"), "{message}");
    assert!(message.ends_with("half  [31mway | stuck"), "{message}");
    assert!(message.len() < 1024, "{message}");
    let records = bench.audit().await;
    let outcome = records.iter().find_map(|record| record.outcome.clone());
    let code = "launch_failed".to_owned();
    assert_eq!(outcome, Some(Outcome::Failed { code }));

    for (probe, words) in [
        (Probe::File("/run/x".into()), "the file /run/x"),
        (Probe::Command("hush".into()), "the readiness command"),
    ] {
        bench.say(Setup {
            start: None,
            ready: Some(Readiness {
                timeout_s: 1,
                ..when(probe)
            }),
            ..Setup::default()
        });
        let message = bench.fails().await;
        assert!(message.contains(words), "{message}");
        assert!(!message.contains("hush"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_command_that_fails_ends_its_session_at_once_with_its_last_lines() {
    let world = World::new(State {
        stderr: "Traceback\nno module named app\n".into(),
        exit: Some(ended(1)),
        ..State::default()
    });
    let bench = world.bench(setup(Probe::Port(8000)));
    let before = tokio::time::Instant::now();
    let message = bench.fails().await;
    assert!(message.contains("exit code 1"), "{message}");
    assert!(
        message.ends_with("Traceback | no module named app"),
        "{message}"
    );
    assert!(!message.contains("hush"), "{message}");
    assert!(before.elapsed() < Duration::from_secs(30), "it waited");

    world.change(|state| state.refusal = Some(refusal(code::NOT_FOUND, "no such program")));
    world.change(|state| state.starts.clear());
    let message = bench.fails().await;
    assert!(message.contains("no such program"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_command_that_ends_with_0_may_have_left_what_is_waited_for_behind() {
    let world = World::new(State {
        exit: Some(ended(0)),
        ..State::default()
    });
    let bench = world.bench(setup(Probe::Port(8000)));
    let session = bench.create().await;
    world.until(|state| state.looks > 1).await;
    world.change(|state| state.ports = vec![8000]);
    let ready = bench.settled(&session).await;
    assert_eq!(ready.status.phase, Phase::Ready, "{:?}", ready.status);
    bench.sessions.end_all(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_takes_over_in_the_middle_does_not_start_it_twice() {
    let world = World::new(State::default());
    let mut bench = world.bench(setup(Probe::Port(8000)));
    let session = bench.create().await;
    world.until(|state| state.looks > 0).await;
    bench.sessions.leave_all(PATIENCE).await;

    bench.next_daemon();
    bench.sessions.reconcile().await.unwrap();
    let looks = world.state.borrow().looks;
    world.until(|state| state.looks > looks).await;
    let now = bench.sessions.get(session.id).await.unwrap();
    assert_eq!(now.status.phase, Phase::Starting, "it is not ready yet");
    world.change(|state| state.ports = vec![8000]);
    let ready = bench.settled(&session).await;
    assert_eq!(ready.status.phase, Phase::Ready, "{:?}", ready.status);
    assert_eq!(world.state.borrow().starts.len(), 1, "it was started twice");

    // A session that was ready is not opened up again.
    bench.sessions.leave_all(PATIENCE).await;
    let looks = world.state.borrow().looks;
    bench.next_daemon();
    bench.sessions.reconcile().await.unwrap();
    let handle = bench.sessions.handle(session.id).unwrap();
    handle.link(PATIENCE).await.unwrap();
    assert_eq!(world.state.borrow().looks, looks);
    bench.sessions.end_all(PATIENCE).await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_lost_in_the_middle_is_not_the_end() {
    let world = World::new(State::default());
    let bench = world.bench(setup(Probe::Port(8000)));
    let session = bench.create().await;
    world.until(|state| state.looks > 0).await;
    world.hang_up();
    let looks = world.state.borrow().looks;
    world.until(|state| state.looks > looks).await;
    world.change(|state| state.ports = vec![8000]);
    let ready = bench.settled(&session).await;
    assert_eq!(ready.status.phase, Phase::Ready, "{:?}", ready.status);
    assert_eq!(world.state.borrow().starts.len(), 1, "it was started twice");
    bench.sessions.end_all(PATIENCE).await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_readiness_keeps_no_other_launch_waiting_and_can_be_ended() {
    let world = World::new(State::default());
    let bench = world.bench(setup(Probe::Port(8000)));
    let waiting: Vec<_> = {
        let mut waiting = Vec::new();
        for _ in 0..bench.config.concurrent_launches {
            waiting.push(bench.create().await);
        }
        waiting
    };
    world.until(|state| state.looks >= waiting.len()).await;
    bench.say(Setup::default());
    bench.ready().await;
    for session in &waiting {
        let ended = bench
            .sessions
            .end(session.id, Reason::Client, PATIENCE)
            .await
            .unwrap();
        assert_eq!(ended.status.phase, Phase::Stopped);
    }
    bench.sessions.end_all(PATIENCE).await;
    bench.nothing_is_left();
}
