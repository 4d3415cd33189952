//! Where the machine keeps what the tests need; `scripts/test-bench` prepares it and says so.

use std::path::PathBuf;
use std::sync::OnceLock;

/// What `scripts/test-bench` prints.
#[derive(Debug)]
pub struct Bench {
    /// Podman's API socket.
    pub socket: PathBuf,
    /// Where podman keeps everything.
    pub podman_state: PathBuf,
    /// The wrapper of runsc that podman was started with.
    pub runtime: PathBuf,
    pub guest: PathBuf,
    /// A guest that was taken over.
    pub rogue: PathBuf,
    /// The image's digest, as templates write it.
    pub image: String,
    /// The image as an archive.
    pub archive: PathBuf,
    /// The digest of the image for notebooks.
    pub notebook: String,
    /// The digest of the image for code interpreters.
    pub code_interpreter: String,
    /// Where the packages of `tests/peers` are installed.
    pub peers: PathBuf,
    /// Programs, where both users may run them.
    pub bin: PathBuf,
    /// A directory that both users reach; tests make their own below it.
    pub dir: PathBuf,
}

/// The bench of this machine.
pub fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| Bench {
        socket: env("CASEMATE_TEST_PODMAN_SOCKET").into(),
        podman_state: env("CASEMATE_TEST_PODMAN_STATE").into(),
        runtime: env("CASEMATE_TEST_RUNTIME").into(),
        guest: env("CASEMATE_TEST_GUEST").into(),
        rogue: env("CASEMATE_TEST_ROGUE").into(),
        image: env("CASEMATE_TEST_IMAGE"),
        archive: env("CASEMATE_TEST_ARCHIVE").into(),
        notebook: env("CASEMATE_TEST_NOTEBOOK"),
        code_interpreter: env("CASEMATE_TEST_CODE_INTERPRETER"),
        peers: env("CASEMATE_TEST_PEERS").into(),
        bin: env("CASEMATE_TEST_BIN").into(),
        dir: env("CASEMATE_TEST_DIR").into(),
    })
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test"))
}
