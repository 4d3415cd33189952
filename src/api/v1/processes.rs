//! Processes on the wire: started, listed, read as events, fed, signalled.

use std::collections::BTreeMap;

use casemate_link::ProcessSpec;
use casemate_link::daemon::ProcessEvent;
use casemate_link::process::{
    AttachRequest, Lost, OnDetach, ProcessExit, ProcessInfo, PtySize, Selector, SlowReader,
};
use futures_util::{Stream, StreamExt};
use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::program;
use super::text::{Encoding, Pieces};
use crate::api::body::{self, Query};
use crate::api::error::Problem;
use crate::api::route::{BoxError, Call, Reply};
use crate::api::sse::{self, SseEvent};
use crate::app::Attachment;
use crate::base::clock::Timestamp;
use crate::model::settings::SessionsConfig;
use crate::model::signal;

/// A process to start: `argv`, or `command` for a shell, or neither for an interactive shell on a terminal.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StartProcess {
    /// Program and arguments; the program is looked up in `PATH`.
    argv: Option<Vec<String>>,
    /// A command line for the user's login shell.
    command: Option<String>,
    /// Added to the session's environment.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Where it starts.
    cwd: Option<String>,
    /// Who it runs as inside; `user` when absent.
    user: Option<String>,
    /// A name to find it by; not only digits.
    tag: Option<String>,
    /// A terminal of this size for its input and outputs.
    pty: Option<TerminalSize>,
    /// Whether it has an input; it does on a terminal.
    #[serde(default)]
    stdin: bool,
    /// Its whole process group is ended after this time; without it, with the session.
    timeout_s: Option<u64>,
    /// The latest bytes of each output that are kept for readers; 1 MiB when absent.
    keep_bytes: Option<u64>,
    /// What happens when a reader is slower than the process.
    slow_reader: Option<SlowReaders>,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TerminalSize {
    #[schemars(range(min = 1))]
    rows: u16,
    #[schemars(range(min = 1))]
    cols: u16,
}

/// What happens when a reader is slower than the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SlowReaders {
    /// The process waits for it.
    Wait,
    /// The process goes on, and the reader is told how much it lost.
    Skip,
}

/// A process that was started.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Started {
    /// Its pid in the sandbox, and its process group.
    pid: u32,
    /// What its starter calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

/// A process.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ProcessView {
    /// Its pid in the sandbox, and its process group.
    pid: u32,
    /// What its starter calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    /// The program and its arguments; long ones are cut.
    argv: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<String>,
    /// Who it runs as inside.
    user: String,
    /// Whether it has a terminal.
    pty: bool,
    /// Whether it goes on when nobody reads it.
    background: bool,
    started_at: Timestamp,
    /// Whether it runs; otherwise `exit` says how it ended.
    running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<ExitView>,
    stdout: OutputView,
    stderr: OutputView,
}

/// What is there of an output.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct OutputView {
    /// Offset of the first byte that is kept.
    kept_from: u64,
    /// Bytes that the process has written.
    total_bytes: u64,
}

/// The processes of a session, oldest first.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ProcessPage {
    processes: Vec<ProcessView>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub(crate) struct ExitView {
    /// Exit code; absent when a signal ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    /// Whether its time was over before it ended.
    timed_out: bool,
    duration_ms: u64,
}

/// What an event on a process's output says: its fields depend on the event's kind, `process` (a process), `stdout` and
/// `stderr` (`data`, `encoding`), `lost` (`stdout_bytes`, `stderr_bytes`), `exit` (how it ended).
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum OutputEvent {
    /// First: the process as it is.
    Process(Box<ProcessView>),
    /// Bytes of an output.
    Data { data: String, encoding: Encoding },
    /// Bytes that are not there any more.
    Lost {
        stdout_bytes: u64,
        stderr_bytes: u64,
    },
    /// Last: how it ended.
    Exit(ExitView),
}

