//! `casemate audit archives` and `casemate audit archive`: what left the database for files.

use casemate::admin::protocol::{Answer, Request};
use casemate::base::clock::Timestamp;
use serde_json::json;

use super::super::Context;
use crate::failure::Failure;
use crate::output::{self, tell};
use crate::screen::size;

/// Files that are asked for at a time.
const PAGE: u32 = 100;

const HEADINGS: [&str; 6] = ["FIRST", "LAST", "FROM", "TO", "SIZE", "FILE"];

/// `casemate audit archives`.
pub async fn list(context: &Context) -> Result<(), Failure> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let request = Request::AuditArchives { after, limit: PAGE };
        let Answer::AuditArchives { items } = context.admin().ask(request).await? else {
            return Err(Failure::mismatch());
        };
        let is_full = u32::try_from(items.len()).is_ok_and(|found| found == PAGE);
        after = items.last().map_or(after, |view| view.archive.last);
        all.extend(items);
        if !is_full {
            break;
        }
    }
    if context.json {
        return output::json(&json!({"items": all}));
    }
    let rows: Vec<_> = all
        .iter()
        .map(|view| {
            let archive = &view.archive;
            vec![
                archive.first.to_string(),
                archive.last.to_string(),
                archive.from.to_string(),
                archive.to.to_string(),
                size(archive.size_bytes),
                view.path.display().to_string(),
            ]
        })
        .collect();
    output::table(&HEADINGS, &rows)?;
    let gone = all.iter().filter(|view| !view.present).count();
    if gone > 0 {
        tell(&format!(
            "{gone} of them are not there, or not whole; get them from where they were copied to"
        ));
    }
    Ok(())
}

/// `casemate audit archive`.
pub async fn make(context: &Context, before: Option<Timestamp>) -> Result<(), Failure> {
    let request = Request::AuditArchive { before };
    let answer = context.admin().ask_long(request, |_, _| {}).await?;
    let Answer::AuditArchived {
        archives,
        records,
        up_to,
    } = answer
    else {
        return Err(Failure::mismatch());
    };
    if context.json {
        return output::json(&json!({"archives": archives, "records": records, "up_to": up_to}));
    }
    if archives == 0 {
        return output::line("nothing is to be archived yet");
    }
    output::line(&format!(
        "archived {records} records in {archives} files; the record in the database begins after {up_to}"
    ))
}
