//! The command line as a type, and its help.
//!
//! Options of a single command stand in that command's file. A key is never an option: arguments
//! can be read by every user of the machine.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use crate::commands::process::{exec, logs, ps, shell, signal, start};
use crate::commands::{
    admin, audit, cp, credential, e2b, forward, key, open, policy, run, session, template, volume,
};

/// The commands as the help shows them: what belongs together stands together.
const GROUPS: [(&str, &[&str]); 4] = [
    (
        "Sessions (over the HTTP API, with a key)",
        &[
            "run",
            "session",
            "template",
            "volume",
            "credential",
            "key",
            "audit",
            "e2b",
        ],
    ),
    (
        "In a session (likewise)",
        &[
            "exec", "shell", "start", "ps", "logs", "signal", "cp", "forward", "open",
        ],
    ),
    ("This machine", &["ready", "doctor", "policy", "admin"]),
    ("This program", &["completions", "man", "version"]),
];

/// What follows the long help.
const AFTER_HELP: &str = "\
API key:
  Read from the variable CASEMATE_API_KEY, or from the file named by --key-file.
  There is no option for the key itself: every user of the machine could read it
  in the process list. Make a key with: KEY=$(casemate admin key create NAME)

Exit codes:
    0  done
    1  refused by casemated; the message says why
   64  wrong usage
   69  casemated does not answer, is not ready, or is too busy
   70  a defect, or casemate and casemated of different versions
   73  a file cannot be made
   74  reading or writing a file or stream failed
   77  not allowed: no valid key, or not an operator
  130  ended by Ctrl-C
  143  ended by SIGTERM
  casemate run, exec and shell end as their program did: with its code, with 128 + N
  when signal N ended it, with 124 when its time was over.";

/// Gives every session its own gVisor sandbox: the client of casemated
#[derive(Parser)]
#[command(name = "casemate", version, propagate_version = false)]
#[command(after_long_help = AFTER_HELP, after_help = "--help shows exit codes and where the key comes from.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub settings: Settings,
}

/// What every command takes.
#[derive(Args)]
#[command(next_help_heading = "Settings")]
pub struct Settings {
    /// Print one JSON value for programs instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
    /// Where casemated's HTTP API is; http or https
    #[arg(
        long,
        global = true,
        env = "CASEMATE_URL",
        default_value = "http://127.0.0.1:7272",
        value_name = "URL"
    )]
    pub url: String,
    /// File that holds the API key; goes before the variable `CASEMATE_API_KEY`
    #[arg(long, global = true, value_name = "PATH")]
    pub key_file: Option<PathBuf>,
    /// File of the certificates that casemated's must lead to, in PEM, for https; the system's without it
    #[arg(long, global = true, env = "CASEMATE_CA", value_name = "PATH")]
    pub ca: Option<PathBuf>,
    /// File of a certificate of yours, in PEM, for https; with it no API key is needed
    #[arg(long, global = true, env = "CASEMATE_CERT", value_name = "PATH")]
    pub cert: Option<PathBuf>,
    /// File of that certificate's private key, in PEM
    #[arg(long, global = true, env = "CASEMATE_CERT_KEY", value_name = "PATH")]
    pub cert_key: Option<PathBuf>,
    /// casemated's admin socket, for `casemate admin` and `casemate doctor`
    #[arg(
        long,
        global = true,
        env = "CASEMATE_ADMIN_SOCKET",
        default_value = "/run/casemate/admin.sock",
        value_name = "PATH"
    )]
    pub socket: PathBuf,
    /// File that holds the operator token: administers the casemated at --url instead of the one at --socket
    #[arg(
        long,
        global = true,
        env = "CASEMATE_OPERATOR_FILE",
        value_name = "PATH"
    )]
    pub operator_file: Option<PathBuf>,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Run a program in a sandbox and end as it does
    Run(Box<run::Run>),
    /// Make, look at and end sessions
    #[command(subcommand)]
    Session(session::Command),
    /// Run a program in a session with its input and outputs as they come
    Exec(Box<exec::Exec>),
    /// Open a login shell in a session at this terminal
    Shell(Box<shell::Shell>),
    /// Start a program in the background and print its pid
    Start(Box<start::StartCommand>),
    /// List the processes of a session that were started over the API
    Ps(ps::Ps),
    /// Show what a background process wrote
    Logs(logs::Logs),
    /// Send a signal to a process and its group
    Signal(signal::SignalCommand),
    /// Copy files and directories into a session and out of it
    Cp(Box<cp::Cp>),
    /// Make a port of this machine lead to one in a session
    Forward(forward::Forward),
    /// Print a signed link to a port in a session, for a browser
    Open(open::Open),
    /// Have programs that were made for E2B come here
    #[command(subcommand, name = "e2b")]
    E2b(e2b::Command),
    /// Show and make what sessions are made of
    #[command(subcommand)]
    Template(template::Command),
    /// Keep files beyond sessions
    #[command(subcommand)]
    Volume(volume::Command),
    /// Keep what a team needs to reach other things, sealed
    #[command(subcommand)]
    Credential(credential::Command),
    /// Read what was recorded; export it and verify it
    #[command(subcommand)]
    Audit(audit::Command),
    /// Make, list and revoke the team's API keys; for team admins
    #[command(subcommand)]
    Key(key::Command),
    /// Show and change what is allowed and denied, and explain it; for root and operators
    #[command(subcommand)]
    Policy(policy::Command),
    /// Ask whether casemated can do its work; needs no key
    Ready,
    /// Check whether this machine and its settings are fit; for root and operators
    Doctor,
    /// Administer casemated, here or elsewhere; for root and operators
    #[command(subcommand)]
    Admin(admin::Command),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write manual pages into a directory
    Man {
        /// An existing directory
        directory: PathBuf,
    },
    /// Print the version
    Version,
}

