//! The incremental decoder of frames. Memory is bounded by the largest document of its direction, and a document's
//! length is checked before a byte of it is kept; data passes through without being copied or collected.

use std::marker::PhantomData;

use bytes::{Buf, Bytes, BytesMut};

use super::{FrameSet, MAY_IGNORE, Shape, WireError};
use crate::limits::{FRAME_HEADER_BYTES, MAX_FRAME_PAYLOAD_BYTES};

/// Turns chunks, split anywhere, into frames of one direction.
#[derive(Debug)]
pub struct Decoder<F> {
    state: State,
    /// The header, or the document, that is not complete yet.
    partial: BytesMut,
    frames: PhantomData<fn() -> F>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    Stream { kind: u8, left: usize },
    Document { kind: u8, length: usize },
    Skip { left: usize },
}

impl<F: FrameSet> Decoder<F> {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            partial: BytesMut::new(),
            frames: PhantomData,
        }
    }

    /// Takes bytes off the front of `chunk` until there is a frame, or a piece of a data frame. `None` means that the
    /// chunk is used up. After an error the stream is worthless.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not frames of this direction.
    pub fn decode(&mut self, chunk: &mut Bytes) -> Result<Option<F>, WireError> {
        loop {
            match self.state {
                State::Header => {
                    if !self.collect(chunk, FRAME_HEADER_BYTES) {
                        return Ok(None);
                    }
                    let kind = self.partial.get_u8();
                    let length = usize::try_from(self.partial.get_u32()).unwrap_or(usize::MAX);
                    self.state = Self::enter(kind, length)?;
                }
                State::Stream { left: 0, .. } | State::Skip { left: 0 } => {
                    self.state = State::Header;
                }
                State::Stream { kind, left } => {
                    let piece = chunk.split_to(left.min(chunk.len()));
                    if piece.is_empty() {
                        return Ok(None);
                    }
                    self.state = State::Stream {
                        kind,
                        left: left - piece.len(),
                    };
                    return F::piece(kind, piece).map(Some);
                }
                State::Skip { left } => {
                    let skipped = left.min(chunk.len());
                    if skipped == 0 {
                        return Ok(None);
                    }
                    chunk.advance(skipped);
                    self.state = State::Skip {
                        left: left - skipped,
                    };
                }
                State::Document { kind, length } => {
                    if !self.collect(chunk, length) {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    let document = std::mem::take(&mut self.partial).freeze();
                    return F::document(kind, document).map(Some);
                }
            }
        }
    }

    /// Whether more of the data frame follows whose piece was the last thing decoded.
    pub fn is_within_data(&self) -> bool {
        matches!(self.state, State::Stream { left, .. } if left > 0)
    }

    /// Says whether the stream may end here.
    ///
    /// # Errors
    /// [`WireError::Truncated`] within a frame.
    pub fn finish(&self) -> Result<(), WireError> {
        match self.state {
            State::Header if self.partial.is_empty() => Ok(()),
            State::Stream { left: 0, .. } | State::Skip { left: 0 } => Ok(()),
            _ => Err(WireError::Truncated),
        }
    }

    /// Bytes of a frame that is not complete yet.
    pub fn held_bytes(&self) -> usize {
        self.partial.len()
    }

    fn enter(kind: u8, length: usize) -> Result<State, WireError> {
        let within = |max| {
            if length <= max {
                Ok(())
            } else {
                Err(WireError::TooLong { kind, length })
            }
        };
        match F::shape(kind) {
            Shape::Stream => {
                within(MAX_FRAME_PAYLOAD_BYTES).map(|()| State::Stream { kind, left: length })
            }
            Shape::Document(max) => within(max).map(|()| State::Document { kind, length }),
            Shape::Unknown if kind & MAY_IGNORE != 0 => {
                within(MAX_FRAME_PAYLOAD_BYTES).map(|()| State::Skip { left: length })
            }
            Shape::Unknown => Err(WireError::UnknownKind(kind)),
        }
    }

    /// Moves bytes to `partial` until it has `wanted`; says whether it has.
    fn collect(&mut self, chunk: &mut Bytes, wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.partial.len());
        self.partial
            .extend_from_slice(&chunk.split_to(missing.min(chunk.len())));
        self.partial.len() >= wanted
    }
}

