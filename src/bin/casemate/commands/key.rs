//! `casemate key …`: the team's API keys, over the HTTP API; for team admins.

use casemate::base::id::KeyId;
use casemate::model::name::Name;
use clap::Subcommand;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::grant::Granted;
use super::session::wire::Page;
use crate::failure::Failure;
use crate::http::Call;
use crate::output::{self, tell};
use crate::screen::or_absent;

/// What to do with the team's keys.
#[derive(Subcommand)]
pub enum Command {
    /// Make a key that may do no more than yours, and print it, once and never again
    Create {
        /// What it is for
        name: Name,
        #[command(flatten)]
        granted: Granted,
    },
    /// List the team's keys in the order of their making, without their texts
    List {
        /// At most so many, 1 to 200
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=200))]
        limit: u32,
        /// Go on after the last key of the page before
        #[arg(long, value_name = "ID")]
        cursor: Option<String>,
    },
    /// Revoke keys, at once: what they had opened ends
    Revoke {
        /// Which
        #[arg(required = true, value_name = "ID")]
        ids: Vec<KeyId>,
    },
}

/// A key, as far as people are shown.
#[derive(Deserialize)]
struct KeyView {
    id: String,
    name: String,
    role: String,
    scopes: Option<Vec<String>>,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    last_used_at: Option<String>,
}

impl Command {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Create { name, granted } => {
                let mut body = json!({"name": name, "role": granted.role});
                if let Some(map) = body.as_object_mut() {
                    map.extend(granted.scopes().map(|s| ("scopes".to_owned(), json!(s))));
                    map.extend(
                        granted
                            .expires_in_s
                            .map(|s| ("expires_in_s".to_owned(), json!(s))),
                    );
                }
                let call = Call::new(Method::POST, "/v1/keys").json(body.to_string());
                let answer = client.call(call).await?;
                let made: Value = client.read(&answer)?;
                if context.json {
                    output::json(&made)?;
                } else {
                    let key = made.get("key").and_then(Value::as_str);
                    output::line(key.ok_or_else(Failure::mismatch)?)?;
                }
                tell(
                    "it is shown now and never again, so put it into CASEMATE_API_KEY or a file of mode 600",
                );
                Ok(())
            }
            Self::List { limit, cursor } => {
                let mut query = vec![("limit", limit.to_string())];
                query.extend(cursor.map(|cursor| ("cursor", cursor)));
                let answer = client.call(Call::get("/v1/keys", &query)).await?;
                if context.json {
                    return output::json(&client.read::<Value>(&answer)?);
                }
                let page: Page<KeyView> = client.read(&answer)?;
                let rows: Vec<_> = page.items.into_iter().map(row).collect();
                let headings = ["ID", "NAME", "ROLE", "SCOPES", "VALID UNTIL", "LAST USED"];
                output::table(&headings, &rows)
            }
            Self::Revoke { ids } => {
                for id in ids {
                    let call = Call::new(Method::DELETE, format!("/v1/keys/{id}"));
                    client.call(call).await?;
                    tell(&format!("revoked {id}"));
                }
                if context.json {
                    output::json(&json!({}))?;
                }
                Ok(())
            }
        }
    }
}

fn row(key: KeyView) -> Vec<String> {
    let until = match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {at}"),
        (None, Some(at)) => at,
        (None, None) => "revoked".to_owned(),
    };
    let scopes = key.scopes.map(|scopes| scopes.join(" "));
    vec![
        key.id,
        key.name,
        key.role,
        scopes.unwrap_or_else(|| "all of the role".to_owned()),
        until,
        or_absent(key.last_used_at),
    ]
}
