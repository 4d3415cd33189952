//! Rows of `templates`: every version of a template, whoever made it, and none of them ever changed.
//!
//! Numbers only grow, also over a removal, so that a name and a number mean one document for ever. How many old documents
//! are kept is bounded; so is how many removed names are remembered.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, params};

use super::{Durability, Store, StoreError};
use crate::base::clock::Timestamp;
use crate::model::name::Name;
use crate::model::template::{Origin, Precondition, Template, TemplateSpec};

/// Most versions of a template that are kept.
const MAX_VERSIONS: u32 = 16;
/// Most versions of a removed template that are kept, the removal among them.
const MAX_REMOVED_VERSIONS: u32 = 4;
/// Most removed templates of a team that are remembered.
const MAX_REMOVED: u32 = 256;

/// A template that a team wants to have.
#[derive(Clone, Debug, PartialEq)]
pub struct NewTemplate {
    /// The team.
    pub team: Name,
    /// Its name.
    pub name: Name,
    /// What it says.
    pub spec: TemplateSpec,
    /// What must hold of the version that there is.
    pub precondition: Precondition,
    /// Most templates of the team.
    pub max: u32,
    /// Who asks, as the audit log writes principals.
    pub by: String,
    /// Now.
    pub at: Timestamp,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub enum TemplatePut {
    /// There was none of this name; this is the one.
    Made(Template),
    /// There was one; this is its new version.
    Changed(Template),
    /// It says what the one that there is says already.
    AlreadySo(Template),
    /// The precondition does not hold.
    Conflict,
    /// The team has so many already.
    Full,
}

/// What became of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateRemoval {
    /// It is removed.
    Removed,
    /// There is none.
    Missing,
    /// The precondition does not hold.
    Conflict,
}

/// A row: `spec` is absent in the one that says that the template was removed.
struct Version {
    name: Name,
    version: u32,
    spec: Option<TemplateSpec>,
    made_by: String,
    made_at: Timestamp,
}

impl Version {
    fn template(self, origin: &Origin) -> Option<Template> {
        Some(Template {
            name: self.name,
            version: self.version,
            origin: origin.clone(),
            made_by: self.made_by,
            made_at: self.made_at,
            spec: self.spec?,
        })
    }
}

/// How an origin is written.
fn owner(origin: &Origin) -> &str {
    match origin {
        Origin::File => "",
        Origin::Team(team) => team.as_str(),
    }
}

impl Store {
    /// Keeps a template of a team, as a new version unless it says what the one that there is says.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is changed.
    pub async fn put_template(&self, new: NewTemplate) -> Result<TemplatePut, StoreError> {
        self.writer
            .call("keep a template", Durability::Power, move |db| put(db, new))
            .await
    }

