//! `casemate admin image …`: what sandboxes are made of.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use casemate::admin::protocol::{Answer, Request};
use clap::Subcommand;
use serde_json::json;
use tokio::io::AsyncRead;

use super::Context;
use crate::failure::Failure;
use crate::output::{self, progress, unblocked};
use crate::screen::{or_absent, size};

/// What to do with images.
#[derive(Subcommand)]
pub enum Command {
    /// Load an OCI or docker archive and print the digest that templates name
    Import {
        /// The archive; - reads standard input
        #[arg(value_name = "FILE")]
        archive: PathBuf,
    },
    /// List the images that templates can name
    List,
}

impl Command {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Import { archive } => import(context, &archive).await,
            Self::List => list(context).await,
        }
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let Answer::Images { items } = context.admin().ask(Request::ImageList).await? else {
        return Err(Failure::mismatch());
    };
    if context.json {
        return output::json(&json!({"items": items}));
    }
    let rows: Vec<_> = items
        .into_iter()
        .map(|image| {
            let names = (!image.names.is_empty()).then(|| image.names.join(" "));
            vec![
                image.digest.to_string(),
                size(image.size_bytes),
                or_absent(names),
            ]
        })
        .collect();
    output::table(&["DIGEST", "SIZE", "NAMES"], &rows)
}

async fn import(context: &Context, path: &Path) -> Result<(), Failure> {
    let (archive, total_bytes) = open(path).await?;
    let is_watched = std::io::stderr().is_terminal();
    let loaded = context
        .admin()
        .import(archive, |bytes| {
            if is_watched {
                progress(&so_far(bytes, total_bytes));
            }
        })
        .await;
    if is_watched {
        progress("");
    }
    match loaded? {
        Answer::Image { digest } if context.json => output::json(&json!({"digest": digest})),
        Answer::Image { digest } => output::line(&digest.to_string()),
        _ => Err(Failure::mismatch()),
    }
}

/// The archive, and its size where that is known.
async fn open(path: &Path) -> Result<(Box<dyn AsyncRead + Unpin>, Option<u64>), Failure> {
    if path.as_os_str() == "-" {
        if std::io::stdin().is_terminal() {
            return Err(Failure::usage(
                "standard input is a terminal; name an archive's file, or pipe one in: podman save IMAGE | casemate admin image import -",
            ));
        }
        let stdin = unblocked(std::io::stdin());
        let stdin = stdin.map_err(|error| Failure::io("read standard input", &error))?;
        return Ok((Box::new(stdin), None));
    }
    let failed = |error| Failure::io(format_args!("read {}", path.display()), &error);
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let about = file.metadata().await.map_err(failed)?;
    if about.is_dir() {
        return Err(Failure::usage(format!(
            "{} is a directory; an image comes as one file: podman save --format oci-archive",
            path.display()
        )));
    }
    let total_bytes = about.is_file().then_some(about.len());
    Ok((Box::new(file), total_bytes))
}

fn so_far(bytes: u64, total_bytes: Option<u64>) -> String {
    match total_bytes {
        Some(total) if total > 0 => {
            let percent = u128::from(bytes) * 100 / u128::from(total);
            format!("{} of {} ({percent} %)", size(bytes), size(total))
        }
        _ => size(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_the_share_where_the_size_is_known() {
        assert_eq!(
            so_far(8 << 20, Some(32 << 20)),
            "8.0 MiB of 32.0 MiB (25 %)"
        );
        assert_eq!(so_far(8 << 20, None), "8.0 MiB");
        assert_eq!(so_far(0, Some(0)), "0 B");
    }
}
