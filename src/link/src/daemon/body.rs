//! The two kinds of body on this end: what a request carries, and a bounded reading of what a short answer says.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::LinkError;
use crate::limits::{MAX_CODE_BYTES, MAX_DOCUMENT_BYTES, MAX_MESSAGE_BYTES};
use crate::refusal::Refusal;
use crate::wire::Chunk;

/// A request's body: a first chunk, then whatever comes through a queue, if there is one.
#[derive(Debug)]
pub(super) struct RequestBody {
    first: Option<Chunk>,
    rest: Option<mpsc::Receiver<Chunk>>,
}

impl RequestBody {
    /// A body of one document; none when it is empty.
    pub(super) fn whole(document: Bytes) -> Self {
        Self {
            first: (!document.is_empty()).then(|| Chunk::bare(document)),
            rest: None,
        }
    }

    /// A first frame and all that follow, until the queue's senders are gone.
    pub(super) fn stream(first: Chunk, rest: mpsc::Receiver<Chunk>) -> Self {
        Self {
            first: Some(first),
            rest: Some(rest),
        }
    }
}

impl Body for RequestBody {
    type Data = Chunk;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Infallible>>> {
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

/// Makes an error of the guest's refusal; its texts may end in logs and on terminals, so they are cleaned.
pub(super) fn refused(refusal: Refusal) -> LinkError {
    let Refusal { code, message } = refusal;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if code.is_empty() || code.len() > MAX_CODE_BYTES || !code.bytes().all(plain) {
        return LinkError::Protocol("a refusal without a proper code".into());
    }
    let message = message.chars().take(MAX_MESSAGE_BYTES / 4);
    let message = message
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    LinkError::Refused { code, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_refusal_is_cleaned_or_rejected() {
        let refusal = |code: &str, message: &str| Refusal {
            code: code.into(),
            message: message.into(),
        };
        let cleaned = refused(refusal(
            "not_found",
            &format!("\x1b[31m\n{}", "x".repeat(5000)),
        ));
        match cleaned {
            LinkError::Refused { code, message } => {
                assert_eq!(code, "not_found");
                assert!(message.starts_with(" [31m x") && message.len() <= MAX_MESSAGE_BYTES);
            }
            other => panic!("{other:?}"),
        }
        for code in ["", "Not Found", "a\nb", &"x".repeat(65)] {
            assert!(matches!(refused(refusal(code, "")), LinkError::Protocol(_)));
        }
    }
}
