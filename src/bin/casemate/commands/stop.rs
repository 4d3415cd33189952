//! Ctrl-C and SIGTERM while a session of ours is up: they ask for an orderly end, and once more for
//! an immediate one.

use casemate::base::exit::Exit;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// Where the signals arrive from now on, instead of ending the process.
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    pub fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Exit::Software, format!("cannot listen to signals: {error}"))
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// The next one, as the exit code that belongs to it.
    pub async fn asked(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Terminated,
        }
    }
}
