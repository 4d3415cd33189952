//! Which image a sandbox is made of: always its digest, never a tag.
//!
//! The digest is that of the image's *configuration* (podman's image id). It names every layer by
//! the digest of its uncompressed content and does not change when a store compresses layers anew,
//! as the digest of a manifest does. Tags can be moved, so nothing here accepts one.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `sha256:` and 64 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageDigest([u8; 32]);

/// The text does not pin an image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidDigest {
    /// A name or a tag, whose content may change.
    #[error(
        "an image is named by its digest, sha256: and 64 hexadecimal digits; a tag can be moved"
    )]
    Tag,
    /// Starts as a digest but is not one.
    #[error("a digest is sha256: and 64 lowercase hexadecimal digits")]
    Malformed,
}

impl ImageDigest {
    /// The digest with these 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 64 hexadecimal digits without the algorithm, as podman writes an image id.
    #[must_use]
    pub fn hex(&self) -> String {
        use fmt::Write;
        self.0
            .iter()
            .fold(String::with_capacity(64), |mut text, byte| {
                // Writing to a String cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
    }
}

impl FromStr for ImageDigest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let hex = text.strip_prefix("sha256:").ok_or(InvalidDigest::Tag)?;
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(InvalidDigest::Malformed);
        }
        let mut bytes = [0_u8; 32];
        for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| InvalidDigest::Malformed)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| InvalidDigest::Malformed)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ImageDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for ImageDigest {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ImageDigest".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^sha256:[0-9a-f]{64}$",
            "description": "The digest of an image's configuration",
        })
    }
}

/// The digest of what is in a layer of an image, uncompressed; written like an image's.
pub type LayerDigest = ImageDigest;

/// The label of an image that was made of a session, with the id of the installation that made it. An image's labels come to
/// its containers too, so it is none of those by which sandboxes are known.
pub const SNAPSHOT_LABEL: &str = "io.casemate.snapshot-of";

/// An image in podman's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// What pins it.
    pub digest: ImageDigest,
    /// Names it carries, for people only.
    pub names: Vec<String>,
    /// Size of its layers on disk.
    pub size_bytes: u64,
    /// The installation that made it of a session; absent for one that was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_of: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tag_is_told_apart_from_a_broken_digest() {
        assert_eq!("python:3".parse::<ImageDigest>(), Err(InvalidDigest::Tag));
        assert_eq!(
            "sha256:ABC".parse::<ImageDigest>(),
            Err(InvalidDigest::Malformed)
        );
    }

    proptest! {
        #[test]
        fn any_digest_reads_back(bytes: [u8; 32]) {
            let digest = ImageDigest(bytes);
            prop_assert_eq!(digest.to_string().parse(), Ok(digest));
        }

        #[test]
        fn no_text_makes_it_panic(text in "(sha256:)?\\PC{0,70}") {
            if let Ok(digest) = text.parse::<ImageDigest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }
    }
}
