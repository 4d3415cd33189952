//! The table of live sessions: admits, finds, lists, ends; and leaves them all when the daemon stops.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use super::SessionError;
use super::VolumeRefusal;
use super::checkpoints::Checkpoints;
use super::egress;
use super::gate::{Budget, Gate, Place, Refused};
use super::handle::SessionHandle;
use super::images::Images;
use super::launch::End;
use super::pool::{Claim, Pool};
use super::runner::{Runner, Start};
use super::volumes::Volumes;
use super::{ready, state, trust};
use crate::audit::{AuditLog, Intent};
use crate::base::clock::Clock;
use crate::base::id::SessionId;
use crate::egress::{Lend, Opener, Resolve, SystemResolver};
use crate::model::egress::{EgressRules, SessionEgress, problems_of_bounds};
use crate::model::event::{AuditEvent, AuditRecord, Stage};
use crate::model::lease::{ACTIVE_STEP_S, Lease, MIN_IDLE_TIMEOUT_S, OnTimeout};
use crate::model::name::Name;
use crate::model::principal::Principal;
use crate::model::sandbox::WantedLimits;
use crate::model::session::{
    MAX_LABEL_BYTES, MAX_LABELS, MAX_TIMEOUT_S, Phase, Reason, Session, SessionSpec,
};
use crate::model::settings::SessionsConfig;
use crate::model::template::{Origin, Template};
use crate::model::volume::VolumeMode;
use crate::runtime::SandboxRuntime;
use crate::store::{Admission, Idempotency, Store, StoreError};

/// How long a repeated request is recognised: a day.
const IDEMPOTENCY: Duration = Duration::from_secs(24 * 3600);

/// What every runner shares.
pub(super) struct House {
    pub(super) runtime: Arc<dyn SandboxRuntime>,
    pub(super) store: Store,
    pub(super) audit: AuditLog,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) link_root: PathBuf,
    pub(super) volumes: Volumes,
    /// Launches at one time.
    pub(super) launches: Gate,
    /// Cancelled when runners shall leave their sandboxes running and end.
    pub(super) leave: CancellationToken,
    settings: watch::Receiver<Arc<Settings>>,
    pub(super) checkpoints: Checkpoints,
    /// Who knows the names that sandboxes ask for.
    pub(super) resolver: Arc<dyn Resolve>,
    pub(super) opener: Arc<Opener>,
    pub(super) lender: Arc<dyn Lend>,
}

impl House {
    pub(super) fn settings(&self) -> SessionsConfig {
        self.settings.borrow().sessions.clone()
    }

    pub(super) fn recipes(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }
}

/// What may change while the daemon runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bounds and defaults.
    pub sessions: SessionsConfig,
    /// The recipes by name.
    pub templates: BTreeMap<Name, Template>,
}

