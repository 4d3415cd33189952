//! The order of assembly, and what each step refuses. A refusal says what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tracing::warn;
use zeroize::Zeroizing;

use super::checks::{MakeCanary, Scene};
use super::restore;
use super::tasks::Tasks;
use crate::admin::AdminServer;
use crate::api::tls::{Tls, TlsError};
use crate::api::{Browsers, Server, ServerConfig};
use crate::app::{Accesses, App, KeyRing, Links, Parts as AppParts, RemoteDesk, RuleBook};
use crate::audit::retention::Retention;
use crate::audit::{AuditLog, Signer, SignerError};
use crate::backup::keeper::Parts as BackupParts;
use crate::backup::{Backups, images, swap};
use crate::base::chain::Chain;
use crate::base::clock::{Clock, SystemClock, Timestamp};
use crate::base::exit::Exit;
use crate::base::secret::Secret;
use crate::config::Config;
use crate::credential::authority::NoAuthority;
use crate::credential::{self, Credentials, NoVault};
use crate::endpoint::Pool;
use crate::host::credential::{DIRECTORY as CREDENTIALS, Source};
use crate::host::memory;
use crate::host::{HostError, directory, lock, users};
use crate::identity::jwt::{IssuerError, Tokens};
use crate::identity::operator::{OperatorToken, OperatorTokens};
use crate::identity::{HASH_KEY_BYTES, HASH_KEY_FILE, KeyHasher};
use crate::model::event::AuditEvent;
use crate::model::image::ImageDigest;
use crate::model::name::Name;
use crate::model::principal::Principal;
use crate::model::settings::OperatorConfig;
use crate::model::template::{Template, TemplateSpec};
use crate::runtime::podman::Podman;
use crate::runtime::{RuntimeError, RuntimeFacts, SandboxRuntime};
use crate::session::canary::{CanaryPlan, NoCanary};
use crate::session::manager::{Parts as SessionParts, Sessions, Settings};
use crate::session::volumes::Volumes;
use crate::store::{self, Store, StoreError};
use crate::vault::{Vault, VaultError};

/// Mode of the directory of links: the sandbox group passes through, and what is made in it belongs
/// to that group (the set-group-id bit, inode(7)).
const LINK_ROOT_MODE: u32 = 0o2710;

/// Why the daemon does not start: its exit code, and a sentence that says what to do.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) exit: Exit,
    pub(super) text: String,
}

impl Refusal {
    pub(super) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self {
            exit,
            text: text.into(),
        }
    }
}

impl From<HostError> for Refusal {
    fn from(error: HostError) -> Self {
        Self::new(error.exit(), Chain(&error).to_string())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let exit = match error {
            StoreError::Newer { .. } | StoreError::NotOurs { .. } => Exit::Config,
            StoreError::Damaged { .. } => Exit::Damaged,
            StoreError::Open { .. } | StoreError::NoCopy { .. } => Exit::CantCreate,
            _ => Exit::IoError,
        };
        Self::new(exit, Chain(&error).to_string())
    }
}

impl From<VaultError> for Refusal {
    fn from(error: VaultError) -> Self {
        let exit = match error {
            VaultError::Io { .. } | VaultError::NotInPlace { .. } | VaultError::NoRandomness => {
                Exit::IoError
            }
            _ => Exit::Refused,
        };
        Self::new(exit, Chain(&error).to_string())
    }
}

impl From<NoVault> for Refusal {
    fn from(error: NoVault) -> Self {
        match error {
            NoVault::Vault(error) => error.into(),
            NoVault::Store(error) => error.into(),
        }
    }
}

impl From<NoAuthority> for Refusal {
    fn from(error: NoAuthority) -> Self {
        match error {
            NoAuthority::Vault(error) => error.into(),
            NoAuthority::Store(error) => error.into(),
            NoAuthority::Authority(error) => Self::new(Exit::Refused, Chain(&error).to_string()),
        }
    }
}

impl From<TlsError> for Refusal {
    fn from(error: TlsError) -> Self {
        let exit = if error.is_exposed() {
            Exit::Refused
        } else {
            Exit::Config
        };
        Self::new(exit, Chain(&error).to_string())
    }
}

impl From<SignerError> for Refusal {
    fn from(error: SignerError) -> Self {
        match error {
            SignerError::Vault(error) => error.into(),
            SignerError::Store(error) => error.into(),
        }
    }
}

