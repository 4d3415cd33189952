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
struct Edition {
    name: Name,
    version: u32,
    spec: Option<TemplateSpec>,
    made_by: String,
    made_at: Timestamp,
}

impl Edition {
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
        self.check_room()?;
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
            .call("list templates", move |db| current(db, &Origin::Team(team)))
            .await
    }

    /// The templates of all teams as they are now of which sandboxes are to stand ready.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn pooled_templates(&self) -> Result<Vec<Template>, StoreError> {
        let doing = "list the templates with a pool";
        self.readers
            .call(doing, move |db| {
                let sql = StoreError::sql(doing);
                let mut owners = db
                    .prepare_cached(
                        "SELECT DISTINCT owner FROM templates WHERE owner <> '' AND document ->> 'pool' > 0",
                    )
                    .map_err(&sql)?;
                let owners: Result<Vec<String>, _> = owners
                    .query_map([], |row| row.get(0))
                    .and_then(Iterator::collect);
                let mut pooled = Vec::new();
                for owner in owners.map_err(&sql)? {
                    let team = owner.parse().map_err(|_| bad_row(doing, "owner".to_owned()))?;
                    let templates = current(db, &Origin::Team(team))?;
                    pooled.extend(templates.into_iter().filter(|template| template.spec.pool > 0));
                }
                Ok(pooled)
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
fn latest(db: &Connection, origin: &Origin, name: &Name) -> Result<Option<Edition>, StoreError> {
    let tail = "owner = ?1 AND name = ?2 ORDER BY version DESC LIMIT 1";
    Ok(select(db, tail, params![owner(origin), name.as_str()])?.pop())
}

/// The templates of one origin as they are now, by name.
fn current(db: &Connection, origin: &Origin) -> Result<Vec<Template>, StoreError> {
    let tail = "owner = ?1 AND document IS NOT NULL AND version =
        (SELECT max(version) FROM templates AS u WHERE u.owner = templates.owner AND u.name = templates.name)
        ORDER BY name";
    let rows = select(db, tail, params![owner(origin)])?;
    let templates = rows.into_iter().filter_map(|row| row.template(origin));
    Ok(templates.collect())
}

fn select(
    db: &Connection,
    tail: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<Vec<Edition>, StoreError> {
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

fn read(row: &Row<'_>) -> Result<Edition, String> {
    fn field<T: rusqlite::types::FromSql>(row: &Row<'_>, column: &str) -> Result<T, String> {
        row.get(column).map_err(|error| error.to_string())
    }
    let document: Option<String> = field(row, "document")?;
    let spec = document.map(|text| serde_json::from_str(&text)).transpose();
    Ok(Edition {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::endpoint::Endpoints;
    use crate::model::image::ImageDigest;
    use crate::model::setup::{Probe, Program, Readiness, Setup, StartCommand, WarmUp};

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        (directory, store)
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    /// Says something in every field.
    fn full() -> TemplateSpec {
        TemplateSpec {
            env: [("A".to_owned(), "b".to_owned())].into(),
            workdir: Some("/w".into()),
            setup: Setup {
                user: Some("app".into()),
                start: Some(StartCommand {
                    program: Program::Argv(vec!["serve".into()]),
                    env: [("C".to_owned(), "d".to_owned())].into(),
                    cwd: Some("/srv".into()),
                    user: None,
                }),
                ready: Some(Readiness {
                    probe: Probe::Port(8000),
                    timeout_s: 5,
                    interval_ms: 100,
                }),
                ports: vec![8000, 80],
                egress_ca: true,
                endpoints: Endpoints {
                    any_port: true,
                    public: vec![80],
                    headers: [(80, [("X-A".to_owned(), "b".to_owned())].into())].into(),
                },
                warm_up: Some(WarmUp {
                    run: StartCommand {
                        program: Program::Command("import".into()),
                        env: [("D".to_owned(), "e".to_owned())].into(),
                        cwd: None,
                        user: None,
                    },
                    ready: Some(Readiness {
                        probe: Probe::File("/tmp/warm".into()),
                        timeout_s: 5,
                        interval_ms: 100,
                    }),
                    signal: Some(10),
                }),
            },
            pool: 2,
            teams: Some([name("red")].into()),
            ..TemplateSpec::new(ImageDigest::from_bytes([7; 32]))
        }
    }

    fn new(team: &str, template: &str, pool: u32) -> NewTemplate {
        NewTemplate {
            team: name(team),
            name: name(template),
            spec: TemplateSpec { pool, ..full() },
            precondition: Precondition::None,
            max: 1000,
            by: "key_x".into(),
            at: Timestamp::from_millis(i64::from(pool)),
        }
    }

    async fn put(store: &Store, new: NewTemplate) -> TemplatePut {
        store.put_template(new).await.unwrap()
    }

    async fn remove(store: &Store, template: &str, precondition: Precondition) -> TemplateRemoval {
        let at = Timestamp::from_millis(9);
        let removal = store.remove_template(
            name("red"),
            name(template),
            precondition,
            "key_x".into(),
            at,
        );
        removal.await.unwrap()
    }

    async fn version(store: &Store, version: u32) -> Option<Template> {
        let origin = Origin::Team(name("red"));
        let found = store.template_version(origin, name("web"), version);
        found.await.unwrap()
    }

    #[tokio::test]
    async fn versions_count_on_and_the_old_ones_can_be_looked_up() {
        let (directory, store) = store();
        let TemplatePut::Made(first) = put(&store, new("red", "web", 0)).await else {
            panic!("it was not made");
        };
        assert_eq!(
            (first.version, first.spec.clone()),
            (1, TemplateSpec { pool: 0, ..full() })
        );
        assert_eq!(first.made_by, "key_x");
        let again = put(&store, new("red", "web", 0)).await;
        assert_eq!(again, TemplatePut::AlreadySo(first.clone()));
        let TemplatePut::Changed(second) = put(&store, new("red", "web", 1)).await else {
            panic!("it was not changed");
        };
        assert_eq!(second.version, 2);
        store.close().await;
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        let found = store.team_template(name("red"), name("web")).await.unwrap();
        assert_eq!(found, Some(second.clone()));
        assert_eq!(version(&store, 1).await, Some(first));
        assert_eq!(version(&store, 2).await, Some(second.clone()));
        assert_eq!(version(&store, 3).await, None);
        assert_eq!(store.team_templates(name("red")).await.unwrap(), [second]);
        assert_eq!(store.team_templates(name("blue")).await.unwrap(), []);
        let other = store.team_template(name("blue"), name("web")).await;
        assert_eq!(other.unwrap(), None);
    }

    #[tokio::test]
    async fn a_removed_template_is_gone_and_its_numbers_are_not_given_again() {
        let (_directory, store) = store();
        assert_eq!(
            remove(&store, "web", Precondition::None).await,
            TemplateRemoval::Missing
        );
        put(&store, new("red", "web", 0)).await;
        assert_eq!(
            remove(&store, "web", Precondition::None).await,
            TemplateRemoval::Removed
        );
        assert_eq!(
            remove(&store, "web", Precondition::None).await,
            TemplateRemoval::Missing
        );
        assert_eq!(store.team_templates(name("red")).await.unwrap(), []);
        let now = store.team_template(name("red"), name("web")).await;
        assert_eq!(now.unwrap(), None);
        assert!(
            version(&store, 1).await.is_some(),
            "sessions of it may live"
        );
        assert_eq!(version(&store, 2).await, None, "that is its removal");
        let TemplatePut::Made(next) = put(&store, new("red", "web", 0)).await else {
            panic!("it was not made");
        };
        assert_eq!(next.version, 3);
    }

    #[tokio::test]
    async fn what_does_not_hold_any_more_changes_nothing() {
        let (_directory, store) = store();
        let with = |pool, precondition| NewTemplate {
            precondition,
            ..new("red", "web", pool)
        };
        for precondition in [Precondition::Present, Precondition::OneOf(vec![1])] {
            let put = put(&store, with(0, precondition)).await;
            assert_eq!(put, TemplatePut::Conflict);
        }
        let made = put(&store, with(0, Precondition::Absent)).await;
        assert!(matches!(made, TemplatePut::Made(_)));
        for precondition in [Precondition::Absent, Precondition::OneOf(vec![2, 3])] {
            let put = put(&store, with(1, precondition.clone())).await;
            assert_eq!(put, TemplatePut::Conflict);
            let removal = remove(&store, "web", precondition).await;
            assert_eq!(removal, TemplateRemoval::Conflict);
        }
        let changed = put(&store, with(1, Precondition::OneOf(vec![7, 1]))).await;
        assert!(matches!(changed, TemplatePut::Changed(_)));
        let removal = remove(&store, "web", Precondition::OneOf(vec![2])).await;
        assert_eq!(removal, TemplateRemoval::Removed);
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let (_directory, store) = store();
        for pool in 0..MAX_VERSIONS + 3 {
            put(&store, new("red", "web", pool)).await;
        }
        assert_eq!(version(&store, 3).await, None);
        assert!(version(&store, 4).await.is_some());
        let full = NewTemplate {
            max: 1,
            ..new("red", "other", 0)
        };
        assert_eq!(put(&store, full.clone()).await, TemplatePut::Full);
        // A new version is not another template, and another team has its own.
        let changed = NewTemplate {
            max: 1,
            ..new("red", "web", 0)
        };
        assert!(matches!(
            put(&store, changed).await,
            TemplatePut::Changed(_)
        ));
        let blue = NewTemplate {
            team: name("blue"),
            ..full.clone()
        };
        assert!(matches!(put(&store, blue).await, TemplatePut::Made(_)));
        remove(&store, "web", Precondition::None).await;
        assert!(matches!(put(&store, full).await, TemplatePut::Made(_)));
        for n in 0..=MAX_REMOVED {
            let one = format!("t{n}");
            put(&store, new("red", &one, 0)).await;
            remove(&store, &one, Precondition::None).await;
        }
        let rows = store.readers.call("test", |db| {
            db.query_row(
                "SELECT count(DISTINCT name) FROM templates WHERE owner = 'red'",
                [],
                |row| row.get::<_, u32>(0),
            )
            .map_err(StoreError::sql("test"))
        });
        assert_eq!(
            rows.await.unwrap(),
            MAX_REMOVED + 1,
            "and the one that lives"
        );
    }

    #[tokio::test]
    async fn files_are_numbered_by_what_they_say() {
        let (_directory, store) = store();
        let number = async |specs: &[(&str, u32)]| {
            let specs = specs
                .iter()
                .map(|(one, pool)| {
                    (
                        name(one),
                        TemplateSpec {
                            pool: *pool,
                            ..full()
                        },
                    )
                })
                .collect();
            let at = Timestamp::from_millis(1);
            let numbered = store.number_templates(specs, "casemated".into(), at);
            let numbered = numbered.await.unwrap().into_values();
            numbered
                .map(|template| {
                    assert_eq!(template.origin, Origin::File);
                    (template.name.to_string(), template.version)
                })
                .collect::<Vec<_>>()
        };
        let numbered = |base, python| vec![("base".into(), base), ("python".into(), python)];
        assert_eq!(number(&[("base", 0), ("python", 0)]).await, numbered(1, 1));
        assert_eq!(number(&[("base", 0), ("python", 1)]).await, numbered(1, 2));
        // A file that was away for a while, and one that goes back.
        assert_eq!(number(&[("base", 0)]).await, [("base".into(), 1)]);
        assert_eq!(number(&[("base", 1), ("python", 1)]).await, numbered(2, 2));
        assert_eq!(number(&[("base", 0), ("python", 1)]).await, numbered(3, 2));
        // A team's are another's.
        let made = put(&store, new("red", "base", 0)).await;
        assert!(matches!(
            made,
            TemplatePut::Made(Template { version: 1, .. })
        ));
    }

    #[tokio::test]
    async fn a_document_that_cannot_be_read_is_said_without_it_and_a_file_goes_on() {
        let (directory, store) = store();
        let specs = BTreeMap::from([(name("base"), full())]);
        let at = Timestamp::from_millis(1);
        let number = || store.number_templates(specs.clone(), "casemated".into(), at);
        number().await.unwrap();
        put(&store, new("red", "web", 0)).await;
        let raw = Connection::open(directory.path().join("state.db")).unwrap();
        raw.execute(
            "UPDATE templates SET document = '{\"image\": \"hush\"}'",
            [],
        )
        .unwrap();
        let numbered = number().await.unwrap();
        assert_eq!(numbered[&name("base")].version, 2);
        let error = store
            .team_template(name("red"), name("web"))
            .await
            .unwrap_err();
        assert!(!format!("{error:?} {error}").contains("hush"));
    }
}
