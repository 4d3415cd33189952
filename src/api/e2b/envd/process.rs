//! `process.Process`: what runs in a sandbox, as E2B's clients start, follow, feed and end it.

use std::time::Duration;

use bytes::Bytes;
use casemate_link::ProcessSpec;
use casemate_link::daemon::ProcessEvent;
use casemate_link::process::{
    AttachRequest, OnDetach, ProcessExit, ProcessInfo as Known, PtySize, Selector, SlowReader,
};
use futures_util::Stream;
use http::HeaderMap;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::{id, user};
use crate::api::e2b::connect::{self, Messages};
use crate::api::e2b::proto::{
    DataEvent, Empty, EndEvent, Input, InputEvent, ListResponse, OneProcess, Output, ProcessConfig,
    ProcessEvent as Event, ProcessInfo, ProcessInput, ProcessResponse, ProcessSaid,
    ProcessSelector, Pty, Selected, SendInputRequest, SendSignalRequest, Signal, StartEvent,
    StartRequest, StreamInputRequest, UpdateRequest,
};
use crate::api::error::Problem;
use crate::api::route::{Call, Reply};
use crate::app::{AppError, Attachment, Upload};

/// Input on its way to a process.
type Feeding = Upload<crate::app::Input>;

/// How often a stream in which nothing happens says so, where the client does not ask for it.
const KEEPALIVE: Duration = Duration::from_secs(90);

/// Kept of what a process says for those who come to it later.
const KEEP_BYTES: u64 = 1 << 20;

pub(in crate::api) async fn start(call: &Call) -> Result<Reply, Problem> {
    let (asked, user) = (
        connect::asked::<StartRequest>(call).await?,
        user(&call.headers)?,
    );
    let is_pty = asked.pty.is_some();
    let spec = spec(asked, user, connect::timeout(&call.headers)?)?;
    let attachment = call
        .app
        .start_process(call.principal()?, id(call)?, spec)
        .await?;
    follow(call, attachment, is_pty, None)
}

pub(in crate::api) async fn attach(call: &Call) -> Result<Reply, Problem> {
    let asked: OneProcess = connect::asked(call).await?;
    let (principal, id) = (call.principal()?, id(call)?);
    let process = selector(asked.process)?;
    let deadline = connect::timeout(&call.headers)?.map(|after| Instant::now() + after);
    let known = call.app.processes(principal, id).await?;
    let known = known.into_iter().rfind(|known| is_it(known, &process));
    let known = known.ok_or_else(no_such_process)?;
    // What it says from now on; what it said before was somebody else's to read.
    let request = AttachRequest {
        process: Selector::Process(known.process),
        stdout_offset: known.stdout_to,
        stderr_offset: known.stderr_to,
        output: true,
    };
    let attachment = call.app.attach_process(principal, id, request).await?;
    follow(call, attachment, known.pty, deadline)
}

pub(in crate::api) async fn list(call: &Call) -> Result<Reply, Problem> {
    connect::unary(call, async |_: Empty| {
        let processes = call.app.processes(call.principal()?, id(call)?).await?;
        let running = processes.into_iter().filter(|known| known.exit.is_none());
        Ok(ListResponse {
            processes: running.map(ProcessInfo::from).collect(),
        })
    })
    .await
}

pub(in crate::api) async fn update(call: &Call) -> Result<Reply, Problem> {
    connect::unary(call, async |asked: UpdateRequest| {
        let process = selector(asked.process)?;
        if let Some(size) = size(asked.pty)? {
            let resized = call
                .app
                .resize_process(call.principal()?, id(call)?, process, size);
            resized.await?;
        }
        Ok(Empty {})
    })
    .await
}

pub(in crate::api) async fn send_input(call: &Call) -> Result<Reply, Problem> {
    connect::unary(call, async |asked: SendInputRequest| {
        let (principal, id) = (call.principal()?, id(call)?);
        let is_pipe = matches!(
            asked.input.as_ref().and_then(|input| input.input.as_ref()),
            Some(Input::Stdin(_))
        );
        let data = data(asked.input)?;
        let process = selector(asked.process)?;
        if is_pipe && !runs(call, &process).await? {
            return Err(no_such_process());
        }
        let input = call
            .app
            .process_input(principal, id, process.clone(), false);
        let fed = feed(input.await?, data).await;
        settled(call, &process, fed).await?;
        Ok(Empty {})
    })
    .await
}

async fn feed(mut input: Feeding, data: Bytes) -> Result<(), AppError> {
    input.write(data).await?;
    input.commit().await?;
    Ok(())
}

/// What became of input. One that read what it wanted and ended meanwhile is not to blame, nor is who fed it.
async fn settled(
    call: &Call,
    process: &Selector,
    fed: Result<(), AppError>,
) -> Result<(), Problem> {
    match fed.map_err(Problem::from) {
        Err(problem) if problem.code() == "no_input" && !runs(call, process).await? => Ok(()),
        fed => fed,
    }
}

