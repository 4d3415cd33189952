//! Alive, and able to work. Strangers may ask, so they learn no more than that.

use http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::error::Problem;
use crate::api::route::{Call, Reply};

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
