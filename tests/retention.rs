//! What left the database for files, as a stranger has it: the files and what is left are all that was acknowledged, once,
//! whenever the daemon was killed; and `casemate audit verify` and the scripts of the documentation check them.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::too_many_lines,
    reason = "a panic is how a test fails, in its helpers too; its cases are its lines"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate::audit::retention::Retention;
use casemate::audit::{AuditLog, Signer};
use casemate::base::clock::{Clock, SystemClock};
use casemate::model::event::{AuditEvent, Stage};
use casemate::model::principal::Principal;
use casemate::model::query::AuditFilter;
use casemate::model::record::{SignedArchive, SignedCheckpoint};
use casemate::model::settings::{AuditConfig, RetentionConfig};
use casemate::model::verify::{Signed, Verifier};
use casemate::store::{Durability, Store};
use casemate::vault::{Vault, is_signed_by};

/// What stands before an Ed25519 public key in its `SubjectPublicKeyInfo` (RFC 8410, section 4).
const SPKI: &[u8] = &[
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

struct Open {
    store: Store,
    log: AuditLog,
    retention: Retention,
}

async fn open(directory: &Path) -> Open {
    let store = Store::open_with(&directory.join("state.db"), Duration::from_millis(20)).unwrap();
    let vault = Vault::open(None, directory, store.has_sealed().await.unwrap()).unwrap();
    let (signer, was_signed) = Signer::open(&store, &vault, SystemClock.now())
        .await
        .unwrap();
    let settings = AuditConfig {
        mirror: false,
        retention: RetentionConfig {
            keep: None,
            keep_bytes: None,
            archive_dir: directory.join("archive"),
            segment_records: 300,
        },
        ..AuditConfig::default()
    };
    let log = AuditLog::new(store.clone(), Arc::new(SystemClock)).with(settings, signer);
    log.check_end(was_signed).await.unwrap();
    assert_eq!(log.alarm(), None);
    Open {
        retention: Retention::new(log.clone()),
        store,
        log,
    }
}

impl Open {
    async fn append(&self, count: usize) {
        for _ in 0..count {
            let event = AuditEvent::DaemonStop {};
            self.log
                .fact(&Principal::Daemon, None, event)
                .await
                .unwrap();
        }
    }

    /// All that was made up to now.
    async fn archive(&self) -> u64 {
        let now = SystemClock.now().after(Duration::from_secs(1));
        let done = self.retention.look(&Principal::Daemon, Some(now)).await;
        done.unwrap().archives
    }

    async fn export(&self) -> String {
        let mut export = self.log.export(0, None).await.unwrap();
        let mut text = String::new();
        while let Some(lines) = export.next().await.unwrap() {
            text.extend(lines.iter().flat_map(|line| [line, "\n"]));
        }
        text
    }

    /// The files after this position, in their order.
    async fn files(&self, directory: &Path, after: i64) -> Vec<PathBuf> {
        let kept = self.store.archives(after, 100_000).await.unwrap();
        let name = |line: &str| SignedArchive::parse(line).unwrap().archive.file;
        kept.iter()
            .map(|(_, _, line)| directory.join("archive").join(name(line)))
            .collect()
    }

    async fn close(self) {
        drop((self.log, self.retention));
        self.store.close().await;
    }
}

/// Where [`write_and_archive_for_ever`] does so.
const WRITES_IN: &str = "CASEMATE_TEST_RETENTION_WRITER";

const LIVES: u32 = 100;

/// Writes, says what was acknowledged, and archives all the while.
fn write_and_archive_for_ever(directory: &Path) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let open = open(directory).await;
        for uid in 0..8 {
            let (store, log) = (open.store.clone(), open.log.clone());
            tokio::spawn(async move {
                loop {
                    let event = AuditEvent::AdminRefused { uid, gid: 0 };
                    let record = log.record(Stage::Fact, &Principal::Daemon, None, event);
                    let record = record.unwrap();
                    let id = record.id;
                    let seq = store.append_audit(record, Durability::Process).await;
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "acknowledged {} {id}", seq.unwrap()).unwrap();
                    out.flush().unwrap();
                }
            });
        }
        loop {
            let archives = open.archive().await;
            println!("archived {archives}");
        }
    })
}

