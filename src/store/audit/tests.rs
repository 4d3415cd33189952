//! The chain stays whole whatever fails, and what is asked for is found by an index.

use std::time::Duration;

use super::*;
use crate::base::clock::Timestamp;
use crate::base::id::EventId;
use crate::model::event::{AuditEvent, OutcomeResult};
use crate::model::record::SignedCheckpoint;
use crate::model::verify::{Fault, Finding, Signed, Verified, Verifier};

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("state.db")).unwrap();
    (directory, store)
}

fn record(n: i64) -> AuditRecord {
    AuditRecord {
        id: EventId::from_bytes(i128::from(n).to_be_bytes()),
        at: Timestamp::from_millis(n * 1000),
        stage: Stage::Fact,
        intent: None,
        principal: format!("p{}", n % 3),
        session: None,
        event: if n % 2 == 0 {
            AuditEvent::DaemonStop {}
        } else {
            AuditEvent::DaemonStart {
                version: n.to_string(),
            }
        },
        outcome: None,
    }
}

fn outcome(n: i64, of: i64) -> AuditRecord {
    AuditRecord {
        stage: Stage::Outcome,
        intent: Some(record(of).id),
        outcome: Some(Outcome::Failed { code: "x".into() }),
        ..record(n)
    }
}

async fn lines(store: &Store) -> Vec<String> {
    let all = AuditFilter {
        limit: 10_000,
        ..AuditFilter::default()
    };
    let lines = store.audit_lines(all).await.unwrap();
    lines.into_iter().map(|(_, line)| line).collect()
}

async fn verify(store: &Store) -> Result<Verified, Finding> {
    let mut verifier = Verifier::new(&|_: &SignedCheckpoint| Signed::No);
    for line in lines(store).await {
        verifier.push(&line)?;
    }
    verifier.finish()
}

async fn append(store: &Store, n: i64) -> Result<i64, StoreError> {
    store.append_audit(record(n), Durability::Process).await
}

#[tokio::test]
async fn a_job_that_fails_and_a_commit_that_fails_leave_the_chain_whole() {
    let (directory, store) = store();
    append(&store, 1).await.unwrap();
    // The same identifier again: the insert itself fails.
    assert!(append(&store, 1).await.is_err());
    // Appended, then undone with its job.
    let undone = store
        .writer
        .call("test", Durability::Process, |db| {
            insert(db, &record(2))?;
            Err::<(), _>(StoreError::Busy("test"))
        })
        .await;
    assert!(undone.is_err());
    append(&store, 3).await.unwrap();
    // Appended, and the commit fails.
    let uncommitted = store
        .writer
        .call("test", Durability::Process, |db| {
            insert(db, &record(4))?;
            db.execute_batch("PRAGMA defer_foreign_keys = ON")
                .and_then(|()| {
                    db.execute(
                        "INSERT INTO idempotency VALUES ('p', 'k', x'00', 'ses_none', 0)",
                        [],
                    )
                })
                .map(drop)
                .map_err(StoreError::sql("test"))
        })
        .await;
    assert!(uncommitted.is_err(), "the commit was to fail");
    append(&store, 5).await.unwrap();
    let verified = verify(&store).await.unwrap();
    assert_eq!((verified.records, verified.seq), (3, 3));
    assert_eq!(store.audit_head().await.unwrap().0, 3);
    store.close().await;
    let again = Store::open(&directory.path().join("state.db")).unwrap();
    append(&again, 6).await.unwrap();
    assert_eq!(verify(&again).await.unwrap().records, 4);
}

#[tokio::test]
async fn many_at_once_are_one_chain() {
    let (_directory, store) = store();
    let appended = (0..500).map(|n| append(&store, n));
    let mut positions = futures_util::future::try_join_all(appended).await.unwrap();
    positions.sort_unstable();
    assert!(positions.into_iter().eq(1..=500));
    assert_eq!(verify(&store).await.unwrap().records, 500);
}

#[tokio::test]
async fn an_append_that_fails_undoes_itself_and_nobody_else_of_its_transaction() {
    let (_directory, store) = store();
    // Each identifier twice, all waiting at once: every second insert fails among others that do not, after its row and
    // before all of its indices.
    let appended = (0..500).map(|n| append(&store, n / 2));
    let positions = futures_util::future::join_all(appended).await;
    let done = positions.iter().filter(|position| position.is_ok());
    assert_eq!(done.count(), 250);
    assert_eq!(verify(&store).await.unwrap().records, 250);
    let whole = store.readers.call("check", |db| {
        let said = db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
        said.map_err(StoreError::sql("check"))
    });
    assert_eq!(whole.await.unwrap(), "ok");
}

