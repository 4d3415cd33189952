//! Snapshots: what a session changed in its root file system becomes a version of a template of its team.
//!
//! The sandbox says what it changed ([`casemate_link::snapshot`]); its word is judged as it comes ([`layer`]) and kept in a
//! file without a name. Only what was told to its end, and is sound, reaches podman, as one layer on top of those of the
//! session's image ([`archive`]). Up to there a caller that goes away ends it and nothing is left; from there on it is
//! finished without the caller. What a crash leaves is an image that no template names, which the sweep removes
//! ([`crate::session::images`]).

mod archive;
mod layer;

use std::collections::HashSet;
use std::io::Seek;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use casemate_link::snapshot::SnapshotRequest;
use futures_util::{StreamExt, stream};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::io::ReaderStream;

pub use self::layer::{BadLayer, MAX_ENTRIES};
use self::layer::{Held, Layering};
use super::templates::own_team;
use super::transfer::Ongoing;
use super::{App, AppError, Kept, TemplateRefusal};
use crate::base::chain::Chain;
use crate::base::id::SessionId;
use crate::host::scratch;
use crate::identity::ContentHash;
use crate::model::event::AuditEvent;
use crate::model::image::{ImageDigest, LayerDigest};
use crate::model::name::Name;
use crate::model::principal::Principal;
use crate::model::session::Session;
use crate::model::settings::TeamTemplates;
use crate::model::template::{Origin, Precondition, Template, TemplateProblem, TemplateSpec};
use crate::policy::{Action, Resource};
use crate::runtime::{ArchiveStream, Makeup, RuntimeError, SandboxRuntime};
use crate::session::SessionError;
use crate::session::guest::Guest;
use crate::session::images::Making;

/// Most snapshots at a time, of all sessions: each has a file on the daemon's disk, and keeps podman and the disk busy.
const PLACES: usize = 2;

/// For reading a session: a hundred MB/s make sixty GB of it. A sandbox that lets its bytes drip does not hold a place longer.
const READ_DEADLINE: Duration = Duration::from_secs(600);

/// Layers of an image up to which another is put on top. Beyond, the snapshot is an image of one layer that holds all: the
/// kernel takes no endless list of layers.
const MAX_LAYERS: usize = 32;

/// Bytes that podman is sent at a time.
const PIECE_BYTES: usize = 256 * 1024;

/// Most tries to load an image whose layers another image's removal takes away meanwhile.
const LOADS: u32 = 5;

/// A layer in which nothing is: two blocks of zeros.
const EMPTY_LAYER: [u8; 1024] = [0; 1024];

/// Why there is no snapshot. Tell the caller.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotRefusal {
    /// One of this session is being made.
    #[error("a snapshot of this session is being made already; wait for it")]
    UnderWay,
    /// As many as may be are being made. Try again later.
    #[error("as many snapshots are being made as may be at a time")]
    Crowded,
    /// Reading it took too long.
    #[error("the session was not read within {} seconds", READ_DEADLINE.as_secs())]
    Late,
    /// What the session holds cannot be a layer.
    #[error("{}", explained(.0))]
    Layer(BadLayer),
    /// podman does not take it as an image.
    #[error("podman does not take what the session changed as an image")]
    NotTaken,
}

fn explained(bad: &BadLayer) -> String {
    match bad {
        BadLayer::TooLarge(_) => format!(
            "{bad}; remove what it does not need, or an operator raises sessions.team_templates.max_snapshot_bytes"
        ),
        BadLayer::TooMany | BadLayer::Unfit(_) | BadLayer::Damaged(_) => bad.to_string(),
    }
}

impl SnapshotRefusal {
    /// A stable word for programs and for the record.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnderWay => "snapshot_under_way",
            Self::Crowded => "too_many_snapshots",
            Self::Late => "snapshot_late",
            Self::Layer(BadLayer::TooLarge(_) | BadLayer::TooMany) => "snapshot_too_large",
            Self::Layer(BadLayer::Unfit(_)) => "snapshot_unfit",
            Self::Layer(BadLayer::Damaged(_)) | Self::NotTaken => "snapshot_damaged",
        }
    }
}

/// The snapshots that are being made.
pub struct Snapshots {
    sessions: Arc<Mutex<HashSet<SessionId>>>,
    places: Arc<Semaphore>,
    /// Held by whoever uses the image in which nothing is.
    empty: tokio::sync::Mutex<()>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            sessions: Arc::default(),
            places: Arc::new(Semaphore::new(PLACES)),
            empty: tokio::sync::Mutex::default(),
        }
    }
}

