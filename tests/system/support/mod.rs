//! What the tests stand on: a daemon of their own, its two doors, and podman beside it.

pub mod admin;
pub mod bench;
pub mod client;
pub mod daemon;
pub mod podman;
pub mod schema;
pub mod stream;
pub mod wait;

pub use self::bench::bench;
pub use self::client::{Answer, Client};
pub use self::daemon::Daemon;
pub use self::wait::{PATIENCE, wait_for, wait_until};