#[tokio::test]
async fn whoever_edits_the_file_is_found_out() {
    for (edit, seq, fault) in [
        (
            "UPDATE audit SET principal = 'q' WHERE seq = 5",
            5,
            Fault::Changed,
        ),
        ("UPDATE audit SET at = 0 WHERE seq = 5", 5, Fault::Changed),
        (
            "UPDATE audit SET outcome = '{}' WHERE seq = 5",
            5,
            Fault::Changed,
        ),
        (
            "UPDATE audit SET digest = NULL WHERE seq = 9",
            9,
            Fault::Changed,
        ),
        ("DELETE FROM audit WHERE seq = 5", 5, Fault::Removed),
        (
            "UPDATE audit SET seq = seq + 90 WHERE seq = 5",
            5,
            Fault::Removed,
        ),
    ] {
        let (directory, store) = store();
        for n in 1..=9 {
            append(&store, n).await.unwrap();
        }
        store.close().await;
        let path = directory.path().join("state.db");
        Connection::open(&path)
            .unwrap()
            .execute_batch(edit)
            .unwrap();
        let store = Store::open(&path).unwrap();
        // Nothing keeps it from going on.
        append(&store, 10).await.unwrap();
        let found = verify(&store).await.unwrap_err();
        assert_eq!((found.seq, found.fault), (seq, fault), "{edit}: {found}");
    }
}

#[tokio::test]
async fn what_was_recorded_before_there_was_a_chain_is_chained() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let old = Connection::open(&path).unwrap();
    for migration in &super::super::migrate::MIGRATIONS[..5] {
        old.execute_batch(migration).unwrap();
    }
    old.execute_batch(
        "PRAGMA application_id = 0x43534d54; PRAGMA user_version = 5;
         INSERT INTO installation (one, id) VALUES (1, 'ins_01m81sqd3exyysy61zt3rypv67');
         WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 2500)
         INSERT INTO audit SELECT n, 'evt_' || printf('%026d', n), n, 'fact', NULL, 'casemated', NULL,
             'daemon.stop', '{\"kind\":\"daemon.stop\"}', NULL FROM n;
         INSERT INTO audit VALUES (2501, 'evt_01m81sqd3exyysy61zt3rypv67', 9, 'outcome', 'evt_00000000000000000000000001',
             'casemated', NULL, 'daemon.stop', '{\"kind\":\"daemon.stop\"}', '{\"result\":\"ok\"}');",
    )
    .unwrap();
    drop(old);
    let store = Store::open(&path).unwrap();
    assert_eq!(verify(&store).await.unwrap().records, 2501);
    append(&store, 9000).await.unwrap();
    assert_eq!(verify(&store).await.unwrap().records, 2502);
    let ok = AuditFilter {
        result: Some(OutcomeResult::Ok),
        limit: 9,
        ..AuditFilter::default()
    };
    assert_eq!(store.audit_lines(ok).await.unwrap()[0].0, 2501);
}

/// A filter, and what it finds of records 1 to 30 and an outcome of the tenth.
fn filters() -> Vec<(AuditFilter, Vec<i64>)> {
    let all = || AuditFilter {
        limit: 100,
        ..AuditFilter::default()
    };
    let kind = |name: &str| vec![name.to_owned()];
    let of = |test: &dyn Fn(i64) -> bool| (1..=31).filter(|n| test(*n)).collect::<Vec<_>>();
    vec![
        (all(), of(&|_| true)),
        (AuditFilter { after: 25, ..all() }, of(&|n| n > 25)),
        (
            AuditFilter {
                until: Some(4),
                ..all()
            },
            of(&|n| n <= 4),
        ),
        (
            AuditFilter {
                kinds: kind("daemon.stop"),
                ..all()
            },
            of(&|n| n % 2 == 0),
        ),
        (
            AuditFilter {
                kinds: vec!["daemon.stop".into(), "daemon.start".into(), "no".into()],
                after: 3,
                limit: 5,
                ..all()
            },
            vec![4, 5, 6, 7, 8],
        ),
        (
            AuditFilter {
                principal: Some("p1".into()),
                ..all()
            },
            of(&|n| n % 3 == 1),
        ),
        (
            AuditFilter {
                principal: Some("p1".into()),
                kinds: kind("daemon.stop"),
                ..all()
            },
            of(&|n| n % 3 == 1 && n % 2 == 0),
        ),
        (
            AuditFilter {
                result: Some(OutcomeResult::Failed),
                ..all()
            },
            vec![31],
        ),
        (
            AuditFilter {
                result: Some(OutcomeResult::Ok),
                ..all()
            },
            vec![],
        ),
        (
            AuditFilter {
                intent: Some(record(10).id),
                ..all()
            },
            vec![31],
        ),
        (
            AuditFilter {
                from: Some(Timestamp::from_millis(7000)),
                to: Some(Timestamp::from_millis(9000)),
                ..all()
            },
            vec![7, 8],
        ),
        (
            AuditFilter {
                from: Some(Timestamp::from_millis(99_000)),
                ..all()
            },
            vec![],
        ),
        (
            AuditFilter {
                from: Some(Timestamp::from_millis(7000)),
                principal: Some("p1".into()),
                ..all()
            },
            of(&|n| n >= 7 && n % 3 == 1),
        ),
        (
            AuditFilter {
                session: Some("ses_01m81sqd3exyysy61zt3rypv67".parse().unwrap()),
                ..all()
            },
            vec![],
        ),
    ]
}

