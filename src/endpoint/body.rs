//! Bodies on their way: piece by piece, nothing gathered. They are counted, watched for standing still, cut when whoever asked may not
//! have the rest, and their trailers are looked at.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;

use super::headers::strip_trailers;
use super::pool::Held;
use super::pulse::Pulse;

/// Any error, where only the log learns what it was.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that passes through.
pub type Passing = UnsyncBoxBody<Bytes, BoxError>;

/// The account of one request; dropped, the request is over.
pub trait Ticket: Send + Sync + 'static {
    /// So many bytes went to the program.
    fn went_in(&self, bytes: u64);
    /// So many bytes came from it.
    fn came_out(&self, bytes: u64);
}

pub(super) fn length(data: &[u8]) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}

/// To the program.
pub(super) struct Inward<B> {
    pub(super) inner: B,
    pub(super) pulse: Pulse,
    pub(super) ticket: Arc<dyn Ticket>,
    /// Set when it was the client that broke off.
    pub(super) is_broken: Arc<AtomicBool>,
}

impl<B> Body for Inward<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        self.pulse.beat();
        Poll::Ready(frame.map(|frame| match frame {
            Ok(frame) => {
                if let Some(data) = frame.data_ref() {
                    self.ticket.went_in(length(data));
                }
                Ok(checked(frame))
            }
            Err(error) => {
                self.is_broken.store(true, Ordering::Relaxed);
                Err(error.into())
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// From the program.
pub(super) struct Outward {
    pub(super) inner: Incoming,
    pub(super) held: Held,
    pub(super) pulse: Pulse,
    /// Ready when nothing has moved for too long.
    pub(super) silence: BoxFuture<'static, ()>,
    /// Ready when whoever asked may not have the rest.
    pub(super) over: BoxFuture<'static, ()>,
    pub(super) is_cut: bool,
}

impl Outward {
    fn cut(&mut self, why: &'static str) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.is_cut = true;
        Poll::Ready(Some(Err(why.into())))
    }
}

impl Body for Outward {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.is_cut {
            return Poll::Ready(None);
        }
        // Before the data: there is no end to what a program can say.
        if self.over.as_mut().poll(context).is_ready() {
            return self.cut("the credential is not valid any more");
        }
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(frame) => {
                self.pulse.beat();
                if let Some(Ok(frame)) = &frame
                    && let Some(data) = frame.data_ref()
                {
                    self.held.ticket.came_out(length(data));
                }
                Poll::Ready(frame.map(|frame| frame.map(checked).map_err(Into::into)))
            }
            Poll::Pending => {
                ready!(self.silence.as_mut().poll(context));
                self.cut("nothing moved for too long")
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn checked(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            strip_trailers(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}
