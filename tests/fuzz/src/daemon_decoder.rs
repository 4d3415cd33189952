//! What the daemon hears: frames of both kinds, documents as it checks them, a hello.

use std::collections::BTreeMap;

use casemate_link::daemon::{LinkError, check};
use casemate_link::file::{
    ArchiveSummary, FileChange, FileEntry, FileEvent, FileKind, Made, ReadRange,
};
use casemate_link::handshake::{self, CAPABILITIES, Hello, KernelReport, PROTOCOL};
use casemate_link::limits;
use casemate_link::port::OpenPort;
use casemate_link::process::{InputSummary, Lost, ProcessExit, ProcessInfo, Started};
use casemate_link::refusal::Refusal;
use casemate_link::warm_up::Identity;
use casemate_link::wire::{Chunk, ResponseFrame, TransferFrame, WireError};
use casemate_link::{Health, LinkToken, Usage};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt, duplex};

use crate::input::{Cuts, Frames, block_on, bytes_of, frames, handshake as framed};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// The first byte says what it is, the second where it is cut.
pub fn run(data: &[u8]) {
    let [kind, cuts, rest @ ..] = data else {
        return;
    };
    let mut cuts = Cuts::new(*cuts);
    match kind % 5 {
        0 => frames::<ResponseFrame>(rest, &mut cuts)
            .into_iter()
            .for_each(said),
        1 => frames::<TransferFrame>(rest, &mut cuts)
            .into_iter()
            .for_each(carried),
        2 => document(rest),
        3 => hello(rest),
        _ => hello(&framed(rest)),
    }
}

impl Frames for ResponseFrame {
    fn join(&mut self, next: &Self) -> bool {
        match (self, next) {
            (Self::Stdout(a), Self::Stdout(b)) | (Self::Stderr(a), Self::Stderr(b)) => {
                *a = [&a[..], &b[..]].concat().into();
                true
            }
            _ => false,
        }
    }

    fn encode(self) -> Result<Chunk, WireError> {
        self.encode()
    }
}

impl Frames for TransferFrame {
    fn join(&mut self, next: &Self) -> bool {
        match (self, next) {
            (Self::Data(a), Self::Data(b)) => {
                *a = [&a[..], &b[..]].concat().into();
                true
            }
            _ => false,
        }
    }

    fn encode(self) -> Result<Chunk, WireError> {
        self.encode()
    }
}

/// What a process says.
fn said(frame: ResponseFrame) {
    match frame {
        ResponseFrame::Attached(info) => process(*info),
        ResponseFrame::Failed(refusal) => refused(refusal),
        _ => {}
    }
}

/// What a transfer carries.
fn carried(frame: TransferFrame) {
    match frame {
        TransferFrame::Head(json) | TransferFrame::Item(json) => document(&json),
        TransferFrame::Failed(refusal) => refused(refusal),
        TransferFrame::Data(_) | TransferFrame::End => {}
    }
}

fn read<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    serde_json::from_slice(json).ok()
}

/// A document, as any of those that the daemon waits for.
fn document(json: &[u8]) {
    if let Some(found) = read::<FileEntry>(json) {
        entry(found);
    }
    if let Some(made) = read::<Made>(json) {
        entry(made.entry);
    }
    if let Some(event) = read::<FileEvent>(json)
        && let Ok(event) = check::event(event)
    {
        assert!(event.path.len() <= limits::MAX_PATH_BYTES);
        assert!(event.to.is_none_or(|to| to.len() <= limits::MAX_PATH_BYTES));
    }
    if let Some(info) = read::<ProcessInfo>(json) {
        process(info);
    }
    if let Some(refusal) = read::<Refusal>(json) {
        refused(refusal);
    }
    if let Some(usage) = read::<Usage>(json)
        && let Ok(usage) = check::usage(usage)
    {
        assert!(usage.hostname.len() <= limits::MAX_HOSTNAME_BYTES);
    }
    if let Some(identity) = read::<Identity>(json)
        && let Ok(identity) = check::identity(identity)
    {
        assert!(identity.hostname.len() <= limits::MAX_HOSTNAME_BYTES);
    }
    drop(read::<Health>(json));
    let _ = read::<InputSummary>(json);
    let _ = read::<ArchiveSummary>(json);
    let _ = read::<OpenPort>(json);
}

