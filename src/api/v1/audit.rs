//! The audit log on the wire: what was recorded, as it was recorded.

use http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use super::{PAGE, cursor, page_limit};
use crate::api::body;
use crate::api::error::Problem;
use crate::api::route::{Call, Reply};
use crate::model::query::AuditFilter;

/// A page of records.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AuditPage {
    /// Each record is an object with `id`, `at`, `stage`, `principal` and `event`.
    items: Vec<serde_json::Value>,
    /// Give it as `cursor` to get the next page; absent on the last one.
    next_cursor: Option<String>,
}

pub(crate) async fn list(call: &Call) -> Result<Reply, Problem> {
    let mut filter = AuditFilter {
        limit: PAGE,
        ..AuditFilter::default()
    };
    for (name, value) in body::query(call, &["session", "cursor", "limit"])? {
        match name.as_str() {
            "limit" => filter.limit = page_limit(&value)?,
            "cursor" => filter.after = cursor(&value)?,
            _ => {
                let id = value
                    .parse()
                    .map_err(|error| Problem::bad_request(format!("session: {error}")))?;
                filter.session = Some(id);
            }
        }
    }
    let limit = filter.limit;
    let records = call.app.audit(call.principal()?, filter).await?;
    let full = u32::try_from(records.len()).is_ok_and(|found| found == limit);
    let next_cursor = records
        .last()
        .filter(|_| full)
        .map(|(seq, _)| seq.to_string());
    let items: Result<Vec<_>, _> = records
        .iter()
        .map(|(_, record)| serde_json::to_value(record))
        .collect();
    let items = items.map_err(|error| Problem::internal(error.to_string()))?;
    Ok(Reply::json(
        StatusCode::OK,
        &AuditPage { items, next_cursor },
    ))
}
