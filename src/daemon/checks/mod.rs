//! Hardening checks: one list, from which the start, `casemate doctor` and `docs/hardening.md` come.
//!
//! In production mode the daemon does not start while one fails, and says the names and what to do, never what it found;
//! development mode says the same and starts. Advice is said and keeps nobody from anything. What comes before the checks (the
//! settings can be read, podman answers, the state opens) has refusals of its own.

mod canary;
mod files;
mod machine;
mod podman;
mod process;
mod settings;

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::OnceCell;
use tracing::warn;

use super::start::Refusal;
use crate::app::Examine;
use crate::audit::AuditLog;
use crate::backup::Backups;
use crate::base::clock::Clock;
use crate::base::exit::Exit;
use crate::config::Config;
use crate::model::check::{Examined, Verdict};
use crate::model::settings::Mode;
use crate::runtime::{RuntimeFacts, SandboxRuntime};
use crate::session::canary::{Canary, NoCanary};
use crate::store::Store;

/// How long a check may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Of whoever was asked and did not answer within that.
const LATE: &str = "there was no answer in time";

/// One thing that must be so.
pub struct Check {
    /// Its stable name.
    pub name: &'static str,
    /// What must be so, and why.
    pub rule: &'static str,
    /// What to do when it is not.
    pub mend: &'static str,
    /// Whether it only says what would be better.
    pub is_advice: bool,
    look: Look,
}

/// What was found: `Err` where it is not as it must be. Effective values, never a secret.
type Found = Result<String, String>;

/// How it is looked at.
enum Look {
    /// At hand, without waiting.
    Here(fn(&Sight) -> Found),
    /// Somebody has to be asked.
    Asked(for<'a> fn(&'a Sight) -> BoxFuture<'a, Found>),
    /// By what was seen in a sandbox that was made for it.
    Canary(fn(&Seen) -> Found),
}

/// Every check, in the order in which they are shown.
pub const CHECKS: &[Check] = &[
    process::USER,
    process::NEW_PRIVILEGES,
    process::CORE_DUMPS,
    process::UMASK,
    process::OPEN_FILES,
    process::LANDLOCK,
    process::LANDLOCK_KERNEL,
    process::SECCOMP,
    files::STATE_DIRECTORY,
    files::KEY_FILES,
    files::SETTINGS_FILES,
    files::BACKUP_DIRECTORY,
    podman::RUNTIME,
    podman::PODMAN_VERSION,
    podman::CONMON_VERSION,
    podman::SUB_IDS,
    podman::LIMITS,
    podman::IMAGES,
    podman::VOLUMES,
    settings::MODE,
    settings::LISTEN,
    settings::HOSTS,
    settings::ORIGINS,
    settings::CERTIFICATE,
    settings::CERTIFICATE_LEFT,
    settings::ROOT_IN_TEMPLATES,
    settings::ARGV_IN_RECORD,
    settings::BACKUPS,
    settings::BACKUP_DISK,
    machine::DATABASE,
    machine::RECORD,
    machine::LAST_BACKUP,
    machine::CLOCK,
    machine::DISK,
    machine::MEMORY,
    canary::CANARY,
    canary::KERNEL,
    canary::NETWORK,
    canary::LIMITS,
];

/// What came of the canary.
type Seen = Result<Canary, NoCanary>;

/// Makes a canary: whether the machine bounds its memory, and whether to fill its disk.
pub(super) type MakeCanary = Box<dyn Fn(bool, bool) -> BoxFuture<'static, Seen> + Send + Sync>;

/// What podman says of itself.
type Facts = OnceCell<Result<RuntimeFacts, String>>;

/// How far a look goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// At what is there.
    NoCanary,
    /// And into a sandbox.
    Canary,
    /// Whose disk is filled as well.
    Whole,
}

/// What the checks look at.
pub(super) struct Scene {
    pub(super) config: RwLock<Arc<Config>>,
    /// The main file of the settings.
    pub(super) path: PathBuf,
    pub(super) store: Store,
    pub(super) audit: AuditLog,
    pub(super) runtime: Arc<dyn SandboxRuntime>,
    pub(super) backups: Backups,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) canary: MakeCanary,
}

/// One look at all of it.
struct Sight {
    scene: Arc<Scene>,
    /// What podman says of itself, asked once.
    facts: Arc<Facts>,
    /// Being made, beside everything else.
    canary: Option<Shared<BoxFuture<'static, Arc<Seen>>>>,
}

