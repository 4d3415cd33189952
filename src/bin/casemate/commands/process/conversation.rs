//! One process over a WebSocket, from its start to its end: what it says is shown, what is typed or
//! piped in goes to it, and it ends with the socket.
//!
//! Both directions go on at the same time; a side that does not take slows the other one down.

use std::cell::Cell;
use std::future::pending;

use ::http::Method;
use bytes::Bytes;
use casemate::base::exit::Exit;
use casemate::base::id::SessionId;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::super::ending::Ending;
use super::super::stop::Stop;
use super::Start;
use super::escape::Escapes;
use super::show::{Output, Show};
use super::terminal::{self, Raw};
use crate::failure::Failure;
use crate::http::{Call, Client, Message, SocketReceiver, SocketSender};
use crate::output::{tell, unblocked};

/// The messages of casemated's `terminal` page.
const PROTOCOL: &str = "casemate.process.v1";

/// Bytes of input in one message.
const INPUT_BYTES: usize = 64 << 10;

/// Messages that wait for the line: enough that reading and sending do not wait for each other.
const WAITING_MESSAGES: usize = 4;

/// What the process reads.
pub enum Input {
    /// Nothing: its input ends at once.
    Nothing,
    /// Nothing, from a terminal, which has no end.
    Silence,
    /// Our standard input, up to its end.
    Stream,
    /// What is typed at our terminal, which is in raw mode.
    Terminal(#[expect(dead_code, reason = "kept for what its drop does")] Raw),
}

/// What casemated says in text; what a newer one says besides is not for us.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Said {
    Started {
        pid: u32,
    },
    Lost {
        stdout_bytes: u64,
        stderr_bytes: u64,
    },
    Exit(Ending),
    Error {
        code: String,
        detail: String,
    },
    #[serde(other)]
    Other,
}

/// What we say.
enum Told {
    Input(Bytes),
    Text(Control),
}

/// What we say in text.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Control {
    Resize { rows: u16, cols: u16 },
    StdinEnd,
    Signal { signal: &'static str },
}

/// How it came to an end that is none of the process's.
enum Break {
    /// A signal of ours, as the exit code that belongs to it.
    Stopped(Exit),
    /// The escape of a terminal.
    HungUp,
}

/// Where both directions meet.
struct Meeting<'a> {
    client: &'a Client,
    id: SessionId,
    /// The process's pid, when it is known.
    pid: Cell<Option<u32>>,
    /// Whether input is on its way, behind which a message might wait for ever.
    has_input: Cell<bool>,
    to_line: mpsc::Sender<Told>,
}

/// Starts a process and stays until it has ended; the exit code.
pub async fn converse(
    client: &Client,
    id: SessionId,
    start: &Start,
    input: Input,
    mut show: Show,
) -> Result<u8, Failure> {
    let is_terminal = matches!(input, Input::Terminal(_));
    let start = start.json()?;
    let mut stop = Stop::listen()?;
    let mut hangup = listen(SignalKind::hangup(), is_terminal)?;
    let mut resized = listen(SignalKind::window_change(), is_terminal)?;
    let path = format!("/v1/sessions/{id}/exec");
    let socket = tokio::select! {
        biased;
        exit = stop.asked() => return Ok(exit.code()),
        socket = client.socket(&path, PROTOCOL) => socket?,
    };
    let (mut sender, mut receiver) = socket.split();
    let (to_line, mut from_us) = mpsc::channel(WAITING_MESSAGES);
    let meeting = Meeting {
        client,
        id,
        pid: Cell::new(None),
        has_input: Cell::new(false),
        to_line,
    };
    let ended = tokio::select! {
        // A person who wants out comes before everything that is still to be shown.
        biased;
        exit = meeting.obey(&mut stop, is_terminal) => Ok(Break::Stopped(exit)),
        () = arrived(&mut hangup) => Ok(Break::Stopped(Exit::Terminated)),
        () = meeting.follow(&mut resized) => pending().await,
        () = speak(&mut sender, start, &mut from_us) => pending().await,
        ended = meeting.hear(&mut receiver, &mut show) => Err(ended),
        broken = meeting.feed(&input) => broken.map_or_else(|failure| Err(Err(failure)), Ok),
    };
    sender.close().await;
    // The terminal is itself again before anything is told on it.
    drop(input);
    match ended {
        Err(ended) => ended,
        Ok(Break::Stopped(exit)) => Ok(exit.code()),
        Ok(Break::HungUp) => {
            tell("hung up; the program ends with the connection");
            Ok(Exit::Interrupted.code())
        }
    }
}

fn listen(kind: SignalKind, is_wanted: bool) -> Result<Option<Signal>, Failure> {
    let listening = is_wanted.then(|| signal(kind)).transpose();
    listening
        .map_err(|error| Failure::new(Exit::Software, format!("cannot listen to signals: {error}")))
}

async fn arrived(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => pending().await,
    }
}

/// Sends what is to be started, and then what there is to say.
async fn speak(sender: &mut SocketSender, start: String, from_us: &mut mpsc::Receiver<Told>) {
    sender.text(start).await;
    while let Some(told) = from_us.recv().await {
        match told {
            Told::Input(bytes) => sender.binary(bytes).await,
            // Our own types always serialise.
            Told::Text(text) => {
                let text = serde_json::to_string(&text).unwrap_or_default();
                sender.text(text).await;
            }
        }
    }
    pending::<()>().await;
}

