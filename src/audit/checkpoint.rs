//! Checkpoints: what the chain has come to, signed. A record that ends before its last checkpoint was cut; one that says
//! otherwise was rewritten; and nobody without the key can make one that fits.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{AuditError, AuditLog};
use crate::base::chain::Chain;
use crate::base::id::InstallationId;
use crate::model::record::{Checkpoint, Digest, SignedCheckpoint, key_name};
use crate::model::verify::Signed;
use crate::vault::{PUBLIC_KEY_BYTES, SigningKey, is_signed_by};

/// How long after one that failed the next checkpoint is tried.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Signs checkpoints of one installation.
#[derive(Debug)]
pub struct Signer {
    installation: InstallationId,
    key: SigningKey,
    public: [u8; PUBLIC_KEY_BYTES],
    name: String,
}

impl Signer {
    /// With this key.
    #[must_use]
    pub fn new(installation: InstallationId, key: SigningKey) -> Self {
        let public = key.public();
        Self {
            installation,
            key,
            public,
            name: key_name(&public),
        }
    }

    /// What a checkpoint's signature is worth.
    pub(super) fn judge(&self, signed: &SignedCheckpoint) -> Signed {
        if signed.checkpoint.key != self.name {
            Signed::ByAnother
        } else if is_signed_by(&self.public, signed.signed.as_bytes(), &signed.signature) {
            Signed::Yes
        } else {
            Signed::No
        }
    }
}

impl AuditLog {
    /// The public key of those who check.
    ///
    /// # Errors
    /// [`AuditError::Unsigned`].
    pub fn public_key(&self) -> Result<[u8; PUBLIC_KEY_BYTES], AuditError> {
        self.signer().map(|signer| signer.public)
    }

    pub(super) fn signer(&self) -> Result<&Signer, AuditError> {
        self.signer.as_deref().ok_or(AuditError::Unsigned)
    }

    /// Signs what the chain has come to; its position and the checkpoint's line. One that was signed before is good for as long
    /// as nothing was added.
    ///
    /// # Errors
    /// [`AuditError`].
    pub async fn checkpoint(&self) -> Result<(i64, String), AuditError> {
        let (seq, digest) = self.store.audit_head().await.map_err(AuditError::Read)?;
        self.checkpoint_at(seq, digest).await
    }

    pub(super) async fn checkpoint_at(
        &self,
        seq: i64,
        digest: Digest,
    ) -> Result<(i64, String), AuditError> {
        let signer = self.signer()?;
        let before = self.store.checkpoints(seq - 1, seq, 64).await;
        for (_, _, line) in before.map_err(AuditError::Read)? {
            let is_same = SignedCheckpoint::parse(&line).is_some_and(|known| {
                known.checkpoint.digest == digest && signer.judge(&known) == Signed::Yes
            });
            if is_same {
                return Ok((seq, line));
            }
        }
        let checkpoint = Checkpoint {
            installation: signer.installation.to_string(),
            seq,
            digest,
            count: seq,
            at: self.clock.now(),
            key: signer.name.clone(),
        };
        let line = checkpoint.line(&signer.key.sign(checkpoint.unsigned().as_bytes()));
        // An empty record has no row to tie it to, and needs none.
        if seq > 0 {
            let kept = self.store.keep_checkpoint(seq, digest, line.clone()).await;
            if !kept.map_err(AuditError::Store)? {
                return Err(AuditError::Moved(seq));
            }
        }
        // Where whoever edits the database does not come by: the journal, and what is made of it elsewhere.
        info!(checkpoint = line, "signed a checkpoint of the audit log");
        Ok((seq, line))
    }

    /// Signs a checkpoint after so many records or so long, until `stop`, and one more then.
    pub async fn keep_checkpoints(&self, stop: CancellationToken) {
        let mut appended = self.store.appended();
        let last = self.store.last_checkpoint().await;
        let mut signed = last.ok().flatten().map_or(0, |(_, seq, _)| seq);
        let mut due: Option<Instant> = None;
        loop {
            let head = *appended.borrow_and_update();
            // Fewer than were signed: what was cut off is for the alarm, what comes now is to be signed.
            signed = signed.min(head);
            if head > signed {
                due.get_or_insert_with(|| Instant::now() + self.settings.checkpoint_every);
            }
            let is_due = due.is_some_and(|due| due <= Instant::now());
            if is_due || (head - signed >= self.settings.checkpoint_records) {
                due = match self.checkpoint().await {
                    Ok((seq, _)) => {
                        signed = seq;
                        None
                    }
                    Err(error) => {
                        error!(error = %Chain(&error), "cannot sign a checkpoint of the audit log");
                        Some(Instant::now() + AFTER_FAILURE)
                    }
                };
                if due.is_none() {
                    continue;
                }
            }
            let waiting = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = waiting => {}
                changed = appended.changed() => if changed.is_err() { return },
            }
        }
    }
}
