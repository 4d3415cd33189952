//! What goes on after the call that began it has answered: processes that are read, files on their way. Each holds the
//! record of its beginning and writes down its end, also when whoever held it just went away.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use casemate_link::daemon::{
    ArchiveWriter, FileReader, FileWriter, InputStream, LinkError, Process, ProcessEvent,
    ProcessInput,
};
use casemate_link::file::{ArchiveSummary, FileEntry};
use casemate_link::process::ProcessInfo;
use tokio_util::task::TaskTracker;

use super::{App, AppError, exit_in_words, finish};
use crate::audit::Intent;
use crate::session::activity::Use;
use crate::session::guest::{Guest, failed};
use crate::session::reached::Reached;

/// Code of a record whose transfer was given up before its end.
const CUT_SHORT: &str = "cut_short";

/// The record of something that goes on.
pub(super) struct Ongoing {
    intent: Option<Intent>,
    /// The session counts as used meanwhile.
    _using: Arc<Use>,
    reached: Reached,
    bytes: u64,
    calls: TaskTracker,
}

impl Ongoing {
    pub(super) fn new(app: &App, intent: Intent, guest: &Guest) -> Self {
        Self {
            intent: Some(intent),
            _using: guest.using(),
            reached: guest.reached(),
            bytes: 0,
            calls: app.0.calls.clone(),
        }
    }

    fn count(&mut self, data: &Bytes) {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(length);
    }

    /// Writes down how it ended, once.
    pub(super) async fn settle(&mut self, told: Result<Option<String>, &'static str>) {
        if let Some(intent) = self.intent.take() {
            finish(intent, told).await;
        }
    }

    /// Writes down that all its bytes went.
    async fn done(&mut self) {
        let told = format!("{} bytes", self.bytes);
        self.settle(Ok(Some(told))).await;
    }

    /// Writes down why it failed, and says so.
    pub(super) async fn failed(&mut self, error: LinkError) -> AppError {
        self.reached.refused(&error);
        let error = failed(error);
        self.settle(Err(error.code())).await;
        AppError::Session(error)
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        if let Some(intent) = self.intent.take() {
            self.calls.spawn(finish(intent, Err(CUT_SHORT)));
        }
    }
}

/// A process that somebody reads, and may write to.
pub struct Attachment {
    process: Process,
    info: Option<ProcessInfo>,
    record: Ongoing,
}

impl Attachment {
    pub(super) const fn new(process: Process, info: Option<ProcessInfo>, record: Ongoing) -> Self {
        Self {
            process,
            info,
            record,
        }
    }

    /// Its pid in the sandbox.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.process.pid
    }

    /// The guest's number for it: never used twice by one guest, unlike a pid.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.process.number()
    }

    /// What was known of it when it was attached; `None` of one that was just started.
    #[must_use]
    pub const fn info(&self) -> Option<&ProcessInfo> {
        self.info.as_ref()
    }

    /// Offsets in its outputs of what comes next.
    #[must_use]
    pub fn offsets(&self) -> [u64; 2] {
        self.process.offsets()
    }

    /// What it is told. Clones feed the same process.
    #[must_use]
    pub fn input(&self) -> ProcessInput {
        self.process.input.clone()
    }

    /// The next thing it says; `None` after its end or after an error. Safe to drop and call again.
    ///
    /// # Errors
    /// [`AppError::Session`].
    pub async fn next(&mut self) -> Option<Result<ProcessEvent, AppError>> {
        match self.process.next().await? {
            Ok(ProcessEvent::Exited(exit)) => {
                self.record.reached.ended(&exit);
                let told = exit_in_words(exit.exit_code, exit.signal);
                self.record.settle(Ok(Some(told))).await;
                Some(Ok(ProcessEvent::Exited(exit)))
            }
            Ok(event) => Some(Ok(event)),
            Err(error) => Some(Err(self.record.failed(error).await)),
        }
    }

    /// Leaves a process that is kept to itself.
    pub async fn leave(mut self) {
        let told = format!("pid {}", self.process.pid);
        self.record.settle(Ok(Some(told))).await;
    }
}

/// A file or archive on its way out.
pub struct Download {
    reader: FileReader,
    record: Ongoing,
}

impl Download {
    pub(super) const fn new(reader: FileReader, record: Ongoing) -> Self {
        Self { reader, record }
    }

    /// What is read, as it was when it was opened.
    #[must_use]
    pub const fn entry(&self) -> &FileEntry {
        &self.reader.entry
    }

    /// The next bytes; `None` after the last, or after an error. What ends without an error was read whole.
    ///
    /// # Errors
    /// [`AppError::Session`].
    pub async fn next(&mut self) -> Option<Result<Bytes, AppError>> {
        match self.reader.next().await {
            Some(Ok(data)) => {
                self.record.count(&data);
                // Whoever knows how many bytes there are asks for no more after the last.
                self.settle_if_ended().await;
                Some(Ok(data))
            }
            Some(Err(error)) => Some(Err(self.record.failed(error).await)),
            None => {
                self.settle_if_ended().await;
                None
            }
        }
    }

    /// Writes down that it was read to its end, if it was.
    pub(super) async fn settle_if_ended(&mut self) {
        if self.reader.is_ended() {
            self.record.done().await;
        }
    }
}

/// Where bytes go on their way in.
pub trait Sink: Send {
    /// What they are when all have come.
    type Whole: Send;

    /// Takes bytes.
    fn write(&mut self, data: Bytes) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Says that this was all, and waits until all is where it belongs.
    fn commit(self) -> impl Future<Output = Result<Self::Whole, LinkError>> + Send;
}

/// A file. Dropped before its end, it leaves what was there.
impl Sink for FileWriter {
    type Whole = FileEntry;

    async fn write(&mut self, data: Bytes) -> Result<(), LinkError> {
        self.write(data).await
    }

    async fn commit(self) -> Result<FileEntry, LinkError> {
        self.commit().await
    }
}

/// An archive. Dropped before its end, what was unpacked stays.
impl Sink for ArchiveWriter {
    type Whole = ArchiveSummary;

    async fn write(&mut self, data: Bytes) -> Result<(), LinkError> {
        self.write(data).await
    }

    async fn commit(self) -> Result<ArchiveSummary, LinkError> {
        self.commit().await
    }
}

/// The input of a process.
pub struct Input {
    pub(super) stream: InputStream,
    /// Whether the process's input ends with these bytes.
    pub(super) end: bool,
}

/// How many bytes the process took.
impl Sink for Input {
    type Whole = u64;

    async fn write(&mut self, data: Bytes) -> Result<(), LinkError> {
        self.stream.write(data).await
    }

    async fn commit(self) -> Result<u64, LinkError> {
        self.stream.finish(self.end).await
    }
}

/// Something on its way in.
pub struct Upload<S> {
    sink: S,
    record: Ongoing,
}

impl<S: Sink> Upload<S> {
    pub(super) const fn new(sink: S, record: Ongoing) -> Self {
        Self { sink, record }
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// [`AppError::Session`].
    pub async fn write(&mut self, data: Bytes) -> Result<(), AppError> {
        self.record.count(&data);
        match self.sink.write(data).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.record.failed(error).await),
        }
    }

    /// Says that this was all, and waits until all is where it belongs: the file in its place, the archive unpacked, the
    /// input taken.
    ///
    /// # Errors
    /// [`AppError::Session`].
    pub async fn commit(mut self) -> Result<S::Whole, AppError> {
        match self.sink.commit().await {
            Ok(whole) => {
                self.record.done().await;
                Ok(whole)
            }
            Err(error) => Err(self.record.failed(error).await),
        }
    }
}
