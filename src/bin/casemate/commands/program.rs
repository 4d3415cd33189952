//! One program in a session, from the session's beginning to its end.
//!
//! A session that was made for the program is ended whatever happens: the program ends, the request
//! fails, the reader goes away, somebody presses Ctrl-C. Only a second signal leaves it behind, to
//! its own deadline, and says so.

use std::time::Duration;

use ::http::Method;
use casemate::base::exit::Exit;
use casemate::base::id::SessionId;
use serde::Deserialize;

use super::Context;
use super::ending::{Ending, decode};
use super::session::wire::{self, NewSession, SessionView};
use super::stop::Stop;
use crate::failure::Failure;
use crate::http::{Answer, Call, Client};
use crate::output::{json_line, pass, tell};

/// The session that a program runs in.
pub enum Life {
    /// Somebody else's: it was there before and stays.
    Theirs(SessionId),
    /// Made for the program.
    Ours { new: Box<NewSession>, keep: bool },
}

/// What to run, and what to expect of it.
pub struct Program {
    pub body: Vec<u8>,
    pub deadline: Duration,
    pub max_answer_bytes: usize,
}

/// How a run ended, and what it wrote.
#[derive(Deserialize)]
struct Outcome {
    #[serde(flatten)]
    ending: Ending,
    stdout: String,
    stdout_encoding: String,
    stderr: String,
    stderr_encoding: String,
    truncated: bool,
}

impl Program {
    /// The exit code that casemate ends with.
    pub async fn run(self, context: &Context, client: &Client, life: Life) -> Result<u8, Failure> {
        let mut stop = Stop::listen()?;
        let (id, is_ours) = match life {
            Life::Theirs(id) => (id, false),
            Life::Ours { new, keep } => match begin(client, &new, keep, &mut stop).await? {
                Ok(id) => (id, !keep),
                Err(exit) => return Ok(exit.code()),
            },
        };
        let asked = {
            let work = self.work(context, client, id, is_ours);
            tokio::select! {
                biased;
                exit = stop.asked() => Err(exit),
                done = work => Ok(done),
            }
        };
        match asked {
            Ok(done) => done,
            Err(exit) => {
                if is_ours {
                    end(client, id, &mut stop).await;
                } else {
                    tell(&format!(
                        "the program may go on in {id} up to its time limit; `casemate session stop {id}` ends both"
                    ));
                }
                Ok(exit.code())
            }
        }
    }

    /// Runs the program, shows what it wrote, ends the session meanwhile.
    async fn work(
        self,
        context: &Context,
        client: &Client,
        id: SessionId,
        is_ours: bool,
    ) -> Result<u8, Failure> {
        let call = Call::new(Method::POST, format!("/v1/sessions/{id}/run"))
            .json(self.body)
            .within(self.deadline)
            .at_most(self.max_answer_bytes);
        let answer = client.call(call).await;
        let ending = async {
            if is_ours && let Err(failure) = wire::stop(client, id).await {
                tell(&format!(
                    "{id} was not ended and stays up to its deadline: {}",
                    failure.message
                ));
            }
        };
        let shown = async {
            let answer = answer?;
            show(context, client, &answer).await
        };
        let (shown, ()) = tokio::join!(shown, ending);
        shown
    }
}

/// Makes the session. Asked to stop meanwhile, waits for it in order to end it.
async fn begin(
    client: &Client,
    new: &NewSession,
    keep: bool,
    stop: &mut Stop,
) -> Result<Result<SessionId, Exit>, Failure> {
    let making = async {
        let answer = wire::create(client, new).await?;
        Ok::<_, Failure>(client.read::<SessionView>(&answer)?.id)
    };
    tokio::pin!(making);
    let exit = tokio::select! {
        biased;
        exit = stop.asked() => exit,
        made = &mut making => {
            let id = made?;
            if keep {
                tell(&format!("{id} stays; end it with `casemate session stop {id}`"));
            }
            return Ok(Ok(id));
        }
    };
    tell("waiting for the session to come up, in order to end it; once more leaves it behind");
    tokio::select! {
        biased;
        _ = stop.asked() => tell("left a session behind; it ends at its own deadline"),
        made = &mut making => if let Ok(id) = made {
            end(client, id, stop).await;
        },
    }
    Ok(Err(exit))
}

/// Ends a session of ours after a signal; a second signal ends the wait.
async fn end(client: &Client, id: SessionId, stop: &mut Stop) {
    let failure = tokio::select! {
        biased;
        _ = stop.asked() => "interrupted again".to_owned(),
        ended = wire::stop(client, id) => match ended {
            Ok(_) => return,
            Err(failure) => failure.message,
        },
    };
    tell(&format!(
        "{id} may not have ended ({failure}); it stays up to its deadline"
    ));
}

async fn show(context: &Context, client: &Client, answer: &Answer) -> Result<u8, Failure> {
    let outcome: Outcome = client.read(answer)?;
    let code = outcome.ending.code()?;
    if context.json {
        let whole: serde_json::Value = client.read(answer)?;
        pass(&json_line(&whole)?, &[]).await?;
        return Ok(code);
    }
    let stdout = decode(outcome.stdout, &outcome.stdout_encoding)?;
    let stderr = decode(outcome.stderr, &outcome.stderr_encoding)?;
    pass(&stdout, &stderr).await?;
    if outcome.truncated {
        tell("the output was cut off; --max-output BYTES keeps more of it");
    }
    if outcome.ending.timed_out {
        tell("the program's time was over; --timeout S gives it more");
    }
    Ok(code)
}
