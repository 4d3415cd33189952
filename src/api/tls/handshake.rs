//! The handshake of one connection, and what whoever does not speak TLS is told.
//!
//! Its deadline is the caller's. Cryptography begins only when the client's whole greeting is there, for a bounded number at a time.

use std::io;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::Tls;
use crate::api::line::{Cut, Line, Parting};

/// What a TLS connection begins with: a record with a handshake (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;

/// What a client is told that speaks HTTP where TLS is spoken. Not a redirect: whatever secret it sent has been sent in the clear by then, and a
/// client that is led on would never know.
const PLAIN: &str = concat!(
    "HTTP/1.1 400 Bad Request\r\n",
    "content-type: application/problem+json\r\n",
    "content-length: 214\r\n",
    "x-content-type-options: nosniff\r\n",
    "cache-control: no-store\r\n",
    "connection: close\r\n",
    "\r\n",
    r#"{"type":"about:blank","title":"Bad Request","status":400,"code":"tls_required","#,
    r#""detail":"this port speaks TLS: use https, and make a new API key if one was sent in the clear; nobody here has looked at the request"}"#,
);

/// A connection with TLS.
pub(crate) type Stream = TlsStream<TcpStream>;

/// How a connection began.
pub(crate) enum Greeted {
    /// TLS it is.
    Tls(Box<Stream>),
    /// It was something else, and was told so where that is possible.
    Refused,
}

impl Cut for Stream {
    fn cut(&self) {
        // No farewell comes before it: the end must not look like one that was meant.
        self.get_ref().0.cut();
    }
}

/// Makes the handshake.
pub(crate) async fn greet(tls: &Tls, stream: TcpStream) -> io::Result<Greeted> {
    let mut first = [0];
    // Looked at and left there.
    stream.peek(&mut first).await?;
    let [first] = first;
    if first != HANDSHAKE {
        if first.is_ascii_uppercase() {
            refuse(stream).await?;
        }
        return Ok(Greeted::Refused);
    }
    let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
    let begun = acceptor.await?;
    let place = tls.handshakes.acquire().await;
    let place = place.map_err(io::Error::other)?;
    let stream = begun.into_stream(tls.server()).await?;
    drop(place);
    Ok(Greeted::Tls(Box::new(stream)))
}

async fn refuse(stream: TcpStream) -> io::Result<()> {
    let parting = Arc::<Parting>::default();
    parting.leave_unread();
    let mut line = Line::new(stream, parting);
    line.write_all(PLAIN.as_bytes()).await?;
    line.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let (head, body) = PLAIN.split_once("\r\n\r\n").unwrap();
        let said = format!("content-length: {}\r\n", body.len());
        assert!(head.contains(&said), "{}", body.len());
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["code"], "tls_required");
    }
}