/// A snapshot's place among them.
struct Place {
    session: SessionId,
    sessions: Arc<Mutex<HashSet<SessionId>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(&self.session);
    }
}

impl Snapshots {
    fn take(&self, session: SessionId) -> Result<Place, SnapshotRefusal> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.contains(&session) {
            return Err(SnapshotRefusal::UnderWay);
        }
        let permit = Arc::clone(&self.places).try_acquire_owned();
        let permit = permit.map_err(|_| SnapshotRefusal::Crowded)?;
        sessions.insert(session);
        Ok(Place {
            session,
            sessions: Arc::clone(&self.sessions),
            _permit: permit,
        })
    }
}

/// A snapshot that was made.
#[derive(Debug)]
pub struct Snapshot {
    /// The template with its new version.
    pub template: Template,
    /// What became of the template.
    pub kept: Kept,
    /// Files, directories and links that it holds, and what it says to be gone.
    pub entries: u64,
    /// Bytes of its layer.
    pub bytes: u64,
}

/// What a session changed, read to its end.
struct Read {
    file: std::fs::File,
    digest: LayerDigest,
    held: Held,
    below: Makeup,
}

impl App {
    /// Makes a version of a template of the principal's team from what a session changed. The template's other settings are
    /// those of the session's own template.
    ///
    /// # Errors
    /// [`AppError`]; then there is no new version.
    pub async fn snapshot_session(
        &self,
        principal: &Principal,
        id: SessionId,
        name: Name,
        precondition: Precondition,
    ) -> Result<Snapshot, AppError> {
        let session = self.may_use(principal, id).await?;
        let team = own_team(principal)?.clone();
        let resource = Resource::of(&team).template(&name);
        self.allow(principal, Action::ChangeTemplates, &resource)?;
        let spec = self.recipe(&team, &session).await?;
        self.may_put(&team, &name, &precondition).await?;
        let place = self.0.snapshots.take(id).map_err(AppError::Snapshot)?;
        let guest = self.guest(principal, id).await?;
        let event = AuditEvent::SessionSnapshot {
            template: name.clone(),
            team,
        };
        let intent = self.begin(principal, Some(id), event);
        let mut record = Ongoing::new(self, intent.await?, &guest);
        let reading = tokio::time::timeout(READ_DEADLINE, self.read(&guest, &session));
        let read = match reading.await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => {
                let error = AppError::from(error);
                record.settle(Err(error.code())).await;
                return Err(error);
            }
            Err(_) => {
                record.settle(Err(SnapshotRefusal::Late.code())).await;
                return Err(AppError::Snapshot(SnapshotRefusal::Late));
            }
        };
        // From here on it is finished, whoever waits.
        let (this, principal) = (self.clone(), principal.clone());
        let call = self.0.calls.spawn(async move {
            let _place = place;
            let made = this.keep(&principal, name, spec, precondition, read).await;
            let told = made.as_ref().map(|made| {
                let Template { version, spec, .. } = &made.template;
                Some(format!(
                    "version {version}, {}, {} bytes",
                    spec.image, made.bytes
                ))
            });
            record.settle(told.map_err(AppError::code)).await;
            made
        });
        match call.await {
            Ok(made) => made,
            Err(error) => Err(AppError::Internal(error.to_string())),
        }
    }

    /// What the session was made of, within the bounds of what a team may say: numbers are lowered, permissions are not.
    async fn recipe(&self, team: &Name, session: &Session) -> Result<TemplateSpec, AppError> {
        let (name, version) = (&session.spec.template, session.spec.template_version);
        let store = &self.0.store;
        for origin in [Origin::File, Origin::Team(team.clone())] {
            let then = store.template_version(origin, name.clone(), version).await;
            let then = then.map_err(AppError::Store)?;
            // Of two of one name, the one that the session is of.
            let is_its = |then: &Template| then.spec.image == session.spec.image;
            if let Some(then) = then.filter(is_its) {
                let bounds = &self.settings().sessions.team_templates;
                return within(then.spec, bounds).map_err(AppError::Template);
            }
        }
        let gone = TemplateRefusal::NoSuchVersion(name.clone(), version);
        Err(AppError::Template(gone))
    }

    /// Looks whether there is any use in beginning; what is kept is judged when it is.
    async fn may_put(
        &self,
        team: &Name,
        name: &Name,
        precondition: &Precondition,
    ) -> Result<(), AppError> {
        self.not_from_file(team, name)?;
        let own = self.0.store.team_templates(team.clone()).await;
        let own = own.map_err(AppError::Store)?;
        let current = own.iter().find(|template| template.name == *name);
        if !precondition.holds(current.map(|template| template.version)) {
            return Err(AppError::Template(TemplateRefusal::Conflict(name.clone())));
        }
        let max = self.settings().sessions.team_templates.max;
        if current.is_none() && own.len() >= usize::try_from(max).unwrap_or(usize::MAX) {
            return Err(AppError::Template(TemplateRefusal::Full(max)));
        }
        Ok(())
    }

    /// Reads what the session changed into a file without a name.
    async fn read(&self, guest: &Guest, session: &Session) -> Result<Read, Unread> {
        let image = session.spec.image;
        let mut below = self.0.runtime.makeup(image).await?;
        let whole = below.layers.len() >= MAX_LAYERS;
        let mut reader = guest
            .link()
            .snapshot(SnapshotRequest { whole })
            .await
            .map_err(|error| {
                guest.reached().refused(&error);
                crate::session::guest::failed(error)
            })?;
        let names = if reader.whole {
            below.layers.clear();
            Vec::new()
        } else {
            self.names(image, &below).await?
        };
        let max_bytes = self.settings().sessions.team_templates.max_snapshot_bytes;
        let mut layering = Layering::new(names, max_bytes);
        let mut hash = ContentHash::default();
        let failed = |source| SessionError::System {
            doing: "keep a snapshot on its way",
            source,
        };
        let file = scratch::file(self.0.store.directory()).map_err(failed)?;
        let mut file = File::from_std(file);
        let mut out = Vec::with_capacity(2 * PIECE_BYTES);
        let told = |error| crate::session::guest::failed(error);
        while let Some(data) = reader.next().await.map_err(told)? {
            layering.feed(&data, &mut out)?;
            hash.update(&out);
            file.write_all(&out).await.map_err(failed)?;
            out.clear();
        }
        let held = layering.finish(&mut out)?;
        hash.update(&out);
        file.write_all(&out).await.map_err(failed)?;
        file.flush().await.map_err(failed)?;
        Ok(Read {
            file: file.into_std().await,
            digest: LayerDigest::from_bytes(hash.finish()),
            held,
            below,
        })
    }

    /// The paths of all that is in an image: what it has beyond one in which nothing is.
    async fn names(
        &self,
        image: ImageDigest,
        makeup: &Makeup,
    ) -> Result<Vec<String>, RuntimeError> {
        let nothing = Makeup {
            layers: Vec::new(),
            architecture: makeup.architecture.clone(),
        };
        let _alone = self.0.snapshots.empty.lock().await;
        let bytes = u64::try_from(EMPTY_LAYER.len()).unwrap_or(u64::MAX);
        let content = || stream::once(async { Ok(Bytes::from_static(&EMPTY_LAYER)) }).boxed();
        let digest = archive::digest(&EMPTY_LAYER);
        let loaded = self.load(&nothing, digest, bytes, content);
        let (_making, empty) = loaded.await?;
        let names = self.0.runtime.names(image, empty).await;
        // Also after a failure; one that stays is found by the sweep.
        if let Err(error) = self.0.runtime.remove_image(empty).await {
            tracing::warn!(error = %Chain(&error), "cannot remove an image that is not needed any more");
        }
        names
    }

    /// Makes an image of a layer on top of others. It is not swept while the first of the two is held.
    async fn load(
        &self,
        below: &Makeup,
        digest: LayerDigest,
        bytes: u64,
        content: impl Fn() -> ArchiveStream,
    ) -> Result<(Making, ImageDigest), RuntimeError> {
        let installation = self.0.store.installation();
        let archive = archive::archive(below, digest, bytes, installation);
        let making = self.0.sessions.making(archive.image).await;
        let (head, tail) = (Bytes::from(archive.head), Bytes::from(archive.tail));
        let once = |bytes: &Bytes| stream::once(std::future::ready(Ok(bytes.clone())));
        let whole = || once(&head).chain(content()).chain(once(&tail)).boxed();
        let loaded = load_again(&*self.0.runtime, whole).await?;
        if loaded != archive.image {
            return Err(RuntimeError::BadArchive(format!(
                "it is {loaded} to podman, and {} to us",
                archive.image
            )));
        }
        Ok((making, loaded))
    }

    /// Makes the image and the version that names it.
    async fn keep(
        &self,
        principal: &Principal,
        name: Name,
        mut spec: TemplateSpec,
        precondition: Precondition,
        read: Read,
    ) -> Result<Snapshot, AppError> {
        let Read {
            file,
            digest,
            held: Held { entries, bytes },
            below,
        } = read;
        let content = || pieces(&file, bytes);
        let loaded = self.load(&below, digest, bytes, content).await;
        let (_making, image) = loaded.map_err(|error| match error {
            RuntimeError::BadArchive(what) => {
                tracing::warn!(what, "podman does not take a snapshot");
                AppError::Snapshot(SnapshotRefusal::NotTaken)
            }
            other => AppError::Runtime(other),
        })?;
        spec.image = image;
        // Where it is not kept, the image is nobody's, and the sweep finds it.
        let (template, kept) = self
            .put_template(principal, name, spec, precondition)
            .await?;
        Ok(Snapshot {
            template,
            kept,
            entries,
            bytes,
        })
    }
}

