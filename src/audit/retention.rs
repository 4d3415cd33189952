//! What is old, or too much, leaves the database for files ([`super::archive`]), and only then.
//!
//! ```text
//!  temporary file -> read back, verified -> its name      cut short: removed, or taken as it is
//!  the record begins later (one row, signed)              from here on nobody reads what is before
//!  rows are removed, room is given back, in small steps   cut short: goes on at the next look
//! ```
//! Invariants: no record leaves the database before the file that has it is whole, verified and on the disk; nothing is removed up
//! to a position that our key has not signed; a record that is not what was written stays where it is.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::archive::{self, Stretch, Written};
use super::{AuditError, AuditLog};
use crate::base::chain::Chain;
use crate::base::clock::Timestamp;
use crate::host::{background, directory, disk};
use crate::model::event::{AuditEvent, Outcome};
use crate::model::principal::Principal;
use crate::model::record::{Archive, SignedArchive, SignedCheckpoint, hex};
use crate::model::settings::RetentionConfig;
use crate::model::verify::{CheckSignature, Signed};
use crate::store::{Extent, StoreError};

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// What is younger leaves the database for no want of room: what is under way may still be looked for in it.
const YOUNG: Duration = Duration::from_secs(600);

/// How often one look measures how large the database is by now.
const ROUNDS: u32 = 4;

/// What stays free on the disk of the files.
const MARGIN_BYTES: u64 = 32 << 20;

/// How long what is under way may take to give up when the daemon stops.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Moves what is old to files, one look at a time. Cheap to clone.
#[derive(Clone)]
pub struct Retention(Arc<Keeper>);

struct Keeper {
    log: AuditLog,
    config: RetentionConfig,
    turn: Arc<Semaphore>,
    stop: AtomicBool,
    problem: Mutex<Option<String>>,
    #[cfg(test)]
    cut: Mutex<Option<&'static str>>,
}

/// What a look did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Archived {
    /// Files that were made.
    pub archives: u64,
    /// Records in them.
    pub records: u64,
    /// The position up to which the record is in files now.
    pub up_to: i64,
}

