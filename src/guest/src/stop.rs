//! The end of the sandbox: everybody is asked, then everybody is made.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use crate::processes::Processes;
use crate::say;

/// Time between SIGTERM and SIGKILL for the whole sandbox: well within the ten seconds that podman gives.
const GRACE: Duration = Duration::from_secs(3);

/// Time for the kernel to take the killed away.
const BURIAL: Duration = Duration::from_secs(2);

/// The signals that end the guest.
pub(crate) struct Orders {
    terminate: Signal,
    interrupt: Signal,
}

impl Orders {
    /// Starts to listen.
    pub(crate) fn listen() -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self {
            terminate,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// Waits for the order, and carries it out: nothing new is started, SIGTERM to everything, the grace, SIGKILL.
pub(crate) async fn when_told(orders: &mut Orders, processes: &Processes) {
    tokio::select! {
        _ = orders.terminate.recv() => {}
        _ = orders.interrupt.recv() => {}
    }
    processes.close();
    processes.signal_all(libc::SIGTERM);
    if timeout(GRACE, processes.reaper.childless()).await.is_ok() {
        return;
    }
    say(format_args!("stop: not everything ended when asked"));
    processes.signal_all(libc::SIGKILL);
    // What is still there goes with the kernel of the sandbox.
    let _ = timeout(BURIAL, processes.reaper.childless()).await;
}
