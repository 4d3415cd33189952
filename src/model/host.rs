//! What a program may write where a host belongs, and the one spelling that it has afterwards.
//!
//! There is one parser, for rules and for what sandboxes ask for, so that what was judged is what is dialled. A text that two
//! readers could understand differently is refused: a NUL, a user, an address in octal, a label of mixed scripts. Names are
//! lower-case A-labels without a dot at the end (RFC 5890, UTS #46); addresses are those of `std`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};
use unicode_security::MixedScript;

/// Longest name, in bytes, without a dot at its end (RFC 1035 section 2.3.4).
pub const MAX_HOST_BYTES: usize = 253;
/// Longest text that is looked at: names grow shorter when they become A-labels, and not by more than this.
const MAX_TEXT_BYTES: usize = 1024;
/// Longest label, in bytes.
const MAX_LABEL_BYTES: usize = 63;

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A name, to be resolved.
    Name(HostName),
    /// An address.
    Address(IpAddr),
}

/// A name of a host: lower-case A-labels of letters, digits, `-` and `_`, with dots between them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

/// Why a text is no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHost {
    /// Nothing, or only a dot.
    #[error("a host is missing")]
    Empty,
    /// Too long, as a whole or in a label.
    #[error(
        "a host's name has at most {MAX_HOST_BYTES} bytes, and each of its labels {MAX_LABEL_BYTES}"
    )]
    Long,
    /// A character that no host has: a NUL, a space, `@`, `/`, `%`.
    #[error("a host's name is letters, digits, - and _, with dots between its labels")]
    Character,
    /// Not UTF-8, or no internationalised name.
    #[error("the host is no internationalised name (UTS #46)")]
    Idna,
    /// Letters of scripts that nobody writes together.
    #[error("a label of the host mixes scripts")]
    MixedScripts,
    /// A number that is no address in its usual spelling.
    #[error("the host looks like an address that is not in its usual spelling, such as 192.0.2.1")]
    Number,
    /// Brackets without an IPv6 address in them, or with a zone.
    #[error("the host is no IPv6 address in brackets, without a zone")]
    Ipv6,
    /// The port is none.
    #[error("the port is 1 to 65535")]
    Port,
}

impl Host {
    /// Reads a host as it stands in a rule, in a request's target, in a `Host` header, or in SOCKS. An IPv6 address is in
    /// brackets.
    ///
    /// # Errors
    /// [`BadHost`].
    pub fn parse(text: &[u8]) -> Result<Self, BadHost> {
        if text.is_empty() {
            return Err(BadHost::Empty);
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(BadHost::Long);
        }
        let text = std::str::from_utf8(text).map_err(|_| BadHost::Idna)?;
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(BadHost::Ipv6)?;
            // The parser of `std` takes no zone.
            let address: Ipv6Addr = inner.parse().map_err(|_| BadHost::Ipv6)?;
            return Ok(Self::Address(address.into()));
        }
        let name = a_labels(text)?;
        let last = name.rsplit('.').next().unwrap_or_default();
        if is_number(last) {
            // `std` takes four decimal numbers without leading zeros, and nothing else.
            let address: Ipv4Addr = name.parse().map_err(|_| BadHost::Number)?;
            return Ok(Self::Address(address.into()));
        }
        Ok(Self::Name(HostName(name)))
    }

    /// Reads a host and the port after it.
    ///
    /// # Errors
    /// [`BadHost`].
    pub fn parse_with_port(text: &[u8], default: Option<u16>) -> Result<(Self, u16), BadHost> {
        let bracket = text.iter().rposition(|byte| *byte == b']');
        let after_host = bracket.unwrap_or_default();
        let colon = text.iter().rposition(|byte| *byte == b':');
        let (host, port) = match colon.filter(|colon| *colon >= after_host) {
            Some(colon) => {
                let (host, rest) = text.split_at(colon);
                (host, Some(rest.get(1..).unwrap_or_default()))
            }
            None => (text, None),
        };
        let port = match port {
            Some(digits) => parse_port(digits).ok_or(BadHost::Port)?,
            None => default.ok_or(BadHost::Port)?,
        };
        Ok((Self::parse(host)?, port))
    }

    /// The name, if it is one.
    #[must_use]
    pub const fn name(&self) -> Option<&HostName> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

