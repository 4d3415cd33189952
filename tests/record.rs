//! The record as a stranger has it: its lines are what `docs/audit.md` promises, its scripts check them, and what was
//! acknowledged is there whenever the writer was killed.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    clippy::print_stdout,
    reason = "a panic is how a test fails, in its helpers too; its cases are its lines"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use casemate::audit::{AuditLog, Signer};
use casemate::base::clock::{SystemClock, Timestamp};
use casemate::base::id::{EventId, KeyId, SessionId};
use casemate::model::egress::Scheme;
use casemate::model::endpoint::Via;
use casemate::model::event::{
    AuditEvent, AuditRecord, CommandLine, DoorLimit, FileChangeKind, KINDS, Outcome, Stage,
};
use casemate::model::grant::{Role, Scope};
use casemate::model::image::ImageDigest;
use casemate::model::lease::OnTimeout;
use casemate::model::limit::Limit;
use casemate::model::name::Name;
use casemate::model::principal::Principal;
use casemate::model::query::AuditFilter;
use casemate::model::record::SignedCheckpoint;
use casemate::model::session::{Phase, Reason};
use casemate::model::settings::{ArgvRecord, AuditConfig};
use casemate::model::verify::{Signed, Verifier};
use casemate::model::volume::VolumeMode;
use casemate::store::{Durability, Store};
use casemate::vault::Vault;

