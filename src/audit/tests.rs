//! The record as those see it who read, copy and check it.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use tokio_util::sync::CancellationToken;

use super::mirror::Mirror;
use super::*;
use crate::base::clock::ManualClock;
use crate::model::event::DoorLimit;
use crate::model::record::SignedCheckpoint;
use crate::model::settings::ArgvRecord;
use crate::model::verify::{Fault, Signed, Verifier};
use crate::vault::{Vault, is_signed_by};

const PATIENCE: Duration = Duration::from_secs(20);

fn settings() -> AuditConfig {
    AuditConfig {
        checkpoint_records: 10,
        checkpoint_every: Duration::from_secs(3600),
        ..AuditConfig::default()
    }
}

/// A log on the state in this directory, with the key that is kept there.
async fn log_with(directory: &Path, settings: AuditConfig) -> (Store, AuditLog) {
    let store = Store::open(&directory.join("state.db")).unwrap();
    let has_sealed = store.has_sealed().await.unwrap();
    let vault = Vault::open(None, directory, has_sealed).unwrap();
    let now = crate::base::clock::Timestamp::from_millis(5);
    let (signer, _) = Signer::open(&store, &vault, now).await.unwrap();
    let log = AuditLog::new(store.clone(), Arc::new(ManualClock::at(5)));
    (store, log.with(settings, signer))
}

async fn log(directory: &Path) -> (Store, AuditLog) {
    log_with(directory, settings()).await
}

async fn append(log: &AuditLog, count: usize) {
    for _ in 0..count {
        let event = AuditEvent::DaemonStop {};
        log.fact(&Principal::Daemon, None, event).await.unwrap();
    }
}

async fn close(store: Store, log: AuditLog) {
    drop(log);
    store.close().await;
}

/// What somebody does to the database while no daemon looks.
fn edit(directory: &Path, sql: &str) {
    let raw = Connection::open(directory.join("state.db")).unwrap();
    raw.execute_batch(sql).unwrap();
}

#[tokio::test]
async fn an_outcome_names_its_intent() {
    let directory = tempfile::tempdir().unwrap();
    let (store, log) = log(directory.path()).await;
    let intent = log
        .begin(&Principal::Daemon, None, AuditEvent::DaemonStop {})
        .await
        .unwrap();
    intent.finish(Outcome::Ok { detail: None }).await.unwrap();
    let filter = AuditFilter {
        limit: 9,
        ..AuditFilter::default()
    };
    let records = store.audit(filter).await.unwrap();
    assert_eq!(records.len(), 2);
    assert_eq!(records[0].1.stage, Stage::Intent);
    assert_eq!(records[1].1.intent, Some(records[0].1.id));
    assert_eq!(records[1].1.outcome, Some(Outcome::Ok { detail: None }));
}

#[tokio::test]
async fn an_export_verifies_with_the_public_key_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, log) = log(directory.path()).await;
    append(&log, 450).await;
    let public = log.public_key().unwrap();
    let check = |signed: &SignedCheckpoint| {
        if is_signed_by(&public, signed.signed.as_bytes(), &signed.signature) {
            Signed::Yes
        } else {
            Signed::No
        }
    };
    for (after, until, records) in [
        (0, None, 450),
        (200, None, 250),
        (7, Some(9), 2),
        (450, None, 0),
    ] {
        let mut export = log.export(after, until).await.unwrap();
        let mut verifier = Verifier::new(&check);
        while let Some(lines) = export.next().await.unwrap() {
            for line in lines {
                verifier.push(&line).unwrap();
            }
        }
        let right = verifier.finish_file().unwrap();
        assert_eq!((right.records, right.checkpoints), (records, 1));
    }
    assert!(matches!(
        log.export(451, None).await,
        Err(AuditError::NoRecord(451))
    ));
}

