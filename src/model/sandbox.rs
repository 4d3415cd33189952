//! The isolated container: what to build, and what was found.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::image::ImageDigest;
use crate::base::id::{InstallationId, SessionId};

/// One gibibyte, the step in which gVisor's files can be capped.
pub const GIB: u64 = 1 << 30;

/// The most files that one process in a sandbox can have open; the guest has as many.
pub const MAX_OPEN_FILES: u32 = 65_536;

/// What a sandbox may use.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory of everything in the sandbox: programs, files in `/tmp` and `/dev/shm`. What gVisor needs for itself comes on
    /// top. A sandbox that needs more is ended.
    pub memory_bytes: u64,
    /// Processor cores, in parts of one: 0.5 is half a core.
    pub cpus: f64,
    /// Processes and threads of one user inside.
    pub pids: u32,
    /// Bytes in the writable layer.
    pub disk_bytes: u64,
    /// Files, sockets and pipes that one process may have open.
    // Templates that were written down before there was such a bound do not say it.
    #[serde(default = "Limits::usual_open_files")]
    pub open_files: u32,
    /// Processes that may be started from outside in the sandbox's life; those that a program starts by itself are not counted.
    #[serde(default = "Limits::usual_processes_started")]
    pub processes_started: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: GIB,
            cpus: 1.0,
            pids: 256,
            disk_bytes: 4 * GIB,
            open_files: 8192,
            processes_started: 1_000_000,
        }
    }
}

/// The limits that a client asks for; what it leaves out is the template's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WantedLimits {
    /// See [`Limits::memory_bytes`].
    pub memory_bytes: Option<u64>,
    /// See [`Limits::cpus`].
    pub cpus: Option<f64>,
    /// See [`Limits::pids`].
    pub pids: Option<u32>,
    /// See [`Limits::disk_bytes`].
    pub disk_bytes: Option<u64>,
    /// See [`Limits::open_files`].
    pub open_files: Option<u32>,
    /// See [`Limits::processes_started`].
    pub processes_started: Option<u64>,
}

impl WantedLimits {
    /// These, and those of `base` where nothing is asked for.
    #[must_use]
    pub fn over(self, base: Limits) -> Limits {
        Limits {
            memory_bytes: self.memory_bytes.unwrap_or(base.memory_bytes),
            cpus: self.cpus.unwrap_or(base.cpus),
            pids: self.pids.unwrap_or(base.pids),
            disk_bytes: self.disk_bytes.unwrap_or(base.disk_bytes),
            open_files: self.open_files.unwrap_or(base.open_files),
            processes_started: self.processes_started.unwrap_or(base.processes_started),
        }
    }
}

/// A limit that no sandbox can have, with the bounds.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("limits.{field} must be {bounds}")]
pub struct InvalidLimit {
    /// The field's name on the wire.
    pub field: &'static str,
    /// What it may be.
    pub bounds: &'static str,
}

impl Limits {
    fn usual_open_files() -> u32 {
        Self::default().open_files
    }

    fn usual_processes_started() -> u64 {
        Self::default().processes_started
    }

    /// Checks each limit against what any sandbox can be given.
    ///
    /// # Errors
    /// The first limit that is out of bounds.
    pub fn validate(&self) -> Result<(), InvalidLimit> {
        match self.out_of_bounds().into_iter().next() {
            Some((field, bounds, _)) => Err(InvalidLimit { field, bounds }),
            None => Ok(()),
        }
    }

