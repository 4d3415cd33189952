//! One file a command: its arguments, what it asks for, how the answer is shown.

pub mod about;
pub mod admin;
pub mod audit;
pub mod cp;
pub mod credential;
pub mod doctor;
pub mod e2b;
mod ending;
pub mod forward;
pub mod grant;
pub mod key;
pub mod open;
pub mod pair;
pub mod policy;
pub mod process;
pub mod program;
pub mod ready;
pub mod run;
pub mod session;
pub mod stop;
pub mod template;
pub mod volume;
mod which;

use std::path::PathBuf;

use casemate::base::exit::Exit;
use casemate::base::secret::Secret;

use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::http::{Client, Papers};
use crate::key as own_key;
use crate::socket::Admin;

/// What every command can use.
pub struct Context {
    url: String,
    key_file: Option<PathBuf>,
    papers: Papers,
    socket: PathBuf,
    operator_file: Option<PathBuf>,
    /// Whether a program reads the result.
    pub json: bool,
}

impl Context {
    /// The HTTP API, with the caller's key.
    pub fn client(&self) -> Result<Client, Failure> {
        // Whoever shows a certificate needs no key.
        if self.papers.certificate.is_some() && !self.has_key() {
            return self.stranger();
        }
        Client::new(&self.url, Some(self.key()?), &self.papers)
    }

    /// The caller's key.
    pub fn key(&self) -> Result<Secret<String>, Failure> {
        let environment = std::env::var_os(own_key::VARIABLE);
        own_key::find(self.key_file.as_deref(), environment)
    }

    /// Whether the caller has said that there is a key.
    pub fn has_key(&self) -> bool {
        self.key_file.is_some()
            || std::env::var_os(own_key::VARIABLE).is_some_and(|text| !text.is_empty())
    }

    /// The HTTP API's open routes: no key is needed, so none is sent.
    pub fn stranger(&self) -> Result<Client, Failure> {
        Client::new(&self.url, None, &self.papers)
    }

    /// Where operators are served: here, or elsewhere for whoever has said where the operator token is.
    pub fn admin(&self) -> Admin {
        match &self.operator_file {
            None => Admin::Here(self.socket.clone()),
            Some(token) => Admin::Elsewhere {
                url: self.url.clone(),
                token: token.clone(),
                papers: self.papers.clone(),
            },
        }
    }
}

/// Does what was asked; the exit code.
pub async fn execute(cli: Cli) -> Result<u8, Failure> {
    let settings = cli.settings;
    let context = Context {
        url: settings.url,
        key_file: settings.key_file,
        papers: Papers {
            ca: settings.ca,
            certificate: settings.cert,
            private_key: settings.cert_key,
        },
        socket: settings.socket,
        operator_file: settings.operator_file,
        json: settings.json,
    };
    match cli.command {
        Command::Run(run) => return run.execute(&context).await,
        Command::Exec(exec) => return exec.execute(&context).await,
        Command::Shell(shell) => return shell.execute(&context).await,
        Command::Start(start) => start.execute(&context).await?,
        Command::Ps(ps) => ps.execute(&context).await?,
        Command::Logs(logs) => logs.execute(&context).await?,
        Command::Signal(signal) => signal.execute(&context).await?,
        Command::Forward(forward) => return forward.execute(&context).await,
        Command::Open(open) => open.execute(&context).await?,
        Command::E2b(e2b) => e2b.execute(&context)?,
        Command::Cp(cp) => return cp.execute(&context).await,
        Command::Ready => return ready::execute(&context).await,
        Command::Session(command) => command.execute(&context).await?,
        Command::Template(command) => command.execute(&context).await?,
        Command::Volume(command) => return command.execute(&context).await,
        Command::Credential(command) => command.execute(&context).await?,
        Command::Audit(command) => command.execute(&context).await?,
        Command::Key(command) => command.execute(&context).await?,
        Command::Policy(command) => return command.execute(&context).await,
        Command::Doctor => return doctor::execute(&context).await,
        Command::Admin(command) => return command.execute(&context).await,
        Command::Completions { shell } => about::completions(shell)?,
        Command::Man { directory } => about::man(&directory)?,
        Command::Version => about::version(&context)?,
    }
    Ok(Exit::Ok.code())
}
