//! Which system calls the daemon may not make, by a filter of the kernel's (seccomp(2)): what it never needs, and whoever takes it
//! over could use against the machine. The programs that it starts are held to the same.
//!
//! The unit's `SystemCallFilter=` may forbid more; this here holds without systemd as well.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use nix::errno::Errno;
use nix::libc;
use nix::sys::personality;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

use super::HostError;

/// Nobody makes these by mistake: a daemon that does is somebody else's, and ends at once (SIGSYS).
const DEADLY: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_pivot_root,
    libc::SYS_open_by_handle_at,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];

/// These are refused with EPERM.
const FORBIDDEN: &[i64] = &[
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    // It never changes who it is.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_personality,
    // The kernel's inside, where most of its holes were.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_remap_file_pages,
    libc::SYS_mknodat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
    // Other processes.
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    // The machine's clock and names.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// Requests on a terminal that type for its user, or take over its console.
const TYPING: [libc::c_ulong; 3] = [libc::TIOCSTI, libc::TIOCLINUX, libc::TIOCCONS];

/// Kinds of namespaces that a new process could be put into (clone(2)).
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The sockets that it may have: those of this machine, of the network, and of the kernel's account of the network, which the C
/// library reads.
const FAMILIES: [libc::c_int; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// On `x86_64` each call has a second number, of the x32 ABI, with this bit.
#[cfg(target_arch = "x86_64")]
const SECOND_NUMBERS: Option<i64> = Some(0x4000_0000);
#[cfg(not(target_arch = "x86_64"))]
const SECOND_NUMBERS: Option<i64> = None;

/// Those that have another number there (linux, `syscall_64.tbl`): ioctl, ptrace, `kexec_load`, `process_vm_readv` and `_writev`.
const X32_IOCTL: i64 = 514;
const X32_DEADLY: [i64; 4] = [521, 528, 539, 540];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Forbids them to this process, with all its threads and all that it starts. For good; it takes new privileges from the process as
/// well.
///
/// # Errors
/// [`HostError::System`]: the kernel has no filters, or this machine's numbers are not known.
pub fn forbid() -> Result<(), HostError> {
    let failed = |error: String| HostError::system("forbid system calls", io::Error::other(error));
    for filter in filters().map_err(|error| failed(error.to_string()))? {
        apply_filter_all_threads(&filter).map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

/// The last one is asked first, and the strictest answer holds.
fn filters() -> Result<[BpfProgram; 3], seccompiler::BackendError> {
    let eperm = SeccompAction::Errno(Errno::EPERM as u32);
    // Its flags lie in memory, where no filter sees them: as if the kernel did not know it, so that the C library takes clone(2).
    let unknown = SeccompAction::Errno(Errno::ENOSYS as u32);
    Ok([
        filter(always(&[libc::SYS_clone3]), unknown)?,
        filter(forbidden()?, eperm)?,
        filter(deadly(), SeccompAction::KillProcess)?,
    ])
}

fn filter(rules: Rules, action: SeccompAction) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(
        with_second_numbers(rules),
        SeccompAction::Allow,
        action,
        arch,
    )?
    .try_into()
}

fn always(calls: &[i64]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

fn with_second_numbers(rules: Rules) -> Rules {
    let Some(bit) = SECOND_NUMBERS else {
        return rules;
    };
    let second = rules
        .iter()
        .map(|(call, rules)| (call | bit, rules.clone()))
        .collect::<Rules>();
    rules.into_iter().chain(second).collect()
}

fn deadly() -> Rules {
    let mut rules = always(DEADLY);
    if let Some(bit) = SECOND_NUMBERS {
        rules.extend(always(&X32_DEADLY.map(|call| call | bit)));
    }
    rules
}

fn forbidden() -> Result<Rules, seccompiler::BackendError> {
    let word = |argument, how, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, how, value)
    };
    let one = |condition| SeccompRule::new(vec![condition]);
    let typing: Result<Vec<_>, _> = TYPING
        .iter()
        .map(|request| one(word(1, SeccompCmpOp::Eq, *request)?))
        .collect();
    let namespaces: Result<Vec<_>, _> = NAMESPACES
        .iter()
        .map(|kind| u64::from(kind.cast_unsigned()))
        .map(|kind| one(word(0, SeccompCmpOp::MaskedEq(kind), kind)?))
        .collect();
    let others: Result<Vec<_>, _> = FAMILIES
        .iter()
        .map(|family| word(0, SeccompCmpOp::Ne, u64::from(family.cast_unsigned())))
        .collect();
    let (typing, others) = (typing?, vec![SeccompRule::new(others?)?]);
    let mut rules = always(FORBIDDEN);
    if let Some(bit) = SECOND_NUMBERS {
        rules.insert(X32_IOCTL | bit, typing.clone());
    }
    rules.insert(libc::SYS_ioctl, typing);
    rules.insert(libc::SYS_clone, namespaces?);
    rules.insert(libc::SYS_socket, others.clone());
    rules.insert(libc::SYS_socketpair, others);
    Ok(rules)
}

/// What is in force of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// Threads of this process.
    pub threads: usize,
    /// Those of them that have filters (proc(5), `Seccomp: 2`).
    pub filtered: usize,
    /// Whether a call of the list, which does nothing, was refused when it was made.
    pub is_refused: bool,
}

/// Asks the kernel, and tries. What it does not tell counts as not in force.
#[must_use]
pub fn in_force() -> Forbidden {
    let mut threads = 0;
    let mut filtered = 0;
    for thread in fs::read_dir("/proc/self/task").into_iter().flatten() {
        threads += 1;
        let status = thread.and_then(|thread| fs::read_to_string(thread.path().join("status")));
        let mode = |text: &str| {
            let mode = text.lines().find_map(|line| line.strip_prefix("Seccomp:"));
            mode.is_some_and(|mode| mode.trim() == "2")
        };
        filtered += usize::from(match &status {
            Ok(text) => mode(text),
            // It ended meanwhile.
            Err(_) => true,
        });
    }
    Forbidden {
        threads,
        filtered,
        is_refused: personality::get() == Err(Errno::EPERM),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use nix::unistd::{getgid, setgid};

    use super::*;
    use crate::host::child;

    #[test]
    fn what_it_never_needs_is_refused_and_the_rest_works() {
        if !child::is_child() {
            return child::run(
                "host::syscalls::tests::what_it_never_needs_is_refused_and_the_rest_works",
                &[],
            );
        }
        let before = in_force();
        assert!(!before.is_refused, "nothing holds yet");
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let early = std::thread::spawn(move || {
            wait.recv().unwrap();
            personality::get()
        });
        setgid(getgid()).unwrap();
        forbid().unwrap();
        go.send(()).unwrap();
        assert_eq!(
            early.join().unwrap(),
            Err(Errno::EPERM),
            "a thread of before"
        );
        let found = in_force();
        assert!(found.is_refused && found.threads > 0);
        assert_eq!(found.threads, found.filtered);

        // Root may do these, and anybody the last two.
        let sockets = |family| socket(family, SockType::Datagram, SockFlag::empty(), None);
        assert_eq!(sockets(AddressFamily::Packet).err(), Some(Errno::EPERM));
        assert_eq!(sockets(AddressFamily::Vsock).err(), Some(Errno::EPERM));
        for family in [
            AddressFamily::Unix,
            AddressFamily::Inet,
            AddressFamily::Inet6,
        ] {
            assert_ne!(sockets(family).err(), Some(Errno::EPERM), "{family:?}");
        }
        assert_eq!(setgid(getgid()), Err(Errno::EPERM));

        // Programs and threads start as ever, and are held to it.
        let shown = Command::new("/bin/cat").arg("/proc/self/status").output();
        let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
        assert!(shown.contains("Seccomp:\t2"), "{shown}");
        assert!(std::thread::spawn(in_force).join().unwrap().is_refused);
    }

    #[test]
    fn a_call_that_only_an_enemy_makes_ends_it() {
        const NAME: &str = "host::syscalls::tests::a_call_that_only_an_enemy_makes_ends_it";
        if child::is_child() {
            forbid().unwrap();
            let _ = nix::sys::uio::process_vm_readv(nix::unistd::Pid::this(), &mut [], &[]);
            return;
        }
        let ended: ExitStatus = child::start(NAME, &[]).wait().unwrap();
        assert_eq!(ended.signal(), Some(libc::SIGSYS), "{ended}");
    }

    #[test]
    fn each_is_named_once_and_the_filters_are_as_small_as_the_kernel_wants() {
        let all: Vec<i64> = DEADLY.iter().chain(FORBIDDEN).copied().collect();
        let set: BTreeSet<i64> = all.iter().copied().collect();
        assert_eq!(all.len(), set.len());
        for needed in [
            libc::SYS_execve,
            libc::SYS_clone,
            libc::SYS_socket,
            libc::SYS_fchownat,
        ] {
            assert!(!set.contains(&needed));
        }
        for filter in filters().unwrap() {
            assert!(filter.len() < 4096, "{}", filter.len());
        }
    }
}