    /// Removes a template of a team. Its latest versions can still be looked up.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is changed.
    pub async fn remove_template(
        &self,
        team: Name,
        name: Name,
        precondition: Precondition,
        by: String,
        at: Timestamp,
    ) -> Result<TemplateRemoval, StoreError> {
        let doing = "remove a template";
        self.writer
            .call(doing, Durability::Power, move |db| {
                let origin = Origin::Team(team);
                let current = latest(db, &origin, &name)?.filter(|row| row.spec.is_some());
                let Some(current) = current else {
                    return Ok(TemplateRemoval::Missing);
                };
                if !precondition.holds(Some(current.version)) {
                    return Ok(TemplateRemoval::Conflict);
                }
                let version = current.version.saturating_add(1);
                insert(db, &origin, &name, version, None, &by, at)?;
                forget(db, &origin, &name, version, MAX_REMOVED_VERSIONS)?;
                db.execute(
                    "DELETE FROM templates WHERE owner = ?1 AND name IN (
                        SELECT name FROM templates AS t WHERE owner = ?1 AND document IS NULL AND version =
                            (SELECT max(version) FROM templates WHERE owner = t.owner AND name = t.name)
                        ORDER BY made_at DESC, name LIMIT -1 OFFSET ?2)",
                    params![owner(&origin), MAX_REMOVED],
                )
                .map_err(StoreError::sql(doing))?;
                Ok(TemplateRemoval::Removed)
            })
            .await
    }

    /// A template of a team as it is now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn team_template(
        &self,
        team: Name,
        name: Name,
    ) -> Result<Option<Template>, StoreError> {
        self.readers
            .call("look up a template", move |db| {
                let origin = Origin::Team(team);
                let row = latest(db, &origin, &name)?;
                Ok(row.and_then(|row| row.template(&origin)))
            })
            .await
    }

    /// A version of a template, old or new, if it is still kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn template_version(
        &self,
        origin: Origin,
        name: Name,
        version: u32,
    ) -> Result<Option<Template>, StoreError> {
        self.readers
            .call("look up a version of a template", move |db| {
                let tail = "owner = ?1 AND name = ?2 AND version = ?3";
                let values = params![owner(&origin), name.as_str(), version];
                let row = select(db, tail, values)?.pop();
                Ok(row.and_then(|row| row.template(&origin)))
            })
            .await
    }

    /// The templates of a team as they are now, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn team_templates(&self, team: Name) -> Result<Vec<Template>, StoreError> {
        self.readers
            .call("list templates", move |db| {
                let origin = Origin::Team(team);
                let tail = "owner = ?1 AND document IS NOT NULL AND version =
                    (SELECT max(version) FROM templates AS u WHERE u.owner = templates.owner AND u.name = templates.name)
                    ORDER BY name";
                let rows = select(db, tail, params![owner(&origin)])?;
                Ok(rows
                    .into_iter()
                    .filter_map(|row| row.template(&origin))
                    .collect())
            })
            .await
    }

    /// Numbers the templates that stand in files: one that says what it said last keeps its number, any other gets the next.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is changed.
    pub async fn number_templates(
        &self,
        specs: BTreeMap<Name, TemplateSpec>,
        by: String,
        at: Timestamp,
    ) -> Result<BTreeMap<Name, Template>, StoreError> {
        self.writer
            .call("number the templates", Durability::Power, move |db| {
                let mut templates = BTreeMap::new();
                for (name, spec) in specs {
                    let current = latest(db, &Origin::File, &name);
                    // What an older program wrote and this one cannot read is not what the file says.
                    let known = match current {
                        Ok(known) => known,
                        Err(StoreError::BadRow { .. }) => None,
                        Err(error) => return Err(error),
                    };
                    let template = match known {
                        Some(known) if known.spec.as_ref() == Some(&spec) => {
                            known.template(&Origin::File)
                        }
                        _ => Some(next(db, Origin::File, name.clone(), spec, &by, at)?),
                    };
                    templates.extend(template.map(|template| (name, template)));
                }
                Ok(templates)
            })
            .await
    }
}

fn put(db: &Connection, new: NewTemplate) -> Result<TemplatePut, StoreError> {
    let doing = "keep a template";
    let origin = Origin::Team(new.team);
    let current = latest(db, &origin, &new.name)?.and_then(|row| row.template(&origin));
    if !new
        .precondition
        .holds(current.as_ref().map(|current| current.version))
    {
        return Ok(TemplatePut::Conflict);
    }
    let is_new = match current {
        Some(current) if current.spec == new.spec => return Ok(TemplatePut::AlreadySo(current)),
        Some(_) => false,
        None => true,
    };
    if is_new {
        let count: u32 = db
            .query_row(
                "SELECT count(*) FROM templates AS t WHERE owner = ?1 AND document IS NOT NULL AND version =
                    (SELECT max(version) FROM templates WHERE owner = t.owner AND name = t.name)",
                [owner(&origin)],
                |row| row.get(0),
            )
            .map_err(StoreError::sql(doing))?;
        if count >= new.max {
            return Ok(TemplatePut::Full);
        }
    }
    let template = next(db, origin, new.name, new.spec, &new.by, new.at)?;
    Ok(if is_new {
        TemplatePut::Made(template)
    } else {
        TemplatePut::Changed(template)
    })
}

