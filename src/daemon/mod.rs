//! Floor 11: assembly. Everything below is put together here, started, watched and ended.
//!
//! ```text
//!  settings -> machine -> state -> runtime -> sessions -> doors      (start.rs; each step may refuse)
//!     serve until a signal or the end of a core task                 (mod.rs)
//!  doors shut -> calls finish -> sessions left or ended -> state     (drain, mod.rs)
//! ```

mod check;
pub mod checks;
pub mod logging;
mod places;
mod reload;
mod restore;
mod start;
pub mod tasks;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

pub use self::restore::{RestoreOptions, Wish, restore};

use self::logging::{Logging, Sink};
use self::start::{Ground, House, Refusal};
use crate::audit::mirror::Mirror;
use crate::backup::{self, Backups};
use crate::base::chain::Chain;
use crate::base::clock::SystemClock;
use crate::base::exit::Exit;
use crate::config::Config;
use crate::host::journal::SOCKET as JOURNAL;
use crate::host::notify::Notifier;
use crate::host::signals::{Signal, Signals};
use crate::host::{HostError, harden, lock, realm, syscalls};
use crate::model::event::AuditEvent;
use crate::model::principal::Principal;
use crate::model::settings::OnShutdown;
use crate::session::manager::{Sessions, Settings};
use crate::session::reconcile::Reconciled;
use crate::store::{Store, StoreError};

/// How long calls in flight may take to finish when the daemon stops.
const CALL_GRACE: Duration = Duration::from_secs(10);

/// How long sessions may take to be left or ended when the daemon stops.
const SESSION_GRACE: Duration = Duration::from_secs(30);

/// How long what is left of the record may take to be signed and copied.
const RECORD_GRACE: Duration = Duration::from_secs(10);

/// How long the log may take to be written at the very end.
const LOG_GRACE: Duration = Duration::from_secs(2);

/// How often the service manager is told how things are, if they changed.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// Time between two looks for what no session owns.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The main configuration file.
    pub config: PathBuf,
    /// Start up to serving, say how it went, and end.
    pub check: bool,
}

/// Runs the daemon to its end.
#[must_use]
pub fn run(options: &Options) -> Exit {
    let config = match Config::load(&options.config) {
        Ok(config) => config,
        Err(problems) => {
            complain(&problems.to_string());
            return Exit::Config;
        }
    };
    // Before the first thread: what is forbidden here belongs to the whole process, or to all that this thread starts.
    let hardened = harden::refuse_root().and_then(|()| restrict(&config, &options.config));
    let logging = match Logging::start(&config.log.level) {
        Ok(logging) => logging,
        Err(problem) => {
            complain(&format!("{problem:#}"));
            return Exit::Software;
        }
    };
    let exit = match hardened.map_err(Refusal::from) {
        Ok(()) => start_and_serve(options, config, &logging),
        Err(refusal) => Err(refusal),
    };
    let exit = exit.unwrap_or_else(|refusal| {
        error!("{}", refusal.text);
        refusal.exit
    });
    if !logging.close(LOG_GRACE) {
        complain("the end of the log did not reach the journal in time");
    }
    exit
}

/// Gives up all that the daemon never needs.
fn restrict(config: &Config, settings: &Path) -> Result<(), HostError> {
    harden::restrict()?;
    places::make(config)?;
    realm::confine(&places::of_daemon(config, settings))?;
    syscalls::forbid()
}

/// What is wrong before there is a log. journald takes stderr too.
fn complain(text: &str) {
    use std::io::Write;
    // Nothing is left to do when even stderr is closed.
    let _ = writeln!(std::io::stderr().lock(), "casemated: {text}");
}

