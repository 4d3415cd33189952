//! The threads that own the connections.
//!
//! The writer takes what waits (at most [`BATCH`] jobs), runs each in a savepoint of its own (unless it is a single
//! statement) inside one transaction, commits once, and only then answers: at once where the end of this process is to
//! be survived, after a flush ([`super::flush`]) where a loss of power is. A job that fails undoes its own
//! savepoint and nobody else's; a commit that fails fails every job of its batch.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot, watch};

use super::flush::{self, Answer, Failure, Flusher, Flushing};
use super::{CALL_DEADLINE, Durability, StoreError, audit};

/// Most jobs in one transaction: bounds the time to an answer when many wait.
const BATCH: usize = 256;

/// Most callers that wait. Past it the store is overloaded and says so at once.
const QUEUE: usize = 1024;

/// Pages in the log from which on the writer brings them into the database itself: 64 MiB. While it writes without
/// a pause the flushing thread cannot come to the log's end, and the log would never begin again.
const FULL_LOG_PAGES: u32 = 16 * 1024;

/// Runs inside the transaction, or not at all when there is none; gives back what answers the caller
/// once the commit is known.
type WriteJob = Box<dyn FnOnce(Option<&Connection>) -> Answer + Send>;
type ReadJob = Box<dyn FnOnce(&Connection) + Send>;

/// How much a job changes.
#[derive(Clone, Copy)]
pub(super) enum Extent {
    /// One row by one statement, which SQLite undoes by itself when it fails. A savepoint would copy each page that it
    /// touches.
    One,
    /// More than that: a savepoint of its own undoes it.
    Several,
}

struct Write {
    durability: Durability,
    job: WriteJob,
}

/// A handle on the writing thread. Cheap to clone; the thread ends with the last one.
#[derive(Clone)]
pub(super) struct Writer {
    queue: mpsc::Sender<Write>,
    appended: watch::Receiver<i64>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Writer {
    pub(super) fn start(connection: Connection, flusher: Flusher) -> Result<Self, StoreError> {
        let doing = "start what writes the database";
        let (queue, jobs) = mpsc::channel(QUEUE);
        let last = audit::last_position(&connection).map_err(StoreError::sql(doing))?;
        let (tell, appended) = watch::channel(last);
        let mut writing =
            Writing::new(connection, flusher, tell).map_err(StoreError::sql(doing))?;
        let thread = spawn("store-writer", move || writing.run(jobs))?;
        Ok(Self {
            queue,
            appended,
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    /// The position of the last record of the audit log, whenever it changes.
    pub(super) fn appended(&self) -> watch::Receiver<i64> {
        self.appended.clone()
    }

    /// Runs `job` in the next transaction; answers after its commit, and its flush if that is wanted.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        doing: &'static str,
        durability: Durability,
        extent: Extent,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: WriteJob = Box::new(move |db| {
            let done = match (db, extent) {
                (Some(db), Extent::Several) => in_savepoint(db, doing, job),
                (Some(db), Extent::One) => job(db),
                (None, _) => Err(StoreError::Closed(doing)),
            };
            Box::new(move |committed| {
                let result = match committed {
                    Ok(()) => done,
                    Err(failure) => Err(failed(doing, &failure)),
                };
                // A caller that went away does not undo what is written.
                let _ = answer.send(result);
            })
        });
        self.queue
            .try_send(Write { durability, job })
            .map_err(|error| refused(doing, &error))?;
        wait(doing, answered).await
    }

    /// Ends the thread after what waits is written.
    pub(super) async fn close(self) {
        let thread = take(&self.thread);
        drop(self.queue);
        join(thread).await;
    }
}

/// A handle on the reading threads.
#[derive(Clone)]
pub(super) struct Readers {
    queue: mpsc::Sender<ReadJob>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Readers {
    pub(super) fn start(connections: Vec<Connection>) -> Result<Self, StoreError> {
        let (queue, jobs) = mpsc::channel::<ReadJob>(QUEUE);
        let jobs = Arc::new(Mutex::new(jobs));
        let mut threads = Vec::with_capacity(connections.len());
        for connection in connections {
            let jobs = Arc::clone(&jobs);
            threads.push(spawn("store-reader", move || {
                loop {
                    // The lock is held while waiting: one reader waits for work, the others for it.
                    let job = jobs
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .blocking_recv();
                    match job {
                        Some(job) => job(&connection),
                        None => return,
                    }
                }
            })?);
        }
        Ok(Self {
            queue,
            threads: Arc::new(Mutex::new(threads)),
        })
    }

    /// Runs `job` on a read-only connection.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        doing: &'static str,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: ReadJob = Box::new(move |db| {
            let _ = answer.send(job(db));
        });
        self.queue
            .try_send(job)
            .map_err(|error| refused(doing, &error))?;
        wait(doing, answered).await
    }

    pub(super) async fn close(self) {
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        drop(self.queue);
        for thread in threads {
            join(Some(thread)).await;
        }
    }
}

/// What the writing thread has.
struct Writing {
    connection: Connection,
    flushing: Arc<Flushing>,
    /// `None` once it was ended.
    flusher: Option<Flusher>,
    appended: watch::Sender<i64>,
    /// Pages in the log when it was last found too long.
    tried_at_pages: u32,
}

impl Writing {
    fn new(
        mut connection: Connection,
        flusher: Flusher,
        appended: watch::Sender<i64>,
    ) -> rusqlite::Result<Self> {
        let flushing = flusher.shared();
        let told = Arc::clone(&flushing);
        // In place of SQLite's own checkpoints, which would hold up the commit that they follow and
        // hide that they failed.
        connection.wal_hook(Some(move |_: &mut Wal, pages| {
            told.log_pages
                .store(u32::try_from(pages).unwrap_or(u32::MAX), Ordering::Relaxed);
            Ok(())
        }))?;
        Ok(Self {
            connection,
            flushing,
            flusher: Some(flusher),
            appended,
            tried_at_pages: 0,
        })
    }

