//! Alive, and able to work. Strangers may ask, so they learn no more than that; whoever has a key learns what is looked at.

use http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::error::Problem;
use crate::api::route::{Call, Reply};
use crate::base::clock::Timestamp;

/// The daemon is alive.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct HealthView {
    /// `ok`.
    status: &'static str,
}

/// What the daemon stands on.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ReadyView {
    /// Whether it can do its work.
    ready: bool,
    /// Each thing it stands on. Why one is not well is in `casemate admin status` and the log.
    checks: Vec<CheckView>,
    /// Limits of sandboxes that this machine does not enforce from outside: `memory`, `cpu`, `pids`. None in production mode,
    /// which is not ready without them.
    unenforced_limits: Vec<&'static str>,
    /// Whether sessions can have volumes here. Why not is in the log, and told to whoever asks for one.
    volumes: bool,
    /// What an operator must do about the state, where that is what is wrong and it does not mend itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<&'static str>,
}

/// One thing that the daemon stands on.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CheckView {
    /// What.
    name: &'static str,
    /// Whether it is well.
    ok: bool,
}

/// How the daemon is, for whoever has a key.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DetailedView {
    /// Whether it can do its work.
    ready: bool,
    /// Its version.
    version: &'static str,
    /// Everything that is looked at.
    checks: Vec<DetailedCheckView>,
    /// Sessions that have not ended, of all teams.
    live_sessions: usize,
    /// The most there may be.
    max_sessions: usize,
    /// When the newest backup was made; absent while there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_backup_at: Option<Timestamp>,
    /// How much of the record is in the database; absent when that cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<RecordView>,
    /// What an operator must do about the state, where that is what is wrong and it does not mend itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<&'static str>,
}

/// How much of the record is in the database.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AuditHealth")]
pub(crate) struct RecordView {
    /// How many records.
    records: i64,
    /// The position before the first of them.
    after: i64,
    /// When the first of them was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_at: Option<Timestamp>,
    /// How many archive files were made of what is before.
    archives: u64,
    /// When the last of them was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    archived_at: Option<Timestamp>,
    /// Bytes of the database, of all of it, that are in use.
    used_bytes: u64,
}

/// One thing that is looked at. Why it is not well is in `casemate admin status` and the log.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DetailedCheckView {
    /// What.
    name: &'static str,
    /// Whether it is well.
    ok: bool,
    /// Whether the daemon cannot do its work while it is not.
    needed: bool,
}

/// 200 also when something is wrong: `/ready` is for those who look at the status alone.
pub(crate) async fn detailed(call: &Call) -> Result<Reply, Problem> {
    call.principal()?;
    let (checks, readiness) = (call.app.health().await, call.app.readiness().await);
    let extent = call.app.audit_extent().await.ok();
    let view = DetailedView {
        ready: readiness.is_ready(),
        version: env!("CARGO_PKG_VERSION"),
        checks: checks
            .into_iter()
            .map(|check| DetailedCheckView {
                name: check.name,
                ok: check.problem.is_none(),
                needed: check.is_needed,
            })
            .collect(),
        live_sessions: call.app.live_sessions(),
        max_sessions: call.app.settings().sessions.max,
        last_backup_at: call.app.last_backup(),
        audit: extent.map(|extent| RecordView {
            records: extent.last - extent.after,
            after: extent.after,
            oldest_at: extent.oldest_at,
            archives: extent.archives,
            archived_at: extent.archived_at,
            used_bytes: extent.used_bytes,
        }),
        mend: readiness.mend,
    };
    Ok(Reply::json(StatusCode::OK, &view))
}

pub(crate) fn health() -> Reply {
    Reply::json(StatusCode::OK, &HealthView { status: "ok" })
}

pub(crate) async fn ready(call: &Call) -> Result<Reply, Problem> {
    let readiness = call.app.readiness().await;
    let ready = readiness.is_ready();
    let checks = readiness
        .checks
        .iter()
        .map(|(name, problem)| CheckView {
            name,
            ok: problem.is_none(),
        })
        .collect();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let view = ReadyView {
        ready,
        checks,
        unenforced_limits: call.app.facts().unenforced_limits.clone(),
        volumes: call.app.volumes_problem().is_none(),
        mend: readiness.mend,
    };
    let reply = Reply::json(status, &view);
    Ok(if ready {
        reply
    } else {
        reply.with(
            http::header::RETRY_AFTER,
            http::HeaderValue::from_static("2"),
        )
    })
}