impl HostName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is a name below `parent`, and not that name itself: on the boundary of a label.
    #[must_use]
    pub fn is_below(&self, parent: &Self) -> bool {
        let rest = self.0.strip_suffix(parent.as_str());
        rest.is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

/// A port in decimal, as it is usually written.
fn parse_port(digits: &[u8]) -> Option<u16> {
    let plain = !digits.is_empty()
        && digits.len() <= 5
        && digits.iter().all(u8::is_ascii_digit)
        && digits.first() != Some(&b'0');
    let text = std::str::from_utf8(digits).ok().filter(|_| plain)?;
    text.parse().ok()
}

/// The name as lower-case A-labels, without a dot at its end.
fn a_labels(text: &str) -> Result<String, BadHost> {
    let refused =
        |c: char| c.is_control() || c.is_whitespace() || "@/\\%#?:[]<>^|*,;\"'`".contains(c);
    if text.contains(refused) {
        return Err(BadHost::Character);
    }
    let mut name = Uts46::new()
        .to_ascii(
            text.as_bytes(),
            AsciiDenyList::URL,
            Hyphens::Allow,
            DnsLength::Ignore,
        )
        .map_err(|_| BadHost::Idna)?
        .into_owned();
    if name.ends_with('.') {
        name.pop();
    }
    if name.is_empty() {
        return Err(BadHost::Empty);
    }
    if name.len() > MAX_HOST_BYTES {
        return Err(BadHost::Long);
    }
    for label in name.split('.') {
        check_label(label)?;
    }
    Ok(name)
}

fn check_label(label: &str) -> Result<(), BadHost> {
    if label.is_empty() {
        return Err(BadHost::Character);
    }
    if label.len() > MAX_LABEL_BYTES {
        return Err(BadHost::Long);
    }
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if !label.bytes().all(is_plain) || label.starts_with('-') || label.ends_with('-') {
        return Err(BadHost::Character);
    }
    if label.starts_with("xn--") {
        let (shown, read) =
            Uts46::new().to_unicode(label.as_bytes(), AsciiDenyList::URL, Hyphens::Allow);
        read.map_err(|_| BadHost::Idna)?;
        if !shown.as_ref().is_single_script() {
            return Err(BadHost::MixedScripts);
        }
    }
    Ok(())
}

/// Whether somebody could take a name that ends with this label for an address (WHATWG URL, "ends in a number").
fn is_number(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x");
    label.bytes().all(|b| b.is_ascii_digit())
        || hexadecimal.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl FromStr for Host {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        Self::parse(text.as_bytes())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<String, BadHost> {
        Host::parse(text.as_bytes()).map(|host| host.to_string())
    }

    #[test]
    fn a_host_has_one_spelling() {
        for (text, spelling) in [
            ("example.org", "example.org"),
            ("EXAMPLE.Org", "example.org"),
            ("example.org.", "example.org"),
            ("my_service", "my_service"),
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.1.", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[::FFFF:127.0.0.1]", "[::ffff:127.0.0.1]"),
            ("[0:0:0:0:0:0:0:1]", "[::1]"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("пример.испытание", "xn--e1afmkfd.xn--80akhbyknj4f"),
            // Dots and digits of other scripts are dots and digits.
            ("example。org", "example.org"),
            ("127。0。0。1", "127.0.0.1"),
            ("１２７.0.0.1", "127.0.0.1"),
            ("1.example", "1.example"),
            ("0xfg", "0xfg"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(spelling), "{text}");
        }
    }

    #[test]
    fn what_could_be_understood_in_two_ways_is_refused() {
        use BadHost::{Character, Empty, Idna, Ipv6, Long, MixedScripts, Number};
        let long_label = format!("{}.org", "a".repeat(64));
        let long_name = [
            "a".repeat(63),
            "b".repeat(63),
            "c".repeat(63),
            "d".repeat(62),
        ]
        .join(".");
        let longest = [
            "a".repeat(63),
            "b".repeat(63),
            "c".repeat(63),
            "d".repeat(61),
        ]
        .join(".");
        assert!(read(&longest).is_ok());
        for (text, why) in [
            ("", Empty),
            (".", Empty),
            ("example.org..", Character),
            ("example..org", Character),
            (".example.org", Character),
            ("allowed.org\0.evil.org", Character),
            ("allowed.org\0", Character),
            ("user@example.org", Character),
            ("user:secret@example.org", Character),
            ("example.org:80", Character),
            ("example.org/path", Character),
            ("example.org\\path", Character),
            ("example.org#a", Character),
            ("example.org?a", Character),
            ("example%2eorg", Character),
            ("example.org ", Character),
            (" example.org", Character),
            ("exam\tple.org", Character),
            ("example.org\r\nHost: evil", Character),
            ("*.example.org", Character),
            ("-example.org", Character),
            ("example-.org", Character),
            ("::1", Character),
            ("::ffff:127.0.0.1", Character),
            ("[::1", Ipv6),
            ("[::1]x", Ipv6),
            ("[fe80::1%eth0]", Ipv6),
            ("[fe80::1%25eth0]", Ipv6),
            ("[127.0.0.1]", Ipv6),
            ("[]", Ipv6),
            ("0177.0.0.1", Number),
            ("0x7f.0.0.1", Number),
            ("0x7f000001", Number),
            ("0x", Number),
            ("2130706433", Number),
            ("127.1", Number),
            ("127.0.1", Number),
            ("127.0.0.01", Number),
            ("127.0.0.256", Number),
            ("1.2.3.4.5", Number),
            ("example.123", Number),
            ("example.0x7f", Number),
            // "paypal" with a Cyrillic а, as it is and as an A-label.
            ("pаypal.com", MixedScripts),
            ("xn--pypal-4ve.com", MixedScripts),
            // Nobody's A-label.
            ("xn--a.example", Idna),
            ("xn--\u{e9}.example", Idna),
            (&long_label, Long),
            (&long_name, Long),
        ] {
            assert_eq!(read(text), Err(why), "{text:?}");
        }
        assert_eq!(Host::parse(b"\xff.org"), Err(Idna));
        assert_eq!(Host::parse(&vec![b'a'; 100_000]), Err(Long));
        for empty_to_the_eye in ["exam\u{200b}ple.org\0", "\u{200d}", "exa\u{202e}mple.org"] {
            assert!(read(empty_to_the_eye).is_err(), "{empty_to_the_eye:?}");
        }
    }

    #[test]
    fn a_port_is_a_number_as_it_is_usually_written() {
        let read = |text: &str, default| {
            Host::parse_with_port(text.as_bytes(), default)
                .map(|(host, port)| format!("{host} {port}"))
        };
        assert_eq!(
            read("example.org:443", None).as_deref(),
            Ok("example.org 443")
        );
        assert_eq!(
            read("example.org", Some(80)).as_deref(),
            Ok("example.org 80")
        );
        assert_eq!(read("[::1]:8080", None).as_deref(), Ok("[::1] 8080"));
        assert_eq!(read("[::1]", Some(80)).as_deref(), Ok("[::1] 80"));
        for bad in [
            "example.org",
            "example.org:",
            "example.org:0",
            "example.org:080",
            "example.org:65536",
            "example.org:+80",
            "example.org:80:80",
            "example.org:80 ",
            "a:b@example.org:80",
            "::1:80",
            ":80",
        ] {
            assert!(read(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn below_is_on_the_boundary_of_a_label() {
        let name = |text: &str| {
            Host::parse(text.as_bytes())
                .unwrap()
                .name()
                .unwrap()
                .clone()
        };
        let parent = name("example.org");
        assert!(name("a.example.org").is_below(&parent));
        assert!(name("a.b.EXAMPLE.org.").is_below(&parent));
        for other in [
            "example.org",
            "notexample.org",
            "example.org.evil.net",
            "org",
        ] {
            assert!(!name(other).is_below(&parent), "{other}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_has_one_spelling_and_nothing_odd_in_it(text in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(host) = Host::parse(&text) {
                let spelling = host.to_string();
                prop_assert_eq!(Host::parse(spelling.as_bytes()), Ok(host.clone()));
                if let Host::Name(name) = &host {
                    prop_assert!(name.as_str().len() <= MAX_HOST_BYTES);
                    prop_assert!(name.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b)));
                    prop_assert!(name.as_str().parse::<IpAddr>().is_err());
                }
            }
        }

        #[test]
        fn text_of_any_script_has_one_spelling(text in "[\\PC.]{1,30}") {
            if let Ok(host) = Host::parse(text.as_bytes()) {
                let spelling = host.to_string();
                prop_assert_eq!(Host::parse(spelling.as_bytes()), Ok(host));
            }
        }
    }
}