    /// Each limit that no sandbox can be given: its field, the bounds, and what it is.
    #[must_use]
    pub fn out_of_bounds(&self) -> Vec<(&'static str, &'static str, String)> {
        let checks = [
            (
                (64 << 20..=1 << 40).contains(&self.memory_bytes),
                "memory_bytes",
                "64 MiB to 1 TiB",
                self.memory_bytes.to_string(),
            ),
            (
                (0.01..=1024.0).contains(&self.cpus),
                "cpus",
                "0.01 to 1024",
                self.cpus.to_string(),
            ),
            (
                (16..=65_536).contains(&self.pids),
                "pids",
                "16 to 65536",
                self.pids.to_string(),
            ),
            (
                (GIB..=1 << 44).contains(&self.disk_bytes),
                "disk_bytes",
                "1 GiB to 16 TiB",
                self.disk_bytes.to_string(),
            ),
            (
                (64..=MAX_OPEN_FILES).contains(&self.open_files),
                "open_files",
                "64 to 65536",
                self.open_files.to_string(),
            ),
            (
                (1..=1_000_000_000).contains(&self.processes_started),
                "processes_started",
                "1 to 1000000000",
                self.processes_started.to_string(),
            ),
        ];
        let bad = checks.into_iter().filter(|(fits, ..)| !fits);
        bad.map(|(_, field, bounds, found)| (field, bounds, found))
            .collect()
    }

    /// Each limit, or the most that there may be where that is less.
    #[must_use]
    pub fn within(&self, most: &Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.min(most.memory_bytes),
            cpus: self.cpus.min(most.cpus),
            pids: self.pids.min(most.pids),
            disk_bytes: self.disk_bytes.min(most.disk_bytes),
            open_files: self.open_files.min(most.open_files),
            processes_started: self.processes_started.min(most.processes_started),
        }
    }

    /// Each limit beside the most that there may be: its field, whether it is over, what it is, and the most.
    #[must_use]
    pub fn over(&self, most: &Self) -> [(&'static str, bool, String, String); 6] {
        let pair = |over, asked: &dyn ToString, most: &dyn ToString| {
            (over, asked.to_string(), most.to_string())
        };
        let (memory, cpus, pids, disk, files, started) = (
            pair(
                self.memory_bytes > most.memory_bytes,
                &self.memory_bytes,
                &most.memory_bytes,
            ),
            pair(self.cpus > most.cpus, &self.cpus, &most.cpus),
            pair(self.pids > most.pids, &self.pids, &most.pids),
            pair(
                self.disk_bytes > most.disk_bytes,
                &self.disk_bytes,
                &most.disk_bytes,
            ),
            pair(
                self.open_files > most.open_files,
                &self.open_files,
                &most.open_files,
            ),
            pair(
                self.processes_started > most.processes_started,
                &self.processes_started,
                &most.processes_started,
            ),
        );
        [
            ("memory_bytes", memory.0, memory.1, memory.2),
            ("cpus", cpus.0, cpus.1, cpus.2),
            ("pids", pids.0, pids.1, pids.2),
            ("disk_bytes", disk.0, disk.1, disk.2),
            ("open_files", files.0, files.1, files.2),
            ("processes_started", started.0, started.1, started.2),
        ]
    }

    /// The cap on each file that gVisor keeps on the host for a sandbox: one holds its memory, one
    /// its writable layer. The larger of both limits, because the kernel knows one cap for all
    /// files of a process (setrlimit(2), `RLIMIT_FSIZE`).
    #[must_use]
    pub fn file_limit_bytes(&self) -> u64 {
        self.memory_bytes.max(self.disk_bytes).next_multiple_of(GIB)
    }
}

/// What a sandbox has to do with what its template warms up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Warmth {
    /// Nothing: its template warms nothing up.
    #[default]
    None,
    /// The warm-up runs in it.
    Live,
    /// The same, and then a checkpoint is taken of it, which is kept for as long as this file is there.
    Source(PathBuf),
    /// It begins as the checkpoint that is kept with this file, where that is there and was taken on the same ground; else as
    /// any other.
    Restored(PathBuf),
}

/// A checkpoint that sandboxes can begin as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// What its file is called; see [`Warmth::Source`].
    pub name: String,
    /// Its size on the disk.
    pub size_bytes: u64,
}

/// What to build for a session.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxSpec {
    /// Who owns the container: only an installation's own containers are ever touched.
    pub installation: InstallationId,
    /// The session it is for.
    pub session: SessionId,
    /// What it is made of.
    pub image: ImageDigest,
    /// What it may use.
    pub limits: Limits,
    /// Whether programs in it may be root.
    pub allow_root: bool,
    /// Its host name.
    pub hostname: String,
    /// The directory on the host that holds the link socket; mounted read-only.
    pub link_dir: PathBuf,
    /// The directory on the host in which the session's volumes are mounted when it has any; what is in its `mounts` is seen
    /// inside at `/volumes`.
    pub volumes_dir: PathBuf,
    /// Whether it is warmed up, and how.
    pub warmth: Warmth,
}

