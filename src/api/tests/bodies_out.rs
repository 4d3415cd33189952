//! What clients are sent: as fast as they take it, and never whole when it is not.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{BYTES, Door, MUCH, ON_ITS_WAY, PIECE, Pipe, get, let_run, request};
use crate::api::error::Problem;
use crate::api::line::WRITE_DEADLINE;
use crate::api::route::{BoxError, Call, Reply};

#[tokio::test]
async fn much_goes_out_only_as_fast_as_it_is_taken() {
    static MADE: AtomicU64 = AtomicU64::new(0);
    async fn give(_: &Call) -> Result<Reply, Problem> {
        let pieces = (0..MUCH / PIECE.len() as u64).map(|_| {
            MADE.fetch_add(PIECE.len() as u64, Ordering::Relaxed);
            Ok::<_, BoxError>(Bytes::from_static(PIECE))
        });
        let pieces = stream::iter(pieces);
        Ok(Reply::stream(
            StatusCode::OK,
            "application/octet-stream",
            Some(MUCH),
            pieces,
        ))
    }
    let door = Door::open(&get(BYTES, |call| Box::pin(give(call)))).await;
    let answer = door.get().await;
    assert_eq!(
        answer.headers()["content-length"],
        MUCH.to_string().as_str()
    );
    let mut body = answer.into_body();
    let mut seen = 0;
    let mut most = 0;
    while let Some(frame) = body.frame().await {
        if seen == 0 {
            let_run().await;
        }
        seen += frame.unwrap().into_data().unwrap().len() as u64;
        most = most.max(MADE.load(Ordering::Relaxed) - seen);
    }
    assert_eq!(seen, MUCH);
    assert!(most < ON_ITS_WAY, "{most} bytes were held");
    door.close().await;
}

/// Told when the client has a part of an answer.
static HAS_A_PART: Notify = Notify::const_new();

/// Two pieces, and then what the query says.
pub(super) async fn fail(call: &Call) -> Result<Reply, Problem> {
    let how = call.query.clone();
    let length = how.contains("length").then_some(10);
    let pieces = stream::iter(["hel", "", "lo"].map(|text| Ok(Bytes::from(text))));
    let end = stream::once(async move {
        match how.as_str() {
            "panic" => panic!("in the middle"),
            "length=more" => Ok(Bytes::from("there is more")),
            "length=less" => Ok(Bytes::from("l")),
            "length=right" => Ok(Bytes::from("there")),
            "whole" => Ok(Bytes::new()),
            "late" => {
                HAS_A_PART.notified().await;
                Err(BoxError::from("the disk is gone"))
            }
            _ => Err(BoxError::from("the disk is gone")),
        }
    });
    Ok(Reply::stream(
        StatusCode::OK,
        "text/plain",
        length,
        pieces.chain(end),
    ))
}

/// An answer to its end, which may come before its head was sent.
async fn read(answer: hyper::Result<Response<Incoming>>) -> hyper::Result<Bytes> {
    let answer = answer?;
    assert_eq!(answer.status(), 200);
    Ok(answer.into_body().collect().await?.to_bytes())
}

#[tokio::test]
async fn an_answer_that_fails_half_way_does_not_look_complete() {
    let door = Door::open(&get(BYTES, |call| Box::pin(fail(call)))).await;
    let ask = async |how: &str| {
        let request = Request::get(format!("/x?{how}")).header("host", "x");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        door.client().await.send_request(request).await
    };
    let failing = [
        "error",
        "panic",
        "length=error",
        "length=more",
        "length=less",
    ];
    for how in failing {
        assert!(read(ask(how).await).await.is_err(), "{how}");
    }
    assert_eq!(read(ask("whole").await).await.unwrap(), "hello");
    assert_eq!(read(ask("length=right").await).await.unwrap(), "hellothere");
    let mut late = ask("late").await.unwrap().into_body();
    assert!(late.frame().await.unwrap().is_ok());
    HAS_A_PART.notify_one();
    assert!(late.collect().await.is_err());
    // HTTP/1.0 has no other end of such a body than that of the connection.
    for how in ["error", "panic", "whole"] {
        let mut stream = door.connect().await;
        let head = format!("GET /x?{how} HTTP/1.0\r\nhost: x\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let read = stream.read_to_end(&mut Vec::new()).await;
        assert_eq!(read.is_ok(), how == "whole", "{how}: {read:?}");
    }
    // One stream of HTTP/2 ends; the others do not.
    let io = TokioIo::new(door.connect().await);
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    for how in failing.into_iter().chain(["whole"]) {
        let request = Request::get(format!("http://x/x?{how}"));
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let read = read(client.send_request(request).await).await;
        assert_eq!(read.is_ok(), how == "whole", "{how}: {read:?}");
    }
    drop(client);
    let _ = connection.await;
    door.close().await;
}

/// Pieces without end, of which somebody knows whether they are still to be had.
async fn endless(_: &Call) -> Result<Reply, Problem> {
    let pieces = stream::repeat_with(|| Ok::<_, BoxError>(Bytes::from_static(PIECE)));
    Ok(Reply::stream(
        StatusCode::OK,
        "application/octet-stream",
        None,
        pieces,
    ))
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_cut_off() {
    let mut pipe = Pipe::open(&get(BYTES, |call| Box::pin(endless(call))));
    let began = Instant::now();
    pipe.far
        .write_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    pipe.far.read_exact(&mut [0; 100]).await.unwrap();
    pipe.talk.await.unwrap();
    let waited = began.elapsed();
    assert!(
        waited >= WRITE_DEADLINE && waited < WRITE_DEADLINE * 2,
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_http_2_that_nobody_takes_is_cut_off_though_the_connection_lives() {
    let pipe = Pipe::open(&get(BYTES, |call| Box::pin(endless(call))));
    let began = Instant::now();
    let (mut client, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .handshake(TokioIo::new(pipe.far))
        .await
        .unwrap();
    // It answers pings all the time.
    let connection = tokio::spawn(connection);
    let answer = client
        .send_request(request(Method::GET, &[]))
        .await
        .unwrap();
    pipe.talk.await.unwrap();
    let waited = began.elapsed();
    assert!(
        waited >= WRITE_DEADLINE && waited < WRITE_DEADLINE * 2,
        "{waited:?}"
    );
    assert!(answer.into_body().collect().await.is_err());
    let _ = connection.await;
}