const PEM_HEAD: &[u8] = &[
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// One of every kind, with every field that it can have.
fn events() -> Vec<AuditEvent> {
    let (path, user) = (
        || "/home/user/a \"b\"\n\u{e9}".to_owned(),
        || "user".to_owned(),
    );
    let image = ImageDigest::from_bytes([7; 32]);
    let key = KeyId::from_bytes([1; 16]);
    let argv = ["psql".to_owned(), "-c".to_owned()];
    let text = |text: &str| text.to_owned();
    vec![
        AuditEvent::SessionCreate {
            template: name("base"),
            version: Some(3),
            image,
            name: Some(name("n")),
        },
        AuditEvent::SessionPhase {
            from: Phase::Starting,
            to: Phase::Failed,
            reason: Some(Reason::LaunchFailed),
        },
        AuditEvent::SessionLimit {
            limit: Limit::OpenFiles,
        },
        AuditEvent::SessionDelete {},
        AuditEvent::SessionPause {},
        AuditEvent::SessionResume {
            timeout_s: Some(60),
        },
        AuditEvent::SessionChange {
            timeout_s: Some(60),
            idle_timeout_s: Some(0),
            on_timeout: Some(OnTimeout::Pause),
            labels: true,
            egress: None,
        },
        AuditEvent::SessionRun {
            program: Some(text("psql")),
            arguments: 1,
            line: CommandLine::of(ArgvRecord::Digest, &argv, None),
            user: user(),
            timeout_s: 60,
        },
        AuditEvent::SessionRun {
            program: None,
            arguments: 0,
            line: CommandLine::of(ArgvRecord::Clear, &[], Some("echo x")),
            user: user(),
            timeout_s: 60,
        },
        AuditEvent::ProcessStart {
            program: Some(text("psql")),
            arguments: 1,
            line: CommandLine::of(ArgvRecord::Clear, &argv, None),
            user: user(),
            tag: Some(text("t")),
            pty: true,
        },
        AuditEvent::ProcessAttach {
            process: text("pid 7"),
        },
        AuditEvent::ProcessInput {
            process: text("tag t"),
        },
        AuditEvent::ProcessSignal {
            process: text("number 1"),
            signal: 9,
        },
        AuditEvent::FileRead {
            path: path(),
            user: user(),
        },
        AuditEvent::FileWrite {
            path: path(),
            user: user(),
        },
        AuditEvent::FileChange {
            change: FileChangeKind::Move,
            path: path(),
            to: Some(text("/c")),
            user: user(),
        },
        AuditEvent::ArchiveRead {
            path: path(),
            user: user(),
        },
        AuditEvent::ArchiveWrite {
            path: path(),
            user: user(),
        },
        // As before keys had roles.
        AuditEvent::KeyCreate {
            key,
            name: name("k"),
            team: None,
            role: None,
            scopes: None,
            expires_at: None,
        },
        AuditEvent::TemplatePut {
            template: name("t"),
            team: name("red"),
            image,
        },
        AuditEvent::SessionSnapshot {
            template: name("t"),
            team: name("red"),
        },
        AuditEvent::ImageRemove { image },
        AuditEvent::TemplateRemove {
            template: name("t"),
            team: name("red"),
        },
        AuditEvent::VolumeCreate {
            volume: name("v"),
            team: name("red"),
            size_bytes: 1 << 30,
        },
        AuditEvent::VolumeDelete {
            volume: name("v"),
            team: name("red"),
        },
        AuditEvent::VolumeAttach {
            volume: name("v"),
            mode: VolumeMode::Rw,
        },
        AuditEvent::ImageImport {},
        AuditEvent::AdminCommand {
            command: text("status"),
        },
        AuditEvent::AdminRefused {
            uid: 1000,
            gid: 1000,
        },
        AuditEvent::SandboxOrphan {
            container: text("c0ffee"),
        },
        AuditEvent::DaemonStart {
            version: text("0.1.0"),
        },
        AuditEvent::DaemonStop {},
        AuditEvent::DaemonReload {
            changed: vec![text("log.level")],
        },
        AuditEvent::AuthFailed {
            address: text("192.0.2.1"),
            attempts: 3,
        },
        AuditEvent::AccessDenied {
            action: text("read-audit"),
            rule: text("only-operators-administer"),
            attempts: 1,
        },
        AuditEvent::AuditAlarm {
            position: 7,
            found: text("record 7 is missing"),
        },
        AuditEvent::BackupMake { encrypted: true },
        AuditEvent::StateRestore {
            made_at: Timestamp::from_millis(1),
            restored_at: Timestamp::from_millis(2),
        },
        AuditEvent::AuditArchive { first: 1, last: 7 },
        AuditEvent::KeyCreate {
            key,
            name: name("k"),
            team: Some(name("red")),
            role: Some(Role::Member),
            scopes: Some([Scope::SessionsRead].into()),
            expires_at: Some(Timestamp::from_millis(1000)),
        },
        AuditEvent::KeyRevoke { key },
        AuditEvent::PolicyPut {
            rule: name("nights"),
            says: r#"{"effect":"deny"}"#.into(),
        },
        AuditEvent::PolicyRemove {
            rule: name("nights"),
        },
        AuditEvent::CredentialPut {
            credential: name("db"),
            team: name("red"),
        },
        AuditEvent::CredentialDelete {
            credential: name("db"),
            team: name("red"),
        },
        AuditEvent::CredentialUse {
            credential: name("db"),
            team: name("red"),
            version: 2,
            purpose: name("egress"),
        },
        AuditEvent::VaultRotate { generation: 1 },
        AuditEvent::EgressConnect {
            host: text("example.org"),
            port: 443,
            scheme: Scheme::Https,
            method: None,
            rule: text("pypi"),
        },
        AuditEvent::EgressDenied {
            host: Some(text("example.org")),
            port: 443,
            rule: text("nothing-allows"),
            attempts: 7,
        },
        AuditEvent::SessionChange {
            timeout_s: None,
            idle_timeout_s: None,
            on_timeout: None,
            labels: false,
            egress: Some([name("pypi")].into()),
        },
        AuditEvent::EndpointAccess {
            port: 8888,
            via: Via::Cookie,
        },
        AuditEvent::EndpointLink {
            port: 8888,
            expires_at: Timestamp::from_millis(1_800_000_000_000),
        },
        AuditEvent::AccessLimited {
            limit: DoorLimit::Connections,
            address: Some(text("192.0.2.1")),
            attempts: 2,
        },
    ]
}

async fn lines(store: &Store, after: i64) -> Vec<(i64, String)> {
    let filter = AuditFilter {
        after,
        limit: 1_000_000,
        ..AuditFilter::default()
    };
    store.audit_lines(filter).await.unwrap()
}

#[tokio::test]
async fn every_kind_of_record_is_written_as_it_was_promised() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("state.db")).unwrap();
    let (mut intent, mut at) = (None, 1_767_225_600_000);
    for (n, event) in events().into_iter().enumerate() {
        at += 1;
        let id = EventId::from_bytes(u128::try_from(n + 1).unwrap().to_be_bytes());
        let (stage, outcome) = match (n % 4, intent) {
            (0, _) => (Stage::Fact, None),
            (1, _) => (Stage::Intent, None),
            (2, _) => (
                Stage::Outcome,
                Some(Outcome::Ok {
                    detail: Some("exit code 0".into()),
                }),
            ),
            _ => (
                Stage::Outcome,
                Some(Outcome::Failed {
                    code: "runtime".into(),
                }),
            ),
        };
        if stage == Stage::Intent {
            intent = Some(id);
        }
        let record = AuditRecord {
            id,
            at: Timestamp::from_millis(at),
            stage,
            intent: intent.filter(|_| stage == Stage::Outcome),
            principal: "key_01m81sqd3exyysy61zt3rypv67".into(),
            session: (n % 2 == 0).then(|| SessionId::from_bytes([9; 16])),
            event,
            outcome,
        };
        store
            .append_audit(record, Durability::Process)
            .await
            .unwrap();
    }
    let written = lines(&store, 0).await;
    let mut kinds = BTreeSet::new();
    let mut text = String::new();
    for (_, line) in &written {
        let read: serde_json::Value = serde_json::from_str(line).unwrap();
        kinds.insert(read["event"]["kind"].as_str().unwrap().to_owned());
        text.push_str(line);
        text.push('\n');
    }
    assert!(
        kinds.iter().eq(KINDS.iter()),
        "a kind is missing here, or in KINDS: {kinds:?}"
    );
    // Each reads back as what it was.
    let filter = AuditFilter {
        limit: 1000,
        ..AuditFilter::default()
    };
    let back: Vec<_> = store
        .audit(filter)
        .await
        .unwrap()
        .into_iter()
        .map(|(_, record)| record.event)
        .collect();
    assert_eq!(back, events());
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/audit.jsonl");
    if fs::read_to_string(&golden).unwrap_or_default() != text {
        let actual = golden.with_extension("actual");
        fs::write(&actual, &text).unwrap();
        panic!(
            "records are not written as in {}; as they are now: {}",
            golden.display(),
            actual.display()
        );
    }
    let documented =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/audit.md")).unwrap();
    for kind in KINDS {
        assert!(
            documented.contains(&format!("| `{kind}` |")),
            "docs/audit.md does not have {kind}"
        );
    }
}