/// What the sessions need from below.
pub struct Parts {
    /// What runs sandboxes.
    pub runtime: Arc<dyn SandboxRuntime>,
    /// Where sessions are kept.
    pub store: Store,
    /// Where they are recorded.
    pub audit: AuditLog,
    /// Who tells the time.
    pub clock: Arc<dyn Clock>,
    /// The directory of link directories: ours, of the sandbox group, set-group-id.
    pub link_root: PathBuf,
    /// What volumes stand on.
    pub volumes: Volumes,
    /// Bounds, defaults and recipes.
    pub settings: Settings,
    /// How TLS is spoken where a rule adds something to what is in it.
    pub opener: Arc<Opener>,
    /// Who has what is added.
    pub lender: Arc<dyn Lend>,
    /// How many bytes of memory the machine has left.
    pub memory: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// A session that is about to be recorded.
struct Newcomer {
    session: Session,
    announcement: AuditRecord,
    idempotency: Option<Idempotency>,
    place: Option<Place>,
    /// A sandbox that stands ready for it.
    claim: Option<Claim>,
}

/// What a client asks of a new session.
#[derive(Clone, Debug, Default)]
pub struct NewSession {
    /// The recipe; `base` when absent.
    pub template: Option<Name>,
    /// A name that no other live session of the team has.
    pub name: Option<Name>,
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
    /// Added to the template's environment.
    pub env: BTreeMap<String, String>,
    /// Instead of the template's.
    pub workdir: Option<String>,
    /// Lifetime in seconds.
    pub timeout_s: Option<u64>,
    /// Instead of the template's.
    pub limits: WantedLimits,
    /// How long it may be idle, in seconds; absent: for as long as it lives.
    pub idle_timeout_s: Option<u64>,
    /// What happens when its time is over, or it was idle for too long.
    pub on_timeout: OnTimeout,
    /// What it finds below `/volumes`, and how.
    pub volumes: Vec<(Name, VolumeMode)>,
    /// Rules that narrow what its template lets it reach.
    pub egress: Option<EgressRules>,
}

/// Every session of this installation.
#[derive(Clone)]
pub struct Sessions {
    pub(super) house: Arc<House>,
    table: Arc<Mutex<HashMap<SessionId, SessionHandle>>>,
    settings: watch::Sender<Arc<Settings>>,
    /// A place for each live session.
    places: Gate,
    reserve_bytes: Arc<AtomicU64>,
    room: Arc<dyn Fn() -> bool + Send + Sync>,
    pub(super) pool: Arc<Pool>,
    pub(super) images: Arc<Images>,
    runners: TaskTracker,
    closed: CancellationToken,
}

impl Sessions {
    /// An empty table. [`Sessions::reconcile`] fills it.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let launches = Gate::new(launch_budget(&parts.settings.sessions), || true);
        let (memory, settings) = (parts.memory, parts.settings.sessions.clone());
        let reserve_bytes = Arc::new(AtomicU64::new(settings.reserve_bytes));
        let reserve = Arc::clone(&reserve_bytes);
        let room: Arc<dyn Fn() -> bool + Send + Sync> =
            Arc::new(move || memory() >= reserve.load(Ordering::Relaxed));
        let has_room = Arc::clone(&room);
        let places = Gate::new(session_budget(&settings), move || has_room());
        let (sender, receiver) = watch::channel(Arc::new(parts.settings));
        Self {
            house: Arc::new(House {
                runtime: parts.runtime,
                store: parts.store,
                audit: parts.audit,
                clock: parts.clock,
                link_root: parts.link_root,
                volumes: parts.volumes,
                launches,
                leave: CancellationToken::new(),
                settings: receiver,
                checkpoints: Checkpoints::default(),
                resolver: Arc::new(SystemResolver),
                opener: parts.opener,
                lender: parts.lender,
            }),
            table: Arc::default(),
            places,
            reserve_bytes,
            room,
            pool: Arc::default(),
            images: Arc::default(),
            settings: sender,
            runners: TaskTracker::new(),
            closed: CancellationToken::new(),
        }
    }

    /// Takes new bounds, defaults and recipes; running sessions keep what they were made with.
    pub fn reload(&self, settings: Settings) {
        let sessions = &settings.sessions;
        self.reserve_bytes
            .store(sessions.reserve_bytes, Ordering::Relaxed);
        self.places.set(session_budget(sessions));
        self.settings.send_replace(Arc::new(settings));
    }

