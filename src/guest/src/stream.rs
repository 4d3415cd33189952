//! The three streams of a process: its starter's, a reader's, and one that only brings input.
//!
//! What is read is pulled: HTTP/2 asks a [`Reader`] for its next frame when it can send one, so a slow reader holds no more
//! than what is on its way.

use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use casemate_link::limits::{INPUT_DEADLINE, START_DEADLINE};
use casemate_link::process::{AttachRequest, InputRequest, InputSummary, ProcessSpec};
use casemate_link::refusal::{Refusal, code};
use casemate_link::wire::{Chunk, FrameReader, RequestFrame, ResponseFrame};
use hyper::body::Incoming;
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::body::Answer;
use crate::child::refusal;
use crate::input::Halt;
use crate::process::Process;
use crate::processes::Processes;
use crate::store::{Next, Which};

/// Input on a stream that also reads waits for as long as the process likes: its sender sees what becomes of it.
const PATIENT: Duration = Duration::MAX;

/// Somebody who reads a process, as the body of a response. Dropped when nobody listens any more.
#[derive(Debug)]
pub(crate) struct Reader {
    process: Rc<Process>,
    id: u64,
    /// Said before anything else.
    first: Option<Chunk>,
    is_done: bool,
}

impl Reader {
    fn new(process: &Rc<Process>, id: u64, first: ResponseFrame) -> Self {
        Self {
            process: Rc::clone(process),
            id,
            first: first.encode().ok(),
            is_done: false,
        }
    }

    /// The next frame; `None` after the last.
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Chunk>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if self.is_done {
            return Poll::Ready(None);
        }
        let next = ready!(self.process.store.borrow_mut().poll_next(self.id, cx));
        let frame = match next {
            Next::Data(Which::Stdout, data) => ResponseFrame::Stdout(data),
            Next::Data(Which::Stderr, data) => ResponseFrame::Stderr(data),
            Next::Lost(lost) => ResponseFrame::Lost(lost),
            Next::Over => {
                self.is_done = true;
                ResponseFrame::Exited(self.process.state.exit.get().unwrap_or_default())
            }
            Next::Gone => {
                self.is_done = true;
                return Poll::Ready(None);
            }
        };
        Poll::Ready(frame.encode().ok())
    }

    /// Whether the last frame was given out, so that it can carry the stream's end itself.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.process.detach(self.id);
    }
}

/// Starts a process. Its stream says how that went, also when it failed.
///
/// # Errors
/// When the request does not begin with what to start.
pub(crate) async fn start(body: Incoming, processes: &Rc<Processes>) -> Result<Answer, Refusal> {
    let (spec, frames) = begin(body, |frame| match frame {
        RequestFrame::Start(spec) => Some(spec),
        _ => None,
    })
    .await?;
    let spec: Box<ProcessSpec> = spec;
    // Nothing is waited for from here on: a process that runs has its reader, and whether that is heard shows when the
    // answer is dropped.
    Ok(match processes.start(*spec) {
        Ok(process) => {
            let id = process.attach_starter();
            let reader = Reader::new(&process, id, ResponseFrame::Started(process.started()));
            spawn_local(feed(frames, process, Some(id)));
            Answer::Reader(reader)
        }
        Err(refusal) => failed(refusal),
    })
}

/// Reads a process that runs or is kept.
///
/// # Errors
/// When the request does not begin with what to read.
pub(crate) async fn attach(body: Incoming, processes: &Rc<Processes>) -> Result<Answer, Refusal> {
    let (request, frames) = begin(body, |frame| match frame {
        RequestFrame::Attach(request) => Some(request),
        _ => None,
    })
    .await?;
    let request: AttachRequest = request;
    let Some(process) = processes.find(&request.process) else {
        return Ok(failed(gone()));
    };
    let info = ResponseFrame::Attached(Box::new(process.info()));
    let reader = Reader::new(&process, process.attach(&request), info);
    spawn_local(feed(frames, process, None));
    Ok(Answer::Reader(reader))
}

/// Brings a process input, and says how much went in once all has.
///
/// # Errors
/// `no_such_process`, `no_input`, `input_stalled`; `bad_request` when the stream was cut.
pub(crate) async fn input(
    body: Incoming,
    processes: &Rc<Processes>,
) -> Result<InputSummary, Refusal> {
    let (request, mut frames) = begin(body, |frame| match frame {
        RequestFrame::Input(request) => Some(request),
        _ => None,
    })
    .await?;
    let request: InputRequest = request;
    let process = processes.find(&request.process).ok_or_else(gone)?;
    if !process.input.is_open() {
        return Err(refusal(code::NO_INPUT, "the process takes no input"));
    }
    let mut written_bytes = 0;
    let carried = process
        .input
        .carry(&mut frames, INPUT_DEADLINE, &mut written_bytes);
    let (code, what) = match carried.await {
        Ok(()) => return Ok(InputSummary { written_bytes }),
        Err(Halt::Broken) => (code::BAD_REQUEST, "the stream of input was cut short"),
        Err(Halt::NoInput) => (code::NO_INPUT, "the process takes no more input"),
        Err(Halt::Stalled) => (
            code::INPUT_STALLED,
            "the process did not read its input in time",
        ),
    };
    let message = format!("{what}; {written_bytes} bytes had gone in, and are not taken back");
    Err(refusal(code, &message))
}

/// Carries what comes on a reader's stream to the process for as long as it wants any; what it does not want is read and
/// thrown away. A starter that breaks the protocol is one that is gone.
async fn feed(mut frames: FrameReader<RequestFrame>, process: Rc<Process>, starter: Option<u64>) {
    let mut end = process.input.carry(&mut frames, PATIENT, &mut 0).await;
    if end == Err(Halt::NoInput) {
        end = discard(&mut frames).await;
    }
    if let (Err(_), Some(reader)) = (end, starter) {
        process.detach(reader);
    }
}

async fn discard(frames: &mut FrameReader<RequestFrame>) -> Result<(), Halt> {
    loop {
        match frames.next().await {
            Ok(Some(RequestFrame::Stdin(_) | RequestFrame::StdinEnd)) => {}
            Ok(None) => return Ok(()),
            _ => return Err(Halt::Broken),
        }
    }
}

/// Reads the first frame of a stream, which has to be there soon.
async fn begin<T>(
    body: Incoming,
    wanted: impl FnOnce(RequestFrame) -> Option<T>,
) -> Result<(T, FrameReader<RequestFrame>), Refusal> {
    let mut frames = FrameReader::new(body);
    let first = timeout(START_DEADLINE, frames.next()).await;
    let first = match first {
        Ok(Ok(Some(frame))) => wanted(frame),
        _ => None,
    };
    let message = "a process stream that does not begin as it should";
    let first = first.ok_or_else(|| refusal(code::BAD_REQUEST, message))?;
    Ok((first, frames))
}

fn failed(refusal: Refusal) -> Answer {
    Answer::Whole(ResponseFrame::Failed(refusal).encode().ok())
}

/// There is no such process.
pub(crate) fn gone() -> Refusal {
    refusal(code::NO_SUCH_PROCESS, "the process is not there any more")
}
