//! journald's own protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>): datagrams of fields.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::time::timeout;

/// Where journald listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// How long journald may take to have room for one more entry.
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection to the journal.
#[derive(Debug)]
pub struct Journal(UnixDatagram);

impl Journal {
    /// To the journal that listens there.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let datagrams = UnixDatagram::unbound()?;
        datagrams.connect(socket)?;
        Ok(Self(datagrams))
    }

    /// Writes one entry; waits for a while when journald is busy.
    ///
    /// # Errors
    /// The system's; then nothing of the entry was taken.
    pub async fn write(&self, fields: &[(&str, &str)]) -> io::Result<()> {
        match timeout(PATIENCE, self.0.send(&entry(fields))).await {
            Ok(sent) => sent.map(drop),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Fields as they are sent: with their length, so that no value can be taken for another field.
fn entry(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(b'\n');
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(b'\n');
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_its_fields_and_no_value_is_a_field() {
        let bytes = entry(&[("A", "b\nC=d"), ("E", "")]);
        assert_eq!(bytes, b"A\n\x05\0\0\0\0\0\0\0b\nC=d\nE\n\0\0\0\0\0\0\0\0\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_journal_that_does_not_read_is_an_error_in_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let far = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect(&path).unwrap();
        let mut sent = 0;
        while journal.write(&[("N", "x")]).await.is_ok() {
            sent += 1;
            assert!(sent < 1_000_000, "it takes whatever comes");
        }
        let mut buffer = [0; 64];
        for _ in 0..sent {
            far.recv(&mut buffer).await.unwrap();
        }
        journal.write(&[("N", "x")]).await.unwrap();
    }
}
