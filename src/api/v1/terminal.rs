//! Processes over a WebSocket: what they say comes as it comes, what they are told goes as it is typed.
//!
//! Binary messages from the server are output: one byte says which (1 standard output, 2 standard error), the rest are its
//! bytes. Binary messages from the client are input. Text messages are JSON with a `type`: [`Said`] and [`Told`].

use bytes::{BufMut, Bytes, BytesMut};
use casemate_link::daemon::{ProcessEvent, ProcessInput};
use casemate_link::process::{AttachRequest, Lost, Selector, SlowReader};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::processes::{ExitView, ProcessView, StartProcess, TerminalSize, read_signal, selector};
use crate::api::body::Query;
use crate::api::error::Problem;
use crate::api::route::{Call, Reply};
use crate::api::socket::{Message, Socket, SocketError, SocketReceiver, SocketSender};
use crate::app::{App, Attachment};
use crate::base::id::SessionId;
use crate::model::principal::Principal;

/// The sub-protocol: this page's messages.
pub(crate) const PROTOCOL: &str = "casemate.process.v1";

const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// Close code of a socket whose client did not keep to the messages (RFC 6455 section 7.4.1).
const BAD_MESSAGE: u16 = 1008;

/// Close code of a socket whose process could not be had, or not to its end.
const FAILED: u16 = 1011;

/// Close code of a socket whose process has ended.
const ENDED: u16 = 1000;

/// What the server says in text.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Said {
    /// First: the process that was started.
    Started {
        /// Its pid in the sandbox.
        pid: u32,
    },
    /// First: the process that was there already.
    Attached {
        /// As it is.
        process: Box<ProcessView>,
    },
    /// Output that would have come now, and is not there any more.
    Lost {
        stdout_bytes: u64,
        stderr_bytes: u64,
    },
    /// Last: how it ended.
    Exit(ExitView),
    /// Last: why there is no process, or nothing more to hear of it.
    Error {
        /// A stable word for programs.
        code: &'static str,
        /// A sentence for people.
        detail: String,
    },
}

/// What the client says in text.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Told {
    /// The terminal has another size.
    Resize { rows: u16, cols: u16 },
    /// The input ends here.
    StdinEnd,
    /// A signal for the process group, by name or number.
    Signal { signal: String },
}

/// Attaches to a process that runs or is kept.
pub(crate) async fn attach(call: &Call) -> Result<Reply, Problem> {
    let id: SessionId = call.segment("id")?;
    let principal = call.principal()?.clone();
    let mut query = Query::read(call, &["stdout_offset", "stderr_offset"])?;
    let request = AttachRequest {
        process: selector(call)?,
        stdout_offset: query.number("stdout_offset")?.unwrap_or(0),
        stderr_offset: query.number("stderr_offset")?.unwrap_or(0),
        output: true,
    };
    let app = call.app.clone();
    // Before the upgrade, so that what cannot be is an ordinary answer.
    let attachment = app.attach_process(&principal, id, request).await?;
    Reply::upgrade(call, move |socket| async move {
        let info = attachment.info().cloned();
        if let Some(info) = info {
            let process = Box::new(info.into());
            if say(&socket, &Said::Attached { process }).await.is_err() {
                return;
            }
        }
        let who = Who { app, principal, id };
        converse(socket, attachment, &who).await;
    })
}

/// Starts a process, which the first message describes, and ends it with the socket.
pub(crate) async fn exec(call: &Call) -> Result<Reply, Problem> {
    let id: SessionId = call.segment("id")?;
    let principal = call.principal()?.clone();
    Query::read(call, &[])?;
    let app = call.app.clone();
    // A session that is not there is an ordinary answer.
    app.session(&principal, id).await?;
    Reply::upgrade(call, move |mut socket| async move {
        let Some(Message::Text(first)) = socket.receive().await else {
            return socket.close(BAD_MESSAGE, "begin with what to start").await;
        };
        let who = Who { app, principal, id };
        let started = match serde_json::from_str::<StartProcess>(&first) {
            Ok(request) => who.start(request).await,
            Err(error) => Err(Problem::bad_request(error.to_string())),
        };
        match started {
            Ok(attachment) => {
                let pid = attachment.pid();
                if say(&socket, &Said::Started { pid }).await.is_ok() {
                    converse(socket, attachment, &who).await;
                }
            }
            Err(problem) => fail(&socket.split().0, &problem).await,
        }
    })
}

/// Whose socket it is.
struct Who {
    app: App,
    principal: Principal,
    id: SessionId,
}

