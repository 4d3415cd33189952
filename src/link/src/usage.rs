//! The documents about how the guest and its sandbox are.

use serde::{Deserialize, Serialize};

/// The guest's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The guest's version.
    pub guest_version: String,
    /// Time since the guest started, in milliseconds.
    pub uptime_ms: u64,
    /// Processes that the guest started and whose streams are open.
    pub processes: u32,
}

/// What the sandbox uses, as its own kernel counts. Claims of the guest's: for people and schedules, not for limits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// The wall clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// Time since the guest started, in milliseconds.
    pub uptime_ms: u64,
    /// Host name, at most [`crate::limits::MAX_HOSTNAME_BYTES`].
    pub hostname: String,
    /// Processors that programs see.
    pub cpus: u32,
    /// Processor time of everything that ran so far, in microseconds.
    pub cpu_us: u64,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
    /// Memory that there is, in bytes.
    pub memory_total_bytes: u64,
    /// Resident memory of the guest itself, in bytes.
    pub guest_bytes: u64,
    /// Processes that live, the guest included.
    pub processes: u32,
    /// Bytes that the writable layer of the root file system holds.
    pub disk_bytes: u64,
    /// Processes and threads of the user who has most of them.
    pub most_tasks: u32,
    /// Open files of the process that has most of them.
    pub most_open_files: u32,
}
