//! From a program's pipe or terminal into its ring.
//!
//! Bytes are read straight to where they are kept. A pump reads what there is and then waits; it waits also while the ring
//! has no room, which is how a slow reader slows a program down.

use std::cell::RefCell;
use std::future::poll_fn;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use tokio::sync::watch;
use tokio::task::yield_now;

use crate::ends::Watched;
use crate::process::Process;
use crate::processes::Processes;
use crate::store::Which;

/// What a pipe holds when the kernel does not say (pipe(7)), and a terminal at most (`drivers/tty/tty_buffer.c`).
const PIPE_BYTES: usize = 64 * 1024;

/// What the pipe of a program is made to hold that has filled it once, so that the two take turns less often.
const WIDE_PIPE_BYTES: i32 = 256 * 1024;

/// What is read before others have their turn: long enough that changing over costs little.
const TURN_BYTES: usize = 256 * 1024;

/// What reading anything costs, as so many bytes.
const READ_COST_BYTES: usize = 2048;

thread_local! {
    /// Where bytes go that nobody will see.
    static WASTE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One output of a process.
#[derive(Debug)]
pub(crate) struct Pump<'a> {
    pub(crate) process: &'a Process,
    pub(crate) table: &'a Processes,
    pub(crate) which: Which,
    pub(crate) fd: Watched,
    pub(crate) is_terminal: bool,
    /// Bytes that are kept; what comes after them is counted only.
    pub(crate) max_bytes: u64,
}

impl Pump<'_> {
    /// Carries the output to its end, and returns how many bytes were over the bound. When the process is over, only what
    /// is there then is still read: no more than the pipe's capacity, however much others go on to write.
    pub(crate) async fn run(self, mut over: watch::Receiver<bool>) -> u64 {
        let (mut left, mut dropped) = (self.max_bytes, 0);
        // What may still be read, once the process is over.
        let mut rest: Option<usize> = None;
        let (mut at_once, mut is_wide, mut in_turn) = (0, self.is_terminal, 0);
        loop {
            let mut ready = None;
            if rest.is_none() {
                tokio::select! {
                    biased;
                    _ = over.wait_for(|over| *over) => rest = Some(self.capacity()),
                    // Fails only when the runtime ends.
                    guard = self.fd.readable() => match guard {
                        Ok(guard) => ready = Some(guard),
                        Err(_) => return dropped,
                    },
                }
            }
            if left > 0 {
                self.table.make_room(self.process, self.which);
                poll_fn(|cx| self.process.store.borrow_mut().poll_room(self.which, cx)).await;
            }
            let (asked, read) = self.read(left, rest.unwrap_or(TURN_BYTES));
            let count = match read {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => match &mut ready {
                    Some(ready) if !ready.ready().is_read_closed() => {
                        ready.clear_ready();
                        at_once = 0;
                        continue;
                    }
                    // There is nothing, and it would not tell any more when there is.
                    _ => 0,
                },
                Err(_) => 0,
            };
            if count == 0 {
                if self.is_terminal && rest.is_none() {
                    // It was hung up, as it is when its process ends: what is there then is read.
                    drop(ready);
                    // A sender that is gone is a process that is over.
                    let _ = over.wait_for(|over| *over).await;
                    rest = Some(self.capacity());
                    continue;
                }
                return dropped;
            }
            let length = u64::try_from(count).unwrap_or(u64::MAX);
            if left > 0 {
                self.process.store.borrow_mut().filled(self.which, count);
                left -= length;
            } else {
                dropped += length;
            }
            if let Some(rest) = &mut rest {
                *rest = rest.saturating_sub(count);
                if *rest == 0 {
                    return dropped;
                }
            }
            at_once += count;
            if count < asked && !self.is_terminal {
                // A pipe that gave less than was asked for is empty (pipe(7)), and tells when it is not.
                if let Some(ready) = &mut ready {
                    ready.clear_ready();
                }
                at_once = 0;
            }
            if at_once >= PIPE_BYTES && !is_wide {
                // Refused where a user has many already; then it stays as it is.
                let _ = fcntl(self.fd.as_fd(), FcntlArg::F_SETPIPE_SZ(WIDE_PIPE_BYTES));
                is_wide = true;
            }
            in_turn += count.max(READ_COST_BYTES);
            if in_turn >= TURN_BYTES {
                in_turn = 0;
                yield_now().await;
            }
        }
    }

    /// Reads once: into the ring, or what is over the bound into nowhere. Returns how much was asked for, too.
    fn read(&self, left: u64, max: usize) -> (usize, Result<usize, Errno>) {
        let into = |space: &mut [u8]| (space.len(), nix::unistd::read(self.fd.as_fd(), space));
        if left == 0 {
            return WASTE.with_borrow_mut(|waste| {
                waste.resize(PIPE_BYTES, 0);
                into(waste.get_mut(..max.min(PIPE_BYTES)).unwrap_or_default())
            });
        }
        let max = max.min(usize::try_from(left).unwrap_or(usize::MAX));
        into(self.process.store.borrow_mut().space(self.which, max))
    }

    fn capacity(&self) -> usize {
        let capacity = fcntl(self.fd.as_fd(), FcntlArg::F_GETPIPE_SZ).ok();
        capacity
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or(PIPE_BYTES)
    }
}
