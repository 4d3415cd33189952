//! Out of a session.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::http::Method;
use async_compression::tokio::bufread::ZstdDecoder;
use casemate::base::exit::Exit;
use futures_util::StreamExt;
use futures_util::stream::try_unfold;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::io::StreamReader;

use super::fresh::{Fresh, directory, settle};
use super::pieces::{PIECE_BYTES, aside, inward};
use super::place::{Place, own_name, split};
use super::unpack::unpack;
use super::wire::{FileView, Kind};
use super::{Copied, Copying};
use crate::failure::Failure;
use crate::http::Body;
use crate::output::Pipe;

/// One file.
const ONE: Copied = Copied {
    entries: 1,
    left_out: 0,
};

impl Copying<'_> {
    pub async fn download(&self, path: &str, local: &Place) -> Result<Copied, Failure> {
        let Some(file) = self.look(path, true).await? else {
            return Err(Failure::new(
                Exit::Failed,
                format!("there is no {path} in the session"),
            ));
        };
        match (file.kind, local) {
            (Kind::File, Place::Local(local)) => {
                let target = target(local, path, false)?;
                self.download_file(path, &file, &target).await
            }
            (Kind::File, _) => self.download_stream(path, &file).await,
            (Kind::Directory, Place::Local(local)) => {
                let target = target(local, path, true)?;
                self.download_directory(path, &file, &target).await
            }
            (Kind::Directory, _) => Err(Failure::usage(format!(
                "{path} is a directory; only a file goes to standard output"
            ))),
            (Kind::Symlink | Kind::Other, _) => Err(Failure::new(
                Exit::Failed,
                format!("{path} is neither a file nor a directory"),
            )),
        }
    }

    async fn open(&self, path: &str) -> Result<Body, Failure> {
        let call = self.on(Method::GET, "files", path, &[]);
        self.client.open(call, None).await
    }

    async fn download_stream(&self, path: &str, file: &FileView) -> Result<Copied, Failure> {
        let mut body = self.open(path).await?;
        let is_shown = !io::stdout().is_terminal();
        // On one terminal the bar would stand in the middle of what is written.
        let bar = is_shown.then(|| (self.bar)(path, Some(file.size_bytes)));
        let mut stdout = Pipe::stdout()?;
        while let Some(piece) = body.next().await? {
            if !stdout.write(&piece).await? {
                break;
            }
            if let Some(bar) = &bar {
                bar.add(piece.len());
            }
        }
        Ok(ONE)
    }

    async fn download_file(
        &self,
        path: &str,
        file: &FileView,
        target: &Path,
    ) -> Result<Copied, Failure> {
        let failed =
            |error: io::Error| Failure::io(format_args!("write {}", target.display()), &error);
        let mut body = self.open(path).await?;
        let bar = (self.bar)(path, Some(file.size_bytes));
        let mode = file.mode()?;
        let modified = since_1970(file);
        // A link of this machine is followed, as cp does; what is no file has nothing to be renamed to.
        let real = target.canonicalize();
        let real = real.unwrap_or_else(|_| target.to_owned());
        if std::fs::metadata(&real).is_ok_and(|about| !about.is_file()) {
            let sink = OpenOptions::new().write(true).open(&real).map_err(failed)?;
            let mut sink = tokio::fs::File::from_std(sink);
            while let Some(piece) = body.next().await? {
                sink.write_all(&piece).await.map_err(failed)?;
                bar.add(piece.len());
            }
            sink.flush().await.map_err(failed)?;
            return Ok(ONE);
        }
        let (parent, name) = split(&real)
            .ok_or_else(|| Failure::usage(format!("{} has no name", real.display())))?;
        let dir = Arc::new(directory(&parent).map_err(failed)?);
        let (source, mut reader) = inward();
        let counted = bar.clone();
        let writing = aside("write", &self.alive, move || {
            let mut file = Fresh::create(dir).map_err(|error| Failure::io("write", &error))?;
            io::copy(&mut reader, &mut file)
                .and_then(|_| file.finish(&name, mode, modified))
                .map_err(|error| {
                    Failure::io(format_args!("write {}", Path::new(&name).display()), &error)
                })
        })?;
        let mut lost = None;
        loop {
            match body.next().await {
                Ok(Some(piece)) => {
                    let count = piece.len();
                    if !source.send(piece).await {
                        break;
                    }
                    counted.add(count);
                }
                Ok(None) => {
                    source.end().await;
                    break;
                }
                Err(failure) => {
                    lost = Some(failure);
                    drop(source);
                    break;
                }
            }
        }
        let written = writing.await.map_err(|_| defect())?;
        match lost {
            Some(failure) => Err(failure),
            None => written.map(|()| ONE),
        }
    }

    async fn download_directory(
        &self,
        path: &str,
        file: &FileView,
        target: &Path,
    ) -> Result<Copied, Failure> {
        let zstd = [("compression", "zstd".to_owned())];
        let call = self.on(Method::GET, "archive", path, &zstd);
        let body = self.client.open(call, None).await?;
        let bar = (self.bar)(path, None);
        let is_new = match std::fs::create_dir(target) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => {
                return Err(Failure::io(
                    format_args!("make {}", target.display()),
                    &error,
                ));
            }
        };
        let stream = try_unfold(body, async |mut body| {
            let piece = body.next().await?;
            io::Result::Ok(piece.map(|piece| (piece, body)))
        });
        let mut tar = ZstdDecoder::new(StreamReader::new(stream.boxed()));
        let (source, reader) = inward();
        let (mode, modified, root) = (file.mode()?, since_1970(file), target.to_owned());
        let unpacking = aside("unpack", &self.alive, move || {
            let copied = unpack(reader, &root, bar)?;
            if is_new {
                let settled = directory(&root).and_then(|dir| settle(dir, mode, modified));
                settled.map_err(|error| {
                    Failure::io(format_args!("set the mode of {}", root.display()), &error)
                })?;
            }
            Ok(copied)
        })?;
        let mut lost = None;
        loop {
            let mut piece = bytes::BytesMut::with_capacity(PIECE_BYTES);
            match tar.read_buf(&mut piece).await {
                Ok(0) => {
                    source.end().await;
                    break;
                }
                Ok(_) => {
                    if !source.send(piece.freeze()).await {
                        break;
                    }
                }
                Err(error) => {
                    lost = Some(Failure::carried("read the archive", error));
                    drop(source);
                    break;
                }
            }
        }
        let unpacked = unpacking.await.map_err(|_| defect())?;
        match lost {
            Some(failure) => Err(failure),
            None => unpacked,
        }
    }
}

fn since_1970(file: &FileView) -> Duration {
    let millis = file.modified_at.as_millis();
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn defect() -> Failure {
    Failure::new(Exit::Software, "a thread of casemate's ended early")
}

/// Where it goes, as cp(1) has it: into an existing directory under its own name.
fn target(local: &Path, path: &str, is_directory: bool) -> Result<PathBuf, Failure> {
    let ends_in_slash = local.as_os_str().as_encoded_bytes().ends_with(b"/");
    let shown = local.display();
    match std::fs::metadata(local) {
        Ok(about) if about.is_dir() => Ok(match own_name(Path::new(path)) {
            Some(name) => local.join(name),
            None => local.to_owned(),
        }),
        Ok(_) if is_directory => Err(Failure::new(
            Exit::CantCreate,
            format!("{shown} is no directory, so that none can go there"),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if ends_in_slash && !is_directory {
                return Err(Failure::new(
                    Exit::CantCreate,
                    format!("there is no directory {shown}"),
                ));
            }
            Ok(local.to_owned())
        }
        Err(error) => Err(Failure::io(format_args!("look at {shown}"), &error)),
        Ok(_) => Ok(local.to_owned()),
    }
}
