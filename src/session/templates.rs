//! Which template a name means for a team: the file's, if the team may use it, else the team's own.

use std::collections::BTreeMap;

use super::manager::{House, Sessions};
use crate::model::name::Name;
use crate::model::template::Template;
use crate::store::StoreError;

impl House {
    /// See [`Sessions::template`].
    pub(super) async fn template(
        &self,
        team: &Name,
        name: &Name,
    ) -> Result<Option<Template>, StoreError> {
        if let Some(template) = self.file_template(team, name) {
            return Ok(Some(template));
        }
        let store = &self.store;
        store.team_template(team.clone(), name.clone()).await
    }

    fn file_template(&self, team: &Name, name: &Name) -> Option<Template> {
        let settings = self.recipes();
        let template = settings.templates.get(name);
        template
            .filter(|template| template.spec.is_for(team))
            .cloned()
    }
}

impl Sessions {
    /// The template that a team means by a name; `None` also where there is one that is not for it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn template(&self, team: &Name, name: &Name) -> Result<Option<Template>, StoreError> {
        self.house.template(team, name).await
    }

    /// The template that a team means by a name, if it comes from a file.
    #[must_use]
    pub fn file_template(&self, team: &Name, name: &Name) -> Option<Template> {
        self.house.file_template(team, name)
    }

    /// Every template that a team may use, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn templates(&self, team: &Name) -> Result<Vec<Template>, StoreError> {
        let own = self.house.store.team_templates(team.clone()).await?;
        let mut templates: BTreeMap<Name, Template> = own
            .into_iter()
            .map(|template| (template.name.clone(), template))
            .collect();
        let settings = self.settings();
        let files = settings.templates.values();
        for template in files.filter(|template| template.spec.is_for(team)) {
            templates.insert(template.name.clone(), template.clone());
        }
        Ok(templates.into_values().collect())
    }
}
