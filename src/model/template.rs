//! A named recipe for a sandbox, and what must hold of every one, whoever wrote it.
//!
//! [`TemplateSpec::problems`] is the one list of rules: files and the API are held to the same. A problem names the field and
//! the bounds, and never repeats text that may be a secret: of an environment only the variable's name is told.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::egress::{EgressRules, problems_of};
use super::endpoint::{Endpoints, MAX_HEADER_VALUE_BYTES, MAX_HEADERS};
use super::image::ImageDigest;
use super::name::Name;
use super::sandbox::Limits;
use super::session::MAX_TIMEOUT_S;
use super::setup::{Probe, Program, Readiness, Setup, StartCommand, WarmUp};
use crate::base::clock::Timestamp;

/// Most entries of an environment.
pub const MAX_ENV_ENTRIES: usize = 256;
/// Longest name of a variable, in bytes.
pub const MAX_ENV_NAME_BYTES: usize = 128;
/// Longest value of a variable, in bytes.
pub const MAX_ENV_VALUE_BYTES: usize = 32 << 10;
/// Most bytes of an environment, names and values together: a template is kept in every version.
pub const MAX_ENV_BYTES: usize = 64 << 10;
/// Longest path in the sandbox, in bytes.
pub const MAX_PATH_BYTES: usize = 1024;
/// Longest name of a user, in bytes.
pub const MAX_USER_BYTES: usize = 64;
/// Most words of a start command.
pub const MAX_ARGV_WORDS: usize = 256;
/// Most bytes of a command, whether in words or as a line.
pub const MAX_COMMAND_BYTES: usize = 32 << 10;
/// Most declared ports.
pub const MAX_PORTS: usize = 64;
/// Most teams that may be named.
pub const MAX_TEAMS: usize = 256;
/// Most sandboxes of one template that can be held ready.
pub const MAX_POOL: u32 = 256;
/// Longest time that a session may take to become ready after its start command began, in seconds.
pub const MAX_READY_TIMEOUT_S: u64 = 3600;
/// Shortest and longest time between two looks at whether a session is ready, in milliseconds.
pub const READY_INTERVAL_MS: (u64, u64) = (50, 60_000);
/// On which the way out of a sandbox listens: no service of a session can have it.
pub const RESERVED_PORT: u16 = 3128;

/// A recipe with its name and the number of this edition of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// Its name.
    pub name: Name,
    /// Counts the editions from one, and never the same one twice.
    pub version: u32,
    /// Where it comes from.
    pub origin: Origin,
    /// Who made this version, as the audit log writes principals.
    pub made_by: String,
    /// When this version was made, or first seen in its file.
    pub made_at: Timestamp,
    /// What it says.
    pub spec: TemplateSpec,
}

/// Where a template comes from, which decides who may change it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A file beside the configuration: only whoever administers the machine.
    File,
    /// The API, for this team: only this team.
    Team(Name),
}

/// What sessions of one kind are made of, and what they get when they do not say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TemplateSpec {
    /// The pinned image.
    pub image: ImageDigest,
    /// The limits of a session that asks for none.
    pub limits: Limits,
    /// The most that a session may ask for.
    pub max_limits: Limits,
    /// Whether programs may run as root in a session, with the capabilities that make root useful
    /// inside and none on the host.
    pub allow_root: bool,
    /// Environment of every process; a session's own wins.
    pub env: BTreeMap<String, String>,
    /// Where processes start when neither they nor their session say.
    pub workdir: Option<String>,
    /// Lifetime of a session that does not say, in seconds.
    pub timeout_s: u64,
    /// Longest lifetime that a session may ask for, in seconds.
    pub max_timeout_s: u64,
    /// What runs in a session before anybody uses it.
    pub setup: Setup,
    /// What its sessions may reach, by name; nothing unless a rule allows it.
    #[serde(default, skip_serializing_if = "EgressRules::is_empty")]
    pub egress: EgressRules,
    /// How many sandboxes are to be held ready.
    pub pool: u32,
    /// Who may use it; `None` is every team.
    pub teams: Option<BTreeSet<Name>>,
}

/// Which version of a template somebody believes to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Whichever there is, or none.
    #[default]
    None,
    /// There is none.
    Absent,
    /// There is one.
    Present,
    /// It is one of these versions.
    OneOf(Vec<u32>),
}

