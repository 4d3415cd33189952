//! Why a command did not do what it was asked to: a sentence for people and an exit code for
//! programs. The sentence says what to do next; it is escaped where it is printed, not here.

use std::fmt;
use std::io;

use casemate::base::exit::Exit;

/// A command's bad end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the parent process sees.
    pub exit: Exit,
    /// What a person reads.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// So that it finds its way through readers and writers, which know only [`std::io::Error`].
impl std::error::Error for Failure {}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        Self::other(failure)
    }
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
    pub fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        Self::new(Exit::IoError, format!("cannot {doing}: {error}"))
    }

    /// What came out of a reader or writer: a failure of ours that it carries, or its own.
    pub fn carried(doing: impl fmt::Display, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(failure) => failure,
            Err(error) => Self::io(doing, &error),
        }
    }

    /// The two programs do not understand each other.
    pub fn mismatch() -> Self {
        Self::new(
            Exit::Software,
            "casemated answered what casemate does not expect; use the casemate of casemated's own package",
        )
    }
}
