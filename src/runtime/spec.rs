//! What podman is asked for, and whether it is what podman made. Pure: no I/O, no clock.
//!
//! [`CreateRequest`] is the body of libpod's create call with only the fields that we use. podman
//! drops a field it does not know and says nothing, so [`verify`] reads every field that matters
//! back from an inspect of what was made, and a field that is absent there is a field that differs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::RuntimeError;
use super::libpod::bounded;
use crate::model::sandbox::SandboxSpec;

/// Where the guest's binary is in every sandbox; it is PID 1.
pub const GUEST_PATH: &str = "/run/casemate/guest";
/// Where the link's directory is in every sandbox.
pub const LINK_PATH: &str = "/run/casemate/link";
/// The label that says whose a container is.
pub const INSTALLATION_LABEL: &str = "io.casemate.installation";
/// The label that says which session a container is for.
pub const SESSION_LABEL: &str = "io.casemate.session";
/// The annotation from which the runtime's wrapper takes the cap on each of gVisor's host files.
pub const FILE_LIMIT_ANNOTATION: &str = "io.casemate.file-limit-bytes";

/// All that the guest holds: it starts programs as other users and ends them
/// (`docs/decisions/0002-capabilities.md`).
const CAPABILITIES: [&str; 3] = ["CAP_KILL", "CAP_SETGID", "CAP_SETUID"];
/// Open files of one process inside.
const OPEN_FILES: u64 = 65_536;
/// podman's log of what the guest says: rewritten from its start when it is full.
const LOG_BYTES: u64 = 64_000;
/// How podman writes [`LOG_BYTES`] in an inspect.
const LOG_SIZE: &str = "64kB";
/// Period over which processor time is counted, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Threads that gVisor itself needs, which the kernel counts as the sandbox's (28 to 50 seen idle;
/// one more than allowed ends the sandbox instead of failing a fork inside).
const SENTRY_THREADS: u64 = 512;

/// Which limits this machine enforces from outside the sandbox: those whose cgroup v2 controllers
/// are delegated to podman's user. The others are not asked for, so that every warning of podman's
/// is a failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enforced {
    /// `memory`: the whole sandbox's memory, without swap.
    pub memory: bool,
    /// `cpu`: its share of processor time.
    pub cpu: bool,
    /// `pids`: its threads on the host.
    pub pids: bool,
}

impl Enforced {
    /// The names of the limits that are not enforced.
    #[must_use]
    pub fn missing(self) -> Vec<&'static str> {
        [
            ("memory", self.memory),
            ("cpu", self.cpu),
            ("pids", self.pids),
        ]
        .into_iter()
        .filter_map(|(name, enforced)| (!enforced).then_some(name))
        .collect()
    }
}

/// What is the same for all sandboxes of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// The OCI runtime that podman must have used.
    pub runtime: &'a Path,
    /// The guest's binary on the host.
    pub guest: &'a Path,
    /// The limits to ask for.
    pub enforced: Enforced,
}

