//! Backups and restores of real databases, whole and spoiled, on files alone.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::watch;

use super::keeper::{Backups, Parts, Progress};
use super::restore::{Place, Wish, identity, restore};
use super::*;
use crate::audit::AuditLog;
use crate::base::clock::{ManualClock, Timestamp};
use crate::model::event::AuditEvent;
use crate::model::image::ImageDigest;
use crate::model::principal::Principal;
use crate::model::settings::BackupConfig;
use crate::runtime::fake::FakeRuntime;
use crate::store::Store;
use crate::volume::VolumeFiles;

const NOW: i64 = 1_700_000_000_120;

/// The image of the templates' files.
pub(super) const IMAGE: ImageDigest = ImageDigest::from_bytes([7; 32]);

/// A state with its backups.
pub(super) struct Bench {
    pub(super) directory: tempfile::TempDir,
    pub(super) store: Store,
    pub(super) audit: AuditLog,
    pub(super) backups: Backups,
    pub(super) runtime: Arc<FakeRuntime>,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    pub(super) fn with(change: impl FnOnce(&mut BackupConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir(path("state")).unwrap();
        std::fs::create_dir(path("templates")).unwrap();
        std::fs::write(path("templates/base.yaml"), "image: x\n").unwrap();
        std::fs::write(path("templates/Not One.yaml"), "no\n").unwrap();
        std::fs::write(path("state/keys.hmac"), [7; 32]).unwrap();
        let store = Store::open(&path("state/state.db")).unwrap();
        let clock = Arc::new(ManualClock::at(NOW));
        let audit = AuditLog::new(store.clone(), clock.clone());
        let mut config = BackupConfig::by_hand(path("backups"));
        std::fs::create_dir(path("elsewhere")).unwrap();
        config.elsewhere = Some(path("elsewhere"));
        change(&mut config);
        let runtime = Arc::new(FakeRuntime::new([IMAGE]));
        let backups = Backups::new(Parts {
            store: store.clone(),
            audit: audit.clone(),
            runtime: runtime.clone(),
            clock,
            config,
            templates: path("templates"),
            images_of_files: Box::new(|| [IMAGE].into()),
        });
        Self {
            directory,
            store,
            audit,
            backups,
            runtime,
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) async fn make(&self, to: Option<PathBuf>) -> Result<Made, BackupError> {
        let (progress, _) = watch::channel(Progress::default());
        self.backups
            .make(&Principal::Daemon, to, false, progress)
            .await
    }

    async fn note(&self, times: usize) {
        for _ in 0..times {
            let event = AuditEvent::DaemonStop {};
            let noted = self.audit.begin(&Principal::Daemon, None, event);
            drop(noted.await.unwrap());
        }
    }

    /// Everything below a directory, by name.
    pub(super) fn names(&self, directory: &str) -> Vec<String> {
        names(&self.path(directory))
    }
}

pub(super) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub(super) fn place(directory: &Path) -> Place {
    for name in ["state", "templates", "volumes"] {
        std::fs::create_dir_all(directory.join(name)).unwrap();
    }
    Place {
        state_dir: directory.join("state"),
        volumes: VolumeFiles::new(&directory.join("volumes")),
        templates: directory.join("templates"),
    }
}

pub(super) fn take(
    file: &Path,
    key: Option<&Path>,
    place: &Place,
    wish: Wish,
) -> Result<restore::Restored, BackupError> {
    let key = key.map(identity).transpose()?;
    let from = std::fs::File::open(file).unwrap();
    restore(
        from,
        key.as_ref(),
        place,
        wish,
        Timestamp::from_millis(NOW + 1),
    )
}

fn records(state: &Path) -> i64 {
    let db = Connection::open(state.join("state.db")).unwrap();
    db.query_row("SELECT count(*) FROM audit", [], |row| row.get(0))
        .unwrap()
}

#[tokio::test]
async fn what_was_there_is_there_again_in_a_fresh_directory() {
    let bench = Bench::new();
    bench.note(100).await;
    let made = bench.make(None).await.unwrap();
    bench.note(5).await;
    assert_eq!(
        made.path,
        bench.path("backups/casemate-20231114T221320120Z.tar.zst")
    );
    assert_eq!(
        bench.names("backups").len(),
        1,
        "{:?}",
        bench.names("backups")
    );
    let rights = std::fs::metadata(&made.path).unwrap().permissions();
    assert_eq!(rights.mode() & 0o777, 0o600);
    assert_eq!(bench.backups.known().last, Some(made.made_at));
    assert!(
        !bench
            .names("state")
            .iter()
            .any(|name| name.contains("partial"))
    );

    let elsewhere = tempfile::tempdir().unwrap();
    let place = place(elsewhere.path());
    let look = Wish {
        dry_run: true,
        ..Wish::default()
    };
    let would = take(&made.path, None, &place, look).unwrap();
    assert!(names(&place.state_dir).is_empty());
    let done = take(&made.path, None, &place, Wish::default()).unwrap();
    assert_eq!(would.manifest, done.manifest);
    assert_eq!(done.before, None);
    assert_eq!(done.manifest.images, [IMAGE]);
    // The record of this backup's own intent is in it.
    assert_eq!(records(&place.state_dir), 101);
    assert_eq!(
        std::fs::read(place.state_dir.join("keys.hmac")).unwrap(),
        [7; 32]
    );
    let templates = done.templates.unwrap();
    assert_eq!(names(&templates), ["base.yaml"]);
    assert!(names(&place.templates).is_empty(), "beside, not over");
    let mark = swap::mark(&place.state_dir).unwrap().unwrap();
    assert_eq!(mark.made_at, made.made_at);
    let store = Store::open(&place.state_dir.join("state.db")).unwrap();
    assert_eq!(store.installation(), bench.store.installation());
    store.close().await;
}

#[tokio::test]
async fn a_record_that_somebody_changed_is_restored_only_when_that_is_asked_for() {
    let bench = Bench::new();
    bench.note(9).await;
    let raw = rusqlite::Connection::open(bench.path("state/state.db")).unwrap();
    raw.execute("UPDATE audit SET principal = 'nobody' WHERE seq = 4", [])
        .unwrap();
    let made = bench.make(None).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let place = place(elsewhere.path());
    let refused = take(&made.path, None, &place, Wish::default()).unwrap_err();
    assert!(matches!(refused, BackupError::BrokenRecord(4)), "{refused}");
    assert!(names(&place.state_dir).is_empty());
    let wish = Wish {
        broken_record: true,
        ..Wish::default()
    };
    take(&made.path, None, &place, wish).unwrap();
    assert_eq!(records(&place.state_dir), 10);
}

#[tokio::test]
async fn a_state_that_is_there_is_refused_or_put_aside_whole() {
    let bench = Bench::new();
    let made = bench.make(None).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let place = place(elsewhere.path());
    let old = Store::open(&place.state_dir.join("state.db")).unwrap();
    let installation = old.installation();
    old.close().await;
    std::fs::write(place.state_dir.join("keys.hmac"), "old").unwrap();
    let volume = place
        .volumes
        .path("vol_01m81sqd3exyysy61zt3rypv67".parse().unwrap());
    std::fs::write(&volume, "theirs").unwrap();
    let before = names(&place.state_dir);
    let refused = take(&made.path, None, &place, Wish::default());
    assert!(
        matches!(refused, Err(BackupError::StateThere(_))),
        "{refused:?}"
    );
    assert_eq!(names(&place.state_dir), before);

    let wish = Wish {
        replace: true,
        templates: true,
        ..Wish::default()
    };
    let done = take(&made.path, None, &place, wish).unwrap();
    let aside = done.before.unwrap();
    assert_eq!(std::fs::read(aside.join("keys.hmac")).unwrap(), b"old");
    let old = Store::open(&aside.join("state.db")).unwrap();
    assert_eq!(old.installation(), installation);
    old.close().await;
    assert_eq!(names(&place.templates), ["base.yaml"]);
    // The new state knows nothing of it, and would have it removed.
    assert!(!volume.exists());
    assert_eq!(
        std::fs::read(volume.with_added_extension("before-restore")).unwrap(),
        b"theirs"
    );
}

#[tokio::test]
async fn a_sealed_backup_is_for_its_identity_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (public, right) = seal::tests::pair(directory.path(), "right");
    let (_, wrong) = seal::tests::pair(directory.path(), "wrong");
    let bench = Bench::with(|config| config.recipient = Some(public));
    let secret = [0x5a_u8; 4096];
    std::fs::write(bench.path("state/keys.hmac"), secret).unwrap();
    let made = bench.make(None).await.unwrap();
    assert!(made.encrypted && made.path.to_string_lossy().ends_with(".tar.zst.age"));
    let bytes = std::fs::read(&made.path).unwrap();
    assert!(bytes.starts_with(b"age-encryption.org/v1\n"));
    let elsewhere = tempfile::tempdir().unwrap();
    let place = place(elsewhere.path());
    let refused = take(&made.path, None, &place, Wish::default());
    assert!(matches!(refused, Err(BackupError::Sealed)), "{refused:?}");
    let refused = take(&made.path, Some(&wrong), &place, Wish::default());
    assert!(
        matches!(refused, Err(BackupError::WrongIdentity)),
        "{refused:?}"
    );
    // The seal notices the end that is missing, and each byte that is another.
    for spoil in [bytes.len() - 1, bytes.len() - 40] {
        let spoiled = directory.path().join("spoiled");
        std::fs::write(&spoiled, &bytes[..spoil]).unwrap();
        let refused = take(&spoiled, Some(&right), &place, Wish::default());
        assert!(
            matches!(refused, Err(BackupError::Damaged(_))),
            "{refused:?}"
        );
    }
    assert!(names(&place.state_dir).is_empty());
    take(&made.path, Some(&right), &place, Wish::default()).unwrap();
    assert_eq!(
        std::fs::read(place.state_dir.join("keys.hmac")).unwrap(),
        secret
    );
}

/// Names and contents.
type Packing = Vec<(String, Vec<u8>)>;

/// The parts of a backup, to be packed again otherwise.
fn parts_of(file: &Path) -> Packing {
    let zstd = zstd::Decoder::new(std::fs::File::open(file).unwrap()).unwrap();
    let mut tar = tar::Archive::new(zstd);
    tar.entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().to_str().unwrap().to_owned(), bytes)
        })
        .collect()
}

