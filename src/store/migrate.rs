//! The schema's history: an append-only list, each step in one transaction with its version.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::{StoreError, audit};
use crate::base::clock::{Clock, SystemClock};
use crate::base::id::InstallationId;

/// `CSMT`, so that `file` and other programs can tell whose database this is.
const APPLICATION_ID: i32 = 0x4353_4d54;

/// Each entry takes the schema from its index to the next version. Never edited, only appended to.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_init.sql"),
    include_str!("migrations/0002_templates.sql"),
    include_str!("migrations/0003_leases.sql"),
    include_str!("migrations/0004_limits.sql"),
    include_str!("migrations/0005_volumes.sql"),
    include_str!("migrations/0006_record.sql"),
];

/// The version that chains the record, which is more than SQL can do.
const CHAINED: u32 = 6;

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
        if version == CHAINED {
            audit::chain(&step)?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::query::AuditFilter;
    use crate::model::setup::Setup;
    use crate::store::Store;

    #[tokio::test]
    async fn what_the_first_schema_kept_is_there_after_every_later_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.pragma_update(None, "application_id", APPLICATION_ID)
            .unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        old.execute_batch(include_str!("../../tests/fixtures/store/0001.sql"))
            .unwrap();
        drop(old);

        let store = Store::open(&path).unwrap();
        let live = store.live_sessions().await.unwrap();
        assert_eq!(live.len(), 1);
        let spec = &live[0].spec;
        assert_eq!(spec.env["A"], "b");
        assert_eq!(spec.template_version, 0);
        assert_eq!(spec.setup, Setup::default());
        let ended = "ses_01m81sqd3exyysy61zt3rypv68".parse().unwrap();
        let ended = store.session(ended).await.unwrap().unwrap();
        assert_eq!(ended.status.message.as_deref(), Some("why"));
        let team = "red".parse().unwrap();
        assert_eq!(store.team_templates(team).await.unwrap(), []);
        let filter = AuditFilter {
            limit: 10,
            ..AuditFilter::default()
        };
        assert_eq!(store.audit(filter).await.unwrap().len(), 1);
        store.close().await;
        // And once more, with nothing to do.
        Store::open(&path).unwrap().close().await;
    }
}
