//! Response bodies, and the reading of short requests.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use casemate_link::limits::MAX_DOCUMENT_BYTES;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// What a response carries.
#[derive(Debug)]
pub(crate) enum Answer {
    /// One chunk, or none.
    Whole(Option<Bytes>),
    /// What a process says. Dropped when nobody listens any more, which the sender sees.
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = match self.get_mut() {
            Self::Whole(chunk) => Poll::Ready(chunk.take()),
            Self::Stream(chunks) => chunks.poll_recv(cx),
        };
        chunk.map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(chunk) => chunk.is_none(),
            // Known with the last frame, so that it carries the stream's end itself.
            Self::Stream(chunks) => chunks.is_closed() && chunks.is_empty(),
        }
    }
}

/// A short request's document, if it is one.
pub(crate) async fn read_document<T: DeserializeOwned>(body: Incoming) -> Option<T> {
    let collected = Limited::new(body, MAX_DOCUMENT_BYTES)
        .collect()
        .await
        .ok()?;
    serde_json::from_slice(&collected.to_bytes()).ok()
}