/// The code block in this language of `docs/audit.md`.
fn script(language: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/audit.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

fn run(program: &str, script: &str, arguments: &[&Path]) -> (bool, String) {
    let mut command = Command::new(program);
    command.args(["-c", script]);
    if program == "sh" {
        command.arg("sh");
    }
    let done = command.args(arguments).output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    (
        done.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[tokio::test]
async fn the_scripts_of_the_documentation_check_an_export_and_find_what_was_done_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("state.db")).unwrap();
    let vault = Vault::open(None, directory.path(), false).unwrap();
    let sealed = vault.make_signing_key("test").unwrap();
    let key = vault.signing_key("test", &sealed).unwrap();
    let log = AuditLog::new(store.clone(), Arc::new(SystemClock)).with(
        AuditConfig::default(),
        Signer::new(store.installation(), key),
    );
    for event in events() {
        log.fact(&Principal::Daemon, None, event).await.unwrap();
    }
    let pem = directory.path().join("key.pem");
    let der = [PEM_HEAD, &log.public_key().unwrap()].concat();
    let base64 = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(der)
    };
    fs::write(
        &pem,
        format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n"),
    )
    .unwrap();
    let (python, shell) = (script("python"), script("sh"));
    assert!(python.lines().count() <= 16, "it is to be read at a glance");
    let file = directory.path().join("export.jsonl");
    let export = async |after| {
        let mut export = log.export(after, None).await.unwrap();
        let mut text = String::new();
        while let Some(lines) = export.next().await.unwrap() {
            text.extend(lines.iter().flat_map(|line| [line, "\n"]));
        }
        text
    };
    for after in [0, 11] {
        fs::write(&file, export(after).await).unwrap();
        let (is_well, said) = run("python3", &python, &[&file]);
        assert!(
            is_well && said.starts_with(&format!("ok {} ", events().len())),
            "{said}"
        );
        let (is_well, said) = run("sh", &shell, &[&file, &pem, directory.path()]);
        assert!(is_well && said.contains("Verified Successfully"), "{said}");
    }
    let whole = export(0).await;
    let all: Vec<&str> = whole.lines().collect();
    let without = |gone: usize| [&all[..gone], &all[gone + 1..]].concat().join("\n") + "\n";
    let mut swapped = all.clone();
    swapped.swap(3, 4);
    for (what, text) in [
        ("changed", whole.replacen("casemated", "casemateD", 3)),
        ("removed", without(5)),
        ("swapped", swapped.join("\n") + "\n"),
        ("cut", without(all.len() - 1)),
        ("cut before the checkpoint", without(all.len() - 2)),
    ] {
        fs::write(&file, text).unwrap();
        let (is_well, said) = run("python3", &python, &[&file]);
        assert!(!is_well, "{what}: {said}");
    }
    fs::write(&file, whole.replace("\"count\":", "\"count\":1")).unwrap();
    let (is_well, said) = run("sh", &shell, &[&file, &pem, directory.path()]);
    assert!(!is_well, "a checkpoint that was changed: {said}");
}

