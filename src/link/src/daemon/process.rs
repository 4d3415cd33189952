//! One process in the sandbox, seen from the daemon: what it says, and what it is told.

use bytes::Bytes;
use http::Method;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::LinkError;
use super::body::{RequestBody, read_document};
use super::check;
use super::link::{Detached, Link, no};
use super::transfer::in_time;
use crate::limits::{
    CONTROL_DEADLINE, FRAME_QUEUE, INPUT_DEADLINE, MAX_FRAME_PAYLOAD_BYTES, STREAM_END_DEADLINE,
};
use crate::process::{
    AttachRequest, InputRequest, InputSummary, Lost, ProcessExit, ProcessInfo, ProcessSpec,
    Selector, Started,
};
use crate::refusal::code;
use crate::route;
use crate::wire::{Chunk, FrameReader, ReadError, RequestFrame, ResponseFrame};

/// What a process says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// Bytes of its standard output, at most 64 KiB, cut anywhere.
    Stdout(Bytes),
    /// Bytes of its standard error, at most 64 KiB, cut anywhere.
    Stderr(Bytes),
    /// Bytes that would have come now, and are not there any more: this reader was too slow or too late for them.
    Lost(Lost),
    /// It ended; nothing follows.
    Exited(ProcessExit),
}

/// A process, as its starter or a later reader sees it. Whoever holds it reads its events; not reading slows the process
/// down, or loses what it says ([`crate::process::SlowReader`]), and costs a bounded amount of memory. When its starter drops
/// it before its end, the guest ends the process (SIGTERM to its group, the grace, SIGKILL) unless it is to be kept.
#[derive(Debug)]
pub struct Process {
    /// Its pid in the sandbox, which is also its process group. For people: the guest may claim what it likes.
    pub pid: u32,
    /// What it is told. Clone it to write and to read at the same time.
    pub input: ProcessInput,
    reader: FrameReader<ResponseFrame>,
    /// Bytes of standard output and error that the guest may still send.
    allowance: [u64; 2],
    /// Known while the stream's own end is waited for.
    exit: Option<ProcessExit>,
    ended: bool,
    place: Option<OwnedSemaphorePermit>,
    role: Role,
    /// Bytes of standard output and error that came or were lost.
    offsets: [u64; 2],
}

/// Whose the stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Starter,
    Reader,
}

/// The input side of a process; clones feed the same process.
#[derive(Debug, Clone)]
pub struct ProcessInput {
    link: Link,
    process: u64,
    queue: mpsc::Sender<Chunk>,
}

/// The process takes no more input: it ended, or the link is gone. [`Process::next`] says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the process takes no more input")]
pub struct InputClosed;

