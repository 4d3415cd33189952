//! Asks a server for a set of keys: one request, no redirect, a deadline and a bound for all of it.
//!
//! TLS is verified with ring and the certificates of a file; without TLS only this machine is asked.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::host::certificates::roots;
use crate::model::settings::SYSTEM_CA;

/// How long it may take from the first packet to the last byte.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// Most bytes of a set: a hundred keys have less than half of it.
pub(super) const MAX_BYTES: usize = 256 << 10;
/// What a set may be called (RFC 7517 section 8.5).
const TYPES: [&str; 2] = ["application/jwk-set+json", "application/json"];

/// Why there are no keys from a server.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It took too long.
    #[error("no whole answer within {} seconds", DEADLINE.as_secs())]
    Deadline,
    /// It cannot be reached.
    #[error("reach the server")]
    Connect(#[source] io::Error),
    /// The certificates of the settings or the system cannot be used.
    #[error("read the certificates in {path}")]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// HTTP went wrong.
    #[error("ask the server")]
    Http(#[source] hyper::Error),
    /// The server sends us elsewhere.
    #[error(
        "the server answers with a redirect, which is not followed; set jwks_url to where the keys are"
    )]
    Redirect,
    /// Another status than 200.
    #[error("the server answers with status {0}")]
    Status(StatusCode),
    /// It is something else.
    #[error("the answer is not application/json")]
    Type,
    /// The body cannot be read, or is too long.
    #[error("read the answer, which may have {MAX_BYTES} bytes")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A server and the path to ask it for.
#[derive(Clone, Debug)]
pub(super) struct Place {
    host: String,
    port: u16,
    authority: String,
    path: String,
    is_tls: bool,
}

impl Place {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence that goes on from the URL.
    pub(super) fn parse(url: &str) -> Result<Self, &'static str> {
        let plain = url.len() <= 2048 && url.bytes().all(|b| b.is_ascii_graphic());
        let uri = url
            .parse::<Uri>()
            .ok()
            .filter(|_| plain && !url.contains('#'));
        let uri = uri.ok_or("is not a URL")?;
        let authority = uri.authority().ok_or("is not a URL with a host")?;
        if authority.as_str().contains('@') {
            return Err("has a user or a password in it, which it cannot have");
        }
        let host = authority.host();
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let is_loopback = host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if is_loopback => false,
            Some("http") => return Err("is not https, which only 127.0.0.1 and [::1] need not be"),
            _ => return Err("is not https"),
        };
        if is_tls && ServerName::try_from(host.to_owned()).is_err() {
            return Err("has no host that a certificate could name");
        }
        Ok(Self {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path: uri
                .path_and_query()
                .map_or("/", |path| path.as_str())
                .to_owned(),
            is_tls,
        })
    }

    /// The bytes that are there, if they call themselves JSON.
    pub(super) async fn fetch(&self, ca_file: Option<&Path>) -> Result<Vec<u8>, FetchError> {
        // On the heap, where it is no weight for those who only might ask.
        let asking = Box::pin(self.ask(ca_file));
        tokio::time::timeout(DEADLINE, asking)
            .await
            .unwrap_or(Err(FetchError::Deadline))
    }

    async fn ask(&self, ca_file: Option<&Path>) -> Result<Vec<u8>, FetchError> {
        let name = (self.host.as_str(), self.port);
        if !self.is_tls {
            let stream = TcpStream::connect(name)
                .await
                .map_err(FetchError::Connect)?;
            return self.talk(stream).await;
        }
        let path = ca_file.unwrap_or(Path::new(SYSTEM_CA));
        let tls = tls(path).await.map_err(|source| FetchError::Certificates {
            path: path.to_owned(),
            source,
        })?;
        let server = ServerName::try_from(self.host.clone());
        let server = server.map_err(|error| FetchError::Connect(io::Error::other(error)))?;
        let stream = TcpStream::connect(name)
            .await
            .map_err(FetchError::Connect)?;
        let stream = TlsConnector::from(tls).connect(server, stream).await;
        self.talk(stream.map_err(FetchError::Connect)?).await
    }

    async fn talk<S>(&self, stream: S) -> Result<Vec<u8>, FetchError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let request = Request::get(self.path.as_str())
            .header(header::HOST, &self.authority)
            .header(header::ACCEPT, TYPES.join(", "))
            .header(
                header::USER_AGENT,
                concat!("casemated/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| FetchError::Connect(io::Error::other(error)))?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(64 << 10)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(FetchError::Http)?;
        let answer = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(FetchError::Http)?;
            let (head, body) = answer.into_parts();
            if head.status.is_redirection() {
                return Err(FetchError::Redirect);
            }
            if head.status != StatusCode::OK {
                return Err(FetchError::Status(head.status));
            }
            let value = head.headers.get(header::CONTENT_TYPE);
            let value = value
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default();
            let essence = value.split(';').next().unwrap_or_default().trim();
            let is_known = TYPES.iter().any(|one| essence.eq_ignore_ascii_case(one));
            if !is_known || head.headers.contains_key(header::CONTENT_ENCODING) {
                return Err(FetchError::Type);
            }
            let body = Limited::new(body, MAX_BYTES).collect().await;
            Ok(body.map_err(FetchError::Body)?.to_bytes().to_vec())
        };
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answered = &mut answer => answered,
            // The connection may end before its last bytes were looked at.
            ended = connection => match ended {
                Ok(()) => answer.await,
                Err(error) => Err(FetchError::Http(error)),
            },
        }
    }
}

/// What verifies servers; read anew each time, so that a new file is in force without a restart.
async fn tls(path: &Path) -> io::Result<Arc<ClientConfig>> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots(path).await?)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_is_asked_and_this_machine() {
        for good in [
            "https://example.com/.well-known/jwks.json",
            "https://example.com:8443/keys?x=1",
            "https://example.com",
            "https://192.0.2.1/",
            "http://127.0.0.1:80/keys",
            "http://[::1]:8080/keys",
        ] {
            assert!(Place::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "example.com/keys",
            "/keys",
            "http://example.com/keys",
            "http://localhost/keys",
            "http://127.0.0.1.example.com/keys",
            "http://192.0.2.1/keys",
            "http://0.0.0.0/keys",
            "ftp://example.com/keys",
            "file:///etc/passwd",
            "https://user:hush@example.com/keys",
            "https://user@example.com/keys",
            "https://example.com/keys#x",
            "https://exa mple.com/keys",
            "https:///keys",
        ] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
    }
}
