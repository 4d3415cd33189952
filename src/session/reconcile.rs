//! Store against runtime against link directories, when the daemon starts and every half minute.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use tracing::{info, warn};

use super::SessionError;
use super::launch::Door;
use super::manager::{House, Sessions};
use super::runner::Start;
use crate::base::chain::Chain;
use crate::base::id::SessionId;
use crate::model::event::AuditEvent;
use crate::model::principal::Principal;
use crate::model::sandbox::{SandboxId, SandboxState};

/// What was found and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Live sessions that got a runner again.
    pub taken_up: usize,
    /// Sandboxes that no live session owned.
    pub orphans_removed: usize,
    /// Link directories that no live session owned.
    pub doors_removed: usize,
}

impl Sessions {
    /// Gives every live session of the store a runner, and removes what none of them owns. Touches
    /// only sandboxes with this installation's label. What cannot be removed now is the next sweep's: it must not keep the
    /// sessions from their clients.
    ///
    /// # Errors
    /// When the store or the runtime cannot be read: then the machine is not in a state to start from.
    pub async fn reconcile(&self) -> Result<Reconciled, SessionError> {
        self.compare(false).await
    }

    /// The same of a state that was restored from a backup: a session that has no sandbox any more has ended.
    ///
    /// # Errors
    /// As [`Sessions::reconcile`].
    pub async fn reconcile_restored(&self) -> Result<Reconciled, SessionError> {
        self.compare(true).await
    }

    async fn compare(&self, was_restored: bool) -> Result<Reconciled, SessionError> {
        let house = &self.house;
        let live = house
            .store
            .live_sessions()
            .await
            .map_err(SessionError::Store)?;
        let found = house
            .runtime
            .list(house.store.installation())
            .await
            .map_err(SessionError::Runtime)?;
        let mut owned: HashMap<SessionId, Vec<SandboxState>> = live
            .iter()
            .map(|session| (session.id, Vec::new()))
            .collect();
        let mut orphans = Vec::new();
        for state in found {
            match state.session.and_then(|session| owned.get_mut(&session)) {
                Some(states) => states.push(state),
                None => orphans.push(state.id),
            }
        }
        self.sweep_volumes(true).await?;
        let mut stale = self.doors()?;
        stale.retain(|id| !owned.contains_key(id));
        let mut done = Reconciled {
            doors_removed: self.remove_doors(stale),
            ..Reconciled::default()
        };
        for session in live {
            let states = owned.remove(&session.id).unwrap_or_default();
            let intent = house.audit.unfinished_creation(session.id).await;
            let intent = intent.map_err(SessionError::Audit)?;
            let place = self.place_of(&session);
            let start = if was_restored && states.is_empty() {
                Start::Restored
            } else {
                Start::Found(states)
            };
            self.spawn(session, start, intent, place);
            done.taken_up += 1;
        }
        for orphan in orphans {
            match self.remove_orphan(&orphan).await {
                Ok(()) => done.orphans_removed += 1,
                Err(error) => {
                    warn!(sandbox = %orphan, error = %Chain(&error), "cannot remove a sandbox that no session owns yet");
                }
            }
        }
        Ok(done)
    }

    /// Removes what no live session owns, as at the start, while sessions come and go; then what the runtime has forgotten
    /// itself. Each thing by itself: one that cannot be removed or recorded now keeps none of the others, and is found again.
    ///
    /// # Errors
    /// The first of them, after all else is done: when the store, the runtime or the link directory cannot be read, or an
    /// orphan cannot be removed or recorded.
    pub async fn sweep(&self) -> Result<Reconciled, SessionError> {
        let mut done = Reconciled::default();
        let orphans = self.sweep_sandboxes(&mut done).await;
        let doors = self.sweep_doors(&mut done).await;
        let volumes = self.sweep_volumes(false).await;
        let forgotten = self.house.runtime.tidy().await;
        if done != Reconciled::default() {
            warn!(
                orphans_removed = done.orphans_removed,
                doors_removed = done.doors_removed,
                "removed what no session owned"
            );
        }
        orphans
            .and(doors)
            .and(volumes.map(drop))
            .and(forgotten.map_err(SessionError::Runtime))
            .map(|()| done)
    }

