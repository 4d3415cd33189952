//! One daemon for each state directory: `<state_dir>/lock`, held by flock(2).
//!
//! The kernel gives the lock up when the process ends, however it ends. The file stays: removing it
//! would let two daemons each hold a file of that name.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use super::HostError;

/// The state directory is ours until this is dropped.
#[derive(Debug)]
pub struct StateLock {
    _file: Flock<File>,
}

/// Most that is read of what a holder wrote.
const MAX_PID_TEXT_BYTES: u64 = 32;

impl StateLock {
    /// Takes the lock, and writes our process id into it for people.
    ///
    /// # Errors
    /// [`HostError::AlreadyHeld`] when another daemon works there, [`HostError::File`] otherwise.
    pub fn acquire(state_dir: &Path) -> Result<Self, HostError> {
        let path = state_dir.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
            .open(&path)
            .map_err(|error| HostError::file("open the lock", &path, error))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((file, Errno::EWOULDBLOCK)) => {
                let pid = holder(file);
                return Err(HostError::AlreadyHeld { path, pid });
            }
            Err((_, error)) => return Err(HostError::file("lock", &path, error)),
        };
        // The number is for people; the lock holds without it.
        let written = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "cannot write our pid into the lock");
        }
        Ok(Self { _file: file })
    }
}

fn holder(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(MAX_PID_TEXT_BYTES)
        .read_to_string(&mut text)
        .ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_daemon_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateLock::acquire(dir.path()).unwrap();
        let error = StateLock::acquire(dir.path()).unwrap_err();
        let HostError::AlreadyHeld { pid, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*pid, Some(std::process::id()));
        assert!(error.to_string().contains(&std::process::id().to_string()));
        drop(first);
        StateLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn rubbish_in_the_file_is_no_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = StateLock::acquire(dir.path()).unwrap();
        std::fs::write(&path, b"\xff\xff not a number").unwrap();
        let error = StateLock::acquire(dir.path()).unwrap_err();
        assert!(matches!(error, HostError::AlreadyHeld { pid: None, .. }));
        drop(first);
    }

    #[test]
    fn a_symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::os::unix::fs::symlink(&target, dir.path().join("lock")).unwrap();
        assert!(StateLock::acquire(dir.path()).is_err());
        assert!(!target.exists());
    }
}
