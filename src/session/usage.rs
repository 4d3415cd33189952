//! What a session has used lately: a look at its guest now and then, the last few kept in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use casemate_link::Usage;
use casemate_link::daemon::{Link, LinkError};
use tokio::time::Instant;

/// Time between two looks. A look costs the sandbox a few milliseconds of processor time.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(15);

/// Longest silence of a guest whose sandbox lives, before its link counts as gone: longer than a loaded machine
/// keeps it waiting.
const SILENCE: Duration = Duration::from_secs(90);

/// Looks that are kept: half an hour.
const KEPT: usize = 120;

/// What a session uses now, and what it used before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageSeries {
    /// Now.
    pub now: Usage,
    /// Before, oldest first.
    pub past: Vec<Usage>,
}

/// The looks that are kept of one session. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Looks(Arc<Mutex<VecDeque<Usage>>>);

impl Looks {
    pub(super) fn add(&self, usage: Usage) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(usage);
    }

    fn last(&self) -> Option<Usage> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.back().cloned()
    }

    pub(super) fn all(&self) -> Vec<Usage> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().cloned().collect()
    }
}

/// The looks at one guest since it was linked: when it answered last, and when the next look is due. It outlives what
/// interrupts the looking, or a session that is often interrupted would never be looked at, and a silent guest never be missed.
pub(super) struct Watch {
    answered: Instant,
    next: Instant,
}

impl Watch {
    /// Of a guest that has just been linked, or woken.
    pub(super) fn begin() -> Self {
        let now = Instant::now();
        Self {
            answered: now,
            next: now + LOOK_EVERY,
        }
    }

    /// Looks at what the sandbox uses, again and again; returns when its guest has not answered for too long. Death of
    /// the other side shows on the link itself: this finds a sandbox that lives and does not run any more. `seen` is told of
    /// each look, and of the one before. May be dropped and called again.
    pub(super) async fn look(
        &mut self,
        link: &Link,
        looks: &Looks,
        seen: impl Fn(Option<&Usage>, &Usage),
    ) {
        while self.answered.elapsed() < SILENCE {
            tokio::time::sleep_until(self.next).await;
            self.next = Instant::now() + LOOK_EVERY;
            match link.usage().await {
                Ok(usage) => {
                    seen(looks.last().as_ref(), &usage);
                    looks.add(usage);
                }
                // A guest that knows no usage is asked how it is.
                Err(LinkError::Refused { .. }) if link.health().await.is_ok() => {}
                Err(_) => continue,
            }
            self.answered = Instant::now();
        }
    }
}

/// How much of one processor programs used between two looks, in percent. Nothing when the guest has begun anew.
pub(super) fn busy_percent(before: &Usage, now: &Usage) -> u64 {
    let passed_us = now
        .uptime_ms
        .saturating_sub(before.uptime_ms)
        .saturating_mul(1000);
    let used_us = now.cpu_us.saturating_sub(before.cpu_us);
    used_us
        .saturating_mul(100)
        .checked_div(passed_us)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use casemate_link::daemon::Channels;
    use casemate_link::handshake::{Hello, KernelReport, ProtocolRange};
    use casemate_link::token::LinkToken;

    use super::*;

    /// A link whose other side says nothing.
    async fn silent() -> (Link, tokio::net::UnixStream) {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let hello = Hello {
            protocol: ProtocolRange { min: 1, max: 1 },
            token: LinkToken::parse(&"0".repeat(64)).unwrap(),
            guest_version: String::new(),
            kernel: KernelReport::default(),
            capabilities: Vec::new(),
            channel: None,
        };
        let link = Link::open(ours, 1, &hello, &Channels::new()).await.unwrap();
        (link, theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_lives_and_says_nothing_is_given_up() {
        let (link, _theirs) = silent().await;
        let began = Instant::now();
        let looks = Looks::default();
        let mut watch = Watch::begin();
        let looking = watch.look(&link, &looks, |_, _| {});
        tokio::time::timeout(SILENCE * 2, looking).await.unwrap();
        assert!(began.elapsed() >= SILENCE);
        assert!(looks.all().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_given_up_as_soon_when_something_interrupts_the_looking_again_and_again() {
        let (link, _theirs) = silent().await;
        let began = Instant::now();
        let looks = Looks::default();
        let mut watch = Watch::begin();
        let short = LOOK_EVERY / 2;
        while tokio::time::timeout(short, watch.look(&link, &looks, |_, _| {}))
            .await
            .is_err()
        {
            assert!(began.elapsed() < SILENCE * 2);
        }
        assert!(began.elapsed() >= SILENCE);
    }

    #[test]
    fn how_busy_a_session_was_is_counted_in_percent_of_one_processor() {
        let at = |uptime_ms, cpu_us| Usage {
            uptime_ms,
            cpu_us,
            ..Usage::default()
        };
        assert_eq!(busy_percent(&at(0, 0), &at(15_000, 7_500_000)), 50);
        assert_eq!(busy_percent(&at(1000, 500), &at(2000, 2_000_500)), 200);
        assert_eq!(busy_percent(&at(1000, 500), &at(16_000, 9_500)), 0);
        // One that began anew, and one whose clock stands still.
        assert_eq!(busy_percent(&at(9000, 9_000_000), &at(10, 5)), 0);
        assert_eq!(busy_percent(&at(9000, 1), &at(9000, u64::MAX)), 0);
    }

    #[test]
    fn the_latest_looks_are_kept_and_no_more() {
        let looks = Looks::default();
        for at_ms in 0..500 {
            looks.add(Usage {
                at_ms,
                ..Usage::default()
            });
        }
        let all = looks.all();
        assert_eq!(all.len(), KEPT);
        assert_eq!((all[0].at_ms, all[KEPT - 1].at_ms), (380, 499));
    }
}
