//! Rows of `credentials` and `vault`: what teams need to reach other things, sealed, and which root key it is sealed under.
//!
//! Invariant: everything that is sealed is under the key of the one generation that `vault` says. What was sealed under another is not
//! taken, and a new generation comes in one transaction with all that is sealed anew.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Durability, Store, StoreError, audit};
use crate::base::clock::Timestamp;
use crate::model::credential::{Anchor, Credential, CredentialPlace, SealedValue, Wrapped};
use crate::model::event::{AuditEvent, AuditRecord};
use crate::model::name::Name;
use crate::model::template::Precondition;

/// A value that is to be kept.
#[derive(Clone, Debug)]
pub struct NewCredential {
    /// Where: the version is the one that [`Store::next_credential`] gave.
    pub place: CredentialPlace,
    /// What is said of it.
    pub description: Option<String>,
    /// The value, sealed for this place.
    pub sealed: SealedValue,
    /// Which version the caller believes to change.
    pub precondition: Precondition,
    /// Most credentials of a team.
    pub max: u32,
    /// Who asks, as the audit log writes principals.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// What became of a credential that was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialPut {
    /// There was none of this name.
    Made(Credential),
    /// There was one; this is it with its new value.
    Changed(Credential),
    /// The precondition does not hold.
    Conflict,
    /// The team has so many already.
    Full,
    /// Meanwhile the version was given to somebody else, or the vault has another key: seal it for this one.
    Stale(NextValue),
}

/// What a new value is to be sealed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextValue {
    /// The number that it gets.
    pub version: u32,
    /// The generation of the vault's key.
    pub generation: u64,
}

/// What became of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialRemoval {
    /// It is removed; this was its version.
    Removed(u32),
    /// There is none.
    Missing,
    /// The precondition does not hold.
    Conflict,
}

/// Seals one thing under another key, or says why not.
type Rewrap<'a> = dyn Fn(&Wrapped, &[u8]) -> Result<Vec<u8>, String> + 'a;

const COLUMNS: &str =
    "name, version, description, made_by, made_at, changed_by, changed_at, used_at, used_for";

