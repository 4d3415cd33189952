//! Who is on the other end of a Unix socket, as the kernel says (unix(7), `SO_PEERCRED`).
//!
//! Decisions use the user and the group. The process id is for the record only: it may already
//! name another process.

use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, getgrouplist};
use tokio::net::UnixStream;

use super::{HostError, users};

/// The other end, as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its process, for the record.
    pub pid: Option<i32>,
}

impl Peer {
    /// Asks the kernel.
    ///
    /// # Errors
    /// [`HostError::System`], which happens only on something that is no connected socket.
    pub fn of(stream: &UnixStream) -> Result<Self, HostError> {
        let cred = stream
            .peer_cred()
            .map_err(|error| HostError::system("ask for the peer's credentials", error))?;
        Ok(Self {
            uid: cred.uid(),
            gid: cred.gid(),
            pid: cred.pid(),
        })
    }

    /// Whether the peer may administer the daemon: root, or a member of `group`.
    ///
    /// Membership is looked up anew each time, so that leaving the group takes effect at once. May
    /// block on the name service.
    ///
    /// # Errors
    /// [`HostError::Unknown`] when there is no such group, [`HostError::System`] when the name
    /// service fails. Both mean no.
    pub fn may_administer(&self, group: &str) -> Result<bool, HostError> {
        if self.uid == 0 {
            return Ok(true);
        }
        self.is_member(users::group_id(group)?)
    }

    /// Whether the peer acts as the group, or its user is a member of it.
    ///
    /// # Errors
    /// [`HostError::System`] when the name service fails.
    pub fn is_member(&self, gid: u32) -> Result<bool, HostError> {
        if self.gid == gid {
            return Ok(true);
        }
        let failed = |error| HostError::system("look the peer's groups up", error);
        let Some(user) = User::from_uid(Uid::from_raw(self.uid)).map_err(failed)? else {
            return Ok(false);
        };
        let Ok(name) = CString::new(user.name) else {
            return Ok(false);
        };
        let groups = getgrouplist(&name, user.gid).map_err(failed)?;
        Ok(groups.contains(&Gid::from_raw(gid)))
    }
}

/// Longest command line that is read.
const MAX_COMMAND_LINE_BYTES: u64 = 64 * 1024;

/// The command line of a process, argument by argument (proc(5), `/proc/pid/cmdline`). Bytes that
/// are not UTF-8 are replaced.
///
/// # Errors
/// [`HostError::File`] when the process is gone or hidden from us.
pub fn command_line(pid: i32) -> Result<Vec<String>, HostError> {
    use std::io::Read;
    let path = std::path::PathBuf::from(format!("/proc/{pid}/cmdline"));
    let mut bytes = Vec::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(MAX_COMMAND_LINE_BYTES).read_to_end(&mut bytes))
        .map_err(|error| HostError::file("read the command line", &path, error))?;
    Ok(bytes
        .split(|&byte| byte == 0)
        .filter(|argument| !argument.is_empty())
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_says_who_it_is() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.uid, users::own_uid());
        assert_eq!(peer.pid, Some(std::process::id().cast_signed()));
        // Nobody but root may without a group.
        assert_eq!(peer.may_administer("no-such-group").is_ok(), peer.uid == 0);
    }

    #[test]
    fn root_may_and_a_stranger_may_not() {
        let peer = |uid, gid| Peer {
            uid,
            gid,
            pid: None,
        };
        assert!(peer(0, 0).may_administer("no-such-group").unwrap());
        // 4,000,000,001 is nobody.
        assert!(
            !peer(4_000_000_001, 4_000_000_001)
                .may_administer("root")
                .unwrap()
        );
        assert!(
            peer(4_000_000_001, 1)
                .may_administer("no-such-group")
                .is_err()
        );
    }

    #[test]
    fn the_acting_group_and_the_listed_groups_both_count() {
        let stranger = Peer {
            uid: 4_000_000_001,
            gid: 42,
            pid: None,
        };
        assert!(stranger.is_member(42).unwrap());
        assert!(!stranger.is_member(43).unwrap());
        // Root's user is a member of root's group, whatever it acts as.
        let root = Peer {
            uid: 0,
            gid: 42,
            pid: None,
        };
        assert!(root.is_member(0).unwrap());
    }
}
