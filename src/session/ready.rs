//! What a template has done in a sandbox before its session is ready: what it warms up is there, its start command runs, and
//! what it waits for is so.
//!
//! Everything goes over the link, and everything that comes back is the sandbox's word: it decides when this one session is
//! ready, or that it never will be, and nothing else. The start command is known by its tag: when the link was lost in the
//! middle, or another daemon takes over, it is found again and not started twice.

use std::collections::BTreeMap;
use std::time::Duration;

use casemate_link::daemon::{Link, LinkError, Process, ProcessEvent};
use casemate_link::file::{Place, StatRequest};
use casemate_link::process::{AttachRequest, LoginShell, Selector};
use casemate_link::warm_up::Identity;
use casemate_link::{OnDetach, ProcessExit, ProcessSpec};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::info;

use super::launch::End;
use super::trust;
use crate::base::chain::Chain;
use crate::base::id::SessionId;
use crate::egress::Opener;
use crate::model::session::{Reason, SessionSpec};
use crate::model::setup::{
    Probe, Program, READY_TIMEOUT_S, Readiness, Setup, StartCommand, WarmUp,
};

/// What the start command is called among the session's processes.
pub const START_TAG: &str = "start";

/// What the warm-up is called there.
pub const WARM_UP_TAG: &str = "warm-up";

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
    Some(kept_process(&Surroundings::of(spec), start, START_TAG))
}

/// What a process has that says nothing of itself.
struct Surroundings<'a> {
    env: &'a BTreeMap<String, String>,
    cwd: Option<&'a String>,
    user: Option<&'a String>,
}

impl<'a> Surroundings<'a> {
    fn of(spec: &'a SessionSpec) -> Self {
        Self {
            env: &spec.env,
            cwd: spec.workdir.as_ref(),
            user: spec.setup.user.as_ref(),
        }
    }

    /// Of a warm-up: nothing of a session's.
    fn before(setup: &'a Setup, warm_up: &'a WarmUp) -> Self {
        Self {
            env: &warm_up.run.env,
            cwd: warm_up.run.cwd.as_ref(),
            user: setup.user.as_ref(),
        }
    }

    fn process(
        &self,
        argv: Vec<String>,
        shell: Option<&String>,
        env: &BTreeMap<String, String>,
    ) -> ProcessSpec {
        let mut all = self.env.clone();
        all.extend(env.clone());
        ProcessSpec {
            shell: shell.map(|line| LoginShell {
                command: Some(line.clone()),
            }),
            env: all,
            cwd: self.cwd.cloned(),
            user: self.user.cloned(),
            stdin: false,
            ..ProcessSpec::new(argv)
        }
    }
}

/// A command of a template's as a process that nobody has to listen to.
fn kept_process(around: &Surroundings<'_>, command: &StartCommand, tag: &str) -> ProcessSpec {
    let (argv, shell) = match &command.program {
        Program::Argv(argv) => (argv.clone(), None),
        Program::Command(line) => (Vec::new(), Some(line)),
    };
    let mut process = around.process(argv, shell, &command.env);
    process.cwd = command.cwd.clone().or(process.cwd);
    process.user = command.user.clone().or(process.user);
    process.tag = Some(tag.to_owned());
    process.on_detach = OnDetach::Keep;
    // Readers are bounded by what is kept, not by what was ever written.
    process.max_stdout_bytes = u64::MAX;
    process.max_stderr_bytes = u64::MAX;
    process
}

/// How long a warm-up may take.
pub(super) fn patience(warm_up: &WarmUp) -> Duration {
    let ready = warm_up.ready.as_ref();
    Duration::from_secs(ready.map_or(READY_TIMEOUT_S, |ready| ready.timeout_s))
}

/// Tells a sandbox its name; what its guest says of it then. Nothing runs in one whose guest could still name it otherwise.
pub(super) async fn identify(link: &Link, hostname: &str) -> Result<Identity, Unready> {
    let told = link.identify(hostname).await;
    let identity = refused("give the sandbox its name", told)?;
    if identity.is_privileged {
        return Err(Unready::Never(End::new(
            Reason::LaunchFailed,
            "the guest did not give up CAP_SYS_ADMIN",
        )));
    }
    Ok(identity)
}

/// Has the warm-up done in a sandbox, unless it was before.
pub(super) async fn warm(
    link: &Link,
    id: SessionId,
    setup: &Setup,
    warm_up: &WarmUp,
    deadline: Instant,
) -> Result<(), Unready> {
    let around = Surroundings::before(setup, warm_up);
    let stage = Stage {
        what: "warm-up",
        process: Some(kept_process(&around, &warm_up.run, WARM_UP_TAG)),
        around,
        until: match &warm_up.ready {
            Some(ready) => Until::Met(ready),
            None => Until::Ended,
        },
        deadline,
        patience_s: patience(warm_up).as_secs(),
    };
    stage.settle(link, id).await
}

