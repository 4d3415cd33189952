//! One stream that carries bytes or documents, seen from the guest: what was asked, what comes, what goes.

use std::future::Future;

use bytes::Bytes;
use casemate_link::limits::{FRAME_QUEUE, START_DEADLINE};
use casemate_link::refusal::{Refusal, code};
use casemate_link::wire::{Chunk, FrameReader, TransferFrame};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::child::refusal;

/// Both directions of a transfer, after its head was read. When the daemon hangs up, sending fails.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) input: Input,
    pub(crate) output: Output,
}

/// What comes from the daemon.
#[derive(Debug)]
pub(crate) struct Input(FrameReader<TransferFrame>);

/// What goes to the daemon.
#[derive(Debug, Clone)]
pub(crate) struct Output(mpsc::Sender<Chunk>);

/// Starts the task that does the work of one transfer. How it failed is the last thing that it says; its success is for
/// the work itself to say.
pub(crate) fn attend<H, W>(
    body: Incoming,
    work: impl FnOnce(H, Transfer) -> W + 'static,
) -> mpsc::Receiver<Chunk>
where
    H: DeserializeOwned + 'static,
    W: Future<Output = Result<(), Refusal>> + 'static,
{
    let (frames, answer) = mpsc::channel(FRAME_QUEUE);
    let output = Output(frames);
    let transfer = Transfer {
        input: Input(FrameReader::new(body)),
        output: output.clone(),
    };
    spawn_local(async move {
        if let Err(refusal) = begin(transfer, work).await {
            output.send(TransferFrame::Failed(refusal)).await;
        }
    });
    answer
}

async fn begin<H: DeserializeOwned, W: Future<Output = Result<(), Refusal>>>(
    mut transfer: Transfer,
    work: impl FnOnce(H, Transfer) -> W,
) -> Result<(), Refusal> {
    let head = timeout(START_DEADLINE, transfer.input.0.next()).await;
    let Ok(Ok(Some(TransferFrame::Head(json)))) = head else {
        return Err(refusal(
            code::BAD_REQUEST,
            "a stream that does not begin with its head",
        ));
    };
    let head = serde_json::from_slice(&json)
        .map_err(|_| refusal(code::BAD_REQUEST, "not the expected document"))?;
    work(head, transfer).await
}

impl Input {
    /// The next bytes; `None` when all were sent.
    ///
    /// # Errors
    /// When the daemon went away first, or broke the protocol: what came is not whole.
    pub(crate) async fn data(&mut self) -> Result<Option<Bytes>, Refusal> {
        match self.0.next().await {
            Ok(Some(TransferFrame::Data(data))) => Ok(Some(data)),
            Ok(Some(TransferFrame::End)) => Ok(None),
            _ => Err(refusal(code::BAD_REQUEST, "the stream was cut short")),
        }
    }
}

impl Output {
    /// Says that the work begins. False when nobody listens any more, here and below.
    pub(crate) async fn head(&self, document: &impl Serialize) -> bool {
        self.pass(TransferFrame::head(document)).await
    }

    /// Says one document.
    pub(crate) async fn item(&self, document: &impl Serialize) -> bool {
        self.pass(TransferFrame::item(document)).await
    }

    /// Says one document, and that it was all.
    pub(crate) async fn only(&self, document: &impl Serialize) {
        if self.item(document).await {
            self.end().await;
        }
    }

    /// Says bytes, at most [`casemate_link::limits::MAX_FRAME_PAYLOAD_BYTES`].
    pub(crate) async fn data(&self, data: Bytes) -> bool {
        self.send(TransferFrame::Data(data)).await
    }

    /// Says that this was all.
    pub(crate) async fn end(&self) -> bool {
        self.send(TransferFrame::End).await
    }

    /// Waits until nobody listens any more.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }

    async fn send(&self, frame: TransferFrame) -> bool {
        self.pass(frame.encode()).await
    }

    async fn pass(&self, chunk: Result<Chunk, casemate_link::wire::WireError>) -> bool {
        match chunk {
            Ok(chunk) => self.0.send(chunk).await.is_ok(),
            // Over a bound of the protocol's: the daemon would not take it either.
            Err(_) => false,
        }
    }
}
