//! How fast the record is written, beside a bare SQLite loop and one flush of the same disk: for `scripts/bench record`.
//!
//!     record DIRECTORY SECONDS
//!
//! Prints a line of JSON for each grade and number of writers.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a measurement that fails has no figures, and prints those that it has"
)]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use casemate::base::clock::Timestamp;
use casemate::base::id::{EventId, SessionId};
use casemate::model::event::{AuditEvent, AuditRecord, CommandLine, Stage};
use casemate::store::{Durability, Store};
use rusqlite::{Connection, TransactionBehavior, params};

const WRITERS: [usize; 4] = [1, 8, 32, 128];

fn main() {
    // cargo adds one of its own.
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'));
    let directory = PathBuf::from(arguments.next().unwrap());
    let time = Duration::from_secs_f64(arguments.next().unwrap().parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    for durability in [Durability::Process, Durability::Power] {
        for writers in WRITERS {
            let here = directory.join(format!("{durability:?}-{writers}"));
            std::fs::create_dir(&here).unwrap();
            // Both sides in turn, twice; the better of each, as the machine is never idle.
            let mut ours = Appended::default();
            let mut bare_per_s = 0.0_f64;
            let mut flush_s = f64::MAX;
            for round in 0..2 {
                flush_s = flush_s.min(flush(&here));
                let measured = runtime.block_on(append(
                    &here.join(format!("ours-{round}.db")),
                    durability,
                    writers,
                    time,
                ));
                let path = here.join(format!("bare-{round}.db"));
                bare_per_s =
                    bare_per_s.max(bare(&runtime, &path, durability, measured.batch, time));
                if measured.per_s > ours.per_s {
                    ours = measured;
                }
                flush_s = flush_s.min(flush(&here));
            }
            let Appended {
                per_s,
                batch,
                latencies,
            } = ours;
            let at = |percent: usize| latencies[latencies.len() * percent / 100] as f64 / 1e6;
            println!(
                "{}",
                serde_json::json!({
                    "grade": format!("{durability:?}").to_lowercase(),
                    "writers": writers,
                    "events_per_s": per_s.round(),
                    "batch": batch,
                    "bare_per_s": bare_per_s.round(),
                    "of_bare": per_s / bare_per_s,
                    "flush_ms": flush_s * 1e3,
                    "of_flushes": per_s / (writers as f64 / flush_s),
                    "median_ms": at(50),
                    "p99_ms": at(99),
                })
            );
            std::io::stdout().flush().unwrap();
            std::fs::remove_dir_all(&here).unwrap();
        }
    }
}

fn record(n: u64) -> AuditRecord {
    let at = Timestamp::from_millis(1_700_000_000_000 + i64::try_from(n / 20).unwrap());
    AuditRecord {
        id: EventId::generate(at).unwrap(),
        at,
        stage: Stage::Intent,
        intent: None,
        principal: "key_01m81sqd3exyysy61zt3rypv67".to_owned(),
        session: Some(SessionId::from_bytes([1; 16])),
        event: AuditEvent::SessionRun {
            program: Some("/usr/bin/python3".to_owned()),
            arguments: 2,
            line: CommandLine {
                argv_sha256: Some("0".repeat(64)),
                ..CommandLine::default()
            },
            user: "user".to_owned(),
            timeout_s: 60,
        },
        outcome: None,
    }
}

/// What writers at once came to.
#[derive(Default)]
struct Appended {
    per_s: f64,
    /// Records in a transaction, on average.
    batch: f64,
    /// Of each record, in nanoseconds, in their order.
    latencies: Vec<u64>,
}

async fn append(path: &Path, durability: Durability, writers: usize, time: Duration) -> Appended {
    let store = Store::open(path).unwrap();
    // Transactions: one that ends while the one before it is still being counted is not, which makes batches larger than
    // they are and the bare loop the faster.
    let mut appended = store.appended();
    let transactions = tokio::spawn(async move {
        let mut transactions = 0_u64;
        while appended.changed().await.is_ok() {
            transactions += 1;
        }
        transactions
    });
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|_| {
            let (store, next) = (store.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while began.elapsed() < time {
                    let one = Instant::now();
                    let record = record(next.fetch_add(1, Ordering::Relaxed));
                    store.append_audit(record, durability).await.unwrap();
                    latencies.push(u64::try_from(one.elapsed().as_nanos()).unwrap());
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.unwrap());
    }
    let took = began.elapsed().as_secs_f64();
    store.close().await;
    latencies.sort_unstable();
    let total = latencies.len() as f64;
    Appended {
        per_s: total / took,
        batch: total / transactions.await.unwrap() as f64,
        latencies,
    }
}

/// Rows in a second that a loop without anything else writes into the same schema: batches as
/// large as ours were, a commit, and a flush where ours must have one.
fn bare(
    runtime: &tokio::runtime::Runtime,
    path: &Path,
    durability: Durability,
    batch: f64,
    time: Duration,
) -> f64 {
    runtime.block_on(async { Store::open(path).unwrap().close().await });
    let mut db = Connection::open(path).unwrap();
    let synchronous = match durability {
        Durability::Process => "NORMAL",
        Durability::Power => "FULL",
    };
    db.execute_batch(&format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}"
    ))
    .unwrap();
    let (mut rows, mut due, began) = (0_u64, 0.0, Instant::now());
    while began.elapsed() < time {
        due += batch;
        let step = db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .unwrap();
        while (rows as f64) < due {
            let record = record(rows);
            step.prepare_cached(
                "INSERT INTO audit
                   (id, at, stage, intent, principal, session, kind, event, outcome, digest, result)
                 VALUES (?1, ?2, 'intent', NULL, ?3, ?4, ?5, ?6, NULL, ?7, NULL)",
            )
            .unwrap()
            .insert(params![
                record.id.to_string(),
                record.at.as_millis(),
                record.principal,
                record.session.map(|id| id.to_string()),
                record.event.kind(),
                serde_json::to_string(&record.event).unwrap(),
                [7_u8; 32],
            ])
            .unwrap();
            rows += 1;
        }
        step.commit().unwrap();
    }
    rows as f64 / began.elapsed().as_secs_f64()
}

/// The median time of a flush of a file that is written like a log, in seconds.
fn flush(directory: &Path) -> f64 {
    let path = directory.join("flushed");
    let file: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    file.write_all_at(&vec![1; 4 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let mut times: Vec<f64> = (0..200_u64)
        .map(|n| {
            file.write_all_at(&[2; 16384], n * 16384).unwrap();
            let began = Instant::now();
            file.sync_data().unwrap();
            began.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
