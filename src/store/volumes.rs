//! Rows of `volumes`, and who has them.
//!
//! What stands here comes before the file, and goes after it: a row without a file is one that is half made or half removed,
//! and says so; a file without a row is nobody's.

use rusqlite::{Connection, Row, params};

use super::{Durability, Store, StoreError};
use crate::base::clock::Timestamp;
use crate::base::id::VolumeId;
use crate::model::name::Name;
use crate::model::session::Session;
use crate::model::volume::{Holder, Volume, VolumeMode, VolumeState};
use crate::store::Admission;

/// How many volumes a team may have, and how large they may be together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeBudget {
    /// So many.
    pub volumes: u32,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// What became of a new volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeAdmission {
    /// It is recorded as being made.
    Admitted,
    /// Another volume of the team has the name.
    NameTaken,
    /// The team has as many as it may.
    Full,
    /// The team's would be larger than they may be together; so many bytes are left.
    TooLarge(u64),
}

/// What became of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeRemoval {
    /// Its row says so; its file may go.
    Begun(VolumeId),
    /// There is none.
    Missing,
    /// A session has it.
    Held(Holder),
}

const COLUMNS: &str = "id, team, name, size_bytes, created_by, created_at, state";

impl Store {
    /// Records a volume that is to be made, unless it must not be.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is recorded.
    pub async fn admit_volume(
        &self,
        volume: Volume,
        budget: VolumeBudget,
    ) -> Result<VolumeAdmission, StoreError> {
        self.check_room()?;
        self.writer
            .call("record a volume", Durability::Power, move |db| {
                admit(db, &volume, budget)
            })
            .await
    }

