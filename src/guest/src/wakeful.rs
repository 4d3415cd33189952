//! A link's socket that does not wait for ever for what the kernel forgot to say.
//!
//! Where the last bytes and the end of a connection to the host come at the same moment, gVisor at times tells of the bytes
//! alone, and a guest that waits to be told of the end waits for ever: a daemon that had restarted never saw it again. So
//! while nothing comes, the socket is asked every now and then.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// How often a silent socket is asked: far more often than the daemon waits for its guest, and too seldom to be felt (a
/// sandbox pays 0.1 ms).
const ASK: Duration = Duration::from_secs(2);

/// A socket that is asked by itself.
pub(crate) struct Wakeful<S = UnixStream> {
    stream: S,
    ask: Interval,
}

impl<S> Wakeful<S> {
    pub(crate) fn new(stream: S) -> Self {
        let mut ask = interval_at(Instant::now() + ASK, ASK);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { stream, ask }
    }
}

impl<S: AsyncRead + AsRawFd + Unpin> AsyncRead for Wakeful<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            return Poll::Ready(read);
        }
        loop {
            ready!(this.ask.poll_tick(cx));
            let room = buf.initialize_unfilled();
            match recv(this.stream.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT) {
                Ok(count) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // Nothing has come: to be asked again.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wakeful<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
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
    use std::io::Write;
    use std::os::fd::RawFd;
    use std::os::unix::net::UnixStream as Blocking;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn what_comes_is_read_and_so_is_its_end() {
        let (mut theirs, ours) = Blocking::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut ours = Wakeful::new(UnixStream::from_std(ours).unwrap());
        let mut word = [0; 4];
        theirs.write_all(b"word").unwrap();
        ours.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"word");
        let late = std::thread::spawn(move || {
            theirs.write_all(b"last").unwrap();
            drop(theirs);
        });
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"last");
        late.join().unwrap();
    }

    /// A socket whose kernel never tells that there is something to read.
    struct Deaf(Blocking);

    impl AsRawFd for Deaf {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }
    }

    impl AsyncRead for Deaf {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_kernel_does_not_tell_of_is_read_and_so_is_its_end() {
        let (mut theirs, ours) = Blocking::pair().unwrap();
        let mut ours = Wakeful::new(Deaf(ours));
        let mut word = [0; 4];
        theirs.write_all(b"word").unwrap();
        ours.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"word");
        theirs.write_all(b"last").unwrap();
        drop(theirs);
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"last");
    }
}
