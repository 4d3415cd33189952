//! What a session has used lately: a look at its guest now and then, the last few kept in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use casemate_link::Usage;

/// Time between two looks. A look costs the sandbox a few milliseconds of processor time.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(15);

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

#[cfg(test)]
mod tests {
    use super::*;

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
