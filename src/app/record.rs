//! Reading the record: who may, and nothing else. Whoever may use a session may read what was recorded of it; the whole
//! is for those who may read the audit log.

pub use crate::audit::ocsf::event as ocsf_event;
pub use crate::audit::read::Export as AuditExport;
pub use crate::store::Extent;

use super::{App, AppError};
use crate::audit::read::{Export, Follower};
use crate::audit::retention::Archived;
use crate::audit::{AuditError, Verification};
use crate::base::clock::Timestamp;
use crate::base::id::SessionId;
use crate::model::event::DoorLimit;
use crate::model::principal::Principal;
use crate::model::query::{AuditFilter, BadFilter};
use crate::model::record::SignedArchive;
use crate::policy::{Action, Resource};
use crate::store::StoreError;

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
        lines.map_err(reached)
    }

    /// How much of the record is in the database. Whoever may read a part of it may know.
    ///
    /// # Errors
    /// [`AppError::Store`].
    pub async fn audit_extent(&self) -> Result<Extent, AppError> {
        self.0.store.audit_extent().await.map_err(AppError::Store)
    }

    /// The files that what was before is in, of positions after `after`, in their order, at most so many.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn audit_archives(
        &self,
        principal: &Principal,
        after: i64,
        limit: u32,
    ) -> Result<Vec<SignedArchive>, AppError> {
        self.may_read(principal, None).await?;
        let kept = self.0.store.archives(after, limit).await;
        let lines = kept.map_err(AppError::Store)?.into_iter();
        let parsed = lines.map(|(last, _, line)| {
            let unreadable =
                || AppError::Internal(format!("the line of archive {last} is not ours"));
            SignedArchive::parse(&line).ok_or_else(unreadable)
        });
        parsed.collect()
    }

    /// Where those files are.
    #[must_use]
    pub fn archive_directory(&self) -> &std::path::Path {
        self.0.retention.directory()
    }

    /// Moves what was made before this time to files; without one what the settings say.
    ///
    /// # Errors
    /// [`AppError::Archive`].
    pub async fn archive_audit(
        &self,
        principal: &Principal,
        before: Option<Timestamp>,
    ) -> Result<Archived, AppError> {
        self.allow(principal, Action::Administer, &Resource::default())?;
        let done = self.0.retention.look(principal, before).await;
        done.map_err(AppError::Archive)
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
            let extent = self.audit_extent().await?;
            filter.after = extent
                .last
                .saturating_sub(i64::from(last))
                .max(extent.after);
        }
        self.0.audit.check_kept(filter.after).await.map_err(read)?;
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
            // Whoever reads the whole reads what is of one session, of any team.
            Some(_) if self.would_allow(principal, Action::ReadAudit) => Ok(()),
            Some(id) => self.session(principal, id).await.map(drop),
            None => self.allow(principal, Action::ReadAudit, &Resource::default()),
        }
    }

    /// Notes that somebody who is known asked for more than they may.
    pub fn limited(&self, principal: &Principal, limit: DoorLimit) {
        self.0.audit.limited(principal, limit);
    }

    /// Notes that an address asked for more than it may.
    pub fn crowded(&self, address: Option<std::net::IpAddr>, limit: DoorLimit) {
        self.0.audit.crowded(address, limit);
    }

    /// Notes that somebody presented no valid credentials.
    pub fn not_authenticated(&self, address: Option<std::net::IpAddr>) {
        self.0.audit.not_authenticated(address);
    }
}

fn read(error: AuditError) -> AppError {
    match error {
        AuditError::Read(error) => reached(error),
        AuditError::NoRecord(seq) => AppError::NoRecord(seq),
        error => AppError::Audit(error),
    }
}

fn reached(error: StoreError) -> AppError {
    match error {
        StoreError::Archived { after, up_to, file } => AppError::Archived { after, up_to, file },
        error => AppError::Store(error),
    }
}
