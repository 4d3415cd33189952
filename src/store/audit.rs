//! Rows of `audit`. Only ever appended to, each chained to the one before it.
//!
//! The chain's head is the last row, read in the transaction that appends to it: a savepoint or a
//! transaction that is rolled back takes the head back with it, and there is no second one in
//! memory that could differ. It is in the database's cache, and one look at it is a fraction of what the insert costs.
//!
//! The chain begins where [`super::archived`] says that it was put into files. Rows up to there are nobody's any more, whether
//! they are removed yet or not: no reader sees them.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use super::{Durability, Store, StoreError, archived};
use crate::base::clock::Timestamp;
use crate::model::event::{AuditRecord, Outcome, Stage};
use crate::model::query::AuditFilter;
use crate::model::record::{Digest, GENESIS, Pieces, digest_after};

/// Records that were written at the same time may stand in another order than their times: as many as
/// can wait for the writer, in a batch and before it. So many are looked at around a time that is asked for.
const OUT_OF_ORDER: u32 = 2048;

/// Rows that the upgrade chains at a time.
const CHAINED_AT_ONCE: u32 = 1000;

const COLUMNS: &str = "seq, id, at, stage, intent, principal, session, event, outcome, digest";

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
            .call_one("append to the audit log", durability, move |db| {
                insert(db, &record)
            })
            .await
    }

    /// Records in the order in which they were appended, each with its position. After position 0 come the oldest that are
    /// kept; whoever names a later position that is archived is told so.
    ///
    /// # Errors
    /// [`StoreError::Archived`], [`StoreError`].
    pub async fn audit(&self, filter: AuditFilter) -> Result<Vec<(i64, AuditRecord)>, StoreError> {
        self.kept(filter, |row| Ok((row.seq, row.record()?))).await
    }

    /// The same as the lines that their digests are of.
    ///
    /// # Errors
    /// As [`Store::audit`].
    pub async fn audit_lines(&self, filter: AuditFilter) -> Result<Vec<(i64, String)>, StoreError> {
        self.kept(filter, |row| Ok((row.seq, row.line()))).await
    }

    /// The digest of the record at this position; of the position before the first one that is kept, that which it follows.
    ///
    /// # Errors
    /// [`StoreError::Archived`], [`StoreError`].
    pub async fn digest_at(&self, seq: i64) -> Result<Option<Digest>, StoreError> {
        let doing = "read a digest of the audit log";
        self.readers
            .call(doing, move |db| {
                // What is looked at is one state of both tables.
                let db = db.unchecked_transaction().map_err(StoreError::sql(doing))?;
                let (start, digest) = archived::end(&db)?;
                if seq == start {
                    return Ok(Some(digest));
                }
                archived::refuse_before(&db, seq, start)?;
                let found = "SELECT digest FROM audit WHERE seq = ?1";
                db.query_row(found, [seq], digest_of)
                    .optional()
                    .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// The position and digest of the last record.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audit_head(&self) -> Result<(i64, Digest), StoreError> {
        self.readers.call("read the audit log's end", head).await
    }

    async fn kept<T: Send + 'static>(
        &self,
        filter: AuditFilter,
        read: fn(Kept) -> Result<T, String>,
    ) -> Result<Vec<T>, StoreError> {
        let doing = "read the audit log";
        self.readers
            .call(doing, move |db| {
                let sql = StoreError::sql(doing);
                // What is looked at is one state of both tables.
                let db = db.unchecked_transaction().map_err(&sql)?;
                let (start, _) = archived::end(&db)?;
                if filter.after > 0 {
                    archived::refuse_before(&db, filter.after, start)?;
                }
                let filter = AuditFilter {
                    after: filter.after.max(start),
                    ..filter
                };
                let (text, values) = select(&filter);
                let mut statement = db.prepare_cached(&text).map_err(&sql)?;
                let rows = statement
                    .query_map(params_from_iter(values), Kept::of)
                    .map_err(&sql)?;
                rows.map(|row| read(row.map_err(&sql)?).map_err(bad_row(doing)))
                    .collect()
            })
            .await
    }
}

