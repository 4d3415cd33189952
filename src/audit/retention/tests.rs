//! What leaves the database is in a file, once, whatever comes in between; and whoever lies about it is found out.

use std::collections::BTreeSet;
use std::io::Read;

use proptest::prelude::*;
use rusqlite::Connection;

use super::*;
use crate::audit::Signer;
use crate::base::clock::{Clock, ManualClock};
use crate::model::query::AuditFilter;
use crate::model::settings::AuditConfig;
use crate::model::verify::{Verified, Verifier};
use crate::store::Store;
use crate::vault::Vault;

const PATIENCE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Where it can be cut short.
const STEPS: [&str; 7] = [
    "before an archive",
    "after the file has its name",
    "after the record begins later",
    "before rows are removed",
    "while rows are removed",
    "before room is given back",
    "while room is given back",
];

/// A state's directory and its time.
struct Place {
    path: PathBuf,
    /// Removes it.
    directory: Option<tempfile::TempDir>,
    clock: Arc<ManualClock>,
    settings: AuditConfig,
}

/// What is open of it.
struct Open {
    store: Store,
    log: AuditLog,
    retention: Retention,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut place = Self::in_it(directory.path().to_owned());
        place.directory = Some(directory);
        place
    }

    fn in_it(path: PathBuf) -> Self {
        let settings = AuditConfig {
            mirror: false,
            retention: RetentionConfig {
                keep: Some(90 * DAY),
                keep_bytes: None,
                archive_dir: path.join("archive"),
                segment_records: 20,
            },
            ..AuditConfig::default()
        };
        Self {
            path,
            directory: None,
            clock: Arc::new(ManualClock::at(1_000_000_000_000)),
            settings,
        }
    }

    async fn open(&self) -> Open {
        let directory = self.path.as_path();
        let store = Store::open(&directory.join("state.db")).unwrap();
        let has_sealed = store.has_sealed().await.unwrap();
        let vault = Vault::open(None, directory, has_sealed).unwrap();
        let now = Timestamp::from_millis(5);
        let (signer, was_signed) = Signer::open(&store, &vault, now).await.unwrap();
        let log = AuditLog::new(store.clone(), Arc::clone(&self.clock) as _);
        let log = log.with(self.settings.clone(), signer);
        log.check_end(was_signed).await.unwrap();
        Open {
            retention: Retention::new(log.clone()),
            store,
            log,
        }
    }

    fn edit(&self, sql: &str) {
        let raw = Connection::open(self.path.join("state.db")).unwrap();
        raw.execute_batch(sql).unwrap();
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path.join("archive"));
        let mut names: Vec<String> = entries
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Open {
    async fn append(&self, count: usize) {
        let event = || AuditEvent::DaemonStop {};
        let all = (0..count).map(|_| self.log.fact(&Principal::Daemon, None, event()));
        futures_util::future::try_join_all(all).await.unwrap();
    }

    /// Some stretches of ten records, each with a checkpoint.
    async fn stretches(&self, count: usize) {
        for _ in 0..count {
            self.append(10).await;
            self.log.checkpoint().await.unwrap();
        }
    }

    async fn look(&self) -> Result<Archived, ArchiveError> {
        self.retention.look(&Principal::Daemon, None).await
    }

    async fn lines(&self) -> Vec<String> {
        let all = AuditFilter {
            limit: 1_000_000,
            ..AuditFilter::default()
        };
        let lines = self.store.audit_lines(all).await.unwrap();
        lines.into_iter().map(|(_, line)| line).collect()
    }

    /// All of it: the files and what is left join, and are what was written. How many records, and which.
    async fn whole(&self, place: &Place) -> (Verified, BTreeSet<String>) {
        let signer = self.log.signer().unwrap();
        let check = |signed: &SignedCheckpoint| signer.judge(signed);
        let mut verifier = Verifier::new(&check);
        let (mut all, mut ids) = (Verified::default(), BTreeSet::new());
        let mut texts = Vec::new();
        for (last, _, line) in self.store.archives(0, 10_000).await.unwrap() {
            let archive = SignedArchive::parse(&line).unwrap().archive;
            assert_eq!(archive.last, last);
            let path = place.path.join("archive").join(&archive.file);
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes.len() as u64, archive.size_bytes);
            assert_eq!(hex(&crate::model::record::sum(&bytes)), archive.sha256);
            let mut text = String::new();
            zstd::Decoder::new(&bytes[..])
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            texts.push(text);
        }
        let mut export = self.log.export(0, None).await.unwrap();
        let mut text = String::new();
        while let Some(lines) = export.next().await.unwrap() {
            text.extend(lines.into_iter().flat_map(|line| [line, "\n".to_owned()]));
        }
        texts.push(text);
        for text in texts {
            for line in text.lines() {
                verifier.push(line).unwrap();
                let read: serde_json::Value = serde_json::from_str(line).unwrap();
                if let Some(id) = read.get("id") {
                    assert!(ids.insert(id.as_str().unwrap().to_owned()), "twice: {line}");
                }
            }
            let (right, next) = verifier.next_file().unwrap();
            verifier = next;
            all.records += right.records;
            all.seq = right.seq;
        }
        assert_eq!(ids.len() as u64, all.records);
        (all, ids)
    }

    async fn close(self) {
        let Self {
            store,
            log,
            retention,
        } = self;
        drop((log, retention));
        store.close().await;
    }
}

