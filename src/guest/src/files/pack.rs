//! A tree as a tar stream, made in parts: one is on its way while a thread makes the next.
//!
//! Memory does not depend on the tree's size nor on its files'. A file that changes its size meanwhile is cut, or filled up
//! with zeros, to what its header said ([`flow`]); one that is gone when its turn comes is passed over.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use casemate_link::file::{ArchiveRequest, FileEntry, FileKind};
use casemate_link::refusal::{Refusal, code};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat};
use tar::EntryType;

use super::actor::Actor;
use super::entry;
use super::error::{Doing, explain, wrong_kind};
use super::flow::{self, Flow, Source};
use super::place::{READ_FILE, Spot, look};
use super::tape::{self, Entry};
use super::tree::{Names, descend};
use crate::child::refusal;
use crate::processes::Processes;
use crate::transfer::Transfer;
use crate::users;

/// Directories that are open at once.
pub(crate) const MAX_LEVELS: usize = 128;

/// Answers an [`ArchiveRequest`].
pub(crate) async fn pack(
    processes: Rc<Processes>,
    request: ArchiveRequest,
    transfer: Transfer,
) -> Result<(), Refusal> {
    let actor = Actor::admit(&processes, &request.place)?;
    let path = actor.path(&request.place.path);
    let job = actor.clone();
    let (entry, packing) = actor.run(move || Packing::open(&path, job.names())).await?;
    let output = transfer.output;
    if !output.head(&entry).await {
        return Ok(());
    }
    let poured = flow::pour(packing, &output, |step| actor.begin(step)).await;
    processes.rest();
    poured
}

/// A tree that is being packed.
struct Packing {
    levels: Vec<Level>,
    /// A root that is no directory, until it is packed.
    only: Option<Spot>,
    flow: Flow,
    ended: bool,
}

struct Level {
    dir: OwnedFd,
    names: Names,
    /// Bytes of the path to it, with its slash.
    path: Vec<u8>,
}

impl Packing {
    fn open(path: &Path, names: &users::Names) -> Result<(FileEntry, Self), Refusal> {
        let entry = entry::at(path, true, names)?;
        let mut packing = Self {
            levels: Vec::new(),
            only: None,
            flow: Flow::default(),
            ended: false,
        };
        match entry.kind {
            FileKind::Directory => {
                let flags = super::place::READ_DIRECTORY.difference(OFlag::O_NOFOLLOW);
                let dir = openat(nix::fcntl::AT_FDCWD, path, flags, Mode::empty())
                    .doing("opening the directory")?;
                packing.enter(dir, Vec::new())?;
            }
            FileKind::File => packing.only = Some(Spot::open_followed(path)?),
            FileKind::Symlink | FileKind::Other => {
                return Err(wrong_kind(
                    "only directories and regular files can be packed",
                ));
            }
        }
        Ok((entry, packing))
    }

    fn enter(&mut self, dir: OwnedFd, path: Vec<u8>) -> Result<(), Refusal> {
        if self.levels.len() >= MAX_LEVELS {
            return Err(refusal(
                code::FILE_FAILED,
                "the directories lie too deep to be packed",
            ));
        }
        let names = Names::of(&dir)?;
        self.levels.push(Level { dir, names, path });
        Ok(())
    }

    /// Writes the header of what has a name, and opens a file's content, or returns a directory with its path.
    fn add(
        &mut self,
        dir: &OwnedFd,
        name: &OsString,
        mut path: Vec<u8>,
    ) -> Result<Option<(OwnedFd, Vec<u8>)>, Refusal> {
        let Some(stat) = look(dir, name)? else {
            return Ok(None);
        };
        let passed_over = |errno| matches!(errno, Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR);
        match entry::kind(&stat) {
            FileKind::File => {
                let flags = READ_FILE | OFlag::O_NOFOLLOW;
                let file = match openat(dir, name.as_os_str(), flags, Mode::empty()) {
                    Ok(file) => file,
                    Err(errno) if passed_over(errno) => return Ok(None),
                    Err(errno) => return Err(denied(&path, errno)),
                };
                let stat = fstat(&file).doing("looking at a file")?;
                if entry::kind(&stat) != FileKind::File {
                    return Ok(None);
                }
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                self.write(EntryType::Regular, &path, b"", size, &stat);
                self.flow.send(file.into(), size);
            }
            FileKind::Directory => {
                let inner = match descend(dir, name) {
                    Ok(inner) => inner,
                    Err(errno) if passed_over(errno) => return Ok(None),
                    Err(errno) => return Err(denied(&path, errno)),
                };
                path.push(b'/');
                self.write(EntryType::Directory, &path, b"", 0, &stat);
                return Ok(Some((inner, path)));
            }
            FileKind::Symlink => {
                if let Ok(target) = readlinkat(dir, name.as_os_str()) {
                    self.write(EntryType::Symlink, &path, target.as_bytes(), 0, &stat);
                }
            }
            // A pipe or a socket means something only while somebody holds its other end.
            FileKind::Other => {}
        }
        Ok(None)
    }

    fn write(&mut self, kind: EntryType, name: &[u8], target: &[u8], size: u64, stat: &FileStat) {
        let entry = Entry {
            kind,
            name,
            target,
            size,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: u64::try_from(stat.st_mtime).unwrap_or(0),
        };
        entry.write(&mut self.flow.head);
    }
}

impl Source for Packing {
    fn flow(&mut self) -> &mut Flow {
        &mut self.flow
    }

    fn step(&mut self) -> Result<bool, Refusal> {
        if let Some(spot) = self.only.take() {
            let name = spot.name.as_bytes().to_owned();
            return self.add(&spot.dir, &spot.name, name).map(|_| true);
        }
        let Some(mut level) = self.levels.pop() else {
            if !std::mem::replace(&mut self.ended, true) {
                tape::end(&mut self.flow.head);
                return Ok(true);
            }
            return Ok(false);
        };
        let Some((name, _)) = level.names.next()? else {
            return Ok(true);
        };
        let path = [level.path.as_slice(), name.as_bytes()].concat();
        let inner = self.add(&level.dir, &name, path);
        self.levels.push(level);
        if let Some((dir, path)) = inner? {
            self.enter(dir, path)?;
        }
        Ok(true)
    }
}

/// An archive without a file that is there would be wrong without saying so.
pub(crate) fn denied(path: &[u8], errno: Errno) -> Refusal {
    let path = OsStr::from_bytes(path).to_string_lossy();
    let shown: String = path.chars().take(200).collect();
    explain(&format!("reading {shown}"), errno)
}
