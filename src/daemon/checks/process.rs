//! What the daemon took from itself at its start.

use super::{Check, Found, Look};
use crate::host::harden::{self, Restrictions};
use crate::host::realm::{self, Confined};
use crate::host::syscalls::{self, Forbidden};
use crate::host::users;

/// Files that a session takes: its link, the link's listener and what is read of its sandbox.
const FILES_OF_SESSION: usize = 8;
/// Files that the daemon takes beside: database, log, podman, threads.
const FILES_OF_DAEMON: usize = 512;

/// Not root.
pub(super) const USER: Check = Check {
    name: "user",
    rule: "casemated runs as a user of its own, never as root: whoever takes it over has its state and nothing else.",
    mend: "start it by systemctl start casemated, or as the user casemate",
    is_advice: false,
    look: Look::Here(|_| user(users::own_uid())),
};

fn user(uid: u32) -> Found {
    let said = format!("uid {uid} ({})", users::user_name(uid));
    if uid == 0 { Err(said) } else { Ok(said) }
}

/// No set-user-id program helps.
pub(super) const NEW_PRIVILEGES: Check = Check {
    name: "new_privileges",
    rule: "casemated cannot gain privileges by a set-user-id program (PR_SET_NO_NEW_PRIVS).",
    mend: "casemated forbids them to itself at its start; look in its log for what kept it from that",
    is_advice: false,
    look: Look::Here(|_| new_privileges(&harden::restrictions())),
};

/// Memory holds keys.
pub(super) const CORE_DUMPS: Check = Check {
    name: "core_dumps",
    rule: "casemated's memory, which holds keys, is never written to a file and cannot be read by its own user (PR_SET_DUMPABLE, RLIMIT_CORE).",
    mend: "casemated forbids them to itself at its start; look in its log for what kept it from that",
    is_advice: false,
    look: Look::Here(|_| core_dumps(&harden::restrictions())),
};

/// Nothing is opened to others by accident.
pub(super) const UMASK: Check = Check {
    name: "umask",
    rule: "What casemated makes is its own alone unless it says otherwise (umask 0077).",
    mend: "casemated sets it at its start; look in its log for what kept it from that",
    is_advice: false,
    look: Look::Here(|_| umask(&harden::restrictions())),
};

/// Many sessions, many files.
pub(super) const OPEN_FILES: Check = Check {
    name: "open_files",
    rule: "casemated may hold as many files open as its sessions and connections at their most need (RLIMIT_NOFILE).",
    mend: "raise LimitNOFILE= of its unit, or lower sessions.max and http.max_connections",
    is_advice: false,
    look: Look::Here(|sight| {
        let config = sight.config();
        let (sessions, connections) = (config.sessions.max, config.http.max_connections);
        open_files(harden::restrictions().open_files, sessions, connections)
    }),
};

/// What it may reach of the machine's files.
pub(super) const LANDLOCK: Check = Check {
    name: "landlock",
    rule: "Where the kernel has Landlock, casemated reaches its own files and what it must read, writes nowhere else, and listens at its own port of TCP only (Linux 6.7); seen by trying.",
    mend: "casemated confines itself at its start; look in its log for what kept it from that",
    is_advice: false,
    look: Look::Here(|_| landlock(realm::confined(), &realm::escapes())),
};

/// Whether it can be.
pub(super) const LANDLOCK_KERNEL: Check = Check {
    name: "landlock_kernel",
    rule: "The kernel has Landlock (Linux 5.19 or later), by which casemated confines itself to its own files.",
    mend: "boot a kernel that has it, with landlock among those of its lsm= parameter; until then the unit's own confinement stands alone",
    is_advice: true,
    look: Look::Here(|_| landlock_kernel(realm::confined())),
};

/// What it may ask of the kernel.
pub(super) const SECCOMP: Check = Check {
    name: "seccomp",
    rule: "Every thread of casemated has a filter that refuses it system calls which it never needs (seccomp); seen by trying one.",
    mend: "casemated sets it at its start; look in its log for what kept it from that",
    is_advice: false,
    look: Look::Here(|_| seccomp(syscalls::in_force())),
};

fn open_files(found: u64, sessions: usize, connections: usize) -> Found {
    let wanted = sessions
        .saturating_mul(FILES_OF_SESSION)
        .saturating_add(connections)
        .saturating_add(FILES_OF_DAEMON);
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
    let said = format!("{found}, of which {wanted} may be needed");
    if found >= wanted { Ok(said) } else { Err(said) }
}

