//! What becomes of a session's time: it is paused and woken, its deadlines are moved, and in the end it is over.
//!
//! Each change is written down before it counts: a store that fails leaves the session as it was.

use std::time::Duration;

use casemate_link::daemon::Link;
use tracing::warn;

use super::SessionError;
use super::launch::{Door, End};
use super::runner::Life;
use super::state::Event;
use super::wish::{Change, Order, Wish};
use crate::base::chain::Chain;
use crate::model::lease::OnTimeout;
use crate::model::sandbox::SandboxId;
use crate::model::session::{Phase, Reason};

impl Life {
    /// Fulfils a wish, or says why not; an error ends the session.
    pub(super) async fn obey(
        &mut self,
        door: &mut Door,
        sandbox: &SandboxId,
        link: &mut Option<Link>,
        wish: Wish,
    ) -> Result<(), End> {
        let Wish { order, done } = wish;
        let answer = match order {
            Order::Pause(reason) => self.pause(sandbox, reason).await,
            Order::Resume(timeout_s) => self.resume(door, sandbox, link, timeout_s).await?,
            Order::Change(change) => self.alter(change).await,
        };
        // Whoever asked may be gone.
        let _ = done.send(answer);
        Ok(())
    }

    /// Stops the session, or pauses it, as it was asked for.
    pub(super) async fn time_is_over(
        &mut self,
        sandbox: &SandboxId,
        reason: Reason,
    ) -> Result<(), End> {
        let end = End::new(
            reason,
            match reason {
                Reason::Idle => "nobody used it for as long as it may be idle",
                _ => "its time was over",
            },
        );
        if self.session.lease.on_timeout == OnTimeout::Stop {
            return Err(end);
        }
        // What cannot be paused is stopped: its time is over.
        self.pause(sandbox, reason).await.map_err(|_| end)
    }

    /// Makes the sandbox stand still. It is written down first: a daemon that finds it standing still must know why.
    async fn pause(&mut self, sandbox: &SandboxId, reason: Reason) -> Result<(), SessionError> {
        if self.session.status.phase == Phase::Paused {
            return Ok(());
        }
        self.link.send_replace(None);
        let before = self.session.lease.clone();
        self.session.lease.paused_at = Some(self.house.clock.now());
        if let Err(error) = self.step(Event::Pause { reason }).await {
            self.session.lease = before;
            return Err(error);
        }
        let Err(error) = self.house.runtime.pause(sandbox).await else {
            return Ok(());
        };
        // It may stand still all the same. Where nobody can tell, it is taken for what is written down.
        if self.house.runtime.resume(sandbox).await.is_ok() {
            let paused = std::mem::replace(&mut self.session.lease, before);
            if self.step(Event::Resume).await.is_err() {
                self.session.lease = paused;
            }
        }
        Err(SessionError::Runtime(error))
    }

    /// Lets the sandbox go on, and waits for its guest; an error ends the session.
    async fn resume(
        &mut self,
        door: &mut Door,
        sandbox: &SandboxId,
        link: &mut Option<Link>,
        timeout_s: Option<u64>,
    ) -> Result<Result<(), SessionError>, End> {
        if let Err(error) = self.check_timeout(timeout_s) {
            return Ok(Err(error));
        }
        if self.session.status.phase != Phase::Paused {
            let change = Change {
                timeout_s,
                ..Change::default()
            };
            return Ok(self.alter(change).await);
        }
        if let Err(error) = self.house.runtime.resume(sandbox).await {
            return Ok(Err(SessionError::Runtime(error)));
        }
        if link.as_ref().is_none_or(Link::is_closed) {
            let patience = self.house.settings().reattach_timeout;
            *link = Some(door.await_guest(&self.house, sandbox, patience).await?);
        }
        let before = self.session.lease.clone();
        self.activity.touch();
        self.session.lease.paused_at = None;
        self.session.lease.active_at = Some(self.house.clock.now());
        self.last_for(timeout_s.unwrap_or(self.session.spec.timeout_s));
        let woken = self.step(Event::Resume).await;
        if woken.is_err() {
            self.session.lease = before;
            // What is written down is that it stands still.
            if let Err(error) = self.house.runtime.pause(sandbox).await {
                warn!(session = %self.session.id, error = %Chain(&error), "a session that counts as paused runs");
            }
        }
        Ok(woken)
    }

    /// Gives the session other deadlines or labels, or leaves it as it is.
    async fn alter(&mut self, change: Change) -> Result<(), SessionError> {
        if change == Change::default() {
            return Ok(());
        }
        self.check_timeout(change.timeout_s)?;
        if change.timeout_s.is_some() && self.session.status.phase == Phase::Paused {
            // Its time stands still; whoever wakes it says how much it has.
            return Err(SessionError::NotReady {
                phase: self.session.status.phase,
                reason: self.session.status.reason,
            });
        }
        let before = self.session.clone();
        if let Some(timeout_s) = change.timeout_s {
            self.last_for(timeout_s);
        }
        let lease = &mut self.session.lease;
        if let Some(idle_timeout_s) = change.idle_timeout_s {
            lease.idle_timeout_s = Some(idle_timeout_s).filter(|seconds| *seconds > 0);
            // Its time begins now, also for a daemon that comes after.
            lease.active_at = Some(self.house.clock.now());
            self.activity.touch();
        }
        lease.on_timeout = change.on_timeout.unwrap_or(lease.on_timeout);
        if let Some(labels) = change.labels {
            self.session.spec.labels = labels;
        }
        if change.egress.is_some() {
            self.session.spec.egress.own = change.egress;
        }
        let kept = self.put_down(None).await;
        if kept.is_err() {
            self.session = before;
        }
        kept
    }

    fn check_timeout(&self, timeout_s: Option<u64>) -> Result<(), SessionError> {
        let most = self.session.lease.max_timeout_s;
        match timeout_s {
            Some(timeout_s) if !(1..=most).contains(&timeout_s) => Err(SessionError::Invalid {
                field: "timeout_s",
                problem: format!("the session allows 1 to {most}"),
            }),
            _ => Ok(()),
        }
    }

    fn last_for(&mut self, timeout_s: u64) {
        let now = self.house.clock.now();
        self.session.lease.ends_at = now.after(Duration::from_secs(timeout_s));
    }
}
