//! Hardening checks: one list, from which the start, `casemate doctor` and `docs/hardening.md` come.
//!
//! In production mode the daemon does not start while one fails, and says the names and what to do, never what it found;
//! development mode says the same and starts. Advice is said and keeps nobody from anything. What comes before the checks (the
//! settings can be read, podman answers, the state opens) has refusals of its own.

mod files;
mod machine;
mod podman;
mod process;
mod settings;

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
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
use crate::store::Store;

/// How long a check may take.
const PATIENCE: Duration = Duration::from_secs(30);

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
    podman::SUB_IDS,
    podman::LIMITS,
    podman::IMAGES,
    podman::VOLUMES,
    settings::MODE,
    settings::LISTEN,
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
];

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
}

/// One look at all of it.
struct Sight {
    scene: Arc<Scene>,
    /// What podman says of itself, asked once.
    facts: OnceCell<Result<RuntimeFacts, String>>,
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
    pub(super) async fn examine(self: &Arc<Self>, known: Option<RuntimeFacts>) -> Vec<Examined> {
        let sight = Sight {
            scene: Arc::clone(self),
            facts: OnceCell::new_with(known.map(Ok)),
        };
        let mut all = Vec::with_capacity(CHECKS.len());
        for check in CHECKS {
            all.push(check.examine(&sight).await);
        }
        all
    }

    /// For whoever asks later.
    pub(super) fn for_the_door(self: &Arc<Self>) -> Examine {
        let scene = Arc::clone(self);
        Arc::new(move || {
            let scene = Arc::clone(&scene);
            Box::pin(async move { scene.examine(None).await })
        })
    }

    /// Looks before the start, when podman has just said what it is.
    ///
    /// # Errors
    /// In production mode: what failed, by name and with what to do.
    pub(super) async fn pass(self: &Arc<Self>, known: RuntimeFacts) -> Result<(), Refusal> {
        let examined = self.examine(Some(known)).await;
        let is_strict = self.config().mode == Mode::Production;
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
                CHECKS.len(),
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
                .unwrap_or_else(|_| Err("there was no answer in time".to_owned())),
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
