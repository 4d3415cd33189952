//! Listing a directory and those below it: by name, parents first.

use std::collections::BinaryHeap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use casemate_link::file::{BadPlace, FileEntry, FileKind, ListRequest};
use casemate_link::limits::{MAX_LIST_DEPTH, MAX_LISTED_FILES};
use casemate_link::refusal::Refusal;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstatat};

use super::actor::Actor;
use super::entry;
use super::error::{Doing, bad, explain, wrong_kind};
use super::place::READ_DIRECTORY;
use super::tree::{Names, descend};
use crate::processes::Processes;
use crate::sys::Attributed;
use crate::transfer::Transfer;
use crate::users;

/// Entries that one job finds.
const BATCH: usize = 256;

/// Answers a [`ListRequest`].
pub(crate) async fn list(
    processes: Rc<Processes>,
    request: ListRequest,
    transfer: Transfer,
) -> Result<(), Refusal> {
    let actor = Actor::admit(&processes, &request.place)?;
    if !(1..=MAX_LIST_DEPTH).contains(&request.depth) {
        return Err(bad(BadPlace::TooBig("depth")));
    }
    if !(1..=MAX_LISTED_FILES).contains(&request.limit) {
        return Err(bad(BadPlace::TooBig("limit")));
    }
    let path = actor.path(&request.place.path);
    let opening = actor.clone();
    let mut begun = Some(
        actor
            .run(move || {
                let mut listing = Listing::open(&path, request.depth, request.limit)?;
                let found = listing.next(opening.names())?;
                Ok((listing, found))
            })
            .await?,
    );
    while let Some((mut listing, found)) = begun.take() {
        let is_last = found.len() < BATCH;
        for entry in found {
            if !transfer.output.item(&entry).await {
                return Ok(());
            }
        }
        if !is_last {
            let job = actor.clone();
            begun = Some(
                actor
                    .run(move || {
                        let found = listing.next(job.names())?;
                        Ok((listing, found))
                    })
                    .await?,
            );
        }
    }
    transfer.output.end().await;
    processes.rest();
    Ok(())
}

/// A list that is being made.
struct Listing {
    levels: Vec<Level>,
    depth: usize,
    /// Entries that may still be told: one more than were asked for.
    left: usize,
}

/// A directory whose names are known, last first.
struct Level {
    dir: OwnedFd,
    path: PathBuf,
    names: Vec<OsString>,
}

impl Listing {
    fn open(path: &Path, depth: u32, limit: u32) -> Result<Self, Refusal> {
        let root = fstatat(AT_FDCWD, path, AtFlags::empty()).doing("looking at the directory")?;
        if entry::kind(&root) != FileKind::Directory {
            return Err(wrong_kind("only directories can be listed"));
        }
        let flags = READ_DIRECTORY.difference(OFlag::O_NOFOLLOW);
        let dir = openat(AT_FDCWD, path, flags, Mode::empty()).doing("opening the directory")?;
        let left = usize::try_from(limit)
            .unwrap_or(usize::MAX)
            .saturating_add(1);
        Ok(Self {
            levels: vec![Level {
                names: names(&dir, left)?,
                dir,
                path: path.to_owned(),
            }],
            depth: usize::try_from(depth).unwrap_or(1),
            left,
        })
    }

    /// The next entries; fewer than [`BATCH`] are the last.
    fn next(&mut self, names: &users::Names) -> Result<Vec<FileEntry>, Refusal> {
        let mut found = Vec::new();
        while found.len() < BATCH && self.left > 0 {
            let Some(level) = self.levels.last_mut() else {
                break;
            };
            let Some(name) = level.names.pop() else {
                self.levels.pop();
                continue;
            };
            let stat = match fstatat(&level.dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Gone again; or in a directory that may be read and not entered.
                Err(Errno::ENOENT | Errno::EACCES) => continue,
                Err(errno) => return Err(explain("looking at a file", errno)),
            };
            let path = level.path.join(&name);
            found.push(describe(level, &name, &path, &stat, names));
            self.left -= 1;
            if entry::kind(&stat) == FileKind::Directory && self.levels.len() < self.depth {
                self.enter(&name, path);
            }
        }
        Ok(found)
    }

    /// Goes on with what is in a directory; one that cannot be read is passed over.
    fn enter(&mut self, name: &OsStr, path: PathBuf) {
        let Some(above) = self.levels.last() else {
            return;
        };
        let Ok(dir) = descend(&above.dir, name) else {
            return;
        };
        if let Ok(names) = names(&dir, self.left) {
            self.levels.push(Level { dir, path, names });
        }
    }
}

fn describe(
    level: &Level,
    name: &OsStr,
    path: &Path,
    stat: &FileStat,
    names: &users::Names,
) -> FileEntry {
    let target = match entry::kind(stat) {
        FileKind::Symlink => readlinkat(&level.dir, name).ok(),
        _ => None,
    };
    let whole = CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
    let metadata = entry::metadata(stat, Attributed::Itself(&whole));
    entry::describe(path, stat, target.as_deref(), metadata, names)
}

/// The first so many names of a directory, the last of them first.
fn names(dir: &OwnedFd, most: usize) -> Result<Vec<OsString>, Refusal> {
    let mut first = BinaryHeap::new();
    let mut names = Names::of(dir)?;
    while let Some((name, _)) = names.next()? {
        first.push(name);
        if first.len() > most {
            first.pop();
        }
    }
    let mut names = first.into_sorted_vec();
    names.reverse();
    Ok(names)
}