impl Meeting<'_> {
    async fn tell(&self, told: Told) {
        // A line that is gone is noticed where it is listened to.
        let _ = self.to_line.send(told).await;
    }

    /// Shows what the process says; the exit code that it ends with.
    async fn hear(&self, receiver: &mut SocketReceiver, show: &mut Show) -> Result<u8, Failure> {
        loop {
            let goes_on = match receiver.receive().await? {
                Message::Binary(bytes) => {
                    let (output, data) = match bytes.split_first() {
                        Some((1, data)) => (Output::Stdout, data),
                        Some((2, data)) => (Output::Stderr, data),
                        _ => return Err(Failure::mismatch()),
                    };
                    show.output(output, data).await?
                }
                Message::Text(text) => {
                    match serde_json::from_str(&text).map_err(|_| Failure::mismatch())? {
                        Said::Started { pid } => {
                            self.pid.set(Some(pid));
                            show.started(pid).await?
                        }
                        Said::Lost {
                            stdout_bytes,
                            stderr_bytes,
                        } => {
                            show.lost(Output::Stdout, stdout_bytes).await?
                                && show.lost(Output::Stderr, stderr_bytes).await?
                        }
                        Said::Exit(ending) => {
                            show.ended(&ending).await?;
                            if ending.timed_out {
                                tell("the program's time was over; --timeout S gives it more");
                            }
                            return ending.code();
                        }
                        Said::Error { code, detail } => {
                            return Err(Failure::new(Exit::Failed, format!("{detail} ({code})")));
                        }
                        Said::Other => true,
                    }
                }
                Message::Closed { code, reason } => {
                    let why = if reason.is_empty() {
                        code.to_string()
                    } else {
                        reason
                    };
                    return Err(Failure::unavailable(format!(
                        "casemated closed the connection before the program's end was known ({why})"
                    )));
                }
            };
            if !goes_on {
                // The reader has seen enough; the program ends with the socket.
                return Ok(Exit::Ok.code());
            }
        }
    }

    /// Sends what is typed or piped in. Ends only when there is a reason to end everything.
    async fn feed(&self, input: &Input) -> Result<Break, Failure> {
        let mut escapes = match input {
            Input::Silence => return pending().await,
            Input::Nothing => None,
            Input::Stream => {
                self.has_input.set(true);
                None
            }
            Input::Terminal(_) => Some(Escapes::new()),
        };
        let failed = |error| Failure::io("read standard input", &error);
        let mut stdin = match input {
            Input::Nothing => None,
            _ => Some(unblocked(std::io::stdin()).map_err(failed)?),
        };
        while let Some(stdin) = &mut stdin {
            let mut bytes = Vec::with_capacity(INPUT_BYTES);
            if stdin.read_buf(&mut bytes).await.map_err(failed)? == 0 {
                break;
            }
            if let Some(escapes) = &mut escapes {
                let typed = escapes.read(&bytes);
                if typed.hangs_up {
                    return Ok(Break::HungUp);
                }
                bytes = typed.bytes;
            }
            if !bytes.is_empty() {
                self.tell(Told::Input(bytes.into())).await;
            }
        }
        if escapes.is_some() {
            // Our terminal is gone.
            return Ok(Break::Stopped(Exit::Terminated));
        }
        self.tell(Told::Text(Control::StdinEnd)).await;
        pending().await
    }

    /// Tells the process how large our terminal is, whenever it changes.
    async fn follow(&self, resized: &mut Option<Signal>) {
        loop {
            arrived(resized).await;
            let terminal::Size { rows, cols } = terminal::size();
            self.tell(Told::Text(Control::Resize { rows, cols })).await;
        }
    }

    /// Hands the first Ctrl-C or SIGTERM on to the process; the second is for us. In raw mode keys
    /// are no signals, so that the first is for us already.
    async fn obey(&self, stop: &mut Stop, is_terminal: bool) -> Exit {
        let exit = stop.asked().await;
        if is_terminal {
            return exit;
        }
        let signal = match exit {
            Exit::Terminated => "SIGTERM",
            _ => "SIGINT",
        };
        tokio::select! {
            biased;
            exit = stop.asked() => exit,
            () = self.signal(signal) => stop.asked().await,
        }
    }

    /// Sends a signal to the process: beside the socket when input is on its way, which the process
    /// may never read.
    async fn signal(&self, signal: &'static str) {
        let apart = self.pid.get().filter(|_| self.has_input.get());
        let Some(pid) = apart else {
            return self.tell(Told::Text(Control::Signal { signal })).await;
        };
        let id = self.id;
        let call = Call::new(
            Method::POST,
            format!("/v1/sessions/{id}/processes/{pid}/signal"),
        );
        let call = call.json(json!({"signal": signal}).to_string());
        if let Err(failure) = self.client.call(call).await {
            tell(&format!(
                "{signal} was not sent: {}; once more gives up",
                failure.message
            ));
        }
    }
}
