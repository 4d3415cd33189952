//! What an operator can set, as plain values with their defaults.
//!
//! `config/` reads, checks and bounds them; the parts take them as they are.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::egress::EgressRules;
use super::grant::Role;
use super::name::Name;
use super::network::Network;
use super::sandbox::{GIB, Limits};
use super::web::{HostPattern, OriginPattern};

/// How strict the daemon is with the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// What cannot be enforced is a reason not to start.
    #[default]
    Production,
    /// Limits that the machine cannot enforce are said, not refused. Isolation is never optional.
    Development,
}

impl Mode {
    /// The word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Development => "development",
        }
    }
}

/// The HTTP door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// Where it listens. Loopback in production, unless there is TLS.
    pub listen: SocketAddr,
    /// Longest request body that is held in memory; streams are not bounded by it.
    pub max_body_bytes: u64,
    /// Connections at one time; further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// How long a client may take to send a request's head.
    pub header_timeout: Duration,
    /// The certificate; `None`: HTTP in the clear.
    pub tls: Option<TlsConfig>,
    /// The names that it answers to, beside the address that a connection came to, and this machine's own names on this machine.
    pub hosts: Vec<HostPattern>,
    /// The origins whose pages may call, beside the door's own.
    pub origins: Vec<OriginPattern>,
    /// How much may be asked.
    pub limits: HttpLimits,
    /// Who may administer from elsewhere; `None`: nobody.
    pub operator: Option<OperatorConfig>,
}

/// Administering from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorConfig {
    /// Where the operator token is: a path, or a credential of systemd's.
    pub token: String,
    /// How long one is taken after another was put in its place.
    pub overlap: Duration,
}

/// How much may be asked at the HTTP door. Zero is no bound; a burst of zero is one of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Requests a second from one address (of IPv6 one network of 64 bits) by those who have no valid key.
    pub address_per_s: u32,
    /// So many of them at once.
    pub address_burst: u32,
    /// Requests a second with one key.
    pub key_per_s: u32,
    /// So many of them at once.
    pub key_burst: u32,
    /// Requests a second for one team.
    pub team_per_s: u32,
    /// So many of them at once.
    pub team_burst: u32,
    /// Requests that do not authenticate, a minute and at once, from one address.
    pub failures_per_minute: u32,
    /// Connections of one address at one time; loopback is not bounded.
    pub connections_per_address: usize,
}

impl HttpLimits {
    /// No bounds.
    #[must_use]
    pub const fn off() -> Self {
        Self {
            address_per_s: 0,
            address_burst: 0,
            key_per_s: 0,
            key_burst: 0,
            team_per_s: 0,
            team_burst: 0,
            failures_per_minute: 0,
            connections_per_address: 0,
        }
    }
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            address_per_s: 500,
            address_burst: 1000,
            key_per_s: 1000,
            key_burst: 2000,
            team_per_s: 2000,
            team_burst: 4000,
            failures_per_minute: 10,
            connections_per_address: 256,
        }
    }
}

/// The endpoints: how ports in sessions are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointsConfig {
    /// Below which endpoints have names, `PORT-SESSION.domain`, in lower case; `None`: they are reached by path alone.
    pub domain: Option<String>,
    /// Whether templates may have ports that anybody reaches who knows the name.
    pub public: bool,
    /// The proxies whose word on whom they speak for is passed on.
    pub trusted_proxies: Vec<Network>,
    /// How long a program may take to begin its answer, after the last byte of the request.
    pub answer_timeout: Duration,
    /// How long nothing may move, either way, of an answer or a WebSocket.
    pub idle_timeout: Duration,
}

impl Default for EndpointsConfig {
    fn default() -> Self {
        Self {
            domain: None,
            public: false,
            trusted_proxies: Vec::new(),
            answer_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(600),
        }
    }
}

/// TLS of the HTTP door. Each of them is an absolute path, or `credential:NAME`, a systemd credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate's chain in PEM, the server's own first.
    pub certificate: String,
    /// Its private key in PEM.
    pub key: String,
    /// Who vouches for clients' certificates, in PEM; `None`: they are not asked for any.
    pub client_ca: Option<String>,
    /// Whether a client without one is refused.
    pub require_client: bool,
    /// Who they are.
    pub clients: Vec<ClientCertificate>,
}

/// Whoever has this certificate acts for a team.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// What the record calls it.
    pub name: Name,
    /// How it is known.
    pub mark: CertificateMark,
    /// The team that it acts for.
    pub team: Name,
    /// What it may do at most.
    pub role: Role,
}

/// How a certificate is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateMark {
    /// By the SHA-256 of all of it.
    Fingerprint([u8; 32]),
    /// By one of the DNS names or URIs that it is for, exactly.
    San(String),
}