    /// Keeps that a volume is ready. `false` when there is no such row any more.
    ///
    /// # Errors
    /// [`StoreError`]; then the old state stands.
    pub async fn volume_is_ready(&self, id: VolumeId) -> Result<bool, StoreError> {
        let doing = "keep the state of a volume";
        self.writer
            .call(doing, Durability::Power, move |db| {
                db.execute(
                    "UPDATE volumes SET state = 'ready' WHERE id = ?1 AND state = 'making'",
                    [id.to_string()],
                )
                .map(|changed| changed == 1)
                .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// Says that a volume is being removed, unless a session has it: nothing can be done with it from then on.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is changed.
    pub async fn begin_volume_removal(
        &self,
        team: Name,
        name: Name,
    ) -> Result<VolumeRemoval, StoreError> {
        let doing = "remove a volume";
        self.writer
            .call(doing, Durability::Power, move |db| {
                let Some(volume) = find(db, &team, &name)? else {
                    return Ok(VolumeRemoval::Missing);
                };
                if let Some(holder) = holders(db, volume.id)?.into_iter().next() {
                    return Ok(VolumeRemoval::Held(holder));
                }
                db.execute(
                    "UPDATE volumes SET state = 'removing' WHERE id = ?1",
                    [volume.id.to_string()],
                )
                .map_err(StoreError::sql(doing))?;
                Ok(VolumeRemoval::Begun(volume.id))
            })
            .await
    }

    /// Forgets a volume whose file is gone.
    ///
    /// # Errors
    /// [`StoreError`]; then it is still known.
    pub async fn forget_volume(&self, id: VolumeId) -> Result<(), StoreError> {
        let doing = "forget a volume";
        self.writer
            .call(doing, Durability::Power, move |db| {
                db.execute(
                    "DELETE FROM volumes WHERE id = ?1 AND state <> 'ready'",
                    [id.to_string()],
                )
                .map(drop)
                .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// A team's volumes that can be attached, by name, each with who has it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn volumes(&self, team: Name) -> Result<Vec<(Volume, Vec<Holder>)>, StoreError> {
        self.readers
            .call("list volumes", move |db| {
                let found = select(
                    db,
                    "team = ?1 AND state = 'ready' ORDER BY name",
                    &[&team.as_str()],
                )?;
                let with_holders = found.into_iter().map(|volume| {
                    let held = holders(db, volume.id)?;
                    Ok((volume, held))
                });
                with_holders.collect()
            })
            .await
    }

    /// A team's volume of this name, with who has it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn volume(
        &self,
        team: Name,
        name: Name,
    ) -> Result<Option<(Volume, Vec<Holder>)>, StoreError> {
        self.readers
            .call("look up a volume", move |db| {
                let found = find(db, &team, &name)?;
                let found = found.filter(|volume| volume.state == VolumeState::Ready);
                found
                    .map(|volume| {
                        let held = holders(db, volume.id)?;
                        Ok((volume, held))
                    })
                    .transpose()
            })
            .await
    }

    /// Every volume of every team, in whatever state.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn all_volumes(&self) -> Result<Vec<Volume>, StoreError> {
        self.readers
            .call("list all volumes", |db| select(db, "1", &[]))
            .await
    }
}

fn admit(
    db: &Connection,
    volume: &Volume,
    budget: VolumeBudget,
) -> Result<VolumeAdmission, StoreError> {
    let doing = "record a volume";
    let sql = StoreError::sql(doing);
    if find(db, &volume.team, &volume.name)?.is_some() {
        return Ok(VolumeAdmission::NameTaken);
    }
    // Those that are being removed as well: their files are there.
    let (count, bytes): (u32, u64) = db
        .query_row(
            "SELECT count(*), coalesce(sum(size_bytes), 0) FROM volumes WHERE team = ?1",
            [volume.team.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .map_err(&sql)?;
    if count >= budget.volumes {
        return Ok(VolumeAdmission::Full);
    }
    let left = budget.bytes.saturating_sub(bytes);
    if volume.size_bytes > left {
        return Ok(VolumeAdmission::TooLarge(left));
    }
    db.execute(
        &format!("INSERT INTO volumes ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"),
        params![
            volume.id.to_string(),
            volume.team.as_str(),
            volume.name.as_str(),
            volume.size_bytes,
            volume.created_by,
            volume.created_at.as_millis(),
            VolumeState::Making.as_str(),
        ],
    )
    .map_err(&sql)?;
    Ok(VolumeAdmission::Admitted)
}

/// Whether a session may have the volumes that it asks for: why not, when it may not. Asked in the transaction that admits it.
pub(super) fn refusal(db: &Connection, session: &Session) -> Result<Option<Admission>, StoreError> {
    for wanted in &session.spec.volumes {
        let found = find(db, &session.spec.team, &wanted.name)?;
        let is_there = found
            .is_some_and(|volume| volume.id == wanted.id && volume.state == VolumeState::Ready);
        if !is_there {
            return Ok(Some(Admission::NoVolume(wanted.name.clone())));
        }
        let stands_against =
            |holder: &Holder| wanted.mode == VolumeMode::Rw || holder.mode == VolumeMode::Rw;
        let held = holders(db, wanted.id)?;
        if let Some(holder) = held.into_iter().find(stands_against) {
            return Ok(Some(Admission::VolumeHeld(wanted.name.clone(), holder)));
        }
    }
    Ok(None)
}

/// The sessions that live and have a volume.
fn holders(db: &Connection, id: VolumeId) -> Result<Vec<Holder>, StoreError> {
    let doing = "look who has a volume";
    let sql = StoreError::sql(doing);
    let mut statement = db
        .prepare_cached(
            "SELECT s.id, v.value ->> 'mode' FROM sessions AS s, json_each(s.volumes) AS v
             WHERE s.ended_at IS NULL AND v.value ->> 'id' = ?1 ORDER BY s.seq",
        )
        .map_err(&sql)?;
    let rows = statement
        .query_map([id.to_string()], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })
        .map_err(&sql)?;
    rows.map(|row| {
        let (session, mode) = row.map_err(&sql)?;
        Ok(Holder {
            session: session.parse().map_err(|_| bad_row(doing, "session"))?,
            mode: VolumeMode::parse(&mode).ok_or_else(|| bad_row(doing, "mode"))?,
        })
    })
    .collect()
}

/// A team's volume of this name that is not being removed.
fn find(db: &Connection, team: &Name, name: &Name) -> Result<Option<Volume>, StoreError> {
    let found = select(
        db,
        "team = ?1 AND name = ?2 AND state <> 'removing'",
        &[&team.as_str(), &name.as_str()],
    )?;
    Ok(found.into_iter().next())
}

fn select(
    db: &Connection,
    tail: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<Vec<Volume>, StoreError> {
    let doing = "read volumes";
    let sql = StoreError::sql(doing);
    let mut statement = db
        .prepare_cached(&format!("SELECT {COLUMNS} FROM volumes WHERE {tail}"))
        .map_err(&sql)?;
    let rows = statement
        .query_map(values, |row| Ok(read(row)))
        .map_err(&sql)?;
    rows.map(|row| row.map_err(&sql)?.map_err(|what| bad_row(doing, &what)))
        .collect()
}

fn read(row: &Row<'_>) -> Result<Volume, String> {
    let text = |column: &str| {
        row.get::<_, String>(column)
            .map_err(|error| error.to_string())
    };
    Ok(Volume {
        id: text("id")?.parse().map_err(|_| "id")?,
        team: text("team")?.parse().map_err(|_| "team")?,
        name: text("name")?.parse().map_err(|_| "name")?,
        size_bytes: row.get("size_bytes").map_err(|error| error.to_string())?,
        created_by: text("created_by")?,
        created_at: Timestamp::from_millis(
            row.get("created_at").map_err(|error| error.to_string())?,
        ),
        state: VolumeState::parse(&text("state")?).ok_or("state")?,
    })
}

fn bad_row(doing: &'static str, what: &str) -> StoreError {
    StoreError::BadRow {
        doing,
        table: "volumes",
        what: what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        (directory, store)
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn volume(number: u8, team: &str, of: &str) -> Volume {
        Volume {
            id: VolumeId::from_bytes([number; 16]),
            team: name(team),
            name: name(of),
            size_bytes: 32 * MIB,
            created_by: "key_x".into(),
            created_at: Timestamp::from_millis(7),
            state: VolumeState::Making,
        }
    }

    const MUCH: VolumeBudget = VolumeBudget {
        volumes: 10,
        bytes: 1 << 40,
    };

    #[tokio::test]
    async fn a_volume_can_be_had_when_it_is_ready_and_reads_back_as_it_was_written() {
        let (_directory, store) = store();
        let wanted = volume(1, "red", "a");
        let admitted = store.admit_volume(wanted.clone(), MUCH).await.unwrap();
        assert_eq!(admitted, VolumeAdmission::Admitted);
        assert_eq!(store.volume(name("red"), name("a")).await.unwrap(), None);
        assert_eq!(store.volumes(name("red")).await.unwrap(), []);
        assert!(store.volume_is_ready(wanted.id).await.unwrap());
        let ready = Volume {
            state: VolumeState::Ready,
            ..wanted.clone()
        };
        let found = store.volume(name("red"), name("a")).await.unwrap();
        assert_eq!(found, Some((ready, Vec::new())));
        assert_eq!(store.volume(name("blue"), name("a")).await.unwrap(), None);
        // A ready one is never forgotten by mistake.
        store.forget_volume(wanted.id).await.unwrap();
        assert_eq!(store.all_volumes().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_name_is_the_team_s_own_and_is_given_back_when_its_volume_goes() {
        let (_directory, store) = store();
        let first = volume(1, "red", "a");
        store.admit_volume(first.clone(), MUCH).await.unwrap();
        let again = store.admit_volume(volume(2, "red", "a"), MUCH).await;
        assert_eq!(again.unwrap(), VolumeAdmission::NameTaken);
        let theirs = store.admit_volume(volume(3, "blue", "a"), MUCH).await;
        assert_eq!(theirs.unwrap(), VolumeAdmission::Admitted);
        let missing = store.begin_volume_removal(name("red"), name("b")).await;
        assert_eq!(missing.unwrap(), VolumeRemoval::Missing);
        let begun = store.begin_volume_removal(name("red"), name("a")).await;
        assert_eq!(begun.unwrap(), VolumeRemoval::Begun(first.id));
        let again = store.begin_volume_removal(name("red"), name("a")).await;
        assert_eq!(again.unwrap(), VolumeRemoval::Missing);
        let next = store.admit_volume(volume(4, "red", "a"), MUCH).await;
        assert_eq!(next.unwrap(), VolumeAdmission::Admitted);
        // What became of the first while it was made changes nothing any more.
        assert!(!store.volume_is_ready(first.id).await.unwrap());
        store.forget_volume(first.id).await.unwrap();
        assert_eq!(store.all_volumes().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn past_its_budget_a_team_gets_no_volume_and_another_does() {
        let (_directory, store) = store();
        let budget = VolumeBudget {
            volumes: 2,
            bytes: 80 * MIB,
        };
        for number in 1..=2 {
            let made = volume(number, "red", &format!("v{number}"));
            let admitted = store.admit_volume(made, budget).await.unwrap();
            assert_eq!(admitted, VolumeAdmission::Admitted);
        }
        let third = store.admit_volume(volume(3, "red", "v3"), budget).await;
        assert_eq!(third.unwrap(), VolumeAdmission::Full);
        let more = VolumeBudget {
            volumes: 3,
            ..budget
        };
        let third = store.admit_volume(volume(3, "red", "v3"), more).await;
        assert_eq!(third.unwrap(), VolumeAdmission::TooLarge(16 * MIB));
        let other = store.admit_volume(volume(4, "blue", "v"), budget).await;
        assert_eq!(other.unwrap(), VolumeAdmission::Admitted);
    }
}
