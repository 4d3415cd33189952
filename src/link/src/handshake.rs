//! The first two frames on a link, before HTTP/2: the guest says who it is, the daemon says whether it may stay.
//!
//! A frame is `CMLK`, a length (u32, big endian) and that many bytes of JSON. Both sides ignore fields, refusal codes and
//! capabilities that they do not know, so that a daemon works with sandboxes of the version before and after its own.
//! The spoken protocol is the highest that both know. Nothing is read beyond the frame, so HTTP/2 follows directly.

use std::future::Future;
use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::limits::{HANDSHAKE_DEADLINE, MAX_HELLO_BYTES};
use crate::token::LinkToken;

const MAGIC: [u8; 4] = *b"CMLK";

/// The protocols that this build speaks.
pub const PROTOCOL: ProtocolRange = ProtocolRange { min: 1, max: 1 };

/// What a guest of this build can do: a word for each family of requests, which a later one may add to.
pub const CAPABILITIES: [&str; 9] = [
    "process", "attach", "file", "archive", "port", "usage", "snapshot", "warm-up", "trust",
];

/// Longest list of capabilities that is looked at, and longest word in it.
const MAX_CAPABILITIES: (usize, usize) = (64, 64);

/// A range of protocol versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolRange {
    /// Lowest version spoken.
    pub min: u32,
    /// Highest version spoken.
    pub max: u32,
}

impl ProtocolRange {
    /// The highest version that both speak, if there is one.
    pub fn highest_common(self, other: Self) -> Option<u32> {
        let (low, high) = (self.min.max(other.min), self.max.min(other.max));
        (low <= high).then_some(high)
    }
}

/// What the guest sees of the kernel it runs on. A claim, not a proof: the daemon has other ways to know the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelReport {
    /// `uname -r`.
    pub release: String,
    /// `uname -v`.
    pub version: String,
    /// The first lines of the kernel's log; gVisor's begins with "Starting gVisor...".
    pub banner: String,
}

/// The guest's first frame.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// The protocols it speaks.
    pub protocol: ProtocolRange,
    /// The secret of its sandbox.
    pub token: LinkToken,
    /// Its own version.
    #[serde(default)]
    pub guest_version: String,
    /// The kernel it sees.
    #[serde(default)]
    pub kernel: KernelReport,
    /// What it can do; see [`CAPABILITIES`].
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// The number of the channel that this connection is to be; absent: it is to be the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<u64>,
}

impl Hello {
    /// What the guest says it can do, within bounds.
    pub fn capabilities(&self) -> impl Iterator<Item = &str> {
        let (count, bytes) = MAX_CAPABILITIES;
        let words = self.capabilities.iter().map(String::as_str).take(count);
        words.filter(move |word| word.len() <= bytes)
    }
}

/// The daemon's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Welcome {
    /// HTTP/2 follows.
    Accepted {
        /// The protocol to speak.
        protocol: u32,
    },
    /// The daemon hangs up.
    Refused {
        /// One of [`refused`], or a newer daemon's.
        code: String,
        /// A sentence for people.
        message: String,
    },
}

/// The codes of [`Welcome::Refused`].
pub mod refused {
    /// The token is not this sandbox's.
    pub const BAD_TOKEN: &str = "bad_token";
    /// There is no protocol that both speak.
    pub const NO_COMMON_PROTOCOL: &str = "no_common_protocol";
}

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection broke.
    #[error("exchanging the link's first frames")]
    Io(#[from] io::Error),
    /// The other side is not one of ours.
    #[error("the link's first bytes are not a handshake")]
    NotALink,
    /// The frame is over its bound.
    #[error("a handshake frame of {0} bytes is over its bound")]
    TooLong(usize),
    /// The frame's JSON is not the expected document. The text is left out: it may hold a token.
    #[error("a handshake frame holds no valid document")]
    BadDocument,
    /// It dialed with a channel's number that nobody waits for.
    #[error("nobody waits for that channel")]
    UnknownChannel,
    /// The daemon said no.
    #[error("the link was refused: {code}: {message}")]
    Refused {
        /// The reason.
        code: String,
        /// The reason for people.
        message: String,
    },
    /// The other side was silent for too long.
    #[error("the handshake took longer than its deadline")]
    Deadline,
}

