//! `casemate admin key …`: API keys of every team, over the admin socket.

use casemate::admin::protocol::{Answer, KeyLine, Request};
use casemate::base::id::KeyId;
use casemate::model::grant::Scope;
use casemate::model::name::Name;
use clap::Subcommand;

use super::super::Context;
use super::super::grant::Granted;
use crate::failure::Failure;
use crate::output::{self, tell};
use crate::screen::or_absent;

/// What to do with keys.
#[derive(Subcommand)]
pub enum Command {
    /// Make a key and print it, once and never again: KEY=$(casemate admin key create NAME)
    Create {
        /// What it is for
        #[arg(value_name = "NAME")]
        name: Name,
        /// The team that it acts for
        #[arg(long, default_value = "default")]
        team: Name,
        #[command(flatten)]
        granted: Granted,
    },
    /// List keys in the order of their making, without their texts
    List {
        /// Only those of this team
        #[arg(long)]
        team: Option<Name>,
        /// At most so many, 1 to 500
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
        /// Go on after this key
        #[arg(long, value_name = "ID")]
        after: Option<KeyId>,
    },
    /// Revoke keys, at once: what they had opened ends
    Revoke {
        /// Which
        #[arg(required = true, value_name = "ID")]
        ids: Vec<KeyId>,
    },
}

impl Command {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create {
                name,
                team,
                granted,
            } => create(context, name, team, granted).await,
            Self::List { team, limit, after } => {
                let request = Request::KeyList { team, after, limit };
                let Answer::Keys { items } = context.admin().ask(request).await? else {
                    return Err(Failure::mismatch());
                };
                if context.json {
                    return output::json(&items);
                }
                let rows: Vec<_> = items.into_iter().map(row).collect();
                let headings = [
                    "ID",
                    "NAME",
                    "TEAM",
                    "ROLE",
                    "SCOPES",
                    "VALID UNTIL",
                    "LAST USED",
                ];
                output::table(&headings, &rows)
            }
            Self::Revoke { ids } => {
                for id in ids {
                    match context.admin().ask(Request::KeyRevoke { id }).await? {
                        Answer::Done => tell(&format!("revoked {id}")),
                        _ => return Err(Failure::mismatch()),
                    }
                }
                if context.json {
                    output::json(&serde_json::json!({}))?;
                }
                Ok(())
            }
        }
    }
}

async fn create(
    context: &Context,
    name: Name,
    team: Name,
    granted: Granted,
) -> Result<(), Failure> {
    let about = format!(
        "made the key {name} for the team {team}; it is shown now and never again, so put it into CASEMATE_API_KEY or a file of mode 600"
    );
    let request = Request::KeyCreate {
        name,
        team,
        role: granted.role,
        scopes: granted.scopes(),
        expires_in_s: granted.expires_in_s,
    };
    let Answer::Key(view) = context.admin().ask(request).await? else {
        return Err(Failure::mismatch());
    };
    if context.json {
        output::json(&view)?;
    } else {
        output::line(&view.key)?;
    }
    tell(&about);
    Ok(())
}

fn row(key: KeyLine) -> Vec<String> {
    let until = match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {at}"),
        (None, Some(at)) => at.to_string(),
        (None, None) => "revoked".to_owned(),
    };
    let scopes = key.scopes.map(|scopes| {
        let names: Vec<_> = scopes.into_iter().map(Scope::as_str).collect();
        names.join(" ")
    });
    vec![
        key.id.to_string(),
        key.name.to_string(),
        key.team.to_string(),
        key.role.to_string(),
        scopes.unwrap_or_else(|| "all of the role".to_owned()),
        until,
        or_absent(key.last_used_at),
    ]
}
