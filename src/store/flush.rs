//! The threads that bring the write-ahead log to the disk.
//!
//! The writer commits without flushing (`synchronous = NORMAL`), so that a slow disk holds up nobody
//! who does not need it. What must survive a loss of power waits here: a flush takes everybody who
//! waits when it begins, while the writer goes on committing. What need not is flushed all the same,
//! at most [`Flushing::every`] after its commit.
//!
//! Why flushing the log's file from beside SQLite is right:
//! - The log is one file for as long as a connection is open: SQLite neither replaces nor removes
//!   it before the last one closes. SQLite's locks are on the database and on `-shm`, never on the
//!   log, so closing a handle of ours gives up no lock of SQLite's (fcntl(2) would otherwise).
//! - A commit is whole when its frames are in the file (sqlite.org/fileformat2.html, section 4).
//!   `fdatasync` of the file is all that `synchronous = FULL` adds to `NORMAL`.
//! - The log begins again at its front only after a checkpoint has brought all of it into the
//!   database. Before that, `NORMAL` flushes the log, then writes and flushes the database, and
//!   after it flushes the log's new header. Whoever waits for a commit of the former round is
//!   so durable by the checkpoint, and our flush only comes too late to be needed.
//!
//! A flush that fails is never tried again: the kernel may have dropped the pages and would report
//! success (Rebello and others, "Can Applications Recover from fsync Failures?", 2020). All who waited are told, and
//! the store takes no more writes until it is opened anew, from what the disk then has.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tracing::{error, warn};

use super::StoreError;

/// Flushes under way at one time. With one, whoever commits just after it began waits for two; the
/// disk takes the second one while it is busy with the first.
const FLUSHERS: usize = 2;

/// Most callers that wait for a flush. Past it the writer waits too, and then its queue fills.
const WAITING: usize = 16 * 1024;

/// Pages in the log from which on it is brought into the database: 4 MiB, SQLite's own measure.
const CHECKPOINT_PAGES: u32 = 1000;

/// What is told of a flush, or of the commit before it.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The transaction was not committed.
    Commit(Arc<rusqlite::Error>),
    /// It was committed and may not survive a loss of power.
    Flush(Arc<io::Error>),
}

/// Told how the commit, and the flush if one was wanted, went.
pub(super) type Answer = Box<dyn FnOnce(Result<(), Failure>) + Send>;

/// Brings what was written so far to the disk.
pub(super) type Flush = Box<dyn FnMut() -> io::Result<()> + Send>;

/// What flushes: for the daemon the log's file, for tests whatever fails when they want it to.
pub(super) type Flushes = Box<dyn Fn() -> io::Result<Flush> + Send>;

/// Shared by the writer and the flushing threads.
pub(super) struct Flushing {
    /// Longest time between a commit and its flush.
    every: Duration,
    queue: Mutex<Queue>,
    /// There is something to flush, or to stop for.
    work: Condvar,
    /// There is room again.
    room: Condvar,
    /// Why nothing is written any more.
    broken: OnceLock<Arc<io::Error>>,
    /// Pages in the log after the last commit.
    pub(super) log_pages: AtomicU32,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Answer>,
    /// When what nobody waits for is to be flushed; `None` when there is nothing.
    due: Option<Instant>,
    is_closed: bool,
}

/// The flushing threads. When it is dropped they end, after what was committed is flushed.
pub(super) struct Flusher {
    shared: Arc<Flushing>,
    threads: Vec<JoinHandle<()>>,
}

impl Flushing {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why nothing may be written any more.
    pub(super) fn broken(&self) -> Option<Arc<io::Error>> {
        self.broken.get().cloned()
    }