impl From<RuntimeError> for Refusal {
    fn from(error: RuntimeError) -> Self {
        let exit = match error {
            RuntimeError::Unfit { .. } | RuntimeError::NotAsAsked { .. } => Exit::Refused,
            _ => Exit::Unavailable,
        };
        Self::new(exit, Chain(&error).to_string())
    }
}

/// The machine is ours: directories are there and safe, the state is locked.
pub(super) struct Ground {
    lock: lock::StateLock,
    link_root: PathBuf,
    sandbox_group: u32,
    hasher: KeyHasher,
    settings: PathBuf,
    restored: Option<swap::Mark>,
}

/// What the runtime is, and how to reach it.
pub(super) struct Machine {
    runtime: Arc<dyn SandboxRuntime>,
    pub(super) facts: RuntimeFacts,
}

/// The assembled daemon.
pub(super) struct House {
    pub(super) app: App,
    pub(super) sessions: Sessions,
    pub(super) store: Store,
    pub(super) audit: AuditLog,
    pub(super) runtime: Arc<dyn SandboxRuntime>,
    pub(super) calls: TaskTracker,
    pub(super) tokens: Arc<Tokens>,
    pub(super) operators: Arc<OperatorTokens>,
    pub(super) reloads: mpsc::Receiver<oneshot::Sender<Result<(), String>>>,
    /// The HTTP door's certificate, where it has one.
    pub(super) tls: Option<Arc<Tls>>,
    /// Whether the record was signed before this start.
    pub(super) was_signed: bool,
    pub(super) backups: Backups,
    pub(super) retention: Retention,
    /// What the state was restored from, when this is the first daemon since.
    pub(super) restored: Option<swap::Mark>,
    /// What the hardening checks look at.
    pub(super) scene: Arc<Scene>,
    /// The operator's rules.
    pub(super) rules: Arc<RuleBook>,
}

impl Ground {
    /// Locks the state, makes what is below the directories, reads the hash key.
    pub(super) fn prepare(config: &Config, path: &Path) -> Result<Self, Refusal> {
        directory::probe_writable(&config.state_dir)?;
        let lock = lock::StateLock::acquire(&config.state_dir)?;
        let restored = restore::settle(config)?;
        let link_root = config.runtime_dir.join("link");
        directory::ensure(&link_root, directory::LINKS_MODE)?;
        let group = users::group_id(&config.sandbox_group)?;
        directory::give_to_group(&link_root, group, LINK_ROOT_MODE)?;
        let hasher = hash_key(&config.state_dir.join(HASH_KEY_FILE))?;
        Ok(Self {
            lock,
            link_root,
            sandbox_group: group,
            hasher,
            settings: path.to_owned(),
            restored,
        })
    }

    /// Opens the state and puts everything together, up to the doors.
    pub(super) async fn furnish(
        self,
        config: &Config,
        machine: Machine,
    ) -> Result<(lock::StateLock, House), Refusal> {
        let Machine { runtime, facts } = machine;
        let tls = tls(config)?;
        let path = config.state_dir.join(store::FILE_NAME);
        let store = Store::open_with(&path, config.audit.flush_every)?;
        store.keep_reserve();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let vault = vault(&store, &config.state_dir).await?;
        let (signer, was_signed) = Signer::open(&store, &vault, clock.now()).await?;
        let audit = AuditLog::new(store.clone(), Arc::clone(&clock));
        let audit = audit.with(config.audit.clone(), signer);
        let links = links(&store, &vault).await?;
        let opener = credential::authority::open(&store, &vault, Arc::clone(&clock)).await?;
        let credentials = Credentials::new(store.clone(), vault, audit.clone());
        let volumes = volumes(config, &store, self.sandbox_group, &facts);
        let sessions = Sessions::new(SessionParts {
            opener,
            lender: Arc::new(credentials.clone()),
            memory: Box::new(memory::available_bytes),
            runtime: Arc::clone(&runtime),
            store: store.clone(),
            audit: audit.clone(),
            clock: Arc::clone(&clock),
            link_root: self.link_root,
            volumes,
            settings: Settings {
                sessions: config.sessions.clone(),
                // They are numbered when the daemon serves: whoever only checks leaves no trace.
                templates: BTreeMap::new(),
            },
        });
        let backups = Backups::new(BackupParts {
            store: store.clone(),
            audit: audit.clone(),
            runtime: Arc::clone(&runtime),
            clock: Arc::clone(&clock),
            config: config.backup.clone(),
            templates: Config::templates_beside(&self.settings),
            images_of_files: Box::new(images_of_files(sessions.clone())),
        });
        let scene = Arc::new(Scene {
            config: RwLock::new(Arc::new(config.clone())),
            path: self.settings,
            store: store.clone(),
            audit: audit.clone(),
            runtime: Arc::clone(&runtime),
            backups: backups.clone(),
            clock: Arc::clone(&clock),
            canary: canary(sessions.clone(), config),
        });
        let retention = Retention::new(audit.clone());
        let rules = rules(config, &store).await?;
        let calls = TaskTracker::new();
        let tokens = tokens(config, calls.clone(), clock.as_ref()).await?;
        let operators = operators(config, clock.now())?;
        let (reload, reloads) = mpsc::channel(1);
        let app = App::new(AppParts {
            sessions: sessions.clone(),
            store: store.clone(),
            audit: audit.clone(),
            runtime: Arc::clone(&runtime),
            facts,
            hasher: self.hasher,
            keys: KeyRing::default(),
            rules: Arc::clone(&rules),
            tokens: Arc::clone(&tokens),
            operators: Arc::clone(&operators),
            desk: RemoteDesk::default(),
            clock,
            reload,
            calls: calls.clone(),
            snapshots: crate::app::Snapshots::default(),
            backups: backups.clone(),
            credentials,
            pool: Pool::new(config.endpoints.clone()),
            accesses: Accesses::default(),
            links,
            retention: retention.clone(),
            readiness: Mutex::new(None),
            examine: Scene::for_the_door(&scene),
        });
        let house = House {
            app,
            sessions,
            store,
            audit,
            runtime,
            calls,
            tokens,
            operators,
            reloads,
            tls,
            was_signed,
            backups,
            retention,
            restored: self.restored,
            scene,
            rules,
        };
        Ok((self.lock, house))
    }
}