#[tokio::test]
async fn checkpoints_are_signed_as_the_record_grows() {
    let directory = tempfile::tempdir().unwrap();
    let (store, log) = log(directory.path()).await;
    let stop = CancellationToken::new();
    let keeping = tokio::spawn({
        let (log, stop) = (log.clone(), stop.clone());
        async move { log.keep_checkpoints(stop).await }
    });
    append(&log, 10).await;
    let signed = async |seq: i64| {
        loop {
            let last = store.last_checkpoint().await.unwrap();
            if last.is_some_and(|(_, at, _)| at >= seq) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, signed(10)).await.unwrap();
    append(&log, 11).await;
    tokio::time::timeout(PATIENCE, signed(20)).await.unwrap();
    stop.cancel();
    keeping.await.unwrap();
    // The same state has one checkpoint, however often it is asked for.
    let (seq, line) = log.checkpoint().await.unwrap();
    assert_eq!(log.checkpoint().await.unwrap(), (seq, line));
    assert_eq!(
        log.verify(0, i64::MAX).await.unwrap().verified.signed_seq,
        21
    );
}

#[tokio::test]
async fn verifying_goes_in_parts() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, log) = log(directory.path()).await;
    append(&log, 25).await;
    log.checkpoint().await.unwrap();
    let mut after = 0;
    let mut records = 0;
    loop {
        let part = log.verify(after, 10).await.unwrap();
        assert_eq!(part.finding, None);
        records += part.verified.records;
        match part.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!((records, after), (25, 20));
}

#[tokio::test]
async fn whoever_edits_the_database_raises_the_alarm_at_the_next_start() {
    let cases = [
        ("UPDATE audit SET principal = 'q' WHERE seq = 24", 24),
        ("DELETE FROM audit WHERE seq >= 15", 15),
        ("DELETE FROM audit WHERE seq = 22", 22),
        ("DELETE FROM audit", 1),
        ("UPDATE audit SET event = '{}' WHERE seq = 22", 22),
        ("DELETE FROM checkpoints", 1),
        (
            "UPDATE checkpoints SET line = replace(line, 'ins_', 'int_')",
            22,
        ),
    ];
    for (sql, position) in cases {
        let directory = tempfile::tempdir().unwrap();
        let (store, log_before) = log(directory.path()).await;
        append(&log_before, 22).await;
        log_before.checkpoint().await.unwrap();
        append(&log_before, 3).await;
        close(store, log_before).await;
        let (store, quiet) = log(directory.path()).await;
        quiet.check_end(true).await.unwrap();
        assert_eq!(quiet.alarm(), None, "nothing was edited yet");
        close(store, quiet).await;
        edit(directory.path(), sql);
        let (store, loud) = log(directory.path()).await;
        loud.check_end(true).await.unwrap();
        assert!(loud.alarm().is_some(), "{sql}");
        let alarms = AuditFilter {
            kinds: vec!["audit.alarm".to_owned()],
            limit: 9,
            ..AuditFilter::default()
        };
        let alarms = store.audit(alarms).await.unwrap();
        let AuditEvent::AuditAlarm {
            position: found, ..
        } = &alarms[0].1.event
        else {
            panic!("{alarms:?}");
        };
        assert_eq!(*found, position, "{sql}");
    }
}

#[tokio::test]
async fn whoever_dies_before_the_first_checkpoint_raises_no_alarm() {
    let directory = tempfile::tempdir().unwrap();
    let (store, first) = log(directory.path()).await;
    first.check_end(false).await.unwrap();
    append(&first, 4).await;
    close(store, first).await;
    let (_store, next) = log(directory.path()).await;
    next.check_end(true).await.unwrap();
    assert_eq!(next.alarm(), None);
    assert_eq!(next.verify(0, i64::MAX).await.unwrap().finding, None);
}

#[tokio::test]
async fn what_a_checkpoint_covers_cannot_be_written_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (store, log_before) = log(directory.path()).await;
    append(&log_before, 5).await;
    log_before.checkpoint().await.unwrap();
    close(store, log_before).await;
    // Everything is taken out and written again, with a chain that holds.
    edit(directory.path(), "DELETE FROM audit");
    let (_store, forged) = log(directory.path()).await;
    append(&forged, 9).await;
    let found = forged.verify(0, i64::MAX).await.unwrap().finding.unwrap();
    assert_eq!((found.seq, found.fault), (5, Fault::Rewritten));
}

