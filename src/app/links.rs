//! Signed links to ports in sessions, and the cookies that they are exchanged for.
//!
//! Each names a session, a port, an end and the key of whoever made it, under a tag that only this installation can make. Nothing of a key's
//! text is in it. It is worth what that key is worth at the time, and nothing once the key is revoked, or its session has ended.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::base::clock::Timestamp;
use crate::base::id::{KeyId, SessionId};
use crate::model::endpoint::Target;
use crate::store::{Store, StoreError};
use crate::vault::{MacKey, TAG_BYTES, Vault, VaultError};

/// Under which name the key of the tags is sealed.
const KEY: &str = "endpoint-links";

/// Bytes before the tag: kind, session, port, end, key.
const BODY_BYTES: usize = 1 + 16 + 2 + 8 + 16;

/// Longest text that is looked at.
const MAX_TEXT_BYTES: usize = 256;

/// What a pass is for: one cannot stand in for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassKind {
    /// In the query of an address.
    Link,
    /// In a browser.
    Cookie,
}

/// What lets somebody in to one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// What it is for.
    pub kind: PassKind,
    /// The one port.
    pub target: Target,
    /// Whose word it is.
    pub key: KeyId,
    /// Until when it is good.
    pub expires_at: Timestamp,
}

/// Why links cannot be made or known again.
#[derive(Debug, thiserror::Error)]
pub enum LinksError {
    /// The state failed.
    #[error("keep the key of signed links")]
    Store(#[from] StoreError),
    /// The vault failed.
    #[error("open the key of signed links")]
    Vault(#[from] VaultError),
}

/// Makes links and cookies, and knows them again.
#[derive(Debug)]
pub struct Links(MacKey);

impl Links {
    /// With the key of this installation; made when there is none.
    ///
    /// # Errors
    /// [`LinksError`].
    pub async fn open(store: &Store, vault: &Vault) -> Result<Self, LinksError> {
        if let Some(sealed) = store.sealed(KEY).await? {
            return Ok(Self(vault.mac_key(KEY, &sealed)?));
        }
        let sealed = vault.make_mac_key(KEY)?;
        store.keep_sealed(KEY, sealed.clone()).await?;
        Ok(Self(vault.mac_key(KEY, &sealed)?))
    }

    /// With a key that nothing keeps: what it makes is worth nothing to the next daemon.
    ///
    /// # Errors
    /// [`LinksError::Vault`].
    pub fn fleeting(vault: &Vault) -> Result<Self, LinksError> {
        let sealed = vault.make_mac_key(KEY)?;
        Ok(Self(vault.mac_key(KEY, &sealed)?))
    }

    /// The tag of something else that is not kept; its length tells it from a pass.
    pub(super) fn tag(&self, message: &[u8]) -> Vec<u8> {
        self.0.tag(message)
    }

    /// Whether a tag is ours.
    pub(super) fn knows(&self, message: &[u8], tag: &[u8]) -> bool {
        self.0.knows(message, tag)
    }

    /// The text of a pass.
    pub(super) fn write(&self, pass: &Pass) -> String {
        let mut body = Vec::with_capacity(BODY_BYTES + TAG_BYTES);
        body.push(match pass.kind {
            PassKind::Link => 1,
            PassKind::Cookie => 2,
        });
        body.extend(pass.target.session.to_bytes());
        body.extend(pass.target.port.to_be_bytes());
        body.extend(pass.expires_at.as_millis().to_be_bytes());
        body.extend(pass.key.to_bytes());
        let tag = self.0.tag(&body);
        body.extend(tag);
        URL_SAFE_NO_PAD.encode(body)
    }

    /// The pass of a text, if we made it. Whether it is still good is for whoever asks.
    pub(super) fn read(&self, text: &str) -> Option<Pass> {
        if text.len() > MAX_TEXT_BYTES {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (body, tag) = bytes.split_at_checked(BODY_BYTES)?;
        if tag.len() != TAG_BYTES || !self.0.knows(body, tag) {
            return None;
        }
        let (kind, rest) = body.split_first()?;
        let (session, rest) = rest.split_first_chunk::<16>()?;
        let (port, rest) = rest.split_first_chunk::<2>()?;
        let (end, rest) = rest.split_first_chunk::<8>()?;
        let (key, _) = rest.split_first_chunk::<16>()?;
        Some(Pass {
            kind: match kind {
                1 => PassKind::Link,
                2 => PassKind::Cookie,
                _ => return None,
            },
            target: Target {
                session: SessionId::from_bytes(*session),
                port: u16::from_be_bytes(*port),
            },
            key: KeyId::from_bytes(*key),
            expires_at: Timestamp::from_millis(i64::from_be_bytes(*end)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn links() -> (Links, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::open(None, directory.path(), false).unwrap();
        (Links::fleeting(&vault).unwrap(), directory)
    }

    fn pass(kind: PassKind) -> Pass {
        Pass {
            kind,
            target: Target {
                session: SessionId::from_bytes([3; 16]),
                port: 8888,
            },
            key: KeyId::from_bytes([9; 16]),
            expires_at: Timestamp::from_millis(1_800_000_000_000),
        }
    }

    #[test]
    fn a_pass_reads_back_and_no_bit_of_it_can_be_changed() {
        let (links, _directory) = links();
        for kind in [PassKind::Link, PassKind::Cookie] {
            let text = links.write(&pass(kind));
            assert_eq!(links.read(&text), Some(pass(kind)));
            let bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
            for at in 0..bytes.len() * 8 {
                let mut other = bytes.clone();
                other[at / 8] ^= 1 << (at % 8);
                assert_eq!(links.read(&URL_SAFE_NO_PAD.encode(other)), None, "bit {at}");
            }
            for other in [
                &text[1..],
                &text[..text.len() - 1],
                &format!("{text}A"),
                &format!("{text}="),
                "",
            ] {
                assert_eq!(links.read(other), None, "{other}");
            }
        }
    }

    #[test]
    fn a_pass_of_another_installation_is_none() {
        let ((one, _d), (other, _e)) = (links(), links());
        assert_eq!(other.read(&one.write(&pass(PassKind::Link))), None);
    }

    proptest! {
        #[test]
        fn whatever_is_shown_is_no_pass(text in "\\PC{0,300}") {
            let (links, _directory) = links();
            prop_assert_eq!(links.read(&text), None);
        }
    }
}
