//! Files that are damaged for real, and disks that take no more: what the store says, and what it leaves alone.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use rusqlite::params;

use super::*;
use crate::base::clock::Timestamp;
use crate::base::id::EventId;
use crate::model::event::{AuditEvent, AuditRecord, Stage};
use crate::model::query::AuditFilter;

/// A database with so many records, closed, and where it is.
async fn kept(records: i64) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    migrate::tests::leave(&path, 5);
    Store::open(&path).unwrap().close().await;
    let db = Connection::open(&path).unwrap();
    db.execute_batch("BEGIN").unwrap();
    for n in 0..records {
        db.execute(
            "INSERT INTO audit (id, at, stage, principal, session, kind, event, digest)
             VALUES (?1, ?2, 'fact', 'x', ?1, 'session.delete', '{\"kind\":\"session.delete\"}', zeroblob(32))",
            params![EventId::generate(Timestamp::from_millis(n)).unwrap().to_string(), n],
        )
        .unwrap();
    }
    db.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    (directory, path)
}

/// The first page of a table or index.
fn root_of(path: &Path, name: &str) -> u64 {
    let db = Connection::open(path).unwrap();
    db.query_row(
        "SELECT rootpage FROM sqlite_schema WHERE name = ?1",
        [name],
        |row| row.get(0),
    )
    .unwrap()
}

/// Writes over a part of a file.
fn spoil(path: &Path, at: u64, with: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(with).unwrap();
}

fn record() -> AuditRecord {
    AuditRecord {
        id: EventId::generate(Timestamp::from_millis(1)).unwrap(),
        at: Timestamp::from_millis(1),
        stage: Stage::Fact,
        intent: None,
        principal: "x".to_owned(),
        session: None,
        event: AuditEvent::DaemonStop {},
        outcome: None,
    }
}

/// It is refused as damaged, and not a byte of it is changed.
#[track_caller]
fn is_refused(path: &Path) -> String {
    let before = std::fs::read(path).unwrap();
    let error = Store::open(path).err().expect("it was opened");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("casemated restore FILE"));
    assert_eq!(std::fs::read(path).unwrap(), before);
    error.to_string()
}

#[tokio::test]
async fn a_start_refuses_what_is_damaged_in_header_table_or_index_or_cut() {
    const PAGE: u64 = 4096;
    let noise = [0xa5; 512];
    let (_directory, path) = kept(2_000).await;
    let whole = std::fs::read(&path).unwrap();
    Store::open(&path).unwrap().close().await;
    for (what, at) in [
        ("the header", 0),
        ("the schema", 100),
        ("a table", (root_of(&path, "sessions") - 1) * PAGE),
        ("an index", (root_of(&path, "sessions_of_team") - 1) * PAGE),
    ] {
        std::fs::write(&path, &whole).unwrap();
        spoil(&path, at, &noise);
        let said = is_refused(&path);
        assert!(said.contains("damaged"), "{what}: {said}");
    }
    for length in [0, 100, 5_000, whole.len() - 1, whole.len() / 2] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let said = is_refused(&path);
        assert!(said.contains("damaged"), "{length} bytes: {said}");
    }
    std::fs::write(&path, &whole).unwrap();
    Store::open(&path).unwrap().close().await;
}

