//! Floor 8: what a front door may reach, and nothing else.
//!
//! Every call goes one way: decide (pure) -> record the intent (fails = the call fails) -> act ->
//! record the outcome. A front door only translates.

mod access;
mod accesses;
mod backup;
mod credentials;
mod doctor;
mod egress;
mod endpoint;
pub mod fake;
mod guest;
mod keyring;
mod keys;
pub mod lease;
mod links;
mod record;
mod remote;
mod rules;
pub mod snapshot;
mod templates;
mod transfer;
mod volumes;

pub use self::access::{AccessTokens, Opens};
pub use self::accesses::Accesses;
pub use self::backup::HealthCheck;
pub use self::doctor::Examine;
pub use self::egress::Reach;
pub use self::endpoint::{EndpointRefusal, MAX_LINK_LIFE, Opened};
pub use self::keyring::KeyRing;
pub use self::keys::{Authenticated, KeyRefusal, MadeKey, NewKey, Validity};
pub use self::links::{Links, LinksError, PassKind};
pub use self::record::{AuditExport, Extent, ocsf_event};
pub use self::remote::{Desk, RemoteDesk};
pub use self::rules::{Explained, RuleBook, RuleRefusal, Whom};
pub use self::snapshot::{Snapshot, SnapshotRefusal, Snapshots};
pub use self::templates::{Kept, TemplateRefusal};
pub use self::transfer::{Attachment, Download, Input, Sink, Upload};
pub use self::volumes::VolumeSeen;
pub use crate::session::checkpoints::CheckpointState;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryFutureExt;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use crate::audit::retention::{ArchiveError, Retention};
use crate::audit::{AuditError, AuditLog, Intent};
use crate::backup::{BackupError, Backups};
use crate::base::chain::Chain;
use crate::base::clock::Clock;
use crate::base::id::SessionId;
use crate::credential::{CredentialError, Credentials};
use crate::endpoint::Pool;
use crate::identity::operator::OperatorTokens;
use crate::identity::{self, KeyHasher, jwt};
use crate::model::event::{AuditEvent, Outcome};
use crate::model::image::{Image, ImageDigest};
use crate::model::name::Name;
use crate::model::principal::Principal;
use crate::model::process::{RunOutcome, RunSpec};
use crate::model::query::{BadFilter, SessionFilter};
use crate::model::session::{Reason, Session};
use crate::policy::{self, Action, Resource};
use crate::runtime::{ArchiveStream, RuntimeError, RuntimeFacts, SandboxRuntime};
use crate::session::SessionError;
use crate::session::manager::{NewSession, Sessions, default_template, is_settled};
use crate::store::{Store, StoreError};

/// How long a create waits for its session before it answers with the session as it is.
const CREATE_PATIENCE: Duration = Duration::from_secs(120);

/// How long a delete waits before it answers that the session is still stopping.
const DELETE_PATIENCE: Duration = Duration::from_secs(30);

/// How long an answer to "are you ready?" is good for: bounds what strangers can make podman do.
const READINESS_AGE: Duration = Duration::from_secs(1);

/// How long the runtime may take to answer before the daemon calls itself not ready.
const READINESS_PATIENCE: Duration = Duration::from_secs(5);