    /// The recipes and bounds as they are now.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    /// Admits a session: it is recorded when this returns, and on its way. `true` says that the
    /// request was a repeated one and nothing was made.
    ///
    /// # Errors
    /// Why it cannot be; then there is no session.
    pub async fn create(
        &self,
        principal: &Principal,
        team: &Name,
        new: NewSession,
        idempotency: Option<(String, [u8; 32])>,
    ) -> Result<(Arc<Session>, bool), SessionError> {
        if self.closed.is_cancelled() {
            return Err(SessionError::Draining);
        }
        let settings = self.settings();
        let wanted = match &new.template {
            Some(name) => name.clone(),
            None => default_template()?,
        };
        let template = self.template(team, &wanted).await;
        let template = template.map_err(SessionError::Store)?;
        let template = template.ok_or(SessionError::UnknownTemplate(wanted))?;
        let (idle_timeout_s, on_timeout) = (new.idle_timeout_s, new.on_timeout);
        let volumes = self.wanted_volumes(team, &new.volumes).await?;
        let spec = SessionSpec {
            volumes,
            ..admit(&template, principal, team, new)?
        };
        let max_timeout_s = template.spec.max_timeout_s;
        let patience = settings.sessions.queue_timeout;
        let (place, refused) = match self.places.enter(team, patience).await {
            Ok(place) => (Some(place), None),
            // A request that came before was admitted then.
            Err(refused) if idempotency.is_some() => (None, Some(refused)),
            Err(refused) => return Err(SessionError::Full(refused)),
        };
        if self.closed.is_cancelled() {
            return Err(SessionError::Draining);
        }
        // Its life begins now, however long it has waited.
        let now = self.house.clock.now();
        let claim = self.claim(&template, spec.limits, spec.name.as_ref());
        let id = match claim.as_ref().and_then(Claim::id) {
            Some(id) => id,
            None => SessionId::generate(now).map_err(|error| SessionError::System {
                doing: "name the session",
                source: std::io::Error::other(error),
            })?,
        };
        let session = Session {
            id,
            status: state::admitted(),
            sandbox: None,
            created_at: now,
            ready_at: None,
            lease: Lease {
                ends_at: now.after(Duration::from_secs(spec.timeout_s)),
                max_timeout_s,
                idle_timeout_s,
                on_timeout,
                active_at: idle_timeout_s.map(|_| now),
                paused_at: None,
            },
            ended_at: None,
            spec,
        };
        let event = AuditEvent::SessionCreate {
            template: session.spec.template.clone(),
            version: Some(session.spec.template_version),
            image: session.spec.image,
            name: session.spec.name.clone(),
        };
        let announcement = self
            .house
            .audit
            .record(Stage::Intent, principal, Some(id), event)
            .map_err(SessionError::Audit)?;
        let idempotency = idempotency.map(|(key, request)| Idempotency {
            key,
            request,
            since: crate::base::clock::Timestamp::from_millis(
                now.as_millis()
                    .saturating_sub(i64::try_from(IDEMPOTENCY.as_millis()).unwrap_or(i64::MAX)),
            ),
        });
        let newcomer = Newcomer {
            session: session.clone(),
            announcement,
            idempotency,
            place,
            claim,
        };
        // The runner starts even if the caller goes away while the store answers.
        let admitted = tokio::spawn(self.clone().take_in(newcomer)).await;
        match admitted {
            Ok(Ok(Admission::Admitted)) => Ok((Arc::new(session), false)),
            Ok(Ok(Admission::Repeated(first))) => {
                let now = self
                    .handle(first.id)
                    .map_or(Arc::new(*first), |handle| handle.snapshot());
                Ok((now, true))
            }
            Ok(Ok(admission)) => Err(refusal(admission, session.spec.name.clone(), refused)),
            Ok(Err(error)) => Err(SessionError::Store(error)),
            Err(error) => Err(SessionError::System {
                doing: "admit the session",
                source: std::io::Error::other(error),
            }),
        }
    }

    /// Records a session, and gives it its runner; without a place it can only be recognised as one that was admitted before.
    async fn take_in(self, newcomer: Newcomer) -> Result<Admission, StoreError> {
        let Newcomer {
            session,
            announcement,
            idempotency,
            place,
            claim,
        } = newcomer;
        let intent = self.house.audit.adopt(announcement.clone());
        let max_live = if place.is_some() { u32::MAX } else { 0 };
        let store = &self.house.store;
        let admitted = store.admit_session(session.clone(), announcement, max_live, idempotency);
        let admission = match admitted.await {
            Ok(admission) => admission,
            Err(error) => {
                if let Some(warm) = claim.and_then(Claim::spoil) {
                    self.throw_out(warm).await;
                }
                return Err(error);
            }
        };
        if let (Admission::Admitted, Some(place)) = (&admission, place) {
            let (warm, identity) = claim.map(Claim::take).unwrap_or_default();
            let start = warm.map_or(Start::Admitted, |warm| Start::Claimed(Box::new(warm)));
            self.spawn(session, start, Some(intent), place);
            // From here on it is in the table.
            drop(identity);
        }
        Ok(admission)
    }

