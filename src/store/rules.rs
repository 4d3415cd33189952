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

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn rule(json: &str) -> Rule {
        serde_json::from_str(json).unwrap()
    }

    async fn names(store: &Store) -> Vec<String> {
        let rules = store.rules().await.unwrap();
        rules.iter().map(|rule| rule.name.to_string()).collect()
    }

    #[tokio::test]
    async fn a_rule_is_kept_replaced_and_removed_and_there_are_only_so_many() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let store = Store::open(&path).unwrap();
        let (deny, allow) = (
            rule(r#"{"effect":"deny","teams":["red"],"hours":"22:00-06:00"}"#),
            rule(r#"{"effect":"allow","roles":["member"]}"#),
        );
        let put = |key: &str, rule: &Rule| {
            store.put_rule(name(key), rule.clone(), 2, "uid:0".into(), at(1))
        };
        assert_eq!(put("b", &deny).await.unwrap(), RulePut::Kept);
        assert_eq!(put("a", &allow).await.unwrap(), RulePut::Kept);
        // One more is one too many, and another text of one that is there is not one more.
        assert_eq!(put("c", &allow).await.unwrap(), RulePut::Full);
        assert_eq!(put("a", &deny).await.unwrap(), RulePut::Kept);
        drop(store);

        let store = Store::open(&path).unwrap();
        assert_eq!(names(&store).await, ["a", "b"]);
        for kept in store.rules().await.unwrap() {
            assert_eq!((kept.origin, kept.rule), (Origin::Store, deny.clone()));
        }
        assert!(store.remove_rule(name("a")).await.unwrap());
        assert!(!store.remove_rule(name("a")).await.unwrap());
        assert_eq!(names(&store).await, ["b"]);
    }

    #[tokio::test]
    async fn a_rule_that_cannot_be_read_is_not_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let store = Store::open(&path).unwrap();
        let stranger = Connection::open(&path).unwrap();
        for (text, key) in [
            ("{", "broken"),
            (r#"{"effect":"forbid"}"#, "another-effect"),
            (r#"{"effect":"deny","moons":["full"]}"#, "another-condition"),
            (r#"{"effect":"deny","teams":[]}"#, "about-nobody"),
            (r#"{"effect":"deny"}"#, "Not A Name"),
        ] {
            let row = params![key, text];
            let insert =
                "INSERT INTO rules (name, rule, made_at, made_by) VALUES (?1, ?2, 1, 'uid:0')";
            stranger.execute(insert, row).unwrap();
            let error = store.rules().await.unwrap_err();
            assert!(
                matches!(error, StoreError::BadRow { table: "rules", .. }),
                "{key}: {error}"
            );
            stranger.execute("DELETE FROM rules", []).unwrap();
            assert_eq!(names(&store).await, [""; 0]);
        }
    }
}