/// Loads an image, and again where another image took a layer along.
async fn load_again(
    runtime: &dyn SandboxRuntime,
    archive: impl Fn() -> ArchiveStream,
) -> Result<ImageDigest, RuntimeError> {
    let mut left = LOADS;
    loop {
        left -= 1;
        match runtime.load_image(archive()).await {
            Err(RuntimeError::LayerWent) if left > 0 => {}
            loaded => return loaded,
        }
    }
}

/// The first bytes of a file, from its beginning. One at a time: they share its position.
fn pieces(file: &std::fs::File, bytes: u64) -> ArchiveStream {
    let begun = file.try_clone().and_then(|mut file| {
        file.rewind()?;
        Ok(File::from_std(file).take(bytes))
    });
    match begun {
        Ok(file) => ReaderStream::with_capacity(file, PIECE_BYTES).boxed(),
        Err(error) => stream::once(std::future::ready(Err(error))).boxed(),
    }
}

/// What a team may say of what a template says.
fn within(mut spec: TemplateSpec, bounds: &TeamTemplates) -> Result<TemplateSpec, TemplateRefusal> {
    if spec.allow_root && !bounds.allow_root {
        return Err(TemplateRefusal::Invalid(TemplateProblem {
            field: vec!["allow_root".to_owned()],
            problem: "the session's template lets programs be root, and an operator does not let a team's template say so (sessions.team_templates)"
                .to_owned(),
        }));
    }
    spec.teams = None;
    spec.pool = spec.pool.min(bounds.max_pool);
    spec.max_timeout_s = spec.max_timeout_s.min(bounds.max_timeout_s);
    spec.timeout_s = spec.timeout_s.min(spec.max_timeout_s);
    spec.max_limits = spec.max_limits.within(&bounds.max_limits);
    spec.limits = spec.limits.within(&spec.max_limits);
    Ok(spec)
}

