//! What may change while the daemon runs: templates, rules, bounds of sessions, issuers of tokens, the log's level, the door's
//! certificate, and the operator token.

use std::path::Path;

use tracing::info;

use super::logging::Logging;
use super::start::{self, House};
use crate::api::tls::{Material, TlsError};
use crate::base::chain::Chain;
use crate::config::Config;
use crate::model::event::AuditEvent;
use crate::model::principal::Principal;
use crate::session::manager::Settings;

/// Reads the configuration again and takes all of it or nothing.
///
/// # Errors
/// Every problem, as sentences; nothing was changed then.
pub(super) async fn reload(
    path: &Path,
    config: &mut Config,
    logging: &Logging,
    house: &House,
) -> Result<(), String> {
    let new = Config::load(path).map_err(|problems| problems.to_string())?;
    let mut change = config
        .reload_from(&new)
        .map_err(|error| error.to_string())?;
    let certificate = certificate(house)?;
    if certificate.is_some() {
        change.changed.push("http.tls".to_owned());
    }
    let operator = change.operator.as_ref();
    let token = start::operator_token(operator).map_err(|problem| {
        format!("nothing was reloaded, and the operator token of before is still taken: {problem}")
    })?;
    let is_said = |key: &String| key.starts_with("http.operator");
    if house.operators.differs(token.as_ref()) && !change.changed.iter().any(is_said) {
        change.changed.push("http.operator".to_owned());
    }
    start::check_images(house.runtime.as_ref(), &change.templates, &[])
        .await
        .map_err(|refusal| refusal.text)?;
    let trusted = house.tokens.prepare(change.jwt, house.app.now()).await;
    let trusted = trusted.map_err(|problems| start::in_words(&problems))?;
    let event = AuditEvent::DaemonReload {
        changed: change.changed.clone(),
    };
    house
        .audit
        .fact(&Principal::Daemon, None, event)
        .await
        .map_err(|error| format!("nothing was reloaded: {}", Chain(&error)))?;
    let templates = house
        .number_templates(&change.templates)
        .await
        .map_err(|error| format!("nothing was reloaded: {}", Chain(&error)))?;
    logging
        .set_level(&change.log.level)
        .map_err(|error| error.to_string())?;
    house.rules.set_files(change.policy);
    house.tokens.trust(trusted);
    let overlap = operator.map(|operator| operator.overlap);
    let overlap = overlap.unwrap_or_default();
    house
        .operators
        .replace(token.as_ref(), house.app.now(), overlap);
    if let (Some(tls), Some(certificate)) = (&house.tls, certificate) {
        tls.replace(certificate);
    }
    house.sessions.reload(Settings {
        sessions: change.sessions,
        templates,
    });
    info!(changed = change.changed.join(", "), "reloaded");
    house.scene.reconfigure(new.clone());
    *config = new;
    Ok(())
}

/// Another certificate where the old one was, if it is one that can be shown.
fn certificate(house: &House) -> Result<Option<Material>, String> {
    let kept = |error: TlsError| {
        format!("nothing was reloaded, and the certificate of before is still in force: {error}")
    };
    let renewed = house.tls.as_ref().map(|tls| tls.renewed(house.app.now()));
    renewed.transpose().map_err(kept).map(Option::flatten)
}
