//! `casemate start`: a program that goes on when nobody looks.

use ::http::Method;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::super::Context;
use super::super::which::{Which, which};
use super::{Program, Start};
use crate::failure::Failure;
use crate::http::Call;
use crate::output;

/// Options of `casemate start`.
#[derive(Args)]
#[command(after_long_help = "\
Prints the pid. The program goes on until it ends, its time is over, or the session
ends; it reads nothing, unless it has a terminal. The latest of what it writes is
kept: see `casemate logs`.")]
pub struct StartCommand {
    /// Which session, by ID or name
    #[arg(value_name = "SESSION", value_parser = which)]
    session: Which,
    /// A name to find it by, not only digits
    #[arg(long, value_name = "T")]
    tag: Option<String>,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    program: Program,
}

#[derive(Deserialize)]
struct Started {
    pid: u32,
}

impl StartCommand {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let mut start = Start::of(self.program)?;
        start.tag = self.tag;
        if self.tty {
            start = start.on_terminal();
        }
        let id = self.session.find(&client).await?;
        let call = Call::new(Method::POST, format!("/v1/sessions/{id}/processes"));
        let answer = client.call(call.json(start.json()?)).await?;
        if context.json {
            return output::json(&client.read::<Value>(&answer)?);
        }
        let started: Started = client.read(&answer)?;
        output::line(&started.pid.to_string())
    }
}
