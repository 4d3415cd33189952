//! Values go in and come out for use alone; the key is changed while that goes on, and is cut short at each step.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::base::clock::SystemClock;
use crate::base::id::KeyId;
use crate::model::event::AuditRecord;
use crate::model::principal::Client;
use crate::model::query::AuditFilter;
use crate::vault::{CREDENTIAL, FILE, NEXT_CREDENTIAL, NEXT_FILE, Rotation};

/// Nothing here takes longer, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// One life of a daemon on a state.
struct Life {
    store: Store,
    vault: Vault,
    credentials: Credentials,
}

impl Life {
    async fn begin(state: &Path) -> Self {
        Self::with(state, None).await.unwrap()
    }

    async fn with(state: &Path, unit: Option<&Path>) -> Result<Self, NoVault> {
        let store = Store::open(&state.join("state.db")).unwrap();
        let vault = match vault_of(&store, unit, state).await {
            Ok(vault) => vault,
            Err(error) => {
                store.close().await;
                return Err(error);
            }
        };
        let audit = AuditLog::new(store.clone(), Arc::new(SystemClock));
        Ok(Self {
            credentials: Credentials::new(store.clone(), vault.clone(), audit),
            vault,
            store,
        })
    }

    /// As if it were killed: nothing is tidied up.
    async fn end(self) {
        let Self {
            store,
            vault,
            credentials,
        } = self;
        drop((vault, credentials));
        store.close().await;
    }

    async fn put(&self, of: &str, named: &str, text: &str) -> Result<u32, CredentialError> {
        self.put_if(of, named, text, Precondition::None).await
    }

    async fn put_if(
        &self,
        of: &str,
        named: &str,
        text: &str,
        precondition: Precondition,
    ) -> Result<u32, CredentialError> {
        let wanted = Wanted {
            team: name(of),
            name: name(named),
            value: CredentialValue::new(text.into()).unwrap(),
            description: None,
            precondition,
            by: "key_x".into(),
            at: Timestamp::from_millis(1),
        };
        let put = self.credentials.put(wanted).await;
        put.map(|(credential, _)| credential.version)
    }

    async fn open(&self, of: &str, named: &str) -> Result<String, CredentialError> {
        let by = Principal::Client(Client::member(KeyId::from_bytes([1; 16]), name(of)));
        let (team, named, purpose) = (name(of), name(named), name("test"));
        let credentials = &self.credentials;
        let opened = credentials.open_for_use(&by, None, &team, &named, &purpose);
        Ok(String::from_utf8(opened.await?.expose().to_vec()).unwrap())
    }

    async fn fill(&self) {
        for (of, named) in ALL {
            self.put(of, named, "before").await.unwrap();
            self.put(of, named, &format!("{of}'s {named}"))
                .await
                .unwrap();
        }
        let own = self.vault.seal("a-key", b"own").unwrap();
        let kept = self.store.keep_signing_key("a-key", own, 0, "{}".into());
        kept.await.unwrap();
    }

    /// Everything that [`Life::fill`] put opens.
    async fn opens_all(&self) {
        for (of, named) in ALL {
            let opened = self.open(of, named).await.unwrap();
            assert_eq!(opened, format!("{of}'s {named}"));
        }
        let own = self.store.sealed("a-key").await.unwrap().unwrap();
        assert_eq!(*self.vault.unseal("a-key", &own).unwrap(), b"own");
    }

    async fn records(&self) -> Vec<AuditRecord> {
        let filter = AuditFilter {
            limit: 1000,
            ..AuditFilter::default()
        };
        let records = self.store.audit(filter).await.unwrap();
        records.into_iter().map(|(_, record)| record).collect()
    }

    /// The step in the database.
    async fn rewrap(&self, rotation: Rotation) -> Result<u64, StoreError> {
        let (from, to) = (rotation.from(), rotation.anchor().unwrap());
        let rewrap = move |what: &_, sealed: &[u8]| rotation.rewrap(what, sealed);
        self.store.rewrap(from, to, rewrap).await
    }
}

const ALL: [(&str, &str); 4] = [
    ("red", "db"),
    ("red", "mail"),
    ("blue", "db"),
    ("blue", "x.y-z_0"),
];

