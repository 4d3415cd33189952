//! Bounds that a session reached: noted by whoever sees it, written down by its runner.
//!
//! What can be seen, and by whom. From outside, by the kernel's own counters: that the sandbox was ended for its memory, that
//! it waited for processor time, that gVisor was refused a thread. By the guest's word: what it refused (processes, those
//! started in all, a full disk), a program's time and dropped output, and, at a look, that a user has all processes, a process
//! all files, the writable layer all bytes that they may have. gVisor counts no refusals, so what came and went between two
//! looks is not seen; and a hostile guest may say what it likes, so a bound is noted once a minute at most.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use casemate_link::Usage;
use casemate_link::daemon::LinkError;
use casemate_link::process::ProcessExit;
use casemate_link::refusal::code;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::model::limit::Limit;
use crate::model::sandbox::Limits;
use crate::runtime::groups::Strain;

/// Time in which a bound is noted once.
const ONCE_IN: Duration = Duration::from_secs(60);

/// Bytes of the writable layer that count as none: gVisor takes space for files in pieces of this size.
const DISK_PIECE_BYTES: u64 = 64 << 20;

/// Periods of processor time that say something: two seconds of them.
const CPU_PERIODS: u64 = 20;

/// The bounds that one session reached. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Reached(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    more: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Noted and not taken yet.
    new: BTreeSet<Limit>,
    /// When each was noted last.
    noted: BTreeMap<Limit, Instant>,
    /// What the kernel had counted at the last look that said something.
    strain: Strain,
}

impl Reached {
    /// Notes a bound, unless it was noted lately.
    pub fn note(&self, limit: Limit) {
        let now = Instant::now();
        self.with(|state| {
            let lately = state.noted.get(&limit);
            if lately.is_some_and(|at| now.duration_since(*at) < ONCE_IN) {
                return;
            }
            state.noted.insert(limit, now);
            state.new.insert(limit);
        });
        self.0.more.notify_one();
    }

    /// Notes the bound for which a guest said no, if that is why.
    pub fn refused(&self, error: &LinkError) {
        if let LinkError::Refused { code, .. } = error {
            match code.as_str() {
                code::TOO_MANY_PROCESSES => self.note(Limit::Processes),
                code::LIMIT_REACHED => self.note(Limit::ProcessesStarted),
                code::DISK_FULL => self.note(Limit::Disk),
                _ => {}
            }
        }
    }

    /// Notes the bounds of its own that a program reached in its life.
    pub fn ended(&self, exit: &ProcessExit) {
        if exit.timed_out {
            self.note(Limit::Time);
        }
        if exit.stdout_dropped_bytes > 0 || exit.stderr_dropped_bytes > 0 {
            self.note(Limit::Output);
        }
    }

    /// Notes what the guest sees that is used up.
    pub fn used(&self, usage: &Usage, limits: &Limits) {
        if usage.disk_bytes.saturating_add(DISK_PIECE_BYTES) >= limits.file_limit_bytes() {
            self.note(Limit::Disk);
        }
        if usage.most_tasks >= limits.pids {
            self.note(Limit::Processes);
        }
        if usage.most_open_files >= limits.open_files {
            self.note(Limit::OpenFiles);
        }
    }

    /// Notes what the kernel did since it was last asked.
    pub fn strained(&self, now: Strain) {
        let before = self.with(|state| {
            let before = state.strain;
            state.strain.memory_kills = now.memory_kills;
            state.strain.pids_refused = now.pids_refused;
            // Looks may follow each other closely, and a moment says nothing of the processor.
            if now.cpu_periods.saturating_sub(before.cpu_periods) >= CPU_PERIODS {
                state.strain = now;
            }
            before
        });
        if now.memory_kills > before.memory_kills {
            self.note(Limit::Memory);
        }
        if now.pids_refused > before.pids_refused {
            self.note(Limit::Processes);
        }
        let periods = now.cpu_periods.saturating_sub(before.cpu_periods);
        let waits = now.cpu_waits.saturating_sub(before.cpu_waits);
        if periods >= CPU_PERIODS && waits > periods / 2 {
            self.note(Limit::Cpu);
        }
    }

