//! Casemate: one daemon that gives every session its own gVisor sandbox under rootless podman.
//!
//! The modules are the floors of the house, highest first; a file names only floors below its own.
//! `docs/architecture.md` is the plan, `tests/architecture.rs` enforces it.

// 11: assembly
pub mod daemon;

// 10: files -> values
pub mod config;

// 9: the front doors
pub mod admin;
pub mod api;

// 8: what a front door may reach
pub mod app;

// 7: what passes through the gates
pub mod endpoint;

// 6: lives and schedules
pub mod backup;
pub mod credential;
pub mod session;

// 5: the record
pub mod audit;

// 4: one outside system each
pub mod egress;
pub mod identity;
pub mod runtime;
pub mod store;
pub mod vault;
pub mod volume;

// 3: the machine
pub mod host;

// 2: pure decisions
pub mod policy;

// 1: the nouns
pub mod model;

// 0: no noun of ours
pub mod base;
