//! E2B's own SDKs, unmodified, old and new, at our door for them: each goes one scripted journey (`tests/e2b`), whose steps end here as
//! they are expected to, in every version. What an old SDK lacks is written down, so that nothing is missing unnoticed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use casemate::admin::protocol;
use casemate::model::grant::Role;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::Semaphore;

use crate::support::{Daemon, bench, peer};

/// Far longer than any of them takes: what hangs is a failure.
const PATIENCE: Duration = Duration::from_secs(300);

/// As many journeys at one time as a small machine has cores.
static TURNS: Semaphore = Semaphore::const_new(2);

/// Versions of the SDK for Python, oldest first; of each there is a list, `tests/e2b/python/VERSION.txt`.
const PYTHON: [&str; 8] = [
    "2.20.3", "2.29.6", "2.39.1", "2.45.1", "2.50.0", "2.51.0", "2.58.0", "2.63.0",
];

/// The newest of them, with the one for code cells.
const CODE_INTERPRETER: &str = "code-interpreter";

/// The steps of the journey.
const STEPS: &[&str] = &[
    "create",
    "create.offline",
    "create.unknown_template",
    "info",
    "list",
    "list.state",
    "list.pages",
    "list.order",
    "connect",
    "connect.never_shortens",
    "timeout",
    "running",
    "metrics",
    "commands.run",
    "commands.output",
    "commands.unicode",
    "commands.output_not_kept",
    "commands.exit_code",
    "commands.cwd",
    "commands.envs",
    "commands.user",
    "commands.timeout",
    "commands.background",
    "commands.streams",
    "commands.list",
    "commands.kill",
    "commands.connect",
    "stdin.send",
    "stdin.none",
    "stdin.close",
    "stdin.handle",
    "stdin.stream",
    "pty",
    "pty.kill",
    "pty.connect",
    "pty.stream",
    "files.text",
    "files.bytes",
    "files.empty",
    "files.home",
    "files.large",
    "files.stream",
    "files.iterable",
    "files.octets",
    "files.gzip",
    "files.many",
    "files.names",
    "files.exists",
    "files.info",
    "files.list",
    "files.rename",
    "files.make_dir",
    "files.remove",
    "files.errors",
    "files.user",
    "files.metadata",
    "watch",
    "watch.recursive",
    "watch.entry",
    "url.download",
    "url.upload",
    "url.refused",
    "port",
    "async.create",
    "async.run",
    "async.stream",
    "async.pty",
    "async.files",
    "async.watch",
    "async.kill",
    "pause",
    "snapshot",
    "fork",
    "network",
    "kill",
    "dead.running",
    "dead.info",
    "dead.connect",
    "dead.commands",
    "dead.files",
];

/// What the oldest SDKs for Python lack, and the first that has it.
const LATER: &[(&str, &str)] = &[
    ("list.order", "2.45.1"),
    ("commands.unicode", "2.29.6"),
    ("commands.output_not_kept", "2.63.0"),
    ("stdin.close", "2.29.6"),
    ("stdin.handle", "2.29.6"),
    ("stdin.stream", "2.58.0"),
    ("pty.stream", "2.58.0"),
    ("files.iterable", "2.63.0"),
    ("files.metadata", "2.29.6"),
    ("watch.entry", "2.29.6"),
    ("fork", "2.39.1"),
    ("network", "2.29.6"),
    ("async.stream", "2.58.0"),
];

/// What the journey in JavaScript does not have: its only client is asynchronous.
const ONLY_IN_PYTHON: &[&str] = &[
    "async.create",
    "async.run",
    "async.stream",
    "async.pty",
    "async.files",
    "async.watch",
    "async.kill",
];

/// What the SDK for JavaScript lacks.
const NOT_IN_JAVASCRIPT: &[&str] = &["commands.output_not_kept", "stdin.stream", "pty.stream"];

/// What our door refuses: the step, the error's class in Python and in JavaScript, and what it says.
const REFUSED: &[(&str, &str, &str, &str)] = &[(
    "fork",
    "SandboxException",
    "SandboxError",
    "501: a sandbox that runs cannot be copied with its memory",
)];

/// How steps are to end, by their names.
type Results = BTreeMap<String, String>;

/// One SDK, installed.
struct Sdk {
    name: String,
    program: PathBuf,
    /// Where its packages are.
    packages: PathBuf,
}

