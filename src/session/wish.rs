//! What others ask of a session's runner, beside its end: they wait in a short queue, in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::SessionError;
use super::handle::SessionHandle;
use crate::model::egress::EgressRules;
use crate::model::lease::OnTimeout;
use crate::model::session::{Reason, Session};

/// Wishes that wait for one session.
const QUEUE: usize = 8;

/// How long somebody waits for a wish to be fulfilled: podman's own deadline for a sandbox, and some more.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What is wished.
#[derive(Debug)]
pub(super) enum Order {
    /// That it stands still. So already is success.
    Pause(Reason),
    /// That it goes on, for so many seconds or as long as when it began. So already is success.
    Resume(Option<u64>),
    /// That it has other deadlines or labels.
    Change(Change),
}

/// What shall be otherwise; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Seconds from now until its time is over.
    pub timeout_s: Option<u64>,
    /// How long it may be idle, in seconds; 0: for as long as it lives.
    pub idle_timeout_s: Option<u64>,
    /// What happens when either is over.
    pub on_timeout: Option<OnTimeout>,
    /// Instead of those it has.
    pub labels: Option<BTreeMap<String, String>>,
    /// Its own rules for what it reaches, instead of those it has.
    pub egress: Option<EgressRules>,
}

/// An order, and who waits for it.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) order: Order,
    pub(super) done: oneshot::Sender<Result<(), SessionError>>,
}

pub(super) fn queue() -> (mpsc::Sender<Wish>, mpsc::Receiver<Wish>) {
    mpsc::channel(QUEUE)
}

impl SessionHandle {
    /// Makes the session stand still, and waits until it does.
    ///
    /// # Errors
    /// [`SessionError::NotReady`], [`SessionError::Overloaded`], [`SessionError::Runtime`].
    pub async fn pause(&self, reason: Reason) -> Result<Arc<Session>, SessionError> {
        self.wish(Order::Pause(reason)).await
    }

    /// Wakes the session, and waits until its guest answers. It then has so many seconds, or its whole lifetime.
    ///
    /// # Errors
    /// As [`SessionHandle::pause`]; [`SessionError::Invalid`].
    pub async fn resume(&self, timeout_s: Option<u64>) -> Result<Arc<Session>, SessionError> {
        self.wish(Order::Resume(timeout_s)).await
    }

    /// Gives the session other deadlines or labels.
    ///
    /// # Errors
    /// As [`SessionHandle::resume`]; then nothing is changed.
    pub async fn change(&self, change: Change) -> Result<Arc<Session>, SessionError> {
        self.wish(Order::Change(change)).await
    }

    async fn wish(&self, order: Order) -> Result<Arc<Session>, SessionError> {
        let (done, answer) = oneshot::channel();
        let wish = Wish { order, done };
        match self.wishes.try_send(wish) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(SessionError::Overloaded),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(self.not_ready()),
        }
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => answer.map(|()| self.snapshot()),
            // It ended first.
            Ok(Err(_)) => Err(self.not_ready()),
            Err(_) => Err(SessionError::Overloaded),
        }
    }
}
