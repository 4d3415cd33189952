//! Accepts connections for a front door: a bounded number at a time, until told to stop.
//!
//! A place is taken before the connection, so that what does not fit waits in the kernel's queue,
//! which is bounded too. When the door shuts, what is in flight may finish, but not for ever.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

/// Pause after an `accept` that failed, which means that the process has no descriptor to spare.
const PAUSE: Duration = Duration::from_millis(50);

/// Something that gives connections.
pub trait Listener: Send {
    /// A connection.
    type Stream: Send;

    /// The next connection. Safe to drop and call again.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// How many and how long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at one time.
    pub connections: usize,
    /// How long they may go on after the door was shut.
    pub grace: Duration,
}

/// Gives each connection to `converse` in a task of its own, until `stop` is cancelled. `door` names
/// it in the log.
pub async fn accept<L, C>(
    door: &'static str,
    listener: L,
    bounds: Bounds,
    stop: CancellationToken,
    converse: impl Fn(L::Stream) -> C,
) where
    L: Listener,
    C: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(bounds.connections));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let next = async {
            let place = Arc::clone(&room).acquire_owned().await;
            (place, listener.next().await)
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = next => accepted,
        };
        match accepted {
            (Ok(place), Ok(stream)) => {
                let conversation = converse(stream);
                let cut = cut.clone();
                connections.spawn(async move {
                    cut.run_until_cancelled(conversation).await;
                    drop(place);
                });
            }
            (Ok(_), Err(error)) => {
                warn!(door, %error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
            // The semaphore is never closed.
            (Err(_), _) => break,
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(bounds.grace, connections.wait())
        .await
        .is_err()
    {
        let left = connections.len();
        warn!(door, left, "cut connections that did not finish in time");
        cut.cancel();
        // Nothing waits any more: what holds the state must be gone before the state is closed.
        connections.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::AsyncReadExt;

    #[tokio::test(start_paused = true)]
    async fn what_does_not_finish_in_its_grace_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("door");
        let listener = UnixListener::bind(&path).unwrap();
        let stop = CancellationToken::new();
        let bounds = Bounds {
            connections: 2,
            grace: Duration::from_secs(10),
        };
        let held = Arc::new(());
        let began = Arc::new(tokio::sync::Notify::new());
        let serving = {
            let (held, began) = (Arc::clone(&held), Arc::clone(&began));
            accept("test", listener, bounds, stop.clone(), move |stream| {
                let (held, began) = (Arc::clone(&held), Arc::clone(&began));
                async move {
                    began.notify_one();
                    std::future::pending::<()>().await;
                    drop((held, stream));
                }
            })
        };
        let client = async {
            let mut client = UnixStream::connect(&path).await.unwrap();
            began.notified().await;
            stop.cancel();
            let read = client.read(&mut [0]).await.unwrap();
            assert_eq!(read, 0, "the connection is closed");
        };
        tokio::join!(serving, client);
        assert_eq!(Arc::strong_count(&held), 1, "nobody holds on to it");
    }

    #[tokio::test]
    async fn no_more_than_its_bound_at_a_time_and_an_end_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("door");
        let listener = UnixListener::bind(&path).unwrap();
        let stop = CancellationToken::new();
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let bounds = Bounds {
            connections: 2,
            grace: Duration::from_secs(10),
        };
        let serving = {
            let (inside, most) = (Arc::clone(&inside), Arc::clone(&most));
            accept("test", listener, bounds, stop.clone(), move |mut stream| {
                let (inside, most) = (Arc::clone(&inside), Arc::clone(&most));
                async move {
                    let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    // Until the client hangs up.
                    let _ = stream.read(&mut [0]).await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                }
            })
        };
        let clients = async {
            let mut clients = Vec::new();
            for _ in 0..5 {
                clients.push(UnixStream::connect(&path).await.unwrap());
            }
            while !clients.is_empty() {
                while inside.load(Ordering::SeqCst) < clients.len().min(2) {
                    tokio::task::yield_now().await;
                }
                clients.remove(0);
            }
            stop.cancel();
        };
        tokio::join!(serving, clients);
        assert_eq!(most.load(Ordering::SeqCst), 2);
        assert_eq!(inside.load(Ordering::SeqCst), 0);
    }
}