impl Store {
    /// Which root key all that is sealed is under; `None` when the database does not say yet.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn anchor(&self) -> Result<Option<Anchor>, StoreError> {
        let doing = "read which key the vault has";
        self.readers
            .call(doing, move |db| {
                db.query_row("SELECT generation, proof FROM vault", [], |row| {
                    Ok(Anchor {
                        generation: row.get(0)?,
                        proof: row.get(1)?,
                    })
                })
                .optional()
                .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// Keeps which root key there is, where nobody has said so yet.
    ///
    /// # Errors
    /// [`StoreError`], also when somebody has.
    pub async fn keep_anchor(&self, anchor: Anchor) -> Result<(), StoreError> {
        let doing = "keep which key the vault has";
        self.writer
            .call(doing, Durability::Power, move |db| {
                db.execute(
                    "INSERT INTO vault (one, generation, proof) VALUES (1, ?1, ?2)",
                    params![anchor.generation, anchor.proof],
                )
                .map(drop)
                .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// The generation of the vault's key after everything that was asked to be written before, on the disk.
    ///
    /// # Errors
    /// [`StoreError`]; then it is not known.
    pub async fn settled_generation(&self) -> Result<u64, StoreError> {
        self.writer
            .call(
                "find out which key the vault has",
                Durability::Power,
                generation,
            )
            .await
    }

    /// Seals all that is sealed anew, each by `rewrap`, and keeps which key it is under, in one transaction. How much it was. It
    /// survives a power cut once this returns.
    ///
    /// # Errors
    /// [`StoreError`], also when the vault has not the key of generation `from` any more, or something does not open. On some of them it is not
    /// known whether it was kept: [`Store::settled_generation`] tells.
    pub async fn rewrap(
        &self,
        from: u64,
        to: Anchor,
        rewrap: impl Fn(&Wrapped, &[u8]) -> Result<Vec<u8>, String> + Send + 'static,
    ) -> Result<u64, StoreError> {
        self.writer
            .call("seal under another key", Durability::Power, move |db| {
                rewrap_all(db, from, &to, &rewrap)
            })
            .await
    }

    /// What the next value of a credential is to be sealed for.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn next_credential(&self, team: Name, name: Name) -> Result<NextValue, StoreError> {
        self.readers
            .call("number a credential", move |db| next(db, &team, &name))
            .await
    }

    /// Keeps a value, unless it must not be.
    ///
    /// # Errors
    /// [`StoreError`]; then the old value stands.
    pub async fn put_credential(&self, new: NewCredential) -> Result<CredentialPut, StoreError> {
        self.check_room()?;
        self.writer
            .call("keep a credential", Durability::Power, move |db| {
                put(db, &new)
            })
            .await
    }

    /// Removes a credential, and the key of its value with it.
    ///
    /// # Errors
    /// [`StoreError`]; then it stands.
    pub async fn remove_credential(
        &self,
        team: Name,
        name: Name,
        precondition: Precondition,
    ) -> Result<CredentialRemoval, StoreError> {
        let doing = "remove a credential";
        self.writer
            .call(doing, Durability::Power, move |db| {
                let current = find(db, &team, &name)?.map(|found| found.version);
                let Some(version) = current else {
                    return Ok(CredentialRemoval::Missing);
                };
                if !precondition.holds(current) {
                    return Ok(CredentialRemoval::Conflict);
                }
                db.execute(
                    "DELETE FROM credentials WHERE team = ?1 AND name = ?2",
                    [team.as_str(), name.as_str()],
                )
                .and_then(|_| {
                    db.execute(
                        "INSERT INTO credential_floors (team, version) VALUES (?1, ?2)
                         ON CONFLICT (team) DO UPDATE SET version = max(version, excluded.version)",
                        params![team.as_str(), version],
                    )
                })
                .map_err(StoreError::sql(doing))?;
                Ok(CredentialRemoval::Removed(version))
            })
            .await
    }

    /// A team's credentials, by name, without their values.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn credentials(&self, team: Name) -> Result<Vec<Credential>, StoreError> {
        let doing = "list credentials";
        self.readers
            .call(doing, move |db| {
                let sql = StoreError::sql(doing);
                let mut statement = db
                    .prepare_cached(&format!(
                        "SELECT {COLUMNS} FROM credentials WHERE team = ?1 ORDER BY name"
                    ))
                    .map_err(&sql)?;
                let rows = statement
                    .query_map([team.as_str()], |row| Ok(read(row)))
                    .map_err(&sql)?;
                rows.map(|row| row.map_err(&sql)?.map_err(|what| bad_row(doing, what)))
                    .collect()
            })
            .await
    }

    /// A credential's value, sealed, once its use is recorded: the record, and when and for what it was used, come in one transaction
    /// that survives a power cut. `record` is a record of [`AuditEvent::CredentialUse`], which gets the version. `None`, and no record,
    /// when there is no such credential.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was recorded, and nothing may be used.
    pub async fn use_credential(
        &self,
        team: Name,
        name: Name,
        purpose: Name,
        mut record: AuditRecord,
    ) -> Result<Option<(CredentialPlace, SealedValue)>, StoreError> {
        let doing = "use a credential";
        self.writer
            .call(doing, Durability::Power, move |db| {
                let sql = StoreError::sql(doing);
                let found = db
                    .query_row(
                        "SELECT version, data_key, value FROM credentials WHERE team = ?1 AND name = ?2",
                        [team.as_str(), name.as_str()],
                        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
                    )
                    .optional()
                    .map_err(&sql)?;
                let Some((now, data_key, value)) = found else {
                    return Ok(None);
                };
                if let AuditEvent::CredentialUse { version, .. } = &mut record.event {
                    *version = now;
                }
                let at = record.at.as_millis();
                audit::insert(db, &record)?;
                db.execute(
                    "UPDATE credentials SET used_at = ?3, used_for = ?4 WHERE team = ?1 AND name = ?2",
                    params![team.as_str(), name.as_str(), at, purpose.as_str()],
                )
                .map_err(&sql)?;
                let sealed = SealedValue {
                    generation: generation(db)?,
                    data_key,
                    value,
                };
                let place = CredentialPlace {
                    team,
                    name,
                    version: now,
                };
                Ok(Some((place, sealed)))
            })
            .await
    }
}

/// The generation of the vault's key.
fn generation(db: &Connection) -> Result<u64, StoreError> {
    db.query_row("SELECT generation FROM vault", [], |row| row.get(0))
        .map_err(StoreError::sql("read which key the vault has"))
}

fn next(db: &Connection, team: &Name, name: &Name) -> Result<NextValue, StoreError> {
    let last: u32 = db
        .query_row(
            "SELECT coalesce(
                (SELECT version FROM credentials WHERE team = ?1 AND name = ?2),
                (SELECT version FROM credential_floors WHERE team = ?1),
                0)",
            [team.as_str(), name.as_str()],
            |row| row.get(0),
        )
        .map_err(StoreError::sql("number a credential"))?;
    Ok(NextValue {
        version: last
            .checked_add(1)
            .ok_or_else(|| bad_row("number a credential", "there is no number left".to_owned()))?,
        generation: generation(db)?,
    })
}

fn put(db: &Connection, new: &NewCredential) -> Result<CredentialPut, StoreError> {
    let doing = "keep a credential";
    let sql = StoreError::sql(doing);
    let CredentialPlace {
        team,
        name,
        version,
    } = &new.place;
    let current = find(db, team, name)?;
    if !new
        .precondition
        .holds(current.as_ref().map(|found| found.version))
    {
        return Ok(CredentialPut::Conflict);
    }
    if current.is_none() {
        let count: u32 = db
            .query_row(
                "SELECT count(*) FROM credentials WHERE team = ?1",
                [team.as_str()],
                |row| row.get(0),
            )
            .map_err(&sql)?;
        if count >= new.max {
            return Ok(CredentialPut::Full);
        }
    }
    let next = next(db, team, name)?;
    let sealed_for = NextValue {
        version: *version,
        generation: new.sealed.generation,
    };
    if next != sealed_for {
        return Ok(CredentialPut::Stale(next));
    }
    db.execute(
        "INSERT INTO credentials
           (team, name, version, description, made_by, made_at, changed_by, changed_at, data_key, value)
         VALUES (?1, ?2, ?3, coalesce(?4, ''), ?5, ?6, ?5, ?6, ?7, ?8)
         ON CONFLICT (team, name) DO UPDATE SET version = excluded.version,
           description = coalesce(?4, description), changed_by = excluded.changed_by,
           changed_at = excluded.changed_at, data_key = excluded.data_key, value = excluded.value",
        params![
            team.as_str(),
            name.as_str(),
            version,
            new.description,
            new.by,
            new.at.as_millis(),
            new.sealed.data_key,
            new.sealed.value,
        ],
    )
    .map_err(&sql)?;
    let kept = find(db, team, name)?;
    let kept = kept.ok_or_else(|| bad_row(doing, "it is not there".to_owned()))?;
    Ok(if current.is_some() {
        CredentialPut::Changed(kept)
    } else {
        CredentialPut::Made(kept)
    })
}

fn rewrap_all(
    db: &Connection,
    from: u64,
    to: &Anchor,
    rewrap: &Rewrap<'_>,
) -> Result<u64, StoreError> {
    let doing = "seal under another key";
    let sql = StoreError::sql(doing);
    let moved = db
        .execute(
            "UPDATE vault SET generation = ?1, proof = ?2 WHERE generation = ?3",
            params![to.generation, to.proof, from],
        )
        .map_err(&sql)?;
    if moved != 1 {
        return Err(StoreError::BadRow {
            doing,
            table: "vault",
            what: format!("it is not at generation {from}"),
        });
    }
    let mut count = 0;
    // All names first: what is read must not be what was just written.
    let sealed: Vec<(String, Vec<u8>)> = collect(db, "SELECT name, value FROM sealed", |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    for (name, value) in sealed {
        let what = Wrapped::Named(name.clone());
        let value = rewrap(&what, &value).map_err(|what| StoreError::BadRow {
            doing,
            table: "sealed",
            what,
        })?;
        db.execute(
            "UPDATE sealed SET value = ?2 WHERE name = ?1",
            params![name, value],
        )
        .map_err(&sql)?;
        count += 1;
    }
    let keys: Vec<(i64, String, String, u32, Vec<u8>)> = collect(
        db,
        "SELECT rowid, team, name, version, data_key FROM credentials",
        |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
            ))
        },
    )?;
    for (id, team, name, version, data_key) in keys {
        let name_of = |text: String| {
            text.parse()
                .map_err(|_| bad_row(doing, format!("{text:?} is no name")))
        };
        let what = Wrapped::DataKey(CredentialPlace {
            team: name_of(team)?,
            name: name_of(name)?,
            version,
        });
        let data_key = rewrap(&what, &data_key).map_err(|what| bad_row(doing, what))?;
        db.execute(
            "UPDATE credentials SET data_key = ?2 WHERE rowid = ?1",
            params![id, data_key],
        )
        .map_err(&sql)?;
        count += 1;
    }
    Ok(count)
}

