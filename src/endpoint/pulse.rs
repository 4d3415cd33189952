//! When something last moved, in either direction: what stands still for too long is cut.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// When something last moved. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Pulse(Arc<Mutex<Instant>>);

impl Pulse {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Something moves.
    pub(super) fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when nothing has moved for so long.
    pub(super) async fn silent_for(self, patience: Duration) {
        loop {
            let due = self.last() + patience;
            if Instant::now() >= due {
                return;
            }
            sleep_until(due).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_moves_is_not_silent() {
        let pulse = Pulse::new();
        let began = Instant::now();
        let minute = Duration::from_secs(60);
        let moving = async {
            for _ in 0..3 {
                tokio::time::sleep(minute / 2).await;
                pulse.beat();
            }
        };
        tokio::join!(pulse.clone().silent_for(minute), moving);
        assert_eq!(began.elapsed(), minute / 2 * 5);
    }
}