    /// A live session.
    #[must_use]
    pub fn handle(&self, id: SessionId) -> Option<SessionHandle> {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    /// How many sessions have a place, and how many requests wait for one.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        self.places.load()
    }

    /// Whether the machine can carry one more sandbox.
    pub(super) fn has_room(&self) -> bool {
        (self.room)()
    }

    /// A place for a session that is there already.
    pub(super) fn place_of(&self, session: &Session) -> Place {
        self.places.occupy(&session.spec.team)
    }

    /// The sessions that are live.
    #[must_use]
    pub fn live_ids(&self) -> Vec<SessionId> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.keys().copied().collect()
    }

    /// How many sessions are live.
    #[must_use]
    pub fn live(&self) -> usize {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// A session, live or ended.
    ///
    /// # Errors
    /// [`SessionError::NotFound`], [`SessionError::Store`].
    pub async fn get(&self, id: SessionId) -> Result<Arc<Session>, SessionError> {
        if let Some(handle) = self.handle(id) {
            return Ok(handle.snapshot());
        }
        let found = self
            .house
            .store
            .session(id)
            .await
            .map_err(SessionError::Store)?;
        found.map(Arc::new).ok_or(SessionError::NotFound)
    }

    /// Asks a session to end and waits for it, but no longer than `patience`; the session then. One
    /// that has ended stays as it is.
    ///
    /// # Errors
    /// [`SessionError::NotFound`], [`SessionError::Store`].
    pub async fn end(
        &self,
        id: SessionId,
        reason: Reason,
        patience: Duration,
    ) -> Result<Arc<Session>, SessionError> {
        let Some(handle) = self.handle(id) else {
            return self.get(id).await;
        };
        handle.end(End {
            reason,
            message: None,
        });
        let ended = |session: &Session| session.ended_at.is_some();
        Ok(handle.wait_until(patience, ended).await)
    }

    /// What is wrong with the directory of links, if anything.
    #[must_use]
    pub fn links_problem(&self) -> Option<String> {
        match std::fs::metadata(&self.house.link_root) {
            Ok(found) if found.is_dir() => None,
            Ok(_) => Some("the link directory is not a directory".to_owned()),
            Err(error) => Some(format!("the link directory cannot be reached: {error}")),
        }
    }

    /// Admits nothing more.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Leaves every sandbox running for the next daemon, and waits for the runners to let go.
    pub async fn leave_all(&self, patience: Duration) {
        self.close();
        self.house.leave.cancel();
        self.settle(patience).await;
    }

    /// Ends every session and waits until they are gone.
    pub async fn end_all(&self, patience: Duration) {
        self.close();
        let handles: Vec<_> = {
            let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            table.values().cloned().collect()
        };
        for handle in handles {
            handle.end(End::new(Reason::Operator, "casemated was stopped"));
        }
        self.settle(patience).await;
    }

    async fn settle(&self, patience: Duration) {
        self.runners.close();
        if tokio::time::timeout(patience, self.runners.wait())
            .await
            .is_err()
        {
            error!(
                left = self.live(),
                "sessions did not settle in time; the next start takes them up"
            );
        }
        self.runners.reopen();
    }

    /// For how long nobody has used a session, as far as the store knows; rather too little than too much.
    fn idle_so_far(&self, session: &Session) -> Duration {
        let active_at = session.lease.active_at.unwrap_or(session.created_at);
        let sure = active_at.after(Duration::from_secs(ACTIVE_STEP_S));
        self.house.clock.now().since(sure)
    }

    /// Gives a session its runner, and the table its handle for as long as the runner runs.
    pub(super) fn spawn(
        &self,
        session: Session,
        start: Start,
        intent: Option<Intent>,
        place: Place,
    ) {
        let id = session.id;
        let idle = self.idle_so_far(&session);
        let (handle, ends) = SessionHandle::new(session.clone(), idle);
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, handle);
        let runner = Runner {
            house: Arc::clone(&self.house),
            session,
            ends,
            start,
            intent,
        };
        let this = self.clone();
        self.runners.spawn(async move {
            // In a task of its own, so that a panic is seen here and fails this session only.
            let panicked = tokio::spawn(runner.run())
                .await
                .is_err_and(|error| error.is_panic());
            if panicked {
                error!(session = %id, "a session's task panicked");
                if let Ok(Some(session)) = this.house.store.session(id).await
                    && session.ended_at.is_none()
                {
                    this.spawn(session, Start::Broken, None, place);
                    return;
                }
            }
            this.table
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&id);
            drop(place);
        });
    }
}

