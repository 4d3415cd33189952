//! A client of the admin socket, or of the HTTP door with the operator token: one connection, one command, one last answer.
//!
//! The daemon answers a peer that it turns away before it reads anything; so a failed write is not
//! the end, the answer that explains it may still be there to read.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use casemate::admin::protocol::{Answer, Envelope, Request, VERSION, codec};
use casemate::base::exit::Exit;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::failure::Failure;
use crate::http::{Client, Line, Papers};
use crate::key;

/// How long an answer may take: stopping a session waits for half of it at most.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long the daemon may take to accept the next piece of an archive.
const CHUNK_DEADLINE: Duration = Duration::from_secs(300);

/// How long podman may work on an archive that has arrived.
const LOAD_DEADLINE: Duration = Duration::from_secs(3600);

/// Size of an archive's pieces: well below a frame, large enough to keep both ends busy.
const CHUNK_BYTES: usize = 256 << 10;

type Frames = Framed<Box<dyn Line>, LengthDelimitedCodec>;

/// The sub-protocol of the HTTP door's socket for operators.
const PROTOCOL: &str = "casemate.admin.v1";

/// Where operators are served.
pub enum Admin {
    /// The admin socket of this machine.
    Here(PathBuf),
    /// The HTTP door of any, for whoever has the operator token.
    Elsewhere {
        /// Where that is.
        url: String,
        /// What holds the token.
        token: PathBuf,
        /// For TLS with it.
        papers: Papers,
    },
}

impl Admin {
    /// Asks for one thing.
    pub async fn ask(&self, request: Request) -> Result<Answer, Failure> {
        let (mut sink, mut stream) = self.connect().await?.split();
        // When it cannot be sent, the answer says why.
        let _ = send(&mut sink, envelope(request)?, DEADLINE).await;
        match tokio::time::timeout(DEADLINE, self.last(&mut stream, |_| {})).await {
            Ok(answer) => answer,
            Err(_) => Err(self.silent(DEADLINE)),
        }
    }

    /// Asks for one thing whose answer comes in lines of the audit log, and maybe for as long as somebody waits.
    pub async fn lines(
        &self,
        request: Request,
        mut take: impl FnMut(Vec<String>) -> Result<(), Failure>,
    ) -> Result<Answer, Failure> {
        let (mut sink, mut stream) = self.connect().await?.split();
        let _ = send(&mut sink, envelope(request)?, DEADLINE).await;
        loop {
            match self.next(&mut stream).await? {
                Answer::AuditLines { lines } => take(lines)?,
                answer => return Ok(answer),
            }
        }
    }

    /// Asks for one thing that takes its time, as long as it tells how far it has come: bytes done, and of how many.
    pub async fn ask_long(
        &self,
        request: Request,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Answer, Failure> {
        let (mut sink, mut stream) = self.connect().await?.split();
        let _ = send(&mut sink, envelope(request)?, DEADLINE).await;
        loop {
            match tokio::time::timeout(DEADLINE, self.next(&mut stream)).await {
                Ok(Ok(Answer::Progress {
                    received_bytes,
                    total_bytes,
                })) => progress(received_bytes, total_bytes.unwrap_or(0)),
                Ok(answer) => return answer,
                Err(_) => return Err(self.silent(DEADLINE)),
            }
        }
    }

    /// Sends an archive; tells `progress` how many bytes the daemon has.
    pub async fn import(
        &self,
        mut archive: impl AsyncRead + Unpin,
        progress: impl FnMut(u64),
    ) -> Result<Answer, Failure> {
        let (mut sink, mut stream) = self.connect().await?.split();
        let sending = async {
            if send(&mut sink, envelope(Request::ImageImport)?, DEADLINE)
                .await
                .is_err()
            {
                return Ok(());
            }
            loop {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                let read = (&mut archive)
                    .take(CHUNK_BYTES as u64)
                    .read_to_end(&mut chunk)
                    .await;
                read.map_err(|error| Failure::io("read the archive", &error))?;
                let is_last = chunk.is_empty();
                let sent = send(&mut sink, chunk.into(), CHUNK_DEADLINE).await;
                if sent.is_err() || is_last {
                    return Ok(());
                }
            }
        };
        let answering = self.last(&mut stream, progress);
        tokio::pin!(answering);
        tokio::select! {
            // A refusal may come at any time and makes the rest of the archive needless.
            biased;
            answer = &mut answering => return answer,
            sent = sending => sent?,
        }
        match tokio::time::timeout(LOAD_DEADLINE, answering).await {
            Ok(answer) => answer,
            Err(_) => Err(self.silent(LOAD_DEADLINE)),
        }
    }

    async fn connect(&self) -> Result<Frames, Failure> {
        let line: Box<dyn Line> = match self {
            Self::Here(path) => match UnixStream::connect(path).await {
                Ok(stream) => Box::new(stream),
                Err(error) => return Err(unreachable(path, &error)),
            },
            Self::Elsewhere { url, token, papers } => {
                let token = key::find(Some(token), None)?;
                let client = Client::new(url, Some(token), papers)?;
                Box::new(client.socket("/v1/admin", PROTOCOL).await?.into_line())
            }
        };
        Ok(Framed::new(line, codec()))
    }

    /// The answer after which there is none.
    async fn last(
        &self,
        stream: &mut SplitStream<Frames>,
        mut progress: impl FnMut(u64),
    ) -> Result<Answer, Failure> {
        loop {
            match self.next(stream).await? {
                Answer::Progress { received_bytes, .. } => progress(received_bytes),
                answer => return Ok(answer),
            }
        }
    }

    /// The next answer; a refusal is a failure.
    async fn next(&self, stream: &mut SplitStream<Frames>) -> Result<Answer, Failure> {
        let frame = match stream.next().await {
            Some(Ok(frame)) => frame,
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(Failure::mismatch());
            }
            Some(Err(_)) | None => {
                return Err(Failure::unavailable(format!(
                    "casemated broke the connection at {self} off; it may or may not have done what it was asked to"
                )));
            }
        };
        match serde_json::from_slice(&frame) {
            Ok(Answer::Refused { code, message }) => Err(refusal(&code, &message)),
            Ok(answer) => Ok(answer),
            Err(_) => Err(Failure::mismatch()),
        }
    }

