//! A tar archive out of a session, unpacked below a directory of this machine.
//!
//! The archive is an enemy's. Every name is walked from the directory's descriptor, one component at a
//! time and through real directories only; nothing is made outside, no file is written through what is
//! there, no entry is a device, a pipe or a second name of something, no link leads out, no bit lets a
//! program run as somebody else. What an honest session never sends ends the copy.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use casemate::base::exit::Exit;
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, symlinkat, unlinkat};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType, PaxExtensions};

use super::Copied;
use super::fresh::{Fresh, directory, settle};
use super::pieces::PIECE_BYTES;
use crate::failure::Failure;
use crate::output::Bar;

/// Longest path (`PATH_MAX`), and longest target of a link.
const MAX_PATH_BYTES: usize = 4096;

/// Longest header of a header: a long name, or what PAX says.
const MAX_META_BYTES: u64 = 64 << 10;

/// Directories that wait for their mode and time until all in them is there.
const MAX_WAITING: usize = 256;

/// Sentences about links that are left out; the rest is only counted.
const MAX_TOLD: u64 = 10;

/// What may follow the end of an archive: what fills its last block of 10 KiB, or a little more.
const MAX_TRAILER_BYTES: u64 = 1 << 20;

/// What was said of the next entry before it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

/// An archive that is being unpacked.
struct Unpacking {
    root: Arc<OwnedFd>,
    waiting: Vec<Waiting>,
    /// The directory of the last entry.
    last: Option<(Vec<OsString>, Arc<OwnedFd>)>,
    copied: Copied,
    bar: Bar,
}

/// A directory that gets its mode and time later.
struct Waiting {
    path: Vec<OsString>,
    dir: OwnedFd,
    mode: u32,
    modified: Duration,
}

/// Unpacks below a directory that is there.
pub fn unpack(archive: impl Read, root: &Path, bar: Bar) -> Result<Copied, Failure> {
    let root = directory(root)
        .map_err(|error| Failure::io(format_args!("open {}", root.display()), &error))?;
    let mut unpacking = Unpacking {
        root: Arc::new(root),
        waiting: Vec::new(),
        last: None,
        copied: Copied::default(),
        bar,
    };
    let mut archive = Archive::new(archive);
    unpacking.entries(&mut archive)?;
    while let Some(waiting) = unpacking.waiting.pop() {
        waiting.settle()?;
    }
    // The end of the archive is not that of the stream, where it shows whether all came.
    let rest = &mut archive.into_inner().take(MAX_TRAILER_BYTES);
    let rest = io::copy(rest, &mut io::sink()).map_err(read)?;
    if rest == MAX_TRAILER_BYTES {
        return Err(hostile("more after its end than any archive has", b""));
    }
    Ok(unpacking.copied)
}

fn read(error: io::Error) -> Failure {
    Failure::carried("read the archive", error)
}

/// What an honest session does not send.
fn hostile(what: &str, path: &[u8]) -> Failure {
    let path = String::from_utf8_lossy(path);
    let path = if path.is_empty() {
        String::new()
    } else {
        let shown: String = path.chars().take(200).collect();
        format!(": {shown}")
    };
    Failure::new(
        Exit::Failed,
        format!("the session sent an archive that is not taken; it has {what}{path}"),
    )
}

fn write(path: &[OsString], error: impl Into<io::Error>) -> Failure {
    let path = path.join(OsStr::new("/"));
    Failure::io(
        format_args!("write {}", Path::new(&path).display()),
        &error.into(),
    )
}

