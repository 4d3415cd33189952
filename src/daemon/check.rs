//! The whole check of the database, beside the daemon's work, each time some hours after the last one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::base::chain::Chain;
use crate::host::background;
use crate::store::{Store, StoreError};

/// Checks until it is told to stop; what is found is told and remembered by the store.
pub(super) async fn keep(
    store: Store,
    every: Option<Duration>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if let Some(every) = every {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(every) => {}
            }
            let asked = Arc::new(AtomicBool::new(false));
            let (answer, mut answered) = oneshot::channel();
            let began = Instant::now();
            let checking = {
                let (store, asked) = (store.clone(), Arc::clone(&asked));
                background::spawn("store-check", move || {
                    let _ = answer.send(store.check(&asked));
                })
            };
            if let Err(error) = checking {
                warn!(%error, "cannot check the database");
                continue;
            }
            let found = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    // It looks at this each millisecond.
                    asked.store(true, Ordering::Relaxed);
                    let _ = answered.await;
                    return Ok(());
                }
                found = &mut answered => found,
            };
            match found {
                Ok(Ok(())) => info!(took = ?began.elapsed(), "the database is whole"),
                // The store has told it.
                Ok(Err(StoreError::Damaged { .. })) => {}
                Ok(Err(error)) => warn!(error = %Chain(&error), "cannot check the database"),
                Err(_) => warn!("the check of the database panicked"),
            }
        }
    }
    stop.cancelled().await;
    Ok(())
}
