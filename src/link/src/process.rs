//! The documents about processes, and the one check of a process's specification that both ends make.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits;

/// What becomes of a process when the stream that started it is dropped, or the link is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDetach {
    /// SIGTERM to its group, the grace, SIGKILL.
    #[default]
    Kill,
    /// It runs on, and what it says and how it ends is kept for later readers.
    Keep,
}

/// What happens when a reader is slower than the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlowReader {
    /// The process waits for the slowest reader of those that are attached.
    #[default]
    Wait,
    /// The process goes on, and the reader is told how much it lost.
    Skip,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtySize {
    /// Lines; at least one.
    pub rows: u16,
    /// Columns; at least one.
    pub cols: u16,
}

/// The user's login shell, instead of a program.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoginShell {
    /// A command line for it; absent: it reads its input.
    #[serde(default)]
    pub command: Option<String>,
}

/// A process to start in the sandbox. Fields that a peer does not know are ignored, missing ones take their default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The program and its arguments. A program without a slash is looked up in the environment's `PATH`. Empty when
    /// `shell` is there, and only then.
    #[serde(default)]
    pub argv: Vec<String>,
    /// The user's login shell as its account names it, or `/bin/sh` when that cannot be run.
    #[serde(default)]
    pub shell: Option<LoginShell>,
    /// Variables over the guest's small default (`PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`, `LANG`; on a terminal `TERM`).
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; absent: the user's home, or `/` when there is none.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Name or number of the user; absent: the sandbox's `user`.
    #[serde(default)]
    pub user: Option<String>,
    /// A name for it that clients can find it by.
    #[serde(default)]
    pub tag: Option<String>,
    /// A terminal for its input and outputs: what it says is all standard output then, and the end of its input is the
    /// terminal's end-of-file character.
    #[serde(default)]
    pub pty: Option<PtySize>,
    /// Whether it has an input; without one it reads the end of `/dev/null`.
    #[serde(default = "yes")]
    pub stdin: bool,
    /// Wall-clock limit from the spawn, in milliseconds; absent: none.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Time between SIGTERM and SIGKILL, in milliseconds.
    #[serde(default = "default_kill_grace_ms")]
    pub kill_grace_ms: u64,
    /// Bytes of standard output that are passed on; the rest is counted and dropped.
    #[serde(default = "default_output_bytes")]
    pub max_stdout_bytes: u64,
    /// Bytes of standard error that are passed on; the rest is counted and dropped.
    #[serde(default = "default_output_bytes")]
    pub max_stderr_bytes: u64,
    /// The latest bytes of each output that are kept for readers.
    #[serde(default = "default_keep_bytes")]
    pub keep_bytes: u64,
    /// Whether the process waits for readers.
    #[serde(default)]
    pub slow_reader: SlowReader,
    /// What becomes of it when the daemon drops the stream or the link is lost.
    #[serde(default)]
    pub on_detach: OnDetach,
}

const fn yes() -> bool {
    true
}

const fn default_keep_bytes() -> u64 {
    limits::DEFAULT_KEEP_BYTES
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
    /// `argv` is empty, or its first word is, and there is no `shell` either.
    #[error("argv names no program")]
    NoProgram,
    /// Both `argv` and `shell`.
    #[error("argv and shell exclude each other")]
    TwoPrograms,
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
    /// A text that must not be empty is.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A terminal without rows or columns.
    #[error("pty has no rows or no columns")]
    Pty,
}

impl ProcessSpec {
    /// A process with defaults for everything but its words.
    pub fn new<W: Into<String>>(argv: impl IntoIterator<Item = W>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            shell: None,
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            tag: None,
            pty: None,
            stdin: true,
            timeout_ms: None,
            kill_grace_ms: default_kill_grace_ms(),
            max_stdout_bytes: default_output_bytes(),
            max_stderr_bytes: default_output_bytes(),
            keep_bytes: default_keep_bytes(),
            slow_reader: SlowReader::Wait,
            on_detach: OnDetach::Kill,
        }
    }

    /// Checks every bound that does not depend on the sandbox. The daemon asks before it sends, the guest before it runs.
    ///
    /// # Errors
    /// The first [`BadSpec`] found.
    pub fn validate(&self) -> Result<(), BadSpec> {
        match (&self.shell, self.argv.first()) {
            (Some(_), Some(_)) => return Err(BadSpec::TwoPrograms),
            (None, program) if program.is_none_or(String::is_empty) => {
                return Err(BadSpec::NoProgram);
            }
            (Some(_), None) | (None, _) => {}
        }
        let command = self
            .shell
            .as_ref()
            .and_then(|shell| shell.command.as_deref());
        bounded("command", command, 1, limits::MAX_ARG_BYTES)?;
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
        filled("user", self.user.as_deref(), limits::MAX_USER_BYTES)?;
        filled("tag", self.tag.as_deref(), limits::MAX_TAG_BYTES)?;
        if self
            .pty
            .is_some_and(|size| size.rows == 0 || size.cols == 0)
        {
            return Err(BadSpec::Pty);
        }
        if self.keep_bytes > limits::MAX_KEEP_BYTES {
            return Err(BadSpec::TooBig("keep_bytes"));
        }
        if self.kill_grace_ms > limits::MAX_KILL_GRACE_MS {
            return Err(BadSpec::TooBig("kill_grace_ms"));
        }
        Ok(())
    }
}

