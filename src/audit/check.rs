//! Whether the record is still what was written: its end at every start, all of it when somebody asks.

use serde::Serialize;

use super::{AuditError, AuditLog};
use crate::model::query::AuditFilter;
use crate::model::record::SignedCheckpoint;
use crate::model::verify::{Fault, Finding, Signed, Verified, Verifier};
use crate::store::StoreError;

/// Records that are read at a time: a few milliseconds of one reader.
const STEP: u32 = 1000;

/// Checkpoints that are read at a time; there is not more than one for each record of a step but by playing with exports.
const CHECKPOINTS: u32 = 10_000;

/// How often what is being verified may be archived meanwhile.
const OVERTAKEN: u32 = 10;

/// What was found in a part of the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// What is right.
    pub verified: Verified,
    /// The first thing that is wrong; nothing after it was looked at.
    pub finding: Option<Finding>,
    /// Where to go on; `None` when all was looked at.
    pub next: Option<i64>,
}

impl AuditLog {
    /// Looks at what was recorded since the last checkpoint, and raises the alarm when it is not what it was. At every
    /// start, before anything is added. `was_signed` says that there was a key before, and so must be a checkpoint.
    ///
    /// # Errors
    /// [`AuditError`] when the record cannot be read at all.
    pub async fn check_end(&self, was_signed: bool) -> Result<(), AuditError> {
        let signer = self.signer()?;
        let read = AuditError::Read;
        // Where it begins: all that is before was archived by us, and nothing is missing there.
        if let Some(found) = self.verify(0, 1).await?.finding {
            self.raise(found.seq, found.text).await;
            return Ok(());
        }
        let (start, _) = self.store.audit_start().await.map_err(read)?;
        let Some((_, seq, line)) = self.store.last_checkpoint().await.map_err(read)? else {
            let (head, _) = self.store.audit_head().await.map_err(read)?;
            if was_signed && head > 0 {
                self.raise(1, "its signed checkpoints are gone".to_owned())
                    .await;
            }
            return Ok(());
        };
        let found = match SignedCheckpoint::parse(&line) {
            None => Some((seq, "its last checkpoint cannot be read".to_owned())),
            Some(known) if signer.judge(&known) != Signed::Yes => {
                let text = format!(
                    "its last checkpoint, of record {seq}, was not signed by this installation's key"
                );
                Some((seq, text))
            }
            Some(_) => {
                // With the record that it covers, whose own text the checkpoint speaks of.
                let verification = self.verify((seq - 1).max(start), i64::MAX).await?;
                verification.finding.map(|found| (found.seq, found.text))
            }
        };
        if let Some((position, text)) = found {
            self.raise(position, text).await;
        }
        Ok(())
    }

    /// Verifies at most `limit` records after the position `after`, in steps between which other readers have their turn. After
    /// position 0 come the oldest that are kept.
    ///
    /// # Errors
    /// [`StoreError::Archived`] in [`AuditError::Read`], [`AuditError`].
    pub async fn verify(&self, after: i64, limit: i64) -> Result<Verification, AuditError> {
        let mut tries = 0;
        loop {
            match self.verify_kept(after, limit).await {
                // They were verified when they went, and what is left begins later now.
                Err(AuditError::Read(StoreError::Archived { .. }))
                    if after == 0 && tries < OVERTAKEN =>
                {
                    tries += 1;
                }
                found => return found,
            }
        }
    }

    async fn verify_kept(&self, after: i64, limit: i64) -> Result<Verification, AuditError> {
        let signer = self.signer()?;
        let read = AuditError::Read;
        let check = |signed: &SignedCheckpoint| signer.judge(signed);
        let (start, _) = self.store.audit_start().await.map_err(read)?;
        let after = if after == 0 { start } else { after };
        if after == start
            && let Some(text) = self.judge_start().await?
        {
            let finding = Finding {
                line: 0,
                seq: start,
                fault: Fault::Removed,
                text,
            };
            return Ok(Verification::wrong(after, finding));
        }
        let (head, _) = self.store.audit_head().await.map_err(read)?;
        let until = head.min(after.saturating_add(limit));
        let Some(digest) = self.store.digest_at(after).await.map_err(read)? else {
            return Ok(Self::missing(after, head));
        };
        let mut verifier = Verifier::after(&check, after, digest);
        let mut last = after;
        while last < until {
            let filter = AuditFilter {
                after: last,
                until: Some(until),
                limit: STEP,
                ..AuditFilter::default()
            };
            let lines = self.store.audit_lines(filter).await.map_err(read)?;
            let Some((end, _)) = lines.last() else { break };
            let checkpoints = self.store.checkpoints(last, *end, CHECKPOINTS).await;
            let mut checkpoints = checkpoints.map_err(read)?.into_iter().peekable();
            last = *end;
            for (seq, line) in lines {
                let mut pushed = verifier.push(&line);
                while pushed.is_ok()
                    && let Some((_, _, line)) = checkpoints.next_if(|(_, at, _)| *at <= seq)
                {
                    pushed = verifier.push(&line);
                }
                if let Err(finding) = pushed {
                    return Ok(Verification::wrong(after, finding));
                }
            }
        }
        if last < until {
            return Ok(Self::missing(last + 1, head));
        }
        if until < head {
            return Ok(match verifier.finish() {
                Ok(right) => Verification {
                    verified: right,
                    finding: None,
                    next: Some(until),
                },
                Err(finding) => Verification::wrong(after, finding),
            });
        }
        // Checkpoints first: what is added while they are read must not make them look like the future.
        let beyond = self.store.checkpoints(last, i64::MAX, CHECKPOINTS).await;
        let (head, _) = self.store.audit_head().await.map_err(read)?;
        let mut beyond = beyond.map_err(read)?.into_iter();
        if let Some((_, _, line)) = beyond.find(|(_, seq, _)| *seq > head)
            && let Err(finding) = verifier.push(&line)
        {
            return Ok(Verification::wrong(after, finding));
        }
        Ok(match verifier.finish() {
            Ok(right) => Verification {
                verified: right,
                finding: None,
                next: None,
            },
            Err(finding) => Verification::wrong(after, finding),
        })
    }

    /// Of a position that the record does not have.
    fn missing(seq: i64, head: i64) -> Verification {
        let (fault, text) = if seq > head {
            let text = format!(
                "record {seq} was signed, and {head} is the last one here: the others are missing"
            );
            (Fault::Cut, text)
        } else {
            (Fault::Removed, format!("record {seq} is missing"))
        };
        let finding = Finding {
            line: 0,
            seq: if seq > head { head + 1 } else { seq },
            fault,
            text,
        };
        Verification::wrong(seq, finding)
    }
}

impl Verification {
    fn wrong(after: i64, finding: Finding) -> Self {
        Self {
            verified: Verified {
                seq: after,
                after,
                ..Verified::default()
            },
            finding: Some(finding),
            next: None,
        }
    }
}
