//! Archive files: a stretch of the record as an export has it, its checkpoint at its end, compressed with zstd. `zstd` shows
//! nothing of itself outside.
//!
//! A file has a temporary name until it was read back from the disk and verified, and gets its own by a link, which writes over
//! nothing: what has a file's name is whole. A file of the same stretch that is there already, because somebody was cut short
//! after that, is taken as it is when it verifies.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::retention::ArchiveError;
use crate::base::clock::Timestamp;
use crate::host::disk;
use crate::model::record::{Digest, Summing, anchor};
use crate::model::verify::{CheckSignature, Verifier};
use crate::store::Store;

/// zstd's own default: some hundred MB/s.
const LEVEL: i32 = 3;

/// The window of what we write is 2 MiB; a stranger's could ask for gigabytes.
const MAX_WINDOW_LOG: u32 = 24;

/// Longest line; no record comes near it.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// How a file's name begins and ends; between them stand its first and its last position.
const PREFIX: &str = "audit-";
const END: &str = ".jsonl.zst";
/// The end of what is no archive yet.
const PARTIAL: &str = ".partial";

/// Files of one name that are looked at: there is more than one only when a restored state goes over the same positions again.
const MAX_OF_ONE_NAME: u32 = 100;

/// What is to be in a file.
#[derive(Clone, Debug)]
pub(super) struct Stretch {
    /// What its first record follows.
    pub after: (i64, Digest),
    /// Its last record.
    pub last: i64,
    /// The line of the checkpoint of its last record.
    pub checkpoint: String,
}

/// A file that is whole, verified and on the disk.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub file: String,
    pub size_bytes: u64,
    pub sha256: Digest,
    pub from: Timestamp,
    pub to: Timestamp,
}

impl Stretch {
    pub(super) const fn first(&self) -> i64 {
        self.after.0 + 1
    }

    /// Its file's name; those of a restored state's other course of events have a number.
    fn name(&self, number: u32) -> String {
        let (first, last) = (self.first(), self.last);
        match number {
            0 => format!("{PREFIX}{first:012}-{last:012}{END}"),
            number => format!("{PREFIX}{first:012}-{last:012}.{number}{END}"),
        }
    }
}

/// Where the files end that begin with this record.
pub(super) fn ends_of(directory: &Path, first: i64) -> Vec<i64> {
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut ends: Vec<i64> = names
        .filter_map(|entry| {
            let name = entry.file_name();
            let positions = name.to_str()?.strip_prefix(PREFIX)?.strip_suffix(END)?;
            let (begin, rest) = positions.split_once('-')?;
            let end = rest.split_once('.').map_or(rest, |(end, _)| end);
            (begin.parse() == Ok(first)).then(|| end.parse().ok())?
        })
        .collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

/// Removes what somebody who was cut short left half made.
pub(super) fn forget_unfinished(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PREFIX) && name.ends_with(PARTIAL) {
            // What cannot be removed is in nobody's way but its own.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Whether there is a file of this stretch already. Blocks.
pub(super) fn is_there(
    directory: &Path,
    stretch: &Stretch,
    check: CheckSignature<'_>,
    go_on: &dyn Fn() -> bool,
) -> bool {
    (0..MAX_OF_ONE_NAME)
        .map(|number| directory.join(stretch.name(number)))
        .take_while(|path| std::fs::symlink_metadata(path).is_ok())
        .any(|path| verified(&path, stretch, check, go_on).is_ok())
}

/// Makes the file of a stretch, or takes the one that is there. Blocks. `go_on` is asked with each line.
pub(super) fn make(
    store: &Store,
    directory: &Path,
    stretch: &Stretch,
    check: CheckSignature<'_>,
    go_on: &dyn Fn() -> bool,
) -> Result<Written, ArchiveError> {
    for number in 0..MAX_OF_ONE_NAME {
        let name = stretch.name(number);
        let path = directory.join(&name);
        if std::fs::symlink_metadata(&path).is_ok() {
            match verified(&path, stretch, check, go_on) {
                Ok(found) => {
                    // Whoever was cut short may not have come to this.
                    disk::sync_directory(directory)
                        .map_err(ArchiveError::file("sync", directory))?;
                    return Ok(found.named(name));
                }
                Err(ArchiveError::Stopping) => return Err(ArchiveError::Stopping),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error = %crate::base::chain::Chain(&error), "this is no archive of the record as it is; it is left alone");
                    continue;
                }
            }
        }
        let partial = directory.join(format!("{name}{PARTIAL}"));
        let made = written(store, &partial, stretch, go_on)
            .and_then(|()| verified(&partial, stretch, check, go_on))
            .and_then(|found| {
                std::fs::hard_link(&partial, &path).map_err(ArchiveError::file("name", &path))?;
                disk::sync_directory(directory).map_err(ArchiveError::file("sync", directory))?;
                Ok(found.named(name))
            });
        // With its name it needs no other; without one it is nothing.
        let _ = std::fs::remove_file(&partial);
        return made;
    }
    Err(ArchiveError::NotWhole {
        path: directory.join(stretch.name(0)),
        what: "too many files of this name are no archives of this record; move them away"
            .to_owned(),
    })
}

