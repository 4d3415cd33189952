//! Templates on the wire. The fields are those of a template's file.

use std::collections::{BTreeMap, BTreeSet};

use casemate_link::file::WriteCondition;
use http::{HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::files::condition;
use crate::api::body::{self, Query};
use crate::api::error::Problem;
use crate::api::range::{self, ETag};
use crate::api::route::{Call, Reply};
use crate::app::{CheckpointState, Kept, TemplateRefusal};
use crate::base::clock::Timestamp;
use crate::model::egress::EgressRules;
use crate::model::endpoint::Endpoints;
use crate::model::image::ImageDigest;
use crate::model::name::Name;
use crate::model::sandbox::{Limits, WantedLimits};
use crate::model::setup::{
    INTERVAL_MS, Probe, Program, READY_TIMEOUT_S, Readiness, Setup, StartCommand, WarmUp,
};
use crate::model::signal;
use crate::model::template::{Origin, Precondition, Template, TemplateProblem, TemplateSpec};

/// What a template shall be.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PutTemplate {
    /// The image by its digest.
    image: ImageDigest,
    /// What a session gets that does not ask; the defaults where absent.
    #[serde(default)]
    limits: WantedLimits,
    /// The most that a session may ask for; as `limits` where absent.
    #[serde(default)]
    max_limits: WantedLimits,
    /// Whether programs may run as root inside.
    #[serde(default)]
    allow_root: bool,
    /// Environment of every process. Whoever may use the template can read it: no secrets.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Where processes start when neither they nor their session say.
    workdir: Option<String>,
    /// Who processes run as inside when they do not say; `user` when absent.
    user: Option<String>,
    /// Lifetime of a session that does not say, in seconds.
    timeout_s: Option<u64>,
    /// Longest lifetime that a session may ask for, in seconds.
    max_timeout_s: Option<u64>,
    /// What is done in a sandbox before it is anybody's, and kept as a checkpoint that later sandboxes begin as.
    warm_up: Option<WarmUpDocument>,
    /// What is started before a session is ready, and runs on.
    start: Option<StartDocument>,
    /// What must be the case before a session is ready.
    ready: Option<ReadyDocument>,
    /// On which ports its services listen: 1 to 65535, without 3128.
    #[serde(default)]
    ports: Vec<u16>,
    /// What its sessions may reach, by the names of rules: nothing unless one allows it, and the operator allows it the team.
    #[serde(default)]
    egress: EgressRules,
    /// Whether its programs trust the installation's own certificate authority, so that requests over TLS can get something added.
    #[serde(default)]
    egress_ca: bool,
    /// Who may reach its ports, and how; whoever may use the session, those in `ports`, where absent.
    #[serde(default)]
    endpoints: Endpoints,
    /// How many sandboxes are to be held ready.
    #[serde(default)]
    pool: u32,
    /// Who may use it: at most the own team, which it is when absent.
    teams: Option<BTreeSet<Name>>,
}

/// What is started: `argv`, or `command` for a shell.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StartDocument {
    /// Program and arguments; the program is looked up in `PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    argv: Option<Vec<String>>,
    /// A command line for the user's login shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    /// Over the session's environment.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Where it starts; as other processes when absent.
    cwd: Option<String>,
    /// Who it runs as inside; as other processes when absent.
    user: Option<String>,
}

/// What is done in a sandbox before it is anybody's: `argv`, or `command` for a shell. It may end with 0 or run on.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WarmUpDocument {
    /// Program and arguments; the program is looked up in `PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    argv: Option<Vec<String>>,
    /// A command line for the user's login shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    /// Over the template's environment; of a session's it knows nothing.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Where it starts; as other processes when absent.
    cwd: Option<String>,
    /// Who it runs as inside; as other processes when absent.
    user: Option<String>,
    /// When it is done; absent: when it has ended with 0, within 60 seconds.
    ready: Option<ReadyDocument>,
    /// A signal that its processes get in each session before that is ready, if they run on, such as `USR1`. They were copied
    /// with all that is in their memory, the state of their random numbers included.
    signal: Option<String>,
}

