//! `casemate admin backup` and `restore`.

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use casemate::admin::protocol::{Answer, Request};
use casemate::base::exit::Exit;
use clap::Args;

use super::Context;
use crate::failure::Failure;
use crate::output::{self, progress, tell};
use crate::restoring::Restoring;
use crate::screen::size;

/// Where the daemon's program is when it is not beside this one.
const CASEMATED: &str = "/usr/bin/casemated";
/// Runs a program as another user.
const SETPRIV: &str = "/usr/bin/setpriv";

/// Make a backup now and print where it is
#[derive(Args)]
pub struct Backup {
    /// Make it this file, which is not there yet, in a directory that casemated may write; without it, in backup.directory
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// With the images of templates, so that a restore needs no other source of them
    #[arg(long)]
    images: bool,
}

impl Backup {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let to = self.to.map(std::path::absolute).transpose();
        let to = to.map_err(|error| Failure::usage(format!("--to: {error}")))?;
        let is_watched = std::io::stderr().is_terminal();
        let request = Request::Backup {
            to,
            images: self.images,
        };
        let made = context
            .admin()
            .ask_long(request, |done, total| {
                if is_watched && total > 0 {
                    let percent = u128::from(done.min(total)) * 100 / u128::from(total);
                    progress(&format!("{percent} %"));
                }
            })
            .await;
        if is_watched {
            progress("");
        }
        let Answer::Backup(made) = made? else {
            return Err(Failure::mismatch());
        };
        if context.json {
            return output::json(&made);
        }
        output::line(&made.path.display().to_string())?;
        for image in &made.images_missing {
            tell(&format!(
                "podman does not have {image}, the image of a template; it is not in the backup"
            ));
        }
        let images = match made.images {
            0 => String::new(),
            1 => " with 1 image".to_owned(),
            count => format!(" with {count} images"),
        };
        let sealed = if made.encrypted { ", encrypted" } else { "" };
        tell(&format!(
            "made a backup of {}{images}{sealed}; keep a copy on another machine",
            size(made.size_bytes)
        ));
        Ok(())
    }
}

/// Make a state out of a backup, while casemated does not run
#[derive(Args)]
pub struct Restore {
    #[command(flatten)]
    wanted: Restoring,
    /// casemated's main settings file
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/casemate/casemate.yaml"
    )]
    config: PathBuf,
    /// The user that casemated runs as, for when root asks
    #[arg(long, value_name = "USER", default_value = "casemate")]
    user: String,
}

impl Restore {
    /// Becomes `casemated restore`: only a failure comes back.
    pub fn execute(&self) -> Failure {
        match self.start() {
            Ok(never) => match never {},
            Err(failure) => failure,
        }
    }

    fn start(&self) -> Result<std::convert::Infallible, Failure> {
        // All of it is handed on: what is new there is missing here until it is.
        let Restoring {
            file,
            identity,
            replace,
            templates,
            broken_record,
            dry_run,
        } = &self.wanted;
        let from = if file.as_os_str() == "-" {
            Stdio::inherit()
        } else {
            let failed = |error| Failure::io(format_args!("read {}", file.display()), &error);
            // Opened by whoever asks: casemated's user may not reach it.
            std::fs::File::open(file).map_err(failed)?.into()
        };
        let program = beside_us("casemated").unwrap_or_else(|| CASEMATED.into());
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new(SETPRIV);
            let user = &self.user;
            command.args(["--reuid", user, "--regid", user, "--init-groups", "--"]);
            command.arg(&program);
            command
        } else {
            Command::new(&program)
        };
        command
            .arg("restore")
            .arg("--config")
            .arg(&self.config)
            .arg("-")
            .env_clear()
            .current_dir("/")
            .stdin(from);
        if let Some(identity) = identity {
            let identity = std::path::absolute(identity)
                .map_err(|error| Failure::usage(format!("--identity: {error}")))?;
            command.arg("--identity").arg(identity);
        }
        for (is_wanted, option) in [
            (*replace, "--replace"),
            (*templates, "--templates"),
            (*broken_record, "--broken-record"),
            (*dry_run, "--dry-run"),
        ] {
            if is_wanted {
                command.arg(option);
            }
        }
        let error = command.exec();
        Err(Failure::new(
            Exit::Unavailable,
            format!(
                "cannot run {}: {error}",
                Path::new(command.get_program()).display()
            ),
        ))
    }
}

/// The program of this name in our own directory.
fn beside_us(name: &str) -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name(name);
    path.is_file().then_some(path)
}
