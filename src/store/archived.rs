//! Rows of `archived`: what of the record left the database for files, and how what it took is given back.
//!
//! One row moves the beginning of the record, in one transaction. What is before it is removed afterwards, a few rows at a time,
//! and so is the room that it took: whoever is cut short in between goes on where he was, and no reader sees a half.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::{Durability, Store, StoreError, audit, connect};
use crate::base::chain::Chain;
use crate::base::clock::Timestamp;
use crate::host::disk;
use crate::model::record::{Digest, GENESIS, SignedArchive};

/// Rows that are removed in one go: some milliseconds of the writer's.
const REMOVED_AT_ONCE: u32 = 500;

/// Pages that are given back in one go: 1 MiB.
const PAGES_AT_ONCE: u32 = 256;

/// Empty pages that stay in the file, for what is written next: 4 MiB.
const PAGES_KEPT: u64 = 1024;

/// The largest database that a start makes shrinkable: some seconds, and as much memory.
const MAX_REWRITTEN_BYTES: u64 = 128 << 20;

/// The last position that is archived, the digest there, and the signed line.
pub type KeptArchive = (i64, Digest, String);

/// How much of the record is in the database, and how large that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// The position before the first record; what is up to there is in files.
    pub after: i64,
    /// The position of the last record.
    pub last: i64,
    /// When the first one was made.
    pub oldest_at: Option<Timestamp>,
    /// Files that were made of what is before it.
    pub archives: u64,
    /// When the last of them was made.
    pub archived_at: Option<Timestamp>,
    /// Bytes of the database that hold something.
    pub used_bytes: u64,
    /// Bytes of it that hold nothing.
    pub free_bytes: u64,
}

impl Store {
    /// Where the record that is kept begins: the position before it and the digest that it follows.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audit_start(&self) -> Result<(i64, Digest), StoreError> {
        let doing = "read where the audit log begins";
        self.readers.call(doing, end).await
    }

    /// How much of the record there is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audit_extent(&self) -> Result<Extent, StoreError> {
        self.readers.call("measure the audit log", extent).await
    }

    /// The last position of which every record up to it was made before this time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn last_before(&self, time: Timestamp) -> Result<i64, StoreError> {
        let doing = "look for old records";
        self.readers
            .call(doing, move |db| {
                audit::last_before(db, time).map_err(StoreError::sql(doing))
            })
            .await
    }

    /// Archives of positions after `after`, in their order, at most so many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn archives(&self, after: i64, limit: u32) -> Result<Vec<KeptArchive>, StoreError> {
        let doing = "list the archives of the audit log";
        self.readers
            .call(doing, move |db| {
                let sql = StoreError::sql(doing);
                let mut statement = db
                    .prepare_cached(
                        "SELECT last, digest, line FROM archived WHERE last > ?1 ORDER BY last LIMIT ?2",
                    )
                    .map_err(&sql)?;
                let rows = statement
                    .query_map(params![after, limit], |row| {
                        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                    })
                    .map_err(&sql)?;
                rows.collect::<Result<_, _>>().map_err(&sql)
            })
            .await
    }

    /// Hands the lines of records `first` to `last` to `each` in their order, until it fails. Blocks, on a connection of its own:
    /// for a thread of its own.
    ///
    /// # Errors
    /// [`StoreError`]; within it what `each` said.
    pub fn read_lines(
        &self,
        (first, last): (i64, i64),
        each: &mut dyn FnMut(&str) -> std::io::Result<()>,
    ) -> Result<std::io::Result<()>, StoreError> {
        let db = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        audit::lines(&db, (first, last), each)
    }

    /// Lets the record begin after `last`, when it still has this digest there and begins after `after`; it survives a power cut
    /// once this returns. `false` when it is otherwise. From then on nobody reads what is before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keep_archive(
        &self,
        after: i64,
        (last, digest): (i64, Digest),
        line: String,
    ) -> Result<bool, StoreError> {
        let doing = "keep what was archived of the audit log";
        self.writer
            .call(doing, Durability::Power, move |db| {
                if end(db)?.0 != after {
                    return Ok(false);
                }
                let kept = db.execute(
                    "INSERT INTO archived (last, digest, line)
                     SELECT seq, digest, ?3 FROM audit WHERE seq = ?1 AND digest = ?2",
                    params![last, digest, line],
                );
                kept.map(|rows| rows == 1).map_err(StoreError::sql(doing))
            })
            .await
    }

    /// Removes some of the records up to `up_to`, which are archived, and when there are none left their checkpoints but the
    /// last one's. `true` while there may be more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_archived(&self, up_to: i64) -> Result<bool, StoreError> {
        let doing = "remove what was archived of the audit log";
        self.writer
            .call(doing, Durability::Process, move |db| {
                let sql = StoreError::sql(doing);
                let removed = db
                    .execute(
                        &format!(
                            "DELETE FROM audit WHERE seq IN
                               (SELECT seq FROM audit WHERE seq <= min(?1, ifnull((SELECT max(last) FROM archived), 0))
                                ORDER BY seq LIMIT {REMOVED_AT_ONCE})"
                        ),
                        [up_to],
                    )
                    .map_err(&sql)?;
                if removed > 0 {
                    return Ok(true);
                }
                let removed = db.execute(
                    &format!(
                        "DELETE FROM checkpoints WHERE n IN
                           (SELECT n FROM checkpoints WHERE seq < ?1 LIMIT {REMOVED_AT_ONCE})"
                    ),
                    [up_to],
                );
                removed.map(|rows| rows > 0).map_err(&sql)
            })
            .await
    }

    /// Gives some of the room that is empty back to the file system. `true` while there is more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn shrink(&self) -> Result<bool, StoreError> {
        let doing = "give room of the database back";
        self.writer
            .call(doing, Durability::Process, move |db| {
                let empty = || number(db, "freelist_count");
                let before = empty()?;
                if before <= PAGES_KEPT {
                    return Ok(false);
                }
                let sql = StoreError::sql(doing);
                let mut step = db
                    .prepare(&format!("PRAGMA incremental_vacuum({PAGES_AT_ONCE})"))
                    .map_err(&sql)?;
                let mut rows = step.query([]).map_err(&sql)?;
                while rows.next().map_err(&sql)?.is_some() {}
                // A database that was not made for it stays as it is.
                Ok(empty()? < before)
            })
            .await
    }
}

