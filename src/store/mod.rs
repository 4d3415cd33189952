//! Floor 4: SQLite (`rusqlite` lives only in this folder).
//!
//! One thread owns the writing connection and commits what is waiting in one transaction, so that
//! many callers share the cost of one commit; a few threads own read-only connections. A caller is
//! answered only after its commit: what was acknowledged survives `kill -9` of the daemon. Whoever
//! asks for [`Durability::Power`] is answered after a flush, which other threads do meanwhile.
//!
//! Invariant: nobody else writes to the database, and a database of another program or of a newer
//! Casemate is refused, never touched.

mod audit;
mod checkpoints;
mod flush;
mod images;
mod keys;
mod migrate;
mod sealed;
mod sessions;
mod templates;
mod threads;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::watch;

pub use self::checkpoints::KeptCheckpoint;
use self::flush::{Flusher, Flushes};
pub use self::sessions::{Admission, Idempotency};
pub use self::templates::{NewTemplate, TemplatePut, TemplateRemoval};
use self::threads::{Readers, Writer};
pub use self::volumes::{VolumeAdmission, VolumeBudget, VolumeRemoval};
use crate::base::id::InstallationId;

/// How long a caller waits for its turn and its commit. Far above any healthy commit; a disk that
/// takes longer is reported as a failure instead of piling up callers.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// How long a connection waits for another one's lock. Only a backup or a stranger can hold one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest time between a commit and its flush when nobody says: how much a loss of power may take of
/// what was not asked to survive one.
pub const FLUSH_EVERY: Duration = Duration::from_millis(200);

/// Statements that a connection keeps ready: more than are in use again and again.
const STATEMENTS: usize = 64;

/// Read-only connections. Reads are short; two keep one slow list from blocking the rest.
const READERS: usize = 2;

/// How much a write must survive before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The end of this process, however sudden: it is in the write-ahead log, which is flushed soon
    /// ([`FLUSH_EVERY`]).
    Process,
    /// The loss of power: the log was flushed to the disk.
    Power,
}

/// The state of one installation.
#[derive(Clone)]
pub struct Store {
    writer: Writer,
    readers: Readers,
    installation: InstallationId,
    directory: Arc<Path>,
}