/// Writes the next version of a template, and forgets the oldest.
fn next(
    db: &Connection,
    origin: Origin,
    name: Name,
    spec: TemplateSpec,
    by: &str,
    at: Timestamp,
) -> Result<Template, StoreError> {
    let last: Option<u32> = db
        .query_row(
            "SELECT max(version) FROM templates WHERE owner = ?1 AND name = ?2",
            [owner(&origin), name.as_str()],
            |row| row.get(0),
        )
        .map_err(StoreError::sql("number a template"))?;
    let version = last.unwrap_or(0).saturating_add(1);
    insert(db, &origin, &name, version, Some(&spec), by, at)?;
    forget(db, &origin, &name, version, MAX_VERSIONS)?;
    Ok(Template {
        name,
        version,
        origin,
        made_by: by.to_owned(),
        made_at: at,
        spec,
    })
}

fn insert(
    db: &Connection,
    origin: &Origin,
    name: &Name,
    version: u32,
    spec: Option<&TemplateSpec>,
    by: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    let doing = "write a version of a template";
    let document = spec.map(serde_json::to_string).transpose();
    let document = document.map_err(|error| bad_row(doing, error.to_string()))?;
    db.execute(
        "INSERT INTO templates (owner, name, version, document, made_by, made_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            owner(origin),
            name.as_str(),
            version,
            document,
            by,
            at.as_millis()
        ],
    )
    .map(drop)
    .map_err(StoreError::sql(doing))
}

/// Keeps so many of the latest versions.
fn forget(
    db: &Connection,
    origin: &Origin,
    name: &Name,
    version: u32,
    kept: u32,
) -> Result<(), StoreError> {
    db.execute(
        "DELETE FROM templates WHERE owner = ?1 AND name = ?2 AND version <= ?3",
        params![owner(origin), name.as_str(), version.saturating_sub(kept)],
    )
    .map(drop)
    .map_err(StoreError::sql("forget old versions of a template"))
}

/// The latest version of a template, which may be its removal.
fn latest(db: &Connection, origin: &Origin, name: &Name) -> Result<Option<Version>, StoreError> {
    let tail = "owner = ?1 AND name = ?2 ORDER BY version DESC LIMIT 1";
    Ok(select(db, tail, params![owner(origin), name.as_str()])?.pop())
}

fn select(
    db: &Connection,
    tail: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<Vec<Version>, StoreError> {
    let doing = "read templates";
    let sql = StoreError::sql(doing);
    let mut statement = db
        .prepare_cached(&format!(
            "SELECT name, version, document, made_by, made_at FROM templates WHERE {tail}"
        ))
        .map_err(&sql)?;
    let rows = statement
        .query_map(values, |row| Ok(read(row)))
        .map_err(&sql)?;
    rows.map(|row| row.map_err(&sql)?.map_err(|what| bad_row(doing, what)))
        .collect()
}

fn read(row: &Row<'_>) -> Result<Version, String> {
    fn field<T: rusqlite::types::FromSql>(row: &Row<'_>, column: &str) -> Result<T, String> {
        row.get(column).map_err(|error| error.to_string())
    }
    let document: Option<String> = field(row, "document")?;
    let spec = document.map(|text| serde_json::from_str(&text)).transpose();
    Ok(Version {
        name: field::<String>(row, "name")?.parse().map_err(|_| "name")?,
        version: field(row, "version")?,
        // What serde says may repeat the document, in which there may be a secret.
        spec: spec.map_err(|_| "document")?,
        made_by: field(row, "made_by")?,
        made_at: Timestamp::from_millis(field(row, "made_at")?),
    })
}

fn bad_row(doing: &'static str, what: String) -> StoreError {
    StoreError::BadRow {
        doing,
        table: "templates",
        what,
    }
}
