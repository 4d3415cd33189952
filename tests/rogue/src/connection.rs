//! HTTP/2 by hand (RFC 9113), as far as a server needs it that does not care: frames in and out, and both windows, so that
//! what is said in good order can be long.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};

use serde_json::Value;

use crate::{dial, script};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// The first frame of a start, by its kind.
const START: u8 = 1;

/// What the daemon has in its preface before its first frame.
const PREFACE: usize = 24;

/// Both windows, as the daemon opens them.
struct Windows {
    connection: i64,
    /// Of each stream; one that is not here has `initial`.
    streams: HashMap<u32, i64>,
    initial: i64,
    is_over: bool,
}

/// A connection to the daemon, for all threads.
pub struct Connection {
    writer: Mutex<UnixStream>,
    /// The same, for whoever must not wait for a writer.
    socket: UnixStream,
    windows: Mutex<Windows>,
    opened: Condvar,
    /// What every request is answered with.
    script: Mutex<Arc<Vec<String>>>,
}

/// What every request is answered with, also on the next connection.
static SCRIPT: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Answers requests until the connection ends.
pub fn serve(mut reader: UnixStream) -> io::Result<()> {
    let script = lock(&SCRIPT).clone();
    let connection = Arc::new(Connection {
        writer: Mutex::new(reader.try_clone()?),
        socket: reader.try_clone()?,
        windows: Mutex::new(Windows {
            connection: 65_535,
            streams: HashMap::new(),
            initial: 65_535,
            is_over: false,
        }),
        opened: Condvar::new(),
        script: Mutex::new(Arc::new(script)),
    });
    // A thousand streams at once, a window of a mebibyte for each, and one without a bound for all.
    let settings = [0, 3, 0, 0, 3, 0xe8, 0, 4, 0, 0x10, 0, 0];
    connection.frame(SETTINGS, 0, 0, &settings)?;
    connection.frame(WINDOW_UPDATE, 0, 0, &0x4000_0000_u32.to_be_bytes())?;
    // What is read is answered apart, or a flood of its own would keep the rogue from reading, and then the daemon.
    let (duty, duties) = mpsc::channel::<Duty>();
    let dutiful = Arc::clone(&connection);
    std::thread::spawn(move || {
        for (kind, flags, stream, payload) in duties {
            if dutiful.frame(kind, flags, stream, &payload).is_err() {
                break;
            }
        }
    });
    let read = listen(&mut reader, &connection, &duty);
    lock(&connection.windows).is_over = true;
    connection.opened.notify_all();
    connection.hang_up();
    read
}

/// A frame that is owed to the daemon: type, flags, stream, payload.
type Duty = (u8, u8, u32, Vec<u8>);

fn listen(
    reader: &mut UnixStream,
    connection: &Arc<Connection>,
    duty: &mpsc::Sender<Duty>,
) -> io::Result<()> {
    // Nobody is left to do a duty once the connection is over.
    let owe = |kind, flags, stream, payload: &[u8]| {
        let _ = duty.send((kind, flags, stream, payload.to_vec()));
    };
    reader.read_exact(&mut [0; PREFACE])?;
    let mut requests: HashMap<u32, Vec<u8>> = HashMap::new();
    loop {
        let mut head = [0; 9];
        reader.read_exact(&mut head)?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        let stream = u32::from_be_bytes(stream);
        let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
        reader.read_exact(&mut payload)?;
        match kind {
            SETTINGS if flags & ACK == 0 => {
                connection.set(&payload);
                owe(SETTINGS, ACK, 0, &[]);
            }
            PING if flags & ACK == 0 => owe(PING, ACK, 0, &payload),
            WINDOW_UPDATE => connection.open(stream, &payload),
            HEADERS if flags & END_STREAM != 0 => connection.answer(stream),
            HEADERS => drop(requests.insert(stream, Vec::new())),
            DATA => {
                if length > 0 {
                    owe(WINDOW_UPDATE, 0, 0, &length.to_be_bytes());
                    if flags & END_STREAM == 0 {
                        owe(WINDOW_UPDATE, 0, stream, &length.to_be_bytes());
                    }
                }
                if let Some(request) = requests.get_mut(&stream) {
                    request.extend_from_slice(&payload);
                    if heard(connection, stream, request) {
                        requests.remove(&stream);
                    }
                }
            }
            RST_STREAM => drop(requests.remove(&stream)),
            _ => {}
        }
    }
}

