//! Volumes: a team makes, sees and removes its own.

use super::{App, AppError};
use crate::model::event::AuditEvent;
use crate::model::name::Name;
use crate::model::principal::Principal;
use crate::model::volume::{Holder, Volume};
use crate::policy::Action;
use crate::session::{SessionError, VolumeRefusal};

/// Who has no team has none.
const RULE: &str = "volumes-belong-to-a-team";

/// A volume as its team sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSeen {
    /// What the store keeps.
    pub volume: Volume,
    /// How much of the disk its file takes, in bytes; `None` when there is no file.
    pub used_bytes: Option<u64>,
    /// The sessions that live and have it.
    pub holders: Vec<Holder>,
}

impl App {
    /// The volumes of the principal's team, by name.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn volumes(&self, principal: &Principal) -> Result<Vec<VolumeSeen>, AppError> {
        let team = self.own_team(principal, Action::ReadVolumes, RULE)?;
        let found = self.0.sessions.volumes_of(team.clone()).await;
        let found = found.map_err(AppError::Store)?;
        Ok(found.into_iter().map(|found| self.seen(found)).collect())
    }

    /// One volume of the principal's team.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn volume(&self, principal: &Principal, name: &Name) -> Result<VolumeSeen, AppError> {
        let team = self.own_team(principal, Action::ReadVolumes, RULE)?;
        let found = self.0.store.volume(team.clone(), name.clone()).await;
        let found = found.map_err(AppError::Store)?;
        let missing = || SessionError::Volume(VolumeRefusal::NotFound(name.clone()));
        let found = found.ok_or_else(|| AppError::Session(missing()))?;
        Ok(self.seen(found))
    }

    /// Makes a volume of the principal's team. A caller that goes away stops it nowhere half way.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn create_volume(
        &self,
        principal: &Principal,
        name: Name,
        size_bytes: u64,
    ) -> Result<VolumeSeen, AppError> {
        let team = self
            .own_team(principal, Action::ChangeVolumes, RULE)?
            .clone();
        let event = AuditEvent::VolumeCreate {
            volume: name.clone(),
            team: team.clone(),
            size_bytes,
        };
        let sessions = self.0.sessions.clone();
        let by = principal.clone();
        let work = async move {
            let made = sessions.create_volume(&by, team, name, size_bytes).await;
            made.map_err(AppError::Session)
        };
        let made = self.changed(principal, event, work, |_| None).await?;
        Ok(self.seen((made, Vec::new())))
    }

    /// Removes a volume of the principal's team, with all that is in it.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn remove_volume(&self, principal: &Principal, name: Name) -> Result<(), AppError> {
        let team = self
            .own_team(principal, Action::ChangeVolumes, RULE)?
            .clone();
        let event = AuditEvent::VolumeDelete {
            volume: name.clone(),
            team: team.clone(),
        };
        let sessions = self.0.sessions.clone();
        let work = async move {
            let removed = sessions.remove_volume(team, name).await;
            removed.map_err(AppError::Session)
        };
        self.changed(principal, event, work, |()| None).await
    }

    fn seen(&self, (volume, holders): (Volume, Vec<Holder>)) -> VolumeSeen {
        VolumeSeen {
            used_bytes: self.0.sessions.volumes().files.used_bytes(volume.id),
            volume,
            holders,
        }
    }
}
