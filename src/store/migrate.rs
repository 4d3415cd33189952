//! The schema's history: an append-only list; what is missing of it is applied in one transaction with its version.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::{StoreError, audit, backup};
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
    include_str!("migrations/0007_archived.sql"),
    include_str!("migrations/0008_keys.sql"),
    include_str!("migrations/0009_credentials.sql"),
    include_str!("migrations/0010_egress.sql"),
];

/// The version that chains the record, which is more than SQL can do.
pub(super) const CHAINED: u32 = 6;

/// The version from which on the record may begin later than with its first event.
pub(super) const ARCHIVED: u32 = 7;

/// The newest schema that this program knows.
pub(super) fn known() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

/// The schema that a database has. A stranger's and a newer one are refused; nothing is touched.
pub(super) fn judge(db: &Connection, path: &Path) -> Result<u32, StoreError> {
    let sql = StoreError::sql("bring the database up to date");
    let application: i32 = db
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(|source| StoreError::Open {
            path: path.to_owned(),
            source,
        })?;
    let found: u32 = db
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(&sql)?;
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
    if found > known() {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known: known(),
        });
    }
    Ok(found)
}

/// Applies what is missing, all of it or nothing, after a copy of what was there is whole and on the disk.
pub(super) fn bring_up_to_date(db: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let sql = StoreError::sql("bring the database up to date");
    let found = judge(db, path)?;
    // Stays in the file, so not before it is known to be ours.
    db.execute_batch("PRAGMA journal_mode = WAL")
        .map_err(&sql)?;
    if found == known() {
        return Ok(());
    }
    if found > 0 {
        let copy = backup::before_upgrade(db, path, found)?;
        tracing::info!(from = found, to = known(), copy = %copy.display(), "upgrading the database");
    }
    let upgrade = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(&sql)?;
    for (version, migration) in (1_u32..).zip(MIGRATIONS).skip(found as usize) {
        upgrade.execute_batch(migration).map_err(&sql)?;
        if version == CHAINED {
            audit::chain(&upgrade)?;
        }
    }
    upgrade
        .pragma_update(None, "application_id", APPLICATION_ID)
        .map_err(&sql)?;
    upgrade
        .pragma_update(None, "user_version", known())
        .map_err(&sql)?;
    upgrade.commit().map_err(&sql)
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
pub(super) mod tests {
    use super::*;
    use crate::model::egress::SessionEgress;
    use crate::model::query::AuditFilter;
    use crate::model::setup::Setup;
    use crate::store::Store;

    /// What each version left, by its number less one.
    const LEFT: [&str; 9] = [
        include_str!("../../tests/fixtures/store/0001.sql"),
        include_str!("../../tests/fixtures/store/0002.sql"),
        include_str!("../../tests/fixtures/store/0003.sql"),
        include_str!("../../tests/fixtures/store/0004.sql"),
        include_str!("../../tests/fixtures/store/0005.sql"),
        include_str!("../../tests/fixtures/store/0006.sql"),
        include_str!("../../tests/fixtures/store/0007.sql"),
        include_str!("../../tests/fixtures/store/0008.sql"),
        include_str!("../../tests/fixtures/store/0009.sql"),
    ];

    /// A database as a version of the schema left it.
    pub(in crate::store) fn leave(path: &Path, version: usize) {
        let old = Connection::open(path).unwrap();
        old.execute_batch("PRAGMA journal_mode = WAL").unwrap();
        for migration in &MIGRATIONS[..version] {
            old.execute_batch(migration).unwrap();
        }
        old.pragma_update(None, "application_id", APPLICATION_ID)
            .unwrap();
        old.pragma_update(None, "user_version", u32::try_from(version).unwrap())
            .unwrap();
        old.execute_batch(LEFT[version - 1]).unwrap();
    }

    /// Every row of every table, as text, by the names of its columns.
    fn rows(db: &Connection, columns_of: Option<&Connection>) -> Vec<String> {
        let list = |db: &Connection, query: &str| -> Vec<String> {
            let mut statement = db.prepare(query).unwrap();
            let names = statement.query_map([], |row| row.get(0)).unwrap();
            names.map(Result::unwrap).collect()
        };
        let like = columns_of.unwrap_or(db);
        let tables = list(
            like,
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY 1",
        );
        let mut rows = Vec::new();
        for table in tables {
            let columns = list(
                like,
                &format!("SELECT name FROM pragma_table_info('{table}') ORDER BY cid"),
            );
            let quoted: Vec<_> = columns
                .iter()
                .map(|name| format!("quote({name})"))
                .collect();
            let found = list(
                db,
                &format!("SELECT {} FROM {table} ORDER BY 1", quoted.join("||','||")),
            );
            assert!(!found.is_empty(), "{table} has no row to lose");
            rows.extend(found.into_iter().map(|row| format!("{table}: {row}")));
        }
        rows
    }

    #[tokio::test]
    async fn what_each_schema_kept_is_there_after_every_later_one_and_before_it_in_a_copy() {
        assert!(
            MIGRATIONS.len() <= LEFT.len() + 1,
            "the one before the newest has no fixture"
        );
        for version in 1..=LEFT.len() {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("state.db");
            leave(&path, version);
            let before = rows(&Connection::open(&path).unwrap(), None);

            let store = Store::open(&path).unwrap();
            let live = store.live_sessions().await.unwrap();
            assert_eq!(live.len(), 1);
            let spec = &live[0].spec;
            assert_eq!(spec.env["A"], "b");
            assert_eq!(spec.template_version, if version < 2 { 0 } else { 2 });
            assert_eq!(spec.setup, Setup::default());
            assert_eq!(spec.egress, SessionEgress::default());
            assert_eq!(spec.volumes.len(), usize::from(version >= 5));
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

            let backups: Vec<_> = std::fs::read_dir(directory.path().join("backups"))
                .map(|found| found.map(|entry| entry.unwrap().path()).collect())
                .unwrap_or_default();
            if version == MIGRATIONS.len() {
                assert_eq!(
                    backups,
                    [] as [std::path::PathBuf; 0],
                    "nothing was upgraded"
                );
                continue;
            }
            assert_eq!(backups.len(), 1, "{backups:?}");
            let name = backups[0].file_name().unwrap().to_str().unwrap();
            let wanted = format!("before-schema-{}-", version + 1);
            assert!(name.starts_with(&wanted), "{name}");
            let copy = Connection::open(&backups[0]).unwrap();
            assert_eq!(rows(&copy, None), before);
            let now = Connection::open(&path).unwrap();
            assert_eq!(rows(&now, Some(&copy)).len(), before.len());
            let shrinks: i64 = now
                .pragma_query_value(None, "auto_vacuum", |row| row.get(0))
                .unwrap();
            assert_eq!(shrinks, 2, "its file cannot shrink");
            drop((copy, now));
            // Going back is to put the copy in its place.
            std::fs::copy(&backups[0], &path).unwrap();
            assert_eq!(
                judge(&Connection::open(&path).unwrap(), &path).unwrap() as usize,
                version
            );
            Store::open(&path).unwrap().close().await;
        }
    }

    #[test]
    fn without_a_copy_there_is_no_upgrade_and_the_old_state_is_untouched() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        leave(&path, 3);
        let before = std::fs::read(&path).unwrap();
        std::fs::write(directory.path().join("backups"), "in its place").unwrap();
        let error = Store::open(&path).err().unwrap();
        assert!(
            matches!(error, StoreError::NoCopy { from: 3, .. }),
            "{error}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), before);
        std::fs::remove_file(directory.path().join("backups")).unwrap();
        drop(Store::open(&path).unwrap());
    }

    #[test]
    fn an_upgrade_that_fails_half_way_leaves_the_old_schema() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        leave(&path, 2);
        // What the last step makes is there already.
        let old = Connection::open(&path).unwrap();
        old.execute_batch("ALTER TABLE sessions ADD COLUMN volumes TEXT")
            .unwrap();
        drop(old);
        let error = Store::open(&path).err().unwrap();
        assert!(matches!(error, StoreError::Sql { .. }), "{error}");
        let old = Connection::open(&path).unwrap();
        assert_eq!(judge(&old, &path).unwrap(), 2);
        assert!(old.prepare("SELECT open_files FROM sessions").is_err());
    }

    #[tokio::test]
    async fn only_the_last_few_copies_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let backups = directory.path().join("backups");
        for _ in 0..5 {
            let _ = std::fs::remove_file(&path);
            leave(&path, 1);
            Store::open(&path).unwrap().close().await;
        }
        assert_eq!(std::fs::read_dir(backups).unwrap().count(), 3);
    }

    /// An upgrade whose disk takes only so much, whatever it is that does not fit: the copy, its name, the log, the commit.
    #[test]
    fn wherever_the_disk_ends_an_upgrade_is_whole_or_was_not_begun() {
        use crate::host::child;
        const NAME: &str =
            "store::migrate::tests::wherever_the_disk_ends_an_upgrade_is_whole_or_was_not_begun";
        if child::is_child() {
            let path = std::path::PathBuf::from(std::env::var_os("CASEMATE_TEST_PLACE").unwrap());
            let most = std::env::var("CASEMATE_TEST_LIMIT")
                .unwrap()
                .parse()
                .unwrap();
            // Without a handler the signal of the limit would end the process.
            let seen = std::sync::Arc::default();
            signal_hook::flag::register(signal_hook::consts::SIGXFSZ, seen).unwrap();
            let resource = nix::sys::resource::Resource::RLIMIT_FSIZE;
            nix::sys::resource::setrlimit(resource, most, most).unwrap();
            drop(Store::open(&path));
            return;
        }
        let (mut old, mut new) = (0, 0);
        for kib in [0, 4, 16, 33, 48, 64, 80, 96, 112, 128, 160, 200, 400] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("state.db");
            leave(&path, 1);
            let before = rows(&Connection::open(&path).unwrap(), None);
            let limit = (kib << 10).to_string();
            let env = [
                ("CASEMATE_TEST_PLACE", path.to_str().unwrap()),
                ("CASEMATE_TEST_LIMIT", &limit),
            ];
            child::run(NAME, &env);
            let db = Connection::open(&path).unwrap();
            match judge(&db, &path).unwrap() {
                1 => {
                    assert_eq!(rows(&db, None), before, "{kib}");
                    old += 1;
                }
                version => {
                    assert_eq!(version, known(), "{kib}");
                    new += 1;
                }
            }
            drop(db);
            let backups = std::fs::read_dir(directory.path().join("backups"));
            for copy in backups.into_iter().flatten() {
                let copy = copy.unwrap().path();
                assert_eq!(
                    rows(&Connection::open(&copy).unwrap(), None),
                    before,
                    "{kib}"
                );
            }
            drop(Store::open(&path).unwrap());
        }
        assert!(old > 0 && new > 0, "{old} {new}");
    }

    /// `schema.sql` is for people: what all migrations come to. `CASEMATE_WRITE_SCHEMA=1 cargo test -p casemate --lib schema_sql`
    /// writes it anew.
    #[test]
    fn schema_sql_is_what_all_migrations_come_to() {
        let db = Connection::open_in_memory().unwrap();
        for migration in MIGRATIONS {
            db.execute_batch(migration).unwrap();
        }
        let mut statement = db
            .prepare(
                "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'
                  ORDER BY tbl_name, type DESC, name",
            )
            .unwrap();
        let parts: Vec<String> = statement
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let head = format!(
            "-- What the migrations come to, schema {}. Made by a test (src/store/migrate.rs), read by nobody but people.\n",
            known()
        );
        let whole = format!("{head}\n{};\n", parts.join(";\n\n"));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/schema.sql");
        if std::env::var_os("CASEMATE_WRITE_SCHEMA").is_some() {
            std::fs::write(&path, &whole).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap();
        assert!(
            kept == whole,
            "src/store/schema.sql is not what the migrations come to: write it anew with CASEMATE_WRITE_SCHEMA=1 cargo test -p casemate --lib schema_sql"
        );
    }
}