/// The guest's side: says hello, and returns the protocol to speak.
///
/// # Errors
/// Any [`HandshakeError`]; within [`HANDSHAKE_DEADLINE`].
pub async fn offer<S>(stream: &mut S, hello: &Hello) -> Result<u32, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    in_time(async {
        write_frame(stream, hello).await?;
        match read_frame::<_, Welcome>(stream).await? {
            Welcome::Accepted { protocol } => Ok(protocol),
            Welcome::Refused { code, message } => Err(HandshakeError::Refused { code, message }),
        }
    })
    .await
}

/// The daemon's side: hears the hello and answers it. The token is compared in constant time, and before anything else
/// in the hello is looked at.
///
/// # Errors
/// Any [`HandshakeError`]; `Refused` when this side said no. Within [`HANDSHAKE_DEADLINE`].
pub async fn answer<S>(stream: &mut S, token: &LinkToken) -> Result<(Hello, u32), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    in_time(async {
        let hello: Hello = read_frame(stream).await?;
        let verdict = if hello.token.matches(token) {
            PROTOCOL
                .highest_common(hello.protocol)
                .ok_or((refused::NO_COMMON_PROTOCOL, "no protocol that both speak"))
        } else {
            Err((refused::BAD_TOKEN, "the token is not this sandbox's"))
        };
        match verdict {
            Ok(protocol) => {
                write_frame(stream, &Welcome::Accepted { protocol }).await?;
                Ok((hello, protocol))
            }
            Err((code, message)) => {
                let (code, message) = (code.to_owned(), message.to_owned());
                write_frame(
                    stream,
                    &Welcome::Refused {
                        code: code.clone(),
                        message: message.clone(),
                    },
                )
                .await?;
                Err(HandshakeError::Refused { code, message })
            }
        }
    })
    .await
}

async fn in_time<T>(
    work: impl Future<Output = Result<T, HandshakeError>>,
) -> Result<T, HandshakeError> {
    timeout(HANDSHAKE_DEADLINE, work)
        .await
        .unwrap_or(Err(HandshakeError::Deadline))
}

async fn write_frame<S, T>(stream: &mut S, document: &T) -> Result<(), HandshakeError>
where
    S: AsyncWrite + Unpin,
    T: Serialize,
{
    // A hello holds a token: it is wiped, and as there is room for all of it, it never moves and leaves a copy behind.
    let mut json = Zeroizing::new(Vec::with_capacity(MAX_HELLO_BYTES));
    serde_json::to_writer(&mut *json, document).map_err(io::Error::from)?;
    let length = u32::try_from(json.len())
        .ok()
        .filter(|_| json.len() <= MAX_HELLO_BYTES);
    let length = length.ok_or(HandshakeError::TooLong(json.len()))?;
    let mut frame = Zeroizing::new(Vec::with_capacity(8 + json.len()));
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&json);
    stream.write_all(&frame).await?;
    stream.flush().await?;
    Ok(())
}