/// Bounds a text that may be absent but not empty.
fn filled(field: &'static str, text: Option<&str>, max_bytes: usize) -> Result<(), BadSpec> {
    if text.is_some_and(str::is_empty) {
        return Err(BadSpec::Empty(field));
    }
    bounded(field, text, 1, max_bytes)
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

/// Which process is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// [`Started::process`].
    Process(u64),
    /// The pid of a process in the guest's table: the latest that had it.
    Pid(u32),
    /// The tag of a process in the guest's table: the latest that has it.
    Tag(String),
}

/// First frame of an attach stream: whose words are wanted, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Which process.
    pub process: Selector,
    /// Offset in standard output of the first byte that is wanted; what is not kept any more is told as lost.
    #[serde(default)]
    pub stdout_offset: u64,
    /// The same for standard error.
    #[serde(default)]
    pub stderr_offset: u64,
    /// Whether output is wanted at all, or only the end.
    #[serde(default = "yes")]
    pub output: bool,
}

/// Output that a reader will not see: it was slower than the process, or came too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lost {
    /// Bytes of standard output.
    pub stdout_bytes: u64,
    /// Bytes of standard error.
    pub stderr_bytes: u64,
}

/// A process in the guest's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// [`Started::process`].
    pub process: u64,
    /// Its pid and process group.
    pub pid: u32,
    /// The program and its arguments, or the shell's; the first [`limits::MAX_LISTED_WORD_BYTES`] bytes of the first
    /// [`limits::MAX_LISTED_WORDS`].
    pub argv: Vec<String>,
    /// [`ProcessSpec::tag`].
    #[serde(default)]
    pub tag: Option<String>,
    /// [`ProcessSpec::cwd`], or where it started instead.
    #[serde(default)]
    pub cwd: Option<String>,
    /// The name of the user it runs as.
    #[serde(default)]
    pub user: String,
    /// Whether it has a terminal.
    #[serde(default)]
    pub pty: bool,
    /// Whether it is kept when nobody listens.
    #[serde(default)]
    pub kept: bool,
    /// When it was started, in milliseconds since 1970 by the sandbox's clock.
    #[serde(default)]
    pub started_at_ms: u64,
    /// Offset of the first byte of standard output that is kept.
    #[serde(default)]
    pub stdout_from: u64,
    /// Bytes of standard output so far.
    #[serde(default)]
    pub stdout_to: u64,
    /// Offset of the first byte of standard error that is kept.
    #[serde(default)]
    pub stderr_from: u64,
    /// Bytes of standard error so far.
    #[serde(default)]
    pub stderr_to: u64,
    /// How it ended, once it has.
    #[serde(default)]
    pub exit: Option<ProcessExit>,
}

/// Answer to [`crate::route::PROCESS_LIST`]: what runs, and what ended and is kept, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessList {
    /// At most [`limits::MAX_LISTED_PROCESSES`].
    pub processes: Vec<ProcessInfo>,
}

/// First frame of an input stream: data frames follow, and an end of the input if it is to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRequest {
    /// Which process.
    pub process: Selector,
}

/// Answer to an input stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputSummary {
    /// Bytes that went into the process's input.
    pub written_bytes: u64,
}

/// Body of a request to [`crate::route::PROCESS_RESIZE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeRequest {
    /// Which process.
    pub process: Selector,
    /// The new size.
    pub size: PtySize,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalRequest {
    /// Which process.
    pub process: Selector,
    /// The signal's number, sent to the whole process group.
    pub signum: i32,
}

/// Body of a request to [`crate::route::PROCESS_DETACH`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachRequest {
    /// [`Started::process`].
    pub process: u64,
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
        assert_eq!(
            spec(|s| s.user = Some(String::new())),
            BadSpec::Empty("user")
        );
        assert_eq!(
            spec(|s| s.kill_grace_ms = 60_001),
            BadSpec::TooBig("kill_grace_ms")
        );
    }

    #[test]
    fn a_newer_peers_fields_are_ignored_and_an_older_ones_defaulted() {
        let spec: ProcessSpec =
            serde_json::from_str(r#"{"argv":["true"],"door":{"rows":24}}"#).unwrap();
        assert_eq!(spec, ProcessSpec::new(["true"]));
    }
}
