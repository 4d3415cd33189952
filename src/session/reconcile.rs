//! Store against runtime against link directories, when the daemon starts.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use tracing::{info, warn};

use super::SessionError;
use super::launch::Door;
use super::manager::Sessions;
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
    /// only sandboxes with this installation's label.
    ///
    /// # Errors
    /// When the store or the runtime cannot be read, or an orphan cannot be removed: then the
    /// machine is not in a state to start from.
    pub async fn reconcile(&self) -> Result<Reconciled, SessionError> {
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
        let mut done = Reconciled {
            doors_removed: self.remove_doors(|id| owned.contains_key(&id))?,
            ..Reconciled::default()
        };
        for session in live {
            let states = owned.remove(&session.id).unwrap_or_default();
            let intent = house.audit.unfinished_creation(session.id).await;
            let intent = intent.map_err(SessionError::Audit)?;
            self.spawn(session, Start::Found(states), intent);
            done.taken_up += 1;
        }
        for orphan in orphans {
            self.remove_orphan(&orphan).await?;
            done.orphans_removed += 1;
        }
        Ok(done)
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

    fn remove_doors(&self, owned: impl Fn(SessionId) -> bool) -> Result<usize, SessionError> {
        let root: &Path = &self.house.link_root;
        let failed = |source| SessionError::System {
            doing: "clear the link directory",
            source,
        };
        // A session's directory and token are one door.
        let mut stale = BTreeSet::new();
        for entry in std::fs::read_dir(root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            match name.to_str().and_then(Door::owner_of) {
                Some(id) if owned(id) => {}
                Some(id) => {
                    stale.insert(id);
                }
                // Not ours to judge.
                None => warn!(name = ?name, "something strange lies in the link directory"),
            }
        }
        let mut removed = 0;
        for id in stale {
            match Door::remove(root, id) {
                Ok(()) => removed += 1,
                Err(error) => {
                    warn!(session = %id, error = %Chain(&error), "cannot remove a link directory");
                }
            }
        }
        Ok(removed)
    }
}
