//! The daemon's program: reads the command line, runs the daemon, turns its end into an exit code.

#[path = "casemate/restoring.rs"]
mod restoring;

use std::path::PathBuf;
use std::process::ExitCode;

use casemate::base::exit::Exit;
use casemate::{config, daemon};
use clap::{Parser, Subcommand};

use self::restoring::Restoring;

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
    Restore(Restoring),
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
    if let Some(Command::Restore(wanted)) = arguments.command {
        return daemon::restore(&daemon::RestoreOptions {
            config: arguments.config,
            file: wanted.file,
            identity: wanted.identity,
            wish: daemon::Wish {
                replace: wanted.replace,
                templates: wanted.templates,
                broken_record: wanted.broken_record,
                dry_run: wanted.dry_run,
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
