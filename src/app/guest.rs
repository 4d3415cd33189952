//! What a front door may do inside a session, beside running a program to its end.
//!
//! Everything that changes or moves something goes the one way: decide, record, act, record. What only looks (lists, sizes,
//! figures) is decided and not recorded. The documents are those of the link, which are ours; what comes in them is the
//! sandbox's word, within bounds.

use std::future::Future;
use std::sync::Arc;

use casemate_link::ProcessSpec;
use casemate_link::daemon::{ArchiveWriter, FileListing, FileWriter, LinkError, Watch};
use casemate_link::file::{
    ArchiveRequest, FileEntry, LinkRequest, ListRequest, Made, MkdirRequest, MoveRequest, Place,
    ReadRequest, RemoveRequest, SetRequest, StatRequest, UnpackRequest, WatchRequest, WriteRequest,
};
use casemate_link::port::OpenPort;
use casemate_link::process::{AttachRequest, ProcessInfo, PtySize, Selector};

use super::transfer::{Attachment, Download, Input, Ongoing, Upload};
use super::{App, AppError};
use crate::base::id::SessionId;
use crate::model::event::{AuditEvent, FileChangeKind};
use crate::model::principal::Principal;
use crate::model::session::Session;
use crate::model::template::RESERVED_PORT;
use crate::session::activity::Use;
use crate::session::guest::{Guest, failed};
use crate::session::usage::UsageSeries;