impl Process {
    pub(super) async fn start(
        link: Link,
        spec: ProcessSpec,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, LinkError> {
        let allowance = [spec.max_stdout_bytes, spec.max_stderr_bytes];
        let start = request(RequestFrame::Start(Box::new(spec)))?;
        let (queue, rest) = mpsc::channel(FRAME_QUEUE);
        let body = RequestBody::stream(start, rest);
        let response = link
            .request(Method::POST, route::PROCESS_START, route::FRAMES, body)
            .await?;
        let mut reader = FrameReader::new(response.into_body());
        match read(&mut reader).await? {
            ResponseFrame::Started(Started { process, pid }) => {
                let input = ProcessInput {
                    link,
                    process,
                    queue,
                };
                Ok(Self {
                    pid,
                    input,
                    reader,
                    allowance,
                    exit: None,
                    ended: false,
                    place: Some(place),
                    role: Role::Starter,
                    offsets: [0; 2],
                })
            }
            ResponseFrame::Failed(refusal) => Err(check::refusal(refusal)),
            _ => Err(LinkError::Protocol(
                "a process that speaks before it started".into(),
            )),
        }
    }

    pub(super) async fn attach(
        link: Link,
        request: AttachRequest,
        place: OwnedSemaphorePermit,
    ) -> Result<(ProcessInfo, Self), LinkError> {
        let offsets = [request.stdout_offset, request.stderr_offset];
        let attach = self::request(RequestFrame::Attach(request))?;
        let (queue, rest) = mpsc::channel(FRAME_QUEUE);
        let body = RequestBody::stream(attach, rest);
        let response = link
            .request(Method::POST, route::PROCESS_ATTACH, route::FRAMES, body)
            .await?;
        let mut reader = FrameReader::new(response.into_body());
        match read(&mut reader).await? {
            ResponseFrame::Attached(info) => {
                let info = check::process(*info)?;
                let process = info.process;
                let input = ProcessInput {
                    link,
                    process,
                    queue,
                };
                let process = Self {
                    pid: info.pid,
                    input,
                    reader,
                    allowance: [u64::MAX; 2],
                    exit: None,
                    ended: false,
                    place: Some(place),
                    role: Role::Reader,
                    offsets,
                };
                Ok((info, process))
            }
            ResponseFrame::Failed(refusal) => Err(check::refusal(refusal)),
            _ => Err(LinkError::Protocol(
                "a process that speaks before it is there".into(),
            )),
        }
    }

    /// The guest's number for it: never used twice by one guest, unlike a pid.
    pub fn number(&self) -> u64 {
        self.input.process
    }

    /// Offsets in standard output and error of what comes next.
    pub fn offsets(&self) -> [u64; 2] {
        self.offsets
    }

    /// The next thing it says; `None` after its end or after an error. Safe to drop and call again: nothing is lost.
    ///
    /// No deadline: a process may be silent for as long as it likes. The link's keep-alive finds a dead guest.
    pub async fn next(&mut self) -> Option<Result<ProcessEvent, LinkError>> {
        if self.ended {
            return None;
        }
        let event = match self.exit {
            None => read(&mut self.reader)
                .await
                .and_then(|frame| self.admit(frame)),
            Some(exit) => Ok(ProcessEvent::Exited(exit)),
        };
        if let Ok(ProcessEvent::Exited(exit)) = event {
            self.exit = Some(exit);
            // The stream's end follows at once. Hearing it spares both sides a reset.
            let _ = timeout(STREAM_END_DEADLINE, self.reader.next()).await;
            // The guest has forgotten the process already, so there is nothing to tell it.
            self.place = None;
        }
        self.ended = matches!(event, Err(_) | Ok(ProcessEvent::Exited(_)));
        Some(event)
    }

    /// Holds the guest to what was agreed.
    fn admit(&mut self, frame: ResponseFrame) -> Result<ProcessEvent, LinkError> {
        let [stdout, stderr] = &mut self.allowance;
        let [stdout_offset, stderr_offset] = &mut self.offsets;
        match frame {
            ResponseFrame::Stdout(data) => {
                charge(stdout, stdout_offset, length(&data)).map(|()| ProcessEvent::Stdout(data))
            }
            ResponseFrame::Stderr(data) => {
                charge(stderr, stderr_offset, length(&data)).map(|()| ProcessEvent::Stderr(data))
            }
            ResponseFrame::Lost(lost) => {
                charge(stdout, stdout_offset, lost.stdout_bytes)?;
                charge(stderr, stderr_offset, lost.stderr_bytes)?;
                Ok(ProcessEvent::Lost(lost))
            }
            ResponseFrame::Exited(exit) => Ok(ProcessEvent::Exited(exit)),
            ResponseFrame::Started(_) | ResponseFrame::Attached(_) | ResponseFrame::Failed(_) => {
                Err(LinkError::Protocol("a process that starts twice".into()))
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.role == Role::Starter
            && let Some(place) = self.place.take()
        {
            self.input.link.detach(Detached {
                process: self.input.process,
                place,
            });
        }
    }
}

fn length(data: &Bytes) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}

fn charge(allowance: &mut u64, offset: &mut u64, bytes: u64) -> Result<(), LinkError> {
    let too_much = || LinkError::Protocol("more output than the guest was allowed to send".into());
    *allowance = allowance.checked_sub(bytes).ok_or_else(too_much)?;
    *offset = offset.checked_add(bytes).ok_or_else(too_much)?;
    Ok(())
}

/// The first frame of a request. What is over its bound as JSON, whose escapes may be six times what they stand for, is
/// the caller's doing and not the guest's.
fn request(frame: RequestFrame) -> Result<Chunk, LinkError> {
    frame
        .encode()
        .map_err(|_| no(code::BAD_SPEC, "the request is over its bound"))
}

/// The next frame of a stream that must not just end.
async fn read(reader: &mut FrameReader<ResponseFrame>) -> Result<ResponseFrame, LinkError> {
    match reader.next().await {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) => Err(LinkError::Protocol(
            "a process stream that ends without an end".into(),
        )),
        Err(ReadError::Wire(error)) => Err(error.into()),
        Err(ReadError::Cut(_)) => Err(LinkError::Gone),
    }
}

impl ProcessInput {
    /// Writes to standard input; waits while the program does not read. A program that closed its input is no error:
    /// what it does not want is thrown away.
    ///
    /// When the future is dropped, a part of `data` may have been written.
    ///
    /// # Errors
    /// [`InputClosed`] when the process has ended.
    pub async fn write(&self, mut data: Bytes) -> Result<(), InputClosed> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(MAX_FRAME_PAYLOAD_BYTES));
            self.send(RequestFrame::Stdin(piece)).await?;
        }
        Ok(())
    }

    /// Ends standard input, after all that was written. What is written later is thrown away.
    ///
    /// # Errors
    /// [`InputClosed`] when the process has ended.
    pub async fn end(&self) -> Result<(), InputClosed> {
        self.send(RequestFrame::StdinEnd).await
    }

    /// Sends a signal to the process's group; overtakes input that the program does not read.
    ///
    /// # Errors
    /// `Refused` with `no_such_process` after its end, `Deadline`, `Gone`, `Protocol`.
    pub async fn signal(&self, signum: i32) -> Result<(), LinkError> {
        let process = Selector::Process(self.process);
        self.link.signal(process, signum).await
    }

    async fn send(&self, frame: RequestFrame) -> Result<(), InputClosed> {
        let chunk = frame.encode().map_err(|_| InputClosed)?;
        self.queue.send(chunk).await.map_err(|_| InputClosed)
    }
}

