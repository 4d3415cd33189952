//! Ports in the sandbox, seen from the daemon.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use serde::de::IgnoredAny;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::PollSender;

use super::LinkError;
use super::link::{Link, no};
use super::transfer::{Incoming, Transfer, checked, unexpected};
use crate::limits::{CONTROL_DEADLINE, MAX_FRAME_PAYLOAD_BYTES, MAX_LISTED_PORTS};
use crate::port::{ConnectRequest, OpenPort};
use crate::refusal::code;
use crate::route;
use crate::wire::{Chunk, TransferFrame};

/// A connection to a port on the sandbox's loopback. Shutting it down says that no more comes; dropping it resets the
/// connection inside.
#[derive(Debug)]
pub struct PortStream {
    incoming: Incoming,
    data: Bytes,
    /// The other side says nothing more.
    is_over: bool,
    outgoing: PollSender<Chunk>,
}

impl Link {
    /// Connects to a TCP port on the sandbox's loopback.
    ///
    /// # Errors
    /// `Refused` with `not_listening`, `port_not_allowed` or `busy`; `Gone`, `Protocol`, `Deadline`.
    pub async fn connect(&self, port: u16) -> Result<PortStream, LinkError> {
        self.needs("port")?;
        if port == 0 {
            return Err(no(code::PORT_NOT_ALLOWED, "no program listens on port 0"));
        }
        let request = ConnectRequest { port };
        let (transfer, IgnoredAny) = Transfer::begin(self, route::PORT_CONNECT, &request).await?;
        Ok(PortStream {
            incoming: transfer.incoming,
            data: Bytes::new(),
            is_over: false,
            outgoing: PollSender::new(transfer.outgoing),
        })
    }

    /// The ports that programs in the sandbox listen on, in order.
    ///
    /// # Errors
    /// `Refused`, `Gone`, `Protocol`, `Deadline`.
    pub async fn ports(&self) -> Result<Vec<OpenPort>, LinkError> {
        self.needs("port")?;
        let listing = Transfer::list(
            self,
            route::PORT_LIST,
            &(),
            Ok,
            MAX_LISTED_PORTS,
            CONTROL_DEADLINE,
        );
        let mut ports: Vec<OpenPort> = listing.await?.whole()?;
        ports.sort_unstable();
        ports.dedup();
        Ok(ports)
    }
}

impl AsyncRead for PortStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.data.is_empty() && !this.is_over {
            match checked(ready!(this.incoming.frames.poll_next(cx))).map_err(broken)? {
                TransferFrame::Data(data) => this.data = data,
                TransferFrame::End => this.is_over = true,
                _ => return Poll::Ready(Err(broken(unexpected()))),
            }
        }
        let count = this.data.len().min(buf.remaining());
        buf.put_slice(this.data.get(..count).unwrap_or_default());
        this.data.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.outgoing.poll_reserve(cx)).map_err(|_| closed())?;
        let piece = data
            .get(..data.len().min(MAX_FRAME_PAYLOAD_BYTES))
            .unwrap_or(data);
        this.send(TransferFrame::Data(Bytes::copy_from_slice(piece)))?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.outgoing.is_closed() {
            return Poll::Ready(Ok(()));
        }
        if ready!(this.outgoing.poll_reserve(cx)).is_ok() {
            this.send(TransferFrame::End)?;
        }
        this.outgoing.close();
        Poll::Ready(Ok(()))
    }
}

impl PortStream {
    /// Sends a frame for which there is a place.
    fn send(&mut self, frame: TransferFrame) -> io::Result<()> {
        let chunk = frame.encode().map_err(io::Error::other)?;
        self.outgoing.send_item(chunk).map_err(|_| closed())
    }
}

fn closed() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

fn broken(error: LinkError) -> io::Error {
    let kind = match error {
        LinkError::Gone | LinkError::Refused { .. } => io::ErrorKind::ConnectionReset,
        _ => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}
