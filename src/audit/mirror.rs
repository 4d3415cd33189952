//! A copy of the record in the journal, or in the log where there is none: out of reach of whoever edits the database.
//!
//! It reads from the store and keeps how far it has come, so that nothing is lost when journald is slow, is restarted
//! or is not there for a while: it is just behind. After a crash of the daemon some entries come twice, with the
//! same `CASEMATE_SEQ`.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{AuditError, AuditLog};
use crate::base::chain::Chain;
use crate::host::journal::Journal;
use crate::model::query::AuditFilter;

/// Entries after which it is kept how far it has come.
const KEEP_EVERY: usize = 200;

/// Pause before the journal is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// How long what is left at the end may take.
const GRACE: Duration = Duration::from_secs(5);

/// Where the copy goes.
#[derive(Clone, Debug)]
pub enum Mirror {
    /// To the journal that listens there.
    Journal(PathBuf),
    /// Into the log, a line for each.
    Log,
}

impl AuditLog {
    /// Copies the record as it grows, until `stop`, and then what is left of it.
    pub async fn keep_mirror(&self, mirror: Mirror, stop: CancellationToken) {
        if !self.settings.mirror {
            return;
        }
        let mut seen = None;
        loop {
            if let Err(error) = self.copy(&mirror, &mut seen, Some(&stop)).await {
                warn!(error = %Chain(&error), "cannot read what is to be copied of the audit log");
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
        let rest = tokio::time::timeout(GRACE, self.copy(&mirror, &mut seen, None)).await;
        if !matches!(rest, Ok(Ok(()))) {
            warn!("the end of the audit log is copied after the next start: the journal is slow");
        }
    }

    /// Copies what there is, and what comes until `stop` if there is one. Ends when the journal cannot be reached.
    async fn copy(
        &self,
        mirror: &Mirror,
        seen: &mut Option<i64>,
        stop: Option<&CancellationToken>,
    ) -> Result<(), AuditError> {
        let after = match *seen {
            Some(seen) => seen,
            None => match self.store.mirrored().await.map_err(AuditError::Read)? {
                Some(kept) => kept,
                // Of what was recorded before there was a copy none is made.
                None => self.last().await?,
            },
        };
        let (start, _) = self.store.audit_start().await.map_err(AuditError::Read)?;
        if after < start {
            warn!(
                after,
                up_to = start,
                "what was recorded while no copy was made is archived, and does not come into the journal"
            );
        }
        let after = after.max(start);
        *seen = Some(after);
        let mut follower = self.follow(AuditFilter {
            after,
            ..AuditFilter::default()
        });
        loop {
            // Between batches only: one that is half written would be written again.
            let next = match stop {
                Some(stop) => tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    next = follower.next() => next,
                },
                None if seen.unwrap_or(0) >= self.last().await? => return Ok(()),
                None => follower.next().await,
            };
            let Some(next) = next else {
                return Ok(());
            };
            let mut batch = vec![next?];
            batch.extend(follower.at_hand(KEEP_EVERY - 1));
            let (last, failed) = write(mirror, &batch).await;
            if let Some(last) = last {
                *seen = Some(last);
                let kept = self.store.keep_mirrored(last).await;
                kept.map_err(AuditError::Store)?;
            }
            if let Some(error) = failed {
                warn!(%error, "the journal does not take the audit log; it is copied later");
                return Ok(());
            }
        }
    }
}

/// Writes lines; the position of the last one that was taken, and why not more.
async fn write(mirror: &Mirror, lines: &[(i64, String)]) -> (Option<i64>, Option<std::io::Error>) {
    let mut last = None;
    match mirror {
        Mirror::Log => {
            for (seq, line) in lines {
                info!(target: "casemate::record", seq, "{line}");
                last = Some(*seq);
            }
        }
        Mirror::Journal(socket) => {
            let journal = match Journal::connect(socket) {
                Ok(journal) => journal,
                Err(error) => return (None, Some(error)),
            };
            for (seq, line) in lines {
                if let Err(error) = write_entry(&journal, *seq, line).await {
                    return (last, Some(error));
                }
                last = Some(*seq);
            }
        }
    }
    (last, None)
}

async fn write_entry(journal: &Journal, seq: i64, line: &str) -> std::io::Result<()> {
    let record: serde_json::Value = serde_json::from_str(line)?;
    let text = |name: &str| record.get(name).and_then(serde_json::Value::as_str);
    let of_event = |name: &str| {
        let field = record.get("event").and_then(|event| event.get(name));
        field.and_then(serde_json::Value::as_str)
    };
    let result = record.get("outcome").and_then(|found| found.get("result"));
    let seq = seq.to_string();
    let kind = of_event("kind").unwrap_or_default();
    let message = format!(
        "{kind} {} by {}",
        text("stage").unwrap_or_default(),
        text("principal").unwrap_or_default()
    );
    let priority = if kind == "audit.alarm" { "1" } else { "5" };
    let mut fields = vec![
        ("MESSAGE", message.as_str()),
        ("PRIORITY", priority),
        ("SYSLOG_IDENTIFIER", "casemate-audit"),
        ("CASEMATE_SEQ", &seq),
        ("CASEMATE_EVENT", kind),
        ("CASEMATE_RECORD", line),
    ];
    let more = [
        ("CASEMATE_ID", text("id")),
        ("CASEMATE_STAGE", text("stage")),
        ("CASEMATE_INTENT", text("intent")),
        ("CASEMATE_PRINCIPAL", text("principal")),
        ("CASEMATE_SESSION", text("session")),
        (
            "CASEMATE_OUTCOME",
            result.and_then(serde_json::Value::as_str),
        ),
        ("CASEMATE_DIGEST", text("digest")),
    ];
    fields.extend(
        more.into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    journal.write(&fields).await
}
