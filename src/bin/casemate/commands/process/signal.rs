//! `casemate signal`: a signal for a process and its group.

use ::http::Method;
use casemate::model::signal;
use clap::Args;
use serde_json::json;

use super::super::Context;
use super::super::which::{Which, WhichProcess, which};
use crate::failure::Failure;
use crate::http::Call;
use crate::output;

/// Options of `casemate signal`.
#[derive(Args)]
pub struct SignalCommand {
    /// Which session, by ID or name
    #[arg(value_name = "SESSION", value_parser = which)]
    session: Which,
    /// Which process, by pid or tag
    #[arg(value_name = "PROCESS")]
    process: WhichProcess,
    /// Which signal: SIGTERM, TERM or 15
    #[arg(value_name = "SIGNAL", value_parser = known)]
    signal: String,
}

fn known(text: &str) -> Result<String, String> {
    match signal::parse(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("a name such as SIGTERM, or a number from 1 to 64".to_owned()),
    }
}

impl SignalCommand {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let id = self.session.find(&client).await?;
        let call = Call::new(Method::POST, self.process.path(id, "/signal"));
        let body = json!({"signal": self.signal}).to_string();
        client.call(call.json(body)).await?;
        if context.json {
            output::json(&json!({}))?;
        }
        Ok(())
    }
}
