//! The record of who reaches ports: written before anything goes there, once for many, and not without it.

use std::path::Path;

use casemate::model::endpoint::Via;
use casemate::model::event::{AuditEvent, Outcome, Stage};

use crate::{Bench, HELLO, Program};

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_of_one_principal_to_one_port_are_one_access() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    let other = format!("x-api-key: {}\r\n", bench.other_key("default").await);
    let auth = bench.auth();
    for auth in [&auth, &auth, &other, &auth] {
        let said = bench.get(&session, program.port, auth).await;
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    }
    let (id, store, port) = (bench.id, bench.store.clone(), program.port);
    let _directory = bench.close().await;
    let filter = casemate::model::query::AuditFilter {
        limit: 100,
        kinds: vec!["endpoint.access".to_owned()],
        ..casemate::model::query::AuditFilter::default()
    };
    let records = store.audit(filter).await.unwrap();
    let of = |stage: Stage| {
        records
            .iter()
            .filter(move |(_, record)| record.stage == stage)
    };
    assert_eq!(
        (of(Stage::Intent).count(), of(Stage::Outcome).count()),
        (2, 2),
        "{records:?}"
    );
    for (_, record) in of(Stage::Intent) {
        assert_eq!(record.session, Some(session.id));
        let via = Via::Credential;
        assert_eq!(record.event, AuditEvent::EndpointAccess { port, via });
    }
    let own = of(Stage::Outcome)
        .find(|(_, record)| record.principal == id.to_string())
        .unwrap();
    let Some(Outcome::Ok {
        detail: Some(detail),
    }) = &own.1.outcome
    else {
        panic!("{own:?}");
    };
    assert!(
        detail.starts_with("3 requests, 0 bytes in, 15 bytes out, "),
        "{detail}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recorded_reaches_no_program() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    // Known before, so that only the record is in the way.
    let lock = lock_out(bench.directory.path());
    let said = bench.get(&session, program.port, &bench.auth()).await;
    assert!(
        said.starts_with("HTTP/1.1 503") && said.contains("audit_failed"),
        "{said}"
    );
    assert_eq!(program.heard(), Vec::<String>::new());
    lock.execute_batch("ROLLBACK").unwrap();
    drop(lock);
    let said = bench.get(&session, program.port, &bench.auth()).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_no_access() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let others = bench.session_of("red").await;
    let said = bench.get(&others, program.port, &bench.auth()).await;
    assert!(said.starts_with("HTTP/1.1 502"), "{said}");
    assert_eq!(bench.records("endpoint.access").await.len(), 0);
    bench.close().await;
}

/// Holds the database's only write lock, as a disk that does not take a byte would.
fn lock_out(directory: &Path) -> rusqlite::Connection {
    let stranger = rusqlite::Connection::open(directory.join("state.db")).unwrap();
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    stranger
}
