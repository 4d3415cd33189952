//! Sessions on the wire.

use std::collections::BTreeMap;

use http::{HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::volumes::SessionVolumeView;
use super::{PAGE, cursor, page_limit};
use crate::api::body;
use crate::api::error::Problem;
use crate::api::route::{Call, Reply};
use crate::base::clock::Timestamp;
use crate::base::id::SessionId;
use crate::model::egress::EgressRules;
use crate::model::image::ImageDigest;
use crate::model::lease::OnTimeout;
use crate::model::name::Name;
use crate::model::query::SessionFilter;
use crate::model::sandbox::{Limits, WantedLimits};
use crate::model::session::{Phase, Reason, Session};
use crate::session::manager::NewSession;

/// Longest `Idempotency-Key`.
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// What a new session shall be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateSession {
    /// The recipe; `base` when absent.
    template: Option<Name>,
    /// A name that no other live session of the team has.
    name: Option<Name>,
    /// For people and filters.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Given to every process, over the template's.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Where processes start when they do not say.
    workdir: Option<String>,
    /// Lifetime in seconds.
    timeout_s: Option<u64>,
    /// How long it may be idle, in seconds: without a call that runs or a stream that is open. As long as it lives when
    /// absent.
    idle_timeout_s: Option<u64>,
    /// What happens when its time is over, or it was idle for too long.
    #[serde(default)]
    on_timeout: OnTimeout,
    /// What it may use; the template's where absent.
    #[serde(default)]
    limits: WantedLimits,
    /// What it finds below `/volumes`: at most 8.
    #[serde(default)]
    volumes: Vec<SessionVolumeView>,
    /// Rules that narrow what its template lets it reach, by name: each allows or denies, and what they do not allow is denied.
    egress: Option<EgressRules>,
    /// Whether to answer only when the session is ready.
    #[serde(default = "yes")]
    wait: bool,
}

const fn yes() -> bool {
    true
}

/// A session.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SessionView {
    id: SessionId,
    name: Option<Name>,
    phase: Phase,
    /// Why it is in its phase, for programs.
    reason: Option<Reason>,
    /// Why, for people.
    message: Option<String>,
    /// Grows by one with each change of the phase.
    generation: u64,
    template: Name,
    /// The template's version when the session was made, which it keeps; 0 when that was before there were versions.
    template_version: u32,
    image: ImageDigest,
    labels: BTreeMap<String, String>,
    limits: Limits,
    timeout_s: u64,
    /// On which ports its services listen, as the template declares.
    ports: Vec<u16>,
    /// What it finds below `/volumes`.
    volumes: Vec<SessionVolumeView>,
    /// Its own rules, which narrow its template's.
    egress: Option<EgressRules>,
    idle_timeout_s: Option<u64>,
    on_timeout: OnTimeout,
    created_at: Timestamp,
    ready_at: Option<Timestamp>,
    /// When its time is over. While it is paused, time stands still.
    ends_at: Timestamp,
    /// Since when it is paused.
    paused_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
}

impl From<&Session> for SessionView {
    fn from(session: &Session) -> Self {
        Self {
            id: session.id,
            name: session.spec.name.clone(),
            phase: session.status.phase,
            reason: session.status.reason,
            message: session.status.message.clone(),
            generation: session.status.generation,
            template: session.spec.template.clone(),
            template_version: session.spec.template_version,
            image: session.spec.image,
            labels: session.spec.labels.clone(),
            limits: session.spec.limits,
            timeout_s: session.spec.timeout_s,
            ports: session.spec.setup.ports.clone(),
            volumes: session.spec.volumes.iter().map(Into::into).collect(),
            egress: session.spec.egress.own.clone(),
            idle_timeout_s: session.lease.idle_timeout_s,
            on_timeout: session.lease.on_timeout,
            created_at: session.created_at,
            ready_at: session.ready_at,
            ends_at: session.lease.ends_at,
            paused_at: session.lease.paused_at,
            ended_at: session.ended_at,
        }
    }
}

/// A page of sessions.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SessionPage {
    items: Vec<SessionView>,
    /// Give it as `cursor` to get the next page; absent on the last one.
    next_cursor: Option<SessionId>,
}

