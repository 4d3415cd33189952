//! Endpoints: who may reach a port in a session, by what, and on what record.
//!
//! One way: known (credential, link, cookie, or the port is public) -> the policy -> the port is one to be reached -> recorded -> awake.
//! Only then is there something to pass a request to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::accesses::Entry;
use super::links::{Pass, PassKind};
use super::{App, AppError, Authenticated};
use crate::base::clock::Timestamp;
use crate::endpoint::{Pool, Raw, Refusal};
use crate::model::endpoint::{Target, Via};
use crate::model::event::AuditEvent;
use crate::model::principal::{Client, Principal, Proof};
use crate::model::session::Session;
use crate::model::settings::EndpointsConfig;
use crate::model::template::RESERVED_PORT;
use crate::policy::Action;
use crate::session::guest::Guest;

/// Longest life of a link.
pub const MAX_LINK_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Why a port is not reached, or a link not made.
#[derive(Debug, thiserror::Error)]
pub enum EndpointRefusal {
    /// The template does not say that it is to be reached.
    #[error(
        "the session's template does not declare port {0}; it names it in ports, or allows endpoints.any_port"
    )]
    NotDeclared(u16),
    /// A link's life is out of bounds.
    #[error("a link lasts 1 s to 24 h")]
    LinkLife,
    /// Whoever asks cannot be named in a link.
    #[error(
        "a link speaks for an API key or a token of a session, and ends with it; make a token of the session and ask with that"
    )]
    NotAKey,
    /// The way to the program failed.
    #[error(transparent)]
    Way(Refusal),
}

impl EndpointRefusal {
    /// A stable word.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotDeclared(_) => "port_not_declared",
            Self::LinkLife => "link_life",
            Self::NotAKey => "links_speak_for_keys",
            Self::Way(Refusal::Crowded) => "endpoint_crowded",
            Self::Way(Refusal::NotOpen) => "port_not_open",
            Self::Way(Refusal::Link(_)) => "guest_gone",
            Self::Way(Refusal::BadAnswer(_) | Refusal::Unasked) => "bad_answer",
            Self::Way(Refusal::NoAnswer(_)) => "no_answer",
            Self::Way(Refusal::BadRequest(_) | Refusal::CutShort) => "invalid_request",
            Self::Way(Refusal::Over) => "unauthenticated",
        }
    }
}

/// A port that may be reached now: what a request is passed on with.
pub struct Opened {
    /// The session's guest, awake.
    pub guest: Guest,
    /// Headers that the template names for the port.
    pub headers: Option<BTreeMap<String, String>>,
    /// The account of this request.
    pub(super) entry: Arc<Entry>,
}

impl Opened {
    /// The account of this request.
    #[must_use]
    pub fn ticket(&self) -> Arc<dyn crate::endpoint::Ticket> {
        Arc::clone(&self.entry) as Arc<dyn crate::endpoint::Ticket>
    }
}

impl App {
    /// What the operator set of endpoints.
    #[must_use]
    pub fn endpoints(&self) -> &EndpointsConfig {
        self.0.pool.config()
    }

    /// What passes requests on.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// Who speaks through a link or a cookie to this port.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`] of one that is not good, or not for this; [`AppError::Store`].
    pub async fn by_pass(
        &self,
        kind: PassKind,
        text: &str,
        target: Target,
    ) -> Result<Authenticated, AppError> {
        let pass = self.0.links.read(text).ok_or(AppError::Unauthenticated)?;
        let is_good = pass.kind == kind && pass.target == target && self.now() < pass.expires_at;
        if !is_good {
            return Err(AppError::Unauthenticated);
        }
        let mut asked = self.by_name_of_key(pass.key).await?;
        let end = asked.validity.expires_at;
        asked.validity.expires_at =
            Some(end.map_or(pass.expires_at, |end| end.min(pass.expires_at)));
        Ok(asked)
    }

    /// The cookie for a link that was found good, and for how long it is.
    #[must_use]
    pub fn cookie_for(&self, link: &str) -> Option<(String, Duration)> {
        let pass = self.0.links.read(link)?;
        let cookie = Pass {
            kind: PassKind::Cookie,
            ..pass
        };
        Some((
            self.0.links.write(&cookie),
            pass.expires_at.since(self.now()),
        ))
    }

