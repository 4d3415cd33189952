//! Directories that nobody else can tamper with, and files opened up to one group.
//!
//! | what | mode | group | why |
//! |---|---|---|---|
//! | `state_dir` | [`STATE_MODE`] 0700 | ours | database, lock, backups |
//! | `runtime_dir` | [`RUNTIME_MODE`] 0711 | ours | passed through by name, never listed |
//! | `runtime_dir/link` | [`LINKS_MODE`] 0710 | sandbox group | podman passes through, nobody lists |
//! | `runtime_dir/link/<session>` | [`LINK_MODE`] 0750 | sandbox group | podman mounts it read-only |
//! | sockets in there | [`SOCKET_MODE`] 0660 | sandbox or admin group | connecting takes write permission (unix(7)) |
//!
//! The directories above are not looked at: they belong to the package, or to whoever chose them.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::{Gid, Uid, fchownat};

use super::{HostError, users};

/// Of the state directory: only we.
pub const STATE_MODE: u32 = 0o700;
/// Of the runtime directory: others pass through.
pub const RUNTIME_MODE: u32 = 0o711;
/// Of the directory of links: the sandbox group passes through.
pub const LINKS_MODE: u32 = 0o710;
/// Of one session's link directory: the sandbox group reads.
pub const LINK_MODE: u32 = 0o750;
/// Of a socket that a group may connect to.
pub const SOCKET_MODE: u32 = 0o660;

/// Makes a directory, or takes the one that is there if it is safe; its mode is `mode` afterwards.
/// The directory above it must exist.
///
/// # Errors
/// [`HostError::Unsafe`] when it is a symlink or no directory, belongs to another user, or others
/// can write in it (whoever could may have left something there). [`HostError::File`] otherwise.
pub fn ensure(path: &Path, mode: u32) -> Result<(), HostError> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(HostError::file("make the directory", path, error)),
    }
    let refuse = |what: String, mend: String| {
        Err(HostError::Unsafe {
            path: path.to_owned(),
            what,
            mend,
        })
    };
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
        .open(path);
    let directory = match opened {
        Ok(directory) => directory,
        Err(_) if is_no_directory(path) => {
            return refuse(
                "is not a directory but a symlink or a file".to_owned(),
                "name the directory itself, or move that away".to_owned(),
            );
        }
        Err(error) => return Err(HostError::file("open the directory", path, error)),
    };
    let found = directory
        .metadata()
        .map_err(|error| HostError::file("look at the directory", path, error))?;
    let (owner, us) = (found.uid(), users::own_uid());
    if owner != us {
        return refuse(
            format!("belongs to the user {}", users::user_name(owner)),
            format!("give it to the user that casemated runs as: chown {us}"),
        );
    }
    let open_to = found.mode() & 0o022 & !mode;
    if open_to != 0 {
        return refuse(
            format!(
                "can be written by others (mode {:04o})",
                found.mode() & 0o7777
            ),
            format!("look for what does not belong there, then chmod {mode:04o}"),
        );
    }
    if found.mode() & 0o7777 != mode {
        directory
            .set_permissions(Permissions::from_mode(mode))
            .map_err(|error| HostError::file("set the mode of", path, error))?;
    }
    Ok(())
}

fn is_no_directory(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir())
}

/// Gives a directory, file or socket of ours to a group and sets its mode; never through a symlink.
/// It must lie in a directory that only we can write, as [`ensure`] makes them.
///
/// # Errors
/// [`HostError::Group`] when the kernel refuses: it lets an owner choose only among the groups
/// that the process is a member of (chown(2)). [`HostError::File`] otherwise.
pub fn give_to_group(path: &Path, gid: u32, mode: u32) -> Result<(), HostError> {
    let nofollow = AtFlags::AT_SYMLINK_NOFOLLOW;
    let group = Some(Gid::from_raw(gid));
    fchownat(AT_FDCWD, path, None::<Uid>, group, nofollow).map_err(|error| HostError::Group {
        path: path.to_owned(),
        group: users::group_name(gid),
        source: error.into(),
    })?;
    let found =
        std::fs::symlink_metadata(path).map_err(|error| HostError::file("look at", path, error))?;
    if found.is_symlink() {
        return Err(HostError::Unsafe {
            path: path.to_owned(),
            what: "is a symlink".to_owned(),
            mend: "remove it".to_owned(),
        });
    }
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| HostError::file("set the mode of", path, error))
}

