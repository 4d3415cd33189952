//! The frames of a process's stream, by kind.

use bytes::Bytes;

use super::{Chunk, FrameSet, Shape, WireError, decode_document, encode_document, encode_stream};
use crate::limits::{MAX_DOCUMENT_BYTES, MAX_ITEM_BYTES, MAX_START_BYTES};
use crate::process::{
    AttachRequest, InputRequest, Lost, ProcessExit, ProcessInfo, ProcessSpec, Started,
};
use crate::refusal::Refusal;

const START: u8 = 0x01;
const STDIN: u8 = 0x02;
const STDIN_END: u8 = 0x03;
const ATTACH: u8 = 0x04;
const INPUT: u8 = 0x05;

const STARTED: u8 = 0x11;
const STDOUT: u8 = 0x12;
const STDERR: u8 = 0x13;
const EXITED: u8 = 0x14;
const FAILED: u8 = 0x15;
const ATTACHED: u8 = 0x16;
const LOST: u8 = 0x17;

/// What the daemon says on a process stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestFrame {
    /// First frame of a start, and only there: the process to run.
    Start(Box<ProcessSpec>),
    /// First frame of an attach stream.
    Attach(AttachRequest),
    /// First frame of an input stream.
    Input(InputRequest),
    /// Bytes for its standard input.
    Stdin(Bytes),
    /// End of its standard input.
    StdinEnd,
}

/// What the guest says on a process stream: `Failed`, or `Started` or `Attached`, output and losses, `Exited`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseFrame {
    /// It runs.
    Started(Started),
    /// It is there.
    Attached(Box<ProcessInfo>),
    /// Bytes of its standard output.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// Bytes that would have come now, and are not there any more.
    Lost(Lost),
    /// It ended; the last frame.
    Exited(ProcessExit),
    /// It could not be started or found; the only frame.
    Failed(Refusal),
}

impl RequestFrame {
    /// The frame as one body chunk.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when a payload is over its bound.
    pub fn encode(self) -> Result<Chunk, WireError> {
        match self {
            Self::Start(spec) => encode_document(START, &spec, MAX_START_BYTES),
            Self::Attach(request) => encode_document(ATTACH, &request, MAX_DOCUMENT_BYTES),
            Self::Input(request) => encode_document(INPUT, &request, MAX_DOCUMENT_BYTES),
            Self::Stdin(data) => encode_stream(STDIN, data),
            Self::StdinEnd => encode_stream(STDIN_END, Bytes::new()),
        }
    }
}

impl ResponseFrame {
    /// The frame as one body chunk.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when a payload is over its bound.
    pub fn encode(self) -> Result<Chunk, WireError> {
        match self {
            Self::Started(started) => encode_document(STARTED, &started, MAX_DOCUMENT_BYTES),
            Self::Attached(info) => encode_document(ATTACHED, &info, MAX_ITEM_BYTES),
            Self::Stdout(data) => encode_stream(STDOUT, data),
            Self::Stderr(data) => encode_stream(STDERR, data),
            Self::Lost(lost) => encode_document(LOST, &lost, MAX_DOCUMENT_BYTES),
            Self::Exited(exit) => encode_document(EXITED, &exit, MAX_DOCUMENT_BYTES),
            Self::Failed(refusal) => encode_document(FAILED, &refusal, MAX_DOCUMENT_BYTES),
        }
    }
}

impl FrameSet for RequestFrame {
    fn shape(kind: u8) -> Shape {
        match kind {
            START => Shape::Document(MAX_START_BYTES),
            ATTACH | INPUT => Shape::Document(MAX_DOCUMENT_BYTES),
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

    fn document(kind: u8, payload: Bytes) -> Result<Self, WireError> {
        match kind {
            START => Ok(Self::Start(Box::new(decode_document(kind, &payload)?))),
            ATTACH => Ok(Self::Attach(decode_document(kind, &payload)?)),
            INPUT => Ok(Self::Input(decode_document(kind, &payload)?)),
            STDIN_END => Ok(Self::StdinEnd),
            _ => Err(WireError::UnknownKind(kind)),
        }
    }
}

impl FrameSet for ResponseFrame {
    fn shape(kind: u8) -> Shape {
        match kind {
            STDOUT | STDERR => Shape::Stream,
            STARTED | EXITED | FAILED | LOST => Shape::Document(MAX_DOCUMENT_BYTES),
            ATTACHED => Shape::Document(MAX_ITEM_BYTES),
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

    fn document(kind: u8, payload: Bytes) -> Result<Self, WireError> {
        match kind {
            STARTED => Ok(Self::Started(decode_document(kind, &payload)?)),
            ATTACHED => Ok(Self::Attached(Box::new(decode_document(kind, &payload)?))),
            LOST => Ok(Self::Lost(decode_document(kind, &payload)?)),
            EXITED => Ok(Self::Exited(decode_document(kind, &payload)?)),
            FAILED => Ok(Self::Failed(decode_document(kind, &payload)?)),
            _ => Err(WireError::UnknownKind(kind)),
        }
    }
}
