//! Copies of the database, whole as it was at one moment, while everybody works on.
//!
//! A copy is made through SQLite's backup interface on a connection of its own that holds one reading transaction from the
//! first page to the last: without it every commit of the writer would begin the copy anew. What it costs is that the log
//! beside the file is not folded into it meanwhile. A copy counts once SQLite has checked it and it is on the disk under its
//! name.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::{BACKUPS, Store, StoreError, archived, audit, check, connect, discard, migrate};
use crate::base::clock::{Clock, SystemClock};
use crate::base::id::{InstallationId, VolumeId};
use crate::host::{directory, disk};
use crate::model::name::Name;
use crate::model::record::GENESIS;

/// Pages that are copied without a pause: 1 MiB, some milliseconds.
const STEP_PAGES: i32 = 256;

/// After each step as long a pause as the step took, within this: the writer needs the disk and one of the two cores.
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// Copies from before an upgrade that are kept.
const UPGRADES_KEPT: usize = 3;

/// What a copy holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyFacts {
    /// Whose state it is.
    pub installation: InstallationId,
    /// Its schema.
    pub schema: u32,
    /// Volumes that it says are ready.
    pub volumes: Vec<VolumeOnFile>,
    /// The first event of the record that does not follow from those before it, if any.
    pub record_breaks_at: Option<i64>,
}

/// A volume that a copy says is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeOnFile {
    /// Its name for programs.
    pub id: VolumeId,
    /// Whose it is.
    pub team: Name,
    /// What they call it.
    pub name: Name,
}

impl Store {
    /// Copies the database to a file that is not there yet; checked and on the disk when this returns, and no file when it
    /// fails. Blocks for as long as it takes: for a thread of its own. `progress` is told how many of all bytes are copied,
    /// and says `false` to give up.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn copy_to(
        &self,
        to: &Path,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<CopyFacts, StoreError> {
        let source = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let copied = copy(&source, to, true, progress).and_then(|()| look_into(to));
        if copied.is_err() {
            discard(to);
        }
        copied
    }

    /// How large a copy would be, in bytes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn copy_bytes(&self) -> Result<u64, StoreError> {
        let source = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        size_of(&source)
    }
}

/// Opens a copy that nobody else uses, and checks all of it: whose it is, that this program knows its schema, and that
/// SQLite finds nothing wrong.
///
/// # Errors
/// [`StoreError::NotOurs`], [`StoreError::Newer`], [`StoreError::Damaged`]; any other says that it could not be checked.
pub fn look_into(path: &Path) -> Result<CopyFacts, StoreError> {
    facts(path).map_err(StoreError::or_damaged)
}

fn facts(path: &Path) -> Result<CopyFacts, StoreError> {
    let doing = "look into a copy of the database";
    let sql = StoreError::sql(doing);
    let db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let schema = migrate::judge(&db, path)?;
    if let Some(what) = check::copy(&db)? {
        return Err(StoreError::Damaged { what });
    }
    let bad = |what: &str| StoreError::BadRow {
        doing,
        table: "installation or volumes",
        what: what.to_owned(),
    };
    let installation: String = db
        .query_row("SELECT id FROM installation", [], |row| row.get(0))
        .map_err(&sql)?;
    let installation = installation.parse().map_err(|_| bad("installation"))?;
    let mut volumes = Vec::new();
    let has_volumes: bool = db
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'volumes' AND type = 'table')",
            [],
            |row| row.get(0),
        )
        .map_err(&sql)?;
    if has_volumes {
        let mut statement = db
            .prepare("SELECT id, team, name FROM volumes WHERE state = 'ready' ORDER BY id")
            .map_err(&sql)?;
        let mut rows = statement.query([]).map_err(&sql)?;
        while let Some(row) = rows.next().map_err(&sql)? {
            let text = |column| row.get::<_, String>(column).map_err(&sql);
            volumes.push(VolumeOnFile {
                id: text(0)?.parse().map_err(|_| bad("id"))?,
                team: text(1)?.parse().map_err(|_| bad("team"))?,
                name: text(2)?.parse().map_err(|_| bad("name"))?,
            });
        }
    }
    let start = if schema >= migrate::ARCHIVED {
        archived::end(&db)?
    } else {
        (0, GENESIS)
    };
    let is_chained = schema >= migrate::CHAINED;
    Ok(CopyFacts {
        installation,
        schema,
        volumes,
        record_breaks_at: if is_chained {
            audit::breaks_at(&db, start)?
        } else {
            None
        },
    })
}

