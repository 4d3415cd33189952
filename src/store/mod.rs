//! Floor 4: SQLite (`rusqlite` lives only in this folder).
//!
//! One thread owns the writing connection and commits what is waiting in one transaction, so that
//! many callers share the cost of one commit; a few threads own read-only connections. A caller is
//! answered only after its commit: what was acknowledged survives `kill -9` of the daemon. Whoever
//! asks for [`Durability::Power`] is answered after a flush, which other threads do meanwhile.
//!
//! Invariant: nobody else writes to the database, and a database of another program or of a newer
//! Casemate is refused, never touched.

mod archived;
mod audit;
mod backup;
mod check;
mod checkpoints;
mod credentials;
mod flush;
mod guard;
mod images;
mod keys;
mod migrate;
mod reserve;
mod rules;
mod sealed;
mod sessions;
mod templates;
mod threads;
mod veil;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::watch;

pub use self::archived::{Extent, KeptArchive};
pub use self::backup::{CopyFacts, VolumeOnFile, look_into};
pub use self::checkpoints::KeptCheckpoint;
pub use self::credentials::{CredentialPut, CredentialRemoval, NewCredential, NextValue};
use self::flush::{Flusher, Flushes};
use self::guard::{Health, Readers, Writer};
pub use self::images::images_of_teams;
pub use self::keys::KeyInsert;
pub use self::rules::RulePut;
pub use self::sessions::{Admission, Idempotency};
pub use self::templates::{NewTemplate, TemplatePut, TemplateRemoval};
pub use self::veil::Veil;
pub use self::volumes::{VolumeAdmission, VolumeBudget, VolumeRemoval};
use crate::base::id::InstallationId;
use crate::host::disk;

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
/// What the log beside the file may keep of the disk once it was folded into the file: a backup keeps it from being folded,
/// and it grows as long.
const LOG_BYTES: u32 = 64 << 20;

/// How the file is called in the state's directory.
pub const FILE_NAME: &str = "state.db";

