//! The guest at rest: a checkpoint can be taken of its sandbox, and it goes on in others that are restored from it.
//!
//! A checkpoint ends gVisor where a connection to the host is open. So the guest lets go of its link, and of the token with
//! it, and dials nobody until it finds another token: that is there in a sandbox that was restored, which has another
//! directory mounted in the place of the first. In the sandbox of which the checkpoint is taken there is none any more.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::Notify;

/// How long the link stays after it was asked to rest: the answer is on its way. A daemon that has not heard it until then
/// takes no checkpoint.
const FAREWELL: Duration = Duration::from_millis(50);

/// Whether the guest shall rest, and whether it did.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    is_asked: Cell<bool>,
    asked: Notify,
    is_over: Cell<bool>,
}

impl Rest {
    /// Asks for it.
    pub(crate) fn ask(&self) {
        self.is_asked.set(true);
        self.asked.notify_one();
    }

    /// Resolves when the link is to be let go.
    pub(crate) async fn begins(&self) {
        // What an earlier time left unheard is none of this one's.
        while !self.is_asked.get() {
            self.asked.notified().await;
        }
        tokio::time::sleep(FAREWELL).await;
    }

    /// Whether it was asked for since the last time.
    pub(crate) fn is_due(&self) -> bool {
        self.is_asked.take()
    }

    /// Says that it is over: the guest goes on, in this sandbox or another.
    pub(crate) fn end(&self) {
        self.is_over.set(true);
    }

    /// Whether the guest has rested.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.get()
    }
}