#[tokio::test]
async fn damage_that_is_found_later_stops_every_write_and_no_read_that_still_works() {
    let (_directory, path) = kept(2_000).await;
    let store = Store::open(&path).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    store.check(&stop).unwrap();
    // An inner page of the record, which no start reads.
    spoil(&path, (root_of(&path, "audit") - 1) * 4096, &[0xa5; 512]);
    let checked = store.check(&stop);
    assert!(
        matches!(checked, Err(StoreError::Damaged { .. })),
        "{checked:?}"
    );
    for refused in [
        store.append_audit(record(), Durability::Power).await.err(),
        store.check_writable().await.err(),
        store.check_room().err(),
    ] {
        assert!(
            matches!(refused, Some(StoreError::Damaged { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(store.live_sessions().await.unwrap().len(), 1);
    store.close().await;
}

#[tokio::test]
async fn damage_that_a_statement_meets_is_remembered() {
    let (_directory, path) = kept(5_000).await;
    spoil(
        &path,
        (root_of(&path, "audit_kind") - 1) * 4096,
        &[0xa5; 512],
    );
    // Only the record is damaged: it is large, so no start reads more of it than its end.
    let store = Store::open(&path).unwrap();
    let filter = AuditFilter {
        limit: 10,
        kinds: vec!["session.delete".to_owned()],
        ..AuditFilter::default()
    };
    let read = store.audit(filter).await;
    assert!(matches!(read, Err(StoreError::Damaged { .. })), "{read:?}");
    let written = store.append_audit(record(), Durability::Process).await;
    assert!(
        matches!(written, Err(StoreError::Damaged { .. })),
        "{written:?}"
    );
    store.close().await;
}

#[tokio::test]
async fn an_index_that_contradicts_its_table_is_found_by_the_whole_check() {
    let (_directory, path) = kept(500).await;
    let store = Store::open(&path).unwrap();
    let raw = Connection::open(&path).unwrap();
    // Gone from the table of indexes while its rows change, and there again.
    raw.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)
        .unwrap();
    raw.execute_batch(
        "PRAGMA writable_schema = ON;
         CREATE TABLE keep (name, tbl_name, rootpage, sql);
         INSERT INTO keep SELECT name, tbl_name, rootpage, sql FROM sqlite_schema WHERE name = 'audit_session';
         DELETE FROM sqlite_schema WHERE name = 'audit_session';",
    )
    .unwrap();
    drop(raw);
    let raw = Connection::open(&path).unwrap();
    raw.execute_batch(
        "UPDATE audit SET session = 'other' WHERE seq = 7;
         PRAGMA writable_schema = ON;
         INSERT INTO sqlite_schema (type, name, tbl_name, rootpage, sql) SELECT 'index', name, tbl_name, rootpage, sql FROM keep;
         DROP TABLE keep;",
    )
    .unwrap();
    drop(raw);
    let checked = store.check(&Arc::new(AtomicBool::new(false)));
    let Err(StoreError::Damaged { what }) = checked else {
        panic!("{checked:?}");
    };
    assert!(what.contains("audit_session"), "{what}");
    store.close().await;
}

#[tokio::test]
async fn a_log_that_is_damaged_gives_whole_transactions_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = Store::open(&path).unwrap();
    for _ in 0..50 {
        store
            .append_audit(record(), Durability::Process)
            .await
            .unwrap();
    }
    // As a crash leaves it: the file and its log, copied while it is open.
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = elsewhere.path().join("state.db");
    std::fs::copy(&path, &copy).unwrap();
    let log = std::fs::read(beside(&path, "-wal")).unwrap();
    let mut spoiled = log.clone();
    let middle = spoiled.len() / 2;
    spoiled[middle] ^= 0xff;
    std::fs::write(beside(&copy, "-wal"), &spoiled).unwrap();
    let again = Store::open(&copy).unwrap();
    let filter = AuditFilter {
        limit: 200,
        ..AuditFilter::default()
    };
    let found = again.audit(filter).await.unwrap();
    assert!(!found.is_empty() && found.len() < 50, "{}", found.len());
    let positions: Vec<i64> = found.iter().map(|(position, _)| *position).collect();
    assert!(positions.is_sorted() && positions[0] == 1);
    again.check(&Arc::new(AtomicBool::new(false))).unwrap();
    again.close().await;
    store.close().await;
}

#[tokio::test]
async fn the_look_at_the_start_is_bounded_in_time() {
    let (_directory, path) = kept(400_000).await;
    assert!(std::fs::metadata(&path).unwrap().len() > 64 << 20);
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let began = std::time::Instant::now();
        let store = Store::open(&path).unwrap();
        fastest = fastest.min(began.elapsed());
        store.close().await;
    }
    assert!(fastest < Duration::from_millis(150), "{fastest:?}");
}

#[tokio::test]
async fn a_whole_check_ends_when_it_is_asked_to_and_stops_nobody_from_writing() {
    let (_directory, path) = kept(100_000).await;
    let store = Store::open(&path).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let checking = {
        let (store, stop) = (store.clone(), Arc::clone(&stop));
        std::thread::spawn(move || store.check(&stop))
    };
    let mut written = 0;
    while !checking.is_finished() {
        store
            .append_audit(record(), Durability::Process)
            .await
            .unwrap();
        written += 1;
        if written == 20 {
            stop.store(true, Ordering::Relaxed);
        }
    }
    checking.join().unwrap().unwrap();
    assert!(written > 0);
    store.close().await;
}

#[tokio::test]
async fn a_copy_is_the_state_at_one_moment_while_others_write() {
    let (directory, path) = kept(20_000).await;
    let store = Store::open(&path).unwrap();
    let to = directory.path().join("copy.db");
    let (begun, told) = std::sync::mpsc::channel();
    let copying = {
        let (store, to) = (store.clone(), to.clone());
        std::thread::spawn(move || {
            let mut told = 0;
            store.copy_to(&to, &mut |done, all| {
                assert!(done <= all);
                if told == 0 {
                    begun.send(()).unwrap();
                }
                told += 1;
                true
            })
        })
    };
    told.recv().unwrap();
    let mut during = 0;
    while !copying.is_finished() {
        store
            .append_audit(record(), Durability::Process)
            .await
            .unwrap();
        during += 1;
    }
    let facts = copying.join().unwrap().unwrap();
    assert!(during > 0, "nobody wrote meanwhile");
    assert_eq!(facts.installation, store.installation());
    assert_eq!(facts.volumes.len(), 1);
    let copy = Connection::open(&to).unwrap();
    let rows: i64 = copy
        .query_row("SELECT count(*) FROM audit", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 20_001, "as it was when the copy began");
    assert!(!beside(&to, "-wal").exists(), "it is one file");
    store.close().await;
}

#[tokio::test]
async fn a_copy_that_is_given_up_or_cannot_be_made_leaves_nothing() {
    let (directory, path) = kept(20_000).await;
    let store = Store::open(&path).unwrap();
    let to = directory.path().join("copy.db");
    let given_up = store.copy_to(&to, &mut |_, _| false);
    assert!(
        matches!(given_up, Err(StoreError::Closed(_))),
        "{given_up:?}"
    );
    assert!(!to.exists());
    let nowhere = directory.path().join("no/such/copy.db");
    let refused = store.copy_to(&nowhere, &mut |_, _| true);
    assert!(
        matches!(refused, Err(StoreError::File { .. })),
        "{refused:?}"
    );
    store.close().await;
}

/// A file that only grows so far: what `RLIMIT_FSIZE` does to a process, in one of its own.
#[test]
fn a_write_that_the_disk_does_not_take_is_refused_and_what_was_there_stays() {
    use crate::host::child;
    const NAME: &str =
        "store::tests::a_write_that_the_disk_does_not_take_is_refused_and_what_was_there_stays";
    const PLACE: &str = "CASEMATE_TEST_PLACE";
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    if child::is_child() {
        let path = PathBuf::from(std::env::var_os(PLACE).unwrap());
        // Without a handler the signal of the limit would end the process.
        signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).unwrap();
        runtime.block_on(async {
            let store = Store::open(&path).unwrap();
            let mut kept = 0_u32;
            nix::sys::resource::setrlimit(
                nix::sys::resource::Resource::RLIMIT_FSIZE,
                400 << 10,
                400 << 10,
            )
            .unwrap();
            let mut failed = 0;
            for n in 0..2_000 {
                let durability = if n % 2 == 0 {
                    Durability::Power
                } else {
                    Durability::Process
                };
                match store.append_audit(record(), durability).await {
                    Ok(_) => kept += 1,
                    Err(_) => failed += 1,
                }
            }
            assert!(kept > 0 && failed > 0, "{kept} {failed}");
            // Reads go on.
            assert!(
                store
                    .audit(AuditFilter {
                        limit: 1,
                        ..AuditFilter::default()
                    })
                    .await
                    .is_ok()
            );
            std::fs::write(path.with_extension("kept"), kept.to_string()).unwrap();
        });
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    child::run(NAME, &[(PLACE, path.to_str().unwrap())]);
    let kept: i64 = {
        let mut text = String::new();
        std::fs::File::open(path.with_extension("kept"))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text.parse().unwrap()
    };
    let store = Store::open(&path).unwrap();
    store.check(&Arc::new(AtomicBool::new(false))).unwrap();
    let db = Connection::open(&path).unwrap();
    let rows: i64 = db
        .query_row("SELECT count(*) FROM audit", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, kept, "what was acknowledged, and nothing else");
    runtime.block_on(store.close());
}

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
