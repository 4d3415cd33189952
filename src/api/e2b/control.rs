//! E2B's control routes, both generations side by side.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::error::Dialect;
use super::session_of;
use super::views::{
    Chosen, Detail, Listed, NewSandbox, Reachable, Sandbox, State, metrics, template_name,
};
use crate::api::body::{self, Query};
use crate::api::error::Problem;
use crate::api::reply::Reply;
use crate::api::route::{Answer, Call, Handler, Request, Route, schema_of};
use crate::api::v1::sessions::idempotency_key;
use crate::base::clock::Timestamp;
use crate::base::id::SessionId;
use crate::model::name::Name;
use crate::model::query::SessionFilter;
use crate::model::sandbox::WantedLimits;
use crate::model::session::{Phase, Session};
use crate::model::template::Precondition;
use crate::model::web::Authority;
use crate::session::manager::NewSession;
use crate::session::wish::Change;

/// How long a sandbox lives when nobody says, in the newer and in the older generation.
const TIMEOUT_S: u64 = 300;
const OLD_TIMEOUT_S: u64 = 15;

/// Sandboxes of a page, when nobody says, and at most.
const LISTED: usize = 100;
const MAX_LISTED: usize = 100;

/// Sessions that are read at once.
const READ: u32 = 200;

const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");

const fn route(
    method: Method,
    path: &'static str,
    name: &'static str,
    about: &'static str,
    handler: Handler,
) -> Route {
    let mut route = Route::new(method, path, name, about, handler);
    route.dialect = Dialect::E2b;
    route
}

const fn taking(
    method: Method,
    path: &'static str,
    name: &'static str,
    about: &'static str,
    handler: Handler,
) -> Route {
    route(method, path, name, about, handler).request(Request::Json(schema_of::<serde_json::Value>))
}

/// The routes, for whoever has an API key.
pub(in crate::api) const ROUTES: &[Route] = &[
    taking(
        Method::POST,
        "/v2/sandboxes",
        "e2b_create",
        "Make a sandbox.",
        |call| Box::pin(create(call, TIMEOUT_S)),
    )
    .answer(201, Answer::Empty),
    taking(
        Method::POST,
        "/sandboxes",
        "e2b_create_v1",
        "Make a sandbox.",
        |call| Box::pin(create(call, OLD_TIMEOUT_S)),
    )
    .answer(201, Answer::Empty),
    route(
        Method::GET,
        "/v2/sandboxes",
        "e2b_list",
        "List sandboxes.",
        |call| Box::pin(list(call, &["running", "paused"])),
    ),
    route(
        Method::GET,
        "/sandboxes",
        "e2b_list_v1",
        "List sandboxes that run.",
        |call| Box::pin(list(call, &["running"])),
    ),
    route(
        Method::GET,
        "/sandboxes/{id}",
        "e2b_get",
        "Look at a sandbox.",
        |call| Box::pin(get(call)),
    ),
    route(
        Method::DELETE,
        "/sandboxes/{id}",
        "e2b_kill",
        "End a sandbox.",
        |call| Box::pin(kill(call)),
    ),
    taking(
        Method::POST,
        "/v2/sandboxes/{id}/connect",
        "e2b_connect",
        "Wake a sandbox, and get its tokens.",
        |call| Box::pin(connect(call)),
    ),
    taking(
        Method::POST,
        "/sandboxes/{id}/connect",
        "e2b_connect_v1",
        "Wake a sandbox, and get its tokens.",
        |call| Box::pin(connect(call)),
    ),
    taking(
        Method::POST,
        "/sandboxes/{id}/resume",
        "e2b_resume",
        "Wake a sandbox.",
        |call| Box::pin(resume(call)),
    ),
    taking(
        Method::POST,
        "/sandboxes/{id}/pause",
        "e2b_pause",
        "Make a sandbox stand still.",
        |call| Box::pin(pause(call)),
    ),
    taking(
        Method::POST,
        "/sandboxes/{id}/timeout",
        "e2b_timeout",
        "Say how long a sandbox lives from now.",
        |call| Box::pin(timeout(call)),
    ),
    taking(
        Method::POST,
        "/sandboxes/{id}/refreshes",
        "e2b_refresh",
        "Let a sandbox live for longer.",
        |call| Box::pin(refresh(call)),
    ),
    taking(
        Method::PUT,
        "/sandboxes/{id}/network",
        "e2b_network",
        "Say what a sandbox may reach.",
        |call| Box::pin(network(call)),
    ),
    route(
        Method::GET,
        "/sandboxes/{id}/metrics",
        "e2b_metrics",
        "What a sandbox uses.",
        |call| Box::pin(usage(call)),
    ),
    taking(
        Method::POST,
        "/sandboxes/{id}/snapshots",
        "e2b_snapshot",
        "Keep a sandbox's files as a template.",
        |call| Box::pin(snapshot(call)),
    ),
    route(
        Method::GET,
        "/snapshots",
        "e2b_snapshots",
        "List snapshots.",
        |call| Box::pin(snapshots(call)),
    ),
    taking(
        Method::POST,
        "/sandboxes/{id}/fork",
        "e2b_fork",
        "Refused: memory is not copied.",
        |call| Box::pin(fork(call)),
    ),
    route(
        Method::DELETE,
        "/templates/{id}",
        "e2b_remove_template",
        "Remove a template.",
        |call| Box::pin(remove_template(call)),
    ),
    route(
        Method::GET,
        "/templates/aliases/{id}",
        "e2b_alias",
        "Whether there is a template.",
        |call| Box::pin(alias(call)),
    ),
];

