//! The daemon's tasks: each has a name, an owner, and an end that somebody waits for.
//!
//! A **core** task is one without which the daemon is none (a door, the audit, the reconciler): when
//! it ends or panics without having been asked to stop, the daemon stops. Any other task fails
//! alone.
//!
//! Nothing else in the daemon calls `tokio::spawn` for work that outlives a request.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::base::chain::Chain;

/// Why the daemon cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The core task.
    pub task: String,
    /// What it did.
    pub how: How,
}

/// What a core task did that it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// It came to its end unasked.
    Ended,
    /// It failed; the error with all its causes.
    Failed(String),
    /// It panicked; what it said.
    Panicked(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            How::Ended => write!(f, "task {} ended unasked", self.task),
            How::Failed(error) => write!(f, "task {} failed: {error}", self.task),
            How::Panicked(said) => write!(f, "task {} panicked: {said}", self.task),
        }
    }
}

/// All tasks of the daemon. Cheap to clone; the tasks do not end with it.
#[derive(Clone, Debug)]
pub struct Tasks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stop: CancellationToken,
    running: Mutex<Running>,
    /// How many run; watched by those who wait for the end.
    count: watch::Sender<usize>,
    failure: watch::Sender<Option<Failure>>,
}

#[derive(Debug, Default)]
struct Running {
    next: u64,
    tasks: BTreeMap<u64, (Cow<'static, str>, AbortHandle)>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// Without tasks.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                stop: CancellationToken::new(),
                running: Mutex::default(),
                count: watch::Sender::new(0),
                failure: watch::Sender::new(None),
            }),
        }
    }

    /// Cancelled when the daemon stops. Every task watches it and then ends by itself.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.shared.stop.clone()
    }

    /// Asks every task to end.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// Starts a task without which the daemon is none.
    pub fn spawn_core<F>(&self, name: impl Into<Cow<'static, str>>, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.start(name.into(), true, future);
    }

    /// Starts a task that may fail alone.
    pub fn spawn<F>(&self, name: impl Into<Cow<'static, str>>, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.start(name.into(), false, future);
    }

    fn start<F>(&self, name: Cow<'static, str>, is_core: bool, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let span = tracing::info_span!("task", name = %name);
        // Held until the task is in the table, as it takes itself out when it ends.
        let mut running = self.shared.running();
        let number = running.next;
        running.next += 1;
        // The first thing that the task owns, so the last thing it drops, also when it is aborted.
        let entry = Entry {
            shared: Arc::clone(&self.shared),
            number,
        };
        let shared = Arc::clone(&self.shared);
        let task_name = name.clone();
        let task = async move {
            let _entry = entry;
            let outcome = AssertUnwindSafe(future).catch_unwind().await;
            shared.ended(&task_name, is_core, outcome);
        };
        let handle = tokio::spawn(task.instrument(span));
        running.tasks.insert(number, (name, handle.abort_handle()));
        self.shared.count.send_replace(running.tasks.len());
    }

    /// The names of the tasks that run, in the order of their start.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let running = self.shared.running();
        running
            .tasks
            .values()
            .map(|(name, _)| name.to_string())
            .collect()
    }

    /// Waits until a core task has failed; the first one, also when it was before the call.
    pub async fn failed(&self) -> Failure {
        let mut failure = self.shared.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await;
        // The sender is ours, so it cannot have gone.
        match failed.ok().and_then(|failure| failure.clone()) {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }

    /// The failure of a core task so far.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.shared.failure.borrow().clone()
    }

    /// Asks every task to end and waits, at most until the deadline; then aborts the rest. The
    /// names of those that did not end in time.
    pub async fn join(&self, deadline: Duration) -> Vec<String> {
        self.stop();
        let mut count = self.shared.count.subscribe();
        let ended = tokio::time::timeout(deadline, count.wait_for(|count| *count == 0));
        if ended.await.is_ok() {
            return Vec::new();
        }
        let running = self.shared.running();
        running
            .tasks
            .values()
            .map(|(name, handle)| {
                handle.abort();
                name.to_string()
            })
            .collect()
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(
        &self,
        name: &str,
        is_core: bool,
        outcome: Result<anyhow::Result<()>, Box<dyn Any + Send>>,
    ) {
        let is_asked = self.stop.is_cancelled();
        let how = match outcome {
            Ok(Ok(())) if is_asked || !is_core => return,
            Ok(Ok(())) => How::Ended,
            Ok(Err(error)) => How::Failed(Chain(error.as_ref()).to_string()),
            Err(panic) => How::Panicked(panic_text(panic.as_ref()).to_owned()),
        };
        // A core task that fails while it ends spoils nothing any more, but a panic is a defect
        // whenever it happens.
        let is_fatal = is_core && (!is_asked || matches!(how, How::Panicked(_)));
        let failure = Failure {
            task: name.to_owned(),
            how,
        };
        if !is_fatal {
            tracing::warn!("{failure}");
            return;
        }
        tracing::error!("{failure}; the daemon stops");
        self.failure.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(failure);
            is_first
        });
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("nothing that can be read")
}

