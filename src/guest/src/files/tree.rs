//! Reading a directory through its descriptor, however often and in pieces.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use casemate_link::Refusal;
use nix::dir::{Dir, OwningIter, Type};
use nix::fcntl::openat;
use nix::sys::stat::Mode;

use super::error::Doing;
use super::place::READ_DIRECTORY;

/// The names in a directory, as the kernel gives them: those that come and go meanwhile may be among them or not.
pub(crate) struct Names(OwningIter);

/// A name and, where the file system says it, what has it.
pub(crate) type Name = (OsString, Option<Type>);

impl Names {
    /// Of an open directory, from its first; the descriptor may be good for looking up only.
    pub(crate) fn of(dir: impl AsFd) -> Result<Self, Refusal> {
        let again =
            openat(dir, ".", READ_DIRECTORY, Mode::empty()).doing("reading the directory")?;
        let names = Dir::from_fd(again).doing("reading the directory")?;
        Ok(Self(names.into_iter()))
    }

    /// The next; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Name>, Refusal> {
        for entry in self.0.by_ref() {
            let entry = entry.doing("reading the directory")?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                return Ok(Some((
                    OsStr::from_bytes(name).to_owned(),
                    entry.file_type(),
                )));
            }
        }
        Ok(None)
    }
}

/// Opens a directory below another; what is not one, or a symbolic link to one, is an error of the kernel's.
pub(crate) fn descend(dir: &OwnedFd, name: &OsStr) -> nix::Result<OwnedFd> {
    openat(dir, name, READ_DIRECTORY, Mode::empty())
}
