//! Floor 5: the record. **No record, no effect.**
//!
//! ```text
//!  begin(event) --written--> Intent --finish(outcome)--> outcome written
//!       |                       |
//!    refused                 dropped: the intent stands without outcome, which an auditor reads as
//!    (effect must not         "it may have happened" (a crash, or a caller that went away)
//!     happen)
//! ```
//!
//! Each record's digest covers the one before it (`model/record.rs`); [`checkpoint`] signs what the chain has come to,
//! [`check`] looks whether it is still so, [`read`] is for who reads on as it grows, [`mirror`] copies it out of the daemon's
//! reach, [`tally`] keeps a flood of refusals from filling it, [`retention`] moves what is old into files.

mod archive;
mod check;
mod checkpoint;
pub mod mirror;
pub mod ocsf;
pub mod read;
pub mod retention;
mod tally;

use std::sync::{Arc, OnceLock};

use tracing::error;

pub use self::check::Verification;
pub use self::checkpoint::{Signer, SignerError};
use self::tally::{Refusal, Tally};
use crate::base::clock::Clock;
use crate::base::id::{EventId, SessionId};
use crate::model::event::{AuditEvent, AuditRecord, CommandLine, DoorLimit, Outcome, Stage};
use crate::model::principal::Principal;
use crate::model::query::AuditFilter;
use crate::model::settings::AuditConfig;
use crate::store::{Durability, Store, StoreError};

/// How far into a session's records the outcome of its creation is looked for: it comes with the
/// session's first phases, before anybody can have done much.
const FIRST_RECORDS: u32 = 200;

/// Writes the record. Cheap to clone.
#[derive(Clone)]
pub struct AuditLog {
    store: Store,
    clock: Arc<dyn Clock>,
    settings: Arc<AuditConfig>,
    signer: Option<Arc<Signer>>,
    tally: Arc<Tally>,
    alarm: Arc<OnceLock<String>>,
}

