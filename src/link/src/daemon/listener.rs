//! The socket on which the guest of one sandbox dials.
//!
//! Handshakes run beside one another, so a silent, slow or false dialer never keeps the honest one waiting: there is
//! a bound on their number, a deadline on each, a pause after each failure, and one too many pushes out the oldest.
//! The handshakes live in the listener, not in tasks: dropping it ends them.

use std::collections::VecDeque;
use std::fs::{self, File, Permissions};
use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::poll_fn;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::time::{Instant, sleep_until};

use super::LinkError;
use super::channel::Channels;
use super::link::Link;
use crate::handshake::{self, HandshakeError, Hello};
use crate::limits::{MAX_PENDING_HANDSHAKES, REJECT_PAUSE};
use crate::token::LinkToken;

/// The socket's name in a sandbox's link directory.
pub const SOCKET_NAME: &str = "link.sock";

/// Connections that the kernel holds before they are accepted.
const BACKLOG: u32 = 16;

/// Owner and group may dial. The group is the directory's (set-group-id): the user whose processes carry the sandbox.
const MODE: u32 = 0o660;

/// Whose process is at the other end of a Unix socket, as the kernel says. A pid may be used again: decide by uid and
/// gid, compare pids only with a process that is known to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCred {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id, where the kernel tells it.
    pub pid: Option<i32>,
}

/// Binds a socket for a sandbox in a directory that already exists, as [`LinkListener::bind`] says. The kernel holds
/// `backlog` connections before they are accepted.
///
/// # Errors
/// As there.
pub async fn listen(dir: &Path, name: &str, backlog: u32) -> io::Result<UnixListener> {
    let path = dir.join(name);
    remove_stale(&path).await?;
    let socket = UnixSocket::new_stream()?;
    // Linux gives the file the mode of the unbound socket, less the umask (net/unix/af_unix.c, unix_bind_bsd): the
    // file is never wider than asked, and only what the umask took is added afterwards.
    File::from(socket.as_fd().try_clone_to_owned()?)
        .set_permissions(Permissions::from_mode(MODE))?;
    socket.bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(MODE))?;
    socket.listen(backlog)
}

type Shaken = (PeerCred, Result<(UnixStream, Hello, u32), HandshakeError>);
type Handshake = Pin<Box<dyn Future<Output = Shaken> + Send>>;

/// Listens for the guest of one sandbox. Dropping it closes the socket and leaves its file: the next bind replaces it.
pub struct LinkListener {
    listener: UnixListener,
    path: PathBuf,
    /// Oldest first.
    pending: VecDeque<Handshake>,
    channels: Arc<Channels>,
    not_before: Instant,
}

