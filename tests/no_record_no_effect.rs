//! While the record cannot be written, every call that would change something is refused and
//! changes nothing; and what is refused is carried out again once it can be written.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use casemate::app::fake::Ground;
use casemate::app::{App, AppError, NewKey};
use casemate::audit::{AuditLog, Signer};
use casemate::base::clock::{SystemClock, Timestamp};
use casemate::base::id::KeyId;
use casemate::model::event::AuditEvent;
use casemate::model::image::ImageDigest;
use casemate::model::name::Name;
use casemate::model::principal::{Client, Principal};
use casemate::model::process::RunSpec;
use casemate::model::settings::{AuditConfig, SessionsConfig};
use casemate::model::template::{Origin, Precondition, Template, TemplateSpec};
use casemate::runtime::SandboxRuntime;
use casemate::runtime::fake::{FakeCall, FakeRuntime};
use casemate::session::SessionError;
use casemate::session::manager::{NewSession, Settings};
use casemate::store::Store;
use casemate::vault::Vault;
use futures_util::StreamExt;

const IMAGE: ImageDigest = ImageDigest::from_bytes([7; 32]);

struct Bench {
    directory: tempfile::TempDir,
    runtime: Arc<FakeRuntime>,
    app: App,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = Arc::new(FakeRuntime::new([IMAGE]));
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        let clock = Arc::new(SystemClock);
        let vault = Vault::open(None, directory.path(), false).unwrap();
        let key = vault.make_signing_key("test").unwrap();
        let key = vault.signing_key("test", &key).unwrap();
        let signer = Signer::new(store.installation(), key);
        let audit = AuditLog::new(store.clone(), clock.clone());
        let audit = audit.with(AuditConfig::default(), signer);
        let dynamic: Arc<dyn SandboxRuntime> = Arc::<FakeRuntime>::clone(&runtime);
        let base = Template {
            name: name("base"),
            version: 1,
            origin: Origin::File,
            made_by: "test".into(),
            made_at: Timestamp::from_millis(0),
            spec: TemplateSpec {
                timeout_s: 60,
                max_timeout_s: 60,
                ..TemplateSpec::new(IMAGE)
            },
        };
        let settings = Settings {
            sessions: SessionsConfig {
                link_timeout: Duration::from_millis(100),
                ..SessionsConfig::default()
            },
            templates: BTreeMap::from([(name("base"), base)]),
        };
        let ground = Ground {
            audit,
            runtime: dynamic,
            settings,
            ..Ground::new(store, vault, clock)
        };
        let app = App::new(ground.parts(directory.path()).unwrap());
        Self {
            directory,
            runtime,
            app,
        }
    }

    /// Holds the database's only write lock, as a disk that does not take a byte would.
    fn lock_out(&self) -> rusqlite::Connection {
        let stranger = rusqlite::Connection::open(self.directory.path().join("state.db")).unwrap();
        stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
        stranger
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn member() -> Principal {
    Principal::Client(Client::member(KeyId::from_bytes([1; 16]), name("default")))
}

const OPERATOR: Principal = Principal::Operator { uid: 0 };

fn run_spec() -> RunSpec {
    RunSpec {
        argv: vec!["true".into()],
        command: None,
        env: BTreeMap::new(),
        cwd: None,
        user: None,
        stdin: bytes::Bytes::new(),
        timeout_s: 1,
        max_output_bytes: 1,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recorded_is_not_done() {
    let bench = Bench::new();
    let app = &bench.app;
    // A session whose guest never dials: live for the moment that this test needs it.
    let new = NewSession::default;
    let created = app
        .create_session(&member(), &name("default"), new(), None, false)
        .await;
    let (session, _) = created.unwrap();
    let own = TemplateSpec::new(IMAGE);
    app.put_template(&member(), name("own"), own, Precondition::None)
        .await
        .unwrap();

    let mut export = app.export_audit(&OPERATOR, 0, None).await.unwrap();
    let lock = bench.lock_out();
    let creates_before = bench.runtime.calls(FakeCall::Create);
    let archive = futures_util::stream::empty().boxed();
    let operator = &OPERATOR;
    let principal = member();
    let team = name("default");
    let (created, run, ended, key, image, noted, kept, removed) = tokio::join!(
        app.create_session(&principal, &team, new(), None, false),
        app.run(&principal, session.id, run_spec()),
        app.end_session(&principal, session.id),
        app.create_key(operator, NewKey::member(name("k"), name("default"))),
        app.import_image(operator, archive),
        app.note(operator, AuditEvent::DaemonReload { changed: vec![] }),
        app.put_template(
            &principal,
            name("new"),
            TemplateSpec::new(IMAGE),
            Precondition::None
        ),
        app.remove_template(&principal, name("own"), Precondition::None),
    );
    assert!(
        matches!(created, Err(AppError::Session(SessionError::Store(_)))),
        "{created:?}"
    );
    assert!(matches!(run, Err(AppError::Audit(_))), "{run:?}");
    assert!(matches!(ended, Err(AppError::Audit(_))), "{ended:?}");
    assert!(matches!(key, Err(AppError::Audit(_))));
    assert!(matches!(image, Err(AppError::Audit(_))), "{image:?}");
    assert!(matches!(noted, Err(AppError::Audit(_))), "{noted:?}");
    assert!(matches!(kept, Err(AppError::Audit(_))), "{kept:?}");
    assert!(matches!(removed, Err(AppError::Audit(_))), "{removed:?}");
    assert!(
        bench.runtime.calls(FakeCall::Create) <= creates_before + 1,
        "only the first session's own"
    );
    assert_eq!(bench.runtime.calls(FakeCall::LoadImage), 0);
    assert!(!app.readiness().await.is_ready());
    // An export ends with a checkpoint that is kept, or it does not end.
    assert!(export.next().await.unwrap().is_some());
    assert!(export.next().await.is_err());

    drop(lock);
    let left = app.templates(&principal).await.unwrap();
    let left: Vec<_> = left.iter().map(|template| template.name.as_str()).collect();
    assert_eq!(left, ["base", "own"]);
    app.create_key(operator, NewKey::member(name("k"), name("default")))
        .await
        .unwrap();
    app.remove_template(&principal, name("own"), Precondition::None)
        .await
        .unwrap();
}
