//! Floor 4: what runs sandboxes. One trait, two implementations that pass the same contract suite:
//! [`podman`] (rootless podman with gVisor) and [`fake`] (faithful, in memory, fails on demand).
//!
//! The promise of this folder: **a sandbox that it reports as created is a gVisor sandbox without
//! network, without privileges and with the asked image and limits, because each was read back.**
//! podman drops unknown fields, ignores `oci_runtime` and only warns of limits it cannot apply, so
//! nothing is believed because it was asked for.

mod alive;
mod checkpoints;
pub mod fake;
mod fake_image;
mod forgotten;
pub mod groups;
pub mod podman;
pub mod spec;

mod images;
mod libpod;
mod mux;
mod probe;
mod verify;
mod volumes;
mod vouch;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::base::id::InstallationId;
use crate::model::image::{Image, ImageDigest, LayerDigest};
use crate::model::sandbox::{Checkpoint, Limits, SandboxId, SandboxSpec, SandboxState};
use groups::Strain;

/// What the runtime stands on, found by [`SandboxRuntime::probe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeFacts {
    /// podman's version.
    pub podman_version: String,
    /// conmon's version, for example `conmon version 2.1.6`; empty when podman does not say.
    pub conmon_version: String,
    /// The OCI runtime's path, as podman reports it.
    pub runtime_path: String,
    /// What the OCI runtime prints as its version, for example `runsc version 0.0~20240729.0`.
    pub runtime_version: String,
    /// Limits that this machine does not enforce from outside the sandbox (no delegated control
    /// groups): `memory`, `cpu`, `pids`. What is not among them was tried, and is looked at again in
    /// each sandbox.
    pub unenforced_limits: Vec<&'static str>,
    /// Why volumes cannot be mounted here, and what to do about it.
    pub volumes_problem: Option<String>,
}

/// A program run in a sandbox around the guest, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Its exit code.
    pub exit_code: i32,
    /// Both of its outputs, bounded by [`EXEC_OUTPUT_BYTES`].
    pub output: Vec<u8>,
}

/// Who dialled a sandbox's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialler {
    /// The process on the other end, as the kernel tells it (`SO_PEERCRED`): gVisor's gofer, which
    /// dials on behalf of its sandbox.
    pub pid: Option<i32>,
    /// First lines of the kernel log that the guest saw.
    pub kernel_banner: String,
}

/// Most output kept of one [`SandboxRuntime::exec`].
pub const EXEC_OUTPUT_BYTES: usize = 256 * 1024;

/// Most bytes of the list of an image's names, as podman writes it: a million of them.
pub const MAX_NAMES_BYTES: usize = 128 << 20;

/// What an image is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Makeup {
    /// Its layers from the lowest, by the digests of what is in them.
    pub layers: Vec<LayerDigest>,
    /// The processor that it is for, as OCI names it.
    pub architecture: String,
}

/// Bytes of an image archive, as they arrive.
pub type ArchiveStream = BoxStream<'static, std::io::Result<Bytes>>;

/// What runs sandboxes.
///
/// Every call has a deadline inside. Dropping a call leaves an effect that was begun to finish or
/// to be found again by [`SandboxRuntime::list`].
#[async_trait]
pub trait SandboxRuntime: Send + Sync {
    /// Finds out whether this machine can run sandboxes at all.
    ///
    /// # Errors
    /// [`RuntimeError::Unfit`] with what to do about it, or [`RuntimeError::Unavailable`].
    async fn probe(&self) -> Result<RuntimeFacts, RuntimeError>;

    /// Makes a sandbox and verifies it, without starting it. What does not verify is removed, and so
    /// is an earlier sandbox of the same session.
    ///
    /// # Errors
    /// [`RuntimeError::ImageMissing`], [`RuntimeError::NotAsAsked`], [`RuntimeError::Unavailable`],
    /// [`RuntimeError::Failed`].
    async fn create(&self, spec: &SandboxSpec) -> Result<SandboxId, RuntimeError>;

    /// Starts a sandbox; already running is success. One that has ended is not started again.
    ///
    /// # Errors
    /// [`RuntimeError::Failed`] with the end of what its first process said, or when there is no such
    /// sandbox; [`RuntimeError::Unavailable`].
    async fn start(&self, id: &SandboxId) -> Result<(), RuntimeError>;

