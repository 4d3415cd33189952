//! A WebSocket (RFC 6455) as a handler sees it: messages in, messages out.
//!
//! The protocol's own business is done here, beside the handler and in the connection's own task, so
//! that a socket holds the connection's place and ends with it: pings, the close handshake, the end when
//! the daemon stops. What waits in memory is bounded both ways; a side that does not take slows the
//! other one down.

use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, Sink, SinkExt, Stream, StreamExt};
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Wire;
use tokio_tungstenite::tungstenite::error::Error as WireError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::error::Problem;
use super::line::Parting;
use super::reply::Reply;
use super::route::Call;

/// Longest message, either way.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// Messages that wait for the handler, and as many for the client: enough that neither waits for every
/// single one, and 4 MiB at most.
const WAITING_MESSAGES: usize = 4;

/// What may wait for the line: the longest message, and room for what the protocol says itself.
const MAX_WRITE_BUFFER_BYTES: usize = 2 * MAX_MESSAGE_BYTES;

/// How often the client is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How long nothing at all may be heard of a client after a ping.
const PONG_DEADLINE: Duration = Duration::from_secs(60);

/// How long the client has for its part of the close handshake.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a handler may go on without a client before it is dropped.
const HANDLER_PATIENCE: Duration = Duration::from_secs(10);

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Text.
    Text(String),
    /// Bytes.
    Binary(Bytes),
}

impl Message {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

/// Why a message was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SocketError {
    /// The socket is closed: the client is gone, or the daemon stops.
    #[error("send to a socket that is closed")]
    Closed,
    /// It is longer than [`MAX_MESSAGE_BYTES`].
    #[error("send a message of more than {MAX_MESSAGE_BYTES} bytes")]
    TooLarge,
}

/// A socket. When it, or the last of its halves, is dropped it closes with 1000, after all that was sent.
pub struct Socket {
    sender: SocketSender,
    receiver: SocketReceiver,
}

/// The half that sends.
#[derive(Clone)]
pub struct SocketSender(mpsc::Sender<Outgoing>);

/// The half that receives.
pub struct SocketReceiver(mpsc::Receiver<Message>);

enum Outgoing {
    Message(Message),
    Close(u16, String),
}

impl Socket {
    /// The next message; `None` when the client has closed the socket or is gone, or the daemon stops.
    /// Safe to drop and call again.
    pub async fn receive(&mut self) -> Option<Message> {
        self.receiver.receive().await
    }

    /// Sends a message; waits while the client is slow to take what it has. Safe to drop: the message
    /// is then not sent.
    ///
    /// # Errors
    /// [`SocketError`].
    pub async fn send(&self, message: Message) -> Result<(), SocketError> {
        self.sender.send(message).await
    }

    /// Closes with a code (RFC 6455 section 7.4) and a reason of at most 123 bytes, after all that was
    /// sent.
    pub async fn close(self, code: u16, reason: &str) {
        self.sender.close(code, reason).await;
    }

    /// Both halves, for who does both at the same time.
    #[must_use]
    pub fn split(self) -> (SocketSender, SocketReceiver) {
        (self.sender, self.receiver)
    }
}

impl SocketReceiver {
    /// As [`Socket::receive`].
    pub async fn receive(&mut self) -> Option<Message> {
        self.0.recv().await
    }
}

impl SocketSender {
    /// As [`Socket::send`].
    ///
    /// # Errors
    /// [`SocketError`].
    pub async fn send(&self, message: Message) -> Result<(), SocketError> {
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(SocketError::TooLarge);
        }
        let sent = self.0.send(Outgoing::Message(message)).await;
        sent.map_err(|_| SocketError::Closed)
    }

    /// As [`Socket::close`].
    pub async fn close(&self, code: u16, reason: &str) {
        // A reason that does not fit into a control frame would make it none.
        let reason = reason
            .get(..reason.floor_char_boundary(123))
            .unwrap_or_default();
        // Closed already is as well.
        let _ = self.0.send(Outgoing::Close(code, reason.to_owned())).await;
    }

    /// Waits until nothing can be sent any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

