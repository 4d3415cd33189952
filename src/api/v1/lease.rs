//! Deadlines of sessions on the wire: changing them, pausing, waking, and what happens to a session as it happens.

use std::collections::BTreeMap;

use futures_util::Stream;
use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sessions::SessionView;
use crate::api::body;
use crate::api::error::Problem;
use crate::api::route::{BoxError, Call, Reply};
use crate::api::sse::{self, SseEvent};
use crate::app::lease::SessionEvents;
use crate::base::clock::Timestamp;
use crate::model::egress::EgressRules;
use crate::model::lease::OnTimeout;
use crate::model::session::{Phase, Reason, Session};
use crate::session::wish::Change;

/// What shall be otherwise; what is absent stays.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeSession {
    /// Seconds from now until its time is over, at most what its template allows. Not while it is paused.
    timeout_s: Option<u64>,
    /// How long it may be idle, in seconds; 0: for as long as it lives.
    idle_timeout_s: Option<u64>,
    /// What happens when its time is over, or it was idle for too long.
    on_timeout: Option<OnTimeout>,
    /// Instead of those it has.
    labels: Option<BTreeMap<String, String>>,
    /// Rules that narrow what its template lets it reach, by name, instead of those it has; for what is asked for from then on.
    egress: Option<EgressRules>,
}

/// How to wake a session.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ResumeSession {
    /// Seconds from now until its time is over; its whole lifetime when absent.
    timeout_s: Option<u64>,
}

/// A session went from one phase to another.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PhaseView {
    at: Timestamp,
    from: Phase,
    to: Phase,
    /// Why, for programs.
    reason: Option<Reason>,
}

pub(crate) async fn change(call: &Call) -> Result<Reply, Problem> {
    let wanted: ChangeSession = body::json(call)?;
    let change = Change {
        timeout_s: wanted.timeout_s,
        idle_timeout_s: wanted.idle_timeout_s,
        on_timeout: wanted.on_timeout,
        labels: wanted.labels,
        egress: wanted.egress,
    };
    let (principal, id) = (call.principal()?, call.segment("id")?);
    Ok(shown(
        &*call.app.change_session(principal, id, change).await?,
    ))
}

pub(crate) async fn pause(call: &Call) -> Result<Reply, Problem> {
    let (principal, id) = (call.principal()?, call.segment("id")?);
    Ok(shown(&*call.app.pause_session(principal, id).await?))
}

pub(crate) async fn resume(call: &Call) -> Result<Reply, Problem> {
    let (principal, id) = (call.principal()?, call.segment("id")?);
    let wanted: ResumeSession = if call.body.is_empty() {
        ResumeSession::default()
    } else {
        body::json(call)?
    };
    let session = call.app.resume_session(principal, id, wanted.timeout_s);
    Ok(shown(&*session.await?))
}

pub(crate) async fn events(call: &Call) -> Result<Reply, Problem> {
    let (principal, id) = (call.principal()?, call.segment("id")?);
    let after = sse::last_event_id(call)?.unwrap_or(0);
    let events = call.app.session_events(principal, id, after).await?;
    Ok(sse::reply(call.stop.clone(), told(events)))
}

fn told(events: SessionEvents) -> impl Stream<Item = Result<SseEvent, BoxError>> + Send {
    futures_util::stream::unfold(events, async |mut events| {
        let event = match events.next().await? {
            Ok(event) => {
                let view = PhaseView {
                    at: event.at,
                    from: event.from,
                    to: event.to,
                    reason: event.reason,
                };
                SseEvent::new("phase", Some(&event.position), &view)
            }
            Err(error) => Err(error.into()),
        };
        Some((event, events))
    })
}

fn shown(session: &Session) -> Reply {
    Reply::json(StatusCode::OK, &SessionView::from(session))
}
