//! Files in the sandbox, seen from the daemon. All of it happens inside: no path here ever names a file of the host.

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::LinkError;
use super::channel::Channel;
use super::check;
use super::link::{Link, no};
use super::transfer::{Incoming, Listing, Transfer, Upload, parse, taken_channel, unexpected};
use crate::file::{
    ArchiveRequest, ArchiveSummary, BadPlace, FileEntry, FileEvent, LinkRequest, ListRequest, Made,
    MkdirRequest, MoveRequest, Offer, Place, ReadRequest, RemoveRequest, SetRequest, StatRequest,
    Taken, UnpackRequest, WatchRequest, WriteRequest, check_metadata, check_path,
};
use crate::limits::{
    COMMIT_DEADLINE, MAX_LIST_DEPTH, MAX_LISTED_FILES, MIN_CHANNEL_BYTES, OPEN_DEADLINE,
    STALL_DEADLINE,
};
use crate::refusal::code;
use crate::route;
use crate::wire::TransferFrame;

/// The entries of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileListing {
    /// Parents before what is in them.
    pub entries: Vec<FileEntry>,
    /// Whether there are more: than were asked for, or than fit in [`crate::limits::MAX_LIST_BYTES`].
    pub is_cut: bool,
}

/// A file, or an archive, on its way out. Whoever holds it reads; not reading costs a bounded amount of memory. Dropping it
/// ends the transfer.
#[derive(Debug)]
pub struct FileReader {
    /// What is read, as it was when it was opened.
    pub entry: FileEntry,
    incoming: Incoming,
    /// Where the bytes come from, if not from there.
    channel: Option<Channel>,
    /// Bytes that the guest may still send.
    left: u64,
    ended: bool,
}

impl FileReader {
    /// The next bytes; `None` after the last, or after an error. What ends without an error was read whole.
    ///
    /// # Errors
    /// `Refused` when reading failed inside, `Gone`, `Protocol`, `Deadline` when the guest sends nothing.
    pub async fn next(&mut self) -> Option<Result<Bytes, LinkError>> {
        if self.ended {
            return None;
        }
        let data = self.read().await;
        self.ended |= !matches!(data, Ok(Some(_)));
        data.transpose()
    }

    /// Whether nothing more comes: after the last bytes already, where it is known how many there are.
    pub const fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whether the bytes come over a connection of their own.
    pub const fn has_channel(&self) -> bool {
        self.channel.is_some()
    }

    async fn read(&mut self) -> Result<Option<Bytes>, LinkError> {
        let data = match &mut self.channel {
            Some(channel) => channel.read().await?,
            None => self.incoming.data().await?,
        };
        let Some(data) = data else {
            return self.cut_short().await;
        };
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.left = self.left.checked_sub(length).ok_or_else(too_much)?;
        if self.left == 0 {
            self.end().await?;
        }
        Ok(Some(data))
    }

    /// Nothing more comes: of an archive that was all, of a file that is too little, and the guest says why.
    async fn cut_short(&mut self) -> Result<Option<Bytes>, LinkError> {
        if self.channel.is_some() {
            self.end().await?;
            return Err(LinkError::Protocol("fewer bytes than the file has".into()));
        }
        Ok(None)
    }

    /// Hears that all was said. Whoever reads as many bytes as he knows that there are asks for no more: the last of them
    /// are worth nothing before the guest has said that they are.
    async fn end(&mut self) -> Result<(), LinkError> {
        if self.incoming.data().await?.is_some() {
            return Err(too_much());
        }
        self.ended = true;
        Ok(())
    }
}

/// A file on its way in. Dropping it before [`FileWriter::commit`] leaves what was there before.
#[derive(Debug)]
pub struct FileWriter(Upload);

impl FileWriter {
    /// Sends bytes; waits while the guest does not take them.
    ///
    /// # Errors
    /// `Refused` when writing fails inside (a full disk is `disk_full`), `Gone`, `Protocol`, `Deadline`.
    pub async fn write(&mut self, data: Bytes) -> Result<(), LinkError> {
        self.0.write(data).await
    }

    /// Whether the bytes go over a connection of their own.
    pub const fn has_channel(&self) -> bool {
        self.0.has_channel()
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// As [`FileWriter::write`]; then the old content is there. After `Gone` and `Deadline` it may be either.
    pub async fn commit(self) -> Result<FileEntry, LinkError> {
        check::entry(self.0.commit(COMMIT_DEADLINE).await?)
    }
}

/// An archive on its way in. What was unpacked when it is dropped, or fails, stays.
#[derive(Debug)]
pub struct ArchiveWriter(Upload);

impl ArchiveWriter {
    /// Sends bytes; waits while the guest does not take them.
    ///
    /// # Errors
    /// `Refused` when unpacking fails, `Gone`, `Protocol`, `Deadline`.
    pub async fn write(&mut self, data: Bytes) -> Result<(), LinkError> {
        self.0.write(data).await
    }

