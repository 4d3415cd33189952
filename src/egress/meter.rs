//! What goes over a connection to the outside: counted, bounded, and how long nothing did.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// The bytes of one connection.
pub(super) struct Meter {
    sent: AtomicU64,
    received: AtomicU64,
    /// Of all connections of the sandbox together, and the most that they may be; 0: as many as they like.
    spent: Arc<AtomicU64>,
    most: u64,
    last: Mutex<Instant>,
}

impl Meter {
    pub(super) fn new(spent: Arc<AtomicU64>, most: u64) -> Arc<Self> {
        Arc::new(Self {
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            spent,
            most,
            last: Mutex::new(Instant::now()),
        })
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether the sandbox has used all the bytes that it may.
    pub(super) fn is_spent(&self) -> bool {
        self.most > 0 && self.spent.load(Ordering::Relaxed) >= self.most
    }

    /// Waits until nothing has gone either way for so long.
    pub(super) async fn idle(&self, patience: Duration) {
        loop {
            let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let until = last + patience;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    fn count(&self, counter: &AtomicU64, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        counter.fetch_add(bytes, Ordering::Relaxed);
        self.spent.fetch_add(bytes, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn check(&self) -> io::Result<()> {
        if self.is_spent() {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(())
    }
}

/// A stream whose bytes are counted.
pub(super) struct Metered<S> {
    stream: S,
    meter: Arc<Meter>,
}

impl<S> Metered<S> {
    pub(super) const fn new(stream: S, meter: Arc<Meter>) -> Self {
        Self { stream, meter }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.meter.check()?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let bytes = buf.filled().len().saturating_sub(before);
        this.meter.count(&this.meter.received, bytes);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.meter.check()?;
        let bytes = ready!(Pin::new(&mut this.stream).poll_write(cx, buf))?;
        this.meter.count(&this.meter.sent, bytes);
        Poll::Ready(Ok(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_are_counted_both_ways_and_end_where_they_may() {
        let spent = Arc::new(AtomicU64::new(0));
        let meter = Meter::new(Arc::clone(&spent), 10);
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Metered::new(near, Arc::clone(&meter));
        near.write_all(b"four").await.unwrap();
        far.write_all(b"sixsix").await.unwrap();
        let mut six = [0; 6];
        near.read_exact(&mut six).await.unwrap();
        assert_eq!((meter.sent(), meter.received()), (4, 6));
        let over = near.write_all(b"x").await.unwrap_err();
        assert_eq!(over.kind(), io::ErrorKind::QuotaExceeded);
        assert!(meter.is_spent());
        // Another connection of the same sandbox has nothing left either.
        assert!(Meter::new(spent, 10).is_spent());
    }

    #[tokio::test(start_paused = true)]
    async fn idle_is_since_the_last_byte() {
        let meter = Meter::new(Arc::default(), 0);
        let (near, _far) = tokio::io::duplex(64);
        let mut near = Metered::new(near, Arc::clone(&meter));
        let patience = Duration::from_secs(10);
        tokio::time::advance(Duration::from_secs(9)).await;
        near.write_all(b"x").await.unwrap();
        let began = Instant::now();
        meter.idle(patience).await;
        assert!(began.elapsed() >= patience);
    }
}