/// The session that a path names. What cannot be one is none.
fn id(call: &Call) -> Result<SessionId, Problem> {
    let text = call.path.get("id").map_or("", String::as_str);
    session_of(text).ok_or_else(not_found)
}

fn not_found() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "session_not_found",
        "the sandbox was not found",
    )
}

/// A sandbox that lives.
async fn live(call: &Call) -> Result<std::sync::Arc<Session>, Problem> {
    let session = call.app.session(call.principal()?, id(call)?).await?;
    if session.ended_at.is_some() || session.status.phase == Phase::Stopping {
        return Err(not_found());
    }
    Ok(session)
}

/// The domain below which sandboxes are found, with the port at which the client came.
fn domain(call: &Call) -> Option<String> {
    let domain = call.app.endpoints().domain.as_ref()?;
    let host = call.headers.get(http::header::HOST);
    let said = host
        .and_then(|host| host.to_str().ok())
        .or(call.authority.as_deref());
    let port = said.and_then(|said| said.parse::<Authority>().ok()?.port);
    Some(match port {
        Some(port) => format!("{domain}:{port}"),
        None => domain.clone(),
    })
}

fn sandbox(call: &Call, session: &Session, status: StatusCode) -> Result<Reply, Problem> {
    let tokens = call.app.access_tokens(call.principal()?, session)?;
    Ok(Reply::json(
        status,
        &Sandbox::new(session, tokens, domain(call)),
    ))
}

async fn create(call: &Call, timeout_s: u64) -> Result<Reply, Problem> {
    let wanted: NewSandbox = body::json(call)?;
    wanted.check()?;
    let principal = call.principal()?;
    let team = principal.team().cloned();
    let team = team.ok_or_else(|| Problem::bad_request("a sandbox belongs to a key's team"))?;
    let idempotency = idempotency_key(call)?.map(|key| (key, call.body.as_ref()));
    let new = NewSession {
        template: Some(wanted.template()?),
        name: None,
        timeout_s: Some(wanted.timeout.unwrap_or(timeout_s)),
        idle_timeout_s: None,
        on_timeout: wanted.on_timeout(),
        volumes: wanted.volumes()?,
        egress: wanted.egress()?,
        workdir: None,
        limits: WantedLimits::default(),
        labels: wanted.metadata,
        env: wanted.env_vars,
    };
    let created = call
        .app
        .create_session(principal, &team, new, idempotency, true);
    let (session, _) = created.await.map_err(|error| match Problem::from(error) {
        problem if problem.code() == "unknown_template" => Problem::new(
            StatusCode::NOT_FOUND,
            "template_not_found",
            problem.detail().to_owned(),
        ),
        problem => problem,
    })?;
    sandbox(call, &session, StatusCode::CREATED)
}

