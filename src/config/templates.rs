//! Every key of a template's file, one line each. The rules are the model's, and the same for templates from the API.
//!
//! A new key is a line here and its entry in `config/templates/base.yaml`, which a test compares.

use std::collections::BTreeMap;

use super::document::Value;
use super::egress;
use super::section::Section;
use super::validate::any_limits;
use crate::model::endpoint::Endpoints;
use crate::model::image::ImageDigest;
use crate::model::name::Name;
use crate::model::setup::{
    INTERVAL_MS, Probe, Program, READY_TIMEOUT_S, Readiness, Setup, StartCommand, WarmUp,
};
use crate::model::signal;
use crate::model::template::TemplateSpec;

/// The directory beside the main file, and what its files are called in problems.
pub(super) const DIRECTORY: &str = "templates";

/// One template. `None` when it has no image, which was noted.
pub(super) fn template(keys: &Section<'_>) -> Option<TemplateSpec> {
    let image = keys.required(
        "image",
        "is missing; casemate admin image list shows the digests that podman has",
        |text| {
            text.parse::<ImageDigest>()
                .map_err(|why| format!("does not pin an image: {why}"))
        },
    );
    // The rules are looked at even when there is no image, so that everything is said at once.
    let default = TemplateSpec::new(image.unwrap_or(ImageDigest::from_bytes([0; 32])));
    let limits = any_limits(&keys.section("limits"), default.limits);
    let most = keys.section("max_limits");
    let spec = TemplateSpec {
        limits,
        max_limits: any_limits(&most, limits),
        allow_root: keys.flag("allow_root", default.allow_root),
        env: keys.texts("env"),
        workdir: keys.optional("workdir"),
        timeout_s: keys.whole("timeout_s", default.timeout_s, |_| Ok(())),
        max_timeout_s: keys.whole("max_timeout_s", default.max_timeout_s, |_| Ok(())),
        setup: Setup {
            user: keys.optional("user"),
            warm_up: warm_up(keys),
            start: command(keys, "start", &keys.section("start")),
            ready: ready(keys),
            ports: keys.list("ports", port).unwrap_or_default(),
            endpoints: endpoints(&keys.section("endpoints")),
            egress_ca: keys.flag("egress_ca", false),
        },
        egress: egress::rules(keys, "egress"),
        pool: keys.whole("pool", default.pool, |_| Ok(())),
        teams: keys
            .list("teams", |value| {
                text(value)?.parse::<Name>().map_err(|why| why.to_string())
            })
            .map(|teams| teams.into_iter().collect()),
        ..default
    };
    for problem in spec.problems() {
        // What a limit is wrong for is told where it was written, and not again where it was taken over.
        let is_taken_over = match problem.field.as_slice() {
            [section, field] if section == "max_limits" => !most.is_set(field),
            _ => false,
        };
        if !is_taken_over {
            keys.problem_at(&problem.field, problem.problem);
        }
    }
    image.map(|_| spec)
}

fn endpoints(keys: &Section<'_>) -> Endpoints {
    let headers = keys.pairs("headers", |value| match value {
        Value::Map(map) => {
            let named = map.iter();
            let named = named.map(|(name, node)| Ok((name.clone(), text(&node.value)?)));
            named.collect::<Result<BTreeMap<_, _>, String>>()
        }
        _ => Err("expected headers: a name and a value each".to_owned()),
    });
    let mut by_port = BTreeMap::new();
    for (port, headers) in headers {
        match port.parse::<u16>() {
            Ok(port) => drop(by_port.insert(port, headers)),
            Err(_) => keys.problem("headers", format!("{port:?} is not a port")),
        }
    }
    Endpoints {
        any_port: keys.flag("any_port", false),
        public: keys.list("public", port).unwrap_or_default(),
        headers: by_port,
    }
}

fn warm_up(root: &Section<'_>) -> Option<WarmUp> {
    let keys = root.section("warm_up");
    let (run, ready) = (command(root, "warm_up", &keys), ready(&keys));
    let signal = keys.single("signal", |value| {
        let signal = signal::parse(&text(value)?);
        signal.ok_or_else(|| "is not a signal's name, such as USR1".to_owned())
    });
    Some(WarmUp {
        run: run?,
        ready,
        signal,
    })
}

/// What a section says of a program, if it says anything.
fn command(root: &Section<'_>, section: &str, keys: &Section<'_>) -> Option<StartCommand> {
    let (argv, command) = (keys.list("argv", text), keys.optional("command"));
    let (env, cwd, user) = (
        keys.texts("env"),
        keys.optional("cwd"),
        keys.optional("user"),
    );
    if !keys.is_written() {
        return None;
    }
    let program = match (argv, command) {
        (Some(argv), None) => Program::Argv(argv),
        (None, Some(command)) => Program::Command(command),
        (None, None) | (Some(_), Some(_)) => {
            let neither = !keys.is_set("argv") && !keys.is_set("command");
            let both = keys.is_set("argv") && keys.is_set("command");
            // One that was not understood was noted.
            if neither || both {
                root.problem(section, "needs either argv or command");
            }
            // Stands in for it, so that the rest is looked at.
            Program::Command("true".to_owned())
        }
    };
    Some(StartCommand {
        program,
        env,
        cwd,
        user,
    })
}

fn ready(root: &Section<'_>) -> Option<Readiness> {
    let keys = root.section("ready");
    let probes = [
        keys.single("port", port).map(Probe::Port),
        keys.optional("file").map(Probe::File),
        keys.optional("command").map(Probe::Command),
    ];
    let timeout_s = keys.whole("timeout_s", READY_TIMEOUT_S, |_| Ok(()));
    let interval_ms = keys.whole("interval_ms", INTERVAL_MS, |_| Ok(()));
    if !keys.is_written() {
        return None;
    }
    let written = ["port", "file", "command"].into_iter();
    if written.filter(|key| keys.is_set(key)).count() != 1 {
        root.problem("ready", "needs one of port, file and command");
    }
    let probe = probes.into_iter().flatten().next();
    let probe = probe.unwrap_or_else(|| Probe::Command("true".to_owned()));
    Some(Readiness {
        probe,
        timeout_s,
        interval_ms,
    })
}

fn port(value: &Value) -> Result<u16, String> {
    let bounds = "a port is 1 to 65535";
    match value {
        Value::Integer(number) => {
            u16::try_from(*number).map_err(|_| format!("{bounds}, not {number}"))
        }
        _ => Err(format!("{bounds}, written as a number")),
    }
}

/// The text is not repeated: it may be a secret.
fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::Text(text) => Ok(text.clone()),
        _ => Err("expected text in each entry; put numbers, true and false in quotes".to_owned()),
    }
}