impl<F: FrameSet> Default for Decoder<F> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::{RequestFrame, ResponseFrame};
    use super::*;
    use crate::limits::{MAX_DOCUMENT_BYTES, MIN_CHUNK_BYTES};
    use crate::process::{ProcessExit, ProcessSpec, Started};
    use crate::refusal::Refusal;

    /// Decodes bytes cut at the given places, joining neighbouring pieces of one kind.
    fn decode_cut(
        bytes: &[u8],
        cuts: &[prop::sample::Index],
    ) -> Result<Vec<ResponseFrame>, WireError> {
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        places.extend([0, bytes.len()]);
        places.sort_unstable();
        let mut decoder = Decoder::<ResponseFrame>::new();
        let mut frames = Vec::new();
        for pair in places.windows(2) {
            let mut chunk = Bytes::copy_from_slice(&bytes[pair[0]..pair[1]]);
            while let Some(frame) = decoder.decode(&mut chunk)? {
                frames.push(frame);
            }
            assert!(chunk.is_empty());
            assert!(decoder.partial.len() <= MAX_DOCUMENT_BYTES);
        }
        decoder.finish()?;
        Ok(joined(frames))
    }

    fn joined(frames: Vec<ResponseFrame>) -> Vec<ResponseFrame> {
        use ResponseFrame::{Stderr, Stdout};
        let mut out: Vec<ResponseFrame> = Vec::new();
        for frame in frames {
            match (out.last_mut(), frame) {
                (Some(Stdout(a)), Stdout(b)) | (Some(Stderr(a)), Stderr(b)) => {
                    *a = [&a[..], &b[..]].concat().into();
                }
                (_, Stdout(b) | Stderr(b)) if b.is_empty() => {}
                (_, frame) => out.push(frame),
            }
        }
        out
    }

    fn bytes_of(frame: ResponseFrame) -> Bytes {
        let mut chunk = frame.encode().unwrap();
        chunk.copy_to_bytes(chunk.remaining())
    }

    fn frame() -> impl Strategy<Value = ResponseFrame> {
        prop_oneof![
            (any::<u64>(), any::<u32>())
                .prop_map(|(process, pid)| ResponseFrame::Started(Started { process, pid })),
            vec(any::<u8>(), 0..2000).prop_map(|data| ResponseFrame::Stdout(data.into())),
            vec(any::<u8>(), 0..2000).prop_map(|data| ResponseFrame::Stderr(data.into())),
            (any::<Option<i32>>(), any::<u64>()).prop_map(|(exit_code, duration_ms)| {
                ResponseFrame::Exited(ProcessExit {
                    exit_code,
                    duration_ms,
                    ..ProcessExit::default()
                })
            }),
            (".{0,40}", ".{0,200}")
                .prop_map(|(code, message)| ResponseFrame::Failed(Refusal { code, message })),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(frames in vec(frame(), 0..8), cuts in vec(any::<prop::sample::Index>(), 0..20)) {
            let chunks: Vec<Bytes> = frames.iter().cloned().map(bytes_of).collect();
            prop_assert!(chunks.iter().all(|chunk| chunk.len() >= MIN_CHUNK_BYTES));
            prop_assert_eq!(decode_cut(&chunks.concat(), &cuts), Ok(joined(frames)));
        }

        #[test]
        fn any_bytes_give_the_same_answer_however_cut(
            bytes in vec(prop_oneof![any::<u8>(), 0x10_u8..0x16, Just(0)], 0..400),
            cuts in vec(any::<prop::sample::Index>(), 0..20),
        ) {
            prop_assert_eq!(decode_cut(&bytes, &cuts), decode_cut(&bytes, &[]));
        }
    }

    fn one(bytes: &[u8]) -> Result<Option<ResponseFrame>, WireError> {
        Decoder::new().decode(&mut Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn unknown_kinds_are_skipped_only_when_they_may_be() {
        assert_eq!(one(&[0xff, 0, 0, 0, 2, 1, 2]), Ok(None));
        assert_eq!(
            one(&[0x7f, 0, 0, 0, 2, 1, 2]),
            Err(WireError::UnknownKind(0x7f))
        );
        assert_eq!(one(&[0x02, 0, 0, 0, 0]), Err(WireError::UnknownKind(0x02)));
    }

    #[test]
    fn lengths_are_refused_before_a_byte_is_kept() {
        assert!(matches!(
            one(&[0x12, 0, 1, 0, 1]),
            Err(WireError::TooLong { length: 65_537, .. })
        ));
        assert!(matches!(
            one(&[0x14, 0, 0, 0x40, 1]),
            Err(WireError::TooLong { length: 16_385, .. })
        ));
        assert!(matches!(
            one(&[0x80, 0xff, 0xff, 0xff, 0xff]),
            Err(WireError::TooLong { .. })
        ));
        assert_eq!(
            one(&[0x14, 0, 0, 0, 1, b'{']),
            Err(WireError::BadDocument(0x14))
        );
    }

    #[test]
    fn a_start_of_the_largest_legal_size_goes_through() {
        let spec = ProcessSpec::new(["x".repeat(1000), "\u{1}".repeat(160 * 1024)]);
        assert_eq!(spec.validate(), Ok(()));
        let start = RequestFrame::Start(Box::new(spec.clone()));
        let mut start = start.encode().unwrap();
        let mut chunk = start.copy_to_bytes(start.remaining());
        let frame = Decoder::<RequestFrame>::new().decode(&mut chunk).unwrap();
        assert_eq!(frame, Some(RequestFrame::Start(Box::new(spec))));
    }

    #[test]
    fn the_last_piece_of_a_data_frame_is_known() {
        let mut bytes = bytes_of(ResponseFrame::Stdout(vec![1; 300].into()));
        let mut rest = bytes.split_off(200);
        let mut decoder = Decoder::<ResponseFrame>::new();
        assert!(decoder.decode(&mut bytes).unwrap().is_some() && decoder.is_within_data());
        assert!(decoder.decode(&mut rest).unwrap().is_some() && !decoder.is_within_data());
    }

    #[test]
    fn requests_roundtrip() {
        let frames = [
            RequestFrame::Stdin(Bytes::from_static(b"\xff\0")),
            RequestFrame::StdinEnd,
        ];
        let mut bytes: Bytes = frames
            .iter()
            .cloned()
            .flat_map(|frame| {
                let mut chunk = frame.encode().unwrap();
                chunk.copy_to_bytes(chunk.remaining())
            })
            .collect();
        let mut decoder = Decoder::<RequestFrame>::new();
        for frame in frames {
            assert_eq!(decoder.decode(&mut bytes), Ok(Some(frame)));
        }
        assert_eq!(decoder.decode(&mut bytes), Ok(None));
        assert_eq!(decoder.finish(), Ok(()));
    }
}
