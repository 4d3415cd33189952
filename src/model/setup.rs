//! What a template says of the programs in a session: what is started there, and when the session counts as ready.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::endpoint::Endpoints;

/// What a template says of the programs in a session. A session keeps what held when it was admitted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Setup {
    /// Who processes run as inside when they do not say; the guest's `user` when absent.
    pub user: Option<String>,
    /// What is done in a sandbox before it is anybody's.
    pub warm_up: Option<WarmUp>,
    /// What is started before the session is ready, and runs on.
    pub start: Option<StartCommand>,
    /// What must be the case before the session is ready.
    pub ready: Option<Readiness>,
    /// On which ports its services listen, in the order in which they were written.
    pub ports: Vec<u16>,
    /// Who may reach which of its ports, and how.
    #[serde(skip_serializing_if = "is_default")]
    pub endpoints: Endpoints,
    /// Whether its programs are told to trust the installation's own certificate authority, so that requests over TLS can get something added.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub egress_ca: bool,
}

/// What nobody set is left out, so that what was kept before reads the same.
fn is_default(endpoints: &Endpoints) -> bool {
    *endpoints == Endpoints::default()
}

impl Setup {
    /// Whether a session is ready as soon as its guest answers, in a sandbox that is warmed up where that is asked for.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start.is_none() && self.ready.is_none() && !self.egress_ca
    }
}

/// What is done in a sandbox before it is anybody's, and kept as a checkpoint that others begin as. It may end or run on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmUp {
    /// What runs. It knows nothing of a session: its environment is the template's and its own over it.
    pub run: StartCommand,
    /// When it is done; absent: when it has ended with 0.
    pub ready: Option<Readiness>,
    /// Which signal its processes get in each session, before that is ready, if they run on: they are many that began as one.
    pub signal: Option<i32>,
}

/// A command that is started in every session.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartCommand {
    /// What.
    pub program: Program,
    /// Over the session's environment.
    pub env: BTreeMap<String, String>,
    /// Instead of the session's directory.
    pub cwd: Option<String>,
    /// Instead of the template's user.
    pub user: Option<String>,
}

impl std::fmt::Debug for StartCommand {
    /// Without words and environment: they may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartCommand")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// What a start command runs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// A program and its arguments.
    Argv(Vec<String>),
    /// A command line for the user's login shell.
    Command(String),
}

impl std::fmt::Debug for Program {
    /// Without words: they may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Argv(words) => write!(f, "Argv({} words)", words.len()),
            Self::Command(line) => write!(f, "Command({} bytes)", line.len()),
        }
    }
}

/// When a session is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// What must be the case.
    pub probe: Probe,
    /// How long it may take; the session fails after that.
    pub timeout_s: u64,
    /// The pause between two looks, in milliseconds.
    pub interval_ms: u64,
}

/// What is looked at to know whether a session is ready.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// Something listens on this port.
    Port(u16),
    /// This path is there.
    File(String),
    /// This command line for the user's login shell ends with 0.
    Command(String),
}

/// Of [`Readiness::timeout_s`], when nobody says.
pub const READY_TIMEOUT_S: u64 = 60;
/// Of [`Readiness::interval_ms`], when nobody says.
pub const INTERVAL_MS: u64 = 200;

impl std::fmt::Debug for Probe {
    /// A command line may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

impl Probe {
    /// In words, for whoever waits in vain. A command line is not repeated: it may hold secrets.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Port(port) => format!("port {port}"),
            Self::File(path) => format!("the file {path}"),
            Self::Command(_) => "the readiness command".to_owned(),
        }
    }
}