/// A signal for a process group.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SendSignal {
    /// By name or number: `SIGTERM`, `TERM`, `15`.
    signal: String,
}

/// How much of its input a process has taken.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct InputTaken {
    written_bytes: u64,
}

pub(crate) async fn start(call: &Call) -> Result<Reply, Problem> {
    let principal = call.principal()?;
    let id = call.segment("id")?;
    let request: StartProcess = body::json(call)?;
    let tag = request.tag.clone();
    let mut spec = request.into_spec(&call.app.settings().sessions, SlowReader::Skip)?;
    spec.on_detach = OnDetach::Keep;
    let attachment = call.app.start_process(principal, id, spec).await?;
    let pid = attachment.pid();
    attachment.leave().await;
    Ok(Reply::json(StatusCode::CREATED, &Started { pid, tag }))
}

pub(crate) async fn list(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    body::query(call, &[])?;
    let processes = call.app.processes(call.principal()?, id).await?;
    let processes = processes.into_iter().map(ProcessView::from).collect();
    Ok(Reply::json(StatusCode::OK, &ProcessPage { processes }))
}

pub(crate) async fn get(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let wanted = selector(call)?;
    let processes = call.app.processes(call.principal()?, id).await?;
    let is_it = |process: &ProcessInfo| match &wanted {
        Selector::Process(number) => process.process == *number,
        Selector::Pid(pid) => process.pid == *pid,
        Selector::Tag(tag) => process.tag.as_ref() == Some(tag),
    };
    // The latest: a pid may have been another's before.
    let found = processes.into_iter().rfind(is_it);
    let found = found.ok_or_else(no_such_process)?;
    Ok(Reply::json(StatusCode::OK, &ProcessView::from(found)))
}

pub(crate) async fn output(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let mut query = Query::read(call, &["stdout_offset", "stderr_offset"])?;
    let asked = Offsets {
        stdout: query.number("stdout_offset")?.unwrap_or(0),
        stderr: query.number("stderr_offset")?.unwrap_or(0),
    };
    let offsets = sse::last_event_id(call)?.unwrap_or(asked);
    let request = AttachRequest {
        process: selector(call)?,
        stdout_offset: offsets.stdout,
        stderr_offset: offsets.stderr,
        output: true,
    };
    let attachment = call
        .app
        .attach_process(call.principal()?, id, request)
        .await?;
    Ok(sse::reply(call.stop.clone(), events(attachment)))
}

pub(crate) async fn input(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let end = Query::read(call, &["end"])?.flag("end", false)?;
    let mut body = call.reader()?;
    let input = call
        .app
        .process_input(call.principal()?, id, selector(call)?, end);
    let mut input = input.await?;
    while let Some(data) = body.next().await {
        input.write(data?).await?;
    }
    let written_bytes = input.commit().await?;
    Ok(Reply::json(StatusCode::OK, &InputTaken { written_bytes }))
}

