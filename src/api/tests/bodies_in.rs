//! What clients send: as it comes, bounded in size and time, and missed when it is cut short.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, StatusCode};
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::{Door, MUCH, ON_ITS_WAY, PATIENCE, PIECE, Pipe, put};
use crate::api::error::Problem;
use crate::api::intake::{BodyError, IDLE_DEADLINE};
use crate::api::route::{BoxError, Call, Reply, Request as Taken};

#[tokio::test]
async fn much_comes_in_and_little_of_it_is_held() {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    async fn take(call: &Call) -> Result<Reply, Problem> {
        let mut reader = call.reader()?;
        assert_eq!(reader.left_bytes(), None);
        while let Some(piece) = reader.next().await {
            let length = piece?.len() as u64;
            SEEN.fetch_add(length, Ordering::Relaxed);
        }
        assert!(call.reader().is_err(), "it is there once");
        Ok(Reply::empty(StatusCode::NO_CONTENT))
    }
    let door = Door::open(&put(|call| Box::pin(take(call)))).await;
    let most = Arc::new(AtomicU64::new(0));
    let pieces = {
        let most = Arc::clone(&most);
        (0..MUCH / PIECE.len() as u64).map(move |n| {
            let held = n * PIECE.len() as u64 - SEEN.load(Ordering::Relaxed);
            most.fetch_max(held, Ordering::Relaxed);
            Ok::<_, BoxError>(Frame::data(Bytes::from_static(PIECE)))
        })
    };
    let mut client = door.client().await;
    let body = StreamBody::new(stream::iter(pieces));
    let request = Request::put("/x").header("host", "x").body(body).unwrap();
    let answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(SEEN.load(Ordering::Relaxed), MUCH);
    let most = most.load(Ordering::Relaxed);
    assert!(most < ON_ITS_WAY, "{most} bytes were held");
    drop(client);
    door.close().await;
}

#[tokio::test]
async fn a_handler_sees_that_its_client_went_away() {
    static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
    static TOLD_ONE: Notify = Notify::const_new();
    async fn take(call: &Call) -> Result<Reply, Problem> {
        let mut reader = call.reader()?;
        let mut seen = 0;
        let error = loop {
            match reader.next().await {
                Some(Ok(piece)) => seen += piece.len(),
                Some(Err(error)) => break error,
                None => panic!("it looks whole"),
            }
        };
        assert!(reader.next().await.is_none());
        let kind = match error {
            BodyError::CutShort(_) => "cut short",
            BodyError::TooSlow => "too slow",
            BodyError::TooLarge { .. } => "too large",
        };
        TOLD.lock().unwrap().push(format!("{kind} after {seen}"));
        TOLD_ONE.notify_one();
        Err(error.into())
    }
    let door = Door::open(&put(|call| Box::pin(take(call)))).await;
    for head in [
        "PUT /x HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhello",
        "PUT /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let mut stream = door.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        drop(stream);
        timeout(PATIENCE, TOLD_ONE.notified()).await.unwrap();
    }
    assert_eq!(
        *TOLD.lock().unwrap(),
        ["cut short after 5", "cut short after 5"]
    );
    door.close().await;
}

pub(super) async fn swallow(call: &Call) -> Result<Reply, Problem> {
    let mut reader = call.reader()?;
    while let Some(piece) = reader.next().await {
        piece?;
    }
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_nothing_is_not_waited_for() {
    let mut pipe = Pipe::open(&put(|call| Box::pin(swallow(call))));
    let began = Instant::now();
    let head = b"PUT /x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n";
    pipe.far.write_all(head).await.unwrap();
    // Slow is allowed; it is silence that is not.
    for _ in 0..3 {
        tokio::time::sleep(IDLE_DEADLINE * 9 / 10).await;
        pipe.far.write_all(b"x").await.unwrap();
    }
    let mut answer = String::new();
    pipe.far.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("body_too_slow"), "{answer}");
    let waited = began.elapsed();
    assert!(waited >= IDLE_DEADLINE * 37 / 10, "{waited:?}");
    assert!(waited < IDLE_DEADLINE * 38 / 10, "{waited:?}");
    drop(pipe.far);
    pipe.talk.await.unwrap();
}

#[tokio::test]
async fn a_bound_of_the_route_is_kept_with_and_without_a_promise() {
    let mut routes = put(|call| Box::pin(swallow(call)));
    routes[0].request = Taken::Bytes {
        content_type: "application/x-tar",
        max_bytes: Some(10),
    };
    let door = Door::open(&routes).await;
    for (bytes, wanted) in [(10, 204), (11, 413)] {
        let mut client = door.client().await;
        let request = Request::put("/x").header("host", "x");
        let body = Full::new(Bytes::from(vec![0; bytes]));
        let answer = client.send_request(request.body(body).unwrap()).await;
        assert_eq!(answer.unwrap().status(), wanted, "{bytes} promised");
        let mut client = door.client().await;
        let request = Request::put("/x").header("host", "x");
        let pieces = vec![Ok::<_, BoxError>(Frame::data(Bytes::from(vec![0; bytes])))];
        let body = StreamBody::new(stream::iter(pieces));
        let answer = client.send_request(request.body(body).unwrap()).await;
        assert_eq!(answer.unwrap().status(), wanted, "{bytes} in a stream");
    }
    door.close().await;
}

#[tokio::test]
async fn what_a_handler_leaves_unread_harms_nobody() {
    async fn ignore(call: &Call) -> Result<Reply, Problem> {
        let mut reader = call.reader()?;
        if call.query == "first" {
            reader.next().await.unwrap()?;
        }
        Ok(Reply::empty(StatusCode::CONFLICT))
    }
    let door = Door::open(&put(|call| Box::pin(ignore(call)))).await;
    // A body that has arrived already: the connection goes on, or ends as it should.
    let mut stream = door.connect().await;
    let once = b"PUT /x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello";
    stream.write_all(&[&once[..], once].concat()).await.unwrap();
    let mut answers = Vec::new();
    let mut read = [0; 4096];
    while String::from_utf8_lossy(&answers)
        .matches("HTTP/1.1 409")
        .count()
        < 2
    {
        let length = timeout(PATIENCE, stream.read(&mut read)).await.unwrap();
        match length.unwrap() {
            0 => break,
            length => answers.extend_from_slice(&read[..length]),
        }
    }
    let answers = String::from_utf8(answers).unwrap();
    assert_eq!(
        answers.matches("HTTP/1.1 ").count(),
        answers.matches("HTTP/1.1 409").count()
    );
    assert!(answers.starts_with("HTTP/1.1 409"), "{answers}");
    drop(stream);
    // A client that sends all before it reads still gets its answer, and is not held.
    for path in ["/x", "/x?first", "/nothing"] {
        let mut stream = door.connect().await;
        let much = 8 << 20;
        let head = format!("PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {much}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..much / PIECE.len() {
            stream.write_all(PIECE).await.unwrap();
        }
        let mut answer = String::new();
        let read = timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
        read.expect("the connection is held").unwrap();
        assert!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
    }
    door.close().await;
}
