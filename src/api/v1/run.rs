//! Running a program, on the wire. What it writes comes back unharmed: as text where it is UTF-8,
//! in base 64 where it is not, and the answer says which.

use std::collections::BTreeMap;

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::program;
use super::text::{Encoding, encode};
use crate::api::body;
use crate::api::error::Problem;
use crate::api::route::{Call, Reply};
use crate::model::process::{RunOutcome, RunSpec};
use crate::model::settings::SessionsConfig;
use crate::session::run::check;

/// A program to run: `argv`, or `command` for a shell.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunRequest {
    /// Program and arguments; the program is looked up in `PATH`.
    argv: Option<Vec<String>>,
    /// A command line for the user's login shell.
    command: Option<String>,
    /// Added to the session's environment.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Where it starts.
    cwd: Option<String>,
    /// Who it runs as inside; `user` when absent.
    user: Option<String>,
    /// What it reads.
    #[serde(default)]
    stdin: String,
    /// How `stdin` is written.
    #[serde(default)]
    stdin_encoding: Encoding,
    /// Its whole process group is ended after this time.
    timeout_s: Option<u64>,
    /// Kept of each of its two outputs; the rest is dropped and `truncated` says so.
    max_output_bytes: Option<u64>,
}

/// How a run ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RunAnswer {
    /// Exit code; absent when a signal ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    stdout: String,
    stdout_encoding: Encoding,
    stderr: String,
    stderr_encoding: Encoding,
    /// Whether some of either output was dropped.
    truncated: bool,
    /// Whether its time was over before it ended.
    timed_out: bool,
    duration_ms: u64,
}

pub(crate) async fn run(call: &Call) -> Result<Reply, Problem> {
    let principal = call.principal()?;
    let id = call.segment("id")?;
    let request: RunRequest = body::json(call)?;
    let bounds = call.app.settings();
    let spec = request.into_spec(&bounds.sessions)?;
    let outcome = call.app.run(principal, id, spec).await?;
    Ok(Reply::json(StatusCode::OK, &RunAnswer::from(outcome)))
}

impl RunRequest {
    fn into_spec(self, bounds: &SessionsConfig) -> Result<RunSpec, Problem> {
        let (argv, shell) = program::read(self.argv, self.command, false)?;
        let stdin = self.stdin_encoding.read("stdin", self.stdin)?;
        let timeout_s = self.timeout_s.unwrap_or(bounds.run_timeout_s);
        program::check_timeout(timeout_s, bounds)?;
        let max_output_bytes = self.max_output_bytes.unwrap_or(bounds.default_output_bytes);
        if max_output_bytes > bounds.max_output_bytes {
            let most = bounds.max_output_bytes;
            return Err(Problem::bad_request(format!(
                "max_output_bytes: 0 to {most}"
            )));
        }
        let spec = RunSpec {
            argv,
            command: shell.and_then(|shell| shell.command),
            env: self.env,
            cwd: self.cwd,
            user: self.user,
            stdin,
            timeout_s,
            max_output_bytes,
        };
        check(&spec).map_err(|error| Problem::bad_request(error.to_string()))?;
        Ok(spec)
    }
}

impl From<RunOutcome> for RunAnswer {
    fn from(outcome: RunOutcome) -> Self {
        let (stdout, stdout_encoding) = encode(&outcome.stdout, outcome.truncated);
        let (stderr, stderr_encoding) = encode(&outcome.stderr, outcome.truncated);
        Self {
            exit_code: outcome.exit_code,
            signal: outcome.signal,
            stdout,
            stdout_encoding,
            stderr,
            stderr_encoding,
            truncated: outcome.truncated,
            timed_out: outcome.timed_out,
            duration_ms: outcome.duration_ms,
        }
    }
}