    fn run(&mut self, mut jobs: mpsc::Receiver<Write>) {
        let mut batch = Vec::with_capacity(BATCH);
        while let Some(first) = jobs.blocking_recv() {
            batch.push(first);
            while batch.len() < BATCH {
                match jobs.try_recv() {
                    Ok(job) => batch.push(job),
                    Err(_) => break,
                }
            }
            self.write(&mut batch);
            self.shorten_log();
        }
        // Everybody who waits for a flush is answered first.
        drop(self.flusher.take());
        // Folds the log into the file, so that a stopped installation is one file. Not when a flush has
        // failed: a checkpoint copies pages without looking at their sums, and what the kernel now
        // has of the log may not be what was written. The next start reads the log with its sums.
        let is_sound = self.flushing.broken().is_none();
        let _ = if is_sound {
            self.connection
                .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        } else {
            let never = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
            self.connection.set_db_config(never, true).map(drop)
        };
    }

    fn write(&mut self, batch: &mut Vec<Write>) {
        let mut at_once = Vec::with_capacity(batch.len());
        let mut after_flush = Vec::new();
        let committed = match self.flushing.broken() {
            Some(broken) => Err(Failure::Flush(broken)),
            None => commit(
                &mut self.connection,
                batch,
                |durability, answer| match durability {
                    Durability::Process => at_once.push(answer),
                    Durability::Power => after_flush.push(answer),
                },
            )
            .map_err(|error| Failure::Commit(Arc::new(error))),
        };
        match &committed {
            // The flush first: it takes longest.
            Ok(()) => self.flushing.committed(after_flush),
            Err(_) => at_once.append(&mut after_flush),
        }
        for answer in at_once {
            answer(committed.clone());
        }
        // The transaction could not begin: outside of one nothing may run, or it would be done and
        // reported as failed.
        for write in batch.drain(..) {
            let answer = (write.job)(None);
            answer(committed.clone());
        }
        if let Ok(last) = audit::last_position(&self.connection) {
            self.appended
                .send_if_modified(|known| std::mem::replace(known, last) != last);
        }
    }

