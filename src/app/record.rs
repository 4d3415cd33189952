//! Reading the record: who may, and nothing else. Whoever may use a session may read what was recorded of it; the whole
//! is for those who may read the audit log.

pub use crate::audit::ocsf::event as ocsf_event;
pub use crate::audit::read::Export as AuditExport;

use super::{App, AppError};
use crate::audit::read::{Export, Follower};
use crate::audit::{AuditError, Verification};
use crate::base::id::SessionId;
use crate::model::principal::Principal;
use crate::model::query::{AuditFilter, BadFilter};
use crate::policy::Action;

impl App {
    /// The audit log in its order, as the lines that digests are of, each with its position.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn audit_lines(
        &self,
        principal: &Principal,
        filter: AuditFilter,
    ) -> Result<Vec<(i64, String)>, AppError> {
        filter.check().map_err(AppError::BadFilter)?;
        self.may_read(principal, filter.session).await?;
        let lines = self.0.store.audit_lines(filter).await;
        lines.map_err(AppError::Store)
    }

    /// What matches the filter from its position on, and what will; beginning with what matches of the `last` so many records
    /// when that is given.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn follow_audit(
        &self,
        principal: &Principal,
        mut filter: AuditFilter,
        last: Option<u32>,
    ) -> Result<Follower, AppError> {
        filter.check().map_err(AppError::BadFilter)?;
        if filter.from.or(filter.to).is_some() {
            return Err(AppError::BadFilter(BadFilter::TimesFollowed));
        }
        self.may_read(principal, filter.session).await?;
        if let Some(last) = last {
            let head = self.0.audit.last().await.map_err(read)?;
            filter.after = head.saturating_sub(i64::from(last)).max(0);
        }
        Ok(self.0.audit.follow(filter))
    }

    /// The position of the last record.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn audit_end(&self, principal: &Principal) -> Result<i64, AppError> {
        self.may_read(principal, None).await?;
        self.0.audit.last().await.map_err(read)
    }

    /// The record from one position to another, to be verified elsewhere.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn export_audit(
        &self,
        principal: &Principal,
        after: i64,
        until: Option<i64>,
    ) -> Result<Export, AppError> {
        self.may_read(principal, None).await?;
        self.0.audit.export(after, until).await.map_err(read)
    }

    /// Looks whether a part of the record is what was written.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn verify_audit(
        &self,
        principal: &Principal,
        after: i64,
        limit: i64,
    ) -> Result<Verification, AppError> {
        self.may_read(principal, None).await?;
        self.0.audit.verify(after, limit).await.map_err(read)
    }

    /// The public key that checkpoints are verified with.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn audit_key(&self, principal: &Principal) -> Result<[u8; 32], AppError> {
        self.may_read(principal, None).await?;
        self.0.audit.public_key().map_err(read)
    }

    async fn may_read(
        &self,
        principal: &Principal,
        session: Option<SessionId>,
    ) -> Result<(), AppError> {
        match session {
            Some(id) => self.session(principal, id).await.map(drop),
            None => self.allow(principal, &Action::ReadAudit),
        }
    }

    /// Notes that somebody presented no valid credentials.
    pub fn not_authenticated(&self, address: Option<std::net::IpAddr>) {
        self.0.audit.not_authenticated(address);
    }
}

fn read(error: AuditError) -> AppError {
    match error {
        AuditError::Read(error) => AppError::Store(error),
        AuditError::NoRecord(seq) => AppError::NoRecord(seq),
        error => AppError::Audit(error),
    }
}
