//! A WebSocket (RFC 6455) to casemated, with the caller's key and a sub-protocol.
//!
//! Pings are answered by the protocol itself, as long as somebody receives.

use std::io;
use std::time::Duration;

use ::http::header::{self, HeaderName};
use ::http::{HeaderMap, HeaderValue, Method, StatusCode};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Wire;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tokio_util::task::AbortOnDropHandle;

use super::stream::MAX_REFUSAL_BYTES;
use super::{Call, Client, payload, text};
use crate::failure::Failure;

/// Longest message that is taken: more than casemated ever sends.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// How long nothing at all may be heard: casemated pings twice as often.
const SILENCE: Duration = Duration::from_secs(90);

/// How long the goodbye may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

type Stream = WebSocketStream<TokioIo<Upgraded>>;

/// What is received.
#[derive(Debug)]
pub enum Message {
    Text(String),
    Binary(Bytes),
    /// The last: why the other end closed the socket.
    Closed {
        code: u16,
        reason: String,
    },
}

/// A socket that is open.
pub struct Socket {
    stream: Stream,
    connection: AbortOnDropHandle<()>,
}

/// The half that sends.
pub struct SocketSender(SplitSink<Stream, Wire>);

/// The half that receives.
pub struct SocketReceiver {
    stream: SplitStream<Stream>,
    lost: Failure,
    _connection: AbortOnDropHandle<()>,
}

impl Client {
    /// Opens a socket. Anything else that comes back is a failure.
    pub async fn socket(&self, path: &str, protocol: &'static str) -> Result<Socket, Failure> {
        let key = generate_key();
        let fixed = |name: HeaderName, value| (name, HeaderValue::from_static(value));
        let nonce = HeaderValue::try_from(&key).map_err(|_| Failure::mismatch())?;
        let call = [
            fixed(header::CONNECTION, "upgrade"),
            fixed(header::UPGRADE, "websocket"),
            fixed(header::SEC_WEBSOCKET_VERSION, "13"),
            fixed(header::SEC_WEBSOCKET_PROTOCOL, protocol),
            (header::SEC_WEBSOCKET_KEY, nonce),
        ]
        .into_iter()
        .fold(Call::new(Method::GET, path), |call, (name, value)| {
            call.with(name, value)
        });
        let deadline = call.deadline;
        let stream = self.dial().await?;
        let opening = async {
            let begun = self.begin(stream, call, payload(Bytes::new())).await?;
            if begun.head.status != StatusCode::SWITCHING_PROTOCOLS {
                let status = begun.head.status;
                let answer = self.collect(begun, MAX_REFUSAL_BYTES).await?;
                return Err(if status.is_success() {
                    self.stranger(status)
                } else {
                    self.refusal(&answer)
                });
            }
            if !is_agreed(&begun.head.headers, &key, protocol) {
                return Err(self.stranger(begun.head.status));
            }
            let response = ::http::Response::from_parts(begun.head, begun.body);
            let upgraded = hyper::upgrade::on(response).await;
            let upgraded = upgraded.map_err(|_| self.cut_off())?;
            Ok((upgraded, begun.connection))
        };
        let (upgraded, connection) = match tokio::time::timeout(deadline, opening).await {
            Ok(opened) => opened?,
            Err(_) => return Err(self.silent(deadline)),
        };
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let io = TokioIo::new(upgraded);
        let stream = WebSocketStream::from_raw_socket(io, Role::Client, Some(config)).await;
        Ok(Socket { stream, connection })
    }
}

/// Whether an answer accepts this very handshake (RFC 6455 section 4.1).
fn is_agreed(headers: &HeaderMap, key: &str, protocol: &str) -> bool {
    let says = |name, wanted: &str| {
        text(headers, &name).is_some_and(|value| value.eq_ignore_ascii_case(wanted))
    };
    says(header::UPGRADE, "websocket")
        && text(headers, &header::SEC_WEBSOCKET_ACCEPT) == Some(&derive_accept_key(key.as_bytes()))
        && text(headers, &header::SEC_WEBSOCKET_PROTOCOL) == Some(protocol)
}

impl Socket {
    /// Both halves.
    pub fn split(self) -> (SocketSender, SocketReceiver) {
        let (sink, stream) = self.stream.split();
        let receiver = SocketReceiver {
            stream,
            lost: Failure::unavailable("the connection to casemated was lost"),
            _connection: self.connection,
        };
        (SocketSender(sink), receiver)
    }
}

impl Socket {
    /// Its binary messages as one line of bytes each way; any other message, and its end, is the line's end.
    pub fn into_line(self) -> impl AsyncRead + AsyncWrite + Send + Unpin {
        let (sender, receiver) = self.split();
        let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
            match receiver.receive().await {
                Ok(Message::Binary(bytes)) => Some((Ok(bytes), receiver)),
                Ok(_) => None,
                Err(lost) => Some((Err(io::Error::other(lost.message)), receiver)),
            }
        });
        let sink = sender.0.sink_map_err(io::Error::other);
        let sink = sink.with(|bytes| std::future::ready(Ok::<_, io::Error>(Wire::Binary(bytes))));
        let (reader, writer) = (
            StreamReader::new(Box::pin(pieces)),
            SinkWriter::new(CopyToBytes::new(sink)),
        );
        tokio::io::join(reader, writer)
    }
}

impl SocketSender {
    /// Sends text. A socket that is closed takes nothing; why it is, the other half says.
    pub async fn text(&mut self, text: String) {
        let _ = self.0.send(Wire::Text(text.into())).await;
    }

    /// Sends bytes, likewise.
    pub async fn binary(&mut self, bytes: Bytes) {
        let _ = self.0.send(Wire::Binary(bytes)).await;
    }

    /// Says goodbye, so that the other end does not take it for a lost line.
    pub async fn close(&mut self) {
        let closing = self.0.send(Wire::Close(None));
        let _ = tokio::time::timeout(CLOSE_DEADLINE, closing).await;
    }
}

impl SocketReceiver {
    /// The next message. Safe to drop and call again.
    ///
    /// # Errors
    /// When the connection is lost, or nothing is heard for too long.
    pub async fn receive(&mut self) -> Result<Message, Failure> {
        loop {
            let heard = tokio::time::timeout(SILENCE, self.stream.next()).await;
            return Ok(match heard {
                Ok(Some(Ok(Wire::Text(text)))) => Message::Text(text.as_str().to_owned()),
                Ok(Some(Ok(Wire::Binary(bytes)))) => Message::Binary(bytes),
                Ok(Some(Ok(Wire::Close(frame)))) => {
                    let (code, reason) = frame
                        .map(|frame| (frame.code.into(), frame.reason.as_str().to_owned()))
                        .unwrap_or_default();
                    Message::Closed { code, reason }
                }
                Ok(Some(Ok(Wire::Ping(_) | Wire::Pong(_) | Wire::Frame(_)))) => continue,
                Ok(Some(Err(_)) | None) | Err(_) => return Err(self.lost.clone()),
            });
        }
    }
}
