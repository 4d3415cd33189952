//! What a handler gives back: a whole answer, one that streams, or a connection that becomes a socket.
//!
//! An answer that fails half way never looks complete: an error, a panic and a wrong promise of its
//! length all cut it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;
use tokio::time::Instant;
use tracing::error;

use super::line::Parting;
use super::route::BoxError;
use crate::app::report;
use crate::base::id::RequestId;
use crate::endpoint::Passing;

/// Most bytes that are given to hyper at a time. Small enough that "the client took one piece" can be
/// told from "the client takes nothing" on the slowest lines.
const PIECE_BYTES: usize = 64 * 1024;

/// An answer.
pub struct Reply {
    pub(super) response: http::Response<ReplyBody>,
    /// What is done with the connection after this answer.
    pub(super) upgraded: Option<BoxFuture<'static, ()>>,
}

impl Reply {
    fn new(status: StatusCode, body: ReplyBody) -> Self {
        let mut response = http::Response::new(body);
        *response.status_mut() = status;
        Self {
            response,
            upgraded: None,
        }
    }

    /// A JSON answer.
    pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::bytes(status, "application/json", body.into()),
            // Our own types always serialise; a defect here must not look like success.
            Err(_) => Self::empty(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// An answer of raw bytes.
    #[must_use]
    pub fn bytes(status: StatusCode, content_type: &'static str, body: Bytes) -> Self {
        Self::new(status, ReplyBody::Whole(body))
            .with(header::CONTENT_TYPE, HeaderValue::from_static(content_type))
    }

    /// An answer that is not in memory. With `length_bytes` it promises a length, and is cut when the
    /// stream does not keep the promise; without, its end is the stream's. The stream is asked for
    /// more only when the client has taken what was there, and dropped when the client goes away.
    pub fn stream<S, E>(
        status: StatusCode,
        content_type: &'static str,
        length_bytes: Option<u64>,
        pieces: S,
    ) -> Self
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        let body = ReplyBody::Streamed(Box::new(Streamed {
            pieces: pieces.map_err(Into::into).boxed(),
            rest: Bytes::new(),
            left_bytes: length_bytes,
            request: None,
            parting: None,
            taking: None,
            over: None,
        }));
        Self::new(status, body).with(header::CONTENT_TYPE, HeaderValue::from_static(content_type))
    }

    /// A program's answer, as it comes.
    pub(super) fn passed(response: http::Response<Passing>) -> Self {
        let body = |inner| {
            ReplyBody::Passed(Box::new(Passed {
                inner,
                parting: None,
                taking: None,
            }))
        };
        Self {
            response: response.map(body),
            upgraded: None,
        }
    }

    /// Whether it is a program's, which says itself what browsers may do with it.
    pub(super) fn is_passed(&self) -> bool {
        matches!(self.response.body(), ReplyBody::Passed(_))
    }

    /// An answer without a body.
    #[must_use]
    pub fn empty(status: StatusCode) -> Self {
        Self::new(status, ReplyBody::Whole(Bytes::new()))
    }

    pub(super) fn headers_mut(&mut self) -> &mut HeaderMap {
        self.response.headers_mut()
    }

    /// With one more header.
    #[must_use]
    pub fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers_mut().insert(name, value);
        self
    }

    /// The same to a `HEAD` (RFC 9110 section 9.3.2): the headers of the answer, without it.
    pub(super) fn without_body(mut self) -> Self {
        let length = self.response.body().size_hint().exact();
        let body = match length {
            Some(_) => ReplyBody::Whole(Bytes::new()),
            None => ReplyBody::Withheld,
        };
        *self.response.body_mut() = body;
        match length {
            Some(length) => self.with(header::CONTENT_LENGTH, length.into()),
            None => self,
        }
    }
}

/// The body of an answer.
pub(super) enum ReplyBody {
    /// In memory.
    Whole(Bytes),
    /// Piece by piece.
    Streamed(Box<Streamed>),
    /// A program's, as it comes.
    Passed(Box<Passed>),
    /// Of unknown length, and not sent.
    Withheld,
}

/// A program's body on its way.
pub(super) struct Passed {
    inner: Passing,
    parting: Option<Arc<Parting>>,
    taking: Option<Arc<Taking>>,
}

impl Passed {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(taking) = &self.taking {
            taking.set(None);
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        match (&frame, &self.taking, &self.parting) {
            (Some(Ok(_)), Some(taking), _) => taking.set(Some(Instant::now())),
            (Some(Err(_)), _, Some(parting)) => parting.break_off(),
            _ => {}
        }
        Poll::Ready(frame)
    }
}

/// A body that is made while it is sent.
pub(super) struct Streamed {
    pieces: BoxStream<'static, Result<Bytes, BoxError>>,
    /// Of a piece that was too large to give at once.
    rest: Bytes,
    /// What is left of the promised length.
    left_bytes: Option<u64>,
    request: Option<RequestId>,
    parting: Option<Arc<Parting>>,
    taking: Option<Arc<Taking>>,
    /// Ready when whoever asked may not have the rest.
    over: Option<BoxFuture<'static, ()>>,
}

