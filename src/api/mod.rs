//! Floor 9: the native HTTP API. Translates; decides nothing.
//!
//! [`routes::ROUTES`] is the one list: dispatch, authentication, 404, 405 and the OpenAPI document
//! come from it. Every request has an id, every failure is a problem document (RFC 9457), every
//! body and every wait has a bound. What does not fit into memory streams: [`intake`] in,
//! [`route::Reply::stream`] and [`sse`] out, [`socket`] both ways.

mod body;
mod browser;
mod conversation;
mod e2b;
mod endpoint;
pub mod error;
mod handshake;
pub mod intake;
mod limit;
mod line;
pub mod openapi;
pub mod range;
mod reply;
pub mod route;
pub mod routes;
mod server;
pub mod socket;
pub mod sse;
#[cfg(test)]
mod tests;
pub mod tls;
mod v1;
mod who;

pub use self::browser::Browsers;
pub use self::server::{Server, ServerConfig};
