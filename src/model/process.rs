//! One run of a program in a session, and what came of it.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A program to run to its end.
#[derive(Clone, PartialEq, Eq)]
pub struct RunSpec {
    /// Program and arguments; empty when there is a `command`.
    pub argv: Vec<String>,
    /// A command line for the user's login shell.
    pub command: Option<String>,
    /// Added to the session's environment.
    pub env: BTreeMap<String, String>,
    /// Where it starts.
    pub cwd: Option<String>,
    /// Who it runs as inside; `user` when absent.
    pub user: Option<String>,
    /// What it reads.
    pub stdin: Bytes,
    /// Its whole process group is ended after this time.
    pub timeout_s: u64,
    /// Kept of each of its two outputs; the rest is counted and dropped.
    pub max_output_bytes: u64,
}

impl std::fmt::Debug for RunSpec {
    /// Without arguments, environment and input: they may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunSpec")
            .field("argc", &self.argv.len())
            .field("stdin_bytes", &self.stdin.len())
            .field("timeout_s", &self.timeout_s)
            .finish_non_exhaustive()
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOutcome {
    /// Exit code; `None` when a signal ended it.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote, as bytes.
    pub stdout: Bytes,
    /// What it wrote to its second output, as bytes.
    pub stderr: Bytes,
    /// Whether some of either output was dropped.
    pub truncated: bool,
    /// Whether its time was over before it ended.
    pub timed_out: bool,
    /// From its start to its end.
    pub duration_ms: u64,
}
