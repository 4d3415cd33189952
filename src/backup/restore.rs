//! From a file back to a state: checked whole before anything is touched, then exchanged in one step.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::manifest::{self, Manifest};
use super::seal::Key;
use super::swap::{self, Mark, STAGED};
use super::{BackupError, archive};
use crate::base::clock::Timestamp;
use crate::host::disk;
use crate::store::{self, VolumeOnFile};
use crate::volume::VolumeFiles;

/// What stays free on the disk.
const MARGIN_BYTES: u64 = 16 << 20;

/// Where a state is, and what belongs to it.
pub struct Place {
    /// The state's directory. Its lock is held.
    pub state_dir: PathBuf,
    /// The files of volumes.
    pub volumes: VolumeFiles,
    /// The directory of the templates' files, beside the configuration.
    pub templates: PathBuf,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own on the command line"
)]
pub struct Wish {
    /// A state that is there is put aside.
    pub replace: bool,
    /// The templates' files take the places of those with the same names.
    pub templates: bool,
    /// A record that is not what was written is no reason to refuse.
    pub broken_record: bool,
    /// Only look, and say what would be done.
    pub dry_run: bool,
}

/// What was done, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// What the backup says of itself.
    pub manifest: Manifest,
    /// Where what was there before is now.
    pub before: Option<PathBuf>,
    /// Where the templates' files are now.
    pub templates: Option<PathBuf>,
    /// Volumes of the restored state that have no file.
    pub volumes_missing: Vec<VolumeOnFile>,
}

/// The identity in a file.
///
/// # Errors
/// [`BackupError`].
pub fn identity(path: &Path) -> Result<Key, BackupError> {
    Key::read(path)
}

/// Checks a backup and, unless that is all that is wanted, makes it the state. Blocks.
///
/// # Errors
/// [`BackupError`]; then the state is as it was.
pub fn restore(
    from: impl Read + 'static,
    key: Option<&Key>,
    place: &Place,
    wish: Wish,
    now: Timestamp,
) -> Result<Restored, BackupError> {
    let Place {
        state_dir, volumes, ..
    } = place;
    swap::settle(state_dir, volumes)?;
    let is_there = std::fs::symlink_metadata(swap::database(state_dir)).is_ok();
    if is_there && !wish.replace && !wish.dry_run {
        return Err(BackupError::StateThere(state_dir.clone()));
    }
    let staged = state_dir.join(STAGED);
    std::fs::create_dir(&staged).map_err(BackupError::file("make", &staged))?;
    let checked = check(from, key, &staged);
    let (manifest, found) = match checked {
        Ok(checked) => checked,
        Err(error) => {
            // What cannot be removed now is removed by whoever comes next.
            let _ = std::fs::remove_dir_all(&staged);
            return Err(error);
        }
    };
    if let Some(seq) = found.record_breaks_at.filter(|_| !wish.broken_record) {
        let _ = std::fs::remove_dir_all(&staged);
        return Err(BackupError::BrokenRecord(seq));
    }
    let has_templates = staged.join("templates").is_dir();
    let mark = Mark {
        made_at: manifest.made_at,
        restored_at: now,
        installation: manifest.installation,
        before: swap::dated("state.before-restore", now),
        templates: swap::dated("templates.restored", now),
        volumes: found.volumes.iter().map(|volume| volume.id).collect(),
    };
    let mut volumes_missing = found.volumes;
    volumes_missing.retain(|volume| !volumes.path(volume.id).exists());
    if wish.dry_run {
        let _ = std::fs::remove_dir_all(&staged);
    } else {
        swap::commit(state_dir, &mark)?;
        swap::settle(state_dir, volumes)?;
    }
    let templates = state_dir.join(&mark.templates);
    if wish.templates && has_templates && !wish.dry_run {
        put_templates(&templates, &place.templates)?;
    }
    Ok(Restored {
        manifest,
        before: is_there.then(|| state_dir.join(&mark.before)),
        templates: has_templates.then_some(templates),
        volumes_missing,
    })
}

/// Unpacks and checks all that is in a backup: lengths and sums, that the database is one of ours that we know, that SQLite
/// finds nothing wrong with it, and that it is what the manifest says.
fn check(
    from: impl Read + 'static,
    key: Option<&Key>,
    staged: &Path,
) -> Result<(Manifest, store::CopyFacts), BackupError> {
    let manifest = archive::read(from, key, staged, &mut |manifest| {
        let free = disk::free_bytes(staged).map_err(BackupError::file("look at", staged))?;
        let wanted = manifest.size_bytes().saturating_add(MARGIN_BYTES);
        if free < wanted {
            return Err(BackupError::NoRoom {
                directory: staged.to_owned(),
                wanted,
                free,
            });
        }
        Ok(())
    })?;
    let database = staged.join(manifest::DATABASE);
    // All that can be said of the database by itself is asked here, also whether the chain of its record holds.
    let found = store::look_into(&database).map_err(BackupError::BadDatabase)?;
    let differs = |what: &str| {
        Err(BackupError::Damaged(format!(
            "its database has another {what} than its manifest says"
        )))
    };
    if found.schema != manifest.schema {
        return differs("schema");
    }
    if found.installation != manifest.installation {
        return differs("installation");
    }
    Ok((manifest, found))
}

/// Each file under its name, whole or as it was.
fn put_templates(from: &Path, to: &Path) -> Result<(), BackupError> {
    std::fs::create_dir_all(to).map_err(BackupError::file("make", to))?;
    let entries = std::fs::read_dir(from).map_err(BackupError::file("read", from))?;
    for entry in entries {
        let name = entry.map_err(BackupError::file("read", from))?.file_name();
        let target = to.join(&name);
        let unfinished = target.with_extension("yaml.partial");
        std::fs::copy(from.join(&name), &unfinished)
            .and_then(|_| std::fs::rename(&unfinished, &target))
            .map_err(BackupError::file("write", &target))?;
    }
    disk::sync_directory(to).map_err(BackupError::file("sync", to))
}
