//! The file: a tar of the manifest and the parts that it lists in their order, compressed with zstd, sealed where there is a
//! recipient. `tar` and `zstd` show nothing of themselves outside.
//!
//! Reading trusts nothing: names, lengths, sums and the order are the manifest's or it is refused, and nothing is written but
//! to the names that we know.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use super::BackupError;
use super::manifest::{self, Manifest, Part};
use super::seal::{self, Key};
use crate::model::image::ImageDigest;

/// zstd's own default: some hundred MB/s, and three quarters less of a typical database.
const LEVEL: i32 = 3;

/// How much is carried at once.
const PIECE_BYTES: usize = 256 << 10;

/// How a zstd frame begins (RFC 8878, 3.1.1).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Where the bytes of a part come from.
pub(super) enum Content {
    /// A file that nobody changes.
    File(PathBuf),
    /// Small, and at hand.
    Bytes(Vec<u8>),
}

/// Asked with each piece whether to go on.
pub(super) type Ask<'a> = &'a mut dyn FnMut(u64) -> bool;

/// A part as the manifest lists it.
pub(super) fn part(name: &str, content: &Content, ask: Ask<'_>) -> Result<Part, BackupError> {
    let mut sum = Context::new(&SHA256);
    let size_bytes = match content {
        Content::Bytes(bytes) => {
            sum.update(bytes);
            bytes.len() as u64
        }
        Content::File(path) => {
            let mut file = File::open(path).map_err(BackupError::file("read", path))?;
            summed(&mut file, &mut sum, ask).map_err(BackupError::file("read", path))?
        }
    };
    Ok(Part {
        name: name.to_owned(),
        size_bytes,
        sha256: hex(sum),
    })
}

/// Writes a backup to a file that is not there yet, and puts it onto the disk.
pub(super) fn write(
    to: &Path,
    manifest: &Manifest,
    contents: &[(String, Content)],
    recipient: Option<&str>,
    ask: Ask<'_>,
) -> Result<u64, BackupError> {
    let failed = BackupError::file("write", to);
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(&failed)?;
    let packed = seal::sealed(file, recipient, |sink| {
        let mut zstd = zstd::Encoder::new(sink, LEVEL)?;
        zstd.include_checksum(true)?;
        let mut tar = tar::Builder::new(zstd);
        let head = serde_json::to_vec_pretty(manifest)?;
        if head.len() as u64 > manifest::MAX_BYTES {
            return Err(io::Error::other("its manifest would be too long"));
        }
        entry(
            &mut tar,
            manifest::NAME,
            head.len() as u64,
            manifest,
            &head[..],
        )?;
        for (part, (_, content)) in manifest.parts.iter().zip(contents) {
            match content {
                Content::Bytes(bytes) => {
                    entry(&mut tar, &part.name, part.size_bytes, manifest, &bytes[..])?;
                }
                Content::File(path) => {
                    let asking = Asking {
                        inner: File::open(path)?,
                        ask,
                    };
                    entry(&mut tar, &part.name, part.size_bytes, manifest, asking)?;
                }
            }
        }
        tar.into_inner()?.finish()?;
        Ok(())
    });
    let file = packed.map_err(&failed)?;
    file.sync_all().map_err(&failed)?;
    Ok(file.metadata().map_err(&failed)?.len())
}

fn entry<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    size_bytes: u64,
    manifest: &Manifest,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o600);
    header.set_size(size_bytes);
    header.set_mtime(u64::try_from(manifest.made_at.as_millis() / 1000).unwrap_or(0));
    tar.append_data(&mut header, name, content)
}

/// Whether an archive of an image is of this one: of an OCI archive the configuration is a blob, of docker's a document, and
/// either is called by its digest.
pub(super) fn holds_image(path: &Path, image: ImageDigest) -> io::Result<bool> {
    let hex = image.hex();
    let names = [format!("blobs/sha256/{hex}"), format!("{hex}.json")];
    let mut tar = tar::Archive::new(File::open(path)?);
    for entry in tar.entries_with_seek()? {
        let name = entry?.path_bytes().into_owned();
        if names.iter().any(|wanted| wanted.as_bytes() == name) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A reader that stops when it is told to.
struct Asking<'a, R> {
    inner: R,
    ask: Ask<'a>,
}

impl<R: Read> Read for Asking<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        if (self.ask)(length as u64) {
            Ok(length)
        } else {
            Err(given_up())
        }
    }
}

fn given_up() -> io::Error {
    io::Error::other("given up")
}

