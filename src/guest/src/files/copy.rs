//! Copying to another file system, for a move that cannot be a rename.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use casemate_link::file::FileKind;
use casemate_link::refusal::{Refusal, code};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::symlinkat;

use super::actor::Abandoned;
use super::error::{Doing, wrong_kind};
use super::place::{READ_FILE, Spot, look};
use super::temporary::Temporary;
use super::tree::{Names, descend};
use super::write::{CREATE, PRIVATE};
use super::{attributes, entry};
use crate::child::refusal;
use crate::sys::Attributed;

/// Directories that are open at once, on each side.
const MAX_LEVELS: usize = 128;

/// Bytes that are copied at once.
const PART_BYTES: usize = 256 * 1024;

/// Mode of a directory while things are put in it.
const PRIVATE_DIRECTORY: Mode = Mode::S_IRWXU;

/// Copies what is at a place beside another one. The copy is whole, and has no proper name yet.
pub(crate) fn beside(from: &Spot, to: &Spot, abandoned: &Abandoned) -> Result<Temporary, Refusal> {
    let found = from
        .look()?
        .ok_or_else(|| super::error::explain("copying it", Errno::ENOENT))?;
    match entry::kind(&found) {
        FileKind::File => {
            let (temporary, new) = Temporary::beside(to, "creating the copy", |dir, name| {
                openat(dir, name, CREATE, PRIVATE)
            })?;
            content(&from.dir, &from.name, new, abandoned)?;
            Ok(temporary)
        }
        FileKind::Symlink => {
            let target = readlinkat(&from.dir, from.name.as_os_str()).doing("reading the link")?;
            let make = |dir: &OwnedFd, name: &OsStr| symlinkat(target.as_os_str(), dir, name);
            Ok(Temporary::beside(to, "creating the copy", make)?.0)
        }
        FileKind::Directory => {
            let (temporary, ()) = Temporary::beside(to, "creating the copy", |dir, name| {
                mkdirat(dir, name, PRIVATE_DIRECTORY)
            })?;
            let (dir, name) = temporary.spot();
            let new = descend(dir, name).doing("opening the copy")?;
            let old = descend(&from.dir, &from.name).doing("opening the directory")?;
            tree(old, new, abandoned)?;
            Ok(temporary)
        }
        FileKind::Other => Err(special()),
    }
}

/// A directory that is being copied.
struct Level {
    old: OwnedFd,
    new: OwnedFd,
    names: Names,
}

fn tree(old: OwnedFd, new: OwnedFd, abandoned: &Abandoned) -> Result<(), Refusal> {
    let names = Names::of(&old)?;
    let mut levels = vec![Level { old, new, names }];
    while let Some(level) = levels.last_mut() {
        let Some((name, _)) = level.names.next()? else {
            if let Some(Level { old, new, .. }) = levels.pop() {
                qualities(&old, &new)?;
            }
            continue;
        };
        if let Some((old, new)) = one(level, &name, abandoned)? {
            if levels.len() >= MAX_LEVELS {
                return Err(refusal(
                    code::FILE_FAILED,
                    "the directories lie too deep to be copied",
                ));
            }
            let names = Names::of(&old)?;
            levels.push(Level { old, new, names });
        }
    }
    Ok(())
}

/// Copies what has a name; a directory is only made, and returned with its original.
fn one(
    level: &Level,
    name: &OsString,
    abandoned: &Abandoned,
) -> Result<Option<(OwnedFd, OwnedFd)>, Refusal> {
    abandoned.check()?;
    let Some(found) = look(&level.old, name)? else {
        return Ok(None);
    };
    let plain = name.as_os_str();
    match entry::kind(&found) {
        FileKind::File => {
            let new = openat(&level.new, plain, CREATE, PRIVATE).doing("creating the copy")?;
            content(&level.old, name, new, abandoned)?;
        }
        FileKind::Symlink => {
            let target = readlinkat(&level.old, plain).doing("reading a link")?;
            symlinkat(target.as_os_str(), &level.new, plain).doing("copying a link")?;
        }
        FileKind::Directory => {
            mkdirat(&level.new, plain, PRIVATE_DIRECTORY).doing("creating the copy")?;
            let old = descend(&level.old, name).doing("opening a directory")?;
            let new = descend(&level.new, name).doing("opening the copy")?;
            return Ok(Some((old, new)));
        }
        FileKind::Other => return Err(special()),
    }
    Ok(None)
}

fn special() -> Refusal {
    wrong_kind("pipes, sockets and devices cannot be moved to another file system")
}

fn content(
    dir: &OwnedFd,
    name: &OsStr,
    new: OwnedFd,
    abandoned: &Abandoned,
) -> Result<(), Refusal> {
    let flags = READ_FILE | OFlag::O_NOFOLLOW;
    let old = openat(dir, name, flags, Mode::empty()).doing("opening the file")?;
    let (mut from, mut to) = (File::from(old), File::from(new));
    let mut part = vec![0; PART_BYTES];
    loop {
        abandoned.check()?;
        match from.read(&mut part) {
            Ok(0) => break,
            Ok(length) => to
                .write_all(part.get(..length).unwrap_or_default())
                .doing("writing the copy")?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).doing("reading the file"),
        }
    }
    qualities(&from, &to)
}

/// Gives a copy the metadata, the mode and the time of its original.
fn qualities(old: &impl AsFd, new: &impl AsFd) -> Result<(), Refusal> {
    let stat = fstat(old).doing("looking at the original")?;
    let metadata = attributes::read(Attributed::Open(old.as_fd()));
    if !metadata.is_empty() {
        attributes::replace(Attributed::Open(new.as_fd()), &metadata)?;
    }
    // The copy may be somebody else's, so it does not run as its owner.
    let mode = Mode::from_bits_truncate(stat.st_mode & 0o1777);
    fchmod(new, mode).doing("setting the mode")?;
    let (read, changed) = times(&stat);
    futimens(new, &read, &changed).doing("setting the time")
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (
        TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
        TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
    )
}
