//! The two kinds of body on this end: what a request carries, and a bounded reading of what a short answer says.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::LinkError;
use crate::limits::{MAX_DOCUMENT_BYTES, MIN_REQUEST_BYTES};
use crate::wire::Chunk;

/// A request's body: a first chunk, then whatever comes through a queue, if there is one.
#[derive(Debug)]
pub(super) struct RequestBody {
    first: Option<Chunk>,
    rest: Option<mpsc::Receiver<Chunk>>,
    /// Room for `first`, for as long as it is here.
    room: Option<Arc<OwnedSemaphorePermit>>,
}

impl RequestBody {
    /// A body of one document; none when it is empty.
    pub(super) fn whole(document: Bytes) -> Self {
        Self {
            first: (!document.is_empty()).then(|| Chunk::bare(document)),
            rest: None,
            room: None,
        }
    }

    /// A first frame and all that follow, until the queue's senders are gone.
    pub(super) fn stream(first: Chunk, rest: mpsc::Receiver<Chunk>) -> Self {
        Self {
            first: Some(first),
            rest: Some(rest),
            room: None,
        }
    }

    /// What it costs until the guest has it, in bytes.
    pub(super) fn cost_bytes(&self) -> usize {
        MIN_REQUEST_BYTES + self.first.as_ref().map_or(0, Chunk::remaining)
    }

    /// Keeps this until the first chunk is on its way, or given up.
    pub(super) fn hold(&mut self, room: Arc<OwnedSemaphorePermit>) {
        self.room = Some(room);
    }
}

impl Body for RequestBody {
    type Data = Chunk;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Infallible>>> {
        self.room = None;
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        match &mut self.rest {
            Some(rest) => rest
                .poll_recv(cx)
                .map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk)))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_none()
    }
}

/// Reads a short answer as JSON. Over its bound or not the document: the guest broke the protocol.
pub(super) async fn read_document<T: DeserializeOwned>(body: Incoming) -> Result<T, LinkError> {
    let collected = Limited::new(body, MAX_DOCUMENT_BYTES)
        .collect()
        .await
        .map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                LinkError::Protocol("an answer is over its bound".into())
            } else {
                LinkError::Gone
            }
        })?;
    serde_json::from_slice(&collected.to_bytes())
        .map_err(|_| LinkError::Protocol("an answer is not the expected document".into()))
}