#[test]
fn files_and_database_have_all_that_was_acknowledged_whenever_it_was_killed() {
    if let Some(directory) = std::env::var_os(WRITES_IN) {
        write_and_archive_for_ever(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // xorshift: the points are anywhere, and the same each time as far as the machine lets them be.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    // What is verified already, and with what the next line goes on.
    let mut seen = (0, casemate::model::record::GENESIS);
    let (mut all, mut files, mut left_over) = (0, 0, 0);
    for life in 0..LIVES {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "files_and_database_have_all_that_was_acknowledged_whenever_it_was_killed",
                "--nocapture",
            ])
            .env(WRITES_IN, directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(writer.stdout.take().unwrap());
        let mut acknowledged: BTreeMap<i64, String> = BTreeMap::new();
        let mut archived = 0;
        let mut read = |line: &mut String| {
            line.clear();
            let length = output.read_line(line).unwrap();
            if let Some(said) = line.strip_suffix('\n')
                && let Some((_, rest)) = said.split_once("acknowledged ")
            {
                let (seq, id) = rest.split_once(' ').unwrap();
                acknowledged.insert(seq.parse().unwrap(), id.to_owned());
            } else if let Some((_, count)) = line.trim().split_once("archived ") {
                archived += count.parse::<u64>().unwrap();
            }
            (length, acknowledged.len() as u64, archived)
        };
        // Some lives end before there is a file, some after one or two, however slowly files are made beside the writers.
        let (wanted, wanted_files, spins) = (next(700), next(3), next(2_000_000));
        let (mut line, mut count, mut made) = (String::new(), 0, 0);
        while count < wanted || made < wanted_files {
            let (length, so_far, files) = read(&mut line);
            assert!(length > 0, "the writer ended by itself");
            (count, made) = (so_far, files);
        }
        for _ in 0..spins {
            std::hint::spin_loop();
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
        while read(&mut line).0 > 0 {}
        all += acknowledged.len();

        runtime.block_on(async {
            let open = open(directory.path()).await;
            let public = open.log.public_key().unwrap();
            let check = |signed: &SignedCheckpoint| {
                if is_signed_by(&public, signed.signed.as_bytes(), &signed.signature) {
                    Signed::Yes
                } else {
                    Signed::No
                }
            };
            let mut ids = BTreeMap::new();
            let mut take = |verifier: &mut Verifier<'_>, text: &str| {
                for line in text.lines() {
                    verifier.push(line).unwrap();
                    let read: serde_json::Value = serde_json::from_str(line).unwrap();
                    if let Some(id) = read["id"].as_str() {
                        let seq = read["seq"].as_i64().unwrap();
                        assert!(ids.insert(seq, id.to_owned()).is_none(), "twice: {line}");
                    }
                }
            };
            let mut verifier = Verifier::after(&check, seen.0, seen.1);
            let made = open.files(directory.path(), seen.0).await;
            for file in &made {
                let text = zstd::decode_all(&fs::read(file).unwrap()[..]).unwrap();
                take(&mut verifier, &String::from_utf8(text).unwrap());
                verifier = verifier.next_file().unwrap().1;
            }
            files += made.len();
            take(&mut verifier, &open.export().await);
            verifier.next_file().unwrap();
            seen = open.store.audit_start().await.unwrap();
            for (seq, id) in &acknowledged {
                assert_eq!(ids.get(seq), Some(id), "life {life}: record {seq}");
            }
            open.close().await;
        });
        // Whatever was cut short is taken up by the next one.
        let names = fs::read_dir(directory.path().join("archive"));
        let names = names.map_or(0, Iterator::count);
        left_over += usize::from(names > files);
    }
    let runs = runtime.block_on(async {
        let open = open(directory.path()).await;
        open.archive().await;
        let rows = open.files(directory.path(), 0).await.len();
        open.close().await;
        rows
    });
    let names = fs::read_dir(directory.path().join("archive"))
        .unwrap()
        .count();
    assert_eq!(names, runs, "there are files that nobody knows");
    println!(
        "{LIVES} lives, {all} acknowledged, {files} files; {left_over} were killed with a file, half or whole, that had no row yet"
    );
    assert!(all > 5_000 && files > 50, "{all} {files}");
}

fn verify(files: &[&Path], key: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_casemate"))
        .args(["audit", "verify", "--public-key"])
        .arg(key)
        .args(files)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn is_well(output: &Output, wanted: &str) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains(wanted),
        "{output:?}"
    );
}

