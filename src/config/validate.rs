//! Every key of the configuration: its name, default and bounds, one line each.
//!
//! A new key is a line here and its entry in `config/casemate.yaml`, which a test compares.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::document::Value;
use super::issuers::issuers;
use super::section::{Section, plain_path};
use super::{Config, door, level};
use crate::model::event::is_kind;
use crate::model::sandbox::Limits;
use crate::model::session::MAX_TIMEOUT_S;
use crate::model::settings::{
    AdminConfig, ArgvRecord, AuditConfig, BackupConfig, LogConfig, Mode, OnShutdown,
    RetentionConfig, SessionsConfig, StoreConfig, TeamTemplates, VolumesConfig,
};
use crate::model::template::MAX_POOL;
use crate::model::volume::{MAX_VOLUME_BYTES, MIN_VOLUME_BYTES};
use crate::runtime::RuntimeConfig;

/// The version of the configuration's shape that this program reads.
pub(super) const VERSION: u32 = 1;

/// Longest path of a Unix socket: `sun_path` less its NUL (unix(7)).
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Longest path beneath `runtime_dir`: `/link/ses_` + 26 characters + `/egress.sock`, rounded up.
const MAX_BENEATH_RUNTIME_DIR_BYTES: usize = 52;
/// Longest other path; the kernel's own limit is 4,095 (`PATH_MAX`).
pub(super) const MAX_PATH_BYTES: usize = 1024;

/// Where in the state's directory archives of the record are, unless the configuration says otherwise.
const ARCHIVES: &str = "archive";
/// The least of the database that may be kept.
const MIN_KEPT_BYTES: u64 = 16 << 20;
const DAY_S: u64 = 24 * 3600;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// Most seconds between two backups or checks: a year.
const MAX_EVERY_S: u64 = 366 * 24 * 3600;

/// The whole configuration. With problems noted, the value is of no use.
pub(super) fn config(root: &Section<'_>) -> Config {
    version(root);
    let mode = root.choice(
        "mode",
        Mode::default(),
        &[Mode::Production, Mode::Development],
        Mode::as_str,
    );
    let state_dir = root.path("state_dir", "/var/lib/casemate", MAX_PATH_BYTES);
    let runtime_dir = root.path(
        "runtime_dir",
        "/run/casemate",
        MAX_SOCKET_PATH_BYTES - MAX_BENEATH_RUNTIME_DIR_BYTES,
    );
    if root.is_complete()
        && (state_dir.starts_with(&runtime_dir) || runtime_dir.starts_with(&state_dir))
    {
        root.problem(
            "runtime_dir",
            "must not lie in state_dir, nor the other way round: one is emptied, the other kept",
        );
    }
    let beside = state_dir.clone();
    let egress = {
        let keys = root.section("egress");
        let egress = super::egress::egress(&keys);
        super::egress::check(&keys, &egress);
        egress
    };
    let (runtime, sandbox_group) = podman(&root.section("podman"));
    Config {
        mode,
        state_dir,
        runtime_dir,
        http: door::http(&root.section("http"), mode),
        endpoints: door::endpoints(&root.section("endpoints")),
        jwt: issuers(root),
        admin: admin(&root.section("admin")),
        runtime,
        sandbox_group,
        sessions: SessionsConfig {
            egress,
            ..sessions(&root.section("sessions"))
        },
        volumes: volumes(&root.section("volumes"), &beside),
        store: store(&root.section("store")),
        backup: backup(&root.section("backup"), &beside),
        // Files of their own, see `templates`.
        templates: BTreeMap::new(),
        policy: Vec::new(),
        audit: audit(&root.section("audit"), &beside),
        log: log(&root.section("log")),
        values: BTreeMap::new(),
    }
}

fn version(root: &Section<'_>) {
    let version = root.integer("version", VERSION, 0..=u32::MAX);
    if version != VERSION {
        root.problem(
            "version",
            format!("this casemated reads version {VERSION}, not {version}"),
        );
    }
    if root.is_complete() && !root.is_set("version") {
        root.problem("version", format!("is missing; write version: {VERSION}"));
    }
}

fn admin(keys: &Section<'_>) -> AdminConfig {
    AdminConfig {
        group: group(keys, "group", &AdminConfig::default().group),
    }
}

