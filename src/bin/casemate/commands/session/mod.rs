//! `casemate session …`: the team's sessions over the HTTP API.

mod snapshot;
mod token;
pub mod wire;

use std::collections::BTreeMap;

use casemate::base::id::SessionId;
use casemate::model::name::Name;
use casemate::model::session::Phase;
use casemate::model::volume::VolumeMode;
use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use self::wire::{Limits, NewSession, Page, SessionView, VolumeOfSession};
use super::Context;
use super::pair::{Variable, environment, own, pair, variable};
use crate::failure::Failure;
use crate::http::Call;
use crate::output::{self, tell};
use crate::screen::{or_absent, size};

/// What to do with sessions.
#[derive(Subcommand)]
pub enum Command {
    /// List the team's sessions, newest first
    List(List),
    /// Show one session, live or ended
    Get {
        /// Which
        #[arg(value_name = "ID")]
        id: SessionId,
    },
    /// Make a session and print its ID when it is ready
    Create(Box<Create>),
    /// Make a session stand still; whoever uses it wakes it
    Pause {
        /// Which
        #[arg(value_name = "ID")]
        id: SessionId,
    },
    /// Wake a session, or let one that is awake go on for longer
    Resume {
        /// Which
        #[arg(value_name = "ID")]
        id: SessionId,
        /// End it after so many seconds from now
        #[arg(long, value_name = "S", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
        timeout: Option<u64>,
    },
    /// Give a session other deadlines or labels
    Set(Set),
    /// Make what a session changed in its files a version of a template; the session goes on
    Snapshot(snapshot::Snapshot),
    /// Make a token that reaches one session only and print it, once and never again
    Token(token::Token),
    /// End sessions; one that has ended already is no failure
    Stop {
        /// Which
        #[arg(required = true, value_name = "ID")]
        ids: Vec<SessionId>,
    },
}

/// Options of `casemate session list`.
#[derive(Args)]
pub struct List {
    /// Only in this phase; may be repeated
    #[arg(long = "phase", value_parser = PossibleValuesParser::new(Phase::ALL.map(Phase::as_str)))]
    phases: Vec<String>,
    /// Only with this label; may be repeated
    #[arg(long = "label", value_name = "k=v", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Only with this name
    #[arg(long)]
    name: Option<Name>,
    /// At most so many, 1 to 200
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
    /// Go on after the last session of the page before
    #[arg(long, value_name = "ID")]
    cursor: Option<String>,
}

/// What a new session is to be, for every command that makes one.
#[derive(Args)]
pub struct Wanted {
    /// The recipe; `base` when absent
    #[arg(long, value_name = "T")]
    template: Option<Name>,
    /// A name that no other live session of the team has
    #[arg(long, value_name = "N")]
    name: Option<Name>,
    /// For people and filters; may be repeated
    #[arg(long = "label", value_name = "k=v", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Mount a volume of the team at /volumes/NAME, to be written by this session alone, or with :ro
    /// to be read; may be repeated
    #[arg(long = "volume", value_name = "NAME[:ro]", value_parser = volume)]
    volumes: Vec<VolumeOfSession>,
}

/// Reads `NAME`, `NAME:rw` or `NAME:ro`.
fn volume(text: &str) -> Result<VolumeOfSession, String> {
    let (name, mode) = match text.split_once(':') {
        Some((name, mode)) => {
            let mode = VolumeMode::parse(mode);
            (name, mode.ok_or("write it as NAME, NAME:rw or NAME:ro")?)
        }
        None => (text, VolumeMode::Rw),
    };
    let name = name.parse().map_err(|error| format!("{error}"))?;
    Ok(VolumeOfSession { name, mode })
}

/// Options of `casemate session create`.
#[derive(Args)]
pub struct Create {
    #[command(flatten)]
    wanted: Wanted,
    /// Give every program a variable; K alone hands on the value of this environment, which keeps
    /// it out of the process list
    #[arg(short, long = "env", value_name = "K=V", value_parser = variable)]
    env: Vec<Variable>,
    /// Where programs start when they do not say
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// End the session after so many seconds
    #[arg(long, value_name = "S", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    timeout: Option<u64>,
    /// End the session when nobody has used it for so many seconds
    #[arg(long, value_name = "S", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    idle_timeout: Option<u64>,
    /// What happens when its time is over, or it was idle for too long
    #[arg(long, value_parser = ["stop", "pause"])]
    on_timeout: Option<String>,
    /// Memory of its programs and of its /tmp
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    memory_bytes: Option<u64>,
    /// Processor cores, in parts of one
    #[arg(long, value_name = "N", help_heading = "Limits")]
    cpus: Option<f64>,
    /// Processes and threads
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pids: Option<u32>,
    /// Bytes in the writable layer
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    disk_bytes: Option<u64>,
    /// Files that one process may have open
    #[arg(long, value_name = "N", help_heading = "Limits")]
    open_files: Option<u32>,
    /// Processes that may be started over the API in its life
    #[arg(long, value_name = "N", help_heading = "Limits")]
    processes_started: Option<u64>,
    /// Do not wait until the session is ready
    #[arg(long)]
    no_wait: bool,
}

