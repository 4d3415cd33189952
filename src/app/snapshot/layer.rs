//! A sandbox's word of what it changed, made into a layer of an image: a tar stream goes in, another comes out.
//!
//! The sandbox may be anybody's by now. Nothing of its stream is passed on but the bytes of regular files: each header is
//! read, judged and written anew, so that whoever unpacks the layer reads exactly what was judged. Paths are plain, each lies
//! in a directory that came before it, sizes are what will be on the disk, and everything is bounded. What the image has and
//! the stream does not name is gone, and is told as gone (OCI image layers, "Whiteouts").

use std::collections::{BTreeSet, HashMap};

use casemate_link::snapshot::KEPT;
use tar::{EntryType, Header};

/// Bytes of a block of a tar stream.
const BLOCK: usize = 512;

/// Most entries of a stream, those that are kept among them.
pub const MAX_ENTRIES: u64 = 1_000_000;

/// Longest path, in bytes, as the system has it.
const MAX_PATH_BYTES: usize = 4095;

/// Longest name in a directory, in bytes, as the system has it.
const MAX_NAME_BYTES: usize = 255;

/// Most users, and groups, that a sandbox of rootless podman has on the host.
const MAX_IDS: u64 = 65_536;

/// Begins the name of what says that something is gone. No file can have it.
const WHITEOUT: &[u8] = b".wh.";

/// Why a stream is no layer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLayer {
    /// It is more than may be kept.
    #[error("what the session changed is more than {0} bytes")]
    TooLarge(u64),
    /// It is more than can be looked at.
    #[error("the session has more than {MAX_ENTRIES} files")]
    TooMany,
    /// What is in the session cannot be in an image. Its owner can mend that.
    #[error("{0}")]
    Unfit(String),
    /// No honest guest says such a thing.
    #[error("the guest's archive is damaged: {0}")]
    Damaged(&'static str),
}

/// What a layer holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Files, directories and links, and what is gone.
    pub entries: u64,
    /// All its bytes.
    pub bytes: u64,
}

/// What has a path in the layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Other,
}

/// Reads the one stream and writes the other.
pub struct Layering {
    state: State,
    /// The header that is being read.
    block: Vec<u8>,
    long_name: Option<Vec<u8>>,
    long_target: Option<Vec<u8>>,
    /// What the image has and the stream has not named yet: absolute paths without their first slash.
    missing: BTreeSet<Vec<u8>>,
    known: HashMap<Vec<u8>, Kind>,
    entries: u64,
    held: Held,
    max_bytes: u64,
}

enum State {
    Header,
    /// A name too long for a header.
    Long {
        is_target: bool,
        text: Vec<u8>,
        left: usize,
        padding: usize,
    },
    Content {
        left: u64,
        padding: u64,
    },
    /// One of the two blocks of zeros at the end was there.
    Ending,
    Ended,
}

/// A header, judged.
struct Entry {
    kind: EntryType,
    path: Vec<u8>,
    target: Vec<u8>,
    size: u64,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: u64,
}

impl Layering {
    /// Of a sandbox whose image has these absolute paths; none where the stream tells everything.
    pub fn new(names: impl IntoIterator<Item = String>, max_bytes: u64) -> Self {
        let missing = names.into_iter().filter_map(|name| {
            let name = name.strip_prefix('/').unwrap_or(&name);
            (!name.is_empty()).then(|| name.as_bytes().to_owned())
        });
        Self {
            state: State::Header,
            block: Vec::with_capacity(BLOCK),
            long_name: None,
            long_target: None,
            missing: missing.collect(),
            known: HashMap::from([(Vec::new(), Kind::Directory)]),
            entries: 0,
            held: Held::default(),
            max_bytes,
        }
    }

    /// Takes what comes next, and adds to `out` what the layer has of it.
    ///
    /// # Errors
    /// [`BadLayer`]; there will be no layer.
    pub fn feed(&mut self, mut data: &[u8], out: &mut Vec<u8>) -> Result<(), BadLayer> {
        let before = out.len();
        while !data.is_empty() {
            data = self.take(data, out)?;
        }
        self.count(out.len() - before)
    }

