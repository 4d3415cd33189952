//! Room on a disk: how much there is, and how to hold some of it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

/// Bytes that we may still write to the disk that holds `path`.
///
/// # Errors
/// Why it cannot be asked.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = statvfs(path)?;
    // Widths differ between systems.
    #[allow(
        clippy::useless_conversion,
        reason = "both are 64 bits here, and not everywhere"
    )]
    let free = u64::from(found.blocks_available()).saturating_mul(u64::from(found.fragment_size()));
    Ok(free)
}

/// Makes a file so long, and its room its own: writing to it or giving it back is what is left when the disk is full.
///
/// # Errors
/// There is no room, or the file system cannot.
pub fn hold(file: &File, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    fallocate(file.as_fd(), FallocateFlags::empty(), 0, length)?;
    Ok(())
}

/// Makes what was renamed, made or removed in a directory outlast a power cut.
///
/// # Errors
/// The disk says no.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn room_that_is_held_is_taken_from_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        assert!(free_bytes(directory.path()).unwrap() > 0);
        let file = File::create(directory.path().join("x")).unwrap();
        hold(&file, 1 << 20).unwrap();
        let found = file.metadata().unwrap();
        assert_eq!(found.len(), 1 << 20);
        assert!(found.blocks() * 512 >= 1 << 20, "it is no hole");
        assert!(hold(&file, 1 << 60).is_err());
        assert!(free_bytes(Path::new("/no/such/place")).is_err());
    }
}
