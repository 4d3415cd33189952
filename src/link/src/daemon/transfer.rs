//! One stream that carries bytes or documents, seen from the daemon: the base of files, archives, ports and lists.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

use super::LinkError;
use super::body::RequestBody;
use super::channel::{Channel, Offered};
use super::check;
use super::link::{Link, no};
use crate::file::{Nothing, Offer, Taken};
use crate::limits::{
    CONTROL_DEADLINE, FRAME_QUEUE, MAX_FRAME_PAYLOAD_BYTES, MAX_LIST_BYTES, OPEN_DEADLINE,
    STALL_DEADLINE,
};
use crate::refusal::code;
use crate::route;
use crate::wire::{Chunk, FrameReader, ReadError, TransferFrame};

/// Both directions of a transfer. Dropping it cuts the stream, which the guest sees.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) incoming: Incoming,
    pub(super) outgoing: mpsc::Sender<Chunk>,
}

/// What comes from the guest.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) frames: FrameReader<TransferFrame>,
    /// Holds the link open, and the transfer's place on it.
    _held: (Link, OwnedSemaphorePermit),
}

impl Transfer {
    /// Opens a stream whose request begins with `head`. Nothing of the answer is read yet.
    pub(super) async fn open(
        link: &Link,
        path: &'static str,
        head: &impl Serialize,
    ) -> Result<Self, LinkError> {
        let place = link.transfer_place()?;
        // Over its bound by the caller's doing, not the guest's.
        let first = TransferFrame::head(head)
            .map_err(|_| no(code::BAD_SPEC, "the request is over its bound"))?;
        let (outgoing, rest) = mpsc::channel(FRAME_QUEUE);
        let body = RequestBody::stream(first, rest);
        let response = link
            .request(Method::POST, path, route::FRAMES, body)
            .await?;
        let incoming = Incoming {
            frames: FrameReader::new(response.into_body()),
            _held: (link.clone(), place),
        };
        Ok(Self { incoming, outgoing })
    }

    /// Opens a stream and reads the head of the answer, within [`OPEN_DEADLINE`].
    pub(super) async fn begin<H: DeserializeOwned>(
        link: &Link,
        path: &'static str,
        head: &impl Serialize,
    ) -> Result<(Self, H), LinkError> {
        in_time(OPEN_DEADLINE, async {
            let mut transfer = Self::open(link, path, head).await?;
            let head = match transfer.incoming.frame().await? {
                TransferFrame::Head(json) => parse(&json)?,
                _ => return Err(unexpected()),
            };
            Ok((transfer, head))
        })
        .await
    }

    /// A request without a body of its own, whose answer is one document.
    pub(super) async fn ask<A: DeserializeOwned>(
        link: &Link,
        path: &'static str,
        head: &impl Serialize,
        deadline: Duration,
    ) -> Result<A, LinkError> {
        in_time(deadline, async {
            let mut transfer = Self::open(link, path, head).await?;
            transfer.incoming.only_item().await
        })
        .await
    }

    /// A request without a body of its own, whose answer is a list of at most `max` documents that pass `check`.
    pub(super) async fn list<A: DeserializeOwned>(
        link: &Link,
        path: &'static str,
        head: &impl Serialize,
        check: impl Fn(A) -> Result<A, LinkError>,
        max: usize,
        deadline: Duration,
    ) -> Result<Listing<A>, LinkError> {
        in_time(deadline, async {
            let mut transfer = Self::open(link, path, head).await?;
            let (mut items, mut room) = (Vec::new(), MAX_LIST_BYTES);
            loop {
                match transfer.incoming.frame().await? {
                    TransferFrame::Item(json) if items.len() < max => {
                        match room.checked_sub(json.len()) {
                            Some(left) => room = left,
                            None => return Ok(Listing::Cut(items)),
                        }
                        items.push(check(parse(&json)?)?);
                    }
                    TransferFrame::End => return Ok(Listing::Whole(items)),
                    TransferFrame::Item(_) => return Err(over_bound()),
                    _ => return Err(unexpected()),
                }
            }
        })
        .await
    }
}

/// The items of a list.
pub(super) enum Listing<A> {
    /// All of them.
    Whole(Vec<A>),
    /// Those for which there was room in [`MAX_LIST_BYTES`].
    Cut(Vec<A>),
}

impl<A> Listing<A> {
    /// The items of a list whose every item matters.
    pub(super) fn whole(self) -> Result<Vec<A>, LinkError> {
        match self {
            Self::Whole(items) => Ok(items),
            Self::Cut(_) => Err(over_bound()),
        }
    }
}

fn over_bound() -> LinkError {
    LinkError::Protocol("a list is over its bound".into())
}

impl Incoming {
    /// The next frame; a refusal is an error.
    pub(super) async fn frame(&mut self) -> Result<TransferFrame, LinkError> {
        checked(self.frames.next().await)
    }

    /// The one item of an answer, and its end.
    pub(super) async fn only_item<A: DeserializeOwned>(&mut self) -> Result<A, LinkError> {
        let TransferFrame::Item(json) = self.frame().await? else {
            return Err(unexpected());
        };
        match self.frame().await? {
            TransferFrame::End => parse(&json),
            _ => Err(unexpected()),
        }
    }

