//! Bodies that are longer than memory: an answer piece by piece, a request from a stream.
//!
//! There is no deadline for the whole, only one for every piece: somebody who still sends or takes
//! something is there.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::header;
use ::http::{HeaderValue, StatusCode};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio_util::task::AbortOnDropHandle;

use super::{Answer, Call, Client, Payload, payload};
use crate::failure::Failure;

/// How long nothing at all may be sent or taken: as long as casemated itself is patient.
const IDLE_DEADLINE: Duration = Duration::from_secs(300);

/// Longest answer to a refused request that is read to be told.
pub(super) const MAX_REFUSAL_BYTES: usize = 64 << 10;

/// What a request sends, piece by piece.
pub struct Outgoing {
    /// Its pieces; an error cuts the request off.
    pub pieces: BoxStream<'static, io::Result<Bytes>>,
    /// How many bytes they are, where that is known.
    pub length_bytes: Option<u64>,
}

/// An answer's body, as it comes.
pub struct Body {
    incoming: Incoming,
    idle: Duration,
    gone: Failure,
    silent: Failure,
    // Last: it moves the bytes of the others.
    _connection: AbortOnDropHandle<()>,
}

/// Looks at a request's pieces on their way out, in order to tell who is slow.
struct Metered {
    pieces: BoxStream<'static, io::Result<Bytes>>,
    meter: Arc<Meter>,
}

#[derive(Default)]
struct Meter {
    pieces: AtomicU64,
    /// Whether the next piece is not there yet: then nobody but us is waited for.
    waits_for_us: AtomicBool,
}

impl Client {
    /// Asks, and gives back an answer's body as it comes. `idle` is how long it may be silent.
    /// Anything but success is a failure.
    pub async fn open(&self, call: Call, idle: Option<Duration>) -> Result<Body, Failure> {
        let deadline = call.deadline;
        let stream = self.dial().await?;
        let body = payload(call.body.clone());
        let begun = match tokio::time::timeout(deadline, self.begin(stream, call, body)).await {
            Ok(begun) => begun?,
            Err(_) => return Err(self.silent(deadline)),
        };
        if begun.head.status != StatusCode::OK {
            let refused = self.collect(begun, MAX_REFUSAL_BYTES);
            let refused = tokio::time::timeout(deadline, refused).await;
            return Err(match refused {
                Ok(answer) => self.refusal(&answer?),
                Err(_) => self.silent(deadline),
            });
        }
        let idle = idle.unwrap_or(IDLE_DEADLINE);
        Ok(Body {
            incoming: begun.body,
            idle,
            gone: self.cut_off(),
            silent: Failure::unavailable(format!(
                "casemated at {} sent nothing for {} s",
                self.url,
                idle.as_secs()
            )),
            _connection: begun.connection,
        })
    }

    /// Asks with a body of any length. Anything but success is a failure; one that comes before the
    /// body is sent ends the sending.
    pub async fn send(&self, call: Call, outgoing: Outgoing) -> Result<Answer, Failure> {
        let max_bytes = call.max_bytes;
        let meter = Arc::new(Meter::default());
        let metered = Metered {
            pieces: outgoing.pieces,
            meter: Arc::clone(&meter),
        };
        let body: Payload = StreamBody::new(metered).boxed_unsync();
        let call = match outgoing.length_bytes {
            Some(bytes) => call.with(header::CONTENT_LENGTH, HeaderValue::from(bytes)),
            None => call,
        };
        let stream = self.dial().await?;
        let asking = async {
            let begun = self.begin(stream, call, body).await?;
            self.collect(begun, max_bytes).await
        };
        let answer = tokio::select! {
            answer = asking => answer?,
            () = meter.stalls() => return Err(Failure::unavailable(format!(
                "casemated at {} took nothing for {} s; it may or may not have done what it was asked to",
                self.url,
                IDLE_DEADLINE.as_secs()
            ))),
        };
        if answer.status.is_success() {
            Ok(answer)
        } else {
            Err(self.refusal(&answer))
        }
    }
}

impl Body {
    /// The next bytes; `None` at the end. Safe to drop and call again.
    ///
    /// # Errors
    /// When the answer breaks off, or nothing comes for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = match tokio::time::timeout(self.idle, self.incoming.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(_))) => return Err(self.gone.clone()),
                Err(_) => return Err(self.silent.clone()),
            };
            // Trailers say nothing that we know.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }
}

impl Stream for Metered {
    type Item = io::Result<Frame<Bytes>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.pieces.poll_next_unpin(context);
        let Meter {
            pieces,
            waits_for_us,
        } = &*self.meter;
        waits_for_us.store(polled.is_pending(), Ordering::Relaxed);
        pieces.fetch_add(1, Ordering::Relaxed);
        polled.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

impl Meter {
    /// Waits until the other end has taken nothing for too long.
    async fn stalls(&self) {
        let mut before = self.pieces.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(IDLE_DEADLINE).await;
            let now = self.pieces.load(Ordering::Relaxed);
            if now == before && !self.waits_for_us.load(Ordering::Relaxed) {
                return;
            }
            before = now;
        }
    }
}