fn entry(found: FileEntry) {
    let Ok(entry) = check::entry(found) else {
        return;
    };
    assert!(entry.path.len() <= limits::MAX_PATH_BYTES);
    assert!(entry.size_bytes <= limits::MAX_FILE_BYTES && entry.mode <= 0o7777);
    assert!(
        entry
            .etag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    );
    assert!(entry.kind != FileKind::Symlink || entry.target.is_some());
    let size = entry.size_bytes;
    for range in [
        ReadRange::From(0, None),
        ReadRange::From(size / 2, Some(u64::MAX)),
        ReadRange::From(u64::MAX, None),
        ReadRange::Last(u64::MAX),
    ] {
        if let Some((offset, length)) = range.within(size) {
            assert!(length > 0 && offset.checked_add(length).is_some_and(|end| end <= size));
        }
    }
}

fn process(info: ProcessInfo) {
    let Ok(info) = check::process(info) else {
        return;
    };
    assert!(info.argv.len() <= limits::MAX_LISTED_WORDS);
    assert!(info.stdout_from <= info.stdout_to && info.stderr_from <= info.stderr_to);
}

fn refused(refusal: Refusal) {
    match check::refusal(refusal) {
        LinkError::Refused { code, message } => {
            assert!((1..=limits::MAX_CODE_BYTES).contains(&code.len()) && code.is_ascii());
            assert!(message.len() <= limits::MAX_MESSAGE_BYTES);
            assert!(!message.chars().any(char::is_control));
        }
        LinkError::Protocol(_) => {}
        other => panic!("a refusal became {other:?}"),
    }
}

/// The first bytes of a dialer.
fn hello(bytes: &[u8]) {
    let token = LinkToken::parse(TOKEN).expect("a token");
    let answer = block_on(async {
        let (mut guest, mut daemon) = duplex(bytes.len().max(1));
        guest.write_all(bytes).await.expect("there is room");
        // A duplex holds the daemon's word back while nobody reads: this one throws it away.
        let (mut words, mut mouth) = tokio::io::split(guest);
        mouth.shutdown().await.expect("nobody hung up");
        let deaf = async {
            let _ = tokio::io::copy(&mut words, &mut tokio::io::sink()).await;
        };
        let answered = async {
            let answer = handshake::answer(&mut daemon, &token).await;
            drop(daemon);
            answer
        };
        futures_util::future::join(answered, deaf).await.0
    });
    if let Ok((hello, protocol)) = answer {
        assert!(hello.token.matches(&token));
        assert_eq!(protocol, 1);
        assert!(hello.capabilities().count() <= 64);
        assert!(hello.capabilities().all(|word| word.len() <= 64));
        assert!(bytes.len() > 8 && hello.kernel.banner.len() <= limits::MAX_HELLO_BYTES);
    }
}

pub(crate) fn an_entry() -> FileEntry {
    FileEntry {
        path: "/home/user/a".into(),
        is_exact: true,
        kind: FileKind::Symlink,
        size_bytes: 12,
        mode: 0o644,
        uid: 1000,
        owner: Some("user".into()),
        gid: 1000,
        group: Some("user".into()),
        modified_ms: 1_700_000_000_000,
        etag: "1f-c-18bcfe56800".into(),
        target: Some("b".into()),
        metadata: BTreeMap::from([("project".to_owned(), "a b".to_owned())]),
    }
}

