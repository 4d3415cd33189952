//! The session engine on the fake runtime, with a guest that really dials: each step of a launch
//! fails, is interrupted or loses its answer, and afterwards nothing is left.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use casemate::audit::AuditLog;
use casemate::base::clock::SystemClock;
use casemate::model::event::{AuditEvent, Outcome, Stage};
use casemate::model::image::ImageDigest;
use casemate::model::name::Name;
use casemate::model::principal::Principal;
use casemate::model::query::AuditFilter;
use casemate::model::sandbox::{GIB, Limits, SandboxSpec};
use casemate::model::session::{Phase, Reason, Session};
use casemate::model::settings::SessionsConfig;
use casemate::model::template::Template;
use casemate::runtime::SandboxRuntime;
use casemate::runtime::fake::{FakeCall, FakeFailure, FakeRuntime, Running};
use casemate::session::SessionError;
use casemate::session::launch::End;
use casemate::session::manager::{NewSession, Parts, Sessions, Settings, is_settled};
use casemate::store::Store;
use casemate_link::guest::{Dialer, Introduction};
use casemate_link::handshake::KernelReport;
use hyper_util::rt::{TokioExecutor, TokioIo};

/// Nothing here takes long; whatever does is broken.
const PATIENCE: Duration = Duration::from_secs(20);