async fn read_frame<S, T>(stream: &mut S) -> Result<T, HandshakeError>
where
    S: AsyncRead + Unpin,
    T: DeserializeOwned,
{
    let mut magic = [0; 4];
    stream.read_exact(&mut magic).await?;
    if magic != MAGIC {
        return Err(HandshakeError::NotALink);
    }
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if length > MAX_HELLO_BYTES {
        return Err(HandshakeError::TooLong(length));
    }
    let mut json = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut json).await?;
    serde_json::from_slice(&json).map_err(|_| HandshakeError::BadDocument)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::duplex;

    use super::*;

    fn hello(token: &str, protocol: ProtocolRange) -> Hello {
        Hello {
            protocol,
            token: LinkToken::parse(token).unwrap(),
            guest_version: "0.1.0".into(),
            kernel: KernelReport::default(),
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
            channel: None,
        }
    }

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    async fn shake(
        hello: Hello,
    ) -> (
        Result<u32, HandshakeError>,
        Result<(Hello, u32), HandshakeError>,
    ) {
        let (mut guest, mut daemon) = duplex(64);
        let token = LinkToken::parse(TOKEN).unwrap();
        tokio::join!(offer(&mut guest, &hello), answer(&mut daemon, &token))
    }

    #[tokio::test]
    async fn the_right_token_is_welcome() {
        let (guest, daemon) = shake(hello(TOKEN, PROTOCOL)).await;
        assert_eq!(guest.unwrap(), 1);
        assert_eq!(daemon.unwrap().0.guest_version, "0.1.0");
    }

    #[tokio::test]
    async fn a_wrong_token_is_refused_on_both_sides_and_named_nowhere() {
        let wrong = "f".repeat(32);
        let (guest, daemon) = shake(hello(&wrong, PROTOCOL)).await;
        for error in [guest.unwrap_err(), daemon.unwrap_err()] {
            assert!(
                matches!(&error, HandshakeError::Refused { code, .. } if code == refused::BAD_TOKEN)
            );
            let text = format!("{error:?} {error}");
            assert!(!text.contains(&wrong) && !text.contains(TOKEN));
        }
    }

    #[tokio::test]
    async fn the_next_version_is_spoken_down_to_and_the_one_after_refused() {
        let (guest, _) = shake(hello(TOKEN, ProtocolRange { min: 1, max: 9 })).await;
        assert_eq!(guest.unwrap(), 1);
        let (guest, _) = shake(hello(TOKEN, ProtocolRange { min: 2, max: 9 })).await;
        assert!(
            matches!(guest, Err(HandshakeError::Refused { code, .. }) if code == refused::NO_COMMON_PROTOCOL)
        );
    }

    async fn answer_to(bytes: &[u8]) -> Result<(Hello, u32), HandshakeError> {
        let (mut guest, mut daemon) = duplex(64 * 1024);
        guest.write_all(bytes).await.unwrap();
        guest.shutdown().await.unwrap();
        answer(&mut daemon, &LinkToken::parse(TOKEN).unwrap()).await
    }

    fn frame(length: u32, json: &str) -> Vec<u8> {
        [&MAGIC[..], &length.to_be_bytes(), json.as_bytes()].concat()
    }

    #[tokio::test]
    async fn unknown_fields_and_capabilities_are_ignored() {
        let json = format!(
            r#"{{"protocol":{{"min":1,"max":2,"draft":3}},"token":"{TOKEN}","capabilities":["process","warp"],"x":[1]}}"#
        );
        let (hello, protocol) = answer_to(&frame(u32::try_from(json.len()).unwrap(), &json))
            .await
            .unwrap();
        assert_eq!((protocol, hello.capabilities.len()), (1, 2));
    }

    #[tokio::test]
    async fn what_is_not_a_hello_is_told_apart() {
        assert!(matches!(
            answer_to(b"GET / HTTP/1.1\r\n").await,
            Err(HandshakeError::NotALink)
        ));
        assert!(matches!(
            answer_to(&frame(u32::MAX, "")).await,
            Err(HandshakeError::TooLong(_))
        ));
        assert!(matches!(
            answer_to(&frame(4097, "")).await,
            Err(HandshakeError::TooLong(4097))
        ));
        assert!(matches!(
            answer_to(&frame(2, "{}")).await,
            Err(HandshakeError::BadDocument)
        ));
        assert!(matches!(
            answer_to(&frame(20, "{}")).await,
            Err(HandshakeError::Io(_))
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_meets_the_deadline() {
        let (_guest, mut daemon) = duplex(64);
        let result = answer(&mut daemon, &LinkToken::parse(TOKEN).unwrap()).await;
        assert!(matches!(result, Err(HandshakeError::Deadline)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), json in ".{0,80}") {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            prop_assert!(runtime.block_on(answer_to(&bytes)).is_err());
            let framed = frame(u32::try_from(json.len()).unwrap(), &json);
            prop_assert!(runtime.block_on(answer_to(&framed)).is_err());
        }
    }
}
