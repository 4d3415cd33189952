//! A frame on its way out: its header, its payload as it is, and what fills it up. Nothing is copied for sending.

use std::io::IoSlice;

use bytes::{Buf, Bytes};

use super::{PADDING, WireError};
use crate::limits::{FRAME_HEADER_BYTES, MIN_CHUNK_BYTES};

/// What a padding frame holds.
static ZEROS: [u8; MIN_CHUNK_BYTES] = [0; MIN_CHUNK_BYTES];

/// One frame as a body chunk of at least [`MIN_CHUNK_BYTES`].
#[derive(Debug, Clone)]
pub struct Chunk {
    head: [u8; FRAME_HEADER_BYTES],
    payload: Bytes,
    /// Header of the padding frame, and how many of [`ZEROS`] are its payload; absent where none is needed.
    padding: Option<([u8; FRAME_HEADER_BYTES], usize)>,
    /// Bytes of head, payload and padding that are gone already.
    sent: usize,
}

impl Chunk {
    /// A frame of this kind.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when the payload is over `max` bytes.
    pub(super) fn new(kind: u8, payload: Bytes, max: usize) -> Result<Self, WireError> {
        let length = payload.len();
        let too_long = WireError::TooLong { kind, length };
        if length > max {
            return Err(too_long);
        }
        let whole = FRAME_HEADER_BYTES + length;
        let padding = (whole < MIN_CHUNK_BYTES).then(|| {
            let filler = MIN_CHUNK_BYTES.saturating_sub(whole + FRAME_HEADER_BYTES);
            (header(PADDING, u32::try_from(filler).unwrap_or(0)), filler)
        });
        Ok(Self {
            head: header(kind, u32::try_from(length).map_err(|_| too_long)?),
            payload,
            padding,
            sent: 0,
        })
    }

    /// A document as it is, for a body without frames.
    pub fn bare(document: Bytes) -> Self {
        Self {
            head: [0; FRAME_HEADER_BYTES],
            payload: document,
            padding: None,
            sent: FRAME_HEADER_BYTES,
        }
    }

    /// What is still to be sent, in order; any part may be empty.
    fn parts(&self) -> [&[u8]; 4] {
        let (pad_head, zeros) = match &self.padding {
            Some((head, filler)) => (&head[..], ZEROS.get(..*filler).unwrap_or_default()),
            None => (&[][..], &[][..]),
        };
        let mut skip = self.sent;
        [&self.head[..], &self.payload[..], pad_head, zeros].map(|part| {
            let rest = part.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(part.len());
            rest
        })
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }

    fn chunk(&self) -> &[u8] {
        let parts = self.parts();
        parts
            .into_iter()
            .find(|part| !part.is_empty())
            .unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        self.sent += count.min(self.remaining());
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = self.parts().into_iter().filter(|part| !part.is_empty());
        let pairs = slices.iter_mut().zip(filled);
        pairs
            .map(|(slice, part)| *slice = IoSlice::new(part))
            .count()
    }
}

const fn header(kind: u8, length: u32) -> [u8; FRAME_HEADER_BYTES] {
    let [a, b, c, d] = length.to_be_bytes();
    [kind, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn however_it_is_taken_the_same_bytes_come(length in 0_usize..700, steps in proptest::collection::vec(1_usize..300, 1..40)) {
            let payload: Bytes = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let mut chunk = Chunk::new(0x12, payload.clone(), 1000).unwrap();
            let all = chunk.clone().copy_to_bytes(chunk.remaining());
            prop_assert!(all.len() >= MIN_CHUNK_BYTES);
            prop_assert_eq!(&all[FRAME_HEADER_BYTES..][..length], &payload[..]);

            let mut seen = Vec::new();
            for step in steps.into_iter().cycle() {
                let mut slices = [IoSlice::new(&[]); 8];
                let count = chunk.chunks_vectored(&mut slices);
                let offered: usize = slices[..count].iter().map(|slice| slice.len()).sum();
                prop_assert_eq!(offered, chunk.remaining());
                if !chunk.has_remaining() { break }
                let step = step.min(chunk.chunk().len());
                seen.extend_from_slice(&chunk.chunk()[..step]);
                chunk.advance(step);
            }
            prop_assert_eq!(seen, all);
        }
    }
}
