//! Who asks.

use std::fmt;

use super::grant::Grant;
use super::name::Name;
use crate::base::id::{KeyId, SessionId};

/// An authenticated asker. There is no anonymous one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Somebody who came by a front door and acts for a team.
    Client(Client),
    /// A person on this machine, known by the admin socket's peer credentials.
    Operator {
        /// The user on the other end of the socket.
        uid: u32,
    },
    /// An operator elsewhere, known by the operator token.
    Remote {
        /// Which token it was.
        token: TokenMark,
    },
    /// Casemate itself: deadlines, reconciling, start and stop.
    Daemon,
}

/// By what the record tells one operator token from another: the first bytes of its digest, which do not help to guess it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenMark(pub [u8; 8]);

/// Somebody who acts for a team.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// What was presented.
    pub by: Proof,
    /// The team that it acts for.
    pub team: Name,
    /// What it may do at most.
    pub grant: Grant,
    /// The only session that it may touch, where it is bound to one.
    pub session: Option<SessionId>,
}

/// What a client presented, as far as the record may name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// An API key, or a token of a session.
    Key(KeyId),
    /// A JSON web token.
    Jwt {
        /// What the settings call who issued it.
        issuer: Name,
        /// Whom it is about; printable ASCII of a bounded length.
        subject: String,
    },
    /// The access token of a session, which whoever made it was given.
    Access(SessionId),
    /// A certificate of TLS.
    Certificate {
        /// What the settings call it.
        name: String,
    },
}

impl Principal {
    /// The team that it acts for, if it acts for one.
    #[must_use]
    pub const fn team(&self) -> Option<&Name> {
        match self {
            Self::Client(client) => Some(&client.team),
            Self::Operator { .. } | Self::Remote { .. } | Self::Daemon => None,
        }
    }
}

impl Client {
    /// Whoever has this key of a team, with all that a member may do.
    #[must_use]
    pub fn member(key: KeyId, team: Name) -> Self {
        Self {
            by: Proof::Key(key),
            team,
            grant: Grant::default(),
            session: None,
        }
    }
}

impl fmt::Display for Principal {
    /// As the audit log and `created_by` write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(client) => client.by.fmt(f),
            Self::Operator { uid } => write!(f, "uid:{uid}"),
            Self::Remote { token } => write!(f, "operator-token:{token}"),
            Self::Daemon => f.write_str("casemated"),
        }
    }
}

impl fmt::Display for TokenMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(id) => id.fmt(f),
            Self::Jwt { issuer, subject } => write!(f, "jwt:{issuer}:{subject}"),
            Self::Access(session) => write!(f, "access-token:{session}"),
            Self::Certificate { name } => write!(f, "certificate:{name}"),
        }
    }
}
