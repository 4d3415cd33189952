//! JSON web tokens (RFC 7519) as a proof of who somebody is. Ours verifies and never makes one.
//!
//! ```text
//! text ── token ──> header, claims, signature      strict: one spelling, no name twice, nothing that brings its own key
//!                     │ iss                        names an issuer of the settings; nothing else does
//!                   source ──> keys                a file or a server; one algorithm is pinned to each key
//!                     │ signature
//!                   claims ──> Client              time, audience, parties, what is required; then subject, team, role
//! ```
//! What a token says of itself before its signature was verified chooses among what the operator wrote, and decides nothing. What is
//! missing, doubled or not understood is refused; the caller hears no reason. The time is an argument.

mod cache;
mod claims;
mod der;
mod fetch;
mod json;
mod keys;
mod source;
mod token;

#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use cache::Cache;
pub use claims::MAX_SUBJECT_BYTES;
pub use fetch::FetchError;
use json::Json;
pub use keys::MIN_SECRET_BYTES;
use source::Source;
pub use source::SourceError;

use crate::base::clock::{Clock, Timestamp};
use crate::model::issuer::Issuer;
use crate::model::name::Name;
use crate::model::principal::Client;

/// Longest token, in bytes. Those of Keycloak with hundreds of roles have less.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;

/// How often somebody looks whether keys are to be asked for anew.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why a token is not taken. For the log; the caller hears only that it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// It is longer than any token.
    TooLong,
    /// It has no three parts of base64url, or a part is not the JSON that it must be.
    Malformed,
    /// It is a token for something else, or wraps another.
    Type,
    /// It demands that we understand an extension.
    Critical,
    /// It brings a key, or says where one is.
    KeyInToken,
    /// It is encrypted or compressed.
    Encrypted,
    /// The algorithm is unknown, or not that of the issuer or of the key.
    Algorithm,
    /// Nobody in the settings issues such tokens.
    Issuer,
    /// No key of the issuer has its `kid`.
    UnknownKey,
    /// It names no key, and several could be meant.
    AmbiguousKey,
    /// The issuer's keys cannot be had.
    NoKeys,
    /// The signature is not of that key.
    Signature,
    /// It never expires.
    NoExpiry,
    /// A date is none.
    Date,
    /// It has expired.
    Expired,
    /// It does not hold yet.
    Early,
    /// It was issued too long ago, or does not say when.
    TooOld,
    /// It is for somebody else.
    Audience,
    /// It was given to a party that is not to use it.
    Party,
    /// A required claim is missing or has another value.
    Claim,
    /// It says of nobody, or of nobody whom the record could name.
    Subject,
    /// It leads to no team, or to more than one.
    Team,
    /// It leads to no role, or to an auditor who is something else too.
    Role,
    /// Its scopes are no text.
    Scope,
}

impl Refused {
    /// A stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Type => "type",
            Self::Critical => "critical",
            Self::KeyInToken => "key_in_token",
            Self::Encrypted => "encrypted",
            Self::Algorithm => "algorithm",
            Self::Issuer => "issuer",
            Self::UnknownKey => "unknown_key",
            Self::AmbiguousKey => "ambiguous_key",
            Self::NoKeys => "no_keys",
            Self::Signature => "signature",
            Self::NoExpiry => "no_expiry",
            Self::Date => "date",
            Self::Expired => "expired",
            Self::Early => "early",
            Self::TooOld => "too_old",
            Self::Audience => "audience",
            Self::Party => "party",
            Self::Claim => "claim",
            Self::Subject => "subject",
            Self::Team => "team",
            Self::Role => "role",
            Self::Scope => "scope",
        }
    }
}

/// The keys of an issuer's cannot be had at the start.
#[derive(Debug, thiserror::Error)]
#[error("have the keys of jwt.{issuer}")]
pub struct IssuerError {
    /// The issuer.
    pub issuer: Name,
    /// Why not.
    #[source]
    pub source: SourceError,
}

/// Whether a URL can be asked for keys: `https`, or `http` to a loopback address.
///
/// # Errors
/// What is wrong with it, as a sentence that goes on from it.
pub fn check_url(url: &str) -> Result<(), &'static str> {
    fetch::Place::parse(url).map(drop)
}

