//! Makes backups, one at a time, on a thread of its own: when it is asked to and when the time has come. Knows the last one.

use std::collections::BTreeSet;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::archive::{self, Content};
use super::images::Saver;
use super::manifest::{self, FORMAT, Manifest, WITHOUT_IMAGES};
use super::{BackupError, OTHER_FILES, swap};
use crate::audit::AuditLog;
use crate::base::chain::Chain;
use crate::base::clock::{Clock, Timestamp};
use crate::host::{background, directory, disk};
use crate::model::event::{AuditEvent, Outcome};
use crate::model::image::{Image, ImageDigest};
use crate::model::principal::Principal;
use crate::model::settings::BackupConfig;
use crate::runtime::SandboxRuntime;
use crate::store::{self, Store};

/// How a backup's name begins and ends; between them stands when it was made.
const PREFIX: &str = "casemate-";
const ENDS: [&str; 2] = [".tar.zst", ".tar.zst.age"];
/// The end of what is no backup yet.
const PARTIAL: &str = ".partial";
/// The copy of the database while a backup is made.
const COPY: &str = "backup-copy.db.partial";

/// The archives of images while a backup is made.
const ARCHIVES: &str = "backup-images.partial";

/// What stays free on a disk.
const MARGIN_BYTES: u64 = 32 << 20;
/// Longest file of a template, as the configuration reads them.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
/// After a backup that failed the next is tried so soon.
const RETRY: Duration = Duration::from_secs(900);
/// The longest sleep of the schedule: the wall clock may jump.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// How long podman may take to list its images; a backup without the list is one.
const IMAGES_DEADLINE: Duration = Duration::from_secs(10);
/// How long a backup may take to give up when the daemon stops.
const STOP_GRACE: Duration = Duration::from_secs(10);

const DAY_MS: i64 = 24 * 3600 * 1000;

/// A backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub size_bytes: u64,
    /// When the copy of the database began.
    pub made_at: Timestamp,
    /// Whether it is encrypted for the recipient.
    pub encrypted: bool,
    /// How many images are in it.
    pub images: usize,
    /// Images of templates that podman does not have, where images were wanted.
    pub images_missing: Vec<ImageDigest>,
}

/// How far a backup has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Of the bytes to carry.
    pub done_bytes: u64,
    /// All of them, as far as it is known: everything is carried three times, to be copied, summed and packed.
    pub total_bytes: u64,
}

/// What is known of backups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// When the newest was made.
    pub last: Option<Timestamp>,
    /// When one failed since, and why.
    pub failed: Option<(Timestamp, String)>,
}

/// Makes backups. Cheap to clone.
#[derive(Clone)]
pub struct Backups(Arc<Keeper>);

struct Keeper {
    parts: Parts,
    turn: Arc<Semaphore>,
    stop: CancellationToken,
    known: Mutex<Known>,
    began: Timestamp,
}

/// What it is made of.
pub struct Parts {
    /// The state.
    pub store: Store,
    /// The record.
    pub audit: AuditLog,
    /// Tells what images there are, and saves them.
    pub runtime: Arc<dyn SandboxRuntime>,
    /// Who tells the time.
    pub clock: Arc<dyn Clock>,
    /// When, where, how many, for whom.
    pub config: BackupConfig,
    /// The directory of the templates' files.
    pub templates: PathBuf,
    /// The images of those templates.
    pub images_of_files: Box<dyn Fn() -> BTreeSet<ImageDigest> + Send + Sync>,
}

/// What is known of images when a backup begins.
struct Images {
    /// Those that podman has.
    there: Vec<Image>,
    /// Whether those of templates are to be in it.
    is_wanted: bool,
    /// How many bytes they may have.
    bytes: u64,
    handle: Handle,
}

