//! A session's volumes: where they are mounted, when, and that they are let go.
//!
//! Every sandbox, warm or not, sees a directory at `/volumes` that is empty. What is mounted there later appears inside
//! (`packaging/libexec/casemate-runsc`), so a session has its volumes between the start of its sandbox and its being ready,
//! whether it waited for that sandbox or claimed it. Beside the link directory, where no sandbox sees it, lies the *room*:
//!
//! ```text
//!   <session>.volumes/         ours; podman's user passes through and reads
//!     mounts/<name>/           what the sandbox sees at /volumes
//!     wanted                   what is to be mounted: mode, name, file, a line for each
//!     <name>.lock              locked (flock(2)) by what serves the volume, for as long as it lives
//! ```
//!
//! Who may have a volume is decided by the store, in the transaction that admits the session. That no file is ever mounted twice
//! for writing, whatever crashed, is kept by a lock on the file itself, which the process that serves it inherits. A mount ends
//! when its directory here is removed, whatever became of the sandbox: the kernel takes mounts off a directory that is removed
//! in another mount namespace (rmdir(2) since Linux 3.18). Nothing of what is in a volume is ever looked at from here.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::launch::{self, End, gone};
use super::manager::{House, Sessions};
use super::{SessionError, VolumeRefusal};
use crate::base::chain::Chain;
use crate::base::id::{InstallationId, SessionId, VolumeId};
use crate::model::event::AuditEvent;
use crate::model::name::Name;
use crate::model::principal::Principal;
use crate::model::sandbox::SandboxId;
use crate::model::session::{Reason, Session};
use crate::model::settings::VolumesConfig;
use crate::model::volume::{
    Holder, MAX_VOLUMES_OF_SESSION, MIN_VOLUME_BYTES, SessionVolume, VOLUME_STEP_BYTES, Volume,
    VolumeMode, VolumeState,
};
use crate::store::{StoreError, VolumeAdmission, VolumeBudget, VolumeRemoval};
use crate::volume::VolumeFiles;

/// What a session's room is called: its name and this.
pub(super) const ROOM_SUFFIX: &str = ".volumes";

/// How often it is looked whether what serves a session's volumes lives.
const LOOK: Duration = Duration::from_secs(2);

/// How long an end waits until what served its volumes has written everything and ended: the wrapper's own patience, and some
/// more. What goes on for longer still has its lock, so that the volume cannot be attached.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);

/// Pause between two looks meanwhile.
const RELEASE_PAUSE: Duration = Duration::from_millis(10);

/// What volumes stand on.
#[derive(Clone, Debug)]
pub struct Volumes {
    /// Their files.
    pub files: VolumeFiles,
    /// How many there may be.
    pub config: VolumesConfig,
    /// Why this machine cannot have any, and what to do about it.
    pub problem: Option<String>,
}

impl Volumes {
    /// Those of one installation, on a machine that can have volumes.
    #[must_use]
    pub fn new(config: VolumesConfig, installation: InstallationId) -> Self {
        Self {
            files: VolumeFiles::new(&config.dir.join(installation.to_string())),
            config,
            problem: None,
        }
    }
}

// --- the room ---

/// Where a session's room is.
pub(super) fn room(link_root: &Path, id: SessionId) -> PathBuf {
    link_root.join(format!("{id}{ROOM_SUFFIX}"))
}

/// Makes the room of a session whose sandbox is about to be made.
pub(super) fn build(link_root: &Path, id: SessionId) -> io::Result<()> {
    let room = room(link_root, id);
    // The process's umask keeps the group out of new files; here it is let in on purpose.
    DirBuilder::new().mode(0o700).create(&room)?;
    let mounts = room.join("mounts");
    DirBuilder::new().mode(0o700).create(&mounts)?;
    std::fs::set_permissions(&mounts, Permissions::from_mode(0o755))?;
    std::fs::set_permissions(&room, Permissions::from_mode(0o2750))
}

