//! `casemate template …`: what sessions are made of, over the HTTP API.
//!
//! A template's document is JSON with the keys of a template's file. What `show --json` prints can be changed and put again.

use std::io::Read;
use std::path::{Path, PathBuf};

use ::http::header::{IF_MATCH, IF_NONE_MATCH};
use ::http::{HeaderValue, Method, StatusCode};
use casemate::base::exit::Exit;
use casemate::model::name::Name;
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Context;
use super::session::wire::{Limits, Page};
use crate::failure::Failure;
use crate::http::Call;
use crate::output::{self, tell};
use crate::screen::{or_absent, size};

/// Longest document that is sent: that of the daemon's bodies.
const MAX_DOCUMENT_BYTES: u64 = 1 << 20;

/// What the daemon says of a template beside its document.
const NOT_OF_THE_DOCUMENT: [&str; 6] = [
    "name",
    "version",
    "origin",
    "made_at",
    "made_by",
    "checkpoint",
];

/// What to do with templates.
#[derive(Subcommand)]
pub enum Command {
    /// List the templates that the team may use, by name
    List,
    /// Show one template as it is, or as it was in a version that is still kept
    Show {
        /// Which
        name: Name,
        /// This version instead of the latest
        #[arg(long, value_name = "N")]
        version: Option<u32>,
    },
    /// Make a template of the team, or its next version; sessions that live keep theirs
    Put(Put),
    /// Remove a template of the team; sessions that live keep what they were made of
    Rm {
        /// Which
        name: Name,
        /// Only if this is its version
        #[arg(long, value_name = "N")]
        if_version: Option<u32>,
    },
}

/// Options of `casemate template put`.
#[derive(Args)]
pub struct Put {
    /// The template as JSON, with the keys of a template's file; - reads standard input
    file: PathBuf,
    /// What it shall be called; as the file without its ending when absent
    #[arg(long)]
    name: Option<Name>,
    /// Only if this is the version that there is
    #[arg(long, value_name = "N", conflicts_with = "new")]
    if_version: Option<u32>,
    /// Only if there is none of this name
    #[arg(long)]
    new: bool,
}

/// A template, as far as people are shown.
#[derive(Deserialize)]
struct TemplateView {
    name: String,
    version: u32,
    origin: String,
    made_at: String,
    made_by: String,
    image: String,
    limits: Limits,
    max_limits: Limits,
    allow_root: bool,
    env: Map<String, Value>,
    workdir: Option<String>,
    user: Option<String>,
    timeout_s: u64,
    max_timeout_s: u64,
    #[serde(default)]
    warm_up: Option<Value>,
    #[serde(default)]
    checkpoint: Option<Checkpoint>,
    start: Option<Value>,
    ready: Option<Value>,
    ports: Vec<u16>,
    pool: u32,
    pool_ready: Option<usize>,
    teams: Option<Vec<String>>,
}

/// Of a warm-up: what sandboxes begin as.
#[derive(Deserialize)]
struct Checkpoint {
    size_bytes: Option<u64>,
    problem: Option<String>,
}

impl Command {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::List => list(context).await,
            Self::Show { name, version } => {
                let version = version.map(|version| ("version", version.to_string()));
                let query: Vec<_> = version.into_iter().collect();
                let call = Call::get(&format!("/v1/templates/{name}"), &query);
                let client = context.client()?;
                let answer = client.call(call).await?;
                if context.json {
                    return output::json(&client.read::<Value>(&answer)?);
                }
                output::fields(&details(client.read(&answer)?))
            }
            Self::Put(put) => put.execute(context).await,
            Self::Rm { name, if_version } => {
                let mut call = Call::new(Method::DELETE, format!("/v1/templates/{name}"));
                if let Some(version) = if_version {
                    call = call.with(IF_MATCH, tag(version)?);
                }
                context.client()?.call(call).await?;
                if context.json {
                    return output::json(&json!({"name": name}));
                }
                Ok(())
            }
        }
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let answer = client.call(Call::get("/v1/templates", &[])).await?;
    if context.json {
        return output::json(&client.read::<Value>(&answer)?);
    }
    let page: Page<TemplateView> = client.read(&answer)?;
    let rows: Vec<_> = page.items.into_iter().map(row).collect();
    let headings = [
        "NAME", "VERSION", "FROM", "MEMORY", "CPUS", "PORTS", "WARM-UP", "START", "POOL", "MADE",
    ];
    output::table(&headings, &rows)
}

