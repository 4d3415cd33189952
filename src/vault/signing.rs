//! Signatures (Ed25519): the private part is sealed and never shown.

use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::{Vault, VaultError};

/// Bytes of an Ed25519 public key.
pub const PUBLIC_KEY_BYTES: usize = 32;

/// Signs; the private part is never shown.
pub struct SigningKey(Ed25519KeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey([redacted])")
    }
}

impl Vault {
    /// Makes a key to sign with, sealed under its name.
    ///
    /// # Errors
    /// [`VaultError::NoRandomness`].
    pub fn make_signing_key(&self, name: &'static str) -> Result<Vec<u8>, VaultError> {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| VaultError::NoRandomness)?;
        self.seal(name, key.as_ref())
    }

    /// Opens a key to sign with.
    ///
    /// # Errors
    /// [`VaultError::WrongKey`].
    pub fn signing_key(&self, name: &'static str, sealed: &[u8]) -> Result<SigningKey, VaultError> {
        let pkcs8 = self.unseal(name, sealed)?;
        match Ed25519KeyPair::from_pkcs8(&pkcs8) {
            Ok(key) => Ok(SigningKey(key)),
            Err(_) => Err(self.current().wrong(name)),
        }
    }
}

impl SigningKey {
    /// Signs (Ed25519, RFC 8032).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }

    /// The public part.
    #[must_use]
    pub fn public(&self) -> [u8; PUBLIC_KEY_BYTES] {
        let mut public = [0; PUBLIC_KEY_BYTES];
        for (to, from) in public.iter_mut().zip(self.0.public_key().as_ref()) {
            *to = *from;
        }
        public
    }
}

/// Whether the key with this public part signed the message.
#[must_use]
pub fn is_signed_by(public: &[u8; PUBLIC_KEY_BYTES], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public)
        .verify(message, signature)
        .is_ok()
}
