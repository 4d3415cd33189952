//! The way out: what programs say at a port comes to the daemon's socket as it is, and back.

use std::net::Ipv4Addr;

use casemate_link::limits::MAX_EGRESS_CONNECTIONS;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::time::sleep;

use crate::support::{Bench, PATIENCE, TOKEN, soon};

/// A guest whose programs find the way out at a port, and the daemon's end of that.
async fn start() -> (Bench, u16, UnixListener) {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mut bench = Bench::start_told(TOKEN, &["--egress-port", &port.to_string()]).await;
    let daemon = UnixListener::bind(bench.dir.path().join("egress.sock")).unwrap();
    drop(bench.accept().await);
    (bench, port, daemon)
}

async fn dial(port: u16) -> TcpStream {
    soon(async {
        loop {
            if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                return stream;
            }
            sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test]
async fn bytes_are_handed_on_both_ways_and_each_end_by_itself() {
    let (_bench, port, daemon) = start().await;
    let mut program = dial(port).await;
    let (mut theirs, _) = soon(daemon.accept()).await.unwrap();
    program
        .write_all(b"\x05\0what it means is not the guest's")
        .await
        .unwrap();
    program.shutdown().await.unwrap();
    let mut heard = Vec::new();
    soon(theirs.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"\x05\0what it means is not the guest's");
    theirs.write_all(b"answer").await.unwrap();
    drop(theirs);
    let mut heard = Vec::new();
    soon(program.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"answer");
}

#[tokio::test]
async fn without_the_daemon_a_connection_is_closed_and_with_the_next_one_it_goes_on() {
    let (bench, port, daemon) = start().await;
    let path = bench.dir.path().join("egress.sock");
    drop(daemon);
    std::fs::remove_file(&path).unwrap();
    let mut program = dial(port).await;
    assert_eq!(soon(program.read(&mut [0; 8])).await.unwrap_or(0), 0);
    let daemon = UnixListener::bind(&path).unwrap();
    let _program = dial(port).await;
    soon(daemon.accept()).await.unwrap();
}

#[tokio::test]
async fn so_many_at_one_time_and_the_next_one_waits() {
    let (_bench, port, daemon) = start().await;
    let mut programs = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..MAX_EGRESS_CONNECTIONS {
        programs.push(dial(port).await);
        theirs.push(soon(daemon.accept()).await.unwrap().0);
    }
    let _next = dial(port).await;
    let mut waiting = std::pin::pin!(daemon.accept());
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut waiting);
    assert!(early.await.is_err(), "one too many came through");
    drop(programs.pop());
    drop(theirs.pop());
    let came = tokio::time::timeout(PATIENCE, waiting);
    came.await.expect("the next one comes").unwrap();
}
