//! A daemon that changes its root key without a pause is killed at any point, again and again: whatever it acknowledged opens afterwards.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use casemate::audit::{AuditLog, Signer};
use casemate::base::clock::{Clock, SystemClock, Timestamp};
use casemate::credential::{Credentials, Wanted, vault_of};
use casemate::model::credential::CredentialValue;
use casemate::model::name::Name;
use casemate::model::principal::Principal;
use casemate::model::template::Precondition;
use casemate::store::Store;

/// Where the daemon of [`what_was_acknowledged_opens_whenever_a_rotation_was_killed`] has its state.
const LIVES_IN: &str = "CASEMATE_TEST_VAULT_ROTATION";

const LIVES: u32 = 60;
const NAMES: u32 = 8;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Starts as the daemon does: the vault, then what signs the record.
async fn start(state: &Path) -> (Store, Credentials) {
    let store = Store::open(&state.join("state.db")).unwrap();
    let vault = vault_of(&store, None, state).await.unwrap();
    let now = SystemClock.now();
    Signer::open(&store, &vault, now).await.unwrap();
    let audit = AuditLog::new(store.clone(), Arc::new(SystemClock));
    let credentials = Credentials::new(store.clone(), vault, audit);
    (store, credentials)
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "acknowledged {line}").unwrap();
    out.flush().unwrap();
}

/// Rotates, and sets values meanwhile, until it is killed; says what was acknowledged.
fn live(state: &Path) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (_store, credentials) = start(state).await;
        let puts = async {
            for n in 0_u32.. {
                let named = format!("n{}", n % NAMES);
                let text = format!("{named} {n} {}", std::process::id());
                let wanted = Wanted {
                    team: name("red"),
                    name: name(&named),
                    value: CredentialValue::new(text.clone().into()).unwrap(),
                    description: None,
                    precondition: Precondition::None,
                    by: "test".into(),
                    at: Timestamp::from_millis(1),
                };
                let (kept, _) = credentials.put(wanted).await.unwrap();
                say(&format!("put {named} {} {text}", kept.version));
            }
        };
        let rotations = async {
            loop {
                let rotated = credentials.rotate().await.unwrap();
                say(&format!("rotated {}", rotated.generation));
            }
        };
        tokio::join!(puts, rotations);
    });
    panic!("nobody killed it")
}

/// What a daemon said before it was killed.
#[derive(Default)]
struct Said {
    values: BTreeMap<String, (u32, String)>,
    generation: u64,
    lines: u64,
}

impl Said {
    fn take(&mut self, line: &str) {
        // A line that was cut acknowledges nothing.
        let Some((_, line)) = line
            .strip_suffix('\n')
            .and_then(|line| line.split_once("acknowledged "))
        else {
            return;
        };
        self.lines += 1;
        if let Some(generation) = line.strip_prefix("rotated ") {
            self.generation = generation.parse().unwrap();
        } else if let Some(put) = line.strip_prefix("put ") {
            let mut words = put.splitn(3, ' ');
            let mut word = || words.next().unwrap().to_owned();
            let (named, version, text) = (word(), word(), word());
            self.values.insert(named, (version.parse().unwrap(), text));
        }
    }
}

#[test]
fn what_was_acknowledged_opens_whenever_a_rotation_was_killed() {
    if let Some(state) = std::env::var_os(LIVES_IN) {
        live(Path::new(&state));
    }
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
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
    let mut said = Said::default();
    let mut unfinished = 0;
    for life in 0..LIVES {
        let mut daemon = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "what_was_acknowledged_opens_whenever_a_rotation_was_killed",
                "--nocapture",
            ])
            .env(LIVES_IN, state)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(daemon.stdout.take().unwrap());
        let (wanted, spins) = (said.lines + 1 + next(24), next(2_000_000));
        let mut line = String::new();
        while said.lines < wanted {
            line.clear();
            assert!(
                output.read_line(&mut line).unwrap() > 0,
                "it ended by itself"
            );
            said.take(&line);
        }
        for _ in 0..spins {
            std::hint::spin_loop();
        }
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        loop {
            line.clear();
            if output.read_line(&mut line).unwrap() == 0 {
                break;
            }
            said.take(&line);
        }
        unfinished += u32::from(state.join("vault.key.new").exists());
        runtime.block_on(async {
            let (store, credentials) = start(state).await;
            assert!(!state.join("vault.key.new").exists(), "life {life}");
            assert!(credentials.generation() >= said.generation, "life {life}");
            let listed = credentials.list(name("red")).await.unwrap();
            for (named, (version, text)) in &said.values {
                let found = listed.iter().find(|found| found.name.as_str() == named);
                let now = found.unwrap_or_else(|| panic!("life {life} lost {named}"));
                assert!(now.version >= *version, "life {life} lost {text}");
                let (team, named, purpose) = (name("red"), name(named), name("test"));
                let opened = credentials
                    .open_for_use(&Principal::Daemon, None, &team, &named, &purpose)
                    .await;
                let opened = String::from_utf8(opened.unwrap().expose().to_vec()).unwrap();
                if now.version == *version {
                    assert_eq!(opened, *text, "life {life}");
                }
                assert!(opened.starts_with(named.as_str()), "{opened}");
            }
            drop(credentials);
            store.close().await;
        });
    }
    println!(
        "{LIVES} lives, {} acknowledged, generation {}, {unfinished} killed in the middle",
        said.lines, said.generation
    );
    assert!(said.generation > u64::from(LIVES), "{}", said.generation);
    assert!(
        unfinished > 0,
        "none was killed in the middle of a rotation"
    );
}
