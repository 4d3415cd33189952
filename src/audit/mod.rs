//! Floor 5: the record. **No record, no effect.**
//!
//! ```text
//!  begin(event) --written--> Intent --finish(outcome)--> outcome written
//!       |                       |
//!    refused                 dropped: the intent stands without outcome, which an auditor reads as
//!    (effect must not         "it may have happened" (a crash, or a caller that went away)
//!     happen)
//! ```

use std::sync::Arc;

use crate::base::clock::Clock;
use crate::base::id::{EventId, SessionId};
use crate::model::event::{AuditEvent, AuditRecord, Outcome, Stage};
use crate::model::principal::Principal;
use crate::model::query::AuditFilter;
use crate::store::{Durability, Store, StoreError};

/// How far into a session's records the outcome of its creation is looked for: it comes with the
/// session's first phases, before anybody can have done much.
const FIRST_RECORDS: u32 = 200;

/// Writes the record. Cheap to clone.
#[derive(Clone)]
pub struct AuditLog {
    store: Store,
    clock: Arc<dyn Clock>,
}

/// The record cannot be written: the call must be refused.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The store refuses.
    #[error("write the audit log")]
    Store(#[source] StoreError),
    /// No identifier could be made.
    #[error("name an audit event")]
    Id(#[source] crate::base::id::NoRandomness),
}

/// A recorded intent, waiting for its outcome.
#[must_use = "an intent without an outcome reads as a crash"]
pub struct Intent {
    log: AuditLog,
    record: AuditRecord,
    durability: Durability,
}

impl AuditLog {
    /// A log on this store.
    #[must_use]
    pub fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock }
    }

    /// Records what is about to be done. Only when this succeeds may it be done.
    ///
    /// # Errors
    /// [`AuditError`]; then the effect must not happen.
    pub async fn begin(
        &self,
        principal: &Principal,
        session: Option<SessionId>,
        event: AuditEvent,
        durability: Durability,
    ) -> Result<Intent, AuditError> {
        let record = self.record(Stage::Intent, principal, session, event)?;
        self.append(record.clone(), durability).await?;
        Ok(Intent {
            log: self.clone(),
            record,
            durability,
        })
    }

    /// Records something that happened without being asked for.
    ///
    /// # Errors
    /// [`AuditError`].
    pub async fn fact(
        &self,
        principal: &Principal,
        session: Option<SessionId>,
        event: AuditEvent,
    ) -> Result<(), AuditError> {
        let record = self.record(Stage::Fact, principal, session, event)?;
        self.append(record, Durability::Process).await
    }

    /// A record that the caller writes in one transaction with the change that it tells of.
    ///
    /// # Errors
    /// [`AuditError::Id`].
    pub fn record(
        &self,
        stage: Stage,
        principal: &Principal,
        session: Option<SessionId>,
        event: AuditEvent,
    ) -> Result<AuditRecord, AuditError> {
        let at = self.clock.now();
        Ok(AuditRecord {
            id: EventId::generate(at).map_err(AuditError::Id)?,
            at,
            stage,
            intent: None,
            principal: principal.to_string(),
            session,
            event,
            outcome: None,
        })
    }

    /// An intent whose record the caller has written itself, in one transaction with its effect.
    pub fn adopt(&self, record: AuditRecord) -> Intent {
        Intent {
            log: self.clone(),
            record,
            durability: Durability::Process,
        }
    }

    /// The intent of a session's creation whose outcome a former daemon did not come to write.
    ///
    /// # Errors
    /// [`AuditError::Store`].
    pub async fn unfinished_creation(
        &self,
        session: SessionId,
    ) -> Result<Option<Intent>, AuditError> {
        let filter = AuditFilter {
            session: Some(session),
            limit: FIRST_RECORDS,
            ..AuditFilter::default()
        };
        let records = self.store.audit(filter).await.map_err(AuditError::Store)?;
        let records = || records.iter().map(|(_, record)| record);
        let intent = records().find(|record| {
            record.stage == Stage::Intent
                && matches!(record.event, AuditEvent::SessionCreate { .. })
        });
        Ok(intent
            .filter(|intent| records().all(|record| record.intent != Some(intent.id)))
            .map(|intent| self.adopt(intent.clone())))
    }

    async fn append(&self, record: AuditRecord, durability: Durability) -> Result<(), AuditError> {
        self.store
            .append_audit(record, durability)
            .await
            .map(drop)
            .map_err(AuditError::Store)
    }
}

impl Intent {
    /// Records how it ended. The effect has happened, so a failure here is for the log and for the
    /// reader of the record, who sees an intent without outcome.
    ///
    /// # Errors
    /// [`AuditError`].
    pub async fn finish(self, outcome: Outcome) -> Result<(), AuditError> {
        let at = self.log.clock.now();
        let record = AuditRecord {
            id: EventId::generate(at).map_err(AuditError::Id)?,
            at,
            stage: Stage::Outcome,
            intent: Some(self.record.id),
            outcome: Some(outcome),
            ..self.record
        };
        self.log.append(record, self.durability).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::ManualClock;

    #[tokio::test]
    async fn an_outcome_names_its_intent() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        let log = AuditLog::new(store.clone(), Arc::new(ManualClock::at(5)));
        let intent = log
            .begin(
                &Principal::Daemon,
                None,
                AuditEvent::DaemonStop {},
                Durability::Power,
            )
            .await
            .unwrap();
        intent.finish(Outcome::Ok { detail: None }).await.unwrap();
        let filter = AuditFilter {
            limit: 9,
            ..AuditFilter::default()
        };
        let records = store.audit(filter).await.unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].1.stage, Stage::Intent);
        assert_eq!(records[1].1.intent, Some(records[0].1.id));
        assert_eq!(records[1].1.outcome, Some(Outcome::Ok { detail: None }));
    }
}
