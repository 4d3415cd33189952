//! What the rogue can be told to say: a line each, a verb and its arguments.
//!
//! `head STATUS TYPE` and `head-end` answer; `doc KIND TEXT` is a frame of the link; `tar KIND SIZE NAME` is one with a header of an
//! archive; `data TEXT` is data as it is; `end` ends the stream; the rest is in [`line()`]. `{{x*9}}` in a text stands for nine `x`, `%n` for the number of a repetition, `%TOKEN%`
//! in a hello for the token.

use std::io::{self, Write};
use std::time::Duration;

use crate::connection::{
    CONTINUATION, Connection, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PUSH_PROMISE,
    RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use crate::dial;

/// The answer to a new script.
pub const OBEYED: [&str; 4] = [
    "head 200 frames",
    r#"doc 11 {"process":1,"pid":1}"#,
    r#"doc 14 {"exit_code":0,"signal":null,"timed_out":false,"stdout_dropped_bytes":0,"stderr_dropped_bytes":0,"duration_ms":1}"#,
    "end",
];

/// Most bytes of a frame in good order.
const FRAME: usize = 16 * 1024;

/// Does what a script says, on a stream.
pub fn perform(connection: &Connection, stream: u32, script: &[String]) -> io::Result<()> {
    let mut stream = stream;
    for words in script {
        line(connection, &mut stream, words)?;
    }
    Ok(())
}

#[expect(clippy::too_many_lines, reason = "its verbs are its lines")]
fn line(connection: &Connection, stream: &mut u32, words: &str) -> io::Result<()> {
    let (verb, rest) = words.split_once(' ').unwrap_or((words, ""));
    let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
    let number: u32 = first.parse().unwrap_or(0);
    let count = u64::from(number);
    let on = *stream;
    match verb {
        "head" => connection.frame(HEADERS, END_HEADERS, on, &head(first, second)),
        "head-end" => {
            let flags = END_HEADERS | END_STREAM;
            connection.frame(HEADERS, flags, on, &head(first, second))
        }
        // A head with so many more fields, each of a hundred bytes.
        "head-wide" => wide(connection, on, number),
        // A head that goes on and on.
        "head-endless" => {
            connection.frame(HEADERS, 0, on, &head("200", "frames"))?;
            repeat(count, |_| {
                connection.frame(CONTINUATION, 0, on, &field(9000))
            })
        }
        // Heads that only announce the real one.
        "early" => repeat(count, |_| {
            connection.frame(HEADERS, END_HEADERS, on, &head("103", "frames"))
        }),
        "doc" => connection.data(on, &document(first, second)),
        "docs" => {
            let (kind, text) = second.split_once(' ').unwrap_or((second, ""));
            repeat(count, |at| {
                let text = text.replace("%n", &at.to_string());
                connection.data(on, &document(kind, &text))
            })
        }
        // A frame that claims a length and holds the text.
        "claim" => {
            let (length, text) = second.split_once(' ').unwrap_or((second, ""));
            let length: u32 = length.parse().unwrap_or(0);
            let mut bytes = vec![u8::from_str_radix(first, 16).unwrap_or(0)];
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(expanded(text).as_bytes());
            connection.data(on, &bytes)
        }
        // Frames of the link with a pause after each.
        "drip" => {
            let (milliseconds, frame) = second.split_once(' ').unwrap_or((second, ""));
            let (kind, text) = frame.split_once(' ').unwrap_or((frame, ""));
            repeat(count, |_| {
                connection.data(on, &document(kind, text))?;
                pause(milliseconds);
                Ok(())
            })
        }
        // A header of an archive in data of the link: its kind, the size that it claims, its name.
        "tar" => {
            let (size, name) = second.split_once(' ').unwrap_or((second, ""));
            let kind = first.bytes().next().unwrap_or(b'0');
            connection.data(on, &data(&tar(kind, size, &expanded(name))))
        }
        // Zeros in data of the link.
        "zeros" => connection.data(on, &data(&vec![0; usize::try_from(count).unwrap_or(0)])),
        "data" => connection.data(on, expanded(rest).as_bytes()),
        // Data frames of a byte, and of none.
        "crumbs" => repeat(count, |_| connection.frame(DATA, 0, on, b"\x80")),
        "empty" => repeat(count, |_| connection.frame(DATA, 0, on, b"")),
        "padding" => repeat(count, |_| connection.data(on, &document("80", "{{0*250}}"))),
        // Data without regard for any window.
        "flood" => repeat(count, |_| connection.frame(DATA, 0, on, &[0; FRAME])),
        "end" => connection.frame(DATA, END_STREAM, on, b""),
        "reset" => connection.frame(RST_STREAM, 0, on, &number.to_be_bytes()),
        "resets" => repeat(count, |at| {
            connection.frame(RST_STREAM, 0, odd(at), &8_u32.to_be_bytes())
        }),
        "settings" => repeat(count, |_| connection.frame(SETTINGS, 0, 0, b"")),
        "set" => {
            let value: u32 = second.parse().unwrap_or(0);
            let setting = [&number.to_be_bytes()[2..], &value.to_be_bytes()].concat();
            connection.frame(SETTINGS, 0, 0, &setting)
        }
        "pings" => repeat(count, |at| connection.frame(PING, 0, 0, &at.to_be_bytes())),
        "windows" => {
            let more: u32 = second.parse().unwrap_or(0);
            repeat(count, |_| {
                connection.frame(WINDOW_UPDATE, 0, 0, &more.to_be_bytes())?;
                connection.frame(WINDOW_UPDATE, 0, on, &more.to_be_bytes())
            })
        }
        // Streams that only a client may open, and promises of others.
        "open" => repeat(count, |at| {
            connection.frame(HEADERS, END_HEADERS, even(at), &head("200", "frames"))
        }),
        "promise" => repeat(count, |at| {
            let promised = [&even(at).to_be_bytes()[..], &head("200", "frames")].concat();
            connection.frame(PUSH_PROMISE, END_HEADERS, on, &promised)
        }),
        "goaway" => connection.frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0]),
        // An HTTP/2 frame that claims to be so long.
        "long" => connection.claim(DATA, 0, on, number, b"x"),
        "garbage" => connection.bytes(&b"\xff\xfe\xfd".repeat(usize::try_from(count).unwrap_or(0))),
        // What follows is said on another stream.
        "on" => {
            *stream = first
                .strip_prefix('+')
                .map_or(number, |more| on + more.parse::<u32>().unwrap_or(0));
            Ok(())
        }
        "pause" => {
            pause(first);
            Ok(())
        }
        // On a connection of its own, with the number that came with the request: the text, then no more, or all is held.
        "channel" => dial::channel()?.write_all(expanded(rest).as_bytes()),
        "channel-held" => {
            std::mem::forget(dial::channel()?);
            Ok(())
        }
        "channels" => {
            dial::channels(count);
            Ok(())
        }
        "crowd" => {
            dial::crowd(usize::try_from(count).unwrap_or(0));
            Ok(())
        }
        "hellos" => {
            dial::say_next(rest.split('|').map(expanded).collect());
            Ok(())
        }
        "hang-up" => {
            connection.hang_up();
            Ok(())
        }
        "stall" | "" => Ok(()),
        other => Err(io::Error::other(format!("there is no {other}"))),
    }
}

