//! Templates: who sees which, and how a team makes its own.
//!
//! Those of files are the operator's and are changed there. A team makes, changes and removes its own, within the bounds that
//! the operator set; no team ever decides what runs in another's sessions. Sessions that live keep what they were made of.

use super::{App, AppError};
use crate::model::event::AuditEvent;
use crate::model::image::ImageDigest;
use crate::model::name::Name;
use crate::model::principal::Principal;
use crate::model::settings::TeamTemplates;
use crate::model::template::{Origin, Precondition, Template, TemplateProblem, TemplateSpec};
use crate::policy::{Action, Resource};
use crate::session::checkpoints::CheckpointState;
use crate::store::{NewTemplate, TemplatePut, TemplateRemoval};

/// What became of a template that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// There was none of this name.
    New,
    /// It has a new version, or the one that says the same.
    Known,
}

/// Why a template cannot be had, kept or removed. Tell the caller.
#[derive(Debug, thiserror::Error)]
pub enum TemplateRefusal {
    /// There is none of this name, or none for this team.
    #[error("there is no template {0}")]
    NotFound(Name),
    /// This version never was, or is not kept any more.
    #[error("version {1} of the template {0} is not kept; only the latest are")]
    NoSuchVersion(Name, u32),
    /// Something in it is wrong.
    #[error("{0}")]
    Invalid(TemplateProblem),
    /// It stands in a file.
    #[error(
        "the template {0} comes from the file templates/{0}.yaml beside casemated's configuration: an operator changes it there and reloads, or take another name"
    )]
    FromFile(Name),
    /// podman does not have the image.
    #[error(
        "podman's store does not hold the image {0}; an operator loads it with casemate admin image import"
    )]
    ImageMissing(ImageDigest),
    /// The version that there is is another.
    #[error("the template {0} is not what If-Match or If-None-Match says; read it again")]
    Conflict(Name),
    /// The team has so many already.
    #[error("the team has {0} templates already, which is the most; remove one first")]
    Full(u32),
}

impl TemplateRefusal {
    /// A stable word for programs and for the record.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "template_not_found",
            Self::NoSuchVersion(..) => "template_version_not_found",
            Self::Invalid(_) => "invalid_request",
            Self::FromFile(_) => "template_from_file",
            Self::ImageMissing(_) => "image_missing",
            Self::Conflict(_) => "condition_failed",
            Self::Full(_) => "too_many_templates",
        }
    }
}

