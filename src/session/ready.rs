//! What a template has done in a sandbox before its session is ready: its start command runs, and what it waits for is so.
//!
//! Everything goes over the link, and everything that comes back is the sandbox's word: it decides when this one session is
//! ready, or that it never will be, and nothing else. The start command is known by its tag: when the link was lost in the
//! middle, or another daemon takes over, it is found again and not started twice.

use std::collections::BTreeMap;
use std::time::Duration;

use casemate_link::daemon::{Link, LinkError, Process, ProcessEvent};
use casemate_link::file::{Place, StatRequest};
use casemate_link::process::{AttachRequest, LoginShell, ProcessInfo, Selector};
use casemate_link::{OnDetach, ProcessExit, ProcessSpec};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::info;

use super::launch::End;
use crate::base::chain::Chain;
use crate::base::id::SessionId;
use crate::model::session::{Reason, SessionSpec};
use crate::model::setup::{Probe, Program, Readiness};

/// What the start command is called among the session's processes.
pub const START_TAG: &str = "start";

/// How long one run of a readiness command may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Kept of what a readiness command writes: nobody reads it.
const TRY_OUTPUT_BYTES: u64 = 4096;

/// How long the end of what a start command wrote may take to come.
const WORDS_PATIENCE: Duration = Duration::from_secs(2);

/// How much of it is told, and in how many lines.
const WORDS_BYTES: u64 = 512;
const WORDS_LINES: usize = 5;

/// Why a session is not ready.
#[derive(Debug)]
pub(super) enum Unready {
    /// It never will be.
    Never(End),
    /// The link was lost before that was known; another one may do.
    LinkLost,
}

impl From<LinkError> for Unready {
    /// What the guest refuses is handled where it is asked; anything else says nothing of the session.
    fn from(_: LinkError) -> Self {
        Self::LinkLost
    }
}

/// The start command as a process of the session, if its template has one.
pub(super) fn start_process(spec: &SessionSpec) -> Option<ProcessSpec> {
    let start = spec.setup.start.as_ref()?;
    let (argv, shell) = match &start.program {
        Program::Argv(argv) => (argv.clone(), None),
        Program::Command(line) => (Vec::new(), Some(line)),
    };
    let mut process = process(spec, argv, shell, &start.env);
    process.cwd = start.cwd.clone().or(process.cwd);
    process.user = start.user.clone().or(process.user);
    process.tag = Some(START_TAG.to_owned());
    process.on_detach = OnDetach::Keep;
    // Readers are bounded by what is kept, not by what was ever written.
    process.max_stdout_bytes = u64::MAX;
    process.max_stderr_bytes = u64::MAX;
    Some(process)
}

fn process(
    spec: &SessionSpec,
    argv: Vec<String>,
    shell: Option<&String>,
    env: &BTreeMap<String, String>,
) -> ProcessSpec {
    let mut all = spec.env.clone();
    all.extend(env.clone());
    ProcessSpec {
        shell: shell.map(|line| LoginShell {
            command: Some(line.clone()),
        }),
        env: all,
        cwd: spec.workdir.clone(),
        user: spec.setup.user.clone(),
        stdin: false,
        ..ProcessSpec::new(argv)
    }
}

/// A session on its way to being ready, over as many links as that takes.
pub(super) struct Opening<'a> {
    id: SessionId,
    spec: &'a SessionSpec,
    deadline: Instant,
}

impl<'a> Opening<'a> {
    /// Begins now: the time of the template's readiness runs from here.
    pub(super) fn begin(id: SessionId, spec: &'a SessionSpec) -> Self {
        let ready = spec.setup.ready.as_ref();
        let patience = ready.map_or(Duration::ZERO, |ready| Duration::from_secs(ready.timeout_s));
        Self {
            id,
            spec,
            deadline: Instant::now() + patience,
        }
    }

    /// Starts the start command, unless it runs, and waits until the session is ready.
    pub(super) async fn settle(&self, link: &Link) -> Result<(), Unready> {
        let started = match start_process(self.spec) {
            Some(process) => Some(self.start_once(link, process).await?),
            None => None,
        };
        let Some(ready) = &self.spec.setup.ready else {
            return Ok(());
        };
        let what = ready.probe.describe();
        let why = tokio::select! {
            biased;
            met = self.until_met(link, ready) => return met,
            exit = until_failed(link, started) => {
                format!("the start command ended {} before {what} was there", in_words(&exit))
            }
            () = sleep_until(self.deadline) => {
                format!("{what} was not there within {} s", ready.timeout_s)
            }
            () = link.closed() => return Err(Unready::LinkLost),
        };
        let words = match started {
            Some(number) => timeout(WORDS_PATIENCE, last_words(link, number)).await,
            None => Ok(None),
        };
        let message = match words.ok().flatten() {
            Some(words) => {
                format!("{why}; the end of the start command's standard error: {words}")
            }
            None => why,
        };
        Err(Unready::Never(End::new(Reason::LaunchFailed, message)))
    }

    /// The guest's number of the start command, which is started unless it was before.
    async fn start_once(&self, link: &Link, process: ProcessSpec) -> Result<u64, Unready> {
        let listed = link.processes().await;
        if let Some(known) = refused("look for the start command", listed)?
            .into_iter()
            .find(is_start)
        {
            return Ok(known.process);
        }
        // In a task of its own: who stops waiting in the middle must not end what the next one is to find.
        let starting = {
            let link = link.clone();
            tokio::spawn(async move { link.start(process).await.map(|process| process.number()) })
        };
        let started = starting.await.unwrap_or(Err(LinkError::Gone));
        // It is kept when the handle on it goes.
        let number = refused("run the template's start command", started)?;
        info!(session = %self.id, "the template's start command was started");
        Ok(number)
    }

