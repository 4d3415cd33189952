//! TLS for the HTTP door: the certificate and its key, read anew while connections go on. `rustls` lives only here.
//!
//! TLS 1.2 and 1.3 with ring's suites, all of them ephemeral and authenticated; no early data, since a request could be played back with it.
//! There is one certificate, shown whatever name a client asks for: who addresses the door by a name that is not its own is refused by the list of
//! hosts, and the client has refused by then.

mod clients;
mod handshake;
mod validity;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;

pub(super) use self::clients::Shown;
pub(super) use self::handshake::{Greeted, Stream, greet};
pub use self::validity::Validity;
use crate::base::clock::Timestamp;
use crate::host::credential::{CredentialError, Source};
use crate::model::settings::TlsConfig;

/// What is spoken above TLS, in the order of preference.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Most certificates in a chain.
const MAX_CHAIN: usize = 10;

/// Why there is no TLS. It never repeats what was read.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or others can read it.
    #[error("http.tls.{key}: {}", crate::base::chain::Chain(.source))]
    Unread {
        /// The setting.
        key: &'static str,
        /// Why not.
        source: CredentialError,
    },
    /// A file holds something else.
    #[error("http.tls.{key}: this is not {wanted}, in PEM")]
    Malformed {
        /// The setting.
        key: &'static str,
        /// What it is to be.
        wanted: &'static str,
    },
    /// The key is another certificate's, or of a kind that is not known.
    #[error("http.tls: the key does not belong to the certificate, or is of an unknown kind")]
    Mismatched,
    /// It does not hold at this time.
    #[error("http.tls.certificate: it is not valid at this time; renew it, or look at the clock")]
    NotValid,
}

impl TlsError {
    /// Whether others can read what must be secret.
    #[must_use]
    pub const fn is_exposed(&self) -> bool {
        matches!(
            self,
            Self::Unread {
                source: CredentialError::Exposed(_),
                ..
            }
        )
    }
}

/// The certificate in force, and how to read it again.
pub struct Tls {
    config: TlsConfig,
    credentials: Option<PathBuf>,
    current: RwLock<Material>,
}

/// What was read, whole and fitting together.
#[derive(Clone)]
pub struct Material {
    server: Arc<rustls::ServerConfig>,
    chain: Arc<[CertificateDer<'static>]>,
    /// Those who vouch for clients, as they were read.
    issuers: Arc<[u8]>,
    /// When the certificate holds.
    pub validity: Validity,
}

impl Tls {
    /// Reads certificate and key. Blocks on the disk. `credentials` is where systemd's are.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn open(config: TlsConfig, credentials: Option<PathBuf>) -> Result<Self, TlsError> {
        let current = Material::read(&config, credentials.as_deref())?;
        Ok(Self {
            config,
            credentials,
            current: RwLock::new(current),
        })
    }

    /// Reads them again, from where they were: another certificate that holds now, if there is one. Nothing changes yet. Blocks on the disk.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn renewed(&self, now: Timestamp) -> Result<Option<Material>, TlsError> {
        let read = Material::read(&self.config, self.credentials.as_deref())?;
        if !self.is_news(&read) {
            return Ok(None);
        }
        if !read.validity.holds(now) {
            return Err(TlsError::NotValid);
        }
        Ok(Some(read))
    }

    /// From now on new connections have these; open ones go on with theirs.
    pub fn replace(&self, material: Material) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = material;
    }

    /// Who a client is, by the certificate that it showed.
    fn shown(&self, stream: &Stream) -> Option<Shown> {
        let (_, said) = stream.get_ref();
        let leaf = said.peer_certificates()?.first()?;
        Shown::of(leaf, &self.config.clients)
    }

    /// Whether this is another certificate than that in force, or others vouch for clients.
    fn is_news(&self, material: &Material) -> bool {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.chain != material.chain || current.issuers != material.issuers
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.server)
    }
}

impl Material {
    /// Reads certificate and key once. Blocks on the disk.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn read(
        config: &TlsConfig,
        credentials: Option<&std::path::Path>,
    ) -> Result<Self, TlsError> {
        let read = |key, source: &str, is_secret| {
            Source(source)
                .read(credentials, is_secret)
                .map_err(|source| TlsError::Unread { key, source })
        };
        let chain = certificates(&read("certificate", &config.certificate, false)?)?;
        let key = PrivateKeyDer::from_pem_slice(&read("key", &config.key, true)?);
        let key = key.map_err(|_| TlsError::Malformed {
            key: "key",
            wanted: "a private key that is not encrypted",
        })?;
        let validity = chain.first().and_then(|leaf| Validity::of(leaf));
        let validity = validity.ok_or(NO_CHAIN)?;
        let issuers = match &config.client_ca {
            Some(source) => read("client_ca", source, false)?.to_vec(),
            None => Vec::new(),
        };
        let verifier = if issuers.is_empty() {
            WebPkiClientVerifier::no_client_auth()
        } else {
            clients::verifier(&issuers, config.require_client)?
        };
        let provider = Arc::new(ring::default_provider());
        // Compares the two public keys.
        let certified = CertifiedKey::from_der(chain.clone(), key, &provider)
            .map_err(|_| TlsError::Mismatched)?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| TlsError::Mismatched)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Only(Arc::new(certified))));
        if !issuers.is_empty() {
            // What was said of a certificate once is not believed later.
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
        }
        server.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Self {
            server: Arc::new(server),
            chain: chain.into(),
            issuers: issuers.into(),
            validity,
        })
    }
}

const NO_CHAIN: TlsError = TlsError::Malformed {
    key: "certificate",
    wanted: "a chain of 1 to 10 certificates, the server's first",
};

fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text).collect();
    let chain = chain.map_err(|_| NO_CHAIN)?;
    if chain.is_empty() || chain.len() > MAX_CHAIN {
        return Err(NO_CHAIN);
    }
    Ok(chain)
}

/// One certificate for every name, and for clients that name none.
#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for Only {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
