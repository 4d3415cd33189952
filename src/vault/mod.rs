//! Floor 4: what is sealed at rest, and what is signed.
//!
//! One root key, 32 bytes, comes from outside of the database: a systemd credential (`vault-key`, systemd.exec(5)) or,
//! where there is none, a file in the state directory that only the daemon's user reads, made at the first start. Under
//! it secrets are sealed with AES-256-GCM; the name of each is part of what is authenticated, so that one cannot be put in
//! another's place. Without the right key the daemon does not start: it would otherwise sign with a new key, and nobody could tell that
//! from a forger.
//!
//! [`root`] finds the key and seals, [`envelope`] seals teams' credentials, [`rotation`] puts another key in its place, [`signing`]
//! signs, [`mac`] knows again what we gave out.

mod envelope;
mod mac;
mod root;
mod rotation;
mod rows;
mod signing;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use zeroize::Zeroizing;

pub use self::envelope::EnvelopeError;
pub use self::mac::{MacKey, TAG_BYTES};
use self::root::{Root, named_context, read};
pub use self::rotation::Rotation;
pub use self::rows::RowKey;
pub use self::signing::{PUBLIC_KEY_BYTES, SigningKey, is_signed_by};
use crate::host::directory;
use crate::model::credential::Anchor;

/// Bytes of the root key.
pub const ROOT_KEY_BYTES: usize = 32;

/// The root key's name among the credentials of the unit.
pub const CREDENTIAL: &str = "vault-key";

/// The name of the key that is to follow it, among them.
pub const NEXT_CREDENTIAL: &str = "vault-key-next";

/// The root key's file in the state directory.
pub const FILE: &str = "vault.key";

/// The file of the key that is to follow it, which is there while it is put in its place.
pub const NEXT_FILE: &str = "vault.key.new";

/// Why there is no vault, or no other key for it. All of them say what to do; at a start they are a refusal.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The key's file cannot be read or made.
    #[error("{doing} the vault's key {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Others can read the key.
    #[error(
        "the vault's key {0} belongs to somebody else or can be read by others; chown it to casemated's user and chmod 0600 it, and if somebody read it, what is sealed and signed is worth no more than they are trusted"
    )]
    Exposed(PathBuf),
    /// The key has another length.
    #[error(
        "the vault's key {0} does not have {ROOT_KEY_BYTES} bytes; put the one back that was there before, from where you keep it"
    )]
    Malformed(PathBuf),
    /// Something is sealed and its key is gone.
    #[error(
        "there is no vault key: neither the credential {CREDENTIAL} nor {0}, and the database holds what was sealed under one; put that key back: it belongs to the state, and is in no backup of it"
    )]
    Missing(PathBuf),
    /// What is sealed was sealed under another key, or was changed.
    #[error(
        "the vault's key {} does not open {name:?}, which was sealed under another key or was damaged; put the key back that belongs to this database; it is in no backup, and a backup from before casemate admin rotate-key needs the key of then", origin.display()
    )]
    WrongKey {
        /// What was to be opened.
        name: String,
        /// Where the key came from.
        origin: PathBuf,
    },
    /// The operating system gave no random bytes.
    #[error("ask the operating system for random bytes")]
    NoRandomness,
    /// The key is a credential of the unit, and nobody said what is to follow it.
    #[error(
        "the vault's key is the credential {CREDENTIAL} of casemated's unit, which casemated cannot change; give the unit another one, {NEXT_CREDENTIAL}, restart casemated and rotate again"
    )]
    NoNextKey,
    /// The key that is to follow is the one that there is.
    #[error(
        "the credential {NEXT_CREDENTIAL} is the vault's key already; call it {CREDENTIAL} in casemated's unit, in place of the old one, or give {NEXT_CREDENTIAL} a new key"
    )]
    NextIsCurrent,
    /// The new key is the vault's, and its file could not be given its name.
    #[error(
        "the vault has its new key, which stays in {}: it could not be put in the place of the old one; mend the directory, then restart casemated, which tries again", path.display()
    )]
    NotInPlace {
        /// Where the key is.
        path: PathBuf,
        /// Why it stays there.
        #[source]
        source: std::io::Error,
    },
    /// It is not known whether the last change of the key was kept. Nothing is lost: both keys are there.
    #[error(
        "it is not known whether the last rotation was kept, so both keys stay where they are; see that the state's disk is well, and restart casemated, which finds out"
    )]
    Unsettled,
}

