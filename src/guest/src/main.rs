//! `casemate-guest`: PID 1 of every sandbox.
//!
//! It dials the daemon, serves the link's requests, reaps every orphan, and ends the sandbox in order when told to. It
//! never exits because of the link. It runs on the enemy's side: nothing outside relies on what it says, and user
//! processes, which run under another uid, can neither reach its socket nor signal it. Where they may be root, they can
//! end it, but neither read its memory nor dial in its place: the link's token is nowhere else in the sandbox.
//!
//! One thread for everything but files, which a few others work on as the user who asked ([`files`]); bounded memory
//! however much a process writes, no privileges but changing to a user and killing, and where processes may be root, theirs.

mod body;
mod boot;
mod child;
mod ends;
mod files;
mod gate;
mod identity;
mod input;
mod kernel;
mod life;
mod options;
mod ports;
mod process;
mod processes;
mod pump;
mod reaper;
mod rest;
mod ring;
mod serve;
mod stop;
mod store;
mod stream;
mod sys;
mod terminal;
mod transfer;
mod trust;
mod usage;
mod users;
mod vfork;
mod wakeful;

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use casemate_link::guest::{Dialer, Introduction};
use tokio::task::LocalSet;

use crate::options::{Command, Options};
use crate::processes::Processes;
use crate::reaper::Reaper;

/// The guest's version, as it says in a hello.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Exit codes after sysexits: wrong command line, refusal of the operating system.
const EX_USAGE: u8 = 64;
const EX_OSERR: u8 = 71;

fn main() -> ExitCode {
    match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Version) => print(format_args!("casemate-guest {VERSION}")),
        Ok(Command::KernelBanner) => {
            let report = kernel::report();
            print(format_args!(
                "{}\n{}\n{}",
                report.release, report.version, report.banner
            ))
        }
        Ok(Command::Run(options)) => match run(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(format_args!("cannot start: {error}"));
                ExitCode::from(EX_OSERR)
            }
        },
        Err(bad) => {
            say(format_args!("{bad}"));
            ExitCode::from(EX_USAGE)
        }
    }
}

fn run(options: Options) -> std::io::Result<()> {
    boot::confine(options.allow_root)?;
    // The directory itself, not its path: where programs may be root, they can put another in its place.
    std::env::set_current_dir(&options.link_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(files::THREADS + casemate_link::limits::MAX_CHANNELS)
        .thread_keep_alive(files::THREAD_KEEP_ALIVE)
        .thread_stack_size(files::THREAD_STACK_BYTES)
        // Only the first thread is ever to use it, and gives it up in time.
        .on_thread_start(|| drop(sys::give_up(sys::CAP_SYS_ADMIN)))
        .build()?;
    let ended = LocalSet::new().block_on(&runtime, async {
        let mut orders = stop::Orders::listen()?;
        let mut deaths = reaper::Deaths::listen()?;
        let introduction = Introduction {
            guest_version: VERSION.to_owned(),
            kernel: kernel::report(),
        };
        let dialer = Dialer::new(Path::new("."), introduction);
        let reaper = Rc::new(Reaper::default());
        let egress_port = options.egress_port;
        let processes = Processes::new(Rc::clone(&reaper), options);
        tokio::select! {
            // Serving and reaping go on while the processes are ended; only then is there nothing left to do.
            () = stop::when_told(&mut orders, &processes) => Ok(()),
            never = reaper.run(&mut deaths) => match never {},
            never = processes.tidy() => match never {},
            never = gate::run(egress_port) => match never {},
            never = serve::run(dialer, Rc::clone(&processes)) => match never {},
        }
    });
    // A long copy does not hold the sandbox's end up.
    runtime.shutdown_background();
    ended
}

/// One line for whoever reads the container's log. A log that cannot be written is no reason to die.
fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "casemate-guest: {line}");
}

fn print(text: fmt::Arguments<'_>) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(EX_OSERR),
    }
}