impl Precondition {
    /// Whether it holds of the version that there is.
    #[must_use]
    pub fn holds(&self, current: Option<u32>) -> bool {
        match self {
            Self::None => true,
            Self::Absent => current.is_none(),
            Self::Present => current.is_some(),
            Self::OneOf(versions) => current.is_some_and(|current| versions.contains(&current)),
        }
    }
}

/// One thing that is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", field.join("."))]
pub struct TemplateProblem {
    /// The field, from the top.
    pub field: Vec<String>,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl TemplateSpec {
    /// A recipe that names an image and leaves the rest to the defaults.
    #[must_use]
    pub fn new(image: ImageDigest) -> Self {
        Self {
            image,
            limits: Limits::default(),
            max_limits: Limits::default(),
            allow_root: false,
            env: BTreeMap::new(),
            workdir: None,
            timeout_s: 3600,
            max_timeout_s: 86_400,
            setup: Setup::default(),
            egress: EgressRules::new(),
            pool: 0,
            teams: None,
        }
    }

    /// Whether sessions of this team may be made of it.
    #[must_use]
    pub fn is_for(&self, team: &Name) -> bool {
        self.teams.as_ref().is_none_or(|teams| teams.contains(team))
    }

    /// What is done in its sessions, where the warm-up needs nothing more of the template: it must be the same in a session
    /// as before there is one.
    #[must_use]
    pub fn session_setup(&self) -> Setup {
        let mut setup = self.setup.clone();
        if let Some(WarmUp { run, .. }) = &mut setup.warm_up {
            let mut env = self.env.clone();
            env.append(&mut run.env);
            run.env = env;
            run.cwd = run.cwd.take().or_else(|| self.workdir.clone());
            run.user = run.user.take().or_else(|| setup.user.clone());
        }
        setup
    }

    /// Everything that is wrong with it.
    #[must_use]
    pub fn problems(&self) -> Vec<TemplateProblem> {
        let mut check = Check::default();
        check.limits(self);
        check.env(&["env"], &self.env);
        check.path(&["workdir"], self.workdir.as_deref());
        for (field, timeout_s) in [
            ("timeout_s", self.timeout_s),
            ("max_timeout_s", self.max_timeout_s),
        ] {
            if !(1..=MAX_TIMEOUT_S).contains(&timeout_s) {
                check.say(
                    &[field],
                    format!("must be 1 to {MAX_TIMEOUT_S}, not {timeout_s}"),
                );
            }
        }
        if self.timeout_s > self.max_timeout_s {
            check.say(
                &["max_timeout_s"],
                format!(
                    "{} is less than timeout_s, {}",
                    self.max_timeout_s, self.timeout_s
                ),
            );
        }
        check.user(&["user"], self.setup.user.as_deref(), self.allow_root);
        if let Some(warm_up) = &self.setup.warm_up {
            check.start(&["warm_up"], &warm_up.run, self.allow_root);
            if let Some(ready) = &warm_up.ready {
                check.ready(&["warm_up", "ready"], ready);
            }
            check.signal(&["warm_up", "signal"], warm_up.signal);
        }
        if let Some(start) = &self.setup.start {
            check.start(&["start"], start, self.allow_root);
        }
        if let Some(ready) = &self.setup.ready {
            check.ready(&["ready"], ready);
        }
        for (path, problem) in problems_of(&self.egress) {
            let field: Vec<&str> = ["egress"]
                .into_iter()
                .chain(path.iter().map(String::as_str))
                .collect();
            check.say(&field, problem);
        }
        check.ports(&["ports"], &self.setup.ports);
        check.endpoints(&self.setup.endpoints);
        if self.pool > MAX_POOL {
            check.say(
                &["pool"],
                format!("must be 0 to {MAX_POOL}, not {}", self.pool),
            );
        }
        match &self.teams {
            Some(teams) if teams.is_empty() => {
                check.say(&["teams"], "names nobody; leave it out for every team");
            }
            Some(teams) if teams.len() > MAX_TEAMS => {
                check.say(&["teams"], format!("names more than {MAX_TEAMS}"));
            }
            _ => {}
        }
        check.problems
    }
}

/// Gathers what is wrong.
#[derive(Default)]
struct Check {
    problems: Vec<TemplateProblem>,
}

impl Check {
    fn say(&mut self, field: &[&str], problem: impl Into<String>) {
        self.problems.push(TemplateProblem {
            field: field.iter().map(|&part| part.to_owned()).collect(),
            problem: problem.into(),
        });
    }

