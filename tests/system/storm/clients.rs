//! Clients in the storm: each does what clients do, one thing after the other, and all keep a ledger of what they were told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Answer, Client, schema};

/// Most sessions that a client has at one time.
const MINE: usize = 3;

/// Between two tries while nobody is there to answer.
const AGAIN: Duration = Duration::from_millis(50);

/// Tries of a creation with an idempotency key.
const TRIES: usize = 100;

/// The file that clients write and read.
const FILE: &str = "kept.txt";

/// The volume of a client.
pub fn volume(number: usize) -> String {
    format!("v{number}")
}

/// Random numbers that are the same for the same seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (`SplitMix64`).
    pub const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of the numbers below.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap();
        usize::try_from(self.roll() % bound).unwrap()
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        let at = (!of.is_empty()).then(|| self.below(of.len()))?;
        of.get(at)
    }
}

/// What was acknowledged of a session.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// What the last write that was acknowledged put into its file.
    pub written: Option<String>,
    /// What writes since may have put there that nobody acknowledged.
    pub doubtful: Vec<String>,
    /// How its deletion was acknowledged.
    pub deleted: Option<u16>,
}

impl Known {
    /// Whether its file may hold this.
    pub fn may_hold(&self, content: &str) -> bool {
        self.written.as_deref() == Some(content) || self.doubtful.iter().any(|c| c == content)
    }
}

/// What all clients were told.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Every session whose creation was acknowledged.
    pub sessions: BTreeMap<String, Known>,
    /// How many operations had which answer.
    pub answers: BTreeMap<(&'static str, String), usize>,
    /// What must not have been.
    pub problems: Vec<String>,
    /// The longest wait for an answer of each operation.
    pub longest: BTreeMap<&'static str, Duration>,
}

/// What clients and storm share.
#[derive(Debug, Default)]
pub struct Shared {
    pub ledger: Mutex<Ledger>,
    /// Operations that had an answer.
    pub done: AtomicUsize,
    /// No more of it.
    pub stop: AtomicBool,
}

impl Shared {
    pub fn problem(&self, problem: String) {
        self.ledger.lock().unwrap().problems.push(problem);
    }
}

/// One client.
pub struct Actor {
    pub client: Client,
    pub dice: Dice,
    pub shared: Arc<Shared>,
    /// Its number.
    pub number: usize,
    /// What it has made so far.
    pub made: usize,
    /// Sessions that it uses.
    pub mine: Vec<String>,
}

