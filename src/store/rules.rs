//! Rows of `rules`: what the operator allows and denies beside what the files say.

use rusqlite::params;

use super::{Durability, Store, StoreError};
use crate::base::clock::Timestamp;
use crate::model::name::Name;
use crate::policy::{NamedRule, Origin, Rule};

/// What became of a new rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RulePut {
    /// It holds.
    Kept,
    /// There are as many as there may be.
    Full,
}

impl Store {
    /// Every rule, by name. One that cannot be read is an error: what it denies must not be allowed because of that.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rules(&self) -> Result<Vec<NamedRule>, StoreError> {
        let doing = "read the rules";
        self.readers
            .call(doing, move |db| {
                let sql = StoreError::sql(doing);
                let bad = |what: &str| StoreError::BadRow {
                    doing,
                    table: "rules",
                    what: what.to_owned(),
                };
                let mut statement = db
                    .prepare_cached("SELECT name, rule FROM rules ORDER BY name")
                    .map_err(&sql)?;
                let rows = statement
                    .query_map([], |row| {
                        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
                    })
                    .map_err(&sql)?;
                rows.map(|row| {
                    let (name, rule) = row.map_err(&sql)?;
                    let rule: Rule = serde_json::from_str(&rule).map_err(|_| bad("rule"))?;
                    if !rule.problems().is_empty() {
                        return Err(bad("rule"));
                    }
                    Ok(NamedRule {
                        name: name.parse().map_err(|_| bad("name"))?,
                        origin: Origin::Store,
                        rule,
                    })
                })
                .collect()
            })
            .await
    }

    /// Keeps a rule, in place of one of that name, unless there would be more than `max`; it survives a power cut once this
    /// returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_rule(
        &self,
        name: Name,
        rule: Rule,
        max: usize,
        by: String,
        at: Timestamp,
    ) -> Result<RulePut, StoreError> {
        self.check_room()?;
        let doing = "keep a rule";
        let text = serde_json::to_string(&rule).map_err(|error| StoreError::System {
            doing,
            source: std::io::Error::other(error),
        })?;
        self.writer
            .call(doing, Durability::Power, move |db| {
                let sql = StoreError::sql(doing);
                let others: u64 = db
                    .query_row(
                        "SELECT count(*) FROM rules WHERE name <> ?1",
                        [name.as_str()],
                        |row| row.get(0),
                    )
                    .map_err(&sql)?;
                if others >= max as u64 {
                    return Ok(RulePut::Full);
                }
                db.execute(
                    "INSERT INTO rules (name, rule, made_at, made_by) VALUES (?1, ?2, ?3, ?4)
                      ON CONFLICT (name) DO UPDATE SET rule = ?2, made_at = ?3, made_by = ?4",
                    params![name.as_str(), text, at.as_millis(), by],
                )
                .map_err(&sql)?;
                Ok(RulePut::Kept)
            })
            .await
    }

    /// Removes a rule; whether there was one. It survives a power cut once this returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_rule(&self, name: Name) -> Result<bool, StoreError> {
        let doing = "remove a rule";
        self.writer
            .call(doing, Durability::Power, move |db| {
                let removed = db.execute("DELETE FROM rules WHERE name = ?1", [name.as_str()]);
                removed.map(|rows| rows > 0).map_err(StoreError::sql(doing))
            })
            .await
    }
}