    /// All has come: tells what is gone, and ends the layer.
    ///
    /// # Errors
    /// [`BadLayer`]; there will be no layer.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<Held, BadLayer> {
        if !matches!(self.state, State::Ended) {
            return Err(BadLayer::Damaged("it is cut short"));
        }
        let before = out.len();
        for path in std::mem::take(&mut self.missing) {
            let (directory, name) = split(&path);
            // Within what is gone, or is no directory any more, nothing needs to be told.
            if self.known.get(directory) != Some(&Kind::Directory) {
                continue;
            }
            let mut told = directory.to_vec();
            if !told.is_empty() {
                told.push(b'/');
            }
            told.extend_from_slice(WHITEOUT);
            told.extend_from_slice(name);
            if WHITEOUT.len() + name.len() > MAX_NAME_BYTES {
                return Err(unfit(
                    &path,
                    "is gone, and its name is too long to say so in an image",
                ));
            }
            self.held.entries += 1;
            let entry = Entry {
                kind: EntryType::Regular,
                path: told,
                target: Vec::new(),
                size: 0,
                mode: 0o600,
                uid: 0,
                gid: 0,
                mtime: 0,
            };
            entry.write(out);
        }
        out.resize(out.len() + 2 * BLOCK, 0);
        self.count(out.len() - before)?;
        Ok(self.held)
    }

    fn count(&mut self, added: usize) -> Result<(), BadLayer> {
        self.held.bytes = self.held.bytes.saturating_add(to_u64(added));
        if self.held.bytes > self.max_bytes {
            return Err(BadLayer::TooLarge(self.max_bytes));
        }
        Ok(())
    }

    /// Takes some of the data; the rest.
    fn take<'a>(&mut self, data: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], BadLayer> {
        match &mut self.state {
            State::Header | State::Ending | State::Ended => {
                let wanted = BLOCK - self.block.len();
                let (some, rest) = data.split_at(wanted.min(data.len()));
                self.block.extend_from_slice(some);
                if self.block.len() == BLOCK {
                    let block = std::mem::take(&mut self.block);
                    self.header(&block, out)?;
                    self.block = block;
                    self.block.clear();
                }
                Ok(rest)
            }
            State::Long {
                is_target,
                text,
                left,
                padding,
            } => {
                let (some, rest) = data.split_at((*left).min(data.len()));
                text.extend_from_slice(some);
                *left -= some.len();
                let (zeros, rest) = rest.split_at((*padding).min(rest.len()));
                *padding -= zeros.len();
                if *left == 0 && *padding == 0 {
                    let (mut text, is_target) = (std::mem::take(text), *is_target);
                    if text.pop() != Some(0) {
                        return Err(BadLayer::Damaged("a name without an end"));
                    }
                    let slot = if is_target {
                        &mut self.long_target
                    } else {
                        &mut self.long_name
                    };
                    if slot.replace(text).is_some() {
                        return Err(BadLayer::Damaged("two names for one entry"));
                    }
                    self.state = State::Header;
                }
                Ok(rest)
            }
            State::Content { left, padding } => {
                let (some, rest) = data.split_at(at_most(*left, data.len()));
                out.extend_from_slice(some);
                *left -= to_u64(some.len());
                let (filling, rest) = rest.split_at(at_most(*padding, rest.len()));
                // Ours are zeros, whatever these are.
                out.resize(out.len() + filling.len(), 0);
                *padding -= to_u64(filling.len());
                if *left == 0 && *padding == 0 {
                    self.state = State::Header;
                }
                Ok(rest)
            }
        }
    }

    fn header(&mut self, block: &[u8], out: &mut Vec<u8>) -> Result<(), BadLayer> {
        if block.iter().all(|byte| *byte == 0) {
            self.state = match self.state {
                State::Header if self.long_name.is_none() && self.long_target.is_none() => {
                    State::Ending
                }
                State::Ending => State::Ended,
                _ => return Err(BadLayer::Damaged("it goes on after its end")),
            };
            return Ok(());
        }
        if !matches!(self.state, State::Header) {
            return Err(BadLayer::Damaged("it goes on after its end"));
        }
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(BadLayer::TooMany);
        }
        let header = Header::from_byte_slice(block);
        if !is_sound(header) {
            return Err(BadLayer::Damaged("the sum of a header is wrong"));
        }
        let kind = header.entry_type();
        let size = number(header.entry_size())?;
        if kind.is_gnu_longname() || kind.is_gnu_longlink() {
            let left = usize::try_from(size).unwrap_or(usize::MAX);
            if left == 0 || left > MAX_PATH_BYTES + 2 {
                return Err(BadLayer::Damaged("a name is too long"));
            }
            self.state = State::Long {
                is_target: kind.is_gnu_longlink(),
                text: Vec::with_capacity(left),
                left,
                padding: padding(left),
            };
            return Ok(());
        }
        let mut path = self
            .long_name
            .take()
            .unwrap_or_else(|| field(&header.as_old().name));
        let target = self
            .long_target
            .take()
            .unwrap_or_else(|| field(&header.as_old().linkname));
        if kind.is_dir() && path.last() == Some(&b'/') {
            path.pop();
        }
        check_path(&path)?;
        let entry = Entry {
            kind,
            path,
            target,
            size,
            mode: header
                .mode()
                .map_err(|_| BadLayer::Damaged("a mode is no number"))?
                & 0o7777,
            uid: number(header.uid())?,
            gid: number(header.gid())?,
            mtime: number(header.mtime())?,
        };
        self.add(entry, out)
    }

    fn add(&mut self, entry: Entry, out: &mut Vec<u8>) -> Result<(), BadLayer> {
        if entry.size > 0 && !entry.kind.is_file() {
            return Err(BadLayer::Damaged("content where there can be none"));
        }
        self.missing.remove(&entry.path);
        if entry.kind.as_byte() == KEPT {
            return Ok(());
        }
        let (directory, name) = split(&entry.path);
        if self.known.get(directory) != Some(&Kind::Directory) {
            return Err(BadLayer::Damaged("a file without its directory"));
        }
        if name.starts_with(WHITEOUT) {
            return Err(unfit(
                &entry.path,
                "has a name that means something else in an image: rename or remove it",
            ));
        }
        if entry.uid >= MAX_IDS || entry.gid >= MAX_IDS {
            return Err(unfit(
                &entry.path,
                "belongs to a user or group that an image cannot have: only 0 to 65535",
            ));
        }
        let kind = match entry.kind {
            EntryType::Directory => Kind::Directory,
            EntryType::Regular => {
                // Known before a byte of it came.
                let all = self.held.bytes.saturating_add(entry.size);
                if all > self.max_bytes {
                    return Err(BadLayer::TooLarge(self.max_bytes));
                }
                Kind::File
            }
            EntryType::Link if self.known.get(&entry.target) == Some(&Kind::File) => Kind::Other,
            EntryType::Link => return Err(BadLayer::Damaged("a link to nothing")),
            EntryType::Symlink => {
                if entry.target.is_empty()
                    || entry.target.len() > MAX_PATH_BYTES
                    || entry.target.contains(&0)
                {
                    return Err(BadLayer::Damaged("a symbolic link to nothing"));
                }
                Kind::Other
            }
            EntryType::Fifo => Kind::Other,
            _ => {
                return Err(BadLayer::Damaged(
                    "an entry of a kind that no guest of ours sends",
                ));
            }
        };
        entry.write(out);
        if kind == Kind::File && entry.size > 0 {
            self.state = State::Content {
                left: entry.size,
                padding: padding_of(entry.size),
            };
        }
        self.held.entries += 1;
        if self.known.insert(entry.path, kind).is_some() {
            return Err(BadLayer::Damaged("two files of one name"));
        }
        Ok(())
    }
}