fn key(state: &Path) -> Vec<u8> {
    fs::read(state.join(FILE)).unwrap()
}

#[tokio::test]
async fn a_value_goes_in_and_comes_out_for_use_alone_which_is_recorded_first() {
    let directory = tempfile::tempdir().unwrap();
    let life = Life::begin(directory.path()).await;
    assert_eq!(life.put("red", "db", "one").await.unwrap(), 1);
    assert_eq!(life.put("red", "db", "two").await.unwrap(), 2);
    assert_eq!(life.open("red", "db").await.unwrap(), "two");
    let other = life.open("blue", "db").await.unwrap_err();
    assert!(matches!(other, CredentialError::NotFound(_)), "{other}");
    let records = life.records().await;
    let [record] = records.as_slice() else {
        panic!("{records:?}");
    };
    let used = AuditEvent::CredentialUse {
        credential: name("db"),
        team: name("red"),
        version: 2,
        purpose: name("test"),
    };
    assert_eq!((&record.event, record.stage), (&used, Stage::Fact));
    let listed = life.credentials.list(name("red")).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].used_at, Some(record.at));
    assert_eq!(listed[0].used_for.as_deref(), Some("test"));
    assert_eq!(life.credentials.list(name("blue")).await.unwrap(), []);
    life.end().await;
}

#[tokio::test]
async fn a_use_that_cannot_be_recorded_gives_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let life = Life::begin(directory.path()).await;
    life.put("red", "db", "one").await.unwrap();
    let stranger = rusqlite::Connection::open(directory.path().join("state.db")).unwrap();
    stranger
        .execute_batch(
            "CREATE TRIGGER no BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        .unwrap();
    let error = life.open("red", "db").await.unwrap_err();
    assert!(matches!(error, CredentialError::Store(_)), "{error}");
    let listed = life.credentials.list(name("red")).await.unwrap();
    assert_eq!(listed[0].used_at, None);
    stranger.execute_batch("DROP TRIGGER no").unwrap();
    assert_eq!(life.open("red", "db").await.unwrap(), "one");
    drop(stranger);
    life.end().await;
}

#[tokio::test]
async fn a_number_is_never_given_twice_and_a_precondition_holds_or_nothing_changes() {
    let directory = tempfile::tempdir().unwrap();
    let life = Life::begin(directory.path()).await;
    for version in 1..=3 {
        assert_eq!(life.put("red", "db", "x").await.unwrap(), version);
    }
    let stale = Precondition::OneOf(vec![2]);
    for wrong in [Precondition::Absent, stale.clone()] {
        let error = life.put_if("red", "db", "y", wrong).await.unwrap_err();
        assert!(matches!(error, CredentialError::Conflict(_)), "{error}");
    }
    let remove = |precondition| {
        life.credentials
            .remove(name("red"), name("db"), precondition)
    };
    let error = remove(stale).await.unwrap_err();
    assert!(matches!(error, CredentialError::Conflict(_)), "{error}");
    assert_eq!(life.open("red", "db").await.unwrap(), "x");
    assert_eq!(remove(Precondition::Present).await.unwrap(), 3);
    let error = remove(Precondition::None).await.unwrap_err();
    assert!(matches!(error, CredentialError::NotFound(_)), "{error}");
    let absent = life.put_if("red", "db", "z", Precondition::Absent).await;
    assert_eq!(absent.unwrap(), 4, "an old row could be put in its place");
    assert_eq!(life.put("blue", "db", "z").await.unwrap(), 1);
    life.end().await;
}

