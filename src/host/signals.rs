//! Signals, turned into one bounded channel.
//!
//! The first SIGTERM or SIGINT asks for an orderly end, SIGHUP for a reload. A **second** SIGTERM or
//! SIGINT ends the process at once, from inside the signal handler, so that it works even when the
//! async runtime hangs. That order is armed for the rest of the process's life.
//!
//! The thread `signals` belongs to [`Signals`] and ends with it.

use std::os::raw::c_int;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::{Handle, Signals as Iterator};
use tokio::sync::mpsc;

use super::HostError;
use crate::base::exit::Exit;

/// What was asked of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: end in order.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// Waiting signals. When it is full the thread waits, and the kernel folds further signals of one
/// kind into one, so none is lost.
const QUEUE: usize = 4;

/// Where signals arrive.
#[derive(Debug)]
pub struct Signals {
    receiver: mpsc::Receiver<Signal>,
    iterator: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    /// Takes the signals over. Once in a process, before tasks are started.
    ///
    /// # Errors
    /// [`HostError::System`] when the kernel gives no handler or no thread.
    pub fn install() -> Result<Self, HostError> {
        let stopping = Arc::new(AtomicBool::new(false));
        for (signal, exit) in [(SIGTERM, Exit::Terminated), (SIGINT, Exit::Interrupted)] {
            let failed = |error| HostError::system("install a signal handler", error);
            // In this order: handlers run in the order of registration, so the first signal finds
            // the flag down and raises it, and the second finds it raised.
            flag::register_conditional_shutdown(
                signal,
                c_int::from(exit.code()),
                Arc::clone(&stopping),
            )
            .map_err(failed)?;
            flag::register(signal, Arc::clone(&stopping)).map_err(failed)?;
        }
        let mut signals = Iterator::new([SIGTERM, SIGINT, SIGHUP])
            .map_err(|error| HostError::system("watch for signals", error))?;
        let iterator = signals.handle();
        let (sender, receiver) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    let signal = match signal {
                        SIGHUP => Signal::Reload,
                        _ => Signal::Stop,
                    };
                    if sender.blocking_send(signal).is_err() {
                        break;
                    }
                }
            })
            .map_err(|error| HostError::system("start the thread signals", error))?;
        Ok(Self {
            receiver,
            iterator,
            thread: Some(thread),
        })
    }

    /// The next signal. Safe to drop and call again. `Stop` when the thread has gone, which it does
    /// not do by itself.
    pub async fn next(&mut self) -> Signal {
        self.receiver.recv().await.unwrap_or(Signal::Stop)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Frees the thread wherever it waits: for a signal, or for room in the queue.
        self.receiver.close();
        self.iterator.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::child;
    use nix::sys::signal::{self, Signal as Number, raise};
    use nix::unistd::Pid;
    use std::io::{BufRead, BufReader};

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn arrive_as_what_they_ask_for() {
        if !child::is_child() {
            return child::run("host::signals::tests::arrive_as_what_they_ask_for", &[]);
        }
        let mut signals = Signals::install().unwrap();
        raise(Number::SIGHUP).unwrap();
        assert_eq!(block_on(signals.next()), Signal::Reload);
        raise(Number::SIGTERM).unwrap();
        assert_eq!(block_on(signals.next()), Signal::Stop);
        drop(signals);
    }

    #[test]
    fn a_flood_of_reloads_neither_hangs_the_end_nor_loses_the_stop() {
        if !child::is_child() {
            return child::run(
                "host::signals::tests::a_flood_of_reloads_neither_hangs_the_end_nor_loses_the_stop",
                &[],
            );
        }
        let mut signals = Signals::install().unwrap();
        for _ in 0..1000 {
            raise(Number::SIGHUP).unwrap();
        }
        raise(Number::SIGINT).unwrap();
        while block_on(signals.next()) != Signal::Stop {}
        for _ in 0..1000 {
            raise(Number::SIGHUP).unwrap();
        }
    }

    #[test]
    fn the_second_stop_ends_a_process_that_hangs() {
        const READY: &str = "armed";
        if child::is_child() {
            let signals = Signals::install().unwrap();
            raise(Number::SIGTERM).unwrap();
            #[expect(clippy::print_stdout, reason = "tells the parent")]
            {
                println!("\n{READY}");
            }
            // Nobody takes from the channel: this process is stuck.
            std::thread::park();
            drop(signals);
            return;
        }
        let mut process = child::start(
            "host::signals::tests::the_second_stop_ends_a_process_that_hangs",
            &[],
        );
        let output = BufReader::new(process.stdout.take().unwrap());
        assert!(output.lines().any(|line| line.unwrap() == READY));
        let pid = Pid::from_raw(process.id().cast_signed());
        signal::kill(pid, Number::SIGINT).unwrap();
        let status = process.wait().unwrap();
        assert_eq!(status.code(), Some(Exit::Interrupted.code().into()));
    }
}
