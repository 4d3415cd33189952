//! Who may read and write what the daemon keeps and reads.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Check, Found, Look};
use crate::config::Config;
use crate::host::users;
use crate::identity::HASH_KEY_FILE;
use crate::vault;

/// Permissions and the bits that change who a program runs as.
const MODE: u32 = 0o7777;

/// What others may.
const OTHERS: u32 = 0o077;

/// The database and keys.
pub(super) const STATE_DIRECTORY: Check = Check {
    name: "state_directory",
    rule: "state_dir belongs to casemated's user, and nobody else may look into it (mode 0700).",
    mend: "chown it to casemated's user and chmod 0700 it",
    is_advice: false,
    look: Look::Here(|scene| closed(&scene.config().state_dir, users::own_uid())),
};

/// What opens everything else.
pub(super) const KEY_FILES: Check = Check {
    name: "key_files",
    rule: "keys.hmac and vault.key belong to casemated's user and nobody else may read them (mode 0600, one name each).",
    mend: "chmod 0600 them; if somebody read them, make new API keys, and a new vault key",
    is_advice: false,
    look: Look::Here(|scene| key_files(&scene.config().state_dir, users::own_uid())),
};

/// Whoever writes them decides everything.
pub(super) const SETTINGS_FILES: Check = Check {
    name: "settings_files",
    rule: "The files of settings and templates can be written by nobody but their owner, who is root or casemated's user.",
    mend: "chown root and chmod go-w the settings, their drop-ins and templates",
    is_advice: false,
    look: Look::Here(|scene| settings_files(&scene.path, users::own_uid())),
};

/// Copies of the state.
pub(super) const BACKUP_DIRECTORY: Check = Check {
    name: "backup_directory",
    rule: "The directory of backups, once there is one, belongs to casemated's user, and nobody else may look into it (mode 0700).",
    mend: "chown it to casemated's user and chmod 0700 it",
    is_advice: false,
    look: Look::Here(|scene| {
        let directory = &scene.config().backup.directory;
        match directory.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(format!("{} is not there yet", directory.display()))
            }
            _ => closed(directory, users::own_uid()),
        }
    }),
};

/// A directory that is one user's alone.
fn closed(path: &Path, uid: u32) -> Found {
    let found = path.metadata().map_err(|error| unread(path, &error))?;
    let said = told(path, &found);
    if found.is_dir() && found.uid() == uid && found.mode() & OTHERS == 0 {
        Ok(said)
    } else {
        Err(said)
    }
}

fn key_files(state_dir: &Path, uid: u32) -> Found {
    each(
        [HASH_KEY_FILE, vault::FILE, vault::NEXT_FILE].map(|name| state_dir.join(name)),
        |path| {
            let found = match path.symlink_metadata() {
                // A systemd credential takes its place.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(format!("{} is not there", path.display()));
                }
                found => found.map_err(|error| unread(path, &error))?,
            };
            let said = told(path, &found);
            let is_private =
                found.is_file() && found.nlink() == 1 && found.mode() & MODE & !0o600 == 0;
            if is_private && found.uid() == uid {
                Ok(said)
            } else {
                Err(said)
            }
        },
    )
}

fn settings_files(main: &Path, uid: u32) -> Found {
    let mut files = vec![main.to_owned()];
    for directory in [
        main.with_extension("yaml.d"),
        Config::templates_beside(main),
    ] {
        let entries = match directory.read_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(|error| unread(&directory, &error))?,
        };
        files.push(directory.clone());
        for entry in entries {
            files.push(entry.map_err(|error| unread(&directory, &error))?.path());
        }
    }
    let count = files.len();
    each(files, |path| {
        let found = path.metadata().map_err(|error| unread(path, &error))?;
        if found.mode() & 0o022 == 0 && (found.uid() == 0 || found.uid() == uid) {
            Ok(String::new())
        } else {
            Err(told(path, &found))
        }
    })?;
    Ok(format!("{count} files and directories"))
}

/// What is wrong with those with which something is, else what was found of all.
fn each(paths: impl IntoIterator<Item = PathBuf>, look: impl Fn(&Path) -> Found) -> Found {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for path in paths {
        match look(&path) {
            Ok(said) => good.push(said),
            Err(said) => bad.push(said),
        }
    }
    if bad.is_empty() {
        Ok(good.join(", "))
    } else {
        Err(bad.join(", "))
    }
}

fn told(path: &Path, found: &Metadata) -> String {
    let owner = users::user_name(found.uid());
    format!("{} {:04o} of {owner}", path.display(), found.mode() & MODE)
}

fn unread(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_is_one_users_alone() {
        let dir = tempfile::tempdir().unwrap();
        mode(dir.path(), 0o700);
        let uid = users::own_uid();
        assert!(closed(dir.path(), uid).is_ok());
        assert!(closed(dir.path(), uid + 1).is_err());
        for open in [0o750, 0o701, 0o777] {
            mode(dir.path(), open);
            assert!(closed(dir.path(), uid).is_err(), "{open:o}");
        }
        mode(dir.path(), 0o700);
        assert!(closed(&dir.path().join("none"), uid).is_err());
        fs::write(dir.path().join("file"), "").unwrap();
        mode(&dir.path().join("file"), 0o600);
        assert!(closed(&dir.path().join("file"), uid).is_err());
    }

    #[test]
    fn a_key_that_others_have_fails() {
        let dir = tempfile::tempdir().unwrap();
        let uid = users::own_uid();
        assert!(key_files(dir.path(), uid).is_ok(), "none yet");
        let key = dir.path().join(vault::FILE);
        fs::write(&key, "secret").unwrap();
        mode(&key, 0o600);
        let found = key_files(dir.path(), uid).unwrap();
        assert!(
            found.contains("vault.key 0600") && !found.contains("secret"),
            "{found}"
        );
        assert!(key_files(dir.path(), uid + 1).is_err());
        for open in [0o640, 0o604, 0o700] {
            mode(&key, open);
            assert!(key_files(dir.path(), uid).is_err(), "{open:o}");
        }
        mode(&key, 0o600);
        fs::hard_link(&key, dir.path().join("copy")).unwrap();
        assert!(key_files(dir.path(), uid).is_err(), "it has another name");
        fs::remove_file(dir.path().join("copy")).unwrap();
        std::os::unix::fs::symlink(&key, dir.path().join(HASH_KEY_FILE)).unwrap();
        assert!(key_files(dir.path(), uid).is_err(), "a link");
    }

    #[test]
    fn settings_that_others_may_write_fail_wherever_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("casemate.yaml");
        let uid = users::own_uid();
        assert!(settings_files(&main, uid).is_err(), "it is gone");
        fs::create_dir(dir.path().join("casemate.yaml.d")).unwrap();
        fs::create_dir(dir.path().join("templates")).unwrap();
        let files = [
            "casemate.yaml",
            "casemate.yaml.d/10.yaml",
            "templates/base.yaml",
        ]
        .map(|name| dir.path().join(name));
        for file in &files {
            fs::write(file, "").unwrap();
            mode(file, 0o644);
        }
        assert_eq!(
            settings_files(&main, uid),
            Ok("5 files and directories".to_owned())
        );
        if uid != 0 {
            assert!(settings_files(&main, uid + 1).is_err());
        }
        for file in &files {
            mode(file, 0o664);
            let found = settings_files(&main, uid).unwrap_err();
            assert!(found.contains(&*file.to_string_lossy()), "{found}");
            mode(file, 0o644);
        }
        mode(&dir.path().join("templates"), 0o777);
        assert!(settings_files(&main, uid).is_err());
    }
}
