//! Into a session.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::path::Path;

use ::http::Method;
use async_compression::tokio::bufread::ZstdEncoder;
use casemate::base::exit::Exit;
use futures_util::stream::unfold;
use futures_util::{StreamExt, TryStreamExt};
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

use super::fresh::temporary_name;
use super::pack::pack;
use super::pieces::{PIECE_BYTES, aside, outward};
use super::place::{Place, own_name, split};
use super::wire::Kind;
use super::{Copied, Copying};
use crate::failure::Failure;
use crate::http::Outgoing;
use crate::output::unblocked;

impl Copying<'_> {
    pub async fn upload(&self, local: &Place, path: &str) -> Result<Copied, Failure> {
        let Place::Local(local) = local else {
            if io::stdin().is_terminal() {
                return Err(Failure::usage(
                    "standard input is a terminal; name a file, or pipe one in",
                ));
            }
            let stdin = unblocked(io::stdin());
            let stdin = stdin.map_err(|error| Failure::io("read standard input", &error))?;
            return self.upload_stream(stdin, None, path).await;
        };
        let failed = |error| Failure::io(format_args!("read {}", local.display()), &error);
        let about = std::fs::metadata(local).map_err(failed)?;
        if about.is_dir() {
            return self.upload_directory(local, path).await;
        }
        if !about.is_file() {
            // A pipe or a device: as many bytes as come.
            let file = tokio::fs::File::open(local).await.map_err(failed)?;
            return self.upload_stream(file, own_name(local), path).await;
        }
        self.upload_file(local, path).await
    }

    /// Writes what comes: the route is atomic, but takes no time of the last change.
    async fn upload_stream(
        &self,
        from: impl AsyncRead + Send + 'static,
        name: Option<&OsStr>,
        path: &str,
    ) -> Result<Copied, Failure> {
        let path = self.file_target(path, name).await?;
        let bar = (self.bar)(&path, None);
        let counted = bar.clone();
        let pieces = ReaderStream::with_capacity(from, PIECE_BYTES);
        let outgoing = Outgoing {
            pieces: pieces
                .inspect_ok(move |piece| counted.add(piece.len()))
                .boxed(),
            length_bytes: None,
        };
        let call = self.on(Method::PUT, "files", &path, &[]);
        self.client.send(call, outgoing).await?;
        Ok(Copied {
            entries: 1,
            left_out: 0,
        })
    }

    async fn upload_file(&self, local: &Path, path: &str) -> Result<Copied, Failure> {
        let path = self.file_target(path, own_name(local)).await?;
        let is_link = self
            .look(&path, false)
            .await?
            .is_some_and(|file| file.kind == Kind::Symlink);
        let Some((parent, _)) = split(Path::new(&path)).filter(|_| !is_link) else {
            // What a link leads to is written, not the link, as cp does.
            let failed = |error| Failure::io(format_args!("read {}", local.display()), &error);
            let file = tokio::fs::File::open(local).await.map_err(failed)?;
            return self.upload_stream(file, None, &path).await;
        };
        // An archive keeps mode and time, but writes a file in place: another name makes it whole at
        // once.
        let temporary = temporary_name().map_err(|error| Failure::io("make a name", &error))?;
        let below = text(&parent.join(&temporary))?;
        let copied = self
            .upload_archive(local, Some(&temporary), &text(&parent)?)
            .await;
        let placed = match copied {
            Ok(copied) => self.rename(&below, &path).await.map(|()| copied),
            Err(failure) => Err(failure),
        };
        if placed.is_err() {
            // What may be left of it; why it failed is already known.
            let _ = self.remove(&below).await;
        }
        placed
    }

    async fn upload_directory(&self, local: &Path, path: &str) -> Result<Copied, Failure> {
        let found = self.look(path, true).await?.map(|file| file.kind);
        let name = own_name(local);
        match (found, name) {
            (Some(Kind::Directory), name) => self.upload_archive(local, name, path).await,
            (Some(_), _) => Err(Failure::new(
                Exit::Failed,
                format!("{path} in the session is no directory, so that none can go there"),
            )),
            (None, _) => match split(Path::new(path)) {
                Some((parent, name)) => {
                    let parent = text(&parent)?;
                    self.upload_archive(local, Some(&name), &parent).await
                }
                None => self.upload_archive(local, None, path).await,
            },
        }
    }

    /// Where a file goes, as cp(1) has it: into an existing directory under its own name.
    async fn file_target(&self, path: &str, name: Option<&OsStr>) -> Result<String, Failure> {
        let found = self.look(path, true).await?.map(|file| file.kind);
        match (found, name) {
            (Some(Kind::Directory), Some(name)) => text(&Path::new(path).join(name)),
            (Some(Kind::Directory), None) => Err(Failure::usage(format!(
                "{path} in the session is a directory; say what the file is called"
            ))),
            (None, _) if path.ends_with('/') => Err(Failure::new(
                Exit::Failed,
                format!("there is no directory {path} in the session"),
            )),
            _ => Ok(path.to_owned()),
        }
    }

    /// Sends what is at a path of this machine, under this name in a directory of the session.
    async fn upload_archive(
        &self,
        local: &Path,
        name: Option<&OsStr>,
        directory: &str,
    ) -> Result<Copied, Failure> {
        let (writer, pieces) = outward();
        let total = std::fs::metadata(local).ok();
        let total = total.filter(std::fs::Metadata::is_file);
        let bar = (self.bar)(&local.display().to_string(), total.map(|about| about.len()));
        let (from, name) = (local.to_owned(), name.map(OsStr::to_owned));
        let packing = aside("pack", &self.alive, move || {
            pack(&from, name.as_deref(), writer, bar)
        })?;
        let tar = unfold(pieces, async |mut pieces| {
            let piece = pieces.recv().await?;
            Some((piece, pieces))
        });
        let zstd = ZstdEncoder::new(StreamReader::new(tar.boxed()));
        let outgoing = Outgoing {
            pieces: ReaderStream::with_capacity(zstd, PIECE_BYTES).boxed(),
            length_bytes: None,
        };
        let zstd = [("compression", "zstd".to_owned())];
        let call = self.on(Method::PUT, "archive", directory, &zstd);
        let sent = self.client.send(call, outgoing).await;
        // The pieces are gone by now, so that the thread ends.
        let packed = packing
            .await
            .map_err(|_| Failure::new(Exit::Software, "a thread of casemate's ended early"))?;
        match (sent, packed) {
            (Ok(_), packed) => packed,
            // A file that cannot be read is why the rest was cut off; a line that was cut off is not.
            (Err(_), Err(failure))
                if failure.exit == Exit::IoError && !failure.message.starts_with("cannot send") =>
            {
                Err(failure)
            }
            (Err(refused), _) => Err(refused),
        }
    }
}

/// A path in a session, which the API takes as text.
fn text(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().map(ToOwned::to_owned);
    text.ok_or_else(|| {
        Failure::usage(format!(
            "the name of {} is not UTF-8; give it another one",
            path.display()
        ))
    })
}