/// Why the store did not admit a session.
fn refusal(admission: Admission, name: Option<Name>, refused: Option<Refused>) -> SessionError {
    match (admission, name) {
        (Admission::KeyReused, _) => SessionError::KeyReused,
        (Admission::NameTaken, Some(name)) => SessionError::NameTaken(name),
        (Admission::NoVolume(name), _) => SessionError::Volume(VolumeRefusal::Unknown(name)),
        (Admission::VolumeHeld(name, holder), _) => {
            SessionError::Volume(VolumeRefusal::Held(name, holder))
        }
        (Admission::Full, _) => SessionError::Full(refused.unwrap_or(Refused::Full)),
        (Admission::NameTaken | Admission::Admitted | Admission::Repeated(_), _) => {
            SessionError::NotFound
        }
    }
}

fn session_budget(sessions: &SessionsConfig) -> Budget {
    Budget {
        places: sessions.max,
        team: sessions.max_of_team,
        queue: sessions.queue,
    }
}

/// One team never has all launches, unless there is but one.
fn launch_budget(sessions: &SessionsConfig) -> Budget {
    let places = sessions.concurrent_launches;
    Budget {
        places,
        team: places.saturating_sub(1).max(1),
        // No more wait than there are sessions.
        queue: usize::MAX,
    }
}

/// Fills in defaults and checks every field against its bounds.
fn admit(
    template: &Template,
    principal: &Principal,
    team: &Name,
    new: NewSession,
) -> Result<SessionSpec, SessionError> {
    let invalid = |field, problem: String| Err(SessionError::Invalid { field, problem });
    let recipe = &template.spec;
    let limits = new.limits.over(recipe.limits);
    if let Err(error) = limits.validate() {
        return invalid("limits", error.to_string());
    }
    let over = limits.over(&recipe.max_limits);
    if let Some((field, _, _, most)) = over.into_iter().find(|(_, over, ..)| *over) {
        return invalid(
            match field {
                "memory_bytes" => "limits.memory_bytes",
                "cpus" => "limits.cpus",
                "pids" => "limits.pids",
                "disk_bytes" => "limits.disk_bytes",
                "open_files" => "limits.open_files",
                _ => "limits.processes_started",
            },
            format!("the template {} allows at most {most}", template.name),
        );
    }

    let timeout_s = new.timeout_s.unwrap_or(recipe.timeout_s);
    if !(1..=recipe.max_timeout_s).contains(&timeout_s) {
        return invalid(
            "timeout_s",
            format!(
                "the template {} allows 1 to {}",
                template.name, recipe.max_timeout_s
            ),
        );
    }
    check_labels(&new.labels)?;
    if new
        .workdir
        .as_ref()
        .is_some_and(|path| !path.starts_with('/'))
    {
        return invalid("workdir", "must be an absolute path".to_owned());
    }
    check_egress(new.egress.as_ref())?;
    let mut env = BTreeMap::new();
    if !recipe.egress.is_empty() {
        env.extend(egress::environment());
    }
    if recipe.setup.egress_ca {
        env.extend(trust::environment());
    }
    env.extend(recipe.env.clone());
    env.extend(new.env);
    // The bounds of every process hold for the session's environment, which each process gets.
    let probe = casemate_link::ProcessSpec {
        env: env.clone(),
        cwd: new.workdir.clone(),
        ..casemate_link::ProcessSpec::new(vec!["true".to_owned()])
    };
    if let Err(error) = probe.validate() {
        return invalid("env", error.to_string());
    }
    check_idle(new.idle_timeout_s)?;
    let spec = SessionSpec {
        name: new.name,
        template: template.name.clone(),
        template_version: template.version,
        image: recipe.image,
        team: team.clone(),
        created_by: principal.to_string(),
        labels: new.labels,
        env,
        workdir: new.workdir.or_else(|| recipe.workdir.clone()),
        limits,
        allow_root: recipe.allow_root,
        timeout_s,
        setup: recipe.session_setup(),
        // Looked up by who has the store.
        volumes: Vec::new(),
        egress: SessionEgress {
            template: recipe.egress.clone(),
            is_operators: template.origin == Origin::File,
            own: new.egress,
        },
    };
    // The start command's environment comes over the session's.
    if let Some(Err(error)) = ready::start_process(&spec).map(|start| start.validate()) {
        return invalid("env", error.to_string());
    }
    Ok(spec)
}