    fn silent(&self, deadline: Duration) -> Failure {
        Failure::unavailable(format!(
            "casemated did not answer at {self} within {} s; it may still do what it was asked to",
            deadline.as_secs()
        ))
    }
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(path) => path.display().fmt(f),
            Self::Elsewhere { url, .. } => f.write_str(url),
        }
    }
}

fn unreachable(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::new(
            Exit::Refused,
            format!(
                "you may not reach the admin socket {path}; it is for root and the operators' group (casemate on a fresh install): use sudo, or join the group and log in again"
            ),
        ),
        io::ErrorKind::NotFound => Failure::unavailable(format!(
            "there is no admin socket at {path}; is casemated running on this machine? (systemctl status casemated, or scripts/dev up; --socket names another place)"
        )),
        io::ErrorKind::ConnectionRefused => Failure::unavailable(format!(
            "nobody listens at the admin socket {path}; is casemated running? (systemctl status casemated, or scripts/dev up)"
        )),
        io::ErrorKind::WouldBlock => Failure::unavailable(format!(
            "too many operators wait at the admin socket {path}; try again"
        )),
        _ => Failure::unavailable(format!("cannot reach the admin socket {path}: {error}")),
    }
}

fn envelope(request: Request) -> Result<Bytes, Failure> {
    let envelope = Envelope {
        version: VERSION,
        request,
    };
    serde_json::to_vec(&envelope)
        .map(Bytes::from)
        .map_err(|error| Failure::new(Exit::Software, format!("cannot write a request: {error}")))
}

async fn send(
    sink: &mut SplitSink<Frames, Bytes>,
    frame: Bytes,
    deadline: Duration,
) -> io::Result<()> {
    match tokio::time::timeout(deadline, sink.send(frame)).await {
        Ok(sent) => sent,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn refusal(code: &str, message: &str) -> Failure {
    let exit = match code {
        "not_an_operator" | "denied" => Exit::Refused,
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("{message} ({code})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_not_is_told_who_may() {
        let path = Path::new("/run/casemate/admin.sock");
        let failure = unreachable(path, &io::ErrorKind::PermissionDenied.into());
        assert_eq!(failure.exit, Exit::Refused);
        assert!(failure.message.contains("root and the operators' group"));
    }

    #[test]
    fn a_refusal_keeps_its_code() {
        let failure = refusal("not_reloaded", "line 3 is wrong");
        assert_eq!(failure.exit, Exit::Failed);
        assert_eq!(failure.message, "line 3 is wrong (not_reloaded)");
        assert_eq!(refusal("denied", "no").exit, Exit::Refused);
    }
}
