//! What a backup costs those who write meanwhile: `scripts/bench backup` runs it and shows its figures.
//!
//! One state of a given size; writers that each wait for their record before they write the next; so many seconds without a
//! backup, then as long as a backup takes, and again without, in turn. Prints one JSON object.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a measurement, which has nobody to spare"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use casemate::audit::AuditLog;
use casemate::backup::Progress;
use casemate::backup::keeper::{Backups, Parts};
use casemate::base::clock::SystemClock;
use casemate::base::clock::{Clock, Timestamp};
use casemate::base::id::EventId;
use casemate::model::event::AuditEvent;
use casemate::model::principal::Principal;
use casemate::model::settings::BackupConfig;
use casemate::runtime::fake::FakeRuntime;
use casemate::store::Store;
use tokio::sync::watch;

const WRITERS: usize = 32;

fn argument(number: usize, default: u64) -> u64 {
    let mut arguments = std::env::args().filter(|argument| !argument.starts_with('-'));
    arguments
        .nth(number)
        .map_or(default, |text| text.parse().unwrap())
}

/// A record as runs leave them, and the text that fills it up to what is usual.
fn fill(path: &std::path::Path, bytes: u64) {
    let db = rusqlite::Connection::open(path).unwrap();
    let size = || std::fs::metadata(path).unwrap().len();
    let mut n = 0_i64;
    while size() < bytes {
        db.execute_batch("BEGIN").unwrap();
        for _ in 0..20_000 {
            n += 1;
            let id = EventId::generate(Timestamp::from_millis(n))
                .unwrap()
                .to_string();
            db.execute(
                "INSERT INTO audit (id, at, stage, principal, session, kind, event) VALUES (?1, ?2, 'intent', 'key:key_01m81sqd3exyysy61zt3rypv67', ?1, 'session.run', ?3)",
                (&id, n, format!("{{\"kind\":\"session.run\",\"program\":\"{id}\",\"arguments\":3,\"user\":\"user\",\"timeout_s\":60}}")),
            )
            .unwrap();
        }
        db.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)")
            .unwrap();
    }
}

fn main() {
    let (mib, seconds, rounds) = (argument(1, 1024), argument(2, 6), argument(3, 3));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let parent = std::env::var_os("CASEMATE_BENCH_DIR").unwrap_or_else(|| "/var/tmp".into());
    let directory = tempfile::tempdir_in(parent).unwrap();
    let path = directory.path().join("state.db");
    runtime.block_on(async {
        Store::open(&path).unwrap().close().await;
        fill(&path, mib << 20);
        let began = Instant::now();
        let store = Store::open(&path).unwrap();
        let opened = began.elapsed();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let audit = AuditLog::new(store.clone(), Arc::clone(&clock));
        let backups = Backups::new(Parts {
            store: store.clone(),
            audit: audit.clone(),
            runtime: Arc::new(FakeRuntime::new([])),
            clock,
            config: BackupConfig {
                keep: 1,
                ..BackupConfig::by_hand(directory.path().join("backups"))
            },
            templates: directory.path().join("templates"),
            images_of_files: Box::new(std::collections::BTreeSet::new),
        });
        let (written, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let (audit, written, stop) = (audit.clone(), written.clone(), stop.clone());
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let event = AuditEvent::DaemonStop {};
                        audit.fact(&Principal::Daemon, None, event).await.unwrap();
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let rate = |before: u64, took: Duration| {
            (written.load(Ordering::Relaxed) - before) as f64 / took.as_secs_f64()
        };
        let alone = async || {
            let (before, began) = (written.load(Ordering::Relaxed), Instant::now());
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            rate(before, began.elapsed())
        };
        alone().await;
        let (mut without, mut during, mut took, mut size_bytes) = (vec![alone().await], Vec::new(), Vec::new(), 0);
        for _ in 0..rounds {
            let (progress, _) = watch::channel(Progress::default());
            let (before, began) = (written.load(Ordering::Relaxed), Instant::now());
            let made = backups.make(&Principal::Daemon, None, false, progress).await.unwrap();
            during.push(rate(before, began.elapsed()));
            took.push(began.elapsed().as_secs_f64());
            size_bytes = made.size_bytes;
            without.push(alone().await);
        }
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        let log = std::fs::metadata(directory.path().join("state.db-wal")).map_or(0, |found| found.len());
        println!(
            "{}",
            serde_json::json!({
                "database_bytes": std::fs::metadata(&path).unwrap().len(), "backup_bytes": size_bytes, "log_bytes": log,
                "opened_ms": opened.as_secs_f64() * 1000.0, "writers": WRITERS,
                "without_per_s": without, "during_per_s": during, "backup_s": took,
            })
        );
        drop(audit);
        drop(backups);
        store.close().await;
    });
}
