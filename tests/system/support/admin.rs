//! An operator at the admin socket, as root or as somebody else.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use casemate::admin::protocol::{self, Answer, Envelope, Request, VERSION};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_util::codec::Framed;

use super::wait::PATIENCE;

/// Asks as root; the last answer.
pub async fn ask(socket: &Path, request: Request) -> Answer {
    ask_with(socket, request, &[]).await.0
}

/// Asks as root and sends `chunks` after the question; the last answer, and the progress before it.
pub async fn ask_with(socket: &Path, request: Request, chunks: &[Bytes]) -> (Answer, Vec<u64>) {
    let envelope = Envelope {
        version: VERSION,
        request,
    };
    let work = async {
        let stream = UnixStream::connect(socket).await.unwrap();
        let (mut sink, mut answers) = Framed::new(stream, protocol::codec()).split();
        sink.send(serde_json::to_vec(&envelope).unwrap().into())
            .await
            .unwrap();
        let sending = async {
            for chunk in chunks {
                // The daemon may have had enough already.
                if sink.send(chunk.clone()).await.is_err() {
                    break;
                }
            }
        };
        let receiving = async {
            let mut progress = Vec::new();
            loop {
                let frame = answers.next().await.expect("no answer").unwrap();
                match serde_json::from_slice(&frame).unwrap() {
                    Answer::Progress { received_bytes, .. } => progress.push(received_bytes),
                    last => return (last, progress),
                }
            }
        };
        tokio::join!(sending, receiving).1
    };
    tokio::time::timeout(2 * PATIENCE, work)
        .await
        .expect("the admin socket does not answer")
}

/// A program that says one frame, read from its input, to a socket and prints the answer.
const SPEAKER: &str = "
import socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
s.connect(sys.argv[1])
try:
    s.sendall(sys.stdin.buffer.read())
except BrokenPipeError:
    pass  # it has refused us already, and says why
head = s.recv(4, socket.MSG_WAITALL)
sys.stdout.buffer.write(s.recv(struct.unpack('>I', head)[0], socket.MSG_WAITALL))
";

/// Asks as another user, with the groups that it has.
pub fn ask_as(user: &str, group: &str, socket: &Path, request: Request) -> Value {
    let envelope = Envelope {
        version: VERSION,
        request,
    };
    let frame = serde_json::to_vec(&envelope).unwrap();
    let mut bytes = u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(frame);
    let mut child = Command::new("setpriv")
        .args(["--reuid", user, "--regid", group, "--init-groups", "--"])
        .args(["/usr/bin/python3", "-c", SPEAKER])
        .arg(socket)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}
