//! The socket of one sandbox's way out, and who may come through it at one time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::resolve::Resolve;
use super::stream::Prefixed;
use super::tunnel::Tunnel;
use super::visit::{Arrived, Shared};
use super::{Kind, Refusal, Warden, always, http, opened, socks};
use crate::model::egress::Scheme;
use crate::model::host::{Host, HostName};
use crate::policy::egress::Asked;

/// How long a connection may take to say what it wants.
pub(super) const REQUEST_PATIENCE: Duration = Duration::from_secs(30);
/// Pause after one too many, or when accepting fails.
const FULL_PAUSE: Duration = Duration::from_millis(20);
/// How long the ends of visits may take to be recorded.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// The open way out of one sandbox. Dropping it cuts every connection.
pub struct Gate {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Gate {
    /// Serves whoever connects.
    #[must_use]
    pub fn open<W: Warden>(listener: UnixListener, warden: W, resolver: Arc<dyn Resolve>) -> Self {
        let shared = Shared::new(warden, resolver);
        let gate = Self {
            stop: shared.stop.clone(),
            tasks: shared.tasks.clone(),
        };
        let tasks = shared.tasks.clone();
        tasks.spawn(accept(listener, shared));
        gate
    }

    /// Cuts every connection, and waits until how each ended is recorded.
    pub async fn close(self) {
        self.stop.cancel();
        self.tasks.close();
        if timeout(CLOSE_PATIENCE, self.tasks.wait()).await.is_err() {
            debug!("a way out did not come to its end in time");
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One of those that are let through at one time, held by whatever goes on of it.
pub(super) struct Turn(Arc<AtomicUsize>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn accept<W: Warden>(listener: UnixListener, shared: Arc<Shared<W>>) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            sleep(FULL_PAUSE).await;
            continue;
        };
        if open.fetch_add(1, Ordering::Relaxed) >= shared.warden.settings().connections {
            open.fetch_sub(1, Ordering::Relaxed);
            drop(stream);
            shared.warden.denied(None, 0, always::BOUNDS);
            sleep(FULL_PAUSE).await;
            continue;
        }
        let turn = Arc::new(Turn(Arc::clone(&open)));
        let through = Arc::clone(&shared);
        shared.tasks.spawn(async move {
            let stop = through.stop.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = serve(stream, through, turn) => {}
            }
        });
    }
}

/// One connection: SOCKS begins with its version, HTTP with a letter.
async fn serve<W: Warden>(mut stream: UnixStream, shared: Arc<Shared<W>>, turn: Arc<Turn>) {
    let Ok(Ok(first)) = timeout(REQUEST_PATIENCE, stream.read_u8()).await else {
        return;
    };
    let stream = Prefixed::new(Bytes::copy_from_slice(&[first]), stream);
    if first == socks::VERSION {
        socks_connection(stream, &shared, turn).await;
    } else {
        http::serve(stream, &shared, &turn).await;
    }
}

async fn socks_connection<W: Warden>(
    mut stream: Prefixed<UnixStream>,
    shared: &Arc<Shared<W>>,
    turn: Arc<Turn>,
) {
    let asked = match timeout(REQUEST_PATIENCE, socks::ask(&mut stream)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(refusal)) => {
            shared.note(None, 0, refusal);
            return;
        }
        Err(_) => return,
    };
    let (host, port) = asked;
    match tunnel_to(shared, &host, port).await {
        Ok(way) => {
            if socks::answer(&mut stream, 0).await.is_ok() {
                way.carry(shared, host, port, stream, turn).await;
            }
        }
        Err(refusal) => {
            let _ = socks::answer(&mut stream, socks::code_of(refusal.kind)).await;
        }
    }
}

/// How a tunnel leads to its host.
pub(super) enum Way<W: Warden> {
    /// Nothing is read but the first message.
    Through {
        /// Whether only TLS may.
        is_tls: bool,
        arrived: Arrived<W>,
    },
    /// TLS ends here, and each request in it goes its own way.
    Opened(HostName),
}

impl<W: Warden> Way<W> {
    /// Carries until it is over.
    pub(super) async fn carry<C>(
        self,
        shared: &Arc<Shared<W>>,
        host: Host,
        port: u16,
        client: C,
        turn: Arc<Turn>,
    ) where
        C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match self {
            Self::Through { is_tls, arrived } => {
                let tunnel = Tunnel { host, port, is_tls };
                tunnel.carry(shared, client, arrived).await;
                drop(turn);
            }
            // In a task of its own: it is a conversation within one, whose type would know no end.
            Self::Opened(host) => {
                let through = Arc::clone(shared);
                shared.tasks.spawn(async move {
                    let stop = through.stop.clone();
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = opened::serve(&through, host, port, client, turn) => {}
                    }
                });
            }
        }
    }
}

/// Goes where a tunnel is asked for: for any bytes where a rule allows that, else for TLS, which is opened where something may be added.
pub(super) async fn tunnel_to<W: Warden>(
    shared: &Arc<Shared<W>>,
    host: &Host,
    port: u16,
) -> Result<Way<W>, Refusal> {
    if let Host::Name(name) = host
        && shared.warden.opens(host, port)
    {
        return Ok(Way::Opened(name.clone()));
    }
    let asked = |scheme| Asked {
        host,
        port,
        scheme,
        request: None,
    };
    let is_tls = !shared.warden.decide(&asked(Scheme::Tcp)).allowed;
    let scheme = if is_tls { Scheme::Https } else { Scheme::Tcp };
    let arrived = shared.visit(&asked(scheme)).await?;
    Ok(Way::Through { is_tls, arrived })
}

/// What is no host in its one spelling.
pub(super) fn no_host(why: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Kind::Denied, always::ONE_SPELLING, why.to_string())
}
