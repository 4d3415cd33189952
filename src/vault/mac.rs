//! Tags by which we know again what we gave out (HMAC with SHA-256, RFC 2104): the key is sealed and never shown.

use std::fmt;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::{Vault, VaultError};

/// Bytes of a tag.
pub const TAG_BYTES: usize = 32;

/// Makes tags, and knows them again.
pub struct MacKey(hmac::Key);

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey([redacted])")
    }
}

impl Vault {
    /// Makes a key for tags, sealed under its name.
    ///
    /// # Errors
    /// [`VaultError::NoRandomness`].
    pub fn make_mac_key(&self, name: &'static str) -> Result<Vec<u8>, VaultError> {
        let mut key = Zeroizing::new([0; TAG_BYTES]);
        SystemRandom::new()
            .fill(key.as_mut_slice())
            .map_err(|_| VaultError::NoRandomness)?;
        self.seal(name, key.as_slice())
    }

    /// Opens a key for tags.
    ///
    /// # Errors
    /// [`VaultError::WrongKey`].
    pub fn mac_key(&self, name: &'static str, sealed: &[u8]) -> Result<MacKey, VaultError> {
        let key = self.unseal(name, sealed)?;
        if key.len() != TAG_BYTES {
            return Err(self.current().wrong(name));
        }
        Ok(MacKey(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }
}

impl MacKey {
    /// The tag of a message.
    #[must_use]
    pub fn tag(&self, message: &[u8]) -> Vec<u8> {
        hmac::sign(&self.0, message).as_ref().to_vec()
    }

    /// Whether the tag is the message's; in constant time.
    #[must_use]
    pub fn knows(&self, message: &[u8], tag: &[u8]) -> bool {
        hmac::verify(&self.0, message, tag).is_ok()
    }
}