impl Put {
    async fn execute(self, context: &Context) -> Result<(), Failure> {
        let name = match self.name {
            Some(name) => name,
            None => name_of(&self.file)?,
        };
        let mut document = document(&self.file)?;
        for field in NOT_OF_THE_DOCUMENT {
            document.remove(field);
        }
        let body = serde_json::to_vec(&document)
            .map_err(|error| Failure::new(Exit::Software, format!("cannot write JSON: {error}")))?;
        let mut call = Call::new(Method::PUT, format!("/v1/templates/{name}")).json(body);
        if let Some(version) = self.if_version {
            call = call.with(IF_MATCH, tag(version)?);
        }
        if self.new {
            call = call.with(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let client = context.client()?;
        let answer = client.call(call).await?;
        if context.json {
            return output::json(&client.read::<Value>(&answer)?);
        }
        let template: TemplateView = client.read(&answer)?;
        let made = if answer.status == StatusCode::CREATED {
            "made"
        } else {
            "kept"
        };
        tell(&format!(
            "{} is {made}; sessions made of it from now on have version {}",
            template.name, template.version
        ));
        output::line(&template.version.to_string())
    }
}

/// What a file's template is called when nobody says.
fn name_of(file: &Path) -> Result<Name, Failure> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    stem.parse().map_err(|error| {
        Failure::usage(format!(
            "{stem} does not name a template ({error}); give --name"
        ))
    })
}

fn document(file: &Path) -> Result<Map<String, Value>, Failure> {
    let shown = file.display();
    let mut text = Vec::new();
    let read = if file == Path::new("-") {
        let stdin = std::io::stdin().lock();
        stdin.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut text)
    } else {
        std::fs::File::open(file)
            .and_then(|file| file.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut text))
    };
    read.map_err(|error| Failure::io(format_args!("read {shown}"), &error))?;
    if text.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(Failure::usage(format!(
            "{shown} has more than {MAX_DOCUMENT_BYTES} bytes"
        )));
    }
    serde_json::from_slice(&text).map_err(|error| {
        // What serde says may repeat what is in the file.
        Failure::usage(format!(
            "{shown} is not a JSON object (line {}, column {})",
            error.line(),
            error.column()
        ))
    })
}

/// A version as an entity tag (RFC 9110 section 8.8.3).
fn tag(version: u32) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(&format!("\"{version}\""))
        .map_err(|error| Failure::new(Exit::Software, format!("cannot write a header: {error}")))
}

fn row(template: TemplateView) -> Vec<String> {
    let limits = template.limits;
    vec![
        template.name,
        template.version.to_string(),
        template.origin,
        or_absent(limits.memory_bytes.map(size)),
        or_absent(limits.cpus),
        ports(&template.ports),
        warm_up(template.warm_up.is_some(), template.checkpoint),
        (if template.start.is_some() { "yes" } else { "-" }).to_owned(),
        pool(template.pool, template.pool_ready),
        template.made_at,
    ]
}

/// Whether something is warmed up, and how large what it is kept as.
fn warm_up(is_there: bool, checkpoint: Option<Checkpoint>) -> String {
    match checkpoint.unwrap_or(Checkpoint {
        size_bytes: None,
        problem: None,
    }) {
        _ if !is_there => "-".to_owned(),
        Checkpoint {
            size_bytes: Some(bytes),
            ..
        } => size(bytes),
        Checkpoint {
            problem: Some(_), ..
        } => "fails".to_owned(),
        _ => "yes".to_owned(),
    }
}

/// How many of the pool stand ready, of how many that shall.
fn pool(wanted: u32, ready: Option<usize>) -> String {
    match (wanted, ready) {
        (0, None | Some(0)) => "-".to_owned(),
        (_, Some(ready)) => format!("{ready} of {wanted}"),
        (_, None) => wanted.to_string(),
    }
}

fn ports(ports: &[u16]) -> String {
    let all: Vec<_> = ports.iter().map(ToString::to_string).collect();
    or_absent((!all.is_empty()).then(|| all.join(" ")))
}

fn details(template: TemplateView) -> Vec<(&'static str, String)> {
    let (limits, most) = (template.limits, template.max_limits);
    let env: Vec<_> = template
        .env
        .iter()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
        .collect();
    let pair = |value: String, most: String| format!("{value} (at most {most})");
    vec![
        ("name", template.name),
        ("version", template.version.to_string()),
        ("from", template.origin),
        ("made", template.made_at),
        ("made by", template.made_by),
        ("image", template.image),
        (
            "memory",
            pair(
                or_absent(limits.memory_bytes.map(size)),
                or_absent(most.memory_bytes.map(size)),
            ),
        ),
        ("cpus", pair(or_absent(limits.cpus), or_absent(most.cpus))),
        ("pids", pair(or_absent(limits.pids), or_absent(most.pids))),
        (
            "disk",
            pair(
                or_absent(limits.disk_bytes.map(size)),
                or_absent(most.disk_bytes.map(size)),
            ),
        ),
        (
            "open files",
            pair(or_absent(limits.open_files), or_absent(most.open_files)),
        ),
        (
            "may start",
            pair(
                or_absent(limits.processes_started),
                or_absent(most.processes_started),
            ),
        ),
        (
            "lifetime",
            pair(
                format!("{} s", template.timeout_s),
                format!("{} s", template.max_timeout_s),
            ),
        ),
        (
            "root",
            (if template.allow_root { "allowed" } else { "-" }).to_owned(),
        ),
        ("env", or_absent((!env.is_empty()).then(|| env.join(" ")))),
        ("workdir", or_absent(template.workdir)),
        ("user", or_absent(template.user)),
        ("warm-up", or_absent(template.warm_up)),
        (
            "checkpoint",
            template.checkpoint.map_or_else(
                || "-".to_owned(),
                |checkpoint| match (checkpoint.size_bytes, checkpoint.problem) {
                    (Some(bytes), _) => size(bytes),
                    (None, Some(problem)) => problem,
                    (None, None) => "none yet".to_owned(),
                },
            ),
        ),
        ("start", or_absent(template.start)),
        ("ready", or_absent(template.ready)),
        ("ports", ports(&template.ports)),
        ("pool", template.pool.to_string()),
        (
            "teams",
            template
                .teams
                .map_or_else(|| "all".to_owned(), |teams| teams.join(" ")),
        ),
    ]
}