#[tokio::test]
async fn what_is_old_goes_to_files_and_the_chain_goes_on() {
    let place = Place::new();
    let open = place.open().await;
    open.stretches(5).await;
    place.clock.advance(60 * DAY);
    open.stretches(3).await;
    assert_eq!(open.look().await.unwrap().archives, 0, "nothing is old");
    assert_eq!(place.files(), [] as [String; 0]);
    place.clock.advance(40 * DAY);
    let done = open.look().await.unwrap();
    let wanted = Archived {
        archives: 3,
        records: 50,
        up_to: 50,
    };
    assert_eq!(done, wanted);
    assert_eq!(
        place.files(),
        [
            "audit-000000000001-000000000020.jsonl.zst",
            "audit-000000000021-000000000040.jsonl.zst",
            "audit-000000000041-000000000050.jsonl.zst"
        ]
    );
    // 30 are left, and an intent and an outcome of each file.
    let lines = open.lines().await;
    assert_eq!(lines.len(), 36);
    assert!(lines[0].starts_with("{\"seq\":51,"));
    assert!(lines[31].contains("\"result\":\"ok\""), "{}", lines[31]);
    for after in [1, 20, 49] {
        let gone = open.store.digest_at(after).await.unwrap_err();
        let file = &place.files()[usize::try_from(after).unwrap() / 20];
        assert!(
            matches!(&gone, StoreError::Archived { up_to: 50, file: has, .. } if has == file),
            "{gone}"
        );
    }
    assert!(open.store.digest_at(50).await.unwrap().is_some());
    let extent = open.store.audit_extent().await.unwrap();
    assert_eq!((extent.after, extent.last, extent.archives), (50, 86, 3));
    assert_eq!(open.whole(&place).await.0.records, 86);
    assert_eq!(open.look().await.unwrap().archives, 0);
    // What a restore looks at begins there too.
    let copy = place.path.join("copy.db");
    let facts = open.store.copy_to(&copy, &mut |_, _| true).unwrap();
    assert_eq!(facts.record_breaks_at, None);
    let raw = Connection::open(&copy).unwrap();
    raw.execute_batch("DELETE FROM audit WHERE seq = 51")
        .unwrap();
    drop(raw);
    let facts = crate::store::look_into(&copy).unwrap();
    assert_eq!(facts.record_breaks_at, Some(52));
    open.close().await;

    let again = place.open().await;
    assert_eq!(again.log.alarm(), None);
    again.append(4).await;
    let found = again.log.verify(0, i64::MAX).await.unwrap();
    assert_eq!(found.finding, None);
    assert_eq!((found.verified.after, found.verified.records), (50, 40));
    assert_eq!(again.whole(&place).await.0.records, 90);
    again.close().await;
}

#[tokio::test]
async fn all_of_it_can_go_and_the_next_record_follows() {
    let place = Place::new();
    let open = place.open().await;
    open.append(7).await;
    place.clock.advance(Duration::from_secs(1));
    let before = place.clock.now();
    let done = open.retention.look(&Principal::Daemon, Some(before)).await;
    assert_eq!(done.unwrap().up_to, 7);
    place.edit("DELETE FROM audit");
    // As if nothing had been recorded since.
    assert_eq!(open.store.audit_head().await.unwrap().0, 7);
    open.append(1).await;
    assert!(open.lines().await[0].starts_with("{\"seq\":8,"));
    assert_eq!(open.whole(&place).await.0.records, 8);
    open.close().await;
}