#[tokio::test]
async fn filters_find_what_they_say() {
    let (_directory, store) = store();
    // Two that were written at one time stand in the other order.
    for n in (1..=30).map(|n| match n {
        7 => 8,
        8 => 7,
        n => n,
    }) {
        append(&store, n).await.unwrap();
    }
    store
        .append_audit(outcome(31, 10), Durability::Process)
        .await
        .unwrap();
    for (filter, wanted) in filters() {
        let found = store.audit(filter.clone()).await.unwrap();
        let mut found: Vec<i64> = found
            .iter()
            .map(|(_, record)| record.at.as_millis() / 1000)
            .collect();
        found.sort_unstable();
        // By the order of positions 7 and 8 are the other way round, which only a bound between them would show.
        assert_eq!(found, wanted, "{filter:?}");
    }
}

#[tokio::test]
async fn a_page_far_back_or_of_a_late_hour_does_not_walk_the_table() {
    const MANY: i64 = 30_000;
    let (_directory, store) = store();
    let filled = store
        .writer
        .call("test", Durability::Process, |db| {
            (0..MANY).try_for_each(|n| insert(db, &record(n)).map(drop))
        })
        .await;
    filled.unwrap();
    let late = Timestamp::from_millis((MANY - 20) * 1000);
    for (after, from, to) in [
        (MANY - 20, None, None),
        (0, Some(late), None),
        (0, Some(late), Some(late.after(Duration::from_secs(5)))),
        (7, Some(late), None),
        (MANY - 20, None, Some(late)),
    ] {
        let filter = AuditFilter {
            after,
            from,
            to,
            limit: 10,
            ..AuditFilter::default()
        };
        let asked = format!("{filter:?}");
        let steps = store.readers.call("test", move |db| {
            let (text, values) = select(&filter);
            let mut statement = db.prepare(&text).map_err(StoreError::sql("test"))?;
            let rows = statement.query_map(params_from_iter(values), Kept::of);
            rows.map_err(StoreError::sql("test"))?.for_each(drop);
            Ok(statement.get_status(rusqlite::StatementStatus::VmStep))
        });
        let steps = steps.await.unwrap();
        // Some steps for each row that is looked at: those out of order around a time, twice, and a page.
        let bound = 10 * (2 * i32::try_from(OUT_OF_ORDER).unwrap() + 100);
        assert!(steps < bound, "{asked}: {steps} steps of at most {bound}");
    }
}

#[tokio::test]
async fn every_filter_has_an_index_and_sorts_nothing() {
    let (_directory, store) = store();
    append(&store, 1).await.unwrap();
    for (filter, _) in filters() {
        // Of several kinds the first of each are sorted, at most as many as are asked for.
        let sorts_a_page = filter.kinds.len() > 1;
        let plan = store
            .readers
            .call("test", move |db| {
                let (text, values) = select(&filter);
                db.prepare(&format!("EXPLAIN QUERY PLAN {text}"))
                    .and_then(|mut plan| {
                        plan.query_map(params_from_iter(values), |row| row.get::<_, String>(3))?
                            .collect::<rusqlite::Result<Vec<_>>>()
                    })
                    .map_err(StoreError::sql("test"))
            })
            .await
            .unwrap();
        for step in &plan {
            assert!(sorts_a_page || !step.contains("TEMP B-TREE"), "{plan:?}");
            assert!(!step.starts_with("SCAN audit"), "{plan:?}");
        }
    }
}

#[tokio::test]
async fn whoever_waits_for_records_is_told_of_them() {
    let (_directory, store) = store();
    let mut appended = store.appended();
    assert_eq!(*appended.borrow_and_update(), 0);
    append(&store, 1).await.unwrap();
    append(&store, 2).await.unwrap();
    appended.wait_for(|last| *last == 2).await.unwrap();
    appended.mark_unchanged();
    store.check_writable().await.unwrap();
    append(&store, 3).await.unwrap();
    appended.changed().await.unwrap();
    assert_eq!(*appended.borrow_and_update(), 3);
}
