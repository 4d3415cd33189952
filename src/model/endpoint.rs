//! Endpoints: addresses that reach a port in a session. Who came how, and what a template says of its ports.

use std::collections::BTreeMap;

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
