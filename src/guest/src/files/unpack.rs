//! A tar stream into a directory.
//!
//! The stream is an enemy: it may come from anywhere. Every name is walked from the root's descriptor, one component at a
//! time and through real directories only, so nothing is ever made outside; what stands in the way of a file is unlinked
//! and never written through. Memory is bounded by one extended header and the map of one sparse file.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use casemate_link::file::{ArchiveSummary, FileKind, UnpackRequest};
use casemate_link::limits::MAX_PATH_BYTES;
use casemate_link::refusal::Refusal;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use tar::{EntryType, Header};

use super::actor::Actor;
use super::carry::{Sink, pour};
use super::entry;
use super::error::{Doing, explain, wrong_kind};
use super::place::{LOOK_UP, look};
use super::tape::{self, BLOCK, Extensions, bad, padding_of};
use super::tree::descend;
use super::unpack_file::{Fresh, SparseBlocks, SparseText};
use super::write::{CREATE, PRIVATE};
use crate::processes::Processes;
use crate::transfer::Transfer;

/// Bytes of one extended header, or long name.
const MAX_META_BYTES: u64 = 256 * 1024;

/// Directories that wait open for their mode and time, which they get when all in them is there.
const MAX_WAITING: usize = 32;

/// Mode of a directory while things are put in it.
const OPEN: Mode = Mode::S_IRWXU;

/// Characters of a name in a refusal.
const SHOWN: usize = 200;

/// Answers an [`UnpackRequest`].
pub(crate) async fn unpack(
    processes: Rc<Processes>,
    request: UnpackRequest,
    transfer: Transfer,
) -> Result<(), Refusal> {
    let actor = Actor::admit(&processes, &request.place)?;
    let path = actor.path(&request.place.path);
    let Transfer { mut input, output } = transfer;
    let unpacking = actor.run(move || Unpacking::begin(&path)).await?;
    // When nobody hears it, no input comes either, and that is what ends it.
    output.head(&()).await;
    let unpacking = pour(&actor, unpacking, &mut input).await?;
    let summary = actor.run(move || unpacking.finish()).await?;
    output.only(&summary).await;
    processes.rest();
    Ok(())
}

/// An archive that is being unpacked.
struct Unpacking {
    root: Arc<OwnedFd>,
    state: State,
    /// What headers before an entry said of it.
    next: Extensions,
    waiting: Vec<Waiting>,
    /// The directory of the last file, by its path below the root.
    last: Option<(Vec<u8>, Arc<OwnedFd>)>,
    summary: ArchiveSummary,
}

/// What the next bytes are.
pub(crate) enum State {
    /// A header, which is not complete yet.
    Header(Vec<u8>),
    /// What an extended header or a long name says; then so much padding.
    Meta {
        kind: EntryType,
        left: u64,
        padding: u64,
        said: Vec<u8>,
    },
    /// More of the map of a sparse file of GNU's old kind.
    Blocks(SparseBlocks),
    /// The map of a sparse file of GNU's new kind.
    Text(SparseText),
    /// A file's bytes; then so much padding.
    File {
        file: Fresh,
        left: u64,
        padding: u64,
    },
    /// Bytes that nobody wants.
    Skip(u64),
    /// What fills the archive up.
    Over,
}

/// A directory that gets its mode and time later.
struct Waiting {
    path: Vec<u8>,
    dir: OwnedFd,
    mode: Mode,
    mtime: i64,
}

/// What a header says, with all that was said before it.
pub(crate) struct Said {
    kind: EntryType,
    path: Vec<u8>,
    target: Vec<u8>,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) mtime: i64,
}

impl Unpacking {
    fn begin(path: &Path) -> Result<Self, Refusal> {
        if path.exists() && !path.is_dir() {
            return Err(wrong_kind("what is there is no directory"));
        }
        std::fs::create_dir_all(path).doing("making the directory")?;
        let root = openat(AT_FDCWD, path, LOOK_UP, Mode::empty()).doing("opening the directory")?;
        Ok(Self {
            root: Arc::new(root),
            state: State::Header(Vec::with_capacity(BLOCK)),
            next: Extensions::default(),
            waiting: Vec::new(),
            last: None,
            summary: ArchiveSummary::default(),
        })
    }

    fn finish(mut self) -> Result<ArchiveSummary, Refusal> {
        if !matches!(self.state, State::Over) {
            return Err(bad("the archive ends before its end"));
        }
        while let Some(directory) = self.waiting.pop() {
            directory.settle();
        }
        Ok(self.summary)
    }

