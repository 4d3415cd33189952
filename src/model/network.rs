//! Networks of addresses, and which addresses are nobody's to reach unless they are named.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A network in the notation of CIDR, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    first: IpAddr,
    bits: u8,
}

/// The text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a network is an address, or one with the length of its prefix and no bits after it, such as 192.0.2.0/24 or 2001:db8::/32"
)]
pub struct BadNetwork;

impl Network {
    /// Whether the address is in it. An IPv4 network has no IPv6 addresses in it, mapped ones neither.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => v4_within(address, first, self.bits),
            (IpAddr::V6(first), IpAddr::V6(address)) => v6_within(address, first, self.bits),
            _ => false,
        }
    }
}

fn v4_within(address: Ipv4Addr, first: Ipv4Addr, bits: u8) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
    address.to_bits() & mask == first.to_bits() & mask
}

fn v6_within(address: Ipv6Addr, first: Ipv6Addr, bits: u8) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    address.to_bits() & mask == first.to_bits() & mask
}

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let first: IpAddr = address.parse().map_err(|_| BadNetwork)?;
        let all = if first.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => all,
            Some(bits) => {
                let is_plain = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
                let bits = bits
                    .parse::<u8>()
                    .ok()
                    .filter(|bits| is_plain && *bits <= all);
                bits.ok_or(BadNetwork)?
            }
        };
        let is_first = match first {
            IpAddr::V4(first) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                first.to_bits() & !mask == 0
            }
            IpAddr::V6(first) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                first.to_bits() & !mask == 0
            }
        };
        is_first.then_some(Self { first, bits }).ok_or(BadNetwork)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = if self.first.is_ipv4() { 32 } else { 128 };
        if self.bits == all {
            self.first.fmt(f)
        } else {
            write!(f, "{}/{}", self.first, self.bits)
        }
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Network {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Network".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "An address, or a network as in 192.0.2.0/24 or 2001:db8::/32.",
        })
    }
}

/// IPv4 networks that are not the public internet's (IANA's special-purpose registry; RFC 6890), and one that a cloud has for
/// its own services in the middle of it.
const V4_NOT_PUBLIC: [(Ipv4Addr, u8, &str); 17] = [
    (Ipv4Addr::UNSPECIFIED, 8, "this host's"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "shared"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(168, 63, 129, 16), 32, "metadata"),
    (Ipv4Addr::new(169, 254, 169, 254), 32, "metadata"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// IPv6 networks within `2000::/3` that are not the public internet's.
const V6_NOT_PUBLIC: [(Ipv6Addr, u8, &str); 3] = [
    // Teredo, ORCHID, benchmarking and others.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "reserved"),
    (
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0),
        32,
        "documentation",
    ),
    (
        Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0),
        20,
        "documentation",
    ),
];

/// Why an address is not on the public internet, in a word; `None`: it is.
#[must_use]
pub fn why_not_public(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => v4_why(address),
        IpAddr::V6(address) => v6_why(address),
    }
}

fn v4_why(address: Ipv4Addr) -> Option<&'static str> {
    let mut found = V4_NOT_PUBLIC.iter();
    let found = found.find(|(first, bits, _)| v4_within(address, *first, *bits));
    found.map(|(_, _, why)| *why)
}

fn v6_why(address: Ipv6Addr) -> Option<&'static str> {
    let parts = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match parts {
        [0, 0, 0, 0, 0, 0, 0, 1] => return Some("loopback"),
        // `::`, and IPv4-compatible addresses.
        [0, 0, 0, 0, 0, 0, ..] => return Some("IPv4-compatible"),
        [0, 0, 0, 0, 0, 0xffff, ..] => return Some("IPv4-mapped"),
        // ISATAP (RFC 5214).
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => return Some("ISATAP"),
        // NAT64 (RFC 6052) and 6to4 (RFC 3056): what they lead to is IPv4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            return v4_why(v4(high, low));
        }
        _ => {}
    }
    if let Some((.., why)) = V6_NOT_PUBLIC
        .iter()
        .find(|(first, bits, _)| v6_within(address, *first, *bits))
    {
        return Some(why);
    }
    let [first, ..] = parts;
    match first {
        0x2000..=0x3fff => None,
        0xff00..=0xffff => Some("multicast"),
        0xfe80..=0xfebf => Some("link-local"),
        0xfc00..=0xfdff => Some("private"),
        _ => Some("reserved"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_are_read_as_they_are_written_and_have_what_is_in_them() {
        for text in [
            "10.0.0.0/8",
            "192.0.2.7",
            "0.0.0.0/0",
            "2001:db8::/32",
            "::1",
            "::/0",
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        assert_eq!(
            "192.0.2.7/32".parse::<Network>().unwrap().to_string(),
            "192.0.2.7"
        );
        for bad in [
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.1",
            "010.0.0.0/8",
            "::1/64",
            "fe80::1%1",
            "a",
            "",
        ] {
            assert_eq!(bad.parse::<Network>(), Err(BadNetwork), "{bad}");
        }
        let ten: Network = "10.0.0.0/8".parse().unwrap();
        assert!(ten.contains("10.255.0.1".parse().unwrap()));
        for other in ["11.0.0.0", "9.255.255.255", "::ffff:10.0.0.1", "::a00:1"] {
            assert!(!ten.contains(other.parse().unwrap()), "{other}");
        }
        assert!(
            "0.0.0.0/0"
                .parse::<Network>()
                .unwrap()
                .contains("255.1.2.3".parse().unwrap())
        );
        assert!(
            "::/0"
                .parse::<Network>()
                .unwrap()
                .contains("ff::1".parse().unwrap())
        );
    }

    #[test]
    fn what_is_not_public_is_known_in_every_disguise() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.254",
            "168.63.129.16",
            "169.254.169.254",
            "169.254.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:8.8.8.8",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::a00:1",
            "2002:7f00:1::1",
            "2002:a9fe:a9fe::",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:db8::1",
            "3fff::1",
            "2600::5efe:10.0.0.1",
            "2600::200:5efe:10.0.0.1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "100::1",
            "4000::1",
        ] {
            assert!(
                why_not_public(address.parse().unwrap()).is_some(),
                "{address}"
            );
        }
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2a00:1450::1",
            "2001:4860:4860::8888",
            "2002:808:808::1",
            "64:ff9b::8.8.8.8",
        ] {
            assert_eq!(why_not_public(address.parse().unwrap()), None, "{address}");
        }
        assert_eq!(
            why_not_public("169.254.169.254".parse().unwrap()),
            Some("metadata")
        );
    }

    proptest! {
        #[test]
        fn an_embedded_address_is_never_more_public_than_by_itself(bits in any::<u32>(), host in any::<u64>()) {
            let v4 = Ipv4Addr::from_bits(bits);
            let [a, b, c, d] = v4.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low);
            let to4 = Ipv6Addr::from_bits((0x2002_u128 << 112) | (u128::from(bits) << 80) | u128::from(host));
            prop_assert!(v6_why(v4.to_ipv6_mapped()).is_some());
            if v4_why(v4).is_some() {
                prop_assert!(v6_why(nat64).is_some());
                prop_assert!(v6_why(to4).is_some());
            }
        }

        #[test]
        fn a_network_reads_back(bits in any::<u128>(), length in 0_u8..=128) {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            let network = Network { first: Ipv6Addr::from_bits(bits & mask).into(), bits: length };
            prop_assert_eq!(network.to_string().parse::<Network>(), Ok(network));
        }
    }
}
