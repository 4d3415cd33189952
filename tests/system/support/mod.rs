//! What the tests stand on: a daemon of their own, its two doors, and podman beside it.

pub mod admin;
pub mod bench;
pub mod client;
pub mod daemon;
pub mod hunt;
pub mod journal;
pub mod papers;
pub mod peer;
pub mod podman;
pub mod schema;
pub mod stream;
pub mod wait;

pub use self::bench::bench;
pub use self::client::{Answer, Client};
pub use self::daemon::Daemon;
pub use self::wait::{PATIENCE, wait_for, wait_until};

/// A Python program that forks until it is not let; it writes what it was told, and how many children it had by then.
pub const FORKS: &str = r#"
import os, signal, time
children = []
try:
    while len(children) < 500:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        children.append(pid)
    print("no limit")
except OSError as e:
    print(e.strerror)
print(len(children), flush=True)
for pid in children:
    os.kill(pid, signal.SIGKILL)
"#;