    /// Takes the next bytes, as many as belong together.
    fn push(&mut self, data: &mut &[u8]) -> Result<(), Refusal> {
        // What is unfinished is dropped when this fails.
        self.state = match std::mem::replace(&mut self.state, State::Over) {
            State::Header(mut block) => {
                block.extend_from_slice(split(data, BLOCK - block.len()));
                if block.len() < BLOCK {
                    State::Header(block)
                } else {
                    self.header(Header::from_byte_slice(&block))?
                }
            }
            State::Meta {
                kind,
                left,
                padding,
                mut said,
            } => {
                let some = split_u64(data, left);
                said.extend_from_slice(some);
                let left = left - length(some);
                if left > 0 {
                    State::Meta {
                        kind,
                        left,
                        padding,
                        said,
                    }
                } else {
                    self.heed(kind, said)?;
                    State::Skip(padding)
                }
            }
            State::Blocks(map) => map.push(data)?,
            State::Text(map) => map.push(data)?,
            State::File {
                mut file,
                left,
                padding,
            } => {
                let some = split_u64(data, left);
                file.write(some)?;
                self.summary.bytes = self.summary.bytes.saturating_add(length(some));
                State::file(file, left - length(some), padding)?
            }
            State::Skip(left) => State::skip(left - length(split_u64(data, left))),
            State::Over => {
                *data = &[];
                State::Over
            }
        };
        Ok(())
    }