/// Answers a request once its first frame is there; a program called `rogue` is a new script.
fn heard(connection: &Arc<Connection>, stream: u32, request: &[u8]) -> bool {
    let [START, a, b, c, d, document @ ..] = request else {
        if request.is_empty() {
            return false;
        }
        remember_channel(request);
        connection.answer(stream);
        return true;
    };
    let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
    let Some(document) = document.get(..length) else {
        return false;
    };
    let document: Value = serde_json::from_slice(document).unwrap_or(Value::Null);
    let words = document.get("argv").and_then(Value::as_array);
    let mut words = words
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned);
    if words.next().as_deref() == Some("rogue") {
        let words: Vec<String> = words.collect();
        lock(&SCRIPT).clone_from(&words);
        *lock(&connection.script) = Arc::new(words);
        let obeyed: Vec<String> = script::OBEYED.iter().map(|&line| line.to_owned()).collect();
        connection.perform(stream, Arc::new(obeyed));
    } else {
        connection.answer(stream);
    }
    true
}

/// Keeps the channel that a request for a file's bytes offers.
fn remember_channel(request: &[u8]) {
    let document = request.get(5..).unwrap_or_default();
    let mut first = serde_json::Deserializer::from_slice(document).into_iter::<Value>();
    let first = first.find_map(Result::ok);
    let number = first.and_then(|document| document.get("channel").and_then(Value::as_u64));
    if let Some(number) = number {
        dial::offered(number);
    }
}

impl Connection {
    /// Performs the script in answer to a request, beside everything else.
    fn answer(self: &Arc<Self>, stream: u32) {
        let script = Arc::clone(&lock(&self.script));
        self.perform(stream, script);
    }

    fn perform(self: &Arc<Self>, stream: u32, script: Arc<Vec<String>>) {
        let this = Arc::clone(self);
        std::thread::spawn(move || {
            // The daemon may hang up at any line.
            if let Err(error) = script::perform(&this, stream, &script) {
                eprintln!("rogue: in the middle of a script: {error}");
            }
        });
    }

    /// Writes a frame, whatever it is.
    pub fn frame(&self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.claim(kind, flags, stream, length, payload)
    }

    /// Writes a frame that claims to be as long as it likes.
    pub fn claim(
        &self,
        kind: u8,
        flags: u8,
        stream: u32,
        length: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        let [_, a, b, c] = length.to_be_bytes();
        let mut bytes = vec![a, b, c, kind, flags];
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.bytes(&bytes)
    }

    /// Writes bytes.
    pub fn bytes(&self, bytes: &[u8]) -> io::Result<()> {
        lock(&self.writer).write_all(bytes)
    }

    /// Writes data in good order: pieces of a kibibyte at least, when the daemon has room for them.
    pub fn data(&self, stream: u32, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.room(stream, bytes.len().min(16 * 1024))?;
            let (piece, rest) = bytes.split_at(room.min(bytes.len()));
            self.frame(DATA, 0, stream, piece)?;
            bytes = rest;
        }
        Ok(())
    }

    /// Takes room out of both windows; waits while there is none.
    fn room(&self, stream: u32, wanted: usize) -> io::Result<usize> {
        let mut windows = lock(&self.windows);
        loop {
            if windows.is_over {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let initial = windows.initial;
            let own = *windows.streams.entry(stream).or_insert(initial);
            let room = own.min(windows.connection);
            if let Ok(room) = usize::try_from(room)
                && room > 0
            {
                let taken = room.min(wanted);
                let change = i64::try_from(taken).unwrap_or(0);
                windows.connection -= change;
                *windows.streams.entry(stream).or_insert(initial) -= change;
                return Ok(taken);
            }
            windows = self
                .opened
                .wait(windows)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn open(&self, stream: u32, payload: &[u8]) {
        let &[a, b, c, d] = payload else { return };
        let more = i64::from(u32::from_be_bytes([a, b, c, d]));
        let mut windows = lock(&self.windows);
        let initial = windows.initial;
        match stream {
            0 => windows.connection += more,
            _ => *windows.streams.entry(stream).or_insert(initial) += more,
        }
        self.opened.notify_all();
    }

    fn set(&self, settings: &[u8]) {
        for setting in settings.chunks_exact(6) {
            if let &[0, 4, a, b, c, d] = setting {
                lock(&self.windows).initial = i64::from(u32::from_be_bytes([a, b, c, d]));
            }
        }
    }

    /// Ends the connection.
    pub fn hang_up(&self) {
        // It may be over already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
