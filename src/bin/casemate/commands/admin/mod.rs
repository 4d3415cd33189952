//! `casemate admin …`: what operators do, over the admin socket.

mod backup;
mod image;
mod key;
mod session;
mod status;

use casemate::admin::protocol::{Answer, Request};
use casemate::base::exit::Exit;
use clap::Subcommand;

use super::Context;
use crate::failure::Failure;
use crate::output::{self, tell};

/// What an operator can do.
#[derive(Subcommand)]
pub enum Command {
    /// Show how casemated is; ends with 69 when it cannot do its work
    Status,
    /// Make, list and revoke API keys of all teams
    #[command(subcommand)]
    Key(key::Command),
    /// Look at and end sessions of all teams
    #[command(subcommand)]
    Session(session::Command),
    /// Load and list images
    #[command(subcommand)]
    Image(image::Command),
    /// Make casemated read its settings again
    Reload,
    /// Make a backup now and print where it is
    Backup(backup::Backup),
    /// Put all that is sealed under another vault key, while casemated runs
    RotateKey,
    /// Make a state out of a backup, while casemated does not run
    Restore(Box<backup::Restore>),
}

impl Command {
    /// The exit code.
    pub async fn execute(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Self::Status => return status::execute(context).await,
            Self::Key(command) => command.execute(context).await?,
            Self::Session(command) => command.execute(context).await?,
            Self::Image(command) => command.execute(context).await?,
            Self::Backup(backup) => backup.execute(context).await?,
            Self::Restore(restore) => return Err(restore.execute()),
            Self::RotateKey => rotate_key(context).await?,
            Self::Reload => {
                done(context, Request::Reload).await?;
                if !context.json {
                    tell("casemated has read its settings again");
                }
            }
        }
        Ok(Exit::Ok.code())
    }
}

async fn rotate_key(context: &Context) -> Result<(), Failure> {
    match context.admin().ask(Request::RotateKey).await? {
        Answer::Rotated(view) => {
            if context.json {
                output::json(&view)?;
            } else {
                output::line(&view.generation.to_string())?;
            }
            tell(&format!(
                "{} things are under the vault's new key, number {}, which is {}: keep a copy of it apart from the backups, and make a backup; earlier ones need the key of then",
                view.sealed, view.generation, view.origin
            ));
            Ok(())
        }
        _ => Err(Failure::mismatch()),
    }
}

/// Asks for what has no result; an empty object says so to programs.
async fn done(context: &Context, request: Request) -> Result<(), Failure> {
    match context.admin().ask(request).await? {
        Answer::Done if context.json => output::json(&serde_json::json!({})),
        Answer::Done => Ok(()),
        _ => Err(Failure::mismatch()),
    }
}
