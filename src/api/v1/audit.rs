//! The audit log on the wire: what was recorded, as it was recorded.

use bytes::Bytes;
use http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use super::{PAGE, cursor, page_limit};
use crate::api::body::Query;
use crate::api::error::Problem;
use crate::api::route::{BoxError, Call, Reply};
use crate::api::sse::{self, SseEvent};
use crate::app::{AuditExport, ocsf_event};
use crate::base::clock::Timestamp;
use crate::model::event::OutcomeResult;
use crate::model::query::AuditFilter;

/// Most records that are verified in one call: about half a second of one reader, in steps.
const MAX_VERIFIED: i64 = 100_000;

/// Most records that a stream begins with.
const MAX_LAST: u32 = 10_000;

const FILTERS: [&str; 7] = [
    "session",
    "kind",
    "principal",
    "outcome",
    "intent",
    "from",
    "to",
];

/// A page of records.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AuditPage {
    /// Each as its line in an export.
    items: Vec<serde_json::Value>,
    /// Give it as `cursor` to get the next page; absent on the last one.
    next_cursor: Option<String>,
    /// Records up to this position are in archive files and not looked for here; absent when none are, and on later pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    archived_up_to: Option<i64>,
}

/// A record, as its line in an export.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RecordView {
    /// Its position.
    seq: i64,
    /// Its name.
    id: String,
    /// When it was written.
    at: String,
    /// `intent`, `outcome` or `fact`.
    stage: String,
    /// The intent that an outcome belongs to.
    intent: Option<String>,
    /// Who asked.
    principal: String,
    /// The session it is about.
    session: Option<String>,
    /// What; `kind` says which fields there are.
    event: serde_json::Map<String, serde_json::Value>,
    /// How it ended, in an outcome.
    outcome: Option<serde_json::Map<String, serde_json::Value>>,
    /// SHA-256 over the digest of the record before and this line up to here.
    digest: String,
}

/// What was found in the record, or a part of it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct VerifyView {
    /// Whether nothing is wrong as far as it was looked at.
    ok: bool,
    /// Records that were looked at and are right.
    records: u64,
    /// The position before the first of them: 0, or where the record begins because what is before is archived.
    after: i64,
    /// Signed checkpoints among them.
    checkpoints: u64,
    /// The position of the last one.
    seq: i64,
    /// The last position that a checkpoint among them covers; what is after it is chained and not yet signed.
    signed_seq: i64,
    /// The first thing that is wrong; nothing after it was looked at.
    finding: Option<FindingView>,
    /// Give it as `after` to go on; absent when all was looked at.
    next: Option<i64>,
}

/// What is wrong with a record.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FindingView {
    /// Its position.
    seq: i64,
    /// `changed`, `removed`, `inserted`, `swapped`, `cut`, `rewritten`, `unreadable`, `signature`, `other_key` or
    /// `other_installation`.
    fault: serde_json::Value,
    /// The same in a sentence.
    text: String,
}

fn filter(query: &mut Query) -> Result<AuditFilter, Problem> {
    let mut filter = AuditFilter {
        limit: PAGE,
        ..AuditFilter::default()
    };
    filter.session = parsed(query, "session")?;
    filter.intent = parsed(query, "intent")?;
    if let Some(kinds) = query.text("kind") {
        filter.kinds = kinds.split(',').map(str::to_owned).collect();
    }
    filter.principal = query.text("principal");
    filter.result = match query.text("outcome").as_deref() {
        None => None,
        Some("ok") => Some(OutcomeResult::Ok),
        Some("failed") => Some(OutcomeResult::Failed),
        Some(_) => return Err(Problem::bad_request("outcome: ok or failed")),
    };
    filter.from = time(query, "from")?;
    filter.to = time(query, "to")?;
    Ok(filter)
}

fn parsed<T>(query: &mut Query, name: &str) -> Result<Option<T>, Problem>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let value = query.text(name).map(|text| text.parse());
    value
        .transpose()
        .map_err(|error| Problem::bad_request(format!("{name}: {error}")))
}

fn time(query: &mut Query, name: &str) -> Result<Option<Timestamp>, Problem> {
    let value = query
        .text(name)
        .map(|text| serde_json::from_value(text.into()));
    value.transpose().map_err(|_| {
        Problem::bad_request(format!(
            "{name}: a time like 2026-01-31T12:00:00Z is expected"
        ))
    })
}

fn position(query: &mut Query, name: &str) -> Result<Option<i64>, Problem> {
    match parsed(query, name)? {
        Some(position) if position < 0 => Err(Problem::bad_request(format!(
            "{name}: a position is not negative"
        ))),
        position => Ok(position),
    }
}

