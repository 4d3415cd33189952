//! `casemate`: what people and programs type to use and administer a casemated.
//!
//! This file turns arguments into a command and a command's end into an exit code. It reads no
//! settings of the daemon and touches no state: everything goes over the HTTP API or the admin
//! socket. Nothing is printed but through `output`.

mod args;
mod commands;
mod failure;
mod http;
mod key;
mod output;
mod restoring;
mod screen;
mod socket;

use std::process::ExitCode;

use casemate::base::exit::Exit;

use self::failure::Failure;

fn main() -> ExitCode {
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version come here as well; a reader that went away is no failure.
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage.into()
            } else {
                Exit::Ok.into()
            };
        }
    };
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output::tell(&failure.message);
            failure.exit.into()
        }
    }
}

fn run(cli: args::Cli) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Software, format!("cannot start: {error}")))?;
    let done = runtime.block_on(commands::execute(cli));
    // A read of a silent standard input may still hang in its thread; it must not keep us here.
    runtime.shutdown_background();
    done
}
