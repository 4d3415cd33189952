//! `casemate open`: a signed link to a port in a session, for a browser.

use casemate::base::id::SessionId;
use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::Context;
use super::grant::seconds;
use super::which::{Which, sole, which};
use crate::failure::Failure;
use crate::http::Call;
use crate::output;

/// Options of `casemate open`.
#[derive(Args)]
#[command(after_long_help = "\
Whoever has the link reaches the port until it ends: with its time, with the session,
or with the key that made it. A browser gets a cookie for it, and an address without it.")]
pub struct Open {
    /// Which port in the session
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Which session, by ID or name; the team's only live one when absent
    #[arg(long, value_name = "SESSION", value_parser = which)]
    session: Option<Which>,
    /// How long the link is good, at most 24h: seconds, or with m or h; an hour when absent
    #[arg(long = "expires-in", value_name = "TIME", value_parser = seconds)]
    expires_in_s: Option<u64>,
}

impl Open {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let id: SessionId = sole(self.session.as_ref(), &client).await?;
        let body = match self.expires_in_s {
            Some(seconds) => json!({"expires_in_s": seconds}),
            None => json!({}),
        };
        let path = format!("/v1/sessions/{id}/links/{}", self.port);
        let call = Call::new(Method::POST, path).json(body.to_string());
        let answer = client.call(call).await?;
        let made: Value = client.read(&answer)?;
        if context.json {
            return output::json(&made);
        }
        let url = made.get("url").and_then(Value::as_str);
        output::line(url.ok_or_else(Failure::mismatch)?)
    }
}
