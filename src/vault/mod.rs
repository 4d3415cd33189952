//! Floor 4: what is sealed at rest, and what is signed.
//!
//! One root key, 32 bytes, comes from outside of the database: a systemd credential (`vault-key`, systemd.exec(5)) or,
//! where there is none, a file in the state directory that only the daemon's user reads, made at the first start. Under
//! it secrets are sealed with AES-256-GCM; the name of each is part of what is authenticated, so that one cannot be put in
//! another's place. Without the right key the daemon does not start: it would otherwise sign with a new key, and nobody could tell that
//! from a forger.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroizing;

use crate::host::{directory, users};

/// Bytes of the root key.
pub const ROOT_KEY_BYTES: usize = 32;

/// The root key's name among the credentials of the unit.
pub const CREDENTIAL: &str = "vault-key";

/// The root key's file in the state directory.
pub const FILE: &str = "vault.key";

/// Bytes of an Ed25519 public key.
pub const PUBLIC_KEY_BYTES: usize = 32;

/// What is authenticated beside a secret begins with this, then comes its name.
const CONTEXT: &[u8] = b"casemate vault 1\0";

/// `O_NOFOLLOW`, of open(2) on Linux.
const NO_FOLLOW: i32 = 0o400_000;

/// Why there is no vault. All of them are a refusal to start, and say what to do.
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
        "the vault's key {origin} does not open {name:?}, which was sealed under another key or was damaged; put the key back that belongs to this database; it is in no backup"
    )]
    WrongKey {
        /// What was to be opened.
        name: &'static str,
        /// Where the key came from.
        origin: PathBuf,
    },
    /// The operating system gave no random bytes.
    #[error("ask the operating system for random bytes")]
    NoRandomness,
}

/// Opens and seals.
pub struct Vault {
    key: LessSafeKey,
    origin: PathBuf,
}

/// Signs; the private part is never shown.
pub struct SigningKey(Ed25519KeyPair);

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({}, [redacted])", self.origin.display())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey([redacted])")
    }
}

impl Vault {
    /// Finds the root key: among the credentials if it is there, else in the state directory. Makes one there only
    /// when there is none and nothing `is_sealed` yet.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn open(
        credentials: Option<&Path>,
        state_dir: &Path,
        is_sealed: bool,
    ) -> Result<Self, VaultError> {
        if let Some(credentials) = credentials {
            let path = credentials.join(CREDENTIAL);
            // systemd owns what is in there: root's or the user's, and nobody else's.
            if let Some(key) = read(&path, false)? {
                return Self::with(&key, path);
            }
        }
        let path = state_dir.join(FILE);
        if let Some(key) = read(&path, true)? {
            return Self::with(&key, path);
        }
        if is_sealed {
            return Err(VaultError::Missing(path));
        }
        let mut key = Zeroizing::new([0; ROOT_KEY_BYTES]);
        fill(key.as_mut_slice())?;
        directory::write_secret(&path, key.as_slice()).map_err(|source| VaultError::Io {
            doing: "make",
            path: path.clone(),
            source,
        })?;
        Self::with(&key, path)
    }

    fn with(key: &[u8; ROOT_KEY_BYTES], origin: PathBuf) -> Result<Self, VaultError> {
        match UnboundKey::new(&AES_256_GCM, key) {
            Ok(key) => Ok(Self {
                key: LessSafeKey::new(key),
                origin,
            }),
            Err(_) => Err(VaultError::Malformed(origin)),
        }
    }

    /// Seals a secret under its name.
    ///
    /// # Errors
    /// [`VaultError::NoRandomness`].
    pub fn seal(&self, name: &'static str, secret: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0; NONCE_LEN];
        fill(&mut nonce)?;
        let mut sealed = secret.to_vec();
        let nonce_of = Nonce::assume_unique_for_key(nonce);
        self.key
            .seal_in_place_append_tag(nonce_of, context(name), &mut sealed)
            .map_err(|_| VaultError::NoRandomness)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Opens what was sealed under this name.
    ///
    /// # Errors
    /// [`VaultError::WrongKey`].
    pub fn unseal(
        &self,
        name: &'static str,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let wrong = || VaultError::WrongKey {
            name,
            origin: self.origin.clone(),
        };
        let (nonce, rest) = sealed.split_first_chunk().ok_or_else(wrong)?;
        let mut text = Zeroizing::new(rest.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self
            .key
            .open_in_place(nonce, context(name), &mut text)
            .map_err(|_| wrong())?
            .len();
        text.truncate(length);
        Ok(text)
    }

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
            Err(_) => Err(VaultError::WrongKey {
                name,
                origin: self.origin.clone(),
            }),
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

fn context(name: &'static str) -> Aad<Vec<u8>> {
    Aad::from([CONTEXT, name.as_bytes()].concat())
}

fn fill(bytes: &mut [u8]) -> Result<(), VaultError> {
    SystemRandom::new()
        .fill(bytes)
        .map_err(|_| VaultError::NoRandomness)
}

/// Reads a key; `None` when there is no file.
fn read(
    path: &Path,
    must_be_ours: bool,
) -> Result<Option<Zeroizing<[u8; ROOT_KEY_BYTES]>>, VaultError> {
    let io = |source| VaultError::Io {
        doing: "read",
        path: path.to_owned(),
        source,
    };
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(NO_FOLLOW)
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let found = file.metadata().map_err(io)?;
    let is_ours = found.uid() == users::own_uid();
    let is_exposed = if must_be_ours {
        !is_ours || found.permissions().mode() & 0o077 != 0
    } else {
        found.permissions().mode() & 0o007 != 0
    };
    if is_exposed {
        return Err(VaultError::Exposed(path.to_owned()));
    }
    if !found.is_file() || found.len() != ROOT_KEY_BYTES as u64 {
        return Err(VaultError::Malformed(path.to_owned()));
    }
    let mut key = Zeroizing::new([0; ROOT_KEY_BYTES]);
    file.read_exact(key.as_mut_slice()).map_err(io)?;
    Ok(Some(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};

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
