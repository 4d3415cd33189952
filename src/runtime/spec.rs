//! What podman is asked for: the body of libpod's create call, with only the fields that we use.
//! Pure: no I/O, no clock.
//!
//! podman drops a field that it does not know and says nothing, so [`super::verify`] reads back each
//! that matters. What both must agree on is said once, here.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::RuntimeError;
use super::groups::Bounds;
use crate::base::id::SessionId;
use crate::model::sandbox::{MAX_OPEN_FILES, SandboxSpec, Warmth};
use crate::model::template::RESERVED_PORT;

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
/// The annotation from which it takes where the sandbox's volumes are mounted.
const VOLUMES_ANNOTATION: &str = "io.casemate.volumes";
/// Where volumes are in every sandbox.
pub const VOLUMES_PATH: &str = "/volumes";
/// The annotations from which it takes what it bounds a sandbox's control groups by.
const MEMORY_ANNOTATION: &str = "io.casemate.memory-max-bytes";
const CPU_ANNOTATION: &str = "io.casemate.cpu-quota-us";
const PIDS_ANNOTATION: &str = "io.casemate.pids-max";

/// The annotation from which it takes with which file the checkpoint is kept that is to be taken of a sandbox.
const CHECKPOINT_ANNOTATION: &str = "io.casemate.checkpoint";
/// The annotation from which it takes with which file the checkpoint is kept that a sandbox begins as.
const RESTORE_ANNOTATION: &str = "io.casemate.restore";
/// What the names of all annotations begin with that the wrapper understands.
pub(super) const OUR_ANNOTATIONS: &str = "io.casemate.";

/// All that the guest holds: it starts programs as other users and ends them, and reads every file for a snapshot
/// (`docs/decisions/0002-capabilities.md`).
const CAPABILITIES: [&str; 5] = [
    "CAP_DAC_READ_SEARCH",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
];
/// What the guest holds where programs may be root, and such programs with it: to install packages, to
/// give files away, to become another user. Nothing by which a program could trace the guest, mount
/// over it or open raw sockets (`docs/decisions/0013-root-inside.md`).
const ROOT_CAPABILITIES: [&str; 10] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// What the guest holds besides where something is warmed up: a sandbox that was restored is given its own host name. It gives
/// this up before the first program of the session runs (`docs/decisions/0025-warm-ups.md`).
const WARM_CAPABILITIES: [&str; 6] = [
    "CAP_DAC_READ_SEARCH",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
];
/// The same where programs may be root, who never get it.
const WARM_ROOT_CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
];
/// The guest's word for it that programs may be root.
const ALLOW_ROOT: &str = "--allow-root";
/// The guest's word for how many files each program may have open. The guest itself has more.
const OPEN_FILES: &str = "--open-files";
/// The guest's word for how many processes it starts.
const MAX_STARTED: &str = "--max-started";
/// The guest's word for where programs find the way out.
const EGRESS_PORT: &str = "--egress-port";
/// podman's log of what the guest says: rewritten from its start when it is full.
const LOG_BYTES: u64 = 64_000;
/// How podman writes [`LOG_BYTES`] in an inspect.
pub(super) const LOG_SIZE: &str = "64kB";
/// What is the same for all sandboxes of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// The OCI runtime that podman must have used.
    pub runtime: &'a Path,
    /// The guest's binary on the host.
    pub guest: &'a Path,
}

/// The body of `POST /containers/create`. Field names are podman's (`SpecGenerator`).
#[derive(Debug, PartialEq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are podman's")]
pub struct CreateRequest {
    name: String,
    image: String,
    entrypoint: [&'static str; 1],
    command: Vec<String>,
    work_dir: &'static str,
    user: &'static str,
    umask: &'static str,
    hostname: String,
    labels: BTreeMap<&'static str, String>,
    annotations: BTreeMap<&'static str, String>,
    cap_drop: [&'static str; 1],
    cap_add: &'static [&'static str],
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

/// What the names of containers begin with.
const NAME_PREFIX: &str = "casemate-";

/// The container's name. One session has one sandbox, and no name of a person's is in it.
#[must_use]
pub fn container_name(spec: &SandboxSpec) -> String {
    format!("{NAME_PREFIX}{}", spec.session)
}

/// Whether a container of that name is a sandbox, of whatever installation.
#[must_use]
pub fn is_container_name(name: &str) -> bool {
    let session = name.strip_prefix(NAME_PREFIX);
    session.is_some_and(|session| session.parse::<SessionId>().is_ok())
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
                options: bind.words().map(ToString::to_string).collect(),
                source: bind.source,
                destination: bind.destination,
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
            command: guest_arguments(spec),
            work_dir: "/",
            user: "0:0",
            umask: "0022",
            hostname: spec.hostname.clone(),
            labels: labels(spec).into(),
            annotations: annotations(spec).into_iter().collect(),
            cap_drop: ["all"],
            cap_add: capabilities(spec),
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
            volatile: true,
        })
    }
}