/// Whether a process runs, and has not ended yet.
async fn runs(call: &Call, process: &Selector) -> Result<bool, Problem> {
    let known = call.app.processes(call.principal()?, id(call)?).await?;
    Ok(known
        .iter()
        .any(|known| known.exit.is_none() && is_it(known, process)))
}

pub(in crate::api) async fn stream_input(call: &Call) -> Result<Reply, Problem> {
    let mut messages = Messages::read(call)?;
    let mut input = None;
    while let Some(StreamInputRequest { event }) = messages.next().await? {
        match (event, &mut input) {
            (Some(InputEvent::Start(OneProcess { process })), None) => {
                let process = selector(process)?;
                let opened =
                    call.app
                        .process_input(call.principal()?, id(call)?, process.clone(), false);
                input = Some((opened.await?, process));
            }
            (Some(InputEvent::Data(sent)), Some((input, _))) => {
                input.write(data(sent.input)?).await?;
            }
            (Some(InputEvent::Keepalive(_)) | None, _) => {}
            (Some(InputEvent::Start(_)), Some(_)) | (Some(InputEvent::Data(_)), None) => {
                return Err(Problem::bad_request(
                    "first the process, once, then what it shall read",
                ));
            }
        }
    }
    if let Some((input, process)) = input {
        settled(call, &process, input.commit().await.map(|_| ())).await?;
    }
    messages.answer(&Empty {})
}

pub(in crate::api) async fn close_stdin(call: &Call) -> Result<Reply, Problem> {
    connect::unary(call, async |asked: OneProcess| {
        let process = selector(asked.process)?;
        if !runs(call, &process).await? {
            return Err(no_such_process());
        }
        let input = call
            .app
            .process_input(call.principal()?, id(call)?, process.clone(), true);
        let ended = input.await?.commit().await.map(|_| ());
        settled(call, &process, ended).await?;
        Ok(Empty {})
    })
    .await
}

pub(in crate::api) async fn send_signal(call: &Call) -> Result<Reply, Problem> {
    connect::unary(call, async |asked: SendSignalRequest| {
        let process = selector(asked.process)?;
        let signal = match Signal::try_from(asked.signal) {
            Ok(Signal::SignalSigterm | Signal::SignalSigkill) => asked.signal,
            Ok(Signal::SignalUnspecified) | Err(_) => {
                return Err(Problem::bad_request(
                    "signal: SIGNAL_SIGTERM or SIGNAL_SIGKILL",
                ));
            }
        };
        // One that has ended is kept for who comes late, and is nobody to send a signal to.
        if !runs(call, &process).await? {
            return Err(no_such_process());
        }
        let (principal, id) = (call.principal()?, id(call)?);
        call.app
            .signal_process(principal, id, process, signal)
            .await?;
        Ok(Empty {})
    })
    .await
}

fn spec(
    asked: StartRequest,
    user: Option<String>,
    timeout: Option<Duration>,
) -> Result<ProcessSpec, Problem> {
    let process = asked.process.unwrap_or_default();
    let pty = size(asked.pty)?;
    let argv = std::iter::once(process.cmd).chain(process.args);
    let spec = ProcessSpec {
        env: process.envs,
        cwd: process.cwd.filter(|cwd| !cwd.is_empty()),
        user,
        tag: asked.tag.filter(|tag| !tag.is_empty()),
        // Clients that do not say so were written when all had one.
        stdin: asked.stdin.unwrap_or(true) || pty.is_some(),
        pty,
        timeout_ms: timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        max_stdout_bytes: u64::MAX,
        max_stderr_bytes: u64::MAX,
        keep_bytes: KEEP_BYTES,
        slow_reader: SlowReader::Wait,
        on_detach: OnDetach::Keep,
        ..ProcessSpec::new(argv)
    };
    spec.validate()
        .map_err(|bad| Problem::bad_request(bad.to_string()))?;
    Ok(spec)
}

fn size(pty: Option<Pty>) -> Result<Option<PtySize>, Problem> {
    let Some(pty) = pty else { return Ok(None) };
    let asked = pty.size.unwrap_or_default();
    let (Ok(rows), Ok(cols)) = (u16::try_from(asked.rows), u16::try_from(asked.cols)) else {
        return Err(Problem::bad_request("pty: at most 65535 rows and columns"));
    };
    if rows == 0 || cols == 0 {
        return Err(Problem::bad_request("pty: at least one row and column"));
    }
    Ok(Some(PtySize { rows, cols }))
}

fn selector(asked: Option<ProcessSelector>) -> Result<Selector, Problem> {
    match asked.and_then(|asked| asked.selector) {
        Some(Selected::Pid(pid)) => Ok(Selector::Pid(pid)),
        Some(Selected::Tag(tag)) => Ok(Selector::Tag(tag)),
        None => Err(Problem::bad_request("process: by its pid or its tag")),
    }
}

