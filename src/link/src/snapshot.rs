//! What a sandbox has changed in its root file system, as a tar stream.
//!
//! The stream is POSIX tar with GNU's long names, parents before what is in them, paths relative to the root and without
//! `./`. Of the root file system alone: nothing of another mount is in it. Each directory has an entry, changed or not,
//! because gVisor does not say which ones are; each other thing has one if it is not the image's any more. What still is the
//! image's has a [`KEPT`] entry, by which the daemon learns what is gone.

use serde::{Deserialize, Serialize};

/// The type of a tar entry without content that says: what has this name is as the image has it, or is no matter of the
/// image's, like a mount, in which case nothing below it is told.
pub const KEPT: u8 = b'U';

/// Head of a request to [`crate::route::SNAPSHOT_READ`]. The answer's head is a [`SnapshotHead`], then comes the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// Tell everything, whoever it is from; there are no [`KEPT`] entries then.
    pub whole: bool,
}

/// Head of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// Whether everything is told: because it was asked for, or because the guest cannot tell what is the image's.
    pub whole: bool,
}
