//! One regular file of an archive: whole, or with holes (GNU's sparse files, old and 1.0).

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use casemate_link::refusal::Refusal;
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};
use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::error::Doing;
use super::tape::{BLOCK, bad, number, padding_of};
use super::unpack::{Said, State, split};

/// Pieces of one sparse file.
const MAX_PIECES: usize = 64 * 1024;

/// Digits of a number in a map.
const MAX_DIGITS: usize = 20;

/// A file that was created and is not whole yet. Dropped, it is removed.
pub(crate) struct Fresh {
    file: File,
    dir: Arc<OwnedFd>,
    name: OsString,
    mode: Mode,
    mtime: i64,
    /// Where the bytes go, and how long the file is in the end; absent: one after another.
    holes: Option<Holes>,
    is_whole: bool,
}

#[derive(Default)]
struct Holes {
    /// Offset and length.
    pieces: VecDeque<(u64, u64)>,
    /// Of the first piece, bytes that were written.
    done: u64,
    size: u64,
}

impl Fresh {
    pub(crate) fn new(file: File, dir: Arc<OwnedFd>, name: OsString, said: &Said) -> Self {
        Self {
            file,
            dir,
            name,
            // Who unpacks it need not be who made it: it runs as nobody but its user.
            mode: Mode::from_bits_truncate(said.mode & 0o777),
            mtime: said.mtime,
            holes: None,
            is_whole: false,
        }
    }

    /// Says where the bytes go.
    fn map(&mut self, pieces: VecDeque<(u64, u64)>, size: u64, stored: u64) -> Result<(), Refusal> {
        let (mut end, mut sum) = (0, 0_u64);
        for (offset, length) in &pieces {
            let after = offset.checked_add(*length).filter(|after| *after <= size);
            if *offset < end || after.is_none() {
                return Err(bad("the map of a sparse file makes no sense"));
            }
            end = after.unwrap_or(size);
            sum = sum.saturating_add(*length);
        }
        if sum != stored {
            return Err(bad("the map of a sparse file makes no sense"));
        }
        let done = 0;
        self.holes = Some(Holes { pieces, done, size });
        Ok(())
    }

    pub(crate) fn write(&mut self, mut data: &[u8]) -> Result<(), Refusal> {
        let Some(holes) = &mut self.holes else {
            return self.file.write_all(data).doing("writing a file");
        };
        while !data.is_empty() {
            let Some((offset, length)) = holes.pieces.front().copied() else {
                return Err(bad("the map of a sparse file makes no sense"));
            };
            let some = split(
                &mut data,
                usize::try_from(length - holes.done).unwrap_or(usize::MAX),
            );
            if some.is_empty() {
                holes.pieces.pop_front();
                holes.done = 0;
                continue;
            }
            self.file
                .seek(SeekFrom::Start(offset + holes.done))
                .doing("writing a file")?;
            self.file.write_all(some).doing("writing a file")?;
            holes.done += u64::try_from(some.len()).unwrap_or(0);
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<(), Refusal> {
        if let Some(holes) = &self.holes {
            self.file.set_len(holes.size).doing("writing a file")?;
        }
        let time = TimeSpec::new(self.mtime, 0);
        futimens(&self.file, &time, &time).doing("setting a time")?;
        fchmod(&self.file, self.mode).doing("setting a mode")?;
        self.is_whole = true;
        Ok(())
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.is_whole {
            // Half a file is worse than none.
            let _ = unlinkat(
                &*self.dir,
                self.name.as_os_str(),
                UnlinkatFlags::NoRemoveDir,
            );
        }
    }
}

/// The map of GNU's old sparse files: in the header, and in blocks after it.
pub(crate) struct SparseBlocks {
    file: Fresh,
    stored: u64,
    size: u64,
    pieces: VecDeque<(u64, u64)>,
    block: Vec<u8>,
}

impl SparseBlocks {
    pub(crate) fn begin(file: Fresh, stored: u64, header: &Header) -> Result<State, Refusal> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| bad("a sparse file of an unknown kind"))?;
        let size = gnu
            .real_size()
            .map_err(|_| bad("a sparse file without a size"))?;
        let mut map = Self {
            file,
            stored,
            size,
            pieces: VecDeque::new(),
            block: Vec::new(),
        };
        map.add(&gnu.sparse)?;
        map.go_on(gnu.is_extended())
    }

