//! What a client sends, piece by piece: for bodies that do not fit into memory.
//!
//! A handler learns whether the client is slow, gone or has sent too much, for each of these is the
//! client's own fault and told to it in another way.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::error::Problem;
use super::line::{Parting, Patience};

/// How long a client may send nothing of a streamed body while the daemon waits for more.
pub const IDLE_DEADLINE: Duration = Duration::from_secs(60);

/// A request's body, which tells its connection when it was not read to its end.
pub(super) struct Intake {
    incoming: Incoming,
    parting: Arc<Parting>,
    ended: bool,
}

impl Intake {
    pub(super) const fn new(incoming: Incoming, parting: Arc<Parting>) -> Self {
        Self {
            incoming,
            parting,
            ended: false,
        }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        if !self.ended && !self.incoming.is_end_stream() {
            self.parting.leave_unread();
        }
    }
}

impl Body for Intake {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(context));
        self.ended = !matches!(frame, Some(Ok(_)));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Why a streamed body has no more pieces, though it is not whole.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client went away, or broke the rules of HTTP: nobody is there to be told.
    #[error("read the body, which the client cut short")]
    CutShort(#[source] hyper::Error),
    /// The client sent nothing for [`IDLE_DEADLINE`].
    #[error("read the body, of which nothing came for {} s", IDLE_DEADLINE.as_secs())]
    TooSlow,
    /// It is longer than the route takes.
    #[error("read the body, which has more than {max_bytes} bytes")]
    TooLarge {
        /// What the route takes.
        max_bytes: u64,
    },
}

impl From<BodyError> for Problem {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::CutShort(_) => Self::bad_request("the body ended before its time"),
            BodyError::TooSlow => Self::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_too_slow",
                format!("nothing of the body came for {} s", IDLE_DEADLINE.as_secs()),
            ),
            BodyError::TooLarge { max_bytes } => Self::body_too_large(max_bytes),
        }
    }
}

impl From<BodyError> for io::Error {
    fn from(error: BodyError) -> Self {
        let kind = match error {
            BodyError::CutShort(_) => io::ErrorKind::UnexpectedEof,
            BodyError::TooSlow => io::ErrorKind::TimedOut,
            BodyError::TooLarge { .. } => io::ErrorKind::FileTooLarge,
        };
        Self::new(kind, error)
    }
}

/// The pieces of a body. Nothing is read ahead: whoever takes slowly slows the client down. It may be
/// dropped at any time; what is then left of the body is the connection's care.
pub struct BodyReader {
    intake: Intake,
    idle: Patience,
    max_bytes: Option<u64>,
    seen_bytes: u64,
    failed: bool,
}

impl BodyReader {
    /// Refuses at once what says itself that it is too large.
    pub(super) fn new(intake: Intake, max_bytes: Option<u64>) -> Result<Self, BodyError> {
        if let Some(max_bytes) = max_bytes
            && intake.size_hint().lower() > max_bytes
        {
            return Err(BodyError::TooLarge { max_bytes });
        }
        Ok(Self {
            intake,
            idle: Patience::new(IDLE_DEADLINE),
            max_bytes,
            seen_bytes: 0,
            failed: false,
        })
    }

    /// How many bytes are still to come, when the client said how many it sends.
    #[must_use]
    pub fn left_bytes(&self) -> Option<u64> {
        self.intake.size_hint().exact()
    }

    fn take(&mut self, piece: Bytes) -> Result<Bytes, BodyError> {
        let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        self.seen_bytes = self.seen_bytes.saturating_add(length);
        match self.max_bytes {
            Some(max_bytes) if self.seen_bytes > max_bytes => {
                Err(BodyError::TooLarge { max_bytes })
            }
            _ => Ok(piece),
        }
    }
}

impl Stream for BodyReader {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.failed {
            return Poll::Ready(None);
        }
        let item = loop {
            match Pin::new(&mut this.intake).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.idle.renew();
                    // Trailers say nothing to us.
                    if let Ok(piece) = frame.into_data()
                        && !piece.is_empty()
                    {
                        break this.take(piece);
                    }
                }
                Poll::Ready(Some(Err(error))) => break Err(BodyError::CutShort(error)),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    ready!(this.idle.poll_over(context));
                    break Err(BodyError::TooSlow);
                }
            }
        };
        this.failed = item.is_err();
        Poll::Ready(Some(item))
    }
}
