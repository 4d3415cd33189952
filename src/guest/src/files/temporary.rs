//! A file, link or directory under a name of its own, until it takes its proper name.

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};

use casemate_link::refusal::{Refusal, code};
use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat2};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::actor::Abandoned;
use super::error::explain;
use super::place::Spot;
use super::remove;
use crate::child::refusal;

/// How the names begin. [`mod@super::watch`] tells nobody about them.
const PREFIX: &str = ".casemate-";

/// Tries to find a free name; one is enough unless somebody guesses.
const TRIES: usize = 8;

/// Held between looking at what is to be replaced and replacing it, so that of two writers with conditions only one finds
/// its condition true.
static REPLACING: Mutex<()> = Mutex::new(());

/// Something that has no proper name yet. Dropped without one, it is removed: on a thread that acts as its user.
#[derive(Debug)]
pub(crate) struct Temporary {
    dir: OwnedFd,
    name: OsString,
    is_there: bool,
}

/// A name for something that will replace, or that will be new; which, those who watch want to know.
pub(crate) fn name(replaces: bool) -> OsString {
    let kind = if replaces { 'r' } else { 'n' };
    // The seeds of the hash tables are the kernel's randomness.
    format!("{PREFIX}{kind}{:016x}", RandomState::new().hash_one(())).into()
}

/// Whether a name is one of ours, and then whether what has it will replace something.
pub(crate) fn replaces(name: &OsStr) -> Option<bool> {
    let rest = name.to_str()?.strip_prefix(PREFIX)?;
    let (kind, digits) = rest.split_at_checked(1)?;
    let is_ours = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match kind {
        "r" if is_ours => Some(true),
        "n" if is_ours => Some(false),
        _ => None,
    }
}

impl Temporary {
    /// Makes something beside a place. `make` must fail with `EEXIST` when the name is taken.
    pub(crate) fn beside<T>(
        spot: &Spot,
        what: &str,
        make: impl Fn(&OwnedFd, &OsStr) -> Result<T, Errno>,
    ) -> Result<(Self, T), Refusal> {
        let replaces = spot.look()?.is_some();
        let dir = spot
            .dir
            .try_clone()
            .map_err(|error| explain(what, super::error::errno(&error)))?;
        for _ in 0..TRIES {
            let name = name(replaces);
            match make(&dir, &name) {
                Ok(fresh) => {
                    let is_there = true;
                    return Ok((
                        Self {
                            dir,
                            name,
                            is_there,
                        },
                        fresh,
                    ));
                }
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(explain(what, errno)),
            }
        }
        Err(explain(what, Errno::EEXIST))
    }

    /// Gives it its proper name. `allow` sees the place right before, and says no with a refusal.
    pub(crate) fn settle(
        mut self,
        spot: &Spot,
        replace: bool,
        allow: impl FnOnce() -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let _alone = alone()?;
        allow()?;
        let flags = if replace {
            RenameFlags::empty()
        } else {
            RenameFlags::RENAME_NOREPLACE
        };
        let (from, to) = (self.name.as_os_str(), spot.name.as_os_str());
        renameat2(&self.dir, from, &spot.dir, to, flags)
            .map_err(|errno| misfit("giving it its name", errno))?;
        self.is_there = false;
        Ok(())
    }

    /// Its name and directory, for what is made in it.
    pub(crate) fn spot(&self) -> (&OwnedFd, &OsStr) {
        (&self.dir, &self.name)
    }
}

/// The right to replace files, which one job has at a time.
pub(crate) fn alone() -> Result<MutexGuard<'static, ()>, Refusal> {
    let broken = |_| refusal(code::FILE_FAILED, "the guest broke off");
    REPLACING.lock().map_err(broken)
}

/// A rename's error: in two open directories, one that is no directory can only be what is renamed or replaced.
pub(crate) fn misfit(what: &str, errno: Errno) -> Refusal {
    explain(
        what,
        if errno == Errno::ENOTDIR {
            Errno::EISDIR
        } else {
            errno
        },
    )
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_there {
            return;
        }
        // What cannot be removed was moved, or made the user's own affair, by the user.
        let unlinked = unlinkat(&self.dir, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        if matches!(unlinked, Err(Errno::EISDIR | Errno::EPERM)) {
            let _ = remove::tree(&self.dir, &self.name, &Abandoned::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_names_are_known_again_and_others_are_not() {
        for kind in [true, false] {
            assert_eq!(replaces(&name(kind)), Some(kind));
        }
        for other in [
            "",
            "a",
            ".casemate-",
            ".casemate-x0123456789abcdef",
            ".casemate-n01",
            ".casemate-ñ",
        ] {
            assert_eq!(replaces(OsStr::new(other)), None, "{other}");
        }
    }
}
