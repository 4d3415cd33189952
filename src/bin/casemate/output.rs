//! Everything that leaves this program: results on standard output, sentences on standard error.
//!
//! A reader that goes away (a broken pipe) has seen enough: that is success. What people read
//! passes `screen`; what a program in a sandbox wrote is passed on as it is.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use casemate::base::exit::Exit;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::io::AsyncWriteExt;

use crate::failure::Failure;
use crate::screen;

/// Longest sentence on standard error, in characters: an answer must not flood the terminal.
const MAX_SENTENCE: usize = 2_000;

/// One JSON value on one line.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    write(&json_line(value)?)
}

/// A table that fits the terminal.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    write(screen::table(headings, rows, width()).as_bytes())
}

/// One thing, field by field.
pub fn fields(fields: &[(&str, String)]) -> Result<(), Failure> {
    write(screen::fields(fields).as_bytes())
}

/// One line.
pub fn line(text: &str) -> Result<(), Failure> {
    write(format!("{}\n", screen::visible(text)).as_bytes())
}

/// Text of our own making: a completion script.
pub fn text(text: &[u8]) -> Result<(), Failure> {
    write(text)
}

/// The value on one line, without a character that acts on a terminal.
pub fn json_line(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    let json = serde_json::to_string(value)
        .map_err(|error| Failure::new(Exit::Software, format!("cannot write JSON: {error}")))?;
    let mut line = screen::quiet_json(&json).into_bytes();
    line.push(b'\n');
    Ok(line)
}

/// Passes on what a program in a sandbox wrote, byte by byte. Waits without blocking, so that a
/// signal can end the wait for a reader that does not read.
pub async fn pass(stdout: &[u8], stderr: &[u8]) -> Result<(), Failure> {
    forgive(pour(io::stdout(), stdout).await, "standard output")?;
    forgive(pour(io::stderr(), stderr).await, "standard error")
}

async fn pour(stream: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut file = unblocked(stream)?;
    file.write_all(bytes).await?;
    file.flush().await
}

/// A standard stream as one that can be waited for next to other things. Blocking reads and writes
/// happen on a thread of the runtime's.
pub fn unblocked(stream: impl AsFd) -> io::Result<tokio::fs::File> {
    let own = stream.as_fd().try_clone_to_owned()?;
    Ok(tokio::fs::File::from_std(own.into()))
}

/// A standard stream that takes what a program wrote, byte by byte, as long as somebody reads it.
pub struct Pipe {
    file: tokio::fs::File,
    name: &'static str,
    is_read: bool,
}

impl Pipe {
    pub fn stdout() -> Result<Self, Failure> {
        Self::new(io::stdout(), "standard output")
    }

    pub fn stderr() -> Result<Self, Failure> {
        Self::new(io::stderr(), "standard error")
    }

    fn new(stream: impl AsFd, name: &'static str) -> Result<Self, Failure> {
        let file = unblocked(stream);
        let file = file.map_err(|error| Failure::io(format_args!("use {name}"), &error))?;
        Ok(Self {
            file,
            name,
            is_read: true,
        })
    }

    /// Whether somebody still reads it.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        if !self.is_read || bytes.is_empty() {
            return Ok(self.is_read);
        }
        let writing = async {
            self.file.write_all(bytes).await?;
            self.file.flush().await
        };
        match writing.await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.is_read = false,
            written => forgive(written, self.name)?,
        }
        Ok(self.is_read)
    }
}

/// How far something is that takes its time: a bar on standard error when that is a terminal.
#[derive(Clone)]
pub struct Bar(ProgressBar);

impl Bar {
    /// Begins at nothing; without a total only what is done is shown.
    pub fn begin(what: &str, total_bytes: Option<u64>, is_wanted: bool) -> Self {
        if !is_wanted || !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let (bar, template) = match total_bytes {
            Some(total) => (
                ProgressBar::new(total),
                "{msg}  {bytes} of {total_bytes}  {wide_bar}  {bytes_per_sec}  {eta}",
            ),
            None => (
                ProgressBar::new_spinner(),
                "{spinner} {msg}  {bytes}  {bytes_per_sec}",
            ),
        };
        // A template that is ours is well formed; otherwise there is a plain one.
        let style = ProgressStyle::with_template(template);
        let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(screen::visible(what));
        Self(bar)
    }

    pub fn add(&self, bytes: usize) {
        self.0.inc(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// How many bytes were added.
    pub fn bytes(&self) -> u64 {
        self.0.position()
    }

    /// Says a sentence without disturbing the bar.
    pub fn tell(&self, sentence: &str) {
        self.0.suspend(|| tell(sentence));
    }

    /// Leaves nothing of it on the screen.
    pub fn end(&self) {
        self.0.finish_and_clear();
    }
}

/// A sentence for people, on standard error. When nobody can read it there is nobody to tell.
pub fn tell(sentence: &str) {
    let kept: String = sentence.chars().take(MAX_SENTENCE).collect();
    let line = format!("casemate: {}\n", screen::visible(&kept));
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// A line on standard error that the next one replaces. Only for terminals.
pub fn progress(text: &str) {
    let line = format!("\r\x1b[K{}", screen::visible(text));
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    forgive(written, "standard output")
}

fn forgive(written: io::Result<()>, whereto: &str) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io(format_args!("write to {whereto}"), &error))
        }
        _ => Ok(()),
    }
}

/// How wide a table may be: as `COLUMNS` says, when a person looks at a terminal.
fn width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    std::env::var("COLUMNS").ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let gone = Err(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(forgive(gone, "standard output"), Ok(()));
        let full = Err(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(
            forgive(full, "standard output").unwrap_err().exit,
            Exit::IoError
        );
    }
}
