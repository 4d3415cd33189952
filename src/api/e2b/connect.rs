//! The Connect protocol: calls and streams of messages over HTTP POST, in JSON or binary protobuf, as E2B's clients speak it.
//!
//! A call is one message each way. A stream is messages with a flag and a length before each; the last one of an answer says how it ended.
//! Nothing is compressed, which clients must be able to live with.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, StatusCode, header};
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::error::Problem;
use crate::api::intake::BodyReader;
use crate::api::reply::Reply;
use crate::api::route::{BoxError, Call};
use crate::base::id::RequestId;

/// Longest message of a client's: what one write to a process may carry, in base64.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Flag and length before each message of a stream.
const HEAD_BYTES: usize = 5;
/// The flag of what is compressed.
const COMPRESSED: u8 = 1;
/// The flag of the last message of an answer.
const LAST: u8 = 2;

const TIMEOUT: &str = "connect-timeout-ms";

/// A message in both encodings.
pub(in crate::api) trait Both:
    Message + Default + Serialize + DeserializeOwned
{
}
impl<T: Message + Default + Serialize + DeserializeOwned> Both for T {}

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codec {
    Json,
    Binary,
}

/// What a request says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spoken {
    codec: Codec,
    is_stream: bool,
}

/// How a call failed (Connect protocol, error codes).
#[derive(Debug, Serialize)]
pub(in crate::api) struct Fault {
    code: &'static str,
    message: String,
}

impl Fault {
    /// The same in Connect's words.
    pub(in crate::api) fn of(status: StatusCode, code: &str, message: String) -> Self {
        let code = match (status.as_u16(), code) {
            (_, "file_exists") => "already_exists",
            (_, "bad_workdir" | "wrong_file_kind" | "condition_failed")
            | (400 | 415 | 416 | 422, _) => "invalid_argument",
            (401, _) => "unauthenticated",
            (403, _) => "permission_denied",
            (404, _) => "not_found",
            (408 | 504, _) => "deadline_exceeded",
            (409 | 412, _) => "failed_precondition",
            (413 | 429 | 507, _) => "resource_exhausted",
            (501, _) => "unimplemented",
            (502 | 503, _) => "unavailable",
            _ => "internal",
        };
        Self { code, message }
    }

    fn of_problem(problem: Problem, request: RequestId) -> Self {
        let (status, code, detail, _) = problem.into_parts(request);
        Self::of(status, code, detail)
    }

    /// The last message of a stream that ended so.
    pub(in crate::api) fn last(&self) -> Bytes {
        let body = serde_json::to_vec(&serde_json::json!({"error": self}));
        framed(LAST, &body.unwrap_or_default())
    }
}

impl Spoken {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let essence = content_type.split(';').next().unwrap_or("").trim();
        let (codec, is_stream) = match essence.to_ascii_lowercase().as_str() {
            "application/json" => (Codec::Json, false),
            "application/proto" => (Codec::Binary, false),
            "application/connect+json" => (Codec::Json, true),
            "application/connect+proto" => (Codec::Binary, true),
            _ => return None,
        };
        Some(Self { codec, is_stream })
    }

    const fn content_type(self) -> &'static str {
        match (self.codec, self.is_stream) {
            (Codec::Json, false) => "application/json",
            (Codec::Binary, false) => "application/proto",
            (Codec::Json, true) => "application/connect+json",
            (Codec::Binary, true) => "application/connect+proto",
        }
    }

    fn read(call: &Call, is_stream: bool) -> Result<Self, Problem> {
        Self::of(&call.headers)
            .filter(|spoken| spoken.is_stream == is_stream)
            .ok_or_else(|| {
                let wanted = if is_stream { "connect+json" } else { "json" };
                let detail = format!(
                    "send this with Content-Type: application/{wanted}, or its protobuf kind"
                );
                Problem::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "unsupported_media_type",
                    detail,
                )
            })
    }

    fn decode<T: Both>(self, bytes: &[u8]) -> Result<T, Problem> {
        let read = match self.codec {
            // An empty message may be nothing at all.
            Codec::Json if bytes.is_empty() => Ok(T::default()),
            Codec::Json => serde_json::from_slice(bytes).map_err(|error| error.to_string()),
            Codec::Binary => T::decode(bytes).map_err(|error| error.to_string()),
        };
        read.map_err(|error| {
            Problem::bad_request(format!("the message is not what this takes: {error}"))
        })
    }

    fn encode<T: Both>(self, message: &T) -> Result<Vec<u8>, Problem> {
        match self.codec {
            Codec::Json => {
                serde_json::to_vec(message).map_err(|error| Problem::internal(error.to_string()))
            }
            Codec::Binary => Ok(message.encode_to_vec()),
        }
    }
}

