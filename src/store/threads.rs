//! The threads that own the connections.
//!
//! The writer takes what waits (at most [`BATCH`] jobs), runs each in a savepoint of its own inside
//! one transaction, commits once, and only then answers. A job that fails undoes its own savepoint
//! and nobody else's; a commit that fails fails every job of its batch.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::{CALL_DEADLINE, Durability, StoreError};

/// Most jobs in one transaction: bounds the time to an answer when many wait.
const BATCH: usize = 256;

/// Most callers that wait. Past it the store is overloaded and says so at once.
const QUEUE: usize = 1024;

/// Runs inside the transaction, or not at all when there is none; gives back what answers the caller
/// once the commit is known.
type WriteJob = Box<dyn FnOnce(Option<&Connection>) -> Answer + Send>;
/// Told whether the commit went through.
type Answer = Box<dyn FnOnce(Result<(), Arc<rusqlite::Error>>) + Send>;
type ReadJob = Box<dyn FnOnce(&Connection) + Send>;

struct Write {
    durability: Durability,
    job: WriteJob,
}

/// A handle on the writing thread. Cheap to clone; the thread ends with the last one.
#[derive(Clone)]
pub(super) struct Writer {
    queue: mpsc::Sender<Write>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Writer {
    pub(super) fn start(connection: Connection) -> Result<Self, StoreError> {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let thread = spawn("store-writer", move || write_loop(connection, jobs))?;
        Ok(Self {
            queue,
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    /// Runs `job` in the next transaction; answers after its commit.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        doing: &'static str,
        durability: Durability,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: WriteJob = Box::new(move |db| {
            let done = match db {
                Some(db) => in_savepoint(db, doing, job),
                None => Err(StoreError::Closed(doing)),
            };
            Box::new(move |commit| {
                let result = match commit {
                    Ok(()) => done,
                    Err(error) => Err(commit_failed(doing, &error)),
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

fn write_loop(mut connection: Connection, mut jobs: mpsc::Receiver<Write>) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(first) = jobs.blocking_recv() {
        batch.push(first);
        while batch.len() < BATCH {
            match jobs.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        write_batch(&mut connection, &mut batch);
    }
    // Folds the log into the file, so that a stopped installation is one file.
    let _ = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
}

fn write_batch(connection: &mut Connection, batch: &mut Vec<Write>) {
    let power = batch
        .iter()
        .any(|write| write.durability == Durability::Power);
    let mut answers = Vec::with_capacity(batch.len());
    let committed = commit(connection, power, batch, &mut answers).map_err(Arc::new);
    for answer in answers {
        answer(committed.clone());
    }
    // The transaction could not begin: outside of one nothing may run, or it would be done and
    // reported as failed.
    for write in batch.drain(..) {
        let answer = (write.job)(None);
        answer(committed.clone());
    }
}

fn commit(
    connection: &mut Connection,
    power: bool,
    batch: &mut Vec<Write>,
    answers: &mut Vec<Answer>,
) -> rusqlite::Result<()> {
    // In WAL mode FULL flushes the log at each commit, NORMAL only at checkpoints
    // (sqlite.org/pragma.html#pragma_synchronous).
    connection.pragma_update(None, "synchronous", if power { "FULL" } else { "NORMAL" })?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for write in batch.drain(..) {
        // A full or failing disk can undo the whole transaction: outside of one nothing may run.
        let is_open = !transaction.is_autocommit();
        answers.push((write.job)(is_open.then_some(&*transaction)));
    }
    transaction.commit()
}

fn in_savepoint<T>(
    db: &Connection,
    doing: &'static str,
    job: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let sql = StoreError::sql(doing);
    db.execute_batch("SAVEPOINT job").map_err(&sql)?;
    match job(db) {
        Ok(value) => db
            .execute_batch("RELEASE job")
            .map_err(&sql)
            .map(|()| value),
        Err(error) => {
            db.execute_batch("ROLLBACK TO job; RELEASE job")
                .map_err(&sql)?;
            Err(error)
        }
    }
}

fn commit_failed(doing: &'static str, error: &rusqlite::Error) -> StoreError {
    // The error is not Clone; its code and text are what each caller of the batch needs.
    let source = match error {
        rusqlite::Error::SqliteFailure(code, text) => {
            rusqlite::Error::SqliteFailure(*code, text.clone())
        }
        other => rusqlite::Error::ToSqlConversionFailure(other.to_string().into()),
    };
    StoreError::Sql { doing, source }
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
