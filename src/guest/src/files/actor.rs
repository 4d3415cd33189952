//! Who works on files, and on which thread.
//!
//! A job takes the user's identity on its thread, and the thread is the guest's again before it takes another job. The
//! guest has no right to change owners or to pass by permissions in an ordinary sandbox; that the work is done as the user
//! is what makes its results right, too.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use casemate_link::file::Place;
use casemate_link::refusal::{Refusal, code};
use tokio::task::JoinHandle;

use super::error::bad;
use crate::child::refusal;
use crate::processes::Processes;
use crate::sys::ThreadIds;
use crate::transfer::Output;
use crate::users::Names;

/// Threads that work on files, beside those of channels: enough that a few slow directories do not hold up a quick look at
/// another.
pub(crate) const THREADS: usize = 4;

/// How long such a thread waits for more: less than it takes to notice its memory.
pub(crate) const THREAD_KEEP_ALIVE: Duration = Duration::from_millis(500);

/// Stack of such a thread. Nothing on it recurses, and large buffers are elsewhere.
pub(crate) const THREAD_STACK_BYTES: usize = 256 * 1024;

/// A user who works on files, and how the paths that this user gives are meant.
#[derive(Debug, Clone)]
pub(crate) struct Actor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Absent: as the guest itself, which is that user.
    ids: Option<ThreadIds>,
    home: PathBuf,
    names: Arc<Names>,
}

/// Tells a long job that nobody waits for it any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Abandoned(Arc<AtomicBool>);

impl Abandoned {
    /// Ends a job that nobody waits for.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        if self.0.load(Ordering::Relaxed) {
            return Err(refusal(code::FILE_FAILED, "nobody waits for it any more"));
        }
        Ok(())
    }
}

impl Actor {
    /// Finds the user, under the same conditions as for a process.
    pub(crate) fn admit(processes: &Processes, place: &Place) -> Result<Self, Refusal> {
        place.validate().map_err(bad)?;
        let (identity, switch) = processes.admit(place.user.as_deref())?;
        let ids = ThreadIds {
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups,
        };
        Ok(Self(Arc::new(Inner {
            ids: switch.then_some(ids),
            home: identity.home.into(),
            names: processes.names(),
        })))
    }

    /// A path as the kernel takes it: absolute, or below the user's home.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        Path::new("/").join(&self.0.home).join(path)
    }

    pub(crate) fn names(&self) -> &Names {
        &self.0.names
    }

    /// Does a job as the user.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        finished(self.begin(work)).await
    }

    /// Does a job that may take long, and tells it when nobody listens any more.
    pub(crate) async fn run_for<T: Send + 'static>(
        &self,
        output: &Output,
        work: impl FnOnce(&Abandoned) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let abandoned = Abandoned::default();
        let seen = abandoned.clone();
        let mut job = self.begin(move || work(&seen));
        tokio::select! {
            biased;
            result = &mut job => return joined(result),
            () = output.closed() => abandoned.0.store(true, Ordering::Relaxed),
        }
        finished(job).await
    }

    /// Starts a job as the user.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> JoinHandle<Result<T, Refusal>> {
        let inner = Arc::clone(&self.0);
        begin_open(move || {
            let _as_the_user = inner.ids.as_ref().map(Disguise::put_on).transpose()?;
            work()
        })
    }
}

/// Starts a job on files that are open already, for which nobody's rights are asked any more.
#[expect(
    clippy::disallowed_methods,
    reason = "the runtime's threads for this are ours alone: bounded, short-lived, and nothing else runs on them"
)]
pub(crate) fn begin_open<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> JoinHandle<Result<T, Refusal>> {
    tokio::task::spawn_blocking(work)
}

/// The result of a job that was begun.
pub(crate) async fn finished<T>(job: JoinHandle<Result<T, Refusal>>) -> Result<T, Refusal> {
    joined(job.await)
}

pub(crate) fn joined<T>(
    result: Result<Result<T, Refusal>, tokio::task::JoinError>,
) -> Result<T, Refusal> {
    result.unwrap_or_else(|_| Err(refusal(code::FILE_FAILED, "the guest broke off")))
}

/// Who the guest is, on every thread that is nobody else; asked for once, because it never changes.
static GUEST: OnceLock<ThreadIds> = OnceLock::new();

/// The user's identity on this thread, for as long as this lives.
struct Disguise {
    own: &'static ThreadIds,
}

impl Disguise {
    fn put_on(ids: &ThreadIds) -> Result<Self, Refusal> {
        let failed = |_| refusal(code::USER_NOT_ALLOWED, "becoming the user");
        let own = if let Some(own) = GUEST.get() {
            own
        } else {
            let own = ThreadIds::current().map_err(failed)?;
            GUEST.get_or_init(|| own)
        };
        let disguise = Self { own };
        // Dropped, and so undone, when only half of it could be taken.
        ids.assume().map_err(failed)?;
        Ok(disguise)
    }
}

impl Drop for Disguise {
    fn drop(&mut self) {
        if self.own.resume().is_err() {
            // The saved user allows it, so this cannot be; a thread that is stuck as a user must not go on.
            std::process::abort();
        }
    }
}