/// The capabilities of a sandbox, all of them of gVisor's own kernel.
pub(super) const fn capabilities(spec: &SandboxSpec) -> &'static [&'static str] {
    match (&spec.warmth, spec.allow_root) {
        (Warmth::None, false) => &CAPABILITIES,
        (Warmth::None, true) => &ROOT_CAPABILITIES,
        (_, false) => &WARM_CAPABILITIES,
        (_, true) => &WARM_ROOT_CAPABILITIES,
    }
}

/// What the guest is told beyond its name.
pub(super) fn guest_arguments(spec: &SandboxSpec) -> Vec<String> {
    let limits = &spec.limits;
    let mut words = vec![
        OPEN_FILES.to_owned(),
        limits.open_files.to_string(),
        MAX_STARTED.to_owned(),
        limits.processes_started.to_string(),
        EGRESS_PORT.to_owned(),
        RESERVED_PORT.to_string(),
    ];
    if spec.allow_root {
        words.push(ALLOW_ROOT.to_owned());
    }
    words
}

/// Something of the host's that is visible inside.
pub(super) struct Bind {
    pub(super) source: String,
    pub(super) destination: &'static str,
    pub(super) options: &'static [&'static str],
    /// Whether what is mounted below it later is seen inside. gVisor lets nothing be written below a mount that it was told
    /// is read-only, so this one is not; that nothing but volumes can be written in it is the wrapper's work, and its owner's:
    /// nobody in podman's user namespace may write there.
    pub(super) is_open: bool,
}

impl Bind {
    /// How it is mounted; the rest is for every bind mount alike.
    pub(super) const fn propagation(&self) -> &'static str {
        if self.is_open { "rslave" } else { "rprivate" }
    }

    fn words(&self) -> impl Iterator<Item = &'static str> {
        let first: &[_] = if self.is_open {
            &["rw", "rbind", "rslave"]
        } else {
            &["ro", "rprivate"]
        };
        first.iter().chain(self.options).copied()
    }
}

/// All that a sandbox sees of the host.
pub(super) fn binds(spec: &SandboxSpec, ground: &Ground<'_>) -> Result<[Bind; 3], RuntimeError> {
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
            is_open: false,
        },
        Bind {
            source: text(&spec.link_dir)?,
            destination: LINK_PATH,
            options: &["nosuid", "nodev", "noexec"],
            is_open: false,
        },
        Bind {
            source: text(&spec.volumes_dir.join("mounts"))?,
            destination: VOLUMES_PATH,
            options: &["nosuid", "nodev"],
            is_open: true,
        },
    ])
}

