//! Hosts and origins as browsers and programs spell them, each read in one way only.
//!
//! What has two spellings gets one here: case, a trailing dot, brackets, addresses in addresses. What is not plainly one of them is none.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Longest name (RFC 1035 section 2.3.4), and longest part of one.
const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// It is no such thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no {0}")]
pub struct NoSuch(&'static str);

/// Who is addressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// By a name, in lower case, without a trailing dot.
    Name(String),
    /// By an address; one of IPv4 inside one of IPv6 is one of IPv4.
    Address(IpAddr),
}

/// A host, and a port where one was said (RFC 3986 section 3.2, without user information).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Who.
    pub host: Host,
    /// Not zero.
    pub port: Option<u16>,
}

/// Where a page comes from (RFC 6454): a scheme of the web's, a host, a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Whether it was carried by TLS.
    pub is_https: bool,
    /// From whom.
    pub host: Host,
    /// The scheme's own unless another was said.
    pub port: u16,
}

/// A name or an address that a door answers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// `*`: all of them.
    Any,
    /// `*.name`: names of one label more.
    Below(String),
    /// This one; without a port on every port.
    One(Authority),
}

/// An origin whose pages may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// `*`: all of them.
    Any,
    /// This one.
    One(Origin),
}

impl Host {
    /// Whether it is this machine, whatever a name service says: `localhost` (RFC 6761 section 6.3) or a loopback address.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Name(name) => name == "localhost",
            Self::Address(address) => address.is_loopback(),
        }
    }
}

impl FromStr for Host {
    type Err = NoSuch;

