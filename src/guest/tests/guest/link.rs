//! What the guest promises of its link: lost, found again, refused, asked how it is, told to stop.

use std::time::{Duration, Instant};

use casemate_link::daemon::{LinkError, LinkListener};

use crate::support::{
    Bench, TOKEN, finish, first_line, lives, run, shell, soon, spec, until, write_token,
};

#[tokio::test]
async fn losing_the_link_kills_its_processes_and_the_guest_dials_again() {
    let (mut bench, link) = Bench::start().await;
    let mut process = link.start(shell("echo up; exec sleep 1000")).await.unwrap();
    first_line(&mut process).await;
    let pid = process.pid;
    link.close();
    soon(link.closed()).await;
    assert!(link.is_closed());
    assert!(matches!(
        soon(process.next()).await,
        Some(Err(LinkError::Gone))
    ));
    assert!(soon(process.next()).await.is_none());
    assert!(matches!(
        link.start(spec(&["true"])).await,
        Err(LinkError::Gone)
    ));
    until("the process is gone", || !lives(pid)).await;
    let link = bench.accept().await;
    assert_eq!(run(&link, spec(&["true"])).await.exit.exit_code, Some(0));
}

#[tokio::test]
async fn a_daemon_that_restarts_is_found_again() {
    let (mut bench, link) = Bench::start().await;
    let Bench { listener, dir, .. } = &mut bench;
    let rebound = {
        link.close();
        // Nobody may listen at the path while it is bound again.
        drop(listener.take());
        soon(LinkListener::bind(dir.path())).await.unwrap()
    };
    bench.listener = Some(rebound);
    let began = Instant::now();
    let link = bench.accept().await;
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(run(&link, spec(&["true"])).await.exit.exit_code, Some(0));
}

#[tokio::test]
async fn the_token_is_read_once_and_the_directory_is_not_looked_up_again() {
    let (mut bench, link) = Bench::start().await;
    let (dir, moved) = (
        bench.dir.path().to_owned(),
        bench.dir.path().with_extension("moved"),
    );
    std::fs::remove_file(dir.join("token")).unwrap();
    // Whoever may rename the directory puts a trap in its place.
    std::fs::rename(&dir, &moved).unwrap();
    std::fs::create_dir(&dir).unwrap();
    write_token(&dir, TOKEN);
    let trap = std::os::unix::net::UnixListener::bind(dir.join("link.sock")).unwrap();
    trap.set_nonblocking(true).unwrap();
    for _ in 0..2 {
        link.close();
        let again = bench.accept().await;
        assert_eq!(run(&again, spec(&["true"])).await.exit.exit_code, Some(0));
        again.close();
    }
    let nobody = trap.accept().unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::rename(&moved, &dir).unwrap();
}

#[tokio::test]
async fn a_wrong_token_is_refused_until_it_is_right() {
    let mut bench = Bench::start_with_token(&"f".repeat(32)).await;
    for _ in 0..3 {
        let rejected = soon(bench.listener.as_mut().unwrap().accept_one(&bench.token)).await;
        assert!(matches!(rejected, Err(LinkError::Rejected { .. })));
    }
    write_token(bench.dir.path(), TOKEN);
    let link = bench.accept().await;
    assert_eq!(run(&link, spec(&["true"])).await.exit.exit_code, Some(0));
    let log = std::fs::read_to_string(bench.dir.path().join("guest.log")).unwrap();
    assert!(!log.contains(TOKEN) && !log.contains("ffff"), "{log}");
}

#[tokio::test]
async fn health_says_what_runs() {
    let (_bench, link) = Bench::start().await;
    let process = link.start(spec(&["cat"])).await.unwrap();
    let health = link.health().await.unwrap();
    assert_eq!(
        (health.processes, health.guest_version.as_str()),
        (1, env!("CARGO_PKG_VERSION"))
    );
    process.input.end().await.unwrap();
    finish(process).await;
}

#[tokio::test]
async fn told_to_stop_the_guest_ends_everything_and_then_itself() {
    let (mut bench, link) = Bench::start().await;
    let mut stubborn = link
        .start(shell("trap '' TERM; echo up; while :; do sleep 1000; done"))
        .await
        .unwrap();
    first_line(&mut stubborn).await;
    let pid = stubborn.pid;
    let guest = nix::unistd::Pid::from_raw(i32::try_from(bench.guest.id()).unwrap());
    nix::sys::signal::kill(guest, nix::sys::signal::SIGTERM).unwrap();
    until("the guest is gone", || {
        bench.guest.try_wait().unwrap().is_some()
    })
    .await;
    assert!(!lives(pid));
}
