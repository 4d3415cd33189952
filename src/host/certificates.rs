//! Whose signatures count when a server shows its certificate: those of a file.

use std::io;
use std::path::Path;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

/// Most bytes of a file of certificates: the system's have a twentieth of it.
const MAX_BYTES: u64 = 4 << 20;

/// Those of this file (PEM).
///
/// # Errors
/// It cannot be read, is too large, is no PEM, or holds none that is known here.
pub async fn roots(path: &Path) -> io::Result<RootCertStore> {
    let found = tokio::fs::metadata(path).await?;
    if !found.is_file() || found.len() > MAX_BYTES {
        return Err(io::Error::other("it is not a file of at most 4 MiB"));
    }
    let bytes = tokio::fs::read(path).await?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|_| io::Error::other("it is not PEM"))?;
        // Of the system's some may be of a kind that is not known here.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(io::Error::other("it holds no certificate"));
    }
    Ok(roots)
}
