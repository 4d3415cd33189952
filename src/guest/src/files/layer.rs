//! What changed in the root file system since the image, as a tar stream: see [`casemate_link::snapshot`].
//!
//! gVisor's overlay gives what is still the image's another device number than what was written since, by which the two are
//! told apart; directories have one of their own, whether they changed or not. Which number is which is found by making a
//! file and removing it again. The work is done as the guest itself, who may read every file and change none.
//!
//! Programs go on meanwhile: each file is as it was when its turn came.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use casemate_link::refusal::{Refusal, code};
use casemate_link::snapshot::{KEPT, SnapshotHead, SnapshotRequest};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use tar::EntryType;

use super::actor::{begin_open, finished};
use super::entry;
use super::error::Doing;
use super::flow::{self, Flow, Source};
use super::pack::{MAX_LEVELS, denied};
use super::place::{READ_DIRECTORY, READ_FILE, look};
use super::tape::{self, Entry};
use super::tree::{Names, descend};
use crate::child::refusal;
use crate::processes::Processes;
use crate::transfer::Transfer;
use casemate_link::file::FileKind;

/// Files with several names whose names are told as such; of further ones each name is told as a file of its own.
const MAX_LINKED: usize = 100_000;

/// Most bytes of the kernel's list of mounts that are read.
const MAX_MOUNTS_BYTES: u64 = 1 << 20;

/// Below it everything is the daemon's.
const OURS: &[u8] = b"run/casemate";

/// Directories of which one will be there and writable for the guest, relative to the root.
const PLACES: [&str; 6] = ["var/tmp", "run", "root", "etc", "home", "usr"];

/// A name that nobody else uses.
const PROBE: &str = ".casemate-snapshot";

/// Answers a [`SnapshotRequest`].
pub(crate) async fn layer(
    processes: Rc<Processes>,
    request: SnapshotRequest,
    transfer: Transfer,
) -> Result<(), Refusal> {
    let layer = finished(begin_open(move || Layer::open(request.whole))).await?;
    let output = transfer.output;
    let head = SnapshotHead {
        whole: layer.written.is_none(),
    };
    if !output.head(&head).await {
        return Ok(());
    }
    let poured = flow::pour(layer, &output, begin_open).await;
    processes.rest();
    poured
}

/// The root file system that is being told.
struct Layer {
    levels: Vec<Level>,
    flow: Flow,
    ended: bool,
    /// The device number of directories of the root file system.
    root: u64,
    /// The device number of what was written since the image; `None`: everything is told.
    written: Option<u64>,
    /// Paths at which something is mounted.
    mounts: HashSet<Vec<u8>>,
    /// The first name of files that have several.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

struct Level {
    dir: OwnedFd,
    names: Names,
    /// Bytes of the path to it, with its slash.
    path: Vec<u8>,
}

impl Layer {
    fn open(whole: bool) -> Result<Self, Refusal> {
        let dir = openat(AT_FDCWD, "/", READ_DIRECTORY, Mode::empty()).doing("opening the root")?;
        let root = fstat(&dir).doing("looking at the root")?.st_dev;
        let mut layer = Self {
            levels: Vec::new(),
            flow: Flow::default(),
            ended: false,
            root,
            written: if whole {
                None
            } else {
                written_device(&dir, root)
            },
            mounts: mounts()?,
            linked: HashMap::new(),
        };
        layer.enter(dir, Vec::new())?;
        Ok(layer)
    }

    fn enter(&mut self, dir: OwnedFd, path: Vec<u8>) -> Result<(), Refusal> {
        if self.levels.len() >= MAX_LEVELS {
            return Err(refusal(
                code::FILE_FAILED,
                "the directories lie too deep for a snapshot",
            ));
        }
        let names = Names::of(&dir)?;
        self.levels.push(Level { dir, names, path });
        Ok(())
    }