    async fn sweep_sandboxes(&self, done: &mut Reconciled) -> Result<(), SessionError> {
        let house = &self.house;
        let found = house.runtime.list(house.store.installation()).await;
        let mut outcome = Ok(());
        for state in found.map_err(SessionError::Runtime)? {
            match self.sweep_sandbox(&state).await {
                Ok(removed) => done.orphans_removed += usize::from(removed),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// Whether it was an orphan, and is removed. One that ended meanwhile is gone, and was none.
    async fn sweep_sandbox(&self, state: &SandboxState) -> Result<bool, SessionError> {
        let is_orphan = !self.is_owned(state.session).await? && self.is_there(&state.id).await?;
        if is_orphan {
            self.remove_orphan(&state.id).await?;
        }
        Ok(is_orphan)
    }

    async fn sweep_doors(&self, done: &mut Reconciled) -> Result<(), SessionError> {
        let mut stale = BTreeSet::new();
        for id in self.doors()? {
            if !self.is_owned(Some(id)).await? {
                stale.insert(id);
            }
        }
        done.doors_removed = self.remove_doors(stale);
        Ok(())
    }

    /// Whether a session that is live has what was found. Asked after the finding: a session is in the table and in the
    /// store before anything of it is made, and in the store until nothing is left, also when it has no runner.
    async fn is_owned(&self, session: Option<SessionId>) -> Result<bool, SessionError> {
        let Some(id) = session else {
            return Ok(false);
        };
        if self.pool.has(id) || self.handle(id).is_some() {
            return Ok(true);
        }
        let kept = self.house.store.session(id).await;
        let kept = kept.map_err(SessionError::Store)?;
        Ok(kept.is_some_and(|session| session.ended_at.is_none()))
    }

    async fn is_there(&self, sandbox: &SandboxId) -> Result<bool, SessionError> {
        let found = self.house.runtime.inspect(sandbox).await;
        Ok(found.map_err(SessionError::Runtime)?.is_some())
    }

    async fn remove_orphan(&self, orphan: &SandboxId) -> Result<(), SessionError> {
        let event = AuditEvent::SandboxOrphan {
            container: orphan.to_string(),
        };
        let fact = self.house.audit.fact(&Principal::Daemon, None, event).await;
        fact.map_err(SessionError::Audit)?;
        info!(sandbox = %orphan, "removing a sandbox that no session owns");
        self.house
            .runtime
            .remove(orphan)
            .await
            .map_err(SessionError::Runtime)
    }

    /// The sessions of which there is something in the link directory.
    fn doors(&self) -> Result<BTreeSet<SessionId>, SessionError> {
        let root: &Path = &self.house.link_root;
        let failed = |source| SessionError::System {
            doing: "read the link directory",
            source,
        };
        // A session's directory and token are one door.
        let mut doors = BTreeSet::new();
        for entry in std::fs::read_dir(root).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(id) = name.to_str().and_then(Door::owner_of) {
                doors.insert(id);
            } else if !name.to_str().is_some_and(House::is_checkpoint) {
                // Not ours to judge.
                warn!(name = ?name, "something strange lies in the link directory");
            }
        }
        Ok(doors)
    }

    fn remove_doors(&self, stale: BTreeSet<SessionId>) -> usize {
        let mut removed = 0;
        for id in stale {
            match Door::remove(&self.house.link_root, id) {
                Ok(()) => removed += 1,
                Err(error) => {
                    warn!(session = %id, error = %Chain(&error), "cannot remove a link directory");
                }
            }
        }
        removed
    }
}
