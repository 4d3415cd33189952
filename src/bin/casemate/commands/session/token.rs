//! `casemate session token`: a token that reaches one session only.

use casemate::base::id::SessionId;
use casemate::model::grant::Scope;
use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::super::grant::{narrowed, seconds};
use super::Context;
use crate::failure::Failure;
use crate::http::Call;
use crate::output;

/// Options of `casemate session token`.
#[derive(Args)]
pub struct Token {
    /// Which
    #[arg(value_name = "ID")]
    id: SessionId,
    /// What it may do with its session, such as sessions:read; may be repeated; reading and using it when absent
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// How long it is valid, at most 24h: seconds, or with m or h; an hour when absent
    #[arg(long = "expires-in", value_name = "TIME", value_parser = seconds)]
    expires_in_s: Option<u64>,
}

impl Token {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let mut body = serde_json::Map::new();
        body.extend(narrowed(&self.scopes).map(|scopes| ("scopes".to_owned(), json!(scopes))));
        body.extend(
            self.expires_in_s
                .map(|s| ("expires_in_s".to_owned(), json!(s))),
        );
        let path = format!("/v1/sessions/{}/tokens", self.id);
        let call = Call::new(Method::POST, path).json(Value::Object(body).to_string());
        let client = context.client()?;
        let answer = client.call(call).await?;
        let made: Value = client.read(&answer)?;
        if context.json {
            return output::json(&made);
        }
        let token = made.get("key").and_then(Value::as_str);
        output::line(token.ok_or_else(Failure::mismatch)?)
    }
}
