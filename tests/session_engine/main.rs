//! The session engine on the fake runtime, with a guest that really dials: each step of a launch
//! fails, is interrupted or loses its answer, and afterwards nothing is left.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod door;
mod images;
mod launch;
mod lease;
mod life;
mod next_daemon;
mod pool;
mod ready;
mod volumes;
mod warm_up;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use casemate::audit::AuditLog;
use casemate::base::clock::{SystemClock, Timestamp};
use casemate::credential::{Credentials, authority};
use casemate::model::image::ImageDigest;
use casemate::model::name::Name;
use casemate::model::principal::{Client, Principal};
use casemate::model::query::AuditFilter;
use casemate::model::sandbox::{GIB, Limits, SandboxSpec};
use casemate::model::session::{Phase, Reason, Session};
use casemate::model::settings::SessionsConfig;
use casemate::model::settings::VolumesConfig;
use casemate::model::template::{Origin, Template, TemplateSpec};
use casemate::runtime::SandboxRuntime;
use casemate::runtime::fake::{FakeCall, FakeRuntime, Running};
use casemate::session::SessionError;
use casemate::session::manager::{NewSession, Parts, Sessions, Settings, is_settled};
use casemate::session::volumes::Volumes;
use casemate::store::Store;
use casemate::vault::Vault;
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
    /// Why the machine cannot have volumes.
    volumes_problem: Option<String>,
}

impl Bench {
    fn new() -> Self {
        Self::with(FakeRuntime::new([IMAGE]).with_start_hook(Box::new(guest)))
    }

    fn with(runtime: FakeRuntime) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        let vault = casemate::vault::Vault::open(None, directory.path(), false).unwrap();
        casemate::credential::veil::fleeting(&store, &vault).unwrap();
        let config = SessionsConfig {
            link_timeout: Duration::from_secs(2),
            reattach_timeout: Duration::from_secs(2),
            pool_starts_per_s: 64,
            ..SessionsConfig::default()
        };
        std::fs::create_dir(directory.path().join("link")).unwrap();
        let runtime = Arc::new(runtime);
        let sessions = sessions(&directory, &runtime, &store, &config, None);
        Self {
            directory,
            runtime,
            store,
            sessions,
            config,
            volumes_problem: None,
        }
    }

    /// Another daemon on the same state and machine.
    fn next_daemon(&mut self) {
        self.sessions = sessions(
            &self.directory,
            &self.runtime,
            &self.store,
            &self.config,
            self.volumes_problem.clone(),
        );
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

    /// Waits until the runtime was asked for this.
    async fn asked(&self, call: FakeCall) {
        self.asked_again(call, 0).await;
    }

    /// Waits until the runtime was asked for this more often than so.
    async fn asked_again(&self, call: FakeCall, times: u64) {
        let asked = async {
            while self.runtime.calls(call) <= times {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.unwrap();
    }

    /// Ends a session as its client would.
    async fn end(&self, session: &Session) -> Arc<Session> {
        let ended = self.sessions.end(session.id, Reason::Client, PATIENCE);
        ended.await.unwrap()
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
        doors.retain(|path| path.is_dir() && path.extension().is_none());
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
    volumes_problem: Option<String>,
) -> Sessions {
    let clock = Arc::new(SystemClock);
    let runtime: Arc<dyn SandboxRuntime> = Arc::<FakeRuntime>::clone(runtime);
    let config_of_volumes = VolumesConfig {
        dir: directory.path().join("volumes"),
        ..VolumesConfig::default()
    };
    let files = config_of_volumes.dir.join(store.installation().to_string());
    std::fs::create_dir_all(files).unwrap();
    let mut volumes = Volumes::new(config_of_volumes, store.installation());
    volumes.problem = volumes_problem;
    let audit = AuditLog::new(store.clone(), clock.clone());
    let vault = Vault::open(None, directory.path(), false).unwrap();
    Sessions::new(Parts {
        runtime,
        opener: authority::fleeting(store, clock.clone()).unwrap(),
        lender: Arc::new(Credentials::new(store.clone(), vault, audit.clone())),
        store: store.clone(),
        audit,
        clock,
        link_root: directory.path().join("link"),
        volumes,
        settings: Settings {
            sessions: config.clone(),
            templates: BTreeMap::from([("base".parse().unwrap(), template())]),
        },
        memory: Box::new(|| u64::MAX),
    })
}

fn template() -> Template {
    of(TemplateSpec {
        max_limits: Limits {
            memory_bytes: 2 * GIB,
            ..Limits::default()
        },
        timeout_s: 60,
        max_timeout_s: 120,
        ..TemplateSpec::new(IMAGE)
    })
}

/// The template `base` that says this.
fn of(spec: TemplateSpec) -> Template {
    Template {
        name: "base".parse().unwrap(),
        version: 1,
        origin: Origin::File,
        made_by: "test".into(),
        made_at: Timestamp::from_millis(0),
        spec,
    }
}

fn team() -> Name {
    "default".parse().unwrap()
}

fn member() -> Principal {
    let key = casemate::base::id::KeyId::from_bytes([1; 16]);
    Principal::Client(Client::member(key, team()))
}