async fn get(call: &Call) -> Result<Reply, Problem> {
    let session = live(call).await?;
    let tokens = call.app.access_tokens(call.principal()?, &session)?;
    Ok(Reply::json(
        StatusCode::OK,
        &Detail::new(&session, tokens, domain(call)),
    ))
}

async fn kill(call: &Call) -> Result<Reply, Problem> {
    live(call).await?;
    call.app.end_session(call.principal()?, id(call)?).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

/// For how long.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Life {
    timeout: Option<u64>,
    duration: Option<u64>,
    /// Whether the memory is to be as it was.
    memory: Option<bool>,
}

async fn connect(call: &Call) -> Result<Reply, Problem> {
    let life: Life = body::json(call)?;
    let session = live(call).await?;
    if State::of(&session) == State::Paused {
        return wake(call, &life).await;
    }
    let wanted = life.timeout.unwrap_or(TIMEOUT_S);
    let session = if call.app.now().after(Duration::from_secs(wanted)) > session.lease.ends_at {
        lease(call, wanted).await?
    } else {
        session
    };
    sandbox(call, &session, StatusCode::OK)
}

async fn resume(call: &Call) -> Result<Reply, Problem> {
    let life: Life = body::json(call)?;
    if State::of(&*live(call).await?) == State::Running {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "session_running",
            "the sandbox runs already",
        ));
    }
    wake(call, &life).await
}

async fn wake(call: &Call, life: &Life) -> Result<Reply, Problem> {
    if life.memory == Some(false) {
        let detail =
            "a sandbox goes on with the memory that it had; it cannot begin anew from its files";
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "not_supported",
            detail,
        ));
    }
    let timeout_s = Some(life.timeout.unwrap_or(TIMEOUT_S));
    let session = call
        .app
        .resume_session(call.principal()?, id(call)?, timeout_s)
        .await?;
    sandbox(call, &session, StatusCode::CREATED)
}

async fn lease(call: &Call, timeout_s: u64) -> Result<std::sync::Arc<Session>, Problem> {
    let change = Change {
        timeout_s: Some(timeout_s),
        ..Change::default()
    };
    Ok(call
        .app
        .change_session(call.principal()?, id(call)?, change)
        .await?)
}

/// What a pause keeps.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pause {
    memory: Option<bool>,
}

async fn pause(call: &Call) -> Result<Reply, Problem> {
    let wanted: Pause = body::json(call)?;
    if wanted.memory == Some(false) {
        let detail = "a pause keeps the memory as well; a snapshot keeps the files only";
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "not_supported",
            detail,
        ));
    }
    if State::of(&*live(call).await?) == State::Paused {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "session_paused",
            "the sandbox is paused already",
        ));
    }
    call.app.pause_session(call.principal()?, id(call)?).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

