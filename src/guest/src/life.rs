//! The life of one process, from its birth to its last word: limits, the end, and what is left of it.
//!
//! It is over when its main process is and its pipes held nothing more at that moment; what it left in the background may
//! keep the pipes and lives on.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use casemate_link::process::{ProcessExit, ProcessSpec};
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, sleep_until};

use crate::ends::Watched;
use crate::process::Process;
use crate::processes::Processes;
use crate::pump::Pump;
use crate::reaper::Ending;
use crate::store::Which;
use crate::sys;

/// What its specification says of its life.
#[derive(Debug)]
pub(crate) struct Terms {
    timeout: Option<Duration>,
    kill_grace: Duration,
    max_stdout_bytes: u64,
    max_stderr_bytes: u64,
}

impl Terms {
    pub(crate) fn of(spec: &ProcessSpec) -> Self {
        Self {
            timeout: spec.timeout_ms.map(Duration::from_millis),
            kill_grace: Duration::from_millis(spec.kill_grace_ms),
            max_stdout_bytes: spec.max_stdout_bytes,
            max_stderr_bytes: spec.max_stderr_bytes,
        }
    }
}

/// A process just born, and what only its own task needs.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) process: Rc<Process>,
    pub(crate) table: Rc<Processes>,
    pub(crate) terms: Terms,
    pub(crate) ending: Ending,
    pub(crate) born: Instant,
    pub(crate) stdout: Watched,
    pub(crate) stderr: Option<Watched>,
    /// Held for as long as it lives.
    pub(crate) line: Option<OwnedFd>,
    /// What the pumps and the input hear the end from.
    pub(crate) over: watch::Sender<bool>,
}

impl Life {
    /// Attends the process until all that it said is in its store.
    pub(crate) async fn live(mut self) {
        let (process, table) = (Rc::clone(&self.process), Rc::clone(&self.table));
        let pump = |which, fd, max_bytes| {
            let pump = Pump {
                process: &process,
                table: &table,
                which,
                fd,
                is_terminal: process.about.pty,
                max_bytes,
            };
            pump.run(self.over.subscribe())
        };
        let stdout = pump(
            Which::Stdout,
            Rc::clone(&self.stdout),
            self.terms.max_stdout_bytes,
        );
        let stderr = self.stderr.take();
        let stderr = stderr.map(|fd| pump(Which::Stderr, fd, self.terms.max_stderr_bytes));
        let stderr = async {
            match stderr {
                Some(pump) => pump.await,
                None => 0,
            }
        };
        let (mut exit, stdout_dropped_bytes, stderr_dropped_bytes) =
            tokio::join!(self.until_dead(), stdout, stderr);
        exit.stdout_dropped_bytes = stdout_dropped_bytes;
        exit.stderr_dropped_bytes = stderr_dropped_bytes;
        process.state.exit.set(Some(exit));
        process.state.terminal.take();
        process.store.borrow_mut().end();
        table.ended(&process);
    }

    /// Waits until the main process has ended, and lets go of its input.
    async fn until_dead(&mut self) -> ProcessExit {
        let (status, timed_out) = self.main_process().await;
        let duration = self.born.elapsed();
        self.process.state.is_dead.set(true);
        self.line = None;
        self.table.died();
        self.over.send_replace(true);
        self.process.input.close().await;
        ProcessExit {
            exit_code: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
            timed_out,
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            ..ProcessExit::default()
        }
    }

    /// Waits for the end of the main process; brings it about when the time is over or nobody wants it any more.
    async fn main_process(&mut self) -> (Option<ExitStatus>, bool) {
        let deadline = self
            .terms
            .timeout
            .and_then(|limit| self.born.checked_add(limit));
        let time_over = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let timed_out = tokio::select! {
            // An end that has come is an end, even when the deadline has come too.
            biased;
            status = &mut self.ending => return (status.ok(), false),
            () = time_over => true,
            () = self.process.state.unwanted.notified() => false,
        };
        self.end_group();
        ((&mut self.ending).await.ok(), timed_out)
    }

    /// SIGTERM to the group now, SIGKILL after the grace to whatever of it is left, with or without its leader.
    fn end_group(&self) {
        let (group, grace) = (self.process.pid, self.terms.kill_grace);
        // Errors mean that the group is gone or not ours any more, and neither can be mended.
        let _ = sys::signal_group(group, libc::SIGTERM);
        spawn_local(async move {
            sleep(grace).await;
            let _ = sys::signal_group(group, libc::SIGKILL);
        });
    }
}
