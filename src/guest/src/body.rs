//! Response bodies, and the reading of short requests.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use casemate_link::limits::MAX_DOCUMENT_BYTES;
use casemate_link::wire::Chunk;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::stream::Reader;

/// What a response carries.
#[derive(Debug)]
pub(crate) enum Answer {
    /// One chunk, or none.
    Whole(Option<Chunk>),
    /// What comes as it comes. Dropped when nobody listens any more, which the sender sees.
    Stream(mpsc::Receiver<Chunk>),
    /// What a process says. Dropped when nobody listens any more, which the process sees.
    Reader(Reader),
}

impl Body for Answer {
    type Data = Chunk;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Infallible>>> {
        let chunk = match self.get_mut() {
            Self::Whole(chunk) => Poll::Ready(chunk.take()),
            Self::Stream(chunks) => chunks.poll_recv(cx),
            Self::Reader(reader) => reader.poll_chunk(cx),
        };
        chunk.map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(chunk) => chunk.is_none(),
            // Known with the last frame, so that it carries the stream's end itself.
            Self::Stream(chunks) => chunks.is_closed() && chunks.is_empty(),
            Self::Reader(reader) => reader.is_done(),
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