/// Where the writer of [`what_was_acknowledged_is_there_whenever_the_writer_was_killed`] writes.
const WRITES_IN: &str = "CASEMATE_TEST_RECORD_WRITER";

const WRITERS: u8 = 32;
const LIVES: u32 = 300;

/// Writes until it is killed, and says what was acknowledged.
fn write_for_ever(directory: &Path) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store =
            Store::open_with(&directory.join("state.db"), Duration::from_millis(20)).unwrap();
        let log = AuditLog::new(store.clone(), Arc::new(SystemClock));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (store, log) = (store.clone(), log.clone());
                tokio::spawn(async move {
                    let durability = if writer % 4 == 0 {
                        Durability::Power
                    } else {
                        Durability::Process
                    };
                    let event = AuditEvent::AdminRefused {
                        uid: writer.into(),
                        gid: 0,
                    };
                    loop {
                        let record = log
                            .record(Stage::Fact, &Principal::Daemon, None, event.clone())
                            .unwrap();
                        let id = record.id;
                        let seq = store.append_audit(record, durability).await.unwrap();
                        let mut out = std::io::stdout().lock();
                        writeln!(out, "acknowledged {seq} {id}").unwrap();
                        out.flush().unwrap();
                    }
                })
            })
            .collect();
        futures_util::future::join_all(writers).await;
    });
    panic!("nobody killed it")
}

#[test]
fn what_was_acknowledged_is_there_whenever_the_writer_was_killed() {
    if let Some(directory) = std::env::var_os(WRITES_IN) {
        write_for_ever(Path::new(&directory));
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
    let (mut seen, mut acknowledged_in_all) = (0, 0);
    let never = |_: &SignedCheckpoint| Signed::No;
    for life in 0..LIVES {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "what_was_acknowledged_is_there_whenever_the_writer_was_killed",
                "--nocapture",
            ])
            .env(WRITES_IN, directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(writer.stdout.take().unwrap());
        let mut acknowledged: BTreeMap<i64, String> = BTreeMap::new();
        // So many and then at any point of what comes next; some before the first.
        let (wanted, spins) = (next(400), next(200_000));
        let mut read = |line: &mut String| {
            line.clear();
            let length = output.read_line(line).unwrap();
            // A line that was cut acknowledges nothing.
            if let Some(said) = line.strip_suffix('\n')
                && let Some(rest) = said.split("acknowledged ").nth(1)
            {
                let (seq, id) = rest.split_once(' ').unwrap();
                acknowledged.insert(seq.parse().unwrap(), id.to_owned());
            }
            (length, acknowledged.len() as u64)
        };
        let mut line = String::new();
        let mut count = 0;
        while count < wanted {
            let (length, so_far) = read(&mut line);
            assert!(length > 0, "the writer ended by itself");
            count = so_far;
        }
        for _ in 0..spins {
            std::hint::spin_loop();
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
        while read(&mut line).0 > 0 {}

        acknowledged_in_all += acknowledged.len();
        runtime.block_on(async {
            let store = Store::open(&directory.path().join("state.db")).unwrap();
            let digest = store
                .digest_at(seen)
                .await
                .unwrap()
                .expect("what was there before is gone");
            let mut verifier = Verifier::after(&never, seen, digest);
            for (seq, line) in lines(&store, seen).await {
                verifier.push(&line).unwrap();
                if let Some(id) = acknowledged.remove(&seq) {
                    assert!(line.contains(&id), "record {seq} is not {id}");
                }
                seen = seq;
            }
            verifier.finish().unwrap();
            assert!(acknowledged.is_empty(), "life {life} lost {acknowledged:?}");
            store.close().await;
        });
    }
    println!("{LIVES} lives, {acknowledged_in_all} acknowledged, {seen} recorded");
    assert!(
        acknowledged_in_all > 10_000,
        "only {acknowledged_in_all} were acknowledged"
    );
}
