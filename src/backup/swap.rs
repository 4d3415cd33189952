//! The exchange of one state for another, by renames, that can be cut short anywhere and is taken up again by whoever comes next.
//!
//! ```text
//!  restore.staged     being unpacked and checked      found at a start: thrown away, the old state holds
//!  restore.committed  whole; the old goes aside        found at a start: goes on, the new state holds
//!  restore.placing    the old is aside; new goes in    found at a start: goes on, the new state holds
//! ```
//! Nobody may have the database open meanwhile: the lock on the state's directory is held.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::images::WAITING;
use super::{BackupError, OTHER_FILES, manifest};
use crate::base::clock::Timestamp;
use crate::base::id::{InstallationId, VolumeId};
use crate::host::disk::sync_directory;
use crate::volume::VolumeFiles;

/// Being made.
pub(super) const STAGED: &str = "restore.staged";
/// Whole: the rename to this name is the moment from which the new state holds.
const COMMITTED: &str = "restore.committed";
/// The old state is aside.
const PLACING: &str = "restore.placing";

/// Says that the state was restored and nobody has taken it up yet.
const MARK: &str = "restored.json";

/// What is written down of a restore, for whoever takes the state up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When the backup was made.
    pub made_at: Timestamp,
    /// When it was restored.
    pub restored_at: Timestamp,
    /// Whose state it is.
    pub installation: InstallationId,
    /// Where what was there before is, below the state's directory.
    pub before: String,
    /// Where the templates' files of the backup are, below the state's directory.
    pub templates: String,
    /// The volumes that the restored state knows.
    pub volumes: Vec<VolumeId>,
}

/// What the old state consists of.
fn old_files() -> impl Iterator<Item = String> {
    let database = ["", "-wal", "-shm"]
        .into_iter()
        .map(|end| format!("{}{end}", manifest::DATABASE));
    database.chain(OTHER_FILES.into_iter().map(str::to_owned))
}