    pub(crate) fn push(mut self, data: &mut &[u8]) -> Result<State, Refusal> {
        self.block
            .extend_from_slice(split(data, BLOCK - self.block.len()));
        if self.block.len() < BLOCK {
            return Ok(State::Blocks(self));
        }
        let mut more = GnuExtSparseHeader::new();
        more.as_mut_bytes().copy_from_slice(&self.block);
        self.block.clear();
        self.add(more.sparse())?;
        self.go_on(more.is_extended())
    }

    fn add(&mut self, pieces: &[GnuSparseHeader]) -> Result<(), Refusal> {
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            let (Ok(offset), Ok(length)) = (piece.offset(), piece.length()) else {
                return Err(bad("the map of a sparse file is damaged"));
            };
            if self.pieces.len() >= MAX_PIECES {
                return Err(bad("the map of a sparse file is over its bound"));
            }
            self.pieces.push_back((offset, length));
        }
        Ok(())
    }

    fn go_on(mut self, is_extended: bool) -> Result<State, Refusal> {
        if is_extended {
            return Ok(State::Blocks(self));
        }
        self.file.map(self.pieces, self.size, self.stored)?;
        State::file(self.file, self.stored, padding_of(self.stored))
    }
}

/// The map of GNU's sparse files 1.0: numbers in lines before the bytes, filled up to a block.
pub(crate) struct SparseText {
    file: Fresh,
    /// Bytes of map and content that are to come.
    stored: u64,
    padding: u64,
    size: u64,
    digits: Vec<u8>,
    numbers: VecDeque<u64>,
    wanted: Option<usize>,
    read: u64,
}

impl SparseText {
    pub(crate) fn new(file: Fresh, stored: u64, size: u64) -> Self {
        Self {
            file,
            stored,
            padding: padding_of(stored),
            size,
            digits: Vec::new(),
            numbers: VecDeque::new(),
            wanted: None,
            read: 0,
        }
    }

    pub(crate) fn push(mut self, data: &mut &[u8]) -> Result<State, Refusal> {
        let damaged = || bad("the map of a sparse file is damaged");
        loop {
            let is_read = self
                .wanted
                .is_some_and(|wanted| self.numbers.len() >= wanted);
            if is_read && self.read.is_multiple_of(512) {
                let pairs: Vec<u64> = self.numbers.into();
                let pieces = pairs.chunks_exact(2).filter_map(|pair| match pair {
                    [offset, length] => Some((*offset, *length)),
                    _ => None,
                });
                self.file.map(pieces.collect(), self.size, self.stored)?;
                return State::file(self.file, self.stored, self.padding);
            }
            let [byte] = split(data, 1) else {
                return Ok(State::Text(self));
            };
            self.read += 1;
            self.stored = self.stored.checked_sub(1).ok_or_else(damaged)?;
            if is_read {
                continue;
            }
            if *byte != b'\n' {
                self.digits.push(*byte);
                if self.digits.len() > MAX_DIGITS {
                    return Err(damaged());
                }
                continue;
            }
            let said = number(&std::mem::take(&mut self.digits))?;
            if self.wanted.is_some() {
                self.numbers.push_back(said);
            } else {
                let pieces = usize::try_from(said)
                    .ok()
                    .filter(|pieces| *pieces <= MAX_PIECES);
                self.wanted = Some(2 * pieces.ok_or_else(damaged)?);
            }
        }
    }
}
