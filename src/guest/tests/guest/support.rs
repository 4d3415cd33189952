//! The real guest binary as an ordinary process, over a real socket, with the real daemon end.

use std::fs::{self, File};
use std::future::Future;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use casemate_link::daemon::{FileReader, Link, LinkError, LinkListener, Process, ProcessEvent};
use casemate_link::file::{FileEntry, Place, WriteRequest};
use casemate_link::process::{AttachRequest, Lost, ProcessInfo, Selector};
use casemate_link::{LinkToken, OnDetach, ProcessExit, ProcessSpec};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// No wait of a test is longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A guest, its directory, and the daemon's side of both.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    /// Where links come in; absent where a task waits for channels there.
    pub(crate) listener: Option<LinkListener>,
    pub(crate) token: LinkToken,
    pub(crate) guest: Child,
}

impl Bench {
    /// A guest that has linked.
    pub(crate) async fn start() -> (Self, Link) {
        let mut bench = Self::start_with_token(TOKEN).await;
        let link = bench.accept().await;
        (bench, link)
    }

    /// A guest that has linked, and may open channels beside the link.
    pub(crate) async fn start_with_channels() -> (Self, Link) {
        let (mut bench, link) = Self::start().await;
        let mut listener = bench.listener.take().unwrap();
        let token = bench.token.clone();
        tokio::spawn(async move {
            // Channels are handed to whoever waits for them; links come out here, and nobody wants another.
            let mut links = Vec::new();
            loop {
                links.extend(listener.accept_one(&token).await);
            }
        });
        (bench, link)
    }

    /// A guest that reads `token` from its file; the daemon expects [`TOKEN`].
    pub(crate) async fn start_with_token(token: &str) -> Self {
        Self::start_told(token, &[]).await
    }

    /// The same, told more words.
    pub(crate) async fn start_told(token: &str, words: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_token(dir.path(), token);
        let listener = LinkListener::bind(dir.path()).await.unwrap();
        let guest = Command::new(env!("CARGO_BIN_EXE_casemate-guest"))
            .args(["--allow-root", "--link-dir"])
            .arg(dir.path())
            .args(words)
            .stdin(Stdio::null())
            .stderr(File::create(dir.path().join("guest.log")).unwrap())
            .spawn()
            .unwrap();
        Self {
            dir,
            listener: Some(listener),
            token: LinkToken::parse(TOKEN).unwrap(),
            guest,
        }
    }