fn packed(parts: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
    for (name, bytes) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        // Also names that no builder would write.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// Puts the lengths and sums into the manifest that the parts have.
fn honest(parts: &mut [(String, Vec<u8>)]) {
    let mut manifest: serde_json::Value = serde_json::from_slice(&parts[0].1).unwrap();
    manifest["parts"] = parts[1..]
        .iter()
        .map(|(name, bytes)| {
            let content = archive::Content::Bytes(bytes.clone());
            serde_json::to_value(archive::part(name, &content, &mut |_| true).unwrap()).unwrap()
        })
        .collect();
    parts[0].1 = manifest.to_string().into_bytes();
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "its cases are its lines")]
async fn what_is_foreign_newer_cut_changed_or_lies_is_refused_with_a_sentence() {
    let bench = Bench::new();
    bench.note(2_000).await;
    let made = bench.make(None).await.unwrap();
    let whole = std::fs::read(&made.path).unwrap();
    let parts = parts_of(&made.path);
    let edit = |change: &dyn Fn(&mut Packing)| {
        let mut parts = parts.clone();
        change(&mut parts);
        packed(&parts)
    };
    let manifest = |change: &dyn Fn(&mut serde_json::Value)| {
        edit(&|parts| {
            let mut value = serde_json::from_slice(&parts[0].1).unwrap();
            change(&mut value);
            parts[0].1 = value.to_string().into_bytes();
        })
    };
    let database = |change: &dyn Fn(&Connection)| {
        edit(&|parts| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(&file, &parts[1].1).unwrap();
            let db = Connection::open(file.path()).unwrap();
            change(&db);
            drop(db);
            parts[1].1 = std::fs::read(&file).unwrap();
            honest(parts);
        })
    };
    let flip = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    let spoiled: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", Vec::new(), "not a backup"),
        ("a text", b"PRAGMA journal_mode".to_vec(), "not a backup"),
        (
            "another tar",
            packed(&[("x".into(), vec![1])]),
            "no manifest",
        ),
        ("an empty tar", packed(&[]), "empty"),
        (
            "cut in the middle",
            whole[..whole.len() / 2].to_vec(),
            "damaged",
        ),
        (
            "without its last byte",
            whole[..whole.len() - 1].to_vec(),
            "damaged",
        ),
        ("a byte changed early", flip(40), "damaged"),
        ("a byte changed late", flip(whole.len() - 200), "damaged"),
        (
            "more behind it",
            [whole.clone(), vec![0; 7]].concat(),
            "damaged",
        ),
        (
            "a newer format",
            manifest(&|m| m["format"] = 9.into()),
            "that version",
        ),
        (
            "an unknown field",
            manifest(&|m| m["x"] = 9.into()),
            "unknown field",
        ),
        (
            "another schema",
            manifest(&|m| m["schema"] = 1.into()),
            "another schema",
        ),
        (
            "another installation",
            manifest(&|m| m["installation"] = "ins_01m81sqd3exyysy61zt3rypv67".into()),
            "another installation",
        ),
        (
            "another sum",
            manifest(&|m| m["parts"][0]["sha256"] = "00".into()),
            "state.db does not come to the sum",
        ),
        (
            "another length",
            manifest(&|m| m["parts"][0]["size_bytes"] = 5.into()),
            "state.db has another length",
        ),
        (
            "larger than the disk",
            manifest(&|m| m["parts"][0]["size_bytes"] = u64::MAX.into()),
            "are free",
        ),
        (
            "a name that leads away",
            manifest(&|m| m["parts"][1]["name"] = "../keys.hmac".into()),
            "it has a part called",
        ),
        (
            "a part missing",
            edit(&|parts| drop(parts.pop())),
            "is missing",
        ),
        (
            "a part too many",
            edit(&|parts| parts.push(("lock".into(), vec![1]))),
            "more than its manifest says",
        ),
        ("other order", edit(&|parts| parts.swap(1, 2)), "is missing"),
        (
            "a database of a newer schema",
            database(&|db| db.pragma_update(None, "user_version", 4711).unwrap()),
            "refused",
        ),
        (
            "another program's database",
            database(&|db| db.pragma_update(None, "application_id", 7).unwrap()),
            "refused",
        ),
        (
            "a database that is none",
            edit(&|parts| {
                parts[1].1[..100].fill(0);
                honest(parts);
            }),
            "refused",
        ),
        (
            "a database with a damaged page",
            edit(&|parts| {
                parts[1].1[4096 * 20..4096 * 20 + 100].fill(0xa5);
                honest(parts);
            }),
            "refused",
        ),
    ];
    let elsewhere = tempfile::tempdir().unwrap();
    let place = place(elsewhere.path());
    let file = elsewhere.path().join("spoiled");
    for (what, bytes, sentence) in spoiled {
        std::fs::File::create(&file)
            .unwrap()
            .write_all(&bytes)
            .unwrap();
        let error = take(&file, None, &place, Wish::default()).expect_err(what);
        let said = error.to_string();
        assert!(said.contains(sentence), "{what}: {said}");
        assert!(names(&place.state_dir).is_empty(), "{what} left something");
    }
    // And what was packed again without a lie is taken.
    std::fs::write(&file, edit(&|parts| honest(parts))).unwrap();
    take(&file, None, &place, Wish::default()).unwrap();
}

