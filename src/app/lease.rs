//! How long a session goes on, and whether it stands still: deadlines, pausing, waking, and who hears of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{App, AppError};
use crate::base::clock::Timestamp;
use crate::base::id::SessionId;
use crate::model::event::AuditEvent;
use crate::model::principal::Principal;
use crate::model::query::AuditFilter;
use crate::model::session::{Phase, Reason, Session};
use crate::policy::Action;
use crate::session::handle::SessionHandle;
use crate::session::manager::{check_egress, check_idle, check_labels};
use crate::session::wish::Change;
use crate::store::Store;

/// Records that are read at once for a stream of events.
const EVENTS: u32 = 100;

/// What the events of a session are made of.
const KINDS: &[&str] = &["session.phase"];

impl App {
    /// Makes a session stand still; the session then. So already is success.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn pause_session(
        &self,
        principal: &Principal,
        id: SessionId,
    ) -> Result<Arc<Session>, AppError> {
        let handle = self.live(principal, id).await?;
        let reason = match principal {
            Principal::Client(_) => Reason::Client,
            Principal::Operator { .. } | Principal::Remote { .. } | Principal::Daemon => {
                Reason::Operator
            }
        };
        let work = async move { handle.pause(reason).await };
        self.recorded(principal, id, AuditEvent::SessionPause {}, work, |_| None)
            .await
    }

    /// Wakes a session, which then has so many seconds or its whole lifetime; the session then. One that is awake
    /// gets the seconds.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn resume_session(
        &self,
        principal: &Principal,
        id: SessionId,
        timeout_s: Option<u64>,
    ) -> Result<Arc<Session>, AppError> {
        let handle = self.live(principal, id).await?;
        let work = async move { handle.resume(timeout_s).await };
        let event = AuditEvent::SessionResume { timeout_s };
        self.recorded(principal, id, event, work, |_| None).await
    }

    /// Gives a session other deadlines or labels; the session then.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn change_session(
        &self,
        principal: &Principal,
        id: SessionId,
        change: Change,
    ) -> Result<Arc<Session>, AppError> {
        let handle = self.live(principal, id).await?;
        check_idle(change.idle_timeout_s.filter(|seconds| *seconds > 0))
            .map_err(AppError::Session)?;
        if let Some(labels) = &change.labels {
            check_labels(labels).map_err(AppError::Session)?;
        }
        check_egress(change.egress.as_ref()).map_err(AppError::Session)?;
        let event = AuditEvent::SessionChange {
            timeout_s: change.timeout_s,
            idle_timeout_s: change.idle_timeout_s,
            on_timeout: change.on_timeout,
            labels: change.labels.is_some(),
            egress: change
                .egress
                .as_ref()
                .map(|rules| rules.keys().cloned().collect()),
        };
        let work = async move { handle.change(change).await };
        self.recorded(principal, id, event, work, |_| None).await
    }

    /// What happens to a session, from its beginning or after an event that was seen; it ends with the session.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn session_events(
        &self,
        principal: &Principal,
        id: SessionId,
        after: i64,
    ) -> Result<SessionEvents, AppError> {
        self.session(principal, id).await?;
        Ok(SessionEvents {
            store: self.0.store.clone(),
            handle: self.0.sessions.handle(id),
            filter: AuditFilter {
                session: Some(id),
                after,
                limit: EVENTS,
                kinds: KINDS.iter().map(ToString::to_string).collect(),
                ..AuditFilter::default()
            },
            read: VecDeque::new(),
        })
    }

    /// The handle of a session that the principal may change and that has not ended.
    async fn live(&self, principal: &Principal, id: SessionId) -> Result<SessionHandle, AppError> {
        self.reach(principal, id, Action::ChangeSession).await?;
        match self.0.sessions.handle(id) {
            Some(handle) => Ok(handle),
            None => Err(self.ended(id).await),
        }
    }
}

/// One thing that happened to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEvent {
    /// Its place among all that is recorded: a stream goes on after it.
    pub position: i64,
    /// When.
    pub at: Timestamp,
    /// The phase that it left.
    pub from: Phase,
    /// The phase that it is in then.
    pub to: Phase,
    /// Why.
    pub reason: Option<Reason>,
}

/// What happens to one session, as it was recorded.
pub struct SessionEvents {
    store: Store,
    handle: Option<SessionHandle>,
    filter: AuditFilter,
    read: VecDeque<SessionEvent>,
}

impl SessionEvents {
    /// The next one; `None` when the session has ended and all was told. May be dropped and called again.
    ///
    /// # Errors
    /// [`AppError::Store`].
    pub async fn next(&mut self) -> Option<Result<SessionEvent, AppError>> {
        loop {
            if let Some(event) = self.read.pop_front() {
                return Some(Ok(event));
            }
            // Before reading, so that nothing between the two is missed.
            let seen = self.handle.as_ref().map(SessionHandle::snapshot);
            let records = match self.store.audit(self.filter.clone()).await {
                Ok(records) => records,
                Err(error) => return Some(Err(AppError::Store(error))),
            };
            if let Some((position, _)) = records.last() {
                self.filter.after = *position;
                self.read
                    .extend(records.into_iter().filter_map(|(position, record)| {
                        let AuditEvent::SessionPhase { from, to, reason } = record.event else {
                            return None;
                        };
                        Some(SessionEvent {
                            position,
                            at: record.at,
                            from,
                            to,
                            reason,
                        })
                    }));
                continue;
            }
            let (handle, seen) = (self.handle.as_ref()?, seen?);
            let generation = seen.status.generation;
            let other = |session: &Session| session.status.generation != generation;
            let now = handle.wait_until(Duration::MAX, other).await;
            if now.status.generation == generation {
                // Its runner is gone: the daemon stops, or the last was told.
                return None;
            }
        }
    }
}