fn collect<T>(
    db: &Connection,
    query: &str,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    db.prepare(query)
        .and_then(|mut statement| statement.query_map([], read)?.collect())
        .map_err(StoreError::sql("read what is sealed"))
}

fn find(db: &Connection, team: &Name, name: &Name) -> Result<Option<Credential>, StoreError> {
    let doing = "look up a credential";
    let found = db
        .query_row(
            &format!("SELECT {COLUMNS} FROM credentials WHERE team = ?1 AND name = ?2"),
            [team.as_str(), name.as_str()],
            |row| Ok(read(row)),
        )
        .optional()
        .map_err(StoreError::sql(doing))?;
    found.transpose().map_err(|what| bad_row(doing, what))
}

fn read(row: &Row<'_>) -> Result<Credential, String> {
    let told = |error: rusqlite::Error| error.to_string();
    let text = |column: &str| row.get::<_, String>(column).map_err(told);
    let time = |column: &str| row.get(column).map(Timestamp::from_millis).map_err(told);
    let used_at: Option<i64> = row.get("used_at").map_err(told)?;
    Ok(Credential {
        name: text("name")?.parse().map_err(|_| "name")?,
        version: row.get("version").map_err(told)?,
        description: text("description")?,
        made_by: text("made_by")?,
        made_at: time("made_at")?,
        changed_by: text("changed_by")?,
        changed_at: time("changed_at")?,
        used_at: used_at.map(Timestamp::from_millis),
        used_for: row.get("used_for").map_err(told)?,
    })
}

fn bad_row(doing: &'static str, what: String) -> StoreError {
    StoreError::BadRow {
        doing,
        table: "credentials",
        what,
    }
}