/// Everything that a front door can ask for.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// What the app is made of.
pub struct Parts {
    /// The sessions.
    pub sessions: Sessions,
    /// The state.
    pub store: Store,
    /// The record.
    pub audit: AuditLog,
    /// What runs sandboxes.
    pub runtime: Arc<dyn SandboxRuntime>,
    /// What was found when the daemon started.
    pub facts: RuntimeFacts,
    /// Hashes API keys.
    pub hasher: KeyHasher,
    /// The keys that were presented lately.
    pub keys: KeyRing,
    /// What the operator allows and denies beside what is so by nature.
    pub rules: Arc<RuleBook>,
    /// Verifies JSON web tokens.
    pub tokens: Arc<jwt::Tokens>,
    /// The operator tokens that are taken.
    pub operators: Arc<OperatorTokens>,
    /// Where operators from elsewhere are sent.
    pub desk: RemoteDesk,
    /// Who tells the time.
    pub clock: Arc<dyn Clock>,
    /// Asks the daemon to read its settings again.
    pub reload: mpsc::Sender<oneshot::Sender<Result<(), String>>>,
    /// The runs in flight, waited for when the daemon stops.
    pub calls: TaskTracker,
    /// The snapshots that are being made.
    pub snapshots: Snapshots,
    /// Makes backups.
    pub backups: Backups,
    /// What teams need to reach other things.
    pub credentials: Credentials,
    /// Connections to ports in sessions.
    pub pool: Pool,
    /// Who reaches them now.
    pub accesses: Accesses,
    /// Makes signed links to them, and knows them again.
    pub links: Links,
    /// Moves what is old of the record to files.
    pub retention: Retention,
    /// The last readiness.
    pub readiness: Mutex<Option<(tokio::time::Instant, Readiness)>>,
    /// Makes the hardening checks.
    pub examine: Examine,
}

/// Whether the daemon can do its work now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Each thing it stands on, and what is wrong with it.
    pub checks: Vec<(&'static str, Option<String>)>,
    /// What an operator must do about the state, where that is known.
    pub mend: Option<&'static str>,
}

impl Readiness {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.checks.iter().all(|(_, problem)| problem.is_none())
    }
}

/// Why a call was not done, split by what the caller is told.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Nobody we know.
    #[error("the credentials are missing or not valid")]
    Unauthenticated,
    /// The policy says no.
    #[error("the rule {rule} denies it: {reason}")]
    Denied {
        /// The rule's name.
        rule: String,
        /// Why, for people.
        reason: String,
    },
    /// The sessions say no.
    #[error(transparent)]
    Session(SessionError),
    /// The store failed.
    #[error("reach the state")]
    Store(#[source] StoreError),
    /// The record cannot be written; nothing was done.
    #[error("record the call; nothing was done")]
    Audit(#[source] AuditError),
    /// The record has no such position.
    #[error("there is no record {0}")]
    NoRecord(i64),
    /// The record cannot be read like that.
    #[error(transparent)]
    BadFilter(BadFilter),
    /// The record begins later by now.
    #[error("records up to {up_to} were archived; record {} is in {file}", after + 1)]
    Archived {
        /// The position that was asked for.
        after: i64,
        /// The last position that is in a file.
        up_to: i64,
        /// The name of the file that has the next one.
        file: String,
    },
    /// Records cannot be archived.
    #[error(transparent)]
    Archive(ArchiveError),
    /// The archive is not an image.
    #[error("the image archive was refused: {0}")]
    BadArchive(String),
    /// The runtime failed.
    #[error("reach the sandbox runtime")]
    Runtime(#[source] RuntimeError),
    /// The template cannot be had, kept or removed.
    #[error(transparent)]
    Template(TemplateRefusal),
    /// There is no such key, or none is made.
    #[error(transparent)]
    Key(KeyRefusal),
    /// The rule is not kept.
    #[error(transparent)]
    Rule(RuleRefusal),
    /// The credential cannot be had, set or removed, or the vault's key not be changed.
    #[error(transparent)]
    Credential(CredentialError),
    /// A port is not reached, or no link to it made.
    #[error(transparent)]
    Endpoint(EndpointRefusal),
    /// There is no snapshot.
    #[error(transparent)]
    Snapshot(SnapshotRefusal),
    /// There is no backup.
    #[error(transparent)]
    Backup(BackupError),
    /// The settings were not taken.
    #[error("{0}")]
    Reload(String),
    /// A defect, or a machine without randomness.
    #[error("{0}")]
    Internal(String),
}

impl AppError {
    /// The policy says no.
    fn denied(rule: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Denied {
            rule: rule.into(),
            reason: reason.into(),
        }
    }

    /// A stable word for the record.
    const fn code(&self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Denied { .. } => "denied",
            Self::Session(error) => error.code(),
            Self::Store(_) => "store",
            Self::Audit(_) => "audit",
            Self::NoRecord(_) => "no_record",
            Self::BadFilter(_) => "bad_filter",
            Self::Archived { .. } => "audit_archived",
            Self::Archive(error) => error.code(),
            Self::BadArchive(_) => "bad_archive",
            Self::Runtime(_) => "runtime",
            Self::Template(refusal) => refusal.code(),
            Self::Key(refusal) => refusal.code(),
            Self::Rule(refusal) => refusal.code(),
            Self::Credential(error) => error.code(),
            Self::Endpoint(refusal) => refusal.code(),
            Self::Snapshot(refusal) => refusal.code(),
            Self::Backup(error) => error.code(),
            Self::Reload(_) => "reload",
            Self::Internal(_) => "internal",
        }
    }
}

impl AppError {
    /// What is wrong with the state itself, where that is why: a stable word, and what to do.
    #[must_use]
    pub fn of_the_state(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Store(error)
            | Self::Audit(AuditError::Store(error))
            | Self::Session(
                SessionError::Store(error) | SessionError::Audit(AuditError::Store(error)),
            ) => of_the_state(error),
            _ => None,
        }
    }
}

