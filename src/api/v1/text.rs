//! Bytes in JSON: as text where they are UTF-8, in base 64 where not, and always said which.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::error::Problem;

/// Bytes of a character but its last.
const MAX_TAIL: usize = 3;

/// How bytes are written in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum Encoding {
    /// As text.
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// In base 64 (RFC 4648 section 4, padded).
    #[serde(rename = "base64")]
    Base64,
}

impl Encoding {
    /// Reads a field that a client wrote so.
    pub(super) fn read(self, field: &str, text: String) -> Result<Bytes, Problem> {
        match self {
            Self::Utf8 => Ok(Bytes::from(text)),
            Self::Base64 => STANDARD
                .decode(text)
                .map(Bytes::from)
                .map_err(|error| Problem::bad_request(format!("{field}: {error}"))),
        }
    }
}

/// Writes bytes. Where output was cut off, a character that was cut in half goes with the rest: the program wrote text.
pub(super) fn encode(bytes: &[u8], is_cut: bool) -> (String, Encoding) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), Encoding::Utf8),
        Err(error) if is_cut && error.error_len().is_none() => {
            let whole = bytes.get(..error.valid_up_to()).unwrap_or_default();
            (String::from_utf8_lossy(whole).into_owned(), Encoding::Utf8)
        }
        Err(_) => (STANDARD.encode(bytes), Encoding::Base64),
    }
}

/// Output that comes in pieces, cut anywhere: keeps the beginning of a character back until its rest is there.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    tail: Vec<u8>,
}

impl Pieces {
    /// The next piece that can be said; nothing when all of it has to wait.
    pub(super) fn next(&mut self, data: &[u8]) -> Option<(String, Encoding)> {
        let mut all = std::mem::take(&mut self.tail);
        all.extend_from_slice(data);
        if let Err(error) = std::str::from_utf8(&all)
            && error.error_len().is_none()
            && all.len() - error.valid_up_to() <= MAX_TAIL
        {
            self.tail = all.split_off(error.valid_up_to());
        }
        (!all.is_empty()).then(|| encode(&all, false))
    }

    /// What was kept back and will not be completed any more.
    pub(super) fn rest(&mut self) -> Option<(String, Encoding)> {
        let rest = std::mem::take(&mut self.tail);
        (!rest.is_empty()).then(|| encode(&rest, false))
    }

    /// How many bytes are kept back.
    pub(super) fn kept_bytes(&self) -> u64 {
        u64::try_from(self.tail.len()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode((text, encoding): (String, Encoding)) -> Vec<u8> {
        encoding.read("x", text).unwrap().to_vec()
    }

    #[test]
    fn half_a_character_at_the_cut_does_not_make_text_binary() {
        let text = "aé".as_bytes();
        assert_eq!(encode(&text[..2], true), ("a".into(), Encoding::Utf8));
        assert_eq!(encode(&text[..2], false).1, Encoding::Base64);
    }

    proptest! {
        #[test]
        fn any_bytes_come_back_unharmed(bytes: Vec<u8>) {
            prop_assert_eq!(decode(encode(&bytes, false)), bytes);
        }

        #[test]
        fn text_in_pieces_stays_text(text in "[a-zäß€😀]{0,40}", step in 1_usize..9) {
            let mut pieces = Pieces::default();
            let mut said = String::new();
            for piece in text.as_bytes().chunks(step) {
                if let Some((text, encoding)) = pieces.next(piece) {
                    prop_assert_eq!(encoding, Encoding::Utf8);
                    said.push_str(&text);
                }
            }
            prop_assert_eq!(pieces.rest(), None);
            prop_assert_eq!(said, text);
        }

        #[test]
        fn bytes_in_pieces_come_back_unharmed(bytes: Vec<u8>, step in 1_usize..9) {
            let mut pieces = Pieces::default();
            let mut said = Vec::new();
            for piece in bytes.chunks(step) {
                said.extend(pieces.next(piece).map(decode).unwrap_or_default());
                prop_assert!(pieces.kept_bytes() <= 3);
            }
            said.extend(pieces.rest().map(decode).unwrap_or_default());
            prop_assert_eq!(said, bytes);
        }
    }
}
