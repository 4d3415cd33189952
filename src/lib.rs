//! Casemate: one daemon that gives every session its own gVisor sandbox under rootless podman.
//!
//! The modules are the floors of the house, lowest first; a file names only floors below its own.
//! `docs/architecture.md` is the plan, `tests/architecture.rs` enforces it.

pub mod base; // 0: ids, clock, secret, error chain, exit codes

pub mod model; // 1: the nouns

pub mod host; // 3: the machine

pub mod runtime; // 4: rootless podman + gVisor

pub mod config; // 10: files to values

pub mod daemon; // 11: assembly