    /// The next guest that is let in.
    pub(crate) async fn accept(&mut self) -> Link {
        let accepting = async {
            loop {
                match self
                    .listener
                    .as_mut()
                    .unwrap()
                    .accept_one(&self.token)
                    .await
                {
                    Ok((link, hello, peer)) => {
                        assert!(!hello.kernel.release.is_empty());
                        assert_eq!(peer.pid, i32::try_from(self.guest.id()).ok());
                        return link;
                    }
                    Err(LinkError::Rejected { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        };
        timeout(PATIENCE, accepting).await.expect("the guest dials")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The guest ends everything it started; killed, it could not.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.guest.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let status = self.guest.wait();
        if !std::thread::panicking() {
            assert!(status.unwrap().success(), "the guest ends in order");
        }
    }
}

pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";

pub(crate) fn write_token(dir: &Path, token: &str) {
    fs::write(dir.join("token"), token).unwrap();
}

/// A process as whoever runs the tests.
pub(crate) fn spec(argv: &[&str]) -> ProcessSpec {
    let mut spec = ProcessSpec::new(argv.iter().copied());
    spec.user = Some(nix::unistd::geteuid().to_string());
    spec.kill_grace_ms = 200;
    spec
}

pub(crate) fn shell(script: &str) -> ProcessSpec {
    spec(&["sh", "-c", script])
}

/// The same, kept when nobody listens.
pub(crate) fn kept(mut spec: ProcessSpec) -> ProcessSpec {
    spec.on_detach = OnDetach::Keep;
    spec
}

/// All that is kept of a process, from these offsets on, and how much of it is lost.
pub(crate) async fn read_from(link: &Link, process: u64, offsets: [u64; 2]) -> (Outcome, Lost) {
    let (_, process) = attach(link, process, offsets).await;
    finish_losing(process).await
}

/// Attaches to a process by its number.
pub(crate) async fn attach(link: &Link, process: u64, offsets: [u64; 2]) -> (ProcessInfo, Process) {
    let request = AttachRequest {
        process: Selector::Process(process),
        stdout_offset: offsets[0],
        stderr_offset: offsets[1],
        output: true,
    };
    soon(link.attach(request)).await.unwrap()
}

/// Waits until a kept process has ended and said all.
pub(crate) async fn ended(link: &Link, process: u64) -> ProcessExit {
    let request = AttachRequest {
        process: Selector::Process(process),
        stdout_offset: 0,
        stderr_offset: 0,
        output: false,
    };
    let (_, process) = soon(link.attach(request)).await.unwrap();
    let (outcome, lost) = finish_losing(process).await;
    assert!(outcome.stdout.is_empty() && outcome.stderr.is_empty() && lost == Lost::default());
    outcome.exit
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() * 1024
}

/// All that a process said.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: ProcessExit,
}

/// Reads a process to its end; nothing may be lost.
pub(crate) async fn finish(process: Process) -> Outcome {
    let (outcome, lost) = finish_losing(process).await;
    assert_eq!(lost, Lost::default());
    outcome
}

/// Reads a process to its end, and adds up what is lost.
pub(crate) async fn finish_losing(mut process: Process) -> (Outcome, Lost) {
    let reading = async {
        let (mut outcome, mut all) = (Outcome::default(), Lost::default());
        while let Some(event) = process.next().await {
            match event.unwrap() {
                ProcessEvent::Stdout(data) => outcome.stdout.extend_from_slice(&data),
                ProcessEvent::Stderr(data) => outcome.stderr.extend_from_slice(&data),
                ProcessEvent::Lost(lost) => {
                    all.stdout_bytes += lost.stdout_bytes;
                    all.stderr_bytes += lost.stderr_bytes;
                }
                ProcessEvent::Exited(exit) => outcome.exit = exit,
            }
        }
        (outcome, all)
    };
    timeout(PATIENCE, reading).await.expect("the process ends")
}

/// Runs a process without input to its end.
pub(crate) async fn run(link: &Link, spec: ProcessSpec) -> Outcome {
    let process = link.start(spec).await.unwrap();
    process.input.end().await.ok();
    finish(process).await
}

/// The first words that a process says, up to a newline.
pub(crate) async fn first_line(process: &mut Process) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        match timeout(PATIENCE, process.next())
            .await
            .expect("it says something")
        {
            Some(Ok(ProcessEvent::Stdout(data))) => line.extend_from_slice(&data),
            other => panic!("{other:?}"),
        }
    }
    String::from_utf8(line).unwrap().trim().to_owned()
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits within [`PATIENCE`].
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("in time")
}

/// Whether a process exists and is no zombie.
pub(crate) fn lives(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// A process's state letter.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The zombies among a process's children.
pub(crate) fn zombies_of(parent: u32) -> usize {
    children(parent).filter(|state| state == "Z").count()
}

/// A process's children, dead or alive.
pub(crate) fn children_of(parent: u32) -> usize {
    children(parent).count()
}

/// The state of each of a process's children.
fn children(parent: u32) -> impl Iterator<Item = String> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(move |entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let mut fields = stat.rsplit_once(") ")?.1.split(' ');
            let state = fields.next()?;
            (fields.next()?.parse() == Ok(parent)).then(|| state.to_owned())
        })
}

/// Bytes that are not text, and differ from place to place.
pub(crate) fn pattern(length: usize) -> Bytes {
    (0..length)
        .map(|at| u8::try_from(at * 31 % 251).unwrap())
        .collect::<Vec<u8>>()
        .into()
}

/// A place, acted on by whoever runs the tests.
pub(crate) fn at(path: impl AsRef<Path>) -> Place {
    Place {
        user: Some(nix::unistd::geteuid().to_string()),
        ..Place::new(path.as_ref().to_str().unwrap())
    }
}

/// The code of a refusal.
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, LinkError>) -> String {
    match result {
        Err(LinkError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

/// All of a file, or archive.
pub(crate) async fn all(mut reader: FileReader) -> Result<Vec<u8>, LinkError> {
    let reading = async {
        let mut data = Vec::new();
        while let Some(some) = reader.next().await {
            data.extend_from_slice(&some?);
        }
        Ok(data)
    };
    timeout(PATIENCE, reading).await.expect("the file ends")
}

/// A request to write a whole file.
pub(crate) fn writing(path: impl AsRef<Path>) -> WriteRequest {
    WriteRequest {
        place: at(path),
        mode: None,
        append: false,
        create_parents: false,
        sync: false,
        only_if: None,
        metadata: None,
    }
}

/// Writes a file.
pub(crate) async fn put(
    link: &Link,
    request: &WriteRequest,
    data: Bytes,
) -> Result<FileEntry, LinkError> {
    let work = async {
        let mut writer = link.write(request, None).await?;
        writer.write(data).await?;
        writer.commit().await
    };
    soon(work).await
}

/// The names in a directory, in order.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