    /// Says that this was all, and waits until it is unpacked.
    ///
    /// # Errors
    /// As [`ArchiveWriter::write`].
    pub async fn commit(self) -> Result<ArchiveSummary, LinkError> {
        self.0.commit(COMMIT_DEADLINE).await
    }
}

/// A watch on a directory. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    incoming: Incoming,
    ended: bool,
}

impl Watch {
    /// The next event; `None` when what is watched is gone, or after an error. No deadline: nothing may ever happen.
    ///
    /// # Errors
    /// `Refused`, `Gone`, `Protocol`.
    pub async fn next(&mut self) -> Option<Result<FileEvent, LinkError>> {
        if self.ended {
            return None;
        }
        let event = self.incoming.frame().await.and_then(|frame| match frame {
            TransferFrame::Item(json) => Ok(Some(check::event(parse(&json)?)?)),
            TransferFrame::End => Ok(None),
            _ => Err(unexpected()),
        });
        self.ended = !matches!(event, Ok(Some(_)));
        event.transpose()
    }
}

impl Link {
    /// What is known of a file.
    ///
    /// # Errors
    /// `Refused` ([`code`]), `Gone`, `Protocol`, `Deadline`.
    pub async fn stat(&self, request: &StatRequest) -> Result<FileEntry, LinkError> {
        self.for_files(&request.place)?;
        check::entry(Transfer::ask(self, route::FILE_STAT, request, OPEN_DEADLINE).await?)
    }