fn podman(keys: &Section<'_>) -> (RuntimeConfig, String) {
    let runtime = RuntimeConfig {
        socket: keys.path(
            "socket",
            "/run/casemate-podman/podman.sock",
            MAX_SOCKET_PATH_BYTES,
        ),
        runtime: keys.path(
            "runtime",
            "/usr/lib/casemate/casemate-runsc",
            MAX_PATH_BYTES,
        ),
        guest: keys.path("guest", "/usr/lib/casemate/casemate-guest", MAX_PATH_BYTES),
        call_deadline: keys.seconds("call_timeout_s", 10 * SECOND, 1..=300),
        sandbox_deadline: keys.seconds("sandbox_timeout_s", 60 * SECOND, 1..=3600),
        load_deadline: keys.seconds("load_timeout_s", 600 * SECOND, 1..=86_400),
    };
    (runtime, group(keys, "sandbox_group", "casemate-sandbox"))
}

fn sessions(keys: &Section<'_>) -> SessionsConfig {
    let default = SessionsConfig::default();
    let output = 1024..=256 << 20;
    let sessions = SessionsConfig {
        max: keys.integer("max", default.max, 1..=10_000),
        max_of_team: keys.integer("max_of_team", default.max_of_team, 1..=10_000),
        queue: keys.integer("queue", default.queue, 0..=10_000),
        queue_timeout: keys.seconds("queue_timeout_s", default.queue_timeout, 0..=600),
        reserve_bytes: keys.integer("reserve_bytes", default.reserve_bytes, 0..=1 << 50),
        concurrent_launches: keys.integer(
            "concurrent_launches",
            default.concurrent_launches,
            1..=64,
        ),
        pool_starts_per_s: keys.integer("pool_starts_per_s", default.pool_starts_per_s, 1..=64),
        link_timeout: keys.seconds("link_timeout_s", default.link_timeout, 1..=600),
        reattach_timeout: keys.seconds("reattach_timeout_s", default.reattach_timeout, 1..=600),
        max_paused: keys.seconds("max_paused_s", default.max_paused, 60..=MAX_TIMEOUT_S),
        busy_cpu_percent: keys.integer("busy_cpu_percent", default.busy_cpu_percent, 0..=100),
        default_output_bytes: keys.integer(
            "default_output_bytes",
            default.default_output_bytes,
            output.clone(),
        ),
        max_output_bytes: keys.integer("max_output_bytes", default.max_output_bytes, output),
        run_timeout_s: keys.integer("run_timeout_s", default.run_timeout_s, 1..=MAX_TIMEOUT_S),
        max_run_timeout_s: keys.integer(
            "max_run_timeout_s",
            default.max_run_timeout_s,
            1..=MAX_TIMEOUT_S,
        ),
        on_shutdown: keys.choice(
            "on_shutdown",
            default.on_shutdown,
            &[OnShutdown::Keep, OnShutdown::Stop],
            OnShutdown::as_str,
        ),
        team_templates: team_templates(&keys.section("team_templates")),
        // A section of its own.
        egress: default.egress,
    };
    let outputs = (sessions.default_output_bytes, sessions.max_output_bytes);
    at_most(keys, "default_output_bytes", "max_output_bytes", outputs);
    let timeouts = (sessions.run_timeout_s, sessions.max_run_timeout_s);
    at_most(keys, "run_timeout_s", "max_run_timeout_s", timeouts);
    sessions
}

/// Their files are beside the state by default, never in it: podman's user passes through their directory, and nobody but we
/// through that of the state.
fn volumes(keys: &Section<'_>, state_dir: &Path) -> VolumesConfig {
    let default = VolumesConfig::default();
    let mut beside = state_dir.as_os_str().to_owned();
    beside.push("-volumes");
    let volumes = VolumesConfig {
        dir: keys.path("dir", &beside.to_string_lossy(), MAX_PATH_BYTES),
        max_per_team: keys.integer("max_per_team", default.max_per_team, 0..=100_000),
        max_size_bytes: keys.integer(
            "max_size_bytes",
            default.max_size_bytes,
            MIN_VOLUME_BYTES..=MAX_VOLUME_BYTES,
        ),
        max_bytes_per_team: keys.integer(
            "max_bytes_per_team",
            default.max_bytes_per_team,
            0..=1 << 50,
        ),
    };
    let dir = volumes.dir.to_string_lossy();
    if keys.is_complete()
        && (volumes.dir.starts_with(state_dir) || dir.contains(char::is_whitespace))
    {
        keys.problem(
            "dir",
            "must not lie in state_dir, which is closed to podman's user, and have no blanks",
        );
    }
    volumes
}

