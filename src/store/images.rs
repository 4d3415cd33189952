//! Which images something in the state stands for.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{Store, StoreError, connect};
use crate::model::image::ImageDigest;

/// Of the templates of teams as they are now.
const OF_TEAMS: &str =
    "SELECT document ->> 'image' FROM templates AS t WHERE owner <> '' AND document IS NOT NULL
    AND version = (SELECT max(version) FROM templates WHERE owner = t.owner AND name = t.name)";

impl Store {
    /// The images of the templates of teams as they are now, and of sessions that live.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn images_in_use(&self) -> Result<BTreeSet<ImageDigest>, StoreError> {
        let doing = "list the images in use";
        let of_sessions = "SELECT image FROM sessions WHERE ended_at IS NULL";
        self.readers
            .call(doing, move |db| {
                list(db, doing, &format!("{OF_TEAMS} UNION {of_sessions}"))
            })
            .await
    }
}

/// The images of the templates of teams in a copy of a database.
///
/// # Errors
/// [`StoreError`].
pub fn images_of_teams(copy: &Path) -> Result<BTreeSet<ImageDigest>, StoreError> {
    let db = connect(copy, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    list(&db, "list the images of templates", OF_TEAMS)
}

fn list(
    db: &Connection,
    doing: &'static str,
    text: &str,
) -> Result<BTreeSet<ImageDigest>, StoreError> {
    let sql = StoreError::sql(doing);
    let mut statement = db.prepare_cached(text).map_err(&sql)?;
    let images = statement
        .query_map([], |row| row.get::<_, String>(0))
        .map_err(&sql)?;
    images
        .map(|image| {
            let image = image.map_err(&sql)?;
            image.parse().map_err(|_| StoreError::BadRow {
                doing,
                table: "templates or sessions",
                what: "image".to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Timestamp;
    use crate::model::name::Name;
    use crate::model::template::{Precondition, TemplateSpec};
    use crate::store::NewTemplate;

    #[tokio::test]
    async fn only_the_version_that_there_is_uses_its_image() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        let team: Name = "red".parse().unwrap();
        let image = |byte| ImageDigest::from_bytes([byte; 32]);
        let put = |byte| NewTemplate {
            team: team.clone(),
            name: "a".parse().unwrap(),
            spec: TemplateSpec::new(image(byte)),
            precondition: Precondition::None,
            max: 9,
            by: "key".to_owned(),
            at: Timestamp::from_millis(1),
        };
        assert_eq!(store.images_in_use().await.unwrap(), [].into());
        store.put_template(put(1)).await.unwrap();
        store.put_template(put(2)).await.unwrap();
        assert_eq!(store.images_in_use().await.unwrap(), [image(2)].into());
        let copy = directory.path().join("copy.db");
        store.copy_to(&copy, &mut |_, _| true).unwrap();
        assert_eq!(images_of_teams(&copy).unwrap(), [image(2)].into());
        let (name, at) = ("a".parse().unwrap(), Timestamp::from_millis(2));
        store
            .remove_template(team, name, Precondition::None, "key".to_owned(), at)
            .await
            .unwrap();
        assert_eq!(store.images_in_use().await.unwrap(), [].into());
    }
}
