//! `casemate forward`: a port of this machine that leads to one in a session.
//!
//! Each connection is a byte stream of its own, recorded and allowed by casemated as every other way to a port. It listens on the
//! loopback only: whoever is on this machine can use it for as long as it runs.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::BytesMut;
use casemate::base::exit::Exit;
use casemate::base::id::SessionId;
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Context;
use super::stop::Stop;
use super::which::{Which, sole, which};
use crate::failure::Failure;
use crate::http::{Client, Message};
use crate::output;

/// The sub-protocol of byte streams to ports.
const PROTOCOL: &str = "casemate.port.v1";

/// The text that says that no more bytes come.
const END: &str = "end";

/// Connections at a time; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;

/// Bytes of a message.
const MESSAGE_BYTES: usize = 64 * 1024;

/// Close code of a stream that came to its end.
const ENDED: u16 = 1000;

/// Options of `casemate forward`.
#[derive(Args)]
pub struct Forward {
    /// Which port in the session
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Which session, by ID or name; the team's only live one when absent
    #[arg(long, value_name = "SESSION", value_parser = which)]
    session: Option<Which>,
    /// The port of this machine; the same number when absent, any free one when 0
    #[arg(long, value_name = "PORT")]
    local_port: Option<u16>,
}

impl Forward {
    /// Listens until it is ended; the exit code.
    pub async fn execute(self, context: &Context) -> Result<u8, Failure> {
        let client = Arc::new(context.client()?);
        let id = sole(self.session.as_ref(), &client).await?;
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, self.local_port.unwrap_or(self.port)));
        let failed = |error| {
            let what = format!("cannot listen on {local}: {error}; name another --local-port");
            Failure::new(Exit::Unavailable, what)
        };
        let listener = TcpListener::bind(local).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let mut stop = Stop::listen()?;
        if context.json {
            let said = json!({"address": local.to_string(), "session": id, "port": self.port});
            output::json(&said)?;
        } else {
            output::line(&format!(
                "{local} leads to port {} of {id}; Ctrl-C ends it",
                self.port
            ))?;
        }
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (listener.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                biased;
                exit = stop.asked() => return Ok(exit.code()),
                Some(_) = connections.join_next() => continue,
                accepted = accepted => accepted,
            };
            let Ok((stream, _)) = accepted else {
                // Whoever came went again.
                continue;
            };
            let client = Arc::clone(&client);
            let port = self.port;
            connections.spawn(async move {
                let _place = place;
                if let Err(failure) = carry(&client, id, port, stream).await {
                    output::tell(&failure.message);
                }
            });
        }
    }
}

/// Carries one connection to its end.
async fn carry(
    client: &Client,
    id: SessionId,
    port: u16,
    stream: TcpStream,
) -> Result<(), Failure> {
    let path = format!("/v1/sessions/{id}/streams/{port}");
    let (mut sender, mut receiver) = client.socket(&path, PROTOCOL).await?.split();
    let (mut from, mut to) = stream.into_split();
    let away = async {
        let mut buffer = BytesMut::with_capacity(MESSAGE_BYTES);
        // A program of this machine that is gone has said all that it says.
        while let Ok(1..) = from.read_buf(&mut buffer).await {
            sender.binary(buffer.split().freeze()).await;
            buffer.reserve(MESSAGE_BYTES);
        }
        sender.text(END.to_owned()).await;
        std::future::pending::<()>().await;
    };
    let home = async {
        loop {
            match receiver.receive().await? {
                Message::Binary(data) if to.write_all(&data).await.is_err() => return Ok(()),
                Message::Binary(_) => {}
                Message::Text(_) => drop(to.shutdown().await),
                Message::Closed { code: ENDED, .. } => return Ok(()),
                Message::Closed { reason, .. } => return Err(Failure::unavailable(reason)),
            }
        }
    };
    let done = tokio::select! {
        done = home => done,
        () = away => Ok(()),
    };
    sender.close().await;
    done
}
