//! `casemate admin session …`: the sessions of all teams.

use casemate::admin::protocol::{Answer, Request, SessionLine};
use casemate::base::id::SessionId;
use clap::Subcommand;
use serde_json::json;

use super::{Context, done};
use crate::commands::session::why;
use crate::failure::Failure;
use crate::output;
use crate::screen::or_absent;

/// What to do with sessions.
#[derive(Subcommand)]
pub enum Command {
    /// List sessions of all teams, newest first
    List {
        /// Those that have ended as well
        #[arg(long)]
        all: bool,
        /// At most so many, 1 to 500
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
    /// End a session; one that has ended already is no failure
    Stop {
        /// Which
        #[arg(value_name = "ID")]
        id: SessionId,
    },
}

impl Command {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let (all, limit) = match self {
            Self::List { all, limit } => (all, limit),
            Self::Stop { id } => return done(context, Request::SessionStop { id }).await,
        };
        let request = Request::SessionList { live: !all, limit };
        let Answer::Sessions { items } = context.admin().ask(request).await? else {
            return Err(Failure::mismatch());
        };
        if context.json {
            return output::json(&json!({"items": items}));
        }
        let rows: Vec<_> = items.into_iter().map(row).collect();
        let headings = [
            "ID", "NAME", "TEAM", "TEMPLATE", "PHASE", "CREATED", "ENDS", "WHY",
        ];
        output::table(&headings, &rows)
    }
}

fn row(session: SessionLine) -> Vec<String> {
    let reason = session.reason.map(|reason| reason.as_str().to_owned());
    vec![
        session.id.to_string(),
        or_absent(session.name),
        session.team.to_string(),
        session.template.to_string(),
        session.phase.to_string(),
        session.created_at.to_string(),
        session.ends_at.to_string(),
        why(reason, session.message),
    ]
}
