//! Floor 9: the admin socket. Who is on the other end is told by the kernel, not by a password.
//!
//! The socket file lets everybody connect, so that whoever may not is refused by a rule and shows
//! in the log instead of failing silently. Root and the members of one group may go on.

mod access;
pub mod protocol;
mod record;
mod server;

pub use self::server::{AdminServer, BindError};
