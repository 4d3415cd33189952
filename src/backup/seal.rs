//! Backups for one recipient: the age format (age-encryption.org/v1), X25519. `age` lives only here.
//!
//! The daemon has the recipient's public key and nothing else: who takes the machine can make backups, and read none.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use age::x25519::{Identity, Recipient};
use age::{DecryptError, Decryptor, Encryptor};

use super::BackupError;

/// How a sealed file begins.
const MAGIC: &[u8] = b"age-encryption.org/v1";

/// Longest file of an identity.
const MAX_IDENTITY_BYTES: u64 = 64 << 10;

/// Whether the text is a public key that backups can be encrypted for; what it must be, otherwise.
///
/// # Errors
/// A sentence.
pub fn check_recipient(text: &str) -> Result<(), String> {
    recipient(text).map(drop)
}

fn recipient(text: &str) -> Result<Recipient, String> {
    text.parse().map_err(|_| {
        "is not an age public key: age1 and 58 more characters, as age-keygen prints it".to_owned()
    })
}

/// Who a sealed backup is for.
pub struct Key(Identity);

impl Key {
    /// Reads the first identity in a file, as `age-keygen` writes them.
    ///
    /// # Errors
    /// [`BackupError::BadIdentity`], [`BackupError::File`].
    pub fn read(path: &Path) -> Result<Self, BackupError> {
        let failed = BackupError::file("read the identity", path);
        let file = File::open(path).map_err(&failed)?;
        for line in BufReader::new(file.take(MAX_IDENTITY_BYTES)).lines() {
            let line = zeroize::Zeroizing::new(line.map_err(&failed)?);
            if let Ok(identity) = line.trim().parse() {
                return Ok(Self(identity));
            }
        }
        Err(BackupError::BadIdentity(path.to_owned()))
    }
}

/// Runs `pack` with what it writes sealed for the recipient, or as it is when there is none.
pub(super) fn sealed<W: Write>(
    to: W,
    for_whom: Option<&str>,
    pack: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> std::io::Result<W> {
    let mut to = to;
    let Some(text) = for_whom else {
        pack(&mut to)?;
        return Ok(to);
    };
    let recipient = recipient(text).map_err(std::io::Error::other)?;
    let encryptor = Encryptor::with_recipients(std::iter::once(&recipient as _))
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    let mut sealing = encryptor.wrap_output(to)?;
    pack(&mut sealing)?;
    sealing.finish()
}

/// What is in a file, opened with the key where it is sealed.
pub(super) fn opened<R: Read + 'static>(
    from: R,
    key: Option<&Key>,
) -> Result<Box<dyn Read>, BackupError> {
    let mut from = BufReader::with_capacity(64 << 10, from);
    let begins = from
        .fill_buf()
        .map_err(BackupError::file("read", Path::new("the backup")))?;
    if !begins.starts_with(MAGIC) {
        return Ok(Box::new(from));
    }
    let key = key.ok_or(BackupError::Sealed)?;
    let told = |error: DecryptError| match error {
        DecryptError::NoMatchingKeys => BackupError::WrongIdentity,
        DecryptError::Io(error) => BackupError::Damaged(error.to_string()),
        other => BackupError::Damaged(other.to_string()),
    };
    let decryptor = Decryptor::new_buffered(from).map_err(told)?;
    let plain = decryptor
        .decrypt(std::iter::once(&key.0 as _))
        .map_err(told)?;
    Ok(Box::new(plain))
}

#[cfg(test)]
pub(super) mod tests {
    use age::secrecy::ExposeSecret;

    use super::*;

    /// A recipient, and the file of its identity.
    pub(in crate::backup) fn pair(directory: &Path, name: &str) -> (String, std::path::PathBuf) {
        let identity = Identity::generate();
        let path = directory.join(name);
        let text = format!(
            "# made by a test\n{}\n",
            identity.to_string().expose_secret()
        );
        std::fs::write(&path, text).unwrap();
        (identity.to_public().to_string(), path)
    }

    #[test]
    fn a_recipient_is_a_public_key_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let (public, path) = pair(directory.path(), "identity");
        check_recipient(&public).unwrap();
        let private = std::fs::read_to_string(&path).unwrap();
        let private = private.lines().nth(1).unwrap();
        for bad in ["", "age1", private, "ssh-ed25519 AAAA"] {
            let said = check_recipient(bad).unwrap_err();
            assert!(said.contains("age public key"), "{said}");
            assert!(bad.is_empty() || !said.contains(private));
        }
        Key::read(&path).unwrap();
        std::fs::write(&path, "# nothing\n").unwrap();
        assert!(matches!(Key::read(&path), Err(BackupError::BadIdentity(_))));
    }
}