impl fmt::Display for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        match &self.mark {
            CertificateMark::San(name) => write!(f, "san {name}")?,
            CertificateMark::Fingerprint(bytes) => {
                f.write_str("sha256 ")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
            }
        }
        write!(f, ", {} of {}", self.role, self.team)
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7272)),
            max_body_bytes: 1 << 20,
            max_connections: 1024,
            header_timeout: Duration::from_secs(10),
            tls: None,
            hosts: Vec::new(),
            origins: Vec::new(),
            limits: HttpLimits::default(),
            operator: None,
        }
    }
}

/// The admin socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// The group whose members may use it, beside root and the daemon's own user.
    pub group: String,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            group: "casemate-admin".to_owned(),
        }
    }
}

/// Backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupConfig {
    /// Where they are.
    pub directory: PathBuf,
    /// Where else one may be put by its name.
    pub elsewhere: Option<PathBuf>,
    /// So long after the last one comes the next; `None`: none does by itself.
    pub every: Option<Duration>,
    /// Minutes after midnight, UTC, at which one is made each day, in place of `every`.
    pub at: Option<u32>,
    /// So many are kept.
    pub keep: usize,
    /// The age public key that they are encrypted for.
    pub recipient: Option<String>,
    /// Whether the images of templates are in them.
    pub images: bool,
    /// Most bytes of images in one, as archives.
    pub max_images_bytes: u64,
}

impl BackupConfig {
    /// None by itself, and all that are kept in this directory.
    #[must_use]
    pub const fn by_hand(directory: PathBuf) -> Self {
        Self {
            directory,
            elsewhere: None,
            every: None,
            at: None,
            keep: 7,
            recipient: None,
            images: false,
            max_images_bytes: 64 << 30,
        }
    }
}

/// The database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Time between two whole checks; `None`: there are none.
    pub check_every: Option<Duration>,
}

/// What becomes of sandboxes when the daemon stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnShutdown {
    /// They run on, and the next daemon takes them up.
    #[default]
    Keep,
    /// They are stopped first.
    Stop,
}

impl OnShutdown {
    /// The word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Stop => "stop",
        }
    }
}

/// Bounds and defaults of sessions.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionsConfig {
    /// Live sessions at one time; the next waits, and is refused in the end.
    pub max: usize,
    /// Live sessions of one team.
    pub max_of_team: usize,
    /// Requests for a session that wait at one time; the next is refused at once.
    pub queue: usize,
    /// How long such a request waits.
    pub queue_timeout: Duration,
    /// Memory that must be left on the machine when a session is admitted, in bytes.
    pub reserve_bytes: u64,
    /// Launches at one time; the next waits.
    pub concurrent_launches: usize,
    /// Sandboxes for pools that are started in a second, at most.
    pub pool_starts_per_s: u32,
    /// How long a started sandbox's guest may take to dial the link.
    pub link_timeout: Duration,
    /// How long a guest may take to dial again after the daemon has restarted.
    pub reattach_timeout: Duration,
    /// How long a session may be paused before it is stopped.
    pub max_paused: Duration,
    /// From how much of one processor on, in percent, a session's programs count as use of it; 0: never.
    pub busy_cpu_percent: u64,
    /// Kept of each of a run's two outputs when the client does not say.
    pub default_output_bytes: u64,
    /// The most that a client may ask to be kept.
    pub max_output_bytes: u64,
    /// How long a run may take when the client does not say, in seconds.
    pub run_timeout_s: u64,
    /// The longest time that a client may ask for a run, in seconds.
    pub max_run_timeout_s: u64,
    /// What becomes of sandboxes when the daemon stops.
    pub on_shutdown: OnShutdown,
    /// What teams may put into templates of their own.
    pub team_templates: TeamTemplates,
    /// What sandboxes may reach at most, and how much of it.
    pub egress: EgressConfig,
}

/// The certificates of the system, where Debian has them.
pub const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What bounds the way out of each sandbox, whatever its rules allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressConfig {
    /// Connections of one session at one time.
    pub connections: usize,
    /// What one session may ask for in a second, and at once; 0: as much as it likes.
    pub requests_per_s: u32,
    /// What it may ask for at once.
    pub burst: u32,
    /// Bytes of one session, both ways, for as long as the daemon runs; 0: as many as it likes.
    pub max_bytes: u64,
    /// How long it may take to resolve a name and to connect.
    pub connect_timeout: Duration,
    /// How long a connection may be silent.
    pub idle_timeout: Duration,
    /// The certificates by which servers are verified that something is added for.
    pub ca: PathBuf,
    /// What the operator allows teams, by team. Of a team that is not named the operator's own templates decide.
    pub teams: Arc<BTreeMap<Name, EgressRules>>,
}

impl Default for EgressConfig {
    fn default() -> Self {
        Self {
            connections: 128,
            requests_per_s: 100,
            burst: 500,
            max_bytes: 0,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            ca: SYSTEM_CA.into(),
            teams: Arc::default(),
        }
    }
}

