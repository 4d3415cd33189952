//! The one owner of `waitpid`: every child's end is seen here, and told to whoever waits for it.
//!
//! A process that we start is spawned and entered in the table in one synchronous step ([`Reaper::adopt`]), and
//! one thread makes and reaps all children, so none can end between its birth and its entry. Orphans that PID 1 inherits are reaped and forgotten.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::process::ExitStatus;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};

use crate::sys::{Reaped, reap_one};

/// Tells how a child ended.
pub(crate) type Ending = oneshot::Receiver<ExitStatus>;

/// The stream of SIGCHLD.
pub(crate) struct Deaths(Signal);

impl Deaths {
    /// Starts to listen; deaths from now on are heard.
    pub(crate) fn listen() -> io::Result<Self> {
        signal(SignalKind::child()).map(Self)
    }
}

/// Who waits for which child.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    waiting: RefCell<HashMap<i32, oneshot::Sender<ExitStatus>>>,
    reaped: Notify,
}

impl Reaper {
    /// Makes a child and enters it, with nothing in between.
    pub(crate) fn adopt<C, E>(
        &self,
        spawn: impl FnOnce() -> Result<(i32, C), E>,
    ) -> Result<(i32, C, Ending), E> {
        let (pid, child) = spawn()?;
        let (tell, ending) = oneshot::channel();
        self.waiting.borrow_mut().insert(pid, tell);
        Ok((pid, child, ending))
    }

    /// Reaps for as long as the guest lives.
    pub(crate) async fn run(&self, deaths: &mut Deaths) -> Infallible {
        loop {
            self.reap();
            // Ends only with the runtime's signal driver, and then nothing runs any more.
            if deaths.0.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until there is no child at all.
    pub(crate) async fn childless(&self) {
        while self.reap() {
            self.reaped.notified().await;
        }
    }

    /// Reaps all that ended; says whether children are left.
    fn reap(&self) -> bool {
        loop {
            match reap_one() {
                Reaped::Child(pid, status) => {
                    if let Some(tell) = self.waiting.borrow_mut().remove(&pid) {
                        // Whoever waited may have lost interest.
                        let _ = tell.send(status);
                    }
                    self.reaped.notify_one();
                }
                Reaped::NoneEnded => return true,
                Reaped::NoChildren => return false,
            }
        }
    }
}
