//! The directory through which a guest dials, and the token in it.

use std::path::PathBuf;

use casemate::model::session::{Phase, Session};
use casemate::runtime::fake::{FakeCall, FakeFailure};
use casemate::session::manager::is_settled;
use casemate_link::handshake::KernelReport;

use crate::{Bench, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn with_the_first_link_the_token_leaves_the_sandbox_and_stays_with_the_daemon() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let mut bench = Bench::new();
    let session = bench.ready().await;
    let (directory, token) = bench.door_of(&session);
    let mut names: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["egress.sock", "link.sock"]);
    let mode = |path: &PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&token)), (0o750, 0o600));
    // Whoever may dial the link may dial the way out, and nobody else.
    let sockets = ["egress.sock", "link.sock"].map(|name| mode(&directory.join(name)));
    assert_eq!(sockets, [0o660, 0o660]);
    let (inode, kept) = (
        std::fs::metadata(&directory).unwrap().ino(),
        std::fs::read(&token).unwrap(),
    );

    // Adopted, it is the same directory and the same token: the guest knows no other.
    bench.sessions.leave_all(PATIENCE).await;
    bench.next_daemon();
    bench.sessions.reconcile().await.unwrap();
    let handle = bench.sessions.handle(session.id).unwrap();
    handle.link(PATIENCE).await.unwrap();
    assert_eq!(std::fs::metadata(&directory).unwrap().ino(), inode);
    assert_eq!(std::fs::read(&token).unwrap(), kept);
    assert!(!directory.join("token").exists());
    bench.sessions.end_all(PATIENCE).await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_a_crash_left_in_the_sandbox_is_taken_out_before_anything_can_run() {
    // The daemon was killed after the guest had linked and before it removed the file, or wrote
    // down that the session is ready.
    for phase in [Phase::Starting, Phase::Ready] {
        let mut bench = Bench::new();
        let session = bench.ready().await;
        bench.sessions.leave_all(PATIENCE).await;
        let (directory, token) = bench.door_of(&session);
        std::fs::copy(&token, directory.join("token")).unwrap();
        let mut interrupted = Session::clone(&session);
        interrupted.status.phase = phase;
        bench
            .store
            .update_session(interrupted, Vec::new())
            .await
            .unwrap();
        bench.next_daemon();
        bench.sessions.reconcile().await.unwrap();
        let settled = bench.until(&session, is_settled).await;
        assert_eq!(settled.status.phase, Phase::Ready, "{settled:?}");
        let handle = bench.sessions.handle(session.id).unwrap();
        handle.link(PATIENCE).await.unwrap();
        assert!(!directory.join("token").exists(), "{phase}");
        assert_eq!(bench.runtime.made(), 1, "it was adopted");
        bench.sessions.end_all(PATIENCE).await;
        bench.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_a_crash_left_half_built_is_built_again() {
    // As far as a killed daemon may have come, nothing of it in a sandbox yet.
    let steps: [fn(&PathBuf, &PathBuf); 4] = [
        |_, token| std::fs::write(token, "").unwrap(),
        |_, token| std::fs::write(token, "t".repeat(64)).unwrap(),
        |directory, token| {
            std::fs::write(token, "t".repeat(64)).unwrap();
            std::fs::create_dir(directory).unwrap();
        },
        |directory, token| {
            std::fs::write(token, "t".repeat(64)).unwrap();
            std::fs::create_dir(directory).unwrap();
            std::fs::write(directory.join("token"), "").unwrap();
        },
    ];
    for (n, build) in steps.into_iter().enumerate() {
        let mut bench = Bench::new();
        bench.runtime.fail(FakeCall::Create, 1, FakeFailure::Hangs);
        let session = bench.create().await;
        bench.asked(FakeCall::Create).await;
        bench.sessions.leave_all(PATIENCE).await;
        let (directory, token) = bench.door_of(&session);
        std::fs::remove_dir_all(&directory).unwrap();
        std::fs::remove_file(&token).unwrap();
        build(&directory, &token);
        bench.next_daemon();
        bench.sessions.reconcile().await.unwrap();
        let settled = bench.until(&session, is_settled).await;
        assert_eq!(settled.status.phase, Phase::Ready, "{n}: {settled:?}");
        bench.sessions.end_all(PATIENCE).await;
        bench.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dialling_without_the_token_neither_opens_a_link_nor_ends_one() {
    let bench = Bench::new();
    let session = bench.ready().await;
    let handle = bench.sessions.handle(session.id).unwrap();
    let link = handle.link(PATIENCE).await.unwrap();
    let (directory, _) = bench.door_of(&session);
    // More than the socket's queue holds, so that they are heard and not merely kept waiting.
    for n in 0..40 {
        let mut stream = tokio::net::UnixStream::connect(directory.join("link.sock"))
            .await
            .unwrap();
        let hello = casemate_link::handshake::Hello {
            protocol: casemate_link::handshake::PROTOCOL,
            token: casemate_link::LinkToken::parse(&format!("{n:064x}")).unwrap(),
            guest_version: String::new(),
            kernel: KernelReport::default(),
            capabilities: Vec::new(),
            channel: None,
        };
        let offered = casemate_link::handshake::offer(&mut stream, &hello);
        let refused = tokio::time::timeout(PATIENCE, offered).await.unwrap();
        assert!(refused.is_err(), "{refused:?}");
        assert!(!link.is_closed());
    }
    assert_eq!(handle.snapshot().status, session.status);
    bench.sessions.end_all(PATIENCE).await;
    bench.nothing_is_left();
}
