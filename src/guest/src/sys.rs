//! The system calls that no safe wrapper covers. Everything unsafe of the guest is here and in [`crate::vfork`].

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;

use nix::sys::inotify::Inotify;
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

/// Number of the capability to name a host and to mount, among much else (capabilities(7)).
pub(crate) const CAP_SYS_ADMIN: libc::c_ulong = 21;

/// Which capabilities a thread has (capget(2)): effective, permitted and inheritable, the low 32 and the high.
type CapabilitySets = [[u32; 3]; 2];

/// What capget(2) and capset(2) want first: the version of the layout, and nobody but the calling thread.
const CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

#[expect(unsafe_code, reason = "capget has no safe wrapper")]
fn capability_sets() -> io::Result<CapabilitySets> {
    let (mut header, mut sets) = (CAPABILITY_HEADER, CapabilitySets::default());
    // SAFETY: in the third version of the layout the kernel reads and writes two numbers of the header, and writes six of
    // the sets; both are as large.
    done(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, &raw mut sets) })?;
    Ok(sets)
}

/// Where a capability is in each set: which half, which bit.
fn capability_place(capability: libc::c_ulong) -> (usize, u32) {
    (usize::from(capability >= 32), 1 << (capability % 32))
}

/// Whether the calling thread has a capability in any set but the bounding one, or there.
///
/// # Errors
/// When the kernel does not say.
pub(crate) fn holds(capability: libc::c_ulong) -> io::Result<bool> {
    let (half, bit) = capability_place(capability);
    let sets = capability_sets()?;
    let held = sets
        .get(half)
        .into_iter()
        .flatten()
        .any(|set| set & bit != 0);
    Ok(held || is_in_bounding_set(capability)?)
}

/// Takes a capability out of the calling thread's sets, for good where it is not in the bounding set; the ambient set never
/// has what the permitted one has not. Not held is success.
///
/// # Errors
/// What the kernel says.
#[expect(unsafe_code, reason = "capset has no safe wrapper")]
pub(crate) fn give_up(capability: libc::c_ulong) -> io::Result<()> {
    let (half, bit) = capability_place(capability);
    let (mut header, mut sets) = (CAPABILITY_HEADER, capability_sets()?);
    for set in sets.get_mut(half).into_iter().flatten() {
        *set &= !bit;
    }
    // SAFETY: as with capget; the kernel reads the sets.
    done(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, &raw const sets) })
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

/// Ignores SIGXFSZ, so that a write over the bound on a file is an error and not the end of the sandbox.
#[expect(unsafe_code, reason = "signal dispositions are set by an unsafe call")]
pub(crate) fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Keeps the memory of all threads in one place, so that what one has freed another takes, and [`give_memory_back`] finds
/// all of it. Before the first thread.
#[expect(unsafe_code, reason = "mallopt has no safe wrapper")]
pub(crate) fn share_one_heap() {
    // SAFETY: mallopt takes two numbers and no pointers.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Who a thread is to the kernel, apart from its real and saved user, which stay the guest's: by those goes whether a
/// process may be signalled or traced (kill(2), ptrace(2)), and the way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ThreadIds {
    pub(crate) uid: libc::uid_t,
    pub(crate) gid: libc::gid_t,
    pub(crate) groups: Vec<libc::gid_t>,
}

impl ThreadIds {
    /// The calling thread's.
    ///
    /// # Errors
    /// When the kernel does not say its groups.
    pub(crate) fn current() -> io::Result<Self> {
        let groups = nix::unistd::getgroups()?;
        Ok(Self {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        })
    }

    /// Makes the calling thread, and no other, act as these. The guest's own user must be in effect: only it may.
    ///
    /// # Errors
    /// What the kernel says; the thread may then be something in between, and [`ThreadIds::resume`] mends it.
    pub(crate) fn assume(&self) -> io::Result<()> {
        set_thread_groups(&self.groups)?;
        set_thread_gid(self.gid)?;
        set_thread_uid(self.uid)
    }

    /// Makes the calling thread these again, which it was before.
    ///
    /// # Errors
    /// What the kernel says; the thread must then do nothing more.
    pub(crate) fn resume(&self) -> io::Result<()> {
        // The user first: it has the right to change the rest.
        set_thread_uid(self.uid)?;
        set_thread_gid(self.gid)?;
        set_thread_groups(&self.groups)
    }
}

/// Sets the calling thread's effective user. Not by the C library, which would set that of all threads.
#[expect(
    unsafe_code,
    reason = "the C library sets the users of all threads at once"
)]
pub(crate) fn set_thread_uid(uid: libc::uid_t) -> io::Result<()> {
    let keep = libc::uid_t::MAX;
    // SAFETY: setresuid takes three numbers and no pointers.
    done(unsafe { libc::syscall(libc::SYS_setresuid, keep, uid, keep) })
}

