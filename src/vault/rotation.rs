//! Another root key in the place of the one that there is.
//!
//! ```text
//!  begin: the new key is made and kept beside the old one      killed here: the old one opens all, the new one is removed at the start
//!    v
//!  all that is sealed is sealed anew, in one transaction with the new key's proof
//!    v                                                         killed here: the new one opens all, and takes its place at the start
//!  settle: the new key takes the old one's place
//! ```
//! Invariant: a key that may be the database's is never removed. Which one is, the proof in the database tells, and nothing else. While it
//! is not known, both are held: what is sealed says its generation, and is opened with that one.

use std::path::Path;
use std::sync::Arc;

use tracing::{info, warn};

use super::root::{Root, named_context, read};
use super::{CREDENTIAL, FILE, NEXT_CREDENTIAL, NEXT_FILE, Vault, VaultError, envelope};
use crate::host::{directory, disk};
use crate::model::credential::{Anchor, Wrapped};

/// A rotation that was begun: seals anew what the database holds.
pub struct Rotation {
    from: Arc<Root>,
    to: Arc<Root>,
}

impl Rotation {
    /// The generation of the key that is to be replaced.
    #[must_use]
    pub fn from(&self) -> u64 {
        self.from.generation
    }

    /// What the database is to keep of the new key.
    ///
    /// # Errors
    /// [`VaultError::NoRandomness`].
    pub fn anchor(&self) -> Result<Anchor, VaultError> {
        self.to.anchor()
    }

    /// Opens with the old key and seals with the new one.
    ///
    /// # Errors
    /// A sentence that says why not; no secret is in it.
    pub fn rewrap(&self, what: &Wrapped, sealed: &[u8]) -> Result<Vec<u8>, String> {
        let rewrapped = match what {
            Wrapped::Named(name) => {
                let context = named_context(name);
                let opened = self.from.unseal(&context, sealed);
                opened.map(|secret| self.to.seal(&context, &secret))
            }
            Wrapped::DataKey(place) => envelope::rewrap(&self.from, &self.to, place, sealed),
        };
        match rewrapped {
            Some(sealed) => sealed.map_err(|error| error.to_string()),
            None => Err(format!(
                "{what} does not open with the vault's key; set its value anew or remove it, then rotate again"
            )),
        }
    }
}

impl Vault {
    /// Makes the key that is to follow, or takes the one that was given, and keeps it where it outlasts a power cut. Blocks on the disk. After it
    /// the vault opens what is sealed under either key; [`Vault::settle`] ends it.
    ///
    /// # Errors
    /// [`VaultError`]; then all is as before.
    pub fn begin_rotation(&self) -> Result<Rotation, VaultError> {
        if self.is_unsettled() {
            return Err(VaultError::Unsettled);
        }
        // A rotation before may have had no luck with the file; its key must not be overwritten.
        self.tidy()?;
        let from = self.current();
        let generation = from.generation.saturating_add(1);
        let to = Arc::new(match self.given_next(generation)? {
            Some(root) if root.bytes() == from.bytes() => return Err(VaultError::NextIsCurrent),
            Some(root) => root,
            None if from.origin == self.0.state_dir.join(FILE) => {
                let path = self.0.state_dir.join(NEXT_FILE);
                let root = Root::make(generation, path.clone())?;
                directory::write_secret(&path, root.bytes()).map_err(|source| VaultError::Io {
                    doing: "make",
                    path,
                    source,
                })?;
                root
            }
            None => return Err(VaultError::NoNextKey),
        });
        self.keys_mut().next = Some(Arc::clone(&to));
        Ok(Rotation { from, to })
    }

    /// Ends a rotation as the database says: the key of this generation is the one, and takes its place. Blocks on the disk. `true` when it is
    /// the new one.
    ///
    /// # Errors
    /// [`VaultError`]: the key's file is not in its place, which the next start or rotation tries again. [`VaultError::Unsettled`] when
    /// the generation is neither's.
    pub fn settle(&self, generation: u64) -> Result<bool, VaultError> {
        let is_new = {
            let mut keys = self.keys_mut();
            let is_next = |next: &Arc<Root>| next.generation == generation;
            if keys.next.as_ref().is_some_and(is_next) {
                if let Some(next) = keys.next.take() {
                    keys.current = next;
                }
                true
            } else if keys.current.generation == generation {
                keys.next = None;
                false
            } else {
                return Err(VaultError::Unsettled);
            }
        };
        self.tidy()?;
        Ok(is_new)
    }

    /// Whether a rotation was begun and not ended: either key may be the database's.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        self.keys().next.is_some()
    }

    /// Where the key comes from, for people.
    #[must_use]
    pub fn origin(&self) -> String {
        self.current().origin.display().to_string()
    }

    /// The key that the unit was given to follow the one that there is.
    fn given_next(&self, generation: u64) -> Result<Option<Root>, VaultError> {
        let Some(credentials) = &self.0.credentials else {
            return Ok(None);
        };
        let path = credentials.join(NEXT_CREDENTIAL);
        let key = read(&path, false)?;
        Ok(key.map(|key| Root::new(generation, key, path)))
    }

    /// Puts the key's file in its place, or removes one that came to nothing. The current key is known to be the database's.
    pub(super) fn tidy(&self) -> Result<(), VaultError> {
        let current = self.current();
        let (file, next) = [FILE, NEXT_FILE]
            .map(|name| self.0.state_dir.join(name))
            .into();
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| VaultError::Io {
                doing,
                path,
                source,
            }
        };
        if current.origin == next {
            // The old key goes with its name.
            std::fs::rename(&next, &file)
                .and_then(|()| disk::sync_directory(&self.0.state_dir))
                .map_err(|source| VaultError::NotInPlace { path: next, source })?;
            info!(
                generation = current.generation,
                "the vault's new key is in its place; keep a copy of vault.key apart from the backups"
            );
            self.keys_mut().current = Arc::new(current.moved(file));
        } else if current.origin == file && next.symlink_metadata().is_ok() {
            std::fs::remove_file(&next).map_err(io("remove", &next))?;
            disk::sync_directory(&self.0.state_dir).map_err(io("remove", &next))?;
            info!("a rotation of the vault's key was not kept; the key is the one from before");
        } else if current.origin.file_name() == Some(NEXT_CREDENTIAL.as_ref()) {
            warn!(
                "the vault's key is the credential {NEXT_CREDENTIAL}: call it {CREDENTIAL} in casemated's unit, in place of the old one"
            );
        }
        Ok(())
    }
}
