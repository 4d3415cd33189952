//! A file for what is only passed through: without a name, so that nothing is left of it, however the daemon ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

/// Opens a file without a name in a directory, for reading and writing (`O_TMPFILE`, open(2)). What is in it goes when it is
/// closed.
///
/// # Errors
/// Why there is none: the file system must know files without names, as all common ones do.
pub fn file(directory: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlag::O_TMPFILE.bits())
        .open(directory)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn it_holds_what_is_written_and_has_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut scratch = file(directory.path()).unwrap();
        scratch.write_all(b"passing").unwrap();
        scratch.rewind().unwrap();
        let mut text = String::new();
        scratch.read_to_string(&mut text).unwrap();
        assert_eq!(text, "passing");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