#[expect(
    unsafe_code,
    reason = "the C library sets the groups of all threads at once"
)]
fn set_thread_gid(gid: libc::gid_t) -> io::Result<()> {
    let keep = libc::gid_t::MAX;
    // SAFETY: setresgid takes three numbers and no pointers.
    done(unsafe { libc::syscall(libc::SYS_setresgid, keep, gid, keep) })
}

#[expect(
    unsafe_code,
    reason = "the C library sets the groups of all threads at once"
)]
fn set_thread_groups(groups: &[libc::gid_t]) -> io::Result<()> {
    // SAFETY: the kernel reads as many numbers as the slice has.
    done(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whose extended attributes are meant.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Attributed<'a> {
    /// An open file's.
    Open(BorrowedFd<'a>),
    /// Those of what the path leads to.
    Followed(&'a CStr),
    /// Those of what has this path, be it a symbolic link.
    Itself(&'a CStr),
}

/// The names of a file's extended attributes, each ended by a NUL; how many bytes of `names` they take.
#[expect(unsafe_code, reason = "listxattr has no safe wrapper")]
pub(crate) fn list_attributes(file: Attributed<'_>, names: &mut [u8]) -> io::Result<usize> {
    let (to, length) = (names.as_mut_ptr().cast(), names.len());
    // SAFETY: paths end with a NUL, and the kernel writes at most `length` bytes, for which `names` is writable.
    let count = unsafe {
        match file {
            Attributed::Open(fd) => libc::flistxattr(fd.as_raw_fd(), to, length),
            Attributed::Followed(path) => libc::listxattr(path.as_ptr(), to, length),
            Attributed::Itself(path) => libc::llistxattr(path.as_ptr(), to, length),
        }
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// An extended attribute's value; how many bytes of `value` it takes.
#[expect(unsafe_code, reason = "getxattr has no safe wrapper")]
pub(crate) fn read_attribute(
    file: Attributed<'_>,
    name: &CStr,
    value: &mut [u8],
) -> io::Result<usize> {
    let (name, to, length) = (name.as_ptr(), value.as_mut_ptr().cast(), value.len());
    // SAFETY: paths and names end with a NUL, and the kernel writes at most `length` bytes, for which `value` is writable.
    let count = unsafe {
        match file {
            Attributed::Open(fd) => libc::fgetxattr(fd.as_raw_fd(), name, to, length),
            Attributed::Followed(path) => libc::getxattr(path.as_ptr(), name, to, length),
            Attributed::Itself(path) => libc::lgetxattr(path.as_ptr(), name, to, length),
        }
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Sets an extended attribute.
#[expect(unsafe_code, reason = "setxattr has no safe wrapper")]
pub(crate) fn write_attribute(file: Attributed<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    let (name, from, length) = (name.as_ptr(), value.as_ptr().cast(), value.len());
    // SAFETY: paths and names end with a NUL, and the kernel reads the bytes that `value` has.
    let result = unsafe {
        match file {
            Attributed::Open(fd) => libc::fsetxattr(fd.as_raw_fd(), name, from, length, 0),
            Attributed::Followed(path) => libc::setxattr(path.as_ptr(), name, from, length, 0),
            Attributed::Itself(path) => libc::lsetxattr(path.as_ptr(), name, from, length, 0),
        }
    };
    done(result.into())
}

/// Takes an extended attribute away.
#[expect(unsafe_code, reason = "removexattr has no safe wrapper")]
pub(crate) fn remove_attribute(file: Attributed<'_>, name: &CStr) -> io::Result<()> {
    let name = name.as_ptr();
    // SAFETY: paths and names end with a NUL.
    let result = unsafe {
        match file {
            Attributed::Open(fd) => libc::fremovexattr(fd.as_raw_fd(), name),
            Attributed::Followed(path) => libc::removexattr(path.as_ptr(), name),
            Attributed::Itself(path) => libc::lremovexattr(path.as_ptr(), name),
        }
    };
    done(result.into())
}

/// The kernel's queue of what happens to files, for the runtime to wait on and for threads to add to.
#[derive(Debug)]
pub(crate) struct Eyes(Arc<Inotify>);

impl Eyes {
    pub(crate) fn new(inotify: Inotify) -> Self {
        Self(Arc::new(inotify))
    }

    /// The queue, for a thread.
    pub(crate) fn inotify(&self) -> Arc<Inotify> {
        Arc::clone(&self.0)
    }
}

impl AsRawFd for Eyes {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Has the runtime wait on the queue.
#[expect(unsafe_code, reason = "registering a descriptor is an unsafe call")]
pub(crate) fn wait_on(eyes: Eyes) -> io::Result<AsyncFd<Eyes>> {
    // SAFETY: the queue's descriptor is open for as long as `eyes` has its share of it, which nothing can take away, and
    // is always the same.
    let registered = unsafe { AsyncFd::register(eyes) };
    registered.map_err(io::Error::from)
}