const IMAGE: ImageDigest = ImageDigest::from_bytes([7; 32]);

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A guest that dials for ever and answers nothing but that it knows nothing.
fn guest(spec: &SandboxSpec) -> Running {
    let directory = spec.link_dir.clone();
    Box::new(AbortOnDrop(tokio::spawn(async move {
        let introduction = Introduction {
            guest_version: "test".into(),
            kernel: KernelReport {
                release: String::new(),
                version: String::new(),
                banner: String::new(),
            },
        };
        let mut dialer = Dialer::new(&directory, introduction);
        loop {
            let (stream, _) = dialer.dial(|_| {}).await;
            let service = hyper::service::service_fn(|_| async {
                let mut answer = http::Response::new(http_body_util::Empty::<bytes::Bytes>::new());
                *answer.status_mut() = http::StatusCode::NOT_FOUND;
                Ok::<_, Infallible>(answer)
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // However it ends: dial again.
            let _ended = server.serve_connection(TokioIo::new(stream), service).await;
        }
    })))
}

struct Bench {
    directory: tempfile::TempDir,
    runtime: Arc<FakeRuntime>,
    store: Store,
    sessions: Sessions,
    config: SessionsConfig,
}

impl Bench {
    fn new() -> Self {
        Self::with(FakeRuntime::new([IMAGE]).with_start_hook(Box::new(guest)))
    }

    fn with(runtime: FakeRuntime) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        let config = SessionsConfig {
            link_timeout: Duration::from_secs(2),
            reattach_timeout: Duration::from_secs(2),
            ..SessionsConfig::default()
        };
        std::fs::create_dir(directory.path().join("link")).unwrap();
        let runtime = Arc::new(runtime);
        let sessions = sessions(&directory, &runtime, &store, &config);
        Self {
            directory,
            runtime,
            store,
            sessions,
            config,
        }
    }

    /// Another daemon on the same state and machine.
    fn next_daemon(&mut self) {
        self.sessions = sessions(&self.directory, &self.runtime, &self.store, &self.config);
    }

    async fn try_create(&self, new: NewSession) -> Result<Arc<Session>, SessionError> {
        let created = self.sessions.create(&member(), &team(), new, None).await;
        created.map(|(session, _)| session)
    }

    async fn create(&self) -> Arc<Session> {
        self.try_create(NewSession::default()).await.unwrap()
    }

    async fn until(&self, session: &Session, enough: impl Fn(&Session) -> bool) -> Arc<Session> {
        match self.sessions.handle(session.id) {
            Some(handle) => handle.wait_until(PATIENCE, enough).await,
            None => self.sessions.get(session.id).await.unwrap(),
        }
    }

    async fn ready(&self) -> Arc<Session> {
        let session = self.create().await;
        let session = self.until(&session, is_settled).await;
        assert_eq!(session.status.phase, Phase::Ready, "{:?}", session.status);
        session
    }

    async fn ended(&self, session: &Session) -> Arc<Session> {
        let session = self
            .until(session, |session| session.ended_at.is_some())
            .await;
        assert!(session.status.phase.is_final(), "{:?}", session.status);
        session
    }

    fn link_entries(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory.path().join("link")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    fn doors(&self) -> Vec<PathBuf> {
        let mut doors = self.link_entries();
        doors.retain(|path| path.is_dir());
        doors
    }

    /// The directory that a session's sandbox sees, and the daemon's own copy of its token.
    fn door_of(&self, session: &Session) -> (PathBuf, PathBuf) {
        let directory = self
            .directory
            .path()
            .join("link")
            .join(session.id.to_string());
        let token = directory.with_added_extension("token");
        (directory, token)
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.runtime.count(), 0, "a sandbox is left");
        assert_eq!(
            self.link_entries(),
            Vec::<PathBuf>::new(),
            "a link directory or a token is left"
        );
    }

    async fn audit(&self) -> Vec<casemate::model::event::AuditRecord> {
        let filter = AuditFilter {
            limit: 1000,
            ..AuditFilter::default()
        };
        let records = self.store.audit(filter).await.unwrap();
        records.into_iter().map(|(_, record)| record).collect()
    }
}

fn sessions(
    directory: &tempfile::TempDir,
    runtime: &Arc<FakeRuntime>,
    store: &Store,
    config: &SessionsConfig,
) -> Sessions {
    let clock = Arc::new(SystemClock);
    let runtime: Arc<dyn SandboxRuntime> = Arc::<FakeRuntime>::clone(runtime);
    Sessions::new(Parts {
        runtime,
        store: store.clone(),
        audit: AuditLog::new(store.clone(), clock.clone()),
        clock,
        link_root: directory.path().join("link"),
        settings: Settings {
            sessions: config.clone(),
            templates: BTreeMap::from([("base".parse().unwrap(), template())]),
        },
    })
}

fn template() -> Template {
    Template {
        name: "base".parse().unwrap(),
        image: IMAGE,
        limits: Limits::default(),
        max_limits: Limits {
            memory_bytes: 2 * GIB,
            ..Limits::default()
        },
        allow_root: false,
        env: BTreeMap::new(),
        workdir: None,
        timeout_s: 60,
        max_timeout_s: 120,
    }
}

fn team() -> Name {
    "default".parse().unwrap()
}

fn member() -> Principal {
    Principal::Key {
        id: casemate::base::id::KeyId::from_bytes([1; 16]),
        team: team(),
    }
}

fn named(name: &str) -> NewSession {
    NewSession {
        name: Some(name.parse().unwrap()),
        ..NewSession::default()
    }
}

fn by_client() -> End {
    End {
        reason: Reason::Client,
        message: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lives_and_leaves_nothing() {
    let bench = Bench::new();
    let session = bench.ready().await;
    assert_eq!(bench.doors().len(), 1);
    bench
        .sessions
        .handle(session.id)
        .unwrap()
        .link(PATIENCE)
        .await
        .unwrap();
    let ended = bench
        .sessions
        .end(session.id, Reason::Client, PATIENCE)
        .await
        .unwrap();
    assert_eq!(ended.status.phase, Phase::Stopped);
    assert_eq!(ended.status.reason, Some(Reason::Client));
    assert_eq!(ended.sandbox, None);
    bench.nothing_is_left();
    let again = bench
        .sessions
        .end(session.id, Reason::Client, PATIENCE)
        .await
        .unwrap();
    assert_eq!(again.ended_at, ended.ended_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_phase_is_recorded_with_the_creation_s_intent_and_outcome() {
    let bench = Bench::new();
    let session = bench.ready().await;
    bench
        .sessions
        .end(session.id, Reason::Client, PATIENCE)
        .await
        .unwrap();
    let records = bench.audit().await;
    let phases: Vec<_> = records
        .iter()
        .filter_map(|record| match record.event {
            AuditEvent::SessionPhase { from, to, .. } => Some((from, to)),
            _ => None,
        })
        .collect();
    assert_eq!(
        phases,
        [
            (Phase::Pending, Phase::Starting),
            (Phase::Starting, Phase::Ready),
            (Phase::Ready, Phase::Stopping),
            (Phase::Stopping, Phase::Stopped),
        ]
    );
    assert_eq!(records[0].stage, Stage::Intent);
    let outcome = records
        .iter()
        .find(|record| record.stage == Stage::Outcome)
        .unwrap();
    assert_eq!(outcome.intent, Some(records[0].id));
    assert_eq!(outcome.outcome, Some(Outcome::Ok { detail: None }));
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_step_of_a_launch_fails_nothing_is_left() {
    let failures = [
        (FakeCall::Create, FakeFailure::Unavailable),
        (FakeCall::Create, FakeFailure::AnswerLost),
        (FakeCall::Create, FakeFailure::Refused),
        (FakeCall::Create, FakeFailure::NotAsAsked),
        (FakeCall::Start, FakeFailure::Unavailable),
        (FakeCall::Start, FakeFailure::AnswerLost),
        (FakeCall::Start, FakeFailure::Refused),
    ];
    for (call, failure) in failures {
        let bench = Bench::new();
        bench.runtime.fail(call, 1, failure);
        let session = bench.create().await;
        let ended = bench.ended(&session).await;
        assert_eq!(ended.status.phase, Phase::Failed, "{call:?} {failure:?}");
        // Who can mend it: whoever waits for podman, or an operator.
        let reason = match failure {
            FakeFailure::Unavailable | FakeFailure::AnswerLost => Reason::RuntimeUnavailable,
            _ => Reason::LaunchFailed,
        };
        assert_eq!(ended.status.reason, Some(reason), "{call:?} {failure:?}");
        assert!(ended.status.message.is_some());
        bench.nothing_is_left();
        let records = bench.audit().await;
        let outcome = records.iter().find_map(|record| record.outcome.clone());
        let code = reason.as_str().to_owned();
        assert_eq!(
            outcome,
            Some(Outcome::Failed { code }),
            "{call:?} {failure:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_dials_fails_the_launch_with_its_last_words() {
    let runtime = FakeRuntime::new([IMAGE]).with_start_hook(Box::new(|_| Box::new(())));
    let mut bench = Bench::with(runtime);
    bench.config.link_timeout = Duration::from_millis(200);
    bench.next_daemon();
    let session = bench.create().await;
    let starting = bench
        .until(&session, |session| session.sandbox.is_some())
        .await;
    bench.runtime.say(
        starting.sandbox.as_ref().unwrap(),
        "I have lost\x1b[31m my way",
    );
    let ended = bench.ended(&session).await;
    assert_eq!(ended.status.reason, Some(Reason::LaunchFailed));
    let message = ended.status.message.clone().unwrap();
    assert!(
        message.contains("did not dial") && message.contains("I have lost"),
        "{message}"
    );
    assert!(
        !message.contains('\x1b'),
        "a terminal's language must not get out"
    );
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_dies_before_it_links_fails_at_once() {
    let runtime = FakeRuntime::new([IMAGE]).with_start_hook(Box::new(|_| Box::new(())));
    let bench = Bench::with(runtime);
    let session = bench.create().await;
    let starting = bench
        .until(&session, |session| session.sandbox.is_some())
        .await;
    let sandbox = starting.sandbox.clone().unwrap();
    // It can only die once it runs.
    while bench.runtime.calls(FakeCall::Wait) == 0 {
        tokio::task::yield_now().await;
    }
    bench.runtime.die(&sandbox, 3);
    let ended = bench.ended(&session).await;
    assert_eq!(ended.status.reason, Some(Reason::LaunchFailed));
    assert!(
        ended
            .status
            .message
            .clone()
            .unwrap()
            .contains("exit code 3")
    );
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_interrupts_whatever_a_launch_is_doing() {
    for call in [FakeCall::Create, FakeCall::Start] {
        let bench = Bench::new();
        bench.runtime.fail(call, 1, FakeFailure::Hangs);
        let session = bench.create().await;
        while bench.runtime.calls(call) == 0 {
            tokio::task::yield_now().await;
        }
        let ended = bench
            .sessions
            .end(session.id, Reason::Client, PATIENCE)
            .await
            .unwrap();
        assert_eq!(ended.status.phase, Phase::Stopped, "{call:?}");
        bench.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_is_made_while_its_session_ends_is_not_forgotten() {
    // podman goes on making it although nobody waits any more; it is there only after the session
    // was asked to end.
    let bench = Bench::new();
    bench.runtime.fail(FakeCall::Create, 1, FakeFailure::Late);
    let session = bench.create().await;
    while bench.runtime.calls(FakeCall::Create) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.runtime.count(), 0);
    let ended = bench
        .sessions
        .end(session.id, Reason::Client, PATIENCE)
        .await
        .unwrap();
    assert_eq!(ended.status.phase, Phase::Stopped);
    while bench.runtime.made() == 0 {
        tokio::task::yield_now().await;
    }
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_asked_before_the_first_step_is_heard() {
    let bench = Bench::new();
    let session = bench.create().await;
    bench.sessions.handle(session.id).unwrap().end(by_client());
    let ended = bench.ended(&session).await;
    assert_eq!(ended.status.reason, Some(Reason::Client));
    bench.nothing_is_left();
    let records = bench.audit().await;
    assert!(
        records.iter().any(|record| record.outcome.is_some()),
        "the intent has an outcome"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_up_that_fails_is_tried_again() {
    let bench = Bench::new();
    let session = bench.ready().await;
    bench
        .runtime
        .fail(FakeCall::Remove, 1, FakeFailure::Unavailable);
    bench
        .runtime
        .fail(FakeCall::Remove, 2, FakeFailure::AnswerLost);
    let ended = bench
        .sessions
        .end(session.id, Reason::Client, PATIENCE)
        .await
        .unwrap();
    assert_eq!(ended.status.phase, Phase::Stopped);
    assert_eq!(bench.runtime.calls(FakeCall::Remove), 3);
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_dies_or_vanishes_fails_its_session() {
    for vanish in [false, true] {
        let bench = Bench::new();
        let session = bench.ready().await;
        let sandbox = session.sandbox.clone().unwrap();
        if vanish {
            // Its processes go too, and with them the link.
            bench.runtime.die(&sandbox, 137);
            bench.runtime.vanish(&sandbox);
        } else {
            bench.runtime.die(&sandbox, 137);
        }
        let ended = bench.ended(&session).await;
        assert_eq!(ended.status.phase, Phase::Failed);
        assert_eq!(ended.status.reason, Some(Reason::SandboxDied));
        bench.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_its_time_is_over() {
    let bench = Bench::new();
    let new = NewSession {
        timeout_s: Some(1),
        ..NewSession::default()
    };
    let session = bench.try_create(new).await.unwrap();
    let ended = bench.ended(&session).await;
    assert_eq!(ended.status.phase, Phase::Stopped);
    assert_eq!(ended.status.reason, Some(Reason::Deadline));
    assert!(ended.ended_at.unwrap() >= ended.ends_at);
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_adopts_what_runs() {
    let mut bench = Bench::new();
    let session = bench.ready().await;
    bench.sessions.leave_all(PATIENCE).await;
    assert_eq!(bench.runtime.count(), 1);
    bench.next_daemon();
    let found = bench.sessions.reconcile().await.unwrap();
    assert_eq!(
        (found.taken_up, found.orphans_removed, found.doors_removed),
        (1, 0, 0)
    );
    let handle = bench.sessions.handle(session.id).unwrap();
    handle.link(PATIENCE).await.unwrap();
    assert_eq!(handle.snapshot().sandbox, session.sandbox);
    assert_eq!(handle.snapshot().status, session.status);
    bench
        .sessions
        .end(session.id, Reason::Client, PATIENCE)
        .await
        .unwrap();
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_fails_what_is_gone_and_removes_what_nobody_owns() {
    let mut bench = Bench::new();
    let gone = bench.ready().await;
    let dead = bench.ready().await;
    bench.sessions.leave_all(PATIENCE).await;
    bench.runtime.vanish(gone.sandbox.as_ref().unwrap());
    bench.runtime.die(dead.sandbox.as_ref().unwrap(), 9);
    // A sandbox and a link directory of a session that the store does not know.
    let stranger = casemate::base::id::SessionId::from_bytes([9; 16]);
    let orphan = SandboxSpec {
        installation: bench.store.installation(),
        session: stranger,
        image: IMAGE,
        limits: Limits::default(),
        allow_root: false,
        hostname: "orphan".into(),
        link_dir: bench
            .directory
            .path()
            .join("link")
            .join(stranger.to_string()),
    };
    std::fs::create_dir(&orphan.link_dir).unwrap();
    std::fs::write(orphan.link_dir.with_added_extension("token"), "stale").unwrap();
    // Of another there is only the token.
    let other = casemate::base::id::SessionId::from_bytes([8; 16]);
    let other = bench.directory.path().join("link").join(other.to_string());
    std::fs::write(other.with_added_extension("token"), "").unwrap();
    bench.runtime.create(&orphan).await.unwrap();
    bench.next_daemon();
    let found = bench.sessions.reconcile().await.unwrap();
    assert_eq!(
        (found.taken_up, found.orphans_removed, found.doors_removed),
        (2, 1, 2)
    );
    let gone = bench.ended(&gone).await;
    assert_eq!(gone.status.reason, Some(Reason::SandboxMissing));
    let dead = bench.ended(&dead).await;
    assert_eq!(dead.status.reason, Some(Reason::SandboxDied));
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_a_crash_interrupted_is_begun_again() {
    // At each of these steps the daemon is killed; runners that hang there stand for it.
    for call in [FakeCall::Create, FakeCall::Start] {
        let mut bench = Bench::new();
        bench.runtime.fail(call, 1, FakeFailure::Hangs);
        let session = bench.create().await;
        while bench.runtime.calls(call) == 0 {
            tokio::task::yield_now().await;
        }
        bench.sessions.leave_all(PATIENCE).await;
        bench.next_daemon();
        bench.sessions.reconcile().await.unwrap();
        let settled = bench.until(&session, is_settled).await;
        assert_eq!(
            settled.status.phase,
            Phase::Ready,
            "{call:?} {:?}",
            settled.status
        );
        assert_eq!(bench.runtime.count(), 1);
        assert_eq!(bench.doors().len(), 1);
        bench
            .sessions
            .end(session.id, Reason::Client, PATIENCE)
            .await
            .unwrap();
        bench.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_first_link_the_token_leaves_the_sandbox_and_stays_with_the_daemon() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let mut bench = Bench::new();
    let session = bench.ready().await;
    let (directory, token) = bench.door_of(&session);
    let names: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["link.sock"]);
    let mode = |path: &PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&token)), (0o750, 0o600));
    let (inode, kept) = (
        std::fs::metadata(&directory).unwrap().ino(),
        std::fs::read(&token).unwrap(),
    );

    // Adopted, it is the same directory and the same token: the guest knows no other.
    bench.sessions.leave_all(PATIENCE).await;
    bench.next_daemon();
    bench.sessions.reconcile().await.unwrap();
    let handle = bench.sessions.handle(session.id).unwrap();
    handle.link(PATIENCE).await.unwrap();
    assert_eq!(std::fs::metadata(&directory).unwrap().ino(), inode);
    assert_eq!(std::fs::read(&token).unwrap(), kept);
    assert!(!directory.join("token").exists());
    bench.sessions.end_all(PATIENCE).await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_a_crash_left_in_the_sandbox_is_taken_out_before_anything_can_run() {
    // The daemon was killed after the guest had linked and before it removed the file, or wrote
    // down that the session is ready.
    for phase in [Phase::Starting, Phase::Ready] {
        let mut bench = Bench::new();
        let session = bench.ready().await;
        bench.sessions.leave_all(PATIENCE).await;
        let (directory, token) = bench.door_of(&session);
        std::fs::copy(&token, directory.join("token")).unwrap();
        let mut interrupted = Session::clone(&session);
        interrupted.status.phase = phase;
        bench.store.update_session(interrupted, None).await.unwrap();
        bench.next_daemon();
        bench.sessions.reconcile().await.unwrap();
        let settled = bench.until(&session, is_settled).await;
        assert_eq!(settled.status.phase, Phase::Ready, "{settled:?}");
        let handle = bench.sessions.handle(session.id).unwrap();
        handle.link(PATIENCE).await.unwrap();
        assert!(!directory.join("token").exists(), "{phase}");
        assert_eq!(bench.runtime.made(), 1, "it was adopted");
        bench.sessions.end_all(PATIENCE).await;
        bench.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_a_crash_left_half_built_is_built_again() {
    // As far as a killed daemon may have come, nothing of it in a sandbox yet.
    let steps: [fn(&PathBuf, &PathBuf); 4] = [
        |_, token| std::fs::write(token, "").unwrap(),
        |_, token| std::fs::write(token, "t".repeat(64)).unwrap(),
        |directory, token| {
            std::fs::write(token, "t".repeat(64)).unwrap();
            std::fs::create_dir(directory).unwrap();
        },
        |directory, token| {
            std::fs::write(token, "t".repeat(64)).unwrap();
            std::fs::create_dir(directory).unwrap();
            std::fs::write(directory.join("token"), "").unwrap();
        },
    ];
    for (n, build) in steps.into_iter().enumerate() {
        let mut bench = Bench::new();
        bench.runtime.fail(FakeCall::Create, 1, FakeFailure::Hangs);
        let session = bench.create().await;
        while bench.runtime.calls(FakeCall::Create) == 0 {
            tokio::task::yield_now().await;
        }
        bench.sessions.leave_all(PATIENCE).await;
        let (directory, token) = bench.door_of(&session);
        std::fs::remove_dir_all(&directory).unwrap();
        std::fs::remove_file(&token).unwrap();
        build(&directory, &token);
        bench.next_daemon();
        bench.sessions.reconcile().await.unwrap();
        let settled = bench.until(&session, is_settled).await;
        assert_eq!(settled.status.phase, Phase::Ready, "{n}: {settled:?}");
        bench.sessions.end_all(PATIENCE).await;
        bench.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dialling_without_the_token_neither_opens_a_link_nor_ends_one() {
    let bench = Bench::new();
    let session = bench.ready().await;
    let handle = bench.sessions.handle(session.id).unwrap();
    let link = handle.link(PATIENCE).await.unwrap();
    let (directory, _) = bench.door_of(&session);
    // More than the socket's queue holds, so that they are heard and not merely kept waiting.
    for n in 0..40 {
        let mut stream = tokio::net::UnixStream::connect(directory.join("link.sock"))
            .await
            .unwrap();
        let hello = casemate_link::handshake::Hello {
            protocol: casemate_link::handshake::PROTOCOL,
            token: casemate_link::LinkToken::parse(&format!("{n:064x}")).unwrap(),
            guest_version: String::new(),
            kernel: KernelReport::default(),
            capabilities: Vec::new(),
            channel: None,
        };
        let offered = casemate_link::handshake::offer(&mut stream, &hello);
        let refused = tokio::time::timeout(PATIENCE, offered).await.unwrap();
        assert!(refused.is_err(), "{refused:?}");
        assert!(!link.is_closed());
    }
    assert_eq!(handle.snapshot().status, session.status);
    bench.sessions.end_all(PATIENCE).await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_keeps_the_word_on_root_that_its_template_had_when_it_began() {
    for allow_root in [false, true] {
        let (asked, seen) = std::sync::mpsc::channel();
        let asked = std::sync::Mutex::new(asked);
        let hook = move |spec: &SandboxSpec| {
            asked.lock().unwrap().send(spec.allow_root).unwrap();
            guest(spec)
        };
        let mut bench = Bench::with(FakeRuntime::new([IMAGE]).with_start_hook(Box::new(hook)));
        let settings = |allow_root| Settings {
            sessions: bench.config.clone(),
            templates: BTreeMap::from([(
                "base".parse().unwrap(),
                Template {
                    allow_root,
                    ..template()
                },
            )]),
        };
        let (then, now) = (settings(allow_root), settings(!allow_root));
        bench.sessions.reload(then);
        bench.runtime.fail(FakeCall::Create, 1, FakeFailure::Hangs);
        let session = bench.create().await;
        while bench.runtime.calls(FakeCall::Create) == 0 {
            tokio::task::yield_now().await;
        }
        bench.sessions.leave_all(PATIENCE).await;
        // The next daemon has to build the sandbox, and its template says otherwise.
        bench.next_daemon();
        bench.sessions.reload(now);
        bench.sessions.reconcile().await.unwrap();
        let settled = bench.until(&session, is_settled).await;
        assert_eq!(settled.status.phase, Phase::Ready, "{settled:?}");
        assert_eq!(settled.spec.allow_root, allow_root);
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [allow_root]);
        bench.sessions.end_all(PATIENCE).await;
        bench.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_a_crash_interrupted_is_finished_with_its_own_reason() {
    let mut bench = Bench::new();
    let session = bench.ready().await;
    bench.sessions.leave_all(PATIENCE).await;
    let mut stopping = Session::clone(&session);
    stopping.status.phase = Phase::Stopping;
    stopping.status.reason = Some(Reason::Operator);
    bench.store.update_session(stopping, None).await.unwrap();
    bench.next_daemon();
    bench.sessions.reconcile().await.unwrap();
    let ended = bench.ended(&session).await;
    assert_eq!(ended.status.phase, Phase::Stopped);
    assert_eq!(ended.status.reason, Some(Reason::Operator));
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_installation_s_sandbox_is_not_touched() {
    let bench = Bench::new();
    let theirs = SandboxSpec {
        installation: casemate::base::id::InstallationId::from_bytes([5; 16]),
        session: casemate::base::id::SessionId::from_bytes([5; 16]),
        image: IMAGE,
        limits: Limits::default(),
        allow_root: false,
        hostname: "theirs".into(),
        link_dir: bench.directory.path().to_owned(),
    };
    bench.runtime.create(&theirs).await.unwrap();
    let found = bench.sessions.reconcile().await.unwrap();
    assert_eq!(found.orphans_removed, 0);
    assert_eq!(bench.runtime.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_creates_with_one_name_exactly_one_wins() {
    let bench = Bench::new();
    let creates = (0..20).map(|_| bench.try_create(named("one")));
    let outcomes = futures_util::future::join_all(creates).await;
    let won: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| outcome.as_ref().ok())
        .collect();
    assert_eq!(won.len(), 1);
    for lost in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert!(matches!(lost, SessionError::NameTaken(_)), "{lost}");
    }
    bench
        .sessions
        .end(won[0].id, Reason::Client, PATIENCE)
        .await
        .unwrap();
    bench.try_create(named("one")).await.unwrap();
    bench.sessions.end_all(PATIENCE).await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_granted_is_refused_before_anything_is_made() {
    let bench = Bench::new();
    let invalid = |field: &'static str, new: NewSession| {
        let bench = &bench;
        async move {
            match bench.try_create(new).await {
                Err(SessionError::Invalid { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    };
    let mut new = NewSession::default();
    new.limits.memory_bytes = Some(3 * GIB);
    invalid("limits.memory_bytes", new).await;
    let mut new = NewSession::default();
    new.limits.disk_bytes = Some(1);
    invalid("limits", new).await;
    let timeout_s = Some(121);
    invalid(
        "timeout_s",
        NewSession {
            timeout_s,
            ..NewSession::default()
        },
    )
    .await;
    let timeout_s = Some(0);
    invalid(
        "timeout_s",
        NewSession {
            timeout_s,
            ..NewSession::default()
        },
    )
    .await;
    let workdir = Some("relative".to_owned());
    invalid(
        "workdir",
        NewSession {
            workdir,
            ..NewSession::default()
        },
    )
    .await;
    let labels = (0..65).map(|n| (n.to_string(), String::new())).collect();
    invalid(
        "labels",
        NewSession {
            labels,
            ..NewSession::default()
        },
    )
    .await;
    let env = BTreeMap::from([("A=B".to_owned(), String::new())]);
    invalid(
        "env",
        NewSession {
            env,
            ..NewSession::default()
        },
    )
    .await;
    let template = Some("nope".parse().unwrap());
    let unknown = bench
        .try_create(NewSession {
            template,
            ..NewSession::default()
        })
        .await;
    assert!(matches!(unknown, Err(SessionError::UnknownTemplate(_))));
    assert_eq!(bench.runtime.calls(FakeCall::Create), 0);
    assert!(bench.audit().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_bound_and_while_draining_no_session_is_admitted() {
    let mut bench = Bench::new();
    bench.config.max = 1;
    bench.next_daemon();
    bench.ready().await;
    let full = bench.try_create(NewSession::default()).await;
    assert!(matches!(full, Err(SessionError::Full(1))));
    bench.sessions.end_all(PATIENCE).await;
    bench.nothing_is_left();
    let late = bench.try_create(NewSession::default()).await;
    assert!(matches!(late, Err(SessionError::Draining)));
}