fn written(
    store: &Store,
    path: &Path,
    stretch: &Stretch,
    go_on: &dyn Fn() -> bool,
) -> Result<(), ArchiveError> {
    let failed = ArchiveError::file("write", path);
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(&failed)?;
    let mut zstd = zstd::Encoder::new(file, LEVEL).map_err(&failed)?;
    zstd.include_checksum(true).map_err(&failed)?;
    let (seq, digest) = stretch.after;
    if seq > 0 {
        writeln!(zstd, "{}", anchor(seq, &digest)).map_err(&failed)?;
    }
    let mut gave_up = false;
    let read = store.read_lines((stretch.first(), stretch.last), &mut |line| {
        gave_up = !go_on();
        if gave_up {
            return Err(io::Error::other("given up"));
        }
        zstd.write_all(line.as_bytes())?;
        zstd.write_all(b"\n")
    });
    let all = read.map_err(ArchiveError::Store)?;
    if gave_up {
        return Err(ArchiveError::Stopping);
    }
    all.map_err(&failed)?;
    writeln!(zstd, "{}", stretch.checkpoint).map_err(&failed)?;
    let file = zstd.finish().map_err(&failed)?;
    file.sync_all().map_err(&failed)
}

/// What was found in a file.
struct Found {
    size_bytes: u64,
    sha256: Digest,
    from: Timestamp,
    to: Timestamp,
}

impl Found {
    fn named(self, file: String) -> Written {
        Written {
            file,
            size_bytes: self.size_bytes,
            sha256: self.sha256,
            from: self.from,
            to: self.to,
        }
    }
}

/// Reads a file back: it is the stretch, whole, chained and signed, and nothing else.
fn verified(
    path: &Path,
    stretch: &Stretch,
    check: CheckSignature<'_>,
    go_on: &dyn Fn() -> bool,
) -> Result<Found, ArchiveError> {
    let failed = ArchiveError::file("read back", path);
    let bad = |what: String| ArchiveError::NotWhole {
        path: PathBuf::from(path),
        what,
    };
    let mut summed = Summed {
        inner: File::open(path).map_err(&failed)?,
        sum: Summing::default(),
        length: 0,
    };
    let mut from_file = BufReader::with_capacity(256 << 10, &mut summed);
    let mut zstd = zstd::Decoder::with_buffer(&mut from_file).map_err(&failed)?;
    zstd.window_log_max(MAX_WINDOW_LOG).map_err(&failed)?;
    let mut lines = BufReader::new(zstd);
    let mut verifier = Verifier::after(check, stretch.after.0, stretch.after.1);
    let wanted = (stretch.after.0 > 0).then(|| anchor(stretch.after.0, &stretch.after.1));
    let (mut line, mut last, mut times) = (String::new(), String::new(), None);
    let mut is_first = true;
    loop {
        if !go_on() {
            return Err(ArchiveError::Stopping);
        }
        line.clear();
        let read = (&mut lines).take(MAX_LINE_BYTES).read_line(&mut line);
        if read.map_err(|error| bad(error.to_string()))? == 0 {
            break;
        }
        let Some(text) = line.strip_suffix('\n') else {
            return Err(bad("its end is missing".to_owned()));
        };
        if is_first && wanted.as_ref().is_some_and(|wanted| wanted != text) {
            return Err(bad("it begins elsewhere".to_owned()));
        }
        is_first = false;
        verifier
            .push(text)
            .map_err(|finding| bad(finding.to_string()))?;
        if let Ok(Made { at }) = serde_json::from_str(text) {
            let (from, _) = times.unwrap_or((at, at));
            times = Some((from, at));
        }
        std::mem::swap(&mut line, &mut last);
    }
    let right = verifier
        .finish_file()
        .map_err(|finding| bad(finding.to_string()))?;
    let Some((from, to)) = times else {
        return Err(bad("it holds no record".to_owned()));
    };
    if right.seq != stretch.last || last.trim_end() != stretch.checkpoint {
        return Err(bad("it ends elsewhere".to_owned()));
    }
    drop(lines);
    drop(from_file);
    Ok(Found {
        size_bytes: summed.length,
        sha256: summed.sum.finish(),
        from,
        to,
    })
}

/// Of a record's line, when it was made.
#[derive(Deserialize)]
struct Made {
    at: Timestamp,
}

/// Sums what is read.
struct Summed {
    inner: File,
    sum: Summing,
    length: u64,
}

impl Read for Summed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.sum.update(buffer.get(..length).unwrap_or_default());
        self.length += length as u64;
        Ok(length)
    }
}
