//! Rows of `keys`.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Durability, Store, StoreError};
use crate::base::clock::Timestamp;
use crate::base::id::{KeyId, SessionId};
use crate::model::grant::{Grant, Role, Scope};
use crate::model::key::ApiKey;
use crate::model::name::Name;

/// What became of a new key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyInsert {
    /// It is kept.
    Kept,
    /// The team, or the session, has as many as it may have.
    Full,
    /// The key that makes it was revoked.
    NoMaker,
}

const COLUMNS: &str = "id, name, team, role, scopes, session, digest, created_at, created_by, \
                       expires_at, revoked_at, revoked_by, last_used_at";

impl Store {
    /// Keeps a new key, unless there are `max` valid ones of its team, or of its session, already, or `maker`, the key that makes
    /// it, was revoked before; it survives a power cut once this returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_key(
        &self,
        key: ApiKey,
        max: u32,
        maker: Option<KeyId>,
    ) -> Result<KeyInsert, StoreError> {
        self.check_room()?;
        let doing = "keep an API key";
        self.writer
            .call(doing, Durability::Power, move |db| {
                // Here and not earlier: whoever revokes it later finds what it made.
                if let Some(maker) = maker
                    && one(db, maker, doing)?.is_none_or(|maker| maker.revoked.is_some())
                {
                    return Ok(KeyInsert::NoMaker);
                }
                let valid = valid(db, &key).map_err(StoreError::sql(doing))?;
                if valid >= max {
                    return Ok(KeyInsert::Full);
                }
                insert(db, &key).map_err(StoreError::sql(doing))?;
                Ok(KeyInsert::Kept)
            })
            .await
    }

    /// The key with this public part.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn key(&self, id: KeyId) -> Result<Option<ApiKey>, StoreError> {
        let doing = "look up an API key";
        self.readers.call(doing, move |db| one(db, id, doing)).await
    }

    /// Keys of a team, or of all teams, in the order of their making, after `after`; tokens of sessions are not among them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keys(
        &self,
        team: Option<Name>,
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<Vec<ApiKey>, StoreError> {
        let doing = "list API keys";
        self.readers
            .call(doing, move |db| {
                let team = team.as_ref().map(Name::as_str);
                let after = after.map(|id| id.to_string()).unwrap_or_default();
                let query = format!(
                    "SELECT {COLUMNS} FROM keys WHERE session IS NULL AND id > ?1
                      AND (?2 IS NULL OR team = ?2) ORDER BY id LIMIT ?3"
                );
                let mut statement = db.prepare_cached(&query).map_err(StoreError::sql(doing))?;
                let rows = statement
                    .query_map(params![after, team, limit], |row| Ok(read(row)))
                    .map_err(StoreError::sql(doing))?;
                rows.map(|row| row.map_err(StoreError::sql(doing))?.map_err(bad(doing)))
                    .collect()
            })
            .await
    }

    /// Revokes a key, of this team where one is given; the key then, `None` when there is no such key. One that was revoked
    /// stays as it is. It survives a power cut once this returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn revoke_key(
        &self,
        id: KeyId,
        team: Option<Name>,
        by: String,
        at: Timestamp,
    ) -> Result<Option<ApiKey>, StoreError> {
        let doing = "revoke an API key";
        self.writer
            .call(doing, Durability::Power, move |db| {
                let team = team.as_ref().map(Name::as_str);
                db.execute(
                    "UPDATE keys SET revoked_at = ?2, revoked_by = ?3
                      WHERE id = ?1 AND revoked_at IS NULL AND (?4 IS NULL OR team = ?4)",
                    params![id.to_string(), at.as_millis(), by, team],
                )
                .map_err(StoreError::sql(doing))?;
                let key = one(db, id, doing)?;
                Ok(key.filter(|key| team.is_none_or(|team| key.team.as_str() == team)))
            })
            .await
    }

    /// Notes when keys were last used. A time that is not later than what is noted changes nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_uses(&self, uses: BTreeMap<KeyId, Timestamp>) -> Result<(), StoreError> {
        let doing = "note when API keys were used";
        self.writer
            .call(doing, Durability::Process, move |db| {
                let mut statement = db
                    .prepare_cached(
                        "UPDATE keys SET last_used_at = ?2
                          WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at < ?2)",
                    )
                    .map_err(StoreError::sql(doing))?;
                for (id, at) in uses {
                    let noted = statement.execute(params![id.to_string(), at.as_millis()]);
                    noted.map_err(StoreError::sql(doing))?;
                }
                Ok(())
            })
            .await
    }

    /// Forgets the tokens of sessions that ran out before this time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_tokens(&self, before: Timestamp) -> Result<(), StoreError> {
        let doing = "forget tokens of sessions";
        self.writer
            .call(doing, Durability::Process, move |db| {
                db.execute(
                    "DELETE FROM keys WHERE session IS NOT NULL AND expires_at < ?1",
                    [before.as_millis()],
                )
                .map(drop)
                .map_err(StoreError::sql(doing))
            })
            .await
    }
}

