//! What the daemon forbids itself before it does anything else.
//!
//! The unit forbids more (capabilities, devices, address families); this here also holds without systemd. What files the daemon
//! reaches is in [`super::realm`], what it may ask of the kernel in [`super::syscalls`].

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Uid;

use super::HostError;

/// What was found and set, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hardened {
    /// How many files the process may hold open: each session takes about four.
    pub open_files: u64,
}

/// Refuses to go on as root: a daemon that opens to the network and to sandboxes must own nothing
/// but its own state.
///
/// # Errors
/// [`HostError::Root`].
pub fn refuse_root() -> Result<(), HostError> {
    refuse_root_as(Uid::current().is_root() || Uid::effective().is_root())
}

fn refuse_root_as(is_root: bool) -> Result<(), HostError> {
    if is_root {
        Err(HostError::Root)
    } else {
        Ok(())
    }
}

/// Restricts this process and all that it starts. Call it before the first thread.
///
/// - umask 0077: nothing is opened to others but by an explicit change of its mode, also in the
///   moment between the making of a socket and that change.
/// - not dumpable (prctl(2), `PR_SET_DUMPABLE`), no core file: memory holds credentials.
/// - no new privileges: no set-user-id program helps whoever takes this process over.
/// - the soft limit of open files raised to the hard one.
///
/// # Errors
/// [`HostError::System`] with the step that failed.
pub fn restrict() -> Result<Hardened, HostError> {
    umask(Mode::from_bits_truncate(0o077));
    prctl::set_dumpable(false).map_err(|error| HostError::system("forbid core dumps", error))?;
    prctl::set_no_new_privs().map_err(|error| HostError::system("forbid new privileges", error))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .map_err(|error| HostError::system("limit core files to nothing", error))?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|error| HostError::system("read the limit of open files", error))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        .map_err(|error| HostError::system("raise the limit of open files", error))?;
    Ok(Hardened { open_files: hard })
}

/// What is in force of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restrictions {
    /// Whether set-user-id programs give nothing.
    pub no_new_privileges: bool,
    /// Whether its memory may be read and dumped.
    pub is_dumpable: bool,
    /// The largest core file, in bytes.
    pub core_bytes: u64,
    /// The umask; `None` where the kernel does not tell it.
    pub umask: Option<u32>,
    /// How many files it may hold open.
    pub open_files: u64,
}

/// Asks the kernel. What it does not tell counts as not in force.
#[must_use]
pub fn restrictions() -> Restrictions {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    Restrictions {
        no_new_privileges: prctl::get_no_new_privs() == Ok(true),
        is_dumpable: prctl::get_dumpable() != Ok(false),
        core_bytes: getrlimit(Resource::RLIMIT_CORE).map_or(u64::MAX, |(soft, _)| soft),
        umask: umask.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()),
        open_files: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::child;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn root_is_refused_with_what_to_do() {
        let error = refuse_root_as(true).unwrap_err();
        assert!(error.to_string().contains("systemctl start casemated"));
        refuse_root_as(false).unwrap();
    }

    #[test]
    fn everything_is_restricted() {
        if !child::is_child() {
            return child::run("host::harden::tests::everything_is_restricted", &[]);
        }
        let hardened = restrict().unwrap();
        assert_eq!(prctl::get_no_new_privs(), Ok(true));
        assert_eq!(prctl::get_dumpable(), Ok(false));
        assert_eq!(getrlimit(Resource::RLIMIT_CORE), Ok((0, 0)));
        let files = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(files, (hardened.open_files, hardened.open_files));
        let found = Restrictions {
            no_new_privileges: true,
            is_dumpable: false,
            core_bytes: 0,
            umask: Some(0o077),
            open_files: hardened.open_files,
        };
        assert_eq!(restrictions(), found);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Twice is the same.
        assert_eq!(restrict().unwrap(), hardened);
    }
}
