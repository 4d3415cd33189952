//! The way in: hellos, right ones and others.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const LINK: &str = "/run/casemate/link/link.sock";
const TOKEN: &str = "/run/casemate/link/token";

/// A kernel's log may say anything, as a guest may that was taken over.
const HELLO: &str = r#"{"protocol":{"min":1,"max":1},"token":"%TOKEN%","guest_version":"rogue",
    "kernel":{"release":"","version":"","banner":"Starting gVisor..."},
    "capabilities":["process","attach","file","archive","port","usage","snapshot"]}"#;

/// The channel that came with the last request that had one.
static OFFERED: AtomicU64 = AtomicU64::new(0);

/// Hellos to say before the next right one, last first.
static STRANGE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Says these hellos, in this order, before the next right one.
pub fn say_next(mut hellos: Vec<String>) {
    hellos.reverse();
    *STRANGE.lock().unwrap_or_else(PoisonError::into_inner) = hellos;
}

/// Remembers a channel that was offered.
pub fn offered(number: u64) {
    OFFERED.store(number, Ordering::SeqCst);
}

/// Opens the channel that was offered last.
pub fn channel() -> io::Result<UnixStream> {
    channel_at(OFFERED.load(Ordering::SeqCst))
}

/// Dials with so many channels' numbers that nobody offered.
pub fn channels(count: u64) {
    for number in 0..count {
        drop(channel_at(u64::MAX - number));
    }
}

fn channel_at(number: u64) -> io::Result<UnixStream> {
    let token = token()?;
    hello_with(&format!(
        r#"{{"protocol":{{"min":1,"max":1}},"token":"{}","channel":{number}}}"#,
        token.trim()
    ))
}

/// Dials and says hello; the connection, when the daemon lets it in.
pub fn dial() -> io::Result<UnixStream> {
    let strange = STRANGE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let token = token()?;
    let hello = strange.as_deref().unwrap_or(HELLO);
    hello_with(&hello.replace("%TOKEN%", token.trim()))
}

/// The token, which is in the sandbox only until the first link.
fn token() -> std::io::Result<&'static str> {
    static KNOWN: OnceLock<String> = OnceLock::new();
    if let Some(token) = KNOWN.get() {
        return Ok(token);
    }
    let token = std::fs::read_to_string(TOKEN)?;
    Ok(KNOWN.get_or_init(|| token))
}

/// Dials so often at once, with right and wrong tokens, and hangs up again.
pub fn crowd(count: usize) {
    let token = token().unwrap_or_default();
    let wrong = "f".repeat(64);
    std::thread::scope(|scope| {
        for at in 0..count {
            let token = if at % 2 == 0 { token.trim() } else { &wrong };
            scope.spawn(move || drop(hello_with(&HELLO.replace("%TOKEN%", token))));
        }
    });
}

fn hello_with(json: &str) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(LINK)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
    stream.write_all(b"CMLK")?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(json.as_bytes())?;
    let mut head = [0; 8];
    stream.read_exact(&mut head)?;
    let [_, _, _, _, length @ ..] = head;
    let mut answer = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap_or(0)];
    stream.read_exact(&mut answer)?;
    if !answer.starts_with(b"{\"accepted\"") {
        return Err(io::Error::other(
            String::from_utf8_lossy(&answer).into_owned(),
        ));
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}
