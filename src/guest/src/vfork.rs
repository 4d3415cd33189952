//! Fork and exec as `posix_spawn` does them, with the steps between that it lacks: changing user and entering a directory
//! as that user.
//!
//! The child shares the guest's memory, and the thread that makes it stands still until it has run the program or given up
//! (`CLONE_VM | CLONE_VFORK`, clone(2)). Threads that work on files go on meanwhile. A plain fork copies the guest's page tables, which in gVisor costs more than all
//! the rest of a start together; and here the child can simply write down why it failed.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;

/// Stack of a child, in 16-byte units: its few calls need far less than these 64 KiB.
const STACK: usize = 4096;

thread_local! {
    /// One child at a time borrows it, so one is enough.
    static CHILD_STACK: RefCell<Vec<u128>> = RefCell::new(vec![0; STACK]);
}

/// Signals that the guest handles or ignores; a child begins with their defaults.
const OURS: [c_int; 5] = [
    libc::SIGCHLD,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGPIPE,
    libc::SIGXFSZ,
];

/// Everything that the child needs, made before it is born: it must not allocate.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Paths to try in turn, as `execvp` would.
    pub(crate) programs: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    /// Directories to try in turn.
    pub(crate) workdirs: Vec<CString>,
    /// User, group and supplementary groups to become.
    pub(crate) identity: Option<(libc::uid_t, libc::gid_t, Vec<libc::gid_t>)>,
    /// Capabilities to take out of the bounding set before that.
    pub(crate) shed: Vec<libc::c_ulong>,
    /// Standard input, output and error.
    pub(crate) stdio: [OwnedFd; 3],
    /// Whether its output is a terminal, which becomes its session's own.
    pub(crate) has_terminal: bool,
    /// How many files it may have open, where that is less than the guest may.
    pub(crate) open_files: u64,
}

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Being born.
    Fork,
    /// Opening its session, taking its pipes.
    Session,
    /// Giving up what it may not have.
    Limits,
    /// Becoming the user.
    Identity,
    /// Entering the working directory.
    Workdir,
    /// Running the program.
    Exec,
}

/// A step and why it failed.
pub(crate) type Failure = (Step, Errno);

/// What parent and child share.
struct Shared<'a> {
    plan: &'a Plan,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// Which of the directories it entered.
    entered: usize,
    failure: Option<Failure>,
}

/// Makes the process, and returns its pid, and which of its directories it entered, once it runs the program. A child
/// that failed is reaped already.
///
/// # Errors
/// The [`Failure`] of whichever step.
#[expect(
    unsafe_code,
    reason = "no safe interface starts a process as another user without copying page tables"
)]
pub(crate) fn spawn(plan: &Plan) -> Result<(i32, usize), Failure> {
    let mut shared = Shared {
        plan,
        argv: pointers(&plan.argv),
        env: pointers(&plan.env),
        entered: 0,
        failure: None,
    };
    let shared = &raw mut shared;
    let pid = CHILD_STACK.with_borrow_mut(|stack| {
        let top = stack.as_mut_ptr_range().end.cast::<c_void>();
        // SAFETY: signals are blocked around the clone, so no handler runs in the child on the shared memory. `top` is the
        // aligned end of memory that nobody else uses while it is borrowed. CLONE_VFORK stops this thread until the child
        // has exec'd or exited, so `shared` and all that it points to outlive the child's use, and are not touched by
        // both at once; no other thread is told of them. Other threads run on in the same memory, so the child takes no
        // lock and allocates nothing, and uses nothing but them, its stack, and this thread's errno. Without CLONE_FILES,
        // CLONE_FS and CLONE_SIGHAND nothing else is shared; credentials belong to each thread.
        unsafe {
            let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            let pid = libc::clone(child, top, flags, shared.cast());
            let errno = Errno::last();
            libc::sigprocmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
            if pid < 0 {
                Err((Step::Fork, errno))
            } else {
                Ok(pid)
            }
        }
    })?;
    // SAFETY: the child has exec'd or exited, so this thread alone has `shared`.
    let (entered, failure) = unsafe { ((*shared).entered, (*shared).failure) };
    match failure {
        None => Ok((pid, entered)),
        Some(failure) => {
            // SAFETY: waitpid may be given no place for the status. The child has exited, so it does not wait.
            unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
            Err(failure)
        }
    }
}