/// What went wrong, split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or created. Refuse to start.
    #[error("open the database {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rusqlite::Error,
    },
    /// The file belongs to another program. Refuse to start.
    #[error(
        "{path} is not a Casemate database (application id {found:#x}); set state_dir to another directory or move the file away"
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// The application id in it.
        found: i32,
    },
    /// A newer Casemate wrote it. Refuse to start.
    #[error(
        "{path} was written by a newer Casemate (schema {found}, this one knows {known}); install that version again, or restore a backup that this version made"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: u32,
        /// The newest one that this program knows.
        known: u32,
    },
    /// A statement failed. Report.
    #[error("database: {doing}")]
    Sql {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: rusqlite::Error,
    },
    /// A row cannot be understood. Report.
    #[error("database: {doing}: a row of {table} cannot be understood ({what})")]
    BadRow {
        /// What was being done.
        doing: &'static str,
        /// The table.
        table: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// Too many callers wait already. Try again later.
    #[error("database: too many callers wait ({0})")]
    Busy(&'static str),
    /// No answer in time; whether it was written is unknown. Report.
    #[error("database: no answer in time ({0})")]
    Deadline(&'static str),
    /// The disk did not take what was committed. Whether it survives a loss of power is unknown, and
    /// nothing is written any more until the store is opened anew. Report.
    #[error(
        "database: {doing}: the disk does not take what is written (look at the kernel's log, mend the disk, then restart casemated)"
    )]
    Unflushed {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said of the flush.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The store has been closed.
    #[error("database: closed ({0})")]
    Closed(&'static str),
    /// The operating system gave no thread or no randomness.
    #[error("database: {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl StoreError {
    /// Wraps a statement's error with what was being done.
    fn sql(doing: &'static str) -> impl Fn(rusqlite::Error) -> Self {
        move |source| Self::Sql { doing, source }
    }
}

impl Store {
    /// Opens or creates the database, brings it up to date and starts its threads.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::NotOurs`], [`StoreError::Newer`], [`StoreError::Sql`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, FLUSH_EVERY)
    }

    /// The same, with the longest time between a commit and its flush.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(path: &Path, flush_every: Duration) -> Result<Self, StoreError> {
        Self::assemble(path, flush_every, &flush::log_of(path))
    }

    fn assemble(path: &Path, every: Duration, disk: &Flushes) -> Result<Self, StoreError> {
        let mut connection = connect(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
        )?;
        migrate::bring_up_to_date(&mut connection, path)?;
        let installation = migrate::installation(&connection)?;
        let mut readers = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            readers.push(connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?);
        }
        let checkpoints = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let flusher = Flusher::start(disk, checkpoints, every)?;
        Ok(Self {
            writer: Writer::start(connection, flusher)?,
            readers: Readers::start(readers)?,
            installation,
            directory: path.parent().unwrap_or(Path::new("/")).into(),
        })
    }

    /// The directory of the state, which is nobody else's.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The name of this installation, chosen when the database was made.
    #[must_use]
    pub const fn installation(&self) -> InstallationId {
        self.installation
    }

    /// The position of the audit log's last record, whenever it changes.
    #[must_use]
    pub fn appended(&self) -> watch::Receiver<i64> {
        self.writer.appended()
    }

    /// Proves that a commit goes through now.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn check_writable(&self) -> Result<(), StoreError> {
        self.writer
            .call(
                "check that the database can be written",
                Durability::Process,
                |db| {
                    // Takes the write lock and dirties a page without changing anything.
                    db.execute("UPDATE installation SET id = id", [])
                        .map(drop)
                        .map_err(StoreError::sql("check that the database can be written"))
                },
            )
            .await
    }

    /// Ends the threads after what waits is written, and folds the write-ahead log into the file.
    pub async fn close(self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// Opens a connection that trusts nothing in the file.
fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let open = |source| StoreError::Open {
        path: path.to_owned(),
        source,
    };
    let connection = Connection::open_with_flags(
        path,
        flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW,
    )
    .map_err(open)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(open)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    let pragmas = if flags.contains(OpenFlags::SQLITE_OPEN_READ_ONLY) {
        "PRAGMA query_only = ON; PRAGMA trusted_schema = OFF;"
    } else {
        // NORMAL keeps every commit over kill -9; the threads of `flush` keep it over a loss of power.
        "PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;"
    };
    connection.execute_batch(pragmas).map_err(open)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        (directory, store)
    }

    #[tokio::test]
    async fn an_installation_keeps_its_name() {
        let (directory, store) = store();
        let name = store.installation();
        store.check_writable().await.unwrap();
        store.close().await;
        let again = Store::open(&directory.path().join("state.db")).unwrap();
        assert_eq!(again.installation(), name);
    }

    #[tokio::test]
    async fn a_newer_database_is_refused_and_left_alone() {
        let (directory, store) = store();
        store.close().await;
        let path = directory.path().join("state.db");
        let raw = Connection::open(&path).unwrap();
        raw.execute_batch("PRAGMA user_version = 4711").unwrap();
        drop(raw);
        let before = std::fs::read(&path).unwrap();
        let error = Store::open(&path).err().unwrap();
        assert!(
            matches!(error, StoreError::Newer { found: 4711, .. }),
            "{error}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[tokio::test]
    async fn a_write_that_is_reported_as_failed_was_not_done() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicBool, Ordering};
        let (directory, store) = store();
        let stranger = Connection::open(directory.path().join("state.db")).unwrap();
        stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
        let ran = Arc::new(AtomicBool::new(false));
        let job = {
            let ran = Arc::clone(&ran);
            move |_: &Connection| {
                ran.store(true, Ordering::SeqCst);
                Ok(())
            }
        };
        let refused = store.writer.call("test", Durability::Process, job).await;
        assert!(
            matches!(refused, Err(StoreError::Sql { .. })),
            "{refused:?}"
        );
        assert!(!ran.load(Ordering::SeqCst), "it ran outside a transaction");
        drop(stranger);
        store.check_writable().await.unwrap();
    }

    #[test]
    fn a_stranger_s_database_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let raw = Connection::open(&path).unwrap();
        raw.execute_batch("CREATE TABLE theirs (x); PRAGMA application_id = 7")
            .unwrap();
        drop(raw);
        assert!(matches!(
            Store::open(&path),
            Err(StoreError::NotOurs { found: 7, .. })
        ));
    }

    #[test]
    fn a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::Open { .. })));
    }
}
