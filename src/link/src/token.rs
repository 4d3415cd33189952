//! The secret by which a guest proves whose sandbox it is.
//!
//! It is compared in constant time, wiped on drop, and never printed. Making it (randomness) is the daemon's business.

use std::io::{self, ErrorKind, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// Fewest characters of a token: 128 bits in hexadecimal.
const MIN_CHARS: usize = 32;
/// Most characters of a token.
const MAX_CHARS: usize = 256;

/// Longest token file, in bytes.
const MAX_FILE_BYTES: u64 = 512;

/// A sandbox's link token: 32 to 256 visible ASCII characters.
#[derive(Clone, Deserialize, Serialize)]
#[serde(try_from = "String")]
pub struct LinkToken(String);

/// The text is no token. Says nothing about the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a link token has {MIN_CHARS} to {MAX_CHARS} visible ASCII characters")]
pub struct BadToken;

impl LinkToken {
    /// Takes a token as it stands in its file, without the white space around it.
    ///
    /// # Errors
    /// [`BadToken`] when it is too short, too long or has other than visible ASCII characters.
    pub fn parse(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        let bounded = (MIN_CHARS..=MAX_CHARS).contains(&text.len());
        if bounded && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadToken)
        }
    }

    /// Reads a token from its file.
    ///
    /// # Errors
    /// What reading the file says, or `InvalidData` when it holds no token.
    pub fn read(path: &Path) -> io::Result<Self> {
        // With room for all of it, so that it never moves and leaves a copy behind.
        let mut text = Zeroizing::new(String::with_capacity(1024));
        std::fs::File::open(path)?
            .take(MAX_FILE_BYTES)
            .read_to_string(&mut text)?;
        Self::parse(&text).map_err(|bad| io::Error::new(ErrorKind::InvalidData, bad))
    }

    /// Whether both are the same, in a time that does not depend on where they differ.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }

    /// The text, for the file that the guest reads. Nothing else may see it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LinkToken {
    type Error = BadToken;

    fn try_from(mut text: String) -> Result<Self, BadToken> {
        let token = Self::parse(&text);
        text.zeroize();
        token
    }
}

impl std::fmt::Debug for LinkToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkToken(…)")
    }
}

impl Drop for LinkToken {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_never_shows_in_debug() {
        let token = LinkToken::parse(&"k".repeat(32)).unwrap();
        assert_eq!(format!("{token:?}"), "LinkToken(…)");
    }

    #[test]
    fn tokens_match_only_themselves() {
        let token = LinkToken::parse(&"a".repeat(64)).unwrap();
        assert!(token.matches(&LinkToken::parse(&format!(" {}\n", "a".repeat(64))).unwrap()));
        assert!(!token.matches(&LinkToken::parse(&"a".repeat(63)).unwrap()));
        assert!(!token.matches(&LinkToken::parse(&format!("{}b", "a".repeat(63))).unwrap()));
    }

    #[test]
    fn a_token_file_may_end_with_a_newline_and_must_hold_a_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, format!("{}\n", "a".repeat(64))).unwrap();
        assert_eq!(LinkToken::read(&path).unwrap().expose(), "a".repeat(64));
        for bad in ["", "short\n", &"a".repeat(4000)] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(
                LinkToken::read(&path).unwrap_err().kind(),
                ErrorKind::InvalidData
            );
        }
    }

    #[test]
    fn short_long_and_invisible_tokens_are_refused() {
        for text in [
            "",
            "short",
            &"x".repeat(257),
            &"é".repeat(32),
            &format!("{}\0", "x".repeat(40)),
        ] {
            assert_eq!(LinkToken::parse(text).unwrap_err(), BadToken);
        }
    }
}
