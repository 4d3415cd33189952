//! The head of a request: how much it may be, and `HEAD`, which is what `GET` says without what it gives.

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;

use super::{BYTES, Door, get, whole};
use crate::api::error::Problem;
use crate::api::route::{BoxError, Call, Reply};
use crate::api::server::MAX_HEAD_BYTES;

#[tokio::test]
async fn head_is_get_without_the_body() {
    async fn give(call: &Call) -> Result<Reply, Problem> {
        let pieces = stream::iter([Ok::<_, BoxError>(Bytes::from("hello"))]);
        match call.query.as_str() {
            "whole" => Ok(Reply::bytes(StatusCode::OK, "text/plain", "hello".into())),
            "promised" => Ok(Reply::stream(StatusCode::OK, "text/plain", Some(5), pieces)),
            "unknown" => Ok(Reply::stream(StatusCode::OK, "text/plain", None, pieces)),
            "is_head" => Ok(Reply::bytes(
                StatusCode::OK,
                "text/plain",
                call.is_head.to_string().into(),
            )),
            _ => Err(Problem::bad_request("nothing")),
        }
    }
    let door = Door::open(&get(BYTES, |call| Box::pin(give(call)))).await;
    let mut old = door.client::<Empty<Bytes>>().await;
    let io = TokioIo::new(door.connect().await);
    let (mut new, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    for (how, length) in [
        ("whole", Some("5")),
        ("promised", Some("5")),
        ("unknown", None),
        ("is_head", Some("4")),
        ("problem", Some("")),
    ] {
        let ask = |method| {
            let request = Request::builder().method(method).header("host", "x");
            let request = request.uri(format!("http://x/x?{how}"));
            request.body(Empty::<Bytes>::new()).unwrap()
        };
        let got = old.send_request(ask(Method::GET)).await.unwrap();
        let (status, kind) = (got.status(), got.headers()["content-type"].clone());
        whole(got).await;
        for answer in [
            old.send_request(ask(Method::HEAD)).await.unwrap(),
            new.send_request(ask(Method::HEAD)).await.unwrap(),
        ] {
            assert_eq!(answer.status(), status, "{how}");
            assert_eq!(answer.headers()["content-type"], kind);
            assert!(answer.headers().contains_key("x-request-id"));
            let told = answer.headers().get("content-length");
            match length {
                Some("") => assert_ne!(told.unwrap(), "0"),
                _ => assert_eq!(told.map(|told| told.to_str().unwrap()), length, "{how}"),
            }
            assert_eq!(whole(answer).await, "", "{how}");
        }
    }
    let answer = door.ask(Method::POST, &[]).await;
    assert_eq!(answer.headers()["allow"], "GET, HEAD");
    drop((old, new));
    let _ = connection.await;
    door.close().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_and_says_so() {
    async fn give(_: &Call) -> Result<Reply, Problem> {
        Ok(Reply::bytes(StatusCode::OK, "text/plain", "hello".into()))
    }
    let door = Door::open(&get(BYTES, |call| Box::pin(give(call)))).await;
    let large = "x".repeat(MAX_HEAD_BYTES - 1000);
    let answer = door.ask(Method::GET, &[("x-large", &large)]).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let larger = "x".repeat(MAX_HEAD_BYTES);
    let answer = door.ask(Method::GET, &[("x-large", &larger)]).await;
    assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let problem: Value = serde_json::from_slice(&whole(answer).await).unwrap();
    assert_eq!(problem["code"], "head_too_large");
    door.close().await;
}