/// The whole command line, ready to parse, complete and document.
pub fn command() -> clap::Command {
    let command = Cli::command();
    let template = help_template(&command);
    command.help_template(template)
}

/// Reads the command line.
///
/// # Errors
/// What clap prints: a mistake, the help, or the version.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    Cli::from_arg_matches(&matches)
}

/// clap lists commands without groups, so the list is ours.
fn help_template(command: &clap::Command) -> String {
    let styles = command.get_styles();
    let (header, literal) = (styles.get_header(), styles.get_literal());
    let mut text = String::from("{about}\n\n{usage-heading} {usage}\n");
    for (group, names) in GROUPS {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{header}{group}:{header:#}");
        for name in names {
            let about = command
                .find_subcommand(name)
                .and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {literal}{name:<13}{literal:#}{about}");
        }
    }
    let _ = write!(
        text,
        "\n{header}Settings:{header:#}\n{{options}}{{after-help}}"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    fn every(command: &clap::Command, check: &mut impl FnMut(&clap::Command)) {
        check(command);
        for inner in command.get_subcommands() {
            every(inner, check);
        }
    }

    #[test]
    fn the_definition_holds_together() {
        command().debug_assert();
    }

    #[test]
    fn every_command_stands_in_one_group() {
        let mut grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| names.iter()).collect();
        let command = command();
        let mut known: Vec<_> = command
            .get_subcommands()
            .map(clap::Command::get_name)
            .collect();
        grouped.sort();
        known.sort_unstable();
        assert!(grouped.into_iter().eq(known.iter()));
    }

    #[test]
    fn every_command_and_option_is_documented() {
        every(&command(), &mut |command| {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                let id = argument.get_id();
                assert!(argument.get_help().is_some(), "{} {id}", command.get_name());
            }
        });
    }

    #[test]
    fn no_option_takes_a_key() {
        every(&command(), &mut |command| {
            for argument in command.get_arguments() {
                let long = argument.get_long().unwrap_or_default();
                assert!(
                    !matches!(long, "key" | "api-key" | "token" | "value" | "secret"),
                    "{long}"
                );
            }
        });
    }

    #[test]
    fn settings_stand_before_or_after_the_command() {
        assert!(
            parsed("casemate --json session list")
                .unwrap()
                .settings
                .json
        );
        assert!(
            parsed("casemate session list --json")
                .unwrap()
                .settings
                .json
        );
        let cli = parsed("casemate run --json -- echo --json --url x").unwrap();
        assert!(cli.settings.json);
        assert_ne!(cli.settings.url, "x");
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let id = "ses_00000000000000000000000001";
        for line in [
            format!("casemate run --session {id} --keep -- true"),
            format!("casemate run --session {id} --template t -- true"),
            "casemate run true".to_owned(),
            "casemate run --".to_owned(),
            "casemate run --session ses_1 -- true".to_owned(),
            "casemate run --label a -- true".to_owned(),
            "casemate run --timeout 0 -- true".to_owned(),
            "casemate session list --limit 201".to_owned(),
            "casemate session list --phase dead".to_owned(),
            "casemate session stop".to_owned(),
            format!("casemate exec {id} --command a -- b"),
            format!("casemate start {id}"),
            format!("casemate logs {id} 7 --stdout --stderr"),
            "casemate admin key create Not/A/Name".to_owned(),
            "casemate template put".to_owned(),
            "casemate template put a.json --new --if-version 1".to_owned(),
            "casemate template rm Upper".to_owned(),
        ] {
            assert!(parsed(&line).is_err(), "{line}");
        }
    }

    #[test]
    fn help_is_no_mistake() {
        let kind = parsed("casemate --help").err().unwrap().kind();
        assert_eq!(kind, ErrorKind::DisplayHelp);
    }
}
