//! The daemon's end: [`LinkListener`] lets a guest in, [`Link`] speaks to it; [`Process`], [`FileReader`], [`FileWriter`],
//! [`Watch`] and [`PortStream`] are what it is asked for.
//!
//! The guest is an enemy. Whatever it sends is bounded before it is kept, every wait has a deadline or belongs to the
//! caller, and nothing it says can cost more than its own link.

mod body;
mod channel;
pub mod check;
mod file;
mod link;
mod listener;
mod port;
mod process;
mod snapshot;
mod transfer;

pub use channel::Channels;
pub use file::{ArchiveWriter, FileListing, FileReader, FileWriter, Watch};
pub use link::Link;
pub use listener::{LinkListener, PeerCred, SOCKET_NAME, listen};
pub use port::PortStream;
pub use process::{InputClosed, InputStream, Process, ProcessEvent, ProcessInput};
pub use snapshot::SnapshotReader;

use std::io;

use crate::handshake::HandshakeError;
use crate::wire::WireError;

/// What went wrong on a link, by what the caller does about it.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The link is lost, and with it whatever was in flight: wait for the guest's next dial, or give the sandbox up.
    #[error("the link to the guest is gone")]
    Gone,
    /// The guest broke the protocol: it is broken or hostile, so end the sandbox, or at least the link.
    #[error("the guest broke the link's protocol: {0}")]
    Protocol(String),
    /// The guest, or this end for it, said no: tell whoever asked. The code is lower-case ASCII, the message one line.
    #[error("the guest refused: {code}: {message}")]
    Refused {
        /// One of [`crate::refusal::code`], or a newer guest's.
        code: String,
        /// A sentence for people, without control characters.
        message: String,
    },
    /// The guest did not answer in time: it is overloaded or stuck, so try again, or end it.
    #[error("the guest did not answer within {0} ms")]
    Deadline(u128),
    /// A dialer was turned away; the listener stands. Log it and accept again.
    #[error("a dialer on the link's socket was turned away")]
    Rejected {
        /// Whose process dialed: for a sandbox, its gofer's.
        peer: PeerCred,
        /// What it did wrong.
        #[source]
        source: HandshakeError,
    },
    /// The daemon's own socket does not work: repair the directory.
    #[error("opening the link's socket")]
    Socket(#[from] io::Error),
}

impl From<WireError> for LinkError {
    fn from(error: WireError) -> Self {
        Self::Protocol(error.to_string())
    }
}