impl Backups {
    /// Assembled by the daemon. Looks for the newest backup that there is, and removes what a former daemon left half made.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let directory = &parts.config.directory;
        forget_unfinished(directory, parts.store.directory());
        let last = backups_in(directory).pop().and_then(|(_, at)| at);
        let keeper = Keeper {
            turn: Arc::new(Semaphore::new(1)),
            stop: CancellationToken::new(),
            known: Mutex::new(Known { last, failed: None }),
            began: parts.clock.now(),
            parts,
        };
        Self(Arc::new(keeper))
    }

    /// What is known of backups.
    #[must_use]
    pub fn known(&self) -> Known {
        self.0.lock().clone()
    }

    /// What is wrong with backups, for operators: the last one failed, or the next is long overdue.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let known = self.known();
        if let Some((at, why)) = known.failed {
            return Some(format!("the one at {at} failed: {why}"));
        }
        let every = self.0.parts.config.every?;
        let now = self.0.parts.clock.now();
        let since = known.last.unwrap_or(self.0.began);
        (now.since(since) > every * 2 + RETRY)
            .then(|| format!("none was made since {since}, and one is due every {every:?}"))
    }

    /// Makes a backup: in the directory of the configuration, where only the newest are kept, or as the file `to`; with the images
    /// of templates where they are wanted, here or by the configuration. A caller that goes away stops it not.
    ///
    /// # Errors
    /// [`BackupError`]; then there is no file.
    pub async fn make(
        &self,
        who: &Principal,
        to: Option<PathBuf>,
        with_images: bool,
        progress: watch::Sender<Progress>,
    ) -> Result<Made, BackupError> {
        let keeper = Arc::clone(&self.0);
        let turn = Arc::clone(&keeper.turn)
            .try_acquire_owned()
            .map_err(|_| BackupError::UnderWay)?;
        if keeper.stop.is_cancelled() {
            return Err(BackupError::Stopping);
        }
        let who = who.clone();
        let work = tokio::spawn(async move {
            let _turn = turn;
            let is_ours = to.is_none();
            let made = keeper.recorded(&who, to, with_images, progress).await;
            let mut known = keeper.lock();
            match &made {
                Ok(made) => {
                    info!(path = %made.path.display(), bytes = made.size_bytes, "made a backup");
                    *known = Known {
                        last: Some(made.made_at),
                        failed: None,
                    };
                }
                Err(BackupError::Stopping) => {}
                Err(error) => {
                    warn!(error = %Chain(error), "no backup was made");
                    if is_ours {
                        let now = keeper.parts.clock.now();
                        known.failed = Some((now, Chain(error).to_string()));
                    }
                }
            }
            drop(known);
            made
        });
        match work.await {
            Ok(made) => made,
            Err(error) => Err(BackupError::Internal(error.to_string())),
        }
    }

    /// Makes backups when their time has come, until it is told to stop.
    pub async fn keep(&self, stop: CancellationToken) {
        let keeper = &self.0;
        let (every, at) = (keeper.parts.config.every, keeper.parts.config.at);
        if every.is_some() || at.is_some() {
            let mut tried = None;
            loop {
                let now = keeper.parts.clock.now();
                let due = due(every, at, keeper.lock().last, tried, keeper.began);
                if now < due {
                    let left = due.since(now).min(LONGEST_SLEEP);
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(left) => continue,
                    }
                }
                let (progress, _) = watch::channel(Progress::default());
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    made = self.make(&Principal::Daemon, None, false, progress) => tried = made.is_err().then_some(now),
                }
            }
        }
        stop.cancelled().await;
    }

    /// Asks a backup that is being made to give up, and waits until it has.
    pub async fn close(&self) {
        self.0.stop.cancel();
        let idle = tokio::time::timeout(STOP_GRACE, self.0.turn.acquire()).await;
        if idle.is_err() {
            warn!(
                "a backup did not give up in time; what is left of it is removed at the next start"
            );
        }
    }
}

