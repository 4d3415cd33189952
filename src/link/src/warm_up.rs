//! The documents about a sandbox that is warmed up before it is anybody's, and what it learns when it is somebody's.

use serde::{Deserialize, Serialize};

/// Who the sandbox is from now on. A repetition of what is so already is success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRequest {
    /// Its host name, at most [`crate::limits::MAX_HOSTNAME_BYTES`].
    pub hostname: String,
}

/// The answer: what the guest found when it looked again. Claims of the guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The host name that the kernel tells.
    pub hostname: String,
    /// Whether the guest has been through a checkpoint: what its sandbox was warmed up with is there.
    pub is_restored: bool,
    /// Whether the guest could still give its sandbox another name, or mount. It must not before a program runs.
    pub is_privileged: bool,
}