/// The statement that answers a filter. Each thing that can be asked for has an index that is in the order of positions;
/// one of them is used, the most telling first, and the others are looked at row by row (`+` keeps them from being used).
fn select(filter: &AuditFilter) -> (String, Vec<Value>) {
    let mut values: Vec<Value> = Vec::new();
    let mut bind = |value: Value| {
        values.push(value);
        format!("?{}", values.len())
    };
    let mut is_indexed = false;
    let mut conditions = Vec::new();
    let equals = [
        ("intent", filter.intent.map(|id| id.to_string())),
        ("session", filter.session.map(|id| id.to_string())),
        ("principal", filter.principal.clone()),
        (
            "result",
            filter.result.map(|result| result.as_str().to_owned()),
        ),
    ];
    for (column, value) in equals {
        if let Some(value) = value {
            let keep_out = if is_indexed { "+" } else { "" };
            is_indexed = true;
            conditions.push(format!("{keep_out}{column} = {}", bind(value.into())));
        }
    }
    // One bound at each end: of several, only the first is where the search begins, and the others are looked at row by row.
    let mut low = format!("{} + 1", bind(filter.after.into()));
    let mut high = bind(filter.until.unwrap_or(i64::MAX).into());
    // The clock's order is nearly that of positions: the index on times finds where to begin and to end.
    if let Some(from) = filter.from {
        let from = bind(from.as_millis().into());
        conditions.push(format!("+at >= {from}"));
        low = format!(
            "max({low}, (SELECT ifnull(min(seq), {max}) FROM
               (SELECT seq FROM audit WHERE at >= {from} ORDER BY at LIMIT {OUT_OF_ORDER})))",
            max = i64::MAX
        );
    }
    if let Some(to) = filter.to {
        let to = bind(to.as_millis().into());
        conditions.push(format!("+at < {to}"));
        high = format!(
            "min({high}, (SELECT ifnull(max(seq), 0) FROM
               (SELECT seq FROM audit WHERE at < {to} ORDER BY at DESC LIMIT {OUT_OF_ORDER})))"
        );
    }
    conditions.push(format!("seq BETWEEN {low} AND {high}"));
    let limit = bind(i64::from(filter.limit).into());
    let kinds: Vec<String> = filter
        .kinds
        .iter()
        .map(|kind| bind(kind.clone().into()))
        .collect();
    let all = |condition: &str| {
        format!(
            "SELECT {COLUMNS} FROM audit WHERE {}{condition} ORDER BY seq LIMIT {limit}",
            conditions.join(" AND ")
        )
    };
    let text = match kinds.as_slice() {
        [] => all(""),
        kinds if is_indexed => all(&format!(" AND +kind IN ({})", kinds.join(", "))),
        [kind] => all(&format!(" AND kind = {kind}")),
        // Each kind in its order, then the first of them all: a list in one condition would have to be sorted.
        kinds => {
            let each: Vec<String> = kinds
                .iter()
                .map(|kind| format!("SELECT * FROM ({})", all(&format!(" AND kind = {kind}"))))
                .collect();
            format!("{} ORDER BY seq LIMIT {limit}", each.join(" UNION ALL "))
        }
    };
    (text, values)
}

/// The position of the last record; 0 when there never was one.
pub(super) fn last_position(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached(
        "SELECT max(ifnull((SELECT max(seq) FROM audit), 0), ifnull((SELECT max(last) FROM archived), 0))",
    )
    .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
}

