//! Rows of `sealed`: what the vault has sealed. Nothing here can be read without its key.

use rusqlite::{OptionalExtension, params};

use super::{Durability, Store, StoreError};

impl Store {
    /// What was sealed under this name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sealed(&self, name: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        let doing = "read what is sealed";
        self.readers
            .call(doing, move |db| {
                db.query_row("SELECT value FROM sealed WHERE name = ?1", [name], |row| {
                    row.get(0)
                })
                .optional()
                .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// Whether anything is sealed: then there must be a key for it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn has_sealed(&self) -> Result<bool, StoreError> {
        let doing = "look for what is sealed";
        self.readers
            .call(doing, move |db| {
                db.query_row("SELECT EXISTS (SELECT 1 FROM sealed)", [], |row| row.get(0))
                    .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// All that is sealed, each with its name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn all_sealed(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let doing = "read all that is sealed";
        self.readers
            .call(doing, move |db| {
                db.prepare("SELECT name, value FROM sealed ORDER BY name")
                    .and_then(|mut statement| {
                        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                        rows.collect()
                    })
                    .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// Keeps what was sealed under a name that has nothing yet. It survives a power cut once this returns.
    ///
    /// # Errors
    /// [`StoreError`], also when the name has something.
    pub async fn keep_sealed(&self, name: &'static str, value: Vec<u8>) -> Result<(), StoreError> {
        let doing = "keep what is sealed";
        self.writer
            .call(doing, Durability::Power, move |db| {
                db.execute(
                    "INSERT INTO sealed (name, value) VALUES (?1, ?2)",
                    params![name, value],
                )
                .map(drop)
                .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// Keeps a sealed key of a name that has none yet, with the checkpoint of the record up to `seq` that was signed with it: one is
    /// never there without the other. It survives a power cut once this returns.
    ///
    /// # Errors
    /// [`StoreError`], also when the name has something.
    pub async fn keep_signing_key(
        &self,
        name: &'static str,
        value: Vec<u8>,
        seq: i64,
        line: String,
    ) -> Result<(), StoreError> {
        let doing = "keep what is sealed";
        self.writer
            .call(doing, Durability::Power, move |db| {
                db.execute(
                    "INSERT INTO sealed (name, value) VALUES (?1, ?2)",
                    params![name, value],
                )
                .and_then(|_| {
                    db.execute(
                        "INSERT INTO checkpoints (seq, line) VALUES (?1, ?2)",
                        params![seq, line],
                    )
                })
                .map(drop)
                .map_err(StoreError::sql(doing))
            })
            .await
    }
}
