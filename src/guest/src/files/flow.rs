//! The bytes of a tar stream on their way out: headers first, then what they announced, in buffers of a fixed size.
//!
//! A file that changes its size meanwhile is cut, or filled up with zeros, to what its header said: the stream stays whole.

use std::fs::File;
use std::io::Read;

use bytes::{Bytes, BytesMut};
use casemate_link::refusal::Refusal;
use tokio::task::JoinHandle;

use super::actor::finished;
use super::error::Doing;
use super::read::{Buffers, PART_BYTES, Part, buffer, send};
use super::tape;
use crate::transfer::Output;

/// What is to go out next.
#[derive(Default)]
pub(crate) struct Flow {
    /// Headers that are to be sent, and how much of them was.
    pub(crate) head: Vec<u8>,
    head_sent: usize,
    content: Option<Content>,
}

/// Where headers and files come from.
pub(crate) trait Source {
    /// What goes out for it.
    fn flow(&mut self) -> &mut Flow;

    /// Writes the next headers, and opens a file after the last of them; false when there are no more.
    fn step(&mut self) -> Result<bool, Refusal>;
}

/// Makes the next part of an archive, on a thread of its own.
pub(crate) type Step<S> = Box<dyn FnOnce() -> Result<(S, Part), Refusal> + Send>;

/// The next bytes of an archive; none when it is whole.
fn next(source: &mut impl Source, spare: Option<BytesMut>) -> Result<Part, Refusal> {
    let mut buffer = buffer(spare, PART_BYTES);
    let mut length = 0;
    while let Some(room) = buffer.get_mut(length..).filter(|room| !room.is_empty()) {
        let count = source.flow().fill(room)?;
        length += count;
        if count == 0 && !source.step()? {
            break;
        }
    }
    let buffer: Bytes = buffer.freeze();
    Ok(Part { buffer, length })
}

/// Sends an archive to its end: one part is on its way while a thread, which `begin` starts, makes the next. A receiver that
/// goes away ends it without an error.
pub(crate) async fn pour<S: Source + Send + 'static>(
    source: S,
    output: &Output,
    begin: impl Fn(Step<S>) -> JoinHandle<Result<(S, Part), Refusal>>,
) -> Result<(), Refusal> {
    let make = |mut source: S, spare: Option<BytesMut>| {
        begin(Box::new(move || {
            let part = next(&mut source, spare)?;
            Ok((source, part))
        }))
    };
    let mut buffers = Buffers::default();
    let (mut source, mut part) = finished(make(source, None)).await?;
    while part.length > 0 {
        let coming = make(source, buffers.take());
        let sent = send(output, &part).await;
        buffers.put(part);
        (source, part) = finished(coming).await?;
        if !sent {
            return Ok(());
        }
    }
    output.end().await;
    Ok(())
}

impl Flow {
    /// Sends so many bytes of a file after the headers.
    pub(crate) fn send(&mut self, file: File, size: u64) {
        self.content = Some(Content {
            file,
            left: size,
            padding: tape::padding_of(size),
        });
    }

    /// Bytes that are due; none when new headers are needed.
    fn fill(&mut self, room: &mut [u8]) -> Result<usize, Refusal> {
        let head = self.head.get(self.head_sent..).unwrap_or_default();
        if !head.is_empty() {
            let count = head.len().min(room.len());
            for (to, from) in room.iter_mut().zip(head) {
                *to = *from;
            }
            self.head_sent += count;
            return Ok(count);
        }
        self.head.clear();
        self.head_sent = 0;
        let Some(content) = &mut self.content else {
            return Ok(0);
        };
        let count = content.read(room)?;
        if count == 0 {
            self.content = None;
        }
        Ok(count)
    }
}

/// A file's bytes that are to come, and what fills up its last block.
struct Content {
    file: File,
    left: u64,
    padding: u64,
}

impl Content {
    /// The next bytes; none when all that the header promised is there.
    fn read(&mut self, room: &mut [u8]) -> Result<usize, Refusal> {
        let limit = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
        let (wanted, zeros) = (limit(self.left), limit(self.padding));
        if wanted > 0 {
            let room = room.get_mut(..wanted).unwrap_or_default();
            let count = loop {
                match self.file.read(room) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    read => break read.doing("reading a file")?,
                }
            };
            if count == 0 {
                // It became shorter.
                room.fill(0);
            }
            let count = if count == 0 { wanted } else { count };
            self.left -= u64::try_from(count).unwrap_or(u64::MAX).min(self.left);
            return Ok(count);
        }
        room.get_mut(..zeros).unwrap_or_default().fill(0);
        self.padding -= u64::try_from(zeros).unwrap_or(0);
        Ok(zeros)
    }
}
