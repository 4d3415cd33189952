//! Whether somebody uses a session, and since when nobody does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Who uses a session now. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<watch::Sender<Uses>>);

#[derive(Clone, Copy, Debug)]
struct Uses {
    open: usize,
    /// When the last one began or ended.
    last: Instant,
}

/// One use of a session: a call that runs, a stream that is open. Dropped, it is over.
#[derive(Debug)]
pub struct Use(Activity);

impl Activity {
    /// Not used now, and not for so long.
    pub(super) fn unused_for(idle: Duration) -> Self {
        let now = Instant::now();
        let last = now.checked_sub(idle).unwrap_or(now);
        Self(Arc::new(watch::Sender::new(Uses { open: 0, last })))
    }

    /// Begins a use.
    pub(super) fn begin(&self) -> Use {
        self.change(|open| open + 1);
        Use(self.clone())
    }

    /// Takes the session for used just now.
    pub(super) fn touch(&self) {
        self.change(|open| open);
    }

    /// For how long nobody has used it; nothing while somebody does.
    pub(super) fn idle(&self) -> Duration {
        let uses = *self.0.borrow();
        if uses.open > 0 {
            return Duration::ZERO;
        }
        uses.last.elapsed()
    }

    /// Resolves at the next use after this call, or the end of one.
    pub(super) fn used_again(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut uses = self.0.subscribe();
        async move {
            // It cannot fail: the session's handles hold the sender.
            let _ = uses.changed().await;
        }
    }

    /// Resolves when nobody has used it for so long.
    pub(super) async fn idle_for(&self, patience: Duration) {
        let mut uses = self.0.subscribe();
        loop {
            let now = *uses.borrow_and_update();
            if now.open == 0 {
                tokio::select! {
                    biased;
                    // It cannot fail: we hold the sender.
                    _ = uses.changed() => {}
                    () = sleep_until(now.last + patience) => return,
                }
            } else if uses.changed().await.is_err() {
                return;
            }
        }
    }

    fn change(&self, open: impl FnOnce(usize) -> usize) {
        self.0.send_modify(|uses| {
            uses.open = open(uses.open);
            uses.last = Instant::now();
        });
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.change(|open| open.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn what_is_used_is_not_idle_and_the_time_begins_at_the_last_use_s_end() {
        let activity = Activity::unused_for(Duration::ZERO);
        let began = Instant::now();
        let (one, two) = (activity.begin(), activity.begin());
        let idle = tokio::spawn({
            let activity = activity.clone();
            async move { activity.idle_for(MINUTE).await }
        });
        tokio::time::sleep(10 * MINUTE).await;
        assert!(!idle.is_finished());
        assert_eq!(activity.idle(), Duration::ZERO);
        drop(one);
        tokio::time::sleep(10 * MINUTE).await;
        assert!(!idle.is_finished());
        drop(two);
        idle.await.unwrap();
        assert_eq!(began.elapsed(), 21 * MINUTE);
        assert_eq!(activity.idle(), MINUTE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_touch_begins_the_time_again_and_what_was_idle_before_counts() {
        let activity = Activity::unused_for(MINUTE / 2);
        let began = Instant::now();
        activity.idle_for(MINUTE).await;
        assert_eq!(began.elapsed(), MINUTE / 2);
        activity.touch();
        activity.idle_for(MINUTE).await;
        assert_eq!(began.elapsed(), MINUTE / 2 + MINUTE);
    }
}