/// The child's life until exec. It allocates nothing, takes no lock, and does not unwind.
#[expect(
    unsafe_code,
    reason = "the child of a vfork makes plain system calls only"
)]
extern "C" fn child(shared: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a valid `Shared` and stands still while we have it.
    let shared = unsafe { &mut *shared.cast::<Shared<'_>>() };
    shared.failure = Some(run(shared));
    // SAFETY: leaves at once, without handlers that would run on the parent's memory.
    unsafe { libc::_exit(127) }
}

/// Does every step; returns only when one failed.
#[expect(
    unsafe_code,
    reason = "the child of a vfork makes plain system calls only"
)]
fn run(shared: &mut Shared<'_>) -> Failure {
    let failed = |step| (step, Errno::last());
    let plan = shared.plan;
    // SAFETY: every pointer is to memory that `Plan` and `Shared` own, ended by NUL or a null pointer as the call wants,
    // and every call is a plain system call. Users are changed by `syscall`, because the C library's own functions would
    // also change the guest's other threads.
    unsafe {
        if libc::setsid() < 0 {
            return failed(Step::Session);
        }
        for (fd, wanted) in plan.stdio.iter().zip(0..) {
            // Takes close-on-exec away too. The guest's own first three are open, so these are others.
            if libc::dup2(fd.as_raw_fd(), wanted) < 0 {
                return failed(Step::Session);
            }
        }
        // As long as it is root, and the leader of a session without one. Input may be elsewhere, output is not.
        if plan.has_terminal && libc::ioctl(libc::STDOUT_FILENO, libc::TIOCSCTTY, 0) < 0 {
            return failed(Step::Session);
        }
        // For good: without CAP_SYS_RESOURCE nobody raises it again (setrlimit(2)).
        let mut files = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files) != 0 {
            return failed(Step::Limits);
        }
        files.rlim_max = files.rlim_max.min(plan.open_files);
        files.rlim_cur = files.rlim_cur.min(plan.open_files);
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files) != 0 {
            return failed(Step::Limits);
        }
        if let Some((uid, gid, groups)) = &plan.identity {
            // First, while there is the right to. A change from root to another user clears the other sets.
            for capability in &plan.shed {
                if libc::prctl(libc::PR_CAPBSET_DROP, *capability, 0, 0, 0) != 0 {
                    return failed(Step::Identity);
                }
            }
            // The user last: without it there is no right to change the groups.
            if libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) != 0
                || libc::syscall(libc::SYS_setgid, *gid) != 0
                || libc::syscall(libc::SYS_setuid, *uid) != 0
            {
                return failed(Step::Identity);
            }
        }
        // As the user, who may not enter everything that root may, nor root without capabilities all that a user may.
        let mut dirs = plan.workdirs.iter();
        match dirs.position(|dir| libc::chdir(dir.as_ptr()) == 0) {
            Some(entered) => shared.entered = entered,
            None => return failed(Step::Workdir),
        }
        for signum in OURS {
            libc::signal(signum, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());

        let mut denied = false;
        let mut errno = Errno::ENOENT;
        for program in &plan.programs {
            libc::execve(program.as_ptr(), shared.argv.as_ptr(), shared.env.as_ptr());
            errno = Errno::last();
            match errno {
                Errno::EACCES => denied = true,
                Errno::ENOENT | Errno::ENOTDIR => {}
                _ => return (Step::Exec, errno),
            }
        }
        (Step::Exec, if denied { Errno::EACCES } else { errno })
    }
}

/// The array of pointers that exec wants.
fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts
        .iter()
        .map(|text| text.as_ptr())
        .chain([ptr::null()])
        .collect()
}
