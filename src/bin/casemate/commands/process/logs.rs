//! `casemate logs`: what a background process wrote, from the start of what is kept.
//!
//! A lost connection is taken up again where it was lost, so that nothing is shown twice and what is
//! missing is told.

use std::time::Duration;

use ::http::HeaderValue;
use ::http::header::HeaderName;
use casemate::base::exit::Exit;
use casemate::base::id::SessionId;
use clap::Args;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::Context;
use super::super::ending::{Ending, decode};
use super::super::which::{Which, WhichProcess, which};
use super::ps::ProcessView;
use super::show::{Output, Show};
use crate::failure::Failure;
use crate::http::{Call, Client, Event, Events};
use crate::output::tell;

/// How long a stream may be silent: three of casemated's heartbeats.
const SILENCE: Duration = Duration::from_secs(45);

/// How often in a row a stream is asked for in vain before it is given up: about a minute.
const ATTEMPTS: u32 = 10;

/// The first pause between two attempts, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Bytes that casemated may keep back of each output: the beginning of a character.
const KEPT_BACK: u64 = 3;

/// How long to wait for bytes that may be kept back.
const PATIENCE: Duration = Duration::from_secs(2);

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Options of `casemate logs`.
#[derive(Args)]
#[command(after_long_help = "\
Shows what is kept of both outputs, each where it belongs, and says on standard error
how much is not kept any more. With --json every event is a line of JSON.")]
pub struct Logs {
    /// Which session, by ID or name
    #[arg(value_name = "SESSION", value_parser = which)]
    session: Which,
    /// Which process, by pid or tag
    #[arg(value_name = "PROCESS")]
    process: WhichProcess,
    /// Go on until the process ends
    #[arg(short, long)]
    follow: bool,
    /// Only its standard output
    #[arg(long, conflicts_with = "stderr")]
    stdout: bool,
    /// Only its standard error
    #[arg(long)]
    stderr: bool,
}

#[derive(Deserialize)]
struct Data {
    data: String,
    encoding: String,
}

#[derive(Deserialize)]
struct Lost {
    stdout_bytes: u64,
    stderr_bytes: u64,
}

/// A reader of a process's output.
struct Reader<'a> {
    client: &'a Client,
    path: String,
    show: Show,
    /// The one output that is wanted.
    only: Option<Output>,
    /// Where to stop, in both outputs; never, when what is yet to come is wanted.
    until: Option<[u64; 2]>,
    last: Option<String>,
}

/// How a stream ended.
enum End {
    /// All is there.
    Done,
    /// It broke off and can be taken up again.
    Broken(Failure),
}

impl Logs {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let id = self.session.find(&client).await?;
        let call = Call::new(::http::Method::GET, self.process.path(id, ""));
        let answer = client.call(call).await?;
        let process: ProcessView = client.read(&answer)?;
        let only = match (self.stdout, self.stderr) {
            (true, _) => Some(Output::Stdout),
            (_, true) => Some(Output::Stderr),
            _ => None,
        };
        let wanted = |output, bytes| match only {
            Some(only) if only != output => 0,
            _ => bytes,
        };
        let until = [
            wanted(Output::Stdout, process.stdout.total_bytes),
            wanted(Output::Stderr, process.stderr.total_bytes),
        ];
        let reader = Reader {
            client: &client,
            path: path(id, process.pid),
            show: Show::new(context.json)?,
            only,
            until: (!self.follow).then_some(until),
            last: None,
        };
        // What has said nothing yet has nothing to wait for.
        if !self.follow && process.running && until == [0, 0] {
            return Ok(());
        }
        reader.read().await
    }
}

/// By its pid: a tag may be another's by the time that a stream is taken up again.
fn path(id: SessionId, pid: u32) -> String {
    format!("/v1/sessions/{id}/processes/{pid}/output")
}

