//! The frames of a stream: `u8 kind | u32 length (big endian) | payload`.
//!
//! On a process's stream the daemon says [`RequestFrame`]s and the guest [`ResponseFrame`]s; on every other stream both say
//! [`TransferFrame`]s. A kind with [`MAY_IGNORE`] set that a peer does not know is skipped, any other unknown kind is a
//! protocol error: this is how later versions add frames. Chunks shorter than [`crate::limits::MIN_CHUNK_BYTES`] are filled
//! up with such an ignorable frame.

mod chunk;
mod decode;
mod frames;
mod read;
mod transfer;

pub use chunk::Chunk;
pub use decode::Decoder;
pub use frames::{RequestFrame, ResponseFrame};
pub use read::{FrameReader, ReadError};
pub use transfer::TransferFrame;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::limits::MAX_FRAME_PAYLOAD_BYTES;

/// The bit of a kind that says: whoever does not know this frame may skip it.
pub const MAY_IGNORE: u8 = 0x80;

/// Kind of the frame that fills up short chunks.
const PADDING: u8 = MAY_IGNORE;

/// Why bytes are not frames, or a frame cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A kind that this side does not know and may not skip.
    #[error("a frame of the unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// A payload over its kind's bound.
    #[error("a frame of kind {kind:#04x} with {length} bytes is over its bound")]
    TooLong {
        /// The frame's kind.
        kind: u8,
        /// Its payload's length in bytes.
        length: usize,
    },
    /// A payload that is not the kind's document.
    #[error("a frame of kind {0:#04x} holds no valid document")]
    BadDocument(u8),
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
}

/// How the decoder treats a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Bytes that are handed on as they come, in pieces.
    Stream,
    /// A document that is collected, up to so many bytes, and parsed when complete.
    Document(usize),
    /// Not a kind of this side's peer.
    Unknown,
}

/// One direction's set of frames.
pub trait FrameSet: Sized {
    /// How a kind is treated.
    fn shape(kind: u8) -> Shape;

    /// A piece of a stream kind's payload.
    ///
    /// # Errors
    /// [`WireError::UnknownKind`] when `kind` is no stream.
    fn piece(kind: u8, payload: Bytes) -> Result<Self, WireError>;

    /// A complete document.
    ///
    /// # Errors
    /// [`WireError::BadDocument`].
    fn document(kind: u8, payload: Bytes) -> Result<Self, WireError>;
}

/// Writes one frame of a stream kind; `payload` is at most [`MAX_FRAME_PAYLOAD_BYTES`].
fn encode_stream(kind: u8, payload: Bytes) -> Result<Chunk, WireError> {
    Chunk::new(kind, payload, MAX_FRAME_PAYLOAD_BYTES)
}

fn encode_document<T: Serialize>(kind: u8, document: &T, max: usize) -> Result<Chunk, WireError> {
    let json = serde_json::to_vec(document).map_err(|_| WireError::BadDocument(kind))?;
    Chunk::new(kind, json.into(), max)
}

fn decode_document<T: DeserializeOwned>(kind: u8, json: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(json).map_err(|_| WireError::BadDocument(kind))
}
