//! Waiting for a condition, never for a time.

use std::time::Duration;

use tokio::time::Instant;

/// Far longer than anything healthy takes, also on a machine that does three other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Looks until there is something; `what` is what the test then says it waited for.
pub async fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {patience:?} in vain: {what}"
        );
        tokio::time::sleep(LOOK).await;
    }
}

/// Looks until it is so.
pub async fn wait_until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    wait_for(what, PATIENCE, async || look().await.then_some(())).await;
}