pub(crate) async fn send_signal(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let SendSignal { signal } = body::json(call)?;
    let signal = read_signal(&signal)?;
    let process = selector(call)?;
    call.app
        .signal_process(call.principal()?, id, process, signal)
        .await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn resize(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let size: TerminalSize = body::json(call)?;
    let process = selector(call)?;
    call.app
        .resize_process(call.principal()?, id, process, size.read()?)
        .await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

/// Which process the path names: digits are a pid, anything else is a tag.
pub(super) fn selector(call: &Call) -> Result<Selector, Problem> {
    let text: String = call.segment("pid")?;
    if is_pid(&text) {
        return text
            .parse()
            .map(Selector::Pid)
            .map_err(|_| no_such_process());
    }
    Ok(Selector::Tag(text))
}

fn is_pid(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn no_such_process() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no_such_process",
        "the session has no such process, or not any more",
    )
}

/// Reads a signal's name or number.
pub(super) fn read_signal(text: &str) -> Result<i32, Problem> {
    signal::parse(text).ok_or_else(|| {
        Problem::bad_request("signal: a name such as SIGTERM, or a number from 1 to 64")
    })
}

impl TerminalSize {
    pub(super) const fn new(rows: u16, cols: u16) -> Self {
        Self { rows, cols }
    }

    pub(super) fn read(self) -> Result<PtySize, Problem> {
        let Self { rows, cols } = self;
        if rows == 0 || cols == 0 {
            return Err(Problem::bad_request("rows and cols: at least 1"));
        }
        Ok(PtySize { rows, cols })
    }
}

impl StartProcess {
    /// What the guest is asked for; `slow_reader` is for requests that do not say.
    pub(super) fn into_spec(
        self,
        bounds: &SessionsConfig,
        slow_reader: SlowReader,
    ) -> Result<ProcessSpec, Problem> {
        let pty = self.pty.map(TerminalSize::read).transpose()?;
        let (argv, shell) = program::read(self.argv, self.command, pty.is_some())?;
        if self.tag.as_deref().is_some_and(is_pid) {
            return Err(Problem::bad_request(
                "tag: not only digits, which would be a pid",
            ));
        }
        if let Some(timeout_s) = self.timeout_s {
            program::check_timeout(timeout_s, bounds)?;
        }
        let mut spec = ProcessSpec {
            shell,
            env: self.env,
            cwd: self.cwd,
            user: self.user,
            tag: self.tag,
            stdin: self.stdin || pty.is_some(),
            pty,
            timeout_ms: self
                .timeout_s
                .map(|timeout_s| timeout_s.saturating_mul(1000)),
            // Readers are bounded by what is kept, not by what was ever written.
            max_stdout_bytes: u64::MAX,
            max_stderr_bytes: u64::MAX,
            slow_reader: match self.slow_reader {
                Some(SlowReaders::Wait) => SlowReader::Wait,
                Some(SlowReaders::Skip) => SlowReader::Skip,
                None => slow_reader,
            },
            ..ProcessSpec::new(argv)
        };
        spec.keep_bytes = self.keep_bytes.unwrap_or(spec.keep_bytes);
        spec.validate()
            .map_err(|bad| Problem::bad_request(bad.to_string()))?;
        Ok(spec)
    }
}

impl From<ProcessInfo> for ProcessView {
    fn from(info: ProcessInfo) -> Self {
        let started_at_ms = i64::try_from(info.started_at_ms).unwrap_or(i64::MAX);
        Self {
            pid: info.pid,
            tag: info.tag,
            argv: info.argv,
            cwd: info.cwd,
            user: info.user,
            pty: info.pty,
            background: info.kept,
            started_at: Timestamp::claimed(started_at_ms),
            running: info.exit.is_none(),
            exit: info.exit.map(ExitView::from),
            stdout: OutputView {
                kept_from: info.stdout_from,
                total_bytes: info.stdout_to,
            },
            stderr: OutputView {
                kept_from: info.stderr_from,
                total_bytes: info.stderr_to,
            },
        }
    }
}

impl From<ProcessExit> for ExitView {
    fn from(exit: ProcessExit) -> Self {
        Self {
            exit_code: exit.exit_code,
            signal: exit.signal,
            timed_out: exit.timed_out,
            duration_ms: exit.duration_ms,
        }
    }
}

/// Where a reader of both outputs is: the identifier of an event, after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offsets {
    stdout: u64,
    stderr: u64,
}

impl std::fmt::Display for Offsets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.stdout, self.stderr)
    }
}

impl std::str::FromStr for Offsets {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (stdout, stderr) = text.split_once('-').unwrap_or((text, ""));
        Ok(Self {
            stdout: stdout.parse()?,
            stderr: stderr.parse()?,
        })
    }
}

/// A reader whose words are made events.
struct Telling {
    attachment: Attachment,
    stdout: Pieces,
    stderr: Pieces,
    /// Events that are ready, last first.
    ready: Vec<SseEvent>,
    ended: bool,
}