const fn of_the_state(error: &StoreError) -> Option<(&'static str, &'static str)> {
    match error {
        StoreError::Damaged { .. } => Some((
            "state_damaged",
            "the state is damaged, so nothing is written to it any more; an operator must restore a backup (casemated restore)",
        )),
        StoreError::Full(_) => Some((
            "state_full",
            "the disk of the state is full, so nothing new is taken in; an operator must make room on it",
        )),
        _ => None,
    }
}

impl App {
    /// Assembled by the daemon.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Makes a session; waits for it when asked to. `true` says that the request was a repeated one.
    ///
    /// # Errors
    /// [`AppError`]; [`SessionError::LaunchFailed`] when it was waited for and did not come up.
    pub async fn create_session(
        &self,
        principal: &Principal,
        team: &Name,
        new: NewSession,
        idempotency: Option<(String, &[u8])>,
        wait: bool,
    ) -> Result<(Arc<Session>, bool), AppError> {
        let template = new.template.clone().map_or_else(default_template, Ok);
        let template = template.map_err(AppError::Session)?;
        let resource = Resource::of(team).template(&template);
        self.allow(principal, Action::CreateSession, &resource)?;
        let sessions = &self.0.sessions;
        let idempotency = idempotency.map(|(key, request)| (key, repeatable(team, request)));
        let created = sessions.create(principal, team, new, idempotency).await;
        let (session, repeated) = created.map_err(AppError::Session)?;
        if !wait {
            return Ok((session, repeated));
        }
        let session = match sessions.handle(session.id) {
            Some(handle) => handle.wait_until(CREATE_PATIENCE, is_settled).await,
            None => sessions.get(session.id).await.map_err(AppError::Session)?,
        };
        if session.ready_at.is_none()
            && let Some(reason) = session.status.reason
            && !reason.is_wished()
        {
            let session = session.id;
            return Err(AppError::Session(SessionError::LaunchFailed {
                session,
                reason,
            }));
        }
        Ok((session, repeated))
    }

