//! What happens in the storm.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::Instant;

use super::clients::Dice;
use super::ground::{Disk, Podman, Process, every_process};
use crate::support::client::UnixClient;
use crate::support::daemon::give_to_daemon;
use crate::support::{Daemon, bench};

/// For how long podman's service is away when it is stopped for longer.
const AWAY: Duration = Duration::from_secs(10);

/// Between two starts of a daemon that refuses to start: what a service manager waits.
const START_AGAIN: Duration = Duration::from_millis(500);

/// The daemon's exit code for a disk that cannot be written.
const DISK_REFUSED: i32 = 73;

/// So often the daemon may refuse to start for that until the operator makes room.
const REFUSALS: usize = 3;

/// For how long somebody who comes and goes is looked for.
const LOOK_FOR: Duration = Duration::from_millis(300);

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    DaemonKilled,
    DaemonStopped,
    PodmanKilled,
    PodmanAway,
    PodmanFrozen,
    ConmonKilled,
    SandboxKilled,
    GoferKilled,
    RuntimeKilled,
    GuestKilled,
    StubKilled,
    VolumeKilled,
    DiskFull,
    OrphanMade,
    StrayMade,
}

impl Event {
    /// All of them, as often as they shall come among a hundred.
    const WEIGHTS: [(Self, usize); 15] = [
        (Self::DaemonKilled, 15),
        (Self::DaemonStopped, 4),
        (Self::PodmanKilled, 14),
        (Self::PodmanAway, 2),
        (Self::PodmanFrozen, 2),
        (Self::ConmonKilled, 14),
        (Self::SandboxKilled, 10),
        (Self::GoferKilled, 7),
        (Self::RuntimeKilled, 9),
        (Self::GuestKilled, 9),
        (Self::StubKilled, 2),
        (Self::VolumeKilled, 4),
        (Self::DiskFull, 6),
        (Self::OrphanMade, 3),
        (Self::StrayMade, 3),
    ];

    fn draw(dice: &mut Dice) -> Self {
        let all: usize = Self::WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut at = dice.below(all);
        for (event, weight) in Self::WEIGHTS {
            if at < weight {
                return event;
            }
            at -= weight;
        }
        Self::DaemonKilled
    }
}

/// How podman's service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Serves,
    Frozen(Instant),
    Away(Instant),
}

/// The storm, and whoever sets things right again meanwhile as a service manager and an operator would.
pub struct Storm {
    pub daemon: Daemon,
    pub podman: Podman,
    pub disk: Disk,
    pub dice: Dice,
    pub installation: String,
    /// How many of each there were.
    pub happened: BTreeMap<Event, usize>,
    /// How often the daemon ended by itself, by its exit code.
    pub ended: BTreeMap<String, usize>,
    service: Service,
    /// The daemon was asked to stop, and may answer for a moment still.
    stops: bool,
    started: Instant,
    /// After so many more events the disk is free again.
    full_for: usize,
    strays: u64,
}

impl Storm {
    pub fn new(daemon: Daemon, podman: Podman, disk: Disk, dice: Dice) -> Self {
        Self {
            installation: daemon.installation(),
            daemon,
            podman,
            disk,
            dice,
            happened: BTreeMap::new(),
            ended: BTreeMap::new(),
            service: Service::Serves,
            stops: false,
            started: Instant::now(),
            full_for: 0,
            strays: 0,
        }
    }

    /// Starts again what should run and does not.
    pub async fn mend(&mut self) {
        let now = Instant::now();
        match self.service {
            Service::Frozen(until) if now >= until => {
                self.podman.signal(Signal::SIGCONT);
                self.service = Service::Serves;
            }
            Service::Away(until) if now >= until => {
                self.podman.start().await;
                self.service = Service::Serves;
            }
            _ => {}
        }
        if let Some(status) = self.daemon.ended() {
            let so_often = self.ended.entry(status.to_string()).or_default();
            *so_often += 1;
            if status.code() == Some(DISK_REFUSED) && so_often.is_multiple_of(REFUSALS) {
                self.disk.free();
                self.full_for = 0;
            }
        }
        if !self.daemon.runs() && now >= self.started + START_AGAIN {
            self.daemon.launch();
            self.stops = false;
            self.started = now;
        }
    }

    /// Sets everything right, and waits until the daemon is ready.
    pub async fn heal(&mut self) {
        self.disk.free();
        self.full_for = 0;
        match self.service {
            Service::Serves => {}
            Service::Frozen(_) => self.podman.signal(Signal::SIGCONT),
            Service::Away(_) => self.podman.start().await,
        }
        self.service = Service::Serves;
        crate::support::wait_until("the daemon is ready after the storm", async || {
            self.mend().await;
            let client = self.daemon.client.stranger();
            let ready = client
                .try_send(Method::GET, "/ready", &[], bytes::Bytes::new())
                .await;
            !self.stops && ready.is_ok_and(|answer| answer.status == 200)
        })
        .await;
    }

    /// Lets one more thing happen.
    pub async fn strike(&mut self) {
        loop {
            let event = Event::draw(&mut self.dice);
            if self.happens(event).await {
                *self.happened.entry(event).or_default() += 1;
                break;
            }
        }
        if self.full_for > 0 {
            self.full_for -= 1;
            if self.full_for == 0 {
                self.disk.free();
            }
        }
    }