impl Actor {
    /// Does one thing after the other until it is stopped.
    pub async fn work(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.act().await;
        }
    }

    async fn act(&mut self) {
        let id = self.dice.pick(&self.mine).cloned();
        match (self.dice.below(100), id) {
            (0..25, _) if self.mine.len() < MINE => self.create().await,
            (_, None) => self.create().await,
            (0..50, Some(id)) => self.run(&id).await,
            (50..63, Some(id)) => self.write(&id).await,
            (63..76, Some(id)) => self.read(&id).await,
            (76..80, Some(id)) => self.wish("pause", &id).await,
            (80..84, Some(id)) => self.wish("resume", &id).await,
            (84..94, Some(id)) => self.delete(&id).await,
            (94..97, Some(id)) => {
                self.look(&id).await;
            }
            _ => self.list().await,
        }
    }

    /// Asks; nothing when nobody answered.
    async fn ask(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Option<Answer> {
        let began = Instant::now();
        let answer = self
            .client
            .try_send(method.clone(), path, headers, body)
            .await;
        let took = began.elapsed();
        let told = match &answer {
            Ok(answer) if answer.status.is_success() => answer.status.as_str().to_owned(),
            Ok(answer) => format!("{} {}", answer.status.as_str(), code(answer)),
            Err(_) => "no answer".to_owned(),
        };
        {
            let mut ledger = self.shared.ledger.lock().unwrap();
            *ledger.answers.entry((what, told)).or_default() += 1;
            let longest = ledger.longest.entry(what).or_default();
            *longest = took.max(*longest);
        }
        let Ok(answer) = answer else {
            // Nobody is there, for a while.
            tokio::time::sleep(AGAIN).await;
            return None;
        };
        schema::check(&method, path, &answer);
        self.shared.done.fetch_add(1, Ordering::Relaxed);
        if answer.status == 500 {
            self.shared
                .problem(format!("{method} {path}: {:?}", answer.body));
        }
        if code(&answer) == "session_not_found" {
            self.shared
                .problem(format!("unknown after {took:?}: {method} {path}"));
        }
        Some(answer)
    }

    async fn post(
        &self,
        what: &'static str,
        path: &str,
        key: Option<&str>,
        body: &Value,
    ) -> Option<Answer> {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(key.map(|key| ("idempotency-key", key)));
        let body = body.to_string().into();
        self.ask(what, Method::POST, path, &headers, body).await
    }

    async fn create(&mut self) {
        self.made += 1;
        let mark = format!("c{}-{}", self.number, self.made);
        let mut wanted = json!({"labels": {"storm": mark}});
        let (what, has_key) = match self.dice.below(11) {
            0 => ("create", false),
            1 => {
                wanted["wait"] = json!(false);
                ("create, no wait", false)
            }
            2 => {
                wanted["name"] = json!(mark);
                ("create, named", false)
            }
            3 => {
                wanted["template"] = json!("warm");
                ("create, pool", false)
            }
            4 => {
                wanted["template"] = json!("warm");
                ("create, pool and key", true)
            }
            5 | 6 => ("create, key", true),
            7 | 8 => {
                // Which another of its sessions may have.
                wanted["volumes"] = json!([{"name": volume(self.number)}]);
                if self.dice.below(2) == 0 {
                    wanted["template"] = json!("warm");
                }
                ("create, volume", false)
            }
            9 => {
                wanted["idle_timeout_s"] = json!(2 + self.dice.below(4));
                wanted["on_timeout"] = json!("pause");
                ("create, pauses", false)
            }
            _ => {
                wanted["timeout_s"] = json!(10 + self.dice.below(30));
                wanted["on_timeout"] = json!(*self.dice.pick(&["stop", "pause"]).unwrap());
                ("create, short", true)
            }
        };
        let key = has_key.then_some(mark.as_str());
        let Some(id) = self.created(what, key, &wanted).await else {
            return;
        };
        if has_key && self.dice.below(3) == 0 {
            let again = self.created("create, again", key, &wanted).await;
            if again.as_ref().is_some_and(|again| *again != id) {
                self.shared
                    .problem(format!("{mark}: {id}, and then {again:?}"));
            }
        }
        self.mine.push(id);
    }

    /// The session that was made; with a key it is asked for until somebody answers.
    async fn created(
        &self,
        what: &'static str,
        key: Option<&str>,
        wanted: &Value,
    ) -> Option<String> {
        let tries = if key.is_some() { TRIES } else { 1 };
        for _ in 0..tries {
            if self.shared.stop.load(Ordering::Relaxed) {
                return None;
            }
            let Some(answer) = self.post(what, "/v1/sessions", key, wanted).await else {
                continue;
            };
            if answer.status != 201 {
                return None;
            }
            let session = answer.json();
            let id = session["id"].as_str().unwrap().to_owned();
            let mut ledger = self.shared.ledger.lock().unwrap();
            ledger.sessions.entry(id.clone()).or_default();
            return Some(id);
        }
        None
    }

    async fn run(&mut self, id: &str) {
        let path = format!("/v1/sessions/{id}/run");
        let run = json!({"argv": ["true"], "timeout_s": 20});
        let answer = self.post("run", &path, None, &run).await;
        if let Some(answer) = answer.filter(|answer| !is_trouble(answer)) {
            let outcome = answer.json();
            if outcome["exit_code"] != 0 {
                self.shared.problem(format!("{id}: true ended {outcome}"));
            }
        } else {
            self.look(id).await;
        }
    }

    async fn write(&mut self, id: &str) {
        self.made += 1;
        let content = format!("written by {} as {}", self.number, self.made);
        self.know(id, |known| known.doubtful.push(content.clone()));
        let path = format!("/v1/sessions/{id}/files?path={FILE}");
        let body = content.clone().into();
        match self.ask("write", Method::PUT, &path, &[], body).await {
            Some(answer) if answer.status == 200 => self.know(id, |known| {
                known.written = Some(content);
                known.doubtful.clear();
            }),
            _ => {
                self.look(id).await;
            }
        }
    }

    async fn read(&mut self, id: &str) {
        let path = format!("/v1/sessions/{id}/files?path={FILE}");
        let answer = self
            .ask("read", Method::GET, &path, &[], Bytes::new())
            .await;
        let known = self.shared.ledger.lock().unwrap().sessions[id].clone();
        match answer {
            Some(answer) if answer.status == 200 => {
                let content = String::from_utf8_lossy(&answer.body).into_owned();
                if !known.may_hold(&content) {
                    self.shared
                        .problem(format!("{id}: {content:?} is none of {known:?}"));
                }
            }
            Some(answer) if code(&answer) == "file_not_found" => {
                if known.written.is_some() {
                    self.shared
                        .problem(format!("{id}: its file is gone, of {known:?}"));
                }
            }
            _ => {
                self.look(id).await;
            }
        }
    }

    async fn wish(&mut self, what: &'static str, id: &str) {
        let path = format!("/v1/sessions/{id}/{what}");
        let answer = self.post(what, &path, None, &json!({})).await;
        if answer.is_none_or(|answer| is_trouble(&answer)) {
            self.look(id).await;
        }
    }

    async fn delete(&mut self, id: &str) {
        let path = format!("/v1/sessions/{id}");
        let answer = self
            .ask("delete", Method::DELETE, &path, &[], Bytes::new())
            .await;
        if let Some(status) = answer.map(|answer| answer.status.as_u16())
            && matches!(status, 202 | 204)
        {
            self.know(id, |known| known.deleted = Some(status));
            self.mine.retain(|mine| mine != id);
        }
    }

    /// Looks at a session; one that is over is not used any more, and must say why.
    async fn look(&mut self, id: &str) -> Option<Value> {
        let path = format!("/v1/sessions/{id}");
        let answer = self
            .ask("look", Method::GET, &path, &[], Bytes::new())
            .await;
        let session = answer.filter(|answer| answer.status == 200)?.json();
        let phase = session["phase"].as_str().unwrap();
        if matches!(phase, "stopping" | "stopped" | "failed") {
            if session["reason"].as_str().is_none_or(str::is_empty) {
                self.shared.problem(format!("no reason: {session}"));
            }
            self.mine.retain(|mine| mine != id);
        }
        Some(session)
    }

    async fn list(&self) {
        self.ask("list", Method::GET, "/v1/sessions", &[], Bytes::new())
            .await;
    }

    fn know(&self, id: &str, learn: impl FnOnce(&mut Known)) {
        let mut ledger = self.shared.ledger.lock().unwrap();
        learn(ledger.sessions.entry(id.to_owned()).or_default());
    }
}

/// Whether an answer says that something is wrong with the session or the machine.
fn is_trouble(answer: &Answer) -> bool {
    !answer.status.is_success()
}

/// The word for programs in an answer that is a problem.
fn code(answer: &Answer) -> String {
    let problem: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let code = problem.and_then(|problem| problem["code"].as_str().map(str::to_owned));
    code.filter(|_| !answer.status.is_success())
        .unwrap_or_default()
}
