//! Users and groups by name.
//!
//! Asks the name service, which may read `/etc/passwd` or ask a directory server: call it at the
//! start, not on the way of a request.

use nix::unistd::{Gid, Group, Uid, User};

use super::HostError;

/// The number of a user.
///
/// # Errors
/// [`HostError::Unknown`] when there is none of this name, [`HostError::System`] when the name
/// service fails.
pub fn user_id(name: &str) -> Result<u32, HostError> {
    User::from_name(name)
        .map_err(|error| HostError::system("look a user up", error))?
        .map(|user| user.uid.as_raw())
        .ok_or_else(|| HostError::Unknown {
            kind: "user",
            name: name.to_owned(),
        })
}

/// The number of a group.
///
/// # Errors
/// [`HostError::Unknown`] when there is none of this name, [`HostError::System`] when the name
/// service fails.
pub fn group_id(name: &str) -> Result<u32, HostError> {
    Group::from_name(name)
        .map_err(|error| HostError::system("look a group up", error))?
        .map(|group| group.gid.as_raw())
        .ok_or_else(|| HostError::Unknown {
            kind: "group",
            name: name.to_owned(),
        })
}

/// The name of a user, for people; its number when it has none.
#[must_use]
pub fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

/// The name of a group, for people; its number when it has none.
#[must_use]
pub fn group_name(gid: u32) -> String {
    match Group::from_gid(Gid::from_raw(gid)) {
        Ok(Some(group)) => group.name,
        _ => gid.to_string(),
    }
}

/// The user that this process acts as.
#[must_use]
pub fn own_uid() -> u32 {
    Uid::effective().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_zero_and_both_ways() {
        assert_eq!(user_id("root").unwrap(), 0);
        assert_eq!(group_id("root").unwrap(), 0);
        assert_eq!(user_name(0), "root");
        assert_eq!(group_name(0), "root");
        assert_eq!(user_name(4_000_000_001), "4000000001");
    }

    #[test]
    fn what_does_not_exist_is_named() {
        for error in [
            user_id("casemate-nobody-here").unwrap_err(),
            group_id("casemate-nobody-here").unwrap_err(),
        ] {
            assert!(error.to_string().contains("casemate-nobody-here"));
        }
        // Not text that a C library takes.
        assert!(user_id("a\0b").is_err());
    }
}