impl Sdk {
    /// An SDK for Python by the name of its list.
    fn python(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            program: tests().join("journey.py"),
            packages: installed().join("python").join(name),
        }
    }

    /// The one for JavaScript. Modules are looked for beside the program.
    fn javascript() -> Self {
        let program = installed().join("journey.mjs");
        std::fs::copy(tests().join("journey.mjs"), &program).unwrap();
        Self {
            name: "javascript".to_owned(),
            program,
            packages: installed(),
        }
    }

    fn is_python(&self) -> bool {
        self.program.extension().is_some_and(|end| end == "py")
    }

    /// How the steps of the journey end.
    fn expected(&self) -> Results {
        let version = PYTHON.iter().position(|version| *version == self.name);
        let lacks = |step: &str| {
            let later = LATER.iter().find(|(later, _)| *later == step);
            let first = later.and_then(|(_, first)| PYTHON.iter().position(|known| known == first));
            if self.is_python() {
                first > Some(version.unwrap_or(PYTHON.len()))
            } else {
                NOT_IN_JAVASCRIPT.contains(&step)
            }
        };
        let steps = STEPS
            .iter()
            .filter(|step| self.is_python() || !ONLY_IN_PYTHON.contains(step));
        steps
            .map(|&step| {
                let is_refused = REFUSED.iter().any(|(refused, ..)| *refused == step);
                let result = match (lacks(step), is_refused) {
                    (true, _) => "absent",
                    (false, true) => "refused",
                    (false, false) => "ok",
                };
                (step.to_owned(), result.to_owned())
            })
            .collect()
    }

    /// Goes steps at a door, and makes sure that they are these and end so.
    async fn goes(&self, door: &Door, arguments: &[&str], expected: &Results) {
        let _turn = TURNS.acquire().await.unwrap();
        let mut command = if self.is_python() {
            let mut python = Command::new("/usr/bin/python3");
            python.env_clear().env("PYTHONPATH", &self.packages);
            python.env("PYTHONDONTWRITEBYTECODE", "1").arg("-s");
            python
        } else {
            let mut node = Command::new(peer::node());
            node.env_clear();
            node
        };
        command.arg(&self.program).args(arguments);
        for (step, python, javascript, text) in REFUSED {
            let class = if self.is_python() { python } else { javascript };
            if expected
                .get(*step)
                .is_some_and(|result| result == "refused")
            {
                command.arg(format!("--refused={step}={class}:{text}"));
            }
        }
        let url = format!("http://{}", door.daemon.client.address);
        // Of whoever runs the tests it knows nothing but where programs are.
        command
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("LANG", "C.UTF-8")
            .env("TMPDIR", &bench().dir)
            .env("E2B_API_URL", &url)
            .env("E2B_SANDBOX_URL", &url)
            .env("E2B_API_KEY", &door.key)
            .env("E2B_OTHER_API_KEY", &door.other_key)
            .current_dir(&self.packages)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let began = Instant::now();
        let running = command.spawn().unwrap().wait_with_output();
        let Ok(ended) = tokio::time::timeout(PATIENCE, running).await else {
            panic!("{}: it takes longer than {PATIENCE:?}", self.name);
        };
        let ended = ended.unwrap();
        let told = String::from_utf8(ended.stderr).unwrap();
        let steps: Vec<Value> = String::from_utf8(ended.stdout)
            .unwrap()
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let text = |step: &Value, key: &str| step[key].as_str().unwrap().to_owned();
        let found: Results = steps
            .iter()
            .map(|step| (text(step, "step"), text(step, "result")))
            .collect();
        let otherwise: Vec<String> = steps
            .iter()
            .filter(|step| expected.get(&text(step, "step")) != found.get(&text(step, "step")))
            .map(Value::to_string)
            .collect();
        eprintln!(
            "{}: {} steps in {:?}",
            self.name,
            steps.len(),
            began.elapsed()
        );
        assert!(
            otherwise.is_empty(),
            "{}: {otherwise:#?}\n{told}",
            self.name
        );
        let missing = expected.keys().filter(|step| !found.contains_key(*step));
        let missing: Vec<&String> = missing.collect();
        assert!(
            missing.is_empty(),
            "{}: {missing:?} were not gone\n{told}",
            self.name
        );
        assert!(
            ended.status.success(),
            "{}: {}\n{told}",
            self.name,
            ended.status
        );
    }
}

/// A daemon, and keys of two teams as E2B's SDKs spell them.
struct Door {
    daemon: Daemon,
    key: String,
    other_key: String,
}

impl Door {
    /// A daemon with what the journey is about, and these settings.
    async fn open(settings: &[(&str, Value)]) -> Self {
        let journey = [
            ("templates.base.allow_root", json!(true)),
            ("sessions.team_templates.allow_root", json!(true)),
            ("templates.base.ports", json!([8000])),
        ];
        let daemon = Daemon::up_with(&[&journey, settings].concat()).await;
        Self {
            key: e2b_key(&daemon, "tests").await,
            other_key: e2b_key(&daemon, "others").await,
            daemon,
        }
    }

    /// Makes sure that the keys were not written down in this spelling either.
    fn is_discreet(&self) {
        let log = self.daemon.log();
        assert!(!log.contains(&self.key) && !log.contains(&self.other_key));
    }
}

