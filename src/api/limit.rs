//! How much may be asked at the HTTP door: of an address, with a key, for a team.
//!
//! The bucket of an address binds those who are not known: whoever has a valid key goes on, and is bound by the key's and the team's instead, so that
//! nobody locks out others behind the same address. When an address has nothing left, keys from there are still looked up, but few at a time; those that are
//! wrong are answered late. Everything is decided before a body is read; most of it before anybody is asked.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::error::Problem;
use super::server::locked;
use crate::model::event::DoorLimit;
use crate::model::name::Name;
use crate::model::principal::{Principal, Proof};
use crate::model::settings::HttpLimits;
use crate::policy::rate::{Buckets, Rate};

/// Most of each kind that are told apart at one time: about 4 MiB of addresses.
const MAX_BUCKETS: usize = 65_536;

/// Credentials that are looked up at one time from addresses that have nothing left.
const LOOKUPS: usize = 16;

/// How long such a look-up may wait for its turn.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(5);

/// How long a wrong credential from such an address waits for its answer.
const FAILURE_PAUSE: Duration = Duration::from_millis(500);

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Who is told apart: an address of IPv4, or the network of 64 bits that one customer has of IPv6 (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Network(IpAddr);

impl Network {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let prefix = address.to_bits() >> 64 << 64;
                Self(Ipv6Addr::from_bits(prefix).into())
            }
            address @ IpAddr::V4(_) => Self(address),
        }
    }
}

type Bound<K> = Option<Mutex<Buckets<K>>>;

/// All bounds of one door.
pub(super) struct Limits {
    began: Instant,
    addresses: Bound<Network>,
    failures: Bound<Network>,
    keys: Bound<Proof>,
    teams: Bound<Name>,
    connections_of_one: usize,
    connections: Counts,
    lookups: Semaphore,
    told: Bound<()>,
}

/// A connection's place among those of its address.
pub(super) struct Place(Option<(Network, Counts)>);

type Counts = Arc<Mutex<HashMap<Network, usize>>>;

impl Drop for Place {
    fn drop(&mut self) {
        let Some((network, connections)) = &self.0 else {
            return;
        };
        let mut connections = locked(connections);
        if let Some(count) = connections.get_mut(network) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                connections.remove(network);
            }
        }
    }
}

