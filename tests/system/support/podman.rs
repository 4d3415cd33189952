//! Podman as the tests see it: what it holds, a second service on the same store, and a socket in
//! between that can be made to fail.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use casemate::model::image::ImageDigest;
use http::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::bench::bench;
use super::client::UnixClient;
use super::wait::{wait_for, wait_until};
use crate::archive;

/// A container, as podman lists it.
#[derive(Clone, Debug)]
pub struct Container {
    pub id: String,
    pub labels: BTreeMap<String, String>,
}

/// Podman's answer to a GET below `/v4.0.0/libpod`.
pub async fn get(path: &str) -> Value {
    get_at(&bench().socket, path).await
}

/// The same of the podman behind this socket.
pub async fn get_at(socket: &Path, path: &str) -> Value {
    let answer = UnixClient(socket.to_owned())
        .send(Method::GET, &format!("/v4.0.0/libpod{path}"))
        .await
        .unwrap();
    answer.expect(200)
}

/// Containers of an installation, running or not.
pub async fn containers(installation: &str) -> Vec<Container> {
    containers_at(&bench().socket, installation).await
}

/// The same at the podman behind this socket.
pub async fn containers_at(socket: &Path, installation: &str) -> Vec<Container> {
    let filter = format!("{{\"label\":[\"io.casemate.installation={installation}\"]}}");
    let filter = filter
        .replace('{', "%7B")
        .replace('}', "%7D")
        .replace('"', "%22")
        .replace('[', "%5B")
        .replace(']', "%5D");
    let found = get_at(
        socket,
        &format!("/containers/json?all=true&filters={filter}"),
    )
    .await;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    found
        .as_array()
        .into_iter()
        .flatten()
        .map(|container| Container {
            id: text(&container["Id"]),
            labels: serde_json::from_value(container["Labels"].clone()).unwrap_or_default(),
        })
        .collect()
}

/// The images that an installation made of sessions.
pub async fn snapshots(installation: &str) -> Vec<String> {
    // podman answers nothing at all when an image goes that it had just read of: one of another test's.
    let podman = UnixClient(bench().socket.clone());
    let list = async || {
        let path = "/v4.0.0/libpod/images/json?all=true";
        let answer = podman.send(Method::GET, path).await.unwrap();
        answer.status.is_success().then(|| answer.expect(200))
    };
    let found = wait_for("podman lists its images", Duration::from_secs(20), list).await;
    let ours = |image: &&Value| image["Labels"]["io.casemate.snapshot-of"] == installation;
    let images = found.as_array().into_iter().flatten().filter(ours);
    images
        .map(|image| format!("sha256:{}", image["Id"].as_str().unwrap()))
        .collect()
}

/// Makes an image as an installation does of a session, which no template names.
pub async fn leave_snapshot(installation: &str) {
    let (archive, _) = archive::on_top(&[], installation);
    load(archive).await;
}

/// The layers of an image.
pub async fn layers(image: &str) -> Vec<ImageDigest> {
    let hex = image.trim_start_matches("sha256:");
    let image = get(&format!("/images/{hex}/json")).await;
    let layers = image["RootFS"]["Layers"].as_array().unwrap();
    layers
        .iter()
        .map(|layer| layer.as_str().unwrap().parse().unwrap())
        .collect()
}

/// Gives podman an image.
pub async fn load(archive: Vec<u8>) {
    let path = "/v4.0.0/libpod/images/load";
    let podman = UnixClient(bench().socket.clone());
    let answer = podman.send_body(Method::POST, path, archive.into());
    answer.await.unwrap().expect(200);
}

/// Removes an image, whoever uses it.
pub async fn remove_image(image: &str) {
    let hex = image.trim_start_matches("sha256:");
    let path = format!("/v4.0.0/libpod/images/{hex}?force=true");
    let podman = UnixClient(bench().socket.clone());
    let _ = podman.send(Method::DELETE, &path).await;
}

/// Removes a container as somebody else would: behind the daemon's back.
pub async fn remove(id: &str) {
    remove_at(&bench().socket, id).await;
}

/// The same at the podman behind this socket.
pub async fn remove_at(socket: &Path, id: &str) {
    let path = format!("/v4.0.0/libpod/containers/{id}?force=true&timeout=0");
    let client = UnixClient(socket.to_owned());
    let answer = client.send(Method::DELETE, &path).await.unwrap();
    assert!(
        answer.status.is_success() || answer.status == 404,
        "{:?}",
        answer.body
    );
}

/// Kills all that runs of a container's sandbox.
pub async fn kill_sandbox(id: &str) {
    let pid = get(&format!("/containers/{id}/json")).await["State"]["Pid"]
        .as_i64()
        .unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
}

/// A podman service beside the bench's: the same user, environment and store, another runtime.
pub struct Service {
    pub socket: PathBuf,
    child: Child,
}

