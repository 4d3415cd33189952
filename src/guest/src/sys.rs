//! The system calls that no safe wrapper covers. Everything unsafe of the guest is here and in [`crate::vfork`].

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Reads the kernel's log (`syslog(2)`, `SYSLOG_ACTION_READ_ALL`) into `buffer`, and returns how much there was.
#[expect(unsafe_code, reason = "klogctl has no safe wrapper")]
pub(crate) fn read_kernel_log(buffer: &mut [u8]) -> io::Result<usize> {
    const READ_ALL: libc::c_int = 3;
    let capacity = libc::c_int::try_from(buffer.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the kernel writes at most `capacity` bytes, and `buffer` is writable for that many.
    let read = unsafe { libc::klogctl(READ_ALL, buffer.as_mut_ptr().cast(), capacity) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// What there was to reap.
pub(crate) enum Reaped {
    /// A child ended.
    Child(i32, ExitStatus),
    /// All children live.
    NoneEnded,
    /// There is no child.
    NoChildren,
}

/// Reaps one ended child without waiting. Not by `nix`, which reaps a child that died of a real-time signal and then
/// loses it, because its signals have no number for those.
#[expect(
    unsafe_code,
    reason = "nix loses children that died of a real-time signal"
)]
pub(crate) fn reap_one() -> Reaped {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for the one integer that the kernel writes.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
            0 => return Reaped::NoneEnded,
            pid if pid > 0 => return Reaped::Child(pid, ExitStatus::from_raw(status)),
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return Reaped::NoChildren,
        }
    }
}

/// Sends a signal to a process group. A group that is gone already is success.
#[expect(unsafe_code, reason = "nix has no real-time signals")]
pub(crate) fn signal_group(group: i32, signum: i32) -> io::Result<()> {
    // Groups 0 and 1 would mean our own, and everybody.
    if group <= 1 || !(1..=libc::SIGRTMAX()).contains(&signum) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: kill takes no pointers.
    let result = unsafe { libc::kill(-group, signum) };
    gone_is_fine(result)
}

/// Sends a signal to every process but PID 1, which alone may call this.
#[expect(unsafe_code, reason = "nix' kill takes no -1 apart from a magic pid")]
pub(crate) fn signal_everybody(signum: i32) -> io::Result<()> {
    if std::process::id() != 1 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // SAFETY: kill takes no pointers; as PID 1 of a sandbox everybody else is ours to end.
    let result = unsafe { libc::kill(-1, signum) };
    gone_is_fine(result)
}

fn gone_is_fine(result: libc::c_int) -> io::Result<()> {
    let error = io::Error::last_os_error();
    if result == 0 || error.raw_os_error() == Some(libc::ESRCH) {
        Ok(())
    } else {
        Err(error)
    }
}

/// Watches a descriptor that does not block.
#[expect(
    unsafe_code,
    reason = "watching trusts the descriptor to stay the same"
)]
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor for as long as it lives, and the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Tells a terminal its size. Where that is news, its foreground group gets a SIGWINCH.
#[expect(unsafe_code, reason = "TIOCSWINSZ has no safe wrapper")]
pub(crate) fn set_terminal_size(terminal: BorrowedFd<'_>, size: &libc::winsize) -> io::Result<()> {
    // SAFETY: the kernel reads one `winsize`, which `size` is; the descriptor is open for as long as it is borrowed.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const *size) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Marks every descriptor above standard error close-on-exec. An old kernel without the call has none to mark: a
/// sandbox's runtime passes only the first three.
#[expect(unsafe_code, reason = "close_range has no safe wrapper")]
pub(crate) fn close_all_on_exec() {
    const CLOEXEC: libc::c_int = 1 << 2;
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC closes nothing and takes no pointers.
    unsafe { libc::close_range(3, libc::c_uint::MAX, CLOEXEC) };
}

/// Gives free memory back to the kernel.
#[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
pub(crate) fn give_memory_back() {
    // SAFETY: malloc_trim only returns pages that hold no allocation.
    unsafe { libc::malloc_trim(0) };
}

/// Whether a capability is in the bounding set.
///
/// # Errors
/// When the kernel does not know it.
#[expect(unsafe_code, reason = "PR_CAPBSET_READ has no safe wrapper")]
pub(crate) fn is_in_bounding_set(capability: libc::c_ulong) -> io::Result<bool> {
    // SAFETY: PR_CAPBSET_READ takes one number and no pointers.
    match unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) } {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes a capability out of the bounding set.
#[expect(unsafe_code, reason = "PR_CAPBSET_DROP has no safe wrapper")]
pub(crate) fn drop_from_bounding_set(capability: libc::c_ulong) -> io::Result<()> {
    // SAFETY: PR_CAPBSET_DROP takes one number and no pointers.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives every ignored signal its default action again, except SIGPIPE, which std handles for us and our children.
#[expect(
    unsafe_code,
    reason = "signal dispositions have no safe wrapper for all signals"
)]
pub(crate) fn unignore_signals() {
    for signum in (1..=libc::SIGRTMAX()).filter(|signum| *signum != libc::SIGPIPE) {
        // SAFETY: a zeroed sigaction is a valid one (SIG_DFL, no flags), and both pointers are to live ones.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let known = libc::sigaction(signum, std::ptr::null(), &raw mut action) == 0;
            if known && action.sa_sigaction == libc::SIG_IGN {
                action = std::mem::zeroed();
                libc::sigaction(signum, &raw const action, std::ptr::null_mut());
            }
        }
    }
}
