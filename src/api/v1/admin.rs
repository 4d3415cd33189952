//! Operators from elsewhere: the bytes of the admin socket's protocol, as binary messages of a WebSocket.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::api::error::Problem;
use crate::api::route::{Call, Reply};
use crate::api::socket::{Message, Socket};

/// The sub-protocol: each side's binary messages are its bytes, cut as it likes.
pub(crate) const PROTOCOL: &str = "casemate.admin.v1";

/// Most bytes of one message of ours.
const PIECE_BYTES: usize = 64 * 1024;

/// Close code of a client that says something else than bytes (RFC 6455 section 7.4.1).
const UNSUPPORTED: u16 = 1003;

/// `GET /v1/admin`: one command.
#[expect(clippy::unused_async, reason = "a handler is asynchronous")]
pub(crate) async fn open(call: &Call) -> Result<Reply, Problem> {
    let line = call.app.administer(call.principal()?, call.stop.clone())?;
    Reply::upgrade(call, move |socket| carry(socket, line))
}

/// Carries bytes both ways until the desk has said all, or the client is gone.
async fn carry(socket: Socket, line: DuplexStream) {
    let (sender, mut receiver) = socket.split();
    let (mut from_desk, mut to_desk) = tokio::io::split(line);
    let hearing = async {
        while let Some(message) = receiver.receive().await {
            let Message::Binary(bytes) = message else {
                return sender.close(UNSUPPORTED, "binary messages only").await;
            };
            if to_desk.write_all(&bytes).await.is_err() {
                // It hears no more and may still have something to say.
                std::future::pending::<()>().await;
            }
        }
    };
    let telling = async {
        loop {
            let mut piece = BytesMut::with_capacity(PIECE_BYTES);
            match from_desk.read_buf(&mut piece).await {
                Ok(read) if read > 0 => {}
                _ => return,
            }
            if sender.send(Message::Binary(piece.freeze())).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = telling => {}
        () = hearing => {}
    }
}