fn head(db: &Connection) -> Result<(i64, Digest), StoreError> {
    let found = db
        .prepare_cached("SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1")
        .and_then(|mut statement| {
            statement
                .query_row([], |row| Ok((row.get(0)?, digest_of(row)?)))
                .optional()
        });
    let last = found.map_err(StoreError::sql("read the audit log's end"))?;
    // When all of it is archived, the chain goes on from there.
    let end = archived::end(db)?;
    Ok(last.filter(|(seq, _)| *seq >= end.0).unwrap_or(end))
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
    let (id, intent, session) = (
        record.id.to_string(),
        record.intent.map(|id| id.to_string()),
        record.session.map(|id| id.to_string()),
    );
    let (last, before) = head(db)?;
    let pieces = Pieces {
        seq: last + 1,
        id: &id,
        at: record.at,
        stage: stage(record.stage),
        intent: intent.as_deref(),
        principal: &record.principal,
        session: session.as_deref(),
        event: &event,
        outcome: outcome.as_deref(),
    };
    let digest = digest_after(&before, &pieces.body());
    db.prepare_cached(
        "INSERT INTO audit
           (seq, id, at, stage, intent, principal, session, kind, event, outcome, digest, result)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )
    .and_then(|mut statement| {
        statement.insert(params![
            pieces.seq,
            pieces.id,
            pieces.at.as_millis(),
            pieces.stage,
            pieces.intent,
            pieces.principal,
            pieces.session,
            record.event.kind(),
            pieces.event,
            pieces.outcome,
            digest,
            record
                .outcome
                .as_ref()
                .map(|outcome| outcome.result().as_str()),
        ])
    })
    .map_err(StoreError::sql(doing))
}

/// Chains what was recorded before there was a chain.
pub(super) fn chain(db: &Connection) -> Result<(), StoreError> {
    let doing = "chain the audit log";
    follow(db, doing, (0, GENESIS), |row, digest| {
        db.prepare_cached("UPDATE audit SET digest = ?2 WHERE seq = ?1")
            .and_then(|mut update| update.execute(params![row.seq, digest]))
            .map_err(StoreError::sql(doing))?;
        Ok(true)
    })
}

/// The first event after `start` that does not follow from those before it, if any.
pub(super) fn breaks_at(db: &Connection, start: (i64, Digest)) -> Result<Option<i64>, StoreError> {
    let mut found = None;
    follow(db, "follow the audit log", start, |row, digest| {
        if row.digest != *digest {
            found = Some(row.seq);
        }
        Ok(found.is_none())
    })?;
    Ok(found)
}

/// Goes through all rows after `start` in their order with the digest that each must have, for as long as `each` says `true`.
fn follow(
    db: &Connection,
    doing: &'static str,
    start: (i64, Digest),
    mut each: impl FnMut(&Kept, &Digest) -> Result<bool, StoreError>,
) -> Result<(), StoreError> {
    let sql = StoreError::sql(doing);
    let (mut last, mut digest) = start;
    loop {
        let filter = AuditFilter {
            after: last,
            limit: CHAINED_AT_ONCE,
            ..AuditFilter::default()
        };
        let (text, values) = select(&filter);
        let mut statement = db.prepare_cached(&text).map_err(&sql)?;
        let rows = statement
            .query_map(params_from_iter(values), Kept::of)
            .and_then(Iterator::collect::<rusqlite::Result<Vec<Kept>>>)
            .map_err(&sql)?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in rows {
            digest = digest_after(&digest, &row.pieces().body());
            last = row.seq;
            if !each(&row, &digest)? {
                return Ok(());
            }
        }
    }
}

