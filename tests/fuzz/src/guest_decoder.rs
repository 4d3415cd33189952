//! What the guest hears: frames of both kinds, requests as it checks them, a welcome.

use casemate_link::file::{
    ArchiveRequest, LinkRequest, ListRequest, MkdirRequest, MoveRequest, Place, ReadRange,
    ReadRequest, RemoveRequest, SetRequest, StatRequest, UnpackRequest, WatchRequest,
    WriteCondition, WriteRequest, check_metadata, check_path,
};
use casemate_link::handshake::{self, Hello, KernelReport, PROTOCOL, Welcome};
use casemate_link::limits;
use casemate_link::port::ConnectRequest;
use casemate_link::process::{
    AttachRequest, DetachRequest, InputRequest, LoginShell, PtySize, ResizeRequest, Selector,
    SignalRequest,
};
use casemate_link::warm_up::IdentityRequest;
use casemate_link::wire::{Chunk, RequestFrame, TransferFrame, WireError};
use casemate_link::{LinkToken, ProcessSpec};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt, duplex};

use crate::input::{Cuts, Frames, block_on, bytes_of, frames, handshake as framed};

/// The first byte says what it is, the second where it is cut.
pub fn run(data: &[u8]) {
    let [kind, cuts, rest @ ..] = data else {
        return;
    };
    let mut cuts = Cuts::new(*cuts);
    match kind % 5 {
        0 => frames::<RequestFrame>(rest, &mut cuts)
            .into_iter()
            .for_each(told),
        1 => frames::<TransferFrame>(rest, &mut cuts)
            .into_iter()
            .for_each(asked),
        2 => request(rest),
        3 => welcome(rest),
        _ => welcome(&framed(rest)),
    }
}