/// Input for a process from somebody who does not read it. The guest says how much went in when all of it has.
#[derive(Debug)]
pub struct InputStream {
    queue: mpsc::Sender<Chunk>,
    answer: JoinHandle<Result<InputSummary, LinkError>>,
    _place: OwnedSemaphorePermit,
}

impl InputStream {
    pub(super) fn open(
        link: &Link,
        request: InputRequest,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, LinkError> {
        let first = self::request(RequestFrame::Input(request))?;
        let (queue, rest) = mpsc::channel(FRAME_QUEUE);
        let link = link.clone();
        // Beside the writing: a guest that refuses says so while the input is still on its way.
        let answer = tokio::spawn(async move {
            let body = RequestBody::stream(first, rest);
            let types = [route::FRAMES, route::JSON];
            let response = link
                .request_for(Method::POST, route::PROCESS_INPUT, types, body)
                .await?;
            in_time(CONTROL_DEADLINE, read_document(response.into_body())).await
        });
        Ok(Self {
            queue,
            answer,
            _place: place,
        })
    }

    /// Sends input. Whether the process took it, [`InputStream::finish`] tells; after a failure the rest is thrown away.
    ///
    /// # Errors
    /// `Deadline` when the process does not take it.
    pub async fn write(&self, mut data: Bytes) -> Result<(), LinkError> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(MAX_FRAME_PAYLOAD_BYTES));
            if !self.send(RequestFrame::Stdin(piece)).await? {
                break;
            }
        }
        Ok(())
    }

    /// Ends the stream, and the process's input too when `end` says so; returns how many bytes went in.
    ///
    /// # Errors
    /// `Refused` with `no_such_process`, `no_input` or `input_stalled`; `Gone`, `Protocol`, `Deadline`.
    pub async fn finish(mut self, end: bool) -> Result<u64, LinkError> {
        if end {
            self.send(RequestFrame::StdinEnd).await?;
        }
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.queue, closed));
        let answer = async { (&mut self.answer).await.map_err(|_| LinkError::Gone) };
        let summary = in_time(INPUT_DEADLINE + CONTROL_DEADLINE, answer).await??;
        Ok(summary.written_bytes)
    }

    /// Sends a frame; false when the guest hears no more, because it has answered.
    async fn send(&self, frame: RequestFrame) -> Result<bool, LinkError> {
        let chunk = frame.encode()?;
        // Later than the guest's own, so that its reason arrives.
        let patience = INPUT_DEADLINE + CONTROL_DEADLINE;
        in_time(patience, async { Ok(self.queue.send(chunk).await.is_ok()) }).await
    }
}

impl Drop for InputStream {
    fn drop(&mut self) {
        self.answer.abort();
    }
}
