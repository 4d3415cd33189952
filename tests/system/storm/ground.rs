//! What the storm rages on: a podman service of its own, which can be killed, stopped and frozen as a service manager and a
//! kernel would, and a small disk for the daemon's state, which can be full.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::client::UnixClient;
use crate::support::daemon::DAEMON_USER;
use crate::support::{bench, wait_until};

/// Size of the disk.
const DISK_MIB: u64 = 48;

/// A process of the service: podman, conmon, gVisor's.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// What it was started with.
    pub words: Vec<String>,
}

impl Process {
    /// The name under which it runs.
    pub fn name(&self) -> &str {
        let first = self.words.first().map_or("", String::as_str);
        first.rsplit('/').next().unwrap_or_default()
    }

    pub fn line(&self) -> String {
        let mut line = format!("{} {}", self.pid, self.words.join(" "));
        line.truncate(line.floor_char_boundary(400));
        line
    }

    /// Sends it a signal; whether it was there.
    pub fn kill(&self, signal: Signal) -> bool {
        kill(Pid::from_raw(self.pid), signal).is_ok()
    }
}

/// A podman service of our own.
pub struct Podman {
    dir: PathBuf,
    pub socket: PathBuf,
    pub runtime: PathBuf,
    /// Its `XDG_RUNTIME_DIR`.
    pub private: PathBuf,
    /// Where its containers' writable layers are.
    pub storage: PathBuf,
    /// Where the daemon's links are, and beside them what volumes are mounted on.
    pub links: PathBuf,
    /// Where groups of its sandboxes are made.
    pub trees: Vec<PathBuf>,
    words: Vec<String>,
    environ: Vec<(String, String)>,
    owner: (u32, u32),
    child: Option<Child>,
}

impl Podman {
    /// Brings it up, with the bench's image.
    pub fn up() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("podman.{}-{number}", std::process::id());
        let dir = bench().dir.join(name);
        let said = script("up", &dir, &[], None);
        let said: BTreeMap<&str, &str> = said
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        let archive = File::open(&bench().archive).unwrap();
        script("podman", &dir, &["load", "--quiet"], Some(archive));
        let socket = PathBuf::from(said["CASEMATE_PODMAN_SOCKET"]);
        let state = PathBuf::from(said["CASEMATE_SANDBOX_DIR"]);
        let run = socket.parent().unwrap().parent().unwrap().to_owned();
        let private = run.join("private");
        let trees = std::fs::read_to_string(private.join("casemate.cgroup")).unwrap();
        let main = std::fs::read_to_string(run.join("service.pid")).unwrap();
        let main = Path::new("/proc").join(main.trim());
        let environ = words_of(&main.join("environ")).unwrap();
        let owner = std::fs::metadata(&main).unwrap();
        Self {
            runtime: state.join("bin").join(said["CASEMATE_OCI_RUNTIME"]),
            storage: state.join("storage"),
            trees: trees.split_whitespace().map(PathBuf::from).collect(),
            words: words_of(&main.join("cmdline")).unwrap(),
            environ: environ
                .iter()
                // podman tells its own child that it is one.
                .filter(|pair| !pair.starts_with("_CONTAINERS_"))
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            owner: (owner.uid(), owner.gid()),
            links: PathBuf::new(),
            dir,
            socket,
            private,
            child: None,
        }
    }

    /// All processes of it.
    pub fn processes(&self) -> Vec<Process> {
        let environ = format!("XDG_RUNTIME_DIR={}", self.private.display());
        let arguments = [&self.private, &self.links].map(|path| format!("{}/", path.display()));
        let is_ours = |word: &String| arguments.iter().any(|argument| word.contains(argument));
        every_process(|at, words| {
            words.iter().any(is_ours)
                || words_of(&at.join("environ")).is_some_and(|pairs| pairs.contains(&environ))
        })
    }

    /// Those that serve: podman, and itself once more in the user's namespace.
    pub fn service(&self) -> Vec<Process> {
        let socket = format!("unix://{}", self.socket.display());
        every_process(|_, words| words.last() == Some(&socket))
    }

    /// Sends all that serve a signal.
    pub fn signal(&self, signal: Signal) {
        for process in self.service() {
            process.kill(signal);
        }
    }

    /// Ends what serves, and waits until it is gone. Containers stay, as with any service manager that is told to leave
    /// them.
    pub async fn end(&mut self, signal: Signal) {
        self.signal(signal);
        wait_until("podman's service ends", async || {
            if let Some(child) = &mut self.child
                && child.try_wait().unwrap().is_some()
            {
                self.child = None;
            }
            self.service().is_empty()
        })
        .await;
    }

    /// Starts what serves, as it was first started, and waits until it answers.
    pub async fn start(&mut self) {
        assert!(self.service().is_empty(), "it serves already");
        let _ = std::fs::remove_file(&self.socket);
        let log = File::options()
            .append(true)
            .open(self.dir.join("service.log"));
        let log = log.unwrap();
        let child = Command::new(&self.words[0])
            .args(&self.words[1..])
            .env_clear()
            .envs(self.environ.iter().map(|(name, value)| (name, value)))
            .uid(self.owner.0)
            .gid(self.owner.1)
            .process_group(0)
            .current_dir(self.storage.parent().unwrap())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        wait_until("podman's service answers", async || self.answers().await).await;
        std::fs::set_permissions(&self.socket, Permissions::from_mode(0o660)).unwrap();
    }

    pub async fn answers(&self) -> bool {
        let client = UnixClient(self.socket.clone());
        let ping = client.send(Method::GET, "/_ping").await;
        ping.is_ok_and(|answer| answer.status == 200)
    }

    /// What is mounted where podman mounts, in the order of the table.
    pub fn mounts(&self) -> Vec<String> {
        let pause = std::fs::read_to_string(self.private.join("libpod/tmp/pause.pid")).unwrap();
        let table = format!("/proc/{}/mountinfo", pause.trim());
        let table = std::fs::read_to_string(table).unwrap();
        let places = table
            .lines()
            .filter_map(|line| line.split_whitespace().nth(4));
        places.map(str::to_owned).collect()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // It may be frozen.
        self.signal(Signal::SIGCONT);
        let ended = Command::new(podman_service())
            .arg("down")
            .arg(&self.dir)
            .arg("--purge")
            .stdin(Stdio::null())
            .status();
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        if !std::thread::panicking() {
            assert!(ended.unwrap().success(), "podman's service was not ended");
        }
    }
}