pub(crate) async fn create(call: &Call) -> Result<Reply, Problem> {
    let wanted: CreateSession = body::json(call)?;
    let principal = call.principal()?;
    let team = principal.team().cloned();
    let team = team.ok_or_else(|| Problem::bad_request("a session belongs to a key's team"))?;
    let idempotency = idempotency_key(call)?.map(|key| (key, call.body.as_ref()));
    let wait = wanted.wait;
    let new = NewSession {
        template: wanted.template,
        name: wanted.name,
        labels: wanted.labels,
        env: wanted.env,
        workdir: wanted.workdir,
        timeout_s: wanted.timeout_s,
        idle_timeout_s: wanted.idle_timeout_s,
        on_timeout: wanted.on_timeout,
        limits: wanted.limits,
        volumes: wanted.volumes.into_iter().map(Into::into).collect(),
        egress: wanted.egress,
    };
    let created = call
        .app
        .create_session(principal, &team, new, idempotency, wait)
        .await;
    let (session, repeated) = created?;
    let location = HeaderValue::from_str(&format!("/v1/sessions/{}", session.id));
    let reply = Reply::json(StatusCode::CREATED, &SessionView::from(session.as_ref()));
    let reply = match location {
        Ok(location) => reply.with(header::LOCATION, location),
        Err(_) => reply,
    };
    Ok(if repeated {
        reply.with(
            header::HeaderName::from_static("idempotency-replayed"),
            HeaderValue::from_static("true"),
        )
    } else {
        reply
    })
}

pub(crate) async fn get(call: &Call) -> Result<Reply, Problem> {
    let session = call
        .app
        .session(call.principal()?, call.segment("id")?)
        .await?;
    Ok(Reply::json(
        StatusCode::OK,
        &SessionView::from(session.as_ref()),
    ))
}

pub(crate) async fn delete(call: &Call) -> Result<Reply, Problem> {
    let session = call
        .app
        .end_session(call.principal()?, call.segment("id")?)
        .await?;
    Ok(if session.ended_at.is_some() {
        Reply::empty(StatusCode::NO_CONTENT)
    } else {
        Reply::json(StatusCode::ACCEPTED, &SessionView::from(session.as_ref()))
    })
}

pub(crate) async fn list(call: &Call) -> Result<Reply, Problem> {
    let mut filter = SessionFilter {
        limit: PAGE,
        ..SessionFilter::default()
    };
    for (name, value) in body::query(call, &["limit", "cursor", "phase", "name", "label"])? {
        match name.as_str() {
            "limit" => filter.limit = page_limit(&value)?,
            "cursor" => filter.before = Some(cursor(&value)?),
            "phase" => filter.phases.push(Phase::parse(&value).ok_or_else(|| {
                let all = Phase::ALL.map(Phase::as_str).join(", ");
                Problem::bad_request(format!("phase: one of {all}"))
            })?),
            "name" => {
                let name = value
                    .parse()
                    .map_err(|error| Problem::bad_request(format!("name: {error}")))?;
                filter.name = Some(name);
            }
            _ => {
                let (key, value) = value
                    .split_once('=')
                    .ok_or_else(|| Problem::bad_request("label: write it as k=v"))?;
                filter.labels.push((key.to_owned(), value.to_owned()));
            }
        }
    }
    let limit = filter.limit;
    let sessions = call.app.sessions(call.principal()?, filter).await?;
    let full = u32::try_from(sessions.len()).is_ok_and(|found| found == limit);
    let page = SessionPage {
        next_cursor: sessions.last().filter(|_| full).map(|session| session.id),
        items: sessions.iter().map(SessionView::from).collect(),
    };
    Ok(Reply::json(StatusCode::OK, &page))
}

pub(in crate::api) fn idempotency_key(call: &Call) -> Result<Option<String>, Problem> {
    let Some(value) = call.headers.get("idempotency-key") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("");
    let fits = (1..=MAX_IDEMPOTENCY_KEY).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic());
    if fits {
        Ok(Some(text.to_owned()))
    } else {
        Err(Problem::bad_request(format!(
            "Idempotency-Key: 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters"
        )))
    }
}
