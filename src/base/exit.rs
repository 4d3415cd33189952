//! How our programs end: the one list of exit codes.
//!
//! The numbers are those of sysexits(3). The unit's `RestartPreventExitStatus` names those that no
//! restart can mend, so that a wrong configuration is not a restart loop.

use std::process::ExitCode;

/// Why a program of ours ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// It did what it was asked to.
    Ok = 0,
    /// It was refused, and the message says why.
    Failed = 1,
    /// The command line is wrong (`EX_USAGE`). No restart mends it.
    Usage = 64,
    /// The state is damaged (`EX_DATAERR`). No restart mends it, a restore does.
    Damaged = 65,
    /// Something outside does not answer, podman above all (`EX_UNAVAILABLE`). A restart may help.
    Unavailable = 69,
    /// A defect of ours: a core task ended or panicked (`EX_SOFTWARE`). A restart may help.
    Software = 70,
    /// The state or runtime directory cannot be made or written (`EX_CANTCREAT`).
    CantCreate = 73,
    /// Reading or writing failed underway: a full or broken disk (`EX_IOERR`). A restart may help.
    IoError = 74,
    /// Another daemon holds the state directory (`EX_TEMPFAIL`). A restart may help.
    AlreadyRunning = 75,
    /// Refused for safety: run as root, or a directory that others can write (`EX_NOPERM`). No
    /// restart mends it.
    Refused = 77,
    /// The configuration is wrong (`EX_CONFIG`). No restart mends it.
    Config = 78,
    /// A program in a session ran into its time limit, as `timeout(1)` says it.
    TimedOut = 124,
    /// SIGINT ended it, in the daemon a second one (128 + 2, as a shell counts).
    Interrupted = 130,
    /// SIGTERM ended it, in the daemon a second one (128 + 15, as a shell counts).
    Terminated = 143,
}

impl Exit {
    /// Every way to end, in the order of their numbers.
    pub const ALL: [Self; 14] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::Damaged,
        Self::Unavailable,
        Self::Software,
        Self::CantCreate,
        Self::IoError,
        Self::AlreadyRunning,
        Self::Refused,
        Self::Config,
        Self::TimedOut,
        Self::Interrupted,
        Self::Terminated,
    ];

    /// The number that the parent process sees.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether starting again could end otherwise. The unit's `RestartPreventExitStatus` lists
    /// exactly those for which it could not.
    #[must_use]
    pub const fn restart_may_help(self) -> bool {
        !matches!(
            self,
            Self::Ok | Self::Usage | Self::Damaged | Self::Refused | Self::Config
        )
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_end_has_a_number_of_its_own() {
        let mut codes: Vec<u8> = Exit::ALL.into_iter().map(Exit::code).collect();
        let count = codes.len();
        codes.dedup();
        assert_eq!(codes.len(), count);
        assert!(codes.is_sorted());
    }

    #[test]
    fn a_wrong_configuration_is_not_a_restart_loop() {
        assert!(!Exit::Config.restart_may_help());
        assert!(!Exit::Refused.restart_may_help());
        assert!(!Exit::Damaged.restart_may_help());
        assert!(Exit::Unavailable.restart_may_help());
    }
}
