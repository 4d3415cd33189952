//! Floor 4: who a caller is. API keys: 256 random bits, stored only as a keyed hash, shown once. Tokens of others: [`jwt`]. Whoever
//! administers from elsewhere: [`operator`].
//!
//! One key has two spellings, because some E2B SDKs take only keys of the form `e2b_<lowercase hex>`:
//! `cmk_<26 characters of its id>_<64 hexadecimal digits>` and `e2b_<32 digits of its id><64 digits>`.

pub mod jwt;
pub mod operator;

use std::fmt;

use ring::hmac;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::base::id::KeyId;
use crate::base::secret::Secret;

/// The key of the keyed hash. Without it a stolen database does not help to try keys.
pub struct KeyHasher(hmac::Key);

/// Bytes of the hash key.
pub const HASH_KEY_BYTES: usize = 32;

/// What the file of that key is called, in the directory of the state.
pub const HASH_KEY_FILE: &str = "keys.hmac";

/// An API key as its owner presents it.
pub struct PresentedKey {
    /// Its public part.
    pub id: KeyId,
    secret: Secret<[u8; 32]>,
}

/// The text is not an API key in either spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an API key")]
pub struct NotAKey;

/// The operating system gave no random bytes.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("ask the operating system for random bytes")]
pub struct NoRandomness;

impl KeyHasher {
    /// A hasher with this key.
    #[must_use]
    pub fn new(key: &Secret<[u8; HASH_KEY_BYTES]>) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key.expose()))
    }

    /// What the store keeps of a key. The id is part of it: a hash cannot be moved to another id.
    #[must_use]
    pub fn digest(&self, key: &PresentedKey) -> [u8; 32] {
        let mut digest = [0; 32];
        for (to, from) in digest.iter_mut().zip(self.sign(key).as_ref()) {
            *to = *from;
        }
        digest
    }

    /// Whether the store's digest is of this key; takes the same time either way.
    #[must_use]
    pub fn matches(&self, key: &PresentedKey, digest: &[u8; 32]) -> bool {
        use subtle::ConstantTimeEq;
        self.digest(key).ct_eq(digest).into()
    }

    fn sign(&self, key: &PresentedKey) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&key.id.to_bytes());
        context.update(key.secret.expose());
        context.sign()
    }
}

impl fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHasher([redacted])")
    }
}

impl fmt::Debug for PresentedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PresentedKey({}, [redacted])", self.id)
    }
}

impl PresentedKey {
    /// A new key with this public part.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate(id: KeyId) -> Result<Self, NoRandomness> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|_| NoRandomness)?;
        let secret = Secret::new(bytes);
        bytes.zeroize();
        Ok(Self { id, secret })
    }

    /// The text to hand to its owner, once.
    #[must_use]
    pub fn reveal(&self) -> Secret<String> {
        Secret::new(format!(
            "cmk_{}_{}",
            self.id.suffix(),
            hex(self.secret.expose())
        ))
    }

    /// The same key as `e2b_…`.
    #[must_use]
    pub fn reveal_e2b(&self) -> Secret<String> {
        Secret::new(format!(
            "e2b_{}{}",
            hex(&self.id.to_bytes()),
            hex(self.secret.expose())
        ))
    }

    /// Reads either spelling.
    ///
    /// # Errors
    /// When the text is neither.
    pub fn parse(text: &str) -> Result<Self, NotAKey> {
        if let Some(rest) = text.strip_prefix("cmk_") {
            let (id, secret) = rest.split_once('_').ok_or(NotAKey)?;
            return Ok(Self {
                id: format!("key_{id}").parse().map_err(|_| NotAKey)?,
                secret: Secret::new(unhex(secret)?),
            });
        }
        let (id, secret) = text
            .strip_prefix("e2b_")
            .and_then(|hex| hex.split_at_checked(32))
            .ok_or(NotAKey)?;
        Ok(Self {
            id: KeyId::from_bytes(unhex(id)?),
            secret: Secret::new(unhex(secret)?),
        })
    }
}

/// Whether this is the SHA-256 of a text with a secret in it; how long it takes does not tell how much of it is right.
#[must_use]
pub fn is_digest_of(text: &[u8], claimed: &[u8; 32]) -> bool {
    digest(text).ct_eq(claimed).into()
}

/// SHA-256, to recognise a repeated request.
#[must_use]
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    let made = ring::digest::digest(&ring::digest::SHA256, bytes);
    for (to, from) in digest.iter_mut().zip(made.as_ref()) {
        *to = *from;
    }
    digest
}

/// SHA-256 of what comes in pieces: names the content of an image.
pub struct ContentHash(ring::digest::Context);

impl Default for ContentHash {
    fn default() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }
}

impl ContentHash {
    /// Adds what comes next.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all that was added.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        let mut digest = [0; 32];
        for (to, from) in digest.iter_mut().zip(self.0.finish().as_ref()) {
            *to = *from;
        }
        digest
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// What a lowercase hexadecimal digit stands for.
const fn digit(text: u8) -> u8 {
    match text {
        b'0'..=b'9' => text - b'0',
        _ => text.wrapping_sub(b'a').wrapping_add(10),
    }
}

/// Exactly `N` bytes of lowercase hexadecimal digits.
fn unhex<const N: usize>(text: &str) -> Result<[u8; N], NotAKey> {
    if text.len() != 2 * N || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(NotAKey);
    }
    let mut bytes = [0; N];
    let (pairs, _) = text.as_bytes().as_chunks::<2>();
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high) << 4 | digit(*low);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hasher(byte: u8) -> KeyHasher {
        KeyHasher::new(&Secret::new([byte; HASH_KEY_BYTES]))
    }

    fn key(byte: u8) -> PresentedKey {
        PresentedKey::generate(KeyId::from_bytes([byte; 16])).unwrap()
    }

    #[test]
    fn both_spellings_are_one_key() {
        let key = key(9);
        let digest = hasher(1).digest(&key);
        for text in [key.reveal(), key.reveal_e2b()] {
            let read = PresentedKey::parse(text.expose()).unwrap();
            assert!(hasher(1).matches(&read, &digest));
        }
        let e2b = key.reveal_e2b();
        assert!(
            e2b.expose()[4..]
                .bytes()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        );
    }

    #[test]
    fn another_key_id_or_hash_key_does_not_match() {
        let one = key(1);
        let digest = hasher(1).digest(&one);
        assert!(!hasher(1).matches(&key(1), &digest));
        assert!(!hasher(2).matches(&one, &digest));
        let moved = PresentedKey {
            id: KeyId::from_bytes([2; 16]),
            secret: one.secret.clone(),
        };
        assert!(!hasher(1).matches(&moved, &digest));
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = key(1);
        let secret = hex(key.secret.expose());
        assert!(!format!("{key:?} {:?}", key.reveal()).contains(&secret));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(cmk_|e2b_)?\\PC{0,110}") {
            if let Ok(key) = PresentedKey::parse(&text) {
                let same = key.reveal().expose() == &text || key.reveal_e2b().expose() == &text;
                prop_assert!(same);
            }
        }
    }
}