    /// Makes a running sandbox stand still: no program in it runs, its memory stays, and nothing in it
    /// answers. Still so is success. It counts as running, and can be removed.
    ///
    /// # Errors
    /// [`RuntimeError::Failed`] when it does not run; [`RuntimeError::Unavailable`].
    async fn pause(&self, id: &SandboxId) -> Result<(), RuntimeError>;

    /// Lets a sandbox go on that stands still. One that runs is success.
    ///
    /// # Errors
    /// As [`SandboxRuntime::pause`].
    async fn resume(&self, id: &SandboxId) -> Result<(), RuntimeError>;

    /// Mounts in a running sandbox what the file `wanted` in its `volumes_dir` says, line by line: mode, name and file of a
    /// volume. What is mounted already stays. It may be asked again after a failure.
    ///
    /// # Errors
    /// [`RuntimeError::Failed`] with what is in the way; [`RuntimeError::Unavailable`].
    async fn attach(&self, id: &SandboxId) -> Result<(), RuntimeError>;

    /// Takes a checkpoint of a running sandbox that was made for it ([`crate::model::sandbox::Warmth::Source`]), which ends with
    /// it. Its guest must have let go of everything of the host's before. When this fails there is no checkpoint.
    ///
    /// # Errors
    /// As [`SandboxRuntime::pause`].
    async fn checkpoint(&self, id: &SandboxId) -> Result<(), RuntimeError>;

    /// The checkpoints that there are, whole and kept, of all installations. One whose file is gone goes with the next
    /// [`SandboxRuntime::tidy`], if not before.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`].
    async fn checkpoints(&self) -> Result<Vec<Checkpoint>, RuntimeError>;

    /// The sandbox now; `None` when there is none.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`]; [`RuntimeError::Failed`] when podman cannot read its own records.
    async fn inspect(&self, id: &SandboxId) -> Result<Option<SandboxState>, RuntimeError>;

    /// Waits until the sandbox has ended; its exit code, or `None` when it is gone. Has no deadline,
    /// and may be a second late: the link's end tells sooner.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`] when the connection is lost; the caller waits again.
    async fn wait(&self, id: &SandboxId) -> Result<Option<i32>, RuntimeError>;

    /// Ends and removes a sandbox. Gone already is success. When this returns `Ok`, nothing of it
    /// is left in the runtime.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`], or [`RuntimeError::Failed`] when podman has refused until the
    /// deadline; either way the caller tries again.
    async fn remove(&self, id: &SandboxId) -> Result<(), RuntimeError>;

    /// Has removed what sandboxes left behind that the runtime itself has forgotten: processes, state, control groups.
    /// What cannot be removed now is found again.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`], [`RuntimeError::Failed`].
    async fn tidy(&self) -> Result<(), RuntimeError>;

    /// Every sandbox with this installation's label, running or not.
    ///
    /// # Errors
    /// As [`SandboxRuntime::inspect`].
    async fn list(&self, installation: InstallationId) -> Result<Vec<SandboxState>, RuntimeError>;

    /// Runs a program in a running sandbox around the guest: an independent witness for
    /// [`crate::runtime`]'s promise. Slow (a tenth of a second); never on the way of a call.
    ///
    /// # Errors
    /// [`RuntimeError::Failed`], [`RuntimeError::Unavailable`].
    async fn exec(&self, id: &SandboxId, argv: &[&str]) -> Result<ExecOutcome, RuntimeError>;

    /// Vouches that whoever dialled a sandbox's link is that sandbox's own first process, inside
    /// gVisor, and that the sandbox is within these limits, as far as the machine enforces any. Asked
    /// before the first byte is sent to it.
    ///
    /// # Errors
    /// [`RuntimeError::NotAsAsked`] when it is not; [`RuntimeError::Unavailable`].
    async fn vouch(
        &self,
        id: &SandboxId,
        dialler: &Dialler,
        limits: &Limits,
    ) -> Result<(), RuntimeError>;

