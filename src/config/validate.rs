//! Every key of the configuration: its name, default and bounds, one line each.
//!
//! A new key is a line here and its entry in `config/casemate.yaml`, which a test compares.

use std::collections::BTreeMap;
use std::time::Duration;

use super::section::Section;
use super::{Config, level};
use crate::model::image::ImageDigest;
use crate::model::name::Name;
use crate::model::sandbox::Limits;
use crate::model::session::MAX_TIMEOUT_S;
use crate::model::settings::{
    AdminConfig, HttpConfig, LogConfig, Mode, OnShutdown, SessionsConfig,
};
use crate::model::template::Template;
use crate::runtime::RuntimeConfig;

/// The version of the configuration's shape that this program reads.
pub(super) const VERSION: u32 = 1;

/// Longest path of a Unix socket: `sun_path` less its NUL (unix(7)).
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Longest path beneath `runtime_dir`: `/link/ses_` + 26 characters + `/egress.sock`, rounded up.
const MAX_BENEATH_RUNTIME_DIR_BYTES: usize = 52;
/// Longest other path; the kernel's own limit is 4,095 (`PATH_MAX`).
const MAX_PATH_BYTES: usize = 1024;
/// Longest value in an environment.
const MAX_ENV_VALUE_BYTES: usize = 32 << 10;
/// Most entries in a template's environment.
const MAX_ENV_ENTRIES: usize = 256;
/// Most templates.
const MAX_TEMPLATES: usize = 1024;