    /// Waits for a bound to be noted, and takes it. Safe to drop.
    pub(super) async fn next(&self) -> Limit {
        loop {
            let more = self.0.more.notified();
            if let Some(limit) = self.take() {
                return limit;
            }
            more.await;
        }
    }

    /// Takes a bound that was noted.
    pub(super) fn take(&self) -> Option<Limit> {
        self.with(|state| state.new.pop_first())
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let state = self.0.state.lock();
        work(&mut state.unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(reached: &Reached) -> Vec<Limit> {
        std::iter::from_fn(|| reached.take()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_is_noted_once_a_minute_and_each_by_itself() {
        let reached = Reached::default();
        for _ in 0..1000 {
            reached.note(Limit::Disk);
            reached.note(Limit::Time);
        }
        assert_eq!(taken(&reached), [Limit::Disk, Limit::Time]);
        reached.note(Limit::Disk);
        assert_eq!(taken(&reached), []);
        tokio::time::advance(ONCE_IN).await;
        reached.note(Limit::Disk);
        assert_eq!(reached.next().await, Limit::Disk);
    }

    #[test]
    fn what_is_used_up_is_noted_and_what_is_not_is_not() {
        let limits = Limits::default();
        let reached = Reached::default();
        reached.used(
            &Usage {
                disk_bytes: limits.disk_bytes / 2,
                most_tasks: limits.pids - 1,
                most_open_files: limits.open_files - 1,
                ..Usage::default()
            },
            &limits,
        );
        assert_eq!(taken(&reached), []);
        reached.used(
            &Usage {
                disk_bytes: limits.disk_bytes,
                most_tasks: limits.pids,
                most_open_files: limits.open_files,
                ..Usage::default()
            },
            &limits,
        );
        let all = [Limit::Processes, Limit::Disk, Limit::OpenFiles];
        assert_eq!(taken(&reached), all);
    }

    #[tokio::test(start_paused = true)]
    async fn the_kernels_counters_are_read_as_they_grow() {
        let reached = Reached::default();
        let busy = Strain {
            cpu_periods: 150,
            cpu_waits: 140,
            ..Strain::default()
        };
        reached.strained(busy);
        assert_eq!(taken(&reached), [Limit::Cpu]);
        tokio::time::advance(ONCE_IN).await;
        // Nothing new, a moment, and a sandbox that waits now and then.
        for (periods, waits) in [(150, 140), (160, 150), (310, 200), (320, 201)] {
            reached.strained(Strain {
                cpu_periods: periods,
                cpu_waits: waits,
                ..Strain::default()
            });
            assert_eq!(taken(&reached), []);
        }
        // Moments that belong together.
        for (periods, waits) in [(325, 206), (330, 211), (335, 216)] {
            reached.strained(Strain {
                cpu_periods: periods,
                cpu_waits: waits,
                ..Strain::default()
            });
        }
        assert_eq!(taken(&reached), [Limit::Cpu]);
        reached.strained(Strain {
            memory_kills: 3,
            pids_refused: 1,
            ..Strain::default()
        });
        assert_eq!(taken(&reached), [Limit::Memory, Limit::Processes]);
    }

    #[test]
    fn what_a_guest_or_a_program_could_not_do_is_noted() {
        let reached = Reached::default();
        for code in [
            code::TOO_MANY_PROCESSES,
            code::LIMIT_REACHED,
            code::DISK_FULL,
            code::NOT_FOUND,
        ] {
            reached.refused(&LinkError::Refused {
                code: code.to_owned(),
                message: String::new(),
            });
        }
        reached.ended(&ProcessExit {
            timed_out: true,
            stderr_dropped_bytes: 1,
            ..ProcessExit::default()
        });
        let all = [
            Limit::Processes,
            Limit::Disk,
            Limit::Output,
            Limit::Time,
            Limit::ProcessesStarted,
        ];
        assert_eq!(taken(&reached), all);
    }
}