fn start_and_serve(options: &Options, config: Config, logging: &Logging) -> Result<Exit, Refusal> {
    let signals = Signals::install()?;
    let ground = match Ground::prepare(&config, &options.config) {
        Ok(ground) => Some(ground),
        // A running daemon holds the state; everything else can still be checked.
        Err(refusal) if options.check && refusal.exit == Exit::AlreadyRunning => {
            info!(
                "another casemated holds {}; its state is not checked",
                config.state_dir.display()
            );
            None
        }
        Err(refusal) => return Err(refusal),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("casemate")
        .enable_all()
        .build()
        .map_err(|error| {
            Refusal::new(Exit::Software, format!("start the async runtime: {error}"))
        })?;
    runtime.block_on(async {
        let machine = start::probe(&config).await?;
        let Some(ground) = ground else {
            return Ok(Exit::Ok);
        };
        let facts = machine.facts.clone();
        let (lock, house) = ground.furnish(&config, machine).await?;
        if let Err(refusal) = house.scene.pass(facts).await {
            house.close().await;
            return Err(refusal);
        }
        if options.check {
            house.close().await;
            drop(lock);
            info!("all is well: {} would start", options.config.display());
            return Ok(Exit::Ok);
        }
        serve(options, config, logging, signals, lock, house).await
    })
}

async fn serve(
    options: &Options,
    mut config: Config,
    logging: &Logging,
    mut signals: Signals,
    lock: lock::StateLock,
    mut house: House,
) -> Result<Exit, Refusal> {
    let notifier = Notifier::from_env();
    let tasks = tasks::Tasks::new();
    // Those that tend the record: they end after everything that is recorded.
    let keepers = tasks::Tasks::new();
    keep_record(&house, logging, &keepers).await?;
    restore::load_images(&house, &config, notifier).await?;
    let templates = house.number_templates(&config.templates).await?;
    house.sessions.reload(Settings {
        sessions: config.sessions.clone(),
        templates,
    });
    let reconciled = take_up(&config, &mut house).await?;
    keep_house(&config, &house, &tasks);
    house.open_doors(&config, &tasks, CALL_GRACE).await?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let started = AuditEvent::DaemonStart { version };
    house
        .audit
        .fact(&Principal::Daemon, None, started)
        .await
        .map_err(|error| {
            Refusal::new(
                Exit::IoError,
                format!("record the start: {}", Chain(&error)),
            )
        })?;
    info!(
        listen = %config.http.listen,
        socket = %config.runtime_dir.join("admin.sock").display(),
        taken_up = reconciled.taken_up,
        orphans_removed = reconciled.orphans_removed,
        "casemated is ready"
    );
    let mut status = house.status();
    notifier.ready(&status);

    let mut routine = tokio::time::interval(
        notifier
            .watchdog_interval()
            .unwrap_or(STATUS_INTERVAL)
            .min(STATUS_INTERVAL),
    );
    routine.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let exit = loop {
        tokio::select! {
            // An end outranks everything; what is asked for outranks routine.
            biased;
            failure = tasks.failed() => {
                error!("{failure}");
                break Exit::Software;
            }
            failure = keepers.failed() => {
                error!("{failure}");
                break Exit::Software;
            }
            signal = signals.next() => match signal {
                Signal::Stop => break Exit::Ok,
                Signal::Reload => {
                    notifier.reloading();
                    if let Err(problems) = reload::reload(&options.config, &mut config, logging, &house).await {
                        error!("not reloaded: {problems}");
                    }
                    notifier.ready(&house.status());
                }
            },
            Some(answer) = house.reloads.recv() => {
                notifier.reloading();
                let outcome = reload::reload(&options.config, &mut config, logging, &house).await;
                notifier.ready(&house.status());
                // Whoever asked may have gone.
                let _ = answer.send(outcome);
            }
            _ = routine.tick() => {
                // Fed by what the daemon is for: a commit that goes through.
                feed(&notifier, &house.store).await;
                let now = house.status();
                if now != status {
                    notifier.status(&now);
                    status = now;
                }
            }
        }
    };
    drain(&config, &notifier, &tasks, &keepers, house).await;
    drop(lock);
    Ok(exit)
}

/// Starts what looks after everything beside the calls.
fn keep_house(config: &Config, house: &House, tasks: &tasks::Tasks) {
    let stop = || tasks.stopping();
    tasks.spawn_core("pool", keep_warm(house.sessions.clone(), stop()));
    tasks.spawn_core("sweep", sweep(house.sessions.clone(), stop()));
    tasks.spawn_core("backup", keep_backups(house.backups.clone(), stop()));
    let (retention, stopping) = (house.retention.clone(), stop());
    tasks.spawn_core("retention", async move {
        retention.keep(stopping).await;
        Ok(())
    });
    let (tokens, clock, stopping) = (Arc::clone(&house.tokens), Arc::new(SystemClock), stop());
    tasks.spawn_core("tokens", async move {
        tokens.keep(clock, stopping).await;
        Ok(())
    });
    let check = check::keep(house.store.clone(), config.store.check_every, stop());
    tasks.spawn_core("check", check);
}

/// Looks whether the record is still what was written, then starts what tends it.
async fn keep_record(
    house: &House,
    logging: &Logging,
    keepers: &tasks::Tasks,
) -> Result<(), Refusal> {
    let audit = &house.audit;
    audit.check_end(house.was_signed).await.map_err(|error| {
        Refusal::new(
            Exit::IoError,
            format!("look at the audit log: {}", Chain(&error)),
        )
    })?;
    let mirror = match logging.sink() {
        Sink::Journal => Mirror::Journal(JOURNAL.into()),
        Sink::Stderr => Mirror::Log,
    };
    let log = || (audit.clone(), keepers.stopping());
    let (signing, stop) = log();
    keepers.spawn_core("checkpoints", async move {
        signing.keep_checkpoints(stop).await;
        Ok(())
    });
    let (counting, stop) = log();
    keepers.spawn_core("tally", async move {
        counting.keep_tally(stop).await;
        Ok(())
    });
    let (app, stop) = (house.app.clone(), keepers.stopping());
    keepers.spawn("keys", async move {
        app.keep_keys(stop).await;
        Ok(())
    });
    let (app, stop) = (house.app.clone(), keepers.stopping());
    keepers.spawn("accesses", async move {
        app.keep_accesses(stop).await;
        Ok(())
    });
    let (pool, stop) = (house.app.pool().clone(), keepers.stopping());
    keepers.spawn("endpoints", async move {
        pool.keep(stop).await;
        Ok(())
    });
    let (copying, stop) = log();
    keepers.spawn("mirror", async move {
        copying.keep_mirror(mirror, stop).await;
        Ok(())
    });
    Ok(())
}

/// Takes up the sessions, of a restored state those whose sandboxes still run.
async fn take_up(config: &Config, house: &mut House) -> Result<Reconciled, Refusal> {
    let reconciled = match &house.restored {
        Some(mark) => {
            house.record_restore(mark).await?;
            house.sessions.reconcile_restored().await
        }
        None => house.sessions.reconcile().await,
    };
    let reconciled = reconciled.map_err(|error| {
        Refusal::new(
            Exit::Unavailable,
            format!("take up the sessions: {}", Chain(&error)),
        )
    })?;
    if house.restored.take().is_some() {
        backup::swap::forget_mark(&config.state_dir)?;
    }
    Ok(reconciled)
}

/// Tells the service manager that we live: by what the daemon is for, a commit that goes through.
async fn feed(notifier: &Notifier, store: &Store) {
    store.keep_reserve();
    match store.check_writable().await {
        Ok(()) => notifier.watchdog(),
        Err(error) => {
            warn!(error = %Chain(&error), "the state cannot be written");
            // No restart mends the disk, and what can still be read and ended can be only while we live.
            if matches!(error, StoreError::Full(_) | StoreError::Damaged { .. }) {
                notifier.watchdog();
            }
        }
    }
}

/// Holds sandboxes ready, and lets go of them when the daemon stops.
async fn keep_warm(sessions: Sessions, stop: CancellationToken) -> anyhow::Result<()> {
    sessions.keep_warm(stop).await;
    Ok(())
}

/// Makes backups when their time has come.
async fn keep_backups(backups: Backups, stop: CancellationToken) -> anyhow::Result<()> {
    backups.keep(stop).await;
    Ok(())
}

/// Removes every half minute what no session owns. What fails now is tried again, and told where it is told of everything.
async fn sweep(sessions: Sessions, stop: CancellationToken) -> anyhow::Result<()> {
    loop {
        sessions.sweep_images().await;
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
        match sessions.sweep().await {
            Ok(_) => debug!("looked for what no session owns"),
            Err(error) => {
                warn!(error = %Chain(&error), "cannot look for or remove all that no session owns");
            }
        }
    }
}

/// Shuts the doors, lets calls finish, leaves or ends the sessions, closes the state.
async fn drain(
    config: &Config,
    notifier: &Notifier,
    tasks: &tasks::Tasks,
    keepers: &tasks::Tasks,
    house: House,
) {
    info!("stopping");
    notifier.stopping("stopping: finishing calls");
    house.sessions.close();
    // Whoever waits for one is answered before the doors shut.
    house.backups.close().await;
    house.retention.close().await;
    for late in tasks.join(CALL_GRACE + Duration::from_secs(1)).await {
        warn!(task = late, "a task did not end in time");
    }
    house.calls.close();
    if tokio::time::timeout(CALL_GRACE, house.calls.wait())
        .await
        .is_err()
    {
        warn!(
            left = house.calls.len(),
            "programs still run; their sessions go on without their callers"
        );
    }
    match config.sessions.on_shutdown {
        OnShutdown::Keep => house.sessions.leave_all(SESSION_GRACE).await,
        OnShutdown::Stop => house.sessions.end_all(SESSION_GRACE).await,
    }
    let stopped = house
        .audit
        .fact(&Principal::Daemon, None, AuditEvent::DaemonStop {})
        .await;
    if let Err(error) = stopped {
        error!(error = %Chain(&error), "cannot record the stop");
    }
    if let Err(error) = house.audit.checkpoint().await {
        error!(error = %Chain(&error), "cannot sign the audit log at the stop");
    }
    for late in keepers.join(RECORD_GRACE).await {
        warn!(task = late, "a task did not end in time");
    }
    house.close().await;
    info!("stopped");
}