#[tokio::test]
async fn a_follower_that_comes_back_has_no_gap_and_nothing_twice() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, log) = log(directory.path()).await;
    let writing = tokio::spawn({
        let log = log.clone();
        async move {
            for _ in 0..40 {
                let all = (0..25).map(|_| append(&log, 1));
                futures_util::future::join_all(all).await;
            }
        }
    });
    let mut after = 0;
    let mut expected = 1;
    // Each time only a few are read before the line is cut.
    while expected <= 1000 {
        let mut follower = log.follow(AuditFilter {
            after,
            ..AuditFilter::default()
        });
        for _ in 0..37 {
            if expected > 1000 {
                break;
            }
            let next = tokio::time::timeout(PATIENCE, follower.next()).await;
            let (seq, line) = next.unwrap().unwrap().unwrap();
            assert_eq!(seq, expected);
            assert!(line.starts_with(&format!("{{\"seq\":{seq},")));
            after = seq;
            expected += 1;
        }
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn a_follower_of_one_kind_passes_the_others_over() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, log) = log(directory.path()).await;
    append(&log, 500).await;
    let mut follower = log.follow(AuditFilter {
        kinds: vec!["daemon.start".to_owned()],
        ..AuditFilter::default()
    });
    let waiting = tokio::spawn(async move { follower.next().await });
    let event = AuditEvent::DaemonStart {
        version: "1".to_owned(),
    };
    log.fact(&Principal::Daemon, None, event).await.unwrap();
    let next = tokio::time::timeout(PATIENCE, waiting).await;
    assert_eq!(next.unwrap().unwrap().unwrap().unwrap().0, 501);
}

