//! Rows of `keys`.

use rusqlite::{OptionalExtension, Row, params};

use super::{Durability, Store, StoreError};
use crate::base::clock::Timestamp;
use crate::base::id::KeyId;
use crate::model::key::ApiKey;

impl Store {
    /// Keeps a new key; it survives a power cut once this returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_key(&self, key: ApiKey) -> Result<(), StoreError> {
        self.check_room()?;
        let doing = "keep an API key";
        self.writer
            .call(doing, Durability::Power, move |db| {
                db.execute(
                    "INSERT INTO keys (id, name, team, digest, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![
                        key.id.to_string(),
                        key.name.as_str(),
                        key.team.as_str(),
                        key.digest,
                        key.created_at.as_millis()
                    ],
                )
                .map(drop)
                .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// The key with this public part.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn key(&self, id: KeyId) -> Result<Option<ApiKey>, StoreError> {
        let doing = "look up an API key";
        self.readers
            .call(doing, move |db| {
                let row = db
                    .prepare_cached(
                        "SELECT id, name, team, digest, created_at FROM keys WHERE id = ?1",
                    )
                    .and_then(|mut statement| {
                        statement
                            .query_row([id.to_string()], |row| Ok(read(row)))
                            .optional()
                    })
                    .map_err(StoreError::sql(doing))?;
                row.transpose().map_err(|what| StoreError::BadRow {
                    doing,
                    table: "keys",
                    what,
                })
            })
            .await
    }
}

fn read(row: &Row<'_>) -> Result<ApiKey, String> {
    let text = |column: &str| row.get::<_, String>(column).map_err(|e| e.to_string());
    Ok(ApiKey {
        id: text("id")?.parse().map_err(|_| "id")?,
        name: text("name")?.parse().map_err(|_| "name")?,
        team: text("team")?.parse().map_err(|_| "team")?,
        digest: row.get("digest").map_err(|e| e.to_string())?,
        created_at: Timestamp::from_millis(row.get("created_at").map_err(|e| e.to_string())?),
    })
}