fn podman_service() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/podman-service")
}

fn script(command: &str, dir: &Path, arguments: &[&str], input: Option<File>) -> String {
    let output = Command::new(podman_service())
        .arg(command)
        .arg(dir)
        .args(arguments)
        .env("LIMITS", "on")
        .stdin(input.map_or_else(Stdio::null, Stdio::from))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "podman-service {command} failed");
    String::from_utf8(output.stdout).unwrap()
}

fn words_of(file: &Path) -> Option<Vec<String>> {
    let bytes = std::fs::read(file).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Some(text.split_terminator('\0').map(str::to_owned).collect())
}

/// The machine's processes that are `wanted`, by their directory in /proc and their words.
pub fn every_process(wanted: impl Fn(&Path, &[String]) -> bool) -> Vec<Process> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let at = entry.unwrap().path();
        let name = at.file_name().unwrap().to_string_lossy().into_owned();
        let Ok(pid) = name.parse() else { continue };
        // It may end while it is looked at.
        let Some(words) = words_of(&at.join("cmdline")) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(at.join("stat")) else {
            continue;
        };
        let Some((_, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let mut fields = rest.split_whitespace();
        let state = fields.next();
        if state == Some("Z") || !wanted(&at, &words) {
            continue;
        }
        let parent = fields.next().unwrap().parse().unwrap();
        found.push(Process { pid, parent, words });
    }
    found
}

/// A disk of its own for a directory that is there.
pub struct Disk {
    at: PathBuf,
    mounted: bool,
}

impl Disk {
    pub fn mount(at: PathBuf) -> Self {
        let options =
            format!("size={DISK_MIB}m,mode=0700,uid={DAEMON_USER},gid={DAEMON_USER},nosuid,nodev");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "storm"])
            .arg(&at)
            .status();
        assert!(mount.unwrap().success(), "cannot mount a small disk");
        Self { at, mounted: true }
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }

    /// Takes every byte that is left.
    pub fn fill(&self) {
        let mut file = File::create(self.ballast()).unwrap();
        let block = vec![0; 4096];
        while file.write_all(&block).is_ok() {}
    }

    /// Gives back what [`Disk::fill`] took.
    pub fn free(&self) {
        let _ = std::fs::remove_file(self.ballast());
    }

    /// Takes the disk away, with all that is on it.
    pub fn unmount(&mut self) {
        if std::mem::take(&mut self.mounted) {
            let umount = Command::new("umount").arg(&self.at).status();
            assert!(umount.unwrap().success(), "somebody holds the small disk");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
        }
    }
}