/// What a process says, as events.
fn events(attachment: Attachment) -> impl Stream<Item = Result<SseEvent, BoxError>> + Send {
    let telling = Telling {
        attachment,
        stdout: Pieces::default(),
        stderr: Pieces::default(),
        ready: Vec::new(),
        ended: false,
    };
    let begun = futures_util::stream::once(async move {
        let mut telling = telling;
        telling.introduce()?;
        Ok::<_, BoxError>(telling)
    });
    begun.flat_map(|begun| match begun {
        Ok(telling) => futures_util::stream::try_unfold(telling, Telling::next).boxed(),
        Err(error) => futures_util::stream::once(async { Err(error) }).boxed(),
    })
}

impl Telling {
    fn introduce(&mut self) -> Result<(), BoxError> {
        if let Some(info) = self.attachment.info().cloned() {
            let view = OutputEvent::Process(Box::new(info.into()));
            self.ready.push(SseEvent::new("process", None, &view)?);
        }
        Ok(())
    }

    async fn next(mut self) -> Result<Option<(SseEvent, Self)>, BoxError> {
        loop {
            if let Some(event) = self.ready.pop() {
                return Ok(Some((event, self)));
            }
            if self.ended {
                return Ok(None);
            }
            match self.attachment.next().await {
                Some(Ok(event)) => self.tell(event)?,
                // The link was lost; the client comes back by itself and goes on where it was.
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(None),
            }
        }
    }

    fn tell(&mut self, event: ProcessEvent) -> Result<(), BoxError> {
        match event {
            ProcessEvent::Stdout(data) => {
                let piece = self.stdout.next(&data);
                self.say("stdout", piece)?;
            }
            ProcessEvent::Stderr(data) => {
                let piece = self.stderr.next(&data);
                self.say("stderr", piece)?;
            }
            ProcessEvent::Lost(lost) => {
                self.flush()?;
                let Lost {
                    stdout_bytes,
                    stderr_bytes,
                } = lost;
                let lost = OutputEvent::Lost {
                    stdout_bytes,
                    stderr_bytes,
                };
                let event = SseEvent::new("lost", Some(&self.offsets()), &lost)?;
                self.ready.insert(0, event);
            }
            ProcessEvent::Exited(exit) => {
                self.flush()?;
                let exit = OutputEvent::Exit(exit.into());
                let event = SseEvent::new("exit", Some(&self.offsets()), &exit)?;
                self.ready.insert(0, event);
                self.ended = true;
            }
        }
        Ok(())
    }

    /// Says what was kept back of both outputs.
    fn flush(&mut self) -> Result<(), BoxError> {
        let piece = self.stdout.rest();
        self.say("stdout", piece)?;
        let piece = self.stderr.rest();
        self.say("stderr", piece)
    }

    fn say(&mut self, name: &str, piece: Option<(String, Encoding)>) -> Result<(), BoxError> {
        if let Some((data, encoding)) = piece {
            let event = OutputEvent::Data { data, encoding };
            let event = SseEvent::new(name, Some(&self.offsets()), &event)?;
            self.ready.insert(0, event);
        }
        Ok(())
    }

    /// Where a client is that has seen every event so far.
    fn offsets(&self) -> Offsets {
        let [stdout, stderr] = self.attachment.offsets();
        Offsets {
            stdout: stdout.saturating_sub(self.stdout.kept_bytes()),
            stderr: stderr.saturating_sub(self.stderr.kept_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_events_identifier_reads_back() {
        let offsets = Offsets {
            stdout: 7,
            stderr: u64::MAX,
        };
        assert_eq!(offsets.to_string().parse(), Ok(offsets));
        for bad in ["", "7", "-", "7-", "-7", "7-8-9", "a-b", "7 -8"] {
            assert!(bad.parse::<Offsets>().is_err(), "{bad}");
        }
    }
}
