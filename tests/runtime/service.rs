//! Other podmans than the right one: a second service on the same store with another runtime, and
//! one that boasts of what it cannot do.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use casemate::model::image::ImageDigest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// A podman service beside another one: the same user, environment and store.
pub struct Service {
    pub socket: PathBuf,
    child: Child,
}

impl Service {
    /// Starts it and waits until it answers. Needs root, to become the other service's user.
    pub async fn start(beside: &Path, runtime: &str) -> Self {
        let peer = UnixStream::connect(beside)
            .await
            .unwrap()
            .peer_cred()
            .unwrap();
        let environ = std::fs::read(format!("/proc/{}/environ", peer.pid().unwrap()))
            .expect("reading podman's environment needs root: run scripts/test");
        let environ: Vec<(String, String)> = String::from_utf8(environ)
            .unwrap()
            .split_terminator('\0')
            // podman tells its own child that it is one.
            .filter(|pair| !pair.starts_with("_CONTAINERS_"))
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let run = &environ
            .iter()
            .find(|(name, _)| name == "XDG_RUNTIME_DIR")
            .unwrap()
            .1;
        let socket = Path::new(run).join(format!("{runtime}-test.sock"));
        let _ = std::fs::remove_file(&socket);
        let child = Command::new("podman")
            // It ends by itself when the test cannot end it.
            .args(["--runtime", runtime, "system", "service", "--time", "60"])
            .arg(format!("unix://{}", socket.display()))
            .env_clear()
            .envs(environ)
            .uid(peer.uid())
            .gid(peer.gid())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&socket).await.is_err() {
            assert!(
                Instant::now() < deadline,
                "the second podman service does not start"
            );
            tokio::task::yield_now().await;
        }
        Self { socket, child }
    }
}

impl Drop for Service {
    /// Ends it; podman hands the signal on to the child in its user namespace.
    fn drop(&mut self) {
        let pid = self.child.id().try_into().map(Pid::from_raw);
        let _ = pid.map(|pid| kill(pid, Signal::SIGTERM));
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Stands in front of a podman and claims that there are groups for sandboxes where there are none.
pub struct Boaster {
    pub socket: PathBuf,
    _task: JoinSet<()>,
}

impl Boaster {
    pub fn start(real: &Path, dir: &Path) -> Self {
        let socket = dir.join("boaster.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let real = real.to_owned();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, real.clone()));
            }
        });
        Self {
            socket,
            _task: task,
        }
    }
}

async fn pass(mut client: UnixStream, real: PathBuf) {
    let mut server = UnixStream::connect(&real).await.unwrap();
    let mut head = vec![0; 16 << 10];
    let length = client.read(&mut head).await.unwrap();
    let head = &head[..length];
    if !head.windows(13).any(|w| w == b"/libpod/info ") {
        server.write_all(head).await.unwrap();
        let _ = copy_bidirectional(&mut client, &mut server).await;
        return;
    }
    let request = b"GET /v4.0.0/libpod/info HTTP/1.0\r\n\r\n";
    server.write_all(request).await.unwrap();
    let mut answer = String::new();
    server.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut info: serde_json::Value = serde_json::from_str(body).unwrap();
    let version = &mut info["host"]["ociRuntime"]["version"];
    let place = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
        .into_iter()
        .find(|place| Path::new(place).is_dir())
        .unwrap();
    let said = format!("runsc version 0.0~20240729.0\ncgroup: {place} memory cpu pids");
    *version = said.into();
    let body = info.to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.write_all((head + &body).as_bytes()).await.unwrap();
}

/// Takes an image out of podman's store.
pub async fn forget_image(socket: &Path, image: ImageDigest) {
    let mut podman = UnixStream::connect(socket).await.unwrap();
    let request = format!(
        "DELETE /v4.0.0/libpod/images/{} HTTP/1.0\r\n\r\n",
        image.hex()
    );
    podman.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    podman.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
}