    /// Whether it could happen now.
    async fn happens(&mut self, event: Event) -> bool {
        let serves = self.service == Service::Serves;
        match event {
            Event::DaemonKilled => {
                if !self.daemon.runs() || self.daemon.ended().is_some() {
                    return false;
                }
                self.daemon.kill9();
                true
            }
            Event::DaemonStopped => {
                let runs = self.daemon.runs() && self.daemon.ended().is_none();
                if runs {
                    self.daemon.signal(Signal::SIGTERM);
                    self.stops = true;
                }
                runs
            }
            Event::PodmanKilled => {
                if serves {
                    self.podman.end(Signal::SIGKILL).await;
                    self.podman.start().await;
                }
                serves
            }
            Event::PodmanAway => {
                if serves {
                    self.podman.end(Signal::SIGTERM).await;
                    self.service = Service::Away(Instant::now() + AWAY);
                }
                serves
            }
            Event::PodmanFrozen => {
                if serves {
                    self.podman.signal(Signal::SIGSTOP);
                    self.service = Service::Frozen(Instant::now() + AWAY);
                }
                serves
            }
            Event::ConmonKilled => self.kill_one(|process| process.name() == "conmon"),
            Event::SandboxKilled => self.kill_one(|process| process.name() == "runsc-sandbox"),
            Event::GoferKilled => self.kill_one(|process| process.name() == "runsc-gofer"),
            Event::RuntimeKilled => self.kill_runtime().await,
            Event::GuestKilled => serves && self.kill_guest().await,
            Event::StubKilled => self.kill_stub(),
            Event::VolumeKilled => self.kill_one(|process| process.name() == "fuse2fs"),
            Event::DiskFull => {
                let is_new = self.full_for == 0;
                if is_new {
                    self.disk.fill();
                    self.full_for = 2 + self.dice.below(6);
                }
                is_new
            }
            Event::OrphanMade => serves && self.make_orphan().await,
            Event::StrayMade => self.make_stray(),
        }
    }

    fn kill_one(&mut self, is_wanted: impl Fn(&Process) -> bool) -> bool {
        let mut found = self.podman.processes();
        found.retain(|process| is_wanted(process));
        let chosen = self.dice.pick(&found);
        chosen.is_some_and(|process| process.kill(Signal::SIGKILL))
    }

    /// gVisor's program, or our wrapper of it, while it makes, starts or removes a sandbox.
    async fn kill_runtime(&mut self) -> bool {
        let wrapper = self.podman.runtime.to_str().unwrap().to_owned();
        let deadline = Instant::now() + LOOK_FOR;
        while Instant::now() < deadline {
            let is_wanted = |process: &Process| {
                process.name() == "runsc" || process.words.get(1) == Some(&wrapper)
            };
            if self.kill_one(is_wanted) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        false
    }

    /// The first process inside a sandbox, through podman and gVisor.
    async fn kill_guest(&mut self) -> bool {
        let found = self.podman.processes();
        let sandboxes: Vec<&Process> = found
            .iter()
            .filter(|process| process.name() == "runsc-sandbox")
            .collect();
        let Some(id) = self
            .dice
            .pick(&sandboxes)
            .and_then(|process| process.words.last())
        else {
            return false;
        };
        let path = format!("/v4.0.0/libpod/containers/{id}/kill?signal=KILL");
        let client = UnixClient(self.podman.socket.clone());
        let answer = client.send(Method::POST, &path).await;
        answer.is_ok_and(|answer| answer.status.is_success())
    }

    /// A process on the host in which programs of a sandbox run: gVisor traces them.
    fn kill_stub(&mut self) -> bool {
        let found = self.podman.processes();
        let sandboxes: Vec<i32> = found
            .iter()
            .filter(|process| process.name() == "runsc-sandbox")
            .map(|process| process.pid)
            .collect();
        let mut stubs = every_process(|_, words| words.iter().all(String::is_empty));
        stubs.retain(|process| sandboxes.contains(&process.parent));
        let chosen = self.dice.pick(&stubs);
        chosen.is_some_and(|process| process.kill(Signal::SIGKILL))
    }

    /// A container with our label that no session owns.
    async fn make_orphan(&mut self) -> bool {
        let session = self.nobody();
        let body = json!({
            "image": bench().image,
            "command": ["/bin/true"],
            "netns": {"nsmode": "none"},
            "labels": {"io.casemate.installation": self.installation, "io.casemate.session": session},
        });
        let client = UnixClient(self.podman.socket.clone());
        let answer = client
            .try_post("/v4.0.0/libpod/containers/create", body)
            .await;
        answer.is_ok_and(|answer| answer.status == 201)
    }

    /// What lies where links are, and belongs to nobody.
    fn make_stray(&mut self) -> bool {
        let name = self.nobody();
        let links = self.daemon.run.join("link");
        let (directory, token) = (links.join(&name), links.join(format!("{name}.token")));
        // One of the two, or both.
        let which = self.dice.below(3);
        if which != 0 {
            std::fs::create_dir(&directory).unwrap();
            give_to_daemon(&directory);
        }
        if which != 1 {
            std::fs::write(&token, "stale").unwrap();
        }
        true
    }

    /// A session that never was.
    fn nobody(&mut self) -> String {
        self.strays += 1;
        format!("ses_{:026}", self.strays)
    }
}
