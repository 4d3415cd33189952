//! What the guest does to itself before anything else, and every process inherits.

use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};

use crate::sys;

/// Capabilities that the kernel may know; those that it does not are refused, which ends the loop.
const CAPABILITIES: libc::c_ulong = 64;

/// Leaves no privilege, descriptor or disposition for a child to inherit that it should not have: no new privileges,
/// memory that no user can trace, an empty bounding set (where the sandbox grants `CAP_SETPCAP`; without it the set is what the sandbox granted), no core
/// dumps, umask 022, default signals (those that the guest itself ignores are for `vfork` to reset), everything above standard error closed on exec.
///
/// # Errors
/// When the kernel does not take "no new privileges": then nothing may run.
pub(crate) fn confine() -> io::Result<()> {
    sys::close_all_on_exec();
    sys::unignore_signals();
    sys::ignore_file_size_signal();
    sys::share_one_heap();
    prctl::set_no_new_privs()?;
    // Between becoming a user and running its program, a child still has the guest's memory (`vfork`). Memory that is not
    // dumpable cannot be traced by that user's other processes (ptrace(2), access mode checking); exec makes new memory.
    prctl::set_dumpable(false)?;
    for capability in 0..CAPABILITIES {
        if sys::drop_from_bounding_set(capability).is_err() {
            break;
        }
    }
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    Ok(())
}
