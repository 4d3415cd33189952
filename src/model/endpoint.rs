//! Endpoints: addresses that reach a port in a session. Who came how, and what a template says of its ports.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::id::SessionId;

/// Most headers that a template names for one port.
pub const MAX_HEADERS: usize = 16;
/// Longest value of such a header, in bytes.
pub const MAX_HEADER_VALUE_BYTES: usize = 1024;

/// A port in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The session.
    pub session: SessionId,
    /// The TCP port on its loopback; not zero.
    pub port: u16,
}

/// What a template says of the endpoints of its sessions. A session keeps what held when it was admitted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Endpoints {
    /// Whether every port can be reached, not only those that the template declares.
    pub any_port: bool,
    /// Ports that anybody may reach who knows the address, where the operator allows that too (`endpoints.public`).
    pub public: Vec<u16>,
    /// Headers that each request gets on its way to a port, by the port. Whatever came with the same name goes.
    pub headers: BTreeMap<u16, BTreeMap<String, String>>,
}

/// By what somebody was let in to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// An API key, a token of a session, or a JSON web token, with the request.
    Credential,
    /// A signed link.
    Link,
    /// The cookie that a signed link was exchanged for.
    Cookie,
    /// Nothing: the port is public.
    Public,
    /// A byte stream of `casemate forward`.
    Forward,
}

/// A network: an address and how many of its bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// It is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no address or network, as in 127.0.0.1 or 10.0.0.0/8")]
pub struct NotANetwork;

impl Network {
    /// Whether the address is in it. One of IPv4 inside one of IPv6 is one of IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.bits))
                    .unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, bits) = match text.split_once('/') {
            None => (text, None),
            Some((address, bits)) => (address, Some(bits)),
        };
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().map_err(|_| NotANetwork)?
            }
            Some(_) => return Err(NotANetwork),
        };
        (bits <= most)
            .then_some(Self { address, bits })
            .ok_or(NotANetwork)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_their_addresses_and_no_others() {
        for (network, inside, outside) in [
            ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
            ("10.0.0.0/8", "::ffff:10.9.9.9", "11.0.0.0"),
            ("0.0.0.0/0", "1.2.3.4", "::1"),
            ("::/0", "fe80::1", "1.2.3.4"),
            ("fd00::/8", "fd12::1", "fe00::1"),
            ("::1", "::1", "::2"),
        ] {
            let network: Network = network.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{network}");
            assert!(!network.contains(outside.parse().unwrap()), "{network}");
        }
        for wrong in [
            "",
            "a",
            "10.0.0.0/33",
            "::1/129",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10/8",
            "::1/",
        ] {
            assert_eq!(wrong.parse::<Network>(), Err(NotANetwork), "{wrong}");
        }
    }
}
