//! The life of one process on its stream: input in, output out, limits, the end.
//!
//! Memory does not depend on what the process writes: output goes through one buffer of the whole guest and a queue of
//! [`FRAME_QUEUE`] frames, and while that is full the pipes are not read. The process is over when its main process is and
//! its pipes held nothing more at that moment; what it left in the background may keep the pipes and lives on.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use casemate_link::Refusal;
use casemate_link::limits::{FRAME_QUEUE, MAX_FRAME_PAYLOAD_BYTES};
use casemate_link::process::{ProcessExit, ProcessSpec, Started};
use casemate_link::wire::{Chunk, FrameReader, RequestFrame, ResponseFrame};
use nix::fcntl::{FcntlArg, fcntl};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, sleep_until};

use crate::child::refusal;
use crate::processes::{Processes, Running};
use crate::sys;

/// What a pipe holds when the kernel does not say (pipe(7)).
const PIPE_BYTES: usize = 64 * 1024;

thread_local! {
    /// Where pipes are read into: used between two waits only, so one is enough for all processes.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_FRAME_PAYLOAD_BYTES]);
}

type Frame = fn(Bytes) -> ResponseFrame;

/// Starts a process and the task that attends it. Returns what it will say: a first frame is there already.
pub(crate) fn open(
    processes: &Rc<Processes>,
    spec: &ProcessSpec,
    input: FrameReader<RequestFrame>,
) -> Result<mpsc::Receiver<Chunk>, Refusal> {
    let (frames, answer) = mpsc::channel(FRAME_QUEUE);
    let running = processes.start(spec)?;
    let started = Started {
        process: running.number,
        pid: running.pid.unsigned_abs(),
    };
    let stream = Stream {
        processes: Rc::clone(processes),
        spec: spec.clone(),
        frames,
    };
    stream.say(ResponseFrame::Started(started));
    spawn_local(stream.attend(running, input));
    Ok(answer)
}

struct Stream {
    processes: Rc<Processes>,
    spec: ProcessSpec,
    frames: mpsc::Sender<Chunk>,
}

impl Stream {
    /// Attends the process from its birth to its last frame.
    async fn attend(self, running: Running, input: FrameReader<RequestFrame>) {
        let Running {
            number,
            pid,
            pipes,
            ending,
            born,
            detach,
        } = running;
        let opened = (|| {
            let stdin = pipe::Sender::from_owned_fd_unchecked(pipes.stdin)?;
            let stdout = pipe::Receiver::from_owned_fd_unchecked(pipes.stdout)?;
            Ok::<_, io::Error>((
                stdin,
                stdout,
                pipe::Receiver::from_owned_fd_unchecked(pipes.stderr)?,
            ))
        })();
        let Ok((stdin, stdout, stderr)) = opened else {
            // No descriptors left to watch them with: end it rather than leave it alone.
            self.end_group(pid);
            let _ = ending.await;
            self.processes.forget(number);
            let lost = refusal(
                casemate_link::refusal::code::TOO_MANY_PROCESSES,
                "its pipes cannot be watched",
            );
            self.say(ResponseFrame::Failed(lost));
            return;
        };

        let (over, is_over) = watch::channel(false);
        let life = async {
            let (status, timed_out) = self.live(pid, ending, &detach, born.into()).await;
            self.processes.forget(number);
            let duration = born.elapsed();
            over.send_replace(true);
            (status, timed_out, duration)
        };
        let feeding = async {
            if feed(input, stdin).await.is_err() {
                detach.notify_one();
            }
            std::future::pending::<()>().await;
        };
        let out = self.pump(
            stdout,
            ResponseFrame::Stdout,
            self.spec.max_stdout_bytes,
            is_over.clone(),
        );
        let err = self.pump(
            stderr,
            ResponseFrame::Stderr,
            self.spec.max_stderr_bytes,
            is_over,
        );
        let ((status, timed_out, duration), stdout_dropped_bytes, stderr_dropped_bytes) = tokio::select! {
            all = async { tokio::join!(life, out, err) } => all,
            // Never ends; here to be run beside, and dropped with its pipe when all is said.
            () = feeding => return,
        };
        let exit = ProcessExit {
            exit_code: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
            timed_out,
            stdout_dropped_bytes,
            stderr_dropped_bytes,
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        };
        if let Ok(frame) = ResponseFrame::Exited(exit).encode() {
            // Nobody may listen any more.
            let _ = self.frames.send(frame).await;
        }
    }