/// Nothing more was archived. What was before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Another look is under way. Try again later.
    #[error("records are being archived already; wait for it")]
    UnderWay,
    /// There is not enough room. Make some.
    #[error(
        "an archive may take {wanted} bytes at {}, where {free} are free; make room, or name another directory (audit.retention.archive_dir)", directory.display()
    )]
    NoRoom {
        /// Where.
        directory: PathBuf,
        /// How many it may take.
        wanted: u64,
        /// How many there are.
        free: u64,
    },
    /// The file system said no.
    #[error("{doing} {} as casemated's own user", path.display())]
    File {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// What was to be in a file, or is in it, is not what was written. Nothing leaves the database from there on.
    #[error("{} is not whole: {what}", path.display())]
    NotWhole {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Somebody else says where the record begins. Nothing is removed.
    #[error(
        "where the record begins (after record {0}) was not signed by this installation's key; verify the record (casemate audit verify), and restore a backup"
    )]
    Forged(i64),
    /// The record changed below us, which it does not.
    #[error(
        "record {0} is not what it was a moment ago; verify the record (casemate audit verify)"
    )]
    Moved(i64),
    /// The store refuses.
    #[error("reach the audit log")]
    Store(#[source] StoreError),
    /// It cannot be recorded or signed, so it was not done.
    #[error("record what is archived")]
    Audit(#[source] AuditError),
    /// The daemon is stopping.
    #[error("casemated is stopping")]
    Stopping,
    /// A defect.
    #[error("archiving came to no end: {0}")]
    Internal(String),
}

impl ArchiveError {
    pub(super) fn file(doing: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::File {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    /// A stable word for programs and for the record.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnderWay => "archive_under_way",
            Self::NoRoom { .. } => "no_room",
            Self::File { .. } => "file",
            Self::NotWhole { .. } | Self::Forged(_) | Self::Moved(_) => "broken_record",
            Self::Store(_) => "store",
            Self::Audit(_) => "audit",
            Self::Stopping => "stopping",
            Self::Internal(_) => "internal",
        }
    }
}

impl Retention {
    /// Of this log, as its settings say.
    #[must_use]
    pub fn new(log: AuditLog) -> Self {
        Self(Arc::new(Keeper {
            config: log.settings.retention.clone(),
            log,
            turn: Arc::new(Semaphore::new(1)),
            stop: AtomicBool::new(false),
            problem: Mutex::new(None),
            #[cfg(test)]
            cut: Mutex::new(None),
        }))
    }

    /// What is wrong, for operators: the last look failed, or more is kept than was asked for.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.0.problem().clone()
    }

    /// Where the files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0.config.archive_dir
    }

    /// Looks at once and then again and again, until `stop`.
    pub async fn keep(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // Said where it is told of everything, and tried again.
                _ = self.look(&Principal::Daemon, None) => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        self.close().await;
    }

    /// Archives what was made before this time; without one what the settings say. A caller that goes away stops it not.
    ///
    /// # Errors
    /// [`ArchiveError`]; what was archived until then is.
    pub async fn look(
        &self,
        who: &Principal,
        before: Option<Timestamp>,
    ) -> Result<Archived, ArchiveError> {
        let keeper = Arc::clone(&self.0);
        let turn = Arc::clone(&keeper.turn)
            .try_acquire_owned()
            .map_err(|_| ArchiveError::UnderWay)?;
        if keeper.stop.load(Ordering::SeqCst) {
            return Err(ArchiveError::Stopping);
        }
        let who = who.clone();
        let work = tokio::spawn(async move {
            let _turn = turn;
            let looked = keeper.look(&who, before).await;
            match &looked {
                Err(ArchiveError::Stopping) => {}
                Err(error) => {
                    warn!(error = %Chain(error), "records cannot be archived; they stay in the database");
                    *keeper.problem() = Some(Chain(error).to_string());
                }
                Ok(done) if done.archives > 0 => {
                    info!(
                        archives = done.archives,
                        records = done.records,
                        up_to = done.up_to,
                        "archived records"
                    );
                }
                Ok(_) => {}
            }
            looked
        });
        match work.await {
            Ok(looked) => looked,
            Err(error) => Err(ArchiveError::Internal(error.to_string())),
        }
    }

    /// Asks what is under way to give up, and waits until it has.
    pub async fn close(&self) {
        self.0.stop.store(true, Ordering::SeqCst);
        let idle = tokio::time::timeout(STOP_GRACE, self.0.turn.acquire()).await;
        if idle.is_err() {
            warn!("what is being archived did not give up in time; the next start takes it up");
        }
    }

    /// Comes to an end at this step from now on, as if it had been killed there.
    #[cfg(test)]
    pub(super) fn cut_at(&self, step: Option<&'static str>) {
        *self.0.cut.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }
}