impl Sight {
    fn new(scene: &Arc<Scene>, known: Option<RuntimeFacts>, depth: Depth) -> Self {
        let facts = Arc::new(OnceCell::new_with(known.map(Ok)));
        let canary = (depth != Depth::NoCanary).then(|| {
            let (scene, facts) = (Arc::clone(scene), Arc::clone(&facts));
            // A task of its own, which clears up when nobody waits any more.
            let made = tokio::spawn(async move {
                let with_memory = podman::probed(&scene, &facts)
                    .await
                    .is_ok_and(|facts| !facts.unenforced_limits.contains(&"memory"));
                (scene.canary)(with_memory, depth == Depth::Whole).await
            });
            let seen = async {
                let panicked = |_| Err(NoCanary::NotMade("its task panicked".to_owned()));
                Arc::new(made.await.unwrap_or_else(panicked))
            };
            seen.boxed().shared()
        });
        Self {
            scene: Arc::clone(scene),
            facts,
            canary,
        }
    }
}

impl Deref for Sight {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        &self.scene
    }
}

impl Scene {
    /// The settings that hold.
    pub(super) fn config(&self) -> Arc<Config> {
        let config = self.config.read();
        Arc::clone(&config.unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on these are the settings.
    pub(super) fn reconfigure(&self, config: Config) {
        let mut held = self.config.write().unwrap_or_else(PoisonError::into_inner);
        *held = Arc::new(config);
    }

    /// Makes every check. What podman said a moment ago need not be asked again: that takes longer than all the others.
    async fn examine(self: &Arc<Self>, known: Option<RuntimeFacts>, depth: Depth) -> Vec<Examined> {
        let sight = Sight::new(self, known, depth);
        let mut all = Vec::with_capacity(CHECKS.len());
        for check in CHECKS {
            let needs_canary = matches!(check.look, Look::Canary(_));
            if !needs_canary || sight.canary.is_some() {
                all.push(check.examine(&sight).await);
            }
        }
        all
    }

    /// For whoever asks later.
    pub(super) fn for_the_door(self: &Arc<Self>) -> Examine {
        let scene = Arc::clone(self);
        Arc::new(move || {
            let scene = Arc::clone(&scene);
            Box::pin(async move { scene.examine(None, Depth::Whole).await })
        })
    }

    /// Looks before the start, when podman has just said what it is.
    ///
    /// # Errors
    /// In production mode: what failed, by name and with what to do.
    pub(super) async fn pass(self: &Arc<Self>, known: RuntimeFacts) -> Result<(), Refusal> {
        let is_strict = self.config().mode == Mode::Production;
        // A disk is not filled at each start.
        let depth = if is_strict {
            Depth::Canary
        } else {
            Depth::NoCanary
        };
        let examined = self.examine(Some(known), depth).await;
        let told =
            |one: &Examined| format!("{}: {}", one.name, one.mend.as_deref().unwrap_or_default());
        for one in examined.iter().filter(|one| one.verdict != Verdict::Passed) {
            if one.verdict == Verdict::Warned || !is_strict {
                warn!(
                    check = one.name,
                    verdict = one.verdict.as_str(),
                    "{}",
                    told(one)
                );
            }
        }
        let failed: Vec<_> = examined
            .iter()
            .filter(|one| one.verdict == Verdict::Failed)
            .map(told)
            .collect();
        if failed.is_empty() || !is_strict {
            return Ok(());
        }
        Err(Refusal::new(
            Exit::Refused,
            format!(
                "production mode does not start while {} of {} hardening checks fail\n  {}",
                failed.len(),
                examined.len(),
                failed.join("\n  ")
            ),
        ))
    }
}

impl Check {
    async fn examine(&self, sight: &Sight) -> Examined {
        let began = Instant::now();
        let found = match self.look {
            Look::Here(look) => look(sight),
            Look::Asked(look) => tokio::time::timeout(PATIENCE, look(sight))
                .await
                .unwrap_or_else(|_| Err(LATE.to_owned())),
            Look::Canary(judge) => match sight.canary.clone() {
                Some(seen) => match tokio::time::timeout(PATIENCE, seen).await {
                    Ok(seen) => judge(&seen),
                    Err(_) => judge(&Err(NoCanary::NotMade(LATE.to_owned()))),
                },
                None => Err("none was made".to_owned()),
            },
        };
        let verdict = match (&found, self.is_advice) {
            (Ok(_), _) => Verdict::Passed,
            (Err(_), true) => Verdict::Warned,
            (Err(_), false) => Verdict::Failed,
        };
        let mend = found.is_err().then(|| self.mend.to_owned());
        Examined {
            name: self.name.to_owned(),
            verdict,
            found: found.unwrap_or_else(|wrong| wrong),
            mend,
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests;