/// Of a warm-up: the checkpoint that sandboxes begin as.
#[derive(Serialize, JsonSchema)]
pub(crate) struct CheckpointView {
    /// Whether there is one of this version. Else the warm-up is done in each session before it is ready, and one is made
    /// meanwhile.
    is_there: bool,
    /// Its size on the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// When a session is ready: one of `port`, `file` and `command`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadyDocument {
    /// When something listens on this port.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// When this path is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// When this command line ends with 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    /// How long it may take; the session fails after that.
    #[serde(default = "ready_timeout_s")]
    timeout_s: u64,
    /// The pause between two looks, in milliseconds.
    #[serde(default = "interval_ms")]
    interval_ms: u64,
}

const fn ready_timeout_s() -> u64 {
    READY_TIMEOUT_S
}

const fn interval_ms() -> u64 {
    INTERVAL_MS
}

/// A template.
#[derive(Serialize, JsonSchema)]
pub(crate) struct TemplateView {
    name: Name,
    /// Counts its editions, from one.
    version: u32,
    /// Where it comes from, which decides who may change it.
    origin: OriginView,
    /// When this version was made, or first seen in its file.
    made_at: Timestamp,
    /// Who made this version.
    made_by: String,
    image: ImageDigest,
    limits: Limits,
    max_limits: Limits,
    allow_root: bool,
    env: BTreeMap<String, String>,
    workdir: Option<String>,
    user: Option<String>,
    timeout_s: u64,
    max_timeout_s: u64,
    warm_up: Option<WarmUpDocument>,
    /// Where there is a warm-up: how its checkpoint is now, which is nothing of the version's.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<CheckpointView>,
    start: Option<StartDocument>,
    ready: Option<ReadyDocument>,
    ports: Vec<u16>,
    /// What its sessions may reach, by the names of rules.
    egress: EgressRules,
    egress_ca: bool,
    endpoints: Endpoints,
    pool: u32,
    /// How many of them stand ready now; only said in the list, since it is nothing of the version's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pool_ready: Option<usize>,
    /// The asking team; or nothing where every team may use it.
    teams: Option<BTreeSet<Name>>,
}

/// Where a template comes from.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OriginView {
    /// A file of the operator's.
    File,
    /// The API: the team may change it.
    Api,
}

/// Templates.
#[derive(Serialize, JsonSchema)]
pub(crate) struct TemplateList {
    items: Vec<TemplateView>,
}

pub(crate) async fn list(call: &Call) -> Result<Reply, Problem> {
    body::query(call, &[])?;
    let principal = call.principal()?;
    let templates = call.app.templates(principal).await?;
    let team = principal.team();
    let items = templates.into_iter();
    let items = items.map(|one| {
        let pool_ready = Some(call.app.standing(&one));
        let checkpoint = checkpoint(call, &one);
        TemplateView {
            checkpoint,
            pool_ready,
            ..view(one, team)
        }
    });
    let items = items.collect();
    Ok(Reply::json(StatusCode::OK, &TemplateList { items }))
}

pub(crate) async fn get(call: &Call) -> Result<Reply, Problem> {
    let principal = call.principal()?;
    let version = Query::read(call, &["version"])?.number("version")?;
    let name = name(call)?;
    let template = call.app.template(principal, &name, version).await?;
    let tag = tag_of(&template)?;
    if let Err(unmet) = range::check(&call.headers, Some(&tag), true) {
        return unmet.answer(Some(&tag));
    }
    let checkpoint = checkpoint(call, &template);
    let view = TemplateView {
        checkpoint,
        ..view(template, principal.team())
    };
    let reply = Reply::json(StatusCode::OK, &view);
    Ok(reply.with(header::ETAG, tag.value()))
}

