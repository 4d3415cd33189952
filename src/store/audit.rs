//! Rows of `audit`. Only ever appended to.

use rusqlite::{Connection, Row, params};

use super::{Durability, Store, StoreError};
use crate::base::clock::Timestamp;
use crate::model::event::{AuditRecord, Stage};
use crate::model::query::AuditFilter;

impl Store {
    /// Appends a record. Returns its position, which only grows.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was recorded and the effect must not happen.
    pub async fn append_audit(
        &self,
        record: AuditRecord,
        durability: Durability,
    ) -> Result<i64, StoreError> {
        self.writer
            .call("append to the audit log", durability, move |db| {
                insert(db, &record)
            })
            .await
    }

    /// Records in the order in which they were appended, each with its position.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audit(&self, filter: AuditFilter) -> Result<Vec<(i64, AuditRecord)>, StoreError> {
        let doing = "read the audit log";
        self.readers
            .call(doing, move |db| {
                let sql = StoreError::sql(doing);
                let mut statement = db
                    .prepare_cached(if filter.session.is_some() {
                        "SELECT * FROM audit WHERE session = ?1 AND seq > ?2
                            AND (?4 = '[]' OR kind IN (SELECT value FROM json_each(?4)))
                          ORDER BY seq LIMIT ?3"
                    } else {
                        "SELECT * FROM audit WHERE ?1 IS NULL AND seq > ?2
                            AND (?4 = '[]' OR kind IN (SELECT value FROM json_each(?4)))
                          ORDER BY seq LIMIT ?3"
                    })
                    .map_err(&sql)?;
                let rows = statement
                    .query_map(
                        params![
                            filter.session.map(|id| id.to_string()),
                            filter.after,
                            filter.limit,
                            serde_json::json!(filter.kinds).to_string()
                        ],
                        |row| Ok(read(row)),
                    )
                    .map_err(&sql)?;
                rows.map(|row| {
                    row.map_err(&sql)?.map_err(|what| StoreError::BadRow {
                        doing,
                        table: "audit",
                        what,
                    })
                })
                .collect()
            })
            .await
    }
}

/// The position of the last record; 0 when there is none.
pub(super) fn last_position(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT ifnull(max(seq), 0) FROM audit")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
}

/// Appends a record inside a transaction that also writes something else.
pub(super) fn insert(db: &Connection, record: &AuditRecord) -> Result<i64, StoreError> {
    let doing = "append to the audit log";
    let unwritable = |error: serde_json::Error| StoreError::BadRow {
        doing,
        table: "audit",
        what: error.to_string(),
    };
    let event = serde_json::to_string(&record.event).map_err(unwritable)?;
    let outcome = record
        .outcome
        .as_ref()
        .map(serde_json::to_string)
        .transpose()
        .map_err(unwritable)?;
    db.prepare_cached(
        "INSERT INTO audit (id, at, stage, intent, principal, session, kind, event, outcome)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )
    .and_then(|mut statement| {
        statement.insert(params![
            record.id.to_string(),
            record.at.as_millis(),
            stage(record.stage),
            record.intent.map(|id| id.to_string()),
            record.principal,
            record.session.map(|id| id.to_string()),
            record.event.kind(),
            event,
            outcome,
        ])
    })
    .map_err(StoreError::sql(doing))
}

const fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Intent => "intent",
        Stage::Outcome => "outcome",
        Stage::Fact => "fact",
    }
}

fn read(row: &Row<'_>) -> Result<(i64, AuditRecord), String> {
    fn field<T: rusqlite::types::FromSql>(row: &Row<'_>, column: &str) -> Result<T, String> {
        row.get(column).map_err(|error| error.to_string())
    }
    fn parsed<T: std::str::FromStr>(
        text: Option<String>,
        column: &str,
    ) -> Result<Option<T>, String> {
        text.map(|text| text.parse().map_err(|_| column.to_owned()))
            .transpose()
    }
    let json = |error: serde_json::Error| error.to_string();
    let stage: String = field(row, "stage")?;
    let event: String = field(row, "event")?;
    let outcome: Option<String> = field(row, "outcome")?;
    let record = AuditRecord {
        id: field::<String>(row, "id")?.parse().map_err(|_| "id")?,
        at: Timestamp::from_millis(field(row, "at")?),
        stage: serde_json::from_value(stage.into()).map_err(json)?,
        intent: parsed(field(row, "intent")?, "intent")?,
        principal: field(row, "principal")?,
        session: parsed(field(row, "session")?, "session")?,
        event: serde_json::from_str(&event).map_err(json)?,
        outcome: outcome
            .map(|text| serde_json::from_str(&text).map_err(json))
            .transpose()?,
    };
    Ok((field(row, "seq")?, record))
}