    fn limits(&mut self, spec: &TemplateSpec) {
        for (section, limits) in [("limits", spec.limits), ("max_limits", spec.max_limits)] {
            for (field, bounds, found) in limits.out_of_bounds() {
                self.say(&[section, field], format!("must be {bounds}, not {found}"));
            }
        }
        let (asked, most) = (spec.limits, spec.max_limits);
        for (field, is_over, asked, most) in asked.over(&most) {
            if is_over {
                self.say(
                    &["max_limits", field],
                    format!("{most} is less than limits.{field}, {asked}"),
                );
            }
        }
    }

    fn env(&mut self, field: &[&str], env: &BTreeMap<String, String>) {
        if env.len() > MAX_ENV_ENTRIES {
            self.say(field, format!("has more than {MAX_ENV_ENTRIES} entries"));
        }
        let bytes: usize = env
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if bytes > MAX_ENV_BYTES {
            self.say(field, format!("has more than {MAX_ENV_BYTES} bytes in all"));
        }
        for (name, value) in env {
            if let Some(problem) = env_problem(name, value) {
                self.say(&[field, &[name.as_str()]].concat(), problem);
            }
        }
    }

    fn path(&mut self, field: &[&str], path: Option<&str>) {
        // The guest resolves it, so only its form is looked at.
        if path.is_some_and(|path| {
            !path.starts_with('/') || path.len() > MAX_PATH_BYTES || path.contains(char::is_control)
        }) {
            self.say(
                field,
                format!(
                    "is not an absolute path in the sandbox of at most {MAX_PATH_BYTES} bytes without control characters"
                ),
            );
        }
    }

    fn user(&mut self, field: &[&str], user: Option<&str>, allow_root: bool) {
        let Some(user) = user else { return };
        // What shadow's useradd(8) takes at the most, and numbers.
        let is_name = !user.is_empty()
            && user.len() <= MAX_USER_BYTES
            && !user.starts_with('-')
            && user
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_.-$".contains(&b));
        if !is_name {
            self.say(
                field,
                format!("is not the name or number of a user, of at most {MAX_USER_BYTES} bytes"),
            );
        } else if !allow_root && (user == "root" || user.bytes().all(|b| b == b'0')) {
            self.say(field, "is root, which needs allow_root: true");
        }
    }

    fn start(&mut self, field: &[&str], start: &StartCommand, allow_root: bool) {
        let within = |key| [field, &[key]].concat();
        match &start.program {
            Program::Argv(words) if words.first().is_none_or(String::is_empty) => {
                self.say(&within("argv"), "names no program");
            }
            Program::Argv(words) if words.len() > MAX_ARGV_WORDS => {
                self.say(
                    &within("argv"),
                    format!("has more than {MAX_ARGV_WORDS} words"),
                );
            }
            Program::Argv(words) => {
                let text = words.iter().map(String::as_str);
                self.command(&within("argv"), text);
            }
            Program::Command(line) => self.line(&within("command"), line),
        }
        self.env(&within("env"), &start.env);
        self.path(&within("cwd"), start.cwd.as_deref());
        self.user(&within("user"), start.user.as_deref(), allow_root);
    }

    fn line(&mut self, field: &[&str], line: &str) {
        if line.trim().is_empty() {
            self.say(field, "is empty");
        }
        self.command(field, std::iter::once(line));
    }

    fn command<'a>(&mut self, field: &[&str], text: impl Iterator<Item = &'a str> + Clone) {
        if text.clone().any(|text| text.contains('\0')) {
            self.say(field, "holds a NUL, which no command can");
        }
        if text.map(|text| text.len() + 1).sum::<usize>() > MAX_COMMAND_BYTES {
            self.say(field, format!("has more than {MAX_COMMAND_BYTES} bytes"));
        }
    }

