//! One request to a program, and its answer; or the tunnel that both agree to.
//!
//! What is sent over a connection that was kept, and found closed before anything of it was taken, is sent again over a new one, once; so is
//! what changes nothing (`GET`, `HEAD`, `OPTIONS`, without a body) and got no answer there (RFC 9110 section 9.2.2). Everything else is never sent twice.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use casemate_link::daemon::{LinkError, PortStream};
use futures_util::future::BoxFuture;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::body::{BoxError, Inward, Outward, Passing, Ticket, length};
use super::headers;
use super::pool::{Held, Pool, dial};
use super::pulse::Pulse;
use crate::model::endpoint::Target;
use crate::session::guest::Guest;

/// Bytes of a tunnel that are carried at a time, each way.
const CARRIED_BYTES: usize = 16 * 1024;

/// A request that was allowed and recorded.
pub struct Visit {
    /// Where to.
    pub target: Target,
    /// The session's guest, awake.
    pub guest: Guest,
    /// Its account.
    pub ticket: Arc<dyn Ticket>,
    /// Ready when whoever asked may not any more.
    pub over: BoxFuture<'static, ()>,
    /// Whether the client asked for a WebSocket.
    pub is_upgrade: bool,
    /// Whether the program is spoken to in HTTP/2.
    pub is_http2: bool,
    /// Whether the answer shares an origin with the API.
    pub is_by_path: bool,
    /// Tells our own cookies' names.
    pub own_cookie: fn(&str) -> bool,
}

/// What came of it.
pub struct Answered {
    /// What the client is told.
    pub response: Response<Passing>,
    /// What the connection becomes after that.
    pub tunnel: Option<Tunnel>,
}

/// Why there is no answer of the program's.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Too many requests to the session at once.
    #[error("{} requests to the session are under way already", super::MAX_AT_ONCE)]
    Crowded,
    /// Nothing listens there.
    #[error("nothing listens on the port")]
    NotOpen,
    /// The link to the sandbox failed.
    #[error("reach the sandbox")]
    Link(#[source] LinkError),
    /// What listens there does not speak HTTP, or broke off.
    #[error("speak HTTP with the program")]
    BadAnswer(#[source] hyper::Error),
    /// It switched to a protocol that nobody asked for.
    #[error("the program switched protocols unasked")]
    Unasked,
    /// It did not answer in time.
    #[error("the program did not answer in {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// The request cannot be passed on.
    #[error("pass the request on")]
    BadRequest(#[source] http::Error),
    /// The client broke off, or what it sent is no body.
    #[error("the body ended before its time")]
    CutShort,
    /// Whoever asked may not any more.
    #[error("the credential is not valid any more")]
    Over,
}

impl Pool {
    /// Passes a request on, whose headers are what the program shall get and whose target is a path; `host` is whom it is told it is.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn forward<B>(
        &self,
        visit: Visit,
        request: Request<B>,
        host: &str,
    ) -> Result<Answered, Refusal>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let holds = Held {
            ticket: Arc::clone(&visit.ticket),
            _using: visit.guest.using(),
            _place: self.place(visit.target.session)?,
        };
        let mut over = visit.over;
        let pulse = Pulse::new();
        let (mut head, body) = request.into_parts();
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.remove(header::HOST);
        address(&mut head, host, visit.is_http2).map_err(Refusal::BadRequest)?;
        if visit.is_upgrade {
            let upgrade = [
                (header::CONNECTION, "upgrade"),
                (header::UPGRADE, "websocket"),
            ];
            for (name, value) in upgrade {
                head.headers.insert(name, HeaderValue::from_static(value));
            }
        }
        let is_broken = Arc::<AtomicBool>::default();
        let body = Inward {
            inner: body,
            pulse: pulse.clone(),
            ticket: visit.ticket,
            is_broken: Arc::clone(&is_broken),
        };
        let request = Request::from_parts(head, body.boxed_unsync());
        let patience = self.config().answer_timeout;
        let response = tokio::select! {
            biased;
            () = over.as_mut() => return Err(Refusal::Over),
            () = pulse.clone().silent_for(patience) => return Err(Refusal::NoAnswer(patience)),
            response = self.send(&visit.guest, visit.target, visit.is_http2, request) => response,
        };
        let mut response = match response {
            Err(Refusal::BadAnswer(_)) if is_broken.load(Ordering::Relaxed) => {
                return Err(Refusal::CutShort);
            }
            response => response?,
        };
        pulse.beat();
        let idle = self.config().idle_timeout;
        let is_switch = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if is_switch && !visit.is_upgrade {
            return Err(Refusal::Unasked);
        }
        let program = is_switch.then(|| hyper::upgrade::on(&mut response));
        let (mut head, body) = response.into_parts();
        headers::release(&mut head.headers, visit.is_by_path, visit.own_cookie);
        // Ours is the connection's own.
        head.version = Version::default();
        head.extensions.clear();
        if let Some(program) = program {
            head.headers
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers
                .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            let tunnel = Tunnel {
                program,
                held: holds,
                pulse,
                over,
                idle,
            };
            let empty = http_body_util::Empty::new().map_err(|never| match never {});
            return Ok(Answered {
                response: Response::from_parts(head, empty.boxed_unsync()),
                tunnel: Some(tunnel),
            });
        }
        let silence = Box::pin(pulse.clone().silent_for(idle));
        let body = Outward {
            inner: body,
            held: holds,
            pulse,
            silence,
            over,
            is_cut: false,
        };
        Ok(Answered {
            response: Response::from_parts(head, body.boxed_unsync()),
            tunnel: None,
        })
    }

    async fn send(
        &self,
        guest: &Guest,
        target: Target,
        is_http2: bool,
        mut request: Request<Passing>,
    ) -> Result<Response<Incoming>, Refusal> {
        if is_http2 {
            let mut sender = self.http2(guest, target).await?;
            return sender
                .send_request(request)
                .await
                .map_err(Refusal::BadAnswer);
        }
        if let Some(mut sender) = self.kept(target) {
            let spare = spare(&request);
            match sender.try_send_request(request).await {
                Ok(response) => {
                    self.keep_http1(target, sender);
                    return Ok(response);
                }
                Err(error) => request = again(error, spare)?,
            }
        }
        let mut sender = self.connect(guest, target.port).await?;
        let response = sender
            .send_request(request)
            .await
            .map_err(Refusal::BadAnswer)?;
        self.keep_http1(target, sender);
        Ok(response)
    }
}

