//! podman's REST API over its Unix socket, as thin as it can be: one connection for each request,
//! a deadline on each, a bound on everything that is read.
//!
//! It knows HTTP and how podman says no; it knows no sandbox. It exists because `podman-api` 0.11
//! misspells `no_new_privileges` on the wire, drops exit codes, cannot stream an archive and has
//! neither deadlines nor bounds. The API version in each path is 4.0.0: podman 4 and 5 both answer
//! it in one shape.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::{ArchiveStream, RuntimeError};
use crate::model::image::ImageDigest;

/// Most bytes of one JSON answer: an inspect has 12 KiB, a list of 1,000 containers 1 MiB.
pub(super) const JSON_BYTES: usize = 8 << 20;

/// Most bytes of podman's own words that are kept.
const MESSAGE_BYTES: usize = 1024;

/// For connecting. A Unix socket connects at once or its owner is stuck.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// Pause before the socket is tried again while its queue of callers is full.
const CONNECT_PAUSE: Duration = Duration::from_millis(5);

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// No podman there, no answer in time, or no answer that can be read.
    #[error("reach podman ({doing})")]
    Unreachable {
        doing: &'static str,
        #[source]
        source: BoxError,
    },
    /// podman answered, and refused.
    #[error("podman refused to {doing}: {message}")]
    Refused {
        doing: &'static str,
        status: StatusCode,
        message: String,
    },
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl CallError {
    /// Whether podman says that what was named does not exist.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }

    /// Whether podman says that this image does not exist.
    pub(super) fn is_of_missing_image(&self, image: ImageDigest) -> bool {
        matches!(self, Self::Refused { message, .. }
            if message.contains(&format!("{}: image not known", image.hex())))
    }

    /// Whether podman found nothing where, a moment before, it had read of an image or a layer.
    pub(super) fn is_of_gone_image(&self) -> bool {
        matches!(self, Self::Refused { status, message, .. }
            if *status == StatusCode::INTERNAL_SERVER_ERROR && message.contains("not known"))
    }
}

impl From<CallError> for RuntimeError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unreachable { doing, source } => Self::Unavailable { doing, source },
            CallError::Refused { doing, message, .. } => Self::Failed { doing, message },
        }
    }
}

/// What is wrong with an answer that arrived.
#[derive(Debug, thiserror::Error)]
enum BadAnswer {
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the answer has more than {0} bytes")]
    TooLong(usize),
    #[error("the answer is not the JSON that was expected")]
    NotJson(#[source] serde_json::Error),
    #[error("the connection was not handed over")]
    NotUpgraded,
}

/// What a request carries.
pub(super) enum Payload {
    /// Nothing.
    Empty,
    /// A JSON document.
    Json(Vec<u8>),
    /// A tar archive, as it arrives.
    Archive(ArchiveStream),
}

impl Payload {
    /// The JSON of one of our own structs.
    pub(super) fn json(value: &impl Serialize, doing: &'static str) -> Result<Self, CallError> {
        serde_json::to_vec(value)
            .map(Self::Json)
            .map_err(|source| unreachable(doing, source))
    }
}

/// One request: what for, how long it may take, and what it says.
pub(super) struct Call {
    method: Method,
    path: String,
    doing: &'static str,
    deadline: Option<Duration>,
    payload: Payload,
    hijack: bool,
}

impl Call {
    /// A request to `path` below the API's root, for example `/containers/json`. The caller has
    /// made sure that `path` is a URI's path: nothing in it is quoted here.
    pub(super) fn new(
        method: Method,
        path: String,
        doing: &'static str,
        deadline: Duration,
    ) -> Self {
        let payload = Payload::Empty;
        Self {
            method,
            path,
            doing,
            deadline: Some(deadline),
            payload,
            hijack: false,
        }
    }

    /// With a body.
    pub(super) fn with(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }

    /// Waits for the answer as long as the connection lives.
    pub(super) fn without_deadline(mut self) -> Self {
        self.deadline = None;
        self
    }
}

/// Where podman listens.
#[derive(Clone, Debug)]
pub(super) struct Libpod {
    socket: PathBuf,
}

impl Libpod {
    /// Knows the socket; connects for each call.
    pub(super) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Calls and drops what the answer holds. "Already so" (304) is success.
    pub(super) async fn send(&self, call: Call) -> Result<(), CallError> {
        self.bytes(call, JSON_BYTES).await.map(drop)
    }

    /// Calls and reads the JSON answer.
    pub(super) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, CallError> {
        let doing = call.doing;
        let bytes = self.bytes(call, JSON_BYTES).await?;
        serde_json::from_slice(&bytes).map_err(|e| unreachable(doing, BadAnswer::NotJson(e)))
    }

    /// Calls and reads the whole answer, at most `limit` bytes of it.
    pub(super) async fn bytes(&self, call: Call, limit: usize) -> Result<Bytes, CallError> {
        let doing = call.doing;
        within(doing, call.deadline, async {
            let (response, _connection) = self.head(call).await?;
            read(response.into_body(), limit, doing).await
        })
        .await
    }