    fn signal(&mut self, field: &[&str], signal: Option<i32>) {
        // What ends or stops whoever gets it, and cannot be handled.
        if signal.is_some_and(|signal| matches!(signal, 9 | 19) || !(1..=64).contains(&signal)) {
            self.say(
                field,
                "is not a signal that a program can handle, such as USR1",
            );
        }
    }

    fn ready(&mut self, field: &[&str], ready: &Readiness) {
        let within = |key| [field, &[key]].concat();
        match &ready.probe {
            Probe::Port(port) => self.port(&within("port"), *port),
            Probe::File(path) => self.path(&within("file"), Some(path)),
            Probe::Command(line) => self.line(&within("command"), line),
        }
        let timeout_s = ready.timeout_s;
        if !(1..=MAX_READY_TIMEOUT_S).contains(&timeout_s) {
            self.say(
                &within("timeout_s"),
                format!("must be 1 to {MAX_READY_TIMEOUT_S}, not {timeout_s}"),
            );
        }
        let ((least, most), interval_ms) = (READY_INTERVAL_MS, ready.interval_ms);
        if !(least..=most).contains(&interval_ms) {
            self.say(
                &within("interval_ms"),
                format!("must be {least} to {most}, not {interval_ms}"),
            );
        }
    }

    fn ports(&mut self, field: &[&str], ports: &[u16]) {
        if ports.len() > MAX_PORTS {
            self.say(field, format!("has more than {MAX_PORTS}"));
        }
        let mut seen = BTreeSet::new();
        for &port in ports {
            self.port(field, port);
            if !seen.insert(port) {
                self.say(field, format!("names {port} twice"));
            }
        }
    }

    fn endpoints(&mut self, endpoints: &Endpoints) {
        self.ports(&["endpoints", "public"], &endpoints.public);
        if endpoints.headers.len() > MAX_PORTS {
            let problem = format!("is for more than {MAX_PORTS} ports");
            self.say(&["endpoints", "headers"], problem);
        }
        for (port, headers) in &endpoints.headers {
            let port_name = port.to_string();
            let field = ["endpoints", "headers", port_name.as_str()];
            self.port(&field, *port);
            if headers.len() > MAX_HEADERS {
                self.say(&field, format!("has more than {MAX_HEADERS}"));
            }
            for (name, value) in headers {
                if let Some(problem) = header_problem(name, value) {
                    self.say(&[&field[..], &[name.as_str()]].concat(), problem);
                }
            }
        }
    }

    fn port(&mut self, field: &[&str], port: u16) {
        if port == 0 {
            self.say(field, "a port is 1 to 65535, not 0");
        } else if port == RESERVED_PORT {
            self.say(
                field,
                format!("{RESERVED_PORT} is the way out of a sandbox; take another port"),
            );
        }
    }
}

/// What is wrong with a header that requests shall get. Its value is not repeated.
fn header_problem(name: &str, value: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let taken = [
        "connection",
        "content-length",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    if name.is_empty() || name.len() > 64 || !name.bytes().all(is_token) {
        return Some("is no name of a header: letters, digits, - and _, at most 64");
    }
    if taken.contains(&lower.as_str()) || lower.starts_with("x-casemate-") {
        return Some("is Casemate's to say");
    }
    let is_plain = |byte: u8| byte == b'\t' || (b' '..=b'~').contains(&byte);
    if value.len() > MAX_HEADER_VALUE_BYTES || !value.bytes().all(is_plain) {
        return Some("its value is not printable ASCII of at most 1024 bytes");
    }
    None
}

/// What is wrong with a variable. Its value is not repeated.
fn env_problem(name: &str, value: &str) -> Option<String> {
    let mut bytes = name.bytes();
    let begins = bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !begins
        || name.len() > MAX_ENV_NAME_BYTES
        || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
    {
        return Some("a variable's name is letters, digits and _, and no digit first".to_owned());
    }
    if value.contains('\0') {
        return Some("its value holds a NUL, which no environment can".to_owned());
    }
    if value.len() > MAX_ENV_VALUE_BYTES {
        return Some(format!(
            "its value is longer than {MAX_ENV_VALUE_BYTES} bytes"
        ));
    }
    None
}

#[cfg(test)]
mod tests;