impl App {
    /// Starts a process and reads from it; it ends with the [`Attachment`] unless it is to be kept.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn start_process(
        &self,
        principal: &Principal,
        id: SessionId,
        spec: ProcessSpec,
    ) -> Result<Attachment, AppError> {
        let session = self.may_use(principal, id).await?;
        let event = AuditEvent::ProcessStart {
            program: spec.argv.first().cloned(),
            arguments: spec.argv.len().saturating_sub(1),
            line: self.0.audit.command_line(&spec.argv, None),
            user: runs_as(spec.user.as_deref(), &session),
            tag: spec.tag.clone(),
            pty: spec.pty.is_some(),
        };
        let work = async |guest: Guest| guest.start(spec).await;
        let (process, record) = self.open(principal, id, event, work).await?;
        Ok(Attachment::new(process, None, record))
    }

    /// Reads a process that runs or is kept, from where the request says.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn attach_process(
        &self,
        principal: &Principal,
        id: SessionId,
        request: AttachRequest,
    ) -> Result<Attachment, AppError> {
        let event = AuditEvent::ProcessAttach {
            process: named(&request.process),
        };
        let work = async |guest: Guest| guest.link().attach(request).await;
        let ((info, process), record) = self.open(principal, id, event, work).await?;
        Ok(Attachment::new(process, Some(info), record))
    }

    /// Opens the input of a process, which ends with what is sent when `end` says so.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn process_input(
        &self,
        principal: &Principal,
        id: SessionId,
        process: Selector,
        end: bool,
    ) -> Result<Upload<Input>, AppError> {
        let event = AuditEvent::ProcessInput {
            process: named(&process),
        };
        let work = async |guest: Guest| guest.link().input(process);
        let (stream, record) = self.open(principal, id, event, work).await?;
        Ok(Upload::new(Input { stream, end }, record))
    }

    /// The processes that run, and those that ended and are kept, oldest first.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn processes(
        &self,
        principal: &Principal,
        id: SessionId,
    ) -> Result<Vec<ProcessInfo>, AppError> {
        let guest = self.guest(principal, id).await?;
        guest.link().processes().await.map_err(told)
    }

    /// Sends a signal to a process's group.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn signal_process(
        &self,
        principal: &Principal,
        id: SessionId,
        process: Selector,
        signal: i32,
    ) -> Result<(), AppError> {
        let event = AuditEvent::ProcessSignal {
            process: named(&process),
            signal,
        };
        let work = move |guest: Guest| async move { guest.link().signal(process, signal).await };
        self.change(principal, id, event, work).await
    }

    /// Gives a process's terminal another size.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn resize_process(
        &self,
        principal: &Principal,
        id: SessionId,
        process: Selector,
        size: PtySize,
    ) -> Result<(), AppError> {
        let guest = self.guest(principal, id).await?;
        guest.link().resize(process, size).await.map_err(told)
    }

    /// What is known of a file.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn stat_file(
        &self,
        principal: &Principal,
        id: SessionId,
        request: &StatRequest,
    ) -> Result<FileEntry, AppError> {
        let guest = self.guest(principal, id).await?;
        guest.link().stat(request).await.map_err(told)
    }

    /// What is in a directory.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn list_files(
        &self,
        principal: &Principal,
        id: SessionId,
        request: &ListRequest,
    ) -> Result<FileListing, AppError> {
        let guest = self.guest(principal, id).await?;
        guest.link().list(request).await.map_err(told)
    }

    /// Watches a directory or file.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn watch_files(
        &self,
        principal: &Principal,
        id: SessionId,
        request: &WatchRequest,
    ) -> Result<(Watch, Arc<Use>), AppError> {
        let guest = self.guest(principal, id).await?;
        let watch = guest.link().watch(request).await.map_err(told)?;
        Ok((watch, guest.using()))
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn read_file(
        &self,
        principal: &Principal,
        id: SessionId,
        request: &ReadRequest,
    ) -> Result<Download, AppError> {
        let (path, user) = at(&request.place);
        let event = AuditEvent::FileRead { path, user };
        let work = async |guest: Guest| guest.link().read(request).await;
        let (reader, record) = self.open(principal, id, event, work).await?;
        let mut download = Download::new(reader, record);
        // An empty file is read already.
        download.settle_if_ended().await;
        Ok(download)
    }

    /// Opens a file for writing; `expected` is how many bytes are to come, where that is known.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn write_file(
        &self,
        principal: &Principal,
        id: SessionId,
        request: &WriteRequest,
        expected: Option<u64>,
    ) -> Result<Upload<FileWriter>, AppError> {
        let (path, user) = at(&request.place);
        let event = AuditEvent::FileWrite { path, user };
        let work = async |guest: Guest| guest.link().write(request, expected).await;
        let (writer, record) = self.open(principal, id, event, work).await?;
        Ok(Upload::new(writer, record))
    }

    /// Makes a directory. One that is there already is success.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn make_directory(
        &self,
        principal: &Principal,
        id: SessionId,
        request: MkdirRequest,
    ) -> Result<Made, AppError> {
        let event = changed(FileChangeKind::Mkdir, &request.place, None);
        let work = move |guest: Guest| async move { guest.link().mkdir(&request).await };
        self.change(principal, id, event, work).await
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn move_file(
        &self,
        principal: &Principal,
        id: SessionId,
        request: MoveRequest,
    ) -> Result<FileEntry, AppError> {
        let event = changed(FileChangeKind::Move, &request.place, Some(&request.to));
        let work = move |guest: Guest| async move { guest.link().rename(&request).await };
        self.change(principal, id, event, work).await
    }

    /// Removes a file or directory.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn remove_file(
        &self,
        principal: &Principal,
        id: SessionId,
        request: RemoveRequest,
    ) -> Result<(), AppError> {
        let event = changed(FileChangeKind::Remove, &request.place, None);
        let work = move |guest: Guest| async move { guest.link().remove(&request).await };
        self.change(principal, id, event, work).await
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn link_file(
        &self,
        principal: &Principal,
        id: SessionId,
        request: LinkRequest,
    ) -> Result<FileEntry, AppError> {
        let event = changed(FileChangeKind::Link, &request.place, Some(&request.target));
        let work = move |guest: Guest| async move { guest.link().symlink(&request).await };
        self.change(principal, id, event, work).await
    }

    /// Changes a file's mode, owner, group or metadata.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn set_file(
        &self,
        principal: &Principal,
        id: SessionId,
        request: SetRequest,
    ) -> Result<FileEntry, AppError> {
        let event = changed(FileChangeKind::Set, &request.place, None);
        let work = move |guest: Guest| async move { guest.link().set(&request).await };
        self.change(principal, id, event, work).await
    }

    /// Reads a directory as a tar stream.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn read_archive(
        &self,
        principal: &Principal,
        id: SessionId,
        request: &ArchiveRequest,
    ) -> Result<Download, AppError> {
        let (path, user) = at(&request.place);
        let event = AuditEvent::ArchiveRead { path, user };
        let work = async |guest: Guest| guest.link().pack(request).await;
        let (reader, record) = self.open(principal, id, event, work).await?;
        Ok(Download::new(reader, record))
    }

    /// Unpacks a tar stream into a directory.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn write_archive(
        &self,
        principal: &Principal,
        id: SessionId,
        request: &UnpackRequest,
    ) -> Result<Upload<ArchiveWriter>, AppError> {
        let (path, user) = at(&request.place);
        let event = AuditEvent::ArchiveWrite { path, user };
        let work = async |guest: Guest| guest.link().unpack(request).await;
        let (writer, record) = self.open(principal, id, event, work).await?;
        Ok(Upload::new(writer, record))
    }

    /// The ports that programs in the session listen on.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn ports(
        &self,
        principal: &Principal,
        id: SessionId,
    ) -> Result<Vec<OpenPort>, AppError> {
        let guest = self.guest(principal, id).await?;
        let mut open = guest.link().ports().await.map_err(told)?;
        // The way out is the guest's own, and no program's.
        open.retain(|open| open.port != RESERVED_PORT);
        Ok(open)
    }

    /// What the session uses now, and has used. Looking is no use of it, and wakes nobody.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn usage(
        &self,
        principal: &Principal,
        id: SessionId,
    ) -> Result<UsageSeries, AppError> {
        self.session(principal, id).await?;
        let Some(handle) = self.0.sessions.handle(id) else {
            return Err(self.ended(id).await);
        };
        let link = handle.watched().await.map_err(AppError::Session)?;
        let now = link.usage().await.map_err(told)?;
        let session = handle.snapshot();
        handle.reached().used(&now, &session.spec.limits);
        if let Some(sandbox) = &session.sandbox {
            handle.reached().strained(self.0.runtime.strain(sandbox));
        }
        let past = handle.past_usage();
        Ok(UsageSeries { now, past })
    }

    /// The guest of a session that the principal may use.
    pub(super) async fn guest(
        &self,
        principal: &Principal,
        id: SessionId,
    ) -> Result<Guest, AppError> {
        self.may_use(principal, id).await?;
        match self.0.sessions.handle(id) {
            Some(handle) => handle.guest().await.map_err(AppError::Session),
            None => Err(self.ended(id).await),
        }
    }

    /// Begins something in a session that goes on when the call has answered, and its record with it.
    async fn open<T>(
        &self,
        principal: &Principal,
        id: SessionId,
        event: AuditEvent,
        work: impl AsyncFnOnce(Guest) -> Result<T, LinkError>,
    ) -> Result<(T, Ongoing), AppError> {
        let guest = self.guest(principal, id).await?;
        let intent = self.begin(principal, Some(id), event);
        let mut record = Ongoing::new(self, intent.await?, &guest);
        match work(guest).await {
            Ok(opened) => Ok((opened, record)),
            Err(error) => Err(record.failed(error).await),
        }
    }

    /// Does something short in a session, recorded. A caller that goes away does not stop it half way.
    async fn change<T, W>(
        &self,
        principal: &Principal,
        id: SessionId,
        event: AuditEvent,
        work: impl FnOnce(Guest) -> W + Send + 'static,
    ) -> Result<T, AppError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, LinkError>> + Send + 'static,
    {
        let guest = self.guest(principal, id).await?;
        let reached = guest.reached();
        let work = async move {
            work(guest).await.map_err(|error| {
                reached.refused(&error);
                failed(error)
            })
        };
        self.recorded(principal, id, event, work, |_| None).await
    }
}

fn told(error: LinkError) -> AppError {
    AppError::Session(failed(error))
}

/// How the record names who a program runs as inside.
pub(super) fn runs_as(user: Option<&str>, session: &Session) -> String {
    who(user.or(session.spec.setup.user.as_deref()))
}

/// How the record names who acts inside.
fn who(user: Option<&str>) -> String {
    user.unwrap_or("user").to_owned()
}

fn at(place: &Place) -> (String, String) {
    (place.path.clone(), who(place.user.as_deref()))
}

fn changed(change: FileChangeKind, place: &Place, to: Option<&String>) -> AuditEvent {
    let (path, user) = at(place);
    AuditEvent::FileChange {
        change,
        path,
        to: to.cloned(),
        user,
    }
}

/// How the record names a process.
fn named(process: &Selector) -> String {
    match process {
        Selector::Process(number) => format!("number {number}"),
        Selector::Pid(pid) => format!("pid {pid}"),
        Selector::Tag(tag) => format!("tag {tag}"),
    }
}