impl Reply {
    /// Makes the connection a WebSocket and gives it to `talk`, whose future is run in the connection's
    /// own task. The handler's answer is sent first; what it must refuse, it refuses before this.
    ///
    /// # Errors
    /// When the route is no [`super::route::Answer::WebSocket`], or for a second time: a defect.
    pub fn upgrade<T, F>(call: &Call, talk: T) -> Result<Self, Problem>
    where
        T: FnOnce(Socket) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let handshake = call
            .once(|once| once.handshake.take())
            .ok_or_else(|| Problem::internal("a handler upgraded what is no WebSocket"))?;
        let accept = HeaderValue::try_from(handshake.agreed.accept)
            .map_err(|error| Problem::internal(error.to_string()))?;
        let mut reply = Self::empty(StatusCode::SWITCHING_PROTOCOLS)
            .with(header::CONNECTION, HeaderValue::from_static("upgrade"))
            .with(header::UPGRADE, HeaderValue::from_static("websocket"))
            .with(header::SEC_WEBSOCKET_ACCEPT, accept);
        if let Some(protocol) = handshake.agreed.protocol {
            reply = reply.with(
                header::SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static(protocol),
            );
        }
        let (stop, request) = (call.stop.clone(), call.request_id);
        let (app, validity) = (call.app.clone(), call.validity.clone());
        reply.upgraded = Some(Box::pin(async move {
            match handshake.on.await {
                Ok(upgraded) => {
                    let span = request.to_string();
                    let io = TokioIo::new(upgraded);
                    let over = app.outlives(&validity);
                    serve(io, stop, over, &handshake.parting, &span, talk).await;
                }
                Err(error) => debug!(%request, %error, "a client left before its socket opened"),
            }
        }));
        Ok(reply)
    }
}

