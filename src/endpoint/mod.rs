//! Floor 7: what passes through the gate into a session: addresses of ports, headers on their way, connections over the link.
//!
//! Decides nothing: who may reach what is said above, and recorded before anything here is called. A session's program is as
//! hostile as its sandbox: what it answers is bounded in size and time, and nothing of it gets into another session's answers.

pub mod address;
mod body;
mod forward;
pub mod headers;
mod pool;
mod pulse;

pub use self::body::{BoxError, Passing, Ticket};
pub use self::forward::{Answered, Raw, Refusal, Tunnel, Visit};
pub use self::pool::{MAX_AT_ONCE, Pool};
