//! The link: what the daemon and the guest of one sandbox say to each other.
//!
//! The guest dials a Unix socket, proves with a token whose sandbox it is ([`handshake`]), and then *serves* HTTP/2 on
//! that connection; the daemon is the client. A process, a file or a connection to a port is one HTTP/2 stream whose two
//! bodies are frames ([`wire`]).
//!
//! Both ends are here, so that they cannot drift: [`daemon`] treats every byte from the guest as an attack, [`guest`]
//! dials again for as long as the sandbox lives. Every size, count and time is a constant in [`limits`].
#![forbid(unsafe_code)]

pub mod daemon;
pub mod file;
pub mod guest;
pub mod handshake;
pub mod limits;
pub mod port;
pub mod process;
pub mod refusal;
pub mod route;
pub mod snapshot;
pub mod token;
pub mod trust;
pub mod usage;
pub mod warm_up;
pub mod wire;

pub use process::{OnDetach, ProcessExit, ProcessSpec};
pub use refusal::Refusal;
pub use token::LinkToken;
pub use usage::{Health, Usage};
