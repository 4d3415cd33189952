//! The handshake of one connection, and what whoever does not speak TLS is told.
//!
//! Its deadline and its place are the caller's.

use std::io;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Shown, Tls};
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
    Tls(Box<Stream>, Option<Shown>),
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
    let stream = TlsAcceptor::from(tls.server()).accept(stream).await?;
    let shown = tls.shown(&stream);
    Ok(Greeted::Tls(Box::new(stream), shown))
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
