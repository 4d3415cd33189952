//! Sessions' environments are sealed in the database: a copy of it, or a backup, does not show them.

use zeroize::Zeroizing;

use super::NoVault;
use crate::store::{Store, Veil};
use crate::vault::{RowKey, Vault, VaultError};

/// Under which name the key is sealed.
const KEY: &str = "session-environments";

struct Rows(RowKey);

impl Veil for Rows {
    fn seal(&self, place: &str, clear: &[u8]) -> Option<Vec<u8>> {
        self.0.seal(place, clear).ok()
    }

    fn open(&self, place: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        self.0.open(place, sealed)
    }
}

/// Gives the store its veil, with the key of this state; made when there is none.
pub(super) async fn draw(store: &Store, vault: &Vault) -> Result<(), NoVault> {
    let kept = if let Some(kept) = store.sealed(KEY).await? {
        kept
    } else {
        let made = vault.make_row_key(KEY)?;
        store.keep_sealed(KEY, made.clone()).await?;
        made
    };
    store.draw_veil(Box::new(Rows(vault.row_key(KEY, &kept)?)));
    Ok(())
}

/// The same with a key that nothing keeps, where there is no veil yet: what it seals is worth nothing to the next daemon.
///
/// # Errors
/// [`VaultError::NoRandomness`].
pub fn fleeting(store: &Store, vault: &Vault) -> Result<(), VaultError> {
    let made = vault.make_row_key(KEY)?;
    store.draw_veil(Box::new(Rows(vault.row_key(KEY, &made)?)));
    Ok(())
}
