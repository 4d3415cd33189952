//! What a sandbox writes where a host belongs, in all the places where it may: one spelling or a refusal, and never another
//! answer for the same bytes in other pieces.

use casemate::egress::{Hello, SocksRequest, read_hello, read_request};
use casemate::model::egress::HostPattern;
use casemate::model::host::Host;
use casemate::model::network::why_not_public;

/// Reads the bytes as everything that they may be.
pub fn run(data: &[u8]) {
    a_host(Host::parse(data).ok().as_ref());
    a_host(
        Host::parse_with_port(data, Some(80))
            .ok()
            .map(|(host, _)| host)
            .as_ref(),
    );
    if let Some(pattern) = std::str::from_utf8(data)
        .ok()
        .and_then(|text| text.parse::<HostPattern>().ok())
    {
        assert_eq!(
            pattern.to_string().parse(),
            Ok(pattern),
            "a pattern has one spelling"
        );
    }
    a_hello(data);
    a_request(data);
}

/// Its one spelling is read as itself, and is nothing that a resolver could take for something else.
fn a_host(host: Option<&Host>) {
    let Some(host) = host else { return };
    let spelling = host.to_string();
    assert_eq!(
        Host::parse(spelling.as_bytes()).as_ref(),
        Ok(host),
        "a host has one spelling"
    );
    match host {
        Host::Name(name) => {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
            assert!(name.as_str().bytes().all(plain), "{name:?}");
            let last = name.as_str().rsplit('.').next().unwrap_or_default();
            assert!(
                !last.bytes().all(|b| b.is_ascii_digit()),
                "a name that ends in a number: {name:?}"
            );
        }
        Host::Address(address) => {
            let _ = why_not_public(*address);
        }
    }
}

/// What is known of a first message stays so, whatever comes after it.
fn a_hello(data: &[u8]) {
    let whole = read_hello(data);
    for end in [1, data.len() / 2, data.len().saturating_sub(1)] {
        let early = read_hello(data.get(..end).unwrap_or_default());
        assert!(
            early == Hello::Incomplete || early == whole,
            "{early:?} became {whole:?}"
        );
    }
}

/// A request that is not whole says how much it needs, and is whole then or says so again.
fn a_request(data: &[u8]) {
    let whole = read_request(data);
    assert_ne!(whole, SocksRequest::Needs(0), "it waits for nothing");
    for end in [3, 4, 5, data.len() / 2] {
        let early = read_request(data.get(..end).unwrap_or(data));
        assert!(
            matches!(early, SocksRequest::Needs(_)) || early == whole,
            "{early:?} became {whole:?}"
        );
    }
    if let SocksRequest::Connect(host, _) = &whole {
        a_host(Some(host));
    }
}

/// One of each.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let name = b"example.org";
    let mut sni = vec![0, 0, 0, 16, 0, 14, 0, 0, 11];
    sni.extend_from_slice(name);
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 2, 0x13, 1, 1, 0, 0, 20]);
    body.extend_from_slice(&sni);
    let mut hello = vec![22, 3, 1, 0, 67, 1, 0, 0, 63];
    hello.extend_from_slice(&body);
    let mut socks = vec![5, 1, 0, 3, 11];
    socks.extend_from_slice(name);
    socks.extend_from_slice(&[1, 0xbb]);
    vec![
        ("name", b"Example.org.:443".to_vec()),
        ("international", "b\u{fc}cher.example".into()),
        ("label", b"xn--pypal-4ve.com".to_vec()),
        ("number", b"0x7f.0.0.1".to_vec()),
        ("address", b"[::ffff:127.0.0.1]:80".to_vec()),
        ("pattern", b"*.example.org".to_vec()),
        ("network", b"10.0.0.0/8".to_vec()),
        ("hello", hello),
        ("socks", socks),
        ("socks-address", vec![5, 1, 0, 1, 127, 0, 0, 1, 0, 80]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_reach_what_they_are_for() {
        let seeds = seeds();
        let seed = |wanted: &str| {
            seeds
                .iter()
                .find(|(name, _)| *name == wanted)
                .map(|(_, bytes)| bytes.as_slice())
        };
        let hello = seed("hello").map(read_hello);
        assert_eq!(hello, Some(Hello::Named(Some(b"example.org".to_vec()))));
        let socks = seed("socks").map(read_request);
        assert!(
            matches!(socks, Some(SocksRequest::Connect(..))),
            "{socks:?}"
        );
    }
}
