//! Floor 4: the files that volumes are.
//!
//! A volume is one file with an ext4 file system of a fixed size: what is written to it can never be more than that, whatever a
//! sandbox does, and the host needs no quotas for it. The file is sparse, so it takes from the disk what was ever written.
//! It is made here, by programs of e2fsprogs that need no privilege, and never opened for its content again: whoever mounts it
//! is podman's user (`packaging/libexec/casemate-runsc`), to whose group it is open.
//!
//! Invariant: only this folder makes and removes files in its directory, and each is named by an identifier of ours: no path
//! is built from anybody's input.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;

use crate::base::id::VolumeId;
use crate::host::directory;

/// Of the directories: podman's user passes through, nobody lists; what is made in it is of its group.
const DIRECTORY_MODE: u32 = 0o2710;
/// Of a volume's file: ours and podman's user's.
const FILE_MODE: u32 = 0o660;
/// How a volume's file is called: its identifier and this.
const SUFFIX: &str = ".img";
/// And after that, when the state that it belonged to was put aside for another one.
const ASIDE: &str = "before-restore";
/// For each program of e2fsprogs: at most a second on a healthy disk, whatever the size, as little is written.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(60);
/// Most that is kept of what such a program says.
const WORDS_BYTES: usize = 512;
/// Where programs of e2fsprogs are.
const PROGRAM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// How the file system is made. Nothing is set aside for root, since no host depends on it; no journal, since fuse2fs writes
/// none; an inode for each 8 KiB, for trees of small files. What is not written stays a hole in the file.
const MKFS: [&str; 15] = [
    "-q",
    "-F",
    "-t",
    "ext4",
    "-m",
    "0",
    "-b",
    "4096",
    "-I",
    "256",
    "-i",
    "8192",
    "-O",
    "^has_journal,^orphan_file",
    "-E",
];
const MKFS_EXTENDED: &str = "lazy_itable_init=1,nodiscard,root_owner=0:0";
/// Programs of every user of a sandbox may make files at the top: whose they are is the team's own affair. And `lost+found`, which
/// e2fsck makes again where there is none, is in nobody's way who walks a volume.
const OPENINGS: [&str; 2] = [
    "set_inode_field <2> mode 040777",
    "set_inode_field lost+found mode 040755",
];

/// Why a volume's file cannot be made or removed. Report.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The disk or the directory said no.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A program of e2fsprogs is missing.
    #[error("there is no {0}: install e2fsprogs")]
    NoProgram(&'static str),
    /// It failed, or did not come to an end.
    #[error("{program} failed: {said}")]
    Program {
        /// Which.
        program: &'static str,
        /// The end of what it said.
        said: String,
    },
}

/// The files of one installation's volumes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct VolumeFiles {
    directory: Arc<Path>,
}

impl VolumeFiles {
    /// Knows where they are; looks at nothing yet.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Makes the directory and the one above it, or takes them as they are; their group may pass through.
    ///
    /// # Errors
    /// What is wrong and what to do, in words.
    pub fn prepare(&self, group: u32) -> Result<(), String> {
        let above = self.directory.parent();
        for path in above.into_iter().chain([&*self.directory]) {
            let made = directory::ensure(path, DIRECTORY_MODE & 0o777)
                .and_then(|()| directory::give_to_group(path, group, DIRECTORY_MODE));
            made.map_err(|error| crate::base::chain::Chain(&error).to_string())?;
        }
        for name in ["mkfs.ext4", "debugfs"] {
            program(name).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Where a volume's file is, or would be.
    #[must_use]
    pub fn path(&self, id: VolumeId) -> PathBuf {
        self.directory.join(format!("{id}{SUFFIX}"))
    }

    /// Makes a volume's file with an empty file system. It is whole and on the disk when this returns; when it fails, there is
    /// none.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn create(&self, id: VolumeId, size_bytes: u64) -> Result<(), VolumeError> {
        let made = self.make(id, size_bytes).await;
        if made.is_err() {
            // Why it failed is what matters; what is left is found by the next look for what nobody owns.
            let _ = self.remove(id);
        }
        made
    }

    async fn make(&self, id: VolumeId, size_bytes: u64) -> Result<(), VolumeError> {
        let path = self.path(id);
        let failed = |doing, source| VolumeError::File {
            doing,
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failed("make", error))?;
        file.set_len(size_bytes)
            .map_err(|error| failed("give its size to", error))?;
        let mut mkfs = Command::new(program("mkfs.ext4")?);
        mkfs.args(MKFS).arg(MKFS_EXTENDED).arg(&path);
        run("mkfs.ext4", mkfs).await?;
        for opening in OPENINGS {
            let mut debugfs = Command::new(program("debugfs")?);
            debugfs.args(["-w", "-R", opening]).arg(&path);
            run("debugfs", debugfs).await?;
        }
        file.set_permissions(Permissions::from_mode(FILE_MODE))
            .map_err(|error| failed("open to podman's user", error))?;
        file.sync_all()
            .and_then(|()| File::open(&self.directory)?.sync_all())
            .map_err(|error| failed("flush", error))
    }

    /// Removes a volume's file; none is success. Whoever still has it open keeps what nobody else can find.
    ///
    /// # Errors
    /// [`VolumeError::File`].
    pub fn remove(&self, id: VolumeId) -> Result<(), VolumeError> {
        let path = self.path(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|source| VolumeError::File {
                doing: "remove",
                path,
                source,
            }),
        }
    }

