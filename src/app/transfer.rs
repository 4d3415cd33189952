//! What goes on after the call that began it has answered: processes that are read, files on their way. Each holds the
//! record of its beginning and writes down its end, also when whoever held it just went away.

use bytes::Bytes;
use casemate_link::daemon::{
    ArchiveWriter, FileReader, FileWriter, InputStream, LinkError, Process, ProcessEvent,
    ProcessInput,
};
use casemate_link::file::{ArchiveSummary, FileEntry};
use casemate_link::process::{ProcessExit, ProcessInfo};
use tokio_util::task::TaskTracker;

use super::{App, AppError, finish};
use crate::audit::Intent;
use crate::session::SessionError;
use crate::session::guest::failed;

/// Code of a record whose transfer was given up before its end.
const CUT_SHORT: &str = "cut_short";

/// The record of something that goes on.
pub(super) struct Ongoing {
    intent: Option<Intent>,
    bytes: u64,
    calls: TaskTracker,
}

impl Ongoing {
    pub(super) fn new(app: &App, intent: Intent) -> Self {
        Self {
            intent: Some(intent),
            bytes: 0,
            calls: app.0.calls.clone(),
        }
    }

    fn count(&mut self, data: &Bytes) {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(length);
    }

    /// Writes down how it ended.
    async fn ended(mut self, told: Result<Option<String>, &'static str>) {
        if let Some(intent) = self.intent.take() {
            finish(intent, told).await;
        }
    }

    /// Writes down that it was done.
    async fn done(self) {
        let told = format!("{} bytes", self.bytes);
        self.ended(Ok(Some(told))).await;
    }

    /// Writes down why it failed, and says so.
    pub(super) async fn failed(self, error: SessionError) -> AppError {
        self.ended(Err(error.code())).await;
        AppError::Session(error)
    }

    /// The same for whoever cannot give it away, once.
    async fn settle(&mut self, told: Result<Option<String>, &'static str>) {
        if let Some(intent) = self.intent.take() {
            finish(intent, told).await;
        }
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
                self.record.settle(Ok(Some(in_words(&exit)))).await;
                Some(Ok(ProcessEvent::Exited(exit)))
            }
            Ok(event) => Some(Ok(event)),
            Err(error) => {
                let error = failed(error);
                self.record.settle(Err(error.code())).await;
                Some(Err(AppError::Session(error)))
            }
        }
    }

    /// Leaves a process that is kept to itself.
    pub async fn leave(mut self) {
        let told = format!("pid {}", self.process.pid);
        self.record.settle(Ok(Some(told))).await;
    }
}

/// How a process ended, for the record.
pub(super) fn in_words(exit: &ProcessExit) -> String {
    match (exit.exit_code, exit.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit code".to_owned(),
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
            Some(Err(error)) => {
                let error = failed(error);
                self.record.settle(Err(error.code())).await;
                Some(Err(AppError::Session(error)))
            }
            None => {
                self.settle_if_ended().await;
                None
            }
        }
    }

    /// Writes down that it was read to its end, if it was.
    pub(super) async fn settle_if_ended(&mut self) {
        if self.reader.is_ended() {
            let told = format!("{} bytes", self.record.bytes);
            self.record.settle(Ok(Some(told))).await;
        }
    }
}

/// A file on its way in. Dropped before its end, it leaves what was there.
pub struct FileUpload {
    writer: FileWriter,
    record: Ongoing,
}

impl FileUpload {
    pub(super) const fn new(writer: FileWriter, record: Ongoing) -> Self {
        Self { writer, record }
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// [`AppError::Session`].
    pub async fn write(&mut self, data: Bytes) -> Result<(), AppError> {
        self.record.count(&data);
        let written = self.writer.write(data).await;
        told(&mut self.record, written).await
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`AppError::Session`].
    pub async fn commit(self) -> Result<FileEntry, AppError> {
        match self.writer.commit().await {
            Ok(entry) => {
                self.record.done().await;
                Ok(entry)
            }
            Err(error) => Err(self.record.failed(failed(error)).await),
        }
    }
}

/// An archive on its way in.
pub struct UnpackUpload {
    writer: ArchiveWriter,
    record: Ongoing,
}

impl UnpackUpload {
    pub(super) const fn new(writer: ArchiveWriter, record: Ongoing) -> Self {
        Self { writer, record }
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// [`AppError::Session`].
    pub async fn write(&mut self, data: Bytes) -> Result<(), AppError> {
        self.record.count(&data);
        let written = self.writer.write(data).await;
        told(&mut self.record, written).await
    }

    /// Says that this was all, and waits until it is unpacked.
    ///
    /// # Errors
    /// [`AppError::Session`].
    pub async fn commit(self) -> Result<ArchiveSummary, AppError> {
        match self.writer.commit().await {
            Ok(summary) => {
                self.record.done().await;
                Ok(summary)
            }
            Err(error) => Err(self.record.failed(failed(error)).await),
        }
    }
}

/// Input for a process.
pub struct InputUpload {
    input: InputStream,
    record: Ongoing,
}

impl InputUpload {
    pub(super) const fn new(input: InputStream, record: Ongoing) -> Self {
        Self { input, record }
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// [`AppError::Session`].
    pub async fn write(&mut self, data: Bytes) -> Result<(), AppError> {
        self.record.count(&data);
        let written = self.input.write(data).await;
        told(&mut self.record, written).await
    }

    /// Waits until the process has taken all; ends its input when `end` says so. Returns how many bytes it took.
    ///
    /// # Errors
    /// [`AppError::Session`].
    pub async fn finish(self, end: bool) -> Result<u64, AppError> {
        match self.input.finish(end).await {
            Ok(bytes) => {
                self.record.done().await;
                Ok(bytes)
            }
            Err(error) => Err(self.record.failed(failed(error)).await),
        }
    }
}

/// Writes a failure down, once, and passes it on.
async fn told(record: &mut Ongoing, result: Result<(), LinkError>) -> Result<(), AppError> {
    let Err(error) = result else { return Ok(()) };
    let error = failed(error);
    record.settle(Err(error.code())).await;
    Err(AppError::Session(error))
}