impl Unpacking {
    fn entries(&mut self, archive: &mut Archive<impl Read>) -> Result<(), Failure> {
        let mut next = Extensions::default();
        // Raw, as the crate would take names of any length.
        for entry in archive.entries().map_err(read)?.raw(true) {
            let mut entry = entry.map_err(read)?;
            match entry.header().entry_type() {
                EntryType::GNULongName => next.path = Some(long(&mut entry)?),
                EntryType::GNULongLink => next.target = Some(long(&mut entry)?),
                EntryType::XHeader => next.read(&meta(&mut entry)?)?,
                kind => self.entry(kind, entry, std::mem::take(&mut next))?,
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        kind: EntryType,
        entry: Entry<'_, impl Read>,
        next: Extensions,
    ) -> Result<(), Failure> {
        let name = next.path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let path = components(&name)?;
        self.copied.entries += 1;
        self.settle_but(&path)?;
        let header = entry.header();
        let mode = header.mode().map_err(read)? & 0o777;
        let modified = Duration::from_secs(header.mtime().map_err(read)?);
        match kind {
            EntryType::Directory => self.directory(path, mode, modified),
            EntryType::Regular => self.file(&path, entry, mode, modified),
            EntryType::Symlink => {
                let target = next.target.or_else(|| {
                    let target = entry.link_name_bytes();
                    target.map(std::borrow::Cow::into_owned)
                });
                self.link(&path, &target.unwrap_or_default())
            }
            EntryType::Link => Err(hostile("a second name of a file", &name)),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                Err(hostile("a device or a pipe", &name))
            }
            _ => Err(hostile("an entry of an unknown kind", &name)),
        }
    }

    fn file(
        &mut self,
        path: &[OsString],
        mut entry: Entry<'_, impl Read>,
        mode: u32,
        modified: Duration,
    ) -> Result<(), Failure> {
        let (name, dir) = self.place(path)?;
        let mut file = Fresh::create(dir).map_err(|error| write(path, error))?;
        let mut buffer = vec![0; PIECE_BYTES];
        let mut left = entry.size();
        loop {
            let count = entry.read(&mut buffer).map_err(read)?;
            let piece = buffer.get(..count).unwrap_or_default();
            if piece.is_empty() {
                break;
            }
            io::Write::write_all(&mut file, piece).map_err(|error| write(path, error))?;
            left = left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
            self.bar.add(count);
        }
        if left > 0 {
            return Err(read(io::ErrorKind::UnexpectedEof.into()));
        }
        file.finish(&name, mode, modified)
            .map_err(|error| write(path, error))
    }

    fn directory(
        &mut self,
        path: Vec<OsString>,
        mode: u32,
        modified: Duration,
    ) -> Result<(), Failure> {
        if path.is_empty() {
            // What is unpacked into has been given its own mode by who made it.
            return Ok(());
        }
        let (name, parent) = self.place(&path)?;
        let dir = enter(&parent, &name).map_err(|error| in_the_way(&path, error))?;
        let waiting = Waiting {
            path,
            dir,
            mode,
            modified,
        };
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push(waiting);
            Ok(())
        } else {
            waiting.settle()
        }
    }

    fn link(&mut self, path: &[OsString], target: &[u8]) -> Result<(), Failure> {
        if target.is_empty() || target.len() > MAX_PATH_BYTES || target.contains(&0) {
            return Err(hostile("a link that leads nowhere", &path_bytes(path)));
        }
        if !stays_within(path.len().saturating_sub(1), target) {
            self.copied.left_out += 1;
            if self.copied.left_out <= MAX_TOLD {
                self.bar.tell(&format!(
                    "left out the link {}, which leads out, to {}",
                    String::from_utf8_lossy(&path_bytes(path)),
                    String::from_utf8_lossy(target)
                ));
            }
            return Ok(());
        }
        let (name, dir) = self.place(path)?;
        let target = OsStr::from_bytes(target);
        let linked = match symlinkat(target, &*dir, &name) {
            Err(Errno::EXIST) => unlinkat(&*dir, &name, AtFlags::empty())
                .and_then(|()| symlinkat(target, &*dir, &name)),
            linked => linked,
        };
        linked.map_err(|error| write(path, error))
    }

    /// The name of an entry, and the directory where it goes; directories that are missing are made.
    fn place(&mut self, path: &[OsString]) -> Result<(OsString, Arc<OwnedFd>), Failure> {
        let Some((name, parents)) = path.split_last() else {
            return Err(hostile("an entry without a name", b""));
        };
        if let Some((last, dir)) = &self.last
            && last == parents
        {
            return Ok((name.clone(), Arc::clone(dir)));
        }
        let mut dir = Arc::clone(&self.root);
        for parent in parents {
            let inner = enter(&dir, parent).map_err(|error| in_the_way(parents, error))?;
            dir = Arc::new(inner);
        }
        self.last = Some((parents.to_vec(), Arc::clone(&dir)));
        Ok((name.clone(), dir))
    }

