//! TLS of a sandbox's that is opened here: where a rule may add something to a request, and the sandbox trusts the installation's authority.
//!
//! The name in its first message must be the host that was asked for, and so must the `Host` of every request in it. Each is judged, recorded
//! and carried on its own, over TLS of ours whose other end showed a certificate for that very name.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::server::Acceptor;
use tracing::debug;

use super::gate::{REQUEST_PATIENCE, Turn};
use super::visit::Shared;
use super::{Kind, Refusal, Warden, always, http};
use crate::model::host::{Host, HostName};

/// Serves what a sandbox says through a tunnel to this host.
pub(super) async fn serve<W, S>(
    shared: &Arc<Shared<W>>,
    host: HostName,
    port: u16,
    stream: S,
    turn: Arc<Turn>,
) where
    W: Warden,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let named = Host::Name(host.clone());
    let refused = |rule: &'static str, reason: &str| {
        shared.note(Some(&named), port, Refusal::new(Kind::Denied, rule, reason));
    };
    let Some(opener) = shared.warden.opener() else {
        return;
    };
    let greeting = timeout(
        REQUEST_PATIENCE,
        LazyConfigAcceptor::new(Acceptor::default(), stream),
    );
    let greeted = match greeting.await {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(_)) => return refused(always::TUNNELS_ARE_TLS, "what goes through is not TLS"),
        Err(_) => return,
    };
    let said = greeted.client_hello().server_name().map(str::to_owned);
    let is_host = said.is_some_and(|said| Host::parse(said.as_bytes()).as_ref() == Ok(&named));
    if !is_host {
        return refused(
            always::TLS_NAMES_THE_HOST,
            "TLS names another host, or none",
        );
    }
    let config = match opener.serve(&host) {
        Ok(config) => config,
        Err(error) => {
            debug!(%error, "cannot speak TLS to a sandbox");
            return;
        }
    };
    match timeout(REQUEST_PATIENCE, greeted.into_stream(config)).await {
        Ok(Ok(stream)) => http::serve_opened(stream, shared, host, port, turn).await,
        // As a rule it does not trust us, which it says in an alert.
        Ok(Err(error)) => debug!(%error, "a sandbox broke off TLS"),
        Err(_) => {}
    }
}