/// Options of `casemate session set`.
#[derive(Args)]
#[group(id = "changes", required = true, multiple = true, args = ["timeout", "idle_timeout", "on_timeout", "labels"])]
pub struct Set {
    /// Which
    #[arg(value_name = "ID")]
    id: SessionId,
    /// End it after so many seconds from now
    #[arg(long, value_name = "S", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    timeout: Option<u64>,
    /// End it when nobody has used it for so many seconds; 0: never
    #[arg(long, value_name = "S")]
    idle_timeout: Option<u64>,
    /// What happens when its time is over, or it was idle for too long
    #[arg(long, value_parser = ["stop", "pause"])]
    on_timeout: Option<String>,
    /// For people and filters, instead of all that it has; may be repeated
    #[arg(long = "label", value_name = "k=v", value_parser = pair)]
    labels: Vec<(String, String)>,
}

impl Set {
    async fn execute(self, context: &Context) -> Result<(), Failure> {
        let mut body = serde_json::Map::new();
        body.extend(self.timeout.map(|s| ("timeout_s".to_owned(), json!(s))));
        body.extend(
            self.idle_timeout
                .map(|s| ("idle_timeout_s".to_owned(), json!(s))),
        );
        body.extend(
            self.on_timeout
                .map(|word| ("on_timeout".to_owned(), json!(word))),
        );
        if !self.labels.is_empty() {
            let labels: BTreeMap<_, _> = self.labels.into_iter().collect();
            body.insert("labels".to_owned(), json!(labels));
        }
        put(context, Method::PATCH, self.id, "", &Value::Object(body)).await
    }
}

/// Asks for something to be done with a session, and shows the session then.
async fn put(
    context: &Context,
    method: Method,
    id: SessionId,
    what: &str,
    body: &Value,
) -> Result<(), Failure> {
    let call = Call::new(method, format!("/v1/sessions/{id}{what}"))
        .json(body.to_string().into_bytes())
        .within(wire::CHANGE_DEADLINE);
    let client = context.client()?;
    let answer = client.call(call).await?;
    if context.json {
        return output::json(&client.read::<Value>(&answer)?);
    }
    output::fields(&details(client.read(&answer)?))
}

impl From<Wanted> for NewSession {
    fn from(wanted: Wanted) -> Self {
        Self {
            template: wanted.template,
            name: wanted.name,
            labels: wanted.labels.into_iter().collect(),
            volumes: wanted.volumes,
            ..Self::default()
        }
    }
}

impl Command {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.execute(context).await,
            Self::Get { id } => {
                let call = Call::get(&format!("/v1/sessions/{id}"), &[]);
                let client = context.client()?;
                let answer = client.call(call).await?;
                if context.json {
                    return output::json(&client.read::<Value>(&answer)?);
                }
                output::fields(&details(client.read(&answer)?))
            }
            Self::Create(create) => create.execute(context).await,
            Self::Pause { id } => put(context, Method::POST, id, "/pause", &json!({})).await,
            Self::Resume { id, timeout } => {
                let body = match timeout {
                    Some(timeout) => json!({"timeout_s": timeout}),
                    None => json!({}),
                };
                put(context, Method::POST, id, "/resume", &body).await
            }
            Self::Set(set) => set.execute(context).await,
            Self::Snapshot(snapshot) => snapshot.execute(context).await,
            Self::Token(token) => token.execute(context).await,
            Self::Stop { ids } => stop(context, ids).await,
        }
    }
}

impl List {
    async fn execute(self, context: &Context) -> Result<(), Failure> {
        let mut query = vec![("limit", self.limit.to_string())];
        query.extend(self.phases.into_iter().map(|phase| ("phase", phase)));
        query.extend(self.name.map(|name| ("name", name.to_string())));
        query.extend(self.cursor.map(|cursor| ("cursor", cursor)));
        let labels = self.labels.into_iter();
        query.extend(labels.map(|(key, value)| ("label", format!("{key}={value}"))));
        let client = context.client()?;
        let answer = client.call(Call::get("/v1/sessions", &query)).await?;
        if context.json {
            return output::json(&client.read::<Value>(&answer)?);
        }
        let page: Page<SessionView> = client.read(&answer)?;
        let rows: Vec<_> = page.items.into_iter().map(row).collect();
        let headings = ["ID", "NAME", "TEMPLATE", "PHASE", "CREATED", "ENDS", "WHY"];
        output::table(&headings, &rows)?;
        page.next_cursor.inspect(|cursor| {
            tell(&format!("there are more; go on with --cursor {cursor}"));
        });
        Ok(())
    }
}