/// Where in the state's directory backups are, unless the configuration says otherwise, and the copies from before each
/// upgrade, always.
pub const BACKUPS: &str = "backups";

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
    health: Health,
    installation: InstallationId,
    path: Arc<Path>,
    veiled: veil::Veiled,
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
    /// The file is damaged. Refuse to start, and to write; no retry helps.
    #[error(
        "the database is damaged ({what}); stop casemated and restore a backup: casemated restore FILE --replace"
    )]
    Damaged {
        /// The first sign of it.
        what: String,
    },
    /// The disk is full. Try again when there is room.
    #[error("database: the disk of the state is full ({0}); make room on it")]
    Full(&'static str),
    /// There is no copy of the database from before an upgrade, so it was not upgraded. Refuse to start.
    #[error(
        "no copy of the database could be made before its upgrade from schema {from}, so nothing was changed; make room or mend {}", directory.display()
    )]
    NoCopy {
        /// The schema as it is.
        from: u32,
        /// Where the copy should have been.
        directory: PathBuf,
        /// Why it could not be made.
        #[source]
        source: Box<StoreError>,
    },
    /// A file beside the database cannot be made, read or written. Report.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
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
    /// The record was asked for from a position on that is in a file by now. Ask for it from a later one on.
    #[error("records up to {up_to} were archived; record {} is in {file}", after + 1)]
    Archived {
        /// The position that was asked for.
        after: i64,
        /// The last position that is in a file.
        up_to: i64,
        /// The name of the file that has the next one.
        file: String,
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

    /// Wraps what the file system said.
    fn file(doing: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::File {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    /// What SQLite said of a file that is no whole database.
    fn what_it_says(&self) -> String {
        match self {
            Self::Sql { doing, source } => format!("{doing}: {source}"),
            Self::Open { source, .. } => source.to_string(),
            other => other.to_string(),
        }
    }

    /// The same, of which is known that the disk is full.
    const fn as_full(&self) -> Self {
        match self {
            Self::Sql { doing, .. } => Self::Full(doing),
            _ => Self::Full("write"),
        }
    }

    /// A file that is no whole database is damaged, whatever was being done.
    fn or_damaged(self) -> Self {
        if guard::is_damage(&self) {
            let what = self.what_it_says();
            return Self::Damaged { what };
        }
        self
    }
}

impl Store {
    /// Opens or creates the database, looks at it, brings it up to date and starts its threads. What is damaged is left as it
    /// is.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::NotOurs`], [`StoreError::Newer`], [`StoreError::Damaged`], [`StoreError::NoCopy`],
    /// [`StoreError::Sql`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, FLUSH_EVERY)
    }

    /// The same, with the longest time between a commit and its flush.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(path: &Path, flush_every: Duration) -> Result<Self, StoreError> {
        Self::assemble(path, flush_every, &flush::log_of(path)).map_err(|error| {
            match error.or_damaged() {
                StoreError::Damaged { what } => StoreError::Damaged {
                    what: format!("{}: {what}", path.display()),
                },
                other => other,
            }
        })
    }

    fn assemble(path: &Path, every: Duration, disk: &Flushes) -> Result<Self, StoreError> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.is_file() && found.len() == 0 => {
                return Err(StoreError::Damaged {
                    what: "it is empty".to_owned(),
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => create(path)?,
            // Whatever is wrong with it is said by whoever opens it.
            _ => {}
        }
        let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        migrate::judge(&connection, path)?;
        if let Some(what) = check::at_start(&mut connection, path)? {
            return Err(StoreError::Damaged { what });
        }
        migrate::bring_up_to_date(&mut connection, path)?;
        archived::make_shrinkable(&connection, path);
        let installation = migrate::installation(&connection)?;
        let mut readers = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            readers.push(connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?);
        }
        let checkpoints = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let flusher = Flusher::start(disk, checkpoints, every)?;
        let health = Health::new(path.parent().unwrap_or(Path::new("/")));
        Ok(Self {
            writer: Writer::start(connection, flusher, health.clone())?,
            readers: Readers::start(readers, health.clone())?,
            health,
            installation,
            path: path.into(),
            veiled: veil::Veiled::default(),
        })
    }

    /// The directory of the state, which is nobody else's.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Refuses while the disk is full: for whoever would begin something new, before it is recorded.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::Damaged`].
    pub fn check_room(&self) -> Result<(), StoreError> {
        self.health.check()?;
        self.health.check_room()
    }

    /// Holds room on the disk for ends and their records, and finds out whether there is room again. Blocks for a moment.
    pub fn keep_reserve(&self) {
        self.health.keep_reserve();
    }

    /// Checks the whole database on a connection of its own, while everybody works on. Blocks, for as long as it takes to read
    /// all of it or until `stop` is set: for a thread of its own. Damage is told to the guard, so that nothing is written any more.
    ///
    /// # Errors
    /// [`StoreError::Damaged`]; any other says that it could not be checked.
    pub fn check(&self, stop: &Arc<AtomicBool>) -> Result<(), StoreError> {
        let found = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .and_then(|mut db| check::whole(&mut db, stop));
        match found.map_err(StoreError::or_damaged) {
            Ok(Some(Some(what))) | Err(StoreError::Damaged { what }) => {
                Err(self.health.damaged(what))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
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

/// The file beside the database that SQLite calls so.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Removes a database that is nobody's, with what lies beside it.
fn discard(path: &Path) {
    for end in ["", "-wal", "-shm", "-journal"] {
        // There may be none; what cannot be removed is told by whoever makes it anew.
        let _ = std::fs::remove_file(beside(path, end));
    }
}

/// Makes the database whole under another name first: one that is there and empty has lost what was in it.
fn create(path: &Path) -> Result<(), StoreError> {
    let fresh = path.with_extension("new");
    discard(&fresh);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut connection = connect(&fresh, flags)?;
    // Before there is a table, or it takes a VACUUM: so that the file can shrink while it is worked on.
    connection
        .pragma_update(None, "auto_vacuum", "INCREMENTAL")
        .map_err(StoreError::sql("make the database"))?;
    migrate::bring_up_to_date(&mut connection, &fresh)?;
    migrate::installation(&connection)?;
    // The last connection folds the log into the file and removes it.
    connection.close().map_err(|(_, source)| StoreError::Open {
        path: fresh.clone(),
        source,
    })?;
    std::fs::rename(&fresh, path).map_err(StoreError::file("rename", &fresh))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    disk::sync_directory(directory).map_err(StoreError::file("sync", directory))
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
    // What does not fit into a cache goes to memory: everybody's temporary directories are closed to the daemon.
    connection
        .pragma_update(None, "temp_store", "MEMORY")
        .map_err(open)?;
    let pragmas = if flags.contains(OpenFlags::SQLITE_OPEN_READ_ONLY) {
        "PRAGMA query_only = ON; PRAGMA trusted_schema = OFF;"
    } else {
        // NORMAL keeps every commit over kill -9; the threads of `flush` keep it over a loss of power.
        "PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;"
    };
    connection.execute_batch(pragmas).map_err(open)?;
    connection
        .pragma_update(None, "journal_size_limit", LOG_BYTES)
        .map_err(open)?;
    Ok(connection)
}

#[cfg(test)]
mod tests;
