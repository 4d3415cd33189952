//! How fast the record is read: filtered pages of a large table beside those of a small one, and how fast it is verified.
//! For `scripts/bench reading`.
//!
//!     reading DIRECTORY EVENTS ROUNDS
//!
//! Prints a line of JSON for each way of asking, and one for verifying.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a measurement that fails has no figures, and prints those that it has"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use casemate::base::clock::Timestamp;
use casemate::base::id::{EventId, SessionId};
use casemate::model::event::{AuditEvent, AuditRecord, CommandLine, Stage};
use casemate::model::query::AuditFilter;
use casemate::model::record::SignedCheckpoint;
use casemate::model::verify::{Signed, Verifier};
use casemate::store::{Durability, Store};

/// Records of the small table.
const FEW: u64 = 50_000;
/// Sessions that records are of, in turn.
const SESSIONS: u64 = 500;
/// Who asks, in turn.
const PRINCIPALS: u64 = 50;
/// Records in a millisecond, so that both tables are of the same time.
const SPAN_MS: u64 = 30 * 24 * 3600 * 1000;
const BEGIN_MS: i64 = 1_700_000_000_000;
/// Writers that fill a table.
const WRITERS: u64 = 128;
const PAGE: u32 = 50;

fn main() {
    // cargo adds one of its own.
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'));
    let directory = PathBuf::from(arguments.next().unwrap());
    let many: u64 = arguments.next().unwrap().parse().unwrap();
    let rounds: u64 = arguments.next().unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let small = filled(&directory.join("small.db"), FEW).await;
        let large = filled(&directory.join("large.db"), many).await;
        for (asked, filter) in questions() {
            // In turn, each with another session, principal and place.
            let (mut of_small, mut of_large) = (Vec::new(), Vec::new());
            for round in 0..rounds {
                of_small.push(page(&small, filter(round, FEW)).await);
                of_large.push(page(&large, filter(round, many)).await);
            }
            let (of_small, of_large) = (median(of_small), median(of_large));
            println!(
                "{}",
                serde_json::json!({
                    "asked": asked,
                    "events": many,
                    "small_ms": of_small * 1e3,
                    "large_ms": of_large * 1e3,
                    "ratio": of_large / of_small,
                })
            );
        }
        let began = Instant::now();
        let verified = verify(&large, many).await;
        println!(
            "{}",
            serde_json::json!({"verified": verified, "per_s": verified as f64 / began.elapsed().as_secs_f64()})
        );
        small.close().await;
        large.close().await;
    });
}

type Question = fn(u64, u64) -> AuditFilter;

fn questions() -> [(&'static str, Question); 6] {
    [
        ("of a session", |round, _| AuditFilter {
            session: Some(session(round)),
            ..AuditFilter::default()
        }),
        ("of a session, from a third on", |round, count| {
            AuditFilter {
                session: Some(session(round)),
                after: i64::try_from(count / 3).unwrap(),
                ..AuditFilter::default()
            }
        }),
        ("of a principal", |round, _| AuditFilter {
            principal: Some(principal(round)),
            ..AuditFilter::default()
        }),
        ("of a kind", |round, count| AuditFilter {
            kinds: vec!["session.delete".to_owned()],
            after: i64::try_from(round * 7 % count).unwrap(),
            ..AuditFilter::default()
        }),
        ("of an hour", |round, _| {
            let from = BEGIN_MS + i64::try_from(round % 700).unwrap() * 3_600_000;
            AuditFilter {
                from: Some(Timestamp::from_millis(from)),
                to: Some(Timestamp::from_millis(from + 3_600_000)),
                ..AuditFilter::default()
            }
        }),
        ("anything, from the middle", |round, count| AuditFilter {
            after: i64::try_from(count / 2 + round).unwrap(),
            ..AuditFilter::default()
        }),
    ]
}

/// Seconds that a page takes, which is a whole one.
async fn page(store: &Store, filter: AuditFilter) -> f64 {
    let filter = AuditFilter {
        limit: PAGE,
        ..filter
    };
    let began = Instant::now();
    let lines = store.audit_lines(filter).await.unwrap();
    let took = began.elapsed().as_secs_f64();
    assert_eq!(lines.len(), PAGE as usize);
    took
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

fn session(n: u64) -> SessionId {
    let mut bytes = [1; 16];
    bytes[8..].copy_from_slice(&(n % SESSIONS).to_be_bytes());
    SessionId::from_bytes(bytes)
}

fn principal(n: u64) -> String {
    format!("key_{:026}", n % PRINCIPALS)
}

/// A table of so many records.
async fn filled(path: &Path, count: u64) -> Store {
    let store = Store::open(path).unwrap();
    // Whoever is ready takes the next time, as in the daemon: what stands out of order is what was under way at once.
    let next = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (store, next) = (store.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        return;
                    }
                    let appended = store.append_audit(record(n, count), Durability::Process);
                    appended.await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    store
}

fn record(n: u64, count: u64) -> AuditRecord {
    let at = Timestamp::from_millis(BEGIN_MS + i64::try_from(n * SPAN_MS / count).unwrap());
    // Sessions, principals and kinds are not in step.
    let event = if n / SESSIONS % 10 == 3 {
        AuditEvent::SessionDelete {}
    } else {
        AuditEvent::SessionRun {
            program: Some("/usr/bin/python3".to_owned()),
            arguments: 2,
            line: CommandLine {
                argv_sha256: Some("0".repeat(64)),
                ..CommandLine::default()
            },
            user: "user".to_owned(),
            timeout_s: 60,
        }
    };
    AuditRecord {
        id: EventId::generate(at).unwrap(),
        at,
        stage: Stage::Intent,
        intent: None,
        principal: principal(n / 7),
        session: Some(session(n)),
        event,
        outcome: None,
    }
}

/// How many records were read and are what was written.
async fn verify(store: &Store, count: u64) -> u64 {
    let check = |_: &SignedCheckpoint| Signed::No;
    let mut verifier = Verifier::new(&check);
    let mut after = 0;
    loop {
        let filter = AuditFilter {
            after,
            limit: 1000,
            ..AuditFilter::default()
        };
        let lines = store.audit_lines(filter).await.unwrap();
        let Some((last, _)) = lines.last() else {
            break;
        };
        after = *last;
        for (_, line) in &lines {
            verifier.push(line).unwrap();
        }
    }
    let records = verifier.finish().unwrap().records;
    assert_eq!(records, count);
    records
}
