//! What everybody but the runner holds of a session.

use std::sync::Arc;
use std::time::Duration;

use casemate_link::Usage;
use casemate_link::daemon::Link;
use tokio::sync::{Semaphore, watch};

use super::SessionError;
use super::launch::End;
use super::usage::Looks;
use crate::base::id::SessionId;
use crate::model::session::{Phase, Session};

/// Most programs that clients run in one session at a time. Each holds a stream of the link and
/// its output in memory.
pub const CONCURRENT_RUNS: usize = 64;

/// Reads, ends and uses one session. Cheap to clone.
#[derive(Clone)]
pub struct SessionHandle {
    state: watch::Receiver<Arc<Session>>,
    link: watch::Receiver<Option<Link>>,
    end: watch::Sender<Option<End>>,
    pub(super) runs: Arc<Semaphore>,
    looks: Looks,
}

/// The runner's ends of a handle.
pub(super) struct RunnerEnds {
    pub(super) state: watch::Sender<Arc<Session>>,
    pub(super) link: watch::Sender<Option<Link>>,
    pub(super) end: watch::Receiver<Option<End>>,
    pub(super) looks: Looks,
}

impl SessionHandle {
    pub(super) fn new(session: Session) -> (Self, RunnerEnds) {
        let (state_in, state) = watch::channel(Arc::new(session));
        let (link_in, link) = watch::channel(None);
        let (end, end_out) = watch::channel(None);
        let looks = Looks::default();
        let handle = Self {
            looks: looks.clone(),
            state,
            link,
            end,
            runs: Arc::new(Semaphore::new(CONCURRENT_RUNS)),
        };
        let ends = RunnerEnds {
            state: state_in,
            link: link_in,
            end: end_out,
            looks,
        };
        (handle, ends)
    }

    /// Which session.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.state.borrow().id
    }

    /// The session as it was last published.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Session> {
        Arc::clone(&self.state.borrow())
    }

    /// What the session used lately, oldest first.
    #[must_use]
    pub fn past_usage(&self) -> Vec<Usage> {
        self.looks.all()
    }

    /// Asks the session to end. The first reason stays.
    pub fn end(&self, end: End) {
        self.end.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                *slot = Some(end);
            }
            first
        });
    }

    /// Waits until the session satisfies `enough`, or until `patience` is over; the session then.
    pub async fn wait_until(
        &self,
        patience: Duration,
        enough: impl Fn(&Session) -> bool,
    ) -> Arc<Session> {
        let mut state = self.state.clone();
        let waited =
            tokio::time::timeout(patience, state.wait_for(|session| enough(session))).await;
        match waited {
            Ok(Ok(session)) => Arc::clone(&session),
            // Time is over, or the runner is gone: what it said last is the truth.
            Ok(Err(_)) | Err(_) => self.snapshot(),
        }
    }

    /// The link to the session's guest; waits a moment while it is being established.
    ///
    /// # Errors
    /// [`SessionError::NotReady`].
    pub async fn link(&self, patience: Duration) -> Result<Link, SessionError> {
        let session = self.snapshot();
        let not_ready = |session: &Session| SessionError::NotReady {
            phase: session.status.phase,
            reason: session.status.reason,
        };
        if session.status.phase != Phase::Ready {
            return Err(not_ready(&session));
        }
        let mut link = self.link.clone();
        let waited = tokio::time::timeout(patience, link.wait_for(Option::is_some)).await;
        match waited {
            Ok(Ok(link)) => link.clone().ok_or_else(|| not_ready(&session)),
            Ok(Err(_)) | Err(_) => Err(not_ready(&self.snapshot())),
        }
    }
}