    /// What comes after a header.
    fn header(&mut self, header: &Header) -> Result<State, Refusal> {
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(State::Over);
        }
        let damaged = |()| {
            bad(&format!(
                "the header after entry {} is damaged",
                self.summary.entries
            ))
        };
        if !tape::is_sound(header) {
            return Err(damaged(()));
        }
        let size = header.entry_size().map_err(|_| damaged(()))?;
        let kind = header.entry_type();
        match kind {
            EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink => {
                if size > MAX_META_BYTES {
                    return Err(bad("an extended header is over its bound"));
                }
                let (left, padding) = (size, padding_of(size));
                return Ok(match left {
                    0 => State::skip(0),
                    _ => State::Meta {
                        kind,
                        left,
                        padding,
                        said: Vec::new(),
                    },
                });
            }
            EntryType::XGlobalHeader => return skip_all(size),
            _ => {}
        }
        self.summary.entries += 1;
        let next = std::mem::take(&mut self.next);
        let size = next.size.unwrap_or(size);
        let said = Said {
            kind,
            path: next
                .path
                .clone()
                .unwrap_or_else(|| header.path_bytes().into_owned()),
            target: match &next.target {
                Some(target) => target.clone(),
                None => header.link_name_bytes().unwrap_or_default().into_owned(),
            },
            size,
            mode: header.mode().unwrap_or(0o644),
            mtime: next
                .mtime
                .or_else(|| {
                    header
                        .mtime()
                        .ok()
                        .and_then(|time| i64::try_from(time).ok())
                })
                .unwrap_or(0),
        };
        self.entry(&said, &next, header)
    }

    /// Does what an entry says.
    fn entry(&mut self, said: &Said, next: &Extensions, header: &Header) -> Result<State, Refusal> {
        match said.kind {
            EntryType::Regular | EntryType::Continuous if said.path.ends_with(b"/") => {
                self.directory(said)?;
                skip_all(said.size)
            }
            EntryType::Regular | EntryType::Continuous => match next.sparse_major {
                None => {
                    let file = self.create(said, &said.path)?;
                    State::file(file, said.size, padding_of(said.size))
                }
                Some(1) => {
                    let path = next.sparse_name.as_deref().unwrap_or(&said.path);
                    let file = self.create(said, path)?;
                    let real = next
                        .sparse_size
                        .ok_or_else(|| bad("a sparse file without a size"))?;
                    Ok(State::Text(SparseText::new(file, said.size, real)))
                }
                Some(_) => Err(bad("sparse files of this kind are not known")),
            },
            EntryType::GNUSparse => {
                let file = self.create(said, &said.path)?;
                SparseBlocks::begin(file, said.size, header)
            }
            EntryType::Directory => {
                self.directory(said)?;
                Ok(State::skip(0))
            }
            EntryType::Symlink => {
                self.symlink(said)?;
                Ok(State::skip(0))
            }
            EntryType::Link => {
                self.hard_link(said)?;
                Ok(State::skip(0))
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                self.summary.skipped += 1;
                Ok(State::skip(0))
            }
            _ => {
                self.summary.skipped += 1;
                skip_all(said.size)
            }
        }
    }

    /// Keeps what was said of the next entry.
    fn heed(&mut self, kind: EntryType, mut said: Vec<u8>) -> Result<(), Refusal> {
        if kind == EntryType::XHeader {
            return self.next.read(&said);
        }
        let end = said
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(said.len());
        said.truncate(end);
        if kind == EntryType::GNULongName {
            self.next.path = Some(said);
        } else {
            self.next.target = Some(said);
        }
        Ok(())
    }

    /// The components of a name, none of which leads up or starts anew.
    fn components<'a>(&self, path: &'a [u8]) -> Result<Vec<&'a [u8]>, Refusal> {
        let refuse = |what: &str| {
            let shown: String = String::from_utf8_lossy(path).chars().take(SHOWN).collect();
            bad(&format!("entry {} {what}: {shown}", self.summary.entries))
        };
        if path.starts_with(b"/") {
            return Err(refuse("has an absolute path"));
        }
        if path.len() >= MAX_PATH_BYTES || path.contains(&0) {
            return Err(refuse("has an impossible path"));
        }
        let parts = path.split(|byte| *byte == b'/');
        let parts: Vec<_> = parts.filter(|part| !matches!(*part, b"" | b".")).collect();
        if parts.contains(&&b".."[..]) {
            return Err(refuse("leads out of the directory"));
        }
        Ok(parts)
    }

    /// The directory that such components lead to; `make` makes those that are missing.
    fn walk(&self, components: &[&[u8]], make: bool) -> Result<Arc<OwnedFd>, Refusal> {
        let mut dir = Arc::clone(&self.root);
        for name in components {
            let name = OsStr::from_bytes(name);
            let open = || openat(&*dir, name, LOOK_UP | OFlag::O_NOFOLLOW, Mode::empty());
            let inner = match open() {
                Err(Errno::ENOENT) if make => {
                    match mkdirat(&*dir, name, Mode::from_bits_truncate(0o777)) {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(errno) => return Err(explain("making a directory", errno)),
                    }
                    open()
                }
                opened => opened,
            };
            dir = match inner {
                Ok(inner) => Arc::new(inner),
                Err(Errno::ENOTDIR | Errno::ELOOP) => return Err(self.in_the_way(&dir, name)),
                Err(errno) => return Err(explain("opening a directory", errno)),
            };
        }
        Ok(dir)
    }

    /// Says what stands where a directory should.
    fn in_the_way(&self, dir: &OwnedFd, name: &OsStr) -> Refusal {
        let entries = self.summary.entries;
        match look(dir, name) {
            Ok(Some(stat)) if entry::kind(&stat) == FileKind::Symlink => {
                bad(&format!("entry {entries} leads through a symbolic link"))
            }
            _ => wrong_kind(&format!("entry {entries} leads through a file")),
        }
    }

    /// Where an entry goes: its directory, and its name there. Directories that it is not below are done.
    fn place<'a>(&mut self, path: &'a [u8]) -> Result<(Arc<OwnedFd>, &'a OsStr), Refusal> {
        let components = self.components(path)?;
        let Some((name, parents)) = components.split_last() else {
            return Err(bad(&format!("entry {} has no name", self.summary.entries)));
        };
        let above = parents.join(&b'/');
        self.settle_but(&above);
        let dir = match self.last.take() {
            Some((path, dir)) if path == above => dir,
            _ => self.walk(parents, true)?,
        };
        self.last = Some((above, Arc::clone(&dir)));
        Ok((dir, OsStr::from_bytes(name)))
    }

    /// Gives the directories that are done, all that are not above this path, their modes and times.
    fn settle_but(&mut self, path: &[u8]) {
        let is_above = |directory: &Waiting| {
            path.strip_prefix(directory.path.as_slice())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        while self.waiting.last().is_some_and(|last| !is_above(last)) {
            if let Some(directory) = self.waiting.pop() {
                directory.settle();
            }
        }
    }

    fn create(&mut self, said: &Said, path: &[u8]) -> Result<Fresh, Refusal> {
        let (dir, name) = self.place(path)?;
        self.clear(&dir, name)?;
        let file = openat(&*dir, name, CREATE, PRIVATE).doing("creating a file")?;
        Ok(Fresh::new(file.into(), dir, name.to_owned(), said))
    }

    /// Removes what has an entry's name; a directory stays, and is in the way.
    fn clear(&self, dir: &OwnedFd, name: &OsStr) -> Result<(), Refusal> {
        match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => match look(dir, name)? {
                Some(stat) if entry::kind(&stat) == FileKind::Directory => {
                    Err(wrong_kind(&format!(
                        "a directory stands where entry {} belongs",
                        self.summary.entries
                    )))
                }
                _ => Err(explain("replacing a file", errno)),
            },
        }
    }

    fn directory(&mut self, said: &Said) -> Result<(), Refusal> {
        let components = self.components(&said.path)?;
        if components.is_empty() {
            // The root itself, which is whose it is.
            return Ok(());
        }
        let whole = components.join(&b'/');
        let (dir, name) = self.place(&said.path)?;
        // What was a link may be a directory now.
        self.last = None;
        let new = match mkdirat(&*dir, name, OPEN) {
            Err(Errno::EEXIST) => match look(&dir, name)? {
                Some(stat) if entry::kind(&stat) == FileKind::Directory => Ok(()),
                _ => {
                    self.clear(&dir, name)?;
                    mkdirat(&*dir, name, OPEN)
                }
            },
            new => new,
        };
        new.doing("making a directory")?;
        // One that was there and may not be read keeps what it has.
        let Ok(inner) = descend(&dir, name) else {
            return Ok(());
        };
        let directory = Waiting {
            path: whole,
            dir: inner,
            mode: Mode::from_bits_truncate(said.mode & 0o1777),
            mtime: said.mtime,
        };
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push(directory);
        } else {
            directory.settle();
        }
        Ok(())
    }

    fn symlink(&mut self, said: &Said) -> Result<(), Refusal> {
        if said.target.is_empty() || said.target.contains(&0) {
            return Err(bad(&format!(
                "entry {} leads nowhere",
                self.summary.entries
            )));
        }
        let (dir, name) = self.place(&said.path)?;
        self.last = None;
        self.clear(&dir, name)?;
        let target = OsStr::from_bytes(&said.target);
        symlinkat(target, &*dir, name).doing("making a symbolic link")?;
        let time = TimeSpec::new(said.mtime, 0);
        // A link's time matters to nobody.
        let _ = utimensat(&*dir, name, &time, &time, UtimensatFlags::NoFollowSymlink);
        Ok(())
    }

    fn hard_link(&mut self, said: &Said) -> Result<(), Refusal> {
        let target = self.components(&said.target)?;
        if target == self.components(&said.path)? {
            return Ok(());
        }
        let nothing = || {
            bad(&format!(
                "entry {} links to what is not there",
                self.summary.entries
            ))
        };
        let (old, parents) = target.split_last().ok_or_else(nothing)?;
        let from = self.walk(parents, false).map_err(|refused| {
            if refused.code == casemate_link::refusal::code::FILE_NOT_FOUND {
                nothing()
            } else {
                refused
            }
        })?;
        let old = OsStr::from_bytes(old);
        if look(&from, old)?.is_none() {
            return Err(nothing());
        }
        let (dir, name) = self.place(&said.path)?;
        self.last = None;
        self.clear(&dir, name)?;
        // Without following: a link to a symbolic link is one more of those.
        linkat(&*from, old, &*dir, name, AtFlags::empty()).doing("making a link")
    }
}

