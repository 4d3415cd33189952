//! The way out, seen from inside: whoever connects to a port of the loopback speaks to the daemon's proxy.
//!
//! Bytes are handed on as they are: what they mean, and whether they may go, is for the daemon to say. The socket lies beside
//! the link's, where no program can reach it. Only so many connections are open at one time; the next one waits in the kernel.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use casemate_link::limits::{EGRESS_PIECE_BYTES, MAX_EGRESS_CONNECTIONS};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::say;
use crate::wakeful::Wakeful;

/// The daemon's socket, in the link's directory, which is the guest's own.
const SOCKET: &str = "egress.sock";

/// Pause before something is tried again that the kernel refused.
const AGAIN: Duration = Duration::from_secs(1);

/// Listens on the port for as long as the guest lives; on none, if it was not told one.
pub(crate) async fn run(port: Option<u16>) -> Infallible {
    let Some(port) = port else {
        return std::future::pending().await;
    };
    let mut told = false;
    let listener = loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !told {
                    say(format_args!("way out: port {port}: {error}"));
                    told = true;
                }
                sleep(AGAIN).await;
            }
        }
    };
    let places = Arc::new(Semaphore::new(MAX_EGRESS_CONNECTIONS));
    loop {
        // Never closed, so there will be one.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return std::future::pending().await;
        };
        match listener.accept().await {
            Ok((program, _)) => {
                spawn_local(carry(program, place));
            }
            Err(_) => sleep(AGAIN).await,
        }
    }
}

async fn carry(mut program: TcpStream, place: OwnedSemaphorePermit) {
    // Without the daemon there is no way out, which a closed connection says.
    if let Ok(daemon) = UnixStream::connect(SOCKET).await {
        let _ = program.set_nodelay(true);
        let mut daemon = Wakeful::new(daemon);
        let piece = EGRESS_PIECE_BYTES;
        // How it ended, both ends know.
        let _ = copy_bidirectional_with_sizes(&mut program, &mut daemon, piece, piece).await;
    }
    drop(place);
}