    /// Waits for the end of the main process; brings it about when the time is over or nobody listens any more.
    async fn live(
        &self,
        pid: i32,
        ending: crate::reaper::Ending,
        detach: &tokio::sync::Notify,
        born: Instant,
    ) -> (Option<ExitStatus>, bool) {
        let mut ending = ending;
        let limit = self.spec.timeout_ms.map(Duration::from_millis);
        let deadline = limit.and_then(|limit| born.checked_add(limit));
        let time_over = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let timed_out = tokio::select! {
            // An end that has come is an end, even when the deadline has come too.
            biased;
            status = &mut ending => return (status.ok(), false),
            () = time_over => true,
            () = self.frames.closed() => false,
            () = detach.notified() => false,
        };
        self.end_group(pid);
        (ending.await.ok(), timed_out)
    }

    /// SIGTERM to the group now, SIGKILL after the grace to whatever of it is left, with or without its leader.
    fn end_group(&self, group: i32) {
        // Errors mean that the group is gone or not ours any more, and neither can be mended.
        let _ = sys::signal_group(group, libc::SIGTERM);
        let grace = Duration::from_millis(self.spec.kill_grace_ms);
        spawn_local(async move {
            sleep(grace).await;
            let _ = sys::signal_group(group, libc::SIGKILL);
        });
    }

    /// Carries one output to the daemon, and returns how many bytes were over the bound. When the process is over, only
    /// what the pipe holds then is still read: no more than its capacity, however much others go on to write.
    async fn pump(
        &self,
        pipe: pipe::Receiver,
        frame_of: Frame,
        max: u64,
        mut over: watch::Receiver<bool>,
    ) -> u64 {
        let (mut left, mut dropped) = (max, 0);
        let mut rest = None;
        loop {
            if rest.is_none() {
                tokio::select! {
                    biased;
                    _ = over.wait_for(|over| *over) => rest = Some(capacity(&pipe)),
                    ready = pipe.readable() => if ready.is_err() { return dropped },
                }
            }
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let data = read_now(&pipe, scratch, rest.is_some())?;
                let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                let sent = length.min(left);
                let frame = data
                    .get(..usize::try_from(sent).unwrap_or(0))
                    .filter(|data| !data.is_empty());
                Ok((
                    data.len(),
                    length,
                    sent,
                    frame.map(|data| frame_of(Bytes::copy_from_slice(data))),
                ))
            });
            let (count, length, sent, frame) = match read {
                Ok(read) => read,
                Err(Stop::Later) if rest.is_none() => continue,
                Err(_) => return dropped,
            };
            left -= sent;
            dropped += length - sent;
            if let Some(Ok(frame)) = frame.map(ResponseFrame::encode)
                && self.frames.send(frame).await.is_err()
            {
                return dropped;
            }
            if let Some(rest) = &mut rest {
                match rest.checked_sub(count) {
                    Some(less) if less > 0 => *rest = less,
                    _ => return dropped,
                }
            }
        }
    }

    /// Says something that surely has place in the queue, or that nobody need hear.
    fn say(&self, frame: ResponseFrame) {
        if let Ok(frame) = frame.encode() {
            let _ = self.frames.try_send(frame);
        }
    }
}

/// Why a pipe gave nothing.
enum Stop {
    /// It is empty.
    Later,
    /// It is at its end.
    Over,
}

/// Reads what is there. `directly` asks the kernel and not the runtime, which may not have heard of the last bytes yet.
fn read_now<'a>(
    pipe: &pipe::Receiver,
    scratch: &'a mut [u8],
    directly: bool,
) -> Result<&'a [u8], Stop> {
    let read = if directly {
        nix::unistd::read(pipe.as_fd(), scratch).map_err(io::Error::from)
    } else {
        pipe.try_read(scratch)
    };
    match read {
        Ok(0) => Err(Stop::Over),
        Ok(count) => scratch.get(..count).ok_or(Stop::Over),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Stop::Later),
        Err(_) => Err(Stop::Over),
    }
}

fn capacity(pipe: &pipe::Receiver) -> usize {
    fcntl(pipe.as_fd(), FcntlArg::F_GETPIPE_SZ)
        .ok()
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or(PIPE_BYTES)
}

/// The daemon broke the protocol on a process's input.
struct BrokenInput;

/// Carries input to the process for as long as it wants any; what it does not want is read and thrown away.
async fn feed(
    mut input: FrameReader<RequestFrame>,
    stdin: pipe::Sender,
) -> Result<(), BrokenInput> {
    let mut stdin = Some(stdin);
    loop {
        match input.next().await.map_err(|_| BrokenInput)? {
            Some(RequestFrame::Stdin(data)) => {
                if let Some(pipe) = &mut stdin
                    && pipe.write_all(&data).await.is_err()
                {
                    stdin = None;
                }
            }
            Some(RequestFrame::StdinEnd) => stdin = None,
            None => return Ok(()),
            Some(_) => return Err(BrokenInput),
        }
    }
}