/// Lays out what is to be mounted. What is there already stays as it is: it may be mounted.
fn lay_out(room: &Path, files: &VolumeFiles, volumes: &[SessionVolume]) -> io::Result<()> {
    let mut wanted = String::new();
    for SessionVolume { id, name, mode } in volumes {
        let directory = room.join("mounts").join(name.as_str());
        match DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => std::fs::set_permissions(&directory, Permissions::from_mode(0o755))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        write(&lock_of(room, name), "")?;
        let file = files.path(*id);
        wanted.push_str(mode.as_str());
        wanted.push(' ');
        wanted.push_str(name.as_str());
        wanted.push(' ');
        wanted.push_str(&file.to_string_lossy());
        wanted.push('\n');
    }
    write(&room.join("wanted"), &wanted)
}

/// Writes a file that podman's user may read.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(0o640))?;
    file.write_all(text.as_bytes())
}

fn lock_of(room: &Path, name: &Name) -> PathBuf {
    room.join(format!("{name}.lock"))
}

/// Whether something serves the volume of this lock. What cannot be found out is taken for yes: it is asked again.
fn is_served(lock: &Path) -> bool {
    match File::open(lock) {
        Ok(file) => file.try_lock_shared().is_err(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// The locks in a room.
fn locks(room: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(room) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut locks = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "lock") {
            locks.push(path);
        }
    }
    Ok(locks)
}

/// Takes what is mounted in a room off, and waits until what served it has written everything and ended. None is success.
///
/// # Errors
/// When a directory cannot be removed; the caller tries again.
pub(super) async fn let_go(link_root: &Path, id: SessionId) -> io::Result<()> {
    let room = room(link_root, id);
    unmount(&room)?;
    let locks = locks(&room)?;
    let deadline = Instant::now() + RELEASE_PATIENCE;
    while locks.iter().any(|lock| is_served(lock)) {
        if Instant::now() > deadline {
            warn!(session = %id, "what serves a session's volumes does not come to an end; they cannot be attached until it does");
            return Ok(());
        }
        sleep(RELEASE_PAUSE).await;
    }
    Ok(())
}

/// Removes the directories in which volumes are mounted. Never what is in a directory: if ever a volume were mounted where we
/// see it, this would fail instead of emptying it.
fn unmount(room: &Path) -> io::Result<()> {
    let mounts = room.join("mounts");
    let entries = match std::fs::read_dir(&mounts) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        gone(std::fs::remove_dir(entry?.path()))?;
    }
    gone(std::fs::remove_dir(&mounts))
}

/// Removes a room; none is success.
pub(super) fn remove(link_root: &Path, id: SessionId) -> io::Result<()> {
    let room = room(link_root, id);
    unmount(&room)?;
    for lock in locks(&room)? {
        gone(std::fs::remove_file(lock))?;
    }
    gone(std::fs::remove_file(room.join("wanted")))?;
    gone(std::fs::remove_dir(&room))
}

// --- a session and its volumes ---

/// Gives a sandbox that runs its session's volumes; those that it has already stay. An error ends the session.
pub(super) async fn attach(
    house: &House,
    session: &Session,
    sandbox: &SandboxId,
) -> Result<(), End> {
    let volumes = &session.spec.volumes;
    if volumes.is_empty() {
        return Ok(());
    }
    for SessionVolume { name, mode, .. } in volumes {
        let event = AuditEvent::VolumeAttach {
            volume: name.clone(),
            mode: *mode,
        };
        let fact = house
            .audit
            .fact(&Principal::Daemon, Some(session.id), event);
        let written = fact.await;
        written.map_err(|error| End::new(Reason::Internal, Chain(&error).to_string()))?;
    }
    let room = room(&house.link_root, session.id);
    lay_out(&room, &house.volumes.files, volumes).map_err(|error| launch::failed(&error))?;
    let attached = house.runtime.attach(sandbox).await;
    attached.map_err(|error| launch::refused(&error))?;
    // Nothing is believed because it was asked for.
    let missing = volumes
        .iter()
        .find(|volume| !is_served(&lock_of(&room, &volume.name)));
    if let Some(volume) = missing {
        return Err(End::new(
            Reason::LaunchFailed,
            format!("the volume {} was not mounted", volume.name),
        ));
    }
    info!(session = %session.id, volumes = volumes.len(), "volumes are attached");
    Ok(())
}

