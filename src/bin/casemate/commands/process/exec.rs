//! `casemate exec`: a program in a session, with its input and both outputs as they come.

use clap::Args;

use super::super::Context;
use super::super::which::{Which, which};
use super::conversation::{Input, converse};
use super::show::Show;
use super::terminal::Raw;
use super::{Program, Start};
use crate::failure::Failure;

/// Options of `casemate exec`.
#[derive(Args)]
#[command(after_long_help = "\
What the program writes comes as it is written, standard output and standard error
apart. It reads nothing, unless -i hands standard input on, up to its end.

The first Ctrl-C or SIGTERM goes to the program; the second gives up, and the program
ends with the connection. With -i and -t every key goes to the program; Enter ~ .
hangs up, and ~~ at the beginning of a line is one ~.

casemate ends with the program's exit code, with 128 + N when signal N ended it, and
with 124 when its time was over. With --json every event is a line of JSON.")]
pub struct Exec {
    /// Which session, by ID or name
    #[arg(value_name = "SESSION", value_parser = which)]
    session: Which,
    /// Hand standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    program: Program,
}

impl Exec {
    /// The exit code.
    pub async fn execute(self, context: &Context) -> Result<u8, Failure> {
        let client = context.client()?;
        let mut start = Start::of(self.program)?;
        if self.tty {
            start = start.on_terminal();
        }
        let show = Show::new(context.json)?;
        let id = self.session.find(&client).await?;
        let input = match (self.interactive, self.tty) {
            (true, true) => Input::Terminal(Raw::begin("leave -t out to hand it on as it is")?),
            (true, false) => Input::Stream,
            (false, true) => Input::Silence,
            (false, false) => Input::Nothing,
        };
        converse(&client, id, &start, input, show).await
    }
}
