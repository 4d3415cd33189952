//! Backups on demand, and how the daemon is in detail: one list of checks for every door.

use std::path::PathBuf;

use tokio::sync::watch;

use super::{App, AppError};
use crate::backup::{Made, Progress};
use crate::base::clock::Timestamp;
use crate::model::principal::Principal;
use crate::policy::{Action, Resource};

/// One thing that the daemon stands on or looks after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What.
    pub name: &'static str,
    /// Whether the daemon cannot do its work while it is not well.
    pub is_needed: bool,
    /// What is wrong, for operators: it may name causes.
    pub problem: Option<String>,
}

impl App {
    /// Makes a backup: in its directory, or as the file `to`; with images where they are wanted. One at a time.
    ///
    /// # Errors
    /// [`AppError::Backup`].
    pub async fn make_backup(
        &self,
        principal: &Principal,
        to: Option<PathBuf>,
        with_images: bool,
        progress: watch::Sender<Progress>,
    ) -> Result<Made, AppError> {
        self.allow(principal, Action::Administer, &Resource::default())?;
        let made = self
            .0
            .backups
            .make(principal, to, with_images, progress)
            .await;
        made.map_err(AppError::Backup)
    }

    /// When the newest backup was made.
    #[must_use]
    pub fn last_backup(&self) -> Option<Timestamp> {
        self.0.backups.known().last
    }

    /// Everything that is looked at: what readiness needs, and what an operator should know of beside it.
    pub async fn health(&self) -> Vec<HealthCheck> {
        let needed = self.readiness().await.checks.into_iter();
        let mut checks: Vec<_> = needed
            .map(|(name, problem)| HealthCheck {
                name,
                is_needed: true,
                problem,
            })
            .collect();
        let beside = |name, problem| HealthCheck {
            name,
            is_needed: false,
            problem,
        };
        let unenforced = self.facts().unenforced_limits.join(" ");
        checks.extend([
            beside("backup", self.0.backups.problem()),
            beside("retention", self.0.retention.problem()),
            beside("volumes", self.volumes_problem().map(str::to_owned)),
            beside(
                "limits",
                (!unenforced.is_empty()).then(|| {
                    format!("this machine does not enforce from outside a sandbox: {unenforced}")
                }),
            ),
        ]);
        checks
    }
}
