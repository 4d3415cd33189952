//! One visit outside: judged, recorded, resolved, judged again, dialled, and its end recorded whatever becomes of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::meter::{Meter, Metered};
use super::resolve::Resolve;
use super::{End, Kind, Refusal, Warden, always};
use crate::model::host::Host;
use crate::policy::egress::Asked;
use crate::policy::rate::{Bucket, Rate};

/// What all connections of one sandbox share.
pub(super) struct Shared<W> {
    pub(super) warden: W,
    resolver: Arc<dyn Resolve>,
    pub(super) tasks: TaskTracker,
    /// Cancelled when the sandbox is to reach nothing any more.
    pub(super) stop: CancellationToken,
    spent: Arc<AtomicU64>,
    bucket: Mutex<Bucket>,
    since: Instant,
}

/// A visit that was recorded. Dropping it records its end.
pub(super) struct Visit<W: Warden> {
    shared: Arc<Shared<W>>,
    record: Option<W::Record>,
    pub(super) meter: Arc<Meter>,
    address: Option<IpAddr>,
    began: Instant,
    failure: Option<&'static str>,
}

/// A visit that has come as far as a connection.
pub(super) type Arrived<W> = (Visit<W>, Metered<TcpStream>);

impl<W: Warden> Shared<W> {
    pub(super) fn new(warden: W, resolver: Arc<dyn Resolve>) -> Arc<Self> {
        Arc::new(Self {
            warden,
            resolver,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            spent: Arc::default(),
            bucket: Mutex::default(),
            since: Instant::now(),
        })
    }

    /// Notes a refusal in which a rule spoke, and gives it back.
    pub(super) fn note(&self, host: Option<&Host>, port: u16, refusal: Refusal) -> Refusal {
        if matches!(refusal.kind, Kind::Denied | Kind::TooMuch | Kind::Malformed) {
            self.warden.denied(host, port, &refusal.rule);
        }
        refusal
    }

    /// Goes where it is asked for, if that may be; the connection then.
    ///
    /// # Errors
    /// Why not; what a rule denied was noted.
    pub(super) async fn visit(self: &Arc<Self>, asked: &Asked<'_>) -> Result<Arrived<W>, Refusal> {
        let noted = |refusal| self.note(Some(asked.host), asked.port, refusal);
        self.within_bounds().map_err(noted)?;
        let decision = self.warden.decide(asked);
        if !decision.allowed {
            return Err(noted(Refusal::new(
                Kind::Denied,
                decision.rule,
                decision.reason,
            )));
        }
        let Some(record) = self.warden.begin(asked, &decision.rule).await else {
            return Err(Refusal::new(Kind::Unrecorded, "", "it cannot be recorded"));
        };
        let settings = self.warden.settings();
        let mut visit = Visit {
            shared: Arc::clone(self),
            record: Some(record),
            meter: Meter::new(Arc::clone(&self.spent), settings.max_bytes),
            address: None,
            began: Instant::now(),
            failure: Some("cut"),
        };
        let arriving = self.arrive(asked, settings.connect_timeout);
        let arrived = tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Refusal::new(Kind::Unreachable, "", "the session ends")),
            arrived = arriving => arrived,
        };
        match arrived {
            Ok(stream) => {
                visit.address = stream.peer_addr().ok().map(|peer| peer.ip());
                let stream = Metered::new(stream, Arc::clone(&visit.meter));
                Ok((visit, stream))
            }
            Err(refusal) => {
                visit.end(Some(refusal.kind.code()));
                Err(noted(refusal))
            }
        }
    }

    fn within_bounds(&self) -> Result<(), Refusal> {
        let settings = self.warden.settings();
        let refused = |what| Err(Refusal::new(Kind::TooMuch, always::BOUNDS, what));
        if Meter::new(Arc::clone(&self.spent), settings.max_bytes).is_spent() {
            return refused("the session has sent and received all the bytes that it may");
        }
        let rate = Rate::new(
            settings.requests_per_s,
            Duration::from_secs(1),
            settings.burst,
        );
        let now = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        if rate.is_some_and(|rate| bucket.take(rate, now).is_err()) {
            return refused("the session asks for more in a second than it may");
        }
        Ok(())
    }

    /// Resolves once, judges every address, and dials one of those.
    async fn arrive(&self, asked: &Asked<'_>, patience: Duration) -> Result<TcpStream, Refusal> {
        let deadline = Instant::now() + patience;
        let late = |what: &str| {
            let reason = format!("{what} takes longer than {} s", patience.as_secs());
            Refusal::new(Kind::Late, "", reason)
        };
        let addresses = match asked.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                let found = timeout_at(deadline, self.resolver.resolve(name)).await;
                let found = found.map_err(|_| late("to resolve the host"))?;
                // What the resolver says is for this machine's operator.
                found.unwrap_or_default()
            }
        };
        if addresses.is_empty() {
            return Err(Refusal::new(
                Kind::NoSuchHost,
                "",
                "the host has no address",
            ));
        }
        for address in &addresses {
            let is_own = self.resolver.is_own(*address);
            let decision = self.warden.decide_address(asked, *address, is_own);
            if !decision.allowed {
                return Err(Refusal::new(Kind::Denied, decision.rule, decision.reason));
            }
        }
        let last = addresses.len() - 1;
        for (at, address) in addresses.into_iter().enumerate() {
            // One that does not answer must not take the time of all that follow.
            let left = deadline.saturating_duration_since(Instant::now());
            let until = if at == last {
                deadline
            } else {
                Instant::now() + left / 2
            };
            let dialling = TcpStream::connect(SocketAddr::new(address, asked.port));
            if let Ok(Ok(stream)) = timeout_at(until, dialling).await {
                // Only a matter of speed.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
        }
        if Instant::now() >= deadline {
            return Err(late("to connect"));
        }
        Err(Refusal::new(Kind::Unreachable, "", "nobody answers there"))
    }
}

impl<W: Warden> Visit<W> {
    /// Records how it ended; `None`: in order.
    pub(super) fn end(mut self, failure: Option<&'static str>) {
        self.failure = failure;
    }
}

impl<W: Warden> Drop for Visit<W> {
    fn drop(&mut self) {
        let (Some(record), Ok(runtime)) = (self.record.take(), Handle::try_current()) else {
            return;
        };
        let failure = if self.failure.is_some() && self.meter.is_spent() {
            Some(Kind::TooMuch.code())
        } else {
            self.failure
        };
        let end = End {
            failure,
            address: self.address,
            sent_bytes: self.meter.sent(),
            received_bytes: self.meter.received(),
            duration_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        let shared = Arc::clone(&self.shared);
        let tasks = self.shared.tasks.clone();
        tasks.spawn_on(
            async move { shared.warden.finish(record, end).await },
            &runtime,
        );
    }
}
