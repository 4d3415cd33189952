//! Floor 11: assembly. Everything below is put together here, started, watched and ended.

pub mod logging;
pub mod tasks;
