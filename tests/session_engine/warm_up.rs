//! Warm-ups: done live or begun as a checkpoint, with a guest that plays each sandbox and writes down what it was asked.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, Bytes};
use casemate::model::sandbox::{GIB, SandboxSpec, WantedLimits, Warmth};
use casemate::model::session::{Phase, Reason, Session};
use casemate::model::setup::{Program, Setup, StartCommand, WarmUp};
use casemate::model::template::{Template, TemplateSpec};
use casemate::runtime::SandboxRuntime;
use casemate::runtime::fake::{FakeCall, FakeFailure, FakeRuntime, Running};
use casemate::session::checkpoints::CheckpointState;
use casemate::session::manager::{NewSession, Settings, is_settled};
use casemate::session::ready::WARM_UP_TAG;
use casemate_link::guest::{Dialer, Introduction};
use casemate_link::handshake::KernelReport;
use casemate_link::process::{ProcessInfo, SignalRequest, Started};
use casemate_link::warm_up::{Identity, IdentityRequest};
use casemate_link::wire::{Chunk, FrameReader, RequestFrame, ResponseFrame, TransferFrame};
use casemate_link::{ProcessExit, ProcessSpec, route};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::sync::Notify;

use crate::{AbortOnDrop, Bench, IMAGE, PATIENCE, of, template};

/// What happened in all sandboxes, in order.
#[derive(Default)]
struct World {
    /// What each began as.
    begun: Mutex<Vec<Warmth>>,
    /// Every warm-up that was asked for.
    warmed: Mutex<Vec<ProcessSpec>>,
    names: Mutex<Vec<String>>,
    signals: Mutex<Vec<i32>>,
    /// Whether a sandbox that should begin as a checkpoint does.
    restores: bool,
    /// Whether the guest keeps what it should give up.
    is_privileged: bool,
    /// How a warm-up ends.
    code: i32,
}

impl World {
    fn bench(self: &Arc<Self>) -> Bench {
        let world = Arc::clone(self);
        let hook = move |spec: &SandboxSpec| -> Running {
            world.begun.lock().unwrap().push(spec.warmth.clone());
            Box::new(AbortOnDrop(tokio::spawn(live(
                Arc::clone(&world),
                spec.clone(),
            ))))
        };
        let bench = Bench::with(FakeRuntime::new([IMAGE]).with_start_hook(Box::new(hook)));
        bench.warms_up(1, 0);
        bench
    }

    fn warmed(&self) -> usize {
        self.warmed.lock().unwrap().len()
    }

    /// How many sandboxes were to begin as a checkpoint.
    fn restored(&self) -> usize {
        let begun = self.begun.lock().unwrap();
        let restored = begun
            .iter()
            .filter(|one| matches!(one, Warmth::Restored(_)));
        restored.count()
    }

    async fn answer(&self, request: Request<Incoming>, is_restored: bool) -> Vec<u8> {
        let path = request.uri().path().to_owned();
        let body = request.into_body();
        match path.as_str() {
            route::IDENTITY => {
                let asked: IdentityRequest = read(body).await;
                self.names.lock().unwrap().push(asked.hostname.clone());
                let is_privileged = self.is_privileged;
                let hostname = asked.hostname;
                serde_json::to_vec(&Identity {
                    hostname,
                    is_restored,
                    is_privileged,
                })
                .unwrap()
            }
            route::PROCESS_SIGNAL => {
                let asked: SignalRequest = read(body).await;
                self.signals.lock().unwrap().push(asked.signum);
                b"{}".to_vec()
            }
            route::PROCESS_LIST => bytes(TransferFrame::End.encode().unwrap()),
            route::PROCESS_START | route::PROCESS_ATTACH => self.process(body).await,
            _ => b"{}".to_vec(),
        }
    }

    async fn process(&self, body: Incoming) -> Vec<u8> {
        let mut reader = FrameReader::<RequestFrame>::new(body);
        let asked = reader.next().await.unwrap().unwrap();
        let first = if let RequestFrame::Start(spec) = asked {
            if spec.tag.as_deref() == Some(WARM_UP_TAG) {
                self.warmed.lock().unwrap().push(*spec);
            }
            ResponseFrame::Started(Started { process: 1, pid: 3 })
        } else {
            let info =
                json!({"process": 1, "pid": 3, "argv": ["warm"], "tag": WARM_UP_TAG, "kept": true});
            let info: ProcessInfo = serde_json::from_value(info).unwrap();
            ResponseFrame::Attached(Box::new(info))
        };
        let exit = ResponseFrame::Exited(ProcessExit {
            exit_code: Some(self.code),
            ..ProcessExit::default()
        });
        [first, exit]
            .into_iter()
            .flat_map(|frame| bytes(frame.encode().unwrap()))
            .collect()
    }
}

async fn read<T: serde::de::DeserializeOwned>(body: Incoming) -> T {
    serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap()
}

fn bytes(mut chunk: Chunk) -> Vec<u8> {
    chunk.copy_to_bytes(chunk.remaining()).to_vec()
}

