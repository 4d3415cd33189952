//! A place for a file: an open directory, and a name in it. Once opened, it stays the same place, however the paths to it
//! are changed.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;

use casemate_link::Refusal;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstatat};

use super::error::{Doing, explain, wrong_kind};

/// Symbolic links that are followed one after another: as many as the kernel follows (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// To look things up in a directory, without the right to read it.
pub(crate) const LOOK_UP: OFlag = OFlag::O_PATH
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// To read what is in a directory, and never what a symbolic link leads to.
pub(crate) const READ_DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// To read a file without ever waiting for what is not a file.
pub(crate) const READ_FILE: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);

/// A directory and a name in it.
#[derive(Debug)]
pub(crate) struct Spot {
    pub(crate) dir: OwnedFd,
    pub(crate) name: OsString,
}

impl Spot {
    /// The place that a path names.
    pub(crate) fn open(path: &Path) -> Result<Self, Refusal> {
        Self::below(&AT_FDCWD, path)
    }

    /// The place that a path leads to, when there is a symbolic link at it.
    pub(crate) fn open_followed(path: &Path) -> Result<Self, Refusal> {
        let mut spot = Self::open(path)?;
        for _ in 0..MAX_LINKS {
            match readlinkat(&spot.dir, spot.name.as_os_str()) {
                Ok(target) => spot = Self::below(&spot.dir, Path::new(&target))?,
                // Nothing is there, or something that is no link.
                Err(Errno::ENOENT | Errno::EINVAL) => return Ok(spot),
                Err(errno) => return Err(explain("following a symbolic link", errno)),
            }
        }
        Err(explain("following symbolic links", Errno::ELOOP))
    }

    fn below(dir: &impl std::os::fd::AsFd, path: &Path) -> Result<Self, Refusal> {
        let Some(name) = path.file_name() else {
            return Err(wrong_kind("the path ends with no name of its own"));
        };
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        Ok(Self {
            dir: openat(dir, parent, LOOK_UP, Mode::empty()).doing("opening the directory")?,
            name: name.to_owned(),
        })
    }

    /// What is there, a symbolic link itself; `None` when there is nothing.
    pub(crate) fn look(&self) -> Result<Option<FileStat>, Refusal> {
        look(&self.dir, &self.name)
    }

    /// The directory, opened to be synchronised.
    pub(crate) fn open_directory(&self) -> Result<OwnedFd, Refusal> {
        openat(&self.dir, ".", READ_DIRECTORY, Mode::empty()).doing("opening the directory")
    }
}

/// What has this name in a directory, a symbolic link itself; `None` when there is nothing.
pub(crate) fn look(dir: &OwnedFd, name: &OsStr) -> Result<Option<FileStat>, Refusal> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(explain("looking at the file", errno)),
    }
}

/// Whether a path says that it means a directory.
pub(crate) fn says_directory(path: &str) -> bool {
    path.ends_with('/') || path.ends_with("/.") || path == "."
}

/// Makes the directories on the way to a path, those that are missing.
pub(crate) fn make_parents(path: &Path) -> Result<(), Refusal> {
    match path.parent() {
        Some(parent) => std::fs::create_dir_all(parent).doing("making the directories on the way"),
        None => Ok(()),
    }
}
