//! Who asks.

use std::fmt;

use super::name::Name;
use crate::base::id::KeyId;

/// An authenticated asker. There is no anonymous one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A client with an API key.
    Key {
        /// The key.
        id: KeyId,
        /// The team that it belongs to.
        team: Name,
    },
    /// A person on this machine, known by the admin socket's peer credentials.
    Operator {
        /// The user on the other end of the socket.
        uid: u32,
    },
    /// Casemate itself: deadlines, reconciling, start and stop.
    Daemon,
}

impl Principal {
    /// The team that it acts for, if it acts for one.
    #[must_use]
    pub const fn team(&self) -> Option<&Name> {
        match self {
            Self::Key { team, .. } => Some(team),
            Self::Operator { .. } | Self::Daemon => None,
        }
    }
}

impl fmt::Display for Principal {
    /// As the audit log and `created_by` write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { id, .. } => write!(f, "{id}"),
            Self::Operator { uid } => write!(f, "uid:{uid}"),
            Self::Daemon => f.write_str("casemated"),
        }
    }
}