    /// Something was committed: these wait for its flush, the others do not.
    pub(super) fn committed(&self, waiting: Vec<Answer>) {
        let mut queue = self.queue();
        while queue.waiting.len() >= WAITING && !queue.is_closed {
            queue = self
                .room
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let is_urgent = !waiting.is_empty();
        let is_first = queue.due.is_none();
        queue.waiting.extend(waiting);
        queue.due.get_or_insert_with(|| Instant::now() + self.every);
        drop(queue);
        if is_urgent || is_first {
            self.work.notify_one();
        }
    }

    /// Waits for work, at most until it is due. `None` when all is done and the store closes.
    fn next(&self) -> Option<Vec<Answer>> {
        let mut queue = self.queue();
        loop {
            let is_due = queue.due.is_some_and(|due| due <= Instant::now());
            if !queue.waiting.is_empty() || is_due || (queue.is_closed && queue.due.is_some()) {
                // What is committed from here on is the next flush's.
                queue.due = None;
                let taken = std::mem::take(&mut queue.waiting);
                drop(queue);
                self.room.notify_all();
                return Some(taken);
            }
            if queue.is_closed {
                return None;
            }
            queue = match queue.due {
                None => self
                    .work
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let left = due.saturating_duration_since(Instant::now());
                    let waited = self.work.wait_timeout(queue, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Flushes, unless a flush has failed before.
    fn flush(&self, flush: &mut Flush) -> Result<(), Failure> {
        let flushed = match self.broken() {
            Some(broken) => Err(broken),
            None => flush().map_err(Arc::new),
        };
        flushed.map_err(|error| {
            self.fail(&error);
            Failure::Flush(error)
        })
    }

    fn fail(&self, error: &Arc<io::Error>) {
        if self.broken.set(Arc::clone(error)).is_ok() {
            error!(%error, "the database's log cannot be flushed to the disk: nothing is written any more until casemated is started anew");
        }
    }

    /// Brings the log into the database while the writer goes on.
    fn checkpoint(&self, connection: &Connection) {
        if self.log_pages.load(Ordering::Relaxed) < CHECKPOINT_PAGES || self.broken().is_some() {
            return;
        }
        if let Err(error) = checkpoint(connection) {
            self.checkpoint_failed(&error);
        }
    }

    /// A checkpoint that could not flush is a failed flush like any other.
    pub(super) fn checkpoint_failed(&self, error: &rusqlite::Error) {
        let is_flush = matches!(
            error.sqlite_error().map(|error| error.extended_code),
            Some(rusqlite::ffi::SQLITE_IOERR_FSYNC | rusqlite::ffi::SQLITE_IOERR_DIR_FSYNC)
        );
        if is_flush {
            self.fail(&Arc::new(io::Error::other(error.to_string())));
        } else if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) {
            warn!(%error, "the database's log cannot be brought into the database; it grows until it can");
        }
    }
}

/// Brings what it can of the log into the database, and waits for nobody.
pub(super) fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

impl Flusher {
    /// Starts the threads. `connection` is for checkpoints.
    pub(super) fn start(
        disk: &Flushes,
        connection: Connection,
        every: Duration,
    ) -> Result<Self, StoreError> {
        let system = |source| StoreError::System {
            doing: "start what flushes the database",
            source,
        };
        let shared = Arc::new(Flushing {
            every,
            queue: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            broken: OnceLock::new(),
            log_pages: AtomicU32::new(0),
        });
        let mut flusher = Self {
            shared: Arc::clone(&shared),
            threads: Vec::with_capacity(FLUSHERS),
        };
        // One of them has the connection: there is one checkpoint at a time.
        let mut connection = Some(connection);
        for _ in 0..FLUSHERS {
            let mut flush = disk().map_err(system)?;
            let (shared, connection) = (Arc::clone(&shared), connection.take());
            let thread = std::thread::Builder::new()
                .name("store-flusher".to_owned())
                .spawn(move || {
                    while let Some(waiting) = shared.next() {
                        let told = shared.flush(&mut flush);
                        for answer in waiting {
                            answer(told.clone());
                        }
                        if let Some(connection) = &connection {
                            shared.checkpoint(connection);
                        }
                    }
                });
            flusher.threads.push(thread.map_err(system)?);
        }
        Ok(flusher)
    }

    pub(super) fn shared(&self) -> Arc<Flushing> {
        Arc::clone(&self.shared)
    }
}

impl Drop for Flusher {
    /// Ends the threads after what was committed is flushed.
    fn drop(&mut self) {
        self.shared.queue().is_closed = true;
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Flushes the log beside this database. Each flush has a file of its own: the kernel tells an error
/// once to each open file (`errseq_t`), and nobody may miss it because another was told.
pub(super) fn log_of(database: &Path) -> Flushes {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    let log = PathBuf::from(log);
    let directory = database.parent().map(Path::to_owned);
    Box::new(move || {
        let file = File::open(&log)?;
        // The log may just have been made: its name must be there too.
        if let Some(directory) = &directory {
            File::open(directory)?.sync_all()?;
        }
        Ok(Box::new(move || file.sync_data()))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use super::*;
    use crate::store::{Durability, Store};

    const SOON: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(3600);
    const PATIENCE: Duration = Duration::from_secs(20);

    fn store(every: Duration, disk: &Flushes) -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::assemble(&directory.path().join("state.db"), every, disk);
        (directory, store.unwrap())
    }

    async fn write(store: Store, durability: Durability) -> Result<(), StoreError> {
        let job = |db: &Connection| {
            db.execute("UPDATE installation SET id = id", [])
                .map(drop)
                .map_err(StoreError::sql("test"))
        };
        store.writer.call("test", durability, job).await
    }

    /// Flushes that say that they began, and end when they are let.
    fn gated() -> (Flushes, mpsc::Receiver<()>, mpsc::SyncSender<()>) {
        let (begun, begins) = mpsc::channel();
        let (let_go, gate) = mpsc::sync_channel::<()>(64);
        let gate = Arc::new(Mutex::new(gate));
        let flushes: Flushes = Box::new(move || {
            let (begun, gate) = (begun.clone(), Arc::clone(&gate));
            Ok(Box::new(move || {
                let _ = begun.send(());
                let gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
                // Whoever has gone lets everything go.
                let _ = gate.recv();
                Ok(())
            }))
        });
        (flushes, begins, let_go)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_must_survive_a_power_cut_waits_for_its_flush_and_holds_up_nobody_else() {
        let (flushes, begins, let_go) = gated();
        let (_directory, store) = store(LONG, &flushes);
        let first = tokio::spawn(write(store.clone(), Durability::Power));
        begins.recv_timeout(PATIENCE).unwrap();
        // The flush is under way: others commit, and are answered.
        write(store.clone(), Durability::Process).await.unwrap();
        let others: Vec<_> = (0..FLUSHERS + 8)
            .map(|_| tokio::spawn(write(store.clone(), Durability::Power)))
            .collect();
        write(store.clone(), Durability::Process).await.unwrap();
        assert!(!first.is_finished(), "answered before its flush");
        assert!(others.iter().all(|other| !other.is_finished()));
        let_go.send(()).unwrap();
        first.await.unwrap().unwrap();
        // One flush for many: far fewer than there are callers.
        for _ in 0..FLUSHERS + 2 {
            let_go.send(()).unwrap();
        }
        for other in others {
            other.await.unwrap().unwrap();
        }
        drop(let_go);
        store.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_nobody_waits_for_is_flushed_soon() {
        let (flushes, begins, let_go) = gated();
        drop(let_go);
        let (_directory, store) = store(SOON, &flushes);
        let before = Instant::now();
        write(store.clone(), Durability::Process).await.unwrap();
        begins.recv_timeout(PATIENCE).unwrap();
        assert!(before.elapsed() >= SOON);
        // And not again while nothing is written.
        assert!(begins.recv_timeout(SOON * 3).is_err());
        store.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_closes_flushes_first() {
        let (flushes, begins, let_go) = gated();
        drop(let_go);
        let (_directory, store) = store(LONG, &flushes);
        write(store.clone(), Durability::Process).await.unwrap();
        assert!(begins.try_recv().is_err());
        store.close().await;
        begins.recv_timeout(PATIENCE).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn after_a_failed_flush_nothing_is_written_until_the_store_is_opened_anew() {
        let total = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&total);
        let flushes: Flushes = Box::new(move || {
            let count = Arc::clone(&count);
            Ok(Box::new(move || {
                match count.fetch_add(1, Ordering::SeqCst) {
                    1 => Err(io::Error::from_raw_os_error(5)),
                    // What the kernel says once it has dropped the pages.
                    _ => Ok(()),
                }
            }))
        });
        let (directory, store) = store(LONG, &flushes);
        write(store.clone(), Durability::Power).await.unwrap();
        for durability in [Durability::Power, Durability::Power, Durability::Process] {
            let refused = write(store.clone(), durability).await;
            assert!(
                matches!(refused, Err(StoreError::Unflushed { .. })),
                "{refused:?}"
            );
        }
        assert!(store.check_writable().await.is_err());
        assert_eq!(total.load(Ordering::SeqCst), 2, "it was tried again");
        store.close().await;
        let again = Store::open(&directory.path().join("state.db")).unwrap();
        write(again, Durability::Power).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_log_does_not_grow_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let store = Store::open_with(&path, Duration::from_millis(1)).unwrap();
        store
            .writer
            .call("test", Durability::Process, |db| {
                db.execute_batch("CREATE TABLE much (x BLOB)")
                    .map_err(StoreError::sql("test"))
            })
            .await
            .unwrap();
        // More than the log may hold, without a pause.
        for _ in 0..200 {
            store
                .writer
                .call("test", Durability::Process, |db| {
                    db.execute("DELETE FROM much", [])
                        .and_then(|_| db.execute("INSERT INTO much VALUES (zeroblob(1048576))", []))
                        .map(drop)
                        .map_err(StoreError::sql("test"))
                })
                .await
                .unwrap();
        }
        let log = std::fs::metadata(directory.path().join("state.db-wal")).unwrap();
        assert!(log.len() < 100 << 20, "{} bytes", log.len());
        store.close().await;
    }
}
