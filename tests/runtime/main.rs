//! Podman with gVisor for real: the contract, and that the promise of `src/runtime/` is true.
//!
//! Not part of a plain `cargo test`; `scripts/test` prepares the machine and runs it as the user
//! `casemate`, to whom podman's socket belongs.

mod contract;
