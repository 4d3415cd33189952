//! Why a command did not do what it was asked to: a sentence for people and an exit code for
//! programs. The sentence says what to do next; it is escaped where it is printed, not here.

use std::fmt;

use casemate::base::exit::Exit;

/// A command's bad end.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the parent process sees.
    pub exit: Exit,
    /// What a person reads.
    pub message: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }

    /// The command line asks for what cannot be.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Nobody answers, or not in time.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Exit::Unavailable, message)
    }

    /// A file or a stream of this machine failed.
    pub fn io(doing: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::new(Exit::IoError, format!("cannot {doing}: {error}"))
    }

    /// The two programs do not understand each other.
    pub fn mismatch() -> Self {
        Self::new(
            Exit::Software,
            "casemated answered what casemate does not expect; use the casemate of casemated's own package",
        )
    }
}
