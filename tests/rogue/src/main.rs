//! A guest that was taken over: PID 1 of a sandbox in tests, which knows the token and keeps to nothing else.
//!
//! It dials, shakes hands, and then speaks HTTP/2 by hand, so that it can say what no library would. What it says is a
//! script ([`script`]), which a test gives it as the words of a program to run: `rogue`, then a line each. The script is
//! its answer to every request from then on; a program of any other name is such a request. A lost link is dialled again.
#![expect(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "its log is the container's, and its pauses are part of what it is told to do"
)]

mod connection;
mod dial;
mod script;

use std::time::Duration;

/// Between two dials: a test waits for the next link.
const PAUSE: Duration = Duration::from_millis(30);

fn main() {
    loop {
        match dial::dial() {
            Ok(stream) => {
                if let Err(error) = connection::serve(stream) {
                    eprintln!("rogue: {error}");
                }
            }
            Err(error) => eprintln!("rogue: {error}"),
        }
        std::thread::sleep(PAUSE);
    }
}