    /// What the kernel did to keep a sandbox within its limits. Also of one that has ended, where it
    /// was for lack of memory, until another comes or goes.
    fn strain(&self, id: &SandboxId) -> Strain;

    /// What the sandbox's first process has said so far, at most its last few KiB.
    async fn last_words(&self, id: &SandboxId) -> String;

    /// The images that sandboxes can be made of.
    ///
    /// # Errors
    /// As [`SandboxRuntime::inspect`].
    async fn images(&self) -> Result<Vec<Image>, RuntimeError>;

    /// Loads an OCI or docker archive; streams, never holds it in memory.
    ///
    /// One image only; a second load waits for the first. Of an OCI archive, layers that the store has already may be absent.
    ///
    /// # Errors
    /// [`RuntimeError::BadArchive`], [`RuntimeError::LayerWent`], [`RuntimeError::Unavailable`].
    async fn load_image(&self, archive: ArchiveStream) -> Result<ImageDigest, RuntimeError>;

    /// An image as an archive, whole, as [`SandboxRuntime::load_image`] takes it: without its names, and the same image where it
    /// is loaded. Its pieces come as they are taken; each has a deadline, and an error among them is the end.
    ///
    /// # Errors
    /// [`RuntimeError::ImageMissing`]; as [`SandboxRuntime::inspect`].
    async fn save_image(&self, image: ImageDigest) -> Result<ArchiveStream, RuntimeError>;

    /// What an image is made of.
    ///
    /// # Errors
    /// [`RuntimeError::ImageMissing`]; as [`SandboxRuntime::inspect`].
    async fn makeup(&self, image: ImageDigest) -> Result<Makeup, RuntimeError>;

    /// The absolute paths of all that is in an image and not in another. Names that are no UTF-8 come with replacement
    /// characters.
    ///
    /// # Errors
    /// [`RuntimeError::Failed`] when there is no such image; [`RuntimeError::Unavailable`], also when there are more names than
    /// [`MAX_NAMES_BYTES`].
    async fn names(
        &self,
        image: ImageDigest,
        beyond: ImageDigest,
    ) -> Result<Vec<String>, RuntimeError>;

    /// Removes an image, and those of its layers that no other image has. False when a sandbox is made of it. Gone already is
    /// success.
    ///
    /// # Errors
    /// As [`SandboxRuntime::inspect`].
    async fn remove_image(&self, image: ImageDigest) -> Result<bool, RuntimeError>;
}

/// What went wrong, split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nobody answers at podman's socket, or not in time. Try again later.
    #[error("reach podman ({doing})")]
    Unavailable {
        /// What was being asked.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This machine cannot run sandboxes as it is. Refuse to start.
    #[error("{what}; {mend}")]
    Unfit {
        /// What was found.
        what: String,
        /// What to do about it.
        mend: String,
    },
    /// The image is not in podman's store.
    #[error("image {0} is not in podman's store")]
    ImageMissing(ImageDigest),
    /// What podman made is not what was asked for; it has been removed. Refuse.
    #[error("sandbox is not as asked: {field} is {found}, must be {wanted}")]
    NotAsAsked {
        /// The field that differs.
        field: &'static str,
        /// What was read back.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The archive is not an image.
    #[error("image archive was refused: {0}")]
    BadArchive(String),
    /// Another image with a layer of this one was removed at the wrong moment, and the layer with it. Try again at once.
    #[error("a layer of the image went while it was loaded")]
    LayerWent,
    /// podman refused. Report.
    #[error("podman refused to {doing}: {message}")]
    Failed {
        /// What was being asked.
        doing: &'static str,
        /// What podman said; bounded, for the log and the operator.
        message: String,
    },
}

/// How podman is reached and what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// podman's API socket.
    pub socket: std::path::PathBuf,
    /// The OCI runtime that podman must use, as an absolute path.
    pub runtime: std::path::PathBuf,
    /// The guest binary on the host, mounted into each sandbox.
    pub guest: std::path::PathBuf,
    /// For an ordinary call.
    pub call_deadline: Duration,
    /// For making, starting and removing a sandbox.
    pub sandbox_deadline: Duration,
    /// For loading an image.
    pub load_deadline: Duration,
}