/// Opens and seals. Cheap to clone.
///
/// # Synchronization
/// The lock is held to take a key or to put another in its place, never while something is sealed or waited for.
#[derive(Clone)]
pub struct Vault(Arc<Shared>);

struct Shared {
    keys: RwLock<Keys>,
    /// The credentials of the unit, if it has any.
    credentials: Option<PathBuf>,
    state_dir: PathBuf,
}

/// The key, and the one that may follow it: what is sealed is under either, as the database says.
struct Keys {
    current: Arc<Root>,
    next: Option<Arc<Root>>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = &self.current().origin;
        write!(f, "Vault({}, [redacted])", origin.display())
    }
}

impl Vault {
    /// Finds the root key of a database that does not say which it is: among the credentials if it is there, else in the state
    /// directory. Makes one there only when there is none and nothing `is_sealed` yet.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn open(
        credentials: Option<&Path>,
        state_dir: &Path,
        is_sealed: bool,
    ) -> Result<Self, VaultError> {
        let with = |key, origin| {
            let root = Root::new(1, key, origin);
            Self::with(root, credentials, state_dir)
        };
        if let Some(credentials) = credentials {
            let path = credentials.join(CREDENTIAL);
            if let Some(key) = read(&path, false)? {
                return Ok(with(key, path));
            }
        }
        let path = state_dir.join(FILE);
        if let Some(key) = read(&path, true)? {
            return Ok(with(key, path));
        }
        if is_sealed {
            return Err(VaultError::Missing(path));
        }
        let root = Root::make(1, path.clone())?;
        directory::write_secret(&path, root.bytes()).map_err(|source| VaultError::Io {
            doing: "make",
            path,
            source,
        })?;
        Ok(Self::with(root, credentials, state_dir))
    }

    /// Finds the root key that the database says, wherever a rotation that was cut short left it, and ends that rotation: the files
    /// are then as if it had been done, or had not been begun.
    ///
    /// # Errors
    /// [`VaultError`]; none of the keys is touched then.
    pub fn find(
        credentials: Option<&Path>,
        state_dir: &Path,
        anchor: &Anchor,
    ) -> Result<Self, VaultError> {
        let (mut other, mut failed) = (None, None);
        for (path, must_be_ours) in candidates(credentials, state_dir) {
            let key = match read(&path, must_be_ours) {
                Ok(None) => continue,
                Ok(Some(key)) => key,
                Err(error) => {
                    failed = failed.or(Some(error));
                    continue;
                }
            };
            let root = Root::new(anchor.generation, key, path);
            if root.is_of(anchor) {
                let vault = Self::with(root, credentials, state_dir);
                vault.tidy()?;
                return Ok(vault);
            }
            other = other.or_else(|| Some(root.wrong("the proof of the vault's key")));
        }
        Err(failed
            .or(other)
            .unwrap_or_else(|| VaultError::Missing(state_dir.join(FILE))))
    }

    fn with(current: Root, credentials: Option<&Path>, state_dir: &Path) -> Self {
        let keys = Keys {
            current: Arc::new(current),
            next: None,
        };
        Self(Arc::new(Shared {
            keys: RwLock::new(keys),
            credentials: credentials.map(Path::to_owned),
            state_dir: state_dir.to_owned(),
        }))
    }

    /// The generation of the key that seals.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.current().generation
    }

    /// What the database is to keep of the key, to know it again.
    ///
    /// # Errors
    /// [`VaultError::NoRandomness`].
    pub fn anchor(&self) -> Result<Anchor, VaultError> {
        self.current().anchor()
    }

    /// Seals a secret of the daemon's own under its name. Only at a start, before anybody can rotate: it does not say its generation, and
    /// must be in the database when a rotation begins.
    ///
    /// # Errors
    /// [`VaultError::NoRandomness`].
    pub fn seal(&self, name: &'static str, secret: &[u8]) -> Result<Vec<u8>, VaultError> {
        self.current().seal(&named_context(name), secret)
    }

    /// Opens what was sealed under this name.
    ///
    /// # Errors
    /// [`VaultError::WrongKey`].
    pub fn unseal(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let (current, next) = {
            let keys = self.keys();
            (Arc::clone(&keys.current), keys.next.clone())
        };
        let context = named_context(name);
        // While a rotation is not settled it may be under either.
        let mut known = [Some(&current), next.as_ref()].into_iter().flatten();
        let opened = known.find_map(|root| root.unseal(&context, sealed));
        opened.ok_or_else(|| current.wrong(name))
    }

    fn current(&self) -> Arc<Root> {
        Arc::clone(&self.keys().current)
    }

    /// The key of a generation.
    fn root(&self, generation: u64) -> Result<Arc<Root>, EnvelopeError> {
        let keys = self.keys();
        let mut known = [Some(&keys.current), keys.next.as_ref()]
            .into_iter()
            .flatten();
        let found = known.find(|root| root.generation == generation);
        found
            .cloned()
            .ok_or(EnvelopeError::OtherGeneration(generation))
    }

    fn keys(&self) -> RwLockReadGuard<'_, Keys> {
        self.0.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys_mut(&self) -> RwLockWriteGuard<'_, Keys> {
        self.0.keys.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the key may be, in this order, and whether it must be the daemon's own. A credential that was given goes before the file, which is not
