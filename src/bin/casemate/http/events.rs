//! Server-sent events (WHATWG HTML, section 9.2) as a client reads them, with a bound on each.

use bytes::{Buf, BytesMut};

use super::stream::Body;
use crate::failure::Failure;

/// Longest event: one piece of a process's output, written in JSON at its worst, and much room.
const MAX_EVENT_BYTES: usize = 16 << 20;

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// What it is about.
    pub kind: String,
    /// What it says.
    pub data: String,
    /// Where to go on after it.
    pub id: Option<String>,
}

/// Events as they come.
pub struct Events {
    body: Body,
    reading: Reading,
}

impl Events {
    pub fn new(body: Body) -> Self {
        Self {
            body,
            reading: Reading::default(),
        }
    }

    /// The next event; `None` when the stream ends. Safe to drop and call again.
    pub async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            if let Some(event) = self.reading.take() {
                return Ok(Some(event));
            }
            if self.reading.is_too_long() {
                return Err(Failure::mismatch());
            }
            match self.body.next().await? {
                Some(bytes) => self.reading.buffer.extend_from_slice(&bytes),
                // What is not complete was never said.
                None => return Ok(None),
            }
        }
    }
}

/// What was read and is no whole event yet.
#[derive(Default)]
struct Reading {
    buffer: BytesMut,
    /// How much of the buffer has no end of a line.
    seen: usize,
    event: Event,
    has_data: bool,
}

impl Reading {
    fn is_too_long(&self) -> bool {
        self.buffer.len() + self.event.data.len() > MAX_EVENT_BYTES
    }

    /// The next whole event of what was read.
    fn take(&mut self) -> Option<Event> {
        while let Some(line) = self.line() {
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if std::mem::take(&mut self.has_data) {
                    return Some(event);
                }
                continue;
            }
            self.field(&String::from_utf8_lossy(&line));
        }
        None
    }

    /// The next whole line: it ends in LF or CR LF.
    fn line(&mut self) -> Option<BytesMut> {
        let rest = self.buffer.get(self.seen..).unwrap_or_default();
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            self.seen = self.buffer.len();
            return None;
        };
        let mut line = self.buffer.split_to(self.seen + length);
        self.buffer.advance(1);
        self.seen = 0;
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        Some(line)
    }

    fn field(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.event.kind),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            "id" => self.event.id = Some(value.to_owned()),
            // A comment (no name) shows that the stream lives; others are not known.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "id: 1-0\nevent: stdout\ndata: {\"a\":1}\n\n:\n\nevent: lost\r\ndata: 1\r\ndata:2\r\n\r\nevent: nothing\n\ndata: cut";

    fn event(kind: &str, data: &str, id: Option<&str>) -> Event {
        Event {
            kind: kind.into(),
            data: data.into(),
            id: id.map(Into::into),
        }
    }

    proptest! {
        #[test]
        fn events_are_read_however_they_are_cut(step in 1_usize..40) {
            let mut reading = Reading::default();
            let mut read = Vec::new();
            for piece in TEXT.as_bytes().chunks(step) {
                reading.buffer.extend_from_slice(piece);
                while let Some(event) = reading.take() {
                    read.push(event);
                }
            }
            let expected = [
                event("stdout", "{\"a\":1}", Some("1-0")),
                event("lost", "1\n2", None),
            ];
            prop_assert_eq!(read, expected);
        }
    }

    #[test]
    fn an_event_without_end_is_noticed() {
        let mut reading = Reading::default();
        reading.buffer.resize(MAX_EVENT_BYTES, b'a');
        assert!(reading.take().is_none() && !reading.is_too_long());
        reading.buffer.extend_from_slice(b"a");
        assert!(reading.take().is_none() && reading.is_too_long());
    }
}