#[tokio::test]
async fn what_is_too_much_goes_and_the_file_shrinks() {
    let mut place = Place::new();
    let most = 8 << 20;
    place.settings.retention = RetentionConfig {
        keep: None,
        keep_bytes: Some(most),
        segment_records: 10_000,
        ..place.settings.retention
    };
    let open = place.open().await;
    for _ in 0..320 {
        place.clock.advance(Duration::from_millis(1));
        open.append(250).await;
        open.log.checkpoint().await.unwrap();
    }
    let before = open.store.audit_extent().await.unwrap();
    let size = || std::fs::metadata(place.path.join("state.db"));
    assert!(before.used_bytes > 2 * most, "{before:?}");
    // All of it is too young to go.
    assert_eq!(open.look().await.unwrap().archives, 0);
    let problem = open.retention.problem().unwrap();
    assert!(problem.contains("keep_bytes"), "{problem}");
    place.clock.advance(Duration::from_secs(601));
    let done = open.look().await.unwrap();
    assert_eq!(open.retention.problem(), None);
    let after = open.store.audit_extent().await.unwrap();
    assert!(done.archives >= 2 && after.used_bytes < most, "{after:?}");
    assert!(after.used_bytes > most / 2, "more than must: {after:?}");
    assert!(after.free_bytes <= 4 << 20, "{after:?}");
    assert_eq!(
        open.whole(&place).await.0.records,
        80_000 + 2 * done.archives
    );
    open.close().await;
    let shrunk = size().unwrap().len();
    assert!(
        shrunk <= most + (4 << 20),
        "{shrunk} bytes of {before:?}, {after:?}, {done:?}"
    );
}

