//! Bytes on their way into a file or an archive: collected while the thread is busy with those before.

use std::future::pending;

use bytes::Bytes;
use casemate_link::Refusal;

use super::actor::{Actor, begin_open, finished, joined};
use crate::transfer::Input;

/// Bytes that are collected for one job, beside those of the job that runs: what one slow disk costs.
const MAX_BATCH_BYTES: usize = 256 * 1024;

/// Pieces of one batch: a small piece may hold a large buffer.
const MAX_BATCH_PIECES: usize = 32;

/// Takes bytes on a thread. Dropped on one that acts as the user, it undoes what is not complete.
pub(crate) trait Sink: Send + 'static {
    /// Whether it opens files while it takes bytes, and so must act as the user then.
    const OPENS: bool;

    /// Takes the next bytes.
    fn take(&mut self, data: &[Bytes]) -> Result<(), Refusal>;
}

/// Carries all that comes into a sink, to the end of the input.
///
/// # Errors
/// The sink's, or that the input was cut; the sink is gone then.
pub(crate) async fn pour<S: Sink>(actor: &Actor, sink: S, input: &mut Input) -> Result<S, Refusal> {
    let mut sink = Some(sink);
    let mut job = None;
    let (mut batch, mut bytes, mut ended) = (Vec::new(), 0, false);
    loop {
        if let Some(mut idle) = sink.take() {
            if !batch.is_empty() {
                let data = std::mem::take(&mut batch);
                bytes = 0;
                let work = move || {
                    let taken = idle.take(&data);
                    Ok((idle, taken))
                };
                job = Some(if S::OPENS {
                    actor.begin(work)
                } else {
                    begin_open(work)
                });
            } else if ended {
                return Ok(idle);
            } else {
                sink = Some(idle);
            }
        }
        let running = async {
            match &mut job {
                Some(job) => job.await,
                None => pending().await,
            }
        };
        let has_room = bytes < MAX_BATCH_BYTES && batch.len() < MAX_BATCH_PIECES;
        tokio::select! {
            taken = running => {
                job = None;
                let (idle, taken) = joined(taken)?;
                if let Err(refused) = taken {
                    return undo(actor, idle, refused).await;
                }
                sink = Some(idle);
            }
            data = input.data(), if !ended && has_room => match data {
                Ok(Some(data)) => {
                    bytes += data.len();
                    batch.push(data);
                }
                Ok(None) => ended = true,
                Err(cut) => {
                    let idle = match job {
                        Some(job) => finished(job).await.ok().map(|(idle, _)| idle),
                        None => sink,
                    };
                    return undo(actor, idle, cut).await;
                }
            }
        }
    }
}

/// Drops a sink as the user, whose files it undoes.
pub(crate) async fn undo<S: Send + 'static, T>(
    actor: &Actor,
    sink: S,
    refused: Refusal,
) -> Result<T, Refusal> {
    let work = move || {
        drop(sink);
        Ok(())
    };
    actor.run(work).await?;
    Err(refused)
}
