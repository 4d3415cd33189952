//! What is to be copied into a session, as a tar archive, written entry by entry. The files are the
//! user's own, so that nothing here is an enemy; they may still change meanwhile.

use std::ffi::OsStr;
use std::fs::{DirEntry, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::Copied;
use super::pieces::PieceWriter;
use crate::failure::Failure;
use crate::output::Bar;

/// Directories within directories: as many as a session takes apart.
const MAX_LEVELS: usize = 128;

/// Writes what is at `path` as an archive of one entry, or of a directory and all in it. Without a
/// name, only what is in the directory.
pub fn pack(
    path: &Path,
    name: Option<&OsStr>,
    writer: PieceWriter,
    bar: Bar,
) -> Result<Copied, Failure> {
    let mut packing = Packing {
        builder: Builder::new(writer),
        copied: Copied::default(),
        bar,
    };
    let done = packing.whole(path, name);
    if done.is_err() {
        packing.builder.get_ref().break_off();
    }
    done.map(|()| packing.copied)
}

struct Packing {
    builder: Builder<PieceWriter>,
    copied: Copied,
    bar: Bar,
}

/// A directory that is being read, and its name in the archive.
struct Level {
    entries: std::vec::IntoIter<DirEntry>,
    name: PathBuf,
}

/// The other end takes no more; why, it says itself.
fn sent(error: io::Error) -> Failure {
    Failure::carried("send the archive", error)
}

impl Packing {
    fn whole(&mut self, path: &Path, name: Option<&OsStr>) -> Result<(), Failure> {
        let failed = |error| Failure::io(format_args!("read {}", path.display()), &error);
        // What the command line names is followed; links further down stay links.
        let about = std::fs::metadata(path).map_err(failed)?;
        if about.is_dir() {
            self.tree(path, name, &about)?;
        } else {
            let name = Path::new(name.unwrap_or_default());
            self.file(path, name)?;
        }
        self.builder.finish().map_err(sent)?;
        io::Write::flush(self.builder.get_mut()).map_err(sent)
    }

    fn tree(&mut self, path: &Path, name: Option<&OsStr>, about: &Metadata) -> Result<(), Failure> {
        let name = PathBuf::from(name.unwrap_or_default());
        if !name.as_os_str().is_empty() {
            self.head(EntryType::Directory, about, &name)?;
        }
        let mut levels = vec![Level::open(path, name)?];
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.entries.next() else {
                levels.pop();
                continue;
            };
            let name = level.name.join(entry.file_name());
            if let Some(inner) = self.entry(&entry, &name)? {
                if levels.len() >= MAX_LEVELS {
                    return Err(Failure::usage(format!(
                        "{} lies too deep to be copied",
                        entry.path().display()
                    )));
                }
                levels.push(inner);
            }
        }
        Ok(())
    }

    /// Writes an entry. One that is gone when its turn comes is passed over.
    fn entry(&mut self, entry: &DirEntry, name: &Path) -> Result<Option<Level>, Failure> {
        let path = entry.path();
        let failed = |error| Failure::io(format_args!("read {}", path.display()), &error);
        let about = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            about => about.map_err(failed)?,
        };
        let kind = about.file_type();
        if kind.is_dir() {
            let inner = Level::open(&path, name.to_owned())?;
            self.head(EntryType::Directory, &about, name)?;
            return Ok(Some(inner));
        }
        if kind.is_symlink() {
            let target = std::fs::read_link(&path).map_err(failed)?;
            let mut header = header(EntryType::Symlink, &about, 0);
            self.copied.entries += 1;
            let linked = self.builder.append_link(&mut header, name, target);
            linked.map_err(sent)?;
        } else if kind.is_file() {
            self.file(&path, name)?;
        } else {
            self.copied.entries += 1;
            self.copied.left_out += 1;
            self.bar
                .tell(&format!("left out {}, which is no file", path.display()));
        }
        Ok(None)
    }

    fn file(&mut self, path: &Path, name: &Path) -> Result<(), Failure> {
        let failed = |error| Failure::io(format_args!("read {}", path.display()), &error);
        let file = File::open(path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        let size = about.len();
        let mut header = header(EntryType::Regular, &about, size);
        self.copied.entries += 1;
        let content = Content {
            file,
            path,
            left: size,
            bar: &self.bar,
        };
        let written = self.builder.append_data(&mut header, name, content);
        written.map_err(sent)
    }

    fn head(&mut self, kind: EntryType, about: &Metadata, name: &Path) -> Result<(), Failure> {
        self.copied.entries += 1;
        // A directory's name ends in a slash, as everybody writes it.
        let name = name.join("");
        let mut header = header(kind, about, 0);
        let written = self.builder.append_data(&mut header, name, io::empty());
        written.map_err(sent)
    }
}

impl Level {
    fn open(path: &Path, name: PathBuf) -> Result<Self, Failure> {
        let failed = |error| Failure::io(format_args!("read {}", path.display()), &error);
        let entries = std::fs::read_dir(path).map_err(failed)?;
        let mut entries: Vec<_> = entries.collect::<io::Result<_>>().map_err(failed)?;
        // The same tree is always the same archive.
        entries.sort_by_key(DirEntry::file_name);
        Ok(Self {
            entries: entries.into_iter(),
            name,
        })
    }
}

/// Whose it is on this machine means nothing in a session.
fn header(kind: EntryType, about: &Metadata, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(about.mode() & 0o777);
    header.set_uid(0);
    header.set_gid(0);
    // Before 1970 a header cannot say.
    header.set_mtime(u64::try_from(about.mtime()).unwrap_or(0));
    header
}

/// As many bytes as the header says: what a file lost meanwhile is filled up with zeros.
struct Content<'a> {
    file: File,
    path: &'a Path,
    left: u64,
    bar: &'a Bar,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        let room = buffer.get_mut(..most).unwrap_or_default();
        let mut count = self
            .file
            .read(room)
            .map_err(|error| Failure::io(format_args!("read {}", self.path.display()), &error))?;
        if count == 0 {
            room.fill(0);
            count = room.len();
        }
        self.left -= u64::try_from(count).unwrap_or(self.left).min(self.left);
        self.bar.add(count);
        Ok(count)
    }
}
