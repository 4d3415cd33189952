//! The daemon's whole end: a guest that was let in answers what it is asked with whatever the input says, as HTTP/2.
//!
//! The input is a list of things to say ([`Script`]), most of which HTTP/2 lets through, so that what lies behind it is
//! reached; the rest is raw. When it has said all, the guest hangs up: no call may outlive that.

use std::time::Duration;

use casemate_link::daemon::{Channels, Link, ProcessEvent};
use casemate_link::file::{
    FileChange, FileEvent, ListRequest, Made, MkdirRequest, Place, ReadRequest, StatRequest,
    WatchRequest,
};
use casemate_link::handshake::{CAPABILITIES, Hello, KernelReport, PROTOCOL};
use casemate_link::process::{AttachRequest, Selector, Started};
use casemate_link::wire::{ResponseFrame, TransferFrame};
use casemate_link::{LinkToken, ProcessSpec, Usage};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::daemon_decoder::{a_process, a_refusal, an_entry, an_exit};
use crate::input::{block_on, bytes_of};

/// Calls that the daemon makes, and so streams that the guest may answer: 1, 3, 5 …
const CALLS: usize = 10;

/// Longer than a machine with other work needs to hear that a connection has ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// Types of HTTP/2 frames (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;

/// Set when nothing follows on a stream, or when headers are complete.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Heads of answers (RFC 7541): a status out of the table, and a content type as it is.
const FRAMES_HEAD: &[u8] = b"\x88\x0f\x10\x1fapplication/vnd.casemate.frames";
const JSON_HEAD: &[u8] = b"\x88\x0f\x10\x10application/json";
const REFUSED_HEAD: &[u8] = b"\x8c\x0f\x10\x10application/json";

/// Says what the input says; see [`Script`].
pub fn run(data: &[u8]) {
    answered(data);
}

/// The calls that were answered to their end.
fn answered(data: &[u8]) -> usize {
    block_on(async {
        let (daemon, guest) = UnixStream::pair().expect("a pair of sockets");
        let hello = Hello {
            protocol: PROTOCOL,
            token: LinkToken::parse(&"t".repeat(32)).expect("a token"),
            guest_version: String::new(),
            kernel: KernelReport::default(),
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
            channel: None,
        };
        let guest = tokio::spawn(speak(guest, Script(data).words()));
        let link = Link::open(daemon, 1, &hello, &Channels::new())
            .await
            .expect("a link opens");
        let answered = timeout(PATIENCE, Box::pin(ask(&link, data.len())))
            .await
            .expect("a call outlived its link");
        link.close();
        timeout(PATIENCE, link.closed())
            .await
            .expect("a link outlived its guest");
        drop(link);
        timeout(PATIENCE, guest)
            .await
            .expect("the daemon kept a connection")
            .expect("the guest does not panic");
        answered
    })
}

/// Waits until the daemon has asked for everything, speaks, hangs up, and reads to the end.
async fn speak(mut socket: UnixStream, words: Vec<u8>) {
    let mut heard = Vec::new();
    let (mut asked, mut at, mut settled) = (0, 24, false);
    let mut piece = vec![0; 16 * 1024];
    while asked < CALLS {
        match socket.read(&mut piece).await {
            Ok(count) if count > 0 => heard.extend_from_slice(piece.get(..count).unwrap_or(&[])),
            _ => return,
        }
        // Nine bytes before each frame: length, type, flags, stream; the preface has 24.
        while let Some([a, b, c, kind]) = heard.get(at..at + 4) {
            asked += usize::from(*kind == HEADERS);
            at += 9 + usize::from(*a) * 65536 + usize::from(*b) * 256 + usize::from(*c);
        }
        if !settled && at > 24 {
            // Its first settings are there: ours, with enough streams, and the acknowledgement.
            if socket.write_all(SETTLED).await.is_err() {
                return;
            }
            settled = true;
        }
    }
    // The daemon may hang up at any word.
    let _ = socket.write_all(&words).await;
    let _ = socket.shutdown().await;
    while socket.read(&mut piece).await.is_ok_and(|count| count > 0) {}
}

/// SETTINGS with a thousand streams, and the acknowledgement of the daemon's.
const SETTLED: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\x03\xe8\0\0\0\x04\x01\0\0\0\0";

