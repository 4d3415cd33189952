//! Reading a file. While one part is on its way, a thread reads the next.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use casemate_link::file::{FileEntry, FileKind, ReadRange, ReadRequest, Taken};
use casemate_link::limits::{MAX_FRAME_PAYLOAD_BYTES, MIN_CHANNEL_BYTES};
use casemate_link::refusal::{Refusal, code};
use nix::fcntl::{AT_FDCWD, AtFlags, openat};
use nix::sys::stat::{Mode, fstat, fstatat};
use std::os::fd::AsFd;

use super::actor::{Actor, begin_open, finished};
use super::channel::Offered;
use super::entry;
use super::error::{Doing, wrong_kind};
use super::place::READ_FILE;
use crate::child::refusal;
use crate::processes::Processes;
use crate::sys::Attributed;
use crate::transfer::{Output, Transfer};
use crate::users::Names;

/// Bytes that are read at once: long enough that waking a thread costs little beside it.
pub(crate) const PART_BYTES: usize = 256 * 1024;

/// Buffers of one transfer: one is filled, one is sent, one waits in HTTP/2. They are used again and again, because in a
/// sandbox memory that was never touched is dear.
const BUFFERS: usize = 3;

/// Answers a [`ReadRequest`].
pub(crate) async fn read(
    processes: Rc<Processes>,
    request: ReadRequest,
    transfer: Transfer,
    offered: Offered,
) -> Result<(), Refusal> {
    let actor = Actor::admit(&processes, &request.place)?;
    let path = actor.path(&request.place.path);
    let job = actor.clone();
    let min_bytes = if offered.is_none() {
        u64::MAX
    } else {
        MIN_CHANNEL_BYTES
    };
    let (entry, mut reading, mut part) = actor
        .run(move || {
            let (entry, mut reading) = Reading::open(&path, request.range, job.names())?;
            let is_large = reading.left >= min_bytes;
            let part = if is_large {
                None
            } else {
                reading.next(None, PART_BYTES)?
            };
            Ok((entry, reading, part))
        })
        .await?;
    let output = transfer.output;
    if part.is_none() && reading.left > 0 {
        if let Some(channel) = offered.open().await {
            if output.head(&taken(entry, true)).await && channel.send(reading, &output).await? {
                output.end().await;
            }
            return Ok(());
        }
        (reading, part) = finished(begin_open(move || {
            let part = reading.next(None, PART_BYTES)?;
            Ok((reading, part))
        }))
        .await?;
    }
    if !output.head(&taken(entry, false)).await {
        return Ok(());
    }
    let mut buffers = Buffers::default();
    while let Some(data) = part.take() {
        if reading.left == 0 {
            if !send(&output, &data).await {
                return Ok(());
            }
            break;
        }
        let spare = buffers.take();
        let next = begin_open(move || {
            let part = reading.next(spare, PART_BYTES)?;
            Ok((reading, part))
        });
        let sent = send(&output, &data).await;
        buffers.put(data);
        (reading, part) = finished(next).await?;
        if !sent {
            return Ok(());
        }
    }
    output.end().await;
    processes.rest();
    Ok(())
}

const fn taken(answer: FileEntry, on_channel: bool) -> Taken<FileEntry> {
    Taken { answer, on_channel }
}

/// A part of a file: the buffer, of which the first so many bytes count.
pub(crate) struct Part {
    pub(crate) buffer: Bytes,
    pub(crate) length: usize,
}

impl Part {
    pub(crate) fn bytes(&self) -> Bytes {
        self.buffer.slice(..self.length.min(self.buffer.len()))
    }
}

/// Sends a part in frames; false when nobody listens any more.
pub(crate) async fn send(output: &Output, part: &Part) -> bool {
    let mut rest = part.bytes();
    while !rest.is_empty() {
        let frame = rest.split_to(rest.len().min(MAX_FRAME_PAYLOAD_BYTES));
        if !output.data(frame).await {
            return false;
        }
    }
    true
}

/// The buffers of one transfer that are on their way.
#[derive(Default)]
pub(crate) struct Buffers(Vec<Bytes>);

impl Buffers {
    /// Keeps a buffer whose bytes may still be on their way.
    pub(crate) fn put(&mut self, part: Part) {
        if self.0.len() < BUFFERS {
            self.0.push(part.buffer);
        }
    }

    /// A buffer whose bytes are gone, if there is one.
    pub(crate) fn take(&mut self) -> Option<BytesMut> {
        let free = self.0.iter().position(Bytes::is_unique)?;
        self.0.swap_remove(free).try_into_mut().ok()
    }
}

/// A file that is being read.
pub(crate) struct Reading {
    file: File,
    at: u64,
    left: u64,
}

impl Reading {
    fn open(
        path: &Path,
        range: Option<ReadRange>,
        names: &Names,
    ) -> Result<(FileEntry, Self), Refusal> {
        let only_files = |stat| match entry::kind(&stat) {
            FileKind::File => Ok(stat),
            _ => Err(wrong_kind("only regular files can be read")),
        };
        // Looked at before, because opening a device may do something.
        only_files(fstatat(AT_FDCWD, path, AtFlags::empty()).doing("looking at the file")?)?;
        let file = openat(AT_FDCWD, path, READ_FILE, Mode::empty()).doing("opening the file")?;
        let stat = only_files(fstat(&file).doing("looking at the file")?)?;
        let metadata = entry::metadata(&stat, Attributed::Open(file.as_fd()));
        let entry = entry::describe(path, &stat, None, metadata, names);
        let (at, left) = match range {
            None => (0, entry.size_bytes),
            Some(range) => range.within(entry.size_bytes).ok_or_else(|| {
                refusal(
                    code::BAD_RANGE,
                    "the part that was asked for lies outside the file",
                )
            })?,
        };
        let file = File::from(file);
        Ok((entry, Self { file, at, left }))
    }

    /// The next part, of at most so many bytes; `None` when all was read.
    pub(crate) fn next(
        &mut self,
        spare: Option<BytesMut>,
        most: usize,
    ) -> Result<Option<Part>, Refusal> {
        let length = usize::try_from(self.left).map_or(most, |left| left.min(most));
        if length == 0 {
            return Ok(None);
        }
        let mut buffer = buffer(spare, length);
        let wanted = buffer.get_mut(..length).unwrap_or_default();
        match self.file.read_exact_at(wanted, self.at) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(refusal(
                    code::FILE_FAILED,
                    "the file became shorter while it was read",
                ));
            }
            Err(error) => return Err(error).doing("reading the file"),
        }
        let read = u64::try_from(length).unwrap_or(u64::MAX);
        self.at = self.at.saturating_add(read);
        self.left = self.left.saturating_sub(read);
        let buffer = buffer.freeze();
        Ok(Some(Part { buffer, length }))
    }
}

/// A spare buffer, or a new one of at least that length.
pub(crate) fn buffer(spare: Option<BytesMut>, length: usize) -> BytesMut {
    match spare {
        Some(spare) if spare.len() >= length => spare,
        // Fresh from the kernel large buffers are zero already.
        _ => BytesMut::zeroed(length),
    }
}