/// A guest: dials, serves, rests when it is asked to.
async fn live(world: Arc<World>, spec: SandboxSpec) {
    let introduction = Introduction {
        guest_version: "test".into(),
        kernel: KernelReport::default(),
    };
    let mut dialer = Dialer::new(&spec.link_dir, introduction);
    let is_restored = world.restores && matches!(spec.warmth, Warmth::Restored(_));
    loop {
        let (stream, _) = dialer.dial(|_| {}).await;
        let rest = Arc::new(Notify::new());
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            let (world, rest) = (Arc::clone(&world), Arc::clone(&rest));
            async move {
                let path = request.uri().path().to_owned();
                let answer = world.answer(request, is_restored).await;
                let kind = match path.as_str() {
                    route::PROCESS_LIST | route::PROCESS_START | route::PROCESS_ATTACH => {
                        route::FRAMES
                    }
                    _ => route::JSON,
                };
                if path == route::REST {
                    rest.notify_one();
                }
                let mut response = Response::new(Full::new(Bytes::from(answer)));
                let kind = http::HeaderValue::from_static(kind);
                response
                    .headers_mut()
                    .insert(http::header::CONTENT_TYPE, kind);
                Ok::<_, Infallible>(response)
            }
        });
        let farewell = async {
            rest.notified().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::select! {
            _ended = server.serve_connection(TokioIo::new(stream), service) => {}
            () = farewell => dialer.rest().await,
        }
    }
}

fn recipe(pool: u32) -> TemplateSpec {
    TemplateSpec {
        env: [("A".to_owned(), "template".to_owned())].into(),
        pool,
        setup: Setup {
            warm_up: Some(WarmUp {
                run: StartCommand {
                    program: Program::Argv(vec!["warm".into()]),
                    env: [("B".to_owned(), "own".to_owned())].into(),
                    cwd: None,
                    user: None,
                },
                ready: None,
                signal: Some(10),
            }),
            ..Setup::default()
        },
        ..template().spec
    }
}

impl Bench {
    /// The template warms up in this version.
    fn warms_up(&self, version: u32, pool: u32) -> Template {
        let mut template = of(recipe(pool));
        template.version = version;
        self.sessions.reload(Settings {
            sessions: self.config.clone(),
            templates: [("base".parse().unwrap(), template.clone())].into(),
        });
        template
    }

