//! Whether podman made what was asked for. Pure: no I/O, no clock.
//!
//! podman drops a field that it does not know, ignores `oci_runtime`, and lets an image's own
//! configuration speak; so each field that matters is read back from an inspect of what was made.
//! A field that is absent there is a field that differs.

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde_json::{Value, json};

use super::RuntimeError;
use super::libpod::bounded;
use super::spec::{
    Bind, GUEST_PATH, Ground, LOG_SIZE, OUR_ANNOTATIONS, annotations, binds, capabilities,
    container_name, guest_arguments, labels, rlimits, tmpfs,
};
use crate::model::sandbox::SandboxSpec;

/// Whether podman made what was asked: `inspect` is its answer for the container.
///
/// # Errors
/// [`RuntimeError::NotAsAsked`] with the first field that differs.
pub fn verify(
    inspect: &Value,
    spec: &SandboxSpec,
    ground: &Ground<'_>,
) -> Result<(), RuntimeError> {
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
    for field in [
        "Pod",
        "Dependencies",
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
        same(field, &found, &capabilities(spec).iter().copied().collect())?;
    }
    verify_arguments(inspect, spec)?;
    verify_ipc(inspect)?;
    verify_health_check(inspect)?;
    verify_labels(inspect, spec)?;
    verify_annotations(inspect, spec)?;
    verify_binds(inspect, &binds(spec, ground)?)?;
    verify_tmpfs(inspect, &tmpfs(spec))?;
    verify_rlimits(inspect, &rlimits(spec))
}

