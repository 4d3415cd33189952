//! Podman's client against a podman that is not there, does not answer, or lies. No real podman:
//! a stub on a Unix socket says what a test wants said.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use casemate::base::clock::Timestamp;
use casemate::base::id::{InstallationId, SessionId};
use casemate::model::image::ImageDigest;
use casemate::model::sandbox::{Limits, SandboxId, SandboxPhase, SandboxSpec};
use casemate::runtime::podman::Podman;
use casemate::runtime::{RuntimeConfig, RuntimeError, SandboxRuntime};
use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Short, so that tests of what never answers are short.
const DEADLINE: Duration = Duration::from_millis(200);
/// What counts as "at its deadline" on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the stub does with a request.
enum Reply {
    /// A whole answer.
    Json(u16, String),
    /// These bytes, then the end.
    Raw(Vec<u8>),
    /// These bytes over and over.
    Endless(&'static [u8], Vec<u8>),
    /// Nothing, and the connection stays open.
    Hang,
    /// The first, once the semaphore is released.
    After(Arc<Semaphore>, Box<Reply>),
}

struct Stub {
    socket: PathBuf,
    /// The request lines seen, for example `DELETE /v4.0.0/libpod/containers/…`.
    seen: Arc<Mutex<Vec<String>>>,
    _dir: tempfile::TempDir,
    _task: JoinSet<()>,
}

impl Stub {
    /// Answers each request with what `reply` makes of its first line.
    fn new(reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("podman.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, reply) = (seen.clone(), Arc::new(reply));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut io, _)) = listener.accept().await {
                let (log, reply) = (log.clone(), reply.clone());
                connections.spawn(async move {
                    if let Some(line) = request_line(&mut io).await {
                        let reply = reply(&line);
                        log.lock().unwrap().push(line);
                        answer(io, reply).await;
                    }
                });
            }
        });
        Self {
            socket,
            seen,
            _dir: dir,
            _task: task,
        }
    }

    fn podman(&self) -> Podman {
        podman(&self.socket)
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// Reads the head, and as much of the body as came with it.
async fn request_line(io: &mut UnixStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if io.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let line = head.lines().next()?;
    Some(line.trim_end_matches(" HTTP/1.1").to_owned())
}

async fn answer(mut io: UnixStream, reply: Reply) {
    match reply {
        Reply::Json(status, body) => {
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
            );
            let _ = io
                .write_all(&[head.as_bytes(), body.as_bytes()].concat())
                .await;
        }
        Reply::Raw(bytes) => {
            let _ = io.write_all(&bytes).await;
        }
        Reply::Endless(head, part) => {
            let _ = io.write_all(head).await;
            while io.write_all(&part).await.is_ok() {}
        }
        Reply::Hang => {
            // Until the other side gives up.
            let _ = io.read_to_end(&mut Vec::new()).await;
        }
        Reply::After(gate, reply) => {
            let _ = gate.acquire().await;
            Box::pin(answer(io, *reply)).await;
        }
    }
}

fn podman(socket: &Path) -> Podman {
    Podman::new(RuntimeConfig {
        socket: socket.to_owned(),
        runtime: "/usr/libexec/casemate/casemate-runsc".into(),
        guest: "/bin/true".into(),
        call_deadline: DEADLINE,
        sandbox_deadline: DEADLINE * 2,
        load_deadline: DEADLINE,
    })
}

fn id() -> SandboxId {
    SandboxId::try_from("a".repeat(64)).unwrap()
}

fn spec() -> SandboxSpec {
    SandboxSpec {
        installation: InstallationId::generate(Timestamp::from_millis(1)).unwrap(),
        session: SessionId::generate(Timestamp::from_millis(1)).unwrap(),
        image: ImageDigest::from_bytes([7; 32]),
        limits: Limits::default(),
        hostname: "box".into(),
        allow_root: false,
        link_dir: "/nowhere".into(),
        volumes_dir: "/nowhere.volumes".into(),
        warmth: casemate::model::sandbox::Warmth::None,
    }
}

/// podman's account of a container in that state.
fn inspect(status: &str) -> String {
    json!({"Id": id(), "State": {"Status": status, "ExitCode": 3}, "Config": {"Labels": null}})
        .to_string()
}

