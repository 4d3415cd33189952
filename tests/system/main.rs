//! The daemon as it is shipped, on rootless podman with gVisor: what it promises, and what it does
//! with bad input, a broken machine and a sudden end.
//!
//! Not part of a plain `cargo test`: it needs a prepared machine (`scripts/test-bench`) and root, to
//! be both of the daemon's users and its operators. `scripts/test` runs it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::too_many_lines,
    reason = "a panic is how a test fails, in its helpers too; its cases are its lines"
)]

#[path = "../runtime/archive.rs"]
#[expect(dead_code, reason = "the runtime's tests use all of it")]
mod archive;
mod support;

mod access;
mod admin;
mod backup;
mod bad_input;
mod bad_machine;
mod code_interpreter;
mod crash;
mod doctor;
mod e2b;
mod egress;
mod endpoints;
mod files;
mod http_door;
mod injection;
mod life;
mod limits;
mod notebook;
mod openid;
mod operator;
mod other_runtimes;
mod packages;
mod pause;
mod peers;
mod podman_trouble;
mod pool;
mod processes;
mod programs;
mod record;
mod rogue;
mod root;
mod sandbox;
mod secrets;
mod signals;
mod snapshot;
mod storm;
mod templates;
mod tls;
mod volumes;
mod warm_up;
