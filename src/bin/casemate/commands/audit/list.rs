//! `casemate audit list`: pages of the record. With an API key and a session over the HTTP API, as its team; otherwise over
//! the admin socket, as an operator. What is printed is the same.

use casemate::admin::protocol::{Answer, Request};
use casemate::base::clock::Timestamp;
use casemate::base::exit::Exit;
use casemate::base::id::{EventId, SessionId};
use casemate::model::event::OutcomeResult;
use casemate::model::query::AuditFilter;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::Context;
use super::{HEADINGS, row};
use crate::failure::Failure;
use crate::http::Call;
use crate::output::{self, tell};

/// A page of records.
#[derive(Serialize, Deserialize)]
struct AuditPage {
    items: Vec<Value>,
    next_cursor: Option<String>,
    /// Records up to this position were not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    archived_up_to: Option<i64>,
}

/// Which records, wherever they are read.
#[derive(Args)]
pub struct Only {
    /// Only of this session
    #[arg(long, value_name = "ID")]
    session: Option<SessionId>,
    /// Only of these kinds, with commas between them
    #[arg(long, value_name = "KIND,...", value_delimiter = ',')]
    kind: Vec<String>,
    /// Only of who asked, as the record writes it
    #[arg(long, value_name = "WHO")]
    principal: Option<String>,
    /// Only outcomes that ended like this
    #[arg(long)]
    outcome: Option<Ended>,
    /// Only the outcome of this intent
    #[arg(long, value_name = "EVENT")]
    intent: Option<EventId>,
}

/// How an outcome ended.
#[derive(Clone, Copy, ValueEnum)]
enum Ended {
    /// As asked
    Ok,
    /// Not as asked
    Failed,
}

impl Only {
    /// As the daemon takes it.
    pub fn filter(self) -> AuditFilter {
        AuditFilter {
            session: self.session,
            kinds: self.kind,
            principal: self.principal,
            result: self.outcome.map(|ended| match ended {
                Ended::Ok => OutcomeResult::Ok,
                Ended::Failed => OutcomeResult::Failed,
            }),
            intent: self.intent,
            ..AuditFilter::default()
        }
    }
}

/// Options of `casemate audit list`.
#[derive(Args)]
pub struct List {
    #[command(flatten)]
    only: Only,
    /// At most so many, 1 to 200
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
    /// Go on after this position: the last record of the page before
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    cursor: Option<i64>,
    /// Only what was written at this time or later: 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<Timestamp>,
    /// Only what was written before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<Timestamp>,
}

pub fn time(text: &str) -> Result<Timestamp, &'static str> {
    serde_json::from_value(text.into()).map_err(|_| "a time like 2026-01-31T12:00:00Z is expected")
}

impl List {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let filter = AuditFilter {
            from: self.from,
            to: self.to,
            after: self.cursor.unwrap_or(0),
            limit: self.limit,
            ..self.only.filter()
        };
        let page = if filter.session.is_some() && context.has_key() {
            of_a_team(context, &filter).await?
        } else {
            of_everything(context, filter).await?
        };
        if context.json {
            return output::json(&page);
        }
        let rows: Vec<_> = page.items.iter().map(row).collect();
        output::table(&HEADINGS, &rows)?;
        page.archived_up_to.inspect(|up_to| {
            tell(&format!(
                "records up to {up_to} are archived and not looked for here; casemate audit archives lists their files"
            ));
        });
        page.next_cursor.inspect(|cursor| {
            tell(&format!("there are more; go on with --cursor {cursor}"));
        });
        Ok(())
    }
}

async fn of_a_team(context: &Context, filter: &AuditFilter) -> Result<AuditPage, Failure> {
    let kinds = (!filter.kinds.is_empty()).then(|| filter.kinds.join(","));
    let query: Vec<_> = [
        ("session", filter.session.map(|id| id.to_string())),
        ("limit", Some(filter.limit.to_string())),
        (
            "cursor",
            (filter.after > 0).then(|| filter.after.to_string()),
        ),
        ("kind", kinds),
        ("principal", filter.principal.clone()),
        (
            "outcome",
            filter.result.map(|result| result.as_str().to_owned()),
        ),
        ("intent", filter.intent.map(|id| id.to_string())),
        ("from", filter.from.map(|at| at.to_string())),
        ("to", filter.to.map(|at| at.to_string())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect();
    let client = context.client()?;
    let answer = client.call(Call::get("/v1/audit", &query)).await?;
    client.read(&answer)
}

async fn of_everything(context: &Context, filter: AuditFilter) -> Result<AuditPage, Failure> {
    let limit = filter.limit;
    let mut items = Vec::new();
    let take = |lines: Vec<String>| {
        for line in lines {
            items.push(serde_json::from_str(&line).map_err(|_| Failure::mismatch())?);
        }
        Ok(())
    };
    let admin = context.admin();
    let listed = admin.lines(Request::AuditList { filter }, take).await;
    let Answer::AuditListed { archived_up_to } = listed.map_err(hinted)? else {
        return Err(Failure::mismatch());
    };
    let is_full = u32::try_from(items.len()).is_ok_and(|found| found == limit);
    let last = items.last().filter(|_| is_full);
    let next_cursor = last
        .and_then(|record: &Value| record.get("seq"))
        .map(ToString::to_string);
    Ok(AuditPage {
        items,
        next_cursor,
        archived_up_to,
    })
}

/// Who is no operator may still read something.
fn hinted(mut failure: Failure) -> Failure {
    if matches!(failure.exit, Exit::Refused | Exit::Unavailable) {
        let hint =
            "; with an API key, --session ID lists what was recorded of a session of its team";
        failure.message.push_str(hint);
    }
    failure
}
