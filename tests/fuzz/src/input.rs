//! What the targets share: frames out of bytes, whole and in pieces, and back.

use std::fmt::Debug;

use bytes::{Buf, Bytes};
use casemate_link::limits::{MAX_DOCUMENT_BYTES, MAX_START_BYTES};
use casemate_link::wire::{Chunk, Decoder, FrameSet, WireError};

/// Frames as they were decoded, and how it ended.
type Decoded<F> = (Vec<F>, Result<(), WireError>);

/// A set of frames whose bytes can be joined and that can be sent again.
pub(crate) trait Frames: FrameSet + Clone + PartialEq + Debug {
    /// Joins a piece of data to the one before it; false when they do not belong together.
    fn join(&mut self, next: &Self) -> bool;
    /// As it is sent.
    fn encode(self) -> Result<Chunk, WireError>;
}

/// Places to cut at, out of one number.
pub(crate) struct Cuts(u32);

impl Cuts {
    pub(crate) fn new(seed: u8) -> Self {
        Self(u32::from(seed).wrapping_mul(0x9e37_79b9) | 1)
    }

    /// Bytes until the next cut.
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        match self.0 % 8 {
            0..4 => usize::try_from(self.0 >> 8 & 7).unwrap_or(0) + 1,
            _ => usize::try_from(self.0 >> 8 & 1023).unwrap_or(0) + 1,
        }
    }
}

/// Decodes, and makes sure that it does not matter where the bytes are cut and that what was heard can be said again.
pub(crate) fn frames<F: Frames>(bytes: &[u8], cuts: &mut Cuts) -> Vec<F> {
    let whole = decode::<F>(bytes, &mut || usize::MAX);
    let cut = decode::<F>(bytes, &mut || cuts.next());
    assert_eq!(whole, cut, "the cuts matter");
    for frame in &whole.0 {
        said_again(frame);
    }
    whole.0
}

fn decode<F: Frames>(bytes: &[u8], next_cut: &mut dyn FnMut() -> usize) -> Decoded<F> {
    let mut rest = Bytes::copy_from_slice(bytes);
    let mut decoder = Decoder::<F>::new();
    let mut heard: Vec<F> = Vec::new();
    let ended = loop {
        if rest.is_empty() {
            break decoder.finish();
        }
        let mut chunk = rest.split_to(next_cut().min(rest.len()));
        let outcome = loop {
            match decoder.decode(&mut chunk) {
                Ok(Some(frame)) => {
                    if !heard.last_mut().is_some_and(|last| last.join(&frame)) {
                        heard.push(frame);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if outcome.is_err() {
            break outcome;
        }
        assert!(chunk.is_empty(), "bytes are left over");
        assert!(decoder.held_bytes() <= MAX_START_BYTES, "too much is held");
        assert!(
            decoder.held_bytes() <= bytes.len(),
            "more is held than came"
        );
    };
    (heard, ended)
}

fn said_again<F: Frames>(frame: &F) {
    let mut chunk = match frame.clone().encode() {
        Ok(chunk) => chunk,
        // Joined pieces, and documents whose defaults do not fit beside what they said.
        Err(WireError::TooLong { length, .. }) if length > MAX_DOCUMENT_BYTES => return,
        Err(error) => panic!("{frame:?} was heard and cannot be said: {error}"),
    };
    let bytes = chunk.copy_to_bytes(chunk.remaining());
    let (again, ended) = decode::<F>(&bytes, &mut || usize::MAX);
    assert_eq!(ended, Ok(()), "{frame:?} cannot be heard again");
    assert_eq!(again.first(), Some(frame), "it is not the same again");
    assert_eq!(again.len(), 1, "{again:?}");
}

/// One frame as it is on the wire.
pub(crate) fn bytes_of(frame: Result<Chunk, WireError>) -> Vec<u8> {
    let mut chunk = frame.expect("a seed is within its bounds");
    chunk.copy_to_bytes(chunk.remaining()).to_vec()
}

/// A handshake's frame (`CMLK`, length, JSON).
pub(crate) fn handshake(json: &[u8]) -> Vec<u8> {
    let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
    [&b"CMLK"[..], &length.to_be_bytes(), json].concat()
}

/// Runs something that needs a clock and sockets to its end.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(work))
}