pub(crate) fn a_process() -> ProcessInfo {
    ProcessInfo {
        process: 3,
        pid: 17,
        argv: vec!["sh".into(), "-c".into(), "true".into()],
        tag: Some("build".into()),
        cwd: Some("/home/user".into()),
        user: "user".into(),
        pty: true,
        kept: true,
        started_at_ms: 1_700_000_000_000,
        stdout_from: 1,
        stdout_to: 2,
        stderr_from: 3,
        stderr_to: 4,
        exit: Some(an_exit()),
    }
}

pub(crate) fn an_exit() -> ProcessExit {
    ProcessExit {
        exit_code: Some(1),
        signal: None,
        timed_out: false,
        stdout_dropped_bytes: 7,
        stderr_dropped_bytes: 8,
        duration_ms: 90,
    }
}

pub(crate) fn a_refusal() -> Refusal {
    Refusal {
        code: "not_found".into(),
        message: "there is no such program".into(),
    }
}

/// A conversation for each kind of input.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let lost = Lost {
        stdout_bytes: 5,
        stderr_bytes: 6,
    };
    let started = Started {
        process: 3,
        pid: 17,
    };
    let process = [
        ResponseFrame::Started(started),
        ResponseFrame::Attached(Box::new(a_process())),
        ResponseFrame::Stdout("out".into()),
        ResponseFrame::Stderr("err".into()),
        ResponseFrame::Lost(lost),
        ResponseFrame::Exited(an_exit()),
        ResponseFrame::Failed(a_refusal()),
    ];
    let process: Vec<u8> = process
        .into_iter()
        .flat_map(|frame| bytes_of(frame.encode()))
        .collect();
    let event = FileEvent {
        change: FileChange::Rename,
        path: "a".into(),
        to: Some("b".into()),
        is_directory: false,
    };
    let made = Made {
        entry: an_entry(),
        created: true,
    };
    let port = OpenPort {
        port: 8080,
        address: std::net::Ipv4Addr::LOCALHOST.into(),
        uid: 1000,
    };
    let transfer = [
        TransferFrame::head(&an_entry()),
        TransferFrame::Data("bytes".into()).encode(),
        TransferFrame::item(&event),
        TransferFrame::item(&made),
        TransferFrame::item(&port),
        TransferFrame::item(&a_process()),
        TransferFrame::item(&ArchiveSummary::default()),
        TransferFrame::End.encode(),
        TransferFrame::Failed(a_refusal()).encode(),
    ];
    let transfer: Vec<u8> = transfer.into_iter().flat_map(bytes_of).collect();
    let identity = Identity {
        hostname: "ses-1".into(),
        is_restored: true,
        is_privileged: false,
    };
    let health = Health {
        guest_version: "0.1.0".into(),
        uptime_ms: 1,
        processes: 2,
    };
    let hello = Hello {
        protocol: PROTOCOL,
        token: LinkToken::parse(TOKEN).expect("a token"),
        guest_version: "0.1.0".into(),
        kernel: KernelReport {
            release: "4.4.0".into(),
            version: "#1 SMP".into(),
            banner: "Starting gVisor...".into(),
        },
        capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
        channel: Some(7),
    };
    let json = |document: Result<Vec<u8>, serde_json::Error>| document.expect("a seed is JSON");
    let hello = json(serde_json::to_vec(&hello));
    let input = |kind: u8, bytes: &[u8]| [&[kind, 7][..], bytes].concat();
    vec![
        ("process", input(0, &process)),
        ("transfer", input(1, &transfer)),
        ("entry", input(2, &json(serde_json::to_vec(&an_entry())))),
        (
            "usage",
            input(2, &json(serde_json::to_vec(&Usage::default()))),
        ),
        ("identity", input(2, &json(serde_json::to_vec(&identity)))),
        ("health", input(2, &json(serde_json::to_vec(&health)))),
        ("hello", input(3, &framed(&hello))),
        ("greeting", input(4, &hello)),
    ]
}
