//! Reading what a sandbox has changed.

use bytes::Bytes;

use super::LinkError;
use super::link::Link;
use super::transfer::{Incoming, Transfer};
use crate::route;
use crate::snapshot::{SnapshotHead, SnapshotRequest};

/// A snapshot on its way. What is in it is the sandbox's word. Dropping it cuts the stream.
#[derive(Debug)]
pub struct SnapshotReader {
    /// Whether everything is told, and not only what changed.
    pub whole: bool,
    incoming: Incoming,
}

impl Link {
    /// Reads the sandbox's root file system, or what changed in it.
    ///
    /// # Errors
    /// `Refused` ([`crate::refusal::code`]), `Gone`, `Protocol`, `Deadline`.
    pub async fn snapshot(&self, request: SnapshotRequest) -> Result<SnapshotReader, LinkError> {
        self.needs("snapshot")?;
        let (transfer, SnapshotHead { whole }) =
            Transfer::begin(self, route::SNAPSHOT_READ, &request).await?;
        Ok(SnapshotReader {
            whole,
            incoming: transfer.incoming,
        })
    }
}

impl SnapshotReader {
    /// The next bytes; `None` when the guest said that it was all.
    ///
    /// # Errors
    /// `Refused`, `Gone`, `Protocol`, `Deadline`; what came is not whole then.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LinkError> {
        self.incoming.data().await
    }
}
