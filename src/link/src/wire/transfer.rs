//! The frames of every stream but a process's: a head, data or items, an end.

use bytes::Bytes;
use serde::Serialize;

use super::{Chunk, FrameSet, Shape, WireError, decode_document, encode_document, encode_stream};
use crate::limits::{MAX_DOCUMENT_BYTES, MAX_ITEM_BYTES};
use crate::refusal::Refusal;

const HEAD: u8 = 0x21;
const DATA: u8 = 0x22;
const ITEM: u8 = 0x23;
const END: u8 = 0x24;
const FAILED: u8 = 0x25;

/// What either side says on a stream that carries bytes or documents. A stream that ends without [`Self::End`] or
/// [`Self::Failed`] was cut, and what it carried is not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferFrame {
    /// First frame of each direction: a JSON document, which depends on the route.
    Head(Bytes),
    /// Bytes.
    Data(Bytes),
    /// A JSON document of a list, or a result.
    Item(Bytes),
    /// All was said.
    End,
    /// It came to nothing, or to nothing more; the last frame.
    Failed(Refusal),
}

impl TransferFrame {
    /// [`Self::Head`] of a document.
    ///
    /// # Errors
    /// [`WireError::TooLong`] over [`MAX_ITEM_BYTES`].
    pub fn head(document: &impl Serialize) -> Result<Chunk, WireError> {
        encode_document(HEAD, document, MAX_ITEM_BYTES)
    }

    /// [`Self::Item`] of a document.
    ///
    /// # Errors
    /// [`WireError::TooLong`] over [`MAX_ITEM_BYTES`].
    pub fn item(document: &impl Serialize) -> Result<Chunk, WireError> {
        encode_document(ITEM, document, MAX_ITEM_BYTES)
    }

    /// The frame as one body chunk.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when a payload is over its bound.
    pub fn encode(self) -> Result<Chunk, WireError> {
        match self {
            Self::Head(json) => Chunk::new(HEAD, json, MAX_ITEM_BYTES),
            Self::Data(data) => encode_stream(DATA, data),
            Self::Item(json) => Chunk::new(ITEM, json, MAX_ITEM_BYTES),
            Self::End => encode_stream(END, Bytes::new()),
            Self::Failed(refusal) => encode_document(FAILED, &refusal, MAX_DOCUMENT_BYTES),
        }
    }
}

impl FrameSet for TransferFrame {
    fn shape(kind: u8) -> Shape {
        match kind {
            HEAD | ITEM => Shape::Document(MAX_ITEM_BYTES),
            DATA => Shape::Stream,
            END => Shape::Document(0),
            FAILED => Shape::Document(MAX_DOCUMENT_BYTES),
            _ => Shape::Unknown,
        }
    }

    fn piece(kind: u8, payload: Bytes) -> Result<Self, WireError> {
        match kind {
            DATA => Ok(Self::Data(payload)),
            _ => Err(WireError::UnknownKind(kind)),
        }
    }

    fn document(kind: u8, payload: Bytes) -> Result<Self, WireError> {
        match kind {
            HEAD => Ok(Self::Head(payload)),
            ITEM => Ok(Self::Item(payload)),
            END => Ok(Self::End),
            FAILED => Ok(Self::Failed(decode_document(kind, &payload)?)),
            _ => Err(WireError::UnknownKind(kind)),
        }
    }
}
