//! The schema's history: an append-only list, each step in one transaction with its version.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;
use crate::base::clock::{Clock, SystemClock};
use crate::base::id::InstallationId;

/// `CSMT`, so that `file` and other programs can tell whose database this is.
const APPLICATION_ID: i32 = 0x4353_4d54;

/// Each entry takes the schema from its index to the next version. Never edited, only appended to.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_init.sql"),
    include_str!("migrations/0003_leases.sql"),
    include_str!("migrations/0004_limits.sql"),
];

/// Applies what is missing; refuses a stranger's or a newer database before touching it.
pub(super) fn bring_up_to_date(db: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let doing = "bring the database up to date";
    let sql = StoreError::sql(doing);
    let application: i32 = db
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(|source| StoreError::Open {
            path: path.to_owned(),
            source,
        })?;
    let found: u32 = db
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(&sql)?;
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    let empty: bool = db
        .query_row(
            "SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)",
            [],
            |row| row.get(0),
        )
        .map_err(&sql)?;
    if application != APPLICATION_ID && !(empty && application == 0) {
        return Err(StoreError::NotOurs {
            path: path.to_owned(),
            found: application,
        });
    }
    if found > known {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    // Stays in the file, so not before it is known to be ours.
    db.execute_batch("PRAGMA journal_mode = WAL")
        .map_err(&sql)?;
    for (version, migration) in (1_u32..).zip(MIGRATIONS).skip(found as usize) {
        let step = db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&sql)?;
        step.execute_batch(migration).map_err(&sql)?;
        step.pragma_update(None, "application_id", APPLICATION_ID)
            .map_err(&sql)?;
        step.pragma_update(None, "user_version", version)
            .map_err(&sql)?;
        step.commit().map_err(&sql)?;
    }
    Ok(())
}

/// The installation's name; chosen now when the database is new.
pub(super) fn installation(db: &Connection) -> Result<InstallationId, StoreError> {
    let doing = "read the installation's name";
    let fresh =
        InstallationId::generate(SystemClock.now()).map_err(|error| StoreError::System {
            doing,
            source: std::io::Error::other(error),
        })?;
    db.execute(
        "INSERT INTO installation (one, id) VALUES (1, ?1) ON CONFLICT DO NOTHING",
        [fresh.to_string()],
    )
    .map_err(StoreError::sql(doing))?;
    let text: String = db
        .query_row("SELECT id FROM installation", [], |row| row.get(0))
        .map_err(StoreError::sql(doing))?;
    text.parse().map_err(|_| StoreError::BadRow {
        doing,
        table: "installation",
        what: "id".to_owned(),
    })
}