    /// Waits until the checkpoint of the template is as it should be.
    async fn checkpoint(&self, is_so: impl Fn(&CheckpointState) -> bool) -> CheckpointState {
        let found = async {
            loop {
                let template = self.sessions.settings().templates.values().next().cloned();
                let state = self.sessions.checkpoint(&template.unwrap());
                if is_so(&state) {
                    return state;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap()
    }

    async fn there(&self) {
        let there = |state: &CheckpointState| matches!(state, CheckpointState::There { .. });
        self.checkpoint(there).await;
    }

    async fn brought_up_with(&self, new: NewSession) -> Arc<Session> {
        let session = self.try_create(new).await.unwrap();
        let session = self.until(&session, is_settled).await;
        assert_eq!(session.status.phase, Phase::Ready, "{:?}", session.status);
        session
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_live_at_first_is_begun_as_a_checkpoint_later_with_the_same_words() {
    let world = Arc::new(World {
        restores: true,
        ..World::default()
    });
    let bench = world.bench();
    let keeper = bench.keeper();
    let new = || NewSession {
        env: [("A".into(), "session".into())].into(),
        ..NewSession::default()
    };
    let first = bench.brought_up_with(new()).await;
    bench.there().await;
    // For the session, and for the checkpoint: neither knew anything of a session.
    {
        let warmed = world.warmed.lock().unwrap();
        assert_eq!(warmed.len(), 2);
        for spec in warmed.iter() {
            let env: Vec<_> = spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
            assert_eq!(
                (&spec.argv[..], &env[..]),
                (
                    &["warm".to_owned()][..],
                    &["A=template".to_owned(), "B=own".to_owned()][..]
                )
            );
        }
    }
    assert_eq!(bench.runtime.count(), 1, "its maker is gone");
    let second = bench.brought_up_with(new()).await;
    let named = bench
        .brought_up_with(NewSession {
            name: Some("mine".parse().unwrap()),
            ..new()
        })
        .await;
    assert_eq!((world.warmed(), world.restored()), (2, 2));
    let other = bench
        .brought_up_with(NewSession {
            limits: WantedLimits {
                memory_bytes: Some(2 * GIB),
                ..WantedLimits::default()
            },
            ..new()
        })
        .await;
    assert_eq!((world.warmed(), world.restored()), (3, 2));
    let name = |session: &Session| format!("ses-{}", session.id.suffix());
    let told = world.names.lock().unwrap().clone();
    assert_eq!(
        told,
        [name(&first), name(&second), "mine".into(), name(&other)]
    );
    // Each was woken, and the checkpoint's own sandbox was not.
    assert_eq!(*world.signals.lock().unwrap(), [10; 4]);

    // The next version has another, and the one before goes.
    let before = bench.link_entries();
    bench.warms_up(2, 0);
    let gone = async {
        while before
            .iter()
            .filter(|path| path.extension().is_some_and(|end| end == "checkpoint"))
            .any(|path| path.exists())
        {
            bench.sessions.sweep().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    assert_eq!(bench.runtime.checkpoints().await.unwrap(), []);
    for session in [first, second, named, other] {
        bench.end(&session).await;
    }
    keeper.stop().await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_fails_is_a_session_that_took_longer() {
    let world = Arc::new(World {
        restores: true,
        ..World::default()
    });
    let bench = world.bench();
    let keeper = bench.keeper();
    let first = bench.brought_up_with(NewSession::default()).await;
    bench.there().await;
    bench.runtime.fail(FakeCall::Start, 1, FakeFailure::Refused);
    let second = bench.brought_up_with(NewSession::default()).await;
    assert_eq!(bench.runtime.count(), 2);
    assert_eq!(world.warmed(), 3);
    let failed = bench
        .checkpoint(|state| matches!(state, CheckpointState::Failed { .. }))
        .await;
    assert!(format!("{failed:?}").contains("restored"), "{failed:?}");
    // It is not tried again at once.
    let third = bench.brought_up_with(NewSession::default()).await;
    assert_eq!(world.warmed(), 4);
    // podman's being away is nobody's fault but podman's.
    bench
        .runtime
        .fail(FakeCall::Start, 1, FakeFailure::Unavailable);
    let lost = bench.create().await;
    let lost = bench.ended(&lost).await;
    assert_eq!(lost.status.reason, Some(Reason::RuntimeUnavailable));
    for session in [first, second, third] {
        bench.end(&session).await;
    }
    keeper.stop().await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_not_begun_as_is_made_again() {
    let world = Arc::new(World::default());
    let bench = world.bench();
    let keeper = bench.keeper();
    let first = bench.brought_up_with(NewSession::default()).await;
    bench.there().await;
    let made = bench.runtime.calls(FakeCall::Checkpoint);
    // Its guest says that it began from nothing: on other ground, or without a checkpoint that was there.
    let second = bench.brought_up_with(NewSession::default()).await;
    assert_eq!(world.restored(), 1);
    bench.asked_again(FakeCall::Checkpoint, made).await;
    bench.there().await;
    for session in [first, second] {
        bench.end(&session).await;
    }
    keeper.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shelves_wait_for_the_checkpoint_and_the_next_daemon_finds_it() {
    let world = Arc::new(World {
        restores: true,
        ..World::default()
    });
    let mut bench = world.bench();
    bench.warms_up(1, 2);
    let keeper = bench.keeper();
    bench.stand_ready(2).await;
    assert_eq!((world.warmed(), world.restored()), (1, 2));
    let session = bench.brought_up_with(NewSession::default()).await;
    assert_eq!(session.status.generation, 2);
    bench.stand_ready(2).await;
    assert_eq!((world.warmed(), world.restored()), (1, 3));
    bench.end(&session).await;
    keeper.stop().await;
    assert_eq!(bench.link_entries().len(), 1);

    // One whose maker was killed before it was there is forgotten.
    let link = bench.link_entries()[0].parent().unwrap().to_owned();
    let stray = link.join("ses_01m833vc9652sz4b25jeywrq23.checkpoint");
    std::fs::write(&stray, r#"{"team":null,"template":"base","version":1}"#).unwrap();
    bench.next_daemon();
    bench.warms_up(1, 1);
    bench.sessions.reconcile().await.unwrap();
    let keeper = bench.keeper();
    bench.stand_ready(1).await;
    assert_eq!((world.warmed(), world.restored()), (1, 4));
    assert!(!stray.exists());
    keeper.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_leaves_nothing_and_is_said() {
    let world = Arc::new(World::default());
    let bench = world.bench();
    let keeper = bench.keeper();
    bench
        .runtime
        .fail(FakeCall::Checkpoint, 1, FakeFailure::Refused);
    let session = bench.brought_up_with(NewSession::default()).await;
    let failed = bench
        .checkpoint(|state| matches!(state, CheckpointState::Failed { .. }))
        .await;
    assert!(
        format!("{failed:?}").contains("it was told to"),
        "{failed:?}"
    );
    let again = bench.brought_up_with(NewSession::default()).await;
    assert_eq!(
        (world.restored(), bench.runtime.calls(FakeCall::Checkpoint)),
        (0, 1)
    );
    for session in [session, again] {
        bench.end(&session).await;
    }
    keeper.stop().await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_up_that_fails_and_a_guest_that_keeps_its_capability_end_the_session() {
    for (world, says) in [
        (
            World {
                code: 3,
                ..World::default()
            },
            "the warm-up ended with exit code 3",
        ),
        (
            World {
                is_privileged: true,
                ..World::default()
            },
            "CAP_SYS_ADMIN",
        ),
    ] {
        let world = Arc::new(world);
        let bench = world.bench();
        let session = bench.create().await;
        let ended = bench.ended(&session).await;
        assert_eq!(ended.status.reason, Some(Reason::LaunchFailed));
        let message = ended.status.message.clone().unwrap();
        assert!(message.contains(says), "{message}");
        bench.nothing_is_left();
    }
}
