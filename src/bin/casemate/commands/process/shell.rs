//! `casemate shell`: a login shell at our terminal.

use clap::Args;

use super::super::Context;
use super::super::which::{Which, which};
use super::conversation::{Input, converse};
use super::show::Show;
use super::terminal::Raw;
use super::{Start, Surroundings};
use crate::failure::Failure;

/// Options of `casemate shell`.
#[derive(Args)]
#[command(after_long_help = "\
Every key goes to the shell, Ctrl-C, Ctrl-D and Ctrl-Z as well. Enter ~ . hangs up,
and the shell ends with the connection; ~~ at the beginning of a line is one ~.

casemate ends with the shell's exit code, and with 130 after hanging up.")]
pub struct Shell {
    /// Which session, by ID or name
    #[arg(value_name = "SESSION", value_parser = which)]
    session: Which,
    #[command(flatten)]
    surroundings: Surroundings,
}

impl Shell {
    /// The exit code.
    pub async fn execute(self, context: &Context) -> Result<u8, Failure> {
        if context.json {
            return Err(Failure::usage(
                "a shell is for people; `casemate exec --json` tells programs every event",
            ));
        }
        let client = context.client()?;
        let start = Start::within(self.surroundings)?.on_terminal();
        let show = Show::new(false)?;
        let id = self.session.find(&client).await?;
        let raw =
            Raw::begin("`casemate exec -i SESSION -- sh` takes commands from a file or pipe")?;
        converse(&client, id, &start, Input::Terminal(raw), show).await
    }
}