#[track_caller]
fn is_bad(output: &Output, wanted: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(wanted), "{said}");
}

/// The code block in this language of `docs/audit.md`.
fn script(language: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/audit.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[tokio::test]
async fn files_and_an_export_are_verified_without_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let open = open(directory.path()).await;
    let key = at("key.pem");
    let der = STANDARD.encode([SPKI, &open.log.public_key().unwrap()].concat());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n");
    fs::write(&key, pem).unwrap();
    for _ in 0..3 {
        open.append(40).await;
        assert_eq!(open.archive().await, 1);
    }
    open.append(5).await;
    let export = at("export.jsonl");
    fs::write(&export, open.export().await).unwrap();
    let files = open.files(directory.path(), 0).await;
    let [one, two, three] = [0, 1, 2].map(|n| files[n].as_path());

    is_well(
        &verify(&[one, two, three, &export], &key),
        "131 records up to 131",
    );
    is_well(
        &verify(&[two, three], &key),
        "84 records after 40 up to 124",
    );
    is_well(&verify(&[&export], &key), "7 records after 124 up to 131");
    // It is the content that tells, not the name.
    let plain = at("plain.zst");
    let text = zstd::decode_all(&fs::read(two).unwrap()[..]).unwrap();
    fs::write(&plain, &text).unwrap();
    is_well(&verify(&[one, &plain], &key), "82 records up to 82");

    is_bad(
        &verify(&[two, one], &key),
        "record 1 stands here although record 83 is due",
    );
    is_bad(&verify(&[one, three], &key), "they do not join");
    is_bad(&verify(&[one, one], &key), "record 1 stands here");
    is_bad(&verify(&[two, two], &key), "they do not join");
    is_bad(&verify(&[one, Path::new("/no/such")], &key), "/no/such");
    let spoiled = at("spoiled");
    let mut bytes = fs::read(two).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&spoiled, &bytes).unwrap();
    is_bad(&verify(&[one, &spoiled], &key), "spoiled");
    bytes[middle] ^= 1;
    bytes.truncate(middle);
    fs::write(&spoiled, &bytes).unwrap();
    is_bad(&verify(&[one, &spoiled], &key), "spoiled");
    // Cut and packed again, and forged and packed again.
    let text = String::from_utf8(text).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (edited, wanted) in [
        (lines[..20].join("\n") + "\n", "its end is missing"),
        (
            text.replacen("daemon.stop", "daemon.start", 1),
            "was changed",
        ),
        (
            text.replacen("\"seq\":40", "\"seq\":39", 1),
            "they do not join",
        ),
    ] {
        fs::write(&spoiled, zstd::encode_all(edited.as_bytes(), 3).unwrap()).unwrap();
        is_bad(&verify(&[one, &spoiled], &key), wanted);
    }

    // And without Casemate, as the page says.
    let unpack = script("console");
    assert!(unpack.contains("zstd -dc"), "{unpack}");
    let unpacked = at("unpacked.jsonl");
    for file in [one, three] {
        let done = Command::new("zstd").arg("-dc").arg(file).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        fs::write(&unpacked, done.stdout).unwrap();
        let checked = Command::new("python3")
            .args(["-c", &script("python")])
            .arg(&unpacked)
            .output()
            .unwrap();
        is_well(&checked, "ok ");
        let signed = Command::new("sh")
            .args(["-c", &script("sh"), "sh"])
            .args([&unpacked, &key, directory.path()])
            .output()
            .unwrap();
        is_well(&signed, "Verified Successfully");
    }
    // What is left begins where the files end.
    let lines = open.store.audit_lines(AuditFilter {
        limit: 1,
        ..AuditFilter::default()
    });
    assert_eq!(lines.await.unwrap()[0].0, 125);
    open.close().await;
}