impl Keeper {
    fn problem(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it can be cut short.
    fn step(&self, name: &'static str) -> Result<(), ArchiveError> {
        #[cfg(test)]
        if *self.cut.lock().unwrap_or_else(PoisonError::into_inner) == Some(name) {
            return Err(ArchiveError::Internal(format!("cut short: {name}")));
        }
        let _ = name;
        if self.stop.load(Ordering::Relaxed) {
            return Err(ArchiveError::Stopping);
        }
        Ok(())
    }

    async fn look(
        self: &Arc<Self>,
        who: &Principal,
        before: Option<Timestamp>,
    ) -> Result<Archived, ArchiveError> {
        archive::forget_unfinished(&self.config.archive_dir);
        if before.is_some() {
            // So that what was recorded just now can go as well.
            let signed = self.log.checkpoint().await;
            signed.map_err(ArchiveError::Audit)?;
        }
        // What a former one did not come to.
        self.clear().await?;
        let mut done = Archived::default();
        // What a record takes is an estimate: whether it was enough is seen afterwards.
        for _ in 0..if before.is_some() { 1 } else { ROUNDS } {
            let extent = self.extent().await?;
            done.up_to = extent.after;
            let limit = self.limit(&extent, before).await?;
            let limit = limit.max(self.left(&extent).await?);
            let archives = done.archives;
            while done.up_to < limit {
                let Some(stretch) = self.next(done.up_to, limit).await? else {
                    break;
                };
                self.step("before an archive")?;
                self.recorded(who, &stretch, &extent).await?;
                self.step("after the record begins later")?;
                done.archives += 1;
                done.records += u64::try_from(stretch.last - done.up_to).unwrap_or(0);
                done.up_to = stretch.last;
                self.clear().await?;
            }
            if done.archives == archives {
                break;
            }
        }
        *self.problem() = self.too_much().await?;
        Ok(done)
    }

    async fn extent(&self) -> Result<Extent, ArchiveError> {
        let extent = self.log.store.audit_extent().await;
        extent.map_err(ArchiveError::Store)
    }

    /// The last position that is to go.
    async fn limit(&self, extent: &Extent, before: Option<Timestamp>) -> Result<i64, ArchiveError> {
        let store = &self.log.store;
        let now = self.log.clock.now();
        let ago = |time: Duration| {
            let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
            Timestamp::from_millis(now.as_millis().saturating_sub(millis))
        };
        let last_before = async |time| store.last_before(time).await.map_err(ArchiveError::Store);
        let mut limit = extent.after;
        if let Some(before) = before {
            limit = last_before(before).await?;
        } else {
            if let Some(keep) = self.config.keep {
                limit = last_before(ago(keep)).await?;
            }
            if let Some(most) = self.config.keep_bytes
                && extent.used_bytes > most
            {
                // A little more than must, or each look would make a small file.
                let excess = extent.used_bytes - (most - most / 16);
                let records = u128::try_from(extent.last - extent.after).unwrap_or(0);
                let share = records * u128::from(excess) / u128::from(extent.used_bytes);
                let by_size = extent.after + i64::try_from(share).unwrap_or(i64::MAX);
                limit = limit.max(by_size.min(last_before(ago(YOUNG)).await?));
            }
        }
        if self.log.settings.mirror {
            // The journal's copy is made from the database.
            let mirrored = store.mirrored().await.map_err(ArchiveError::Store)?;
            limit = limit.min(mirrored.unwrap_or(0));
        }
        Ok(limit)
    }

    /// The position up to which somebody made a file and was cut short before the record began later.
    async fn left(self: &Arc<Self>, extent: &Extent) -> Result<i64, ArchiveError> {
        let ends = archive::ends_of(&self.config.archive_dir, extent.after + 1);
        for end in ends.into_iter().filter(|end| *end <= extent.last) {
            let Some(stretch) = self.stretch(extent.after, end - 1, end).await? else {
                continue;
            };
            let is_there = self.on_thread(move |this, check, go_on| {
                Ok(archive::is_there(
                    &this.config.archive_dir,
                    &stretch,
                    check,
                    go_on,
                ))
            });
            if is_there.await? {
                return Ok(end);
            }
        }
        Ok(extent.after)
    }

    /// The next stretch after this position: up to a checkpoint, and up to `limit`.
    async fn next(&self, after: i64, limit: i64) -> Result<Option<Stretch>, ArchiveError> {
        let ends = archive::ends_of(&self.config.archive_dir, after + 1);
        for end in ends.into_iter().filter(|end| *end <= limit) {
            if let Some(stretch) = self.stretch(after, end - 1, end).await? {
                return Ok(Some(stretch));
            }
        }
        let end = limit.min(after.saturating_add(self.config.segment_records));
        if let Some(stretch) = self.stretch(after, after, end).await? {
            return Ok(Some(stretch));
        }
        // Checkpoints may be further apart than files are to be.
        let first = self.log.store.checkpoints(after, limit, 1).await;
        match first.map_err(ArchiveError::Store)?.first() {
            Some((_, end, _)) => self.stretch(after, end - 1, *end).await,
            None => Ok(None),
        }
    }

    /// The stretch after `after` that ends with the last checkpoint beyond `beyond` and up to `end`.
    async fn stretch(
        &self,
        after: i64,
        beyond: i64,
        end: i64,
    ) -> Result<Option<Stretch>, ArchiveError> {
        let store = &self.log.store;
        let found = store.checkpoint_before(beyond, end).await;
        let Some((_, last, checkpoint)) = found.map_err(ArchiveError::Store)? else {
            return Ok(None);
        };
        let digest = store.digest_at(after).await;
        let digest = digest.map_err(ArchiveError::Store)?;
        Ok(Some(Stretch {
            after: (after, digest.ok_or(ArchiveError::Moved(after))?),
            last,
            checkpoint,
        }))
    }

    /// Archives a stretch, recorded before and after.
    async fn recorded(
        self: &Arc<Self>,
        who: &Principal,
        stretch: &Stretch,
        extent: &Extent,
    ) -> Result<(), ArchiveError> {
        self.prepare(stretch, extent)?;
        let event = AuditEvent::AuditArchive {
            first: stretch.first(),
            last: stretch.last,
        };
        let intent = self.log.begin(who, None, event);
        let intent = intent.await.map_err(ArchiveError::Audit)?;
        let made = self.archived(stretch).await;
        let outcome = match &made {
            Ok(made) => Outcome::Ok {
                detail: Some(format!(
                    "{}, {} bytes, SHA-256 {}",
                    made.file,
                    made.size_bytes,
                    hex(&made.sha256)
                )),
            },
            Err(error) => Outcome::Failed {
                code: error.code().to_owned(),
            },
        };
        if let Err(error) = intent.finish(outcome).await {
            warn!(error = %Chain(&error), "cannot complete the record of an archive");
        }
        made.map(drop)
    }

    /// The directory is there, and has room for the file at its worst.
    fn prepare(&self, stretch: &Stretch, extent: &Extent) -> Result<(), ArchiveError> {
        let directory = &self.config.archive_dir;
        directory::ensure(directory, directory::STATE_MODE).map_err(|error| {
            ArchiveError::File {
                doing: "use the directory",
                path: directory.clone(),
                source: std::io::Error::other(Chain(&error).to_string()),
            }
        })?;
        let free = disk::free_bytes(directory).map_err(ArchiveError::file("look at", directory))?;
        // In the database a record takes several times what it takes in a file.
        let records = |from: i64, to: i64| u128::try_from(to - from).unwrap_or(0);
        let share = u128::from(extent.used_bytes) * records(stretch.after.0, stretch.last)
            / records(extent.after, extent.last).max(1);
        let wanted = u64::try_from(share)
            .unwrap_or(u64::MAX)
            .saturating_add(MARGIN_BYTES);
        if free < wanted {
            return Err(ArchiveError::NoRoom {
                directory: directory.clone(),
                wanted,
                free,
            });
        }
        Ok(())
    }

    async fn archived(self: &Arc<Self>, stretch: &Stretch) -> Result<Written, ArchiveError> {
        let file = stretch.clone();
        let written = self.on_thread(move |this, check, go_on| {
            archive::make(
                &this.log.store,
                &this.config.archive_dir,
                &file,
                check,
                go_on,
            )
        });
        let written = written.await?;
        self.step("after the file has its name")?;
        let store = &self.log.store;
        let signer = self.log.signer().map_err(ArchiveError::Audit)?;
        let digest = store.digest_at(stretch.last).await;
        let digest = digest
            .map_err(ArchiveError::Store)?
            .ok_or(ArchiveError::Moved(stretch.last))?;
        let said = SignedCheckpoint::parse(&stretch.checkpoint);
        if said.is_none_or(|known| known.checkpoint.digest != digest) {
            return Err(ArchiveError::Moved(stretch.last));
        }
        let line = signer.sign_archive(Archive {
            installation: String::new(),
            first: stretch.first(),
            last: stretch.last,
            digest: hex(&digest),
            from: written.from,
            to: written.to,
            file: written.file.clone(),
            size_bytes: written.size_bytes,
            sha256: hex(&written.sha256),
            at: self.log.clock.now(),
            key: String::new(),
        })?;
        let kept = store
            .keep_archive(stretch.after.0, (stretch.last, digest), line.clone())
            .await;
        if !kept.map_err(ArchiveError::Store)? {
            return Err(ArchiveError::Moved(stretch.last));
        }
        // As with checkpoints: out of reach of whoever edits the database.
        info!(archive = line, "archived a part of the audit log");
        Ok(written)
    }

    /// Works on files, on a thread of its own.
    async fn on_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, CheckSignature<'_>, &dyn Fn() -> bool) -> Result<T, ArchiveError>
        + Send
        + 'static,
    ) -> Result<T, ArchiveError> {
        let this = Arc::clone(self);
        let (answer, answered) = oneshot::channel();
        background::spawn("audit-archive", move || {
            let done = this
                .log
                .signer()
                .map_err(ArchiveError::Audit)
                .and_then(|signer| {
                    let check = |signed: &SignedCheckpoint| signer.judge(signed);
                    let go_on = || !this.stop.load(Ordering::Relaxed);
                    work(&this, &check, &go_on)
                });
            // Whoever waited may have gone with the runtime.
            let _ = answer.send(done);
        })
        .map_err(|error| ArchiveError::Internal(error.to_string()))?;
        match answered.await {
            Ok(done) => done,
            Err(_) => Err(ArchiveError::Internal("its thread panicked".to_owned())),
        }
    }