/// The body of `POST /containers/create`. Field names are podman's (`SpecGenerator`).
#[derive(Debug, PartialEq, Serialize)]
pub struct CreateRequest {
    name: String,
    image: String,
    entrypoint: [&'static str; 1],
    command: [&'static str; 0],
    work_dir: &'static str,
    user: &'static str,
    umask: &'static str,
    hostname: String,
    labels: BTreeMap<&'static str, String>,
    annotations: BTreeMap<&'static str, String>,
    cap_drop: [&'static str; 1],
    cap_add: [&'static str; 3],
    no_new_privileges: bool,
    privileged: bool,
    netns: Namespace,
    pidns: Namespace,
    ipcns: Namespace,
    utsns: Namespace,
    cgroupns: Namespace,
    mounts: Vec<Mount>,
    /// Else an image's `VOLUME` becomes a directory of the host, without a bound.
    image_volume_mode: &'static str,
    /// Else podman copies the host's names and resolvers into the sandbox.
    use_image_hosts: bool,
    use_image_resolve_conf: bool,
    httpproxy: bool,
    /// Else an image decides that podman runs its health check.
    healthconfig: HealthCheck,
    systemd: &'static str,
    #[serde(rename = "sdnotifyMode")]
    sdnotify_mode: &'static str,
    restart_policy: &'static str,
    log_configuration: Log,
    r_limits: Vec<Rlimit>,
    #[serde(skip_serializing_if = "Resources::is_empty")]
    resource_limits: Resources,
    /// No sync(2) of layers that do not outlive the sandbox.
    volatile: bool,
}

#[derive(Debug, PartialEq, Serialize)]
struct Namespace {
    nsmode: &'static str,
}

#[derive(Debug, PartialEq, Serialize)]
struct Mount {
    #[serde(rename = "type")]
    kind: &'static str,
    source: String,
    destination: &'static str,
    options: Vec<String>,
}

#[derive(Debug, PartialEq, Serialize)]
struct HealthCheck {
    #[serde(rename = "Test")]
    test: [&'static str; 1],
}

#[derive(Debug, PartialEq, Serialize)]
struct Log {
    driver: &'static str,
    size: u64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Rlimit {
    #[serde(rename = "type")]
    kind: &'static str,
    soft: u64,
    hard: u64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryLimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<CpuLimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pids: Option<PidsLimit>,
}

impl Resources {
    fn is_empty(&self) -> bool {
        self.memory.is_none() && self.cpu.is_none() && self.pids.is_none()
    }
}

/// `swap` is memory and swap together, so equal limits mean no swap.
#[derive(Debug, PartialEq, Serialize)]
struct MemoryLimit {
    limit: u64,
    swap: u64,
}

#[derive(Debug, PartialEq, Serialize)]
struct CpuLimit {
    quota: u64,
    period: u64,
}

#[derive(Debug, PartialEq, Serialize)]
struct PidsLimit {
    limit: u64,
}

/// The container's name. One session has one sandbox, and no name of a person's is in it.
#[must_use]
pub fn container_name(spec: &SandboxSpec) -> String {
    format!("casemate-{}", spec.session)
}

impl CreateRequest {
    /// What to ask podman for.
    ///
    /// # Errors
    /// [`RuntimeError::Failed`] when a path cannot be written as JSON.
    pub fn new(spec: &SandboxSpec, ground: &Ground<'_>) -> Result<Self, RuntimeError> {
        let private = || Namespace { nsmode: "private" };
        let none = || Namespace { nsmode: "none" };
        let mut mounts: Vec<Mount> = binds(spec, ground)?
            .into_iter()
            .map(|bind| Mount {
                kind: "bind",
                source: bind.source,
                destination: bind.destination,
                options: ["ro", "rprivate"]
                    .iter()
                    .chain(bind.options)
                    .map(ToString::to_string)
                    .collect(),
            })
            .collect();
        mounts.extend(tmpfs(spec).map(|(destination, options)| Mount {
            kind: "tmpfs",
            source: "tmpfs".into(),
            destination,
            // Else podman copies what the image has there.
            options: options.into_iter().chain(["notmpcopyup".into()]).collect(),
        }));
        Ok(Self {
            name: container_name(spec),
            image: format!("sha256:{}", spec.image.hex()),
            entrypoint: [GUEST_PATH],
            command: [],
            work_dir: "/",
            user: "0:0",
            umask: "0022",
            hostname: spec.hostname.clone(),
            labels: labels(spec).into(),
            annotations: [(FILE_LIMIT_ANNOTATION, file_limit(spec))].into(),
            cap_drop: ["all"],
            cap_add: CAPABILITIES,
            no_new_privileges: true,
            privileged: false,
            netns: none(),
            pidns: private(),
            // Without podman's /dev/shm, which would be memory of the host's outside the sandbox.
            ipcns: none(),
            utsns: private(),
            cgroupns: private(),
            mounts,
            image_volume_mode: "ignore",
            use_image_hosts: true,
            use_image_resolve_conf: true,
            httpproxy: false,
            healthconfig: HealthCheck { test: ["NONE"] },
            systemd: "false",
            sdnotify_mode: "ignore",
            restart_policy: "no",
            log_configuration: Log {
                driver: "k8s-file",
                size: LOG_BYTES,
            },
            r_limits: rlimits(spec)
                .into_iter()
                .map(|(kind, most)| Rlimit {
                    kind,
                    soft: most,
                    hard: most,
                })
                .collect(),
            resource_limits: resources(spec, ground.enforced),
            volatile: true,
        })
    }
}

/// Something of the host's that is visible inside, always read-only.
struct Bind {
    source: String,
    destination: &'static str,
    options: &'static [&'static str],
}

/// All that a sandbox sees of the host.
fn binds(spec: &SandboxSpec, ground: &Ground<'_>) -> Result<[Bind; 2], RuntimeError> {
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or_else(|| RuntimeError::Failed {
                doing: "describe a sandbox",
                message: format!("{} is not UTF-8", path.display()),
            })
    };
    Ok([
        Bind {
            source: text(ground.guest)?,
            destination: GUEST_PATH,
            options: &["nosuid", "nodev"],
        },
        Bind {
            source: text(&spec.link_dir)?,
            destination: LINK_PATH,
            options: &["nosuid", "nodev", "noexec"],
        },
    ])
}

/// What is kept in the sandbox's memory. gVisor would put an unbounded tmpfs on an empty `/tmp` by
/// itself; half of the memory is what Linux gives a tmpfs that does not say.
fn tmpfs(spec: &SandboxSpec) -> [(&'static str, Vec<String>); 2] {
    let size = format!("size={}", spec.limits.memory_bytes / 2);
    let options = |more: &[&str]| -> Vec<String> {
        ["rw", "nosuid", "nodev", "mode=1777", &size]
            .iter()
            .chain(more)
            .map(ToString::to_string)
            .collect()
    };
    [("/dev/shm", options(&["noexec"])), ("/tmp", options(&[]))]
}

fn labels(spec: &SandboxSpec) -> [(&'static str, String); 2] {
    [
        (INSTALLATION_LABEL, spec.installation.to_string()),
        (SESSION_LABEL, spec.session.to_string()),
    ]
}

fn file_limit(spec: &SandboxSpec) -> String {
    spec.limits.file_limit_bytes().to_string()
}

/// Limits that gVisor itself keeps, whatever the machine can do. Names as podman wants them: a
/// name in capitals is taken here and fails at start.
fn rlimits(spec: &SandboxSpec) -> [(&'static str, u64); 3] {
    [
        ("core", 0),
        ("nofile", OPEN_FILES),
        ("nproc", spec.limits.pids.into()),
    ]
}

fn resources(spec: &SandboxSpec, enforced: Enforced) -> Resources {
    let limits = &spec.limits;
    let limit = limits.memory_bytes;
    Resources {
        memory: enforced
            .memory
            .then_some(MemoryLimit { limit, swap: limit }),
        cpu: enforced.cpu.then_some(CpuLimit {
            quota: cpu_quota_us(limits.cpus),
            period: CPU_PERIOD_US,
        }),
        pids: enforced.pids.then_some(PidsLimit {
            limit: pids_limit(limits.pids),
        }),
    }
}

/// Processor time in each period; not below the millisecond that the kernel demands.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "`Limits::validate` keeps it between 0.01 and 1024, and the cast saturates"
)]
fn cpu_quota_us(cpus: f64) -> u64 {
    ((cpus * CPU_PERIOD_US as f64).round() as u64).max(1_000)
}

/// Threads on the host: `nproc` counts per user inside and two users are usual, and gVisor adds
/// its own.
fn pids_limit(pids: u32) -> u64 {
    u64::from(pids) * 2 + SENTRY_THREADS
}

/// Whether podman made what was asked: `inspect` is its answer for the container.
///
/// # Errors
/// [`RuntimeError::NotAsAsked`] with the first field that differs.
pub fn verify(
    inspect: &Value,
    spec: &SandboxSpec,
    ground: &Ground<'_>,
) -> Result<(), RuntimeError> {
    let resources = resources(spec, ground.enforced);
    let (memory, cpu, pids) = (resources.memory, resources.cpu, resources.pids);
    let limit = |limit: Option<u64>| json!(limit.unwrap_or(0));
    let equal = [
        ("OCIRuntime", json!(ground.runtime)),
        ("Image", json!(spec.image.hex())),
        ("Name", json!(container_name(spec))),
        ("Path", json!(GUEST_PATH)),
        ("Config.Entrypoint", json!(GUEST_PATH)),
        ("Config.User", json!("0:0")),
        ("Config.Hostname", json!(spec.hostname)),
        ("Config.WorkingDir", json!("/")),
        ("Config.Umask", json!("0022")),
        ("Config.Tty", json!(false)),
        ("Config.OpenStdin", json!(false)),
        ("HostConfig.Privileged", json!(false)),
        ("HostConfig.NetworkMode", json!("none")),
        ("HostConfig.PidMode", json!("private")),
        ("HostConfig.UTSMode", json!("private")),
        ("HostConfig.CgroupMode", json!("private")),
        // podman's own user namespace, in which no one is the host's root.
        ("HostConfig.UsernsMode", json!("")),
        ("HostConfig.SecurityOpt", json!(["no-new-privileges"])),
        ("HostConfig.AutoRemove", json!(false)),
        ("HostConfig.PublishAllPorts", json!(false)),
        ("HostConfig.RestartPolicy.Name", json!("no")),
        ("HostConfig.LogConfig.Type", json!("k8s-file")),
        ("HostConfig.LogConfig.Size", json!(LOG_SIZE)),
    ];
    for (field, wanted) in equal {
        same(field, at(inspect, field)?, &wanted)?;
    }
    // Only what was asked for is there to compare: podman may have a default where we have none.
    let limits = [
        ("HostConfig.Memory", memory.as_ref().map(|m| m.limit)),
        ("HostConfig.MemorySwap", memory.as_ref().map(|m| m.swap)),
        ("HostConfig.CpuQuota", cpu.as_ref().map(|c| c.quota)),
        ("HostConfig.CpuPeriod", cpu.as_ref().map(|c| c.period)),
        ("HostConfig.PidsLimit", pids.as_ref().map(|p| p.limit)),
    ];
    for (field, wanted) in limits {
        if wanted.is_some() {
            same(field, at(inspect, field)?, &limit(wanted))?;
        }
    }
    for field in [
        "Pod",
        "Dependencies",
        "Config.Cmd",
        "Config.Volumes",
        "HostConfig.Devices",
        "HostConfig.GroupAdd",
        "HostConfig.ExtraHosts",
        "HostConfig.VolumesFrom",
        "HostConfig.PortBindings",
        "HostConfig.Links",
    ] {
        let found = at(inspect, field)?;
        if !is_empty(found) {
            return Err(differs(field, found, "empty"));
        }
    }
    for field in ["EffectiveCaps", "BoundingCaps"] {
        let found: BTreeSet<&str> = strings(field, at(inspect, field)?)?.into_iter().collect();
        same(field, &found, &BTreeSet::from(CAPABILITIES))?;
    }
    verify_ipc(inspect)?;
    verify_health_check(inspect)?;
    verify_labels(inspect, spec)?;
    verify_annotations(inspect, spec)?;
    verify_binds(inspect, &binds(spec, ground)?)?;
    verify_tmpfs(inspect, &tmpfs(spec))?;
    verify_rlimits(inspect, &rlimits(spec))
}

/// podman 4.3 reports every IPC namespace of its own as shareable, also one that was asked to be
/// private. Another container could only share it by naming this one, which `Dependencies` of that
/// one would show; sharing the host's or another's is what must not be.
fn verify_ipc(inspect: &Value) -> Result<(), RuntimeError> {
    let field = "HostConfig.IpcMode";
    let found = at(inspect, field)?;
    match found.as_str() {
        Some("none" | "private" | "shareable") => Ok(()),
        _ => Err(differs(field, found, "private")),
    }
}

fn verify_health_check(inspect: &Value) -> Result<(), RuntimeError> {
    let field = "Config.Healthcheck";
    match inspect.pointer("/Config/Healthcheck") {
        None | Some(Value::Null) => Ok(()),
        Some(found) => same(field, found, &json!({"Test": ["NONE"]})),
    }
}

/// An image's own labels are there too; they decide nothing.
fn verify_labels(inspect: &Value, spec: &SandboxSpec) -> Result<(), RuntimeError> {
    let found = at(inspect, "Config.Labels")?;
    for (label, wanted) in labels(spec) {
        same(
            "Config.Labels",
            found.get(label).unwrap_or(&Value::Null),
            &json!(wanted),
        )?;
    }
    Ok(())
}

/// An image's annotations are handed to the runtime; runsc takes flags from some, if it is let.
fn verify_annotations(inspect: &Value, spec: &SandboxSpec) -> Result<(), RuntimeError> {
    let field = "Config.Annotations";
    let found = at(inspect, field)?;
    let limit = found.get(FILE_LIMIT_ANNOTATION).unwrap_or(&Value::Null);
    same(field, limit, &json!(file_limit(spec)))?;
    let keys = found
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::keys);
    match keys.into_iter().find(|key| key.starts_with("dev.gvisor.")) {
        Some(key) => Err(differs(field, key, "without flags for gVisor")),
        None => Ok(()),
    }
}

fn verify_binds(inspect: &Value, wanted: &[Bind]) -> Result<(), RuntimeError> {
    let field = "Mounts";
    let found = at(inspect, field)?;
    let mounts = found.as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |bind: &Bind| {
        mounts
            .iter()
            .find(|m| m.get("Destination") == Some(&json!(bind.destination)))
    };
    for bind in wanted {
        let mount = of(bind).unwrap_or(&Value::Null);
        let options: BTreeSet<&str> = strings(field, mount.get("Options").unwrap_or(&Value::Null))?
            .into_iter()
            // How podman writes that it is a bind mount.
            .filter(|option| !matches!(*option, "bind" | "rbind"))
            .collect();
        let as_asked = mount.get("Type") == Some(&json!("bind"))
            && mount.get("Source") == Some(&json!(bind.source))
            && mount.get("RW") == Some(&json!(false))
            && mount.get("Propagation") == Some(&json!("rprivate"))
            && options == bind.options.iter().copied().collect();
        if !as_asked {
            return Err(differs(
                field,
                mount,
                &format!("{} at {}, read-only", bind.source, bind.destination),
            ));
        }
    }
    if mounts.len() != wanted.len() {
        return Err(differs(
            field,
            found,
            "the guest and the link and nothing else of the host's",
        ));
    }
    Ok(())
}

fn verify_tmpfs(inspect: &Value, wanted: &[(&str, Vec<String>)]) -> Result<(), RuntimeError> {
    let field = "HostConfig.Tmpfs";
    let found = at(inspect, field)?;
    let mounts = found.as_object();
    if mounts.map(serde_json::Map::len) != Some(wanted.len()) {
        return Err(differs(field, found, "those asked for and no other"));
    }
    for (destination, wanted) in wanted {
        let options = mounts
            .and_then(|m| m.get(*destination))
            .and_then(Value::as_str)
            .unwrap_or_default();
        let found: BTreeSet<&str> = options
            .split(',')
            // podman's additions, which give nothing.
            .filter(|option| !matches!(*option, "rprivate" | "notmpcopyup"))
            .collect();
        same(field, &found, &wanted.iter().map(String::as_str).collect())?;
    }
    Ok(())
}

fn verify_rlimits(inspect: &Value, wanted: &[(&str, u64)]) -> Result<(), RuntimeError> {
    let field = "HostConfig.Ulimits";
    let found = at(inspect, field)?;
    let ulimits = found.as_array().map(Vec::as_slice).unwrap_or_default();
    for (kind, most) in wanted {
        let wanted = json!({
            "Name": format!("RLIMIT_{}", kind.to_ascii_uppercase()),
            "Soft": most,
            "Hard": most,
        });
        if !ulimits.contains(&wanted) {
            return Err(differs(field, found, &wanted.to_string()));
        }
    }
    if ulimits.len() != wanted.len() {
        return Err(differs(field, found, "those asked for and no other"));
    }
    Ok(())
}

/// The field of that dotted name; that it is absent is a difference, not an emptiness.
fn at<'a>(inspect: &'a Value, field: &'static str) -> Result<&'a Value, RuntimeError> {
    field
        .split('.')
        .try_fold(inspect, |value, key| value.get(key))
        .ok_or_else(|| differs(field, "absent", "there"))
}

fn same<T: PartialEq + Debug + ?Sized>(
    field: &'static str,
    found: &T,
    wanted: &T,
) -> Result<(), RuntimeError> {
    if found == wanted {
        Ok(())
    } else {
        Err(differs(field, found, &format!("{wanted:?}")))
    }
}

fn differs(field: &'static str, found: &(impl Debug + ?Sized), wanted: &str) -> RuntimeError {
    RuntimeError::NotAsAsked {
        field,
        found: bounded(format!("{found:?}")),
        wanted: wanted.to_owned(),
    }
}

fn strings<'a>(field: &'static str, value: &'a Value) -> Result<Vec<&'a str>, RuntimeError> {
    value
        .as_array()
        .and_then(|items| items.iter().map(Value::as_str).collect())
        .ok_or_else(|| differs(field, value, "a list of words"))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