/// Whether a client asks for more: since when a piece lies there after which nobody has asked for the
/// next. HTTP/2 has its own flow of every stream, so that the connection's says nothing of it.
#[derive(Debug, Default)]
pub(super) struct Taking(Mutex<Option<Instant>>);

impl Taking {
    /// Since when the client has taken nothing.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl ReplyBody {
    /// Says whose answer this is, for the log; what breaks its connection off when nothing else would
    /// show that it is incomplete; and who watches whether it is taken.
    pub(super) fn bind(
        &mut self,
        request: RequestId,
        parting: Option<Arc<Parting>>,
        taking: Option<Arc<Taking>>,
    ) {
        match self {
            Self::Streamed(body) => {
                body.request = Some(request);
                body.parting = parting;
                body.taking = taking;
            }
            Self::Passed(body) => {
                body.parting = parting;
                body.taking = taking;
            }
            Self::Whole(_) | Self::Withheld => {}
        }
    }

    /// Cuts what is streamed when `over` is ready.
    pub(super) fn until(&mut self, over: impl Future<Output = ()> + Send + 'static) {
        if let Self::Streamed(body) = self {
            body.over = Some(Box::pin(over));
        }
    }

    pub(super) const fn is_streamed(&self) -> bool {
        matches!(self, Self::Streamed(_))
    }

    /// Whether it is made, or comes, while it is sent.
    pub(super) const fn takes_time(&self) -> bool {
        matches!(self, Self::Streamed(_) | Self::Passed(_))
    }
}

impl Streamed {
    /// The next piece, whatever its size.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.rest))));
        }
        loop {
            // Caught here, where it ends one answer; above, it would end the connection with all of them.
            let polled =
                std::panic::catch_unwind(AssertUnwindSafe(|| self.pieces.poll_next_unpin(context)));
            let Ok(polled) = polled else {
                error!(request = %self.named(), "a handler panicked in the middle of its answer");
                return Poll::Ready(Some(Err("the handler panicked".into())));
            };
            let Some(piece) = ready!(polled?) else {
                return Poll::Ready(match self.left_bytes {
                    None | Some(0) => None,
                    Some(left) => Some(Err(format!("{left} promised bytes are missing").into())),
                });
            };
            // An empty piece would end a chunked body.
            if piece.is_empty() {
                continue;
            }
            if let Some(left) = self.left_bytes {
                let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
                let Some(left) = left.checked_sub(length) else {
                    let what = "there is more than the promised length";
                    return Poll::Ready(Some(Err(what.into())));
                };
                self.left_bytes = Some(left);
            }
            return Poll::Ready(Some(Ok(piece)));
        }
    }

    fn named(&self) -> String {
        self.request.map(|id| id.to_string()).unwrap_or_default()
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        if let Some(taking) = &self.taking {
            taking.set(None);
        }
        let over = self.over.as_mut();
        let is_over = over.is_some_and(|over| over.as_mut().poll(context).is_ready());
        let piece = if is_over {
            self.over = None;
            self.pieces = futures_util::stream::empty().boxed();
            Some(Err("the credential is not valid any more".into()))
        } else {
            ready!(self.poll_piece(context))
        };
        match piece {
            Some(Ok(mut piece)) => {
                if piece.len() > PIECE_BYTES {
                    self.rest = piece.split_off(PIECE_BYTES);
                }
                if let Some(taking) = &self.taking {
                    taking.set(Some(Instant::now()));
                }
                Poll::Ready(Some(Ok(piece)))
            }
            Some(Err(error)) => {
                report(&self.named(), error.as_ref());
                if let Some(parting) = &self.parting {
                    parting.break_off();
                }
                Poll::Ready(Some(Err(error)))
            }
            None => Poll::Ready(None),
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let piece = match self.get_mut() {
            Self::Passed(passed) => return passed.poll_frame(context),
            Self::Whole(bytes) if bytes.is_empty() => None,
            Self::Whole(bytes) => Some(Ok(std::mem::take(bytes))),
            Self::Streamed(streamed) => ready!(streamed.poll(context)),
            Self::Withheld => None,
        };
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Passed(passed) => passed.inner.is_end_stream(),
            Self::Streamed(streamed) => streamed.left_bytes == Some(0) && streamed.rest.is_empty(),
            Self::Withheld => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let exact = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(exact(bytes.len())),
            Self::Streamed(streamed) => streamed.left_bytes.map_or_else(SizeHint::new, |left| {
                SizeHint::with_exact(left.saturating_add(exact(streamed.rest.len())))
            }),
            Self::Passed(passed) => passed.inner.size_hint(),
            Self::Withheld => SizeHint::new(),
        }
    }
}
