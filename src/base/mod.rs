//! Floor 0: what has no noun of ours in it. Knows nothing of sessions, stores or sockets.

pub mod chain;
pub mod clock;
pub mod exit;
pub mod id;
pub mod secret;
