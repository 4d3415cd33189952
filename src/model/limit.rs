//! Which bound of a session was reached. The bounds themselves are [`super::sandbox::Limits`] and the deadlines.

use serde::{Deserialize, Serialize};

/// A kind of bound, as the record names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The kernel ended the sandbox for the memory that it used.
    Memory,
    /// For most of the time between two looks the sandbox waited because it had used its processor time.
    Cpu,
    /// A user inside had all the processes and threads that it may, or another was refused.
    Processes,
    /// The writable layer was full.
    Disk,
    /// A process had all the files open that it may.
    OpenFiles,
    /// A program wrote more than is kept of it.
    Output,
    /// A program ran for as long as it may.
    Time,
    /// As many processes were started as may be in a sandbox's life.
    ProcessesStarted,
}