/// The record cannot be written, or not be signed: the call must be refused.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The store refuses.
    #[error("write the audit log")]
    Store(#[source] StoreError),
    /// The record cannot be read.
    #[error("read the audit log")]
    Read(#[source] StoreError),
    /// No identifier could be made.
    #[error("name an audit event")]
    Id(#[source] crate::base::id::NoRandomness),
    /// This log was made without a key.
    #[error("sign the audit log: there is no key")]
    Unsigned,
    /// What was to be signed changed meanwhile, which nothing that is only appended to does.
    #[error("sign the audit log: record {0} is not what it was a moment ago; verify the log")]
    Moved(i64),
    /// There is no such position.
    #[error("there is no record {0}")]
    NoRecord(i64),
}

/// A recorded intent, waiting for its outcome.
#[must_use = "an intent without an outcome reads as a crash"]
pub struct Intent {
    log: AuditLog,
    record: AuditRecord,
}

impl AuditLog {
    /// A log on this store, as nobody set it otherwise, that signs nothing.
    #[must_use]
    pub fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            clock,
            settings: Arc::default(),
            signer: None,
            tally: Arc::default(),
            alarm: Arc::default(),
        }
    }

    /// With these settings, and signed.
    #[must_use]
    pub fn with(self, settings: AuditConfig, signer: Signer) -> Self {
        Self {
            settings: Arc::new(settings),
            signer: Some(Arc::new(signer)),
            ..self
        }
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
    ) -> Result<Intent, AuditError> {
        let record = self.record(Stage::Intent, principal, session, event)?;
        self.append(record.clone()).await?;
        Ok(self.adopt(record))
    }

    /// Records what a program in a session is about to do outside of it. Only when this succeeds may it be done.
    ///
    /// # Errors
    /// As [`AuditLog::begin`].
    pub async fn begin_inside(
        &self,
        session: SessionId,
        event: AuditEvent,
    ) -> Result<Intent, AuditError> {
        let record = self.record_inside(Stage::Intent, session, event)?;
        self.append(record.clone()).await?;
        Ok(self.adopt(record))
    }

    /// A record as [`AuditLog::record`], of what a program in a session does outside of it.
    ///
    /// # Errors
    /// [`AuditError::Id`].
    pub fn record_inside(
        &self,
        stage: Stage,
        session: SessionId,
        event: AuditEvent,
    ) -> Result<AuditRecord, AuditError> {
        let record = self.record(stage, &Principal::Daemon, Some(session), event)?;
        Ok(AuditRecord {
            principal: inside(session),
            ..record
        })
    }

    /// The same of somebody whom nobody knows, where that is allowed.
    ///
    /// # Errors
    /// [`AuditError`]; then the effect must not happen.
    pub async fn begin_for_nobody(
        &self,
        session: Option<SessionId>,
        event: AuditEvent,
    ) -> Result<Intent, AuditError> {
        let record = AuditRecord {
            principal: "nobody".to_owned(),
            ..self.record(Stage::Intent, &Principal::Daemon, session, event)?
        };
        self.append(record.clone()).await?;
        Ok(self.adopt(record))
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
        self.append(record).await
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
        }
    }

    /// What is recorded of a command line.
    #[must_use]
    pub fn command_line(&self, argv: &[String], command: Option<&str>) -> CommandLine {
        CommandLine::of(self.settings.argv, argv, command)
    }

    /// Notes that the policy denied something. Written by [`AuditLog::keep_tally`].
    pub fn denied(&self, principal: &Principal, action: &'static str, rule: &str) {
        self.tally.count(Refusal::Denied {
            principal: principal.to_string(),
            action,
            rule: rule.to_owned(),
        });
    }

    /// Notes that a program in a session was kept from reaching something; `host` is in its one spelling, where it is one.
    /// Written by [`AuditLog::keep_tally`].
    pub fn egress_denied(&self, session: SessionId, host: Option<String>, port: u16, rule: &str) {
        self.tally.count(Refusal::Egress {
            session,
            host,
            port,
            rule: rule.to_owned(),
        });
    }

    /// Notes that somebody presented no valid credentials. Written by [`AuditLog::keep_tally`].
    pub fn not_authenticated(&self, address: Option<std::net::IpAddr>) {
        self.tally.count(Refusal::Unknown(address));
    }

    /// Notes that somebody who is known asked for more than they may. Written by [`AuditLog::keep_tally`].
    pub fn limited(&self, principal: &Principal, limit: DoorLimit) {
        self.tally.count(Refusal::Limited {
            principal: principal.to_string(),
            limit,
        });
    }

    /// Notes that an address asked for more than it may. Written by [`AuditLog::keep_tally`].
    pub fn crowded(&self, address: Option<std::net::IpAddr>, limit: DoorLimit) {
        self.tally.count(Refusal::Crowded(address, limit));
    }

    /// What was found to be wrong with the record.
    #[must_use]
    pub fn alarm(&self) -> Option<&str> {
        self.alarm.get().map(String::as_str)
    }

    /// Says loudly, and for as long as the daemon runs, that the record is not what it was. It goes on: whoever
    /// edited it must not also be able to stop what is recorded of them.
    async fn raise(&self, position: i64, found: String) {
        error!(
            position,
            "ALARM: the audit log is not what it was: {found}; keep the database as it is and look at it (casemate audit verify)"
        );
        let event = AuditEvent::AuditAlarm {
            position,
            found: found.clone(),
        };
        if let Err(error) = self.fact(&Principal::Daemon, None, event).await {
            error!(error = %crate::base::chain::Chain(&error), "cannot record the alarm");
        }
        let _ = self.alarm.set(found);
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

    async fn append(&self, record: AuditRecord) -> Result<(), AuditError> {
        let durability = if self.settings.is_power(record.event.kind()) {
            Durability::Power
        } else {
            Durability::Process
        };
        self.store
            .append_audit(record, durability)
            .await
            .map(drop)
            .map_err(AuditError::Store)
    }
}

/// What the record calls whatever runs in a session.
fn inside(session: SessionId) -> String {
    format!("session:{session}")
}

impl Intent {
    /// Records how it ended. The effect has happened, so a failure here is for the log and for the
    /// reader of the record, who sees an intent without outcome.
    ///
    /// # Errors
    /// [`AuditError`].
    pub async fn finish(self, outcome: Outcome) -> Result<(), AuditError> {
        self.log.append(self.outcome(outcome)?).await
    }

    /// The record of how it ended, for who writes it together with what ended. It is recorded as soon as that is written; until
    /// then the intent waits.
    ///
    /// # Errors
    /// [`AuditError::Id`].
    pub fn outcome(&self, outcome: Outcome) -> Result<AuditRecord, AuditError> {
        let at = self.log.clock.now();
        Ok(AuditRecord {
            id: EventId::generate(at).map_err(AuditError::Id)?,
            at,
            stage: Stage::Outcome,
            intent: Some(self.record.id),
            outcome: Some(outcome),
            ..self.record.clone()
        })
    }
}

#[cfg(test)]
mod tests;