    /// How much of the disk a volume takes, in bytes: what was ever written to it. `None` when there is no file.
    #[must_use]
    pub fn used_bytes(&self, id: VolumeId) -> Option<u64> {
        let found = std::fs::symlink_metadata(self.path(id)).ok()?;
        // In units of 512 bytes, whatever the file system (stat(2)).
        Some(found.blocks().saturating_mul(512))
    }

    /// The volumes of which there is a file. None when there is no directory.
    ///
    /// # Errors
    /// [`VolumeError::File`].
    pub fn list(&self) -> Result<Vec<VolumeId>, VolumeError> {
        let failed = |source| VolumeError::File {
            doing: "read",
            path: self.directory.to_path_buf(),
            source,
        };
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            found.extend(id.and_then(|id| id.parse::<VolumeId>().ok()));
        }
        Ok(found)
    }

    /// Keeps a file under a name that is no volume's: nobody serves it, and nobody removes it. Where it is then.
    ///
    /// # Errors
    /// [`VolumeError::File`].
    pub fn set_aside(&self, id: VolumeId) -> Result<PathBuf, VolumeError> {
        let from = self.path(id);
        let to = from.with_added_extension(ASIDE);
        std::fs::rename(&from, &to)
            .map(|()| to)
            .map_err(|source| VolumeError::File {
                doing: "put aside",
                path: from,
                source,
            })
    }
}

/// A program of e2fsprogs, by its absolute path.
fn program(name: &'static str) -> Result<PathBuf, VolumeError> {
    PROGRAM_DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
        .ok_or(VolumeError::NoProgram(name))
}

/// Runs a program to its end, with nothing of ours but its arguments.
async fn run(program: &'static str, mut command: Command) -> Result<(), VolumeError> {
    let failed = |said: String| VolumeError::Program { program, said };
    command
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ended = tokio::time::timeout(PROGRAM_DEADLINE, command.output()).await;
    let output = ended
        .map_err(|_| failed(format!("it took more than {PROGRAM_DEADLINE:?}")))?
        .map_err(|error| failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    // debugfs says its name there, and ends with 0 whatever it was asked for.
    let complaints: Vec<_> = said
        .lines()
        .filter(|line| !line.starts_with("debugfs 1.") && !line.is_empty())
        .collect();
    if output.status.success() && (program != "debugfs" || complaints.is_empty()) {
        return Ok(());
    }
    let mut said = format!("{}; {}", output.status, complaints.join("; "));
    said.truncate(said.floor_char_boundary(WORDS_BYTES));
    Err(failed(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group that this process may give files to.
    fn own_gid() -> u32 {
        tempfile::NamedTempFile::new()
            .unwrap()
            .as_file()
            .metadata()
            .unwrap()
            .gid()
    }

    fn files() -> (tempfile::TempDir, VolumeFiles) {
        let above = tempfile::tempdir().unwrap();
        let files = VolumeFiles::new(&above.path().join("volumes/ins"));
        (above, files)
    }

    #[tokio::test]
    async fn a_volume_is_a_sparse_file_that_its_group_may_write() {
        let (_above, files) = files();
        files.prepare(own_gid()).unwrap();
        let id = VolumeId::from_bytes([1; 16]);
        files.create(id, 64 << 20).await.unwrap();
        let found = std::fs::metadata(files.path(id)).unwrap();
        assert_eq!(found.len(), 64 << 20);
        assert_eq!(found.mode() & 0o7777, FILE_MODE);
        assert_eq!(found.gid(), own_gid());
        let used = files.used_bytes(id).unwrap();
        assert!((1..4 << 20).contains(&used), "{used}");
        assert_eq!(files.list().unwrap(), [id]);
        for directory in [files.directory.parent().unwrap(), &files.directory] {
            let mode = std::fs::metadata(directory).unwrap().mode();
            assert_eq!(mode & 0o7777, DIRECTORY_MODE);
        }

        files.remove(id).unwrap();
        files.remove(id).unwrap();
        assert_eq!(files.list().unwrap(), []);
        assert_eq!(files.used_bytes(id), None);
    }

    #[tokio::test]
    async fn what_cannot_be_made_leaves_nothing() {
        let (_above, files) = files();
        files.prepare(own_gid()).unwrap();
        let id = VolumeId::from_bytes([1; 16]);
        // Too small for any file system.
        let error = files.create(id, 4096).await.unwrap_err();
        assert!(matches!(error, VolumeError::Program { .. }), "{error}");
        assert_eq!(files.list().unwrap(), []);
        // Never over one that is there.
        files.create(id, 64 << 20).await.unwrap();
        let before = std::fs::read(files.path(id)).unwrap();
        let error = files.make(id, 32 << 20).await.unwrap_err();
        assert!(matches!(error, VolumeError::File { doing: "make", .. }));
        assert!(std::fs::read(files.path(id)).unwrap() == before);
    }

    #[test]
    fn a_stranger_s_files_are_nobody_s_volumes() {
        let (above, files) = files();
        assert_eq!(files.list().unwrap(), []);
        files.prepare(own_gid()).unwrap();
        std::fs::write(above.path().join("volumes/ins/vol_x.img"), "").unwrap();
        std::fs::write(above.path().join("volumes/ins/notes"), "").unwrap();
        assert_eq!(files.list().unwrap(), []);
    }
}
