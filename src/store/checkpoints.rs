//! Rows of `checkpoints` and `mirrored`: what was said of the record elsewhere.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Durability, Store, StoreError};
use crate::model::record::Digest;

/// A checkpoint's number, the position that it covers, and its line.
pub type KeptCheckpoint = (i64, i64, String);

impl Store {
    /// Keeps a checkpoint of the record up to `seq`, if the chain still has this digest there; it survives a power cut
    /// once this returns. `false` when the chain has another.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keep_checkpoint(
        &self,
        seq: i64,
        digest: Digest,
        line: String,
    ) -> Result<bool, StoreError> {
        let doing = "keep a checkpoint of the record";
        self.writer
            .call(doing, Durability::Power, move |db| {
                let kept = db.execute(
                    "INSERT INTO checkpoints (seq, line)
                     SELECT seq, ?3 FROM audit WHERE seq = ?1 AND digest = ?2",
                    params![seq, digest, line],
                );
                kept.map(|rows| rows == 1).map_err(StoreError::sql(doing))
            })
            .await
    }

    /// The checkpoint that was made last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn last_checkpoint(&self) -> Result<Option<KeptCheckpoint>, StoreError> {
        let doing = "read the last checkpoint";
        self.readers
            .call(doing, move |db| {
                db.query_row(
                    "SELECT n, seq, line FROM checkpoints ORDER BY n DESC LIMIT 1",
                    [],
                    kept,
                )
                .optional()
                .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// Checkpoints of positions after `after` and up to `up_to`, in the order of positions.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn checkpoints(
        &self,
        after: i64,
        up_to: i64,
        limit: u32,
    ) -> Result<Vec<KeptCheckpoint>, StoreError> {
        let doing = "read checkpoints";
        self.readers
            .call(doing, move |db| {
                let mut statement = db
                    .prepare_cached(
                        "SELECT n, seq, line FROM checkpoints
                          WHERE seq > ?1 AND seq <= ?2 ORDER BY seq, n LIMIT ?3",
                    )
                    .map_err(StoreError::sql(doing))?;
                let rows = statement
                    .query_map(params![after, up_to, limit], kept)
                    .map_err(StoreError::sql(doing))?;
                rows.collect::<Result<_, _>>()
                    .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// The checkpoint of the last position after `after` and up to `up_to` that has one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn checkpoint_before(
        &self,
        after: i64,
        up_to: i64,
    ) -> Result<Option<KeptCheckpoint>, StoreError> {
        let doing = "look for a checkpoint";
        self.readers
            .call(doing, move |db| {
                db.query_row(
                    "SELECT n, seq, line FROM checkpoints
                      WHERE seq > ?1 AND seq <= ?2 ORDER BY seq DESC, n DESC LIMIT 1",
                    [after, up_to],
                    kept,
                )
                .optional()
                .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// The position of the last record that was copied into the journal; `None` when none ever was.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn mirrored(&self) -> Result<Option<i64>, StoreError> {
        let doing = "read how far the record was copied";
        self.readers
            .call(doing, move |db| {
                db.query_row("SELECT seq FROM mirrored", [], |row| row.get(0))
                    .optional()
                    .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// Keeps how far the record was copied.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keep_mirrored(&self, seq: i64) -> Result<(), StoreError> {
        let doing = "keep how far the record was copied";
        let job = move |db: &Connection| {
            db.execute(
                "INSERT INTO mirrored (one, seq) VALUES (1, ?1)
                 ON CONFLICT (one) DO UPDATE SET seq = excluded.seq",
                [seq],
            )
            .map(drop)
            .map_err(StoreError::sql(doing))
        };
        self.writer.call(doing, Durability::Process, job).await
    }
}

fn kept(row: &Row<'_>) -> rusqlite::Result<KeptCheckpoint> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}
