//! Refusals, counted: a flood of them is a few records with large numbers.
//!
//! Each kind of refusal has at most one record a minute: the first at once, then how many there were since. What is
//! kept is bounded; past that, those who cannot be told apart are counted together.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{AuditError, AuditLog};
use crate::base::chain::Chain;
use crate::base::id::SessionId;
use crate::model::event::{AuditEvent, AuditRecord, DoorLimit, Stage};
use crate::model::principal::Principal;

/// Least time between two records of the same.
const EVERY: Duration = Duration::from_secs(60);

/// Most that are told apart at one time, of strangers and of those who are known: neither takes the other's room.
const KINDS: usize = 1024;

/// Most of them of one session, which could else be told a thousand names.
const OF_SESSION: usize = 32;

/// Who is meant where there are too many.
const OTHERS: &str = "others";

/// What was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Refusal {
    /// No valid credentials, from this address.
    Unknown(Option<IpAddr>),
    /// More than an address may have, by nobody who is known.
    Crowded(Option<IpAddr>, DoorLimit),
    /// More than somebody who is known may have.
    Limited { principal: String, limit: DoorLimit },
    /// The policy said no.
    Denied {
        principal: String,
        action: &'static str,
        rule: String,
    },
    /// A program in a session was kept from reaching something outside.
    Egress {
        session: SessionId,
        host: Option<String>,
        port: u16,
        rule: String,
    },
}

impl Refusal {
    /// What is counted in its place where too many are told apart.
    fn among_others(self) -> Self {
        let others = || OTHERS.to_owned();
        match self {
            Self::Unknown(_) => Self::Unknown(None),
            Self::Crowded(_, limit) => Self::Crowded(None, limit),
            Self::Limited { limit, .. } => Self::Limited {
                principal: others(),
                limit,
            },
            Self::Denied { action, rule, .. } => Self::Denied {
                principal: others(),
                action,
                rule,
            },
            // There are no more of these than sessions and rules that always hold.
            Self::Egress { session, .. } => Self::Egress {
                session,
                host: Some(others()),
                port: 0,
                rule: others(),
            },
        }
    }

    /// Whether both are of one session.
    fn is_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Egress { session: one, .. }, Self::Egress { session: other, .. }) => {
                one == other
            }
            _ => false,
        }
    }
}

struct Count {
    attempts: u64,
    /// When the next record of it may be written.
    next: Instant,
}

/// What is not written yet, of strangers and of those who are known.
#[derive(Default)]
struct Counts {
    unknown: HashMap<Refusal, Count>,
    denied: HashMap<Refusal, Count>,
    egress: HashMap<Refusal, Count>,
}

impl Counts {
    fn of(&mut self, refusal: &Refusal) -> &mut HashMap<Refusal, Count> {
        match refusal {
            Refusal::Unknown(_) | Refusal::Crowded(..) => &mut self.unknown,
            Refusal::Denied { .. } | Refusal::Limited { .. } => &mut self.denied,
            Refusal::Egress { .. } => &mut self.egress,
        }
    }
}

/// What is not written yet, and who is told of it.
#[derive(Default)]
pub(super) struct Tally {
    counts: Mutex<Counts>,
    first: Notify,
}

impl Tally {
    pub(super) fn count(&self, refusal: Refusal) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = counts.of(&refusal);
        let is_room = counts.contains_key(&refusal)
            || counts.len() < KINDS
                && counts.keys().filter(|one| one.is_of(&refusal)).count() < OF_SESSION;
        let refusal = if is_room {
            refusal
        } else {
            refusal.among_others()
        };
        let now = Instant::now();
        let count = counts.entry(refusal).or_insert(Count {
            attempts: 0,
            next: now,
        });
        count.attempts = count.attempts.saturating_add(1);
        if count.next <= now {
            self.first.notify_one();
        }
    }

    /// Those whose time has come, and when the next one's will. All of them at the end.
    fn due(&self, is_end: bool) -> (Vec<(Refusal, u64)>, Option<Instant>) {
        let now = Instant::now();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of whom nothing was heard for a minute make room.
        let is_of_use = |count: &Count| count.attempts > 0 || count.next > now;
        counts.unknown.retain(|_, count| is_of_use(count));
        counts.denied.retain(|_, count| is_of_use(count));
        counts.egress.retain(|_, count| is_of_use(count));
        let Counts {
            unknown,
            denied,
            egress,
        } = &mut *counts;
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        for (refusal, count) in unknown.iter_mut().chain(denied).chain(egress) {
            if count.attempts > 0 && (is_end || count.next <= now) {
                due.push((refusal.clone(), std::mem::take(&mut count.attempts)));
                count.next = now + EVERY;
            }
            next = Some(next.map_or(count.next, |next| next.min(count.next)));
        }
        (due, next)
    }

    /// Gives back what could not be written.
    fn restore(&self, refusal: Refusal, attempts: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.of(&refusal).entry(refusal).or_insert(Count {
            attempts: 0,
            next: Instant::now() + EVERY,
        });
        count.attempts = count.attempts.saturating_add(attempts);
    }
}

