//! `casemate session snapshot`: what a session changed becomes a version of a template.

use std::time::Duration;

use casemate::base::id::SessionId;
use casemate::model::name::Name;
use clap::Args;
use http::{HeaderValue, Method, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use crate::failure::Failure;
use crate::http::Call;
use crate::output;
use crate::screen::size;

/// casemated reads a session for ten minutes at most; then podman unpacks it.
const DEADLINE: Duration = Duration::from_secs(1800);

/// Options of `casemate session snapshot`.
#[derive(Args)]
pub struct Snapshot {
    /// Which
    #[arg(value_name = "ID")]
    id: SessionId,
    /// The team's template that gets a new version; made if there is none
    #[arg(value_name = "TEMPLATE")]
    template: Name,
    /// Only if there is no template of this name
    #[arg(long)]
    new: bool,
}

/// What is read of the answer.
#[derive(Deserialize)]
struct Made {
    template: String,
    template_version: u32,
    image: String,
    entries: u64,
    bytes: u64,
}

impl Snapshot {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let path = format!("/v1/sessions/{}/snapshot", self.id);
        let body = json!({"template": self.template});
        let mut call = Call::new(Method::POST, path)
            .json(body.to_string().into_bytes())
            .within(DEADLINE);
        if self.new {
            call = call.with(header::IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let client = context.client()?;
        let answer = client.call(call).await?;
        if context.json {
            return output::json(&client.read::<Value>(&answer)?);
        }
        let made: Made = client.read(&answer)?;
        output::fields(&[
            ("template", made.template),
            ("version", made.template_version.to_string()),
            ("image", made.image),
            ("entries", made.entries.to_string()),
            ("size", size(made.bytes)),
        ])
    }
}
