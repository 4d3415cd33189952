//! What passes: sockets, HTTP/2 in and out, gRPC with its trailers, streams both ways, answers that are not whole.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::{AbortOnDrop, Bench, HELLO, Program, host};

/// A WebSocket that says again what it hears.
async fn echo() -> (u16, AbortOnDrop) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let Ok(socket) = tokio_tungstenite::accept_async(stream).await else {
                    return;
                };
                let (mut sink, mut source) = socket.split();
                while let Some(Ok(message)) = source.next().await {
                    if message.is_close() || sink.send(message).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (port, AbortOnDrop(task))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_passes_counts_as_use_and_ends_with_its_key() {
    let (port, _task) = echo().await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    let stream = TcpStream::connect(&bench.address).await.unwrap();
    let mut request = format!("ws://{}/", host(&session, port))
        .into_client_request()
        .unwrap();
    request
        .headers_mut()
        .insert("x-api-key", bench.key.parse().unwrap());
    let (mut socket, answer) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    assert_eq!(answer.status(), 101);
    for size in [0, 1, 70_000] {
        let message = Message::Binary(vec![7; size].into());
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    bench
        .app
        .revoke_key(&crate::OPERATOR, bench.id)
        .await
        .unwrap();
    let next = tokio::time::timeout(crate::PATIENCE, socket.next())
        .await
        .expect("it goes on");
    assert!(
        !matches!(next, Some(Ok(Message::Binary(_) | Message::Text(_)))),
        "{next:?}"
    );
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_looks_like_a_websocket_and_is_none_is_an_ordinary_request() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    for headers in [
        "upgrade: websocket\r\n",
        "connection: upgrade\r\n",
        "connection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 1\r\n\r\nx",
    ] {
        let headers = format!("{}{headers}", bench.auth());
        let said = bench.get(&session, program.port, &headers).await;
        assert!(said.starts_with("HTTP/1.1 200"), "{headers}: {said}");
        let heard = program.heard().pop().unwrap();
        assert!(
            !heard.contains("upgrade") && !heard.contains("http2-settings"),
            "{heard}"
        );
    }
    // One that the program does not want.
    let headers = format!(
        "{}connection: upgrade\r\nupgrade: websocket\r\n",
        bench.auth()
    );
    let said = bench.get(&session, program.port, &headers).await;
    assert!(
        said.starts_with("HTTP/1.1 200") && said.ends_with("hello"),
        "{said}"
    );
    // One that it wants unasked.
    let switching = Program::says(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    )
    .await;
    let said = bench.get(&session, switching.port, &bench.auth()).await;
    assert!(
        said.starts_with("HTTP/1.1 502") && said.contains("bad_answer"),
        "{said}"
    );
    bench.close().await;
}

/// A program that speaks HTTP/2 only, says again what it is sent, and ends with trailers.
async fn grpc() -> (u16, AbortOnDrop) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let service =
                    hyper::service::service_fn(|request: http::Request<Incoming>| async {
                        let (head, body) = request.into_parts();
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        trailers.insert("x-casemate-session", "forged".parse().unwrap());
                        let session = head.headers["x-casemate-session"].clone();
                        let te = head.headers["te"].clone();
                        let end = futures_util::stream::iter([Ok::<Frame<Bytes>, Infallible>(
                            Frame::trailers(trailers),
                        )]);
                        let data = body
                            .into_data_stream()
                            .map(|data| Ok(Frame::data(data.unwrap())));
                        let mut answer = http::Response::new(StreamBody::new(data.chain(end)));
                        answer.headers_mut().insert("x-session", session);
                        answer.headers_mut().insert("x-te", te);
                        Ok::<_, Infallible>(answer)
                    });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (port, AbortOnDrop(task))
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_streams_both_ways_at_once_and_ends_with_its_trailers() {
    let (port, _task) = grpc().await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    let io = TokioIo::new(TcpStream::connect(&bench.address).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..2 {
        let (pieces, body) = tokio::sync::mpsc::channel::<Bytes>(1);
        let body = futures_util::stream::unfold(body, async |mut body| {
            Some((Ok::<_, Infallible>(Frame::data(body.recv().await?)), body))
        });
        let request = http::Request::post(format!("http://{}/a.B/C", host(&session, port)))
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .header("x-api-key", &bench.key)
            .body(StreamBody::new(Box::pin(body)))
            .unwrap();
        // Something of it has to come before there is an answer.
        let mut answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-session"], session.id.to_string());
        assert_eq!(answer.headers()["x-te"], "trailers");
        for piece in ["one", "two"] {
            pieces
                .send(Bytes::from_static(piece.as_bytes()))
                .await
                .unwrap();
            let frame = answer.body_mut().frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), piece);
        }
        drop(pieces);
        let trailers = answer
            .body_mut()
            .frame()
            .await
            .unwrap()
            .unwrap()
            .into_trailers()
            .unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        assert!(!trailers.contains_key("x-casemate-session"));
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_http2_reaches_programs_that_speak_http1() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    let io = TokioIo::new(TcpStream::connect(&bench.address).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(format!("http://{}/", host(&session, program.port)))
        .header("te", "trailers")
        .header("x-api-key", &bench.key)
        .body(Full::<Bytes>::default())
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "hello"
    );
    let heard = program.heard().remove(0);
    assert!(
        heard.starts_with("GET / HTTP/1.1\r\n") && !heard.contains("\r\nte:"),
        "{heard}"
    );
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_is_answered_without_a_body_and_connections_are_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&connections);
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
                    let answer = if text.starts_with("HEAD") {
                        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
                    } else {
                        HELLO
                    };
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    let _task = AbortOnDrop(task);
    let bench = Bench::new().await;
    let session = bench.session().await;
    let said = bench
        .ask("HEAD / HTTP/1.1", &session, port, &bench.auth())
        .await;
    assert!(
        said.contains("\r\ncontent-length: 5\r\n") && said.ends_with("\r\n\r\n"),
        "{said}"
    );
    for _ in 0..5 {
        let said = bench.get(&session, port, &bench.auth()).await;
        assert!(said.ends_with("hello"), "{said}");
    }
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 1);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_its_program_closed_is_not_the_clients_trouble() {
    // Closes after each answer without saying so.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let _task = AbortOnDrop(tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(HELLO.as_bytes()).await;
        }
    }));
    let bench = Bench::new().await;
    let session = bench.session().await;
    for n in 0..20 {
        let said = bench.get(&session, port, &bench.auth()).await;
        assert!(said.ends_with("hello"), "{n}: {said}");
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let _task = AbortOnDrop(tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }));
        let bench = Bench::new().await;
        let session = bench.session().await;
        let said = bench.get(&session, port, &bench.auth()).await;
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        let is_whole = said.ends_with("0\r\n\r\n") || said.contains("content-length: 4\r\n");
        assert!(!is_whole, "{said}");
        bench.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_asked_for_only_when_the_request_is_let_in() {
    let program = Program::says(HELLO).await;
    let bench = Bench::new().await;
    let session = bench.session().await;
    let host = host(&session, program.port);
    let ask = async |auth: &str| {
        let mut stream = TcpStream::connect(&bench.address).await.unwrap();
        let head = format!(
            "PUT / HTTP/1.1\r\nhost: {host}\r\n{auth}expect: 100-continue\r\ncontent-length: 4\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut said = vec![0; 4096];
        let read = stream.read(&mut said).await.unwrap();
        let first = String::from_utf8_lossy(&said[..read]).into_owned();
        (stream, first)
    };
    let (_, said) = ask("").await;
    assert!(said.starts_with("HTTP/1.1 401"), "{said}");
    let (mut stream, said) = ask(&bench.auth()).await;
    assert!(said.starts_with("HTTP/1.1 100"), "{said}");
    stream.write_all(b"body").await.unwrap();
    let mut said = said.into_bytes();
    let whole = async {
        while !said.ends_with(b"hello") {
            assert_ne!(stream.read_buf(&mut said).await.unwrap(), 0);
        }
    };
    tokio::time::timeout(crate::PATIENCE, whole).await.unwrap();
    assert!(String::from_utf8_lossy(&said).contains("HTTP/1.1 200 OK"));
    assert!(
        !program.heard()[0].contains("expect"),
        "{:?}",
        program.heard()
    );
    bench.close().await;
}