    /// Removes what is in files, and gives the room back. After each step as long a pause as the step took: others write.
    async fn clear(&self) -> Result<(), ArchiveError> {
        let store = &self.log.store;
        let failed = ArchiveError::Store;
        let (start, _) = store.audit_start().await.map_err(failed)?;
        if let Some(found) = self.log.judge_start().await.map_err(ArchiveError::Audit)? {
            warn!(found, "nothing is removed from the audit log");
            return Err(ArchiveError::Forged(start));
        }
        self.step("before rows are removed")?;
        loop {
            let began = Instant::now();
            if start == 0 || !store.remove_archived(start).await.map_err(failed)? {
                break;
            }
            self.step("while rows are removed")?;
            tokio::time::sleep(began.elapsed()).await;
        }
        self.step("before room is given back")?;
        loop {
            let began = Instant::now();
            if !store.shrink().await.map_err(failed)? {
                return Ok(());
            }
            self.step("while room is given back")?;
            tokio::time::sleep(began.elapsed()).await;
        }
    }

    /// Whether noticeably more is kept than was asked for, and why that may be.
    async fn too_much(&self) -> Result<Option<String>, ArchiveError> {
        let Some(most) = self.config.keep_bytes else {
            return Ok(None);
        };
        let extent = self.extent().await?;
        if extent.used_bytes <= most + most / 4 {
            return Ok(None);
        }
        let mirrored = self.log.store.mirrored().await;
        let mirrored = mirrored.map_err(ArchiveError::Store)?.unwrap_or(0);
        let why = if self.log.settings.mirror && mirrored < extent.last / 2 {
            format!(
                "the journal has it only up to record {mirrored} of {}",
                extent.last
            )
        } else {
            "what is left is too young, or not of the record".to_owned()
        };
        Ok(Some(format!(
            "{} bytes of the database are in use, more than audit.retention.keep_bytes ({most}): {why}",
            extent.used_bytes
        )))
    }
}

impl AuditLog {
    /// What is wrong with where the record begins: it is what our key signed, or nothing is archived.
    pub(super) async fn judge_start(&self) -> Result<Option<String>, AuditError> {
        let read = AuditError::Read;
        let (start, digest) = self.store.audit_start().await.map_err(read)?;
        if start == 0 {
            return Ok(None);
        }
        let kept = self.store.archives(start - 1, 1).await.map_err(read)?;
        let line = kept.first().map_or("", |(_, _, line)| line.as_str());
        let signer = self.signer()?;
        let is_ours = SignedArchive::parse(line).is_some_and(|known| {
            signer.judge_archive(&known) == Signed::Yes
                && known.archive.last == start
                && known.archive.digest() == Some(digest)
        });
        Ok((!is_ours).then(|| {
            format!(
                "that the record begins after record {start} was not signed by this installation's key: what is before it was removed, or is hidden"
            )
        }))
    }
}

#[cfg(test)]
mod tests;