/// When the next backup is due.
fn due(
    every: Option<Duration>,
    at: Option<u32>,
    last: Option<Timestamp>,
    failed: Option<Timestamp>,
    began: Timestamp,
) -> Timestamp {
    if let Some(failed) = failed {
        return failed.after(RETRY.min(every.unwrap_or(RETRY)));
    }
    let since = last.unwrap_or(began);
    match at {
        // The next instant of the day that comes after the last one.
        Some(minute) => {
            let minute = i64::from(minute) * 60_000;
            let day = (since.as_millis() - minute).div_euclid(DAY_MS) + 1;
            Timestamp::from_millis(day * DAY_MS + minute)
        }
        None => since.after(every.unwrap_or(RETRY)),
    }
}

impl Keeper {
    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Recorded before and after.
    async fn recorded(
        self: &Arc<Self>,
        who: &Principal,
        to: Option<PathBuf>,
        with_images: bool,
        progress: watch::Sender<Progress>,
    ) -> Result<Made, BackupError> {
        let event = AuditEvent::BackupMake {
            encrypted: self.parts.config.recipient.is_some(),
        };
        let intent = self.parts.audit.begin(who, None, event);
        let intent = intent.await.map_err(BackupError::Audit)?;
        let made = self.made(to, with_images, progress).await;
        let outcome = match &made {
            Ok(made) => Outcome::Ok {
                detail: Some(format!("{} bytes, {} images", made.size_bytes, made.images)),
            },
            Err(error) => Outcome::Failed {
                code: error.code().to_owned(),
            },
        };
        if let Err(error) = intent.finish(outcome).await {
            warn!(error = %Chain(&error), "cannot complete the record of a backup");
        }
        made
    }

    async fn made(
        self: &Arc<Self>,
        to: Option<PathBuf>,
        with_images: bool,
        progress: watch::Sender<Progress>,
    ) -> Result<Made, BackupError> {
        let listed = tokio::time::timeout(IMAGES_DEADLINE, self.parts.runtime.images()).await;
        let there = if let Ok(Ok(images)) = listed {
            images
        } else {
            warn!("podman does not say what images it has; the backup is without their list");
            Vec::new()
        };
        let is_wanted = with_images || self.parts.config.images;
        let mut bytes = 0_u64;
        if is_wanted {
            let mut some = self.parts.store.images_in_use().await;
            if let Ok(some) = &mut some {
                some.extend((self.parts.images_of_files)());
            }
            let some = some.map_err(BackupError::Store)?;
            let sizes = there.iter().filter(|image| some.contains(&image.digest));
            bytes = sizes.fold(0, |all, image| all.saturating_add(image.size_bytes));
        }
        let images = Images {
            there,
            is_wanted,
            bytes,
            handle: Handle::current(),
        };
        let this = Arc::clone(self);
        let (answer, answered) = tokio::sync::oneshot::channel();
        background::spawn("backup", move || {
            // Whoever waited may have gone with the runtime.
            let _ = answer.send(this.work(to, images, &progress));
        })
        .map_err(|error| BackupError::Internal(error.to_string()))?;
        match answered.await {
            Ok(made) => made,
            Err(_) => Err(BackupError::Internal("its thread panicked".to_owned())),
        }
    }

