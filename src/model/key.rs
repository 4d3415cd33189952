//! An API key as the store keeps it: never its text.

use super::name::Name;
use crate::base::clock::Timestamp;
use crate::base::id::KeyId;

/// A key that a client may present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its public part.
    pub id: KeyId,
    /// What it is for, in its owner's words.
    pub name: Name,
    /// The team that it acts for.
    pub team: Name,
    /// Keyed hash of its secret part (HMAC-SHA256).
    pub digest: [u8; 32],
    /// When it was made.
    pub created_at: Timestamp,
}
