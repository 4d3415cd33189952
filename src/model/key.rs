//! An API key as the store keeps it: never its text. A token of a session is a key that is bound to one.

use super::grant::Grant;
use super::name::Name;
use crate::base::clock::Timestamp;
use crate::base::id::{KeyId, SessionId};

/// A key that a client may present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its public part.
    pub id: KeyId,
    /// What it is for, in its owner's words.
    pub name: Name,
    /// The team that it acts for.
    pub team: Name,
    /// What whoever has it may do at most.
    pub grant: Grant,
    /// The only session that it reaches, where it is a token of one.
    pub session: Option<SessionId>,
    /// Keyed hash of its secret part (HMAC-SHA256).
    pub digest: [u8; 32],
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it, as the record writes it.
    pub created_by: String,
    /// From when on it is not valid any more.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked, and by whom.
    pub revoked: Option<(Timestamp, String)>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
}

impl ApiKey {
    /// Whether it opens anything at this time.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}