#[tokio::test]
async fn wherever_it_is_cut_short_nothing_is_lost_and_nothing_is_there_twice() {
    for step in STEPS {
        let mut place = Place::new();
        let open = place.open().await;
        open.stretches(4).await;
        if step == "while room is given back" {
            // Enough for there to be some.
            for _ in 0..120 {
                open.append(250).await;
            }
            open.log.checkpoint().await.unwrap();
        }
        place.clock.advance(91 * DAY);
        open.stretches(1).await;
        let (_, ids) = open.whole(&place).await;
        open.retention.cut_at(Some(step));
        let cut = open.look().await;
        assert!(
            matches!(cut, Err(ArchiveError::Internal(_))),
            "{step}: {cut:?}"
        );
        let problem = open.retention.problem().unwrap();
        assert!(problem.contains(step), "{problem}");
        open.close().await;
        let partial = "audit-000000000001-000000000020.jsonl.zst.partial";
        let archives = place.path.join("archive");
        if archives.is_dir() {
            std::fs::write(archives.join(partial), "half").unwrap();
        }

        // Whoever comes next would make other files; what is there counts.
        place.settings.retention.segment_records = 10;
        let open = place.open().await;
        assert_eq!(open.log.alarm(), None, "{step}");
        // Rows that are not removed yet are nobody's.
        let (start, _) = open.store.audit_start().await.unwrap();
        let first = open.lines().await.swap_remove(0);
        let wanted = format!("{{\"seq\":{},", start + 1);
        assert!(first.starts_with(&wanted), "{step}: {first}");
        let (_, now) = open.whole(&place).await;
        assert!(ids.is_subset(&now), "{step}: something is lost");
        let files = place.files();
        open.look().await.unwrap();
        assert_eq!(open.retention.problem(), None);
        let (all, now) = open.whole(&place).await;
        assert!(ids.is_subset(&now) && all.records == now.len() as u64);
        // One file for each row: the one that was left over was taken.
        let rows = open.store.archives(0, 100).await.unwrap().len();
        let left: Vec<_> = files.iter().filter(|name| *name != partial).collect();
        assert_eq!(place.files().len(), rows, "{step}: {:?}", place.files());
        assert!(left.iter().all(|name| place.files().contains(name)));
        let extent = open.store.audit_extent().await.unwrap();
        assert_eq!(
            extent.after + i64::try_from(open.lines().await.len()).unwrap(),
            extent.last
        );
        open.close().await;
        let raw = Connection::open(place.path.join("state.db")).unwrap();
        let rest: i64 = raw
            .query_row(
                "SELECT (SELECT count(*) FROM audit WHERE seq <= (SELECT max(last) FROM archived))
                      + (SELECT count(*) FROM checkpoints WHERE seq < (SELECT max(last) FROM archived))",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(rest, 0, "{step}: rows of what is archived are left");
    }
}

#[tokio::test]
async fn a_file_that_is_there_and_is_another_is_left_alone() {
    let place = Place::new();
    let open = place.open().await;
    open.stretches(2).await;
    place.clock.advance(91 * DAY);
    let archives = place.path.join("archive");
    std::fs::create_dir(&archives).unwrap();
    let name = "audit-000000000001-000000000020.jsonl.zst";
    std::fs::write(archives.join(name), "a stranger's").unwrap();
    assert_eq!(open.look().await.unwrap().up_to, 20);
    assert_eq!(
        std::fs::read_to_string(archives.join(name)).unwrap(),
        "a stranger's"
    );
    assert_eq!(
        place.files(),
        [
            "audit-000000000001-000000000020.1.jsonl.zst".to_owned(),
            name.to_owned()
        ]
    );
    assert_eq!(open.whole(&place).await.0.records, 22);
    open.close().await;
}

#[tokio::test]
async fn a_file_that_was_left_over_is_taken_only_as_it_was_made() {
    for (what, spoil) in [
        (
            "a byte",
            (|bytes: &mut Vec<u8>| bytes[200] ^= 1) as fn(&mut Vec<u8>),
        ),
        ("cut", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", Vec::clear),
        ("packed again without its end", |bytes| {
            let text = zstd::decode_all(&bytes[..]).unwrap();
            let end = text[..text.len() - 1]
                .iter()
                .rposition(|byte| *byte == b'\n');
            *bytes = zstd::encode_all(&text[..=end.unwrap()], 3).unwrap();
        }),
    ] {
        let place = Place::new();
        let open = place.open().await;
        open.stretches(2).await;
        place.clock.advance(91 * DAY);
        open.retention.cut_at(Some("after the file has its name"));
        open.look().await.unwrap_err();
        open.retention.cut_at(None);
        let path = place.path.join("archive").join(&place.files()[0]);
        let mut bytes = std::fs::read(&path).unwrap();
        spoil(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(open.look().await.unwrap().up_to, 20, "{what}");
        assert_eq!(place.files().len(), 2, "{what}");
        open.whole(&place).await;
        open.close().await;
    }
}

#[tokio::test]
async fn whoever_lies_about_where_the_record_begins_raises_the_alarm_and_nothing_is_removed() {
    // A checkpoint that was signed makes no archive.
    let pretend = "INSERT INTO archived (last, digest, line)
                     SELECT audit.seq, audit.digest, checkpoints.line FROM audit JOIN checkpoints USING (seq) WHERE seq = 40;
                   DELETE FROM audit WHERE seq <= 40";
    for sql in [
        "UPDATE archived SET digest = zeroblob(32)",
        "UPDATE archived SET last = last + 3",
        "UPDATE archived SET line = replace(line, '\"last\":20', '\"last\":30'), last = 30,
                digest = (SELECT digest FROM audit WHERE seq = 30)",
        "UPDATE archived SET line = replace(line, '\"signature\":\"', '\"signature\":\"0')",
        "DELETE FROM archived",
        "DELETE FROM audit WHERE seq = 21",
        "UPDATE audit SET principal = 'q' WHERE seq = 21",
        "INSERT INTO archived VALUES (1000000, zeroblob(32), 'x')",
        "DELETE FROM checkpoints",
        pretend,
    ] {
        let place = Place::new();
        let open = place.open().await;
        open.stretches(2).await;
        place.clock.advance(91 * DAY);
        open.stretches(3).await;
        assert_eq!(open.look().await.unwrap().up_to, 20);
        open.close().await;
        let quiet = place.open().await;
        assert_eq!(quiet.log.alarm(), None);
        quiet.close().await;
        place.edit(sql);
        let rows = || -> i64 {
            let raw = Connection::open(place.path.join("state.db")).unwrap();
            raw.query_row("SELECT count(*) FROM audit", [], |row| row.get(0))
                .unwrap()
        };
        let loud = place.open().await;
        assert!(loud.log.alarm().is_some(), "{sql}");
        let before = rows();
        place.clock.advance(91 * DAY);
        let looked = loud.look().await;
        assert!(
            looked.as_ref().map_or(true, |done| done.archives == 0),
            "{sql}: {looked:?}"
        );
        assert!(rows() >= before, "{sql}: rows were removed");
        // What comes next is recorded all the same.
        loud.append(1).await;
        loud.close().await;
    }
}

#[tokio::test]
async fn what_the_journal_does_not_have_stays() {
    let mut place = Place::new();
    place.settings.mirror = true;
    let open = place.open().await;
    open.stretches(3).await;
    place.clock.advance(91 * DAY);
    assert_eq!(open.look().await.unwrap().archives, 0);
    open.store.keep_mirrored(17).await.unwrap();
    assert_eq!(open.look().await.unwrap().up_to, 10);
    open.close().await;
}

#[tokio::test]
async fn writers_go_on_and_a_follower_is_told_what_it_missed() {
    const WRITERS: usize = 8;
    const EACH: usize = 400;
    let place = Place::new();
    let open = place.open().await;
    let writing: Vec<_> = (0..WRITERS)
        .map(|_| {
            let log = open.log.clone();
            tokio::spawn(async move {
                for _ in 0..EACH {
                    let event = AuditEvent::DaemonStop {};
                    log.fact(&Principal::Daemon, None, event).await.unwrap();
                }
            })
        })
        .collect();
    let following = {
        let log = open.log.clone();
        tokio::spawn(async move {
            let (mut after, mut seen, mut told) = (0, 0, 0);
            let mut follower = log.follow(AuditFilter::default());
            while seen + told < i64::try_from(WRITERS * EACH).unwrap() {
                match follower.next().await.unwrap() {
                    Ok((seq, _)) => {
                        // Only the first look may begin later than with the first.
                        assert!(seq == after + 1 || after == 0, "{after} {seq}");
                        if after == 0 {
                            told += seq - 1;
                        }
                        (after, seen) = (seq, seen + 1);
                    }
                    Err(AuditError::Read(StoreError::Archived { up_to, .. })) => {
                        told += up_to - after;
                        after = up_to;
                        follower = log.follow(AuditFilter {
                            after,
                            ..AuditFilter::default()
                        });
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            (seen, told)
        })
    };
    let mut archived = 0;
    while !writing.iter().all(tokio::task::JoinHandle::is_finished) {
        place.clock.advance(Duration::from_millis(5));
        let now = place.clock.now();
        let done = open.retention.look(&Principal::Daemon, Some(now)).await;
        archived += done.unwrap().archives;
    }
    for writer in writing {
        writer.await.unwrap();
    }
    let (seen, told) = tokio::time::timeout(PATIENCE, following)
        .await
        .unwrap()
        .unwrap();
    assert!(archived > 0 && seen > 0, "{archived} {seen} {told}");
    let (all, _) = open.whole(&place).await;
    assert_eq!(all.records, (WRITERS * EACH) as u64 + 2 * archived);
    open.close().await;
}

/// A disk that takes only so much, whatever it is that does not fit: the file, the row, the removal.
#[test]
fn wherever_the_disk_ends_everything_is_there_once() {
    use crate::host::child;
    const NAME: &str = "audit::retention::tests::wherever_the_disk_ends_everything_is_there_once";
    const PLACE: &str = "CASEMATE_TEST_PLACE";
    const LIMIT: &str = "CASEMATE_TEST_LIMIT";
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    if child::is_child() {
        let mut place = Place::in_it(PathBuf::from(std::env::var_os(PLACE).unwrap()));
        place.settings.retention.segment_records = 1500;
        let most = std::env::var(LIMIT).unwrap().parse().unwrap();
        signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).unwrap();
        runtime.block_on(async {
            let open = place.open().await;
            place.clock.advance(91 * DAY);
            let resource = nix::sys::resource::Resource::RLIMIT_FSIZE;
            nix::sys::resource::setrlimit(resource, most, most).unwrap();
            let said = if let Ok(done) = open.look().await {
                assert_eq!(done.up_to, 3000);
                "ok"
            } else {
                assert!(open.retention.problem().is_some());
                "failed"
            };
            std::fs::write(place.path.join("said"), said).unwrap();
        });
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (mut failed, mut went) = (0, 0);
    for kib in [
        1, 4, 16, 40, 64, 100, 130, 200, 400, 700, 1200, 2000, 3000, 9000,
    ] {
        let path = root.path().join(kib.to_string());
        std::fs::create_dir(&path).unwrap();
        let mut place = Place::in_it(path.clone());
        place.settings.retention.segment_records = 1500;
        let ids = runtime.block_on(async {
            let open = place.open().await;
            for _ in 0..6 {
                open.append(500).await;
                open.log.checkpoint().await.unwrap();
            }
            let (_, ids) = open.whole(&place).await;
            open.close().await;
            ids
        });
        let limit = (kib << 10).to_string();
        child::run(NAME, &[(PLACE, path.to_str().unwrap()), (LIMIT, &limit)]);
        let said = std::fs::read_to_string(path.join("said")).unwrap();
        match said.as_str() {
            "ok" => went += 1,
            _ => failed += 1,
        }
        runtime.block_on(async {
            let open = place.open().await;
            assert_eq!(open.log.alarm(), None, "{kib}");
            let (all, now) = open.whole(&place).await;
            assert!(ids.is_subset(&now), "{kib}: something is lost");
            assert_eq!(all.records, now.len() as u64);
            place.clock.advance(91 * DAY);
            open.look().await.unwrap();
            let (all, now) = open.whole(&place).await;
            assert!(ids.is_subset(&now) && all.records == now.len() as u64);
            assert!(open.store.audit_start().await.unwrap().0 >= 3000);
            open.close().await;
        });
    }
    assert!(failed > 3 && went > 0, "{failed} {went}");
}

#[derive(Clone, Debug)]
enum Step {
    Append(u8),
    Checkpoint,
    Later(u8),
    Look,
    LookAndCut(usize),
    LookBefore,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..60_u8).prop_map(Step::Append),
        3 => Just(Step::Checkpoint),
        2 => (1..80_u8).prop_map(Step::Later),
        2 => Just(Step::Look),
        2 => (0..STEPS.len()).prop_map(Step::LookAndCut),
        1 => Just(Step::LookBefore),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn files_and_database_have_all_that_was_acknowledged_once(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let place = Place::new();
            let mut open = place.open().await;
            let mut acknowledged = 0;
            for step in steps {
                match step {
                    Step::Append(count) => {
                        open.append(count.into()).await;
                        acknowledged += u64::from(count);
                    }
                    Step::Checkpoint => drop(open.log.checkpoint().await.unwrap()),
                    Step::Later(days) => place.clock.advance(u32::from(days) * DAY),
                    Step::Look => drop(open.look().await.unwrap()),
                    Step::LookAndCut(at) => {
                        open.retention.cut_at(Some(STEPS[at]));
                        // There may be nothing to be cut short.
                        let _ = open.look().await;
                        open.retention.cut_at(None);
                    }
                    Step::LookBefore => {
                        place.clock.advance(Duration::from_secs(1));
                        let now = place.clock.now();
                        let looked = open.retention.look(&Principal::Daemon, Some(now)).await;
                        looked.unwrap();
                    }
                    Step::Restart => {
                        open.close().await;
                        open = place.open().await;
                        assert_eq!(open.log.alarm(), None);
                    }
                }
            }
            let (all, ids) = open.whole(&place).await;
            let head = open.store.audit_head().await.unwrap().0;
            assert_eq!((all.records, all.seq), (ids.len() as u64, head));
            // What was recorded of the archives is all there is beside it.
            let mut told = 0;
            for text in all_lines(&open, &place).await {
                told += u64::from(text.contains("\"kind\":\"audit.archive\""));
            }
            assert_eq!(all.records, acknowledged + told);
            open.close().await;
        });
    }
}

async fn all_lines(open: &Open, place: &Place) -> Vec<String> {
    let mut lines = open.lines().await;
    for (_, _, line) in open.store.archives(0, 10_000).await.unwrap() {
        let archive = SignedArchive::parse(&line).unwrap().archive;
        let path = place.path.join("archive").join(&archive.file);
        let text = zstd::decode_all(&std::fs::read(&path).unwrap()[..]).unwrap();
        let text = String::from_utf8(text).unwrap();
        lines.extend(text.lines().map(str::to_owned));
    }
    lines
}