/// How many valid ones there are beside which a new key would stand.
fn valid(db: &Connection, key: &ApiKey) -> rusqlite::Result<u32> {
    let now = key.created_at.as_millis();
    match key.session {
        Some(session) => db.query_row(
            "SELECT count(*) FROM keys WHERE session = ?1 AND revoked_at IS NULL AND expires_at > ?2",
            params![session.to_string(), now],
            |row| row.get(0),
        ),
        None => db.query_row(
            "SELECT count(*) FROM keys WHERE team = ?1 AND session IS NULL AND revoked_at IS NULL
              AND (expires_at IS NULL OR expires_at > ?2)",
            params![key.team.as_str(), now],
            |row| row.get(0),
        ),
    }
}

fn insert(db: &Connection, key: &ApiKey) -> rusqlite::Result<()> {
    let scopes = key.grant.scopes.as_ref().map(|scopes| {
        let names: Vec<_> = scopes.iter().map(|scope| scope.as_str()).collect();
        names.join(" ")
    });
    db.execute(
        &format!(
            "INSERT INTO keys ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, NULL, NULL, NULL)"
        ),
        params![
            key.id.to_string(),
            key.name.as_str(),
            key.team.as_str(),
            key.grant.role.as_str(),
            scopes,
            key.session.map(|session| session.to_string()),
            key.digest,
            key.created_at.as_millis(),
            key.created_by,
            key.expires_at.map(Timestamp::as_millis),
        ],
    )
    .map(drop)
}

fn one(db: &Connection, id: KeyId, doing: &'static str) -> Result<Option<ApiKey>, StoreError> {
    let query = format!("SELECT {COLUMNS} FROM keys WHERE id = ?1");
    let row = db
        .prepare_cached(&query)
        .and_then(|mut statement| {
            statement
                .query_row([id.to_string()], |row| Ok(read(row)))
                .optional()
        })
        .map_err(StoreError::sql(doing))?;
    row.transpose().map_err(bad(doing))
}

fn bad(doing: &'static str) -> impl Fn(String) -> StoreError {
    move |what| StoreError::BadRow {
        doing,
        table: "keys",
        what,
    }
}

