//! A file that holds room on the state's disk, given back when the disk is full: so that ends and their records can still be
//! written when somebody has filled it, and what they end makes room.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::host::disk;

/// Room for some ten thousand records and the pages around them.
const RESERVE_BYTES: u64 = 8 << 20;

/// The file.
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            path: directory.join("reserve"),
        }
    }

    /// Holds the room, or holds it still; `false` when there is not enough. After the disk was full it takes twice as much to
    /// begin with, so that it is not full again at once.
    pub(super) fn hold(&self, was_full: bool) -> bool {
        let is_whole = |found: &std::fs::Metadata| found.len() == RESERVE_BYTES;
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| is_whole(&found)) {
            return true;
        }
        if was_full && !self.has_room() {
            return false;
        }
        match self.make() {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.release();
                false
            }
            // A file system that cannot hold room is none the fuller for it.
            Err(error) => {
                tracing::debug!(%error, "cannot hold room on the disk of the state");
                true
            }
        }
    }

    fn has_room(&self) -> bool {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        disk::free_bytes(directory).is_ok_and(|free| free >= 2 * RESERVE_BYTES)
    }

    fn make(&self) -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.path)?;
        disk::hold(&file, RESERVE_BYTES)
    }

    /// Gives the room back.
    pub(super) fn release(&self) {
        match std::fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "cannot give the held room back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_held_given_back_and_held_again() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(directory.path());
        assert!(reserve.hold(false));
        assert!(reserve.hold(false));
        let path = directory.path().join("reserve");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), RESERVE_BYTES);
        reserve.release();
        assert!(!path.exists());
        reserve.release();
        assert!(reserve.hold(true));
        assert!(path.exists());
    }
}
