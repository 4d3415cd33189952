//! How long a session may hold its sandbox: hard end, idle time, and what happens when either is over.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::clock::Timestamp;

/// What becomes of a session whose time is over, or that was idle for too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// It is stopped, and nothing of it is left.
    #[default]
    Stop,
    /// It is paused; whoever uses it wakes it.
    Pause,
}

impl OnTimeout {
    /// The word on the wire and in the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Pause => "pause",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Stop, Self::Pause]
            .into_iter()
            .find(|word| word.as_str() == text)
    }
}

/// A session's deadlines. They may change in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// When its time is over. While it is paused, time stands still; woken, it has its whole lifetime again.
    pub ends_at: Timestamp,
    /// The longest lifetime that may be asked for, in seconds from the asking: its template's when it was admitted.
    pub max_timeout_s: u64,
    /// How long it may be idle, in seconds; absent: for as long as it lives.
    pub idle_timeout_s: Option<u64>,
    /// What happens when either is over.
    pub on_timeout: OnTimeout,
    /// When somebody last used it, at most [`ACTIVE_STEP_S`] before the truth; kept only where it may not be idle.
    pub active_at: Option<Timestamp>,
    /// Since when it is paused.
    pub paused_at: Option<Timestamp>,
}

/// How exactly the store knows when a session was last used, in seconds.
pub const ACTIVE_STEP_S: u64 = 60;

/// Shortest idle time.
pub const MIN_IDLE_TIMEOUT_S: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reads_back_and_is_the_wire_word() {
        for word in [OnTimeout::Stop, OnTimeout::Pause] {
            assert_eq!(OnTimeout::parse(word.as_str()), Some(word));
            assert_eq!(serde_json::to_value(word).unwrap(), word.as_str());
        }
        assert_eq!(OnTimeout::parse("sleep"), None);
    }
}