    /// The next bytes; `None` at their end.
    pub(super) async fn data(&mut self) -> Result<Option<Bytes>, LinkError> {
        match in_time(STALL_DEADLINE, self.frame()).await? {
            TransferFrame::Data(data) => Ok(Some(data)),
            TransferFrame::End => Ok(None),
            _ => Err(unexpected()),
        }
    }
}

/// A frame of a stream that must not just end.
pub(super) fn checked(
    read: Result<Option<TransferFrame>, ReadError>,
) -> Result<TransferFrame, LinkError> {
    match read {
        Ok(Some(TransferFrame::Failed(refusal))) => Err(check::refusal(refusal)),
        Ok(Some(frame)) => Ok(frame),
        Ok(None) => Err(LinkError::Protocol(
            "a transfer that ends without an end".into(),
        )),
        Err(ReadError::Wire(error)) => Err(error.into()),
        Err(ReadError::Cut(_)) => Err(LinkError::Gone),
    }
}

pub(super) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, LinkError> {
    serde_json::from_slice(json)
        .map_err(|_| LinkError::Protocol("an answer is not the expected document".into()))
}

pub(super) fn unexpected() -> LinkError {
    LinkError::Protocol("a frame that does not belong there".into())
}

pub(super) async fn in_time<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    timeout(deadline, work)
        .await
        .unwrap_or(Err(LinkError::Deadline(deadline.as_millis())))
}

/// The channel that was offered, if the guest says that it took it.
pub(super) async fn taken_channel(
    offered: Option<Offered>,
    is_taken: bool,
) -> Result<Option<Channel>, LinkError> {
    match (offered, is_taken) {
        (_, false) => Ok(None),
        (Some(offered), true) => offered.opened().await.map(Some),
        (None, true) => Err(LinkError::Protocol("a channel that was not offered".into())),
    }
}

/// Bytes on their way into the sandbox, until the guest has put them where they belong.
#[derive(Debug)]
pub(super) struct Upload {
    transfer: Transfer,
    channel: Option<Channel>,
}

impl Upload {
    pub(super) async fn begin(
        link: &Link,
        path: &'static str,
        head: &impl Serialize,
    ) -> Result<Self, LinkError> {
        let (transfer, serde::de::IgnoredAny) = Transfer::begin(link, path, head).await?;
        Ok(Self {
            transfer,
            channel: None,
        })
    }

    /// The same with an offer of a channel for the bytes, where there is one left.
    pub(super) async fn begin_with_channel(
        link: &Link,
        path: &'static str,
        request: &(impl Serialize + Clone),
    ) -> Result<Self, LinkError> {
        let offered = link.offer_channel();
        let head = Offer {
            request: request.clone(),
            channel: offered.as_ref().map(|offered| offered.number),
        };
        let (transfer, taken): (_, Option<Taken<Nothing>>) =
            Transfer::begin(link, path, &head).await?;
        let is_taken = taken.is_some_and(|taken| taken.on_channel);
        Ok(Self {
            transfer,
            channel: taken_channel(offered, is_taken).await?,
        })
    }

    pub(super) const fn has_channel(&self) -> bool {
        self.channel.is_some()
    }

    /// Sends bytes; waits while the guest does not take them. What the guest says meanwhile is why it takes no more.
    pub(super) async fn write(&mut self, mut data: Bytes) -> Result<(), LinkError> {
        if let Some(channel) = &mut self.channel {
            let incoming = &mut self.transfer.incoming;
            return tokio::select! {
                biased;
                early = incoming.frame() => Err(early.err().unwrap_or_else(unexpected)),
                sent = channel.write(data) => {
                    if sent? {
                        return Ok(());
                    }
                    // It hung up, and says why.
                    let why = in_time(CONTROL_DEADLINE, incoming.frame()).await;
                    Err(why.err().unwrap_or_else(unexpected))
                }
            };
        }
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(MAX_FRAME_PAYLOAD_BYTES));
            self.send(TransferFrame::Data(piece)).await?;
        }
        Ok(())
    }

    /// Says that this was all, and waits for the guest's answer.
    pub(super) async fn commit<A: DeserializeOwned>(
        mut self,
        deadline: Duration,
    ) -> Result<A, LinkError> {
        if let Some(channel) = &mut self.channel {
            channel.finish().await;
        }
        self.send(TransferFrame::End).await?;
        in_time(deadline, self.transfer.incoming.only_item()).await
    }

    async fn send(&mut self, frame: TransferFrame) -> Result<(), LinkError> {
        let chunk = frame.encode()?;
        let Transfer { incoming, outgoing } = &mut self.transfer;
        in_time(STALL_DEADLINE, async {
            tokio::select! {
                biased;
                early = incoming.frame() => match early {
                    Ok(_) => Err(unexpected()),
                    Err(error) => Err(error),
                },
                sent = outgoing.send(chunk) => sent.map_err(|_| LinkError::Gone),
            }
        })
        .await
    }
}