impl Sink for Unpacking {
    const OPENS: bool = true;

    fn take(&mut self, data: &[Bytes]) -> Result<(), Refusal> {
        for mut some in data.iter().map(|data| &data[..]) {
            while !some.is_empty() {
                self.push(&mut some)?;
            }
        }
        Ok(())
    }
}

impl Drop for Unpacking {
    fn drop(&mut self) {
        while let Some(directory) = self.waiting.pop() {
            directory.settle();
        }
    }
}

impl Waiting {
    /// One that was there before may be another user's, and then stays as it was.
    fn settle(self) {
        let time = TimeSpec::new(self.mtime, 0);
        let _ = futimens(&self.dir, &time, &time);
        let _ = fchmod(&self.dir, self.mode);
    }
}

impl State {
    /// Bytes to skip, or the next header.
    pub(crate) fn skip(left: u64) -> Self {
        match left {
            0 => Self::Header(Vec::with_capacity(BLOCK)),
            left => Self::Skip(left),
        }
    }

    /// A file's bytes, or what comes after the last.
    pub(crate) fn file(file: Fresh, left: u64, padding: u64) -> Result<Self, Refusal> {
        if left > 0 {
            return Ok(Self::File {
                file,
                left,
                padding,
            });
        }
        file.finish()?;
        Ok(Self::skip(padding))
    }
}

fn skip_all(size: u64) -> Result<State, Refusal> {
    let whole = size.checked_add(padding_of(size));
    whole
        .map(State::skip)
        .ok_or_else(|| bad("an entry over all bounds"))
}

/// Takes at most so many bytes off the front.
pub(crate) fn split<'a>(data: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (some, rest) = data.split_at_checked(most).unwrap_or((data, &[]));
    *data = rest;
    some
}

fn split_u64<'a>(data: &mut &'a [u8], most: u64) -> &'a [u8] {
    split(data, usize::try_from(most).unwrap_or(usize::MAX))
}

fn length(data: &[u8]) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}
