//! Connections to programs, over the link: kept for the next request to the same port of the same session, and for nobody else.
//!
//! A connection that is kept does not count as a use of its session. It goes when it was not used for [`KEPT`], when its program closes it,
//! and with its session's link.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use casemate_link::daemon::{LinkError, PortStream};
use casemate_link::limits;
use casemate_link::refusal::code;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::body::{Passing, Ticket};
use super::forward::Refusal;
use crate::base::id::SessionId;
use crate::model::endpoint::Target;
use crate::model::settings::EndpointsConfig;
use crate::session::activity::Use;
use crate::session::guest::Guest;

/// Most requests and sockets of one session at a time: what its link has for them and for files, so that its API stays reachable.
pub const MAX_AT_ONCE: usize = limits::MAX_TRANSFERS;

/// Most connections that are kept for one port.
const MAX_KEPT: usize = 16;

/// How long a connection is kept that nobody uses.
const KEPT: Duration = Duration::from_secs(30);

/// How often it is looked for those that nobody uses.
const LOOK: Duration = Duration::from_secs(5);

/// Most headers of an answer.
const MAX_HEADERS: usize = 100;

/// Most bytes of an answer's head.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// What of an HTTP/2 answer may be on its way before somebody takes it.
const WINDOW_BYTES: u32 = 256 * 1024;

/// What one request holds while it lasts.
pub(super) struct Held {
    pub(super) ticket: Arc<dyn Ticket>,
    pub(super) _using: Arc<Use>,
    pub(super) _place: OwnedSemaphorePermit,
}

/// The connections to all sessions. Clones share them.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    lanes: Mutex<HashMap<SessionId, Arc<Lane>>>,
    tasks: TaskTracker,
    /// Cancelled when all connections are to end.
    closing: CancellationToken,
    config: EndpointsConfig,
}

/// One session's.
struct Lane {
    places: Arc<Semaphore>,
    ports: Mutex<HashMap<u16, Lines>>,
}

/// One port's.
#[derive(Default)]
struct Lines {
    http1: Vec<Kept>,
    http2: Option<(http2::SendRequest<Passing>, Instant)>,
}

struct Kept {
    sender: http1::SendRequest<Passing>,
    used: Instant,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Without connections.
    #[must_use]
    pub fn new(config: EndpointsConfig) -> Self {
        Self(Arc::new(Inner {
            lanes: Mutex::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            config,
        }))
    }

    /// What the operator set.
    #[must_use]
    pub fn config(&self) -> &EndpointsConfig {
        &self.0.config
    }

    /// Closes connections that nobody uses, until `stop`, and all of them then.
    pub async fn keep(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(LOOK) => self.tidy(),
            }
        }
        locked(&self.0.lanes).clear();
        self.0.closing.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Lets a connection go on until it ends or all of them are to.
    fn run<E: std::error::Error>(
        &self,
        connection: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let closing = self.0.closing.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = closing.cancelled() => {}
                ended = connection => if let Err(error) = ended {
                    debug!(%error, "a connection to a program ended badly");
                },
            }
        });
    }

    fn tidy(&self) {
        let now = Instant::now();
        let mut lanes = locked(&self.0.lanes);
        lanes.retain(|_, lane| {
            let mut ports = locked(&lane.ports);
            ports.retain(|_, lines| {
                lines.http1.retain(|kept| {
                    let is_idle = kept.sender.is_ready();
                    let is_old = is_idle && now.duration_since(kept.used) >= KEPT;
                    !kept.sender.is_closed() && !is_old
                });
                let is_used = |(sender, used): &(http2::SendRequest<Passing>, Instant)| {
                    !sender.is_closed() && now.duration_since(*used) < KEPT
                };
                lines.http2 = lines.http2.take().filter(is_used);
                !lines.http1.is_empty() || lines.http2.is_some()
            });
            !ports.is_empty() || lane.places.available_permits() < MAX_AT_ONCE
        });
    }

    /// A place among the requests of a session.
    pub(super) fn place(&self, session: SessionId) -> Result<OwnedSemaphorePermit, Refusal> {
        let lane = self.lane(session);
        Arc::clone(&lane.places)
            .try_acquire_owned()
            .map_err(|_| Refusal::Crowded)
    }

    fn lane(&self, session: SessionId) -> Arc<Lane> {
        let mut lanes = locked(&self.0.lanes);
        let lane = lanes.entry(session).or_insert_with(|| {
            Arc::new(Lane {
                places: Arc::new(Semaphore::new(MAX_AT_ONCE)),
                ports: Mutex::default(),
            })
        });
        Arc::clone(lane)
    }

    /// A connection that stands and is free.
    pub(super) fn kept(&self, target: Target) -> Option<http1::SendRequest<Passing>> {
        let lane = self.lane(target.session);
        let mut ports = locked(&lane.ports);
        let lines = ports.get_mut(&target.port)?;
        lines.http1.retain(|kept| !kept.sender.is_closed());
        let free = lines.http1.iter().position(|kept| kept.sender.is_ready())?;
        Some(lines.http1.swap_remove(free).sender)
    }

    /// Gives back a connection; it is free once its answer was read to the end.
    pub(super) fn keep_http1(&self, target: Target, sender: http1::SendRequest<Passing>) {
        if sender.is_closed() {
            return;
        }
        let lane = self.lane(target.session);
        let mut ports = locked(&lane.ports);
        let lines = ports.entry(target.port).or_default();
        if lines.http1.len() < MAX_KEPT {
            let used = Instant::now();
            lines.http1.push(Kept { sender, used });
        }
    }

    /// A new HTTP/1.1 connection.
    pub(super) async fn connect(
        &self,
        guest: &Guest,
        port: u16,
    ) -> Result<http1::SendRequest<Passing>, Refusal> {
        let stream = dial(guest, port).await?;
        let handshake = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(Refusal::BadAnswer)?;
        self.run(connection.with_upgrades());
        Ok(sender)
    }

    /// The HTTP/2 connection of a port; a new one where there is none.
    pub(super) async fn http2(
        &self,
        guest: &Guest,
        target: Target,
    ) -> Result<http2::SendRequest<Passing>, Refusal> {
        let lane = self.lane(target.session);
        if let Some((sender, used)) = &mut locked(&lane.ports).entry(target.port).or_default().http2
            && !sender.is_closed()
        {
            *used = Instant::now();
            return Ok(sender.clone());
        }
        let stream = dial(guest, target.port).await?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(4 * WINDOW_BYTES)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(Refusal::BadAnswer)?;
        self.run(connection);
        let kept = (sender.clone(), Instant::now());
        locked(&lane.ports).entry(target.port).or_default().http2 = Some(kept);
        Ok(sender)
    }
}

/// A byte stream to a port, as the guest connects it.
///
/// # Errors
/// [`Refusal::NotOpen`], [`Refusal::Link`].
pub(super) async fn dial(guest: &Guest, port: u16) -> Result<PortStream, Refusal> {
    guest
        .link()
        .connect(port)
        .await
        .map_err(|error| match error {
            LinkError::Refused { code, .. } if code == code::NOT_LISTENING => Refusal::NotOpen,
            LinkError::Refused { code, .. } if code == code::BUSY => Refusal::Crowded,
            other => Refusal::Link(other),
        })
}