impl Frames for RequestFrame {
    fn join(&mut self, next: &Self) -> bool {
        match (self, next) {
            (Self::Stdin(a), Self::Stdin(b)) => {
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

fn told(frame: RequestFrame) {
    if let RequestFrame::Start(spec) = frame {
        process(&spec);
    }
}

fn asked(frame: TransferFrame) {
    if let TransferFrame::Head(json) | TransferFrame::Item(json) = frame {
        request(&json);
    }
}

/// What passes the check can be given to the kernel.
fn process(spec: &ProcessSpec) {
    if spec.validate().is_err() {
        return;
    }
    let no_nul = |text: &str| !text.contains('\0');
    assert!(spec.shell.is_some() != spec.argv.first().is_some_and(|word| !word.is_empty()));
    assert!(spec.argv.len() <= limits::MAX_ARGV_COUNT && spec.env.len() <= limits::MAX_ENV_COUNT);
    assert!(spec.argv.iter().all(|word| no_nul(word)));
    assert!(
        spec.env
            .iter()
            .all(|(name, value)| no_nul(name) && no_nul(value) && !name.contains('='))
    );
    assert!(
        spec.cwd
            .as_deref()
            .is_none_or(|cwd| cwd.starts_with('/') && no_nul(cwd))
    );
    assert!(spec.user.as_deref().is_none_or(no_nul));
    assert!(spec.pty.is_none_or(|size| size.rows > 0 && size.cols > 0));
    assert!(spec.keep_bytes <= limits::MAX_KEEP_BYTES);
}

fn read<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    serde_json::from_slice(json).ok()
}

/// A document, as any of those that the guest waits for.
fn request(json: &[u8]) {
    if let Some(spec) = read::<ProcessSpec>(json) {
        process(&spec);
    }
    let places = [
        read::<StatRequest>(json).map(|asked| asked.place),
        read::<ListRequest>(json).map(|asked| asked.place),
        read::<MkdirRequest>(json).map(|asked| asked.place),
        read::<RemoveRequest>(json).map(|asked| asked.place),
        read::<WatchRequest>(json).map(|asked| asked.place),
        read::<ArchiveRequest>(json).map(|asked| asked.place),
        read::<UnpackRequest>(json).map(|asked| asked.place),
        read::<ReadRequest>(json).map(|asked| {
            asked.range.into_iter().for_each(part);
            asked.place
        }),
        read::<MoveRequest>(json).map(|asked| {
            path(&asked.to);
            asked.place
        }),
        read::<LinkRequest>(json).map(|asked| {
            path(&asked.target);
            asked.place
        }),
        read::<SetRequest>(json).map(|asked| {
            metadata(asked.metadata);
            asked.place
        }),
        read::<WriteRequest>(json).map(|asked| {
            metadata(asked.metadata);
            asked.place
        }),
    ];
    for place in places.into_iter().flatten() {
        if place.validate().is_ok() {
            path(&place.path);
            assert!(
                place
                    .user
                    .is_none_or(|user| !user.is_empty() && !user.contains('\0'))
            );
        }
    }
    let _ = read::<SignalRequest>(json);
    let _ = read::<ResizeRequest>(json);
    let _ = read::<DetachRequest>(json);
    let _ = read::<ConnectRequest>(json);
    drop(read::<IdentityRequest>(json));
}

fn path(path: &str) {
    if check_path("path", path).is_ok() {
        assert!((1..limits::MAX_PATH_BYTES).contains(&path.len()) && !path.contains('\0'));
    }
}

fn metadata(metadata: Option<std::collections::BTreeMap<String, String>>) {
    let metadata = metadata.unwrap_or_default();
    if check_metadata(&metadata).is_ok() {
        assert!(metadata.len() <= limits::MAX_METADATA_COUNT);
        assert!(
            metadata
                .keys()
                .all(|name| !name.is_empty() && name.is_ascii())
        );
    }
}

fn part(range: ReadRange) {
    for size in [0, 1, 4096, limits::MAX_FILE_BYTES, u64::MAX] {
        if let Some((offset, length)) = range.within(size) {
            assert!(offset.checked_add(length).is_some_and(|end| end <= size));
        }
    }
}

/// The daemon's answer to a hello.
fn welcome(bytes: &[u8]) {
    let hello = Hello {
        protocol: PROTOCOL,
        token: LinkToken::parse(&"t".repeat(32)).expect("a token"),
        guest_version: String::new(),
        kernel: KernelReport::default(),
        capabilities: Vec::new(),
        channel: None,
    };
    block_on(async {
        let (mut guest, mut daemon) = duplex(bytes.len().max(4096));
        daemon.write_all(bytes).await.expect("there is room");
        daemon.shutdown().await.expect("nobody hung up");
        drop(handshake::offer(&mut guest, &hello).await);
    });
}

/// A conversation for each kind of input.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let spec = ProcessSpec {
        env: [("NAME".to_owned(), "value".to_owned())].into(),
        cwd: Some("/tmp".into()),
        user: Some("user".into()),
        tag: Some("build".into()),
        pty: Some(PtySize { rows: 24, cols: 80 }),
        timeout_ms: Some(1000),
        ..ProcessSpec::new(["sh", "-c", "true"])
    };
    let shell = ProcessSpec {
        shell: Some(LoginShell {
            command: Some("true".into()),
        }),
        ..ProcessSpec::new(Vec::<String>::new())
    };
    let attach = AttachRequest {
        process: Selector::Tag("build".into()),
        stdout_offset: 1,
        stderr_offset: 2,
        output: true,
    };
    let process = [
        RequestFrame::Start(Box::new(spec)),
        RequestFrame::Start(Box::new(shell)),
        RequestFrame::Attach(attach),
        RequestFrame::Input(InputRequest {
            process: Selector::Pid(7),
        }),
        RequestFrame::Stdin("in".into()),
        RequestFrame::StdinEnd,
    ];
    let process: Vec<u8> = process
        .into_iter()
        .flat_map(|frame| bytes_of(frame.encode()))
        .collect();
    let place = || Place {
        path: "/tmp/a".into(),
        user: Some("user".into()),
    };
    let read = ReadRequest {
        place: place(),
        range: Some(ReadRange::From(1, Some(2))),
    };
    let tail = ReadRequest {
        place: place(),
        range: Some(ReadRange::Last(9)),
    };
    let write = WriteRequest {
        place: place(),
        mode: Some(0o600),
        append: false,
        create_parents: true,
        sync: true,
        only_if: Some(WriteCondition::Etag(vec!["a-1".into()])),
        metadata: Some([("project".to_owned(), "a".to_owned())].into()),
    };
    let rename = MoveRequest {
        place: place(),
        to: "/tmp/b".into(),
        overwrite: true,
        create_parents: true,
    };
    let list = ListRequest {
        place: place(),
        depth: 2,
        limit: 100,
    };
    let transfer = [
        TransferFrame::head(&read),
        TransferFrame::head(&tail),
        TransferFrame::head(&write),
        TransferFrame::head(&rename),
        TransferFrame::head(&list),
        TransferFrame::Data("bytes".into()).encode(),
        TransferFrame::End.encode(),
    ];
    let transfer: Vec<u8> = transfer.into_iter().flat_map(bytes_of).collect();
    let signal = SignalRequest {
        process: Selector::Process(3),
        signum: 15,
    };
    let identity = IdentityRequest {
        hostname: "ses-1".into(),
    };
    let refused = Welcome::Refused {
        code: "bad_token".into(),
        message: "no".into(),
    };
    let json = |document: Result<Vec<u8>, serde_json::Error>| document.expect("a seed is JSON");
    let accepted = json(serde_json::to_vec(&Welcome::Accepted { protocol: 1 }));
    let input = |kind: u8, bytes: &[u8]| [&[kind, 7][..], bytes].concat();
    vec![
        ("process", input(0, &process)),
        ("transfer", input(1, &transfer)),
        ("write", input(2, &json(serde_json::to_vec(&write)))),
        ("signal", input(2, &json(serde_json::to_vec(&signal)))),
        ("identity", input(2, &json(serde_json::to_vec(&identity)))),
        ("welcome", input(3, &framed(&accepted))),
        ("refused", input(4, &json(serde_json::to_vec(&refused)))),
    ]
}