impl House {
    /// The templates of the files with their numbers: what says something new has a new one.
    pub(super) async fn number_templates(
        &self,
        specs: &BTreeMap<Name, TemplateSpec>,
    ) -> Result<BTreeMap<Name, Template>, StoreError> {
        let by = Principal::Daemon.to_string();
        let now = self.app.now();
        self.store.number_templates(specs.clone(), by, now).await
    }

    /// Opens the HTTP port and the admin socket; each is a task without which there is no daemon.
    pub(super) async fn open_doors(
        &self,
        config: &Config,
        tasks: &Tasks,
        grace: Duration,
    ) -> Result<(), Refusal> {
        let listen = config.http.listen;
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            Refusal::new(
                Exit::Unavailable,
                format!("listen on {listen}: {error}; is another program there? set http.listen to a free address"),
            )
        })?;
        let server = ServerConfig {
            max_body_bytes: config.http.max_body_bytes,
            max_connections: config.http.max_connections,
            header_timeout: config.http.header_timeout,
            tls: self.tls.clone(),
            limits: config.http.limits,
            browsers: Browsers {
                hosts: config.http.hosts.clone(),
                origins: config.http.origins.clone(),
            },
        };
        let server = Server::new(self.app.clone(), server)
            .map_err(|error| Refusal::new(Exit::Software, Chain(&error).to_string()))?;
        let path = config.runtime_dir.join("admin.sock");
        let admin = AdminServer::bind(&path, self.app.clone(), config.admin.group.clone())
            .map_err(|error| Refusal::new(Exit::CantCreate, Chain(&error).to_string()))?;
        let stop = tasks.stopping();
        tasks.spawn_core("http", ended(server.serve(listener, stop.clone(), grace)));
        tasks.spawn_core("admin", ended(admin.serve(stop, grace)));
        Ok(())
    }

    /// Records that the state was restored, before anything is done with it.
    pub(super) async fn record_restore(&self, mark: &swap::Mark) -> Result<(), Refusal> {
        let event = AuditEvent::StateRestore {
            made_at: mark.made_at,
            restored_at: mark.restored_at,
        };
        let recorded = self.audit.fact(&Principal::Daemon, None, event).await;
        recorded.map_err(|error| {
            let text = format!("record the restore: {}", Chain(&error));
            Refusal::new(Exit::IoError, text)
        })
    }

    /// Closes the state.
    pub(super) async fn close(self) {
        let Self {
            store,
            app,
            sessions,
            audit,
            backups,
            retention,
            scene,
            ..
        } = self;
        // The store's threads end only when every handle on it is gone.
        drop((app, sessions, audit, backups, retention, scene));
        store.close().await;
    }

    /// One sentence that an operator wants.
    pub(super) fn status(&self) -> String {
        let max = self.app.settings().sessions.max;
        let live = self.app.live_sessions();
        if let Err(error) = self.store.check_room() {
            return format!("{error}; {live} of {max} sessions");
        }
        let backup = match (self.backups.known().last, self.backups.problem()) {
            (_, Some(_)) => "backups fail, see casemate admin status".to_owned(),
            (Some(at), None) => format!("last backup {at}"),
            (None, None) => "no backup yet".to_owned(),
        };
        format!("ready, {live} of {max} sessions, {backup}")
    }
}