impl Reader<'_> {
    async fn read(mut self) -> Result<(), Failure> {
        let mut attempts = 0;
        loop {
            let before = self.last.clone();
            let failure = match self.stream().await? {
                End::Done => return Ok(()),
                End::Broken(failure) => failure,
            };
            attempts = if self.last == before { attempts + 1 } else { 1 };
            if attempts >= ATTEMPTS {
                return Err(Failure::new(
                    failure.exit,
                    format!("gave up after {attempts} attempts: {}", failure.message),
                ));
            }
            tokio::time::sleep(pause(attempts)?).await;
        }
    }

    /// Reads one stream. What cannot be mended by asking again is a failure.
    async fn stream(&mut self) -> Result<End, Failure> {
        let mut call = Call::get(&self.path, &[]);
        if let Some(last) = &self.last {
            let value = HeaderValue::try_from(last).map_err(|_| Failure::mismatch())?;
            call = call.with(LAST_EVENT_ID, value);
        }
        let body = match self.client.open(call, Some(SILENCE)).await {
            Ok(body) => body,
            Err(failure) if failure.exit == Exit::Unavailable => return Ok(End::Broken(failure)),
            Err(failure) => return Err(failure),
        };
        let mut events = Events::new(body);
        let mut has_begun = false;
        loop {
            let next = if has_begun && self.is_near() {
                match tokio::time::timeout(PATIENCE, events.next()).await {
                    Ok(next) => next,
                    Err(_) => return Ok(End::Done),
                }
            } else {
                events.next().await
            };
            match next {
                Ok(Some(event)) => {
                    has_begun = true;
                    if !self.take(event).await? {
                        return Ok(End::Done);
                    }
                }
                // A stream that ends without the process's end: casemated stops.
                Ok(None) => {
                    let ended = Failure::unavailable("casemated ended the stream");
                    return Ok(End::Broken(ended));
                }
                Err(failure) if failure.exit == Exit::Unavailable => {
                    return Ok(End::Broken(failure));
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Shows what an event says. False when there is nothing more to come, or nobody reads it.
    async fn take(&mut self, event: Event) -> Result<bool, Failure> {
        let goes_on = match event.kind.as_str() {
            "stdout" => self.data(Output::Stdout, &event).await?,
            "stderr" => self.data(Output::Stderr, &event).await?,
            "lost" => {
                let lost: Lost = parse(&event)?;
                self.lost(Output::Stdout, lost.stdout_bytes).await?
                    && self.lost(Output::Stderr, lost.stderr_bytes).await?
            }
            "exit" => {
                let ending: Ending = parse(&event)?;
                self.show.ended(&ending).await?;
                false
            }
            // The process as it is, and what a newer casemated says besides.
            _ => true,
        };
        if event.id.is_some() {
            self.last = event.id;
        }
        Ok(goes_on && self.missing() != Some(0))
    }

    async fn data(&mut self, output: Output, event: &Event) -> Result<bool, Failure> {
        if self.only.is_some_and(|only| only != output) {
            return Ok(true);
        }
        let Data { data, encoding } = parse(event)?;
        self.show.output(output, &decode(data, &encoding)?).await
    }

    async fn lost(&mut self, output: Output, bytes: u64) -> Result<bool, Failure> {
        if self.only.is_some_and(|only| only != output) {
            return Ok(true);
        }
        self.show.lost(output, bytes).await
    }

    /// Whether all that is missing may be kept back until more comes.
    fn is_near(&self) -> bool {
        self.missing().is_some_and(|bytes| bytes <= KEPT_BACK)
    }

    /// How much is missing of the output that lacks most; `None` when there is no end.
    fn missing(&self) -> Option<u64> {
        let [stdout, stderr] = self.until?;
        let (at_stdout, at_stderr) = self.last.as_deref().map_or((0, 0), offsets);
        let missing = [
            stdout.saturating_sub(at_stdout),
            stderr.saturating_sub(at_stderr),
        ];
        missing.into_iter().max()
    }
}

/// What an event's identifier says: how much of both outputs was seen.
fn offsets(id: &str) -> (u64, u64) {
    let (stdout, stderr) = id.split_once('-').unwrap_or((id, ""));
    (stdout.parse().unwrap_or(0), stderr.parse().unwrap_or(0))
}

fn parse<T: DeserializeOwned>(event: &Event) -> Result<T, Failure> {
    serde_json::from_str(&event.data).map_err(|_| Failure::mismatch())
}

/// How long to wait before the next attempt: longer each time, and never the same for all who wait.
fn pause(attempts: u32) -> Result<Duration, Failure> {
    let longest = FIRST_PAUSE
        .saturating_mul(1 << attempts.saturating_sub(1).min(16))
        .min(LONGEST_PAUSE);
    let chance = getrandom::u32()
        .map_err(|error| Failure::new(Exit::Software, format!("no random numbers: {error}")))?;
    let share = f64::from(chance) / f64::from(u32::MAX);
    if attempts == ATTEMPTS / 2 {
        tell("the connection to casemated is lost; trying again");
    }
    Ok(longest.mul_f64(0.5 + share / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_their_bound() {
        for attempts in 1..=ATTEMPTS {
            let pause = pause(attempts).unwrap();
            assert!(pause >= FIRST_PAUSE / 2 && pause <= LONGEST_PAUSE);
        }
        assert!(pause(ATTEMPTS).unwrap() >= LONGEST_PAUSE / 2);
    }

    #[test]
    fn an_identifier_tells_how_much_was_seen() {
        assert_eq!(offsets("7-9"), (7, 9));
        assert_eq!(offsets("new"), (0, 0));
    }
}
