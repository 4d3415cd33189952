//! Removing files and whole trees.
//!
//! A tree is removed through open directories, one name at a time: no path is followed, so that a directory which somebody
//! replaces by a symbolic link meanwhile never leads out of it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use casemate_link::file::{FileKind, RemoveRequest};
use casemate_link::refusal::{Refusal, code};
use nix::dir::Type;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, RenameFlags, renameat2};
use nix::sys::stat::{fstatat, stat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::actor::{Abandoned, Actor};
use super::entry;
use super::error::{Doing, explain};
use super::place::Spot;
use super::temporary;
use super::tree::{Name, Names, descend};
use crate::child::refusal;
use crate::processes::Processes;
use crate::transfer::Transfer;

/// Directories that are open at once. A deeper one is moved up first.
const MAX_LEVELS: usize = 64;

/// Names of one directory that are held at once.
const NAMES: usize = 1024;

/// How often a directory is found to have something in it again before somebody else wins.
const MAX_ROUNDS: usize = 100;

/// Answers a [`RemoveRequest`].
pub(crate) async fn remove(
    processes: Rc<Processes>,
    request: RemoveRequest,
    transfer: Transfer,
) -> Result<(), Refusal> {
    let actor = Actor::admit(&processes, &request.place)?;
    let path = actor.path(&request.place.path);
    let output = transfer.output;
    actor
        .run_for(&output, move |abandoned| {
            let spot = Spot::open(&path)?;
            spare_the_root(&spot)?;
            if request.recursive {
                tree(&spot.dir, &spot.name, abandoned)
            } else {
                one(&spot)
            }
        })
        .await?;
    output.end().await;
    Ok(())
}

fn one(spot: &Spot) -> Result<(), Refusal> {
    let name = spot.name.as_os_str();
    let found = fstatat(&spot.dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).doing("removing it")?;
    let flag = match entry::kind(&found) {
        FileKind::Directory => UnlinkatFlags::RemoveDir,
        _ => UnlinkatFlags::NoRemoveDir,
    };
    unlinkat(&spot.dir, name, flag).doing("removing it")
}

/// By whatever path: a sandbox without a root is none.
fn spare_the_root(spot: &Spot) -> Result<(), Refusal> {
    let root = stat(Path::new("/")).doing("looking at the root")?;
    match spot.look()? {
        Some(found) if (found.st_dev, found.st_ino) == (root.st_dev, root.st_ino) => Err(refusal(
            code::FILE_DENIED,
            "the root directory is not removed",
        )),
        _ => Ok(()),
    }
}

/// A directory that is being emptied.
struct Level {
    dir: OwnedFd,
    /// In the directory above.
    name: OsString,
    names: VecDeque<Name>,
    rounds: usize,
}

/// Removes what has this name in a directory, with all that is in it.
pub(crate) fn tree(parent: &OwnedFd, name: &OsStr, abandoned: &Abandoned) -> Result<(), Refusal> {
    let mut levels = Vec::new();
    match take(parent, name, None).doing("removing it")? {
        Taken::Gone => return Ok(()),
        Taken::Absent => return Err(explain("removing it", Errno::ENOENT)),
        Taken::Directory(dir) => levels.push(Level::new(dir, name)),
    }
    while let Some(level) = levels.last_mut() {
        abandoned.check()?;
        if level.names.is_empty() {
            level.refill()?;
        }
        let Some((name, kind)) = level.names.pop_front() else {
            let Some(mut level) = levels.pop() else { break };
            let above = levels.last().map_or(parent, |above| &above.dir);
            match unlinkat(above, level.name.as_os_str(), UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                // Somebody puts something in.
                Err(Errno::ENOTEMPTY | Errno::EEXIST) if level.rounds < MAX_ROUNDS => {
                    level.rounds += 1;
                    levels.push(level);
                }
                // Somebody put something else in its place.
                Err(Errno::ENOTDIR) => {
                    unlinkat(above, level.name.as_os_str(), UnlinkatFlags::NoRemoveDir)
                        .doing("removing what is in it")?;
                }
                Err(errno) => return Err(explain("removing a directory in it", errno)),
            }
            continue;
        };
        match take(&level.dir, &name, kind).doing("removing what is in it")? {
            Taken::Gone | Taken::Absent => {}
            Taken::Directory(dir) if levels.len() < MAX_LEVELS => {
                levels.push(Level::new(dir, &name));
            }
            Taken::Directory(_) => lift(&levels, &name)?,
        }
    }
    Ok(())
}

impl Level {
    fn new(dir: OwnedFd, name: &OsStr) -> Self {
        Self {
            dir,
            name: name.to_owned(),
            names: VecDeque::new(),
            rounds: 0,
        }
    }

    /// Looks again at what is there, from the beginning: places in a directory from which names are removed mean nothing.
    fn refill(&mut self) -> Result<(), Refusal> {
        let mut names = Names::of(&self.dir)?;
        while self.names.len() < NAMES {
            match names.next()? {
                Some(name) => self.names.push_back(name),
                None => break,
            }
        }
        Ok(())
    }
}

/// What became of a name.
enum Taken {
    Gone,
    Absent,
    Directory(OwnedFd),
}

fn take(dir: &OwnedFd, name: &OsStr, kind: Option<Type>) -> nix::Result<Taken> {
    let refused = if kind == Some(Type::Directory) {
        Errno::EISDIR
    } else {
        match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => return Ok(Taken::Gone),
            Err(errno) => errno,
        }
    };
    match refused {
        Errno::ENOENT => Ok(Taken::Absent),
        // What POSIX says of a directory, and Linux of one.
        Errno::EPERM | Errno::EISDIR => match descend(dir, name) {
            Ok(inner) => Ok(Taken::Directory(inner)),
            // An empty one that may not be read can still be removed.
            Err(Errno::EACCES) => unlinkat(dir, name, UnlinkatFlags::RemoveDir)
                .map(|()| Taken::Gone)
                .map_err(|_| Errno::EACCES),
            Err(Errno::ENOENT) => Ok(Taken::Absent),
            // No directory (any more).
            Err(Errno::ENOTDIR | Errno::ELOOP) if refused == Errno::EISDIR => {
                unlinkat(dir, name, UnlinkatFlags::NoRemoveDir).map(|()| Taken::Gone)
            }
            Err(Errno::ENOTDIR | Errno::ELOOP) => Err(refused),
            Err(errno) => Err(errno),
        },
        errno => Err(errno),
    }
}

/// Moves a directory that lies too deep up to the first level, where it is found again.
fn lift(levels: &[Level], name: &OsStr) -> Result<(), Refusal> {
    if let (Some(first), Some(last)) = (levels.first(), levels.last()) {
        let new = temporary::name(false);
        let flags = RenameFlags::RENAME_NOREPLACE;
        renameat2(&last.dir, name, &first.dir, new.as_os_str(), flags)
            .doing("removing a directory in it")?;
    }
    Ok(())
}
