//! SOCKS 5, as far as it goes here: no authentication, `CONNECT` (RFC 1928).

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Kind, Refusal, always};
use crate::model::host::{BadHost, Host};

/// The first byte of a client that speaks it.
pub const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// What a client asks for, or how far its bytes go towards that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// So many bytes more must come before more is known.
    Needs(usize),
    /// To be connected there.
    Connect(Host, u16),
    /// Something else, or something that is none.
    Bad(Bad),
}

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It is not SOCKS 5.
    Version,
    /// It wants something else than to connect.
    Command,
    /// Its address is of no known type.
    AddressType,
    /// Its host is none.
    Host(BadHost),
}

/// Reads a request that follows the greeting, from its first byte.
#[must_use]
pub fn read_request(bytes: &[u8]) -> Request {
    let needs = |all: usize| Request::Needs(all.saturating_sub(bytes.len()));
    let &[version, command, _, kind, ..] = bytes else {
        return needs(4);
    };
    if version != VERSION {
        return Request::Bad(Bad::Version);
    }
    if command != CONNECT {
        return Request::Bad(Bad::Command);
    }
    let (from, length) = match kind {
        IPV4 => (4, 4),
        IPV6 => (4, 16),
        NAME => match bytes.get(4) {
            Some(length) => (5, usize::from(*length)),
            None => return needs(5),
        },
        _ => return Request::Bad(Bad::AddressType),
    };
    let end = from + length;
    let (Some(address), Some(port)) = (bytes.get(from..end), bytes.get(end..end + 2)) else {
        return needs(end + 2);
    };
    let host = if kind == NAME {
        // What is an address is asked for as one: in brackets it would be another spelling of it.
        if address.starts_with(b"[") {
            Err(BadHost::Character)
        } else {
            Host::parse(address)
        }
    } else if let Ok(v4) = <[u8; 4]>::try_from(address) {
        Ok(Host::Address(v4.into()))
    } else if let Ok(v6) = <[u8; 16]>::try_from(address) {
        Ok(Host::Address(v6.into()))
    } else {
        return Request::Bad(Bad::AddressType);
    };
    let port = <[u8; 2]>::try_from(port).map_or(0, u16::from_be_bytes);
    match host {
        Ok(_) if port == 0 => Request::Bad(Bad::Host(BadHost::Port)),
        Ok(host) => Request::Connect(host, port),
        Err(bad) => Request::Bad(Bad::Host(bad)),
    }
}

/// Takes a client's greeting and its request.
///
/// # Errors
/// What is refused; it was answered.
pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
) -> Result<(Host, u16), Refusal> {
    let gone = |_| {
        Refusal::new(
            Kind::Malformed,
            always::ONE_FRAMING,
            "the request is cut short",
        )
    };
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await.map_err(gone)?;
    let mut methods = vec![0; usize::from(greeting[1])];
    stream.read_exact(&mut methods).await.map_err(gone)?;
    if !methods.contains(&NO_AUTHENTICATION) {
        let _ = stream.write_all(&[VERSION, NO_METHOD]).await;
        return Err(Refusal::new(
            Kind::Malformed,
            always::ONE_FRAMING,
            "SOCKS without a method that is known here",
        ));
    }
    stream
        .write_all(&[VERSION, NO_AUTHENTICATION])
        .await
        .map_err(gone)?;
    let mut request = Vec::new();
    loop {
        match read_request(&request) {
            Request::Needs(more) => {
                let from = request.len();
                request.resize(from + more, 0);
                let room = request.get_mut(from..).unwrap_or_default();
                stream.read_exact(room).await.map_err(gone)?;
            }
            Request::Connect(host, port) => return Ok((host, port)),
            Request::Bad(bad) => {
                let (code, refusal) = match bad {
                    Bad::Version => (
                        1,
                        Refusal::new(Kind::Malformed, always::ONE_FRAMING, "not SOCKS 5"),
                    ),
                    Bad::Command => (
                        7,
                        Refusal::new(
                            Kind::Malformed,
                            always::ONE_FRAMING,
                            "SOCKS only connects here",
                        ),
                    ),
                    Bad::AddressType => (
                        8,
                        Refusal::new(
                            Kind::Malformed,
                            always::ONE_FRAMING,
                            "an unknown type of address",
                        ),
                    ),
                    Bad::Host(bad) => (
                        2,
                        Refusal::new(Kind::Denied, always::ONE_SPELLING, bad.to_string()),
                    ),
                };
                let _ = answer(stream, code).await;
                return Err(refusal);
            }
        }
    }
}

/// The code of a refusal (RFC 1928 section 6).
pub(super) const fn code_of(kind: Kind) -> u8 {
    match kind {
        Kind::Denied | Kind::TooMuch => 2,
        Kind::NoSuchHost | Kind::Late => 4,
        Kind::Unreachable => 5,
        Kind::Malformed | Kind::Unrecorded | Kind::Unverified | Kind::NoCredential => 1,
    }
}

/// Answers a request; 0 is success. Nobody is told from where the connection goes out.
pub(super) async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, code: u8) -> std::io::Result<()> {
    stream
        .write_all(&[VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0])
        .await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(name: &[u8], port: u16) -> Vec<u8> {
        let length = u8::try_from(name.len()).unwrap();
        [&[5, 1, 0, 3, length][..], name, &port.to_be_bytes()].concat()
    }

    #[test]
    fn requests_are_read_whole_and_not_before() {
        let whole = named(b"Example.org", 443);
        for end in 0..whole.len() {
            assert!(
                matches!(read_request(&whole[..end]), Request::Needs(1..)),
                "{end}"
            );
        }
        let said = |bytes: &[u8]| match read_request(bytes) {
            Request::Connect(host, port) => format!("{host}:{port}"),
            other => format!("{other:?}"),
        };
        assert_eq!(said(&whole), "example.org:443");
        assert_eq!(said(&[5, 1, 0, 1, 127, 0, 0, 1, 0, 80]), "127.0.0.1:80");
        let mapped = [
            &[5, 1, 0, 4][..],
            &[0; 10],
            &[0xff, 0xff, 127, 0, 0, 1, 0, 80],
        ]
        .concat();
        assert_eq!(said(&mapped), "[::ffff:127.0.0.1]:80");
        assert_eq!(said(&named(b"127.0.0.1", 80)), "127.0.0.1:80");
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for name in [
            &b"allowed.org\0.evil.org"[..],
            b"",
            b"a@b",
            b"0x7f.1",
            b"127.1",
            b"fe80::1%eth0",
            b"[::1]",
            b"a b",
            b"\xff\xfe",
            b"a.org:80",
        ] {
            assert!(
                matches!(read_request(&named(name, 80)), Request::Bad(Bad::Host(_))),
                "{name:?}"
            );
        }
        assert_eq!(
            read_request(&named(b"a.org", 0)),
            Request::Bad(Bad::Host(BadHost::Port))
        );
        assert_eq!(read_request(&[4, 1, 0, 1]), Request::Bad(Bad::Version));
        assert_eq!(read_request(&[5, 2, 0, 1]), Request::Bad(Bad::Command));
        assert_eq!(read_request(&[5, 3, 0, 1]), Request::Bad(Bad::Command));
        assert_eq!(read_request(&[5, 1, 0, 2]), Request::Bad(Bad::AddressType));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_and_never_waits_for_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_ne!(read_request(&bytes), Request::Needs(0));
        }
    }
}
