//! The frames of each direction, by kind.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{FrameSet, Shape, WireError, encode, encode_stream};
use crate::limits::{MAX_DOCUMENT_BYTES, MAX_START_BYTES};
use crate::process::{ProcessExit, ProcessSpec, Refusal, Started};

const START: u8 = 0x01;
const STDIN: u8 = 0x02;
const STDIN_END: u8 = 0x03;

const STARTED: u8 = 0x11;
const STDOUT: u8 = 0x12;
const STDERR: u8 = 0x13;
const EXITED: u8 = 0x14;
const FAILED: u8 = 0x15;

/// What the daemon says on a process stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestFrame {
    /// First frame, and only there: the process to run.
    Start(Box<ProcessSpec>),
    /// Bytes for its standard input.
    Stdin(Bytes),
    /// End of its standard input.
    StdinEnd,
}

/// What the guest says on a process stream: `Failed`, or `Started`, output, `Exited`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseFrame {
    /// It runs.
    Started(Started),
    /// Bytes of its standard output.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// It ended; the last frame.
    Exited(ProcessExit),
    /// It could not be started; the only frame.
    Failed(Refusal),
}

impl RequestFrame {
    /// The frame as one body chunk.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when a payload is over its bound.
    pub fn encode(&self) -> Result<Bytes, WireError> {
        match self {
            Self::Start(spec) => encode_document(START, spec, MAX_START_BYTES),
            Self::Stdin(data) => encode_stream(STDIN, data),
            Self::StdinEnd => encode_stream(STDIN_END, &[]),
        }
    }
}

impl ResponseFrame {
    /// The frame as one body chunk.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when a payload is over its bound.
    pub fn encode(&self) -> Result<Bytes, WireError> {
        match self {
            Self::Started(started) => encode_document(STARTED, started, MAX_DOCUMENT_BYTES),
            Self::Stdout(data) => Self::encode_stdout(data),
            Self::Stderr(data) => Self::encode_stderr(data),
            Self::Exited(exit) => encode_document(EXITED, exit, MAX_DOCUMENT_BYTES),
            Self::Failed(refusal) => encode_document(FAILED, refusal, MAX_DOCUMENT_BYTES),
        }
    }

    /// [`Self::Stdout`] straight from a buffer.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when the payload is over its bound.
    pub fn encode_stdout(data: &[u8]) -> Result<Bytes, WireError> {
        encode_stream(STDOUT, data)
    }

    /// [`Self::Stderr`] straight from a buffer.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when the payload is over its bound.
    pub fn encode_stderr(data: &[u8]) -> Result<Bytes, WireError> {
        encode_stream(STDERR, data)
    }
}

impl FrameSet for RequestFrame {
    fn shape(kind: u8) -> Shape {
        match kind {
            START => Shape::Document(MAX_START_BYTES),
            STDIN => Shape::Stream,
            STDIN_END => Shape::Document(0),
            _ => Shape::Unknown,
        }
    }

    fn piece(kind: u8, payload: Bytes) -> Result<Self, WireError> {
        match kind {
            STDIN => Ok(Self::Stdin(payload)),
            _ => Err(WireError::UnknownKind(kind)),
        }
    }

    fn document(kind: u8, payload: &[u8]) -> Result<Self, WireError> {
        match kind {
            START => Ok(Self::Start(Box::new(decode_document(kind, payload)?))),
            STDIN_END => Ok(Self::StdinEnd),
            _ => Err(WireError::UnknownKind(kind)),
        }
    }
}

impl FrameSet for ResponseFrame {
    fn shape(kind: u8) -> Shape {
        match kind {
            STDOUT | STDERR => Shape::Stream,
            STARTED | EXITED | FAILED => Shape::Document(MAX_DOCUMENT_BYTES),
            _ => Shape::Unknown,
        }
    }

    fn piece(kind: u8, payload: Bytes) -> Result<Self, WireError> {
        match kind {
            STDOUT => Ok(Self::Stdout(payload)),
            STDERR => Ok(Self::Stderr(payload)),
            _ => Err(WireError::UnknownKind(kind)),
        }
    }

    fn document(kind: u8, payload: &[u8]) -> Result<Self, WireError> {
        match kind {
            STARTED => Ok(Self::Started(decode_document(kind, payload)?)),
            EXITED => Ok(Self::Exited(decode_document(kind, payload)?)),
            FAILED => Ok(Self::Failed(decode_document(kind, payload)?)),
            _ => Err(WireError::UnknownKind(kind)),
        }
    }
}

fn encode_document<T: Serialize>(kind: u8, document: &T, max: usize) -> Result<Bytes, WireError> {
    let json = serde_json::to_vec(document).map_err(|_| WireError::BadDocument(kind))?;
    encode(kind, &json, max)
}

fn decode_document<T: DeserializeOwned>(kind: u8, json: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(json).map_err(|_| WireError::BadDocument(kind))
}
