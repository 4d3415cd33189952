//! A tree as a tar stream, made in parts: one is on its way while a thread makes the next.
//!
//! Memory does not depend on the tree's size nor on its files'. A file that changes its size meanwhile is cut, or filled up
//! with zeros, to what its header said; one that is gone when its turn comes is passed over.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use casemate_link::file::{ArchiveRequest, FileEntry, FileKind};
use casemate_link::refusal::{Refusal, code};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat};
use tar::EntryType;

use super::actor::{Actor, finished};
use super::entry;
use super::error::{Doing, explain, wrong_kind};
use super::place::{READ_FILE, Spot, look};
use super::read::{Buffers, PART_BYTES, Part, buffer, send};
use super::tape::{self, Entry};
use super::tree::{Names, descend};
use crate::child::refusal;
use crate::processes::Processes;
use crate::transfer::Transfer;
use crate::users;

/// Directories that are open at once.
const MAX_LEVELS: usize = 128;

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
    let mut buffers = Buffers::default();
    let make = |mut packing: Packing, spare| {
        actor.begin(move || {
            let part = packing.next(spare)?;
            Ok((packing, part))
        })
    };
    let (mut packing, mut part) = finished(make(packing, None)).await?;
    while part.length > 0 {
        let next = make(packing, buffers.take());
        let sent = send(&output, &part).await;
        buffers.put(part);
        (packing, part) = finished(next).await?;
        if !sent {
            return Ok(());
        }
    }
    output.end().await;
    processes.rest();
    Ok(())
}

/// A tree that is being packed.
struct Packing {
    levels: Vec<Level>,
    /// A root that is no directory, until it is packed.
    only: Option<Spot>,
    /// Headers that are to be sent, and how much of them was.
    head: Vec<u8>,
    head_sent: usize,
    content: Option<Content>,
    ended: bool,
}

struct Level {
    dir: OwnedFd,
    names: Names,
    /// Bytes of the path to it, with its slash.
    path: Vec<u8>,
}

/// A file's bytes that are to come, and what fills up its last block.
struct Content {
    file: File,
    left: u64,
    padding: u64,
}

impl Packing {
    fn open(path: &Path, names: &users::Names) -> Result<(FileEntry, Self), Refusal> {
        let entry = entry::at(path, true, names)?;
        let mut packing = Self {
            levels: Vec::new(),
            only: None,
            head: Vec::new(),
            head_sent: 0,
            content: None,
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

    /// The next bytes of the archive; none when it is whole.
    fn next(&mut self, spare: Option<BytesMut>) -> Result<Part, Refusal> {
        let mut buffer = buffer(spare, PART_BYTES);
        let mut length = 0;
        while let Some(room) = buffer.get_mut(length..).filter(|room| !room.is_empty()) {
            if let Some(head) = self
                .head
                .get(self.head_sent..)
                .filter(|head| !head.is_empty())
            {
                let count = head.len().min(room.len());
                for (to, from) in room.iter_mut().zip(head) {
                    *to = *from;
                }
                self.head_sent += count;
                length += count;
            } else if let Some(content) = &mut self.content {
                match content.read(room)? {
                    0 => self.content = None,
                    count => length += count,
                }
            } else if self.ended {
                break;
            } else {
                self.head.clear();
                self.head_sent = 0;
                self.step()?;
            }
        }
        let buffer: Bytes = buffer.freeze();
        Ok(Part { buffer, length })
    }

    /// Goes on to the next name.
    fn step(&mut self) -> Result<(), Refusal> {
        if let Some(spot) = self.only.take() {
            let name = spot.name.as_bytes().to_owned();
            return self.add(&spot.dir, &spot.name, name).map(drop);
        }
        let Some(mut level) = self.levels.pop() else {
            self.ended = true;
            tape::end(&mut self.head);
            return Ok(());
        };
        let Some((name, _)) = level.names.next()? else {
            return Ok(());
        };
        let path = [level.path.as_slice(), name.as_bytes()].concat();
        let inner = self.add(&level.dir, &name, path);
        self.levels.push(level);
        match inner? {
            Some((dir, path)) => self.enter(dir, path),
            None => Ok(()),
        }
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
                self.content = Some(Content {
                    file: file.into(),
                    left: size,
                    padding: tape::padding_of(size),
                });
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
        entry.write(&mut self.head);
    }
}

/// An archive without a file that is there would be wrong without saying so.
fn denied(path: &[u8], errno: Errno) -> Refusal {
    let path = OsStr::from_bytes(path).to_string_lossy();
    let shown: String = path.chars().take(200).collect();
    explain(&format!("reading {shown}"), errno)
}

impl Content {
    /// The next bytes; none when all that the header promised is there.
    fn read(&mut self, room: &mut [u8]) -> Result<usize, Refusal> {
        let limit = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
        let (wanted, zeros) = (limit(self.left), limit(self.padding));
        if wanted > 0 {
            let room = room.get_mut(..wanted).unwrap_or_default();
            let count = loop {
                match self.file.read(room) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    read => break read.doing("reading a file")?,
                }
            };
            if count == 0 {
                // It became shorter.
                room.fill(0);
            }
            let count = if count == 0 { wanted } else { count };
            self.left -= u64::try_from(count).unwrap_or(u64::MAX).min(self.left);
            return Ok(count);
        }
        room.get_mut(..zeros).unwrap_or_default().fill(0);
        self.padding -= u64::try_from(zeros).unwrap_or(0);
        Ok(zeros)
    }
}
