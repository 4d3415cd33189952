//! Sockets: both ways, until either side or the daemon ends it.

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Method, header};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Wire;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::{Door, PATIENCE, Pipe, get, let_run, problem, request};
use crate::api::error::Problem;
use crate::api::route::{Answer, Call, Reply, Route};
use crate::api::socket::{MAX_MESSAGE_BYTES, Message, SocketError};

pub(super) type Client<S> = WebSocketStream<S>;

async fn dial<S>(stream: S, protocol: Option<&str>) -> (Client<S>, HeaderMap)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = "ws://x/x".into_client_request().unwrap();
    if let Some(protocol) = protocol {
        let protocol = protocol.parse().unwrap();
        request
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let (socket, answer) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    assert_eq!(answer.status(), 101);
    (socket, answer.headers().clone())
}

/// The code and reason with which a socket is closed; whatever came before is passed over.
pub(super) async fn closed<S>(client: &mut Client<S>) -> (u16, String)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match timeout(PATIENCE * 60, client.next()).await.unwrap() {
            Some(Ok(Wire::Close(Some(close)))) => {
                return (close.code.into(), close.reason.to_string());
            }
            Some(Ok(_)) => {}
            other => panic!("it ended without a word: {other:?}"),
        }
    }
}

pub(super) async fn echo(call: &Call) -> Result<Reply, Problem> {
    if call.query == "refused" {
        return Err(Problem::bad_request("not now"));
    }
    Reply::upgrade(call, async |mut socket| {
        while let Some(message) = socket.receive().await {
            match &message {
                Message::Text(text) if text == "leave" => return,
                Message::Text(text) if text == "close" => {
                    return socket.close(4000, "so long").await;
                }
                Message::Text(text) if text == "panic" => panic!("in a socket"),
                Message::Text(text) if text == "large" => {
                    let large = Message::Binary(vec![0; MAX_MESSAGE_BYTES + 1].into());
                    assert_eq!(socket.send(large).await, Err(SocketError::TooLarge));
                }
                _ => {}
            }
            if socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

pub(super) fn echoes() -> Vec<Route> {
    get(Answer::WebSocket(Some("casemate")), |call| {
        Box::pin(echo(call))
    })
}

#[tokio::test]
async fn a_socket_carries_messages_both_ways_until_either_side_closes_it() {
    let door = Door::open(&echoes()).await;
    let (mut client, headers) = dial(door.connect().await, Some("other, casemate")).await;
    assert_eq!(headers["sec-websocket-protocol"], "casemate");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert!(headers.contains_key("x-request-id"));
    let large = Bytes::from(vec![7; MAX_MESSAGE_BYTES]);
    for message in [
        Wire::Text("hé".into()),
        Wire::Text("".into()),
        Wire::Text("large".into()),
        Wire::Binary(large),
    ] {
        client.send(message.clone()).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), message);
    }
    client.close(None).await.unwrap();
    while let Some(Ok(_)) = client.next().await {}

    for (said, code, reason) in [
        ("leave", 1000, ""),
        ("close", 4000, "so long"),
        ("panic", 1011, "something failed inside casemated"),
    ] {
        let (mut client, headers) = dial(door.connect().await, None).await;
        assert!(!headers.contains_key("sec-websocket-protocol"));
        client.send(Wire::Text(said.into())).await.unwrap();
        assert_eq!(closed(&mut client).await, (code, reason.to_owned()));
    }
    for (bad, code) in [
        (Wire::Binary(vec![0; MAX_MESSAGE_BYTES + 1].into()), 1009),
        (Wire::Binary(vec![0; 16 << 20].into()), 1009),
    ] {
        let (mut client, _) = dial(door.connect().await, None).await;
        // It may be cut off before it has said all.
        let _ = client.feed(bad).await;
        let _ = client.flush().await;
        assert_eq!(closed(&mut client).await.0, code);
    }
    door.close().await;
}

#[tokio::test]
async fn sockets_are_connections_which_the_daemon_ends_when_it_stops() {
    let door = Door::open_for(&echoes(), 1).await;
    let (mut first, _) = dial(door.connect().await, None).await;
    let second = door.connect().await;
    let second = dial(second, None);
    let mut second = std::pin::pin!(second);
    tokio::select! {
        biased;
        _ = second.as_mut() => panic!("there was a place for a second one"),
        () = let_run() => {}
    }
    first.close(None).await.unwrap();
    while let Some(Ok(_)) = first.next().await {}
    drop(first);
    let (mut second, _) = timeout(PATIENCE, second).await.unwrap();
    let (told, ()) = tokio::join!(closed(&mut second), door.close());
    assert_eq!(told, (1001, "casemated is stopping".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_socket_whose_client_does_not_answer_is_closed() {
    let mut pipe = Pipe::open(&echoes());
    let head = "GET /x HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    pipe.far.write_all(head.as_bytes()).await.unwrap();
    let began = Instant::now();
    let mut said = Vec::new();
    pipe.far.read_to_end(&mut said).await.unwrap();
    let waited = began.elapsed().as_secs();
    // A ping after 30 s, 60 s for the answer, 5 s for the farewell.
    assert!((90..=96).contains(&waited), "{waited} s");
    let pings = said.windows(2).filter(|two| two == &[0x89, 0]).count();
    assert!((2..=4).contains(&pings), "{pings} pings");
    let farewell = b"no answer to pings";
    let code = said.len() - farewell.len() - 2;
    assert_eq!(&said[code..code + 2], &1008_u16.to_be_bytes());
    assert!(said.ends_with(farewell));
    pipe.talk.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_quiet_client_and_a_slow_handler_keep_their_socket() {
    async fn late(call: &Call) -> Result<Reply, Problem> {
        Reply::upgrade(call, async |mut socket| {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            for n in 0..20 {
                assert_eq!(socket.receive().await, Some(Message::Text(n.to_string())));
            }
            socket.close(4001, "all of them").await;
        })
    }
    let pipe = Pipe::open(&get(Answer::WebSocket(None), |call| Box::pin(late(call))));
    let (mut client, _) = dial(pipe.far, None).await;
    for n in 0..20 {
        client.send(Wire::Text(n.to_string().into())).await.unwrap();
    }
    assert_eq!(closed(&mut client).await, (4001, "all of them".to_owned()));
    while let Some(Ok(_)) = client.next().await {}
    pipe.talk.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_outlives_its_socket_is_dropped() {
    static HELD: Mutex<Option<std::sync::Weak<()>>> = Mutex::new(None);
    async fn deaf(call: &Call) -> Result<Reply, Problem> {
        let held = Arc::new(());
        *HELD.lock().unwrap() = Some(Arc::downgrade(&held));
        Reply::upgrade(call, async move |socket| {
            pending::<()>().await;
            drop((socket, held));
        })
    }
    let pipe = Pipe::open(&get(Answer::WebSocket(None), |call| Box::pin(deaf(call))));
    let (mut client, _) = dial(pipe.far, None).await;
    let began = Instant::now();
    pipe.stop.cancel();
    assert_eq!(closed(&mut client).await.0, 1001);
    pipe.talk.await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    let held = HELD.lock().unwrap().take().unwrap();
    assert_eq!(held.strong_count(), 0);
}

#[tokio::test]
async fn what_is_no_handshake_gets_an_answer_and_no_socket() {
    let door = Door::open(&echoes()).await;
    let good = [
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let ask = async |without: &str, with: &[(&str, &str)]| {
        let mut headers: Vec<_> = good
            .iter()
            .filter(|(name, _)| *name != without)
            .copied()
            .collect();
        headers.extend_from_slice(with);
        door.ask(Method::GET, &headers).await
    };
    let (headers, code) = problem(ask("upgrade", &[]).await, 426).await;
    assert_eq!(
        (headers["upgrade"].to_str().unwrap(), code.as_str()),
        ("websocket", "upgrade_required")
    );
    let version = [("sec-websocket-version", "8")];
    let (headers, code) = problem(ask("sec-websocket-version", &version).await, 426).await;
    assert_eq!(headers["sec-websocket-version"], "13");
    assert_eq!(code, "websocket_version");
    let (_, code) = problem(ask("sec-websocket-key", &[]).await, 400).await;
    assert_eq!(code, "invalid_request");
    let (_, code) = problem(
        ask("", &[("origin", "https://elsewhere.example")]).await,
        403,
    )
    .await;
    assert_eq!(code, "origin_not_allowed");
    assert_eq!(ask("", &[("origin", "http://x")]).await.status(), 101);
    assert_eq!(ask("", &[]).await.status(), 101);
    let (headers, _) = problem(door.ask(Method::POST, &good).await, 405).await;
    assert_eq!(headers["allow"], "GET");
    assert_eq!(door.ask(Method::HEAD, &good).await.status(), 405);

    // What the handler refuses stays HTTP, and its connection as well.
    let mut client = door.client().await;
    let mut refused = request(Method::GET, &good);
    *refused.uri_mut() = "/x?refused".parse().unwrap();
    for request in [refused.clone(), refused] {
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(problem(answer, 400).await.1, "invalid_request");
        client.ready().await.unwrap();
    }
    drop(client);

    let io = TokioIo::new(door.connect().await);
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let answer = client
        .send_request(request(Method::GET, &[]))
        .await
        .unwrap();
    assert_eq!(problem(answer, 501).await.1, "websocket_needs_http1");
    drop(client);
    let _ = connection.await;
    door.close().await;
}