/// What the guest is told: as it was asked for, and as the runtime gets it.
fn verify_arguments(inspect: &Value, spec: &SandboxSpec) -> Result<(), RuntimeError> {
    for field in ["Config.Cmd", "Args"] {
        let words = strings(field, at(inspect, field)?)?;
        let wanted = guest_arguments(spec);
        same(field, &words, &wanted.iter().map(String::as_str).collect())?;
    }
    Ok(())
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
    let ours = annotations(spec);
    for (annotation, wanted) in &ours {
        let found = found.get(annotation).unwrap_or(&Value::Null);
        same(field, found, &json!(wanted))?;
    }
    let keys = found
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::keys);
    for key in keys {
        if key.starts_with("dev.gvisor.") {
            return Err(differs(field, key, "without flags for gVisor"));
        }
        // The wrapper would take an image's word for ours, and begin a sandbox as another's checkpoint.
        if key.starts_with(OUR_ANNOTATIONS) && ours.iter().all(|(name, _)| name != key) {
            return Err(differs(field, key, "without orders that are not ours"));
        }
    }
    Ok(())
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
            && mount.get("RW") == Some(&json!(bind.is_open))
            && mount.get("Propagation") == Some(&json!(bind.propagation()))
            && options == bind.options.iter().copied().collect();
        if !as_asked {
            return Err(differs(
                field,
                mount,
                &format!(
                    "{} at {}, {}",
                    bind.source,
                    bind.destination,
                    if bind.is_open {
                        "open to later mounts"
                    } else {
                        "read-only"
                    }
                ),
            ));
        }
    }
    if mounts.len() != wanted.len() {
        return Err(differs(
            field,
            found,
            "the guest, the link, the room for volumes and nothing else of the host's",
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

#[cfg(test)]
mod tests {
    use super::super::spec::tests::{ground, root_spec, spec};
    use super::*;

    /// What podman 4.3.1 made of `create-request.json`, with paths, ids and limits as on a machine
    /// with cgroup v2.
    const INSPECT: &str = include_str!("../../tests/golden/inspect.json");

    fn inspect() -> Value {
        serde_json::from_str(INSPECT).unwrap()
    }

    #[test]
    fn what_podman_made_of_it_is_as_asked() {
        verify(&inspect(), &spec(), &ground()).unwrap();
    }

    /// Our annotations, and one that is another.
    fn annotated(name: &str, value: &str) -> Value {
        let mut all: serde_json::Map<String, Value> = annotations(&spec())
            .into_iter()
            .map(|(name, value)| (name.to_owned(), json!(value)))
            .collect();
        all.insert(name.to_owned(), json!(value));
        all.into()
    }

    /// Each field that matters, altered alone.
    #[test]
    #[expect(clippy::too_many_lines, reason = "its cases are its lines")]
    fn each_difference_is_found_and_named() {
        let bind = json!({"Type": "bind", "Source": "/etc", "Destination": "/host", "Options": [], "RW": false, "Propagation": "rprivate"});
        let alterations: Vec<(&str, Value)> = vec![
            ("OCIRuntime", json!("/usr/bin/crun")),
            ("OCIRuntime", json!("/usr/bin/runsc")),
            ("Image", json!("0".repeat(64))),
            ("Name", json!("another")),
            ("Path", json!("/bin/sh")),
            ("Pod", json!("a-pod")),
            ("Dependencies", json!(["another"])),
            (
                "EffectiveCaps",
                json!([
                    "CAP_DAC_READ_SEARCH",
                    "CAP_KILL",
                    "CAP_SETGID",
                    "CAP_SETPCAP",
                    "CAP_SETUID",
                    "CAP_SYS_ADMIN"
                ]),
            ),
            ("EffectiveCaps", json!(["CAP_KILL"])),
            ("EffectiveCaps", json!(null)),
            (
                "BoundingCaps",
                json!([
                    "CAP_DAC_READ_SEARCH",
                    "CAP_KILL",
                    "CAP_NET_RAW",
                    "CAP_SETGID",
                    "CAP_SETPCAP",
                    "CAP_SETUID"
                ]),
            ),
            ("Config.Entrypoint", json!("/bin/sh")),
            ("Config.Cmd", json!(["-c", "true"])),
            ("Config.User", json!("1000:1000")),
            ("Config.Hostname", json!("host")),
            ("Config.WorkingDir", json!("/home")),
            ("Config.Umask", json!("0000")),
            ("Config.Tty", json!(true)),
            ("Config.OpenStdin", json!(true)),
            ("Config.Volumes", json!({"/data": {}})),
            ("Config.Healthcheck", json!({"Test": ["CMD", "true"]})),
            ("Config.Labels", json!({})),
            ("Config.Labels", json!(null)),
            ("Config.Annotations", json!({})),
            (
                "Config.Annotations",
                annotated("io.casemate.file-limit-bytes", "1"),
            ),
            (
                "Config.Annotations",
                annotated("io.casemate.memory-max-bytes", "9"),
            ),
            (
                "Config.Annotations",
                annotated("io.casemate.cpu-quota-us", "9"),
            ),
            ("Config.Annotations", annotated("io.casemate.pids-max", "9")),
            (
                "Config.Annotations",
                annotated("dev.gvisor.flag.network", "host"),
            ),
            (
                "Config.Annotations",
                annotated("io.casemate.restore", "/run/casemate/link/a"),
            ),
            ("HostConfig.Privileged", json!(true)),
            ("HostConfig.NetworkMode", json!("host")),
            ("HostConfig.NetworkMode", json!("slirp4netns")),
            ("HostConfig.PidMode", json!("host")),
            ("HostConfig.UTSMode", json!("host")),
            ("HostConfig.IpcMode", json!("host")),
            ("HostConfig.IpcMode", json!("container:another")),
            ("HostConfig.CgroupMode", json!("host")),
            ("HostConfig.UsernsMode", json!("keep-id")),
            ("HostConfig.SecurityOpt", json!([])),
            (
                "HostConfig.SecurityOpt",
                json!(["no-new-privileges", "unmask=all"]),
            ),
            ("HostConfig.AutoRemove", json!(true)),
            ("HostConfig.PublishAllPorts", json!(true)),
            ("HostConfig.PortBindings", json!({"80/tcp": []})),
            ("HostConfig.RestartPolicy.Name", json!("always")),
            ("HostConfig.LogConfig.Type", json!("journald")),
            ("HostConfig.LogConfig.Size", json!("0B")),
            ("HostConfig.Devices", json!([{"PathOnHost": "/dev/kvm"}])),
            ("HostConfig.GroupAdd", json!(["0"])),
            ("HostConfig.ExtraHosts", json!(["a:127.0.0.1"])),
            ("HostConfig.VolumesFrom", json!(["another"])),
            ("HostConfig.Links", json!(["another"])),
            ("HostConfig.Ulimits", json!([])),
            ("HostConfig.Tmpfs", json!({})),
            ("HostConfig.Tmpfs", json!({"/tmp": "rw", "/dev/shm": "rw"})),
            ("Mounts", json!([])),
            ("Mounts", json!([bind])),
        ];
        for (field, value) in alterations {
            let mut altered = inspect();
            let place = field.split('.').fold(&mut altered, |at, key| &mut at[key]);
            assert_ne!(*place, value, "{field} is not altered");
            *place = value;
            assert_differs(&altered, field);
        }
    }

    /// Within lists, where one element differs or is one too many.
    #[test]
    fn each_difference_within_mounts_and_limits_is_found() {
        for (field, pointer, value) in [
            ("Mounts", "/Mounts/0/Source", json!("/bin/sh")),
            ("Mounts", "/Mounts/0/RW", json!(true)),
            ("Mounts", "/Mounts/1/Destination", json!("/elsewhere")),
            ("Mounts", "/Mounts/1/Type", json!("volume")),
            ("Mounts", "/Mounts/1/Propagation", json!("rshared")),
            ("Mounts", "/Mounts/1/Options", json!(["rbind"])),
            (
                "Mounts",
                "/Mounts/1/Options",
                json!(["nosuid", "nodev", "noexec", "rbind", "exec"]),
            ),
            ("Mounts", "/Mounts/2/Type", json!("volume")),
            (
                "Mounts",
                "/Mounts/2/Source",
                json!("/run/casemate/link/ses_1.volumes/mounts"),
            ),
            (
                "Mounts",
                "/Mounts/2/Source",
                json!("/run/casemate/link/ses_0.volumes"),
            ),
            ("Mounts", "/Mounts/2/Destination", json!("/volume")),
            ("Mounts", "/Mounts/2/RW", json!(false)),
            ("Mounts", "/Mounts/2/Propagation", json!("rshared")),
            ("Mounts", "/Mounts/2/Propagation", json!("rprivate")),
            ("Mounts", "/Mounts/2/Options", json!(["nosuid", "rbind"])),
            (
                "Mounts",
                "/Mounts/2/Options",
                json!(["nosuid", "nodev", "suid", "rbind"]),
            ),
            ("HostConfig.Ulimits", "/HostConfig/Ulimits/0/Hard", json!(1)),
            (
                "HostConfig.Ulimits",
                "/HostConfig/Ulimits/1/Name",
                json!("RLIMIT_AS"),
            ),
            (
                "HostConfig.Tmpfs",
                "/HostConfig/Tmpfs/~1tmp",
                json!("rw,nosuid,nodev,mode=1777,size=1"),
            ),
            (
                "HostConfig.Tmpfs",
                "/HostConfig/Tmpfs/~1dev~1shm",
                json!("rw,nosuid,nodev,mode=1777,size=268435456"),
            ),
        ] {
            let mut altered = inspect();
            *altered.pointer_mut(pointer).unwrap() = value;
            assert_differs(&altered, field);
        }
        let one_more = |pointer: &str, what: Value| {
            let mut altered = inspect();
            altered
                .pointer_mut(pointer)
                .unwrap()
                .as_array_mut()
                .unwrap()
                .push(what);
            altered
        };
        let bind = json!({"Type": "bind", "Source": "/etc", "Destination": "/host", "RW": false});
        assert_differs(&one_more("/Mounts", bind), "Mounts");
        let ulimit = json!({"Name": "RLIMIT_AS", "Soft": 1, "Hard": 1});
        assert_differs(
            &one_more("/HostConfig/Ulimits", ulimit),
            "HostConfig.Ulimits",
        );
    }

    #[test]
    fn a_room_for_volumes_that_is_another_s_is_found() {
        let mut altered = inspect();
        altered["Config"]["Annotations"] =
            annotated("io.casemate.volumes", "/run/casemate/link/ses_1.volumes");
        assert_differs(&altered, "Config.Annotations");
    }

    #[test]
    fn a_field_that_is_absent_differs() {
        for field in ["OCIRuntime", "EffectiveCaps", "Mounts", "Image"] {
            let mut altered = inspect();
            altered.as_object_mut().unwrap().remove(field).unwrap();
            assert_differs(&altered, field);
        }
        for field in [
            "HostConfig.NetworkMode",
            "HostConfig.Privileged",
            "HostConfig.Devices",
        ] {
            let mut altered = inspect();
            let key = field.strip_prefix("HostConfig.").unwrap();
            altered["HostConfig"]
                .as_object_mut()
                .unwrap()
                .remove(key)
                .unwrap();
            assert_differs(&altered, field);
        }
        for nothing in [json!(null), json!({}), json!([]), json!("x")] {
            assert_differs(&nothing, "OCIRuntime");
        }
    }

    /// What podman makes of the request for a sandbox in which programs may be root.
    fn root_inspect() -> Value {
        let mut inspect = inspect();
        let request = super::super::spec::CreateRequest::new(&root_spec(), &ground()).unwrap();
        let request = serde_json::to_value(request).unwrap();
        for caps in ["EffectiveCaps", "BoundingCaps"] {
            inspect[caps] = request["cap_add"].clone();
        }
        inspect["Config"]["Cmd"] = request["command"].clone();
        inspect["Args"] = request["command"].clone();
        inspect
    }

    #[test]
    fn neither_kind_of_sandbox_is_taken_for_the_other() {
        verify(&root_inspect(), &root_spec(), &ground()).unwrap();
        for (inspect, spec) in [(root_inspect(), spec()), (inspect(), root_spec())] {
            assert_differs_from(&inspect, &spec, "EffectiveCaps");
        }
        // One word or one capability alone is enough, in either direction.
        for field in ["EffectiveCaps", "BoundingCaps", "Config.Cmd", "Args"] {
            let of = |inspect: &Value| {
                let pointer = format!("/{}", field.replace('.', "/"));
                inspect.pointer(&pointer).unwrap().clone()
            };
            let put = |inspect: &mut Value, value: Value| {
                let place = field.split('.').fold(inspect, |at, key| &mut at[key]);
                *place = value;
            };
            let (mut plain, mut root) = (inspect(), root_inspect());
            let (of_plain, of_root) = (of(&plain), of(&root));
            put(&mut plain, of_root);
            assert_differs(&plain, field);
            put(&mut root, of_plain);
            assert_differs_from(&root, &root_spec(), field);
        }
        let mut more = root_inspect();
        let caps = more["EffectiveCaps"].as_array_mut().unwrap();
        caps.push(json!("CAP_SYS_PTRACE"));
        assert_differs_from(&more, &root_spec(), "EffectiveCaps");
    }

    fn assert_differs(inspect: &Value, wanted: &str) {
        assert_differs_from(inspect, &spec(), wanted);
    }

    fn assert_differs_from(inspect: &Value, spec: &SandboxSpec, wanted: &str) {
        match verify(inspect, spec, &ground()) {
            Err(RuntimeError::NotAsAsked { field, .. }) => assert_eq!(field, wanted),
            other => panic!("{wanted}: {other:?}"),
        }
    }
}
