//! Files that an operator points at, and systemd's credentials (systemd.exec(5)) by name.
//!
//! What is secret must be this user's alone; what systemd passes belongs to root or to the user, and nobody else may read it.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::users;

/// Where systemd puts the credentials of a unit.
pub const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// What a source begins with that names a credential.
pub const PREFIX: &str = "credential:";

/// Most bytes of one file.
const MAX_BYTES: u64 = 1 << 20;

/// `O_NONBLOCK`, of open(2) on Linux: a named pipe is not waited for.
const NON_BLOCKING: i32 = 0o4000;

/// Why a file was not read. It never repeats what is in it.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The unit has no credentials, or the environment does not name their directory.
    #[error(
        "there are no credentials here, and {0} is to be one; add LoadCredential= to the unit, or name a file"
    )]
    None(String),
    /// It cannot be read.
    #[error("read {path}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others can read it.
    #[error(
        "{0} belongs to somebody else or can be read by others; chown it to casemated's user and chmod 0600 it, and replace it if somebody read it"
    )]
    Exposed(PathBuf),
    /// It is something else than a file of a sensible length.
    #[error("{0} is no regular file of 1 byte to 1 MiB")]
    Unfit(PathBuf),
}

/// Where it is: an absolute path, or `credential:NAME`.
#[derive(Clone, Copy)]
pub struct Source<'a>(pub &'a str);

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Source<'_> {
    /// Reads it whole. A secret may be read by nobody else. `directory` is where credentials are.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn read(
        self,
        directory: Option<&Path>,
        is_secret: bool,
    ) -> Result<Zeroizing<Vec<u8>>, CredentialError> {
        let (path, is_credential) = match self.0.strip_prefix(PREFIX) {
            None => (PathBuf::from(self.0), false),
            Some(name) => match directory {
                Some(directory) => (directory.join(name), true),
                None => return Err(CredentialError::None(name.to_owned())),
            },
        };
        let failed = |source| CredentialError::Io {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(NON_BLOCKING)
            .open(&path)
            .map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let length = found.len();
        if !found.is_file() || length == 0 || length > MAX_BYTES {
            return Err(CredentialError::Unfit(path));
        }
        let mode = found.permissions().mode();
        let is_exposed = if is_credential {
            mode & 0o007 != 0
        } else {
            found.uid() != users::own_uid() || mode & 0o077 != 0
        };
        if is_secret && is_exposed {
            return Err(CredentialError::Exposed(path));
        }
        // As long as it is, so that no copy of a secret is left behind where the vector grew.
        let mut bytes = Zeroizing::new(vec![0; usize::try_from(length).unwrap_or_default()]);
        file.read_exact(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};

    #[test]
    fn a_secret_is_this_users_alone_wherever_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "secret").unwrap();
        let text = path.to_str().unwrap().to_owned();
        for (mode, of_file, of_credential) in [
            (0o600, true, true),
            (0o400, true, true),
            (0o440, false, true),
            (0o640, false, true),
            (0o604, false, false),
            (0o444, false, false),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let file = Source(&text).read(None, true);
            assert_eq!(file.is_ok(), of_file, "{mode:o}");
            let credential = Source("credential:key").read(Some(directory.path()), true);
            assert_eq!(credential.is_ok(), of_credential, "{mode:o}");
            // What is public may be read by all.
            assert_eq!(
                Source(&text).read(None, false).unwrap().as_slice(),
                b"secret"
            );
        }
    }

    #[test]
    fn what_is_no_file_is_refused_and_nothing_waits() {
        let directory = tempfile::tempdir().unwrap();
        let text = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        assert!(matches!(
            Source(&text("none")).read(None, false),
            Err(CredentialError::Io { .. })
        ));
        fs::write(text("empty"), "").unwrap();
        fs::write(text("long"), vec![0; 1 << 20 | 1]).unwrap();
        for name in ["", "empty", "long"] {
            let error = Source(&text(name)).read(None, false).unwrap_err();
            assert!(matches!(error, CredentialError::Unfit(_)), "{name}");
        }
        let error = Source("credential:key").read(None, true).unwrap_err();
        assert!(error.to_string().contains("LoadCredential"), "{error}");
    }
}
