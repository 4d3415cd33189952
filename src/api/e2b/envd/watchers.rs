//! Watchers: what happens to files, kept for a client that comes and asks from time to time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use casemate_link::daemon::Watch;
use casemate_link::file::FileEvent;
use futures_util::FutureExt;
use http::StatusCode;
use tokio::time::Instant;

use super::filesystem::Looking;
use crate::api::error::Problem;
use crate::base::id::SessionId;

/// Most watchers of one session.
const MAX_OF_SESSION: usize = 32;
/// Most watchers of all.
const MAX: usize = 1024;
/// Events that one look gives at most; the next has the rest.
const MAX_EVENTS: usize = 1000;
/// A watcher that nobody asked for so long goes when there is need of its place.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// The watchers of all sessions. What happens meanwhile waits in the sandbox, within its bounds.
#[derive(Default)]
pub(in crate::api) struct Watchers(Mutex<HashMap<String, Watcher>>);

struct Watcher {
    watch: Watch,
    looking: Looking,
    asked: Instant,
}

impl Watchers {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Watcher>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a watch; the watcher's name.
    pub(super) fn add(&self, watch: Watch, looking: Looking) -> Result<String, Problem> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| Problem::internal(error.to_string()))?;
        let name = format!("{:032x}", u128::from_be_bytes(bytes));
        let mut all = self.lock();
        let session = looking.session;
        let of_session = |all: &HashMap<String, Watcher>| {
            all.values()
                .filter(|one| one.looking.session == session)
                .count()
        };
        if all.len() >= MAX || of_session(&all) >= MAX_OF_SESSION {
            all.retain(|_, one| one.asked.elapsed() < FORGOTTEN && one.looking.is_live());
        }
        if all.len() >= MAX || of_session(&all) >= MAX_OF_SESSION {
            let detail = format!(
                "a session has at most {MAX_OF_SESSION} watchers; remove those that are not needed"
            );
            return Err(Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_watchers",
                detail,
            ));
        }
        let asked = Instant::now();
        all.insert(
            name.clone(),
            Watcher {
                watch,
                looking,
                asked,
            },
        );
        Ok(name)
    }

    /// What happened since the last look, and what looks at the files.
    pub(super) fn take(
        &self,
        session: SessionId,
        name: &str,
    ) -> Result<(Vec<FileEvent>, Looking), Problem> {
        let mut all = self.lock();
        let watcher = all
            .get_mut(name)
            .filter(|one| one.looking.session == session);
        let watcher = watcher.ok_or_else(no_such_watcher)?;
        watcher.asked = Instant::now();
        let mut events = Vec::new();
        while events.len() < MAX_EVENTS {
            match watcher.watch.next().now_or_never() {
                Some(Some(Ok(event))) => events.push(event),
                // Nothing more for now; or its end: that of its session is told by the next call.
                None | Some(None | Some(Err(_))) => break,
            }
        }
        Ok((events, watcher.looking.clone()))
    }

    /// Removes a watcher.
    pub(super) fn remove(&self, session: SessionId, name: &str) -> Result<(), Problem> {
        let mut all = self.lock();
        let is_there = all
            .get(name)
            .is_some_and(|one| one.looking.session == session);
        if !is_there {
            return Err(no_such_watcher());
        }
        all.remove(name);
        Ok(())
    }
}

fn no_such_watcher() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no_such_watcher",
        "there is no such watcher, or not any more",
    )
}