/// The content type with which a stream is refused; `None` where the request is no stream.
pub(in crate::api) fn stream_type(headers: &HeaderMap) -> Option<&'static str> {
    let spoken = Spoken::of(headers)?;
    spoken.is_stream.then(|| spoken.content_type())
}

/// How long the client wants to wait for the end of the call.
///
/// # Errors
/// When it does not say so in digits.
pub(in crate::api) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let Some(value) = headers.get(TIMEOUT) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("");
    let is_plain = (1..=10).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let millis = text.parse().ok().filter(|_| is_plain);
    let millis =
        millis.ok_or_else(|| Problem::bad_request("Connect-Timeout-Ms: at most 10 digits"))?;
    Ok(Some(Duration::from_millis(millis)))
}

/// Reads the one message, and answers with one.
pub(in crate::api) async fn unary<Q: Both, A: Both>(
    call: &Call,
    answer: impl AsyncFnOnce(Q) -> Result<A, Problem>,
) -> Result<Reply, Problem> {
    let spoken = Spoken::read(call, false)?;
    let mut body = BytesMut::new();
    let mut reader = call.reader()?;
    while let Some(piece) = reader.next().await {
        body.extend_from_slice(&piece?);
        if body.len() > MAX_MESSAGE_BYTES {
            return Err(Problem::body_too_large(MAX_MESSAGE_BYTES as u64));
        }
    }
    let answered = answer(spoken.decode(&body)?).await?;
    let body = spoken.encode(&answered)?;
    Ok(Reply::bytes(
        StatusCode::OK,
        spoken.content_type(),
        body.into(),
    ))
}

/// Reads the one message of a call whose answer is a stream.
pub(in crate::api) async fn asked<Q: Both>(call: &Call) -> Result<Q, Problem> {
    let mut messages = Messages::read(call)?;
    let missing = || Problem::bad_request("the request has no message");
    messages.next().await?.ok_or_else(missing)
}

/// The messages of a client that sends a stream of them.
pub(in crate::api) struct Messages {
    spoken: Spoken,
    reader: BodyReader,
    seen: BytesMut,
}

impl Messages {
    /// Of a request.
    pub(in crate::api) fn read(call: &Call) -> Result<Self, Problem> {
        Ok(Self {
            spoken: Spoken::read(call, true)?,
            reader: call.reader()?,
            seen: BytesMut::new(),
        })
    }

    /// The next message; `None` after the last.
    ///
    /// # Errors
    /// When it is too long, is compressed, is none, or was cut short.
    pub(in crate::api) async fn next<T: Both>(&mut self) -> Result<Option<T>, Problem> {
        loop {
            if let Some(head) = self.seen.first_chunk::<HEAD_BYTES>() {
                let (flag, mut length) = (head[0], &head[1..]);
                let length = usize::try_from(length.get_u32()).unwrap_or(usize::MAX);
                if length > MAX_MESSAGE_BYTES {
                    return Err(Problem::body_too_large(MAX_MESSAGE_BYTES as u64));
                }
                if flag & COMPRESSED != 0 {
                    return Err(Problem::new(
                        StatusCode::NOT_IMPLEMENTED,
                        "compressed",
                        "messages are taken as they are, not compressed",
                    ));
                }
                if self.seen.len() >= HEAD_BYTES + length {
                    self.seen.advance(HEAD_BYTES);
                    let message = self.seen.split_to(length);
                    return self.spoken.decode(&message).map(Some);
                }
            }
            match self.reader.next().await {
                Some(piece) => self.seen.extend_from_slice(&piece?),
                None if self.seen.is_empty() => return Ok(None),
                None => return Err(Problem::bad_request("the last message was cut short")),
            }
        }
    }