#[tokio::test]
async fn one_at_a_time_and_nothing_is_written_over() {
    let bench = Bench::new();
    bench.note(2_000).await;
    let to = bench.path("elsewhere/one.tar.zst");
    let (first, second) = tokio::join!(bench.make(Some(to.clone())), bench.make(None));
    first.unwrap();
    assert!(matches!(second, Err(BackupError::UnderWay)), "{second:?}");
    let before = std::fs::read(&to).unwrap();
    let again = bench.make(Some(to.clone())).await;
    assert!(matches!(again, Err(BackupError::Exists(_))), "{again:?}");
    assert_eq!(std::fs::read(&to).unwrap(), before);
    let relative = bench.make(Some("x".into())).await;
    assert!(
        matches!(relative, Err(BackupError::BadName(_))),
        "{relative:?}"
    );
    let nowhere = bench.make(Some(bench.path("elsewhere/no/such/x"))).await;
    assert!(
        matches!(nowhere, Err(BackupError::File { .. })),
        "{nowhere:?}"
    );
    // Below the named directories only, whatever the name looks like.
    std::os::unix::fs::symlink(bench.path("state"), bench.path("elsewhere/link")).unwrap();
    for outside in ["x", "state/x", "elsewhere/../x", "elsewhere/link/x"] {
        let refused = bench.make(Some(bench.path(outside))).await.unwrap_err();
        assert!(
            matches!(refused, BackupError::Outside { .. }),
            "{outside}: {refused:?}"
        );
        let said = refused.to_string();
        assert!(said.contains("backup.elsewhere"), "{said}");
        assert!(said.contains(bench.path("elsewhere").to_str().unwrap()));
    }
    // What is asked for by name says nothing of the directory's own.
    assert_eq!(bench.backups.known().failed, None);
    bench.backups.close().await;
    let stopping = bench.make(None).await;
    assert!(
        matches!(stopping, Err(BackupError::Stopping)),
        "{stopping:?}"
    );
}

