//! One process in the sandbox, seen from the daemon: what it says, and what it is told.

use bytes::Bytes;
use http::Method;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

use super::LinkError;
use super::body::{RequestBody, refused};
use super::link::{Detached, Link};
use crate::limits::{FRAME_QUEUE, MAX_FRAME_PAYLOAD_BYTES, STREAM_END_DEADLINE};
use crate::process::{ProcessExit, ProcessSpec, Started};
use crate::route;
use crate::wire::{FrameReader, ReadError, RequestFrame, ResponseFrame};

/// What a process says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// Bytes of its standard output, at most 64 KiB, cut anywhere.
    Stdout(Bytes),
    /// Bytes of its standard error, at most 64 KiB, cut anywhere.
    Stderr(Bytes),
    /// It ended; nothing follows.
    Exited(ProcessExit),
}

/// A running process. Whoever holds it reads its events; not reading slows the process down and costs a bounded amount of
/// memory. Dropping it before its end makes the guest end the process (SIGTERM to its group, the grace, SIGKILL).
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
}

/// The input side of a process; clones feed the same process.
#[derive(Debug, Clone)]
pub struct ProcessInput {
    link: Link,
    process: u64,
    queue: mpsc::Sender<Bytes>,
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
        let start = RequestFrame::Start(Box::new(spec)).encode()?;
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
                })
            }
            ResponseFrame::Failed(refusal) => Err(refused(refusal)),
            _ => Err(LinkError::Protocol(
                "a process that speaks before it started".into(),
            )),
        }
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
        self.ended = !matches!(event, Ok(ProcessEvent::Stdout(_) | ProcessEvent::Stderr(_)));
        Some(event)
    }

    /// Holds the guest to what was agreed.
    fn admit(&mut self, frame: ResponseFrame) -> Result<ProcessEvent, LinkError> {
        let [stdout, stderr] = &mut self.allowance;
        match frame {
            ResponseFrame::Stdout(data) => {
                charge(stdout, &data).map(|()| ProcessEvent::Stdout(data))
            }
            ResponseFrame::Stderr(data) => {
                charge(stderr, &data).map(|()| ProcessEvent::Stderr(data))
            }
            ResponseFrame::Exited(exit) => Ok(ProcessEvent::Exited(exit)),
            ResponseFrame::Started(_) | ResponseFrame::Failed(_) => {
                Err(LinkError::Protocol("a process that starts twice".into()))
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.input.link.detach(Detached {
                process: self.input.process,
                place,
            });
        }
    }
}

fn charge(allowance: &mut u64, data: &Bytes) -> Result<(), LinkError> {
    let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
    *allowance = allowance.checked_sub(length).ok_or_else(|| {
        LinkError::Protocol("more output than the guest was allowed to send".into())
    })?;
    Ok(())
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
            self.send(&RequestFrame::Stdin(piece)).await?;
        }
        Ok(())
    }

    /// Ends standard input, after all that was written. What is written later is thrown away.
    ///
    /// # Errors
    /// [`InputClosed`] when the process has ended.
    pub async fn end(&self) -> Result<(), InputClosed> {
        self.send(&RequestFrame::StdinEnd).await
    }

    /// Sends a signal to the process's group; overtakes input that the program does not read.
    ///
    /// # Errors
    /// `Refused` with `no_such_process` after its end, `Deadline`, `Gone`, `Protocol`.
    pub async fn signal(&self, signum: i32) -> Result<(), LinkError> {
        self.link.signal(self.process, signum).await
    }

    async fn send(&self, frame: &RequestFrame) -> Result<(), InputClosed> {
        let chunk = frame.encode().map_err(|_| InputClosed)?;
        self.queue.send(chunk).await.map_err(|_| InputClosed)
    }
}
