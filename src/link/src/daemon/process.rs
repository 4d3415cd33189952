//! One process in the sandbox, seen from the daemon: what it says, and what it is told.

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::LinkError;
use super::body::{RequestBody, refused};
use super::link::{Detached, Link};
use crate::limits::{FRAME_QUEUE, MAX_FRAME_PAYLOAD_BYTES};
use crate::process::{ProcessExit, ProcessSpec, Started};
use crate::route;
use crate::wire::{Decoder, RequestFrame, ResponseFrame};

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
    reading: Reading,
    /// Bytes of standard output and error that the guest may still send.
    allowance: [u64; 2],
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

/// The response body as frames.
#[derive(Debug)]
struct Reading {
    body: Incoming,
    chunk: Bytes,
    decoder: Decoder<ResponseFrame>,
}

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
        let mut reading = Reading {
            body: response.into_body(),
            chunk: Bytes::new(),
            decoder: Decoder::new(),
        };
        match reading.frame().await? {
            ResponseFrame::Started(Started { process, pid }) => {
                let input = ProcessInput {
                    link,
                    process,
                    queue,
                };
                Ok(Self {
                    pid,
                    input,
                    reading,
                    allowance,
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
        let frame = self.reading.frame().await;
        let event = frame.and_then(|frame| self.admit(frame));
        self.ended = !matches!(event, Ok(ProcessEvent::Stdout(_) | ProcessEvent::Stderr(_)));
        if let Ok(ProcessEvent::Exited(_)) = event {
            // The guest has forgotten it already, so there is nothing to tell it.
            self.place = None;
        }
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

impl Reading {
    async fn frame(&mut self) -> Result<ResponseFrame, LinkError> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.chunk)? {
                return Ok(frame);
            }
            match self.body.frame().await {
                // Trailers say nothing on this link.
                Some(Ok(frame)) => self.chunk = frame.into_data().unwrap_or_default(),
                Some(Err(_)) => return Err(LinkError::Gone),
                None => {
                    return Err(LinkError::Protocol(
                        "a process stream that ends without an end".into(),
                    ));
                }
            }
        }
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