    /// What is in a directory.
    ///
    /// # Errors
    /// `Refused` ([`code`]), `Gone`, `Protocol`, `Deadline`.
    pub async fn list(&self, request: &ListRequest) -> Result<FileListing, LinkError> {
        self.for_files(&request.place)?;
        if !(1..=MAX_LIST_DEPTH).contains(&request.depth) {
            return Err(bad(BadPlace::TooBig("depth")));
        }
        if !(1..=MAX_LISTED_FILES).contains(&request.limit) {
            return Err(bad(BadPlace::TooBig("limit")));
        }
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        let listing = Transfer::list(
            self,
            route::FILE_LIST,
            request,
            check::entry,
            limit + 1,
            STALL_DEADLINE,
        );
        let (mut entries, is_cut) = match listing.await? {
            Listing::Whole(entries) => (entries, false),
            Listing::Cut(entries) => (entries, true),
        };
        let is_cut = is_cut || entries.len() > limit;
        entries.truncate(limit);
        Ok(FileListing { entries, is_cut })
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// `Refused` ([`code`]), `Gone`, `Protocol`, `Deadline`.
    pub async fn read(&self, request: &ReadRequest) -> Result<FileReader, LinkError> {
        self.for_files(&request.place)?;
        let offered = self.offer_channel();
        let head = Offer {
            request: request.clone(),
            channel: offered.as_ref().map(|offered| offered.number),
        };
        let (transfer, taken): (_, Taken<FileEntry>) =
            Transfer::begin(self, route::FILE_READ, &head).await?;
        let entry = check::entry(taken.answer)?;
        let channel = taken_channel(offered, taken.on_channel).await?;
        let left = match request.range {
            None => entry.size_bytes,
            Some(range) => range
                .within(entry.size_bytes)
                .map_or(0, |(_, length)| length),
        };
        let mut reader = FileReader {
            entry,
            incoming: transfer.incoming,
            channel,
            left,
            ended: false,
        };
        if left == 0 {
            reader.end().await?;
        }
        Ok(reader)
    }

    /// Opens a file for writing; `expected` is how many bytes are to come, where that is known.
    ///
    /// # Errors
    /// `Refused` ([`code`]), `Gone`, `Protocol`, `Deadline`.
    pub async fn write(
        &self,
        request: &WriteRequest,
        expected: Option<u64>,
    ) -> Result<FileWriter, LinkError> {
        self.for_files(&request.place)?;
        if let Some(metadata) = &request.metadata {
            check_metadata(metadata).map_err(bad)?;
        }
        let upload = if expected.is_none_or(|bytes| bytes >= MIN_CHANNEL_BYTES) {
            Upload::begin_with_channel(self, route::FILE_WRITE, request).await
        } else {
            Upload::begin(self, route::FILE_WRITE, request).await
        };
        Ok(FileWriter(upload?))
    }

    /// Makes a directory. One that is there already is success.
    ///
    /// # Errors
    /// `Refused` ([`code`]), `Gone`, `Protocol`, `Deadline`.
    pub async fn mkdir(&self, request: &MkdirRequest) -> Result<Made, LinkError> {
        self.for_files(&request.place)?;
        let made: Made = Transfer::ask(self, route::FILE_MKDIR, request, OPEN_DEADLINE).await?;
        let entry = check::entry(made.entry)?;
        Ok(Made { entry, ..made })
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// `Refused` ([`code`]), `Gone`, `Protocol`, `Deadline`.
    pub async fn rename(&self, request: &MoveRequest) -> Result<FileEntry, LinkError> {
        self.for_files(&request.place)?;
        check_path("to", &request.to).map_err(bad)?;
        check::entry(Transfer::ask(self, route::FILE_MOVE, request, COMMIT_DEADLINE).await?)
    }

    /// Removes a file or directory. What is not there is `file_not_found`.
    ///
    /// # Errors
    /// `Refused` ([`code`]), `Gone`, `Protocol`, `Deadline`.
    pub async fn remove(&self, request: &RemoveRequest) -> Result<(), LinkError> {
        self.for_files(&request.place)?;
        let gone = Transfer::list(self, route::FILE_REMOVE, request, Ok, 0, COMMIT_DEADLINE);
        let _: Listing<IgnoredAny> = gone.await?;
        Ok(())
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// `Refused` ([`code`]), `Gone`, `Protocol`, `Deadline`.
    pub async fn symlink(&self, request: &LinkRequest) -> Result<FileEntry, LinkError> {
        self.for_files(&request.place)?;
        check_path("target", &request.target).map_err(bad)?;
        check::entry(Transfer::ask(self, route::FILE_LINK, request, OPEN_DEADLINE).await?)
    }

    /// Changes a file's mode, owner, group or metadata.
    ///
    /// # Errors
    /// `Refused` ([`code`]), `Gone`, `Protocol`, `Deadline`.
    pub async fn set(&self, request: &SetRequest) -> Result<FileEntry, LinkError> {
        self.for_files(&request.place)?;
        if let Some(metadata) = &request.metadata {
            check_metadata(metadata).map_err(bad)?;
        }
        check::entry(Transfer::ask(self, route::FILE_SET, request, OPEN_DEADLINE).await?)
    }

    /// Watches a directory or file. What happens after this returned is told.
    ///
    /// # Errors
    /// `Refused` ([`code`]), `Gone`, `Protocol`, `Deadline`.
    pub async fn watch(&self, request: &WatchRequest) -> Result<Watch, LinkError> {
        self.for_files(&request.place)?;
        let (transfer, IgnoredAny) = Transfer::begin(self, route::FILE_WATCH, request).await?;
        let incoming = transfer.incoming;
        Ok(Watch {
            incoming,
            ended: false,
        })
    }

    /// Reads a directory as a tar stream.
    ///
    /// # Errors
    /// `Refused` ([`code`]), `Gone`, `Protocol`, `Deadline`.
    pub async fn pack(&self, request: &ArchiveRequest) -> Result<FileReader, LinkError> {
        self.needs("archive")?;
        request.place.validate().map_err(bad)?;
        let (transfer, entry) = Transfer::begin(self, route::ARCHIVE_READ, request).await?;
        Ok(FileReader {
            entry: check::entry(entry)?,
            incoming: transfer.incoming,
            channel: None,
            left: u64::MAX,
            ended: false,
        })
    }

    /// Unpacks a tar stream into a directory.
    ///
    /// # Errors
    /// `Refused` ([`code`]), `Gone`, `Protocol`, `Deadline`.
    pub async fn unpack(&self, request: &UnpackRequest) -> Result<ArchiveWriter, LinkError> {
        self.needs("archive")?;
        request.place.validate().map_err(bad)?;
        Ok(ArchiveWriter(
            Upload::begin(self, route::ARCHIVE_WRITE, request).await?,
        ))
    }

    fn for_files(&self, place: &Place) -> Result<(), LinkError> {
        self.needs("file")?;
        place.validate().map_err(bad)
    }
}

fn bad(problem: BadPlace) -> LinkError {
    no(code::BAD_SPEC, problem.to_string())
}

fn too_much() -> LinkError {
    LinkError::Protocol("more bytes than the file has".into())
}
