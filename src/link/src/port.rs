//! The documents about ports inside the sandbox.

use serde::{Deserialize, Serialize};

/// Head of a request to [`crate::route::PORT_CONNECT`]. The answer's head is an empty document once it is connected; from
/// then on both sides send data, each until its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// A TCP port on the sandbox's loopback: 127.0.0.1 is tried first, then `::1`.
    pub port: u16,
}

/// A port that something listens on, an item of the answer to [`crate::route::PORT_LIST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OpenPort {
    /// The port.
    pub port: u16,
    /// Its address: a loopback address, or the unspecified one, which takes in the loopback.
    pub address: std::net::IpAddr,
    /// Who listens there.
    pub uid: u32,
}
