//! The bridge between the streams of the network and the thread that reads or writes a tar archive.
//! At most a few pieces stand on it, so that the slower side holds up the other one.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};

use crate::failure::Failure;

/// Bytes in a piece.
pub const PIECE_BYTES: usize = 128 << 10;

/// Pieces on the bridge.
const WAITING_PIECES: usize = 8;

/// What the thread reads.
pub struct PieceReader {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
    has_ended: bool,
}

/// What feeds it. Dropped without [`PieceSource::end`], the reader is told that something is missing.
pub struct PieceSource(mpsc::Sender<Bytes>);

/// A reader for the thread, and what feeds it.
pub fn inward() -> (PieceSource, PieceReader) {
    let (sender, pieces) = mpsc::channel(WAITING_PIECES);
    let reader = PieceReader {
        pieces,
        current: Bytes::new(),
        has_ended: false,
    };
    (PieceSource(sender), reader)
}

impl PieceSource {
    /// Whether the thread still reads.
    pub async fn send(&self, piece: Bytes) -> bool {
        piece.is_empty() || self.0.send(piece).await.is_ok()
    }

    /// Says that all is there.
    pub async fn end(self) {
        // A thread that reads no more needs no end.
        let _ = self.0.send(Bytes::new()).await;
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() && !self.has_ended {
            match self.pieces.blocking_recv() {
                Some(piece) => {
                    self.has_ended = piece.is_empty();
                    self.current = piece;
                }
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = buffer.len().min(self.current.len());
        if let Some(room) = buffer.get_mut(..count) {
            self.current.copy_to_slice(room);
        }
        Ok(count)
    }
}

/// What the thread writes.
pub struct PieceWriter {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

/// A writer for the thread, and what comes out of it.
pub fn outward() -> (PieceWriter, mpsc::Receiver<io::Result<Bytes>>) {
    let (pieces, receiver) = mpsc::channel(WAITING_PIECES);
    let writer = PieceWriter {
        pieces,
        buffer: BytesMut::with_capacity(PIECE_BYTES),
    };
    (writer, receiver)
}

impl PieceWriter {
    /// Cuts what comes out off, so that it is not taken for whole.
    pub fn break_off(&self) {
        let broken = io::Error::from(io::ErrorKind::BrokenPipe);
        let _ = self.pieces.blocking_send(Err(broken));
    }

    fn pass(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(PIECE_BYTES));
        let sent = self.pieces.blocking_send(Ok(full.freeze()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE_BYTES.saturating_sub(self.buffer.len());
        let some = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.buffer.extend_from_slice(some);
        if self.buffer.len() >= PIECE_BYTES {
            self.pass()?;
        }
        Ok(some.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass()
    }
}

/// Work on a thread of its own, as files and archives block. What it comes to can be waited for; so can
/// its end, by who has the other end of `alive`, when nobody wants to know any more.
pub fn aside<T: Send + 'static>(
    name: &str,
    alive: &mpsc::Sender<()>,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<oneshot::Receiver<Result<T, Failure>>, Failure> {
    let (done, end) = oneshot::channel();
    let alive = alive.clone();
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread
        .spawn(move || {
            // Nobody waits any more when casemate was interrupted.
            let _ = done.send(work());
            drop(alive);
        })
        .map_err(|error| Failure::io("start a thread", &error))?;
    Ok(end)
}