    /// One session, live or ended.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn session(
        &self,
        principal: &Principal,
        id: SessionId,
    ) -> Result<Arc<Session>, AppError> {
        self.reach(principal, id, Action::ReadSession).await
    }

    /// A session that the principal may use.
    pub(super) async fn may_use(
        &self,
        principal: &Principal,
        id: SessionId,
    ) -> Result<Arc<Session>, AppError> {
        self.reach(principal, id, Action::UseSession).await
    }

    /// A session to which the principal may do this.
    pub(super) async fn reach(
        &self,
        principal: &Principal,
        id: SessionId,
        action: Action,
    ) -> Result<Arc<Session>, AppError> {
        let session = self.0.sessions.get(id).await.map_err(AppError::Session)?;
        let resource = Resource {
            session: Some(id),
            ..Resource::of(&session.spec.team).template(&session.spec.template)
        };
        self.allow(principal, action, &resource)?;
        Ok(session)
    }

    /// Sessions, newest first; a member sees those of its own team.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn sessions(
        &self,
        principal: &Principal,
        mut filter: SessionFilter,
    ) -> Result<Vec<Session>, AppError> {
        self.allow(principal, Action::ListSessions, &Resource::default())?;
        if let Some(team) = principal.team() {
            filter.team = Some(team.clone());
        }
        self.0.store.sessions(filter).await.map_err(AppError::Store)
    }

    /// Ends a session; the session as it is after a bounded wait. Ended already is success.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn end_session(
        &self,
        principal: &Principal,
        id: SessionId,
    ) -> Result<Arc<Session>, AppError> {
        let session = self.reach(principal, id, Action::ChangeSession).await?;
        if session.ended_at.is_some() {
            return Ok(session);
        }
        let intent = self
            .begin(principal, Some(id), AuditEvent::SessionDelete {})
            .await?;
        let reason = match principal {
            Principal::Client(_) => Reason::Client,
            Principal::Operator { .. } | Principal::Remote { .. } | Principal::Daemon => {
                Reason::Operator
            }
        };
        let ended = self.0.sessions.end(id, reason, DELETE_PATIENCE).await;
        finish(
            intent,
            ended.as_ref().map(|_| None).map_err(SessionError::code),
        )
        .await;
        ended.map_err(AppError::Session)
    }

    /// Runs a program in a session to its end. A caller that goes away does not stop it: it ends by
    /// itself or at its time limit, and its outcome is recorded.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn run(
        &self,
        principal: &Principal,
        id: SessionId,
        spec: RunSpec,
    ) -> Result<RunOutcome, AppError> {
        let session = self.may_use(principal, id).await?;
        let Some(handle) = self.0.sessions.handle(id) else {
            return Err(self.ended(id).await);
        };
        let event = AuditEvent::SessionRun {
            program: spec.argv.first().cloned(),
            arguments: spec.argv.len().saturating_sub(1),
            line: self
                .0
                .audit
                .command_line(&spec.argv, spec.command.as_deref()),
            user: guest::runs_as(spec.user.as_deref(), &session),
            timeout_s: spec.timeout_s,
        };
        let work = async move { handle.run(spec).await };
        let told = |outcome: &RunOutcome| Some(exit_in_words(outcome.exit_code, outcome.signal));
        self.recorded(principal, id, event, work, told).await
    }

    /// Loads an image archive into the runtime's store.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn import_image(
        &self,
        principal: &Principal,
        archive: ArchiveStream,
    ) -> Result<ImageDigest, AppError> {
        self.allow(principal, Action::Administer, &Resource::default())?;
        let intent = self
            .begin(principal, None, AuditEvent::ImageImport {})
            .await?;
        let loaded = self.0.runtime.load_image(archive).await;
        let told = loaded.as_ref().map(|digest| Some(digest.to_string()));
        finish(intent, told.map_err(|_| "runtime")).await;
        loaded.map_err(|error| match error {
            RuntimeError::BadArchive(what) => AppError::BadArchive(what),
            other => AppError::Runtime(other),
        })
    }

    /// The images that templates can name.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn images(&self, principal: &Principal) -> Result<Vec<Image>, AppError> {
        self.allow(principal, Action::Administer, &Resource::default())?;
        self.0.runtime.images().await.map_err(AppError::Runtime)
    }

    /// Asks the daemon to read its settings again.
    ///
    /// # Errors
    /// [`AppError::Reload`] with every problem.
    pub async fn reload(&self, principal: &Principal) -> Result<(), AppError> {
        self.allow(principal, Action::Administer, &Resource::default())?;
        let (answer, answered) = oneshot::channel();
        let busy = |_| AppError::Reload("a reload is under way already".to_owned());
        self.0.reload.try_send(answer).map_err(busy)?;
        match answered.await {
            Ok(result) => result.map_err(AppError::Reload),
            Err(_) => Err(AppError::Reload("casemated is stopping".to_owned())),
        }
    }

    /// Records something that an operator does or is refused.
    ///
    /// # Errors
    /// [`AppError::Audit`].
    pub async fn note(&self, principal: &Principal, event: AuditEvent) -> Result<(), AppError> {
        self.0
            .audit
            .fact(principal, None, event)
            .await
            .map_err(AppError::Audit)
    }

    /// Whether the daemon can do its work, found out at most once a second.
    pub async fn readiness(&self) -> Readiness {
        let mut last = self.0.readiness.lock().await;
        if let Some((at, readiness)) = last.as_ref()
            && at.elapsed() < READINESS_AGE
        {
            return readiness.clone();
        }
        let patient = |doing: &'static str, wait: Result<Result<(), String>, _>| match wait {
            Ok(Ok(())) => (doing, None),
            Ok(Err(problem)) => (doing, Some(problem)),
            Err(tokio::time::error::Elapsed { .. }) => {
                (doing, Some("no answer in time".to_owned()))
            }
        };
        let mut mend = None;
        let store = tokio::time::timeout(READINESS_PATIENCE, async {
            let store = &self.0.store;
            let found = store.check_room().and(store.check_writable().await);
            found.map_err(|error| {
                mend = of_the_state(&error).map(|(_, mend)| mend);
                Chain(&error).to_string()
            })
        });
        let runtime = tokio::time::timeout(READINESS_PATIENCE, async {
            let probed = self.0.runtime.probe().await;
            probed.map(drop).map_err(|error| Chain(&error).to_string())
        });
        let (store, runtime) = tokio::join!(store, runtime);
        let readiness = Readiness {
            checks: vec![
                patient("store", store),
                patient("runtime", runtime),
                ("links", self.0.sessions.links_problem()),
                ("record", self.0.audit.alarm().map(str::to_owned)),
            ],
            mend,
        };
        *last = Some((tokio::time::Instant::now(), readiness.clone()));
        readiness
    }

    /// What was found of the runtime when the daemon started.
    #[must_use]
    pub fn facts(&self) -> &RuntimeFacts {
        &self.0.facts
    }

    /// Why this machine cannot have volumes, if it cannot.
    #[must_use]
    pub fn volumes_problem(&self) -> Option<&str> {
        self.0.sessions.volumes().problem.as_deref()
    }

    /// The sessions, for figures.
    #[must_use]
    pub fn live_sessions(&self) -> usize {
        self.0.sessions.live()
    }

    /// Bounds and defaults as they are now.
    #[must_use]
    pub fn settings(&self) -> Arc<crate::session::manager::Settings> {
        self.0.sessions.settings()
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> crate::base::clock::Timestamp {
        self.0.clock.now()
    }

    /// Asks the policy. What it denies is recorded.
    fn allow(
        &self,
        principal: &Principal,
        action: Action,
        resource: &Resource<'_>,
    ) -> Result<(), AppError> {
        let rules = self.0.rules.rules();
        let decision = policy::decide(&rules, principal, action, resource, self.now());
        if decision.allowed {
            return Ok(());
        }
        let denied = (action.name(), decision.rule.as_ref());
        self.0.audit.denied(principal, denied.0, denied.1);
        Err(if decision.hidden {
            AppError::Session(SessionError::NotFound)
        } else {
            AppError::denied(decision.rule, decision.reason)
        })
    }

    /// The team of a principal who may do this to what is its own.
    fn own_team<'a>(
        &self,
        principal: &'a Principal,
        action: Action,
        rule: &'static str,
    ) -> Result<&'a Name, AppError> {
        let denied = || AppError::denied(rule, "an operator has no team");
        let team = principal.team().ok_or_else(denied)?;
        self.allow(principal, action, &Resource::of(team))?;
        Ok(team)
    }

    async fn begin(
        &self,
        principal: &Principal,
        session: Option<SessionId>,
        event: AuditEvent,
    ) -> Result<Intent, AppError> {
        let begun = self.0.audit.begin(principal, session, event).await;
        begun.map_err(AppError::Audit)
    }

    /// Does something in a session, and records it.
    async fn recorded<T: Send + 'static>(
        &self,
        principal: &Principal,
        id: SessionId,
        event: AuditEvent,
        work: impl Future<Output = Result<T, SessionError>> + Send + 'static,
        told: fn(&T) -> Option<String>,
    ) -> Result<T, AppError> {
        if matches!(
            event,
            AuditEvent::SessionRun { .. } | AuditEvent::ProcessStart { .. }
        ) {
            self.0.store.check_room().map_err(AppError::Store)?;
        }
        // On the heap: what is done in a session can be large, and would be in here twice.
        let work = Box::pin(work).map_err(AppError::Session);
        self.record(principal, Some(id), event, work, told).await
    }

    /// Does something that is no session's, and records it.
    async fn changed<T: Send + 'static>(
        &self,
        principal: &Principal,
        event: AuditEvent,
        work: impl Future<Output = Result<T, AppError>> + Send + 'static,
        told: fn(&T) -> Option<String>,
    ) -> Result<T, AppError> {
        self.record(principal, None, event, work, told).await
    }

    /// Writes down what is to be done, does it, and writes down how it ended. A caller that goes away stops it nowhere half way.
    async fn record<T: Send + 'static>(
        &self,
        principal: &Principal,
        session: Option<SessionId>,
        event: AuditEvent,
        work: impl Future<Output = Result<T, AppError>> + Send + 'static,
        told: fn(&T) -> Option<String>,
    ) -> Result<T, AppError> {
        let this = self.clone();
        let principal = principal.clone();
        let call = self.0.calls.spawn(async move {
            let intent = this.begin(&principal, session, event).await?;
            let outcome = work.await;
            finish(intent, outcome.as_ref().map(told).map_err(AppError::code)).await;
            outcome
        });
        match call.await {
            Ok(outcome) => outcome,
            Err(error) => Err(AppError::Internal(error.to_string())),
        }
    }

    /// What to say of a session that has no runner any more.
    async fn ended(&self, id: SessionId) -> AppError {
        match self.0.sessions.get(id).await {
            Ok(session) => AppError::Session(SessionError::NotReady {
                phase: session.status.phase,
                reason: session.status.reason,
            }),
            Err(error) => AppError::Session(error),
        }
    }
}