/// Makes a canary of a template of the files' : `base`, where there is one.
fn canary(sessions: Sessions, config: &Config) -> MakeCanary {
    let mut templates = config.templates.iter();
    let first = templates.clone().next();
    let template = templates.find(|(name, _)| name.as_str() == "base");
    let template = template.or(first).map(|(_, template)| template.clone());
    let turn = Arc::new(Mutex::new(()));
    Box::new(move |with_memory, with_disk| {
        let (sessions, template, turn) = (sessions.clone(), template.clone(), Arc::clone(&turn));
        Box::pin(async move {
            let Ok(_turn) = turn.try_lock() else {
                let why = "another one is being made; ask again when that has ended";
                return Err(NoCanary::NotMade(why.to_owned()));
            };
            let Some(template) = template else {
                let why = "there is no template to make it of";
                return Err(NoCanary::NotMade(why.to_owned()));
            };
            let plan = CanaryPlan {
                template,
                with_memory,
                with_disk,
            };
            sessions.canary(plan).await
        })
    })
}

async fn ended(door: impl Future<Output = ()>) -> anyhow::Result<()> {
    door.await;
    Ok(())
}

/// Finds out what the daemon stands on: podman, gVisor, the images.
pub(super) async fn probe(config: &Config) -> Result<Machine, Refusal> {
    let runtime = Podman::new(config.runtime.clone());
    let facts = runtime.probe().await?;
    for limit in &facts.unenforced_limits {
        warn!(
            limit,
            "this machine does not enforce a limit of sandboxes from outside (no delegated control groups)"
        );
    }
    let waiting = images::waiting(&config.state_dir);
    check_images(&runtime, &config.templates, &waiting).await?;
    Ok(Machine {
        runtime: Arc::new(runtime),
        facts,
    })
}

/// Makes sure that every template's image is there, or waits to be loaded.
pub(super) async fn check_images(
    runtime: &dyn SandboxRuntime,
    templates: &BTreeMap<Name, TemplateSpec>,
    waiting: &[(ImageDigest, PathBuf)],
) -> Result<(), Refusal> {
    if templates.is_empty() {
        return Ok(());
    }
    let images = runtime.images().await?;
    let missing: Vec<String> = templates
        .iter()
        .filter(|(_, spec)| images.iter().all(|image| image.digest != spec.image))
        .filter(|(_, spec)| waiting.iter().all(|(image, _)| *image != spec.image))
        .map(|(name, spec)| format!("the template {name} needs the image {}", spec.image))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Refusal::new(
        Exit::Unavailable,
        format!(
            "{}, which podman's store does not hold; load it (podman --url unix://SOCKET load -i ARCHIVE) or take the template out",
            missing.join("; ")
        ),
    ))
}

/// Where systemd's credentials are.
pub(super) fn credentials() -> Option<PathBuf> {
    std::env::var_os(CREDENTIALS).map(PathBuf::from)
}

/// The certificate of the HTTP door.
fn tls(config: &Config) -> Result<Option<Arc<Tls>>, TlsError> {
    let tls = config.http.tls.clone();
    let tls = tls.map(|tls| Tls::open(tls, credentials())).transpose()?;
    Ok(tls.map(Arc::new))
}

/// Tells which images the templates of the files name now.
fn images_of_files(sessions: Sessions) -> impl Fn() -> BTreeSet<ImageDigest> + Send + Sync {
    move || {
        let settings = sessions.settings();
        let templates = settings.templates.values();
        templates.map(|template| template.spec.image).collect()
    }
}

/// Who may administer from elsewhere.
fn operators(config: &Config, now: Timestamp) -> Result<Arc<OperatorTokens>, Refusal> {
    let token = operator_token(config.http.operator.as_ref());
    let token = token.map_err(|problem| Refusal::new(Exit::Config, problem))?;
    let operators = OperatorTokens::default();
    operators.replace(token.as_ref(), now, Duration::ZERO);
    Ok(Arc::new(operators))
}