/// A new key of a team, in the spelling that those SDKs demand, as whoever manages the team's keys gets it.
async fn e2b_key(daemon: &Daemon, team: &str) -> String {
    let manager = protocol::Request::KeyCreate {
        name: "manager".parse().unwrap(),
        team: team.parse().unwrap(),
        role: Role::TeamAdmin,
        scopes: None,
        expires_in_s: None,
    };
    let protocol::Answer::Key(manager) = daemon.admin(manager).await else {
        panic!("no key was made");
    };
    let manager = daemon.client.with_key(&manager.key);
    let made = manager.post("/v1/keys", json!({"name": "e2b"})).await;
    let made = made.expect(201);
    let key = made["e2b_key"].as_str().unwrap();
    let hexadecimal = key.strip_prefix("e2b_").unwrap();
    let is_hexadecimal = |letter: u8| matches!(letter, b'0'..=b'9' | b'a'..=b'f');
    assert!(hexadecimal.bytes().all(is_hexadecimal));
    key.to_owned()
}

/// Goes the whole journey.
async fn journey(sdk: Sdk) {
    let door = Door::open(&[]).await;
    sdk.goes(&door, &[], &sdk.expected()).await;
    door.is_discreet();
}

/// Every one of these steps goes well.
fn all_go_well(steps: &[&str]) -> Results {
    let well = steps
        .iter()
        .map(|step| ((*step).to_owned(), "ok".to_owned()));
    well.collect()
}

/// The programs, and the lists of packages.
fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2b")
}

/// Where `scripts/setup` installs what is listed there.
fn installed() -> PathBuf {
    std::env::var_os("CASEMATE_TEST_E2B")
        .expect("run scripts/test")
        .into()
}

#[test]
fn every_list_of_packages_is_of_an_sdk_that_goes_the_journey() {
    let lists = std::fs::read_dir(tests().join("python")).unwrap();
    let mut lists: Vec<String> = lists
        .map(|list| list.unwrap().path())
        .map(|list| list.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    lists.sort();
    assert_eq!(lists, [&PYTHON[..], &[CODE_INTERPRETER]].concat());
}

#[tokio::test]
async fn python_2_20_3_goes_the_whole_journey() {
    journey(Sdk::python("2.20.3")).await;
}

#[tokio::test]
async fn python_2_29_6_goes_the_whole_journey() {
    journey(Sdk::python("2.29.6")).await;
}

#[tokio::test]
async fn python_2_39_1_goes_the_whole_journey() {
    journey(Sdk::python("2.39.1")).await;
}

#[tokio::test]
async fn python_2_45_1_goes_the_whole_journey() {
    journey(Sdk::python("2.45.1")).await;
}

#[tokio::test]
async fn python_2_50_0_goes_the_whole_journey() {
    journey(Sdk::python("2.50.0")).await;
}

#[tokio::test]
async fn python_2_51_0_goes_the_whole_journey() {
    journey(Sdk::python("2.51.0")).await;
}

#[tokio::test]
async fn python_2_58_0_goes_the_whole_journey() {
    journey(Sdk::python("2.58.0")).await;
}

#[tokio::test]
async fn python_2_63_0_goes_the_whole_journey() {
    journey(Sdk::python("2.63.0")).await;
}

#[tokio::test]
async fn the_code_interpreter_goes_the_whole_journey() {
    journey(Sdk::python(CODE_INTERPRETER)).await;
}

#[tokio::test]
async fn javascript_goes_the_whole_journey() {
    journey(Sdk::javascript()).await;
}

#[tokio::test]
async fn what_goes_wrong_is_an_error_of_the_class_that_the_sdk_has_for_it() {
    let newest = Sdk::python(PYTHON[PYTHON.len() - 1]);
    let door = Door::open(&[]).await;
    let steps = [
        "fail.killed_while_it_streams",
        "fail.killed_while_it_waits",
        "fail.sandbox_times_out",
        "fail.no_such_sandbox",
        "fail.bad_key",
        "fail.bad_token",
        "fail.another_team",
        "fail.full_disk",
        "fail.full_disk_stream",
        "fail.command_times_out",
    ];
    newest
        .goes(&door, &["--group=failures"], &all_go_well(&steps))
        .await;
    door.is_discreet();
}

#[tokio::test]
async fn twenty_sandboxes_at_once_are_each_its_own() {
    let newest = Sdk::python(PYTHON[PYTHON.len() - 1]);
    let memory = ("templates.base.limits.memory_bytes", json!(256 << 20));
    let door = Door::open(&[memory]).await;
    let steps = ["many.create", "many.own", "many.kill"];
    newest
        .goes(&door, &["--group=many"], &all_go_well(&steps))
        .await;
}