impl AuditLog {
    /// Writes what was refused, until `stop`, and what is left then.
    pub async fn keep_tally(&self, stop: CancellationToken) {
        loop {
            let is_end = stop.is_cancelled();
            let (due, next) = self.tally.due(is_end);
            for (refusal, attempts) in due {
                if let Err(error) = self.write_refusal(&refusal, attempts).await {
                    warn!(error = %Chain(&error), "cannot record refusals");
                    self.tally.restore(refusal, attempts);
                }
            }
            if is_end {
                return;
            }
            let waiting = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = self.tally.first.notified() => {}
                () = waiting => {}
            }
        }
    }

    async fn write_refusal(&self, refusal: &Refusal, attempts: u64) -> Result<(), AuditError> {
        let from = |address: &Option<IpAddr>| {
            address.map_or_else(|| OTHERS.to_owned(), |address| address.to_string())
        };
        let (principal, event) = match refusal {
            Refusal::Unknown(address) => (
                "nobody".to_owned(),
                AuditEvent::AuthFailed {
                    address: from(address),
                    attempts,
                },
            ),
            Refusal::Crowded(address, limit) => (
                "nobody".to_owned(),
                AuditEvent::AccessLimited {
                    limit: *limit,
                    address: Some(from(address)),
                    attempts,
                },
            ),
            Refusal::Limited { principal, limit } => (
                principal.clone(),
                AuditEvent::AccessLimited {
                    limit: *limit,
                    address: None,
                    attempts,
                },
            ),
            Refusal::Denied {
                principal,
                action,
                rule,
            } => (
                principal.clone(),
                AuditEvent::AccessDenied {
                    action: (*action).to_owned(),
                    rule: rule.clone(),
                    attempts,
                },
            ),
            Refusal::Egress {
                session,
                host,
                port,
                rule,
            } => (
                super::inside(*session),
                AuditEvent::EgressDenied {
                    host: host.clone(),
                    port: *port,
                    rule: rule.clone(),
                    attempts,
                },
            ),
        };
        let session = match refusal {
            Refusal::Egress { session, .. } => Some(*session),
            _ => None,
        };
        let record = self.record(Stage::Fact, &Principal::Daemon, session, event)?;
        self.append(AuditRecord {
            principal,
            ..record
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_is_due_at_once_and_the_rest_a_minute_later() {
        let tally = Tally::default();
        let refusal = Refusal::Unknown(None);
        tally.count(refusal.clone());
        let (due, next) = tally.due(false);
        assert_eq!(due, [(refusal.clone(), 1)]);
        assert_eq!(next, Some(Instant::now() + EVERY));
        for _ in 0..7 {
            tally.count(refusal.clone());
        }
        assert_eq!(tally.due(false).0, []);
        tokio::time::advance(EVERY).await;
        assert_eq!(tally.due(false).0, [(refusal.clone(), 7)]);
        // One that could not be written is not forgotten, and comes at the end at the latest.
        tally.restore(refusal.clone(), 7);
        assert_eq!(tally.due(false).0, []);
        assert_eq!(tally.due(true).0, [(refusal, 7)]);
        tokio::time::advance(EVERY).await;
        assert_eq!(tally.due(false), (vec![], None));
        assert!(
            tally.counts.lock().unwrap().unknown.is_empty(),
            "it only grows"
        );
    }
}
