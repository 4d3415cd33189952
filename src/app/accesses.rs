//! The record of who reaches ports in sessions: one access for all requests of one principal to one port by one way.
//!
//! The intent of an access is written before its first request goes anywhere; requests that come while it is open belong to it and are
//! counted. It is closed, and its outcome written, when [`QUIET`] has passed without a request; no request joins one that is older than
//! [`LONGEST`]. A record for each request would be a flood that hides what matters, and slow down what a page needs by the dozen.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{App, AppError, finish};
use crate::audit::Intent;
use crate::endpoint::Ticket;
use crate::model::endpoint::{Target, Via};
use crate::model::event::AuditEvent;
use crate::model::principal::Principal;

/// How long an access stays open after its last request.
const QUIET: Duration = Duration::from_secs(10);

/// How old an access may be that a request still joins.
const LONGEST: Duration = Duration::from_secs(600);

/// How often it is looked for those that are over.
const LOOK: Duration = Duration::from_secs(1);

/// Most accesses that are open to be joined. Past that each request is one of its own.
const MAX_OPEN: usize = 4096;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    principal: String,
    target: Target,
    via: Via,
}

/// The accesses that are open.
#[derive(Default)]
pub struct Accesses(Mutex<HashMap<Key, Arc<Access>>>);

struct Access {
    begun: OnceCell<()>,
    intent: Mutex<Option<Intent>>,
    opened: Instant,
    use_of: Mutex<UseOf>,
    requests: AtomicU64,
    in_bytes: AtomicU64,
    out_bytes: AtomicU64,
}

struct UseOf {
    live: usize,
    last: Instant,
    /// Nobody joins it any more.
    is_closed: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Access {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            begun: OnceCell::new(),
            intent: Mutex::default(),
            opened: now,
            use_of: Mutex::new(UseOf {
                live: 0,
                last: now,
                is_closed: false,
            }),
            requests: AtomicU64::new(0),
            in_bytes: AtomicU64::new(0),
            out_bytes: AtomicU64::new(0),
        }
    }

    /// Whether a request may join it; it has then.
    fn join(&self) -> bool {
        let mut use_of = locked(&self.use_of);
        if use_of.is_closed || self.opened.elapsed() >= LONGEST {
            return false;
        }
        use_of.live += 1;
        true
    }

    fn leave(&self) -> Option<Intent> {
        let mut use_of = locked(&self.use_of);
        use_of.live = use_of.live.saturating_sub(1);
        use_of.last = Instant::now();
        let is_over = use_of.is_closed && use_of.live == 0;
        drop(use_of);
        is_over.then(|| locked(&self.intent).take()).flatten()
    }

    /// Closes it, if it is time; its intent, if it is over. `Err` says that it stays open.
    fn close(&self, is_end: bool) -> Result<Option<Intent>, ()> {
        let mut use_of = locked(&self.use_of);
        let is_quiet = use_of.live == 0 && use_of.last.elapsed() >= QUIET;
        if !is_end && !is_quiet && self.opened.elapsed() < LONGEST {
            return Err(());
        }
        use_of.is_closed = true;
        let is_over = use_of.live == 0;
        drop(use_of);
        Ok(is_over.then(|| locked(&self.intent).take()).flatten())
    }

    fn told(&self) -> String {
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        format!(
            "{} requests, {} bytes in, {} bytes out, {} s",
            count(&self.requests),
            count(&self.in_bytes),
            count(&self.out_bytes),
            self.opened.elapsed().as_secs()
        )
    }
}

/// One request of an access.
pub(super) struct Entry {
    app: App,
    access: Arc<Access>,
}

impl Ticket for Entry {
    fn went_in(&self, bytes: u64) {
        self.access.in_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn came_out(&self, bytes: u64) {
        self.access.out_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(intent) = self.access.leave() {
            let told = self.access.told();
            self.app.0.calls.spawn(finish(intent, Ok(Some(told))));
        }
    }
}

impl App {
    /// Writes down that somebody is about to reach a port, unless an access of theirs is open. Nothing may go there before this.
    pub(super) async fn enter(
        &self,
        principal: Option<&Principal>,
        target: Target,
        via: Via,
    ) -> Result<Arc<Entry>, AppError> {
        // What joins an access writes nothing: it must not go on when nothing can be written.
        self.0.store.check_room().map_err(AppError::Store)?;
        let key = Key {
            principal: principal.map_or_else(|| "nobody".to_owned(), ToString::to_string),
            target,
            via,
        };
        let (access, over) = self.0.accesses.open(&key);
        let entry = Arc::new(Entry {
            app: self.clone(),
            access,
        });
        if let Some((intent, told)) = over {
            self.0.calls.spawn(finish(intent, Ok(Some(told))));
        }
        let access = &entry.access;
        let event = AuditEvent::EndpointAccess {
            port: target.port,
            via,
        };
        let session = Some(target.session);
        let begin = async {
            let intent = match principal {
                Some(principal) => self.0.audit.begin(principal, session, event).await,
                None => self.0.audit.begin_for_nobody(session, event).await,
            };
            *locked(&access.intent) = Some(intent.map_err(AppError::Audit)?);
            Ok::<_, AppError>(())
        };
        access.begun.get_or_try_init(|| begin).await?;
        access.requests.fetch_add(1, Ordering::Relaxed);
        Ok(entry)
    }

    /// Closes accesses that are over, until `stop`, and all of them then.
    pub async fn keep_accesses(&self, stop: CancellationToken) {
        loop {
            let is_end = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            for (intent, told) in self.0.accesses.over(is_end) {
                finish(intent, Ok(Some(told))).await;
            }
            if is_end {
                return;
            }
        }
    }
}

impl Accesses {
    /// The access to join, and the one that it follows, where that is over.
    fn open(&self, key: &Key) -> (Arc<Access>, Option<(Intent, String)>) {
        let mut open = locked(&self.0);
        if let Some(access) = open.get(key)
            && access.join()
        {
            return (Arc::clone(access), None);
        }
        let access = Arc::new(Access::new());
        access.join();
        let closed = if open.len() < MAX_OPEN || open.contains_key(key) {
            open.insert(key.clone(), Arc::clone(&access))
        } else {
            Some(Arc::clone(&access))
        };
        // It is too old, or one of its own: whoever leaves it last ends it.
        let over = closed.and_then(|closed| {
            let intent = closed.close(true).ok().flatten();
            intent.map(|intent| (intent, closed.told()))
        });
        (access, over)
    }

    fn over(&self, is_end: bool) -> Vec<(Intent, String)> {
        let mut over = Vec::new();
        locked(&self.0).retain(|_, access| match access.close(is_end) {
            Ok(intent) => {
                over.extend(intent.map(|intent| (intent, access.told())));
                false
            }
            Err(()) => true,
        });
        over
    }
}