/// Reads the manifest of a backup, and asks whether to go on with it; then unpacks the parts into a directory that nobody else
/// knows, and makes sure that each is what the manifest says.
pub(super) fn read(
    from: impl Read + 'static,
    key: Option<&Key>,
    into: &Path,
    agree: &mut dyn FnMut(&Manifest) -> Result<(), BackupError>,
) -> Result<Manifest, BackupError> {
    let mut plain = io::BufReader::with_capacity(64 << 10, seal::opened(from, key)?);
    let begins = io::BufRead::fill_buf(&mut plain).map_err(|error| broken(&error))?;
    if !begins.starts_with(&ZSTD) {
        return Err(BackupError::Foreign("it does not begin as one".to_owned()));
    }
    let mut zstd = zstd::Decoder::with_buffer(plain).map_err(|error| broken(&error))?;
    // Of what we write none needs more (zstd's level 3: 2 MiB); a stranger's could ask for gigabytes.
    zstd.window_log_max(24).map_err(|error| broken(&error))?;
    let mut tar = tar::Archive::new(zstd);
    let manifest = {
        let mut entries = tar.entries().map_err(|error| broken(&error))?;
        let first = entries
            .next()
            .ok_or_else(|| BackupError::Foreign("it is empty".to_owned()))?;
        let mut first = first.map_err(|error| broken(&error))?;
        if name_of(&first).as_deref() != Some(manifest::NAME) {
            return Err(BackupError::Foreign("it has no manifest".to_owned()));
        }
        let mut bytes = Vec::new();
        let read = (&mut first)
            .take(manifest::MAX_BYTES + 1)
            .read_to_end(&mut bytes);
        read.map_err(|error| broken(&error))?;
        if bytes.len() as u64 > manifest::MAX_BYTES {
            return Err(BackupError::Foreign("its manifest is too long".to_owned()));
        }
        let manifest = Manifest::read(&bytes)?;
        agree(&manifest)?;
        for part in &manifest.parts {
            let missing = || BackupError::Damaged(format!("{} is missing", part.name));
            let next = entries.next().ok_or_else(missing)?;
            let mut next = next.map_err(|error| broken(&error))?;
            if name_of(&next).as_deref() != Some(&part.name) {
                return Err(missing());
            }
            unpack(&mut next, part, into)?;
        }
        if let Some(more) = entries.next() {
            more.map_err(|error| broken(&error))?;
            return Err(BackupError::Damaged(
                "it holds more than its manifest says".to_owned(),
            ));
        }
        manifest
    };
    // To its very end: the sums of zstd and of the seal are there.
    let mut rest = tar.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(|error| broken(&error))?;
    let mut left = rest.finish();
    let trailing = io::copy(&mut left, &mut io::sink()).map_err(|error| broken(&error))?;
    if trailing > 0 {
        return Err(BackupError::Damaged("something follows its end".to_owned()));
    }
    Ok(manifest)
}

fn broken(error: &io::Error) -> BackupError {
    BackupError::Damaged(error.to_string())
}

/// The name of a regular file, as it stands there.
fn name_of<R: Read>(entry: &tar::Entry<'_, R>) -> Option<String> {
    let is_file = entry.header().entry_type() == tar::EntryType::Regular;
    let name = String::from_utf8(entry.path_bytes().into_owned()).ok()?;
    is_file.then_some(name)
}

fn unpack(from: &mut impl Read, part: &Part, into: &Path) -> Result<(), BackupError> {
    let to = into.join(&part.name);
    let failed = BackupError::file("write", &to);
    if let Some(directory) = to.parent() {
        std::fs::create_dir_all(directory).map_err(&failed)?;
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&to)
        .map_err(&failed)?;
    let mut sum = Context::new(&SHA256);
    let (mut length, mut piece) = (0_u64, vec![0; PIECE_BYTES]);
    loop {
        let read = from.read(&mut piece).map_err(|error| broken(&error))?;
        let bytes = piece.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        length += bytes.len() as u64;
        if length > part.size_bytes {
            break;
        }
        sum.update(bytes);
        file.write_all(bytes).map_err(&failed)?;
    }
    if length != part.size_bytes {
        return Err(BackupError::Damaged(format!(
            "{} has another length than its manifest says",
            part.name
        )));
    }
    if hex(sum) != part.sha256 {
        return Err(BackupError::Damaged(format!(
            "{} does not come to the sum that its manifest says",
            part.name
        )));
    }
    file.sync_all().map_err(&failed)
}

fn summed(from: &mut impl Read, sum: &mut Context, ask: Ask<'_>) -> io::Result<u64> {
    let (mut length, mut piece) = (0_u64, vec![0; PIECE_BYTES]);
    loop {
        let read = from.read(&mut piece)?;
        let bytes = piece.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(length);
        }
        length += bytes.len() as u64;
        sum.update(bytes);
        if !ask(bytes.len() as u64) {
            return Err(given_up());
        }
    }
}

fn hex(sum: Context) -> String {
    use std::fmt::Write;
    sum.finish()
        .as_ref()
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