fn is_unavailable<T>(result: &Result<T, RuntimeError>) -> bool {
    matches!(result, Err(RuntimeError::Unavailable { .. }))
}

/// Every call of the trait says that podman is unavailable, within its deadline.
async fn all_calls_are_unavailable(podman: &Podman) {
    let began = Instant::now();
    let archive = || stream::iter([Ok("an archive".into())]).boxed();
    assert!(is_unavailable(&podman.probe().await));
    assert!(is_unavailable(&podman.create(&spec()).await));
    assert!(is_unavailable(&podman.start(&id()).await));
    assert!(is_unavailable(&podman.inspect(&id()).await));
    assert!(is_unavailable(&podman.remove(&id()).await));
    assert!(is_unavailable(&podman.list(spec().installation).await));
    assert!(is_unavailable(&podman.exec(&id(), &["true"]).await));
    assert!(is_unavailable(&podman.images().await));
    assert!(is_unavailable(&podman.load_image(archive()).await));
    assert_eq!(podman.last_words(&id()).await, "");
    assert!(began.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_socket_that_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let podman = podman(&dir.path().join("podman.sock"));
    all_calls_are_unavailable(&podman).await;
    assert!(is_unavailable(&podman.wait(&id()).await));
}

#[tokio::test]
async fn a_socket_that_nobody_listens_on() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("podman.sock");
    drop(UnixListener::bind(&socket).unwrap());
    all_calls_are_unavailable(&podman(&socket)).await;
    assert!(is_unavailable(&podman(&socket).wait(&id()).await));
}

#[tokio::test]
async fn a_podman_that_never_answers() {
    all_calls_are_unavailable(&Stub::new(|_| Reply::Hang).podman()).await;
}

#[tokio::test]
async fn a_podman_that_nobody_accepts_for() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("podman.sock");
    // The kernel connects; nobody ever calls accept(2).
    let _listener = UnixListener::bind(&socket).unwrap();
    all_calls_are_unavailable(&podman(&socket)).await;
}

#[tokio::test]
async fn answers_that_are_not_http_or_not_json_or_half() {
    let replies: [fn(&str) -> Reply; 6] = [
        |_| Reply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        |_| Reply::Raw(Vec::new()),
        |_| Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()),
        |_| Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"Id\":".to_vec()),
        |_| Reply::Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec()),
        |_| Reply::Json(200, "{\"Id\":[[[[".into()),
    ];
    for reply in replies {
        let stub = Stub::new(reply);
        let podman = stub.podman();
        assert!(is_unavailable(&podman.inspect(&id()).await));
        assert!(is_unavailable(&podman.wait(&id()).await));
        assert!(is_unavailable(&podman.probe().await));
        assert!(is_unavailable(&podman.list(spec().installation).await));
        assert_eq!(podman.last_words(&id()).await, "");
    }
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [&b"10000\r\n"[..], &b" ".repeat(0x10000), b"\r\n"].concat();
    let stub = Stub::new(move |_| Reply::Endless(head, chunk.clone()));
    assert!(is_unavailable(&stub.podman().inspect(&id()).await));
    // Also where there is no deadline.
    assert!(is_unavailable(&stub.podman().wait(&id()).await));
    assert_eq!(stub.podman().last_words(&id()).await, "");

    let stub = Stub::new(|_| Reply::Endless(b"HTTP/1.1 200 OK\r\n", b"X-Y: z\r\n".repeat(100)));
    assert!(is_unavailable(&stub.podman().wait(&id()).await));
}

