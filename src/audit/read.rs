//! Reading the record as it grows, and taking it away whole.

use std::collections::VecDeque;

use tokio::sync::watch;

use super::{AuditError, AuditLog};
use crate::model::query::AuditFilter;
use crate::model::record::{Digest, anchor};
use crate::store::Store;

/// Records that are read at a time.
const PAGE: u32 = 200;

/// Reads on as records are added. A slow one is behind, and misses nothing: it reads from the store, by position.
pub struct Follower {
    store: Store,
    filter: AuditFilter,
    appended: watch::Receiver<i64>,
    read: VecDeque<(i64, String)>,
}

/// The record from one position to another, as lines to be verified by whoever gets them.
pub struct Export {
    log: AuditLog,
    filter: AuditFilter,
    /// The line that stands first, if there is one.
    anchor: Option<String>,
    end: Option<(i64, Digest)>,
}

impl AuditLog {
    /// What matches the filter from its position on, and what will.
    #[must_use]
    pub fn follow(&self, filter: AuditFilter) -> Follower {
        Follower {
            store: self.store.clone(),
            filter: AuditFilter {
                limit: PAGE,
                ..filter
            },
            appended: self.store.appended(),
            read: VecDeque::new(),
        }
    }

    /// The position of the last record.
    ///
    /// # Errors
    /// [`AuditError::Read`].
    pub async fn last(&self) -> Result<i64, AuditError> {
        let head = self.store.audit_head().await.map_err(AuditError::Read)?;
        Ok(head.0)
    }

    /// Refuses a position whose next record is archived already; 0 stands for the oldest that are kept.
    ///
    /// # Errors
    /// [`StoreError::Archived`](crate::store::StoreError::Archived) in [`AuditError::Read`].
    pub async fn check_kept(&self, after: i64) -> Result<(), AuditError> {
        if after > 0 {
            let digest = self.store.digest_at(after).await;
            digest.map_err(AuditError::Read)?;
        }
        Ok(())
    }

    /// Everything after the position `after`, up to `until` or to what there is now, and a checkpoint. After position 0 come the
    /// oldest that are kept.
    ///
    /// # Errors
    /// [`AuditError`].
    pub async fn export(&self, after: i64, until: Option<i64>) -> Result<Export, AuditError> {
        self.signer()?;
        let read = AuditError::Read;
        let (head, head_digest) = self.store.audit_head().await.map_err(read)?;
        let digest_at = async |seq| {
            let digest = self.store.digest_at(seq).await.map_err(read)?;
            digest.ok_or(AuditError::NoRecord(seq))
        };
        let (end, digest) = match until {
            Some(until) if until < head => (until, digest_at(until).await?),
            _ => (head, head_digest),
        };
        let after = match after {
            0 => self.store.audit_start().await.map_err(read)?.0,
            after => after,
        };
        if after > end {
            return Err(AuditError::NoRecord(after));
        }
        let anchor = match after {
            0 => None,
            after => Some(anchor(after, &digest_at(after).await?)),
        };
        Ok(Export {
            log: self.clone(),
            filter: AuditFilter {
                after,
                until: Some(end),
                limit: PAGE,
                ..AuditFilter::default()
            },
            anchor,
            end: Some((end, digest)),
        })
    }
}

impl Follower {
    /// The next ones, at least one; waits for it. `None` when the store closes. May be dropped and called again.
    ///
    /// # Errors
    /// [`AuditError::Read`].
    pub async fn next(&mut self) -> Option<Result<(i64, String), AuditError>> {
        loop {
            if let Some(record) = self.read.pop_front() {
                return Some(Ok(record));
            }
            // Before reading, so that nothing between the two is missed.
            let last = *self.appended.borrow_and_update();
            let lines = match self.store.audit_lines(self.filter.clone()).await {
                Ok(lines) => lines,
                Err(error) => return Some(Err(AuditError::Read(error))),
            };
            if let Some((seq, _)) = lines.last() {
                self.filter.after = *seq;
                self.read.extend(lines);
                continue;
            }
            // Up to there nothing matches: it need not be looked at again.
            self.filter.after = self.filter.after.max(last);
            self.appended.changed().await.ok()?;
        }
    }

    /// The position up to which all was given out or passed over, as far as it is known.
    #[must_use]
    pub fn position(&self) -> i64 {
        self.read
            .front()
            .map_or(self.filter.after, |(seq, _)| seq - 1)
    }

    /// The next one that is not after `until`; `None` when there is none. Waits for nothing.
    ///
    /// # Errors
    /// [`AuditError::Read`].
    pub async fn next_up_to(&mut self, until: i64) -> Option<Result<(i64, String), AuditError>> {
        if self.read.is_empty() {
            self.filter.until = Some(until);
            match self.store.audit_lines(self.filter.clone()).await {
                Ok(lines) => {
                    let last = lines.last().map_or(until, |(seq, _)| *seq);
                    self.filter.after = self.filter.after.max(last);
                    self.read.extend(lines);
                }
                Err(error) => return Some(Err(AuditError::Read(error))),
            }
        }
        self.read.pop_front().map(Ok)
    }

    /// What was read already and is not taken yet, up to `most`.
    pub fn at_hand(&mut self, most: usize) -> Vec<(i64, String)> {
        let most = most.min(self.read.len());
        self.read.drain(..most).collect()
    }
}

impl Export {
    /// The next lines; `None` after the last, which is the checkpoint.
    ///
    /// # Errors
    /// [`AuditError`]; what was exported so far is then cut, and verifies as such.
    pub async fn next(&mut self) -> Result<Option<Vec<String>>, AuditError> {
        if let Some(anchor) = self.anchor.take() {
            return Ok(Some(vec![anchor]));
        }
        let Some((end, digest)) = self.end else {
            return Ok(None);
        };
        let lines = self.log.store.audit_lines(self.filter.clone()).await;
        let lines = lines.map_err(AuditError::Read)?;
        if let Some((seq, _)) = lines.last() {
            self.filter.after = *seq;
            return Ok(Some(lines.into_iter().map(|(_, line)| line).collect()));
        }
        self.end = None;
        let (_, checkpoint) = self.log.checkpoint_at(end, digest).await?;
        Ok(Some(vec![checkpoint]))
    }
}