impl Who {
    async fn start(&self, request: StartProcess) -> Result<Attachment, Problem> {
        let bounds = self.app.settings();
        let mut spec = request.into_spec(&bounds.sessions, SlowReader::Wait)?;
        spec.stdin = true;
        Ok(self
            .app
            .start_process(&self.principal, self.id, spec)
            .await?)
    }
}

/// Carries both directions until the process has ended or the client is gone.
async fn converse(socket: Socket, mut attachment: Attachment, who: &Who) {
    let (sender, mut receiver) = socket.split();
    let (input, number) = (attachment.input(), attachment.number());
    let speaking = speak(&sender, &mut attachment);
    let hearing = hear(&mut receiver, &input, number, who);
    tokio::select! {
        // The end of the process is the end, whatever the client still says.
        biased;
        () = speaking => {}
        heard = hearing => match heard {
            Ok(()) => {}
            Err(problem) => fail_with(&sender, BAD_MESSAGE, &problem).await,
        },
    }
}

/// Says what the process says, and how it ended.
async fn speak(sender: &SocketSender, attachment: &mut Attachment) {
    while let Some(event) = attachment.next().await {
        let said = match event {
            Ok(ProcessEvent::Stdout(data)) => sender.send(output(STDOUT, &data)).await,
            Ok(ProcessEvent::Stderr(data)) => sender.send(output(STDERR, &data)).await,
            Ok(ProcessEvent::Lost(lost)) => {
                let Lost {
                    stdout_bytes,
                    stderr_bytes,
                } = lost;
                let lost = Said::Lost {
                    stdout_bytes,
                    stderr_bytes,
                };
                text(sender, &lost).await
            }
            Ok(ProcessEvent::Exited(exit)) => {
                // A client that is gone need not hear it.
                if text(sender, &Said::Exit(exit.into())).await.is_ok() {
                    sender.close(ENDED, "").await;
                }
                return;
            }
            Err(error) => return fail(sender, &Problem::from(error)).await,
        };
        if said.is_err() {
            return;
        }
    }
}

/// Does what the client says, in its order, until the client is gone. Input that the process does not take holds up what
/// follows it; a signal that must not wait is sent apart.
async fn hear(
    receiver: &mut SocketReceiver,
    input: &ProcessInput,
    number: u64,
    who: &Who,
) -> Result<(), Problem> {
    while let Some(message) = receiver.receive().await {
        match message {
            Message::Binary(data) => {
                // A process that has ended takes none; its end is told in its turn.
                let _ = input.write(data).await;
            }
            Message::Text(json) => {
                let told: Told = serde_json::from_str(&json)
                    .map_err(|error| Problem::bad_request(error.to_string()))?;
                obey(told, input, number, who).await?;
            }
        }
    }
    Ok(())
}

async fn obey(told: Told, input: &ProcessInput, number: u64, who: &Who) -> Result<(), Problem> {
    let process = Selector::Process(number);
    let Who { app, principal, id } = who;
    match told {
        Told::Resize { rows, cols } => {
            let size = TerminalSize::new(rows, cols).read()?;
            // It may just have ended, or have no terminal: nothing that its user could mend.
            let _ = app.resize_process(principal, *id, process, size).await;
        }
        Told::StdinEnd => {
            let _ = input.end().await;
        }
        Told::Signal { signal } => {
            let signal = read_signal(&signal)?;
            let _ = app.signal_process(principal, *id, process, signal).await;
        }
    }
    Ok(())
}

/// An output message.
fn output(which: u8, data: &[u8]) -> Message {
    let mut bytes = BytesMut::with_capacity(1 + data.len());
    bytes.put_u8(which);
    bytes.put_slice(data);
    Message::Binary(Bytes::from(bytes))
}

async fn say(socket: &Socket, said: &Said) -> Result<(), SocketError> {
    socket.send(json(said)).await
}

async fn text(sender: &SocketSender, said: &Said) -> Result<(), SocketError> {
    sender.send(json(said)).await
}

fn json(said: &Said) -> Message {
    // Our own types always serialise.
    Message::Text(serde_json::to_string(said).unwrap_or_default())
}

async fn fail(sender: &SocketSender, problem: &Problem) {
    fail_with(sender, FAILED, problem).await;
}

async fn fail_with(sender: &SocketSender, close: u16, problem: &Problem) {
    let error = Said::Error {
        code: problem.code(),
        detail: problem.detail().to_owned(),
    };
    // A client that is gone need not hear it.
    let _ = text(sender, &error).await;
    sender.close(close, problem.code()).await;
}
