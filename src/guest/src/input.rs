//! What goes into a process: frames of any number of streams, one whole frame after the other.
//!
//! Nothing is queued here: a stream is read only as fast as the process reads, and while one writes the others wait.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use casemate_link::wire::{FrameReader, RequestFrame};
use nix::errno::Errno;
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::timeout;

use crate::ends::Watched;
use crate::terminal;

/// The input of a process.
#[derive(Debug)]
pub(crate) struct Input {
    /// Absent when there is none, or no more. Held for a whole frame.
    sink: Mutex<Option<Sink>>,
    /// Whether the process is over: then nobody waits for it to read.
    over: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Sink {
    fd: Watched,
    /// For a terminal: whether the last thing written ended a line.
    at_line_start: Option<bool>,
}

/// Why input goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Halt {
    /// The stream was cut, or says what does not belong there.
    Broken,
    /// The process takes none, or no more.
    NoInput,
    /// The process did not read in time.
    Stalled,
}

type Turn<'a> = MutexGuard<'a, Option<Sink>>;

impl Input {
    pub(crate) fn new(
        stdin: Option<Watched>,
        is_terminal: bool,
        over: watch::Receiver<bool>,
    ) -> Self {
        let sink = stdin.map(|fd| Sink {
            fd,
            at_line_start: is_terminal.then_some(true),
        });
        Self {
            sink: Mutex::new(sink),
            over,
        }
    }

    /// Whether the process takes any.
    pub(crate) fn is_open(&self) -> bool {
        // Whoever writes at the moment has something to write to.
        !*self.over.borrow() && self.sink.try_lock().map_or(true, |sink| sink.is_some())
    }

    /// Lets go of the input of a process that is over.
    pub(crate) async fn close(&self) {
        *self.sink.lock().await = None;
    }

    /// Carries a stream's frames to the process until the stream ends; counts what went in. `patience` is for the process
    /// to take anything at all, and for the turn of whoever writes before.
    ///
    /// # Errors
    /// [`Halt`].
    pub(crate) async fn carry(
        &self,
        frames: &mut FrameReader<RequestFrame>,
        patience: Duration,
        written: &mut u64,
    ) -> Result<(), Halt> {
        let mut over = self.over.clone();
        let carrying = async {
            let mut held: Option<Turn<'_>> = None;
            loop {
                let frame = frames.next().await.map_err(|_| Halt::Broken)?;
                match frame {
                    Some(RequestFrame::Stdin(data)) => {
                        let mut turn = match held.take() {
                            Some(turn) => turn,
                            None => self.turn(patience).await?,
                        };
                        put(&mut turn, data, patience, written).await?;
                        held = frames.is_within_data().then_some(turn);
                    }
                    Some(RequestFrame::StdinEnd) => {
                        let mut turn = self.turn(patience).await?;
                        end(&mut turn, patience).await?;
                    }
                    None => return Ok(()),
                    Some(_) => return Err(Halt::Broken),
                }
            }
        };
        tokio::select! {
            // What comes after its end is not for the process any more.
            biased;
            _ = over.wait_for(|over| *over) => Err(Halt::NoInput),
            result = carrying => result,
        }
    }

    async fn turn(&self, patience: Duration) -> Result<Turn<'_>, Halt> {
        let turn = timeout(patience, self.sink.lock()).await;
        turn.map_err(|_| Halt::Stalled)
    }
}

/// Writes one piece of a frame.
async fn put(
    turn: &mut Turn<'_>,
    mut data: Bytes,
    patience: Duration,
    written: &mut u64,
) -> Result<(), Halt> {
    let sink = turn.as_mut().ok_or(Halt::NoInput)?;
    if let Some(at_line_start) = &mut sink.at_line_start {
        *at_line_start = terminal::ends_line(&data);
    }
    while !data.is_empty() {
        match timeout(patience, write(&sink.fd, &data)).await {
            Ok(Ok(count)) => {
                *written += u64::try_from(count).unwrap_or(0);
                drop(data.split_to(count.min(data.len())));
            }
            Ok(Err(_)) => {
                // Nobody reads it any more, and nobody will.
                **turn = None;
                return Err(Halt::NoInput);
            }
            Err(_) => return Err(Halt::Stalled),
        }
    }
    Ok(())
}

/// Ends the input. A terminal stays open: its end is for whoever reads it at the moment.
async fn end(turn: &mut Turn<'_>, patience: Duration) -> Result<(), Halt> {
    let sink = turn.as_mut().ok_or(Halt::NoInput)?;
    let Some(at_line_start) = sink.at_line_start else {
        **turn = None;
        return Ok(());
    };
    let characters = terminal::end_of_input(&*sink.fd, at_line_start);
    put(turn, characters.into(), patience, &mut 0).await
}

/// Writes what there is place for.
async fn write(fd: &Watched, data: &[u8]) -> io::Result<usize> {
    loop {
        let mut ready = fd.writable().await?;
        match nix::unistd::write(&**fd, data) {
            // A terminal that nobody has open any more is full for good, and always says that it is ready.
            Err(Errno::EAGAIN) if ready.ready().is_write_closed() => {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}