/// Where the files end and the table begins.
pub(super) fn end(db: &Connection) -> Result<(i64, Digest), StoreError> {
    let found = db
        .prepare_cached("SELECT last, digest FROM archived ORDER BY last DESC LIMIT 1")
        .and_then(|mut statement| {
            statement
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
        });
    found
        .map(|end| end.unwrap_or((0, GENESIS)))
        .map_err(StoreError::sql("read where the audit log begins"))
}

/// Refuses whoever wants to go on after a position that is in a file.
pub(super) fn refuse_before(db: &Connection, after: i64, start: i64) -> Result<(), StoreError> {
    if after >= start {
        return Ok(());
    }
    let line: String = db
        .query_row(
            "SELECT line FROM archived WHERE last > ?1 ORDER BY last LIMIT 1",
            [after],
            |row| row.get(0),
        )
        .map_err(StoreError::sql("look for an archive of the audit log"))?;
    Err(StoreError::Archived {
        after,
        up_to: start,
        file: SignedArchive::parse(&line).map_or_else(
            || "a file that is not known".to_owned(),
            |known| known.archive.file,
        ),
    })
}

fn extent(db: &Connection) -> Result<Extent, StoreError> {
    let sql = StoreError::sql("measure the audit log");
    let db = db.unchecked_transaction().map_err(&sql)?;
    let (after, _) = end(&db)?;
    let oldest_at: Option<i64> = db
        .query_row(
            "SELECT at FROM audit WHERE seq > ?1 ORDER BY seq LIMIT 1",
            [after],
            |row| row.get(0),
        )
        .optional()
        .map_err(&sql)?;
    let (archives, newest): (u64, Option<String>) = db
        .query_row(
            "SELECT count(*), (SELECT line FROM archived ORDER BY last DESC LIMIT 1) FROM archived",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .map_err(&sql)?;
    let page = number(&db, "page_size")?;
    let empty = number(&db, "freelist_count")?;
    Ok(Extent {
        after,
        last: audit::last_position(&db).map_err(&sql)?,
        oldest_at: oldest_at.map(Timestamp::from_millis),
        archives,
        archived_at: newest
            .and_then(|line| SignedArchive::parse(&line))
            .map(|known| known.archive.at),
        used_bytes: number(&db, "page_count")?.saturating_sub(empty) * page,
        free_bytes: empty * page,
    })
}

fn number(db: &Connection, pragma: &str) -> Result<u64, StoreError> {
    db.pragma_query_value(None, pragma, |row| row.get(0))
        .map_err(StoreError::sql("measure the database"))
}

/// Writes a database of before there were archives anew, so that it can give room back while it is worked on (sqlite.org/pragma.html
/// #`pragma_auto_vacuum`): at a start, when that takes no more than seconds and there is room for it. Otherwise what becomes empty is
/// used again, and the file stays as large as it was.
pub(super) fn make_shrinkable(db: &Connection, path: &Path) {
    const INCREMENTAL: u64 = 2;
    let made = || -> Result<bool, StoreError> {
        if number(db, "auto_vacuum")? == INCREMENTAL {
            return Ok(true);
        }
        let bytes = number(db, "page_count")? * number(db, "page_size")?;
        let free = path
            .parent()
            .and_then(|beside| disk::free_bytes(beside).ok());
        // Once as the log, once as the file, and some room to spare.
        if bytes > MAX_REWRITTEN_BYTES || free.is_none_or(|free| free / 3 < bytes) {
            return Ok(false);
        }
        db.execute_batch(
            "PRAGMA auto_vacuum = INCREMENTAL; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)",
        )
        .map_err(StoreError::sql("write the database anew"))?;
        tracing::info!("wrote the database anew, so that its file can shrink");
        Ok(true)
    };
    match made() {
        Ok(true) => {}
        Ok(false) => tracing::warn!(
            path = %path.display(),
            "the file of the database does not shrink when records are archived, what becomes empty in it is used again: it is too large, or its disk too full, to be written anew at a start; stop casemated and run sqlite3 FILE 'PRAGMA auto_vacuum=2; VACUUM'"
        ),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "the file of the database cannot shrink yet; the next start tries again");
        }
    }
}