#[tokio::test]
async fn podmans_own_words_are_bounded() {
    for body in [
        json!({"message": "é".repeat(1 << 20)}).to_string(),
        "é".repeat(1 << 20),
    ] {
        let stub = Stub::new(move |_| Reply::Json(500, body.clone()));
        match stub.podman().inspect(&id()).await {
            Err(RuntimeError::Failed { message, .. }) => {
                assert!((1000..=1024).contains(&message.len()));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_frame_of_four_gibibytes_is_not_believed() {
    let frame = [&[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff][..], b"words"].concat();
    let exec = json!({"Id": "b".repeat(64)}).to_string();
    let stub = Stub::new(move |line| match line {
        _ if line.contains("/logs") => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", frame.len());
            Reply::Raw([head.as_bytes(), &frame].concat())
        }
        _ if line.ends_with("/start") => {
            let head = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
            Reply::Raw([head, &frame[..]].concat())
        }
        _ => Reply::Json(201, exec.clone()),
    });
    assert_eq!(stub.podman().last_words(&id()).await, "");
    assert!(is_unavailable(&stub.podman().exec(&id(), &["true"]).await));
}

#[tokio::test]
async fn output_that_never_ends_is_kept_in_bounds_and_ends_at_the_deadline() {
    let exec = json!({"Id": "b".repeat(64)}).to_string();
    let frame = [&[1, 0, 0, 0, 0, 1, 0, 0][..], &b"x".repeat(0x10000)].concat();
    let stub = Stub::new(move |line| {
        let head = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
        if line.ends_with("/start") {
            Reply::Endless(head, frame.clone())
        } else {
            Reply::Json(201, exec.clone())
        }
    });
    assert!(is_unavailable(&stub.podman().exec(&id(), &["yes"]).await));
}

#[tokio::test]
async fn waiting_has_no_deadline() {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let stub = Stub::new(move |line| {
        let code = Box::new(Reply::Json(200, "42".into()));
        if line.contains("/wait") {
            Reply::After(held.clone(), code)
        } else {
            Reply::Hang
        }
    });
    let (podman, id) = (stub.podman(), id());
    let (waited, ()) = tokio::join!(podman.wait(&id), async {
        // By then more time has passed than any other call has.
        assert!(is_unavailable(&podman.inspect(&id).await));
        gate.add_permits(1);
    });
    assert_eq!(waited.unwrap(), Some(42));
}

#[tokio::test]
async fn a_waiter_hears_that_podman_died() {
    let stub = Stub::new(|_| Reply::Hang);
    let (podman, id) = (stub.podman(), id());
    let (waited, ()) = tokio::join!(podman.wait(&id), async {
        while stub.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        drop(stub);
    });
    assert!(is_unavailable(&waited));
}

#[tokio::test]
async fn already_started_is_success() {
    // Somebody else starts it between the look and the start.
    let stub = Stub::new(|line| match line {
        _ if line.ends_with("/start") => Reply::Raw(b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec()),
        _ => Reply::Json(200, inspect("created")),
    });
    stub.podman().start(&id()).await.unwrap();
}

#[tokio::test]
async fn a_removal_is_tried_until_the_sandbox_is_gone() {
    let deletes = Arc::new(AtomicUsize::new(0));
    let count = deletes.clone();
    let stub = Stub::new(move |line| {
        if line.starts_with("DELETE") {
            count.fetch_add(1, Ordering::SeqCst);
            let improper = json!({"message": "container state improper: stopped"});
            return Reply::Json(500, improper.to_string());
        }
        // An inspect: there until it was deleted three times.
        let status = if count.load(Ordering::SeqCst) < 3 {
            200
        } else {
            404
        };
        Reply::Json(status, json!({"message": "no such container"}).to_string())
    });
    stub.podman().remove(&id()).await.unwrap();
    assert_eq!(deletes.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_removal_that_podman_refuses_for_ever_fails_with_its_words() {
    let stub = Stub::new(|line| {
        let status = if line.starts_with("DELETE") { 500 } else { 200 };
        Reply::Json(status, json!({"message": "layer is busy"}).to_string())
    });
    match stub.podman().remove(&id()).await {
        Err(RuntimeError::Failed { message, .. }) => assert_eq!(message, "layer is busy"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn images_are_listed_again_when_one_of_them_went_meanwhile() {
    const GONE: &str =
        r#"{"cause":"image not known","message":"ab12: image not known","response":500}"#;
    let asked = AtomicUsize::new(0);
    let stub = Stub::new(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 | 1 => Reply::Json(500, GONE.to_owned()),
        _ => Reply::Json(200, "[]".to_owned()),
    });
    assert_eq!(stub.podman().images().await.unwrap(), []);
    assert_eq!(stub.seen().len(), 3);

    // Not for ever, and nothing else that podman refuses.
    let stub = Stub::new(|_| Reply::Json(500, GONE.to_owned()));
    stub.podman().images().await.unwrap_err();
    assert_eq!(stub.seen().len(), 4);
    let other = r#"{"cause":"x","message":"database is locked","response":500}"#;
    let stub = Stub::new(move |_| Reply::Json(500, other.to_owned()));
    stub.podman().images().await.unwrap_err();
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn an_image_is_looked_at_again_when_another_went_and_missing_only_when_podman_names_it() {
    let image: ImageDigest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    let of = |hex: &str| json!({ "message": format!("failed to find image {}: {hex}: image not known", image.hex()) });
    let calls = AtomicUsize::new(0);
    let other = of(&"b".repeat(64)).to_string();
    let found = json!({ "Architecture": "amd64", "RootFS": { "Layers": [image] } }).to_string();
    let stub = Stub::new(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 | 1 => Reply::Json(404, other.clone()),
        _ => Reply::Json(200, found.clone()),
    });
    let made = stub.podman().makeup(image).await.unwrap();
    assert_eq!(made.architecture, "amd64");
    assert_eq!(stub.seen().len(), 3);

    let own = of(&image.hex()).to_string();
    let stub = Stub::new(move |_| Reply::Json(404, own.clone()));
    let missing = stub.podman().makeup(image).await;
    assert!(
        matches!(missing, Err(RuntimeError::ImageMissing(_))),
        "{missing:?}"
    );
    assert_eq!(stub.seen().len(), 1);

    let other = of(&"b".repeat(64)).to_string();
    let stub = Stub::new(move |_| Reply::Json(404, other.clone()));
    let failed = stub.podman().makeup(image).await;
    assert!(
        matches!(failed, Err(RuntimeError::Failed { .. })),
        "{failed:?}"
    );
    assert_eq!(stub.seen().len(), 4);
}

#[tokio::test]
async fn what_podman_warns_of_is_removed_and_refused() {
    let deleted = Arc::new(AtomicUsize::new(0));
    let seen = deleted.clone();
    let stub = Stub::new(move |line| match line {
        _ if line.ends_with("/info") => Reply::Json(200, "{}".into()),
        _ if line.ends_with("/create") => Reply::Json(
            201,
            json!({"Id": id(), "Warnings": ["limits are ignored"]}).to_string(),
        ),
        _ if line.starts_with("DELETE") => {
            seen.fetch_add(1, Ordering::SeqCst);
            Reply::Json(200, "[]".into())
        }
        _ => Reply::Json(404, "{}".into()),
    });
    match stub.podman().create(&spec()).await {
        Err(RuntimeError::NotAsAsked { field, found, .. }) => {
            assert_eq!((field, &found[..]), ("warnings", "limits are ignored"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(deleted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_container_of_somebody_elses_with_our_name_is_left_alone() {
    let foreign = json!({
        "Id": id(),
        "State": {"Status": "running", "ExitCode": 0},
        "Config": {"Labels": {"io.casemate.installation": "ins_another"}},
    });
    let stub = Stub::new(move |line| match line {
        _ if line.ends_with("/info") => Reply::Json(200, "{}".into()),
        _ if line.ends_with("/create") => {
            Reply::Json(500, json!({"message": "name in use"}).to_string())
        }
        _ if line.contains("/images/") => Reply::Raw(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        _ => Reply::Json(200, foreign.to_string()),
    });
    match stub.podman().create(&spec()).await {
        Err(RuntimeError::Failed { message, .. }) => assert_eq!(message, "name in use"),
        other => panic!("{other:?}"),
    }
    assert!(!stub.seen().iter().any(|line| line.starts_with("DELETE")));
}

#[tokio::test]
async fn states_of_podmans_that_we_do_not_use_are_other() {
    for (status, phase) in [
        ("created", SandboxPhase::Created),
        ("running", SandboxPhase::Running),
        ("exited", SandboxPhase::Exited),
        ("stopped", SandboxPhase::Exited),
        ("initialized", SandboxPhase::Other),
        ("paused", SandboxPhase::Other),
        ("something new", SandboxPhase::Other),
    ] {
        let stub = Stub::new(move |_| Reply::Json(200, inspect(status)));
        let state = stub.podman().inspect(&id()).await.unwrap().unwrap();
        assert_eq!(state.phase, phase, "{status}");
        assert_eq!(
            state.exit_code,
            (phase == SandboxPhase::Exited).then_some(3)
        );
        assert_eq!(state.session, None);
    }
}