fn read(row: &Row<'_>) -> Result<ApiKey, String> {
    let text = |column: &str| row.get::<_, String>(column).map_err(|e| e.to_string());
    let maybe = |column: &str| {
        let text = row.get::<_, Option<String>>(column);
        text.map_err(|e| e.to_string())
    };
    let time = |column: &str| {
        let millis = row.get::<_, Option<i64>>(column);
        let millis = millis.map_err(|e| e.to_string())?;
        Ok::<_, String>(millis.map(Timestamp::from_millis))
    };
    let session = maybe("session")?.map(|session| session.parse::<SessionId>());
    let scopes = maybe("scopes")?.map(|scopes| {
        let scopes = scopes.split_whitespace().map(str::parse::<Scope>);
        scopes.collect::<Result<_, _>>()
    });
    Ok(ApiKey {
        id: text("id")?.parse().map_err(|_| "id")?,
        name: text("name")?.parse().map_err(|_| "name")?,
        team: text("team")?.parse().map_err(|_| "team")?,
        grant: Grant {
            role: text("role")?.parse::<Role>().map_err(|_| "role")?,
            // A scope that this program does not know must not become all of them.
            scopes: scopes.transpose().map_err(|_| "scopes")?,
        },
        session: session.transpose().map_err(|_| "session")?,
        digest: row.get("digest").map_err(|e| e.to_string())?,
        created_at: time("created_at")?.ok_or("created_at")?,
        created_by: text("created_by")?,
        expires_at: time("expires_at")?,
        revoked: time("revoked_at")?.zip(maybe("revoked_by")?),
        last_used_at: time("last_used_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8, team: &str, session: Option<u8>) -> ApiKey {
        ApiKey {
            id: KeyId::from_bytes([byte; 16]),
            name: "k".parse().unwrap(),
            team: team.parse().unwrap(),
            grant: Grant {
                role: Role::TeamAdmin,
                scopes: Some([Scope::KeysRead, Scope::SessionsUse].into()),
            },
            session: session.map(|byte| SessionId::from_bytes([byte; 16])),
            digest: [byte; 32],
            created_at: Timestamp::from_millis(1000),
            created_by: "uid:0".into(),
            expires_at: Some(Timestamp::from_millis(9000)),
            revoked: None,
            last_used_at: None,
        }
    }

    #[tokio::test]
    async fn what_is_kept_of_a_key_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        let all = [
            key(1, "red", None),
            key(2, "blue", None),
            key(3, "red", Some(7)),
        ];
        for key in &all {
            let kept = store.insert_key(key.clone(), 1, None).await.unwrap();
            assert_eq!(kept, KeyInsert::Kept);
            assert_eq!(store.key(key.id).await.unwrap().as_ref(), Some(key));
        }
        // Each team, and each session, has its own count.
        for full in [key(4, "red", None), key(5, "red", Some(7))] {
            assert_eq!(
                store.insert_key(full, 1, None).await.unwrap(),
                KeyInsert::Full
            );
        }
        let red: Name = "red".parse().unwrap();
        let listed = store.keys(Some(red.clone()), None, 10).await.unwrap();
        assert_eq!(listed, [all[0].clone()]);
        let after = Some(all[0].id);
        assert_eq!(store.keys(None, after, 10).await.unwrap(), [all[1].clone()]);

        let at = Timestamp::from_millis(5000);
        let by = || "key_x".to_owned();
        let blue = store.revoke_key(all[1].id, Some(red.clone()), by(), at);
        assert_eq!(blue.await.unwrap(), None);
        let revoked = store
            .revoke_key(all[0].id, Some(red), by(), at)
            .await
            .unwrap();
        assert_eq!(revoked.unwrap().revoked, Some((at, by())));
        // Again is not later.
        let later = Timestamp::from_millis(6000);
        let again = store.revoke_key(all[0].id, None, "other".into(), later);
        assert_eq!(again.await.unwrap().unwrap().revoked, Some((at, by())));
        let room = store
            .insert_key(key(6, "red", None), 1, Some(all[1].id))
            .await
            .unwrap();
        assert_eq!(room, KeyInsert::Kept, "a revoked one takes no room");
        for maker in [all[0].id, KeyId::from_bytes([99; 16])] {
            let made = store
                .insert_key(key(7, "green", None), 1, Some(maker))
                .await;
            assert_eq!(made.unwrap(), KeyInsert::NoMaker, "{maker}");
        }

        for (noted, last) in [(5, 5), (3, 5), (8, 8)] {
            let at = Timestamp::from_millis(noted);
            store.note_uses([(all[1].id, at)].into()).await.unwrap();
            let key = store.key(all[1].id).await.unwrap().unwrap();
            assert_eq!(key.last_used_at, Some(Timestamp::from_millis(last)));
        }
        store
            .forget_tokens(Timestamp::from_millis(9000))
            .await
            .unwrap();
        assert!(store.key(all[2].id).await.unwrap().is_some());
        store
            .forget_tokens(Timestamp::from_millis(9001))
            .await
            .unwrap();
        assert_eq!(store.key(all[2].id).await.unwrap(), None);
        assert!(store.key(all[1].id).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_scope_that_is_not_known_opens_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let store = Store::open(&path).unwrap();
        let kept = key(1, "red", None);
        store.insert_key(kept.clone(), 1, None).await.unwrap();
        let stranger = Connection::open(&path).unwrap();
        stranger
            .execute("UPDATE keys SET scopes = 'sessions:read moons:write'", [])
            .unwrap();
        let error = store.key(kept.id).await.unwrap_err();
        assert!(matches!(error, StoreError::BadRow { .. }), "{error}");
    }
}