impl Entry {
    /// Adds its header, with what goes before it.
    fn write(&self, out: &mut Vec<u8>) {
        let mut path = self.path.clone();
        if self.kind.is_dir() {
            path.push(b'/');
        }
        let target: &[u8] = match self.kind {
            EntryType::Link | EntryType::Symlink => &self.target,
            _ => b"",
        };
        for (kind, text) in [
            (EntryType::GNULongLink, target),
            (EntryType::GNULongName, &path),
        ] {
            if text.len() > NAME_FIELD_BYTES {
                let mut header = Header::new_gnu();
                header.set_entry_type(kind);
                header.set_size(to_u64(text.len() + 1));
                header.set_mode(0o644);
                seal(header, b"././@LongLink", b"", out);
                out.extend_from_slice(text);
                out.resize(out.len() + 1 + padding(text.len() + 1), 0);
            }
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(self.kind);
        header.set_size(self.size);
        header.set_mode(self.mode);
        header.set_uid(self.uid);
        header.set_gid(self.gid);
        header.set_mtime(self.mtime);
        seal(header, &path, target, out);
    }
}

/// Bytes of a name in a header.
const NAME_FIELD_BYTES: usize = 100;

/// Writes a header with as much of its names as it has room for.
pub(super) fn seal(mut header: Header, path: &[u8], target: &[u8], out: &mut Vec<u8>) {
    let fields = header.as_old_mut();
    for (to, from) in fields.name.iter_mut().zip(path) {
        *to = *from;
    }
    for (to, from) in fields.linkname.iter_mut().zip(target) {
        *to = *from;
    }
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
}

/// Whether a header's bytes are what they were when it was made.
fn is_sound(header: &Header) -> bool {
    let field = 148..156;
    let bytes = header.as_bytes().iter().enumerate();
    let counted = bytes.map(|(at, byte)| if field.contains(&at) { b' ' } else { *byte });
    let sum: u32 = counted.map(u32::from).sum();
    header.cksum().is_ok_and(|said| said == sum)
}

/// A path as it will be unpacked: relative, of plain names.
fn check_path(path: &[u8]) -> Result<(), BadLayer> {
    let is_plain = |name: &[u8]| !name.is_empty() && name != b"." && name != b"..";
    if path.contains(&0) || !path.split(|byte| *byte == b'/').all(is_plain) {
        return Err(BadLayer::Damaged("a path that is none"));
    }
    let fits = |name: &[u8]| name.len() <= MAX_NAME_BYTES;
    if path.len() > MAX_PATH_BYTES || !path.split(|byte| *byte == b'/').all(fits) {
        return Err(BadLayer::Damaged("a path is too long"));
    }
    Ok(())
}

/// The directory of a path, and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (
            path.get(..slash).unwrap_or_default(),
            path.get(slash + 1..).unwrap_or_default(),
        ),
        None => (b"", path),
    }
}

fn unfit(path: &[u8], problem: &str) -> BadLayer {
    let shown: String = String::from_utf8_lossy(path)
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    BadLayer::Unfit(format!("/{shown} {problem}"))
}

/// A header's field up to its end.
fn field(bytes: &[u8]) -> Vec<u8> {
    let text = bytes.split(|byte| *byte == 0).next();
    text.unwrap_or_default().to_owned()
}

fn number(read: std::io::Result<u64>) -> Result<u64, BadLayer> {
    read.map_err(|_| BadLayer::Damaged("a number that is none"))
}

/// Bytes that fill up the last block of so many.
pub(super) const fn padding(length: usize) -> usize {
    length.wrapping_neg() % BLOCK
}

const fn padding_of(size: u64) -> u64 {
    size.wrapping_neg() % 512
}

fn at_most(left: u64, length: usize) -> usize {
    usize::try_from(left).map_or(length, |left| left.min(length))
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
