//! After the storm: does every side agree with every other, and is nothing left that nobody owns?

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::CLIENTS;
use super::clients::{Known, Ledger, volume};
use super::events::Storm;
use crate::support::Client;
use crate::support::podman::get_at;

/// Longest wait until everything is in order: more than two of the daemon's looks for what nobody owns.
const PATIENCE: Duration = Duration::from_secs(100);

/// Longest wait until a session is usable or has ended: a guest that does not run any more, and whose link stands, is silent
/// for a minute and a half before it counts as lost.
const GUEST_PATIENCE: Duration = Duration::from_secs(240);

/// The same when something is known not to be in order.
const SHORT: Duration = Duration::from_secs(5);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// What the daemon may have in its state directory.
const STATE: [&str; 8] = [
    "state.db",
    "state.db-wal",
    "state.db-shm",
    "keys.hmac",
    "vault.key",
    "reserve",
    "backups",
    "lock",
];

/// What podman and gVisor make when they first need it.
const KEPT: [&str; 6] = [
    "/overlay/volatile-true",
    "/private/runsc",
    "/private/casemate.sandboxes",
    "/private/casemate.volumes",
    "/private/casemate.checkpoints",
    "/overlay-containers/containers.json",
];

/// A container, as podman sees it.
struct Container {
    session: String,
    merged: String,
}

/// What a reckoning is held against.
pub struct Reckoning {
    /// How many sandboxes stand ready.
    pub pool: usize,
    /// What was mounted when there was no container yet.
    pub mounts: BTreeSet<String>,
    /// What was on disk then.
    pub files: BTreeSet<String>,
    /// What is not in order, so far.
    pub problems: BTreeSet<String>,
}

impl Reckoning {
    /// The machine before the storm.
    pub fn before(podman: &super::ground::Podman, pool: usize) -> Self {
        Self {
            pool,
            mounts: podman.mounts().into_iter().collect(),
            files: files_of(podman),
            problems: BTreeSet::new(),
        }
    }

    /// Waits until sessions and machine agree; what does not is a problem.
    pub async fn agree(&mut self, storm: &Storm) {
        let found = self.in_order(async || self.disagreements(storm).await);
        let found = found.await;
        self.problems.extend(found);
    }

