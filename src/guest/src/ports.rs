//! Connections to ports on the sandbox's loopback, and what listens there.
//!
//! A connection is refused here when nothing listens. Whether anybody may have one is decided outside.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use casemate_link::limits::{MAX_FRAME_PAYLOAD_BYTES, MAX_LISTED_PORTS};
use casemate_link::port::{ConnectRequest, OpenPort};
use casemate_link::refusal::{Refusal, code};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::child::refusal;
use crate::transfer::{Input, Output, Transfer};

/// Time for a connection on the loopback, which a listener with a full queue can hold up.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes that are read at once.
const READ_BYTES: usize = 64 * 1024;

/// State of a listening socket in the kernel's tables (`TCP_LISTEN`, `include/net/tcp_states.h`).
const LISTENING: &str = "0A";

/// Connects, and carries bytes both ways until both sides have said their end, or one is gone.
pub(crate) async fn connect(request: ConnectRequest, transfer: Transfer) -> Result<(), Refusal> {
    let Transfer { input, output } = transfer;
    let stream = dial(request.port).await?;
    // What a program writes goes at once: the daemon's clients wait for it.
    stream.set_nodelay(true).map_err(|error| failed(&error))?;
    if !output.head(&()).await {
        return Ok(());
    }
    let (reading, writing) = stream.into_split();
    let both = async {
        let (out, inward) = tokio::join!(carry_out(reading, &output), carry_in(input, writing));
        out.and(inward)
    };
    tokio::select! {
        result = both => result,
        // Nobody hears it any more, so there is nobody to speak for either.
        () = output.closed() => Ok(()),
    }
}

async fn dial(port: u16) -> Result<TcpStream, Refusal> {
    let mut last = io::Error::from(ErrorKind::ConnectionRefused);
    for ip in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ] {
        match timeout(
            CONNECT_DEADLINE,
            TcpStream::connect(SocketAddr::new(ip, port)),
        )
        .await
        {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => {
                return Err(refusal(
                    code::BUSY,
                    "the program that listens there takes no connection",
                ));
            }
        }
    }
    Err(match last.kind() {
        // A sandbox without IPv6 has no address there.
        ErrorKind::ConnectionRefused
        | ErrorKind::AddrNotAvailable
        | ErrorKind::NetworkUnreachable => refusal(
            code::NOT_LISTENING,
            &format!("nothing listens on port {port}"),
        ),
        _ => failed(&last),
    })
}

async fn carry_out(mut from: OwnedReadHalf, output: &Output) -> Result<(), Refusal> {
    loop {
        let data = read(&mut from).await.map_err(|error| failed(&error))?;
        if data.is_empty() {
            output.end().await;
            return Ok(());
        }
        if !output.data(data).await {
            return Ok(());
        }
    }
}

/// Reads what there is into memory of its size.
async fn read(from: &mut OwnedReadHalf) -> io::Result<Bytes> {
    from.readable().await?;
    let mut data = BytesMut::with_capacity(READ_BYTES.min(MAX_FRAME_PAYLOAD_BYTES));
    from.read_buf(&mut data).await?;
    // A chunk waits for its reader: a few bytes must not hold a whole buffer.
    Ok(if data.len() < READ_BYTES / 4 {
        Bytes::copy_from_slice(&data)
    } else {
        data.freeze()
    })
}

async fn carry_in(mut input: Input, mut to: OwnedWriteHalf) -> Result<(), Refusal> {
    while let Some(data) = input.data().await? {
        if to.write_all(&data).await.is_err() {
            // The program reads no more; what it still says is carried on.
            return Ok(());
        }
    }
    // A program that is gone needs no end.
    let _ = to.shutdown().await;
    Ok(())
}

/// Says which ports something listens on.
pub(crate) async fn list(_: Value, transfer: Transfer) -> Result<(), Refusal> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(std::fs::read_to_string);
    let listening = tables.iter().flatten().flat_map(|table| table.lines());
    for port in listening.filter_map(parse).take(MAX_LISTED_PORTS) {
        if !transfer.output.item(&port).await {
            return Ok(());
        }
    }
    transfer.output.end().await;
    Ok(())
}

/// A line of the kernel's table (proc(5), /proc/net/tcp), if it is a listening socket that the loopback reaches.
fn parse(line: &str) -> Option<OpenPort> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let is_listening = fields.nth(1)? == LISTENING;
    let uid = fields.nth(3)?.parse().ok()?;
    let address = address_of(address)?;
    let is_reached = address.is_loopback() || address.is_unspecified();
    (is_listening && is_reached).then_some(OpenPort {
        port: u16::from_str_radix(port, 16).ok()?,
        address,
        uid,
    })
}

/// An address as the kernel prints it: words of 32 bits in the machine's byte order. One of IPv4 that a socket of IPv6 was bound to
/// (`::ffff:127.0.0.1`, as servers of gRPC do) is the one of IPv4.
fn address_of(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match text.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(IpAddr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

fn failed(error: &io::Error) -> Refusal {
    refusal(
        code::NOT_LISTENING,
        &format!("the connection inside: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let line = "   0: 0100007F:1FA3 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1";
        let port = OpenPort {
            port: 8099,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            uid: 1000,
        };
        assert_eq!(parse(line), Some(port));
        let line = "   1: 00000000000000000000000001000000:1FA2 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1";
        let port = OpenPort {
            port: 8098,
            address: IpAddr::V6(Ipv6Addr::LOCALHOST),
            uid: 0,
        };
        assert_eq!(parse(line), Some(port));
        let line = "   2: 0000000000000000FFFF00000100007F:1FA1 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 3 1";
        let port = OpenPort {
            port: 8097,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            uid: 1000,
        };
        assert_eq!(parse(line), Some(port));
        // An established connection, an address that is not the loopback's, a heading, nothing.
        assert_eq!(
            parse("   0: 0100007F:1FA3 0100007F:9C40 01 0:0 0:0 0 0 0 1"),
            None
        );
        assert_eq!(
            parse("   0: 0101A8C0:1FA3 00000000:0000 0A 0:0 0:0 0 0 0 1"),
            None
        );
        assert_eq!(
            parse("  sl  local_address rem_address   st tx_queue rx_queue"),
            None
        );
        assert_eq!(parse(""), None);
    }
}
