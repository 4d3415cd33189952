//! Channels: connections beside the link, each for the bytes of one large file and for nothing else.
//!
//! Frames cost a sandbox a system call for each hundred kilobytes, and there a system call costs as much as copying them.
//! So the daemon offers a number with the request, the guest dials again with it and its token, and what the file holds
//! goes over that connection as it is. Everything that is *said* (what the file is, that it is whole, why it is not) stays
//! on the transfer's own stream: bytes on a channel mean nothing before it. A guest that does not take the offer is none
//! the worse.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::LinkError;
use super::transfer::in_time;
use crate::limits::{CHANNEL_READ_BYTES, HANDSHAKE_DEADLINE, MAX_CHANNELS, STALL_DEADLINE};

/// The channels of one guest, over all its links.
#[derive(Debug)]
pub struct Channels {
    /// Those that were offered, until the guest dials.
    offered: Mutex<HashMap<u64, oneshot::Sender<UnixStream>>>,
    next: AtomicU64,
    places: Arc<Semaphore>,
}

impl Channels {
    /// None yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            offered: Mutex::default(),
            next: AtomicU64::new(1),
            places: Arc::new(Semaphore::new(MAX_CHANNELS)),
        })
    }

    /// A number that the guest may dial with; `None` when all places are taken.
    pub(super) fn offer(self: &Arc<Self>) -> Option<Offered> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, arrival) = oneshot::channel();
        self.lock().insert(number, sender);
        Some(Offered {
            number,
            arrival,
            place: Some(place),
            channels: Arc::clone(self),
        })
    }

    /// Gives a connection to whoever offered its number; false when nobody did, or does any more.
    pub(super) fn hand(&self, number: u64, stream: UnixStream) -> bool {
        let waiting = self.lock().remove(&number);
        waiting.is_some_and(|waiting| waiting.send(stream).is_ok())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<UnixStream>>> {
        // Nothing panics while it is held, and a map is whole between its calls.
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel that the guest may open. Dropped, the offer is taken back.
#[derive(Debug)]
pub(super) struct Offered {
    pub(super) number: u64,
    arrival: oneshot::Receiver<UnixStream>,
    place: Option<OwnedSemaphorePermit>,
    channels: Arc<Channels>,
}

impl Offered {
    /// Waits for the connection of a guest that says that it has dialed.
    pub(super) async fn opened(mut self) -> Result<Channel, LinkError> {
        let stream = in_time(HANDSHAKE_DEADLINE, async {
            (&mut self.arrival).await.map_err(|_| LinkError::Gone)
        });
        Ok(Channel {
            stream: stream.await?,
            buffer: BytesMut::new(),
            _place: self.place.take(),
        })
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.channels.lock().remove(&self.number);
    }
}

/// An open channel. Dropped, it is cut, which the guest sees.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    buffer: BytesMut,
    _place: Option<OwnedSemaphorePermit>,
}

impl Channel {
    /// The next bytes; `None` when the guest sends no more, for whatever reason.
    pub(super) async fn read(&mut self) -> Result<Option<Bytes>, LinkError> {
        // Takes the same memory again when what was read into it is gone.
        self.buffer.reserve(CHANNEL_READ_BYTES);
        in_time(STALL_DEADLINE, async {
            // Reset or closed, the transfer's stream says what it means.
            let _ = self.stream.read_buf(&mut self.buffer).await;
            Ok(())
        })
        .await?;
        let data = self.buffer.split().freeze();
        Ok((!data.is_empty()).then_some(data))
    }

    /// Sends bytes; false when the guest takes no more.
    pub(super) async fn write(&mut self, mut data: Bytes) -> Result<bool, LinkError> {
        while !data.is_empty() {
            let sent = in_time(STALL_DEADLINE, async {
                Ok(self.stream.write_buf(&mut data).await.unwrap_or(0))
            });
            if sent.await? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Says that no more comes.
    pub(super) async fn finish(&mut self) {
        // A guest that is gone says so on the transfer's stream.
        let _ = self.stream.shutdown().await;
    }
}
