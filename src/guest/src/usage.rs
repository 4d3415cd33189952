//! What the sandbox uses, as its own kernel counts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use casemate_link::Usage;
use casemate_link::limits::MAX_HOSTNAME_BYTES;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, gethostname, sysconf};

use crate::child::as_user;

/// Open files that one look counts, of all processes together: programs must not keep the guest busy with theirs.
const MAX_COUNTED_FILES: usize = 100_000;

/// The wall clock of the sandbox, in milliseconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "the sandbox's own clock is what is asked for"
)]
pub(crate) fn wall_clock_ms() -> u64 {
    millis(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

/// Reads everything. What cannot be read is zero or empty.
pub(crate) fn read(started: Instant) -> Usage {
    let (memory_total_bytes, memory_bytes) = memory().unwrap_or_default();
    let living = processes();
    Usage {
        at_ms: wall_clock_ms(),
        uptime_ms: millis(started.elapsed()),
        hostname: hostname(),
        cpus: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        cpu_us: reaped_cpu_us().saturating_add(living.cpu_us),
        memory_bytes,
        memory_total_bytes,
        guest_bytes: resident().unwrap_or_default(),
        processes: living.count,
        most_tasks: living.tasks.values().copied().max().unwrap_or_default(),
        most_open_files: living.open_files,
        disk_bytes: statvfs("/").map_or(0, |disk| {
            disk.blocks()
                .saturating_sub(disk.blocks_free())
                .saturating_mul(disk.fragment_size())
        }),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn hostname() -> String {
    let name = gethostname().unwrap_or_default();
    let mut name = name.to_string_lossy().into_owned();
    name.truncate(name.floor_char_boundary(MAX_HOSTNAME_BYTES));
    name
}

/// Total and used bytes of memory.
fn memory() -> Option<(u64, u64)> {
    let table = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = table.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (total, free) = (field("MemTotal:")?, field("MemFree:")?);
    Some((
        total.saturating_mul(1024),
        total.saturating_sub(free).saturating_mul(1024),
    ))
}

/// Resident memory of the guest.
fn resident() -> Option<u64> {
    let fields = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = fields.split_whitespace().nth(1)?.parse().ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten()?;
    pages.checked_mul(u64::try_from(page).ok()?)
}

/// Processor time of all that has ended.
fn reaped_cpu_us() -> u64 {
    getrusage(UsageWho::RUSAGE_CHILDREN).map_or(0, |usage| {
        let time = usage.user_time() + usage.system_time();
        u64::try_from(time.num_microseconds()).unwrap_or(0)
    })
}

/// What lives.
#[derive(Debug, Default)]
struct Living {
    count: u32,
    /// Its processor time, with that of the children that it has waited for.
    cpu_us: u64,
    /// Processes and threads by user.
    tasks: BTreeMap<u32, u32>,
    /// Open files of the one that has most.
    open_files: u32,
}

fn processes() -> Living {
    let mut living = Living::default();
    let tick_us = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    let tick_us = tick_us
        .and_then(|ticks| u64::try_from(ticks).ok())
        .map_or(10_000, |ticks| 1_000_000 / ticks.max(1));
    let Ok(entries) = fs::read_dir("/proc") else {
        return living;
    };
    let mut files = MAX_COUNTED_FILES;
    for entry in entries.flatten() {
        if !entry
            .file_name()
            .as_encoded_bytes()
            .iter()
            .all(u8::is_ascii_digit)
        {
            continue;
        }
        if let Ok(stat) = fs::read_to_string(entry.path().join("stat")) {
            let is_guest = entry.file_name() == "1";
            living.count += 1;
            living.cpu_us = living
                .cpu_us
                .saturating_add(ticks(&stat, is_guest).saturating_mul(tick_us));
            // The guest itself has bounds of its own.
            let Some(user) = (!is_guest).then(|| entry.metadata().ok()).flatten() else {
                continue;
            };
            let tasks = living.tasks.entry(user.uid()).or_default();
            *tasks = tasks.saturating_add(threads(&stat));
            let open = open_files(&entry.path().join("fd"), user.uid(), files);
            files = files.saturating_sub(open);
            let open = u32::try_from(open).unwrap_or(u32::MAX);
            living.open_files = living.open_files.max(open);
        }
    }
    living
}

/// Open files of a process of that user's, of which `most` are counted: one file each in a directory that only the user
/// may read.
fn open_files(fds: &Path, user: u32, most: usize) -> usize {
    let other = nix::unistd::geteuid().as_raw() != user;
    let count = as_user(other.then_some(user), || {
        Ok(fs::read_dir(fds)?.take(most).count())
    });
    // It may be gone, or its user's no more.
    count.unwrap_or_default()
}

/// Threads of a process (proc(5), /proc/pid/stat, field 20).
fn threads(stat: &str) -> u32 {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let count = fields.split_whitespace().nth(17);
    count.and_then(|count| count.parse().ok()).unwrap_or(1)
}

/// Processor time of a process (proc(5), /proc/pid/stat, fields 14 to 17) in ticks. What the guest itself waited for is
/// counted already.
fn ticks(stat: &str, without_children: bool) -> u64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let times = fields
        .split_whitespace()
        .skip(11)
        .take(if without_children { 2 } else { 4 });
    times.filter_map(|time| time.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_whatever_the_program_is_called() {
        let stat = "7 (a) b) R 1 7 7 0 0 0 0 0 0 0 19 1 30 4 20 0 1 0 4";
        assert_eq!(ticks(stat, false), 54);
        assert_eq!(ticks(stat, true), 20);
        assert_eq!(ticks("", false), 0);
        assert_eq!((threads(stat), threads("")), (1, 1));
        let threaded = "7 (a) R 1 7 7 0 0 0 0 0 0 0 0 0 0 0 20 0 12 0 4";
        assert_eq!(threads(threaded), 12);
    }

    #[test]
    fn open_files_are_counted_up_to_a_bound() {
        let _some: Vec<_> = (0..10)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        let me = nix::unistd::geteuid().as_raw();
        let fds = Path::new("/proc/self/fd");
        assert!(open_files(fds, me, 1000) >= 10);
        assert_eq!(open_files(fds, me, 5), 5);
        assert_eq!(open_files(Path::new("/proc/0/fd"), me, 5), 0);
    }

    #[test]
    fn this_machine_uses_something() {
        let usage = read(Instant::now());
        assert!(
            usage.processes >= 1 && usage.memory_bytes > 0 && usage.guest_bytes > 0,
            "{usage:?}"
        );
        assert!(
            usage.memory_total_bytes > usage.memory_bytes && usage.cpus >= 1,
            "{usage:?}"
        );
        assert!(
            !usage.hostname.is_empty() && usage.at_ms > 1_700_000_000_000,
            "{usage:?}"
        );
    }
}
