//! The daemon's program: reads the command line, runs the daemon, turns its end into an exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use casemate::base::exit::Exit;
use casemate::{config, daemon};
use clap::{Parser, Subcommand};

/// Gives every session its own gVisor sandbox under rootless podman, and records what happens.
///
/// Signals: SIGTERM and SIGINT end it in order, a second one at once; SIGHUP reads the settings
/// again. Exit codes follow sysexits(3): 0 ended in order, 64 wrong arguments, 65 the state or a backup is damaged, 69 podman or the
/// listening address is not available, 70 a defect, 73 the state cannot be written, 74 reading or
/// writing failed, 75 another casemated runs on this state, 77 refused for safety, 78 wrong
/// settings.
#[derive(Parser)]
#[command(name = "casemated", version)]
struct Arguments {
    /// The main settings file; casemate.yaml.d/*.yaml beside it are merged over it.
    #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,

    /// Start up to serving, say what is wrong, and end.
    #[arg(long)]
    check: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

/// What else it can do, while no daemon runs on the state.
#[derive(Subcommand)]
enum Command {
    /// Make a state out of a backup. Run it as the user that casemated runs as
    Restore {
        /// The backup; - reads standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// File of the age identity that it is encrypted for
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
        /// Put a state that is there aside, whole, and this one in its place
        #[arg(long)]
        replace: bool,
        /// Put the templates' files in the places of those with the same names
        #[arg(long)]
        templates: bool,
        /// Take it although its record is not what was written; casemate audit verify says what is wrong
        #[arg(long)]
        broken_record: bool,
        /// Only check the backup, and say what would be done
        #[arg(long)]
        dry_run: bool,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; a closed terminal is not ours to report.
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage.into()
            } else {
                Exit::Ok.into()
            };
        }
    };
    if let Some(Command::Restore {
        file,
        identity,
        replace,
        templates,
        broken_record,
        dry_run,
    }) = arguments.command
    {
        return daemon::restore(&daemon::RestoreOptions {
            config: arguments.config,
            file,
            identity,
            wish: daemon::Wish {
                replace,
                templates,
                broken_record,
                dry_run,
            },
        })
        .into();
    }
    daemon::run(&daemon::Options {
        config: arguments.config,
        check: arguments.check,
    })
    .into()
}
