//! What is told of a file.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use casemate_link::Refusal;
use casemate_link::file::{FileEntry, FileKind, StatRequest};
use casemate_link::limits::{MAX_ITEM_BYTES, MAX_PATH_BYTES};
use nix::fcntl::{AT_FDCWD, AtFlags, readlinkat};
use nix::sys::stat::{FileStat, fstatat};

use super::actor::Actor;
use super::attributes;
use super::error::Doing;
use crate::processes::Processes;
use crate::sys::Attributed;
use crate::transfer::Transfer;
use crate::users::Names;

/// Answers a [`StatRequest`].
pub(crate) async fn stat(
    processes: Rc<Processes>,
    request: StatRequest,
    transfer: Transfer,
) -> Result<(), Refusal> {
    let actor = Actor::admit(&processes, &request.place)?;
    let path = actor.path(&request.place.path);
    let job = actor.clone();
    let entry = actor
        .run(move || at(&path, request.follow, job.names()))
        .await?;
    transfer.output.only(&entry).await;
    Ok(())
}

/// What is at a path.
pub(crate) fn at(path: &Path, follow: bool, names: &Names) -> Result<FileEntry, Refusal> {
    let flags = if follow {
        AtFlags::empty()
    } else {
        AtFlags::AT_SYMLINK_NOFOLLOW
    };
    let stat = fstatat(AT_FDCWD, path, flags).doing("looking at the file")?;
    let target = match kind(&stat) {
        FileKind::Symlink => readlinkat(AT_FDCWD, path).ok(),
        _ => None,
    };
    let whole = CString::new(path.as_os_str().as_bytes()).ok();
    let metadata = whole.as_deref().map_or_else(BTreeMap::new, |path| {
        metadata(
            &stat,
            if follow {
                Attributed::Followed(path)
            } else {
                Attributed::Itself(path)
            },
        )
    });
    Ok(describe(path, &stat, target.as_deref(), metadata, names))
}

/// A file's metadata, where its kind can have any.
pub(crate) fn metadata(stat: &FileStat, file: Attributed<'_>) -> BTreeMap<String, String> {
    match kind(stat) {
        FileKind::File | FileKind::Directory => attributes::read(file),
        FileKind::Symlink | FileKind::Other => BTreeMap::new(),
    }
}

/// Puts together what is known.
pub(crate) fn describe(
    path: &Path,
    stat: &FileStat,
    target: Option<&OsStr>,
    metadata: BTreeMap<String, String>,
    names: &Names,
) -> FileEntry {
    // Without doubled slashes and dots that mean nothing.
    let plain: std::path::PathBuf = path.components().collect();
    let (path, is_exact) = shown(plain.as_os_str());
    let kind = kind(stat);
    let entry = FileEntry {
        path,
        is_exact,
        kind,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        owner: names.user(stat.st_uid).map(str::to_owned),
        gid: stat.st_gid,
        group: names.group(stat.st_gid).map(str::to_owned),
        modified_ms: stat
            .st_mtime
            .saturating_mul(1000)
            .saturating_add(stat.st_mtime_nsec / 1_000_000),
        etag: etag(stat),
        target: match kind {
            FileKind::Symlink => Some(shown(target.unwrap_or_default()).0),
            _ => None,
        },
        metadata,
    };
    fitting(entry)
}

pub(crate) fn kind(stat: &FileStat) -> FileKind {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => FileKind::File,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::Symlink,
        _ => FileKind::Other,
    }
}

/// Changes whenever the content does, as far as the kernel's clock tells.
pub(crate) fn etag(stat: &FileStat) -> String {
    let time = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
    // Only to be compared: what time the lowest bits stand for does not matter.
    let bits = u64::try_from(time & i128::from(u64::MAX)).unwrap_or(0);
    format!("{:x}-{:x}-{bits:x}", stat.st_ino, stat.st_size)
}

/// A path as text within its bound, and whether it still says which file is meant.
pub(crate) fn shown(path: &OsStr) -> (String, bool) {
    let mut text = path.to_string_lossy().into_owned();
    text.truncate(text.floor_char_boundary(MAX_PATH_BYTES));
    let is_exact = text.as_bytes() == path.as_bytes();
    (text, is_exact)
}

/// Leaves out what would make an entry too long for a frame: paths at their bounds, full of characters that JSON escapes.
fn fitting(mut entry: FileEntry) -> FileEntry {
    // What JSON makes of a byte at most.
    const ESCAPED: usize = 6;
    let metadata: usize = entry
        .metadata
        .iter()
        .map(|(name, value)| name.len() + value.len() + 8)
        .sum();
    let texts = entry.path.len() + entry.target.as_ref().map_or(0, String::len) + metadata;
    if texts * ESCAPED + 2048 < MAX_ITEM_BYTES {
        return entry;
    }
    let fits = |entry: &FileEntry| {
        serde_json::to_vec(entry).is_ok_and(|json| json.len() <= MAX_ITEM_BYTES - 1024)
    };
    if !fits(&entry) {
        entry.metadata = BTreeMap::new();
        entry.is_exact = false;
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_always_fits_its_frame() {
        let stat = fstatat(AT_FDCWD, "/", AtFlags::empty()).unwrap();
        let long = "\u{1}".repeat(4090);
        let metadata = BTreeMap::from([("a".to_owned(), "\u{1}".repeat(8000))]);
        let entry = describe(
            &Path::new("/").join(&long),
            &stat,
            Some(OsStr::new(&long)),
            metadata,
            &Names::default(),
        );
        assert!(serde_json::to_vec(&entry).unwrap().len() < MAX_ITEM_BYTES);
        assert!(!entry.is_exact && entry.path.len() == 4091);
        assert!(entry.etag.len() <= 64);
    }

    #[test]
    fn names_that_are_no_text_are_shown_and_not_exact() {
        assert_eq!(
            shown(OsStr::from_bytes(b"a\xff")),
            ("a\u{fffd}".into(), false)
        );
        assert_eq!(shown(OsStr::new("ä")), ("ä".into(), true));
        let (text, is_exact) = shown(OsStr::from_bytes(&[0xff; 4000]));
        assert!(text.len() <= MAX_PATH_BYTES && !is_exact);
    }
}
