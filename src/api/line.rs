//! The connection below hyper: a client that takes nothing is not waited for, and nobody loses the
//! end of an answer to the way a connection is closed. The same over TLS, whose farewell is a write as well.
//!
//! Not a protocol: bytes pass as they are. Three rules of TCP are kept here because nobody above can:
//! a write that makes no progress fails; after an answer that came before its request was read, the
//! rest is read and thrown away for a moment, because a close on unread bytes is a reset that destroys
//! what the client has not read yet; and an answer that is to look broken ends with a reset where its
//! protocol has no other way to say so.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How long a client may take nothing of what is sent to it. Long enough for a person's laptop that
/// changes its network; TCP gives up later than this.
pub(super) const WRITE_DEADLINE: Duration = Duration::from_secs(300);

/// How long the rest of an unread request is thrown away before the connection is closed.
const LINGER: Duration = Duration::from_secs(2);

/// Bytes thrown away at a time.
const SCRATCH_BYTES: usize = 8 * 1024;

/// A bounded wait that is polled together with what it waits for, and costs nothing where nothing
/// has to be waited for.
pub(super) struct Patience {
    span: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub(super) const fn new(span: Duration) -> Self {
        Self { span, timer: None }
    }

    /// There was progress: the next wait begins anew.
    pub(super) fn renew(&mut self) {
        self.timer = None;
    }

    /// Ready when the wait has lasted too long; it begins with the first call after a renewal.
    pub(super) fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let span = self.span;
        self.timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(span)))
            .as_mut()
            .poll(context)
    }
}

/// How a connection is to be closed; its requests say.
#[derive(Debug, Default)]
pub(super) struct Parting {
    unread: AtomicBool,
    broken: AtomicBool,
}

impl Parting {
    /// A request was not read to its end.
    pub(super) fn leave_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    /// What was answered must not look complete.
    pub(super) fn break_off(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }
}

/// A stream of bytes that can be cut.
pub(super) trait Cut: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes the close that follows a reset: what is still on its way is thrown away.
    fn cut(&self);
}

impl Cut for TcpStream {
    fn cut(&self) {
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(%error, "cannot reset a connection");
        }
    }
}

/// A connection with these rules.
pub(super) struct Line<S: Cut> {
    stream: S,
    /// What was read of it before.
    seen: Bytes,
    parting: Arc<Parting>,
    stalled: Patience,
    lingering: Patience,
}

impl<S: Cut> Line<S> {
    pub(super) fn new(stream: S, parting: Arc<Parting>) -> Self {
        Self {
            stream,
            seen: Bytes::new(),
            parting,
            stalled: Patience::new(WRITE_DEADLINE),
            lingering: Patience::new(LINGER),
        }
    }

    /// What was read of the stream already comes first.
    pub(super) fn after(mut self, seen: Bytes) -> Self {
        self.seen = seen;
        self
    }

    /// Bounds the wait of a write.
    fn bounded<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled.renew();
            return written;
        }
        ready!(self.stalled.poll_over(context));
        // The kernel would otherwise go on offering what it holds to whoever does not take it.
        self.parting.break_off();
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client took nothing for too long",
        )))
    }
}

impl<S: Cut> Drop for Line<S> {
    fn drop(&mut self) {
        if self.parting.broken.load(Ordering::Relaxed) {
            self.stream.cut();
        }
    }
}

impl<S: Cut> AsyncRead for Line<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.seen.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.seen.len().min(buffer.remaining());
        buffer.put_slice(&self.seen.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: Cut> AsyncWrite for Line<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.bounded(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.bounded(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // What is to look broken gets no farewell.
        if this.parting.broken.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let shut = Pin::new(&mut this.stream).poll_shutdown(context);
        ready!(this.bounded(shut, context))?;
        if !this.parting.unread.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let mut scratch = [0; SCRATCH_BYTES];
        while this.lingering.poll_over(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
impl Cut for tokio::io::DuplexStream {
    fn cut(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_write_that_nobody_takes_fails_at_its_deadline_and_not_before() {
        let (mut far, near) = duplex(8);
        let mut line = Line::new(near, Arc::default());
        let began = Instant::now();
        // A byte now and then is progress.
        let taking = async {
            for _ in 0..3 {
                tokio::time::sleep(WRITE_DEADLINE * 9 / 10).await;
                far.read_exact(&mut [0]).await.unwrap();
            }
            // Held, so that it is silent rather than gone.
            std::future::pending::<std::convert::Infallible>().await
        };
        let outcome = tokio::select! {
            outcome = line.write_all(&[0; 64]) => outcome,
            never = taking => match never {},
        };
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let waited = began.elapsed();
        assert!(waited >= WRITE_DEADLINE * 37 / 10, "{waited:?}");
        assert!(waited < WRITE_DEADLINE * 38 / 10, "{waited:?}");
        assert!(line.parting.broken.load(Ordering::Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_of_a_request_is_taken_before_the_close_but_not_for_ever() {
        let parting = Arc::<Parting>::default();
        let (far, near) = duplex(8);
        let mut line = Line::new(near, Arc::clone(&parting));
        let began = Instant::now();
        line.shutdown().await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO, "nothing was left unread");
        drop((far, line));

        parting.leave_unread();
        let (mut far, near) = duplex(8);
        let mut line = Line::new(near, Arc::clone(&parting));
        let rest = async {
            far.write_all(&[0; 100]).await.unwrap();
            drop(far);
        };
        let (closed, ()) = tokio::join!(line.shutdown(), rest);
        closed.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO, "the client was done");

        let (_far, near) = duplex(8);
        let mut line = Line::new(near, parting);
        line.shutdown().await.unwrap();
        let waited = began.elapsed();
        assert!(waited >= LINGER && waited < LINGER * 2, "{waited:?}");
    }
}
