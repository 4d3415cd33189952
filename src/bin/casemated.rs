//! The daemon's program: reads the command line, runs the daemon, turns its end into an exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use casemate::base::exit::Exit;
use casemate::{config, daemon};
use clap::Parser;

/// Gives every session its own gVisor sandbox under rootless podman, and records what happens.
///
/// Signals: SIGTERM and SIGINT end it in order, a second one at once; SIGHUP reads the settings
/// again. Exit codes follow sysexits(3): 0 ended in order, 64 wrong arguments, 69 podman or the
/// listening address is not available, 70 a defect, 73 the state cannot be written, 74 reading or
/// writing failed, 75 another casemated runs on this state, 77 refused for safety, 78 wrong
/// settings.
#[derive(Parser)]
#[command(name = "casemated", version)]
struct Arguments {
    /// The main settings file; casemate.yaml.d/*.yaml beside it are merged over it.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,

    /// Start up to serving, say what is wrong, and end.
    #[arg(long)]
    check: bool,
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
    daemon::run(&daemon::Options {
        config: arguments.config,
        check: arguments.check,
    })
    .into()
}