/// The operator token, where there is one; what is wrong with it, as a sentence that does not repeat it.
pub(super) fn operator_token(
    operator: Option<&OperatorConfig>,
) -> Result<Option<OperatorToken>, String> {
    let Some(operator) = operator else {
        return Ok(None);
    };
    let named = |problem: &dyn std::fmt::Display| format!("http.operator.token: {problem}");
    let read = Source(&operator.token).read(credentials().as_deref(), true);
    let bytes = read.map_err(|error| named(&Chain(&error)))?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    let token = OperatorToken::parse(text);
    token
        .map(Some)
        .map_err(|error| named(&format_args!("what is in {} {error}", operator.token)))
}

/// Whoever verifies the tokens of the issuers in the settings.
async fn tokens(
    config: &Config,
    calls: TaskTracker,
    clock: &dyn Clock,
) -> Result<Arc<Tokens>, Refusal> {
    let tokens = Tokens::new(credentials(), calls);
    let trusted = tokens.prepare(config.jwt.clone(), clock.now()).await;
    let trusted = trusted.map_err(|problems| Refusal::new(Exit::Config, in_words(&problems)))?;
    tokens.trust(trusted);
    Ok(Arc::new(tokens))
}

/// Each issuer whose keys cannot be had, on a line.
pub(super) fn in_words(problems: &[IssuerError]) -> String {
    let lines = problems.iter().map(|problem| Chain(problem).to_string());
    lines.collect::<Vec<_>>().join("\n")
}

/// The volumes, or why this machine cannot have any.
fn volumes(config: &Config, store: &Store, group: u32, facts: &RuntimeFacts) -> Volumes {
    let mut volumes = Volumes::new(config.volumes.clone(), store.installation());
    let prepared = volumes.files.prepare(group);
    volumes.problem = prepared.err().or_else(|| facts.volumes_problem.clone());
    if let Some(problem) = &volumes.problem {
        warn!(
            problem,
            "this machine cannot have volumes; sessions that want none are none the worse"
        );
    }
    volumes
}

/// The operator's rules, those of files and those of the store.
async fn rules(config: &Config, store: &Store) -> Result<Arc<RuleBook>, Refusal> {
    let rules = Arc::<RuleBook>::default();
    rules.set_files(config.policy.clone());
    rules.read_stored(store).await?;
    Ok(rules)
}

/// The vault of the state, with the key that belongs to it.
async fn vault(store: &Store, state_dir: &Path) -> Result<Vault, Refusal> {
    Ok(credential::vault_of(store, credentials().as_deref(), state_dir).await?)
}

/// What signed links to ports are made with.
async fn links(store: &Store, vault: &Vault) -> Result<Links, Refusal> {
    let opened = Links::open(store, vault).await;
    opened.map_err(|error| Refusal::new(Exit::IoError, Chain(&error).to_string()))
}

/// The key of the keyed hash of API keys; made when there is none.
fn hash_key(path: &Path) -> Result<KeyHasher, Refusal> {
    let failed = |doing: &str, error: std::io::Error| {
        Refusal::new(
            Exit::IoError,
            format!("{doing} {}: {error}", path.display()),
        )
    };
    let mut key = Zeroizing::new([0_u8; HASH_KEY_BYTES]);
    match OpenOptions::new().read(true).open(path) {
        Ok(mut file) => {
            let found = file.metadata().map_err(|error| failed("look at", error))?;
            if found.permissions().mode() & 0o077 != 0 {
                return Err(Refusal::new(
                    Exit::Refused,
                    format!(
                        "{} can be read by others; chmod 0600 it, and make new API keys if somebody did",
                        path.display()
                    ),
                ));
            }
            if found.len() != HASH_KEY_BYTES as u64 {
                return Err(Refusal::new(
                    Exit::IoError,
                    format!(
                        "{} is damaged; restore it from a backup, or remove it and make new API keys",
                        path.display()
                    ),
                ));
            }
            file.read_exact(key.as_mut_slice())
                .map_err(|error| failed("read", error))?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            getrandom::fill(key.as_mut_slice())
                .map_err(|error| failed("make a random key for", std::io::Error::other(error)))?;
            directory::write_secret(path, key.as_slice())
                .map_err(|error| failed("write", error))?;
        }
        Err(error) => return Err(failed("open", error)),
    }
    let key = Secret::new(*key);
    Ok(KeyHasher::new(&key))
}
