//! One program in a session, from its start to its exit, over the session's link.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use casemate_link::ProcessSpec;
use casemate_link::daemon::{LinkError, Process, ProcessEvent, ProcessInput};
use casemate_link::process::{BadSpec, LoginShell};
use futures_util::FutureExt;
use futures_util::future::{Either, select};

use super::SessionError;
use super::guest::failed;
use super::handle::{CONCURRENT_RUNS, SessionHandle};
use crate::model::limit::Limit;
use crate::model::process::{RunOutcome, RunSpec};

/// Between the polite and the final signal at a run's time limit.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// How much longer than its time limit and grace a run may stay silent before the guest is taken
/// for lost: the guest keeps the limit, the daemon only makes sure.
const LIMIT_SLACK: Duration = Duration::from_secs(10);

/// Whether the link can carry what is asked for. The guest checks again; this here can still tell the
/// caller which field is wrong before anything is recorded.
///
/// # Errors
/// The first [`BadSpec`] found.
pub fn check(spec: &RunSpec) -> Result<(), BadSpec> {
    asked(spec).validate()
}

fn asked(spec: &RunSpec) -> ProcessSpec {
    ProcessSpec {
        shell: spec.command.clone().map(|command| LoginShell {
            command: Some(command),
        }),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        user: spec.user.clone(),
        ..ProcessSpec::new(spec.argv.clone())
    }
}

impl SessionHandle {
    /// Runs a program to its end.
    ///
    /// # Errors
    /// [`SessionError::Busy`], [`SessionError::NotReady`], [`SessionError::Refused`] when the guest
    /// cannot start it, [`SessionError::GuestGone`].
    pub async fn run(&self, spec: RunSpec) -> Result<RunOutcome, SessionError> {
        let _turn = self
            .runs
            .clone()
            .try_acquire_owned()
            .map_err(|_| SessionError::Busy(CONCURRENT_RUNS))?;
        let limit = Duration::from_secs(spec.timeout_s);
        let process = ProcessSpec {
            timeout_ms: Some(millis(limit)),
            kill_grace_ms: millis(KILL_GRACE),
            max_stdout_bytes: spec.max_output_bytes,
            max_stderr_bytes: spec.max_output_bytes,
            ..asked(&spec)
        };
        let guest = self.guest().await?;
        let reached = self.reached();
        let process = guest.start(process).await.map_err(|error| {
            reached.refused(&error);
            failed(error)
        })?;
        let whole = limit + KILL_GRACE + LIMIT_SLACK;
        match tokio::time::timeout(whole, follow(process, spec.stdin, spec.max_output_bytes)).await
        {
            Ok(outcome) => {
                if let Ok(outcome) = &outcome {
                    outcome.timed_out.then(|| reached.note(Limit::Time));
                    outcome.truncated.then(|| reached.note(Limit::Output));
                }
                outcome
            }
            Err(_) => Err(SessionError::GuestGone(LinkError::Deadline(
                whole.as_millis(),
            ))),
        }
    }
}

/// Feeds the program and gathers what it writes, both at once.
async fn follow(
    mut process: Process,
    stdin: Bytes,
    max_output_bytes: u64,
) -> Result<RunOutcome, SessionError> {
    let input = process.input.clone();
    let feeding = feed(input, stdin).boxed();
    let gathering = gather(&mut process, max_output_bytes).boxed();
    match select(gathering, feeding).await {
        // A program may end without having read everything.
        Either::Left((outcome, _)) => outcome,
        Either::Right(((), gathering)) => gathering.await,
    }
}

async fn feed(input: ProcessInput, stdin: Bytes) {
    // A program that closed its input is no failure; its exit tells.
    if (stdin.is_empty() || input.write(stdin).await.is_ok()) && input.end().await.is_err() {
        tracing::trace!("the program closed its input first");
    }
}

/// Reads what a program writes until it ends.
pub(super) async fn gather(
    process: &mut Process,
    max_output_bytes: u64,
) -> Result<RunOutcome, SessionError> {
    let mut stdout = Kept::new(max_output_bytes);
    let mut stderr = Kept::new(max_output_bytes);
    loop {
        match process.next().await {
            Some(Ok(ProcessEvent::Stdout(bytes))) => stdout.push(&bytes),
            Some(Ok(ProcessEvent::Stderr(bytes))) => stderr.push(&bytes),
            Some(Ok(ProcessEvent::Lost(_))) => {
                return Err(SessionError::GuestGone(LinkError::Protocol(
                    "output was lost that nobody was slow for".into(),
                )));
            }
            Some(Ok(ProcessEvent::Exited(exit))) => {
                let dropped = exit.stdout_dropped_bytes > 0 || exit.stderr_dropped_bytes > 0;
                return Ok(RunOutcome {
                    exit_code: exit.exit_code,
                    signal: exit.signal,
                    truncated: dropped || stdout.overflowed || stderr.overflowed,
                    stdout: stdout.bytes.freeze(),
                    stderr: stderr.bytes.freeze(),
                    timed_out: exit.timed_out,
                    duration_ms: exit.duration_ms,
                });
            }
            Some(Err(error)) => return Err(failed(error)),
            None => return Err(SessionError::GuestGone(LinkError::Gone)),
        }
    }
}

/// Output up to a bound. The guest keeps the bound as well; this one does not trust it.
struct Kept {
    bytes: BytesMut,
    room: usize,
    overflowed: bool,
}

impl Kept {
    fn new(max_bytes: u64) -> Self {
        Self {
            bytes: BytesMut::new(),
            room: usize::try_from(max_bytes).unwrap_or(usize::MAX),
            overflowed: false,
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let taken = bytes.get(..self.room).unwrap_or(bytes);
        self.bytes.extend_from_slice(taken);
        self.room -= taken.len();
        self.overflowed |= taken.len() < bytes.len();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_up_to_its_bound_and_not_a_byte_further() {
        let mut kept = Kept::new(4);
        kept.push(b"abc");
        assert!(!kept.overflowed);
        kept.push(b"def");
        assert_eq!((&kept.bytes[..], kept.overflowed), (&b"abcd"[..], true));
    }
}