    /// Looks again and again; resolves when it is so.
    async fn until_met(&self, link: &Link, ready: &Readiness) -> Result<(), Unready> {
        loop {
            let is_met = match &ready.probe {
                Probe::Port(port) => is_open(link, *port).await,
                Probe::File(path) => self.is_there(link, path).await,
                Probe::Command(command) => self.succeeds(link, command).await,
            };
            match is_met {
                Ok(true) => return Ok(()),
                // What is refused now may be granted when the program has come further.
                Ok(false) | Err(LinkError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            sleep(Duration::from_millis(ready.interval_ms)).await;
        }
    }

    async fn is_there(&self, link: &Link, path: &str) -> Result<bool, LinkError> {
        let request = StatRequest {
            place: Place {
                path: path.to_owned(),
                user: self.spec.setup.user.clone(),
            },
            follow: true,
        };
        link.stat(&request).await.map(|_| true)
    }

    async fn succeeds(&self, link: &Link, command: &String) -> Result<bool, LinkError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let limit = left.clamp(Duration::from_millis(1), TRY_TIMEOUT);
        let spec = ProcessSpec {
            timeout_ms: Some(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
            max_stdout_bytes: TRY_OUTPUT_BYTES,
            max_stderr_bytes: TRY_OUTPUT_BYTES,
            ..process(self.spec, Vec::new(), Some(command), &BTreeMap::new())
        };
        let mut process = link.start(spec).await?;
        let exit = until_exit(&mut process).await?;
        Ok(exit.exit_code == Some(0) && !exit.timed_out)
    }
}

async fn is_open(link: &Link, port: u16) -> Result<bool, LinkError> {
    let ports = link.ports().await?;
    Ok(ports.iter().any(|open| open.port == port))
}

fn is_start(process: &ProcessInfo) -> bool {
    process.tag.as_deref() == Some(START_TAG)
}

/// What the guest says no to ends the session.
fn refused<T>(doing: &str, result: Result<T, LinkError>) -> Result<T, Unready> {
    result.map_err(|error| match error {
        LinkError::Refused { .. } => Unready::Never(End::new(
            Reason::LaunchFailed,
            format!("{doing}: {}", Chain(&error)),
        )),
        other => other.into(),
    })
}

/// Resolves when the start command has failed. One that ends with 0 may have left what it started behind.
async fn until_failed(link: &Link, started: Option<u64>) -> ProcessExit {
    if let Some(number) = started {
        let request = AttachRequest {
            process: Selector::Process(number),
            stdout_offset: 0,
            stderr_offset: 0,
            output: false,
        };
        if let Ok((_, mut process)) = link.attach(request).await
            && let Ok(exit) = until_exit(&mut process).await
            && exit.exit_code != Some(0)
        {
            return exit;
        }
    }
    // A lost link is noticed by others.
    std::future::pending().await
}

pub(super) async fn until_exit(process: &mut Process) -> Result<ProcessExit, LinkError> {
    loop {
        match process.next().await {
            Some(Ok(ProcessEvent::Exited(exit))) => return Ok(exit),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
            None => return Err(LinkError::Gone),
        }
    }
}

/// The last lines that a process wrote to its standard error, as far as they are kept; `None` when there are none.
async fn last_words(link: &Link, number: u64) -> Option<String> {
    let listed = link.processes().await.ok()?;
    let info = listed.into_iter().find(|info| info.process == number)?;
    let from = info.stderr_to.saturating_sub(WORDS_BYTES);
    let request = AttachRequest {
        process: Selector::Process(number),
        stdout_offset: info.stdout_to,
        stderr_offset: from,
        output: true,
    };
    let (_, mut process) = link.attach(request).await.ok()?;
    let mut words = Vec::new();
    while process.offsets()[1] < info.stderr_to {
        match process.next().await {
            Some(Ok(ProcessEvent::Stderr(bytes))) => words.extend_from_slice(&bytes),
            Some(Ok(ProcessEvent::Stdout(_) | ProcessEvent::Lost(_))) => {}
            Some(Ok(ProcessEvent::Exited(_)) | Err(_)) | None => break,
        }
        let most = usize::try_from(WORDS_BYTES).unwrap_or(usize::MAX);
        words.drain(..words.len().saturating_sub(most));
    }
    tail(&String::from_utf8_lossy(&words))
}

/// The last lines of a text on one line.
fn tail(text: &str) -> Option<String> {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let last = lines.get(lines.len().saturating_sub(WORDS_LINES)..)?;
    (!last.is_empty()).then(|| last.join(" | ").replace(char::is_control, " "))
}

fn in_words(exit: &ProcessExit) -> String {
    match (exit.exit_code, exit.signal) {
        (Some(code), _) => format!("with exit code {code}"),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => "without a code".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_start_command_wrote_the_last_lines_are_told_on_one() {
        assert_eq!(tail(""), None);
        assert_eq!(tail("\n \n"), None);
        let text = "1\n2\n3\n4\n\x1b[31m5\n\n6\t!\n";
        assert_eq!(tail(text).unwrap(), "2 | 3 | 4 |  [31m5 | 6 !");
    }
}