#[tokio::test]
async fn a_flood_of_refusals_is_a_few_records() {
    let directory = tempfile::tempdir().unwrap();
    let (store, log) = log(directory.path()).await;
    let stop = CancellationToken::new();
    let keeping = tokio::spawn({
        let (log, stop) = (log.clone(), stop.clone());
        async move { log.keep_tally(stop).await }
    });
    // Of one address at once, then of the whole of a network.
    let one: std::net::IpAddr = "192.0.2.1".parse().unwrap();
    for _ in 0..100_000 {
        log.not_authenticated(Some(one));
    }
    for n in 0..200_000_u32 {
        log.not_authenticated(Some(std::net::Ipv4Addr::from(n).into()));
    }
    let key = crate::base::id::KeyId::from_bytes([1; 16]);
    let member = Principal::Client(crate::model::principal::Client::member(
        key,
        "red".parse().unwrap(),
    ));
    for _ in 0..1000 {
        log.denied(&member, "read-audit", "only-operators-administer");
    }
    for n in 0..1000_u32 {
        log.limited(&member, [DoorLimit::Key, DoorLimit::Team][n as usize % 2]);
        log.crowded(Some(one), DoorLimit::Connections);
        log.crowded(Some(std::net::Ipv4Addr::from(n).into()), DoorLimit::Address);
    }
    stop.cancel();
    keeping.await.unwrap();
    let all = AuditFilter {
        limit: 10_000,
        ..AuditFilter::default()
    };
    let records = store.audit(all).await.unwrap();
    assert!(records.len() < 1100, "{} records", records.len());
    let (mut attempts, mut addresses, mut denied) = (0, HashSet::new(), 0);
    let mut limited = BTreeMap::new();
    for (_, record) in &records {
        match &record.event {
            AuditEvent::AuthFailed {
                address,
                attempts: n,
            } => {
                attempts += n;
                addresses.insert(address.clone());
            }
            AuditEvent::AccessDenied {
                attempts: n, rule, ..
            } => {
                assert_eq!(record.principal, member.to_string());
                assert_eq!(rule, "only-operators-administer");
                denied += n;
            }
            AuditEvent::AccessLimited {
                limit,
                address,
                attempts: n,
            } => {
                let who = match address {
                    Some(_) => "nobody".to_owned(),
                    None => member.to_string(),
                };
                assert_eq!(record.principal, who);
                *limited.entry(format!("{limit:?}")).or_insert(0) += n;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((attempts, denied), (300_000, 1000), "some are not counted");
    let expected = [
        ("Address", 1000),
        ("Connections", 1000),
        ("Key", 500),
        ("Team", 500),
    ];
    assert_eq!(
        limited,
        expected.map(|(limit, n)| (limit.to_owned(), n)).into()
    );
    assert!(addresses.contains("192.0.2.1") && addresses.contains("others"));
}

/// A journal of our own: what it was sent.
fn entries(far: &std::os::unix::net::UnixDatagram) -> Vec<String> {
    let mut buffer = vec![0; 65536];
    let mut entries = Vec::new();
    far.set_nonblocking(true).unwrap();
    while let Ok(length) = far.recv(&mut buffer) {
        entries.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    entries
}

#[tokio::test]
async fn a_slow_journal_is_behind_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("journal");
    let (store, log) = log(directory.path()).await;
    // What was there before is not copied.
    append(&log, 3).await;
    let stop = CancellationToken::new();
    let mirror = Mirror::Journal(socket.clone());
    let keeping = tokio::spawn({
        let (log, stop, mirror) = (log.clone(), stop.clone(), mirror.clone());
        async move { log.keep_mirror(mirror, stop).await }
    });
    // No journal yet; then one that takes what its queue holds and stops until it is read.
    tokio::time::timeout(PATIENCE, async {
        while store.mirrored().await.unwrap().is_none() && log.last().await.unwrap() < 300 {
            append(&log, 1).await;
        }
    })
    .await
    .unwrap();
    let last = log.last().await.unwrap();
    let far = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    let mut seen = Vec::new();
    tokio::time::timeout(PATIENCE, async {
        while store.mirrored().await.unwrap() != Some(last) {
            seen.extend(entries(&far));
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    seen.extend(entries(&far));
    let numbers: Vec<i64> = seen
        .iter()
        .map(|entry| {
            let (_, rest) = entry.split_once("\"seq\":").unwrap();
            rest.split_once(',').unwrap().0.parse().unwrap()
        })
        .collect();
    let mut once = numbers.clone();
    once.dedup();
    assert!(once.into_iter().eq(numbers[0]..=last), "{numbers:?}");
    assert!(seen[0].contains("CASEMATE_EVENT") && seen[0].contains("CASEMATE_SEQ"));
    stop.cancel();
    keeping.await.unwrap();
    // The next daemon goes on where this one was.
    append(&log, 2).await;
    let stop = CancellationToken::new();
    stop.cancel();
    log.keep_mirror(mirror, stop).await;
    assert_eq!(entries(&far).len(), 2);
}

#[test]
fn command_lines_are_recorded_as_far_as_the_settings_say() {
    let argv = ["psql".to_owned(), "--password=hush".to_owned()];
    let line = |wanted| CommandLine::of(wanted, &argv, None);
    assert_eq!(line(ArgvRecord::Name), CommandLine::default());
    assert_eq!(line(ArgvRecord::Clear).argv.unwrap(), argv);
    let digest = line(ArgvRecord::Digest);
    assert_eq!(digest.argv, None);
    // printf 'psql\0--password=hush\0' | sha256sum
    assert_eq!(
        digest.argv_sha256.unwrap(),
        "7a26cd0ff2a53b08c01850895a46dba9c88495019b0dc3bc28d7c316a7cc7d39"
    );
    let shell = CommandLine::of(ArgvRecord::Digest, &[], Some("echo hush"));
    assert_eq!(shell.argv_sha256.unwrap().len(), 64);
}
