//! What stands before the threads: a database that is damaged is not written to any more, and one whose disk is full makes
//! room for what must still be written.
//!
//! Invariant: after the first sign of damage no job of ours runs in a transaction again; reads go on, as far as they can.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::watch;

use super::flush::Flusher;
use super::reserve::Reserve;
use super::threads::{self, Extent};
use super::{Durability, StoreError};

/// What is known of the database's health. Cheap to clone.
#[derive(Clone)]
pub(super) struct Health(Arc<State>);

struct State {
    damage: OnceLock<String>,
    is_full: AtomicBool,
    reserve: Reserve,
}

impl Health {
    pub(super) fn new(directory: &Path) -> Self {
        Self(Arc::new(State {
            damage: OnceLock::new(),
            is_full: AtomicBool::new(false),
            reserve: Reserve::new(directory),
        }))
    }

    /// Refuses when the database is damaged.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match self.0.damage.get() {
            Some(what) => Err(StoreError::Damaged { what: what.clone() }),
            None => Ok(()),
        }
    }

    /// Notes damage; the first that was found is the one that is told.
    pub(super) fn damaged(&self, what: String) -> StoreError {
        if self.0.damage.set(what.clone()).is_ok() {
            tracing::error!(
                what,
                "the database is damaged: nothing is written to it any more; restore a backup"
            );
        }
        StoreError::Damaged { what }
    }

    /// Looks at how a job went.
    fn judge<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.map_err(|error| match told(&error) {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                self.damaged(error.what_it_says())
            }
            Some(ErrorCode::DiskFull) => {
                if !self.0.is_full.swap(true, Ordering::SeqCst) {
                    tracing::error!(
                        "the disk of the state is full: new work is refused, and the room that was held is given to ends and records"
                    );
                }
                // What comes next may be what makes room: an end, and its record.
                self.0.reserve.release();
                error.as_full()
            }
            _ => error,
        })
    }

    /// Refuses new work while the disk is full. What reads and what ends something does not ask.
    pub(super) fn check_room(&self) -> Result<(), StoreError> {
        if self.0.is_full.load(Ordering::SeqCst) {
            return Err(StoreError::Full("take new work in"));
        }
        Ok(())
    }

    /// Holds room again once there is enough. Blocks on the disk, for a moment.
    pub(super) fn keep_reserve(&self) {
        let is_full = self.0.is_full.load(Ordering::SeqCst);
        let is_held = self.0.reserve.hold(is_full);
        if is_held && self.0.is_full.swap(false, Ordering::SeqCst) {
            tracing::info!("the disk of the state has room again; new work is taken in");
        } else if !is_held && !is_full {
            // Better to refuse now than in the middle of something.
            self.0.is_full.store(true, Ordering::SeqCst);
            tracing::error!("the disk of the state is full: new work is refused");
        }
    }
}

/// What SQLite said.
fn told(error: &StoreError) -> Option<ErrorCode> {
    match error {
        StoreError::Sql { source, .. } | StoreError::Open { source, .. } => {
            source.sqlite_error_code()
        }
        _ => None,
    }
}

/// Whether SQLite says that the file is no whole database.
pub(super) fn is_damage(error: &StoreError) -> bool {
    matches!(
        told(error),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// The writing thread behind its guard.
#[derive(Clone)]
pub(super) struct Writer {
    inner: threads::Writer,
    health: Health,
}

impl Writer {
    pub(super) fn start(
        connection: Connection,
        flusher: Flusher,
        health: Health,
    ) -> Result<Self, StoreError> {
        let inner = threads::Writer::start(connection, flusher)?;
        Ok(Self { inner, health })
    }

    /// As [`threads::Writer::appended`].
    pub(super) fn appended(&self) -> watch::Receiver<i64> {
        self.inner.appended()
    }

    /// As [`threads::Writer::call`], for a job of any extent.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        doing: &'static str,
        durability: Durability,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.guarded(doing, durability, Extent::Several, job).await
    }

    /// The same for a job that changes one row by one statement.
    pub(super) async fn call_one<T: Send + 'static>(
        &self,
        doing: &'static str,
        durability: Durability,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.guarded(doing, durability, Extent::One, job).await
    }

    async fn guarded<T: Send + 'static>(
        &self,
        doing: &'static str,
        durability: Durability,
        extent: Extent,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.health.check()?;
        let health = self.health.clone();
        // Asked again in its turn: the one before may have found the damage.
        let guarded = move |db: &Connection| {
            health.check()?;
            health.judge(job(db))
        };
        let result = self.inner.call(doing, durability, extent, guarded).await;
        // A commit fails outside of the job.
        self.health.judge(result)
    }

    pub(super) async fn close(self) {
        self.inner.close().await;
    }
}

/// The reading threads behind their guard.
#[derive(Clone)]
pub(super) struct Readers {
    inner: threads::Readers,
    health: Health,
}

impl Readers {
    pub(super) fn start(connections: Vec<Connection>, health: Health) -> Result<Self, StoreError> {
        let inner = threads::Readers::start(connections)?;
        Ok(Self { inner, health })
    }

    /// As [`threads::Readers::call`].
    pub(super) async fn call<T: Send + 'static>(
        &self,
        doing: &'static str,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let result = self.inner.call(doing, job).await;
        self.health.judge(result)
    }

    pub(super) async fn close(self) {
        self.inner.close().await;
    }
}