#[tokio::test]
async fn a_row_that_was_put_in_another_s_place_does_not_open() {
    let directory = tempfile::tempdir().unwrap();
    let life = Life::begin(directory.path()).await;
    life.fill().await;
    let stranger = rusqlite::Connection::open(directory.path().join("state.db")).unwrap();
    let copy = "UPDATE credentials SET (version, data_key, value) =
        (SELECT version, data_key, value FROM credentials WHERE team = ?1 AND name = ?2)
        WHERE team = 'red' AND name = 'db'";
    let old = "UPDATE credentials SET version = 1 WHERE team = 'red' AND name = 'db'";
    for (of, named) in [("red", "mail"), ("blue", "db")] {
        stranger.execute_batch("SAVEPOINT a").unwrap();
        stranger.execute(copy, [of, named]).unwrap();
        stranger.execute_batch("RELEASE a").unwrap();
        let error = life.open("red", "db").await.unwrap_err();
        assert!(matches!(error, CredentialError::Envelope(_)), "{error}");
        life.put("red", "db", "again").await.unwrap();
    }
    // An older value, under the number of the new one and under its own.
    let value: (Vec<u8>, Vec<u8>) = stranger
        .query_row(
            "SELECT data_key, value FROM credentials WHERE team = 'red' AND name = 'db'",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    let now = life.put("red", "db", "newer").await.unwrap();
    stranger
        .execute(
            "UPDATE credentials SET data_key = ?1, value = ?2 WHERE team = 'red' AND name = 'db'",
            rusqlite::params![value.0, value.1],
        )
        .unwrap();
    let error = life.open("red", "db").await.unwrap_err();
    assert!(
        error.to_string().contains(&format!("version {now}")),
        "{error}"
    );
    stranger.execute(old, []).unwrap();
    assert!(life.open("red", "db").await.is_err());
    drop(stranger);
    life.end().await;
}

#[tokio::test]
async fn a_team_has_so_many_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let life = Life::begin(directory.path()).await;
    let stranger = rusqlite::Connection::open(directory.path().join("state.db")).unwrap();
    let row = "INSERT INTO credentials SELECT 'red', 'n' || ?1, 1, '', '', 0, '', 0, NULL, NULL, x'', x''";
    for n in 0..MAX_CREDENTIALS_OF_TEAM {
        stranger.execute(row, [n]).unwrap();
    }
    let error = life.put("red", "one-more", "x").await.unwrap_err();
    assert!(matches!(error, CredentialError::Full(_)), "{error}");
    assert_eq!(life.put("red", "n1", "x").await.unwrap(), 2, "it is there");
    assert_eq!(life.put("blue", "one-more", "x").await.unwrap(), 1);
    drop(stranger);
    life.end().await;
}

#[tokio::test]
async fn a_new_key_opens_all_and_the_old_one_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let life = Life::begin(state).await;
    life.fill().await;
    let old = key(state);
    for generation in 2..=4 {
        let rotated = life.credentials.rotate().await.unwrap();
        // The key of what rows have sealed is one of them.
        assert_eq!((rotated.generation, rotated.sealed), (generation, 6));
        life.opens_all().await;
    }
    assert_ne!(key(state), old);
    assert!(!state.join(NEXT_FILE).exists());
    life.put("red", "db", "red's db").await.unwrap();
    life.end().await;
    let life = Life::begin(state).await;
    assert_eq!(life.credentials.generation(), 4);
    life.opens_all().await;
    life.end().await;
    // The old key is worth nothing any more, and is told so.
    fs::write(state.join(FILE), old).unwrap();
    let error = Life::with(state, None).await.err().unwrap();
    assert!(error.to_string().contains("put the key back"), "{error}");
}

/// What a rotation does, step by step; `step` of them are done and then it is killed.
async fn cut_short(state: &Path, step: usize) {
    let life = Life::begin(state).await;
    if step == 0 {
        // While the file was written.
        fs::write(state.join(NEXT_FILE), [7; 5]).unwrap();
        return life.end().await;
    }
    let rotation = life.vault.begin_rotation().unwrap();
    if step >= 2 {
        life.rewrap(rotation).await.unwrap();
        // Uses and puts go on in the middle of it.
        life.opens_all().await;
        life.put("red", "db", "red's db").await.unwrap();
        life.opens_all().await;
    }
    if step >= 3 {
        assert!(
            life.vault
                .settle(life.store.settled_generation().await.unwrap())
                .unwrap()
        );
    }
    life.end().await;
}

