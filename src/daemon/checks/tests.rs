//! Each check fails when what it looks at is broken, and the page is what the list says.

use std::fmt::Write;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::backup::keeper::Parts;
use crate::base::clock::ManualClock;
use crate::model::image::ImageDigest;
use crate::runtime::fake::{FakeCall, FakeFailure, FakeRuntime};

/// 2026-01-02.
const NOW: i64 = 1_767_312_000_000;

struct Bench {
    directory: tempfile::TempDir,
    runtime: Arc<FakeRuntime>,
    clock: Arc<ManualClock>,
    scene: Arc<Scene>,
    /// What each canary was to measure: memory, and disk.
    canaries: Arc<Mutex<Vec<(bool, bool)>>>,
}

impl Bench {
    fn new(more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["state", "templates", "backups", "run"] {
            fs::create_dir(path(name)).unwrap();
            chmod(&path(name), 0o700);
        }
        let image = ImageDigest::from_bytes([7; 32]);
        fs::write(path("templates/base.yaml"), format!("image: {image}\n")).unwrap();
        let settings = format!(
            "version: 1\nstate_dir: {}\nruntime_dir: {}\nbackup: {{directory: {}, every_s: 60}}\nsessions: {{reserve_bytes: 1}}\n",
            path("state").display(),
            path("run").display(),
            path("backups").display(),
        );
        fs::write(path("casemate.yaml"), settings).unwrap();
        fs::create_dir(path("casemate.yaml.d")).unwrap();
        fs::write(path("casemate.yaml.d/10.yaml"), more).unwrap();
        for file in [
            "casemate.yaml",
            "casemate.yaml.d",
            "casemate.yaml.d/10.yaml",
            "templates/base.yaml",
        ] {
            chmod(&path(file), 0o755);
        }
        fs::write(path("state/keys.hmac"), "the secret").unwrap();
        chmod(&path("state/keys.hmac"), 0o600);
        let config = Config::load(&path("casemate.yaml")).unwrap();
        let store = Store::open(&path("state/state.db")).unwrap();
        let clock = Arc::new(ManualClock::at(NOW));
        let audit = AuditLog::new(store.clone(), clock.clone());
        let runtime = Arc::new(FakeRuntime::new([image]));
        let backups = Backups::new(Parts {
            store: store.clone(),
            audit: audit.clone(),
            runtime: runtime.clone(),
            clock: clock.clone(),
            config: config.backup.clone(),
            templates: path("templates"),
            images_of_files: Box::new(move || [image].into()),
        });
        let canaries = Arc::new(Mutex::new(Vec::new()));
        let said = Arc::clone(&canaries);
        let scene = Arc::new(Scene {
            config: RwLock::new(Arc::new(config)),
            path: path("casemate.yaml"),
            store,
            audit,
            runtime: runtime.clone(),
            backups,
            clock: clock.clone(),
            canary: Box::new(move |with_memory, with_disk| {
                said.lock().unwrap().push((with_memory, with_disk));
                Box::pin(async { Err(NoCanary::NotAsAsked("no gVisor".to_owned())) })
            }),
        });
        Self {
            directory,
            runtime,
            clock,
            scene,
            canaries,
        }
    }

    async fn verdict(&self, name: &str) -> Examined {
        let check = CHECKS.iter().find(|check| check.name == name).unwrap();
        let sight = Sight::new(&self.scene, None, Depth::NoCanary);
        check.examine(&sight).await
    }