    /// Settles the directories in which nothing more is to come.
    fn settle_but(&mut self, path: &[OsString]) -> Result<(), Failure> {
        while let Some(waiting) = self.waiting.pop() {
            if path.starts_with(&waiting.path) && path.len() > waiting.path.len() {
                self.waiting.push(waiting);
                break;
            }
            waiting.settle()?;
        }
        Ok(())
    }
}

impl Waiting {
    fn settle(self) -> Result<(), Failure> {
        let settled = settle(&self.dir, self.mode, self.modified);
        settled.map_err(|error| write(&self.path, error))
    }
}

/// Opens a directory in another one, and makes it if it is missing. A link is no directory.
fn enter(dir: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    match mkdirat(dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

fn in_the_way(path: &[OsString], error: Errno) -> Failure {
    match error {
        Errno::NOTDIR | Errno::LOOP => Failure::new(
            Exit::Failed,
            format!(
                "a file or link stands where a directory goes: {}",
                String::from_utf8_lossy(&path_bytes(path))
            ),
        ),
        error => write(path, error),
    }
}

fn path_bytes(path: &[OsString]) -> Vec<u8> {
    path.join(OsStr::new("/")).as_bytes().to_vec()
}

/// The parts of a name, none of which leads up or starts anew.
fn components(name: &[u8]) -> Result<Vec<OsString>, Failure> {
    if name.starts_with(b"/") {
        return Err(hostile("an absolute path", name));
    }
    if name.len() > MAX_PATH_BYTES || name.contains(&0) {
        return Err(hostile("an impossible path", name));
    }
    let parts = name.split(|byte| *byte == b'/');
    let parts: Vec<_> = parts.filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(hostile("a path that leads out", name));
    }
    let parts = parts.into_iter();
    Ok(parts
        .map(|part| OsStr::from_bytes(part).to_owned())
        .collect())
}

/// Whether a link that lies so many directories deep stays within: up no further than it is deep, and
/// then only down. Up after down is refused whatever it leads to, as it may be through another link.
fn stays_within(depth: usize, target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return false;
    }
    let parts = target.split(|byte| *byte == b'/');
    let mut parts = parts.filter(|part| !matches!(*part, b"" | b".")).peekable();
    let mut up = 0;
    while parts.next_if(|part| *part == b"..").is_some() {
        up += 1;
    }
    up <= depth && parts.all(|part| part != b"..")
}

/// What an entry says that describes another one.
fn meta(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, Failure> {
    if entry.size() > MAX_META_BYTES {
        return Err(hostile("a header without end", b""));
    }
    let mut said = Vec::new();
    entry.read_to_end(&mut said).map_err(read)?;
    Ok(said)
}

/// A long name, which ends in a NUL.
fn long(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, Failure> {
    let mut name = meta(entry)?;
    if name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

impl Extensions {
    fn read(&mut self, records: &[u8]) -> Result<(), Failure> {
        for record in PaxExtensions::new(records) {
            let record = record.map_err(read)?;
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.target = Some(record.value_bytes().to_vec()),
                // Where it ends would be elsewhere than we look.
                b"size" => return Err(hostile("a size beside its header", b"")),
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(hostile("a file with holes", b""));
                }
                // Times in parts of seconds, owners: not kept.
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_link_stays_within_or_is_none() {
        for (depth, target, stays) in [
            (0, "a", true),
            (0, "./a/b", true),
            (0, "..", false),
            (1, "../a", true),
            (1, "../../a", false),
            (3, "../..", true),
            (9, "a/../..", false),
            (9, "/etc/passwd", false),
            (0, "..a", true),
        ] {
            assert_eq!(stays_within(depth, target.as_bytes()), stays, "{target}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_nothing_is_made_outside(bytes: Vec<u8>, tail in "[./a]{0,12}") {
            let parent = tempfile::tempdir().unwrap();
            let root = parent.path().join("root");
            std::fs::create_dir(&root).unwrap();
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..tail.len()].copy_from_slice(tail.as_bytes());
            header.set_size(0);
            header.set_mode(0o644);
            header.set_mtime(1);
            header.set_entry_type(EntryType::Regular);
            header.set_cksum();
            let archive = [header.as_bytes().as_slice(), &bytes].concat();
            let _ = unpack(archive.as_slice(), &root, Bar::begin("", None, false));
            let outside: Vec<_> = std::fs::read_dir(parent.path()).unwrap().collect();
            prop_assert_eq!(outside.len(), 1);
        }
    }
}
