//! What the guest promises, kept by the real program over a real link. Nothing here needs a sandbox.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod support;

mod archive;
mod background;
mod channels;
mod egress;
mod files;
mod link;
mod programs;
mod pty;
mod watch;