    fn chmod(&self, name: &str, mode: u32) {
        chmod(&self.directory.path().join(name), mode);
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A check, what breaks what it looks at, and settings that do.
type Break = (&'static str, &'static str, fn(&Bench));

/// Those that look at this process or at the whole machine have their tests beside them.
const BREAKS: [Break; 20] = [
    ("state_directory", "", |bench| bench.chmod("state", 0o755)),
    ("key_files", "", |bench| {
        bench.chmod("state/keys.hmac", 0o640);
    }),
    ("settings_files", "", |bench| {
        bench.chmod("casemate.yaml.d/10.yaml", 0o666);
    }),
    ("backup_directory", "", |bench| {
        bench.chmod("backups", 0o750);
    }),
    ("runtime", "", |bench| {
        bench.runtime.fail(FakeCall::Probe, 1, FakeFailure::Refused);
    }),
    ("limits", "", |bench| bench.runtime.unenforce(&["memory"])),
    ("images", "", |bench| {
        bench
            .runtime
            .fail(FakeCall::Images, 1, FakeFailure::Unavailable);
    }),
    ("volumes", "", |bench| {
        bench.runtime.refuse_volumes("there is no fuse2fs");
    }),
    ("mode", "mode: development", |_| {}),
    (
        "listen",
        "mode: development\nhttp: {listen: '0.0.0.0:80'}",
        |_| {},
    ),
    ("hosts", "http: {hosts: [a.example, '*']}", |_| {}),
    ("origins", "http: {origins: ['*']}", |_| {}),
    (
        "origins",
        "http: {origins: ['https://a.example', 'http://localhost:3000', 'http://a.example']}",
        |_| {},
    ),
    (
        "certificate",
        "http: {tls: {certificate: /none/c, key: /none/k}}",
        |_| {},
    ),
    (
        "certificate_left",
        "http: {tls: {certificate: /none/c, key: /none/k}}",
        |_| {},
    ),
    (
        "root_in_templates",
        "sessions: {team_templates: {allow_root: true}}",
        |_| {},
    ),
    ("argv_in_record", "audit: {argv: clear}", |_| {}),
    ("backups", "backup: {every_s: 0}", |_| {}),
    ("clock", "", |bench| bench.clock.step_to(0)),
    (
        "memory",
        "sessions: {reserve_bytes: 1125899906842624}",
        |_| {},
    ),
];

#[tokio::test]
async fn each_check_fails_when_what_it_looks_at_is_broken() {
    for (name, settings, break_it) in BREAKS {
        let good = Bench::new("");
        let examined = good.verdict(name).await;
        assert_eq!(
            (examined.verdict, examined.mend),
            (Verdict::Passed, None),
            "{name}: {}",
            examined.found
        );
        let bad = Bench::new(settings);
        break_it(&bad);
        let examined = bad.verdict(name).await;
        let check = CHECKS.iter().find(|check| check.name == name).unwrap();
        let wanted = if check.is_advice {
            Verdict::Warned
        } else {
            Verdict::Failed
        };
        assert_eq!(examined.verdict, wanted, "{name}: {}", examined.found);
        assert_eq!(examined.mend.as_deref(), Some(check.mend), "{name}");
    }
}

#[tokio::test]
async fn a_certificate_is_looked_at_in_its_time_and_the_door_may_be_open_with_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let pem = |name: &str, label: &str, der: &[u8]| {
        let mut text = String::new();
        for byte in der.chunks(3) {
            let bits = byte
                .iter()
                .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
                << (8 * (3 - byte.len()));
            for sextet in 0..4 {
                let is_there = sextet <= byte.len();
                let letter = (bits >> (18 - 6 * sextet)) & 63;
                let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
                text.push(if is_there {
                    char::from(letters[letter as usize])
                } else {
                    '='
                });
            }
        }
        let text = format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
        fs::write(path(name), text).unwrap();
        chmod(&path(name), 0o600);
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(["x".to_owned()]).unwrap();
    parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2026, 4, 1);
    let certificate = parameters.self_signed(&key).unwrap();
    pem("c", "CERTIFICATE", certificate.der());
    pem("k", "PRIVATE KEY", &key.serialize_der());
    let settings = format!(
        "http: {{listen: '0.0.0.0:7272', tls: {{certificate: {}, key: {}}}}}",
        path("c").display(),
        path("k").display()
    );
    let bench = Bench::new(&settings);
    let verdicts = async || {
        let mut all = Vec::new();
        for name in ["listen", "certificate", "certificate_left"] {
            all.push(bench.verdict(name).await.verdict);
        }
        all
    };
    let (passed, warned, failed) = (Verdict::Passed, Verdict::Warned, Verdict::Failed);
    let day = |day: i64| NOW + day * 24 * 3_600_000;
    for (now, wanted) in [
        (day(0), [passed, passed, passed]),
        (day(-3), [passed, failed, passed]),
        (day(74), [passed, passed, passed]),
        (day(76), [passed, passed, warned]),
        (day(90), [passed, failed, warned]),
    ] {
        bench.clock.step_to(now);
        assert_eq!(verdicts().await, wanted, "{now}");
    }
    bench.clock.step_to(NOW);
    chmod(&path("k"), 0o640);
    assert_eq!(verdicts().await, [passed, failed, warned]);
    let other = rcgen::KeyPair::generate().unwrap();
    pem("k", "PRIVATE KEY", &other.serialize_der());
    assert_eq!(verdicts().await, [passed, failed, warned]);
}

#[tokio::test]
async fn production_mode_says_names_and_what_to_do_and_no_values() {
    let bench = Bench::new("http: {listen: '127.0.0.1:4321'}");
    bench.chmod("state/keys.hmac", 0o644);
    bench.runtime.unenforce(&["pids"]);
    let refusal = bench
        .scene
        .pass(bench.runtime.probe().await.unwrap())
        .await
        .unwrap_err();
    assert_eq!(refusal.exit, Exit::Refused);
    assert_eq!(*bench.canaries.lock().unwrap(), [(true, false)]);
    assert!(!refusal.text.contains("no gVisor"), "{}", refusal.text);
    for name in ["key_files", "limits", "canary_kernel"] {
        let check = CHECKS.iter().find(|check| check.name == name).unwrap();
        let line = format!("\n  {name}: {}", check.mend);
        assert!(refusal.text.contains(&line), "{}", refusal.text);
    }
    let directory = bench.directory.path().to_string_lossy().into_owned();
    for value in [&*directory, "4321", "the secret", "0644"] {
        assert!(!refusal.text.contains(value), "{}", refusal.text);
    }
}

#[tokio::test]
async fn development_mode_says_it_and_starts() {
    let bench = Bench::new("mode: development");
    bench.chmod("state/keys.hmac", 0o644);
    assert_eq!(bench.verdict("key_files").await.verdict, Verdict::Failed);
    let facts = bench.runtime.probe().await.unwrap();
    assert!(bench.scene.pass(facts).await.is_ok());
    assert!(bench.canaries.lock().unwrap().is_empty(), "none at a start");
    assert_eq!(
        bench.runtime.calls(FakeCall::Probe),
        1,
        "the start has asked"
    );
}

#[tokio::test]
async fn what_does_not_answer_fails_and_the_others_are_looked_at() {
    let bench = Bench::new("");
    bench.runtime.fail(FakeCall::Probe, 1, FakeFailure::Hangs);
    let all = bench.scene.examine(None, Depth::Whole).await;
    let names: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
    let wanted: Vec<_> = CHECKS.iter().map(|check| check.name).collect();
    assert_eq!(names, wanted);
    let runtime = all.iter().find(|one| one.name == "runtime").unwrap();
    assert_eq!(runtime.verdict, Verdict::Failed);
    assert_eq!(bench.runtime.calls(FakeCall::Probe), 1, "asked once");
    bench.scene.examine(None, Depth::Whole).await;
    assert_eq!(bench.runtime.calls(FakeCall::Probe), 2, "and anew");
    // Of a machine that cannot be asked, the memory is not tried.
    let canaries = bench.canaries.lock().unwrap();
    assert_eq!(*canaries, [(false, true), (true, true)]);
}

#[tokio::test]
async fn settings_that_were_read_again_are_looked_at() {
    let bench = Bench::new("");
    let other = Bench::new("audit: {argv: clear}");
    bench
        .scene
        .reconfigure(other.scene.config().as_ref().clone());
    assert_eq!(
        bench.verdict("argv_in_record").await.verdict,
        Verdict::Warned
    );
}

/// The page is for people: `CASEMATE_WRITE_HARDENING=1 cargo test -p casemate --lib hardening_md` writes it.
#[test]
fn hardening_md_is_what_the_list_says() {
    let mut page = String::from(
        "# Hardening checks\n\n\
         Made from the list in `src/daemon/checks` by a test. In production mode, which is the default, casemated does not start while\n\
         one of those that *must* hold fails: it says the names and what to do, and nothing of what it found. In development mode it\n\
         says the same and starts. *Advice* keeps nobody from anything. `casemate doctor` makes every check on the running daemon and\n\
         shows what it found; `casemated --check` makes them without serving.\n\n\
         | check | | what must be so | what to do |\n|---|---|---|---|\n",
    );
    for check in CHECKS {
        let weight = if check.is_advice { "advice" } else { "must" };
        writeln!(
            page,
            "| `{}` | {weight} | {} | {} |",
            check.name, check.rule, check.mend
        )
        .unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hardening.md");
    if std::env::var_os("CASEMATE_WRITE_HARDENING").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/hardening.md is not what the list says: write it anew with CASEMATE_WRITE_HARDENING=1 cargo test -p casemate --lib hardening_md"
    );
    let mut names: Vec<_> = CHECKS.iter().map(|check| check.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CHECKS.len());
}
