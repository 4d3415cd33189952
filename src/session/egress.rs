//! The way out of one session: by whose rules it is judged, and under whose name it is recorded.
//!
//! The rules are those that are published of the session and those that the operator has for its team at that moment: a
//! change of either holds for what is asked for next, and what is open goes on.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::warn;

use super::launch::{self, End};
use super::manager::House;
use super::runner::Life;
use crate::audit::Intent;
use crate::base::chain::Chain;
use crate::base::id::SessionId;
use crate::egress::{self, Gate, Opener, Settings, Warden};
use crate::model::credential::CredentialValue;
use crate::model::event::{AuditEvent, Outcome};
use crate::model::host::Host;
use crate::model::inject::Injection;
use crate::model::name::Name;
use crate::model::session::{Session, SessionSpec};
use crate::policy::egress::{Asked, Bounds, EgressDecision};

/// The socket's name, beside that of the link.
pub const SOCKET_NAME: &str = "egress.sock";

/// Connections that the kernel holds before they are accepted: as many as the guest lets through at one time.
const BACKLOG: u32 = 128;

/// Where programs find the way out.
const PROXY: &str = "http://127.0.0.1:3128";
/// What programs reach without it.
const NO_PROXY: &str = "localhost,127.0.0.1,::1";

/// By what programs find the way out, in a session whose template has rules.
pub(super) fn environment() -> impl Iterator<Item = (String, String)> {
    let named = [
        ("http_proxy", PROXY),
        ("https_proxy", PROXY),
        ("all_proxy", PROXY),
        ("no_proxy", NO_PROXY),
    ];
    // Some programs read the one, some the other.
    named.into_iter().flat_map(|(name, value)| {
        [name.to_owned(), name.to_uppercase()].map(|name| (name, value.to_owned()))
    })
}

/// Whoever decides for one session.
struct SessionWarden {
    house: Arc<House>,
    id: SessionId,
    session: watch::Receiver<Arc<Session>>,
}

impl SessionWarden {
    fn judge<T>(&self, decide: impl FnOnce(&Bounds<'_>) -> T) -> T {
        let session = Arc::clone(&self.session.borrow());
        let SessionSpec { egress, team, .. } = &session.spec;
        let teams = self.house.settings().egress.teams;
        decide(&Bounds::of(egress, teams.get(team)))
    }
}

impl Warden for SessionWarden {
    type Record = Intent;

    fn settings(&self) -> Settings {
        self.house.settings().egress
    }

    fn decide(&self, asked: &Asked<'_>) -> EgressDecision {
        self.judge(|bounds| bounds.decide(asked))
    }

    fn decide_address(&self, asked: &Asked<'_>, address: IpAddr, is_own: bool) -> EgressDecision {
        self.judge(|bounds| bounds.decide_address(asked, address, is_own))
    }

    async fn begin(&self, asked: &Asked<'_>, rule: &str) -> Option<Intent> {
        let event = AuditEvent::EgressConnect {
            host: asked.host.to_string(),
            port: asked.port,
            scheme: asked.scheme,
            method: asked.request.map(|(method, _)| method.to_owned()),
            rule: rule.to_owned(),
        };
        match self.house.audit.begin_inside(self.id, event).await {
            Ok(intent) => Some(intent),
            Err(error) => {
                warn!(session = %self.id, error = %Chain(&error), "cannot record what a session reaches; it reaches nothing");
                None
            }
        }
    }

    async fn finish(&self, record: Intent, end: egress::End) {
        let outcome = if let Some(code) = end.failure {
            let code = code.to_owned();
            Outcome::Failed { code }
        } else {
            let at = end.address.map(|at| format!("address={at} "));
            let (sent, received, ms) = (end.sent_bytes, end.received_bytes, end.duration_ms);
            let at = at.unwrap_or_default();
            let detail = Some(format!("{at}sent={sent} received={received} ms={ms}"));
            Outcome::Ok { detail }
        };
        if let Err(error) = record.finish(outcome).await {
            warn!(session = %self.id, error = %Chain(&error), "cannot complete an audit record");
        }
    }

    fn injections(&self, asked: &Asked<'_>) -> Vec<(Name, Injection)> {
        self.judge(|bounds| {
            let added = bounds.injections(asked).into_iter();
            added.map(|(name, it)| (name.clone(), it.clone())).collect()
        })
    }

    fn opens(&self, host: &Host, port: u16) -> bool {
        let trusts_us = self.session.borrow().spec.setup.egress_ca;
        trusts_us && self.judge(|bounds| bounds.reads_tls(host, port))
    }

    fn opener(&self) -> Option<Arc<Opener>> {
        Some(Arc::clone(&self.house.opener))
    }

    async fn lend(&self, credential: &Name) -> Result<CredentialValue, String> {
        let team = self.session.borrow().spec.team.clone();
        self.house.lender.lend(self.id, &team, credential).await
    }

    fn denied(&self, host: Option<&Host>, port: u16, rule: &str) {
        let host = host.map(ToString::to_string);
        self.house.audit.egress_denied(self.id, host, port, rule);
    }
}

impl Life {
    /// Opens the session's way out. Before anything of its own runs in it.
    pub(super) async fn open_gate(&mut self, directory: &Path) -> Result<(), End> {
        let listener = casemate_link::daemon::listen(directory, SOCKET_NAME, BACKLOG).await;
        let listener = listener.map_err(|error| launch::failed(&error))?;
        let warden = SessionWarden {
            house: Arc::clone(&self.house),
            id: self.session.id,
            session: self.published(),
        };
        let resolver = Arc::clone(&self.house.resolver);
        self.gate = Some(Gate::open(listener, warden, resolver));
        Ok(())
    }

    /// Shuts the session's way out, and has the end of whatever went through it recorded.
    pub(super) async fn shut_gate(&mut self) {
        if let Some(gate) = self.gate.take() {
            gate.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_is_named_in_both_spellings() {
        let names: Vec<_> = environment().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "http_proxy",
                "HTTP_PROXY",
                "https_proxy",
                "HTTPS_PROXY",
                "all_proxy",
                "ALL_PROXY",
                "no_proxy",
                "NO_PROXY"
            ]
        );
        let port = crate::model::template::RESERVED_PORT.to_string();
        assert!(
            environment().all(
                |(name, value)| value.ends_with(&port) != name.eq_ignore_ascii_case("no_proxy")
            )
        );
    }
}