/// What is kept in the sandbox's memory. gVisor would put an unbounded tmpfs on an empty `/tmp` by
/// itself; half of the memory is what Linux gives a tmpfs that does not say.
pub(super) fn tmpfs(spec: &SandboxSpec) -> [(&'static str, Vec<String>); 2] {
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

pub(super) fn labels(spec: &SandboxSpec) -> [(&'static str, String); 2] {
    [
        (INSTALLATION_LABEL, spec.installation.to_string()),
        (SESSION_LABEL, spec.session.to_string()),
    ]
}

/// What the runtime's wrapper is told: not by podman's own resource limits, which it would bring to groups of its own that
/// runsc cannot use, and where there are none it only warns.
pub(super) fn annotations(spec: &SandboxSpec) -> Vec<(&'static str, String)> {
    let bounds = Bounds::of(&spec.limits);
    let mut all = vec![
        (
            FILE_LIMIT_ANNOTATION,
            spec.limits.file_limit_bytes().to_string(),
        ),
        (MEMORY_ANNOTATION, bounds.memory_bytes.to_string()),
        (CPU_ANNOTATION, bounds.cpu_quota_us.to_string()),
        (PIDS_ANNOTATION, bounds.pids.to_string()),
        (VOLUMES_ANNOTATION, spec.volumes_dir.display().to_string()),
    ];
    match &spec.warmth {
        Warmth::None | Warmth::Live => {}
        Warmth::Source(file) => all.push((CHECKPOINT_ANNOTATION, file.display().to_string())),
        Warmth::Restored(file) => all.push((RESTORE_ANNOTATION, file.display().to_string())),
    }
    all
}

/// Limits that gVisor itself keeps, whatever the machine can do. Names as podman wants them: a
/// name in capitals is taken here and fails at start.
pub(super) fn rlimits(spec: &SandboxSpec) -> [(&'static str, u64); 3] {
    [
        ("core", 0),
        ("nofile", MAX_OPEN_FILES.into()),
        ("nproc", spec.limits.pids.into()),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::base::id::{InstallationId, SessionId};
    use crate::model::image::ImageDigest;
    use crate::model::sandbox::{GIB, Limits};

    const GOLDEN: &str = include_str!("../../tests/golden/create-request.json");
    pub(in super::super) fn ground() -> Ground<'static> {
        Ground {
            runtime: Path::new("/usr/libexec/casemate/casemate-runsc"),
            guest: Path::new("/usr/libexec/casemate/casemate-guest"),
        }
    }

    pub(in super::super) fn spec() -> SandboxSpec {
        SandboxSpec {
            installation: InstallationId::from_bytes([1; 16]),
            session: SessionId::from_bytes([2; 16]),
            image: ImageDigest::from_bytes([3; 32]),
            limits: Limits {
                memory_bytes: GIB / 2,
                cpus: 0.5,
                pids: 100,
                disk_bytes: 2 * GIB,
                open_files: 1000,
                processes_started: 5000,
            },
            allow_root: false,
            hostname: "box".into(),
            link_dir: "/run/casemate/link/ses_0".into(),
            volumes_dir: "/run/casemate/link/ses_0.volumes".into(),
            warmth: Warmth::None,
        }
    }

    pub(in super::super) fn root_spec() -> SandboxSpec {
        SandboxSpec {
            allow_root: true,
            ..spec()
        }
    }

    #[test]
    fn the_create_request_is_the_golden_one() {
        let request = CreateRequest::new(&spec(), &ground()).unwrap();
        let request = serde_json::to_value(request).unwrap();
        let golden: Value = serde_json::from_str(GOLDEN).unwrap();
        assert_eq!(
            request,
            golden,
            "{}",
            serde_json::to_string_pretty(&request).unwrap()
        );
    }

    #[test]
    fn a_warm_sandbox_differs_in_one_capability_and_in_what_the_wrapper_is_told() {
        let golden: Value = serde_json::from_str(GOLDEN).unwrap();
        let cases = [
            (Warmth::Live, None),
            (
                Warmth::Source("/run/l/a".into()),
                Some("io.casemate.checkpoint"),
            ),
            (
                Warmth::Restored("/run/l/a".into()),
                Some("io.casemate.restore"),
            ),
        ];
        for (allow_root, held) in [(false, 5), (true, 10)] {
            for (warmth, annotation) in cases.clone() {
                let spec = SandboxSpec {
                    allow_root,
                    warmth,
                    ..spec()
                };
                let request = CreateRequest::new(&spec, &ground()).unwrap();
                let mut request = serde_json::to_value(request).unwrap();
                let mut caps = request["cap_add"].as_array().unwrap().clone();
                assert!(caps.contains(&json!("CAP_SYS_ADMIN")));
                caps.retain(|cap| cap != "CAP_SYS_ADMIN");
                assert_eq!(caps.len(), held);
                let annotations = request["annotations"].as_object_mut().unwrap();
                let told = annotation.and_then(|name| annotations.remove(name));
                assert_eq!(told, annotation.map(|_| json!("/run/l/a")));
                for field in ["command", "cap_add"] {
                    request[field] = golden[field].clone();
                }
                assert_eq!(request, golden);
            }
        }
    }

    #[test]
    fn a_sandbox_with_root_differs_in_its_capabilities_and_its_guests_word_alone() {
        let request = CreateRequest::new(&root_spec(), &ground()).unwrap();
        let mut request = serde_json::to_value(request).unwrap();
        assert_eq!(
            request["command"],
            json!([
                "--open-files",
                "1000",
                "--max-started",
                "5000",
                "--egress-port",
                "3128",
                "--allow-root"
            ])
        );
        assert_eq!(
            request["cap_add"],
            json!([
                "CAP_CHOWN",
                "CAP_DAC_OVERRIDE",
                "CAP_FOWNER",
                "CAP_FSETID",
                "CAP_KILL",
                "CAP_NET_BIND_SERVICE",
                "CAP_SETGID",
                "CAP_SETPCAP",
                "CAP_SETUID",
                "CAP_SYS_CHROOT"
            ])
        );
        let golden: Value = serde_json::from_str(GOLDEN).unwrap();
        for field in ["command", "cap_add"] {
            request[field] = golden[field].clone();
        }
        assert_eq!(request, golden);
    }
}