const SECOND: Duration = Duration::from_secs(1);

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
    let (runtime, sandbox_group) = podman(&root.section("podman"), mode);
    Config {
        mode,
        state_dir,
        runtime_dir,
        http: http(&root.section("http"), mode),
        admin: admin(&root.section("admin")),
        runtime,
        sandbox_group,
        sessions: sessions(&root.section("sessions")),
        templates: templates(root),
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

fn http(keys: &Section<'_>, mode: Mode) -> HttpConfig {
    let default = HttpConfig::default();
    let http = HttpConfig {
        listen: keys.address("listen", default.listen),
        max_body_bytes: keys.integer("max_body_bytes", default.max_body_bytes, 1024..=256 << 20),
        max_connections: keys.integer("max_connections", default.max_connections, 1..=65_536),
        header_timeout: keys.seconds("header_timeout_s", default.header_timeout, 1..=300),
    };
    let is_exposed = !http.listen.ip().is_loopback();
    if keys.is_complete() && mode == Mode::Production && is_exposed {
        keys.problem(
            "listen",
            format!(
                "{} would carry keys over the network in the clear: there is no TLS yet; \
                 listen on 127.0.0.1 or [::1] and put a TLS proxy in front",
                http.listen
            ),
        );
    }
    http
}

fn admin(keys: &Section<'_>) -> AdminConfig {
    AdminConfig {
        group: group(keys, "group", &AdminConfig::default().group),
    }
}

fn podman(keys: &Section<'_>, mode: Mode) -> (RuntimeConfig, String) {
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
        require_limits: mode == Mode::Production,
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
        link_timeout: keys.seconds("link_timeout_s", default.link_timeout, 1..=600),
        reattach_timeout: keys.seconds("reattach_timeout_s", default.reattach_timeout, 1..=600),
        max_paused: keys.seconds("max_paused_s", default.max_paused, 60..=MAX_TIMEOUT_S),
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
    };
    let outputs = (sessions.default_output_bytes, sessions.max_output_bytes);
    at_most(keys, "default_output_bytes", "max_output_bytes", outputs);
    let timeouts = (sessions.run_timeout_s, sessions.max_run_timeout_s);
    at_most(keys, "run_timeout_s", "max_run_timeout_s", timeouts);
    sessions
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

fn templates(root: &Section<'_>) -> BTreeMap<Name, Template> {
    let mut templates = BTreeMap::new();
    root.each("templates", |name, keys| {
        let name = name
            .parse::<Name>()
            .map_err(|why| keys.problem_here(format!("does not name a template: {why}")));
        if let Some(template) = template(name.ok(), keys) {
            templates.insert(template.name.clone(), template);
        }
    });
    if templates.len() > MAX_TEMPLATES {
        root.problem("templates", format!("are more than {MAX_TEMPLATES}"));
    }
    templates
}

/// `None` when a problem was noted.
fn template(name: Option<Name>, keys: &Section<'_>) -> Option<Template> {
    let image = keys.required(
        "image",
        "is missing; casemate image list shows the digests that podman has",
        |text| {
            text.parse::<ImageDigest>()
                .map_err(|why| format!("does not pin an image: {why}"))
        },
    );
    let limits = limits(&keys.section("limits"), Limits::default());
    let most = keys.section("max_limits");
    let max_limits = self::limits(&most, limits);
    for (key, asked, allowed) in [
        ("memory_bytes", limits.memory_bytes, max_limits.memory_bytes),
        ("pids", limits.pids.into(), max_limits.pids.into()),
        ("disk_bytes", limits.disk_bytes, max_limits.disk_bytes),
        (
            "open_files",
            limits.open_files.into(),
            max_limits.open_files.into(),
        ),
        (
            "processes_started",
            limits.processes_started,
            max_limits.processes_started,
        ),
    ] {
        if keys.is_complete() && asked > allowed {
            most.problem(key, format!("{allowed} is less than limits.{key}, {asked}"));
        }
    }
    if keys.is_complete() && limits.cpus > max_limits.cpus {
        let (asked, allowed) = (limits.cpus, max_limits.cpus);
        most.problem(
            "cpus",
            format!("{allowed} is less than limits.cpus, {asked}"),
        );
    }
    let allow_root = keys.flag("allow_root", false);
    let env = keys.texts("env", env_entry);
    if env.len() > MAX_ENV_ENTRIES {
        keys.problem("env", format!("has more than {MAX_ENV_ENTRIES} entries"));
    }
    let show = |path: &Option<String>| path.clone().unwrap_or_default();
    let workdir = keys.text("workdir", None, |text| inside_path(text).map(Some), show);
    let timeout_s = keys.integer("timeout_s", 3600, 1..=MAX_TIMEOUT_S);
    let max_timeout_s = keys.integer("max_timeout_s", 86_400, 1..=MAX_TIMEOUT_S);
    at_most(
        keys,
        "timeout_s",
        "max_timeout_s",
        (timeout_s, max_timeout_s),
    );
    Some(Template {
        name: name?,
        image: image?,
        limits,
        max_limits,
        allow_root,
        env,
        workdir,
        timeout_s,
        max_timeout_s,
    })
}

fn limits(keys: &Section<'_>, default: Limits) -> Limits {
    // The bounds are the model's own: each limit is checked by itself among possible others.
    let base = Limits::default();
    let check = |limits: Limits| {
        limits
            .validate()
            .map_err(|why| format!("must be {}", why.bounds))
    };
    Limits {
        memory_bytes: keys.whole("memory_bytes", default.memory_bytes, |memory_bytes| {
            check(Limits {
                memory_bytes,
                ..base
            })
        }),
        cpus: keys.number("cpus", default.cpus, |cpus| check(Limits { cpus, ..base })),
        pids: keys.whole("pids", default.pids, |pids| check(Limits { pids, ..base })),
        disk_bytes: keys.whole("disk_bytes", default.disk_bytes, |disk_bytes| {
            check(Limits { disk_bytes, ..base })
        }),
        open_files: keys.whole("open_files", default.open_files, |open_files| {
            check(Limits { open_files, ..base })
        }),
        processes_started: keys.whole(
            "processes_started",
            default.processes_started,
            |processes_started| {
                check(Limits {
                    processes_started,
                    ..base
                })
            },
        ),
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

fn env_entry(name: &str, value: &str) -> Result<(), String> {
    let mut bytes = name.bytes();
    let begins = bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !begins || name.len() > 128 || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err("a variable's name is letters, digits and _, and no digit first".to_owned());
    }
    if value.contains('\0') {
        return Err("its value holds a NUL, which no environment can".to_owned());
    }
    if value.len() > MAX_ENV_VALUE_BYTES {
        return Err(format!(
            "its value is longer than {MAX_ENV_VALUE_BYTES} bytes"
        ));
    }
    Ok(())
}

/// A directory in a sandbox: the guest resolves it, so only its form is looked at.
fn inside_path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.len() <= MAX_PATH_BYTES && !text.contains('\0') {
        Ok(text.to_owned())
    } else {
        Err("is not an absolute path in the sandbox".to_owned())
    }
}