/// A backup whose disk takes only so much, wherever that ends: there is none of it, and those from before stay.
#[test]
fn wherever_the_disk_ends_a_backup_is_whole_or_there_is_none() {
    use crate::host::child;
    const NAME: &str = "backup::tests::wherever_the_disk_ends_a_backup_is_whole_or_there_is_none";
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    if child::is_child() {
        let seen = Arc::default();
        signal_hook::flag::register(signal_hook::consts::SIGXFSZ, seen).unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            bench.note(1_000).await;
            // What does not compress, so that the backup is larger than the copy within it.
            let mut noise = vec![0; 2 << 20];
            getrandom::fill(&mut noise).unwrap();
            std::fs::write(bench.path("state/keys.hmac"), noise).unwrap();
            let to = |n: usize| Some(bench.path(&format!("backups/{n}")));
            std::fs::create_dir(bench.path("backups")).unwrap();
            let size = bench.make(to(0)).await.unwrap().size_bytes;
            let large = bench.store.copy_bytes().unwrap();
            assert!(large < size);
            let (mut made, mut kept) = (0, vec!["0".to_owned()]);
            // The hard limit cannot be raised again, so the smallest comes last.
            for (n, most) in [64 << 20, size - 1, size / 2, large, large - 1, large / 2]
                .into_iter()
                .enumerate()
            {
                // The log is short, so that the intent can be written; where it cannot be folded, the copy does not fit either.
                let raw = Connection::open(bench.path("state/state.db")).unwrap();
                raw.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
                let _ = raw.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
                drop(raw);
                let resource = nix::sys::resource::Resource::RLIMIT_FSIZE;
                nix::sys::resource::setrlimit(resource, most, most).unwrap();
                match bench.make(to(n + 1)).await {
                    Ok(_) => {
                        made += 1;
                        kept.push((n + 1).to_string());
                    }
                    Err(error) => assert!(
                        matches!(
                            error,
                            BackupError::Store(_)
                                | BackupError::File { .. }
                                | BackupError::Audit(_)
                        ),
                        "{error:?}"
                    ),
                }
                assert_eq!(bench.names("backups"), kept, "{most}");
                assert!(
                    !bench
                        .names("state")
                        .iter()
                        .any(|name| name.contains("partial"))
                );
            }
            assert!(made == 1, "{kept:?}");
        });
        return;
    }
    child::run(NAME, &[]);
}

