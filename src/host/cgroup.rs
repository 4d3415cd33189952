//! A control group as its files show it (cgroups(7)): who is in it, what it may use, what it was refused. Version 2 has all
//! in one directory; with version 1 a group is a directory in each controller's hierarchy, and each shows what it knows.
//!
//! Reads only. Whoever makes groups is of another user.

use std::path::{Path, PathBuf};

/// Longest control file that is read: of `cgroup.procs` of a thousand processes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// One group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group(PathBuf);

impl Group {
    /// The group of that directory, which may not be there.
    #[must_use]
    pub fn at(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Its processes, as this process numbers them.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let list = self.read("cgroup.procs").unwrap_or_default();
        list.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Bytes of memory that it may use, with what the kernel needs for it; `None` when there is no bound.
    #[must_use]
    pub fn memory_max(&self) -> Option<u64> {
        self.number("memory.max")
            .or_else(|| self.number("memory.limit_in_bytes"))
    }

    /// Whether it may use swap beside its memory, on a machine that accounts for swap.
    #[must_use]
    pub fn may_swap(&self) -> bool {
        let beside = self
            .read("memory.swap.max")
            .is_some_and(|most| most.trim() != "0");
        let together = self.read("memory.memsw.limit_in_bytes");
        beside || together.is_some_and(|both| both.trim().parse().ok() != self.memory_max())
    }

    /// Microseconds of processor time in a period, and the period; `None` when there is no bound.
    #[must_use]
    pub fn cpu_max(&self) -> Option<(u64, u64)> {
        if let Some(both) = self.read("cpu.max") {
            let (quota, period) = both.trim().split_once(' ')?;
            return Some((quota.parse().ok()?, period.parse().ok()?));
        }
        let (quota, period) = ("cpu.cfs_quota_us", "cpu.cfs_period_us");
        Some((self.number(quota)?, self.number(period)?))
    }

    /// Processes and threads that it may have; `None` when there is no bound.
    #[must_use]
    pub fn pids_max(&self) -> Option<u64> {
        self.number("pids.max")
    }

    /// How many of its processes were killed for lack of memory.
    #[must_use]
    pub fn memory_kills(&self) -> u64 {
        let kills = |file| self.field(file, "oom_kill");
        kills("memory.events")
            .or_else(|| kills("memory.oom_control"))
            .unwrap_or(0)
    }

    /// In how many periods it ran, and in how many of them it had to wait because it had used its processor time.
    #[must_use]
    pub fn cpu_periods(&self) -> (u64, u64) {
        let count = |key| self.field("cpu.stat", key).unwrap_or(0);
        (count("nr_periods"), count("nr_throttled"))
    }

    /// How often it was refused another process or thread.
    #[must_use]
    pub fn pids_refused(&self) -> u64 {
        self.field("pids.events", "max").unwrap_or(0)
    }

    fn read(&self, file: &str) -> Option<String> {
        use std::io::Read;
        let mut text = String::new();
        let open = std::fs::File::open(self.0.join(file)).ok()?;
        open.take(MAX_FILE_BYTES).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// A file that holds one number; a bound that is not set is a word or below nothing.
    fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }

    /// One line of a file of keys and numbers.
    fn field(&self, file: &str, key: &str) -> Option<u64> {
        let text = self.read(file)?;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == key)?.1.trim().parse().ok()
    }
}

/// Whether a directory is in a file system of control groups, and no imitation.
#[must_use]
pub fn is_real(directory: &Path) -> bool {
    use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
    statfs(directory).is_ok_and(|found| {
        [CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&found.filesystem_type())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(files: &[(&str, &str)]) -> (tempfile::TempDir, Group) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let group = Group::at(dir.path().to_owned());
        (dir, group)
    }

    #[test]
    fn both_versions_are_read() {
        let (_two, two) = group(&[
            ("cgroup.procs", "7\n12\n"),
            ("memory.max", "1048576\n"),
            ("memory.swap.max", "0\n"),
            (
                "memory.events",
                "low 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 1\n",
            ),
            ("cpu.max", "50000 100000\n"),
            ("cpu.stat", "usage_usec 5\nnr_periods 10\nnr_throttled 4\n"),
            ("pids.max", "512\n"),
            ("pids.events", "max 6\n"),
        ]);
        let (_one, one) = group(&[
            ("cgroup.procs", "7\n12\n"),
            ("memory.limit_in_bytes", "1048576\n"),
            ("memory.memsw.limit_in_bytes", "1048576\n"),
            (
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            ),
            ("cpu.cfs_quota_us", "50000\n"),
            ("cpu.cfs_period_us", "100000\n"),
            (
                "cpu.stat",
                "nr_periods 10\nnr_throttled 4\nthrottled_time 0\n",
            ),
            ("pids.max", "512\n"),
            ("pids.events", "max 6\n"),
        ]);
        for group in [two, one] {
            assert_eq!(group.processes(), [7, 12]);
            assert_eq!(group.memory_max(), Some(1 << 20));
            assert!(!group.may_swap());
            assert_eq!(group.cpu_max(), Some((50_000, 100_000)));
            assert_eq!(group.pids_max(), Some(512));
            assert_eq!(group.memory_kills(), 2);
            assert_eq!(group.cpu_periods(), (10, 4));
            assert_eq!(group.pids_refused(), 6);
        }
    }

    #[test]
    fn what_is_not_bounded_has_no_bound() {
        let (_two, two) = group(&[
            ("memory.max", "max\n"),
            ("memory.swap.max", "max\n"),
            ("cpu.max", "max 100000\n"),
            ("pids.max", "max\n"),
        ]);
        let (_one, one) = group(&[
            ("memory.limit_in_bytes", "1048576\n"),
            ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
            ("cpu.cfs_quota_us", "-1\n"),
            ("cpu.cfs_period_us", "100000\n"),
        ]);
        for group in [&two, &one] {
            assert_eq!((group.cpu_max(), group.pids_max()), (None, None));
            assert!(group.may_swap());
        }
        assert_eq!(two.memory_max(), None);
        let (_none, none) = group(&[]);
        assert_eq!(none.memory_max(), None);
        assert_eq!(none.memory_kills(), 0);
        assert!(none.processes().is_empty());
    }

    #[test]
    fn a_plain_directory_is_no_group() {
        let (dir, _group) = group(&[("memory.max", "1\n")]);
        assert!(!is_real(dir.path()));
        assert!(!is_real(&dir.path().join("nothing")));
    }
}
