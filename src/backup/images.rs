//! Images in a backup: each saved by podman as an archive of its own, and loaded again by the first daemon that starts on a
//! restored state. Nothing is ever whole in memory, and what is loaded is the image that was listed or none.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::archive::{self, Content};
use super::{BackupError, manifest};
use crate::audit::AuditLog;
use crate::base::chain::Chain;
use crate::model::event::{AuditEvent, Outcome};
use crate::model::image::ImageDigest;
use crate::model::principal::Principal;
use crate::runtime::{RuntimeError, SandboxRuntime};

/// Where archives of a restored state wait for the daemon, below the state's directory.
pub(super) const WAITING: &str = "images-restored";

/// How much of an archive is handed to podman at once.
const PIECE_BYTES: usize = 256 << 10;

/// Saves images on the thread of a backup.
pub(super) struct Saver<'a> {
    pub(super) runtime: &'a dyn SandboxRuntime,
    /// Where the calls run that this thread waits for.
    pub(super) handle: &'a Handle,
    /// Cancelled when the daemon stops.
    pub(super) stop: &'a CancellationToken,
    /// Most bytes of all archives.
    pub(super) max_bytes: u64,
}

/// What came of it.
pub(super) struct Saved {
    /// The archives, named as parts.
    pub(super) contents: Vec<(String, Content)>,
    /// Images that podman does not have.
    pub(super) missing: Vec<ImageDigest>,
}

impl Saver<'_> {
    /// Saves each image into a directory that is ours; tells how many bytes each piece has.
    pub(super) fn save(
        &self,
        images: &BTreeSet<ImageDigest>,
        directory: &Path,
        tell: &mut dyn FnMut(u64),
    ) -> Result<Saved, BackupError> {
        let mut saved = Saved {
            contents: Vec::new(),
            missing: Vec::new(),
        };
        let mut left = self.max_bytes;
        for image in images {
            let path = directory.join(image.hex());
            match self.one(*image, &path, &mut left, tell) {
                Ok(()) => {}
                Err(BackupError::Image {
                    source: RuntimeError::ImageMissing(image),
                    ..
                }) => {
                    warn!(%image, "podman does not have the image of a template; the backup is without it");
                    saved.missing.push(image);
                    continue;
                }
                Err(error) => return Err(error),
            }
            if !archive::holds_image(&path, *image).map_err(BackupError::file("read", &path))? {
                return Err(BackupError::OtherImage(*image));
            }
            let name = manifest::name_of_image(*image);
            saved.contents.push((name, Content::File(path)));
        }
        Ok(saved)
    }

    fn one(
        &self,
        image: ImageDigest,
        path: &Path,
        left: &mut u64,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(), BackupError> {
        let failed = |source| BackupError::Image { image, source };
        let broken = |error: std::io::Error| {
            failed(RuntimeError::Unavailable {
                doing: "save an image",
                source: error.into(),
            })
        };
        let write = BackupError::file("write", path);
        let mut pieces = self
            .unless_stopped(self.runtime.save_image(image))?
            .map_err(failed)?;
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(&write)?;
        while let Some(piece) = self.unless_stopped(pieces.next())? {
            let piece: Bytes = piece.map_err(broken)?;
            let bytes = piece.len() as u64;
            *left = left
                .checked_sub(bytes)
                .ok_or(BackupError::ImagesTooLarge(self.max_bytes))?;
            file.write_all(&piece).map_err(&write)?;
            tell(bytes);
        }
        Ok(())
    }

    fn unless_stopped<T>(&self, call: impl Future<Output = T>) -> Result<T, BackupError> {
        self.handle.block_on(async {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => Err(BackupError::Stopping),
                done = call => Ok(done),
            }
        })
    }
}

/// The archives that wait to be loaded, each with the image that it must be.
#[must_use]
pub fn waiting(state_dir: &Path) -> Vec<(ImageDigest, PathBuf)> {
    let entries = std::fs::read_dir(state_dir.join(WAITING));
    let mut found: Vec<_> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let image = manifest::image_of_file(name.to_str()?)?;
            Some((image, entry.path()))
        })
        .collect();
    found.sort();
    found
}

/// Loads what waits, each load recorded; says with `before` that one begins. An archive goes when its image is there. One that
/// podman refuses stays for the next start, and one that is of another image is put aside; either is an error in the log, and
/// what needs its image says so.
///
/// # Errors
/// [`BackupError::Image`]: podman cannot be asked. [`BackupError::Audit`], [`BackupError::File`].
pub async fn load(
    runtime: &dyn SandboxRuntime,
    audit: &AuditLog,
    state_dir: &Path,
    before: impl Fn(ImageDigest),
) -> Result<(), BackupError> {
    for (image, path) in waiting(state_dir) {
        let failed = |source| BackupError::Image { image, source };
        let there = runtime.images().await.map_err(failed)?;
        let there: BTreeSet<_> = there.into_iter().map(|image| image.digest).collect();
        if !there.contains(&image) {
            before(image);
            let event = AuditEvent::ImageImport {};
            let intent = audit.begin(&Principal::Daemon, None, event).await;
            let intent = intent.map_err(BackupError::Audit)?;
            let loaded = load_one(runtime, &path).await;
            let failure = |code: &str| Outcome::Failed {
                code: code.to_owned(),
            };
            let outcome = match &loaded {
                Ok(found) if *found == image => Outcome::Ok {
                    detail: Some(image.to_string()),
                },
                Ok(_) => failure("other_image"),
                Err(RuntimeError::BadArchive(_)) => failure("bad_archive"),
                Err(_) => failure("runtime"),
            };
            if let Err(error) = intent.finish(outcome).await {
                warn!(error = %Chain(&error), "cannot complete the record of an image");
            }
            match loaded {
                Ok(found) if found == image => info!(%image, "loaded an image of the backup"),
                Ok(found) => {
                    refuse(runtime, image, &path, found, &there).await?;
                    continue;
                }
                Err(RuntimeError::BadArchive(what)) => {
                    error!(
                        %image, path = %path.display(), what,
                        "podman refused an image of the backup; it is tried again at the next start, unless its file is removed"
                    );
                    continue;
                }
                Err(other) => return Err(failed(other)),
            }
        }
        std::fs::remove_file(&path).map_err(BackupError::file("remove", &path))?;
    }
    // It stays when something in it does.
    let _ = std::fs::remove_dir(state_dir.join(WAITING));
    Ok(())
}

async fn load_one(runtime: &dyn SandboxRuntime, path: &Path) -> Result<ImageDigest, RuntimeError> {
    let file = tokio::fs::File::open(path).await;
    let file = file.map_err(|error| RuntimeError::Unavailable {
        doing: "load an image",
        source: error.into(),
    })?;
    let pieces = ReaderStream::with_capacity(file, PIECE_BYTES);
    runtime.load_image(pieces.boxed()).await
}

/// Lets go of an image that is not the one that was listed.
async fn refuse(
    runtime: &dyn SandboxRuntime,
    image: ImageDigest,
    path: &Path,
    found: ImageDigest,
    there: &BTreeSet<ImageDigest>,
) -> Result<(), BackupError> {
    let aside = path.with_extension("refused");
    std::fs::rename(path, &aside).map_err(BackupError::file("put aside", path))?;
    error!(
        %image, %found, path = %aside.display(),
        "an archive of the backup is of another image than its name says; it is put aside, and its image refused"
    );
    if !there.contains(&found)
        && let Err(error) = runtime.remove_image(found).await
    {
        warn!(%found, error = %Chain(&error), "cannot remove an image that was refused");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