    /// Looks until there is nothing to say; what there is to say at the end of all patience.
    async fn in_order(&self, mut look: impl AsyncFnMut() -> Vec<String>) -> Vec<String> {
        let patience = if self.problems.is_empty() {
            PATIENCE
        } else {
            SHORT
        };
        let deadline = Instant::now() + patience;
        loop {
            let problems = look().await;
            if problems.is_empty() || Instant::now() > deadline {
                return problems;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn disagreements(&self, storm: &Storm) -> Vec<String> {
        let mut problems = Vec::new();
        let sessions = all_sessions(&storm.daemon.client).await;
        let mut live = BTreeSet::new();
        for (id, session) in &sessions {
            match session["phase"].as_str().unwrap() {
                "ready" | "paused" => {
                    live.insert(id.clone());
                }
                "stopped" | "failed" => {}
                phase => {
                    live.insert(id.clone());
                    problems.push(format!("{id} is {phase} for ever: {session}"));
                }
            }
        }
        let containers = containers(storm).await;
        let mut owners: BTreeSet<String> = BTreeSet::new();
        for (id, container) in &containers {
            if !owners.insert(container.session.clone()) {
                problems.push(format!("a second container of {}: {id}", container.session));
            }
        }
        for id in live.difference(&owners) {
            problems.push(format!("{id} lives and has no container"));
        }
        let warm: Vec<&String> = owners.difference(&live).collect();
        if warm.len() != self.pool {
            problems.push(format!("{} warm and orphaned: {warm:?}", warm.len()));
        }
        let mut doors: BTreeSet<String> = owners.clone();
        for end in [".token", ".volumes"] {
            doors.extend(owners.iter().map(|owner| format!("{owner}{end}")));
        }
        let found: BTreeSet<String> = storm.daemon.link_entries().into_iter().collect();
        for name in found.symmetric_difference(&doors) {
            problems.push(format!("of a link is left or gone: {name}"));
        }
        self.machine(storm, &containers, &mut problems).await;
        problems
    }

    /// What podman, gVisor and the kernel have that is no container's.
    async fn machine(
        &self,
        storm: &Storm,
        containers: &BTreeMap<String, Container>,
        problems: &mut Vec<String>,
    ) {
        let podman = &storm.podman;
        let is_owned = |text: &str| containers.keys().any(|id| text.contains(id.as_str()));
        // The directory that a sandbox's volumes come to, and what serves them.
        let is_room = |text: &str| {
            let mut rooms = containers
                .values()
                .map(|of| format!("{}.volumes", of.session));
            rooms.any(|room| text.contains(&room))
        };
        let external = get_at(&podman.socket, "/containers/json?all=true&external=true").await;
        for container in external.as_array().unwrap() {
            let id = container["Id"].as_str().unwrap();
            if !is_owned(id) {
                problems.push(format!(
                    "podman's storage has a container more: {container}"
                ));
            }
        }
        let service: Vec<i32> = podman.service().iter().map(|process| process.pid).collect();
        let pause = std::fs::read_to_string(podman.private.join("libpod/tmp/pause.pid"));
        let pause: i32 = pause.unwrap().trim().parse().unwrap();
        for process in podman.processes() {
            let is_known = service.contains(&process.pid) || process.pid == pause;
            let words = process.words.join(" ");
            if !is_known && !is_owned(&words) && !is_room(&words) {
                problems.push(format!("a process is left: {}", process.line()));
            }
        }
        for mount in podman.mounts() {
            let is_known = self.mounts.contains(&mount)
                || mount == podman.storage.join("overlay").to_str().unwrap()
                || containers
                    .values()
                    .any(|container| container.merged == mount);
            if !is_known && !is_owned(&mount) && !is_room(&mount) {
                problems.push(format!("a mount is left: {mount}"));
            }
        }
        for tree in &podman.trees {
            let groups = std::fs::read_dir(tree).unwrap().map(Result::unwrap);
            for group in groups.filter(|entry| entry.file_type().unwrap().is_dir()) {
                let name = group.file_name().into_string().unwrap();
                if !containers.contains_key(&name) {
                    let path = group.path().join("cgroup.procs");
                    let members = std::fs::read_to_string(path).unwrap_or_default();
                    problems.push(format!(
                        "a control group is left: {} {name} {members:?}",
                        tree.display()
                    ));
                }
            }
        }
        let layers: Vec<&str> = containers
            .values()
            .filter_map(|container| Path::new(&container.merged).parent()?.file_name()?.to_str())
            .collect();
        for file in files_of(podman).difference(&self.files) {
            let is_benign =
                KEPT.iter().any(|kept| file.ends_with(kept)) || is_podmans(podman, file);
            if !is_benign && !is_owned(file) && !layers.iter().any(|layer| file.contains(layer)) {
                problems.push(format!("a file is left: {file}"));
            }
        }
        for entry in std::fs::read_dir(storm.daemon.state_dir()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !STATE.contains(&name.as_str()) {
                problems.push(format!("in the state directory is {name}"));
            }
        }
    }

    /// Every session that was acknowledged is known, and can be used or says why it ended; what was written is there.
    pub async fn sessions(&mut self, storm: &Storm, ledger: &Ledger) {
        let client = &storm.daemon.client;
        let mut problems = Vec::new();
        let all = all_sessions(client).await;
        for (id, known) in &ledger.sessions {
            let Some(session) = all.get(id) else {
                problems.push(format!("{id} was acknowledged and is not known"));
                continue;
            };
            let answer = client.get(&format!("/v1/sessions/{id}")).await;
            if answer.status != 200 {
                problems.push(format!("{id} is listed and not known: {:?}", answer.body));
            }
            if known.deleted.is_some() && session["ended_at"].is_null() {
                problems.push(format!("{id} was deleted and lives: {session}"));
            }
        }
        let nothing = Known::default();
        for (id, session) in &all {
            let found = if session["ended_at"].is_null() {
                use_it(client, id).await
            } else {
                Found::Ended(session.clone())
            };
            match found {
                Found::Stuck(how) => {
                    problems.push(format!("{id} is neither usable nor ended: {how}"));
                }
                Found::Ended(session) => {
                    if session["reason"].as_str().is_none_or(str::is_empty) {
                        problems.push(format!("{id} ended and says not why: {session}"));
                    }
                }
                Found::Usable => {
                    if let Some(problem) = volumes_of(client, session).await {
                        problems.push(format!("{id}: {problem}"));
                    }
                    let known = ledger.sessions.get(id).unwrap_or(&nothing);
                    let path = format!("/v1/sessions/{id}/files?path=kept.txt");
                    let answer = client.get(&path).await;
                    let content = String::from_utf8_lossy(&answer.body).into_owned();
                    let is_right = match answer.status.as_u16() {
                        200 => known.may_hold(&content),
                        _ => known.written.is_none(),
                    };
                    if !is_right {
                        problems.push(format!("{id} has {content:?} of {known:?}"));
                    }
                }
            }
        }
        self.problems.extend(problems);
    }

    /// Ends all, stops the daemon, and waits until nothing is left.
    pub async fn end(&mut self, storm: &mut Storm, ledger: &Ledger) {
        let client = storm.daemon.client.clone();
        let mut problems = Vec::new();
        for (id, session) in all_sessions(&client).await {
            if session["ended_at"].is_null() {
                let answer = client.delete(&format!("/v1/sessions/{id}")).await;
                if answer.status != 204 {
                    problems.push(format!("{id} cannot be deleted: {:?}", answer.body));
                }
            }
        }
        // What kept them is over: they can be read and written, and removed.
        for number in 0..CLIENTS {
            problems.extend(use_volume(&client, &volume(number)).await);
        }
        let kept = storm
            .daemon
            .home
            .join("state-volumes")
            .join(&storm.installation);
        let kept: Vec<_> = std::fs::read_dir(kept).unwrap().collect();
        if !kept.is_empty() {
            problems.push(format!("of volumes is left: {kept:?}"));
        }
        let code = storm.daemon.term().await;
        if code != 0 {
            problems.push(format!("the daemon ended with {code}"));
        }
        let left = self.in_order(async || {
            let mut problems = Vec::new();
            let none = BTreeMap::new();
            // Of the last sandbox the wrapper has a link left, until somebody asks it anything.
            get_at(&storm.podman.socket, "/info").await;
            for (id, container) in containers(storm).await {
                problems.push(format!(
                    "a container is left: {id} of {}",
                    container.session
                ));
            }
            for name in storm.daemon.link_entries() {
                problems.push(format!("of a link is left: {name}"));
            }
            self.machine(storm, &none, &mut problems).await;
            problems
        });
        problems.extend(left.await);
        record(storm, ledger, &mut problems);
        self.problems.extend(problems);
    }
}

/// How a session is found after the storm.
enum Found {
    Usable,
    Ended(Value),
    /// Neither, for as long as anybody would wait.
    Stuck(String),
}

/// Uses a session until it can be used, or has ended.
async fn use_it(client: &Client, id: &str) -> Found {
    let deadline = Instant::now() + GUEST_PATIENCE;
    loop {
        let run = json!({"argv": ["true"], "timeout_s": 10});
        let answer = client.try_run(id, run).await;
        if answer.status == 200 && answer.json()["exit_code"] == 0 {
            return Found::Usable;
        }
        let session = client.look(id).await;
        if !session["ended_at"].is_null() {
            return Found::Ended(session);
        }
        if Instant::now() > deadline {
            return Found::Stuck(format!("{:?} of {session}", answer.body));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is wrong with the volumes of a session that is usable, if anything.
async fn volumes_of(client: &Client, session: &Value) -> Option<String> {
    let id = session["id"].as_str().unwrap();
    for of in session["volumes"].as_array().unwrap() {
        let name = of["name"].as_str().unwrap();
        let command =
            format!("echo kept >/volumes/{name}/kept && sync && cat /volumes/{name}/kept");
        let (code, output) = client.sh(id, &command).await;
        if (code, output.as_str()) != (0, "kept\n") {
            return Some(format!("the volume {name} is not there: {code} {output}"));
        }
    }
    None
}

/// Uses a volume in a new session and removes both; what went wrong.
async fn use_volume(client: &Client, name: &str) -> Vec<String> {
    let id = client.session(json!({"volumes": [{"name": name}]})).await;
    let session = client.look(&id).await;
    let mut problems: Vec<_> = volumes_of(client, &session).await.into_iter().collect();
    for path in [format!("/v1/sessions/{id}"), format!("/v1/volumes/{name}")] {
        let answer = client.delete(&path).await;
        if answer.status != 204 {
            problems.push(format!("{path} cannot be removed: {:?}", answer.body));
        }
    }
    problems
}

/// Whether the record says how every session that was acknowledged began and ended.
fn record(storm: &Storm, ledger: &Ledger, problems: &mut Vec<String>) {
    let daemon = &storm.daemon;
    let set = |query: &str| -> BTreeSet<String> { daemon.sql(query).into_iter().collect() };
    let begun = set("SELECT session FROM audit WHERE kind = 'session.create' AND stage = 'intent'");
    let ended = set(
        "SELECT session FROM audit WHERE kind = 'session.phase' AND stage = 'fact'
         AND json_extract(event, '$.to') IN ('stopped', 'failed')",
    );
    let kept = set("SELECT id FROM sessions");
    for id in ledger.sessions.keys().chain(&kept) {
        for (what, found) in [("admission", &begun), ("end", &ended), ("row", &kept)] {
            if !found.contains(id) {
                problems.push(format!("{id} has no {what} in the record"));
            }
        }
    }
    let open = "SELECT session FROM audit AS i WHERE kind = 'session.create' AND stage = 'intent'
        AND NOT EXISTS (SELECT 1 FROM audit AS o WHERE o.intent = i.id)";
    for id in daemon.sql::<String>(open) {
        problems.push(format!("the creation of {id} has no outcome in the record"));
    }
    let state = daemon.sql::<String>("PRAGMA integrity_check");
    if state != ["ok"] {
        problems.push(format!("the database is damaged: {state:?}"));
    }
}

/// All sessions that the API knows.
pub async fn all_sessions(client: &Client) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let mut path = "/v1/sessions?limit=200".to_owned();
    loop {
        let page = client.get(&path).await.expect(200);
        for session in page["items"].as_array().unwrap() {
            let id = session["id"].as_str().unwrap().to_owned();
            all.insert(id, session.clone());
        }
        let Some(cursor) = page["next_cursor"].as_str() else {
            return all;
        };
        path = format!("/v1/sessions?limit=200&cursor={cursor}");
    }
}

async fn containers(storm: &Storm) -> BTreeMap<String, Container> {
    let socket = &storm.podman.socket;
    let list = get_at(socket, "/containers/json?all=true").await;
    let mut containers = BTreeMap::new();
    for container in list.as_array().into_iter().flatten() {
        let id = container["Id"].as_str().unwrap();
        let client = crate::support::client::UnixClient(socket.clone());
        let path = format!("/v4.0.0/libpod/containers/{id}/json");
        let inspect = client.send(http::Method::GET, &path).await.unwrap();
        if inspect.status != 200 {
            // It went meanwhile.
            continue;
        }
        let merged = &inspect.json()["GraphDriver"]["Data"]["MergedDir"];
        let session = container["Labels"]["io.casemate.session"].as_str();
        containers.insert(
            id.to_owned(),
            Container {
                session: session.unwrap_or_default().to_owned(),
                merged: merged.as_str().unwrap_or_default().to_owned(),
            },
        );
    }
    containers
}

/// What a podman that is killed leaves in its own house, and has no command to remove: the new version of a file of its records
/// that it was about to move into place, and a layer that it made for a container of which it knows nothing yet. In such
/// a layer nobody has ever written.
fn is_podmans(podman: &super::ground::Podman, file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or_default();
    if name.starts_with(".tmp-") && name.contains(".json") {
        return true;
    }
    let layer = podman.storage.join("overlay").join(name);
    Path::new(file) == layer
        && std::fs::read_dir(layer.join("diff")).is_ok_and(|mut diff| diff.next().is_none())
}

/// How many of them there are.
pub fn podmans_own(podman: &super::ground::Podman, before: &Reckoning) -> usize {
    let found = files_of(podman);
    let new = found.difference(&before.files);
    new.filter(|file| is_podmans(podman, file)).count()
}

/// Names below podman's and gVisor's own directories, but for what is in layers and in podman's log of events.
fn files_of(podman: &super::ground::Podman) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut places = vec![(podman.private.clone(), 6), (podman.storage.clone(), 2)];
    while let Some((place, depth)) = places.pop() {
        let Ok(entries) = std::fs::read_dir(&place) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth > 1 {
                places.push((path.clone(), depth - 1));
            }
            found.insert(path.to_str().unwrap().to_owned());
        }
    }
    found
}
