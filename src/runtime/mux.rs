//! Reads podman's multiplexed output: frames of an eight-byte header and that many bytes.
//!
//! The header is one byte for the stream (0 to 2), three zero bytes, and the length in big endian
//! (Docker Engine API, "Attach to a container"). The length is never trusted: nothing is kept of a
//! frame, it is only counted down, so four gibibytes announced cost nothing.

/// What the decoder is in the middle of.
#[derive(Clone, Debug, Default)]
pub(super) struct MuxDecoder {
    header: [u8; 8],
    /// How much of the header has arrived.
    filled: usize,
    /// How much of the frame is still to come.
    remaining: u32,
}

/// The bytes are not frames.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadMux {
    #[error("the output is not framed")]
    Header,
    #[error("the output ends within a frame")]
    Truncated,
}

impl MuxDecoder {
    /// Takes the next bytes and hands the content of frames, of all streams alike, to `sink`.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(&[u8]),
    ) -> Result<(), BadMux> {
        while !bytes.is_empty() {
            if self.remaining > 0 {
                let most = usize::try_from(self.remaining).unwrap_or(usize::MAX);
                let (content, rest) = bytes.split_at(bytes.len().min(most));
                sink(content);
                // `content` is no longer than `remaining`, so it fits.
                self.remaining -= u32::try_from(content.len()).unwrap_or(self.remaining);
                bytes = rest;
                continue;
            }
            let missing = self.header.get_mut(self.filled..).unwrap_or_default();
            let (part, rest) = bytes.split_at(bytes.len().min(missing.len()));
            missing
                .iter_mut()
                .zip(part)
                .for_each(|(to, from)| *to = *from);
            self.filled += part.len();
            bytes = rest;
            if self.filled == self.header.len() {
                let [stream, zero @ .., a, b, c, d] = self.header;
                if stream > 2 || zero != [0; 3] {
                    return Err(BadMux::Header);
                }
                self.remaining = u32::from_be_bytes([a, b, c, d]);
                self.filled = 0;
            }
        }
        Ok(())
    }

    /// Whether the output may end here.
    pub(super) fn finish(&self) -> Result<(), BadMux> {
        if self.filled == 0 && self.remaining == 0 {
            Ok(())
        } else {
            Err(BadMux::Truncated)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(stream: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![stream, 0, 0, 0];
        bytes.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
        bytes.extend(content);
        bytes
    }

    #[test]
    fn a_length_of_four_gibibytes_costs_nothing() {
        let mut decoder = MuxDecoder::default();
        let mut seen = Vec::<u8>::new();
        let bytes = [&[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff][..], b"only this"].concat();
        decoder
            .feed(&bytes, |content| seen.extend(content))
            .unwrap();
        assert_eq!(seen, b"only this");
        assert_eq!(decoder.finish(), Err(BadMux::Truncated));
    }

    #[test]
    fn what_is_not_framed_is_an_error() {
        let feed = |bytes: &[u8]| MuxDecoder::default().feed(bytes, |_| ());
        assert_eq!(feed(&[3, 0, 0, 0, 0, 0, 0, 1]), Err(BadMux::Header));
        assert_eq!(feed(&[1, 0, 9, 0, 0, 0, 0, 1]), Err(BadMux::Header));
        assert_eq!(feed(b"Error: no such container"), Err(BadMux::Header));
    }

    proptest! {
        #[test]
        fn frames_cut_anywhere_read_the_same(
            parts: Vec<(bool, Vec<u8>)>,
            cuts in proptest::collection::vec(1_usize..9, 1..50),
        ) {
            let bytes: Vec<u8> = parts.iter().flat_map(|(err, content)| frame(1 + u8::from(*err), content)).collect();
            let mut decoder = MuxDecoder::default();
            let (mut seen, mut rest, mut cuts) = (Vec::<u8>::new(), &bytes[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (part, after) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                decoder.feed(part, |content| seen.extend(content)).unwrap();
                rest = after;
            }
            prop_assert_eq!(decoder.finish(), Ok(()));
            prop_assert_eq!(seen, parts.into_iter().flat_map(|(_, content)| content).collect::<Vec<u8>>());
        }

        #[test]
        fn no_bytes_make_it_panic_or_invent_content(bytes: Vec<u8>) {
            let mut seen = 0;
            let _ = MuxDecoder::default().feed(&bytes, |content| seen += content.len());
            prop_assert!(seen <= bytes.len());
        }
    }
}