    /// Tells what has a name; a directory to go on in, with its path.
    fn add(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        mut path: Vec<u8>,
    ) -> Result<Option<(OwnedFd, Vec<u8>)>, Refusal> {
        let Some(stat) = look(dir, name)? else {
            return Ok(None);
        };
        let kind = entry::kind(&stat);
        let is_directory = kind == FileKind::Directory;
        let is_kept = if is_directory {
            stat.st_dev != self.root
        } else {
            self.written.is_some_and(|written| stat.st_dev != written)
        };
        if is_kept || path == OURS || self.mounts.contains(&path) {
            if self.written.is_some() {
                self.write(EntryType::new(KEPT), &path, b"", 0, &stat);
            }
            return Ok(None);
        }
        match kind {
            FileKind::File => self.add_file(dir, name, &path)?,
            FileKind::Directory => {
                let inner = match descend(dir, name) {
                    Ok(inner) => inner,
                    Err(errno) if is_gone(errno) => return Ok(None),
                    Err(errno) => return Err(denied(&path, errno)),
                };
                path.push(b'/');
                self.write(EntryType::Directory, &path, b"", 0, &stat);
                return Ok(Some((inner, path)));
            }
            FileKind::Symlink => {
                if let Ok(target) = readlinkat(dir, name) {
                    self.write(EntryType::Symlink, &path, target.as_bytes(), 0, &stat);
                }
            }
            // A socket means something only while somebody holds its other end, and a device opens in no sandbox.
            FileKind::Other => {
                let format = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
                if format == SFlag::S_IFIFO {
                    self.write(EntryType::Fifo, &path, b"", 0, &stat);
                }
            }
        }
        Ok(None)
    }

    fn add_file(&mut self, dir: &OwnedFd, name: &OsStr, path: &[u8]) -> Result<(), Refusal> {
        let flags = READ_FILE | OFlag::O_NOFOLLOW;
        let file = match openat(dir, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(errno) if is_gone(errno) => return Ok(()),
            Err(errno) => return Err(denied(path, errno)),
        };
        let stat = fstat(&file).doing("looking at a file")?;
        if entry::kind(&stat) != FileKind::File {
            return Ok(());
        }
        if stat.st_nlink > 1 {
            let number = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&number).cloned() {
                self.write(EntryType::Link, path, &first, 0, &stat);
                return Ok(());
            }
            if self.linked.len() < MAX_LINKED {
                self.linked.insert(number, path.to_owned());
            }
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.write(EntryType::Regular, path, b"", size, &stat);
        self.flow.send(file.into(), size);
        Ok(())
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

impl Source for Layer {
    fn flow(&mut self) -> &mut Flow {
        &mut self.flow
    }

    fn step(&mut self) -> Result<bool, Refusal> {
        let Some(mut level) = self.levels.pop() else {
            if std::mem::replace(&mut self.ended, true) {
                return Ok(false);
            }
            tape::end(&mut self.flow.head);
            return Ok(true);
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

/// Whether what a name led to is no longer there, or is something else by now.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR)
}

/// The device number of what is written to the root file system; `None` where it cannot be told from the image's.
fn written_device(root: &OwnedFd, device: u64) -> Option<u64> {
    PLACES.iter().find_map(|place| {
        let dir = openat(root, *place, READ_DIRECTORY, Mode::empty()).ok()?;
        (fstat(&dir).ok()?.st_dev == device).then_some(())?;
        // A leftover of a guest that was interrupted here.
        let _ = unlinkat(&dir, PROBE, UnlinkatFlags::NoRemoveDir);
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = openat(&dir, PROBE, flags, Mode::S_IRUSR).ok()?;
        let found = fstat(&file).ok();
        let removed = unlinkat(&dir, PROBE, UnlinkatFlags::NoRemoveDir);
        // On a plain file system all is one device: nothing would be the image's, or everything.
        let written = found?.st_dev;
        (removed.is_ok() && written != device).then_some(written)
    })
}

/// Where something is mounted, relative to the root (`proc_pid_mounts(5)`).
fn mounts() -> Result<HashSet<Vec<u8>>, Refusal> {
    let mut text = Vec::new();
    File::open("/proc/self/mounts")
        .and_then(|file| file.take(MAX_MOUNTS_BYTES).read_to_end(&mut text))
        .doing("reading the list of mounts")?;
    let lines = text.split(|byte| *byte == b'\n');
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(1));
    Ok(points
        .map(|point| unescaped(point.strip_prefix(b"/").unwrap_or(point)))
        .filter(|point| !point.is_empty())
        .collect())
}

/// A name as the kernel writes it there: blanks and backslashes as three octal digits.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\');
        let octal = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = octal.and_then(|octal| u8::from_str_radix(octal, 8).ok());
        name.push(byte.unwrap_or(*first));
        rest = match byte {
            Some(_) => tail.get(3..).unwrap_or_default(),
            None => tail,
        };
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_mounts_are_read_as_they_are() {
        assert_eq!(unescaped(b"run/a\\040b\\134"), b"run/a b\\");
        assert_eq!(unescaped(b"a\\9\\"), b"a\\9\\");
    }
}