/// Resolves when what serves one of a session's volumes has ended: its programs have errors from then on, and what they wrote
/// last may be lost.
pub(super) async fn lost(house: &House, session: &Session) -> End {
    let volumes = &session.spec.volumes;
    if volumes.is_empty() {
        return std::future::pending().await;
    }
    let room = room(&house.link_root, session.id);
    loop {
        let lost = volumes
            .iter()
            .find(|volume| !is_served(&lock_of(&room, &volume.name)));
        if let Some(volume) = lost {
            return End::new(
                Reason::VolumeLost,
                format!(
                    "what served the volume {} has ended; it is checked when it is attached again",
                    volume.name
                ),
            );
        }
        sleep(LOOK).await;
    }
}

impl Sessions {
    /// What volumes stand on.
    #[must_use]
    pub fn volumes(&self) -> &Volumes {
        &self.house.volumes
    }

    /// The volumes that a session of a team asks for, as they are now.
    ///
    /// # Errors
    /// [`SessionError::Volume`], [`SessionError::Invalid`], [`SessionError::Store`].
    pub(super) async fn wanted_volumes(
        &self,
        team: &Name,
        wanted: &[(Name, VolumeMode)],
    ) -> Result<Vec<SessionVolume>, SessionError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(problem) = &self.house.volumes.problem {
            let refusal = VolumeRefusal::Unavailable(problem.clone());
            return Err(SessionError::Volume(refusal));
        }
        let invalid = |problem| SessionError::Invalid {
            field: "volumes",
            problem,
        };
        if wanted.len() > MAX_VOLUMES_OF_SESSION {
            let most = format!("at most {MAX_VOLUMES_OF_SESSION} volumes");
            return Err(invalid(most));
        }
        let mut found: Vec<SessionVolume> = Vec::with_capacity(wanted.len());
        for (name, mode) in wanted {
            if found.iter().any(|volume| volume.name == *name) {
                return Err(invalid(format!("{name} is there more than once")));
            }
            let kept = self.house.store.volume(team.clone(), name.clone()).await;
            let Some((volume, _)) = kept.map_err(SessionError::Store)? else {
                let refusal = VolumeRefusal::Unknown(name.clone());
                return Err(SessionError::Volume(refusal));
            };
            found.push(SessionVolume {
                id: volume.id,
                name: volume.name,
                mode: *mode,
            });
        }
        Ok(found)
    }

    /// Makes a volume of a team; it can be attached when this returns.
    ///
    /// # Errors
    /// [`SessionError`]; then there is none.
    pub async fn create_volume(
        &self,
        principal: &Principal,
        team: Name,
        name: Name,
        size_bytes: u64,
    ) -> Result<Volume, SessionError> {
        let refuse = |refusal| Err(SessionError::Volume(refusal));
        let Volumes {
            files,
            config,
            problem,
        } = &self.house.volumes;
        if let Some(problem) = problem {
            return refuse(VolumeRefusal::Unavailable(problem.clone()));
        }
        let bounds = MIN_VOLUME_BYTES..=config.max_size_bytes;
        if !bounds.contains(&size_bytes) || !size_bytes.is_multiple_of(VOLUME_STEP_BYTES) {
            return Err(SessionError::Invalid {
                field: "size_bytes",
                problem: format!(
                    "{MIN_VOLUME_BYTES} to {}, in steps of {VOLUME_STEP_BYTES}",
                    config.max_size_bytes
                ),
            });
        }
        let now = self.house.clock.now();
        let id = VolumeId::generate(now).map_err(|error| SessionError::System {
            doing: "name the volume",
            source: io::Error::other(error),
        })?;
        let volume = Volume {
            id,
            team,
            name,
            size_bytes,
            created_by: principal.to_string(),
            created_at: now,
            state: VolumeState::Making,
        };
        let budget = VolumeBudget {
            volumes: config.max_per_team,
            bytes: config.max_bytes_per_team,
        };
        let store = &self.house.store;
        let admission = store.admit_volume(volume.clone(), budget).await;
        match admission.map_err(SessionError::Store)? {
            VolumeAdmission::Admitted => {}
            VolumeAdmission::NameTaken => return refuse(VolumeRefusal::NameTaken(volume.name)),
            VolumeAdmission::Full => return refuse(VolumeRefusal::Full(config.max_per_team)),
            VolumeAdmission::TooLarge(left) => return refuse(VolumeRefusal::TooLarge(left)),
        }
        let made = files.create(id, size_bytes).await;
        if let Err(error) = made {
            self.forget_volume(id).await;
            return Err(SessionError::VolumeFile(error));
        }
        if !store
            .volume_is_ready(id)
            .await
            .map_err(SessionError::Store)?
        {
            self.forget_volume(id).await;
            return refuse(VolumeRefusal::Unknown(volume.name));
        }
        Ok(Volume {
            state: VolumeState::Ready,
            ..volume
        })
    }

    /// Removes a volume of a team with all that is in it.
    ///
    /// # Errors
    /// [`SessionError`]; then it is as it was, unless its file could not be removed: then it is gone for everybody, and its file
    /// is removed later.
    pub async fn remove_volume(&self, team: Name, name: Name) -> Result<(), SessionError> {
        let begun = self.house.store.begin_volume_removal(team, name.clone());
        let refusal = match begun.await.map_err(SessionError::Store)? {
            VolumeRemoval::Begun(id) => {
                self.forget_volume(id).await;
                return Ok(());
            }
            VolumeRemoval::Missing => VolumeRefusal::NotFound(name),
            VolumeRemoval::Held(holder) => VolumeRefusal::Held(name, holder),
        };
        Err(SessionError::Volume(refusal))
    }

    /// A team's volumes by name, each with who has it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn volumes_of(&self, team: Name) -> Result<Vec<(Volume, Vec<Holder>)>, StoreError> {
        self.house.store.volumes(team).await
    }

    /// Removes the file of a volume that is nobody's any more, and then its row. What cannot be done now is done by the next
    /// look for what nobody owns.
    async fn forget_volume(&self, id: VolumeId) {
        if let Err(error) = self.house.volumes.files.remove(id) {
            warn!(volume = %id, error = %Chain(&error), "cannot remove a volume's file yet");
            return;
        }
        if let Err(error) = self.house.store.forget_volume(id).await {
            warn!(volume = %id, error = %Chain(&error), "cannot forget a removed volume yet");
        }
    }

    /// Finishes removals that did not come to their end, and removes files of which no row knows. At the start of a daemon
    /// also volumes that were never finished: nobody makes them any more.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) async fn sweep_volumes(&self, is_start: bool) -> Result<usize, SessionError> {
        let files = &self.house.volumes.files;
        // Before the rows: a file is made after its row and removed before it.
        let found = files.list().unwrap_or_else(|error| {
            warn!(error = %Chain(&error), "cannot look for volumes that nobody owns");
            Vec::new()
        });
        let rows = self.house.store.all_volumes().await;
        let rows = rows.map_err(SessionError::Store)?;
        let mut removed = 0;
        for volume in &rows {
            let is_over = match volume.state {
                VolumeState::Ready => false,
                VolumeState::Making => is_start,
                VolumeState::Removing => true,
            };
            if is_over {
                self.forget_volume(volume.id).await;
                removed += 1;
            }
        }
        for id in found {
            if rows.iter().all(|volume| volume.id != id) {
                info!(volume = %id, "removing a volume's file that no team owns");
                if let Err(error) = files.remove(id) {
                    warn!(volume = %id, error = %Chain(&error), "cannot remove a volume's file yet");
                }
                removed += 1;
            }
        }
        Ok(removed)
    }
}
