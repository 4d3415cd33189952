//! Bounds and ends.

use super::tunnels::{answered, connected};
use super::*;

#[tokio::test]
async fn so_many_at_once_so_often_and_so_much() {
    let port = echo().await;
    let tcp = rules(port, r#""tcp""#);
    let target = format!("server.test:{port}");
    let few = Settings {
        connections: 2,
        ..Settings::default()
    };
    let bench = Bench::with(&tcp, few, false);
    let held = (
        connected(&bench, &target).await,
        connected(&bench, &target).await,
    );
    assert_eq!(
        bench.say("CONNECT x:1 HTTP/1.1\r\n\r\n").await,
        "",
        "one too many was let through"
    );
    bench.told("denied ? by egress-bounds").await;
    drop(held);
    bench
        .told("tcp://server.test ok sent none received none")
        .await;

    let seldom = Settings {
        requests_per_s: 1,
        burst: 2,
        ..Settings::default()
    };
    let bench = Bench::with("{}", seldom, false);
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let answer = bench
            .say("GET http://a.org/ HTTP/1.1\r\nHost: a.org\r\n\r\n")
            .await;
        statuses.push(answer[9..12].to_owned());
    }
    assert_eq!(statuses, ["403", "403", "429"]);
    bench.told("denied a.org by egress-bounds").await;

    let little = Settings {
        max_bytes: 1000,
        ..Settings::default()
    };
    let bench = Bench::with(&tcp, little, false);
    let mut tunnel = connected(&bench, &target).await;
    // What comes back of the first counts as well, so that nothing more goes out.
    assert_eq!(answered(&mut tunnel, &[b'x'; 600]).await, [b'x'; 600]);
    let _ = tunnel.write_all(b"x").await;
    assert_eq!(all(&mut tunnel).await, "");
    bench
        .told("tcp://server.test too_much sent some received some")
        .await;
    let answer = bench
        .say(format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
}

#[tokio::test]
async fn nobody_is_waited_for_for_ever() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let hasty = Settings {
        idle_timeout: Duration::from_millis(200),
        ..Settings::default()
    };
    let bench = Bench::with(&rules(port, r#""http","tcp""#), hasty, false);
    // An upstream that never answers, and a tunnel in which nobody says anything.
    let answer = bench
        .say(format!(
            "GET http://server.test:{port}/ HTTP/1.1\r\nHost: server.test:{port}\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    bench
        .told("http://server.test idle sent some received none")
        .await;
    let mut tunnel = connected(&bench, &format!("server.test:{port}")).await;
    assert_eq!(all(&mut tunnel).await, "");
    bench
        .told("tcp://server.test idle sent none received none")
        .await;
}

#[tokio::test]
async fn a_gate_that_is_shut_cuts_everything_and_records_it() {
    let port = echo().await;
    let bench = Bench::new(&rules(port, r#""tcp""#));
    let mut tunnel = connected(&bench, &format!("server.test:{port}")).await;
    answered(&mut tunnel, b"hi").await;
    bench.told("tcp://server.test by servers").await;
    let Bench {
        gate,
        mut told,
        socket,
        _directory,
        ..
    } = bench;
    timeout(PATIENCE, gate.close())
        .await
        .expect("it does not close");
    assert_eq!(all(&mut tunnel).await, "");
    let cut = "tcp://server.test cut sent some received some".to_owned();
    assert!(
        told.borrow_and_update().contains(&cut),
        "{:?}",
        told.borrow()
    );
    assert!(UnixStream::connect(&socket).await.is_err());
}

#[tokio::test]
async fn bytes_are_not_gathered_for_whoever_does_not_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let bench = Bench::new(&rules(port, r#""tcp""#));
    let tunnel = connected(&bench, &format!("server.test:{port}")).await;
    let (server, _) = listener.accept().await.unwrap();
    let written = pour(server).await;
    assert!(written < 64 << 20, "{written} bytes went into nowhere");
    drop(tunnel);
}

/// Writes until nobody takes any more for a while; how much was taken.
async fn pour(mut server: TcpStream) -> usize {
    let piece = vec![0; 256 << 10];
    let mut written = 0;
    while let Ok(Ok(count)) = timeout(Duration::from_secs(1), server.write(&piece)).await {
        written += count;
        if written > 64 << 20 {
            break;
        }
    }
    written
}