/// Everything that a restore can leave when it is cut short, as its steps leave it: the next one to come makes it whole, the old
/// state or the new.
#[tokio::test]
async fn wherever_a_restore_is_cut_short_the_state_is_the_old_or_the_new() {
    let bench = Bench::with(|config| config.images = true);
    bench.note(10).await;
    let made = bench.make(None).await.unwrap();
    // How often a rename is let through before it stops; at the end all of them.
    for step in 0..12 {
        let elsewhere = tempfile::tempdir().unwrap();
        let place = place(elsewhere.path());
        let old = Store::open(&place.state_dir.join("state.db")).unwrap();
        let installation = old.installation();
        old.close().await;
        std::fs::write(place.state_dir.join("keys.hmac"), "old").unwrap();
        std::fs::write(place.state_dir.join("state.db-wal"), "").unwrap();
        let waiting = place.state_dir.join("images-restored");
        std::fs::create_dir(&waiting).unwrap();
        std::fs::write(waiting.join(format!("{}.tar", "08".repeat(32))), "old").unwrap();
        let cut = swap::tests::cut_short_after(step, || {
            let wish = Wish {
                replace: true,
                ..Wish::default()
            };
            take(&made.path, None, &place, wish)
        });
        swap::settle(&place.state_dir, &place.volumes).unwrap();
        let store = Store::open(&place.state_dir.join("state.db")).unwrap();
        let found = store.installation();
        store.close().await;
        let key = std::fs::read(place.state_dir.join("keys.hmac")).unwrap();
        let waits = images::waiting(&place.state_dir);
        let waits: Vec<_> = waits.into_iter().map(|(image, _)| image).collect();
        if step == 0 {
            assert!(cut.is_err());
            assert_eq!((found, &key[..]), (installation, &b"old"[..]), "{step}");
            assert_eq!(waits, [ImageDigest::from_bytes([8; 32])], "{step}");
        } else {
            assert_eq!(found, bench.store.installation(), "{step}");
            assert_eq!(key, [7; 32], "{step}");
            assert_eq!(waits, [IMAGE], "{step}");
            assert!(swap::mark(&place.state_dir).unwrap().is_some(), "{step}");
        }
        let left = names(&place.state_dir);
        assert!(
            left.iter().all(|name| !name.starts_with("restore.")),
            "{step}: {left:?}"
        );
    }
}
