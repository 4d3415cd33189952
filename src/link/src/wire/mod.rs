//! The frames of a process stream: `u8 kind | u32 length (big endian) | payload`.
//!
//! The daemon's frames are in [`RequestFrame`], the guest's in [`ResponseFrame`]. A kind with [`MAY_IGNORE`] set that a
//! peer does not know is skipped, any other unknown kind is a protocol error: this is how later versions add frames.
//! Chunks shorter than [`MIN_CHUNK_BYTES`] are filled up with such an ignorable frame.

mod decode;
mod frames;
mod read;

pub use decode::Decoder;
pub use frames::{RequestFrame, ResponseFrame};
pub use read::{FrameReader, ReadError};

use bytes::{BufMut, Bytes, BytesMut};

use crate::limits::{FRAME_HEADER_BYTES, MAX_FRAME_PAYLOAD_BYTES, MIN_CHUNK_BYTES};

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
    fn document(kind: u8, payload: &[u8]) -> Result<Self, WireError>;
}

/// Writes one frame as a body chunk of at least [`MIN_CHUNK_BYTES`].
///
/// # Errors
/// [`WireError::TooLong`] when the payload is over `max` bytes.
fn encode(kind: u8, payload: &[u8], max: usize) -> Result<Bytes, WireError> {
    let too_long = WireError::TooLong {
        kind,
        length: payload.len(),
    };
    if payload.len() > max {
        return Err(too_long);
    }
    let length = u32::try_from(payload.len()).map_err(|_| too_long)?;
    let mut chunk =
        BytesMut::with_capacity((FRAME_HEADER_BYTES + payload.len()).max(MIN_CHUNK_BYTES));
    chunk.put_u8(kind);
    chunk.put_u32(length);
    chunk.put_slice(payload);
    if chunk.len() < MIN_CHUNK_BYTES {
        let filler = MIN_CHUNK_BYTES.saturating_sub(chunk.len() + FRAME_HEADER_BYTES);
        chunk.put_u8(PADDING);
        chunk.put_u32(u32::try_from(filler).map_err(|_| too_long)?);
        chunk.put_bytes(0, filler);
    }
    Ok(chunk.freeze())
}

/// Writes one frame of a stream kind; `payload` is at most [`MAX_FRAME_PAYLOAD_BYTES`].
fn encode_stream(kind: u8, payload: &[u8]) -> Result<Bytes, WireError> {
    encode(kind, payload, MAX_FRAME_PAYLOAD_BYTES)
}