/// Why a session could not be read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Layer(#[from] BadLayer),
}

impl From<Unread> for AppError {
    fn from(error: Unread) -> Self {
        match error {
            Unread::Session(error) => Self::Session(error),
            Unread::Runtime(error) => Self::Runtime(error),
            Unread::Layer(bad) => {
                if let BadLayer::Damaged(_) = &bad {
                    tracing::warn!(error = %Chain(&bad), "a guest told nonsense for a snapshot");
                }
                Self::Snapshot(SnapshotRefusal::Layer(bad))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::{FakeCall, FakeFailure, FakeRuntime};

    #[tokio::test]
    async fn a_layer_that_went_is_sent_again_but_not_for_ever() {
        let image = ImageDigest::from_bytes([7; 32]);
        let archive = || stream::once(async move { Ok(Bytes::from(image.to_string())) }).boxed();
        for (failures, is_loaded) in [(0, true), (LOADS - 1, true), (LOADS, false)] {
            let runtime = FakeRuntime::new([]);
            for nth in 1..=failures {
                runtime.fail(FakeCall::LoadImage, u64::from(nth), FakeFailure::LayerWent);
            }
            match load_again(&runtime, archive).await {
                Ok(loaded) => assert!(is_loaded && loaded == image, "{failures}: {loaded}"),
                Err(error) => assert!(
                    !is_loaded && matches!(error, RuntimeError::LayerWent),
                    "{failures}: {error}"
                ),
            }
        }
    }

    #[tokio::test]
    async fn a_file_is_read_as_often_as_is_asked() {
        let bytes = 2 * PIECE_BYTES + 5;
        let content: Vec<u8> = (0..=u8::MAX).cycle().take(bytes + 3).collect();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &content).unwrap();
        for _ in 0..2 {
            let pieces: Vec<_> = pieces(&file, bytes as u64).collect().await;
            let read: Vec<u8> = pieces.into_iter().flat_map(Result::unwrap).collect();
            assert_eq!(read, content[..bytes]);
        }
    }
}