/// looked at then: whoever gave one means it.
fn candidates(credentials: Option<&Path>, state_dir: &Path) -> Vec<(PathBuf, bool)> {
    let credential = |name| credentials.map(|directory| (directory.join(name), false));
    let given = credential(CREDENTIAL).filter(|(path, _)| path.symlink_metadata().is_ok());
    let mut all = match given {
        Some(given) => vec![given],
        None => [FILE, NEXT_FILE]
            .map(|name| (state_dir.join(name), true))
            .into(),
    };
    all.extend(credential(NEXT_CREDENTIAL));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    const NAME: &str = "a-key";

    fn vault(directory: &Path) -> Vault {
        Vault::open(None, directory, false).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_and_name_only() {
        let directory = tempfile::tempdir().unwrap();
        let one = vault(directory.path());
        let sealed = one.seal(NAME, b"open sesame").unwrap();
        assert!(!sealed.windows(11).any(|window| window == b"open sesame"));
        // The key is kept: another start opens it.
        let again = Vault::open(None, directory.path(), true).unwrap();
        assert_eq!(
            again.unseal(NAME, &sealed).unwrap().as_slice(),
            b"open sesame"
        );
        assert!(again.unseal("other", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(again.unseal(NAME, &changed).is_err(), "byte {at}");
        }
        assert!(again.unseal(NAME, &sealed[..5]).is_err());
        let other = tempfile::tempdir().unwrap();
        let error = vault(other.path()).unseal(NAME, &sealed).unwrap_err();
        assert!(error.to_string().contains("put the key back"), "{error}");
    }

    #[test]
    fn a_key_signs_what_others_can_check() {
        let directory = tempfile::tempdir().unwrap();
        let vault = vault(directory.path());
        let sealed = vault.make_signing_key(NAME).unwrap();
        let key = vault.signing_key(NAME, &sealed).unwrap();
        let signature = key.sign(b"said");
        assert!(is_signed_by(&key.public(), b"said", &signature));
        assert!(!is_signed_by(&key.public(), b"sung", &signature));
        assert!(!is_signed_by(&[1; 32], b"said", &signature));
        assert!(!format!("{key:?}{vault:?}").contains(&format!("{:?}", &sealed[..4])));
    }

    #[test]
    fn the_credential_goes_before_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let credentials = tempfile::tempdir().unwrap();
        let sealed = vault(directory.path()).seal(NAME, b"x").unwrap();
        // systemd gave no key: the file's holds.
        let same = Vault::open(Some(credentials.path()), directory.path(), true).unwrap();
        assert!(same.unseal(NAME, &sealed).is_ok());
        let key = credentials.path().join(CREDENTIAL);
        fs::write(&key, [7; ROOT_KEY_BYTES]).unwrap();
        fs::set_permissions(&key, Permissions::from_mode(0o440)).unwrap();
        let other = Vault::open(Some(credentials.path()), directory.path(), true).unwrap();
        let error = other.unseal(NAME, &sealed).unwrap_err();
        assert!(error.to_string().contains(CREDENTIAL), "{error}");
    }

    #[test]
    fn a_key_that_is_gone_is_not_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let error = Vault::open(None, directory.path(), true).unwrap_err();
        assert!(matches!(error, VaultError::Missing(_)), "{error}");
        assert!(!directory.path().join(FILE).exists());
    }

    #[test]
    fn a_key_that_others_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        drop(vault(directory.path()));
        let path = directory.path().join(FILE);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = Vault::open(None, directory.path(), true).unwrap_err();
        assert!(matches!(error, VaultError::Exposed(_)), "{error}");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, [1; 31]).unwrap();
        let error = Vault::open(None, directory.path(), true).unwrap_err();
        assert!(matches!(error, VaultError::Malformed(_)), "{error}");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(Vault::open(None, directory.path(), false).is_err());
    }
}