/// How a socket came to its end, and what the client is told.
#[derive(Debug)]
enum End {
    /// The handler has said all that it has to say.
    Finished(u16, String),
    /// The daemon stops.
    Stopping,
    /// Whoever opened it may not any more.
    Over,
    /// The client closed it; the protocol answers by itself.
    Closed,
    /// Nobody is there to be told.
    Gone,
    /// The client broke the rules.
    Broken(CloseCode, &'static str),
}

/// Runs a socket to its end.
async fn serve<I, T, F>(
    io: I,
    stop: CancellationToken,
    revoked: impl Future<Output = ()>,
    parting: &Parting,
    request: &str,
    talk: T,
) where
    I: AsyncRead + AsyncWrite + Unpin,
    T: FnOnce(Socket) -> F,
    F: Future<Output = ()>,
{
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
        .max_write_buffer_size(MAX_WRITE_BUFFER_BYTES);
    let wire = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let (mut sink, mut source) = wire.split();
    let (to_handler, receiver) = mpsc::channel(WAITING_MESSAGES);
    let (sender, mut from_handler) = mpsc::channel(WAITING_MESSAGES);
    let socket = Socket {
        sender: SocketSender(sender),
        receiver: SocketReceiver(receiver),
    };
    // What a handler's end without a word means.
    let last_word = Mutex::new((u16::from(CloseCode::Normal), ""));
    let handler = async {
        let talked = AssertUnwindSafe(async { talk(socket).await }).catch_unwind();
        if talked.await.is_err() {
            error!(request, "a handler panicked in its socket");
            *last_word.lock().unwrap_or_else(PoisonError::into_inner) =
                (CloseCode::Error.into(), "something failed inside casemated");
        }
    };
    let unanswered = Unanswered::default();
    let (over, was_over) = tokio::sync::oneshot::channel::<()>();
    let protocol = async {
        let end = tokio::select! {
            // What the daemon wants comes before what is still on its way.
            biased;
            () = stop.cancelled() => End::Stopping,
            () = revoked => End::Over,
            end = listen(&mut source, to_handler, &unanswered) => end,
            end = speak(&mut sink, &mut from_handler, &unanswered) => end.unwrap_or_else(|| {
                let (code, reason) = *last_word.lock().unwrap_or_else(PoisonError::into_inner);
                End::Finished(code, reason.to_owned())
            }),
        };
        debug!(request, ?end, "a socket ends");
        // From here on the handler is told that the socket is closed.
        drop(from_handler);
        drop(over);
        if matches!(end, End::Broken(..)) {
            parting.leave_unread();
        }
        let parted = async {
            part(&mut sink, &mut source, end).await;
            if let Ok(mut wire) = sink.reunite(source) {
                // Whoever is gone already needs no goodbye.
                let _ = wire.get_mut().shutdown().await;
            }
        };
        if timeout(CLOSE_DEADLINE, parted).await.is_err() {
            debug!(request, "a client did not close its socket in time");
        }
    };
    let handler = async {
        let patience = async {
            let _ = was_over.await;
            tokio::time::sleep(HANDLER_PATIENCE).await;
        };
        tokio::select! {
            () = handler => {}
            () = patience => warn!(request, "dropped a handler that outlived its socket"),
        }
    };
    tokio::join!(handler, protocol);
}

/// Since when a ping is out to which nothing was heard.
#[derive(Default)]
struct Unanswered(Mutex<Option<Instant>>);

impl Unanswered {
    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a ping has been out for too long.
    async fn for_too_long(&self) {
        loop {
            let since = *self.since();
            let over = since.unwrap_or_else(Instant::now) + PONG_DEADLINE;
            tokio::time::sleep_until(over).await;
            if since.is_some() && *self.since() == since {
                return;
            }
        }
    }
}

/// Gives the client's messages to the handler. The clock runs only while the client is listened to and
/// has a ping to answer: neither a slow handler nor a slow line is a silence of the client's.
async fn listen<S>(
    source: &mut S,
    to_handler: mpsc::Sender<Message>,
    unanswered: &Unanswered,
) -> End
where
    S: Stream<Item = Result<Wire, WireError>> + Unpin,
{
    loop {
        let heard = tokio::select! {
            // What has arrived counts, however late it is looked at.
            biased;
            heard = source.next() => heard,
            () = unanswered.for_too_long() => {
                return End::Broken(CloseCode::Policy, "no answer to pings");
            }
        };
        *unanswered.since() = None;
        let message = match heard {
            None => return End::Gone,
            Some(Err(error)) => return broken(&error),
            Some(Ok(Wire::Text(text))) => Message::Text(text.as_str().to_owned()),
            Some(Ok(Wire::Binary(bytes))) => Message::Binary(bytes),
            Some(Ok(Wire::Close(_))) => return End::Closed,
            // Pings are answered by the protocol; that something was heard is all that counts.
            Some(Ok(Wire::Ping(_) | Wire::Pong(_) | Wire::Frame(_))) => continue,
        };
        // A handler that does not listen any more may still speak.
        let _ = to_handler.send(message).await;
    }
}

fn broken(error: &WireError) -> End {
    match error {
        WireError::Capacity(_) => End::Broken(CloseCode::Size, "a message is too large"),
        WireError::Utf8(_) => End::Broken(CloseCode::Invalid, "a text is not UTF-8"),
        WireError::Protocol(_) | WireError::AttackAttempt => {
            End::Broken(CloseCode::Protocol, "this is not the WebSocket protocol")
        }
        _ => End::Gone,
    }
}

/// Gives the handler's messages to the client, and pings. `None` when the handler has ended.
async fn speak<S>(
    sink: &mut S,
    from_handler: &mut mpsc::Receiver<Outgoing>,
    unanswered: &Unanswered,
) -> Option<End>
where
    S: Sink<Wire, Error = WireError> + Unpin,
{
    let mut pings = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            // A handler that always has something to say must not keep us from pinging.
            biased;
            _ = pings.tick() => Wire::Ping(Bytes::new()),
            said = from_handler.recv() => match said? {
                Outgoing::Message(Message::Text(text)) => Wire::Text(text.into()),
                Outgoing::Message(Message::Binary(bytes)) => Wire::Binary(bytes),
                Outgoing::Close(code, reason) => return Some(End::Finished(code, reason)),
            },
        };
        let is_ping = message.is_ping();
        if sink.send(message).await.is_err() {
            return Some(End::Gone);
        }
        if is_ping {
            unanswered.since().get_or_insert_with(Instant::now);
        }
    }
}

/// The close handshake (RFC 6455 section 7): says why, and waits until the client has said so too.
async fn part<K, S>(sink: &mut K, source: &mut S, end: End)
where
    K: Sink<Wire, Error = WireError> + Unpin,
    S: Stream<Item = Result<Wire, WireError>> + Unpin,
{
    let (code, reason) = match end {
        End::Finished(code, reason) => (CloseCode::from(code), reason),
        End::Stopping => (CloseCode::Away, "casemated is stopping".to_owned()),
        End::Over => (
            CloseCode::Policy,
            "the key or token is not valid any more".to_owned(),
        ),
        End::Broken(code, reason) => (code, reason.to_owned()),
        End::Closed => {
            // Sends what the protocol answers.
            let _ = sink.flush().await;
            return;
        }
        End::Gone => return,
    };
    let close = CloseFrame {
        code,
        reason: reason.into(),
    };
    if sink.send(Wire::Close(Some(close))).await.is_ok() {
        while let Some(Ok(_)) = source.next().await {}
    }
}