/// Copies a database from before an upgrade to `backups/` beside it; where the copy is. The last few are kept.
pub(super) fn before_upgrade(
    db: &Connection,
    path: &Path,
    schema: u32,
) -> Result<PathBuf, StoreError> {
    let backups = path.parent().unwrap_or(Path::new("/")).join(BACKUPS);
    let made = || {
        directory::ensure(&backups, directory::STATE_MODE).map_err(|error| StoreError::File {
            doing: "make the directory",
            path: backups.clone(),
            source: std::io::Error::other(error),
        })?;
        let prefix = "before-schema-";
        let now = SystemClock.now().as_millis();
        let target = backups.join(format!("{prefix}{}-{now}.db", schema + 1));
        let unfinished = backups.join("before-schema.partial");
        discard(&unfinished);
        let copied = copy(db, &unfinished, false, &mut |_, _| true)
            .and_then(|()| facts(&unfinished))
            .and_then(|_| {
                std::fs::rename(&unfinished, &target).map_err(StoreError::file("name", &target))
            })
            .and_then(|()| {
                disk::sync_directory(&backups).map_err(StoreError::file("sync", &backups))
            });
        if copied.is_err() {
            discard(&unfinished);
        }
        copied?;
        forget_old(&backups, prefix, &target);
        Ok(target)
    };
    made().map_err(|source: StoreError| StoreError::NoCopy {
        from: schema,
        directory: backups.clone(),
        source: Box::new(source),
    })
}

/// Removes all copies from before upgrades but the last few. What cannot be removed costs room, and no upgrade.
fn forget_old(backups: &Path, prefix: &str, newest: &Path) {
    let mut found: Vec<_> = std::fs::read_dir(backups)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(prefix) && name.ends_with(".db") && entry.path() != newest
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    let superfluous = (found.len() + 1).saturating_sub(UPGRADES_KEPT);
    for (_, path) in found.into_iter().take(superfluous) {
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(%error, path = %path.display(), "cannot remove an old copy of the database");
        }
    }
}

fn size_of(db: &Connection) -> Result<u64, StoreError> {
    let number = |pragma| {
        db.pragma_query_value(None, pragma, |row| row.get::<_, u64>(0))
            .map_err(StoreError::sql("measure the database"))
    };
    Ok(number("page_count")? * number("page_size")?)
}

/// Copies all pages as they are at one moment, then makes the copy one plain file and puts it onto the disk.
fn copy(
    source: &Connection,
    to: &Path,
    is_polite: bool,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<(), StoreError> {
    let doing = "copy the database";
    let sql = StoreError::sql(doing);
    File::create_new(to)
        .and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))
        .map_err(StoreError::file("make", to))?;
    let mut copy = connect(to, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // It has no name yet that anybody trusts: when this is cut short, it is thrown away.
    copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
        .map_err(&sql)?;
    source.execute_batch("BEGIN").map_err(&sql)?;
    // Only a read begins the transaction.
    let copied = source
        .query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
        .and_then(|()| size_of_page(source))
        .map_err(&sql)
        .and_then(|page| step(source, &mut copy, page, is_polite, progress));
    source.execute_batch("ROLLBACK").map_err(&sql)?;
    copied?;
    // Its pages say WAL, as those of the source do.
    copy.execute_batch("PRAGMA journal_mode = DELETE")
        .map_err(&sql)?;
    copy.close()
        .map_err(|(_, source)| StoreError::Sql { doing, source })?;
    File::open(to)
        .and_then(|file| file.sync_all())
        .map_err(StoreError::file("sync", to))
}

fn size_of_page(db: &Connection) -> rusqlite::Result<u64> {
    db.pragma_query_value(None, "page_size", |row| row.get(0))
}

fn step(
    source: &Connection,
    copy: &mut Connection,
    page_bytes: u64,
    is_polite: bool,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<(), StoreError> {
    let doing = "copy the database";
    let sql = StoreError::sql(doing);
    let backup = Backup::new(source, copy).map_err(&sql)?;
    loop {
        let began = Instant::now();
        match backup.step(STEP_PAGES).map_err(&sql)? {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            // Nobody but us has either of them.
            _ => return Err(StoreError::Busy(doing)),
        }
        let found = backup.progress();
        let bytes = |pages: i32| u64::try_from(pages).unwrap_or(0) * page_bytes;
        let (all, left) = (bytes(found.pagecount), bytes(found.remaining));
        if !progress(all.saturating_sub(left), all) {
            return Err(StoreError::Closed(doing));
        }
        if is_polite {
            pause(began.elapsed().min(MAX_PAUSE));
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "nothing is waited for: a thread of its own leaves disk and processor to others"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