    /// All of it, blocking.
    fn work(
        &self,
        to: Option<PathBuf>,
        images: Images,
        progress: &watch::Sender<Progress>,
    ) -> Result<Made, BackupError> {
        let config = &self.parts.config;
        let store = &self.parts.store;
        let made_at = self.parts.clock.now();
        let is_ours = to.is_none();
        let target = match to {
            Some(target) => target,
            None => self.next(made_at)?,
        };
        let (Some(beside), Some(_), true) =
            (target.parent(), target.file_name(), target.is_absolute())
        else {
            return Err(BackupError::BadName(target));
        };
        self.refuse_outside(&target, beside)?;
        if std::fs::symlink_metadata(&target).is_ok() {
            return Err(BackupError::Exists(target));
        }
        let bytes = store.copy_bytes().map_err(BackupError::Store)?;
        let all = bytes.saturating_add(images.bytes);
        let room = self.room_for_copy(beside, all)?;
        let copy = Unfinished(room.join(COPY));
        copy.discard();
        let total_bytes = all.saturating_mul(3);
        let tell = |done_bytes: u64| {
            progress.send_replace(Progress {
                done_bytes,
                total_bytes,
            });
            !self.stop.is_cancelled()
        };
        let gave_up = |error| {
            if self.stop.is_cancelled() {
                BackupError::Stopping
            } else {
                error
            }
        };
        let facts = store
            .copy_to(&copy.0, &mut |done, _| tell(done))
            .map_err(|error| gave_up(BackupError::Store(error)))?;
        let mut contents = vec![(manifest::DATABASE.to_owned(), Content::File(copy.0.clone()))];
        contents.extend(self.small()?);
        let mut carried = bytes;
        let archives = Archives(room.join(ARCHIVES));
        let mut images_missing = Vec::new();
        let mut format = WITHOUT_IMAGES;
        if images.is_wanted {
            format = FORMAT;
            let mut wanted = store::images_of_teams(&copy.0).map_err(BackupError::Store)?;
            wanted.extend((self.parts.images_of_files)());
            archives.make()?;
            let podman = Saver {
                runtime: self.parts.runtime.as_ref(),
                handle: &images.handle,
                stop: &self.stop,
                max_bytes: config.max_images_bytes,
            };
            let saved = podman.save(&wanted, &archives.0, &mut |piece| {
                carried += piece;
                tell(carried);
            })?;
            contents.extend(saved.contents);
            images_missing = saved.missing;
        }
        let mut ask = |piece: u64| {
            carried += piece;
            tell(carried)
        };
        let mut parts = Vec::with_capacity(contents.len());
        for (name, content) in &contents {
            parts.push(archive::part(name, content, &mut ask).map_err(gave_up)?);
        }
        let manifest = Manifest {
            format,
            casemate: env!("CARGO_PKG_VERSION").to_owned(),
            installation: facts.installation,
            schema: facts.schema,
            made_at,
            images: images.there.into_iter().map(|image| image.digest).collect(),
            parts,
        };
        let recipient = config.recipient.as_deref();
        let unfinished = Unfinished(with_end(&target, PARTIAL));
        unfinished.discard();
        let size_bytes = archive::write(&unfinished.0, &manifest, &contents, recipient, &mut ask)
            .map_err(gave_up)?;
        // A link does not write over what somebody has put there meanwhile, as a rename would.
        std::fs::hard_link(&unfinished.0, &target).map_err(BackupError::file("name", &target))?;
        drop(unfinished);
        disk::sync_directory(beside).map_err(BackupError::file("sync", beside))?;
        if is_ours {
            prune(&config.directory, config.keep);
        }
        Ok(Made {
            path: target,
            size_bytes,
            made_at,
            encrypted: recipient.is_some(),
            images: manifest.images_in_it().count(),
            images_missing,
        })
    }

    /// A backup lies below the directories that are named for backups: nobody else's are open to the daemon.
    fn refuse_outside(&self, target: &Path, beside: &Path) -> Result<(), BackupError> {
        let config = &self.parts.config;
        let places: Vec<_> = std::iter::once(&config.directory)
            .chain(&config.elsewhere)
            .cloned()
            .collect();
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let beside = real(beside);
        if places.iter().any(|place| beside.starts_with(real(place))) {
            return Ok(());
        }
        Err(BackupError::Outside {
            target: target.to_owned(),
            places,
        })
    }