    fn from_str(text: &str) -> Result<Self, NoSuch> {
        let wrong = NoSuch("name or address of a host");
        if let Some(inside) = text.strip_prefix('[') {
            let inside = inside.strip_suffix(']').ok_or(wrong)?;
            let address: Ipv6Addr = inside.parse().map_err(|_| wrong)?;
            return Ok(Self::Address(IpAddr::V6(address).to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_label = |label: &str| {
            let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            (1..=MAX_LABEL_BYTES).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > MAX_NAME_BYTES || !name.split('.').all(is_label) {
            return Err(wrong);
        }
        // Whatever some client takes for a number is one in its four-part spelling or nothing: 127.1, 0x7f000001.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.starts_with(|first: char| first.is_ascii_digit()) {
            let address: Ipv4Addr = name.parse().map_err(|_| wrong)?;
            return Ok(Self::Address(address.into()));
        }
        Ok(Self::Name(name))
    }
}

impl FromStr for Authority {
    type Err = NoSuch;

    fn from_str(text: &str) -> Result<Self, NoSuch> {
        // The colons of an address in brackets are its own.
        let after = text.rfind(']').unwrap_or(0);
        let (host, port) = match text.get(after..).and_then(|rest| rest.find(':')) {
            Some(at) => text.split_at(after + at),
            None => (text, ""),
        };
        let port = match port.strip_prefix(':') {
            None => None,
            Some(digits) => Some(port_of(digits).ok_or(NoSuch("host and port"))?),
        };
        Ok(Self {
            host: host.parse()?,
            port,
        })
    }
}

fn port_of(digits: &str) -> Option<u16> {
    let is_plain = !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_plain)
}

impl Authority {
    /// The port, or the one of the scheme.
    #[must_use]
    pub fn port_under(&self, is_https: bool) -> u16 {
        self.port.unwrap_or(default_port(is_https))
    }
}

const fn default_port(is_https: bool) -> u16 {
    if is_https { 443 } else { 80 }
}

impl FromStr for Origin {
    type Err = NoSuch;

    fn from_str(text: &str) -> Result<Self, NoSuch> {
        let wrong = NoSuch("origin, as in https://app.example.com");
        let (is_https, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err(wrong),
        };
        let authority: Authority = rest.parse().map_err(|_| wrong)?;
        Ok(Self {
            is_https,
            port: authority.port_under(is_https),
            host: authority.host,
        })
    }
}

impl Origin {
    /// Whether a page of it is one of the host that is addressed. What came by TLS is of the same origin only as that what came by TLS; before a
    /// door without it, a proxy may have done that.
    #[must_use]
    pub fn is_of(&self, addressed: &Authority, is_tls: bool) -> bool {
        (self.is_https || !is_tls)
            && self.host == addressed.host
            && self.port == addressed.port_under(self.is_https)
    }
}

impl FromStr for HostPattern {
    type Err = NoSuch;

    fn from_str(text: &str) -> Result<Self, NoSuch> {
        if text == "*" {
            return Ok(Self::Any);
        }
        match text.strip_prefix("*.") {
            None => text.parse().map(Self::One),
            Some(rest) => match rest.parse()? {
                Host::Name(name) if name.contains('.') => Ok(Self::Below(name)),
                _ => Err(NoSuch("domain below which names are")),
            },
        }
    }
}

impl HostPattern {
    /// Whether it answers to this.
    #[must_use]
    pub fn takes(&self, addressed: &Authority) -> bool {
        match self {
            Self::Any => true,
            Self::Below(domain) => match &addressed.host {
                Host::Name(name) => name
                    .split_once('.')
                    .is_some_and(|(_, parent)| parent == domain),
                Host::Address(_) => false,
            },
            Self::One(one) => {
                one.host == addressed.host && (one.port.is_none() || one.port == addressed.port)
            }
        }
    }
}

impl FromStr for OriginPattern {
    type Err = NoSuch;

    fn from_str(text: &str) -> Result<Self, NoSuch> {
        if text == "*" {
            return Ok(Self::Any);
        }
        text.parse().map(Self::One)
    }
}

impl OriginPattern {
    /// Whether it is meant.
    #[must_use]
    pub fn takes(&self, origin: &Origin) -> bool {
        match self {
            Self::Any => true,
            Self::One(one) => one == origin,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.host.fmt(f)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Display for Origin {
    /// As browsers send it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port == default_port(self.is_https) {
            return Ok(());
        }
        write!(f, ":{}", self.port)
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(domain) => write!(f, "*.{domain}"),
            Self::One(one) => one.fmt(f),
        }
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::One(one) => one.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_authority_has_one_spelling_and_what_is_none_is_refused() {
        for (text, meant) in [
            ("a.example", "a.example"),
            ("A.Example.:7272", "a.example:7272"),
            ("localhost", "localhost"),
            ("a_b-c.example", "a_b-c.example"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("[::1]:65535", "[::1]:65535"),
            ("[0:0:0:0:0:0:0:1]", "[::1]"),
            ("[::ffff:127.0.0.1]", "127.0.0.1"),
            ("[::FFFF:7f00:1]:1", "127.0.0.1:1"),
        ] {
            assert_eq!(text.parse::<Authority>().unwrap().to_string(), meant);
        }
        let long = "a".repeat(64);
        for text in [
            "",
            ":",
            ":80",
            "a:",
            "a:0",
            "a:080",
            "a:65536",
            "a:-1",
            "a:+1",
            "a:1:2",
            "a..b",
            ".",
            "a..",
            ".a",
            "-a",
            "a-",
            "*",
            "*.a",
            "a/b",
            "a b",
            "a@b",
            "a%41",
            "a\\b",
            "a#b",
            "a?b",
            "\u{e9}.example",
            "::1",
            "::1:80",
            "[::1",
            "::1]",
            "[]",
            "[::1]80",
            "[::1]:",
            "[a]",
            "[127.0.0.1]",
            "[fe80::1%eth0]",
            "[::1]x:80",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0x7f000001",
            "127.0.0.01",
            "1.2.3.4.5",
            "256.0.0.1",
            "a.1",
            "a,b",
            "a\tb",
            &long,
        ] {
            assert!(text.parse::<Authority>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_origin_is_of_the_web_and_nothing_but_an_origin() {
        for (text, meant) in [
            ("https://a.example", "https://a.example"),
            ("https://a.example:443", "https://a.example"),
            ("http://a.example:80", "http://a.example"),
            ("http://a.example:443", "http://a.example:443"),
            ("http://[::1]:3000", "http://[::1]:3000"),
        ] {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), meant);
        }
        for text in [
            "null",
            "",
            "a.example",
            "https://",
            "https:a.example",
            "https://a.example/",
            "https://a.example?",
            "https://x@a.example",
            "file://a",
            "HTTPS://a.example",
            "ws://a.example",
            "https://a.example https://b.example",
            "https://*.a.example",
            "*",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_pattern_takes_what_it_says() {
        for (pattern, addressed, takes) in [
            ("*", "a.example", true),
            ("a.example", "a.example", true),
            ("a.example", "a.example:81", true),
            ("a.example:81", "a.example:81", true),
            ("a.example:81", "a.example", false),
            ("a.example:81", "a.example:82", false),
            ("a.example", "b.a.example", false),
            ("a.example", "a.example.evil", false),
            ("*.a.example", "b.a.example:81", true),
            ("*.a.example", "a.example", false),
            ("*.a.example", "c.b.a.example", false),
            ("*.a.example", "ba.example", false),
            ("10.0.0.1", "10.0.0.1:81", true),
            ("10.0.0.1", "[::ffff:10.0.0.1]", true),
            ("[fd00::1]", "[fd00:0::1]:81", true),
        ] {
            let pattern: HostPattern = pattern.parse().unwrap();
            let addressed = addressed.parse().unwrap();
            assert_eq!(pattern.takes(&addressed), takes, "{pattern} {addressed}");
        }
        for text in ["*.", "*.a", "**", "*.*.a.example", "*.1.2", "a.*.example"] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_and_read_the_same(text in "[a-z0-9.:\\[\\]-]{0,12}") {
            if let Ok(authority) = text.parse::<Authority>() {
                prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
            }
        }

        #[test]
        fn nothing_breaks_it(text in "\\PC{0,40}") {
            let _ = text.parse::<Authority>();
            let _ = text.parse::<Origin>();
            let _ = text.parse::<HostPattern>();
        }
    }
}
