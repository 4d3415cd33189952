//! Credentials: a team's admins set and remove its own, its members see that they are there. No value comes back out of here.

use super::{App, AppError};
use crate::credential::{CredentialError, Rotated, Wanted};
use crate::model::credential::{Credential, CredentialValue, Description};
use crate::model::event::AuditEvent;
use crate::model::name::Name;
use crate::model::principal::Principal;
use crate::model::template::Precondition;
use crate::policy::{Action, Resource};

/// Who has no team has none.
const RULE: &str = "credentials-belong-to-a-team";

impl App {
    /// The credentials of the principal's team, by name, without their values.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn credentials(&self, principal: &Principal) -> Result<Vec<Credential>, AppError> {
        let team = self
            .own_team(principal, Action::ReadCredentials, RULE)?
            .clone();
        let found = self.0.credentials.list(team).await;
        found.map_err(said)
    }

    /// Sets the value of a credential of the principal's team. `true` says that there was none of this name.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn put_credential(
        &self,
        principal: &Principal,
        name: Name,
        value: CredentialValue,
        description: Option<Description>,
        precondition: Precondition,
    ) -> Result<(Credential, bool), AppError> {
        let team = self
            .own_team(principal, Action::ChangeCredentials, RULE)?
            .clone();
        let event = AuditEvent::CredentialPut {
            credential: name.clone(),
            team: team.clone(),
        };
        let wanted = Wanted {
            team,
            name,
            value,
            description,
            precondition,
            by: principal.to_string(),
            at: self.now(),
        };
        let credentials = self.0.credentials.clone();
        let work = async move { credentials.put(wanted).await.map_err(said) };
        let told = |kept: &(Credential, bool)| Some(format!("version {}", kept.0.version));
        self.changed(principal, event, work, told).await
    }

    /// Removes a credential of the principal's team.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn remove_credential(
        &self,
        principal: &Principal,
        name: Name,
        precondition: Precondition,
    ) -> Result<(), AppError> {
        let team = self
            .own_team(principal, Action::ChangeCredentials, RULE)?
            .clone();
        let event = AuditEvent::CredentialDelete {
            credential: name.clone(),
            team: team.clone(),
        };
        let credentials = self.0.credentials.clone();
        let work = async move {
            let removed = credentials.remove(team, name, precondition).await;
            removed.map_err(said)
        };
        let told = |version: &u32| Some(format!("version {version}"));
        self.changed(principal, event, work, told).await.map(drop)
    }

    /// Puts all that is sealed under another root key. An operator who goes away stops it not.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn rotate_key(&self, principal: &Principal) -> Result<Rotated, AppError> {
        self.allow(principal, Action::Administer, &Resource::default())?;
        let credentials = self.0.credentials.clone();
        let event = AuditEvent::VaultRotate {
            generation: credentials.generation(),
        };
        let work = async move { credentials.rotate().await.map_err(said) };
        let told = |rotated: &Rotated| {
            Some(format!(
                "generation {}, {} sealed anew",
                rotated.generation, rotated.sealed
            ))
        };
        self.changed(principal, event, work, told).await
    }
}

/// As every call says what the state and the record refuse.
fn said(error: CredentialError) -> AppError {
    match error {
        CredentialError::Store(error) => AppError::Store(error),
        CredentialError::Audit(error) => AppError::Audit(error),
        error => AppError::Credential(error),
    }
}