/// Checks labels against their bounds.
///
/// # Errors
/// [`SessionError::Invalid`].
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), SessionError> {
    let invalid = |problem| {
        Err(SessionError::Invalid {
            field: "labels",
            problem,
        })
    };
    if labels.len() > MAX_LABELS {
        return invalid(format!("at most {MAX_LABELS} labels"));
    }
    let fits = |text: &str| text.len() <= MAX_LABEL_BYTES && !text.contains('\0');
    let bad = labels
        .iter()
        .find(|(key, value)| key.is_empty() || !fits(key) || !fits(value));
    match bad {
        Some((key, _)) => invalid(format!(
            "{key:?}: keys have 1 to {MAX_LABEL_BYTES} bytes, values at most as many, without NUL"
        )),
        None => Ok(()),
    }
}

/// Checks rules that narrow what a session reaches.
///
/// # Errors
/// [`SessionError::Invalid`].
pub fn check_egress(rules: Option<&EgressRules>) -> Result<(), SessionError> {
    let problem = rules.and_then(|rules| problems_of_bounds(rules).into_iter().next());
    match problem {
        Some((path, problem)) => Err(SessionError::Invalid {
            field: "egress",
            problem: format!("{}: {problem}", path.join(".")),
        }),
        None => Ok(()),
    }
}

/// Checks an idle time against its bounds.
///
/// # Errors
/// [`SessionError::Invalid`].
pub fn check_idle(idle_timeout_s: Option<u64>) -> Result<(), SessionError> {
    match idle_timeout_s {
        Some(seconds) if !(MIN_IDLE_TIMEOUT_S..=MAX_TIMEOUT_S).contains(&seconds) => {
            Err(SessionError::Invalid {
                field: "idle_timeout_s",
                problem: format!("{MIN_IDLE_TIMEOUT_S} to {MAX_TIMEOUT_S}"),
            })
        }
        _ => Ok(()),
    }
}

/// The template of a session that names none.
///
/// # Errors
/// None that can happen.
pub fn default_template() -> Result<Name, SessionError> {
    "base".parse().map_err(|_| SessionError::NotFound)
}

/// Whether a session has come as far as a creating client waits for: it is ready, or will never be.
/// What is left of a failed launch is cleared up behind the client's back: it may take as long as
/// the runtime is away.
#[must_use]
pub fn is_settled(session: &Session) -> bool {
    !matches!(session.status.phase, Phase::Pending | Phase::Starting)
}