impl LinkListener {
    /// Binds `link.sock` in a directory that already exists, with mode 0660 from its first moment. A socket that nobody
    /// listens on any more is replaced; anything else at that path is left alone and an error.
    ///
    /// # Errors
    /// [`LinkError::Socket`]; of kind `AddrInUse` when somebody listens there, `AlreadyExists` when it is no socket.
    pub async fn bind(dir: &Path) -> Result<Self, LinkError> {
        Ok(Self {
            listener: listen(dir, SOCKET_NAME, BACKLOG).await?,
            path: dir.join(SOCKET_NAME),
            pending: VecDeque::new(),
            channels: Channels::new(),
            not_before: Instant::now(),
        })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next dialer that finishes its handshake, well or badly; the link's channels are handed to whoever
    /// waits for them meanwhile. Safe to drop and call again: handshakes on
    /// their way go on with the next call. Every link before stays as it is; the caller decides which one counts.
    ///
    /// # Errors
    /// [`LinkError::Rejected`] for a dialer that was turned away: call again. [`LinkError::Socket`] when accepting fails.
    pub async fn accept_one(
        &mut self,
        token: &LinkToken,
    ) -> Result<(Link, Hello, PeerCred), LinkError> {
        loop {
            tokio::select! {
                // Handshakes that are done go before new ones, or a flood of dialers would keep them from being seen.
                biased;
                (peer, outcome) = next_of(&mut self.pending) => match outcome {
                    Ok((stream, hello, protocol)) => match hello.channel {
                        None => match Link::open(stream, protocol, &hello, &self.channels).await {
                            Ok(link) => {
                                // Whoever knows the token may dial again at once, and again.
                                self.not_before = Instant::now() + REJECT_PAUSE;
                                return Ok((link, hello, peer));
                            }
                            Err(_) => return Err(LinkError::Rejected { peer, source: closed_early() }),
                        },
                        Some(number) if self.channels.hand(number, stream) => {}
                        Some(_) => return Err(self.rejected(peer, HandshakeError::UnknownChannel)),
                    },
                    Err(source) => return Err(self.rejected(peer, source)),
                },
                accepted = accept_after(&self.listener, self.not_before) => {
                    if self.pending.len() >= MAX_PENDING_HANDSHAKES {
                        self.pending.pop_front();
                        self.not_before = Instant::now() + REJECT_PAUSE;
                    }
                    // A dialer that is gone again before it was looked at is no failure of the socket.
                    if let Ok(handshake) = shake(accepted?, token.clone()) {
                        self.pending.push_back(handshake);
                    }
                }
            }
        }
    }
}

impl LinkListener {
    /// Turns a dialer away, and the next one waits.
    fn rejected(&mut self, peer: PeerCred, source: HandshakeError) -> LinkError {
        self.not_before = Instant::now() + REJECT_PAUSE;
        LinkError::Rejected { peer, source }
    }
}

fn closed_early() -> HandshakeError {
    HandshakeError::Io(ErrorKind::ConnectionReset.into())
}

async fn accept_after(listener: &UnixListener, not_before: Instant) -> io::Result<UnixStream> {
    sleep_until(not_before).await;
    listener.accept().await.map(|(stream, _)| stream)
}

fn shake(mut stream: UnixStream, token: LinkToken) -> io::Result<Handshake> {
    let cred = stream.peer_cred()?;
    let peer = PeerCred {
        uid: cred.uid(),
        gid: cred.gid(),
        pid: cred.pid(),
    };
    Ok(Box::pin(async move {
        let outcome = handshake::answer(&mut stream, &token).await;
        (
            peer,
            outcome.map(|(hello, protocol)| (stream, hello, protocol)),
        )
    }))
}

/// The first of the handshakes to finish, taken out of the queue; waits for ever while there is none.
async fn next_of(pending: &mut VecDeque<Handshake>) -> Shaken {
    poll_fn(|cx| {
        let finished = pending.iter_mut().enumerate().find_map(|(at, handshake)| {
            match handshake.as_mut().poll(cx) {
                std::task::Poll::Ready(shaken) => Some((at, shaken)),
                std::task::Poll::Pending => None,
            }
        });
        match finished {
            Some((at, shaken)) => {
                drop(pending.remove(at));
                std::task::Poll::Ready(shaken)
            }
            None => std::task::Poll::Pending,
        }
    })
    .await
}

/// Removes a socket that nobody listens on.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "something other than a socket is in the link's place",
        ));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(_) => Err(ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::AddrInUse.into()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;
    use crate::handshake::{KernelReport, PROTOCOL};

    fn token() -> LinkToken {
        LinkToken::parse(&"t".repeat(32)).unwrap()
    }

    fn hello(token: LinkToken) -> Hello {
        let kernel = KernelReport::default();
        Hello {
            protocol: PROTOCOL,
            token,
            guest_version: String::new(),
            kernel,
            capabilities: Vec::new(),
            channel: None,
        }
    }

    async fn dial(path: PathBuf, token: LinkToken) -> Result<(UnixStream, u32), HandshakeError> {
        let mut stream = UnixStream::connect(path).await?;
        let protocol = handshake::offer(&mut stream, &hello(token)).await?;
        Ok((stream, protocol))
    }

    #[tokio::test]
    async fn the_socket_has_its_mode_and_a_stale_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let listener = LinkListener::bind(dir.path()).await.unwrap();
            let mode = fs::metadata(listener.path()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, MODE);
        }
    }

    #[tokio::test]
    async fn a_live_socket_and_a_file_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let live = LinkListener::bind(dir.path()).await.unwrap();
        let kind = |result: Result<LinkListener, LinkError>| match result.err().unwrap() {
            LinkError::Socket(error) => error.kind(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            kind(LinkListener::bind(dir.path()).await),
            ErrorKind::AddrInUse
        );
        drop(live);
        fs::remove_file(dir.path().join(SOCKET_NAME)).unwrap();
        fs::write(dir.path().join(SOCKET_NAME), "precious").unwrap();
        assert_eq!(
            kind(LinkListener::bind(dir.path()).await),
            ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read(dir.path().join(SOCKET_NAME)).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_hundred_silent_dialers_do_not_shut_the_guest_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut listener = LinkListener::bind(dir.path()).await.unwrap();
        let path = listener.path().to_owned();
        let crowd = tokio::spawn({
            let path = path.clone();
            async move {
                let mut held = Vec::new();
                for _ in 0..100 {
                    if let Ok(stream) = UnixStream::connect(&path).await {
                        held.push(stream);
                    }
                    tokio::task::yield_now().await;
                }
                held
            }
        });
        let guest = tokio::spawn(async move {
            loop {
                if let Ok(stream) = dial(path.clone(), token()).await {
                    return stream;
                }
                tokio::task::yield_now().await;
            }
        });
        let accepted = timeout(Duration::from_secs(20), async {
            loop {
                match listener.accept_one(&token()).await {
                    Ok(accepted) => return accepted,
                    Err(LinkError::Rejected { .. }) => {
                        assert!(listener.pending.len() <= MAX_PENDING_HANDSHAKES);
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
        });
        accepted.await.unwrap();
        guest.await.unwrap();
        drop(crowd.await.unwrap());
    }

    #[tokio::test]
    async fn garbage_and_a_wrong_token_are_rejected_and_the_next_dialer_is_welcome() {
        let dir = tempfile::tempdir().unwrap();
        let mut listener = LinkListener::bind(dir.path()).await.unwrap();
        let path = listener.path().to_owned();

        let mut garbage = UnixStream::connect(&path).await.unwrap();
        garbage.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
        let error = listener.accept_one(&token()).await.err().unwrap();
        assert!(
            matches!(
                error,
                LinkError::Rejected {
                    source: HandshakeError::NotALink,
                    ..
                }
            ),
            "{error:?}"
        );
        assert_eq!(garbage.read(&mut [0; 8]).await.unwrap_or(0), 0);

        let wrong = tokio::spawn(dial(
            path.clone(),
            LinkToken::parse(&"w".repeat(32)).unwrap(),
        ));
        assert!(matches!(
            listener.accept_one(&token()).await,
            Err(LinkError::Rejected { .. })
        ));
        assert!(wrong.await.unwrap().is_err());

        let right = tokio::spawn(dial(path, token()));
        let (_link, _hello, peer) = listener.accept_one(&token()).await.unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
        right.await.unwrap().unwrap();
    }
}
