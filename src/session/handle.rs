//! What everybody but the runner holds of a session.

use std::sync::Arc;
use std::time::Duration;

use casemate_link::Usage;
use casemate_link::daemon::Link;
use tokio::sync::{Semaphore, mpsc, watch};

use super::SessionError;
use super::activity::{Activity, Use};
use super::launch::End;
use super::reached::Reached;
use super::usage::Looks;
use super::wish::{self, Wish};
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
    pub(super) wishes: mpsc::Sender<Wish>,
    activity: Activity,
    pub(super) runs: Arc<Semaphore>,
    looks: Looks,
    reached: Reached,
}

/// The runner's ends of a handle.
pub(super) struct RunnerEnds {
    pub(super) state: watch::Sender<Arc<Session>>,
    pub(super) link: watch::Sender<Option<Link>>,
    pub(super) end: watch::Receiver<Option<End>>,
    pub(super) wishes: mpsc::Receiver<Wish>,
    pub(super) activity: Activity,
    pub(super) looks: Looks,
    pub(super) reached: Reached,
}

impl SessionHandle {
    /// `idle` is for how long nobody has used it already.
    pub(super) fn new(session: Session, idle: Duration) -> (Self, RunnerEnds) {
        let (state_in, state) = watch::channel(Arc::new(session));
        let (link_in, link) = watch::channel(None);
        let (end, end_out) = watch::channel(None);
        let (wishes, wishes_out) = wish::queue();
        let activity = Activity::unused_for(idle);
        let looks = Looks::default();
        let reached = Reached::default();
        let handle = Self {
            looks: looks.clone(),
            reached: reached.clone(),
            state,
            link,
            end,
            wishes,
            activity: activity.clone(),
            runs: Arc::new(Semaphore::new(CONCURRENT_RUNS)),
        };
        let ends = RunnerEnds {
            state: state_in,
            link: link_in,
            end: end_out,
            wishes: wishes_out,
            activity,
            looks,
            reached,
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

    /// The bounds that it reached.
    #[must_use]
    pub const fn reached(&self) -> &Reached {
        &self.reached
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

    /// Begins to use the session: wakes it when it is paused, and counts for as long as the answer is held.
    ///
    /// # Errors
    /// As [`SessionHandle::resume`], [`SessionHandle::link`].
    pub(super) async fn begin(&self, patience: Duration) -> Result<(Link, Use), SessionError> {
        let using = self.activity.begin();
        if self.state.borrow().status.phase == Phase::Paused {
            match self.resume(None).await {
                // Of many at once the first wake it for all.
                Err(SessionError::Overloaded) => {
                    let awake = |session: &Session| session.status.phase != Phase::Paused;
                    self.wait_until(wish::PATIENCE, awake).await;
                }
                woken => drop(woken?),
            }
        }
        Ok((self.link(patience).await?, using))
    }

    /// The link to the session's guest, for whoever only looks; waits a moment while it is being established.
    ///
    /// # Errors
    /// [`SessionError::NotReady`].
    pub async fn link(&self, patience: Duration) -> Result<Link, SessionError> {
        if self.state.borrow().status.phase != Phase::Ready {
            return Err(self.not_ready());
        }
        let mut link = self.link.clone();
        let waited = tokio::time::timeout(patience, link.wait_for(Option::is_some)).await;
        match waited {
            Ok(Ok(link)) => link.clone().ok_or_else(|| self.not_ready()),
            Ok(Err(_)) | Err(_) => Err(self.not_ready()),
        }
    }

    pub(super) fn not_ready(&self) -> SessionError {
        let session = self.state.borrow();
        SessionError::NotReady {
            phase: session.status.phase,
            reason: session.status.reason,
        }
    }
}
