//! Floor 4: the way out of a sandbox: a proxy that runs here, for HTTP (`CONNECT` and whole URLs) and SOCKS 5 on one socket.
//!
//! What comes is a sandbox's, and hostile. Each thing that is asked for goes the same way ([`visit`]): the rules judge the name,
//! it is recorded, the name is resolved once, the rules judge every address of it, and one of those very addresses is
//! dialled. TLS passes unread once its first message names the host that was asked for ([`hello`]); it is opened ([`opened`]) where a rule adds a
//! credential to what is in it ([`inject`]). Connections, requests,
//! bytes and every wait are bounded ([`Settings`]). Who decides and who records is a [`Warden`]: this folder knows no session.

mod authority;
mod gate;
mod hello;
mod http;
mod inject;
mod meter;
mod opened;
mod opener;
mod resolve;
mod socks;
mod stream;
mod tunnel;
mod visit;

#[cfg(test)]
mod tests;

pub use self::authority::{Authority, AuthorityError};
pub use self::gate::Gate;
pub use self::hello::{Hello, read_hello};
pub use self::opener::Opener;
pub use self::resolve::{Resolve, SystemResolver};
pub use self::socks::{Request as SocksRequest, read_request};

use std::borrow::Cow;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use crate::base::id::SessionId;
use crate::model::credential::CredentialValue;
use crate::model::host::Host;
use crate::model::inject::Injection;
use crate::model::name::Name;
use crate::model::settings::EgressConfig;
use crate::policy::egress::{Asked, EgressDecision};

/// Bounds of one sandbox's way out.
pub type Settings = EgressConfig;

/// Who decides what a sandbox may reach, and records it.
pub trait Warden: Send + Sync + 'static {
    /// What was recorded, and waits for its outcome.
    type Record: Send;

    /// The bounds as they are now.
    fn settings(&self) -> Settings;

    /// Decides by the rules as they are now, before anything is resolved.
    fn decide(&self, asked: &Asked<'_>) -> EgressDecision;

    /// Decides on an address of what was allowed.
    fn decide_address(&self, asked: &Asked<'_>, address: IpAddr, is_own: bool) -> EgressDecision;

    /// Records what is about to be done. `None`: it cannot be recorded, and must not be done.
    fn begin(
        &self,
        asked: &Asked<'_>,
        rule: &str,
    ) -> impl Future<Output = Option<Self::Record>> + Send;

    /// Records how it ended.
    fn finish(&self, record: Self::Record, end: End) -> impl Future<Output = ()> + Send;

    /// What is added to a request that is allowed, by the names of rules.
    fn injections(&self, asked: &Asked<'_>) -> Vec<(Name, Injection)>;

    /// Whether TLS to there is opened: something may be added to what is in it, and the sandbox trusts us.
    fn opens(&self, host: &Host, port: u16) -> bool;

    /// How TLS is spoken where something is added.
    fn opener(&self) -> Option<Arc<Opener>>;

    /// The value of a credential, which is recorded before; or why not, in words that follow its name.
    fn lend(
        &self,
        credential: &Name,
    ) -> impl Future<Output = Result<CredentialValue, String>> + Send;

    /// Notes what was denied. `host` is what the sandbox said, where that is a host.
    fn denied(&self, host: Option<&Host>, port: u16, rule: &str);
}

/// A credential to come, or why not.
pub type Lending<'a> = Pin<Box<dyn Future<Output = Result<CredentialValue, String>> + Send + 'a>>;

/// Who has credentials.
pub trait Lend: Send + Sync {
    /// The value of a credential of a session's team, whose use is recorded before; or why not, in words that follow its name.
    fn lend<'a>(&'a self, session: SessionId, team: &'a Name, name: &'a Name) -> Lending<'a>;
}

/// How a visit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// `None`: in order.
    pub failure: Option<&'static str>,
    /// The address that was dialled.
    pub address: Option<IpAddr>,
    /// Bytes to there.
    pub sent_bytes: u64,
    /// Bytes from there.
    pub received_bytes: u64,
    /// How long it took.
    pub duration_ms: u64,
}

/// Why a sandbox does not get what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of failure it is to whoever asks.
    pub kind: Kind,
    /// The rule, where one said no.
    pub rule: Cow<'static, str>,
    /// Why, for people.
    pub reason: String,
}

/// What kind of failure it is to whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What was sent is no request.
    Malformed,
    /// A rule says no.
    Denied,
    /// Too much was asked for.
    TooMuch,
    /// The name has no address.
    NoSuchHost,
    /// Nobody answers there.
    Unreachable,
    /// Nobody answers there in time.
    Late,
    /// It cannot be recorded.
    Unrecorded,
    /// Whoever is there did not show that they are.
    Unverified,
    /// What is to be added cannot be had.
    NoCredential,
}

impl Kind {
    /// The failure in a word, for the record.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Denied => "denied",
            Self::TooMuch => "too_much",
            Self::NoSuchHost => "no_such_host",
            Self::Unreachable => "unreachable",
            Self::Late => "late",
            Self::Unrecorded => "unrecorded",
            Self::Unverified => "unverified",
            Self::NoCredential => "no_credential",
        }
    }
}

/// The names of the rules that are not written anywhere: they always hold.
pub mod always {
    /// What is no host in its one spelling is no host.
    pub const ONE_SPELLING: &str = "hosts-have-one-spelling";
    /// A request's `Host` is its target's.
    pub const HOST_IS_THE_TARGET: &str = "host-is-the-target";
    /// The name in the first message of TLS is the one that was asked for.
    pub const TLS_NAMES_THE_HOST: &str = "tls-names-the-host";
    /// Where bytes are not any, they are TLS.
    pub const TUNNELS_ARE_TLS: &str = "tunnels-are-tls";
    /// A message ends where it says, in one way.
    pub const ONE_FRAMING: &str = "messages-have-one-framing";
    /// So many at once, and so often.
    pub const BOUNDS: &str = "egress-bounds";
}

impl Refusal {
    fn new(kind: Kind, rule: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self {
            kind,
            rule: rule.into(),
            reason: reason.into(),
        }
    }
}
