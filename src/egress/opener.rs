//! How TLS is spoken where requests are read: to the sandbox in the host's name, and to the host with its certificate verified.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::Mutex;
use tokio_rustls::rustls::crypto;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};

use super::authority::{Authority, AuthorityError};
use crate::base::clock::Clock;
use crate::host::certificates::roots;
use crate::model::host::HostName;

/// Speaks TLS both ways.
pub struct Opener {
    authority: Authority,
    clock: Arc<dyn Clock>,
    /// What verifies servers, and of which file it was read.
    trusted: Mutex<Option<(Stamp, Arc<ClientConfig>)>>,
}

/// Which file, and which of its versions.
type Stamp = (PathBuf, Option<SystemTime>, u64);

impl Opener {
    /// One that signs with this authority.
    #[must_use]
    pub fn new(authority: Authority, clock: Arc<dyn Clock>) -> Self {
        Self {
            authority,
            clock,
            trusted: Mutex::default(),
        }
    }

    /// The authority's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        self.authority.certificate()
    }

    pub(super) fn serve(&self, host: &HostName) -> Result<Arc<ServerConfig>, AuthorityError> {
        self.authority.serve(host, self.clock.now())
    }

    /// What verifies servers by the certificates of this file, which is read again when it changes.
    pub(super) async fn verify(&self, ca: &Path) -> io::Result<Arc<ClientConfig>> {
        let found = tokio::fs::metadata(ca).await?;
        let stamp: Stamp = (ca.to_owned(), found.modified().ok(), found.len());
        let mut trusted = self.trusted.lock().await;
        if let Some((known, config)) = trusted.as_ref()
            && *known == stamp
        {
            return Ok(Arc::clone(config));
        }
        let config =
            ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(io::Error::other)?
                .with_root_certificates(roots(ca).await?)
                .with_no_client_auth();
        let config = Arc::new(config);
        *trusted = Some((stamp, Arc::clone(&config)));
        Ok(config)
    }
}