#[tokio::test]
async fn a_rotation_that_was_cut_short_at_any_step_loses_nothing() {
    for step in 0..=3 {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        let life = Life::begin(state).await;
        life.fill().await;
        life.end().await;
        let before = key(state);
        // And once more after that, at each step.
        for next in 0..=3 {
            cut_short(state, step).await;
            cut_short(state, next).await;
            let life = Life::begin(state).await;
            assert!(!state.join(NEXT_FILE).exists(), "{step} {next}");
            life.opens_all().await;
            life.end().await;
        }
        if step >= 2 {
            assert_ne!(key(state), before);
        }
    }
}

#[tokio::test]
async fn what_the_old_key_does_not_open_stops_a_rotation_and_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let life = Life::begin(state).await;
    life.fill().await;
    let before = key(state);
    let stranger = rusqlite::Connection::open(state.join("state.db")).unwrap();
    let set = "UPDATE credentials SET data_key = ?1 WHERE team = 'blue' AND name = 'db'";
    let kept: Vec<u8> = stranger
        .query_row(
            "SELECT data_key FROM credentials WHERE team = 'blue' AND name = 'db'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    stranger.execute(set, [vec![1_u8; 60]]).unwrap();
    let error = life.credentials.rotate().await.unwrap_err();
    let told = Chain(&error).to_string();
    assert!(told.contains("blue/db version 2"), "{told}");
    assert_eq!(key(state), before);
    assert!(!state.join(NEXT_FILE).exists());
    stranger.execute(set, [kept]).unwrap();
    life.opens_all().await;
    // And when that is mended it can be done.
    life.credentials.rotate().await.unwrap();
    life.opens_all().await;
    drop(stranger);
    life.end().await;
}

#[tokio::test]
async fn a_key_that_cannot_take_its_place_is_kept_where_it_is_and_takes_it_later() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let life = Life::begin(state).await;
    life.fill().await;
    // A directory cannot be replaced by a file.
    let saved = key(state);
    let rotation = life.vault.begin_rotation().unwrap();
    life.rewrap(rotation).await.unwrap();
    fs::remove_file(state.join(FILE)).unwrap();
    fs::create_dir(state.join(FILE)).unwrap();
    let generation = life.store.settled_generation().await.unwrap();
    let error = life.vault.settle(generation).unwrap_err();
    assert!(matches!(error, VaultError::NotInPlace { .. }), "{error}");
    life.opens_all().await;
    // The only copy of the key is not written over.
    let only = fs::read(state.join(NEXT_FILE)).unwrap();
    assert!(life.credentials.rotate().await.is_err());
    assert_eq!(fs::read(state.join(NEXT_FILE)).unwrap(), only);
    life.opens_all().await;
    fs::remove_dir(state.join(FILE)).unwrap();
    life.credentials.rotate().await.unwrap();
    life.opens_all().await;
    assert_ne!(key(state), saved);
    life.end().await;
    let life = Life::begin(state).await;
    life.opens_all().await;
    life.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_and_puts_go_on_while_the_key_is_changed() {
    let directory = tempfile::tempdir().unwrap();
    let life = Arc::new(Life::begin(directory.path()).await);
    life.fill().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let busy: Vec<_> = ALL
        .into_iter()
        .map(|(of, named)| {
            let (life, stop) = (Arc::clone(&life), stop.clone());
            tokio::spawn(async move {
                let mut done = 0_u32;
                while !stop.is_cancelled() {
                    let value = format!("{of}'s {named}");
                    life.put(of, named, &value).await.unwrap();
                    assert_eq!(life.open(of, named).await.unwrap(), value);
                    done += 1;
                }
                done
            })
        })
        .collect();
    let rotations = async {
        for generation in 2..=20 {
            let rotated = life.credentials.rotate().await.unwrap();
            assert_eq!(rotated.generation, generation);
        }
    };
    tokio::time::timeout(PATIENCE, rotations).await.unwrap();
    stop.cancel();
    for task in busy {
        assert!(task.await.unwrap() > 0);
    }
    life.opens_all().await;
    Arc::into_inner(life).unwrap().end().await;
}

#[tokio::test]
async fn one_rotation_is_done_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let life = Life::begin(directory.path()).await;
    let (one, two) = tokio::join!(life.credentials.rotate(), life.credentials.rotate());
    let refused = [one, two].into_iter().filter_map(Result::err);
    let refused: Vec<_> = refused.map(|error| error.code()).collect();
    assert_eq!(refused, ["vault_busy"]);
    life.end().await;
}

