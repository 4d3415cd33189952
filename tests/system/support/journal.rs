//! A journal of a test's own: everything that was sent to it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long the reader is deaf to the end.
const TURN: Duration = Duration::from_millis(100);

/// Entries as they are on the wire: fields with their lengths.
pub struct Journal {
    pub socket: PathBuf,
    heard: Arc<Mutex<Vec<u8>>>,
    over: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Journal {
    /// Listens in a directory of its own below this one.
    pub fn open(home: &Path) -> Self {
        let directory = home.join("journal");
        std::fs::create_dir(&directory).unwrap();
        let socket = directory.join("socket");
        let datagrams = UnixDatagram::bind(&socket).unwrap();
        std::fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
        datagrams.set_read_timeout(Some(TURN)).unwrap();
        let (heard, over) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::default());
        let reader = std::thread::spawn({
            let (heard, over) = (Arc::clone(&heard), Arc::clone(&over));
            move || {
                let over: Arc<AtomicBool> = over;
                let mut buffer = vec![0; 1 << 20];
                while !over.load(Ordering::Relaxed) {
                    if let Ok(length) = datagrams.recv(&mut buffer) {
                        heard.lock().unwrap().extend_from_slice(&buffer[..length]);
                    }
                }
            }
        });
        Self {
            socket,
            heard,
            over,
            reader: Some(reader),
        }
    }

    pub fn heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().clone()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
