//! What the guest does to itself before anything else, and every process inherits.

use std::io;
use std::sync::OnceLock;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};

use crate::sys;

/// Capabilities that the kernel may know; those that it does not are refused, which ends the loop.
const CAPABILITIES: libc::c_ulong = 64;

/// What is left in the bounding set; see [`kept`].
static KEPT: OnceLock<Vec<libc::c_ulong>> = OnceLock::new();

/// Leaves no privilege, descriptor or disposition for a child to inherit that it should not have: no new privileges,
/// memory that no user can trace, an empty bounding set (where the sandbox grants `CAP_SETPCAP`; without it the set is
/// what the sandbox granted), no core dumps, umask 022, default signals (those that the guest itself ignores are for
/// `vfork` to reset), everything above standard error closed on exec.
///
/// Where programs may be root, the bounding set stays: it is what such a program gets. Every other program loses it on
/// its way to its user.
///
/// # Errors
/// When the kernel does not take "no new privileges": then nothing may run.
pub(crate) fn confine(allow_root: bool) -> io::Result<()> {
    sys::close_all_on_exec();
    sys::unignore_signals();
    sys::ignore_file_size_signal();
    sys::share_one_heap();
    prctl::set_no_new_privs()?;
    // Between becoming a user and running its program, a child still has the guest's memory (`vfork`). Memory that is not
    // dumpable cannot be traced by that user's other processes (ptrace(2), access mode checking); exec makes new memory.
    prctl::set_dumpable(false)?;
    let mut kept = Vec::new();
    for capability in 0..CAPABILITIES {
        // It is the guest's own, for a moment ([`crate::identity`]), and no program's.
        let known = if allow_root && capability != sys::CAP_SYS_ADMIN {
            sys::is_in_bounding_set(capability).map(|held| kept.extend(held.then_some(capability)))
        } else {
            sys::drop_from_bounding_set(capability)
        };
        if known.is_err() {
            break;
        }
    }
    KEPT.get_or_init(|| kept);
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    Ok(())
}

/// The capabilities that a program which is not root has to lose.
pub(crate) fn kept() -> &'static [libc::c_ulong] {
    KEPT.get().map_or(&[], Vec::as_slice)
}
