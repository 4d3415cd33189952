//! A daemon under test: its own state, runtime directory and port, run as the user `casemate`. When
//! it is dropped, its sessions are ended, it is ended in order, and the test fails if anything of it
//! is left: a container, a process, a link directory, a socket, a mount, an unfinished audit record.

use std::fs::{File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use casemate::admin::protocol;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use super::bench::bench;
use super::client::Client;
use super::wait::{PATIENCE, wait_for, wait_until};
use super::{admin, podman};

/// Ports that no outgoing connection is given (`ip_local_port_range` begins at 32768).
const PORTS: (usize, usize) = (20_000, 12_000);

/// The user that daemons run as.
pub const DAEMON_USER: &str = "casemate";

/// One daemon, running or not.
pub struct Daemon {
    /// Everything of it but its runtime directory.
    pub home: PathBuf,
    /// Its runtime directory.
    pub run: PathBuf,
    /// Its configuration, with its templates; [`Daemon::write_config`] makes it hold.
    pub config: Value,
    /// What it says to whoever has the key of the team `tests`.
    pub client: Client,
    /// Where a journal of the test's own listens, which it then writes to.
    pub journal: Option<PathBuf>,
    /// The socket of its podman.
    podman: PathBuf,
    child: Option<Child>,
    keys: Vec<String>,
    was_killed: bool,
}

impl Daemon {
    /// A daemon that is ready, with a key.
    pub async fn up() -> Self {
        let mut daemon = Self::new();
        daemon.start().await;
        daemon.client.key = Some(daemon.key("tests").await);
        daemon
    }

    /// A ready daemon whose configuration differs in these values, by dotted keys.
    pub async fn up_with(values: &[(&str, Value)]) -> Self {
        let mut daemon = Self::new();
        for (key, value) in values {
            daemon.set(key, value.clone());
        }
        daemon.start().await;
        daemon.client.key = Some(daemon.key("tests").await);
        daemon
    }

    /// A daemon that is not started yet.
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        // The last letter keeps one name from being the beginning of another.
        let name = format!(
            "{}.{}d",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let home = bench().dir.join(format!("daemon.{name}"));
        let run = PathBuf::from(format!("/run/cmt.{name}"));
        for (path, mode) in [(&home, 0o755), (&run, 0o711)] {
            std::fs::create_dir(path).unwrap();
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            give_to_daemon(path);
        }
        let port = free_port();
        let config = json!({
            "version": 1,
            "mode": "development",
            "state_dir": home.join("state"),
            "runtime_dir": run,
            // Tests try wrong keys more often than anybody should.
            "http": {"listen": format!("127.0.0.1:{port}"), "limits": {"failures_per_minute": 100_000}},
            "podman": {
                "socket": bench().socket,
                "runtime": bench().runtime,
                "guest": bench().guest,
            },
            "log": {"level": "debug"},
            "templates": {"base": {
                "image": bench().image,
                "limits": {"disk_bytes": 1_u64 << 30},
                "max_limits": {"memory_bytes": 1_u64 << 31, "disk_bytes": 1_u64 << 31, "cpus": 2, "pids": 1024},
            }},
        });
        let daemon = Self {
            home,
            run,
            config,
            client: Client {
                address: format!("127.0.0.1:{port}"),
                key: None,
                tls: None,
            },
            journal: None,
            podman: bench().socket.clone(),
            child: None,
            keys: Vec::new(),
            was_killed: false,
        };
        daemon.write_config();
        daemon
    }

    /// A daemon that is not started yet, on another podman than the bench's.
    pub fn on_podman(socket: &Path, runtime: &Path) -> Self {
        let mut daemon = Self::new();
        socket.clone_into(&mut daemon.podman);
        daemon.set("podman.socket", json!(socket));
        daemon.set("podman.runtime", json!(runtime));
        daemon
    }

    // --- configuration ---

    /// Sets a value by its dotted key, and writes the file.
    pub fn set(&mut self, key: &str, value: Value) {
        let mut place = &mut self.config;
        for part in key.split('.') {
            place = &mut place[part];
        }
        *place = value;
        self.write_config();
    }

    /// Writes the file, and one for each of the templates. JSON is YAML.
    pub fn write_config(&self) {
        let mut config = self.config.clone();
        let templates = config.as_object_mut().unwrap().remove("templates").unwrap();
        let directory = self.home.join("templates");
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory).unwrap();
        for (name, template) in templates.as_object().unwrap() {
            let text = serde_json::to_string_pretty(template).unwrap();
            std::fs::write(directory.join(format!("{name}.yaml")), text).unwrap();
        }
        self.write_config_text(&serde_json::to_string_pretty(&config).unwrap());
    }

    /// Writes this instead.
    pub fn write_config_text(&self, text: &str) {
        std::fs::write(self.config_path(), text).unwrap();
    }

    pub fn config_path(&self) -> PathBuf {
        self.home.join("casemate.yaml")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.home.join("state")
    }

    pub fn database(&self) -> PathBuf {
        self.state_dir().join("state.db")
    }

    pub fn admin_socket(&self) -> PathBuf {
        self.run.join("admin.sock")
    }

    // --- life ---

    /// Starts it and waits until it is ready.
    pub async fn start(&mut self) {
        self.launch();
        self.ready().await;
    }

    /// Starts it.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.child = Some(self.command(DAEMON_USER, &[]).spawn().unwrap());
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self) {
        let child = self.child.as_mut().expect("it was not started");
        let (client, log) = (self.client.stranger(), self.home.join("log"));
        wait_until("the daemon is ready", async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the daemon ended ({status}):\n{}", tail(&log));
            }
            let ready = client
                .try_send(http::Method::GET, "/ready", &[], bytes::Bytes::new())
                .await;
            ready.is_ok_and(|answer| answer.status == 200)
        })
        .await;
    }

    /// Runs it as it is configured, with more arguments, to its end: exit code, and what it wrote.
    pub async fn run_to_end(&self, user: &str, arguments: &[&str]) -> (i32, String) {
        let log = self.home.join("log");
        let before = std::fs::metadata(&log).map_or(0, |found| found.len());
        let mut child = self.command(user, arguments).spawn().unwrap();
        let code = exit_of(&mut child).await;
        let text = std::fs::read(&log).unwrap();
        let text = &text[usize::try_from(before).unwrap()..];
        (code, String::from_utf8_lossy(text).into_owned())
    }

    /// Makes sure that it refuses to start, with this exit code; what it said.
    pub async fn refuses(&self, code: i32) -> String {
        let (found, text) = self.run_to_end(DAEMON_USER, &[]).await;
        assert_eq!(found, code, "{text}");
        // The last line is for the operator; and it is not a panic's.
        assert!(!text.contains("panicked"), "{text}");
        text
    }

    fn command(&self, user: &str, arguments: &[&str]) -> Command {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.home.join("log"))
            .unwrap();
        let mut command = match &self.journal {
            None => Command::new("setpriv"),
            // In a mount namespace of its own the directory of the test's socket is that of journald's, and standard error
            // is the stream that systemd would have named.
            Some(socket) => {
                let mut command = Command::new("unshare");
                let about = log.metadata().unwrap();
                let (device, inode) = (about.dev(), about.ino());
                let script = format!(
                    "mkdir -p /run/systemd && mount -t tmpfs none /run/systemd && mkdir /run/systemd/journal && mount --bind \"$0\" /run/systemd/journal && export JOURNAL_STREAM={device}:{inode} && exec setpriv \"$@\""
                );
                command.args(["--mount", "--", "sh", "-c", &script]);
                command.arg(socket.parent().unwrap());
                command
            }
        };
        command
            .args(["--reuid", user, "--regid", user, "--init-groups", "--"])
            .arg(bench().bin.join("casemated"))
            .arg("--config")
            .arg(self.config_path())
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it does not run").id()
    }

    /// Resident memory of the daemon's process, in kB.
    pub fn resident_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), signal).unwrap();
    }

    /// Ends it as a crash would, and waits until it is gone.
    pub fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        self.was_killed = true;
        self.child.take().unwrap().wait().unwrap();
    }

    /// How it ended, if it runs no more.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.child = None;
        Some(status)
    }

    /// Whether it runs, as far as anybody has looked.
    pub const fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Waits for its end; its exit code.
    pub async fn exit(&mut self) -> i32 {
        let code = exit_of(self.child.as_mut().unwrap()).await;
        self.child = None;
        code
    }

    /// Ends it in order; its exit code.
    pub async fn term(&mut self) -> i32 {
        self.signal(Signal::SIGTERM);
        self.exit().await
    }

    /// Ends it in order and starts it again.
    pub async fn restart(&mut self) {
        assert_eq!(self.term().await, 0, "{}", self.log());
        self.start().await;
    }

    // --- what it knows ---

    /// A new API key of a team.
    pub async fn key(&mut self, team: &str) -> String {
        let request = protocol::Request::KeyCreate {
            name: "test".parse().unwrap(),
            team: team.parse().unwrap(),
            role: casemate::model::grant::Role::default(),
            scopes: None,
            expires_in_s: None,
        };
        match self.admin(request).await {
            protocol::Answer::Key(view) => {
                self.keys.push(view.key.clone());
                view.key
            }
            other => panic!("{other:?}"),
        }
    }

    /// Asks at the admin socket as root.
    pub async fn admin(&self, request: protocol::Request) -> protocol::Answer {
        admin::ask(&self.admin_socket(), request).await
    }

    /// The whole log, of all its lives.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.home.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Reads its database.
    pub fn sql<T: rusqlite::types::FromSql>(&self, query: &str) -> Vec<T> {
        let db = Connection::open_with_flags(self.database(), OpenFlags::SQLITE_OPEN_READ_ONLY);
        let db = db.unwrap();
        db.busy_timeout(Duration::from_secs(5)).unwrap();
        let mut statement = db.prepare(query).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// The name under which podman knows its containers.
    pub fn installation(&self) -> String {
        self.sql("SELECT id FROM installation").pop().unwrap()
    }

    /// The container of a session.
    pub async fn container_of(&self, session: &str) -> Option<podman::Container> {
        let found = self.containers().await;
        found
            .into_iter()
            .find(|container| container.labels["io.casemate.session"] == session)
    }

    /// Containers, by podman.
    pub async fn containers(&self) -> Vec<podman::Container> {
        podman::containers_at(&self.podman, &self.installation()).await
    }

    /// Link directories.
    pub fn links(&self) -> Vec<String> {
        let mut links = self.link_entries();
        links.retain(|name| !name.contains('.'));
        links
    }

    /// Link directories, and the tokens and rooms for volumes beside them.
    pub fn link_entries(&self) -> Vec<String> {
        let mut entries = self.beside_links();
        entries.retain(|name| !name.ends_with(".checkpoint"));
        entries
    }

    /// The files with which checkpoints are kept, which outlive a daemon.
    pub fn checkpoints(&self) -> Vec<String> {
        let mut entries = self.beside_links();
        entries.retain(|name| name.ends_with(".checkpoint"));
        entries
    }

    fn beside_links(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.run.join("link")) else {
            return Vec::new();
        };
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// Waits until a session is in a phase; the session.
    pub async fn phase(&self, id: &str, phase: &str) -> Value {
        wait_for(&format!("{id} is {phase}"), PATIENCE, async || {
            let session = self.client.look(id).await;
            (session["phase"] == phase).then_some(session)
        })
        .await
    }

    /// It was ended by force: what it was about to do stays without an outcome in the record.
    pub fn forget_intents(&mut self) {
        self.was_killed = true;
    }

    // --- the end ---

    /// Ends everything; what should not have been left.
    async fn finish(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait().unwrap()
        {
            problems.push(format!("the daemon ended by itself: {status}"));
            self.child = None;
        }
        let known = self.database().exists()
            && self
                .sql::<i64>("SELECT count(*) FROM sqlite_schema WHERE name = 'installation'")
                .first()
                .is_some_and(|&tables| tables == 1);
        let live = "SELECT id FROM sessions WHERE ended_at IS NULL";
        if self.child.is_none() && known && !self.sql::<String>(live).is_empty() {
            self.write_config();
            self.start().await;
        }
        if self.child.is_some() {
            self.end_sessions(&mut problems).await;
            let code = self.term().await;
            if code != 0 {
                problems.push(format!("the daemon ended with {code}"));
            }
            if self.admin_socket().exists() {
                problems.push("the admin socket is left".to_owned());
            }
        }
        if known {
            for session in self.sql::<String>(live) {
                problems.push(format!("{session} never ended"));
            }
            for container in self.containers().await {
                problems.push(format!("a container is left: {container:?}"));
                podman::remove_at(&self.podman, &container.id).await;
            }
            // Those of templates that a test kept are its own.
            for image in podman::snapshots(&self.installation()).await {
                podman::remove_image(&image).await;
            }
            if !self.was_killed {
                let unfinished = "SELECT kind || ' ' || id FROM audit AS i WHERE stage = 'intent'
                    AND NOT EXISTS (SELECT 1 FROM audit AS o WHERE o.intent = i.id)";
                for record in self.sql::<String>(unfinished) {
                    problems.push(format!("an intent without outcome: {record}"));
                }
            }
        }
        for link in self.link_entries() {
            problems.push(format!("of a link is left: {link}"));
        }
        let marks = [
            self.home.to_str().unwrap().to_owned(),
            self.run.file_name().unwrap().to_str().unwrap().to_owned(),
        ];
        let left = wait_for_none(Duration::from_secs(10), || traces(&marks)).await;
        problems.extend(left);
        let log = self.log();
        if self.keys.iter().any(|key| log.contains(key)) {
            problems.push("an API key is in the log".to_owned());
        }
        if log.contains("panicked at") {
            problems.push("something panicked".to_owned());
        }
        problems
    }

    async fn end_sessions(&self, problems: &mut Vec<String>) {
        let list = protocol::Request::SessionList {
            live: true,
            limit: 500,
        };
        match self.admin(list).await {
            protocol::Answer::Sessions { items } => {
                for session in items {
                    let stop = protocol::Request::SessionStop { id: session.id };
                    let answer = self.admin(stop).await;
                    if !matches!(answer, protocol::Answer::Done) {
                        problems.push(format!("cannot end {}: {answer:?}", session.id));
                    }
                }
            }
            other => problems.push(format!("cannot list sessions: {other:?}")),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // In a thread of its own: a test's runtime may be the one that is unwinding.
        let finished = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap();
                    runtime.block_on(self.finish())
                })
                .join()
        });
        let problems = finished.unwrap_or_else(|_| vec!["it could not be ended".to_owned()]);
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let log = tail(&self.home.join("log"));
        let _ = std::fs::remove_dir_all(&self.run);
        if problems.is_empty() && !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.home);
            return;
        }
        let report = format!(
            "{}\n{problems:#?}\nthe end of the log:\n{log}",
            self.home.display()
        );
        if std::thread::panicking() {
            eprintln!("{report}");
        } else {
            panic!("the daemon left something: {report}");
        }
    }
}