/// How far a team may go in the templates that it makes through the API. Files are not bounded by it.
#[derive(Clone, Debug, PartialEq)]
pub struct TeamTemplates {
    /// Most templates of one team.
    pub max: u32,
    /// Whether they may let programs be root inside.
    pub allow_root: bool,
    /// The most of their `max_timeout_s`.
    pub max_timeout_s: u64,
    /// The most of their `pool`.
    pub max_pool: u32,
    /// The most of their `max_limits`.
    pub max_limits: Limits,
    /// The most that a session may have changed for a snapshot of it, in bytes.
    pub max_snapshot_bytes: u64,
}

impl Default for TeamTemplates {
    fn default() -> Self {
        Self {
            max: 64,
            allow_root: false,
            max_timeout_s: 86_400,
            max_pool: 4,
            max_limits: Limits {
                memory_bytes: 4 * GIB,
                cpus: 4.0,
                pids: 1024,
                disk_bytes: 16 * GIB,
                open_files: 32_768,
                processes_started: 4_000_000,
            },
            max_snapshot_bytes: 4 * GIB,
        }
    }
}

impl Default for SessionsConfig {
    fn default() -> Self {
        Self {
            max: 64,
            max_of_team: 64,
            queue: 128,
            queue_timeout: Duration::from_secs(10),
            reserve_bytes: 512 << 20,
            concurrent_launches: 4,
            pool_starts_per_s: 8,
            link_timeout: Duration::from_secs(30),
            reattach_timeout: Duration::from_secs(20),
            max_paused: Duration::from_secs(7 * 24 * 3600),
            busy_cpu_percent: 0,
            default_output_bytes: 256 << 10,
            max_output_bytes: 1 << 20,
            run_timeout_s: 60,
            max_run_timeout_s: 3600,
            on_shutdown: OnShutdown::Keep,
            team_templates: TeamTemplates::default(),
            egress: EgressConfig::default(),
        }
    }
}

/// Volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumesConfig {
    /// The directory of their files; podman's user passes through it.
    pub dir: PathBuf,
    /// Most volumes of one team.
    pub max_per_team: u32,
    /// Largest volume, in bytes.
    pub max_size_bytes: u64,
    /// Most that one team's volumes may be together, in bytes.
    pub max_bytes_per_team: u64,
}

impl Default for VolumesConfig {
    fn default() -> Self {
        Self {
            dir: "/var/lib/casemate-volumes".into(),
            max_per_team: 64,
            max_size_bytes: 64 * GIB,
            max_bytes_per_team: 256 * GIB,
        }
    }
}

/// What is recorded of a command line, beside its program's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArgvRecord {
    /// Nothing.
    Name,
    /// A digest of all of it.
    #[default]
    Digest,
    /// All of it.
    Clear,
}

impl ArgvRecord {
    /// The word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Digest => "digest",
            Self::Clear => "clear",
        }
    }
}

/// The record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    /// Kinds of events, or what their names begin with up to the dot, whose record must survive a loss of power before
    /// anything happens. The others survive the end of the process.
    pub power: Vec<String>,
    /// Longest time until what others have recorded survives a loss of power too.
    pub flush_every: Duration,
    /// What is recorded of command lines.
    pub argv: ArgvRecord,
    /// Records after which a checkpoint is signed.
    pub checkpoint_records: i64,
    /// Longest time until a record is covered by a signed checkpoint.
    pub checkpoint_every: Duration,
    /// Whether the record is copied into the journal, or the log.
    pub mirror: bool,
    /// How much of it stays in the database.
    pub retention: RetentionConfig,
}

/// How much of the record stays in the database; what is beyond goes to files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionConfig {
    /// Older records go; `None`: none goes because it is old.
    pub keep: Option<Duration>,
    /// When more of the database's file is in use, the oldest go; `None`: however large it is.
    pub keep_bytes: Option<u64>,
    /// The directory of the files.
    pub archive_dir: PathBuf,
    /// Records of one file, when a checkpoint falls so.
    pub segment_records: i64,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            keep: Some(Duration::from_secs(90 * 24 * 3600)),
            keep_bytes: Some(4 * GIB),
            archive_dir: "/var/lib/casemate/archive".into(),
            segment_records: 100_000,
        }
    }
}

impl Default for AuditConfig {
    fn default() -> Self {
        let power = [
            "admin",
            "backup",
            "credential",
            "image",
            "key",
            "policy",
            "state",
            "template",
            "vault",
        ];
        Self {
            power: power.map(str::to_owned).to_vec(),
            flush_every: Duration::from_millis(200),
            argv: ArgvRecord::default(),
            checkpoint_records: 10_000,
            checkpoint_every: Duration::from_secs(300),
            mirror: true,
            retention: RetentionConfig::default(),
        }
    }
}

impl AuditConfig {
    /// Whether an event of this kind must survive a loss of power before it may happen.
    #[must_use]
    pub fn is_power(&self, kind: &str) -> bool {
        let family = kind.split_once('.').map_or(kind, |(family, _)| family);
        self.power
            .iter()
            .any(|named| named == kind || named == family)
    }
}

/// The daemon's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// What is logged, as comma-separated directives: `info`, or `info,casemate::session=debug`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
        }
    }
}
