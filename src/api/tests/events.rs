//! Server-sent events: taken up where they were lost.

use futures_util::{StreamExt, stream};
use http::Method;
use http_body_util::BodyExt;

use super::{Door, get, problem};
use crate::api::error::Problem;
use crate::api::route::{Answer, Call, Reply, schema_of};
use crate::api::sse::{self, SseEvent};

/// Counts from after the last event that the client has seen.
pub(super) async fn count(call: &Call) -> Result<Reply, Problem> {
    let last: Option<u64> = sse::last_event_id(call)?;
    let first = last.map_or(0, |last| last + 1);
    let events = stream::iter(first..3).map(|n| SseEvent::new("number", Some(&n), &n));
    Ok(sse::reply(
        call.stop.clone(),
        events.chain(stream::pending()),
    ))
}

#[tokio::test]
async fn events_are_taken_up_where_they_were_lost_and_end_when_the_daemon_stops() {
    let events = Answer::Events(schema_of::<u64>);
    let door = Door::open(&get(events, |call| Box::pin(count(call)))).await;
    let mut open = Vec::new();
    for (headers, first) in [(&[][..], 0), (&[("last-event-id", "1")], 2)] {
        let answer = door.ask(Method::GET, headers).await;
        assert_eq!(answer.status(), 200);
        for (name, value) in [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-store"),
            ("x-accel-buffering", "no"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(answer.headers()[name], value);
        }
        assert!(answer.headers().contains_key("x-request-id"));
        let mut body = answer.into_body();
        for n in first..3 {
            let event = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(event, format!("id: {n}\nevent: number\ndata: {n}\n\n"));
        }
        open.push(body);
    }
    let wrong = door.ask(Method::GET, &[("last-event-id", "x")]).await;
    assert_eq!(problem(wrong, 400).await.1, "invalid_last_event_id");
    door.close().await;
    for body in open {
        assert_eq!(body.collect().await.unwrap().to_bytes(), "", "a proper end");
    }
}