/// Tells what runs on of a warm-up that it is a session's from here on, if the template says how.
pub(super) async fn wake(link: &Link, warm_up: &WarmUp) -> Result<(), Unready> {
    let Some(signal) = warm_up.signal else {
        return Ok(());
    };
    let process = Selector::Tag(WARM_UP_TAG.to_owned());
    match link.signal(process, signal).await {
        // It has ended.
        Ok(()) | Err(LinkError::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A session on its way to being ready, over as many links as that takes.
pub(super) struct Opening<'a> {
    id: SessionId,
    spec: &'a SessionSpec,
    /// Whom its programs are to trust, where the template asks for that.
    trusted: Option<&'a Opener>,
    /// Its host name, where it is still to be warmed up.
    hostname: Option<String>,
    warm_by: Instant,
    /// Until when it is to be ready, once its start command began.
    deadline: Option<Instant>,
    /// Whether its sandbox began as a checkpoint; `None` as long as nobody asked.
    pub(super) is_restored: Option<bool>,
}

impl<'a> Opening<'a> {
    /// Begins now. A sandbox that stood ready `is_warm`.
    pub(super) fn begin(
        id: SessionId,
        spec: &'a SessionSpec,
        is_warm: bool,
        opener: &'a Opener,
    ) -> Self {
        let warm_up = spec.setup.warm_up.as_ref().filter(|_| !is_warm);
        Self {
            id,
            spec,
            trusted: spec.setup.egress_ca.then_some(opener),
            hostname: warm_up.map(|_| super::launch::hostname(id, spec.name.as_ref())),
            warm_by: Instant::now() + warm_up.map_or(Duration::ZERO, patience),
            deadline: None,
            is_restored: None,
        }
    }

    /// Has the session warmed up, starts the start command, unless it runs, and waits until the session is ready.
    pub(super) async fn settle(&mut self, link: &Link) -> Result<(), Unready> {
        let setup = &self.spec.setup;
        if let (Some(hostname), Some(warm_up)) = (&self.hostname, &setup.warm_up) {
            let identity = identify(link, hostname).await?;
            self.is_restored = Some(identity.is_restored);
            if !identity.is_restored {
                warm(link, self.id, setup, warm_up, self.warm_by).await?;
            }
            wake(link, warm_up).await?;
            self.hostname = None;
        }
        if let Some(opener) = self.trusted {
            trust::give(link, opener).await?;
        }
        let patience_s = setup.ready.as_ref().map_or(0, |ready| ready.timeout_s);
        let now = Instant::now();
        let stage = Stage {
            what: "start command",
            process: start_process(self.spec),
            around: Surroundings::of(self.spec),
            until: setup.ready.as_ref().map_or(Until::Started, Until::Met),
            deadline: *self
                .deadline
                .get_or_insert(now + Duration::from_secs(patience_s)),
            patience_s,
        };
        stage.settle(link, self.id).await
    }
}

/// When a command of a template's has done what it was started for.
enum Until<'a> {
    Started,
    Met(&'a Readiness),
    Ended,
}

/// A command of a template's, and what is waited for.
struct Stage<'a> {
    what: &'static str,
    process: Option<ProcessSpec>,
    around: Surroundings<'a>,
    until: Until<'a>,
    deadline: Instant,
    patience_s: u64,
}

impl Stage<'_> {
    async fn settle(mut self, link: &Link, id: SessionId) -> Result<(), Unready> {
        let started = match self.process.take() {
            Some(process) => Some(self.start_once(link, id, process).await?),
            None => None,
        };
        let (what, seconds) = (self.what, self.patience_s);
        let why = match self.until {
            Until::Started => return Ok(()),
            Until::Met(ready) => {
                let there = ready.probe.describe();
                tokio::select! {
                    biased;
                    met = self.until_met(link, ready) => return met,
                    exit = until_failed(link, started) => {
                        format!("the {what} ended {} before {there} was there", in_words(&exit))
                    }
                    () = sleep_until(self.deadline) => {
                        format!("{there} was not there within {seconds} s")
                    }
                    () = link.closed() => return Err(Unready::LinkLost),
                }
            }
            Until::Ended => tokio::select! {
                biased;
                exit = exit_of(link, started) => match exit? {
                    exit if exit.exit_code == Some(0) => return Ok(()),
                    exit => format!("the {what} ended {}", in_words(&exit)),
                },
                () = sleep_until(self.deadline) => {
                    format!("the {what} did not end within {seconds} s, and the template does not say when it is done else (warm_up.ready)")
                }
                () = link.closed() => return Err(Unready::LinkLost),
            },
        };
        let words = match started {
            Some(number) => timeout(WORDS_PATIENCE, last_words(link, number)).await,
            None => Ok(None),
        };
        let message = match words.ok().flatten() {
            Some(words) => {
                format!("{why}; the end of the {what}'s standard error: {words}")
            }
            None => why,
        };
        Err(Unready::Never(End::new(Reason::LaunchFailed, message)))
    }

    /// The guest's number of the command, which is started unless it was before.
    async fn start_once(
        &self,
        link: &Link,
        id: SessionId,
        process: ProcessSpec,
    ) -> Result<u64, Unready> {
        let what = self.what;
        let listed = link.processes().await;
        if let Some(known) = refused(&format!("look for the {what}"), listed)?
            .into_iter()
            .find(|known| known.tag == process.tag)
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
        let number = refused(&format!("run the template's {what}"), started)?;
        info!(session = %id, "the template's {what} was started");
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
                user: self.around.user.cloned(),
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
            ..self
                .around
                .process(Vec::new(), Some(command), &BTreeMap::new())
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

/// Resolves when the command has failed. One that ends with 0 may have left what it started behind.
async fn until_failed(link: &Link, started: Option<u64>) -> ProcessExit {
    match exit_of(link, started).await {
        Ok(exit) if exit.exit_code != Some(0) => exit,
        // A lost link is noticed by others.
        _ => std::future::pending().await,
    }
}

/// How the command ended, when it has.
async fn exit_of(link: &Link, started: Option<u64>) -> Result<ProcessExit, LinkError> {
    let Some(number) = started else {
        return std::future::pending().await;
    };
    let request = AttachRequest {
        process: Selector::Process(number),
        stdout_offset: 0,
        stderr_offset: 0,
        output: false,
    };
    let (_, mut process) = link.attach(request).await?;
    until_exit(&mut process).await
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
