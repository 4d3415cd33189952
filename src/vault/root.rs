//! The root key: where it is found, and what is sealed right under it.
//!
//! Its bytes are wiped when it is dropped. ring expands a key for each seal and does not wipe what it expanded; such a copy lives on
//! the stack for as long as the seal takes.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::{ROOT_KEY_BYTES, VaultError};
use crate::base::secret::Secret;
use crate::host::users;
use crate::model::credential::Anchor;

/// What is authenticated beside a secret begins with this, then comes its name.
const NAMED: &[u8] = b"casemate vault 1\0";

/// What is authenticated of the proof that a key is the one of a generation, which follows.
const PROOF: &[u8] = b"casemate vault generation 1\0";

/// What the proof says.
const PROVEN: &[u8] = b"this is the key";

/// `O_NOFOLLOW`, of open(2) on Linux.
const NO_FOLLOW: i32 = 0o400_000;

/// A key of 32 bytes.
pub(super) type KeyBytes = [u8; ROOT_KEY_BYTES];

/// A root key of a generation.
pub(super) struct Root {
    pub(super) generation: u64,
    key: Secret<KeyBytes>,
    pub(super) origin: PathBuf,
}

impl Root {
    pub(super) fn new(generation: u64, key: Secret<KeyBytes>, origin: PathBuf) -> Self {
        Self {
            generation,
            key,
            origin,
        }
    }

    /// A new one.
    pub(super) fn make(generation: u64, origin: PathBuf) -> Result<Self, VaultError> {
        let mut key = Zeroizing::new([0; ROOT_KEY_BYTES]);
        fill(key.as_mut_slice())?;
        Ok(Self::new(generation, Secret::new(*key), origin))
    }

    /// The same key from another place.
    pub(super) fn moved(&self, origin: PathBuf) -> Self {
        Self::new(self.generation, self.key.clone(), origin)
    }

    /// The bytes, to be kept in a file.
    pub(super) fn bytes(&self) -> &[u8] {
        self.key.expose()
    }

    pub(super) fn seal(&self, context: &[u8], secret: &[u8]) -> Result<Vec<u8>, VaultError> {
        seal(self.key.expose(), context, secret)
    }

    pub(super) fn unseal(&self, context: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        unseal(self.key.expose(), context, sealed)
    }

    /// What proves that a key is this one.
    pub(super) fn anchor(&self) -> Result<Anchor, VaultError> {
        Ok(Anchor {
            generation: self.generation,
            proof: self.seal(&proof_context(self.generation), PROVEN)?,
        })
    }

    /// Whether it is the key that this was made of.
    pub(super) fn is_of(&self, anchor: &Anchor) -> bool {
        self.unseal(&proof_context(anchor.generation), &anchor.proof)
            .is_some_and(|said| *said == PROVEN)
    }

    /// It does not open what has this name.
    pub(super) fn wrong(&self, name: impl Into<String>) -> VaultError {
        VaultError::WrongKey {
            name: name.into(),
            origin: self.origin.clone(),
        }
    }
}

/// What is authenticated of a secret of the daemon's own.
pub(super) fn named_context(name: &str) -> Vec<u8> {
    [NAMED, name.as_bytes()].concat()
}

fn proof_context(generation: u64) -> Vec<u8> {
    [PROOF, &generation.to_be_bytes()].concat()
}

/// Seals with AES-256-GCM: a random nonce, the text, the tag. A key may do so 2^32 times (NIST SP 800-38D section 8.3).
pub(super) fn seal(key: &KeyBytes, context: &[u8], secret: &[u8]) -> Result<Vec<u8>, VaultError> {
    let mut nonce = [0; NONCE_LEN];
    fill(&mut nonce)?;
    // With room for all of it: no copy of the secret is left where it grew from.
    let mut text = Vec::with_capacity(secret.len() + MAX_TAG_LEN);
    text.extend_from_slice(secret);
    cipher(key)
        .ok_or(VaultError::NoRandomness)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(context),
            &mut text,
        )
        .map_err(|_| VaultError::NoRandomness)?;
    Ok([nonce.as_slice(), &text].concat())
}

/// Opens what [`seal`] made; `None` for everything else.
pub(super) fn unseal(key: &KeyBytes, context: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, rest) = sealed.split_first_chunk()?;
    let mut text = Zeroizing::new(rest.to_vec());
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let opened = cipher(key)?.open_in_place(nonce, Aad::from(context), &mut text);
    let length = opened.ok()?.len();
    text.truncate(length);
    Some(text)
}

fn cipher(key: &KeyBytes) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key)
        .ok()
        .map(LessSafeKey::new)
}

/// Random bytes of the operating system.
pub(super) fn fill(bytes: &mut [u8]) -> Result<(), VaultError> {
    SystemRandom::new()
        .fill(bytes)
        .map_err(|_| VaultError::NoRandomness)
}

/// Reads a key; `None` when there is no file. systemd owns what is among the credentials: root's or the user's, and nobody else's.
pub(super) fn read(
    path: &Path,
    must_be_ours: bool,
) -> Result<Option<Secret<KeyBytes>>, VaultError> {
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
    Ok(Some(Secret::new(*key)))
}
