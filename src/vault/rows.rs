//! Seals what a row of the database must not show to whoever has a copy of it (AES-256-GCM), for its place alone. The key is itself
//! sealed, so that another root key needs nothing of the rows.

use std::fmt;

use zeroize::Zeroizing;

use super::root::{KeyBytes, fill, seal, unseal};
use super::{ROOT_KEY_BYTES, Vault, VaultError};

/// Seals and opens. Its nonces are random: it is good for 2^32 rows (NIST SP 800-38D section 8.3).
pub struct RowKey(Zeroizing<KeyBytes>);

impl fmt::Debug for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RowKey([redacted])")
    }
}

impl Vault {
    /// Makes a key for rows, sealed under its name.
    ///
    /// # Errors
    /// [`VaultError::NoRandomness`].
    pub fn make_row_key(&self, name: &'static str) -> Result<Vec<u8>, VaultError> {
        let mut key = Zeroizing::new([0; ROOT_KEY_BYTES]);
        fill(key.as_mut_slice())?;
        self.seal(name, key.as_slice())
    }

    /// Opens a key for rows.
    ///
    /// # Errors
    /// [`VaultError::WrongKey`].
    pub fn row_key(&self, name: &'static str, sealed: &[u8]) -> Result<RowKey, VaultError> {
        let opened = self.unseal(name, sealed)?;
        let key = KeyBytes::try_from(opened.as_slice());
        let key = key.map_err(|_| self.current().wrong(name))?;
        Ok(RowKey(Zeroizing::new(key)))
    }
}

impl RowKey {
    /// Seals a text for this place.
    ///
    /// # Errors
    /// [`VaultError::NoRandomness`].
    pub fn seal(&self, place: &str, text: &[u8]) -> Result<Vec<u8>, VaultError> {
        seal(&self.0, place.as_bytes(), text)
    }

    /// The text; `None` when it was damaged, or sealed for another place or by another key.
    #[must_use]
    pub fn open(&self, place: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        unseal(&self.0, place.as_bytes(), sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_in_its_place_with_its_key_and_whole() {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::open(None, directory.path(), false).unwrap();
        let kept = vault.make_row_key("a").unwrap();
        let key = vault.row_key("a", &kept).unwrap();
        assert!(vault.row_key("b", &kept).is_err());
        let sealed = key.seal("here", b"hush").unwrap();
        assert!(!sealed.windows(4).any(|window| window == b"hush"));
        assert_ne!(sealed, key.seal("here", b"hush").unwrap());
        assert_eq!(key.open("here", &sealed).unwrap().as_slice(), b"hush");
        assert!(key.open("there", &sealed).is_none());
        let other = vault.make_row_key("a").unwrap();
        let other = vault.row_key("a", &other).unwrap();
        assert!(other.open("here", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut broken = sealed.clone();
            broken[at] ^= 1;
            assert!(key.open("here", &broken).is_none(), "{at}");
            assert!(key.open("here", &sealed[..at]).is_none(), "{at}");
        }
    }
}