/// Asks for one of everything, in a fixed order: the streams' numbers follow. How many calls came to a good end.
#[expect(clippy::too_many_lines, reason = "its calls are its lines")]
async fn ask(link: &Link, said: usize) -> usize {
    // An input of n bytes holds at most n/2 of the things that are shown.
    let said = said * 8;
    let place = Place::new("/tmp");
    let process = Selector::Process(3);
    let start = async {
        let mut process = link.start(ProcessSpec::new(["true"])).await.ok()?;
        let mut bytes = 0;
        while let Some(event) = process.next().await {
            if let ProcessEvent::Stdout(data) | ProcessEvent::Stderr(data) = event.ok()? {
                bytes += data.len();
                assert!(bytes <= said, "output out of nothing");
            }
        }
        Some(())
    };
    let attach = async {
        let request = AttachRequest {
            process: process.clone(),
            stdout_offset: 1,
            stderr_offset: 2,
            output: true,
        };
        let (_, mut process) = link.attach(request).await.ok()?;
        let mut before = process.offsets();
        while let Some(event) = process.next().await {
            event.ok()?;
            let now = process.offsets();
            assert!(now.iter().zip(before).all(|(now, old)| *now >= old));
            before = now;
        }
        Some(())
    };
    let processes = link.processes();
    let list = async {
        let request = ListRequest {
            place: place.clone(),
            depth: 2,
            limit: 3,
        };
        let listing = link.list(&request).await.ok()?;
        assert!(listing.entries.len() <= 3);
        Some(())
    };
    let read = async {
        let request = ReadRequest {
            place: place.clone(),
            range: None,
        };
        let mut reader = link.read(&request).await.ok()?;
        let (mut bytes, size) = (0_u64, reader.entry.size_bytes);
        while let Some(data) = reader.next().await {
            bytes += u64::try_from(data.ok()?.len()).expect("a length");
            assert!(bytes <= size, "more than the file has");
        }
        Some(())
    };
    let look = StatRequest {
        place: place.clone(),
        follow: true,
    };
    let mkdir = MkdirRequest {
        place: place.clone(),
        mode: None,
        parents: true,
    };
    let watch = async {
        let request = WatchRequest {
            place: place.clone(),
            recursive: true,
        };
        let mut watch = link.watch(&request).await.ok()?;
        while let Some(event) = watch.next().await {
            event.ok()?;
        }
        Some(())
    };
    let connect = async {
        let mut port = link.connect(80).await.ok()?;
        let mut bytes = Vec::new();
        port.read_to_end(&mut bytes).await.ok()?;
        assert!(bytes.len() <= said, "bytes out of nothing");
        Some(())
    };
    let (look, mkdir) = (link.stat(&look), link.mkdir(&mkdir));
    let answers = tokio::join!(
        start,
        attach,
        processes,
        list,
        read,
        look,
        mkdir,
        watch,
        connect,
        link.usage()
    );
    let (start, attach, processes, list, read, look, mkdir, watch, connect, usage) = answers;
    let answers = [
        start.is_some(),
        attach.is_some(),
        processes.is_ok(),
        list.is_some(),
        read.is_some(),
        look.is_ok(),
        mkdir.is_ok(),
        watch.is_some(),
        connect.is_some(),
        usage.is_ok(),
    ];
    answers.iter().filter(|answer| **answer).count()
}