/// Takes its task out of the table when it is dropped.
struct Entry {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut running = self.shared.running();
        running.tasks.remove(&self.number);
        self.shared.count.send_replace(running.tasks.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_core_task_that_ends_unasked_is_named() {
        let tasks = Tasks::new();
        tasks.spawn("guest", async { Ok(()) });
        tasks.spawn_core("http", async { Ok(()) });
        let failure = tasks.failed().await;
        assert_eq!((failure.task.as_str(), &failure.how), ("http", &How::Ended));
        assert_eq!(tasks.failure(), Some(failure));
    }

    #[tokio::test]
    async fn a_failure_says_all_its_causes() {
        let tasks = Tasks::new();
        tasks.spawn_core("http", async {
            let error = anyhow::Error::from(std::io::Error::other("too many open files"));
            Err(error.context("accept a connection"))
        });
        assert_eq!(
            tasks.failed().await.to_string(),
            "task http failed: accept a connection: too many open files"
        );
    }

    #[tokio::test]
    async fn a_panic_of_a_core_task_stops_the_daemon_and_that_of_another_does_not() {
        let tasks = Tasks::new();
        tasks.spawn("session", async { panic!("alone") });
        assert_eq!(tasks.join(LONG).await, [""; 0]);
        assert_eq!(tasks.failure(), None);

        let tasks = Tasks::new();
        tasks.spawn_core("audit", async { panic!("no {}", "disk") });
        let how = tasks.failed().await.how;
        assert_eq!(how, How::Panicked("no disk".to_owned()));
    }

    #[tokio::test]
    async fn the_first_failure_is_kept() {
        let tasks = Tasks::new();
        tasks.spawn_core("first", async { Ok(()) });
        assert_eq!(tasks.failed().await.task, "first");
        tasks.spawn_core("second", async { panic!("later") });
        assert_eq!(tasks.join(LONG).await, [""; 0]);
        assert_eq!(tasks.failed().await.task, "first");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_are_asked_end_and_those_that_hang_are_named() {
        let tasks = Tasks::new();
        let stopping = tasks.stopping();
        tasks.spawn_core("http", async move {
            stopping.cancelled().await;
            Ok(())
        });
        tasks.spawn_core("stuck", std::future::pending());
        tasks.spawn("session ses_1", std::future::pending());
        assert_eq!(tasks.names(), ["http", "stuck", "session ses_1"]);
        assert_eq!(
            tasks.join(Duration::from_secs(5)).await,
            ["stuck", "session ses_1"]
        );
        // Aborted, so nothing is left, and an end that was asked for is no failure.
        assert_eq!(tasks.join(LONG).await, [""; 0]);
        assert_eq!(tasks.failure(), None);
    }

    #[tokio::test]
    async fn an_error_while_stopping_is_no_failure() {
        let tasks = Tasks::new();
        let stopping = tasks.stopping();
        tasks.spawn_core("http", async move {
            stopping.cancelled().await;
            anyhow::bail!("connection reset")
        });
        assert_eq!(tasks.join(LONG).await, [""; 0]);
        assert_eq!(tasks.failure(), None);
    }
}