impl App {
    /// Every template that the principal may use, by name.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn templates(&self, principal: &Principal) -> Result<Vec<Template>, AppError> {
        self.allow(principal, Action::ReadTemplates, &Resource::default())?;
        match principal.team() {
            Some(team) => {
                let templates = self.0.sessions.templates(team).await;
                templates.map_err(AppError::Store)
            }
            None => Ok(self.settings().templates.values().cloned().collect()),
        }
    }

    /// One template that the principal may use: as it is, or as it was in a version that is still kept.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn template(
        &self,
        principal: &Principal,
        name: &Name,
        version: Option<u32>,
    ) -> Result<Template, AppError> {
        let team = own_team(principal)?;
        let resource = Resource::of(team).template(name);
        self.allow(principal, Action::ReadTemplates, &resource)?;
        let found = self.0.sessions.template(team, name).await;
        let found = found.map_err(AppError::Store)?;
        let Some(version) = version else {
            return found.ok_or_else(|| no(TemplateRefusal::NotFound(name.clone())));
        };
        // A removed one can still be looked up by its version: sessions may live that were made of it.
        let origin = found.map_or_else(|| Origin::Team(team.clone()), |template| template.origin);
        let store = &self.0.store;
        let then = store.template_version(origin, name.clone(), version).await;
        let then = then.map_err(AppError::Store)?;
        // A file's template that once was for others was none of this team's business.
        then.filter(|template| template.spec.is_for(team))
            .ok_or_else(|| no(TemplateRefusal::NoSuchVersion(name.clone(), version)))
    }

    /// How many sandboxes of this version of a template stand ready.
    #[must_use]
    pub fn standing(&self, template: &Template) -> usize {
        self.0.sessions.standing(template)
    }

    /// The checkpoint of this version of a template, which has a warm-up.
    #[must_use]
    pub fn checkpoint(&self, template: &Template) -> CheckpointState {
        self.0.sessions.checkpoint(template)
    }

    /// Keeps a template of the principal's team.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn put_template(
        &self,
        principal: &Principal,
        name: Name,
        mut spec: TemplateSpec,
        precondition: Precondition,
    ) -> Result<(Template, Kept), AppError> {
        let team = own_team(principal)?.clone();
        // Who does not say means the own team: what every team gets is the operator's to say.
        let teams = spec.teams.get_or_insert_with(|| [team.clone()].into());
        let resource = Resource {
            is_shared: teams.iter().any(|named| *named != team),
            ..Resource::of(&team).template(&name)
        };
        self.allow(principal, Action::ChangeTemplates, &resource)?;
        let settings = self.settings();
        let bounds = &settings.sessions.team_templates;
        let mut problems = spec.problems();
        problems.extend(beyond(&spec, bounds));
        if let Some(problem) = problems.into_iter().next() {
            return Err(no(TemplateRefusal::Invalid(problem)));
        }
        self.not_from_file(&team, &name)?;
        let images = self.0.runtime.images().await.map_err(AppError::Runtime)?;
        if images.iter().all(|image| image.digest != spec.image) {
            return Err(no(TemplateRefusal::ImageMissing(spec.image)));
        }
        let event = AuditEvent::TemplatePut {
            template: name.clone(),
            team: team.clone(),
            image: spec.image,
        };
        let max = bounds.max;
        let new = NewTemplate {
            team,
            name: name.clone(),
            spec,
            precondition,
            max,
            by: principal.to_string(),
            at: self.now(),
        };
        let store = self.0.store.clone();
        let work = async move {
            match store.put_template(new).await.map_err(AppError::Store)? {
                TemplatePut::Made(template) => Ok((template, Kept::New)),
                TemplatePut::Changed(template) | TemplatePut::AlreadySo(template) => {
                    Ok((template, Kept::Known))
                }
                TemplatePut::Conflict => Err(no(TemplateRefusal::Conflict(name))),
                TemplatePut::Full => Err(no(TemplateRefusal::Full(max))),
            }
        };
        let told = |kept: &(Template, Kept)| Some(format!("version {}", kept.0.version));
        self.changed(principal, event, work, told).await
    }

    /// Removes a template of the principal's team. Sessions that live keep what they were made of.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn remove_template(
        &self,
        principal: &Principal,
        name: Name,
        precondition: Precondition,
    ) -> Result<(), AppError> {
        let team = own_team(principal)?.clone();
        let resource = Resource::of(&team).template(&name);
        self.allow(principal, Action::ChangeTemplates, &resource)?;
        self.not_from_file(&team, &name)?;
        let event = AuditEvent::TemplateRemove {
            template: name.clone(),
            team: team.clone(),
        };
        let (store, by, at) = (self.0.store.clone(), principal.to_string(), self.now());
        let work = async move {
            let removal = store.remove_template(team, name.clone(), precondition, by, at);
            match removal.await.map_err(AppError::Store)? {
                TemplateRemoval::Removed => Ok(()),
                TemplateRemoval::Missing => Err(no(TemplateRefusal::NotFound(name))),
                TemplateRemoval::Conflict => Err(no(TemplateRefusal::Conflict(name))),
            }
        };
        self.changed(principal, event, work, |()| None).await
    }

    pub(super) fn not_from_file(&self, team: &Name, name: &Name) -> Result<(), AppError> {
        match self.0.sessions.file_template(team, name) {
            Some(_) => Err(no(TemplateRefusal::FromFile(name.clone()))),
            None => Ok(()),
        }
    }
}

const fn no(refusal: TemplateRefusal) -> AppError {
    AppError::Template(refusal)
}

/// The team for which a principal asks. Operators change files.
pub(super) fn own_team(principal: &Principal) -> Result<&Name, AppError> {
    let rule = "templates-of-the-api-belong-to-a-team";
    let denied = || AppError::denied(rule, "operators change the files of the configuration");
    principal.team().ok_or_else(denied)
}

/// What goes further than the operator lets teams go.
fn beyond(spec: &TemplateSpec, bounds: &TeamTemplates) -> Vec<TemplateProblem> {
    let over = |field: &[&str], most: &dyn ToString| TemplateProblem {
        field: field.iter().map(|&part| part.to_owned()).collect(),
        problem: format!(
            "{} is the most that an operator lets a team's template say (sessions.team_templates)",
            most.to_string()
        ),
    };
    let limits = spec.max_limits.over(&bounds.max_limits).into_iter();
    let mut problems: Vec<_> = limits
        .filter(|(_, is_over, ..)| *is_over)
        .map(|(field, _, _, most)| over(&["max_limits", field], &most))
        .collect();
    if spec.max_timeout_s > bounds.max_timeout_s {
        problems.push(over(&["max_timeout_s"], &bounds.max_timeout_s));
    }
    if spec.pool > bounds.max_pool {
        problems.push(over(&["pool"], &bounds.max_pool));
    }
    if spec.allow_root && !bounds.allow_root {
        problems.push(TemplateProblem {
            field: vec!["allow_root".to_owned()],
            problem: "an operator does not let a team's template say so (sessions.team_templates)"
                .to_owned(),
        });
    }
    problems
}
