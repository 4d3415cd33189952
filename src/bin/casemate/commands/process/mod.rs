//! Programs in a session that run while somebody looks, or on their own: `casemate exec`, `shell`,
//! `start`, `ps`, `logs`, `signal`.

mod conversation;
mod escape;
pub mod exec;
pub mod logs;
pub mod ps;
pub mod shell;
mod show;
pub mod signal;
pub mod start;
pub(super) mod terminal;

use std::collections::BTreeMap;

use casemate::base::exit::Exit;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;

use self::terminal::Size;
use super::pair::{Variable, environment, own, variable};
use crate::failure::Failure;

/// Who a program runs as, where, and with what.
#[derive(Args)]
pub struct Surroundings {
    /// Who it runs as inside the sandbox
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Where it starts; an absolute path
    #[arg(short = 'w', long, value_name = "DIR")]
    cwd: Option<String>,
    /// Give it a variable; NAME alone hands on the value of this environment, which keeps it out of
    /// the process list
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<Variable>,
}

/// What to start.
#[derive(Args)]
pub struct Program {
    #[command(flatten)]
    surroundings: Surroundings,
    /// End it after so many seconds
    #[arg(long, value_name = "S", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    timeout: Option<u64>,
    /// A command line for the user's login shell, instead of a program
    #[arg(long, value_name = "LINE", conflicts_with = "argv")]
    command: Option<String>,
    /// The program and its arguments
    #[arg(
        last = true,
        required_unless_present = "command",
        value_name = "PROGRAM"
    )]
    argv: Vec<String>,
}

/// The body that asks for a process.
#[derive(Default, Serialize)]
struct Start {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    argv: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pty: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_s: Option<u64>,
}

impl Start {
    fn of(program: Program) -> Result<Self, Failure> {
        Ok(Self {
            argv: program.argv,
            command: program.command,
            timeout_s: program.timeout,
            ..Self::within(program.surroundings)?
        })
    }

    fn within(surroundings: Surroundings) -> Result<Self, Failure> {
        Ok(Self {
            env: environment(surroundings.env, own)?,
            cwd: surroundings.cwd,
            user: surroundings.user,
            ..Self::default()
        })
    }

    /// On a terminal of ours' size and kind.
    fn on_terminal(mut self) -> Self {
        self.pty = Some(terminal::size());
        if let Some(kind) = own("TERM") {
            self.env.entry("TERM".to_owned()).or_insert(kind);
        }
        self
    }

    fn json(&self) -> Result<String, Failure> {
        serde_json::to_string(self)
            .map_err(|error| Failure::new(Exit::Software, format!("cannot write JSON: {error}")))
    }
}