fn landlock(found: Option<Confined>, escapes: &[&str]) -> Found {
    match found {
        Some(Confined::To(abi)) if escapes.is_empty() => Ok(format!("ABI {abi}")),
        Some(Confined::To(abi)) => Err(format!("ABI {abi}, and yet open: {}", escapes.join(", "))),
        Some(Confined::NoLandlock) => Ok("this kernel has none".to_owned()),
        None => Err("it was not asked for".to_owned()),
    }
}

fn landlock_kernel(found: Option<Confined>) -> Found {
    match found {
        Some(Confined::To(abi)) => Ok(format!("ABI {abi}")),
        Some(Confined::NoLandlock) => Err("this kernel has none".to_owned()),
        None => Err("it was not asked for".to_owned()),
    }
}

fn seccomp(found: Forbidden) -> Found {
    let Forbidden {
        threads,
        filtered,
        is_refused,
    } = found;
    let refused = if is_refused { "refused" } else { "not refused" };
    let said = format!("{filtered} of {threads} threads, and what was tried was {refused}");
    if is_refused && threads > 0 && threads == filtered {
        Ok(said)
    } else {
        Err(said)
    }
}

fn new_privileges(found: &Restrictions) -> Found {
    let said = format!("no_new_privs {}", found.no_new_privileges);
    if found.no_new_privileges {
        Ok(said)
    } else {
        Err(said)
    }
}

fn core_dumps(found: &Restrictions) -> Found {
    let (dumpable, bytes) = (found.is_dumpable, found.core_bytes);
    let said = format!("dumpable {dumpable}, core files of {bytes} bytes");
    if !dumpable && bytes == 0 {
        Ok(said)
    } else {
        Err(said)
    }
}

fn umask(found: &Restrictions) -> Found {
    match found.umask {
        Some(umask) if umask & 0o077 == 0o077 => Ok(format!("{umask:04o}")),
        Some(umask) => Err(format!("{umask:04o}")),
        None => Err("it cannot be read".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Judge = fn(&Restrictions) -> Found;

    #[test]
    fn what_is_open_to_the_confined_fails_and_a_kernel_without_is_said() {
        let abi = Some(Confined::To(7));
        assert_eq!(landlock(abi, &[]), Ok("ABI 7".to_owned()));
        let found = landlock(abi, &["/var/tmp"]).unwrap_err();
        assert!(found.contains("/var/tmp"), "{found}");
        assert!(landlock(None, &[]).is_err() && landlock_kernel(None).is_err());
        assert!(landlock(Some(Confined::NoLandlock), &["/var/tmp"]).is_ok());
        assert!(landlock_kernel(abi).is_ok());
        assert!(landlock_kernel(Some(Confined::NoLandlock)).is_err());
        // Nobody confined this process.
        assert!(landlock(realm::confined(), &realm::escapes()).is_err());
    }

    #[test]
    fn a_thread_without_a_filter_fails() {
        let good = Forbidden {
            threads: 3,
            filtered: 3,
            is_refused: true,
        };
        assert!(seccomp(good).is_ok());
        for bad in [
            Forbidden {
                filtered: 2,
                ..good
            },
            Forbidden {
                is_refused: false,
                ..good
            },
            Forbidden {
                threads: 0,
                filtered: 0,
                ..good
            },
            syscalls::in_force(),
        ] {
            assert!(seccomp(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn fewer_files_than_may_be_needed_fail() {
        assert!(open_files(512 + 64 * 8 + 1024, 64, 1024).is_ok());
        assert!(open_files(512 + 64 * 8 + 1023, 64, 1024).is_err());
        assert!(open_files(u64::MAX, usize::MAX, usize::MAX).is_ok());
    }

    #[test]
    fn root_fails() {
        assert_eq!(user(0), Err("uid 0 (root)".to_owned()));
        assert!(user(4_000_000_001).is_ok());
    }

    #[test]
    fn each_restriction_that_is_not_there_fails() {
        const GOOD: Restrictions = Restrictions {
            no_new_privileges: true,
            is_dumpable: false,
            core_bytes: 0,
            umask: Some(0o077),
            open_files: 1024,
        };
        let looks: [(Judge, Restrictions); 5] = [
            (
                new_privileges,
                Restrictions {
                    no_new_privileges: false,
                    ..GOOD
                },
            ),
            (
                core_dumps,
                Restrictions {
                    is_dumpable: true,
                    ..GOOD
                },
            ),
            (
                core_dumps,
                Restrictions {
                    core_bytes: 1,
                    ..GOOD
                },
            ),
            (
                umask,
                Restrictions {
                    umask: Some(0o022),
                    ..GOOD
                },
            ),
            (
                umask,
                Restrictions {
                    umask: None,
                    ..GOOD
                },
            ),
        ];
        for (look, bad) in looks {
            assert!(look(&GOOD).is_ok());
            assert!(look(&bad).is_err(), "{bad:?}");
        }
    }
}
