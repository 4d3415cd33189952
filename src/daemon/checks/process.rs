//! What the daemon took from itself at its start.

use super::{Check, Found, Look};
use crate::host::harden::{self, Restrictions};
use crate::host::users;

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
