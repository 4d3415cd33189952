//! Floor 9: the native HTTP API. Translates; decides nothing.
//!
//! [`routes::ROUTES`] is the one list: dispatch, authentication, 404, 405 and the OpenAPI document
//! come from it. Every request has an id, every failure is a problem document (RFC 9457), every
//! body and every wait has a bound.

mod body;
pub mod error;
pub mod openapi;
pub mod route;
pub mod routes;
mod server;
mod v1;

pub use self::server::{Server, ServerConfig};