fn give(unit: &Path, called: &str, byte: u8) {
    use std::os::unix::fs::PermissionsExt;
    let path = unit.join(called);
    fs::write(&path, [byte; 32]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
}

fn take_away(unit: &Path, called: &str) {
    fs::remove_file(unit.join(called)).unwrap();
}

#[tokio::test]
async fn a_key_that_is_the_unit_s_is_followed_by_the_one_that_the_unit_is_given() {
    let (directory, unit) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (state, unit) = (directory.path(), unit.path());
    give(unit, CREDENTIAL, 1);
    let life = Life::with(state, Some(unit)).await.unwrap();
    life.fill().await;
    let error = life.credentials.rotate().await.unwrap_err();
    assert!(error.to_string().contains(NEXT_CREDENTIAL), "{error}");
    life.opens_all().await;
    give(unit, NEXT_CREDENTIAL, 1);
    let error = life.credentials.rotate().await.unwrap_err();
    assert!(error.to_string().contains("already"), "{error}");
    take_away(unit, NEXT_CREDENTIAL);
    give(unit, NEXT_CREDENTIAL, 2);
    let rotated = life.credentials.rotate().await.unwrap();
    assert!(rotated.origin.ends_with(NEXT_CREDENTIAL), "{rotated:?}");
    life.opens_all().await;
    let again = life.credentials.rotate().await.unwrap_err();
    assert!(again.to_string().contains("already"), "{again}");
    life.end().await;
    // Until the operator has renamed it, it is found under its old name.
    let life = Life::with(state, Some(unit)).await.unwrap();
    life.opens_all().await;
    life.end().await;
    take_away(unit, NEXT_CREDENTIAL);
    assert!(Life::with(state, Some(unit)).await.is_err());
    take_away(unit, CREDENTIAL);
    give(unit, CREDENTIAL, 2);
    let life = Life::with(state, Some(unit)).await.unwrap();
    life.opens_all().await;
    life.end().await;
    assert!(!state.join(FILE).exists() && !state.join(NEXT_FILE).exists());
}

#[tokio::test]
async fn a_key_in_a_file_can_be_followed_by_one_of_the_unit_s() {
    let (directory, unit) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (state, unit) = (directory.path(), unit.path());
    let life = Life::begin(state).await;
    life.fill().await;
    life.end().await;
    give(unit, NEXT_CREDENTIAL, 2);
    let life = Life::with(state, Some(unit)).await.unwrap();
    life.credentials.rotate().await.unwrap();
    life.opens_all().await;
    life.end().await;
    take_away(unit, NEXT_CREDENTIAL);
    give(unit, CREDENTIAL, 2);
    let life = Life::with(state, Some(unit)).await.unwrap();
    life.opens_all().await;
    life.end().await;
}

#[tokio::test]
async fn a_state_from_before_the_key_was_known_takes_the_key_that_opens_it_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let life = Life::begin(state).await;
    life.fill().await;
    life.end().await;
    let forget = || {
        let stranger = rusqlite::Connection::open(state.join("state.db")).unwrap();
        stranger.execute_batch("DELETE FROM vault").unwrap();
    };
    forget();
    let right = key(state);
    fs::write(state.join(FILE), [9; 32]).unwrap();
    let error = Life::with(state, None).await.err().unwrap();
    assert!(error.to_string().contains("put the key back"), "{error}");
    fs::write(state.join(FILE), right).unwrap();
    let life = Life::begin(state).await;
    life.opens_all().await;
    life.end().await;
    // From now on it is known, also where nothing is sealed any more.
    let stranger = rusqlite::Connection::open(state.join("state.db")).unwrap();
    stranger
        .execute_batch("DELETE FROM sealed; DELETE FROM credentials")
        .unwrap();
    drop(stranger);
    fs::remove_file(state.join(FILE)).unwrap();
    let error = Life::with(state, None).await.err().unwrap();
    assert!(
        error.to_string().contains("there is no vault key"),
        "{error}"
    );
}