/// Makes sure that files can be made, written to the disk and removed in a directory: finds a
/// read-only file system, a full disk and missing permission before they find us.
///
/// # Errors
/// [`HostError::File`] with the step that failed.
pub fn probe_writable(directory: &Path) -> Result<(), HostError> {
    let path = directory.join(format!(".probe-{}", std::process::id()));
    // Left by a crash of a process that had our number.
    let _ = std::fs::remove_file(&path);
    let tried = (|| {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| HostError::file("make a file in", directory, error))?;
        file.write_all(b"probe")
            .and_then(|()| file.sync_all())
            .map_err(|error| HostError::file("write to the disk of", directory, error))
    })();
    let removed = std::fs::remove_file(&path);
    tried?;
    removed.map_err(|error| HostError::file("remove a file from", directory, error))
}

/// Writes a small secret file (mode 0600) so that it is there whole or not at all, also after a power cut.
///
/// # Errors
/// The system's.
pub fn write_secret(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode_of(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn is_made_with_its_mode_and_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        for mode in [STATE_MODE, STATE_MODE, RUNTIME_MODE, LINK_MODE] {
            ensure(&path, mode).unwrap();
            assert_eq!(mode_of(&path), mode);
        }
    }

    #[test]
    fn a_directory_that_others_could_write_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        ensure(&path, STATE_MODE).unwrap();
        for open in [0o777, 0o770, 0o1777, 0o702] {
            std::fs::set_permissions(&path, Permissions::from_mode(open)).unwrap();
            let error = ensure(&path, STATE_MODE).unwrap_err();
            assert!(matches!(error, HostError::Unsafe { .. }), "{error}");
            assert!(error.to_string().contains("chmod 0700"), "{error}");
            assert_eq!(mode_of(&path), open);
        }
    }

    #[test]
    fn a_symlink_and_a_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (link, file) = (dir.path().join("link"), dir.path().join("file"));
        symlink(dir.path(), &link).unwrap();
        std::fs::write(&file, b"").unwrap();
        for path in [&link, &file] {
            let error = ensure(path, STATE_MODE).unwrap_err();
            assert!(matches!(error, HostError::Unsafe { .. }), "{error}");
        }
        let dangling = dir.path().join("dangling");
        symlink(dir.path().join("nowhere"), &dangling).unwrap();
        assert!(ensure(&dangling, STATE_MODE).is_err());
        assert!(!dir.path().join("nowhere").exists());
    }

    #[test]
    fn a_missing_directory_above_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let error = ensure(&dir.path().join("a/b"), STATE_MODE).unwrap_err();
        assert!(matches!(error, HostError::File { .. }), "{error}");
    }

    #[test]
    fn a_socket_is_opened_to_a_group_but_no_symlink_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let own_group = nix::unistd::getegid().as_raw();
        give_to_group(&path, own_group, SOCKET_MODE).unwrap();
        assert_eq!(mode_of(&path), SOCKET_MODE);

        let (link, target) = (dir.path().join("link"), dir.path().join("target"));
        std::fs::write(&target, b"").unwrap();
        let before = mode_of(&target);
        symlink(&target, &link).unwrap();
        assert!(give_to_group(&link, own_group, 0o777).is_err());
        assert_eq!(mode_of(&target), before);
    }

    #[test]
    fn the_probe_leaves_nothing_behind_and_names_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        probe_writable(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let missing = dir.path().join("missing");
        let error = probe_writable(&missing).unwrap_err();
        assert!(error.to_string().contains(missing.to_str().unwrap()));
    }
}
