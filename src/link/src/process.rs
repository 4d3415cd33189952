//! The documents about processes and health, and the one check of a process's specification that both ends make.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits;

/// What becomes of a process that nobody listens to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDetach {
    /// SIGTERM to its group, the grace, SIGKILL.
    #[default]
    Kill,
    /// It runs on. A guest that cannot keep a process refuses the start with `keep_unsupported`.
    Keep,
}

/// A process to start in the sandbox. Fields that a peer does not know are ignored, missing ones take their default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The program and its arguments. A program without a slash is looked up in the environment's `PATH`.
    pub argv: Vec<String>,
    /// Variables over the guest's small default (`PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`, `LANG`).
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; absent: the user's home, or `/` when there is none.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Name or number of the user; absent: the sandbox's `user`.
    #[serde(default)]
    pub user: Option<String>,
    /// Wall-clock limit from the spawn, in milliseconds; absent: none.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Time between SIGTERM and SIGKILL, in milliseconds.
    #[serde(default = "default_kill_grace_ms")]
    pub kill_grace_ms: u64,
    /// Bytes of standard output that are sent; the rest is counted and dropped.
    #[serde(default = "default_output_bytes")]
    pub max_stdout_bytes: u64,
    /// Bytes of standard error that are sent; the rest is counted and dropped.
    #[serde(default = "default_output_bytes")]
    pub max_stderr_bytes: u64,
    /// What becomes of it when the daemon drops the stream or the link is lost.
    #[serde(default)]
    pub on_detach: OnDetach,
}

const fn default_kill_grace_ms() -> u64 {
    limits::DEFAULT_KILL_GRACE_MS
}

const fn default_output_bytes() -> u64 {
    limits::DEFAULT_OUTPUT_BYTES
}

/// Why a specification cannot be run. Names the field, never a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSpec {
    /// `argv` is empty, or its first word is.
    #[error("argv names no program")]
    NoProgram,
    /// A text holds a NUL, which no system call can carry.
    #[error("{0} holds a NUL byte")]
    Nul(&'static str),
    /// A name in the environment is empty or holds `=`.
    #[error("a name in env is empty or holds '='")]
    EnvName,
    /// More entries or bytes than [`limits`] allows.
    #[error("{0} is over its bound")]
    TooBig(&'static str),
    /// The working directory is empty or not absolute.
    #[error("cwd is not an absolute path")]
    Cwd,
    /// The user is an empty text.
    #[error("user is empty")]
    User,
}

impl ProcessSpec {
    /// A process with defaults for everything but its words.
    pub fn new<W: Into<String>>(argv: impl IntoIterator<Item = W>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            timeout_ms: None,
            kill_grace_ms: default_kill_grace_ms(),
            max_stdout_bytes: default_output_bytes(),
            max_stderr_bytes: default_output_bytes(),
            on_detach: OnDetach::Kill,
        }
    }

    /// Checks every bound that does not depend on the sandbox. The daemon asks before it sends, the guest before it runs.
    ///
    /// # Errors
    /// The first [`BadSpec`] found.
    pub fn validate(&self) -> Result<(), BadSpec> {
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(BadSpec::NoProgram);
        }
        bounded(
            "argv",
            self.argv.iter().map(String::as_str),
            limits::MAX_ARGV_COUNT,
            limits::MAX_ARGV_BYTES,
        )?;
        let variables = self
            .env
            .iter()
            .flat_map(|(name, value)| [name.as_str(), value.as_str()]);
        bounded(
            "env",
            variables,
            2 * limits::MAX_ENV_COUNT,
            limits::MAX_ENV_BYTES,
        )?;
        if self
            .env
            .keys()
            .any(|name| name.is_empty() || name.contains('='))
        {
            return Err(BadSpec::EnvName);
        }
        bounded("cwd", self.cwd.as_deref(), 1, limits::MAX_PATH_BYTES)?;
        if self.cwd.as_ref().is_some_and(|cwd| !cwd.starts_with('/')) {
            return Err(BadSpec::Cwd);
        }
        bounded("user", self.user.as_deref(), 1, limits::MAX_USER_BYTES)?;
        if self.user.as_ref().is_some_and(String::is_empty) {
            return Err(BadSpec::User);
        }
        if self.kill_grace_ms > limits::MAX_KILL_GRACE_MS {
            return Err(BadSpec::TooBig("kill_grace_ms"));
        }
        Ok(())
    }
}

/// Bounds a field's entries, its bytes (with the NUL that ends each in memory), and refuses NULs within.
fn bounded<'a>(
    field: &'static str,
    texts: impl IntoIterator<Item = &'a str>,
    max_count: usize,
    max_bytes: usize,
) -> Result<(), BadSpec> {
    let (mut count, mut bytes) = (0_usize, 0_usize);
    for text in texts {
        count += 1;
        bytes = bytes.saturating_add(text.len() + 1);
        if count > max_count || bytes > max_bytes {
            return Err(BadSpec::TooBig(field));
        }
        if text.contains('\0') {
            return Err(BadSpec::Nul(field));
        }
    }
    Ok(())
}