/// By what a request is known again. The team is part of it: one person may come for several, with the same key.
fn repeatable(team: &Name, request: &[u8]) -> [u8; 32] {
    identity::digest(&[team.as_str().as_bytes(), b"\0", request].concat())
}

/// How a process ended, for the record.
fn exit_in_words(exit_code: Option<i32>, signal: Option<i32>) -> String {
    match (exit_code, signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    }
}

/// Writes an outcome. The effect has happened: a failure is for the log.
async fn finish(intent: Intent, told: Result<Option<String>, &'static str>) {
    let outcome = match told {
        Ok(detail) => Outcome::Ok { detail },
        Err(code) => Outcome::Failed {
            code: code.to_owned(),
        },
    };
    if let Err(error) = intent.finish(outcome).await {
        error!(error = %Chain(&error), "cannot complete an audit record");
    }
}

/// Logs a failure that no caller can be told about in full.
pub fn report(request: &dyn std::fmt::Display, error: &(dyn std::error::Error + 'static)) {
    warn!(request = %request, error = %Chain(error), "a call failed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_for_another_team_is_no_repetition() {
        let [one, other] = ["a", "ab"].map(|name| name.parse::<Name>().unwrap());
        assert_eq!(repeatable(&one, b"x"), repeatable(&one, b"x"));
        assert_ne!(repeatable(&one, b"x"), repeatable(&other, b"x"));
        assert_ne!(repeatable(&one, b"bx"), repeatable(&other, b"x"));
    }
}
