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

    pub(super) fn all(&self) -> Vec<Usage> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().cloned().collect()
    }
}

/// Looks at what the sandbox uses, again and again; returns when its guest has not answered for too long. Death of
/// the other side shows on the link itself: this finds a sandbox that lives and does not run any more. `seen` is told of each.
pub(super) async fn look(link: &Link, looks: &Looks, seen: impl Fn(&Usage)) {
    let mut answered = Instant::now();
    while answered.elapsed() < SILENCE {
        tokio::time::sleep(LOOK_EVERY).await;
        match link.usage().await {
            Ok(usage) => {
                seen(&usage);
                looks.add(usage);
            }
            // A guest that knows no usage is asked how it is.
            Err(LinkError::Refused { .. }) if link.health().await.is_ok() => {}
            Err(_) => continue,
        }
        answered = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use casemate_link::daemon::Channels;
    use casemate_link::handshake::{Hello, KernelReport, ProtocolRange};
    use casemate_link::token::LinkToken;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_lives_and_says_nothing_is_given_up() {
        let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
        let hello = Hello {
            protocol: ProtocolRange { min: 1, max: 1 },
            token: LinkToken::parse(&"0".repeat(64)).unwrap(),
            guest_version: String::new(),
            kernel: KernelReport::default(),
            capabilities: Vec::new(),
            channel: None,
        };
        let link = Link::open(ours, 1, &hello, &Channels::new()).await.unwrap();
        let began = Instant::now();
        let looks = Looks::default();
        let looking = look(&link, &looks, |_| {});
        tokio::time::timeout(SILENCE * 2, looking).await.unwrap();
        assert!(began.elapsed() >= SILENCE);
        assert!(looks.all().is_empty());
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