fn checkpoint(call: &Call, template: &Template) -> Option<CheckpointView> {
    template.spec.setup.warm_up.as_ref()?;
    let (size_bytes, problem) = match call.app.checkpoint(template) {
        CheckpointState::There { size_bytes } => (Some(size_bytes), None),
        CheckpointState::Absent => (None, None),
        CheckpointState::Failed { message } => (None, Some(message)),
    };
    Some(CheckpointView {
        is_there: size_bytes.is_some(),
        size_bytes,
        problem,
    })
}

pub(crate) async fn put(call: &Call) -> Result<Reply, Problem> {
    let principal = call.principal()?;
    let name = name(call)?;
    let wanted: PutTemplate = body::json(call)?;
    let precondition = precondition(call)?;
    let spec = wanted.into_spec()?;
    let put = call
        .app
        .put_template(principal, name, spec, precondition)
        .await;
    let (template, kept) = put?;
    let tag = tag_of(&template)?;
    let location = HeaderValue::from_str(&format!("/v1/templates/{}", template.name));
    let view = view(template, principal.team());
    let reply = match (kept, location) {
        (Kept::New, Ok(location)) => {
            Reply::json(StatusCode::CREATED, &view).with(header::LOCATION, location)
        }
        (Kept::New, Err(_)) => Reply::json(StatusCode::CREATED, &view),
        (Kept::Known, _) => Reply::json(StatusCode::OK, &view),
    };
    Ok(reply.with(header::ETAG, tag.value()))
}