/// Names a container: 64 hexadecimal digits.
///
/// Fixed in length because runsc takes a prefix for an ambiguous name and then fails.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String")]
pub struct SandboxId(String);

impl SandboxId {
    /// The 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text does not name a container.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a container id is 64 lowercase hexadecimal digits")]
pub struct InvalidSandboxId;

impl TryFrom<String> for SandboxId {
    type Error = InvalidSandboxId;

    fn try_from(text: String) -> Result<Self, InvalidSandboxId> {
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(text))
        } else {
            Err(InvalidSandboxId)
        }
    }
}

impl std::fmt::Display for SandboxId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How far a container has come, as the runtime sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxPhase {
    /// Made, never started.
    Created,
    /// Its first process runs, or podman believes so.
    Running,
    /// Its first process has ended.
    Exited,
    /// Anything else: half made, half removed, paused by hand.
    Other,
}

/// A container as the runtime sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxState {
    /// The container.
    pub id: SandboxId,
    /// The session in its label; `None` when the label is missing or not ours.
    pub session: Option<SessionId>,
    /// How far it has come.
    pub phase: SandboxPhase,
    /// Exit code, once it has exited.
    pub exit_code: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_limits_are_possible() {
        assert_eq!(Limits::default().validate(), Ok(()));
    }

    #[test]
    fn impossible_limits_are_named() {
        let cases = [
            (
                Limits {
                    memory_bytes: 1,
                    ..Limits::default()
                },
                "memory_bytes",
            ),
            (
                Limits {
                    cpus: f64::NAN,
                    ..Limits::default()
                },
                "cpus",
            ),
            (
                Limits {
                    pids: 0,
                    ..Limits::default()
                },
                "pids",
            ),
            (
                Limits {
                    disk_bytes: 0,
                    ..Limits::default()
                },
                "disk_bytes",
            ),
            (
                Limits {
                    open_files: MAX_OPEN_FILES + 1,
                    ..Limits::default()
                },
                "open_files",
            ),
            (
                Limits {
                    processes_started: 0,
                    ..Limits::default()
                },
                "processes_started",
            ),
        ];
        for (limits, field) in cases {
            assert_eq!(limits.validate().unwrap_err().field, field);
        }
    }

    #[test]
    fn limits_that_were_written_down_before_there_were_more_are_read() {
        let old =
            r#"{"memory_bytes": 1073741824, "cpus": 1.0, "pids": 256, "disk_bytes": 4294967296}"#;
        let read: Limits = serde_json::from_str(old).unwrap();
        assert_eq!(read, Limits::default());
    }

    #[test]
    fn each_limit_over_the_most_is_named() {
        let most = Limits::default();
        let named = |limits: Limits| {
            let over = limits.over(&most).into_iter();
            over.filter_map(|(field, is_over, ..)| is_over.then_some(field))
                .collect::<Vec<_>>()
        };
        assert_eq!(named(most), Vec::<&str>::new());
        let more = Limits {
            memory_bytes: most.memory_bytes + 1,
            cpus: 1.5,
            pids: most.pids + 1,
            disk_bytes: most.disk_bytes + 1,
            open_files: most.open_files + 1,
            processes_started: most.processes_started + 1,
        };
        let all = [
            "memory_bytes",
            "cpus",
            "pids",
            "disk_bytes",
            "open_files",
            "processes_started",
        ];
        assert_eq!(named(more), all);
    }

    #[test]
    fn the_file_limit_covers_memory_and_disk_in_whole_gibibytes() {
        let limits = Limits {
            memory_bytes: GIB + 1,
            disk_bytes: GIB,
            ..Limits::default()
        };
        assert_eq!(limits.file_limit_bytes(), 2 * GIB);
    }
}
