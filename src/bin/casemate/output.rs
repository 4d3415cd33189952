//! Everything that leaves this program: results on standard output, sentences on standard error.
//!
//! A reader that goes away (a broken pipe) has seen enough: that is success. What people read
//! passes `screen`; what a program in a sandbox wrote is passed on as it is.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use casemate::base::exit::Exit;
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