/// A request that may be sent twice, should its connection be found closed: one that changes nothing, and has no body.
fn spare(request: &Request<Passing>) -> Option<Request<Passing>> {
    let is_safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    if !is_safe
        || !request.body().is_end_stream()
        || request.headers().contains_key(header::UPGRADE)
    {
        return None;
    }
    let empty = http_body_util::Empty::new().map_err(|never| match never {});
    let mut spare = Request::new(empty.boxed_unsync());
    spare.method_mut().clone_from(request.method());
    spare.uri_mut().clone_from(request.uri());
    spare.headers_mut().clone_from(request.headers());
    Some(spare)
}

/// The request, if nothing of it was taken, or its spare, if there was no answer to it.
fn again(
    mut error: TrySendError<Request<Passing>>,
    spare: Option<Request<Passing>>,
) -> Result<Request<Passing>, Refusal> {
    if let Some(request) = error.take_message() {
        return Ok(request);
    }
    let error = error.into_error();
    let is_gone = error.is_incomplete_message() || error.is_canceled() || error.is_closed();
    // What is said of a write to whom is gone.
    let is_cut =
        std::error::Error::source(&error).is_some_and(<dyn std::error::Error>::is::<io::Error>);
    match spare {
        Some(spare) if is_gone || is_cut => Ok(spare),
        _ => Err(Refusal::BadAnswer(error)),
    }
}

/// Says whom the request is for, as its protocol says it.
fn address(head: &mut http::request::Parts, host: &str, is_http2: bool) -> Result<(), http::Error> {
    let path = head
        .uri
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .to_owned();
    let mut uri = Uri::builder().path_and_query(path);
    if is_http2 {
        uri = uri.scheme("http").authority(host);
        head.headers
            .insert(header::TE, HeaderValue::from_static("trailers"));
        head.version = Version::HTTP_2;
    } else {
        head.headers
            .insert(header::HOST, HeaderValue::from_str(host)?);
        head.version = Version::HTTP_11;
    }
    head.uri = uri.build()?;
    head.extensions.clear();
    Ok(())
}

/// What a connection becomes when the program agrees to a WebSocket. Bytes pass as they are.
pub struct Tunnel {
    program: OnUpgrade,
    held: Held,
    pulse: Pulse,
    over: BoxFuture<'static, ()>,
    idle: Duration,
}

impl Tunnel {
    /// Carries bytes until both sides have said all, one is gone, nothing moved for too long, whoever opened it may not any more,
    /// or the daemon stops.
    pub async fn carry(self, client: OnUpgrade, stop: CancellationToken) {
        let Self {
            program,
            held,
            pulse,
            over,
            idle,
        } = self;
        let both = async {
            let (client, program) = tokio::try_join!(client, program)?;
            let (from_client, to_client) = tokio::io::split(TokioIo::new(client));
            let (from_program, to_program) = tokio::io::split(TokioIo::new(program));
            let went_in = |bytes| held.ticket.went_in(bytes);
            let came_out = |bytes| held.ticket.came_out(bytes);
            let carried = tokio::try_join!(
                carry(from_client, to_program, &pulse, went_in),
                carry(from_program, to_client, &pulse, came_out),
            );
            carried.map(drop).map_err(BoxError::from)
        };
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = over => return,
            () = pulse.clone().silent_for(idle) => return,
            ended = both => ended,
        };
        if let Err(error) = ended {
            debug!(%error, "a tunnel ended badly");
        }
    }
}

/// A byte stream to a port, and what it holds.
pub struct Raw {
    stream: PortStream,
    held: Held,
}

impl Pool {
    /// Connects to a port as a byte stream.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn raw(
        &self,
        guest: &Guest,
        target: Target,
        ticket: Arc<dyn Ticket>,
    ) -> Result<Raw, Refusal> {
        let held = Held {
            ticket,
            _using: guest.using(),
            _place: self.place(target.session)?,
        };
        let stream = dial(guest, target.port).await?;
        Ok(Raw { stream, held })
    }
}

impl AsyncRead for Raw {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let data = buffer.filled().get(before..).unwrap_or_default();
        this.held.ticket.came_out(length(data));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Raw {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, data))?;
        this.held
            .ticket
            .went_in(length(data.get(..written).unwrap_or_default()));
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    pulse: &Pulse,
    count: impl Fn(u64),
) -> std::io::Result<()> {
    let mut buffer = vec![0; CARRIED_BYTES];
    loop {
        let read = from.read(&mut buffer).await?;
        let data = buffer.get(..read).unwrap_or_default();
        if data.is_empty() {
            return to.shutdown().await;
        }
        to.write_all(data).await?;
        to.flush().await?;
        pulse.beat();
        count(length(data));
    }
}