async fn timeout(call: &Call) -> Result<Reply, Problem> {
    let life: Life = body::json(call)?;
    let timeout = life
        .timeout
        .ok_or_else(|| Problem::bad_request("timeout: seconds from now"))?;
    live(call).await?;
    lease(call, timeout).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

async fn refresh(call: &Call) -> Result<Reply, Problem> {
    let life: Life = body::json(call)?;
    let session = live(call).await?;
    let wanted = life.duration.unwrap_or(OLD_TIMEOUT_S);
    if call.app.now().after(Duration::from_secs(wanted)) > session.lease.ends_at {
        lease(call, wanted).await?;
    }
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

async fn network(call: &Call) -> Result<Reply, Problem> {
    let wanted: Reachable = body::json(call)?;
    live(call).await?;
    let change = Change {
        egress: wanted.egress()?,
        ..Change::default()
    };
    call.app
        .change_session(call.principal()?, id(call)?, change)
        .await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

async fn usage(call: &Call) -> Result<Reply, Problem> {
    let mut query = Query::read(call, &["start", "end"])?;
    let (start, end) = (query.number::<u64>("start")?, query.number::<u64>("end")?);
    let session = live(call).await?;
    let usage = call.app.usage(call.principal()?, id(call)?).await?;
    let mut looks = usage.past;
    looks.push(usage.now);
    let mut told = metrics(&session, &looks);
    let within = |at: i64| {
        let at = u64::try_from(at).unwrap_or(0);
        start.is_none_or(|start| at >= start) && end.is_none_or(|end| at <= end)
    };
    told.retain(|metric| within(metric.timestamp_unix));
    Ok(Reply::json(StatusCode::OK, &told))
}

/// A list's query: pages of all that is chosen, newest first unless it is asked for otherwise.
async fn list(call: &Call, states: &[&'static str]) -> Result<Reply, Problem> {
    let known = [
        "metadata",
        "state",
        "order",
        "startedAfter",
        "template",
        "nextToken",
        "limit",
    ];
    let mut chosen = Chosen::default();
    let (mut limit, mut from, mut is_ascending) = (LISTED, None::<SessionId>, false);
    for (name, value) in body::query(call, &known)? {
        match name.as_str() {
            // Clients encode names and values, and then the pairs.
            "metadata" => {
                chosen.metadata = body::pairs(&value)?
                    .iter()
                    .map(|(name, value)| Ok((body::decode(name)?, body::decode(value)?)))
                    .collect::<Result<_, Problem>>()?;
            }
            "state" => {
                for word in value.split(',') {
                    let state = states.iter().find(|state| **state == word.trim());
                    let bad = || Problem::bad_request("state: running, paused");
                    chosen.states.insert(state.copied().ok_or_else(bad)?);
                }
            }
            "order" => is_ascending = value.eq_ignore_ascii_case("asc"),
            "startedAfter" => {
                let at: Result<Timestamp, _> = serde_json::from_value(value.into());
                chosen.after = Some(at.map_err(|_| {
                    Problem::bad_request("startedAfter: a time, as RFC 3339 writes it")
                })?);
            }
            "template" => chosen.template = Some(value),
            "nextToken" => {
                from = Some(
                    session_of(&value)
                        .ok_or_else(|| Problem::bad_request("nextToken: as it was given"))?,
                );
            }
            _ => {
                let number: Option<usize> = value.parse().ok();
                limit = number
                    .filter(|number| (1..=MAX_LISTED).contains(number))
                    .ok_or_else(|| Problem::bad_request(format!("limit: 1 to {MAX_LISTED}")))?;
            }
        }
    }
    if chosen.states.is_empty() {
        chosen.states.extend(states);
    }
    let mut all = all_live(call, &chosen).await?;
    // Identifiers are in the order of making.
    if is_ascending {
        all.reverse();
    }
    let is_past = |session: &Session| match from {
        None => true,
        Some(from) if is_ascending => session.id > from,
        Some(from) => session.id < from,
    };
    let mut rest = all.iter().filter(|session| is_past(session));
    let page: Vec<&Session> = rest.by_ref().take(limit).collect();
    let next = page
        .last()
        .filter(|_| rest.next().is_some())
        .map(|last| last.id.suffix());
    let views: Vec<Listed> = page.into_iter().map(Listed::from).collect();
    let reply = Reply::json(StatusCode::OK, &views);
    Ok(
        match next.and_then(|token| HeaderValue::from_str(&token).ok()) {
            Some(token) => reply.with(NEXT_TOKEN, token),
            None => reply,
        },
    )
}

/// Every live session of the team that is chosen, newest first. They are as many as may live at once.
async fn all_live(call: &Call, chosen: &Chosen) -> Result<Vec<Session>, Problem> {
    let (principal, mut all) = (call.principal()?, Vec::new());
    let mut filter = SessionFilter {
        phases: vec![Phase::Pending, Phase::Starting, Phase::Ready, Phase::Paused],
        labels: chosen.metadata.clone(),
        limit: READ,
        ..SessionFilter::default()
    };
    loop {
        let page = call.app.sessions(principal, filter.clone()).await?;
        let is_last = page.len() < READ as usize;
        filter.before = page.last().map(|session| session.id);
        all.extend(page.into_iter().filter(|session| chosen.takes(session)));
        if is_last {
            return Ok(all);
        }
    }
}

/// A snapshot to make.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NewSnapshot {
    name: Option<String>,
    memory: Option<bool>,
}

/// A snapshot.
#[derive(Debug, Serialize)]
struct SnapshotView {
    #[serde(rename = "snapshotID")]
    id: Name,
    names: Vec<Name>,
}

async fn snapshot(call: &Call) -> Result<Reply, Problem> {
    let wanted: NewSnapshot = body::json(call)?;
    if wanted.memory == Some(true) {
        let detail = "a snapshot keeps the files and not the memory";
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "not_supported",
            detail,
        ));
    }
    let session = live(call).await?;
    let name = match &wanted.name {
        Some(name) => name.clone(),
        None => format!("{}{}", snapshots_of(session.id), call.request_id.suffix()),
    };
    let name: Name = name
        .parse()
        .map_err(|error| Problem::bad_request(format!("name: {error}")))?;
    let made = call
        .app
        .snapshot_session(call.principal()?, session.id, name, Precondition::None);
    let name = made.await?.template.name;
    let view = SnapshotView {
        id: name.clone(),
        names: vec![name],
    };
    Ok(Reply::json(StatusCode::CREATED, &view))
}

/// What the names of snapshots of a sandbox begin with that nobody named.
fn snapshots_of(session: SessionId) -> String {
    format!("snapshot-{}-", session.suffix())
}

/// The snapshots that nobody named, of a sandbox or of all: they are known by their names.
async fn snapshots(call: &Call) -> Result<Reply, Problem> {
    let mut query = Query::read(call, &["sandboxID", "name", "limit", "nextToken"])?;
    let beginning = match query.text("sandboxID") {
        Some(id) => snapshots_of(session_of(&id).ok_or_else(not_found)?),
        None => "snapshot-".to_owned(),
    };
    let templates = call.app.templates(call.principal()?).await?;
    let found = templates
        .into_iter()
        .filter(|template| template.name.as_str().starts_with(&beginning));
    let views: Vec<_> = found
        .map(|template| SnapshotView {
            id: template.name.clone(),
            names: vec![template.name],
        })
        .collect();
    Ok(Reply::json(StatusCode::OK, &views))
}

async fn fork(call: &Call) -> Result<Reply, Problem> {
    live(call).await?;
    let detail = "a sandbox that runs cannot be copied with its memory; make a snapshot, which keeps the files, and sandboxes of it";
    Err(Problem::new(
        StatusCode::NOT_IMPLEMENTED,
        "not_supported",
        detail,
    ))
}

async fn remove_template(call: &Call) -> Result<Reply, Problem> {
    let name = template_name(call.path.get("id").map_or("", String::as_str))?;
    let removed = call
        .app
        .remove_template(call.principal()?, name, Precondition::None);
    removed.await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

async fn alias(call: &Call) -> Result<Reply, Problem> {
    let name = template_name(call.path.get("id").map_or("", String::as_str))?;
    let template = call.app.template(call.principal()?, &name, None).await?;
    let view = BTreeMap::from([
        (
            "templateID",
            serde_json::Value::from(template.name.as_str()),
        ),
        ("public", false.into()),
    ]);
    Ok(Reply::json(StatusCode::OK, &view))
}
