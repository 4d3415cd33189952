//! Bytes on their way into a file or an archive: collected while the thread is busy with those before.

use std::future::pending;

use bytes::Bytes;
use casemate_link::Refusal;

use super::actor::{Actor, finished, joined};
use crate::transfer::Input;

/// Bytes that are collected for one job, beside those of the job that runs: what one slow disk costs.
const MAX_BATCH_BYTES: usize = 256 * 1024;

/// Pieces of one batch: a small piece may hold a large buffer.
const MAX_BATCH_PIECES: usize = 32;

/// Takes bytes, on a thread that acts as the user. Dropped there, it undoes what is not complete.
pub(crate) trait Sink: Send + 'static {
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
                job = Some(actor.begin(move || {
                    idle.take(&data)?;
                    Ok(idle)
                }));
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
                sink = Some(joined(taken)?);
            }
            data = input.data(), if !ended && has_room => match data {
                Ok(Some(data)) => {
                    bytes += data.len();
                    batch.push(data);
                }
                Ok(None) => ended = true,
                Err(cut) => {
                    let sink = match job {
                        Some(job) => finished(job).await.ok(),
                        None => sink,
                    };
                    // As the user, whose it is.
                    actor.run(move || { drop(sink); Ok(()) }).await?;
                    return Err(cut);
                }
            }
        }
    }
}
