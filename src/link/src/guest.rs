//! The guest's end: finds the daemon, again and again.
//!
//! The guest dials, says hello and hands the stream to its HTTP/2 server. It never gives up: a daemon that restarts binds
//! the same path again, and a daemon that refuses today may have been told better tomorrow.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::handshake::{
    self, CAPABILITIES, HandshakeError, Hello, KernelReport, PROTOCOL, refused,
};
use crate::limits::{HANDSHAKE_DEADLINE, REDIAL_MAX, REDIAL_MIN};
use crate::token::LinkToken;

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

/// How often a guest that rests looks for a new token. It rests for as long as a checkpoint takes, and then is looked for at
/// once when it goes on.
const REST_LOOK: Duration = Duration::from_millis(5);

/// Dials the daemon of one link directory.
#[derive(Debug)]
pub struct Dialer {
    socket: PathBuf,
    token_file: PathBuf,
    /// What the file said at the first dial: the daemon takes the file away once the link is up, so that nobody else in
    /// the sandbox finds it.
    token: Option<LinkToken>,
    introduction: Introduction,
    backoff: Backoff,
    linked_at: Option<Instant>,
}

impl Dialer {
    /// A dialer for `link.sock` and `token` in `dir`.
    pub fn new(dir: &Path, introduction: Introduction) -> Self {
        Self {
            socket: dir.join("link.sock"),
            token_file: dir.join("token"),
            token: None,
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

    /// Forgets whom it dialed, and waits until there is a new token: then it is somebody else's, who has not let it in yet.
    pub async fn rest(&mut self) {
        self.token = None;
        self.linked_at = None;
        self.backoff = Backoff::new();
        while !self.token_file.exists() {
            sleep(REST_LOOK).await;
        }
    }

    /// A dialer for channels beside the link that was opened last; `None` before the first.
    pub fn channels(&self) -> Option<ChannelDialer> {
        let token = self.token.clone()?;
        Some(ChannelDialer {
            socket: self.socket.clone(),
            token,
        })
    }

    /// One try, within [`HANDSHAKE_DEADLINE`] for each of its steps. The token is read at the first and remembered; after
    /// it was refused, a file that is there again is believed more than memory.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub async fn dial_once(&mut self) -> Result<(UnixStream, u32), HandshakeError> {
        let mut stream = connect(&self.socket).await?;
        let token = match &self.token {
            Some(token) => token,
            None => self.token.insert(LinkToken::read(&self.token_file)?),
        };
        let hello = Hello {
            protocol: PROTOCOL,
            token: token.clone(),
            guest_version: self.introduction.guest_version.clone(),
            kernel: self.introduction.kernel.clone(),
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
            channel: None,
        };
        let offered = handshake::offer(&mut stream, &hello).await;
        if let Err(HandshakeError::Refused { code, .. }) = &offered
            && code == refused::BAD_TOKEN
            && let Ok(token) = LinkToken::read(&self.token_file)
        {
            self.token = Some(token);
        }
        Ok((stream, offered?))
    }
}

/// Dials beside a link, for the bytes of large files.
#[derive(Debug)]
pub struct ChannelDialer {
    socket: PathBuf,
    token: LinkToken,
}

impl ChannelDialer {
    /// Opens the channel that the daemon offered under this number.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub async fn dial(&self, number: u64) -> Result<UnixStream, HandshakeError> {
        let mut stream = connect(&self.socket).await?;
        let hello = Hello {
            protocol: PROTOCOL,
            token: self.token.clone(),
            guest_version: String::new(),
            kernel: KernelReport::default(),
            capabilities: Vec::new(),
            channel: Some(number),
        };
        handshake::offer(&mut stream, &hello).await?;
        Ok(stream)
    }
}

async fn connect(socket: &Path) -> Result<UnixStream, HandshakeError> {
    let connecting = timeout(HANDSHAKE_DEADLINE, UnixStream::connect(socket));
    Ok(connecting.await.map_err(|_| HandshakeError::Deadline)??)
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
    use tokio::net::UnixListener;

    use super::*;

    /// What one dialer says and hears with a daemon that expects `token`.
    async fn heard(listener: &UnixListener, token: &LinkToken) -> Result<(), HandshakeError> {
        let (mut stream, _) = listener.accept().await.unwrap();
        handshake::answer(&mut stream, token).await.map(drop)
    }

    #[tokio::test]
    async fn a_token_is_remembered_without_its_file_and_read_again_where_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let listener = UnixListener::bind(dir.path().join("link.sock")).unwrap();
        let introduction = Introduction {
            guest_version: String::new(),
            kernel: KernelReport::default(),
        };
        let mut dialer = Dialer::new(dir.path(), introduction);
        let (one, other) = ("1".repeat(32), "2".repeat(32));
        let token = |text: &str| LinkToken::parse(text).unwrap();

        std::fs::write(&file, &one).unwrap();
        let expected = token(&one);
        let (dialled, answered) = tokio::join!(dialer.dial_once(), heard(&listener, &expected));
        answered.unwrap();
        dialled.unwrap();

        // Neither is a file that appears later listened to, nor is one missed, while the token is right.
        std::fs::remove_file(&file).unwrap();
        for text in [None, Some(&other)] {
            if let Some(text) = text {
                std::fs::write(&file, text).unwrap();
            }
            let (dialled, answered) = tokio::join!(dialer.dial_once(), heard(&listener, &expected));
            answered.unwrap();
            dialled.unwrap();
        }

        let expected = token(&other);
        let (dialled, answered) = tokio::join!(dialer.dial_once(), heard(&listener, &expected));
        assert!(answered.is_err() && dialled.is_err());
        let (dialled, answered) = tokio::join!(dialer.dial_once(), heard(&listener, &expected));
        answered.unwrap();
        dialled.unwrap();
    }

    #[tokio::test]
    async fn a_dialer_that_rested_waits_for_a_new_token_and_believes_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let listener = UnixListener::bind(dir.path().join("link.sock")).unwrap();
        let introduction = Introduction {
            guest_version: String::new(),
            kernel: KernelReport::default(),
        };
        let mut dialer = Dialer::new(dir.path(), introduction);
        let (one, other) = ("1".repeat(32), "2".repeat(32));
        std::fs::write(&file, &one).unwrap();
        let expected = LinkToken::parse(&one).unwrap();
        let (dialled, answered) = tokio::join!(dialer.dial_once(), heard(&listener, &expected));
        answered.unwrap();
        dialled.unwrap();
        std::fs::remove_file(&file).unwrap();

        // Nothing wakes it but the token.
        let waited = timeout(10 * REST_LOOK, dialer.rest()).await;
        assert!(waited.is_err() && dialer.channels().is_none());
        std::fs::write(&file, &other).unwrap();
        timeout(HANDSHAKE_DEADLINE, dialer.rest()).await.unwrap();
        let expected = LinkToken::parse(&other).unwrap();
        let (dialled, answered) = tokio::join!(dialer.dial_once(), heard(&listener, &expected));
        answered.unwrap();
        dialled.unwrap();
    }

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
}
