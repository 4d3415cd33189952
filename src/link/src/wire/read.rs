//! Frames straight from an HTTP/2 body, for both ends.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;

use super::{Decoder, FrameSet, WireError};
use crate::limits::MAX_EMPTY_CHUNKS;

/// Why there is no next frame.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream was reset, or its connection is lost.
    #[error("the stream was cut")]
    Cut(#[source] hyper::Error),
    /// The peer broke the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Reads one body as frames. Data passes through without a copy; at most one chunk and one document are held.
#[derive(Debug)]
pub struct FrameReader<F> {
    body: Incoming,
    chunk: Bytes,
    decoder: Decoder<F>,
}

impl<F: FrameSet> FrameReader<F> {
    /// A reader at the start of a body.
    pub fn new(body: Incoming) -> Self {
        Self {
            body,
            chunk: Bytes::new(),
            decoder: Decoder::new(),
        }
    }

    /// The next frame, or piece of a data frame; `None` at the body's end. Safe to drop and call again.
    ///
    /// # Errors
    /// [`ReadError`], after which the stream is worthless.
    pub async fn next(&mut self) -> Result<Option<F>, ReadError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Whether more of the data frame follows whose piece came last.
    pub fn is_within_data(&self) -> bool {
        self.decoder.is_within_data()
    }

    /// [`Self::next`] for whoever polls.
    ///
    /// # Errors
    /// [`ReadError`], after which the stream is worthless.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<F>, ReadError>> {
        for _ in 0..MAX_EMPTY_CHUNKS {
            if let Some(frame) = self.decoder.decode(&mut self.chunk)? {
                return Poll::Ready(Ok(Some(frame)));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                // Trailers say nothing on this link.
                Some(frame) => {
                    let frame = frame.map_err(ReadError::Cut)?;
                    self.chunk = frame.into_data().unwrap_or_default();
                }
                None => return Poll::Ready(Ok(self.decoder.finish().map(|()| None)?)),
            }
        }
        // There may be more at once, and nothing but skipped bytes again: deadlines and other tasks come first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
