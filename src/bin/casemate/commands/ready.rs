//! `casemate ready`: whether casemated can do its work. Needs no key.

use ::http::StatusCode;
use casemate::base::exit::Exit;
use serde::{Deserialize, Serialize};

use super::Context;
use crate::failure::Failure;
use crate::http::Call;
use crate::output;

#[derive(Serialize, Deserialize)]
struct Readiness {
    ready: bool,
    checks: Vec<Check>,
}

#[derive(Serialize, Deserialize)]
struct Check {
    name: String,
    ok: bool,
}

/// 0 when it is, 69 when it is not.
pub async fn execute(context: &Context) -> Result<u8, Failure> {
    let client = context.stranger()?;
    let answer = client.exchange(Call::get("/ready", &[])).await?;
    let readiness: Readiness = client.read(&answer)?;
    if context.json {
        output::json(&readiness)?;
    } else {
        let rows: Vec<_> = readiness
            .checks
            .into_iter()
            .map(|check| {
                let state = if check.ok { "ok" } else { "failed" };
                vec![check.name, state.to_owned()]
            })
            .collect();
        output::table(&["CHECK", "STATE"], &rows)?;
    }
    if readiness.ready && answer.status == StatusCode::OK {
        return Ok(Exit::Ok.code());
    }
    Err(Failure::unavailable(
        "casemated is not ready; `casemate admin status` says why",
    ))
}
