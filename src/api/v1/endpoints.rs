//! Links to ports in sessions, and byte streams to them, on the wire.
//!
//! A byte stream is a WebSocket: binary messages are its bytes, both ways. The text message `end` says that no more bytes come from
//! whoever sends it; the stream is closed when both have said so, or the program is gone.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::api::body;
use crate::api::endpoint::LINK;
use crate::api::error::Problem;
use crate::api::route::{Call, Reply};
use crate::api::socket::{Message, SocketReceiver, SocketSender};
use crate::base::clock::Timestamp;
use crate::endpoint::{Raw, address};
use crate::model::endpoint::Target;

/// The sub-protocol: this page's messages.
pub(crate) const PROTOCOL: &str = "casemate.port.v1";

/// How long a link lasts when nobody says.
const LINK_LIFE_S: u64 = 3600;

/// Bytes of a message at most.
const MESSAGE_BYTES: usize = 64 * 1024;

/// No more bytes come.
const END: &str = "end";

/// Close code of a stream whose client did not keep to the messages (RFC 6455 section 7.4.1).
const BAD_MESSAGE: u16 = 1008;

/// Close code of a stream that broke off.
const FAILED: u16 = 1011;

/// What a link shall be.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateLink {
    /// How long it is good: 1 s to 24 h; an hour when absent. It ends with its session and with the key of whoever makes it in any case.
    expires_in_s: Option<u64>,
}

/// A signed link to a port.
#[derive(Serialize, JsonSchema)]
pub(crate) struct LinkView {
    /// Whoever has it reaches the port: give it to those who shall.
    url: String,
    /// Until when it is good.
    expires_at: Timestamp,
}

fn target(call: &Call) -> Result<Target, Problem> {
    let no_port = |_| Problem::bad_request("a port is 1 to 65535");
    let port: u16 = call.segment("port").map_err(no_port)?;
    if port == 0 {
        return Err(Problem::bad_request("a port is 1 to 65535"));
    }
    Ok(Target {
        session: call.segment("id")?,
        port,
    })
}

pub(crate) async fn link(call: &Call) -> Result<Reply, Problem> {
    let wanted: CreateLink = if call.body.is_empty() {
        CreateLink::default()
    } else {
        body::json(call)?
    };
    let life = Duration::from_secs(wanted.expires_in_s.unwrap_or(LINK_LIFE_S));
    let target = target(call)?;
    let made = call
        .app
        .link_endpoint(call.principal()?, target, life)
        .await?;
    let (text, expires_at) = made;
    let url = format!("{}?{LINK}={text}", base(call, target));
    Ok(Reply::json(
        StatusCode::CREATED,
        &LinkView { url, expires_at },
    ))
}

/// Where the port is: by host name where there is a domain, else by path, below what the client calls us.
fn base(call: &Call, target: Target) -> String {
    let addressed = call
        .headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let addressed = addressed
        .map(str::to_owned)
        .or_else(|| call.authority.clone());
    let addressed = addressed.unwrap_or_else(|| "localhost".to_owned());
    let scheme = if call.is_tls { "https" } else { "http" };
    match &call.app.endpoints().domain {
        None => format!("{scheme}://{addressed}{}/", address::path_of(target)),
        Some(domain) => {
            let after = addressed.rfind(']').unwrap_or(0);
            let port = addressed.get(after..).and_then(|rest| rest.split_once(':'));
            let port = port.map(|(_, port)| format!(":{port}")).unwrap_or_default();
            format!("{scheme}://{}{port}/", address::host_of(target, domain))
        }
    }
}

pub(crate) async fn stream(call: &Call) -> Result<Reply, Problem> {
    let target = target(call)?;
    // Before the upgrade, so that what cannot be is an ordinary answer.
    let raw = call.app.forward_port(call.principal()?, target).await?;
    Reply::upgrade(call, move |socket| async move {
        let (sender, receiver) = socket.split();
        let (from_program, to_program) = tokio::io::split(raw);
        let outward = outward(from_program, &sender);
        let inward = inward(receiver, to_program);
        let (mut outward, mut inward) = (std::pin::pin!(outward), std::pin::pin!(inward));
        let (mut has_said_all, mut has_heard_all) = (false, false);
        while !(has_said_all && has_heard_all) {
            let ended = tokio::select! {
                biased;
                ended = outward.as_mut(), if !has_said_all => {
                    has_said_all = true;
                    ended
                }
                ended = inward.as_mut(), if !has_heard_all => {
                    has_heard_all = true;
                    ended
                }
            };
            if let Err(Ended { code, why }) = ended {
                return sender.close(code, why).await;
            }
        }
    })
}

/// Why a stream is over before both have said all.
struct Ended {
    code: u16,
    why: &'static str,
}

const BROKEN: Ended = Ended {
    code: FAILED,
    why: "the connection to the program broke off",
};

async fn outward(mut from: ReadHalf<Raw>, to: &SocketSender) -> Result<(), Ended> {
    let mut buffer = vec![0; MESSAGE_BYTES];
    loop {
        let read = from.read(&mut buffer).await.map_err(|_| BROKEN)?;
        let data = buffer.get(..read).unwrap_or_default();
        let message = if data.is_empty() {
            Message::Text(END.to_owned())
        } else {
            Message::Binary(Bytes::copy_from_slice(data))
        };
        let sent = to.send(message).await;
        if read == 0 || sent.is_err() {
            return Ok(());
        }
    }
}

async fn inward(mut from: SocketReceiver, mut to: WriteHalf<Raw>) -> Result<(), Ended> {
    loop {
        match from.receive().await {
            Some(Message::Binary(data)) => to.write_all(&data).await.map_err(|_| BROKEN)?,
            Some(Message::Text(text)) if text == END => {
                return to.shutdown().await.map_err(|_| BROKEN);
            }
            Some(Message::Text(_)) => {
                return Err(Ended {
                    code: BAD_MESSAGE,
                    why: "the only text is end",
                });
            }
            None => return Err(BROKEN),
        }
    }
}