/// Zero is never.
fn often(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

fn store(keys: &Section<'_>) -> StoreConfig {
    StoreConfig {
        check_every: often(keys.seconds("check_every_s", 6 * HOUR, 0..=MAX_EVERY_S)),
    }
}

/// Below the state's directory by default, where nobody else reads.
fn backup(keys: &Section<'_>, state_dir: &Path) -> BackupConfig {
    let beneath = state_dir.join(crate::store::BACKUPS);
    let at = |text: &str| match text {
        "" => Ok(None),
        text => time_of_day(text).map(Some),
    };
    let show = |at: &Option<u32>| {
        at.map(|at| format!("{:02}:{:02}", at / 60, at % 60))
            .unwrap_or_default()
    };
    // What is wrong here is not repeated: it may be the private key.
    let recipient = |value: &Value| match value {
        Value::Text(text) if text.is_empty() => Ok(String::new()),
        Value::Text(text) => crate::backup::check_recipient(text).map(|()| text.clone()),
        _ => Err("expected text".to_owned()),
    };
    let elsewhere = |text: &str| match text {
        "" => Ok(None),
        text => plain_path(text, MAX_PATH_BYTES).map(Some),
    };
    let show_path = |path: &Option<PathBuf>| {
        path.as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default()
    };
    let config = BackupConfig {
        directory: keys.path("directory", &beneath.to_string_lossy(), MAX_PATH_BYTES),
        elsewhere: keys.text("elsewhere", None, elsewhere, show_path),
        every: often(keys.seconds("every_s", 24 * HOUR, 0..=MAX_EVERY_S)),
        at: keys.text("at", None, at, show),
        keep: keys.integer("keep", 7, 1..=10_000),
        recipient: keys
            .single("recipient", recipient)
            .filter(|key| !key.is_empty()),
        images: keys.flag("images", false),
        max_images_bytes: keys.integer("max_images_bytes", 64 << 30, 1 << 20..=1 << 44),
    };
    if keys.is_complete() && config.at.is_some() && keys.is_set("every_s") {
        keys.problem("at", "is in place of every_s; keep one of them");
    }
    config
}

/// Minutes after midnight.
/// Minutes after midnight.
fn time_of_day(text: &str) -> Result<u32, String> {
    let read = || {
        let (hours, minutes) = text.split_once(':')?;
        let number = |text: &str, below: u32| {
            let number = text.parse::<u32>().ok().filter(|number| *number < below);
            number.filter(|_| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit()))
        };
        Some(number(hours, 24)? * 60 + number(minutes, 60)?)
    };
    read().ok_or_else(|| "is not a time of the day, UTC, as in 03:30".to_owned())
}

fn team_templates(keys: &Section<'_>) -> TeamTemplates {
    let default = TeamTemplates::default();
    let max_limits = limits(&keys.section("max_limits"), default.max_limits);
    let max_limits = max_limits.unwrap_or(default.max_limits);
    TeamTemplates {
        max: keys.integer("max", default.max, 0..=1024),
        allow_root: keys.flag("allow_root", default.allow_root),
        max_timeout_s: keys.integer("max_timeout_s", default.max_timeout_s, 1..=MAX_TIMEOUT_S),
        max_pool: keys.integer("max_pool", default.max_pool, 0..=MAX_POOL),
        max_limits,
        max_snapshot_bytes: keys.integer(
            "max_snapshot_bytes",
            default.max_snapshot_bytes,
            1 << 20..=1 << 40,
        ),
    }
}

/// What a sandbox may use, within what any can be given.
fn limits(keys: &Section<'_>, default: Limits) -> Option<Limits> {
    let limits = any_limits(keys, default);
    let bad = limits.out_of_bounds();
    for (field, bounds, found) in &bad {
        keys.problem(field, format!("must be {bounds}, not {found}"));
    }
    bad.is_empty().then_some(limits)
}