impl Create {
    async fn execute(self, context: &Context) -> Result<(), Failure> {
        let limits = Limits {
            memory_bytes: self.memory_bytes,
            cpus: self.cpus,
            pids: self.pids,
            disk_bytes: self.disk_bytes,
            open_files: self.open_files,
            processes_started: self.processes_started,
        };
        let new = NewSession {
            env: environment(self.env, own)?,
            workdir: self.workdir,
            timeout_s: self.timeout,
            idle_timeout_s: self.idle_timeout,
            on_timeout: self.on_timeout,
            limits: limits.wanted(),
            wait: self.no_wait.then_some(false),
            ..NewSession::from(self.wanted)
        };
        let client = context.client()?;
        let answer = wire::create(&client, &new).await?;
        if context.json {
            return output::json(&client.read::<Value>(&answer)?);
        }
        let session: SessionView = client.read(&answer)?;
        output::line(&session.id.to_string())?;
        if session.phase != Phase::Ready.as_str() && !self.no_wait {
            tell(&format!(
                "{} is not ready yet but {}; `casemate session get {}` tells how it goes on",
                session.id, session.phase, session.id
            ));
        }
        Ok(())
    }
}

/// Ends each; one that cannot be ended does not keep the others up.
async fn stop(context: &Context, ids: Vec<SessionId>) -> Result<(), Failure> {
    let client = context.client()?;
    let (mut items, mut rows, mut first) = (Vec::new(), Vec::new(), None);
    for id in ids {
        match wire::stop(&client, id).await {
            Ok(phase) => {
                items.push(json!({"id": id, "phase": phase}));
                rows.push(vec![id.to_string(), phase.to_string()]);
            }
            Err(failure) => {
                items.push(json!({"id": id, "error": failure.message}));
                let message = format!("{id}: {}", failure.message);
                // The last sentence is told by whoever ends the program.
                if let Some(Failure { message, .. }) =
                    first.replace(Failure::new(failure.exit, message))
                {
                    tell(&message);
                }
            }
        }
    }
    if context.json {
        output::json(&json!({"items": items}))?;
    } else if !rows.is_empty() {
        output::table(&["ID", "PHASE"], &rows)?;
    }
    first.map_or(Ok(()), Err)
}

/// Reason and message as one text.
pub fn why(reason: Option<String>, message: Option<String>) -> String {
    match (reason, message) {
        (Some(reason), Some(message)) => format!("{reason}: {message}"),
        (reason, message) => or_absent(reason.or(message)),
    }
}

fn row(session: SessionView) -> Vec<String> {
    vec![
        session.id.to_string(),
        or_absent(session.name),
        session.template,
        session.phase,
        session.created_at,
        session.ends_at,
        why(session.reason, session.message),
    ]
}

fn details(session: SessionView) -> Vec<(&'static str, String)> {
    let labels = session.labels.iter();
    let labels: Vec<_> = labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let volumes = session.volumes.iter();
    let volumes: Vec<_> = volumes
        .map(|volume| format!("{}:{}", volume.name, volume.mode.as_str()))
        .collect();
    let limits = session.limits;
    vec![
        ("id", session.id.to_string()),
        ("name", or_absent(session.name)),
        ("phase", session.phase),
        ("why", why(session.reason, session.message)),
        (
            "template",
            match session.template_version {
                Some(version) => format!("{} (version {version})", session.template),
                None => session.template,
            },
        ),
        ("image", session.image),
        (
            "labels",
            or_absent((!labels.is_empty()).then(|| labels.join(" "))),
        ),
        (
            "volumes",
            or_absent((!volumes.is_empty()).then(|| volumes.join(" "))),
        ),
        ("memory", or_absent(limits.memory_bytes.map(size))),
        ("cpus", or_absent(limits.cpus)),
        ("pids", or_absent(limits.pids)),
        ("disk", or_absent(limits.disk_bytes.map(size))),
        ("open files", or_absent(limits.open_files)),
        ("may start", or_absent(limits.processes_started)),
        ("created", session.created_at),
        ("ready", or_absent(session.ready_at)),
        ("ends", session.ends_at),
        ("paused", or_absent(session.paused_at)),
        (
            "idle for",
            or_absent(session.idle_timeout_s.map(|s| format!("at most {s} s"))),
        ),
        ("on timeout", or_absent(session.on_timeout)),
        ("ended", or_absent(session.ended_at)),
    ]
}
