//! Checkpoints: what the chain has come to, signed. A record that ends before its last checkpoint was cut; one that says
//! otherwise was rewritten; and nobody without the key can make one that fits.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::retention::ArchiveError;
use super::{AuditError, AuditLog};
use crate::base::chain::Chain;
use crate::base::clock::Timestamp;
use crate::base::id::InstallationId;
use crate::model::record::{
    Archive, Checkpoint, Digest, SignedArchive, SignedCheckpoint, key_name,
};
use crate::model::verify::Signed;
use crate::store::{Store, StoreError};
use crate::vault::{PUBLIC_KEY_BYTES, SigningKey, Vault, VaultError, is_signed_by};

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

/// The name under which the key is sealed.
const KEY: &str = "record-signing-key";

/// The key that signs cannot be had. Refuse to start.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The vault refuses.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Signer {
    /// With the key that is kept, or with a new one; `true` says that it was there before. A new one signs at once what the record
    /// is then: from there on a record without a checkpoint is one whose checkpoints were taken away.
    ///
    /// # Errors
    /// [`SignerError`].
    pub async fn open(
        store: &Store,
        vault: &Vault,
        now: Timestamp,
    ) -> Result<(Self, bool), SignerError> {
        if let Some(sealed) = store.sealed(KEY).await? {
            let key = vault.signing_key(KEY, &sealed)?;
            return Ok((Self::new(store.installation(), key), true));
        }
        let sealed = vault.make_signing_key(KEY)?;
        let signer = Self::new(store.installation(), vault.signing_key(KEY, &sealed)?);
        let (seq, digest) = store.audit_head().await?;
        let line = signer.sign(seq, digest, now);
        store.keep_signing_key(KEY, sealed, seq, line).await?;
        Ok((signer, false))
    }

    /// The line of a checkpoint.
    fn sign(&self, seq: i64, digest: Digest, at: Timestamp) -> String {
        let checkpoint = Checkpoint {
            installation: self.installation.to_string(),
            seq,
            digest,
            count: seq,
            at,
            key: self.name.clone(),
        };
        checkpoint.line(&self.key.sign(checkpoint.unsigned().as_bytes()))
    }

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
        self.judge_any(&signed.checkpoint.key, &signed.signed, &signed.signature)
    }

    /// What the signature of an archive's line is worth.
    pub(super) fn judge_archive(&self, signed: &SignedArchive) -> Signed {
        if signed.archive.installation != self.installation.to_string() {
            return Signed::No;
        }
        self.judge_any(&signed.archive.key, &signed.signed, &signed.signature)
    }

    fn judge_any(&self, key: &str, signed: &str, signature: &[u8]) -> Signed {
        if key != self.name {
            Signed::ByAnother
        } else if is_signed_by(&self.public, signed.as_bytes(), signature) {
            Signed::Yes
        } else {
            Signed::No
        }
    }

    /// The line of an archive, with our names in it.
    pub(super) fn sign_archive(&self, archive: Archive) -> Result<String, ArchiveError> {
        let archive = Archive {
            installation: self.installation.to_string(),
            key: self.name.clone(),
            ..archive
        };
        let unsigned = archive
            .unsigned()
            .map_err(|error| ArchiveError::Internal(error.to_string()))?;
        let signature = self.key.sign(unsigned.as_bytes());
        Ok(Archive::line(&unsigned, &signature))
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
        let line = signer.sign(seq, digest, self.clock.now());
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