    /// Brings a log that has become too long into the database. What readers still look at stays, and
    /// is tried again when the log has grown noticeably.
    fn shorten_log(&mut self) {
        let pages = self.flushing.log_pages.load(Ordering::Relaxed);
        if pages < FULL_LOG_PAGES {
            self.tried_at_pages = 0;
        } else if pages.saturating_sub(self.tried_at_pages) >= FULL_LOG_PAGES / 16 {
            self.tried_at_pages = pages;
            if let Err(error) = flush::checkpoint(&self.connection) {
                self.flushing.checkpoint_failed(&error);
            }
        }
    }
}

fn commit(
    connection: &mut Connection,
    batch: &mut Vec<Write>,
    mut keep: impl FnMut(Durability, Answer),
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for write in batch.drain(..) {
        // A full or failing disk can undo the whole transaction: outside of one nothing may run.
        let is_open = !transaction.is_autocommit();
        keep(
            write.durability,
            (write.job)(is_open.then_some(&*transaction)),
        );
    }
    transaction.commit()
}

fn in_savepoint<T>(
    db: &Connection,
    doing: &'static str,
    job: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let sql = StoreError::sql(doing);
    // Kept ready: reading the two words anew takes as long as a small insert.
    let run = |text: &str| {
        db.prepare_cached(text)
            .and_then(|mut statement| statement.execute([]))
            .map_err(&sql)
    };
    run("SAVEPOINT job")?;
    match job(db) {
        Ok(value) => run("RELEASE job").map(|_| value),
        Err(error) => {
            db.execute_batch("ROLLBACK TO job; RELEASE job")
                .map_err(&sql)?;
            Err(error)
        }
    }
}

fn failed(doing: &'static str, failure: &Failure) -> StoreError {
    match failure {
        Failure::Commit(error) => {
            // The error is not Clone; its code and text are what each caller of the batch needs.
            let source = match error.as_ref() {
                rusqlite::Error::SqliteFailure(code, text) => {
                    rusqlite::Error::SqliteFailure(*code, text.clone())
                }
                other => rusqlite::Error::ToSqlConversionFailure(other.to_string().into()),
            };
            StoreError::Sql { doing, source }
        }
        Failure::Flush(error) => StoreError::Unflushed {
            doing,
            source: Arc::clone(error),
        },
    }
}

fn refused<T>(doing: &'static str, error: &mpsc::error::TrySendError<T>) -> StoreError {
    match error {
        mpsc::error::TrySendError::Full(_) => StoreError::Busy(doing),
        mpsc::error::TrySendError::Closed(_) => StoreError::Closed(doing),
    }
}

async fn wait<T>(
    doing: &'static str,
    answered: oneshot::Receiver<Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(CALL_DEADLINE, answered).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(StoreError::Closed(doing)),
        Err(_) => Err(StoreError::Deadline(doing)),
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|source| StoreError::System {
            doing: "start a thread of the database",
            source,
        })
}

fn take(thread: &Mutex<Option<JoinHandle<()>>>) -> Option<JoinHandle<()>> {
    thread.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Waits for a thread without blocking the async runtime. The thread ends once every handle on its
/// queue is gone; a handle that is still held elsewhere only delays that, so the wait has an end.
async fn join(thread: Option<JoinHandle<()>>) {
    let Some(thread) = thread else { return };
    let (done, ended) = oneshot::channel::<()>();
    let waiter = std::thread::Builder::new()
        .name("store-join".to_owned())
        .spawn(move || {
            let _ = thread.join();
            drop(done);
        });
    if waiter.is_ok() {
        let _ = tokio::time::timeout(CALL_DEADLINE, ended).await;
    }
}
