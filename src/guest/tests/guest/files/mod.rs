//! What the guest promises of files, kept over a real link. Nothing here needs a sandbox.

mod changes;
mod reads;
mod rights;
mod writes;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use casemate_link::daemon::{Link, LinkError};
use casemate_link::file::{ReadRange, ReadRequest};
use tempfile::{TempDir, tempdir};

use crate::support::{Bench, all, at, soon};

/// A guest, and a directory of the test's own that every user may enter.
async fn bench() -> (Bench, Link, TempDir) {
    let (bench, link) = Bench::start_with_channels().await;
    let dir = tempdir().unwrap();
    chmod(dir.path(), 0o755);
    (bench, link, dir)
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

async fn get(link: &Link, path: &Path, range: Option<ReadRange>) -> Result<Vec<u8>, LinkError> {
    let place = at(path);
    all(soon(link.read(&ReadRequest { place, range })).await?).await
}
