//! Floor 3: the machine under us: service manager, signals, users, directories, locks, and what the
//! daemon forbids itself. nix, sd-notify, signal-hook, landlock and seccompiler live only here.
//!
//! Nothing here knows of sessions. Everything here answers at once, but for the name service behind
//! [`users`] and [`peer`], which may ask a directory server.

pub mod accept;
pub mod background;
pub mod certificates;
pub mod cgroup;
pub mod credential;
pub mod directory;
pub mod disk;
pub mod harden;
pub mod journal;
pub mod lock;
pub mod memory;
pub mod notify;
pub mod peer;
pub mod realm;
pub mod scratch;
pub mod signals;
pub mod syscalls;
pub mod users;

use std::io;
use std::path::{Path, PathBuf};

use crate::base::exit::Exit;

/// What the machine refused, split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Another daemon works in the state directory. Try again when it has ended.
    #[error(
        "another casemated{} holds {}; stop it first, or give this one a state_dir of its own",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), path.display()
    )]
    AlreadyHeld {
        /// The lock file.
        path: PathBuf,
        /// What the holder wrote into it, for people; `None` when it could not be read.
        pid: Option<u32>,
    },
    /// A directory that others could tamper with. Refuse to start.
    #[error("{} {what}; {mend}", path.display())]
    Unsafe {
        /// What was looked at.
        path: PathBuf,
        /// What was found.
        what: String,
        /// What to do about it.
        mend: String,
    },
    /// The file system said no. Report.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file cannot be given to a group. Refuse to start.
    #[error("give {} to the group {group}; casemated must be a member of that group", path.display())]
    Group {
        /// What was to be given.
        path: PathBuf,
        /// The group's name, or its number when it has none.
        group: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// There is no such user or group. Refuse to start.
    #[error(
        "there is no {kind} {name} on this machine; make it with systemd-sysusers, or name another in the configuration"
    )]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// What was looked for.
        name: String,
    },
    /// The daemon was started as root. Refuse to start.
    #[error(
        "casemated does not run as root; start it with systemctl start casemated, or as the user casemate"
    )]
    Root,
    /// The kernel or the name service said no. Report.
    #[error("{doing}")]
    System {
        /// What was being asked.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl HostError {
    /// How a start ends that this stops.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::AlreadyHeld { .. } => Exit::AlreadyRunning,
            Self::Unsafe { .. } | Self::Root | Self::Group { .. } => Exit::Refused,
            Self::File { .. } => Exit::CantCreate,
            Self::Unknown { .. } => Exit::Config,
            Self::System { .. } => Exit::Software,
        }
    }

    fn file(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::File {
            doing,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    fn system(doing: &'static str, source: impl Into<io::Error>) -> Self {
        Self::System {
            doing,
            source: source.into(),
        }
    }
}

/// Runs a test again in a process of its own, for what belongs to a whole process: its signals, its
/// umask, its environment.
#[cfg(test)]
pub(crate) mod child {
    use std::process::{Child, Command, Stdio};

    /// Set in the process that [`start`] starts.
    const MARK: &str = "CASEMATE_TEST_CHILD";

    /// Whether this is the process of its own.
    pub(crate) fn is_child() -> bool {
        std::env::var_os(MARK).is_some()
    }

    /// The named test of this binary as a process with these variables. Its standard output is a
    /// pipe.
    pub(crate) fn command(test: &str, env: &[(&str, &str)]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(MARK, "1")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    }

    /// Starts it.
    pub(crate) fn start(test: &str, env: &[(&str, &str)]) -> Child {
        command(test, env).spawn().unwrap()
    }

    /// Runs the named test as a process; fails when it failed.
    pub(crate) fn run(test: &str, env: &[(&str, &str)]) {
        let output = start(test, env).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{test}: {said}");
        assert!(said.contains("1 passed"), "{test} was not found: {said}");
    }
}