/// The input as things to say. Each begins with a byte whose low bits name a stream and whose high bits say what it is,
/// and a byte that says how much of the input it takes.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn words(mut self) -> Vec<u8> {
        let mut words = Vec::new();
        while let Some(word) = self.next() {
            words.extend(word);
        }
        words
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let [what, length, rest @ ..] = self.0 else {
            return None;
        };
        self.0 = rest;
        let stream = u32::from(what % 16) * 2 + 1;
        let length = usize::from(*length);
        Some(match what >> 4 {
            0 => frame(HEADERS, END_HEADERS, stream, FRAMES_HEAD),
            1 => frame(HEADERS, END_HEADERS, stream, JSON_HEAD),
            2 => frame(HEADERS, END_HEADERS, stream, REFUSED_HEAD),
            3 => frame(HEADERS, END_HEADERS | END_STREAM, stream, FRAMES_HEAD),
            // Data as it is, in the middle and at the end.
            4 => frame(DATA, 0, stream, self.take(length)),
            5 => frame(DATA, END_STREAM, stream, self.take(length)),
            // Data as a frame of ours, whose kind the input says.
            6 => self.ours(0, stream, length),
            7 => self.ours(END_STREAM, stream, length),
            8 => {
                let shown = SHOWN
                    .get(length % SHOWN.len())
                    .map_or_else(Vec::new, |shown| shown());
                frame(DATA, 0, stream, &shown)
            }
            // Settings, resets, windows, pings and farewells: any frame with any flags, of a stream and of none.
            9 => self.any(stream, length),
            10 => self.any(0, length),
            11 => frame(HEADERS, END_HEADERS, stream, self.take(length)),
            12 => frame(HEADERS, END_STREAM | END_HEADERS, stream, self.take(length)),
            13 => frame(SETTINGS, 0, 0, self.take(length / 6 * 6)),
            14 => frame(DATA, 0, stream, &[0x80, 0, 0, 0, 0].repeat(length)),
            _ => self.take(length).to_vec(),
        })
    }

    fn ours(&mut self, flags: u8, stream: u32, length: usize) -> Vec<u8> {
        let kind = self.take(1).first().copied().unwrap_or(0);
        let payload = self.take(length);
        let count = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
        frame(
            DATA,
            flags,
            stream,
            &[&[kind][..], &count, payload].concat(),
        )
    }

    fn any(&mut self, stream: u32, length: usize) -> Vec<u8> {
        let (kind, flags) = match self.take(2) {
            [kind, flags] => (*kind, *flags),
            _ => (0, 0),
        };
        frame(kind, flags, stream, self.take(length))
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut bytes = Vec::with_capacity(9 + payload.len());
    bytes.extend_from_slice(length.get(1..).unwrap_or(&[]));
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// What an honest guest says.
const SHOWN: [fn() -> Vec<u8>; 15] = [
    || {
        bytes_of(
            ResponseFrame::Started(Started {
                process: 3,
                pid: 17,
            })
            .encode(),
        )
    },
    || bytes_of(ResponseFrame::Attached(Box::new(a_process())).encode()),
    || bytes_of(ResponseFrame::Stdout("out".into()).encode()),
    || bytes_of(ResponseFrame::Exited(an_exit()).encode()),
    || bytes_of(ResponseFrame::Failed(a_refusal()).encode()),
    || bytes_of(TransferFrame::head(&an_entry())),
    || bytes_of(TransferFrame::item(&an_entry())),
    || bytes_of(TransferFrame::item(&a_process())),
    || bytes_of(TransferFrame::Data("bytes".into()).encode()),
    || bytes_of(TransferFrame::End.encode()),
    || bytes_of(TransferFrame::Failed(a_refusal()).encode()),
    || {
        bytes_of(TransferFrame::item(&FileEvent {
            change: FileChange::Create,
            path: "a".into(),
            to: None,
            is_directory: false,
        }))
    },
    || serde_json::to_vec(&Usage::default()).unwrap_or_default(),
    || {
        bytes_of(TransferFrame::item(&Made {
            entry: an_entry(),
            created: true,
        }))
    },
    || serde_json::to_vec(&a_refusal()).unwrap_or_default(),
];

/// An honest answer to each call, and to all of them.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let answers: [(&str, &[u8]); CALLS] = [
        ("start", &[0, 0, 0x80, 0, 0x80, 2, 0x80, 3]),
        ("attach", &[1, 0, 0x81, 1, 0x81, 2, 0x81, 3]),
        ("processes", &[2, 0, 0x82, 7, 0x82, 9]),
        ("list", &[3, 0, 0x83, 6, 0x83, 6, 0x83, 9]),
        ("read", &[4, 0, 0x84, 5, 0x84, 8, 0x84, 9]),
        ("stat", &[5, 0, 0x85, 6, 0x85, 9]),
        ("mkdir", &[6, 0, 0x86, 13, 0x86, 9]),
        ("watch", &[7, 0, 0x87, 5, 0x87, 11, 0x87, 9]),
        ("connect", &[8, 0, 0x88, 5, 0x88, 8, 0x88, 9]),
        ("usage", &[0x19, 0, 0x89, 12, 0x59, 0]),
    ];
    let all = answers.iter().flat_map(|(_, answer)| *answer).copied();
    let mut seeds = vec![("all", all.collect())];
    seeds.extend(answers.map(|(name, answer)| (name, answer.to_vec())));
    seeds.push(("refused", vec![0x20, 0, 0x80, 14, 0x50, 0]));
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_honest_guest_is_understood() {
        let seeds = seeds();
        let (all, each) = seeds.split_first().unwrap();
        assert_eq!(answered(&all.1), CALLS);
        for (name, answer) in each {
            assert_eq!(answered(answer), usize::from(*name != "refused"), "{name}");
        }
    }
}