impl Service {
    /// Starts it and waits until it answers.
    pub async fn start(runtime: &Path, flags: &[&str]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let stream = UnixStream::connect(&bench().socket).await.unwrap();
        let peer = stream.peer_cred().unwrap();
        let environ = std::fs::read(format!("/proc/{}/environ", peer.pid().unwrap())).unwrap();
        let environ = String::from_utf8(environ).unwrap();
        let environ = environ
            .split_terminator('\0')
            // podman tells its own child that it is one.
            .filter(|pair| !pair.starts_with("_CONTAINERS_"))
            .filter_map(|pair| pair.split_once('='));
        let socket = bench().socket.with_file_name(format!(
            "t{}-{}.sock",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        let child = Command::new("podman")
            .arg(format!("--runtime={}", runtime.display()))
            .args(flags)
            // It ends by itself when the test cannot end it.
            .args(["system", "service", "--time", "300"])
            .arg(format!("unix://{}", socket.display()))
            .env_clear()
            .envs(environ)
            .uid(peer.uid())
            .gid(peer.gid())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let this = Self { socket, child };
        wait_until("a second podman service answers", async || {
            let ping = UnixClient(this.socket.clone())
                .send(Method::GET, "/_ping")
                .await;
            ping.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        std::fs::set_permissions(&this.socket, Permissions::from_mode(0o666)).unwrap();
        this
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // podman hands the signal on to its child in the user namespace.
        let _ = kill(
            Pid::from_raw(self.child.id().try_into().unwrap()),
            Signal::SIGTERM,
        );
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// What a [`Proxy`] does with those who connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Hands them on to this socket.
    Pass(PathBuf),
    /// Hands them on, but those who want something removed: on them it hangs up.
    KeepAll(PathBuf),
    /// Hangs up on them.
    Refuse,
    /// Takes them and says nothing.
    Hang,
    /// The socket is not there.
    Missing,
}

/// A podman socket that fails when it is told to. It runs on a thread of its own, so that it also
/// serves while a test's thread is blocked.
pub struct Proxy {
    pub socket: PathBuf,
    mood: watch::Sender<Mood>,
    settled: watch::Receiver<Mood>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Proxy {
    /// A proxy in this mood.
    pub async fn start(mood: Mood) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let socket = PathBuf::from(format!(
            "/run/cmp.{}.{}.sock",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        let (sender, receiver) = watch::channel(mood);
        let (settled_in, settled) = watch::channel(Mood::Missing);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.spawn(serve(socket.clone(), receiver, settled_in));
        let this = Self {
            socket,
            mood: sender,
            settled,
            runtime: Some(runtime),
        };
        this.settle().await;
        this
    }

    /// In front of the bench's podman.
    pub async fn before_podman() -> Self {
        Self::start(Mood::Pass(bench().socket.clone())).await
    }

    /// Changes the mood, cuts every connection, and waits until the new one holds.
    pub async fn set(&self, mood: Mood) {
        self.mood.send_replace(mood);
        self.settle().await;
    }

    /// Podman is there again.
    pub async fn mend(&self) {
        self.set(Mood::Pass(bench().socket.clone())).await;
    }

    async fn settle(&self) {
        let wanted = self.mood.borrow().clone();
        let mut settled = self.settled.clone();
        settled.wait_for(|mood| *mood == wanted).await.unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn serve(socket: PathBuf, mut moods: watch::Receiver<Mood>, settled: watch::Sender<Mood>) {
    loop {
        let mood = moods.borrow_and_update().clone();
        let _ = std::fs::remove_file(&socket);
        let mut connections = JoinSet::new();
        let listener = (mood != Mood::Missing).then(|| {
            let listener = UnixListener::bind(&socket).unwrap();
            std::fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
            listener
        });
        settled.send_replace(mood.clone());
        loop {
            let accepted = async {
                match &listener {
                    Some(listener) => listener.accept().await.unwrap().0,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = moods.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                mut io = accepted => match mood.clone() {
                    Mood::Pass(target) => {
                        connections.spawn(async move {
                            if let Ok(mut podman) = UnixStream::connect(target).await {
                                let _ = tokio::io::copy_bidirectional(&mut io, &mut podman).await;
                            }
                        });
                    }
                    Mood::KeepAll(target) => {
                        connections.spawn(async move {
                            // The first line says what is wanted; each request has a connection of its own.
                            let mut begin = [0; 6];
                            if io.read_exact(&mut begin).await.is_ok()
                                && begin != *b"DELETE"
                                && let Ok(mut podman) = UnixStream::connect(target).await
                                && podman.write_all(&begin).await.is_ok()
                            {
                                let _ = tokio::io::copy_bidirectional(&mut io, &mut podman).await;
                            }
                        });
                    }
                    Mood::Hang => {
                        connections.spawn(async move {
                            let _io = io;
                            std::future::pending::<()>().await;
                        });
                    }
                    Mood::Refuse | Mood::Missing => drop(io),
                },
            }
        }
        connections.shutdown().await;
    }
}
