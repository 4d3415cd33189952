//! What a session would be told of something that it wants to reach.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{App, AppError};
use crate::base::id::SessionId;
use crate::egress::always;
use crate::model::egress::Scheme;
use crate::model::host::Host;
use crate::model::principal::Principal;
use crate::policy::egress::{Asked, Bounds, EgressDecision};
use crate::policy::{Action, Resource};

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// How.
    pub scheme: Scheme,
    /// The host, with a port if it is not the scheme's, as it would be asked for.
    pub authority: String,
    /// With which method and to which path, where that could be read.
    pub request: Option<(String, String)>,
    /// At which address, once it is resolved; `None`: only the name is judged.
    pub address: Option<IpAddr>,
}

impl App {
    /// What would be decided of something that a session wants to reach, by the rules as they are now. Nothing is resolved.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn explain_egress(
        &self,
        principal: &Principal,
        session: SessionId,
        reach: Reach,
    ) -> Result<EgressDecision, AppError> {
        self.allow(principal, Action::Administer, &Resource::default())?;
        let session = self.0.sessions.get(session).await;
        let session = session.map_err(AppError::Session)?;
        let settings = self.0.sessions.settings();
        let team = settings.sessions.egress.teams.get(&session.spec.team);
        let bounds = Bounds::of(&session.spec.egress, team);
        let default = match reach.scheme {
            Scheme::Http => Some(80),
            Scheme::Https => Some(443),
            Scheme::Tcp => None,
        };
        let (host, port) = match Host::parse_with_port(reach.authority.as_bytes(), default) {
            Ok(read) => read,
            Err(bad) => {
                return Ok(EgressDecision {
                    allowed: false,
                    rule: always::ONE_SPELLING.into(),
                    reason: bad.to_string(),
                });
            }
        };
        let request = reach.request.as_ref();
        let asked = Asked {
            host: &host,
            port,
            scheme: reach.scheme,
            request: request.map(|(method, path)| (method.as_str(), path.as_str())),
        };
        Ok(match (reach.address, &host) {
            (Some(address), _) | (None, &Host::Address(address)) => {
                bounds.decide_address(&asked, address, false)
            }
            (None, Host::Name(_)) => bounds.decide(&asked),
        })
    }
}
