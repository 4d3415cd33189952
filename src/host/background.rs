//! Threads for long work that nobody waits for at this moment: backups, archives, checks of the whole database.

use std::io;
use std::thread::{Builder, JoinHandle};

/// How far such a thread steps back for the others (nice(2), which Linux keeps for each thread): where all of them
/// want the processor, it gets a tenth of what one of those gets, and is still done in the end.
const NICE: i32 = 10;

/// Starts `work` on a thread of this name, behind all others.
///
/// # Errors
/// The system gives no thread.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        // To step back is always allowed; whoever may not for whatever reason works at the pace of all.
        let _ = rustix::process::nice(NICE);
        work()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_steps_back_and_nobody_else_does() {
        let of_this = || rustix::process::getpriority_process(None).unwrap();
        let before = of_this();
        let there = spawn("test", of_this).unwrap().join().unwrap();
        assert_eq!(there, (before + NICE).min(19));
        assert_eq!(of_this(), before);
    }
}