    /// The file in the directory of the configuration, which is there then.
    fn next(&self, made_at: Timestamp) -> Result<PathBuf, BackupError> {
        let config = &self.parts.config;
        directory::ensure(&config.directory, directory::STATE_MODE).map_err(|error| {
            BackupError::File {
                doing: "use the directory",
                path: config.directory.clone(),
                source: std::io::Error::other(Chain(&error).to_string()),
            }
        })?;
        let end = if config.recipient.is_some() {
            ".age"
        } else {
            ""
        };
        let name = format!("{PREFIX}{}.tar.zst{end}", swap::compact(made_at));
        Ok(config.directory.join(name))
    }

    /// Where copies of the database and of images can lie: in the state's directory, or beside the backup when there is no room and the
    /// backup is not encrypted either. Makes sure that there is room for both, at their worst.
    fn room_for_copy<'a>(&'a self, beside: &'a Path, bytes: u64) -> Result<&'a Path, BackupError> {
        let state = self.parts.store.directory();
        let look = |path: &Path| {
            let free = disk::free_bytes(path).map_err(BackupError::file("look at", path))?;
            let found = std::fs::metadata(path).map_err(BackupError::file("look at", path))?;
            Ok((free, found.dev()))
        };
        let ((free_of_state, state_device), (free, device)) = (look(state)?, look(beside)?);
        let no_room = |directory: &Path, wanted, free| {
            Err(BackupError::NoRoom {
                directory: directory.to_owned(),
                wanted,
                free,
            })
        };
        let (one, both) = (
            bytes.saturating_add(MARGIN_BYTES),
            bytes.saturating_mul(2).saturating_add(MARGIN_BYTES),
        );
        if state_device == device {
            return if free < both {
                no_room(beside, both, free)
            } else {
                Ok(state)
            };
        }
        if free < one {
            return no_room(beside, one, free);
        }
        if free_of_state >= one {
            return Ok(state);
        }
        if self.parts.config.recipient.is_some() {
            // In the clear it would lie where only what is encrypted belongs.
            return no_room(state, one, free_of_state);
        }
        if free < both {
            return no_room(beside, both, free);
        }
        Ok(beside)
    }

    /// What is small: other files of the state, and the templates' files.
    fn small(&self) -> Result<Vec<(String, Content)>, BackupError> {
        let mut contents = Vec::new();
        for name in OTHER_FILES {
            let path = self.parts.store.directory().join(name);
            match std::fs::read(&path) {
                Ok(bytes) => contents.push((name.to_owned(), Content::Bytes(bytes))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(BackupError::file("read", &path)(error)),
            }
        }
        let mut templates: Vec<_> = std::fs::read_dir(&self.parts.templates)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let is_one = name
                    .strip_suffix(".yaml")
                    .is_some_and(|name| name.parse::<crate::model::name::Name>().is_ok());
                let size = entry.path().metadata().ok()?;
                (is_one && size.is_file() && size.len() <= MAX_TEMPLATE_BYTES)
                    .then(|| (name, entry.path()))
            })
            .collect();
        templates.sort();
        for (name, path) in templates {
            let bytes = std::fs::read(&path).map_err(BackupError::file("read", &path))?;
            let name = format!("{}{name}", manifest::TEMPLATES);
            contents.push((name, Content::Bytes(bytes)));
        }
        Ok(contents)
    }
}

/// A file that goes when this does.
struct Unfinished(PathBuf);

impl Unfinished {
    fn discard(&self) {
        for end in ["", "-wal", "-shm", "-journal"] {
            // Mostly there is none.
            let _ = std::fs::remove_file(with_end(&self.0, end));
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.discard();
    }
}

/// A directory that goes when this does, with all that is in it.
struct Archives(PathBuf);

impl Archives {
    fn make(&self) -> Result<(), BackupError> {
        self.discard();
        let made = std::fs::DirBuilder::new().mode(0o700).create(&self.0);
        made.map_err(BackupError::file("make", &self.0))
    }