/// Hands the lines of records `first` to `last` to `each` in their order, a few at a time. Rows do not change, so that no
/// transaction need hold them together.
pub(super) fn lines(
    db: &Connection,
    (first, last): (i64, i64),
    each: &mut dyn FnMut(&str) -> std::io::Result<()>,
) -> Result<std::io::Result<()>, StoreError> {
    let sql = StoreError::sql("read the audit log for its archive");
    let mut next = first;
    while next <= last {
        let filter = AuditFilter {
            after: next - 1,
            until: Some(last),
            limit: CHAINED_AT_ONCE,
            ..AuditFilter::default()
        };
        let (text, values) = select(&filter);
        let mut statement = db.prepare_cached(&text).map_err(&sql)?;
        let rows = statement
            .query_map(params_from_iter(values), Kept::of)
            .map_err(&sql)?;
        let before = next;
        for row in rows {
            let row = row.map_err(&sql)?;
            if let Err(error) = each(&row.line()) {
                return Ok(Err(error));
            }
            next = row.seq + 1;
        }
        if next == before {
            break;
        }
    }
    Ok(Ok(()))
}

/// The last position of which every record up to it was made before `time`, as far as [`OUT_OF_ORDER`] looks.
pub(super) fn last_before(db: &Connection, time: Timestamp) -> rusqlite::Result<i64> {
    let first: Option<i64> = db
        .prepare_cached(&format!(
            "SELECT min(seq) FROM (SELECT seq FROM audit WHERE at >= ?1 ORDER BY at LIMIT {OUT_OF_ORDER})"
        ))
        .and_then(|mut statement| statement.query_row([time.as_millis()], |row| row.get(0)))?;
    first.map_or_else(|| last_position(db), |first| Ok(first - 1))
}

fn bad_row(doing: &'static str) -> impl Fn(String) -> StoreError {
    move |what| StoreError::BadRow {
        doing,
        table: "audit",
        what,
    }
}

const fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Intent => "intent",
        Stage::Outcome => "outcome",
        Stage::Fact => "fact",
    }
}

/// A row's digest. We write each; one that is gone was taken by somebody else, and zeros are not what follows from anything: who
/// verifies finds it, and nobody is kept from recording what comes next.
fn digest_of(row: &Row<'_>) -> rusqlite::Result<Digest> {
    let digest: Option<Digest> = row.get("digest")?;
    Ok(digest.unwrap_or(GENESIS))
}

/// A row as it is kept.
struct Kept {
    seq: i64,
    id: String,
    at: Timestamp,
    stage: String,
    intent: Option<String>,
    principal: String,
    session: Option<String>,
    event: String,
    outcome: Option<String>,
    digest: Digest,
}

impl Kept {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            seq: row.get("seq")?,
            id: row.get("id")?,
            at: Timestamp::from_millis(row.get("at")?),
            stage: row.get("stage")?,
            intent: row.get("intent")?,
            principal: row.get("principal")?,
            session: row.get("session")?,
            event: row.get("event")?,
            outcome: row.get("outcome")?,
            digest: digest_of(row)?,
        })
    }

    fn pieces(&self) -> Pieces<'_> {
        Pieces {
            seq: self.seq,
            id: &self.id,
            at: self.at,
            stage: &self.stage,
            intent: self.intent.as_deref(),
            principal: &self.principal,
            session: self.session.as_deref(),
            event: &self.event,
            outcome: self.outcome.as_deref(),
        }
    }

    fn line(&self) -> String {
        self.pieces().line(&self.digest)
    }

    fn record(self) -> Result<AuditRecord, String> {
        fn parsed<T: std::str::FromStr>(
            text: Option<String>,
            column: &str,
        ) -> Result<Option<T>, String> {
            text.map(|text| text.parse().map_err(|_| column.to_owned()))
                .transpose()
        }
        let json = |error: serde_json::Error| error.to_string();
        Ok(AuditRecord {
            id: self.id.parse().map_err(|_| "id")?,
            at: self.at,
            stage: serde_json::from_value(self.stage.into()).map_err(json)?,
            intent: parsed(self.intent, "intent")?,
            principal: self.principal,
            session: parsed(self.session, "session")?,
            event: serde_json::from_str(&self.event).map_err(json)?,
            outcome: self
                .outcome
                .map(|text| serde_json::from_str::<Outcome>(&text).map_err(json))
                .transpose()?,
        })
    }
}

#[cfg(test)]
mod tests;
