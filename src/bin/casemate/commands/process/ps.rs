//! `casemate ps`: the processes of a session that were started over the API.

use casemate::base::clock::{Clock, SystemClock, Timestamp};
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::super::Context;
use super::super::ending::Ending;
use super::super::which::{Which, which};
use crate::failure::Failure;
use crate::http::Call;
use crate::output;
use crate::screen::or_absent;

/// Options of `casemate ps`.
#[derive(Args)]
pub struct Ps {
    /// Which session, by ID or name
    #[arg(value_name = "SESSION", value_parser = which)]
    session: Which,
}

#[derive(Deserialize)]
struct ProcessPage {
    processes: Vec<ProcessView>,
}

/// A process, as far as people are shown.
#[derive(Deserialize)]
pub struct ProcessView {
    pub pid: u32,
    tag: Option<String>,
    argv: Vec<String>,
    user: String,
    started_at: Timestamp,
    pub running: bool,
    exit: Option<Ending>,
    pub stdout: OutputView,
    pub stderr: OutputView,
}

/// What is there of an output.
#[derive(Clone, Copy, Deserialize)]
pub struct OutputView {
    pub total_bytes: u64,
}

impl Ps {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let id = self.session.find(&client).await?;
        let call = Call::get(&format!("/v1/sessions/{id}/processes"), &[]);
        let answer = client.call(call).await?;
        if context.json {
            return output::json(&client.read::<Value>(&answer)?);
        }
        let page: ProcessPage = client.read(&answer)?;
        let now = SystemClock.now();
        let rows = page.processes.into_iter().map(|process| row(process, now));
        let headings = ["PID", "TAG", "USER", "AGE", "STATUS", "COMMAND"];
        output::table(&headings, &rows.collect::<Vec<_>>())
    }
}

fn row(process: ProcessView, now: Timestamp) -> Vec<String> {
    let age = now.since(process.started_at).as_secs();
    vec![
        process.pid.to_string(),
        or_absent(process.tag),
        process.user,
        brief(age),
        status(process.exit.as_ref()),
        process.argv.join(" "),
    ]
}

fn status(exit: Option<&Ending>) -> String {
    match exit {
        None => "running".to_owned(),
        Some(Ending {
            timed_out: true, ..
        }) => "timed out".to_owned(),
        Some(Ending {
            exit_code: Some(code),
            ..
        }) => format!("exit {code}"),
        Some(ending) => format!("signal {}", or_absent(ending.signal)),
    }
}

/// A time for people: in its two largest units.
fn brief(secs: u64) -> String {
    let (minutes, hours, days) = (secs / 60, secs / 3600, secs / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{secs}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", secs % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_its_two_largest_units() {
        for (secs, text) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m01s"),
            (3_660, "1h01m"),
            (90_000, "1d01h"),
        ] {
            assert_eq!(brief(secs), text);
        }
    }

    #[test]
    fn a_status_says_how_it_ended() {
        let ending = |exit_code, signal, timed_out| Ending {
            exit_code,
            signal,
            timed_out,
        };
        assert_eq!(status(None), "running");
        assert_eq!(status(Some(&ending(Some(3), None, false))), "exit 3");
        assert_eq!(status(Some(&ending(None, Some(9), false))), "signal 9");
        assert_eq!(status(Some(&ending(None, Some(15), true))), "timed out");
    }
}
