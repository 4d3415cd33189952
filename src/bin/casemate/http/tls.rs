//! TLS to casemated: TLS 1.2 and 1.3 by rustls, verified by the system's roots or a file of them, with a certificate of the
//! caller's where there is one. There is no way to leave the verification out.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use casemate::base::exit::Exit;
use casemate::base::secret::Secret;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::failure::Failure;

/// Longest file of certificates or keys.
const MAX_BYTES: u64 = 4 << 20;

/// Where systems keep the certificates that they trust: Debian, Fedora, openSUSE, Alpine.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Whom the caller trusts, and what it shows; each a file in PEM.
#[derive(Clone, Debug, Default)]
pub struct Papers {
    /// Those who vouch for casemated; the system's without it.
    pub ca: Option<PathBuf>,
    /// The caller's own certificate and those between it and its root.
    pub certificate: Option<PathBuf>,
    /// Its private key.
    pub private_key: Option<PathBuf>,
}

/// A connection, with TLS or without.
pub trait Line: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Line for T {}

/// To whom, and how.
pub struct Tls {
    server: ServerName<'static>,
    connector: TlsConnector,
}

impl Tls {
    /// Reads what is needed to speak to this host. Blocks on the disk.
    ///
    /// # Errors
    /// A sentence about the file that cannot be used.
    pub fn new(host: &str, papers: &Papers) -> Result<Self, Failure> {
        let server = ServerName::try_from(host.to_owned()).map_err(|_| {
            Failure::usage(format!("--url: no certificate can be for the host {host}"))
        })?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::new(Exit::Software, error.to_string()))?
            .with_root_certificates(roots(papers.ca.as_deref())?);
        let mut config = match (&papers.certificate, &papers.private_key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(certificate), Some(private_key)) => {
                let chain = chain(certificate)?;
                let key = private(private_key)?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    unfit(
                        certificate,
                        format_args!(
                            "as a certificate with the key in {}: {error}",
                            private_key.display()
                        ),
                    )
                })?
            }
            _ => {
                return Err(Failure::usage(
                    "--cert and --cert-key go together: a certificate and the file of its private key",
                ));
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            server,
            connector: TlsConnector::from(Arc::new(config)),
        })
    }

    /// Begins TLS on a connection.
    ///
    /// # Errors
    /// Of the handshake.
    pub async fn begin(&self, stream: TcpStream) -> io::Result<Box<dyn Line>> {
        let line = self.connector.connect(self.server.clone(), stream).await?;
        Ok(Box::new(line))
    }
}

/// What TLS has to say about an error, if that is where it comes from.
pub fn complaint(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(error.to_string());
        }
        next = match error.downcast_ref::<io::Error>().map(io::Error::get_ref) {
            Some(Some(inner)) => Some(inner),
            _ => error.source(),
        };
    }
    None
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, Failure> {
    let system = || {
        let known = SYSTEM.iter().map(Path::new);
        let mut there = known.filter(|path| path.is_file());
        there.next().ok_or_else(|| {
            Failure::usage("this system keeps no certificates where they are looked for; name a file of them with --ca")
        })
    };
    let path = match ca {
        Some(path) => path,
        None => system()?,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(read(path)?.expose()) {
        let certificate = certificate.map_err(|_| unfit(path, "as certificates in PEM"))?;
        let added = roots.add(certificate);
        // Of the system's some may be of a kind that is not known here.
        if ca.is_some() {
            added.map_err(|error| unfit(path, format_args!("as certificates: {error}")))?;
        }
    }
    if roots.is_empty() {
        return Err(unfit(path, "as certificates in PEM: there is none in it"));
    }
    Ok(roots)
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let text = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.expose()).collect();
    let chain = chain.map_err(|_| unfit(path, "as certificates in PEM"))?;
    if chain.is_empty() {
        return Err(unfit(path, "as a certificate in PEM: there is none in it"));
    }
    Ok(chain)
}

fn private(path: &Path) -> Result<PrivateKeyDer<'static>, Failure> {
    let about = path.metadata().map_err(|error| unread(path, &error))?;
    if about.is_file() && about.permissions().mode() & 0o007 != 0 {
        let shown = path.display();
        return Err(Failure::new(
            Exit::Refused,
            format!(
                "every user of this machine can reach the private key in {shown}; run `chmod 600 {shown}`"
            ),
        ));
    }
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(text.expose())
        .map_err(|_| unfit(path, "as a private key in PEM that is not encrypted"))
}

fn read(path: &Path) -> Result<Secret<Vec<u8>>, Failure> {
    let file = File::open(path).map_err(|error| unread(path, &error))?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    let bytes = Secret::new(bytes);
    read.map_err(|error| unread(path, &error))?;
    if bytes.expose().len() as u64 > MAX_BYTES {
        return Err(unfit(path, "since it has more than 4 MiB"));
    }
    Ok(bytes)
}

fn unread(path: &Path, error: &io::Error) -> Failure {
    Failure::io(format_args!("read {}", path.display()), error)
}

fn unfit(path: &Path, how: impl Display) -> Failure {
    Failure::usage(format!("{} cannot be used {how}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_of_tls_is_found_under_other_errors() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        let said = alert.to_string();
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, alert));
        assert_eq!(complaint(&wrapped), Some(said));
        assert_eq!(complaint(&io::Error::other("another")), None);
    }

    #[test]
    fn what_cannot_be_used_is_named_and_not_repeated() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hush").unwrap();
        let path = Some(file.path().to_owned());
        let mut papers = Papers {
            ca: path.clone(),
            ..Papers::default()
        };
        for wanted in ["as certificates in PEM", "go together"] {
            let failure = Tls::new("127.0.0.1", &papers).err().unwrap();
            assert!(failure.message.contains(wanted), "{}", failure.message);
            assert!(!failure.message.contains("hush"));
            papers = Papers {
                certificate: path.clone(),
                ..Papers::default()
            };
        }
        assert!(Tls::new("a host", &Papers::default()).is_err());
    }

    #[test]
    fn a_private_key_that_everybody_reads_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(file.path(), open).unwrap();
        let failure = private(file.path()).unwrap_err();
        assert!(failure.message.contains("chmod 600"), "{}", failure.message);
    }
}