/// The daemon's user and group own it.
pub fn give_to_daemon(path: &Path) {
    let user = User::from_name(DAEMON_USER)
        .unwrap()
        .expect("scripts/setup");
    chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
}

fn free_port() -> u16 {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    loop {
        let number = std::process::id() as usize * 211 + COUNT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(PORTS.0 + number % PORTS.1).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

async fn exit_of(child: &mut Child) -> i32 {
    let status = wait_for("the daemon ends", PATIENCE, async || {
        child.try_wait().unwrap()
    });
    let status = status.await;
    status
        .code()
        .unwrap_or_else(|| panic!("the daemon ended by {status}"))
}

fn tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

async fn wait_for_none(patience: Duration, look: impl Fn() -> Vec<String>) -> Vec<String> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let left = look();
        if left.is_empty() || tokio::time::Instant::now() > deadline {
            return left;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Processes and mounts that have one of these marks in their command line or mount table.
fn traces(marks: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let pid = path.file_name().unwrap().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) || pid == std::process::id().to_string() {
            continue;
        }
        let command = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let mounts = std::fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
        for mark in marks {
            if command.contains(mark.as_str()) {
                found.push(format!("process {pid} is left: {command}"));
            } else if let Some(mount) = mounts.lines().find(|line| line.contains(mark.as_str())) {
                found.push(format!(
                    "process {pid} ({command}) has the mount {mount} left"
                ));
            }
        }
    }
    found
}