/// Writes the mark into what is staged, and makes it what holds.
pub(super) fn commit(state_dir: &Path, mark: &Mark) -> Result<(), BackupError> {
    let staged = state_dir.join(STAGED);
    let path = staged.join(MARK);
    let failed = BackupError::file("write", &path);
    let text = serde_json::to_vec(mark).map_err(|error| failed(error.into()))?;
    std::fs::write(&path, text).map_err(&failed)?;
    std::fs::File::open(&path)
        .and_then(|file| file.sync_all())
        .map_err(&failed)?;
    for directory in [&staged.join("templates"), &staged.join("images"), &staged] {
        match sync_directory(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    rename(&staged, &state_dir.join(COMMITTED))?;
    sync(state_dir)
}

/// Takes up what a former process left: throws away what was not committed, goes on with what was. The state is whole
/// afterwards, the old one or the new one.
///
/// # Errors
/// [`BackupError::File`]: the disk says no; it is taken up again by the next one.
pub fn settle(state_dir: &Path, volumes: &VolumeFiles) -> Result<(), BackupError> {
    let at = |name: &str| state_dir.join(name);
    let staged = at(STAGED);
    match std::fs::remove_dir_all(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(BackupError::file("remove", &staged)(error));
        }
        _ => {}
    }
    if at(COMMITTED).is_dir() {
        let mark = read(&at(COMMITTED).join(MARK))?;
        put_aside(state_dir, &mark, volumes)?;
        rename(&at(COMMITTED), &at(PLACING))?;
        sync(state_dir)?;
    }
    if at(PLACING).is_dir() {
        place(state_dir)?;
    }
    Ok(())
}

/// The state that holds goes aside, and with it the files of volumes that the new one does not know: whoever starts on it would
/// remove them.
fn put_aside(state_dir: &Path, mark: &Mark, volumes: &VolumeFiles) -> Result<(), BackupError> {
    let before = state_dir.join(&mark.before);
    // Images that nobody has loaded yet belong to what they were restored with.
    for name in old_files().chain([WAITING.to_owned()]) {
        let from = state_dir.join(&name);
        if std::fs::symlink_metadata(&from).is_err() {
            continue;
        }
        std::fs::create_dir_all(&before).map_err(BackupError::file("make", &before))?;
        rename(&from, &before.join(&name))?;
    }
    if before.is_dir() {
        sync(&before)?;
    }
    // A machine without volumes has no directory of them.
    for id in volumes.list().unwrap_or_default() {
        if mark.volumes.contains(&id) {
            continue;
        }
        match volumes.set_aside(id) {
            Ok(path) => tracing::warn!(
                path = %path.display(),
                "the restored state does not know this volume; its file is kept under this name"
            ),
            Err(error) => {
                let path = volumes.path(id);
                return Err(BackupError::file("put aside", &path)(io::Error::other(
                    error,
                )));
            }
        }
    }
    sync(state_dir)
}

fn place(state_dir: &Path) -> Result<(), BackupError> {
    let placing = state_dir.join(PLACING);
    // It goes in last: until then the directory tells where the rest belongs.
    let mark = placing.join(MARK);
    if mark.is_file() {
        let told = read(&mark)?;
        for name in old_files() {
            let from = placing.join(&name);
            if from.is_file() {
                rename(&from, &state_dir.join(&name))?;
            }
        }
        let templates = placing.join("templates");
        if templates.is_dir() {
            rename(&templates, &state_dir.join(&told.templates))?;
        }
        let images = placing.join("images");
        if images.is_dir() {
            rename(&images, &state_dir.join(WAITING))?;
        }
        sync(state_dir)?;
        rename(&mark, &state_dir.join(MARK))?;
        sync(state_dir)?;
    }
    std::fs::remove_dir_all(&placing).map_err(BackupError::file("remove", &placing))?;
    sync(state_dir)
}

/// What the state was restored from, when nobody has taken it up since.
///
/// # Errors
/// [`BackupError`]: the mark is there and cannot be read.
pub fn mark(state_dir: &Path) -> Result<Option<Mark>, BackupError> {
    let path = state_dir.join(MARK);
    if path.exists() {
        return read(&path).map(Some);
    }
    Ok(None)
}

/// The state has been taken up.
///
/// # Errors
/// [`BackupError::File`].
pub fn forget_mark(state_dir: &Path) -> Result<(), BackupError> {
    let path = state_dir.join(MARK);
    std::fs::remove_file(&path).map_err(BackupError::file("remove", &path))
}

fn read(path: &Path) -> Result<Mark, BackupError> {
    let failed = BackupError::file("read", path);
    let text = std::fs::read(path).map_err(&failed)?;
    let mark: Mark = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
    // We wrote it; but it names directories.
    let is_plain = |name: &str| !name.is_empty() && !name.contains('/') && !name.starts_with('.');
    if is_plain(&mark.before) && is_plain(&mark.templates) {
        return Ok(mark);
    }
    Err(failed(io::Error::other("it names no directory of ours")))
}

fn rename(from: &Path, to: &Path) -> Result<(), BackupError> {
    #[cfg(test)]
    if !tests::may_rename() {
        return Err(BackupError::file("rename", from)(io::Error::other(
            "cut short",
        )));
    }
    std::fs::rename(from, to).map_err(BackupError::file("rename", from))
}

fn sync(directory: &Path) -> Result<(), BackupError> {
    sync_directory(directory).map_err(BackupError::file("sync", directory))
}

/// Where something of a restore goes, by when it is made.
pub(super) fn dated(what: &str, at: Timestamp) -> String {
    format!("{what}-{}", compact(at))
}

/// An instant as a part of a name that sorts: `20261123T021500000Z`.
pub(super) fn compact(at: Timestamp) -> String {
    let mut text = at.to_string();
    text.retain(|c| c.is_ascii_alphanumeric());
    text
}

/// Where the database of a state is.
pub(super) fn database(state_dir: &Path) -> PathBuf {
    state_dir.join(manifest::DATABASE)
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    thread_local! {
        /// How many more renames there are, where a test says so.
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// Does something in which only so many renames go through.
    pub(in crate::backup) fn cut_short_after<T>(renames: usize, work: impl FnOnce() -> T) -> T {
        LEFT.set(Some(renames));
        let done = work();
        LEFT.set(None);
        done
    }

    pub(super) fn may_rename() -> bool {
        let left = LEFT.get();
        if let Some(left) = left {
            LEFT.set(Some(left.saturating_sub(1)));
        }
        left != Some(0)
    }
}