    fn discard(&self) {
        // Mostly there is none.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Drop for Archives {
    fn drop(&mut self) {
        self.discard();
    }
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// The backups in a directory, oldest first, each with when it was made.
fn backups_in(directory: &Path) -> Vec<(PathBuf, Option<Timestamp>)> {
    let mut found: Vec<_> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let stem = name.strip_prefix(PREFIX)?;
            let stem = ENDS.iter().find_map(|end| stem.strip_suffix(end))?;
            Some((entry.path(), instant(stem)))
        })
        .collect();
    found.sort();
    found
}

/// Reads what [`swap::compact`] wrote.
fn instant(text: &str) -> Option<Timestamp> {
    let part = |from: usize, to: usize| text.get(from..to);
    let (date, time) = (
        format!("{}-{}-{}", part(0, 4)?, part(4, 6)?, part(6, 8)?),
        format!(
            "{}:{}:{}.{}Z",
            part(9, 11)?,
            part(11, 13)?,
            part(13, 15)?,
            part(15, 18)?
        ),
    );
    serde_json::from_value(format!("{date}T{time}").into()).ok()
}

fn prune(directory: &Path, keep: usize) {
    let found = backups_in(directory);
    let superfluous = found.len().saturating_sub(keep);
    for (path, _) in found.into_iter().take(superfluous) {
        if let Err(error) = std::fs::remove_file(&path) {
            warn!(%error, path = %path.display(), "cannot remove an old backup");
        }
    }
}

/// What a daemon that was killed left.
fn forget_unfinished(directory: &Path, state_dir: &Path) {
    for directory in [state_dir, directory] {
        Unfinished(directory.join(COPY)).discard();
        Archives(directory.join(ARCHIVES)).discard();
    }
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PREFIX) && name.ends_with(PARTIAL) {
            // What cannot be removed is in nobody's way but the disk's.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_when_and_sort() {
        let at = Timestamp::from_millis(1_700_000_000_120);
        let text = swap::compact(at);
        assert_eq!(text, "20231114T221320120Z");
        assert_eq!(instant(&text), Some(at));
        assert_eq!(instant("nonsense"), None);
        assert_eq!(instant("ä0231114T221320120Z"), None);
    }

    #[test]
    fn the_next_is_due_when_the_schedule_says() {
        let ms = Timestamp::from_millis;
        let (hour, began) = (Duration::from_secs(3600), ms(1_000));
        assert_eq!(due(Some(hour), None, None, None, began), ms(3_601_000));
        assert_eq!(
            due(Some(hour), None, Some(ms(5)), None, began),
            ms(3_600_005)
        );
        // One that failed is tried again, and not at once.
        assert_eq!(
            due(Some(hour), None, Some(ms(5)), Some(ms(10)), began),
            ms(10).after(RETRY)
        );
        // At two in the morning: today, when it has not been, else tomorrow.
        let two = 2 * 3_600_000;
        assert_eq!(due(None, Some(120), None, None, began), ms(two));
        assert_eq!(
            due(None, Some(120), Some(ms(two - 1)), None, began),
            ms(two)
        );
        assert_eq!(
            due(None, Some(120), Some(ms(two)), None, began),
            ms(two + DAY_MS)
        );
    }

    #[test]
    fn only_our_own_and_only_the_oldest_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let names = [
            "casemate-20230101T000000000Z.tar.zst",
            "casemate-20230102T000000000Z.tar.zst.age",
            "casemate-20230103T000000000Z.tar.zst",
            "casemate-notes.txt",
            "before-schema-5-1.db",
        ];
        for name in names {
            std::fs::write(directory.path().join(name), "x").unwrap();
        }
        prune(directory.path(), 2);
        let left = |n: usize| directory.path().join(names[n]).exists();
        assert_eq!([0, 1, 2, 3, 4].map(left), [false, true, true, true, true]);
        std::fs::write(directory.path().join("casemate-2.tar.zst.partial"), "x").unwrap();
        forget_unfinished(directory.path(), directory.path());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 4);
    }
}
