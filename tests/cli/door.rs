//! A daemon's door of which every answer is written by the test: plain answers, streams, sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message, WebSocket};

use super::casemate;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A request.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Method and target.
    pub line: String,
    pub head: String,
    pub body: Vec<u8>,
}

impl Heard {
    pub fn header(&self, wanted: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A door, open as long as the test runs.
pub struct Door {
    url: String,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Door {
    /// Answers every request on a thread of its own.
    pub fn open(answer: impl Fn(&Heard, TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&heard);
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (record, answer) = (Arc::clone(&record), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    let Some(request) = read(&stream) else { return };
                    record.lock().unwrap().push(request.clone());
                    answer(&request, stream);
                });
            }
        });
        Self { url, heard }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = casemate(arguments);
        command.env("CASEMATE_URL", &self.url);
        command.env("CASEMATE_API_KEY", "cmk_a_b");
        command
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    pub fn lines(&self) -> Vec<String> {
        self.heard().into_iter().map(|heard| heard.line).collect()
    }
}

/// A request with its body; `None` when the client goes away before its end.
fn read(stream: &TcpStream) -> Option<Heard> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let line = head.lines().next()?.strip_suffix(" HTTP/1.1")?.to_owned();
    let mut request = Heard {
        line,
        head,
        body: Vec::new(),
    };
    if let Some(length) = request.header("content-length") {
        request.body = vec![0; length.parse().unwrap()];
        reader.read_exact(&mut request.body).ok()?;
    } else if request.header("transfer-encoding").is_some() {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            request.body.extend(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    }
    Some(request)
}

/// Answers whole.
pub fn say(mut stream: TcpStream, status: u16, kind: &str, body: &[u8]) {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
}

pub fn say_json(stream: TcpStream, status: u16, body: &Value) {
    say(
        stream,
        status,
        "application/json",
        body.to_string().as_bytes(),
    );
}

pub fn say_problem(stream: TcpStream, status: u16, code: &str) {
    let body = json!({"type": "about:blank", "title": "t", "status": status, "code": code,
        "detail": "it is so", "request_id": "req_1"});
    let body = body.to_string();
    say(stream, status, "application/problem+json", body.as_bytes());
}

/// Begins an answer of which the end is that of the connection's.
pub fn begin(mut stream: &TcpStream, kind: &str) {
    let head =
        format!("HTTP/1.1 200 X\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
}

/// One chunk; an empty one is the proper end.
pub fn chunk(mut stream: &TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes());
    let _ = stream.write_all(bytes);
    let _ = stream.write_all(b"\r\n");
}

/// The door's end of a socket.
pub struct Talk(WebSocket<TcpStream>);

impl Talk {
    /// Agrees to be a WebSocket of casemated's.
    pub fn begin(heard: &Heard, mut stream: TcpStream) -> Self {
        assert_eq!(
            heard.header("sec-websocket-protocol"),
            Some("casemate.process.v1")
        );
        assert_eq!(heard.header("authorization"), Some("Bearer cmk_a_b"));
        let accept = derive_accept_key(heard.header("sec-websocket-key").unwrap().as_bytes());
        let accepted = format!(
            "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\nsec-websocket-protocol: casemate.process.v1\r\n\r\n"
        );
        stream.write_all(accepted.as_bytes()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(WebSocket::from_raw_socket(stream, Role::Server, None))
    }

    /// The next message; `None` when the socket is closed or gone.
    pub fn hear(&mut self) -> Option<Message> {
        match self.0.read() {
            Ok(Message::Close(_)) | Err(_) => None,
            Ok(message) => Some(message),
        }
    }

    /// The next message, which is JSON.
    pub fn hear_json(&mut self) -> Value {
        let message = self.hear().expect("the socket is open");
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }

    /// What was typed, up to so many bytes.
    pub fn hear_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            match self.hear() {
                Some(Message::Binary(more)) => bytes.extend(&more),
                other => panic!("{other:?} after {bytes:?}"),
            }
        }
        bytes
    }

    pub fn say(&mut self, said: &Value) {
        let _ = self.0.send(Message::text(said.to_string()));
    }

    /// Output: 1 or 2, and its bytes. False when nobody is there.
    pub fn put(&mut self, which: u8, bytes: &[u8]) -> bool {
        let mut message = vec![which];
        message.extend(bytes);
        self.0.send(Message::binary(message)).is_ok()
    }

    /// The process's end, and the socket's.
    pub fn exit(&mut self, fields: &Value) {
        let mut said = json!({"type": "exit", "timed_out": false, "duration_ms": 1});
        for (name, value) in fields.as_object().unwrap() {
            said[name] = value.clone();
        }
        self.say(&said);
        let _ = self.0.close(None);
        while self.hear().is_some() {}
    }
}
