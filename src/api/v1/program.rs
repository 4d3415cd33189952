//! What is to run, as requests say it, whether somebody waits for its end or not. Each request has fields of its own beside
//! (serde cannot both share fields and refuse unknown ones); what they mean is read here.

use casemate_link::process::LoginShell;

use crate::api::error::Problem;
use crate::model::settings::SessionsConfig;

/// Reads `argv`, or `command` for a shell; with neither, a terminal has an interactive shell.
pub(super) fn read(
    argv: Option<Vec<String>>,
    command: Option<String>,
    on_terminal: bool,
) -> Result<(Vec<String>, Option<LoginShell>), Problem> {
    match (argv, command) {
        (Some(argv), None) if !argv.is_empty() => Ok((argv, None)),
        (Some(_), None) => Err(Problem::bad_request("argv: name at least a program")),
        (None, None) if on_terminal => Ok((Vec::new(), Some(LoginShell::default()))),
        (None, Some(command)) => {
            let command = Some(command);
            Ok((Vec::new(), Some(LoginShell { command })))
        }
        (None, None) | (Some(_), Some(_)) => {
            Err(Problem::bad_request("give either argv or command"))
        }
    }
}

/// Checks `timeout_s`.
pub(super) fn check_timeout(timeout_s: u64, bounds: &SessionsConfig) -> Result<(), Problem> {
    let most = bounds.max_run_timeout_s;
    if (1..=most).contains(&timeout_s) {
        Ok(())
    } else {
        Err(Problem::bad_request(format!("timeout_s: 1 to {most}")))
    }
}
