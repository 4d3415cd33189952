//! Server-sent events (WHATWG HTML, section 9.2): a stream of JSON events that a client takes up again
//! where it lost it.
//!
//! Every event is one line of JSON. A comment now and then shows the client, and everything between,
//! that the stream lives. When the daemon drains, the stream ends properly: clients then come back by
//! themselves, with the identifier of the last event that they have seen.

use std::fmt::Display;
use std::fmt::Write;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::error::Problem;
use super::reply::Reply;
use super::route::{BoxError, Call};

/// Longest silence on a stream: shorter than what proxies and translators of addresses forget after.
pub const HEARTBEAT: Duration = Duration::from_secs(15);

/// The header that tells where to go on.
pub const LAST_EVENT_ID: &str = "last-event-id";

const CONTENT_TYPE: &str = "text/event-stream";

/// Tells nginx and those who follow it not to hold events back.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// One event, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseEvent(Bytes);

impl SseEvent {
    /// An event of the kind `event`. With an `id`, a client that comes back names it.
    ///
    /// # Errors
    /// When the data cannot be written as JSON, or a name or identifier cannot be told from what
    /// surrounds it: it has a line break or a NUL.
    pub fn new<T: Serialize>(
        event: &str,
        id: Option<&dyn Display>,
        data: &T,
    ) -> Result<Self, BoxError> {
        let mut text = String::new();
        if let Some(id) = id {
            writeln!(text, "id: {}", field(&id.to_string())?)?;
        }
        // JSON has no line break outside of strings, and inside of them it is written `\n`.
        let data = serde_json::to_string(data)?;
        write!(text, "event: {}\ndata: {data}\n\n", field(event)?)?;
        Ok(Self(text.into()))
    }
}

impl SseEvent {
    /// The same with data that is one line of text already, and is to arrive as it is.
    ///
    /// # Errors
    /// When it is more than one.
    pub fn line(event: &str, id: &dyn Display, line: &str) -> Result<Self, BoxError> {
        let (id, event, line) = (id.to_string(), field(event)?, field(line)?);
        let text = format!("id: {}\nevent: {event}\ndata: {line}\n\n", field(&id)?);
        Ok(Self(text.into()))
    }
}

fn field(text: &str) -> Result<&str, BoxError> {
    if text.contains(['\n', '\r', '\0']) {
        return Err("a field of an event has a line break".into());
    }
    Ok(text)
}

/// Answers with events until there are no more, the client goes away or `stop` is cancelled, which is
/// [`Call::stop`]. An error cuts the connection.
pub fn reply<S, E>(stop: CancellationToken, events: S) -> Reply
where
    S: Stream<Item = Result<SseEvent, E>> + Send + 'static,
    E: Into<BoxError> + 'static,
{
    let pieces =
        futures_util::stream::unfold((Box::pin(events), stop), async |(mut events, stop)| {
            let piece = tokio::select! {
                // A daemon that stops is not kept by a stream that always has more.
                biased;
                () = stop.cancelled() => return None,
                event = events.next() => event?.map(|event| event.0).map_err(Into::into),
                () = tokio::time::sleep(HEARTBEAT) => Ok(Bytes::from_static(b":\n\n")),
            };
            Some((piece, (events, stop)))
        });
    Reply::stream(StatusCode::OK, CONTENT_TYPE, None, pieces)
        .with(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))
        .with(X_ACCEL_BUFFERING, HeaderValue::from_static("no"))
}

/// Where the client was, when it was there before.
///
/// # Errors
/// 400 when it is nothing that we gave out.
pub fn last_event_id<T: FromStr>(call: &Call) -> Result<Option<T>, Problem> {
    let Some(value) = call.headers.get(LAST_EVENT_ID) else {
        return Ok(None);
    };
    let id = value.to_str().ok().and_then(|text| text.parse().ok());
    match id {
        Some(id) => Ok(Some(id)),
        None => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid_last_event_id",
            "Last-Event-ID: send the id of an event of this stream, unchanged",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::BodyExt;
    use proptest::prelude::*;
    use tokio::time::Instant;

    type Events = Vec<Result<SseEvent, BoxError>>;

    fn written(event: &SseEvent) -> &str {
        std::str::from_utf8(&event.0).unwrap()
    }

    #[test]
    fn an_event_is_its_fields_and_an_empty_line() {
        let event = SseEvent::new("phase", Some(&7), &serde_json::json!({"a": "b\nc"})).unwrap();
        assert_eq!(
            written(&event),
            "id: 7\nevent: phase\ndata: {\"a\":\"b\\nc\"}\n\n"
        );
        let event = SseEvent::new("gap", None, &1).unwrap();
        assert_eq!(written(&event), "event: gap\ndata: 1\n\n");
        for bad in ["a\nb", "a\rb", "a\0b"] {
            assert!(SseEvent::new("x", Some(&bad), &1).is_err());
            assert!(SseEvent::new(bad, None, &1).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_data_breaks_out_of_its_line(data: String, id in "[^\r\n\0]{0,9}") {
            let event = SseEvent::new("x", Some(&id), &data).unwrap();
            let lines: Vec<_> = written(&event).split(['\r', '\n']).collect();
            prop_assert_eq!(lines.len(), 5);
            let back: String = serde_json::from_str(&lines[2]["data: ".len()..]).unwrap();
            prop_assert_eq!(back, data);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_beats_and_ends_when_the_daemon_stops() {
        let stop = CancellationToken::new();
        let first = SseEvent::new("x", None, &1);
        let events = stream::iter([first]).chain(stream::pending());
        let mut body = reply(stop.clone(), events).response.into_body();
        let mut next = async || Some(body.frame().await?.unwrap().into_data().unwrap());
        let began = Instant::now();
        assert_eq!(next().await.unwrap(), "event: x\ndata: 1\n\n");
        assert_eq!(began.elapsed(), Duration::ZERO);
        for beat in 1..=3 {
            assert_eq!(next().await.unwrap(), ":\n\n");
            assert!(began.elapsed() >= HEARTBEAT * beat);
            assert!(began.elapsed() < HEARTBEAT * beat + Duration::from_secs(1));
        }
        let before = Instant::now();
        stop.cancel();
        assert_eq!(next().await, None);
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn an_error_is_no_end() {
        let events: Events = vec![Err("lost".into())];
        let mut body = reply(CancellationToken::new(), stream::iter(events))
            .response
            .into_body();
        assert!(body.frame().await.unwrap().is_err());
    }
}