fn repeat(count: u64, act: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
    (0..count).try_for_each(act)
}

fn pause(milliseconds: &str) {
    std::thread::sleep(Duration::from_millis(milliseconds.parse().unwrap_or(0)));
}

fn odd(at: u64) -> u32 {
    u32::try_from(at).unwrap_or(0).wrapping_mul(2) | 1
}

fn even(at: u64) -> u32 {
    u32::try_from(at)
        .unwrap_or(0)
        .wrapping_mul(2)
        .wrapping_add(2)
}

/// A head (RFC 7541 section 6.2.2): nothing of it goes into a table, no text is compressed.
fn head(status: &str, content_type: &str) -> Vec<u8> {
    let content_type = match content_type {
        "frames" => "application/vnd.casemate.frames",
        "json" => "application/json",
        other => other,
    };
    // By their numbers in the static table: :status and content-type.
    let mut block = vec![0x08];
    text(&mut block, status);
    block.extend_from_slice(&[0x0f, 0x10]);
    text(&mut block, content_type);
    block
}

fn wide(connection: &Connection, stream: u32, count: u32) -> io::Result<()> {
    let mut block = head("200", "frames");
    for _ in 0..count {
        block.extend(field(100));
    }
    let mut pieces = block.chunks(FRAME).peekable();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() {
            END_HEADERS
        } else {
            0
        };
        connection.frame(kind, flags, stream, piece)?;
        kind = CONTINUATION;
    }
    Ok(())
}

fn field(bytes: usize) -> Vec<u8> {
    let mut block = vec![0];
    text(&mut block, "x-more");
    text(&mut block, &"y".repeat(bytes));
    block
}

/// A text with its length (RFC 7541 section 5.2).
fn text(block: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    if length < 127 {
        block.push(u8::try_from(length).unwrap_or(0));
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(u8::try_from(length % 128).unwrap_or(0) | 128);
            length /= 128;
        }
        block.push(u8::try_from(length).unwrap_or(0));
    }
    block.extend_from_slice(text.as_bytes());
}

/// A frame of the link: its kind in hexadecimal, its length, the text.
fn document(kind: &str, text: &str) -> Vec<u8> {
    let text = expanded(text);
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let mut bytes = vec![u8::from_str_radix(kind, 16).unwrap_or(0)];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// Data of a transfer, as a frame of the link.
fn data(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&[0x22], &length.to_be_bytes()[..], bytes].concat()
}

/// A header of an archive (ustar, POSIX.1-1988) whose sum is right, whatever it says.
fn tar(kind: u8, size: &str, name: &str) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, text: &[u8]| {
        for (place, byte) in block.iter_mut().skip(at).zip(text) {
            *place = *byte;
        }
    };
    put(0, name.as_bytes());
    put(100, b"0000777");
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, size.as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, b"/etc/passwd");
    put(257, b"ustar");
    put(263, b"00");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    for (place, byte) in block.iter_mut().skip(148).zip(sum.bytes()) {
        *place = byte;
    }
    block
}

/// `{{x*9}}` is nine `x`.
fn expanded(text: &str) -> String {
    let mut parts = text.split("{{");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once("}}") {
            Some((what, rest)) if what.contains('*') => {
                let (what, count) = what.rsplit_once('*').unwrap_or((what, "0"));
                out.push_str(&what.repeat(count.parse().unwrap_or(0)));
                out.push_str(rest);
            }
            _ => {
                out.push_str("{{");
                out.push_str(part);
            }
        }
    }
    out
}