impl Limits {
    pub(super) fn new(config: &HttpLimits) -> Self {
        fn bound<K: Eq + Hash>(rate: Option<Rate>) -> Bound<K> {
            rate.map(|rate| Mutex::new(Buckets::new(rate, MAX_BUCKETS)))
        }
        let per_second = |count, burst| Rate::new(count, SECOND, burst);
        let failures = config.failures_per_minute;
        Self {
            began: Instant::now(),
            addresses: bound(per_second(config.address_per_s, config.address_burst)),
            failures: bound(Rate::new(failures, MINUTE, failures)),
            keys: bound(per_second(config.key_per_s, config.key_burst)),
            teams: bound(per_second(config.team_per_s, config.team_burst)),
            connections_of_one: config.connections_per_address,
            connections: Arc::default(),
            lookups: Semaphore::new(LOOKUPS),
            told: bound(per_second(1, 10)),
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn take<K>(
        &self,
        bound: Option<&Mutex<Buckets<K>>>,
        key: impl FnOnce() -> K,
    ) -> Option<Duration>
    where
        K: Eq + Hash,
    {
        locked(bound?).take(key(), self.now_ns()).err()
    }

    /// A place for a connection; `None` when its address has as many as it may. Loopback has as many as there are: a proxy comes from there.
    pub(super) fn connect(&self, peer: Option<IpAddr>) -> Option<Place> {
        let bound = self.connections_of_one;
        let peer = peer.filter(|peer| bound > 0 && !peer.to_canonical().is_loopback());
        let Some(network) = peer.map(Network::of) else {
            return Some(Place(None));
        };
        let mut connections = locked(&self.connections);
        let count = connections.entry(network).or_default();
        if *count >= bound {
            return None;
        }
        *count += 1;
        drop(connections);
        Some(Place(Some((network, Arc::clone(&self.connections)))))
    }

    /// Counts a request of an address; how long until the next, when it has none left.
    pub(super) fn request(&self, peer: Option<IpAddr>) -> Option<Duration> {
        let peer = peer?;
        self.take(self.addresses.as_ref(), || Network::of(peer))
    }

    /// How long until an address may fail to authenticate again, when it did so too often. What is under way at one time passes together.
    pub(super) fn distrust(&self, peer: Option<IpAddr>) -> Option<Duration> {
        let failures = self.failures.as_ref()?;
        let network = Network::of(peer?);
        locked(failures).look(&network, self.now_ns()).err()
    }

    /// Counts a request that did not authenticate.
    pub(super) fn failed(&self, peer: Option<IpAddr>) {
        if let Some(peer) = peer {
            self.take(self.failures.as_ref(), || Network::of(peer));
        }
    }

    /// Counts a request of somebody who is known; which limit has nothing left, and how long until it has.
    pub(super) fn admit(&self, principal: &Principal) -> Result<(), (DoorLimit, Duration)> {
        let Principal::Client(client) = principal else {
            return Ok(());
        };
        if let Some(wait) = self.take(self.keys.as_ref(), || client.by.clone()) {
            return Err((DoorLimit::Key, wait));
        }
        match self.take(self.teams.as_ref(), || client.team.clone()) {
            Some(wait) => Err((DoorLimit::Team, wait)),
            None => Ok(()),
        }
    }

    /// What is told to whoever has nothing left.
    pub(super) fn refused(limit: DoorLimit, wait: Duration) -> Problem {
        let how = match limit {
            DoorLimit::Key => "with this credential",
            DoorLimit::Team => "for this team",
            DoorLimit::Address | DoorLimit::Connections => "from this address",
        };
        Problem::rate_limited(how, wait)
    }

    /// Looks up a credential from an address that has nothing left, when it is its turn.
    pub(super) async fn in_turn<T>(
        &self,
        looked_up: impl Future<Output = T>,
        wait: Duration,
    ) -> Result<T, Problem> {
        match timeout(LOOKUP_PATIENCE, self.lookups.acquire()).await {
            Ok(Ok(_place)) => Ok(looked_up.await),
            _ => Err(Self::refused(DoorLimit::Address, wait)),
        }
    }

    /// Holds back the answer to a wrong credential.
    pub(super) async fn hold_back() {
        tokio::time::sleep(FAILURE_PAUSE).await;
    }

    /// Whether it is time to say in the log that somebody was refused for being too many.
    pub(super) fn is_time_to_tell(&self) -> bool {
        self.take(self.told.as_ref(), || ()).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "as it is asked for")]
    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn limits(change: impl FnOnce(&mut HttpLimits)) -> Limits {
        let mut config = HttpLimits::default();
        change(&mut config);
        Limits::new(&config)
    }

    #[test]
    fn one_customers_network_is_one_and_an_address_in_another_is_itself() {
        for (one, other, is_same) in [
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("::ffff:10.0.0.1", "::ffff:10.0.0.2", false),
            ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            let of = |text: &str| Network::of(text.parse().unwrap());
            assert_eq!(of(one) == of(other), is_same, "{one} {other}");
        }
    }

    #[test]
    fn an_address_has_its_share_of_connections_and_gives_it_back() {
        let limits = limits(|config| config.connections_per_address = 2);
        let held = [
            limits.connect(address("2001:db8::1")),
            limits.connect(address("2001:db8::2")),
        ];
        assert!(held.iter().all(Option::is_some));
        assert!(limits.connect(address("2001:db8::3")).is_none());
        assert!(limits.connect(address("2001:db8:0:1::3")).is_some());
        drop(held);
        assert!(locked(&limits.connections).is_empty(), "it only grows");
        assert!(limits.connect(address("2001:db8::3")).is_some());
        let proxied: Vec<_> = (0..10)
            .map(|_| limits.connect(address("127.0.0.1")))
            .collect();
        assert!(proxied.iter().all(Option::is_some));
    }

    #[test]
    fn nothing_is_bound_where_nobody_wants_it() {
        let limits = limits(|config| *config = HttpLimits::off());
        for _ in 0..10_000 {
            assert_eq!(limits.request(address("10.0.0.1")), None);
            limits.failed(address("10.0.0.1"));
        }
        assert_eq!(limits.distrust(address("10.0.0.1")), None);
        let held: Vec<_> = (0..100)
            .map(|_| limits.connect(address("10.0.0.1")))
            .collect();
        assert!(held.iter().all(Option::is_some));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_counted_by_the_minute() {
        let limits = limits(|config| config.failures_per_minute = 6);
        let peer = address("10.0.0.1");
        for _ in 0..6 {
            assert_eq!(limits.distrust(peer), None);
            limits.failed(peer);
        }
        assert_eq!(limits.distrust(peer), Some(Duration::from_secs(10)));
        assert_eq!(limits.distrust(address("10.0.0.2")), None);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(limits.distrust(peer), None);
    }

    #[tokio::test(start_paused = true)]
    async fn few_are_looked_up_at_a_time_and_nobody_waits_for_ever() {
        let limits = limits(|_| {});
        let wait = Duration::from_secs(3);
        let stuck = futures_util::future::join_all(
            (0..LOOKUPS).map(|_| limits.in_turn(std::future::pending::<()>(), wait)),
        );
        let began = Instant::now();
        let late = async { limits.in_turn(std::future::ready(()), wait).await };
        let refused = tokio::select! {
            biased;
            _ = stuck => None,
            late = late => late.err(),
        };
        assert_eq!(refused.unwrap().code(), "rate_limited");
        assert_eq!(began.elapsed(), LOOKUP_PATIENCE);
        assert!(limits.in_turn(std::future::ready(()), wait).await.is_ok());
    }
}
