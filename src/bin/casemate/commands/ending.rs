//! How a program in a sandbox ended and what it wrote, as the HTTP API tells it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate::base::exit::Exit;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// How a program ended.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ending {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    pub timed_out: bool,
}

impl Ending {
    /// As a shell would tell it: the code, or 128 and the signal, or 124 as `timeout(1)` does.
    pub fn code(&self) -> Result<u8, Failure> {
        if self.timed_out {
            return Ok(Exit::TimedOut.code());
        }
        let code = match (self.exit_code, self.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => signal.saturating_add(128),
            (None, None) => return Err(Failure::mismatch()),
        };
        u8::try_from(code).map_err(|_| Failure::mismatch())
    }
}

/// The bytes that stand in JSON as text, or in base 64 where they are none.
pub fn decode(text: String, encoding: &str) -> Result<Vec<u8>, Failure> {
    match encoding {
        "utf-8" => Ok(text.into_bytes()),
        "base64" => STANDARD.decode(text).map_err(|_| Failure::mismatch()),
        _ => Err(Failure::mismatch()),
    }
}

/// The same the other way: the text, and how it is written.
pub fn encode(bytes: &[u8]) -> (String, &'static str) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), "utf-8"),
        Err(_) => (STANDARD.encode(bytes), "base64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(exit_code: Option<i32>, signal: Option<i32>, timed_out: bool) -> Result<u8, Failure> {
        let ending = Ending {
            exit_code,
            signal,
            timed_out,
        };
        ending.code()
    }

    #[test]
    fn the_end_of_the_program_is_the_end_of_casemate() {
        assert_eq!(code(Some(7), None, false), Ok(7));
        assert_eq!(code(None, Some(9), false), Ok(137));
        assert_eq!(code(None, Some(15), true), Ok(124));
        assert_eq!(code(Some(0), None, true), Ok(124));
        for (exit_code, signal) in [
            (None, None),
            (Some(256), None),
            (Some(-1), None),
            (None, Some(i32::MAX)),
        ] {
            assert!(code(exit_code, signal, false).is_err());
        }
    }

    #[test]
    fn an_encoding_that_nobody_knows_is_not_guessed() {
        assert_eq!(decode("/w==".into(), "base64"), Ok(vec![0xff]));
        assert!(decode("/w==".into(), "base58").is_err());
        assert!(decode("!".into(), "base64").is_err());
        for bytes in [&b"a\n"[..], &[0xff, 0]] {
            let (text, encoding) = encode(bytes);
            assert_eq!(decode(text, encoding).unwrap(), bytes);
        }
    }
}
