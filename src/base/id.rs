//! Typed identifiers: a prefix that says of what, then 26 characters that sort by time.
//!
//! The 26 characters are a ULID (48 bits of milliseconds, 80 random bits) in lowercase Crockford
//! base 32, so that an identifier fits into a host name. One kind cannot be passed for another.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ulid::Ulid;

use super::clock::Timestamp;

/// What an identifier names. Implemented by empty marker types.
pub trait Kind {
    /// The text before the underscore, for example `ses`.
    const PREFIX: &'static str;
}

/// An identifier of one kind of thing, for example `ses_01j9z3k4m5n6p7q8r9s0t1v2w3`.
pub struct Id<K>(Ulid, PhantomData<fn() -> K>);

/// Marks the identifiers of sessions.
#[derive(Debug)]
pub enum Session {}
/// Marks the identifiers of API keys.
#[derive(Debug)]
pub enum Key {}
/// Marks the identifiers of audit events.
#[derive(Debug)]
pub enum Event {}
/// Marks the identifiers of requests.
#[derive(Debug)]
pub enum Request {}
/// Marks the identifier of one installation: one state directory.
#[derive(Debug)]
pub enum Installation {}

/// Marks the identifiers of volumes.
#[derive(Debug)]
pub enum Volume {}

impl Kind for Session {
    const PREFIX: &'static str = "ses";
}
impl Kind for Key {
    const PREFIX: &'static str = "key";
}
impl Kind for Event {
    const PREFIX: &'static str = "evt";
}
impl Kind for Request {
    const PREFIX: &'static str = "req";
}
impl Kind for Installation {
    const PREFIX: &'static str = "ins";
}
impl Kind for Volume {
    const PREFIX: &'static str = "vol";
}

/// Names a session.
pub type SessionId = Id<Session>;
/// Names a volume.
pub type VolumeId = Id<Volume>;
/// Names an API key.
pub type KeyId = Id<Key>;
/// Names an audit event.
pub type EventId = Id<Event>;
/// Names a request, in answers and logs.
pub type RequestId = Id<Request>;
/// Names an installation, in the labels of its sandboxes.
pub type InstallationId = Id<Installation>;

impl<K: Kind> Id<K> {
    /// A new identifier of the given time. Random bits come from the operating system.
    ///
    /// # Errors
    /// When the system has no randomness to give, which no caller can mend.
    pub fn generate(now: Timestamp) -> Result<Self, NoRandomness> {
        let mut random = [0_u8; 16];
        getrandom::fill(&mut random).map_err(NoRandomness)?;
        let millis = u64::try_from(now.as_millis()).unwrap_or(0);
        Ok(Self::from_ulid(Ulid::from_parts(
            millis,
            u128::from_be_bytes(random),
        )))
    }

    /// The 128 bits, most significant byte first.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_bytes()
    }

    /// The identifier with these 128 bits.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self::from_ulid(Ulid::from_bytes(bytes))
    }

    /// The 26 characters without the prefix.
    #[must_use]
    pub fn suffix(self) -> String {
        self.0.to_string().to_ascii_lowercase()
    }

    const fn from_ulid(ulid: Ulid) -> Self {
        Self(ulid, PhantomData)
    }
}

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("ask the operating system for random bytes")]
pub struct NoRandomness(#[source] getrandom::Error);

/// The text is not an identifier of this kind.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected {expected}_ and 26 characters of lowercase base 32")]
pub struct InvalidId {
    expected: &'static str,
}

impl<K: Kind> FromStr for Id<K> {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = InvalidId {
            expected: K::PREFIX,
        };
        let Some(suffix) = text
            .strip_prefix(K::PREFIX)
            .and_then(|rest| rest.strip_prefix('_'))
        else {
            return Err(invalid);
        };
        match Ulid::from_string(suffix) {
            // One spelling only: no capitals, no look-alike letters, nothing past 128 bits.
            Ok(ulid) if Self::from_ulid(ulid).suffix() == suffix => Ok(Self::from_ulid(ulid)),
            _ => Err(invalid),
        }
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", K::PREFIX, self.suffix())
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<K> std::hash::Hash for Id<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<K: Kind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: Kind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<K: Kind> JsonSchema for Id<K> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Id_{}", K::PREFIX).into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": format!("^{}_[0-9a-hjkmnp-tv-z]{{26}}$", K::PREFIX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sorts_by_time_and_reads_back() {
        let early = SessionId::generate(Timestamp::from_millis(1_000)).unwrap();
        let late = SessionId::generate(Timestamp::from_millis(2_000)).unwrap();
        assert!(early < late);
        assert!(early.to_string() < late.to_string());
        assert_eq!(early.to_string().parse(), Ok(early));
        assert_eq!(early.to_string().len(), 30);
    }

    #[test]
    fn one_kind_is_not_another_and_there_is_one_spelling() {
        let id = SessionId::generate(Timestamp::from_millis(1)).unwrap();
        assert!(id.to_string().parse::<KeyId>().is_err());
        assert!(id.to_string().to_uppercase().parse::<SessionId>().is_err());
        // More than 128 bits.
        assert!(
            "ses_zzzzzzzzzzzzzzzzzzzzzzzzzz"
                .parse::<SessionId>()
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic_and_only_in_its_own_spelling(text in "\\PC{0,40}") {
            if let Ok(id) = text.parse::<SessionId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn any_128_bits_read_back(bytes: [u8; 16]) {
            let id = KeyId::from_bytes(bytes);
            prop_assert_eq!(id.to_bytes(), bytes);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }
    }
}
