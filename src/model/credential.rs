//! Credentials: what a team needs to reach something else, sealed. Its value goes in and never comes out of a door.

use std::fmt;

use super::name::Name;
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;

/// Longest value, in bytes. A private key with its chain of certificates has a tenth of it.
pub const MAX_VALUE_BYTES: usize = 64 << 10;
/// Longest description, in bytes.
pub const MAX_DESCRIPTION_BYTES: usize = 512;
/// Most credentials of one team: with the longest values they are 16 MiB of the database.
pub const MAX_CREDENTIALS_OF_TEAM: u32 = 256;

/// A value that cannot be one. Says nothing of what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCredential {
    /// There are no bytes in it.
    #[error("the value is empty; remove the credential instead")]
    Empty,
    /// There are too many.
    #[error("the value has more than {MAX_VALUE_BYTES} bytes")]
    TooLong,
    /// The description is too long, or would not be one line.
    #[error(
        "the description is one line of at most {MAX_DESCRIPTION_BYTES} bytes without control characters"
    )]
    Description,
}

/// The value of a credential: 1 to [`MAX_VALUE_BYTES`] bytes, any bytes. Wiped when dropped, never printed.
#[derive(Clone, Debug)]
pub struct CredentialValue(Secret<Vec<u8>>);

impl CredentialValue {
    /// Takes the bytes into custody.
    ///
    /// # Errors
    /// [`BadCredential::Empty`], [`BadCredential::TooLong`].
    pub fn new(bytes: Vec<u8>) -> Result<Self, BadCredential> {
        let secret = Secret::new(bytes);
        match secret.expose().len() {
            0 => Err(BadCredential::Empty),
            1..=MAX_VALUE_BYTES => Ok(Self(secret)),
            _ => Err(BadCredential::TooLong),
        }
    }

    /// Shows the bytes. Each caller is a place where they could leak.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }
}

/// What is said of a credential in the clear: one line of at most [`MAX_DESCRIPTION_BYTES`] bytes; may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description(String);

impl Description {
    /// Reads it.
    ///
    /// # Errors
    /// [`BadCredential::Description`].
    pub fn new(text: String) -> Result<Self, BadCredential> {
        if text.len() > MAX_DESCRIPTION_BYTES || text.chars().any(char::is_control) {
            return Err(BadCredential::Description);
        }
        Ok(Self(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which credential, and which of its values: what its seals are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialPlace {
    /// Whose it is.
    pub team: Name,
    /// Its name.
    pub name: Name,
    /// The value's number, which no other value of that name ever has.
    pub version: u32,
}

impl fmt::Display for CredentialPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} version {}", self.team, self.name, self.version)
    }
}

/// A value as it is kept: under a key of its own, which is under the vault's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedValue {
    /// The generation of the vault's key that the data key is under.
    pub generation: u64,
    /// The data key, sealed.
    pub data_key: Vec<u8>,
    /// The value, sealed under the data key.
    pub value: Vec<u8>,
}

/// What tells the vault's key from any other: kept in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// Counts the vault's keys, from one.
    pub generation: u64,
    /// Something sealed under this key, and no secret.
    pub proof: Vec<u8>,
}

/// One thing that is sealed right under the root key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrapped {
    /// A secret of the daemon's own, of this name.
    Named(String),
    /// The data key of a credential's value.
    DataKey(CredentialPlace),
}

impl fmt::Display for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::DataKey(place) => write!(f, "the credential {place}"),
        }
    }
}

/// A credential as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Its name.
    pub name: Name,
    /// The number of its value.
    pub version: u32,
    /// What it is for, in its team's words.
    pub description: String,
    /// Who set the first of its values, as the audit log writes principals.
    pub made_by: String,
    /// When.
    pub made_at: Timestamp,
    /// Who set the value that it has.
    pub changed_by: String,
    /// When.
    pub changed_at: Timestamp,
    /// When a value was last given out.
    pub used_at: Option<Timestamp>,
    /// For what.
    pub used_for: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_bounded_and_never_printed() {
        assert_eq!(
            CredentialValue::new(Vec::new()).unwrap_err(),
            BadCredential::Empty
        );
        let most = vec![b'x'; MAX_VALUE_BYTES];
        let value = CredentialValue::new(most.clone()).unwrap();
        assert_eq!(value.expose(), most);
        assert_eq!(format!("{value:?}"), "CredentialValue([redacted])");
        let more = [most, vec![b'x']].concat();
        assert_eq!(
            CredentialValue::new(more).unwrap_err(),
            BadCredential::TooLong
        );
        assert!(CredentialValue::new(vec![0, 0xff, b'\n']).is_ok());
    }

    #[test]
    fn a_description_is_one_line() {
        for good in ["", "the pump's database", "é", &"x".repeat(512)] {
            assert!(Description::new(good.into()).is_ok(), "{good}");
        }
        for bad in ["a\nb", "\u{1b}[2J", "\u{9b}1m", "a\0", &"x".repeat(513)] {
            assert!(Description::new(bad.into()).is_err(), "{bad}");
        }
    }
}