pub(crate) async fn delete(call: &Call) -> Result<Reply, Problem> {
    let precondition = precondition(call)?;
    call.app
        .remove_template(call.principal()?, name(call)?, precondition)
        .await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

/// Reads the name in the path. What cannot be one names nothing, except where one is to be made.
fn name(call: &Call) -> Result<Name, Problem> {
    let text = call.path.get("name").map_or("", String::as_str);
    text.parse()
        .map_err(|error| Problem::bad_request(format!("name: {error}")))
}

pub(super) fn tag_of(template: &Template) -> Result<ETag, Problem> {
    ETag::strong(template.version.to_string().as_str())
        .map_err(|error| Problem::internal(error.to_string()))
}

pub(super) fn precondition(call: &Call) -> Result<Precondition, Problem> {
    Ok(match condition(&call.headers)? {
        None => Precondition::None,
        Some(WriteCondition::Absent) => Precondition::Absent,
        Some(WriteCondition::Present) => Precondition::Present,
        // A tag that is none of ours is of no version.
        Some(WriteCondition::Etag(tags)) => {
            Precondition::OneOf(tags.iter().filter_map(|tag| tag.parse().ok()).collect())
        }
    })
}

impl PutTemplate {
    fn into_spec(self) -> Result<TemplateSpec, Problem> {
        let default = TemplateSpec::new(self.image);
        let limits = self.limits.over(default.limits);
        Ok(TemplateSpec {
            image: self.image,
            limits,
            max_limits: self.max_limits.over(limits),
            allow_root: self.allow_root,
            env: self.env,
            workdir: self.workdir,
            timeout_s: self.timeout_s.unwrap_or(default.timeout_s),
            max_timeout_s: self.max_timeout_s.unwrap_or(default.max_timeout_s),
            setup: Setup {
                user: self.user,
                warm_up: self.warm_up.map(WarmUpDocument::read).transpose()?,
                start: self.start.map(|start| start.read("start")).transpose()?,
                ready: self.ready.map(ReadyDocument::read).transpose()?,
                ports: self.ports,
                endpoints: self.endpoints,
                egress_ca: self.egress_ca,
            },
            pool: self.pool,
            egress: self.egress,
            teams: self.teams,
        })
    }
}

impl WarmUpDocument {
    fn read(self) -> Result<WarmUp, Problem> {
        let signal = self.signal.map(|name| {
            let known = signal::parse(&name);
            known.ok_or_else(|| invalid("warm_up", "its signal is none, such as USR1"))
        });
        let start = StartDocument {
            argv: self.argv,
            command: self.command,
            env: self.env,
            cwd: self.cwd,
            user: self.user,
        };
        Ok(WarmUp {
            run: start.read("warm_up")?,
            ready: self.ready.map(ReadyDocument::read).transpose()?,
            signal: signal.transpose()?,
        })
    }

    fn view(warm_up: WarmUp) -> Self {
        let StartDocument {
            argv,
            command,
            env,
            cwd,
            user,
        } = StartDocument::view(warm_up.run);
        Self {
            argv,
            command,
            env,
            cwd,
            user,
            ready: warm_up.ready.map(ReadyDocument::view),
            signal: warm_up.signal.map(signal::name),
        }
    }
}

impl StartDocument {
    fn view(start: StartCommand) -> Self {
        let (argv, command) = match start.program {
            Program::Argv(argv) => (Some(argv), None),
            Program::Command(command) => (None, Some(command)),
        };
        Self {
            argv,
            command,
            env: start.env,
            cwd: start.cwd,
            user: start.user,
        }
    }

    fn read(self, field: &str) -> Result<StartCommand, Problem> {
        let program = match (self.argv, self.command) {
            (Some(argv), None) => Program::Argv(argv),
            (None, Some(command)) => Program::Command(command),
            (None, None) | (Some(_), Some(_)) => {
                return Err(invalid(field, "needs either argv or command"));
            }
        };
        Ok(StartCommand {
            program,
            env: self.env,
            cwd: self.cwd,
            user: self.user,
        })
    }
}

impl ReadyDocument {
    fn view(ready: Readiness) -> Self {
        let mut document = Self {
            port: None,
            file: None,
            command: None,
            timeout_s: ready.timeout_s,
            interval_ms: ready.interval_ms,
        };
        match ready.probe {
            Probe::Port(port) => document.port = Some(port),
            Probe::File(file) => document.file = Some(file),
            Probe::Command(command) => document.command = Some(command),
        }
        document
    }

    fn read(self) -> Result<Readiness, Problem> {
        let probe = match (self.port, self.file, self.command) {
            (Some(port), None, None) => Probe::Port(port),
            (None, Some(file), None) => Probe::File(file),
            (None, None, Some(command)) => Probe::Command(command),
            _ => return Err(invalid("ready", "needs one of port, file and command")),
        };
        Ok(Readiness {
            probe,
            timeout_s: self.timeout_s,
            interval_ms: self.interval_ms,
        })
    }
}

fn invalid(field: &str, problem: &str) -> Problem {
    TemplateRefusal::Invalid(TemplateProblem {
        field: vec![field.to_owned()],
        problem: problem.to_owned(),
    })
    .into()
}

/// A template as a team sees it: which other teams may use it is none of its business.
fn view(template: Template, team: Option<&Name>) -> TemplateView {
    let Template {
        name,
        version,
        origin,
        made_by,
        made_at,
        spec,
    } = template;
    let Setup {
        user,
        warm_up,
        start,
        ready,
        ports,
        endpoints,
        egress_ca,
    } = spec.setup;
    TemplateView {
        name,
        version,
        origin: match origin {
            Origin::File => OriginView::File,
            Origin::Team(_) => OriginView::Api,
        },
        made_at,
        made_by,
        image: spec.image,
        limits: spec.limits,
        max_limits: spec.max_limits,
        allow_root: spec.allow_root,
        env: spec.env,
        workdir: spec.workdir,
        user,
        timeout_s: spec.timeout_s,
        max_timeout_s: spec.max_timeout_s,
        warm_up: warm_up.map(WarmUpDocument::view),
        checkpoint: None,
        start: start.map(StartDocument::view),
        ready: ready.map(ReadyDocument::view),
        ports,
        endpoints,
        pool: spec.pool,
        pool_ready: None,
        egress: spec.egress,
        egress_ca,
        teams: spec.teams.map(|mut teams| {
            teams.retain(|named| team.is_none_or(|team| team == named));
            teams
        }),
    }
}