    /// Answers the stream with one message.
    pub(in crate::api) fn answer<A: Both>(self, answer: &A) -> Result<Reply, Problem> {
        let mut body = BytesMut::from(framed(0, &self.spoken.encode(answer)?));
        body.extend(framed(LAST, b"{}"));
        Ok(Reply::bytes(
            StatusCode::OK,
            self.spoken.content_type(),
            body.freeze(),
        ))
    }
}

/// Answers with a stream of messages, which ends with the first problem or with none.
pub(in crate::api) fn stream<A: Both + 'static>(
    call: &Call,
    messages: impl Stream<Item = Result<A, Problem>> + Send + 'static,
) -> Result<Reply, Problem> {
    let spoken = Spoken::read(call, true)?;
    let request = call.request_id;
    let frames = futures_util::stream::unfold(Some(Box::pin(messages)), move |left| async move {
        let mut messages = left?;
        let said = messages.next().await;
        let said = said.map(|said| said.and_then(|message| spoken.encode(&message)));
        let (frame, left) = match said {
            Some(Ok(message)) => (framed(0, &message), Some(messages)),
            Some(Err(problem)) => (Fault::of_problem(problem, request).last(), None),
            None => (framed(LAST, b"{}"), None),
        };
        Some((Ok::<_, BoxError>(frame), left))
    });
    Ok(Reply::stream(
        StatusCode::OK,
        spoken.content_type(),
        None,
        frames,
    ))
}

fn framed(flag: u8, message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + message.len());
    frame.put_u8(flag);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(message);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_request_says_how_it_is_written() {
        let of = |text: &'static str| {
            let headers =
                HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(text))]);
            Spoken::of(&headers)
        };
        for (text, codec, is_stream) in [
            ("application/json", Codec::Json, false),
            ("Application/JSON; charset=utf-8", Codec::Json, false),
            ("application/proto", Codec::Binary, false),
            ("application/connect+json", Codec::Json, true),
            ("application/connect+proto", Codec::Binary, true),
        ] {
            assert_eq!(of(text), Some(Spoken { codec, is_stream }), "{text}");
        }
        for other in [
            "",
            "text/plain",
            "application/grpc",
            "application/connect+xml",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_deadline_is_plain_digits() {
        let of = |text: &'static str| {
            timeout(&HeaderMap::from_iter([(
                header::HeaderName::from_static(TIMEOUT),
                HeaderValue::from_static(text),
            )]))
        };
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
        assert_eq!(of("1500").unwrap(), Some(Duration::from_millis(1500)));
        for bad in ["", "-1", "+1", "1.5", "12345678901", "1s"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn failures_have_connects_words() {
        let code = |status, code| Fault::of(status, code, String::new()).code;
        assert_eq!(code(StatusCode::NOT_FOUND, "file_not_found"), "not_found");
        assert_eq!(code(StatusCode::CONFLICT, "file_exists"), "already_exists");
        assert_eq!(
            code(StatusCode::CONFLICT, "no_input"),
            "failed_precondition"
        );
        assert_eq!(
            code(StatusCode::UNPROCESSABLE_ENTITY, "program_refused"),
            "invalid_argument"
        );
        assert_eq!(code(StatusCode::SERVICE_UNAVAILABLE, "busy"), "unavailable");
        let last = Fault::of(StatusCode::NOT_FOUND, "x", "gone".to_owned()).last();
        assert_eq!(&last[..5], [2, 0, 0, 0, 47]);
        assert_eq!(
            &last[5..],
            br#"{"error":{"code":"not_found","message":"gone"}}"#
        );
    }
}