/// Whether a text could be a token: it has three parts. Says nothing of their content.
#[must_use]
pub fn looks_like_one(text: &str) -> bool {
    text.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// All issuers whose tokens are taken. Without one no token is.
pub struct Tokens {
    trusted: RwLock<Arc<Trusted>>,
    credentials: Option<PathBuf>,
    tasks: TaskTracker,
}

/// Issuers whose keys could be had, to be put in force.
pub struct Trusted {
    issuers: Vec<(Issuer, Arc<Source>)>,
    verified: Cache,
}

impl Default for Tokens {
    /// No issuer, and no credentials of a unit.
    fn default() -> Self {
        Self::new(None, TaskTracker::new())
    }
}

impl Tokens {
    /// No issuer. `credentials` is where the unit's are; whatever asks for keys runs in `tasks`, each for a few seconds at most.
    #[must_use]
    pub fn new(credentials: Option<PathBuf>, tasks: TaskTracker) -> Self {
        let nobody = Trusted {
            issuers: Vec::new(),
            verified: Cache::default(),
        };
        Self {
            trusted: RwLock::new(Arc::new(nobody)),
            credentials,
            tasks,
        }
    }

    /// Gets these issuers ready: reads their files. Of servers nothing is asked yet, and what is known of them is kept. Nothing changes
    /// before [`Self::trust`].
    ///
    /// # Errors
    /// Each issuer whose keys cannot be had.
    pub async fn prepare(
        &self,
        issuers: Vec<Issuer>,
        now: Timestamp,
    ) -> Result<Trusted, Vec<IssuerError>> {
        let before = self.trusted();
        let mut ready = Vec::with_capacity(issuers.len());
        let mut problems = Vec::new();
        for issuer in issuers {
            let has_same_keys = |other: &Issuer| {
                (&other.name, &other.keys, &other.times, &other.algorithms)
                    == (
                        &issuer.name,
                        &issuer.keys,
                        &issuer.times,
                        &issuer.algorithms,
                    )
            };
            let same = before
                .issuers
                .iter()
                .find(|(other, _)| has_same_keys(other));
            let source = match same {
                Some((_, source)) => Ok(Arc::clone(source)),
                None => Source::new(&issuer, self.credentials.as_deref()).map(Arc::new),
            };
            let opened = match source {
                Ok(source) => source.open(now).await.map(|()| source),
                Err(error) => Err(error),
            };
            match opened {
                Ok(source) => ready.push((issuer, source)),
                Err(source) => problems.push(IssuerError {
                    issuer: issuer.name,
                    source,
                }),
            }
        }
        if problems.is_empty() {
            return Ok(Trusted {
                issuers: ready,
                verified: Cache::default(),
            });
        }
        Err(problems)
    }

    /// Puts issuers in force, in place of all before them. What was verified before is verified anew.
    pub fn trust(&self, trusted: Trusted) {
        *self.trusted.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(trusted);
    }

    /// Whom a token is about, and until when.
    ///
    /// # Errors
    /// [`Refused`]; a caller is told nothing of it.
    pub async fn authenticate(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<(Client, Timestamp), Refused> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refused::TooLong);
        }
        let trusted = self.trusted();
        let digest = super::digest(token.as_bytes());
        let is_current = |at: usize, generation| {
            let found = trusted.issuers.get(at);
            found.is_some_and(|(_, source)| source.is_current(generation, now))
        };
        if let Some(accepted) = trusted.verified.get(&digest, now, is_current) {
            return Ok((accepted.client, accepted.until));
        }
        let parts = token::parse(token)?;
        let named = parts.claims.get("iss").and_then(Json::text);
        let mut issuers = trusted.issuers.iter().enumerate();
        let (at, (issuer, source)) = issuers
            .find(|(_, (issuer, _))| Some(issuer.issuer.as_str()) == named)
            .ok_or(Refused::Issuer)?;
        if !issuer.algorithms.contains(&parts.algorithm) {
            return Err(Refused::Algorithm);
        }
        let kid = parts.kid.as_deref();
        let (keys, generation) = source.key(kid, parts.algorithm, now, &self.tasks).await?;
        let key = keys.choose(kid, parts.algorithm);
        let key = key.map_err(|_| Refused::UnknownKey)?;
        if !key.verifies(parts.message, &parts.signature) {
            return Err(Refused::Signature);
        }
        let accepted = claims::judge(issuer, &parts.claims, now)?;
        let known = (accepted.client.clone(), accepted.until);
        trusted.verified.put(digest, at, generation, accepted);
        Ok(known)
    }

    /// Asks for keys that are old, until it is told to stop. Those that are asked for at that time are waited for by
    /// the owner of the tasks.
    pub async fn keep(&self, clock: Arc<dyn Clock>, stop: CancellationToken) {
        loop {
            self.refresh(clock.now());
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Asks for all keys that are old.
    pub fn refresh(&self, now: Timestamp) {
        for (_, source) in &self.trusted().issuers {
            source.refresh(now, &self.tasks, false);
        }
    }

    fn trusted(&self) -> Arc<Trusted> {
        let trusted = self.trusted.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&trusted)
    }
}

impl std::fmt::Debug for Trusted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.issuers.iter().map(|(issuer, _)| issuer.name.as_str());
        f.debug_list().entries(names).finish()
    }
}