/// What a sandbox may use, whether it is possible or not.
pub(super) fn any_limits(keys: &Section<'_>, default: Limits) -> Limits {
    Limits {
        memory_bytes: keys.whole("memory_bytes", default.memory_bytes, |_| Ok(())),
        cpus: keys.number("cpus", default.cpus, |_| Ok(())),
        pids: keys.whole("pids", default.pids, |_| Ok(())),
        disk_bytes: keys.whole("disk_bytes", default.disk_bytes, |_| Ok(())),
        open_files: keys.whole("open_files", default.open_files, |_| Ok(())),
        processes_started: keys.whole("processes_started", default.processes_started, |_| Ok(())),
    }
}

fn audit(keys: &Section<'_>, state_dir: &Path) -> AuditConfig {
    let default = AuditConfig::default();
    let flush_ms = u64::try_from(default.flush_every.as_millis()).unwrap_or(u64::MAX);
    AuditConfig {
        power: keys.text("power", default.power, kinds, |kinds| kinds.join(",")),
        flush_every: Duration::from_millis(keys.integer("flush_ms", flush_ms, 1..=60_000)),
        argv: keys.choice(
            "argv",
            default.argv,
            &[ArgvRecord::Digest, ArgvRecord::Clear, ArgvRecord::Name],
            ArgvRecord::as_str,
        ),
        checkpoint_records: keys.integer(
            "checkpoint_records",
            default.checkpoint_records,
            1..=1_000_000,
        ),
        checkpoint_every: keys.seconds(
            "checkpoint_interval_s",
            default.checkpoint_every,
            1..=86_400,
        ),
        mirror: keys.flag("mirror", default.mirror),
        retention: retention(&keys.section("retention"), state_dir),
    }
}

/// Files of the record lie below the state's directory by default.
fn retention(keys: &Section<'_>, state_dir: &Path) -> RetentionConfig {
    let default = RetentionConfig::default();
    let days = default.keep.map_or(0, |keep| keep.as_secs() / DAY_S);
    let days = keys.integer("keep_days", days, 0..=36_500);
    let least = |bytes: u64| match bytes {
        0 | MIN_KEPT_BYTES.. => Ok(()),
        _ => Err(format!("must be 0, or {MIN_KEPT_BYTES} and more")),
    };
    let bytes = keys.whole("keep_bytes", default.keep_bytes.unwrap_or(0), least);
    let beneath = state_dir.join(ARCHIVES);
    RetentionConfig {
        keep: (days > 0).then(|| Duration::from_secs(days * DAY_S)),
        keep_bytes: (bytes > 0).then_some(bytes),
        archive_dir: keys.path("archive_dir", &beneath.to_string_lossy(), MAX_PATH_BYTES),
        segment_records: keys.integer(
            "segment_records",
            default.segment_records,
            1_000..=10_000_000,
        ),
    }
}

/// Kinds of events or their families, with commas between them.
fn kinds(text: &str) -> Result<Vec<String>, String> {
    let words = text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());
    words
        .map(|word| {
            if is_kind(word) {
                return Ok(word.to_owned());
            }
            Err(format!(
                "{word:?} is no kind of event and no beginning of one; docs/audit.md lists them"
            ))
        })
        .collect()
}

fn log(keys: &Section<'_>) -> LogConfig {
    let parse = |text: &str| match level::parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(why) => Err(why.to_string()),
    };
    LogConfig {
        level: keys.text("level", LogConfig::default().level, parse, Clone::clone),
    }
}

/// Notes when a default is above the most that may be asked for, at whichever was written.
fn at_most(keys: &Section<'_>, key: &str, max_key: &str, (value, max): (u64, u64)) {
    if !keys.is_complete() || value <= max {
        return;
    }
    if keys.is_set(max_key) {
        keys.problem(max_key, format!("{max} is less than {key}, {value}"));
    } else {
        keys.problem(key, format!("{value} is more than {max_key}, {max}"));
    }
}

/// A group's name, as systemd-sysusers and useradd(8) accept it.
fn group(keys: &Section<'_>, key: &'static str, default: &str) -> String {
    let parse = |text: &str| {
        let mut bytes = text.bytes();
        let begins = bytes
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if begins
            && text.len() <= 31
            && bytes.all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
        {
            Ok(text.to_owned())
        } else {
            Err("is not the name of a group".to_owned())
        }
    };
    keys.text(key, default.to_owned(), parse, Clone::clone)
}
