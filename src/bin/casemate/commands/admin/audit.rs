//! `casemate admin audit`: the whole log, in its order, by position.

use casemate::admin::protocol::{Answer, Request};
use casemate::base::id::SessionId;
use clap::Args;
use serde_json::{Value, json};

use super::Context;
use crate::commands::audit::{HEADINGS, row};
use crate::failure::Failure;
use crate::output::{self, tell};

/// Options of `casemate admin audit`.
#[derive(Args)]
pub struct Audit {
    /// Only of this session
    #[arg(long, value_name = "ID")]
    session: Option<SessionId>,
    /// Only records after this position
    #[arg(long, default_value_t = 0, value_name = "N")]
    after: i64,
    /// At most so many, 1 to 500
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
}

impl Audit {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let request = Request::Audit {
            session: self.session,
            after: self.after,
            limit: self.limit,
        };
        let Answer::Audit { items } = context.admin().ask(request).await? else {
            return Err(Failure::mismatch());
        };
        let is_full = u32::try_from(items.len()).is_ok_and(|found| found == self.limit);
        let last = items
            .last()
            .map(|(position, _)| *position)
            .filter(|_| is_full);
        let records = items
            .iter()
            .map(|(position, record)| (*position, json!(record)));
        if context.json {
            let items: Vec<Value> = records
                .map(|(position, record)| json!({"position": position, "record": record}))
                .collect();
            return output::json(&json!({"items": items}));
        }
        let rows: Vec<_> = records
            .map(|(position, record)| {
                let mut cells = vec![position.to_string()];
                cells.extend(row(&record));
                cells
            })
            .collect();
        let headings: Vec<_> = ["N"].into_iter().chain(HEADINGS).collect();
        output::table(&headings, &rows)?;
        last.inspect(|position| {
            tell(&format!("there may be more; go on with --after {position}"));
        });
        Ok(())
    }
}
