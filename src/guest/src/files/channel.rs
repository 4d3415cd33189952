//! A file's bytes on a connection of their own, beside the link: one long system call after the other on a thread, instead
//! of frames.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use casemate_link::guest::ChannelDialer;
use casemate_link::limits::{CHANNEL_PART_BYTES, MAX_CHANNELS};
use casemate_link::refusal::{Refusal, code};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::actor::{Actor, begin_open, joined};
use super::carry::{Sink, undo};
use super::read::Reading;
use crate::child::refusal;
use crate::transfer::{Input, Output};

/// What opens channels beside the link that a request came on.
#[derive(Debug, Clone)]
pub(crate) struct Channels {
    dialer: Rc<ChannelDialer>,
    places: Arc<Semaphore>,
}

impl Channels {
    /// None is open yet.
    pub(crate) fn places() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(MAX_CHANNELS))
    }

    pub(crate) fn new(dialer: ChannelDialer, places: &Arc<Semaphore>) -> Self {
        Self {
            dialer: Rc::new(dialer),
            places: Arc::clone(places),
        }
    }
}

/// The channel that came with a request, if one did.
#[derive(Debug)]
pub(crate) struct Offered(Option<(Channels, u64)>);

impl Offered {
    pub(crate) fn new(channels: Option<Channels>, number: Option<u64>) -> Self {
        Self(channels.zip(number))
    }

    pub(crate) const fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Opens it. None is no failure: then the bytes go over the link.
    pub(crate) async fn open(self) -> Option<Channel> {
        let (channels, number) = self.0?;
        let place = channels.places.try_acquire_owned().ok()?;
        let stream = channels.dialer.dial(number).await.ok()?.into_std().ok()?;
        // Its thread waits in the kernel, which costs nothing but the thread.
        stream.set_nonblocking(false).ok()?;
        Some(Channel {
            stream,
            _place: place,
        })
    }
}

/// An open channel.
pub(crate) struct Channel {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

impl Channel {
    /// Sends so many bytes of a file, and that this was all; false when nobody listens any more.
    pub(crate) async fn send(self, mut reading: Reading, output: &Output) -> Result<bool, Refusal> {
        let work = move |stream: &UnixStream| {
            let mut spare = None;
            while let Some(part) = reading.next(spare.take(), CHANNEL_PART_BYTES)? {
                if (&*stream).write_all(&part.bytes()).is_err() {
                    return Ok(false);
                }
                spare = part.buffer.try_into_mut().ok();
            }
            Ok(true)
        };
        self.work(output, work).await
    }

    /// Carries all that comes into a sink, to the end that the daemon says.
    ///
    /// # Errors
    /// The sink's, or that the input was cut; the sink is gone then.
    pub(crate) async fn pour<S: Sink>(
        self,
        actor: &Actor,
        mut sink: S,
        input: &mut Input,
        output: &Output,
    ) -> Result<S, Refusal> {
        const { assert!(!S::OPENS, "it would act as the guest") };
        let work = move |stream: &UnixStream| {
            let mut buffer = BytesMut::zeroed(CHANNEL_PART_BYTES);
            loop {
                let count = fill(stream, &mut buffer);
                if count == 0 {
                    return Ok((sink, Ok(())));
                }
                let part = buffer.split_to(count).freeze();
                let taken = sink.take(std::slice::from_ref(&part));
                if taken.is_err() {
                    return Ok((sink, taken));
                }
                buffer = whole_again(part, buffer);
            }
        };
        let (sink, taken) = self.work(output, work).await?;
        let cut = match taken {
            Err(refused) => Err(refused),
            Ok(()) => input.data().await.and_then(|more| match more {
                None => Ok(()),
                Some(_) => Err(refusal(code::BAD_REQUEST, "bytes beside the channel")),
            }),
        };
        match cut {
            Ok(()) => Ok(sink),
            Err(refused) => undo(actor, sink, refused).await,
        }
    }

    /// Does work on a thread, with the connection. When the link goes, whoever holds the daemon's end may hold it on: then
    /// the connection is cut here.
    async fn work<T: Send + 'static>(
        self,
        output: &Output,
        work: impl FnOnce(&UnixStream) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let stream = Arc::new(self.stream);
        let own = Arc::clone(&stream);
        let mut job = begin_open(move || work(&own));
        tokio::select! {
            biased;
            result = &mut job => return joined(result),
            () = output.closed() => {}
        }
        // One that is cut already is as good.
        let _ = stream.shutdown(Shutdown::Both);
        joined(job.await)
    }
}

/// Reads until the buffer is full or no more comes; how much there is. Whether it was all, the transfer's stream says.
///
/// Not with `MSG_WAITALL`: a call that has a part of the bytes already does not notice in gVisor (20240729) when the other side
/// ends at that moment, and waits for ever.
fn fill(mut stream: &UnixStream, buffer: &mut [u8]) -> usize {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    filled
}

/// The buffer of which a part was used.
fn whole_again(part: Bytes, rest: BytesMut) -> BytesMut {
    match part.try_into_mut() {
        Ok(mut part) => {
            part.unsplit(rest);
            part
        }
        // Nobody else holds it; if somebody did, a new one would be needed.
        Err(_) => BytesMut::zeroed(CHANNEL_PART_BYTES),
    }
}