    /// Makes a signed link to a port, good for so long at most; it ends earlier with the key of whoever asks. Its text and its end.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn link_endpoint(
        &self,
        principal: &Principal,
        target: Target,
        life: Duration,
    ) -> Result<(String, Timestamp), AppError> {
        let session = self
            .reach(principal, target.session, Action::ShareEndpoint)
            .await?;
        self.reach(principal, target.session, Action::OpenEndpoint)
            .await?;
        if session.ended_at.is_some() {
            return Err(self.ended(target.session).await);
        }
        check_port(&session, target.port)?;
        if life > MAX_LINK_LIFE || life < Duration::from_secs(1) {
            return Err(AppError::Endpoint(EndpointRefusal::LinkLife));
        }
        let Principal::Client(Client {
            by: Proof::Key(key),
            ..
        }) = principal
        else {
            return Err(AppError::Endpoint(EndpointRefusal::NotAKey));
        };
        let end = self.now().after(life);
        let own = self.by_name_of_key(*key).await?.validity.expires_at;
        let expires_at = own.map_or(end, |own| own.min(end));
        let pass = Pass {
            kind: PassKind::Link,
            target,
            key: *key,
            expires_at,
        };
        let event = AuditEvent::EndpointLink {
            port: target.port,
            expires_at,
        };
        let text = self.0.links.write(&pass);
        let work = async move { Ok(text) };
        let made = self.record(principal, Some(target.session), event, work, |_| None);
        Ok((made.await?, expires_at))
    }

    /// Opens a port for one request: decides, writes down, wakes the session. Without a principal the port must be public.
    ///
    /// # Errors
    /// [`AppError`]; [`AppError::Unauthenticated`] when nobody asks for a port that is not public, or is not there.
    pub async fn open_endpoint(
        &self,
        principal: Option<&Principal>,
        target: Target,
        via: Via,
    ) -> Result<Opened, AppError> {
        let session = match principal {
            Some(principal) => {
                self.reach(principal, target.session, Action::OpenEndpoint)
                    .await?
            }
            None => self.public(target)?,
        };
        let Some(handle) = self.0.sessions.handle(target.session) else {
            return Err(self.ended(target.session).await);
        };
        check_port(&session, target.port)?;
        let entry = self.enter(principal, target, via).await?;
        let guest = handle.guest().await.map_err(AppError::Session)?;
        let headers = session
            .spec
            .setup
            .endpoints
            .headers
            .get(&target.port)
            .cloned();
        Ok(Opened {
            guest,
            headers,
            entry,
        })
    }

    /// The session of a port that anybody may reach. Whether there is one is told to nobody else.
    fn public(&self, target: Target) -> Result<Arc<Session>, AppError> {
        if !self.endpoints().public {
            return Err(AppError::Unauthenticated);
        }
        let handle = self.0.sessions.handle(target.session);
        let session = handle.map(|handle| handle.snapshot());
        let is_public =
            |session: &Arc<Session>| session.spec.setup.endpoints.public.contains(&target.port);
        session.filter(is_public).ok_or(AppError::Unauthenticated)
    }

    /// Connects to a port as a byte stream, for `casemate forward`.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn forward_port(
        &self,
        principal: &Principal,
        target: Target,
    ) -> Result<Raw, AppError> {
        let opened = self
            .open_endpoint(Some(principal), target, Via::Forward)
            .await?;
        let raw = self
            .0
            .pool
            .raw(&opened.guest, target, opened.ticket())
            .await;
        raw.map_err(|refusal| AppError::Endpoint(EndpointRefusal::Way(refusal)))
    }
}

fn check_port(session: &Session, port: u16) -> Result<(), AppError> {
    let setup = &session.spec.setup;
    let is_declared = setup.endpoints.any_port
        || setup.ports.contains(&port)
        || setup.endpoints.public.contains(&port);
    if is_declared && port != RESERVED_PORT {
        return Ok(());
    }
    Err(AppError::Endpoint(EndpointRefusal::NotDeclared(port)))
}
