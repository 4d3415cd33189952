//! Bytes both ways between a sandbox and what it reached, once the first of them are what they may be.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf, copy_buf,
    split,
};
use tokio::time::timeout;

use super::hello::{Hello, MAX_HELLO_BYTES, read_hello};
use super::visit::{Arrived, Shared};
use super::{Kind, Refusal, Warden, always};
use crate::model::host::Host;

/// How much is carried at once, each way.
const PIECE_BYTES: usize = 32 << 10;
/// How long the rest of a first message may take, once it began.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);

/// Where a tunnel leads, and what may go through it.
pub(super) struct Tunnel {
    pub(super) host: Host,
    pub(super) port: u16,
    /// Whether only TLS may.
    pub(super) is_tls: bool,
}

/// Why a tunnel came to its end.
enum Over {
    Broken,
    Denied(Refusal),
}

impl From<io::Error> for Over {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

impl Tunnel {
    /// Carries until both sides have ended, or one broke off, or nothing went for too long.
    pub(super) async fn carry<W, C>(self, shared: &Arc<Shared<W>>, client: C, arrived: Arrived<W>)
    where
        W: Warden,
        C: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let (visit, upstream) = arrived;
        let (from_client, to_client) = split(client);
        let (from_there, to_there) = split(upstream);
        let idle = shared.warden.settings().idle_timeout;
        let both = async {
            tokio::try_join!(self.out(from_client, to_there), async {
                Ok(carry(from_there, to_client).await?)
            })
        };
        let failure = tokio::select! {
            biased;
            () = shared.stop.cancelled() => Some("cut"),
            over = both => match over {
                Ok(_) => None,
                Err(Over::Broken) => Some("broken"),
                Err(Over::Denied(refusal)) => {
                    let refusal = shared.note(Some(&self.host), self.port, refusal);
                    Some(refusal.kind.code())
                }
            },
            () = visit.meter.idle(idle) => Some("idle"),
        };
        visit.end(failure);
    }

    /// From the sandbox to there: nothing before the first message is known to be one that may go.
    async fn out<C: AsyncRead, S: AsyncWrite>(
        &self,
        mut from: ReadHalf<C>,
        mut to: WriteHalf<S>,
    ) -> Result<(), Over> {
        let mut first = Vec::new();
        read_some(&mut from, &mut first).await?;
        let reading = async {
            while read_hello(&first) == Hello::Incomplete {
                if read_some(&mut from, &mut first).await? == 0 {
                    break;
                }
            }
            io::Result::Ok(())
        };
        match timeout(HELLO_PATIENCE, reading).await {
            Ok(read) => read?,
            Err(_) => return Err(Over::Broken),
        }
        self.judge(&first).map_err(Over::Denied)?;
        to.write_all(&first).await?;
        drop(first);
        Ok(carry(from, to).await?)
    }

    fn judge(&self, first: &[u8]) -> Result<(), Refusal> {
        let refused =
            |rule: &'static str, reason: String| Err(Refusal::new(Kind::Denied, rule, reason));
        match read_hello(first) {
            // It ended before it said anything.
            Hello::Incomplete if first.is_empty() => Ok(()),
            Hello::NotTls if !self.is_tls => Ok(()),
            Hello::NotTls => refused(
                always::TUNNELS_ARE_TLS,
                "what goes through is not TLS, and no rule allows the scheme tcp".to_owned(),
            ),
            Hello::Incomplete | Hello::Malformed => refused(
                always::TLS_NAMES_THE_HOST,
                "the first message of TLS is broken".to_owned(),
            ),
            Hello::Named(None) => Ok(()),
            Hello::Named(Some(name)) if Host::parse(&name).as_ref() == Ok(&self.host) => Ok(()),
            Hello::Named(Some(_)) => refused(
                always::TLS_NAMES_THE_HOST,
                format!("TLS names another host than {}", self.host),
            ),
        }
    }
}

/// Reads what there is; 0 at the end, and when there is more than can be a first message.
async fn read_some<S: AsyncRead + Unpin>(from: &mut S, into: &mut Vec<u8>) -> io::Result<usize> {
    if into.len() > MAX_HELLO_BYTES {
        return Ok(0);
    }
    into.reserve(4096);
    from.read_buf(into).await
}

/// Carries to the end, and tells the other side of it.
async fn carry<R: AsyncRead + Unpin, S: AsyncWrite + Unpin>(from: R, mut to: S) -> io::Result<()> {
    let mut from = BufReader::with_capacity(PIECE_BYTES, from);
    copy_buf(&mut from, &mut to).await?;
    to.shutdown().await
}