    /// Calls and hands the answer on as it comes. The deadline is for its head, and then for each piece.
    pub(super) async fn stream(&self, call: Call) -> Result<ArchiveStream, CallError> {
        let (doing, deadline) = (call.doing, call.deadline);
        let answer = within(doing, deadline, self.head(call)).await?;
        let pieces =
            futures_util::stream::unfold(answer, move |(mut response, connection)| async move {
                let next = async { Ok(response.body_mut().frame().await) };
                let piece = match within(doing, deadline, next).await {
                    Ok(None) => return None,
                    Ok(Some(Ok(frame))) => Ok(frame.into_data().unwrap_or_default()),
                    Ok(Some(Err(error))) => Err(std::io::Error::other(error)),
                    Err(error) => Err(std::io::Error::other(error)),
                };
                Some((piece, (response, connection)))
            });
        Ok(pieces.boxed())
    }

    /// Calls and takes over the connection, which then carries raw bytes both ways. The deadline
    /// covers the answer's head only.
    pub(super) async fn hijack(&self, mut call: Call) -> Result<Hijacked, CallError> {
        let doing = call.doing;
        call.hijack = true;
        within(doing, call.deadline, async {
            let (response, _connection) = self.head(call).await?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(unreachable(doing, BadAnswer::NotUpgraded));
            }
            let upgraded = hyper::upgrade::on(response)
                .await
                .map_err(|e| unreachable(doing, e))?;
            Ok(TokioIo::new(upgraded))
        })
        .await
    }

    /// Sends the request and reads the head of the answer; a refusal becomes an error.
    async fn head(&self, call: Call) -> Result<(Response<Incoming>, Connection), CallError> {
        let Call {
            method,
            path,
            doing,
            payload,
            hijack,
            ..
        } = call;
        let stream = self.connect().await.map_err(|e| unreachable(doing, e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| unreachable(doing, e))?;
        let connection = Connection(tokio::spawn(connection.with_upgrades()).abort_handle());

        let mut request = Request::builder()
            .method(method)
            .uri(format!("/v4.0.0/libpod{path}"))
            .header(header::HOST, "podman");
        if hijack {
            request = request
                .header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, "tcp");
        }
        let request = match payload {
            Payload::Empty => request.body(Empty::new().map_err(BoxError::from).boxed_unsync()),
            Payload::Json(json) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::from(json).map_err(BoxError::from).boxed_unsync()),
            Payload::Archive(archive) => {
                let frames = archive.map(|part| part.map(Frame::data).map_err(BoxError::from));
                request
                    .header(header::CONTENT_TYPE, "application/x-tar")
                    .body(UnsyncBoxBody::new(StreamBody::new(frames)))
            }
        };
        let request = request.map_err(|e| unreachable(doing, e))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| unreachable(doing, e))?;

        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            let body = read(response.into_body(), JSON_BYTES, doing).await?;
            return Err(CallError::Refused {
                doing,
                status,
                message: refusal(&body),
            });
        }
        Ok((response, connection))
    }

    /// Connects. A full queue of callers is waited out: connect(2) on a Unix socket that does not
    /// block says EAGAIN instead of waiting.
    async fn connect(&self) -> std::io::Result<UnixStream> {
        let deadline = Instant::now() + CONNECT_DEADLINE;
        loop {
            let attempt = timeout_at(deadline, UnixStream::connect(&self.socket));
            match attempt
                .await
                .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            {
                Err(e)
                    if e.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    tokio::time::sleep(CONNECT_PAUSE).await;
                }
                result => return result,
            }
        }
    }
}

/// A connection that was taken over.
pub(super) type Hijacked = TokioIo<Upgraded>;

/// The task that moves a connection's bytes. It ends when the call is dropped, so that podman hears
/// that nobody waits any more, or when it has handed the connection over.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs a call under its deadline, if it has one.
pub(super) async fn within<T>(
    doing: &'static str,
    deadline: Option<Duration>,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    match deadline {
        None => call.await,
        Some(deadline) => timeout(deadline, call)
            .await
            .unwrap_or_else(|_| Err(unreachable(doing, BadAnswer::Late(deadline)))),
    }
}

/// The call could not be made, or its answer could not be read.
pub(super) fn unreachable(doing: &'static str, source: impl Into<BoxError>) -> CallError {
    CallError::Unreachable {
        doing,
        source: source.into(),
    }
}

/// Reads a body to its end; more than `limit` bytes are an error.
async fn read(body: Incoming, limit: usize, doing: &'static str) -> Result<Bytes, CallError> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(unreachable(doing, BadAnswer::TooLong(limit))),
        Err(e) => Err(unreachable(doing, e)),
    }
}

/// podman's own words out of its answer, bounded.
fn refusal(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Refusal {
        message: String,
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { message }) => bounded(message),
        Err(_) => {
            bounded(String::from_utf8_lossy(body.get(..MESSAGE_BYTES).unwrap_or(body)).into_owned())
        }
    }
}

/// At most [`MESSAGE_BYTES`] of the text, cut between characters.
pub(super) fn bounded(mut text: String) -> String {
    let mut end = MESSAGE_BYTES.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