fn is_it(known: &Known, wanted: &Selector) -> bool {
    match wanted {
        Selector::Process(number) => known.process == *number,
        Selector::Pid(pid) => known.pid == *pid,
        Selector::Tag(tag) => known.tag.as_ref() == Some(tag),
    }
}

fn no_such_process() -> Problem {
    let status = http::StatusCode::NOT_FOUND;
    Problem::new(
        status,
        "no_such_process",
        "there is no such process, or not any more",
    )
}

fn data(input: Option<ProcessInput>) -> Result<Bytes, Problem> {
    match input.and_then(|input| input.input) {
        Some(Input::Stdin(data) | Input::Pty(data)) => Ok(data),
        None => Err(Problem::bad_request("input: what the process shall read")),
    }
}

/// What a client is told of a process.
struct Telling {
    attachment: Attachment,
    is_pty: bool,
    begun: bool,
    ended: bool,
    keepalive: Interval,
    deadline: Option<Instant>,
}

fn follow(
    call: &Call,
    attachment: Attachment,
    is_pty: bool,
    deadline: Option<Instant>,
) -> Result<Reply, Problem> {
    let telling = Telling {
        attachment,
        is_pty,
        begun: false,
        ended: false,
        keepalive: keepalive(&call.headers),
        deadline,
    };
    connect::stream(call, telling.told())
}

/// When a stream in which nothing happens says so.
pub(super) fn keepalive(headers: &HeaderMap) -> Interval {
    let asked = headers.get("keepalive-ping-interval");
    let asked = asked.and_then(|value| value.to_str().ok()?.parse().ok());
    let every = asked.map_or(KEEPALIVE, |seconds: u64| {
        Duration::from_secs(seconds.clamp(1, 3600))
    });
    let mut interval = tokio::time::interval_at(Instant::now() + every, every);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Ready at the time, or never.
pub(super) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The client's time for a call is over.
pub(super) fn over() -> Problem {
    let status = http::StatusCode::GATEWAY_TIMEOUT;
    Problem::new(
        status,
        "timed_out",
        "the time that the client gave this call is over",
    )
}

impl Telling {
    fn told(self) -> impl Stream<Item = Result<ProcessResponse, Problem>> + Send {
        futures_util::stream::unfold(self, async |mut telling| {
            let said = telling.next().await?;
            let said = said.map(|said| ProcessResponse {
                event: Some(Event { event: Some(said) }),
            });
            Some((said, telling))
        })
    }

    async fn next(&mut self) -> Option<Result<ProcessSaid, Problem>> {
        if self.ended {
            return None;
        }
        if !self.begun {
            self.begun = true;
            let pid = self.attachment.pid();
            return Some(Ok(ProcessSaid::Start(StartEvent { pid })));
        }
        loop {
            let event = tokio::select! {
                biased;
                event = self.attachment.next() => event?,
                () = until(self.deadline) => {
                    self.ended = true;
                    return Some(Err(over()));
                }
                _ = self.keepalive.tick() => return Some(Ok(ProcessSaid::Keepalive(Empty {}))),
            };
            self.keepalive.reset();
            let output = match event {
                Ok(ProcessEvent::Stdout(data)) if self.is_pty => Output::Pty(data),
                Ok(ProcessEvent::Stdout(data)) => Output::Stdout(data),
                Ok(ProcessEvent::Stderr(data)) => Output::Stderr(data),
                // Nobody lost anything: the process waits for whoever reads, and what was before is not asked for.
                Ok(ProcessEvent::Lost(_)) => continue,
                Ok(ProcessEvent::Exited(exit)) => {
                    self.ended = true;
                    return Some(if exit.timed_out {
                        Err(over())
                    } else {
                        Ok(ProcessSaid::End(ended(exit)))
                    });
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error.into()));
                }
            };
            let output = Some(output);
            return Some(Ok(ProcessSaid::Data(DataEvent { output })));
        }
    }
}

/// How a process ended, in the words of Go's `os/exec`, which is what E2B's own server is made with.
fn ended(exit: ProcessExit) -> EndEvent {
    match (exit.exit_code, exit.signal) {
        (Some(code), _) => EndEvent {
            exit_code: code,
            exited: true,
            status: format!("exit status {code}"),
            error: (code != 0).then(|| format!("exit status {code}")),
        },
        (None, signal) => {
            let status = match signal {
                Some(9) => "signal: killed".to_owned(),
                Some(15) => "signal: terminated".to_owned(),
                Some(number) => format!("signal: {number}"),
                None => "unknown".to_owned(),
            };
            EndEvent {
                exit_code: -1,
                exited: false,
                error: Some(status.clone()),
                status,
            }
        }
    }
}

impl From<Known> for ProcessInfo {
    fn from(known: Known) -> Self {
        let mut words = known.argv.into_iter();
        Self {
            config: Some(ProcessConfig {
                cmd: words.next().unwrap_or_default(),
                args: words.collect(),
                cwd: known.cwd,
                ..ProcessConfig::default()
            }),
            pid: known.pid,
            tag: known.tag,
        }
    }
}