pub(crate) async fn list(call: &Call) -> Result<Reply, Problem> {
    let mut query = Query::read(call, &[&FILTERS[..], &["cursor", "limit"]].concat())?;
    let mut filter = filter(&mut query)?;
    if let Some(text) = query.text("cursor") {
        filter.after = cursor(&text)?;
    }
    if let Some(text) = query.text("limit") {
        filter.limit = page_limit(&text)?;
    }
    let (limit, is_first) = (filter.limit, filter.after == 0);
    let lines = call.app.audit_lines(call.principal()?, filter).await?;
    let full = u32::try_from(lines.len()).is_ok_and(|found| found == limit);
    let next_cursor = lines
        .last()
        .filter(|_| full)
        .map(|(seq, _)| seq.to_string());
    let items: Result<Vec<_>, _> = lines
        .iter()
        .map(|(_, line)| serde_json::from_str(line))
        .collect();
    let items = items.map_err(|error| Problem::internal(error.to_string()))?;
    let mut archived_up_to = None;
    if is_first {
        let start = call.app.audit_extent().await?.after;
        archived_up_to = (start > 0).then_some(start);
    }
    Ok(Reply::json(
        StatusCode::OK,
        &AuditPage {
            items,
            next_cursor,
            archived_up_to,
        },
    ))
}

pub(crate) async fn stream(call: &Call) -> Result<Reply, Problem> {
    let mut query = Query::read(call, &[&FILTERS[..], &["after", "last"]].concat())?;
    let mut filter = filter(&mut query)?;
    let mut last = parsed(&mut query, "last")?;
    if last.is_some_and(|last: u32| last > MAX_LAST) {
        return Err(Problem::bad_request(format!("last: 0 to {MAX_LAST}")));
    }
    filter.after = position(&mut query, "after")?.unwrap_or(0);
    if let Some(seen) = sse::last_event_id(call)? {
        // A client that comes back goes on where it was, whatever it asked for at first.
        (filter.after, last) = (seen, None);
    }
    let follower = call
        .app
        .follow_audit(call.principal()?, filter, last)
        .await?;
    let events = futures_util::stream::unfold(follower, async |mut follower| {
        let event = match follower.next().await? {
            Ok((seq, line)) => SseEvent::line("record", &seq, &line),
            Err(error) => Err(error.into()),
        };
        Some((event, follower))
    });
    Ok(sse::reply(call.stop.clone(), events))
}

pub(crate) async fn export(call: &Call) -> Result<Reply, Problem> {
    let mut query = Query::read(call, &["after", "until", "format"])?;
    let after = position(&mut query, "after")?.unwrap_or(0);
    let until = position(&mut query, "until")?;
    let as_ocsf = match query.text("format").as_deref() {
        None | Some("jsonl") => false,
        Some("ocsf") => true,
        Some(_) => return Err(Problem::bad_request("format: jsonl or ocsf")),
    };
    let export = call
        .app
        .export_audit(call.principal()?, after, until)
        .await?;
    let pieces = futures_util::stream::unfold(export, move |mut export: AuditExport| async move {
        let piece = match export.next().await {
            Ok(lines) => Ok(written(&lines?, as_ocsf)),
            Err(error) => Err(BoxError::from(error)),
        };
        Some((piece, export))
    });
    Ok(Reply::stream(
        StatusCode::OK,
        "application/x-ndjson",
        None,
        pieces,
    ))
}

fn written(lines: &[String], as_ocsf: bool) -> Bytes {
    let mut text = String::new();
    for line in lines {
        if as_ocsf {
            // What is no record, as the checkpoint, has no event.
            let Some(event) = ocsf_event(line) else {
                continue;
            };
            text.push_str(&event.to_string());
        } else {
            text.push_str(line);
        }
        text.push('\n');
    }
    text.into()
}

pub(crate) async fn verify(call: &Call) -> Result<Reply, Problem> {
    let mut query = Query::read(call, &["after", "limit"])?;
    let after = position(&mut query, "after")?.unwrap_or(0);
    let limit = match parsed(&mut query, "limit")? {
        None => MAX_VERIFIED,
        Some(limit) if (1..=MAX_VERIFIED).contains(&limit) => limit,
        Some(_) => {
            return Err(Problem::bad_request(format!("limit: 1 to {MAX_VERIFIED}")));
        }
    };
    let found = call
        .app
        .verify_audit(call.principal()?, after, limit)
        .await?;
    let finding = found.finding.map(|finding| FindingView {
        seq: finding.seq,
        fault: serde_json::to_value(finding.fault).unwrap_or_default(),
        text: finding.text,
    });
    let view = VerifyView {
        ok: finding.is_none(),
        records: found.verified.records,
        after: found.verified.after,
        checkpoints: found.verified.checkpoints,
        seq: found.verified.seq,
        signed_seq: found.verified.signed_seq,
        finding,
        next: found.next,
    };
    Ok(Reply::json(StatusCode::OK, &view))
}
