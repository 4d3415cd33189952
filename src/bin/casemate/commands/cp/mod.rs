//! `casemate cp`: files and directories into a session and out of it.
//!
//! Nothing is held in memory but a piece at a time, whatever the size. What comes out of a session is
//! an enemy's: it gets no say in where it lands.

mod download;
mod fresh;
mod pack;
mod pieces;
mod place;
mod unpack;
mod upload;
mod wire;

use casemate::base::exit::Exit;
use casemate::base::id::SessionId;
use clap::Args;
use clap::builder::ValueParser;
use serde_json::json;
use tokio::sync::mpsc;

use self::place::{Place, place};
use super::Context;
use super::stop::Stop;
use crate::failure::Failure;
use crate::http::Client;
use crate::output::{self, Bar};

/// Options of `casemate cp`.
#[derive(Args)]
#[command(after_long_help = "\
One side is SESSION:PATH, with the session's ID or name; a PATH that does not begin
with / is below the user's home. The other side is a path of this machine, or - for
standard input or output. A path of this machine with a colon is written ./a:b.

Into an existing directory it goes under its own name; elsewhere it gets the name that
DST says. A SRC that ends in /. stands for what is in the directory.

Modes and times are kept, set-user-ID and its like are not. A file appears at once and
whole. What comes out of a session cannot leave DST: symbolic links that lead out of it
are left out, and casemate ends with 1 then.")]
pub struct Cp {
    /// What to copy: SESSION:PATH, a path, or -
    #[arg(value_name = "SRC", value_parser = ValueParser::from(place))]
    from: Place,
    /// Where to: SESSION:PATH, a path, or -
    #[arg(value_name = "DST", value_parser = ValueParser::from(place))]
    to: Place,
    /// Who acts inside the sandbox
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Show no progress; there is none without a terminal
    #[arg(short, long)]
    quiet: bool,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Files, directories and links.
    entries: u64,
    /// Of which so many were left out.
    left_out: u64,
}

/// The other side, and how it is gone about.
struct Copying<'a> {
    client: &'a Client,
    id: SessionId,
    user: Option<String>,
    bar: &'a dyn Fn(&str, Option<u64>) -> Bar,
    /// Every thread has one of it, up to its end.
    alive: mpsc::Sender<()>,
}

impl Cp {
    /// The exit code.
    pub async fn execute(self, context: &Context) -> Result<u8, Failure> {
        let (which, path, local, is_upload) = match (self.from, self.to) {
            (Place::Session(which, path), Place::Session(..)) => {
                return Err(Failure::usage(format!(
                    "both sides are in sessions ({which:?}:{path}); copy to this machine first, or pipe: casemate cp A:PATH - | casemate cp - B:PATH"
                )));
            }
            (Place::Session(which, path), local) => (which, path, local, false),
            (local, Place::Session(which, path)) => (which, path, local, true),
            _ => {
                return Err(Failure::usage(
                    "neither side is in a session; write one as SESSION:PATH",
                ));
            }
        };
        let client = context.client()?;
        let mut stop = Stop::listen()?;
        let is_shown = !self.quiet && !context.json;
        // What is shown at the moment: one thing at a time.
        let shown = std::cell::RefCell::new(None::<Bar>);
        let bar = |what: &str, total| {
            let bar = Bar::begin(what, total, is_shown);
            *shown.borrow_mut() = Some(bar.clone());
            bar
        };
        let (alive, mut all_ended) = mpsc::channel(1);
        let (client, bar) = (&client, &bar);
        let work = async move {
            let copying = Copying {
                client,
                id: which.find(client).await?,
                user: self.user,
                bar,
                alive,
            };
            if is_upload {
                copying.upload(&local, &path).await
            } else {
                copying.download(&path, &local).await
            }
        };
        let copied = tokio::select! {
            biased;
            exit = stop.asked() => Err(exit),
            copied = work => Ok(copied),
        };
        // What is half done is cleared away by the thread that did it, unless somebody insists.
        tokio::select! {
            biased;
            _ = stop.asked() => {}
            _ = all_ended.recv() => {}
        }
        let bar = shown.borrow_mut().take();
        if let Some(bar) = &bar {
            bar.end();
        }
        let copied = match copied {
            Ok(copied) => copied?,
            Err(exit) => return Ok(exit.code()),
        };
        let Copied { entries, left_out } = copied;
        if context.json {
            let bytes = bar.map_or(0, |bar| bar.bytes());
            output::json(&json!({"entries": entries, "left_out": left_out, "bytes": bytes}))?;
        }
        if left_out > 0 {
            return Err(Failure::new(
                Exit::Failed,
                format!("{left_out} of {entries} were left out"),
            ));
        }
        Ok(Exit::Ok.code())
    }
}
