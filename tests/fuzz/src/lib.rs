//! What no byte on the link or at the way out may bring about, as functions of bytes: a panic, an answer that depends on how the bytes were
//! cut, memory without a bound, a document past its checks. `scripts/fuzz` looks for such bytes with libFuzzer; what it
//! learnt lies in `corpus/` and is replayed by an ordinary test.
#![expect(
    clippy::panic,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a panic is how a target says what it found"
)]

pub mod daemon_decoder;
pub mod daemon_end;
pub mod egress;
pub mod guest_decoder;
mod input;

/// A target: its name, what it does with bytes, and bytes to begin with, each with a name.
pub struct Target {
    /// Its name, which is that of its folder below `corpus/` and of its program.
    pub name: &'static str,
    /// Takes bytes; panics when they bring about what they must not.
    pub run: fn(&[u8]),
    /// Real traffic.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
}

/// All targets.
pub const TARGETS: [Target; 4] = [
    Target {
        name: "daemon_decoder",
        run: daemon_decoder::run,
        seeds: daemon_decoder::seeds,
    },
    Target {
        name: "guest_decoder",
        run: guest_decoder::run,
        seeds: guest_decoder::seeds,
    },
    Target {
        name: "daemon_end",
        run: daemon_end::run,
        seeds: daemon_end::seeds,
    },
    Target {
        name: "egress",
        run: egress::run,
        seeds: egress::seeds,
    },
];
