//! Casemate: one daemon that gives every session its own gVisor sandbox under rootless podman.
//!
//! The modules are the floors of the house, lowest first; a file names only floors below its own.
//! `docs/architecture.md` is the plan, `tests/architecture.rs` enforces it.

pub mod admin; // 9: the admin socket
pub mod api; // 9: the native HTTP API
pub mod app; // 8: what a front door may reach
pub mod audit; // 5: the record
pub mod base; // 0: ids, clock, secret, error chain
pub mod config; // 10: files -> values
pub mod host; // 3: the machine
pub mod identity; // 4: API keys
pub mod model; // 1: the nouns
pub mod policy; // 2: pure decisions
pub mod runtime; // 4: rootless podman + gVisor
pub mod session; // 6: lives and schedules
pub mod store; // 4: SQLite