/// First response frame of a process that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The guest's number for this process: never used twice by one guest, unlike a pid.
    pub process: u64,
    /// Its pid in the sandbox, which is also its process group and session.
    pub pid: u32,
}

/// Last response frame of a process: how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessExit {
    /// Its exit code, when it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it, otherwise.
    pub signal: Option<i32>,
    /// Whether the time limit was reached before it ended.
    pub timed_out: bool,
    /// Bytes of standard output over the bound: read, counted, not sent.
    pub stdout_dropped_bytes: u64,
    /// Bytes of standard error over the bound: read, counted, not sent.
    pub stderr_dropped_bytes: u64,
    /// Wall-clock time from the spawn to the end, in milliseconds.
    pub duration_ms: u64,
}

/// Body of a request to [`crate::route::PROCESS_SIGNAL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalRequest {
    /// [`Started::process`].
    pub process: u64,
    /// The signal's number, sent to the whole process group.
    pub signum: i32,
}

/// Body of a request to [`crate::route::PROCESS_DETACH`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachRequest {
    /// [`Started::process`].
    pub process: u64,
}

/// Why the guest did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One of [`code`], or a newer guest's.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

/// The codes of a [`Refusal`].
pub mod code {
    /// The specification breaks a bound.
    pub const BAD_SPEC: &str = "bad_spec";
    /// No such program (or no interpreter for it).
    pub const NOT_FOUND: &str = "not_found";
    /// The user may not run the program.
    pub const PERMISSION_DENIED: &str = "permission_denied";
    /// The working directory does not exist or may not be entered.
    pub const BAD_WORKDIR: &str = "bad_workdir";
    /// The sandbox has no such user.
    pub const UNKNOWN_USER: &str = "unknown_user";
    /// The user exists and may not be used.
    pub const USER_NOT_ALLOWED: &str = "user_not_allowed";
    /// `on_detach: keep` is not something this guest can do.
    pub const KEEP_UNSUPPORTED: &str = "keep_unsupported";
    /// The sandbox runs as many processes as it may.
    pub const TOO_MANY_PROCESSES: &str = "too_many_processes";
    /// The sandbox has no memory left for another process.
    pub const OUT_OF_MEMORY: &str = "out_of_memory";
    /// The kernel refused the program for another reason.
    pub const SPAWN_FAILED: &str = "spawn_failed";
    /// The guest is ending.
    pub const STOPPING: &str = "stopping";
    /// The process is not there (any more).
    pub const NO_SUCH_PROCESS: &str = "no_such_process";
    /// The request makes no sense to this guest.
    pub const BAD_REQUEST: &str = "bad_request";
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_specification_is_valid() {
        let mut spec = ProcessSpec::new(["sh", "-c", "echo hi", ""]);
        spec.env.insert("NAME".into(), "a=b".into());
        spec.cwd = Some("/tmp".into());
        assert_eq!(spec.validate(), Ok(()));
    }

    #[test]
    fn each_bound_is_kept() {
        let spec = |change: fn(&mut ProcessSpec)| {
            let mut spec = ProcessSpec::new(["true"]);
            change(&mut spec);
            spec.validate().unwrap_err()
        };
        assert_eq!(spec(|s| s.argv.clear()), BadSpec::NoProgram);
        assert_eq!(spec(|s| s.argv = vec![String::new()]), BadSpec::NoProgram);
        assert_eq!(spec(|s| s.argv.push("a\0b".into())), BadSpec::Nul("argv"));
        assert_eq!(
            spec(|s| s.argv = vec!["a".into(); 4097]),
            BadSpec::TooBig("argv")
        );
        assert_eq!(
            spec(|s| s.argv.push("a".repeat(256 * 1024))),
            BadSpec::TooBig("argv")
        );
        assert_eq!(
            spec(|s| drop(s.env.insert(String::new(), String::new()))),
            BadSpec::EnvName
        );
        assert_eq!(
            spec(|s| drop(s.env.insert("A=B".into(), String::new()))),
            BadSpec::EnvName
        );
        assert_eq!(
            spec(|s| drop(s.env.insert("A".into(), "\0".into()))),
            BadSpec::Nul("env")
        );
        assert_eq!(
            spec(|s| s.env = (0..1025).map(|n| (n.to_string(), String::new())).collect()),
            BadSpec::TooBig("env")
        );
        assert_eq!(spec(|s| s.cwd = Some("tmp".into())), BadSpec::Cwd);
        assert_eq!(spec(|s| s.cwd = Some("/\0".into())), BadSpec::Nul("cwd"));
        assert_eq!(spec(|s| s.user = Some(String::new())), BadSpec::User);
        assert_eq!(
            spec(|s| s.kill_grace_ms = 60_001),
            BadSpec::TooBig("kill_grace_ms")
        );
    }

    #[test]
    fn a_newer_peers_fields_are_ignored_and_an_older_ones_defaulted() {
        let spec: ProcessSpec =
            serde_json::from_str(r#"{"argv":["true"],"pty":{"rows":24}}"#).unwrap();
        assert_eq!(spec, ProcessSpec::new(["true"]));
    }
}
