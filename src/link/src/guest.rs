//! The guest's end: finds the daemon, again and again.
//!
//! The guest dials, says hello and hands the stream to its HTTP/2 server. It never gives up: a daemon that restarts binds
//! the same path again, and a daemon that refuses today may have been told better tomorrow.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use crate::handshake::{self, CAPABILITIES, HandshakeError, Hello, KernelReport, PROTOCOL};
use crate::limits::{HANDSHAKE_DEADLINE, REDIAL_MAX, REDIAL_MIN};
use crate::token::LinkToken;

/// Longest token file, in bytes.
const MAX_TOKEN_FILE_BYTES: u64 = 512;

/// What the guest says of itself at every dial.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// The guest's version.
    pub guest_version: String,
    /// The kernel it sees.
    pub kernel: KernelReport,
}

/// A connection that lived for so long starts the delays from their beginning again.
const SETTLED: Duration = Duration::from_secs(2);

/// Dials the daemon of one link directory.
#[derive(Debug)]
pub struct Dialer {
    socket: PathBuf,
    token: PathBuf,
    introduction: Introduction,
    backoff: Backoff,
    linked_at: Option<Instant>,
}

impl Dialer {
    /// A dialer for `link.sock` and `token` in `dir`.
    pub fn new(dir: &Path, introduction: Introduction) -> Self {
        Self {
            socket: dir.join("link.sock"),
            token: dir.join("token"),
            introduction,
            backoff: Backoff::new(),
            linked_at: None,
        }
    }

    /// Dials until the daemon lets it in. `report` hears of each failure. The first try is made at once, unless the
    /// last connection was cut short: a daemon that lets in and hangs up is not dialed in a tight loop.
    pub async fn dial(&mut self, mut report: impl FnMut(&HandshakeError)) -> (UnixStream, u32) {
        match self.linked_at.take() {
            Some(at) if at.elapsed() < SETTLED => sleep(self.backoff.next_delay()).await,
            _ => self.backoff = Backoff::new(),
        }
        loop {
            match self.dial_once().await {
                Ok(linked) => {
                    self.linked_at = Some(Instant::now());
                    return linked;
                }
                Err(error) => report(&error),
            }
            sleep(self.backoff.next_delay()).await;
        }
    }

    /// One try, within [`HANDSHAKE_DEADLINE`] for each of its steps. The token is read anew and forgotten again.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub async fn dial_once(&self) -> Result<(UnixStream, u32), HandshakeError> {
        let connecting = timeout(HANDSHAKE_DEADLINE, UnixStream::connect(&self.socket));
        let mut stream = connecting.await.map_err(|_| HandshakeError::Deadline)??;
        let hello = Hello {
            protocol: PROTOCOL,
            token: read_token(&self.token)?,
            guest_version: self.introduction.guest_version.clone(),
            kernel: self.introduction.kernel.clone(),
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
        };
        let protocol = handshake::offer(&mut stream, &hello).await?;
        Ok((stream, protocol))
    }
}

/// Reads a link directory's token.
///
/// # Errors
/// What reading the file says, or `InvalidData` when it holds no token.
pub fn read_token(path: &Path) -> io::Result<LinkToken> {
    let mut text = Zeroizing::new(String::with_capacity(512));
    std::fs::File::open(path)?
        .take(MAX_TOKEN_FILE_BYTES)
        .read_to_string(&mut text)?;
    LinkToken::parse(&text).map_err(|bad| io::Error::new(ErrorKind::InvalidData, bad))
}

/// Delays that double from [`REDIAL_MIN`] to [`REDIAL_MAX`], each between its half and its whole, so that the sandboxes
/// of a restarted daemon do not come back in step.
#[derive(Debug)]
pub struct Backoff {
    ceiling: Duration,
}

impl Backoff {
    /// Delays from the beginning.
    pub fn new() -> Self {
        Self {
            ceiling: REDIAL_MIN,
        }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        let half = self.ceiling / 2;
        self.ceiling = (self.ceiling * 2).min(REDIAL_MAX);
        // Randomness of the hash tables' seeds is plenty for jitter.
        let thousandths = u32::try_from(RandomState::new().hash_one(()) % 1001).unwrap_or(0);
        half + half * thousandths / 1000
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_within_their_bounds() {
        let mut backoff = Backoff::new();
        let mut ceiling = REDIAL_MIN;
        for _ in 0..12 {
            let delay = backoff.next_delay();
            assert!(
                delay >= ceiling / 2 && delay <= ceiling,
                "{delay:?} of {ceiling:?}"
            );
            ceiling = (ceiling * 2).min(REDIAL_MAX);
        }
        assert_eq!(ceiling, REDIAL_MAX);
    }

    #[test]
    fn a_token_file_may_end_with_a_newline_and_must_hold_a_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, format!("{}\n", "a".repeat(64))).unwrap();
        assert_eq!(read_token(&path).unwrap().expose(), "a".repeat(64));
        for bad in ["", "short\n", &"a".repeat(4000)] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(
                read_token(&path).unwrap_err().kind(),
                ErrorKind::InvalidData
            );
        }
    }
}
