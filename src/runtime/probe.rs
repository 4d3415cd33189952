//! Whether this machine can run sandboxes: what podman says of itself, judged. Each refusal says
//! what was found and what to do.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use podman_api::models::{IdMap, Info};

use super::groups::Groups;
use super::volumes;
use super::{RuntimeConfig, RuntimeError, RuntimeFacts};

/// The oldest runsc that runs ordinary images, by its date: 20221219 breaks `ls` and `stat`.
///
/// Debian sid's rebuild of 20240729 (`-7+b1`) panics and prints the same version, so it cannot be
/// told apart here; `casemate doctor` runs a sandbox.
const OLDEST_RUNSC: u32 = 20_240_729;
/// Longest run root with which podman can still clean up after a container: it passes the path on its
/// own command line and refuses a longer one there, but not in its configuration. Then an ended
/// container is never unmounted, and waiting for its end takes 20 s more.
const RUN_ROOT_BYTES: usize = 50;
/// Sub-uids that an ordinary image needs: ids up to `nobody`.
const SUB_UIDS: i64 = 65_535;

/// Where sandboxes have control groups of their own here, by the word of the OCI runtime.
pub(super) fn groups(info: &Info) -> Groups {
    Groups::read(runtime_version(info))
}

/// All that the OCI runtime says when it is asked for its version.
pub(super) fn runtime_version(info: &Info) -> &str {
    let host = info.host.as_ref();
    let runtime = host.and_then(|h| h.oci_runtime.as_ref());
    runtime
        .and_then(|r| r.version.as_deref())
        .unwrap_or_default()
}

/// Judges podman's account of itself.
pub(super) fn judge(info: &Info, config: &RuntimeConfig) -> Result<RuntimeFacts, RuntimeError> {
    let host = info.host.as_ref();
    let rootless = host
        .and_then(|h| h.security.as_ref())
        .and_then(|s| s.rootless);
    let uids = uid_map(info);
    if rootless != Some(true) || podman_uid(uids) == Some(0) {
        return unfit(
            "podman's service runs as root",
            "run it as the user casemate-sandbox (casemate-podman.service)",
        );
    }
    let sub_uids: i64 = uids
        .iter()
        .filter(|m| m.container_id != Some(0))
        .filter_map(|m| m.size)
        .sum();
    if podman_uid(uids).is_none() || sub_uids < SUB_UIDS {
        return unfit(
            format!("podman's user has {sub_uids} sub-uids"),
            "give it 65536: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 casemate-sandbox, \
             then podman system migrate",
        );
    }

    let runtime = host.and_then(|h| h.oci_runtime.as_ref());
    let path = runtime.and_then(|r| r.path.as_deref()).unwrap_or_default();
    if Path::new(path) != config.runtime {
        let wanted = config.runtime.display();
        return unfit(
            format!("podman's OCI runtime is {path:?}"),
            format!("start its service with podman --runtime {wanted} system service"),
        );
    }
    let version = runtime
        .and_then(|r| r.version.as_deref())
        .unwrap_or_default();
    let version = version.lines().next().unwrap_or_default();
    if !version.starts_with("runsc ") || runsc_date(version).is_none_or(|date| date < OLDEST_RUNSC)
    {
        return unfit(
            format!("the OCI runtime says that it is {version:?}"),
            format!(
                "install gVisor's runsc of {OLDEST_RUNSC} or later (Debian 12: from bookworm-backports)"
            ),
        );
    }

    let run_root = info
        .store
        .as_ref()
        .and_then(|s| s.run_root.as_deref())
        .unwrap_or_default();
    if run_root.len() > RUN_ROOT_BYTES {
        return unfit(
            format!("podman's run root {run_root} is longer than {RUN_ROOT_BYTES} characters"),
            "give its service a shorter XDG_RUNTIME_DIR, or a shorter runroot in storage.conf",
        );
    }

    let unenforced_limits = groups(info).enforced().missing();
    Ok(RuntimeFacts {
        podman_version: info
            .version
            .as_ref()
            .and_then(|v| v.version.clone())
            .unwrap_or_default(),
        conmon_version: host
            .and_then(|h| h.conmon.as_ref()?.version.clone())
            .unwrap_or_default(),
        runtime_path: path.to_owned(),
        runtime_version: version.to_owned(),
        unenforced_limits,
        volumes_problem: volumes::problem(
            runtime
                .and_then(|r| r.version.as_deref())
                .unwrap_or_default(),
        ),
    })
}

/// Judges the guest's binary on the host: it is PID 1 of every sandbox, so nobody but its owner may
/// write it, and its owner is not whom a sandbox that broke out would be.
pub(super) async fn judge_guest(info: &Info, guest: &Path) -> Result<(), RuntimeError> {
    let path = guest.display();
    let mend = "install it again (package casemate)";
    let meta = match tokio::fs::metadata(guest).await {
        Ok(meta) => meta,
        Err(error) => return unfit(format!("the guest {path} cannot be read ({error})"), mend),
    };
    if !meta.is_file() || meta.mode() & 0o111 != 0o111 {
        return unfit(
            format!("the guest {path} is not a file that everybody may run"),
            format!("chmod 0755 {path}"),
        );
    }
    if meta.mode() & 0o022 != 0 {
        return unfit(
            format!("the guest {path} may be written by others"),
            format!("chmod go-w {path}"),
        );
    }
    if podman_uid(uid_map(info)) == Some(i64::from(meta.uid())) {
        return unfit(
            format!("the guest {path} belongs to podman's user"),
            format!("chown root {path}"),
        );
    }
    Ok(())
}

fn uid_map(info: &Info) -> &[IdMap] {
    let mappings = info.host.as_ref().and_then(|h| h.id_mappings.as_ref());
    mappings
        .and_then(|m| m.uidmap.as_deref())
        .unwrap_or_default()
}

/// The host's uid that is root in podman's user namespace.
fn podman_uid(uids: &[IdMap]) -> Option<i64> {
    uids.iter()
        .find(|m| m.container_id == Some(0))
        .and_then(|m| m.host_id)
}

/// The release date in runsc's version: `0.0~20240729.0` (Debian) or `release-20240729.0`.
fn runsc_date(version: &str) -> Option<u32> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| digits.len() == 8)
        .find_map(|digits| digits.parse().ok())
}

fn unfit<T>(what: impl Into<String>, mend: impl Into<String>) -> Result<T, RuntimeError> {
    Err(RuntimeError::Unfit {
        what: what.into(),
        mend: mend.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    /// What podman 4.3.1 said of a machine with cgroup v2, as far as it is read.
    fn good() -> Value {
        json!({
            "host": {
                "cgroupVersion": "v2",
                "cgroupControllers": ["cpuset", "cpu", "io", "memory", "pids"],
                "idMappings": {"uidmap": [
                    {"container_id": 0, "host_id": 995, "size": 1},
                    {"container_id": 1, "host_id": 100_000, "size": 65536},
                ]},
                "conmon": {"version": "conmon version 2.1.6, commit: unknown"},
                "ociRuntime": {
                    "path": "/usr/libexec/casemate/casemate-runsc",
                    "version": "runsc version 0.0~20240729.0\nspec: 1.0.2-dev",
                },
                "security": {"rootless": true},
            },
            "store": {"runRoot": "/run/casemate-podman/containers"},
            "version": {"Version": "4.3.1"},
        })
    }

    fn config() -> RuntimeConfig {
        RuntimeConfig {
            socket: "/run/casemate-podman/podman.sock".into(),
            runtime: "/usr/libexec/casemate/casemate-runsc".into(),
            guest: "/usr/libexec/casemate/casemate-guest".into(),
            call_deadline: Duration::from_secs(1),
            sandbox_deadline: Duration::from_secs(1),
            load_deadline: Duration::from_secs(1),
        }
    }

    fn judged(info: Value) -> Result<RuntimeFacts, RuntimeError> {
        judge(&serde_json::from_value(info).unwrap(), &config())
    }

    #[test]
    fn a_good_machine_is_fit() {
        let facts = judged(good()).unwrap();
        assert_eq!(facts.podman_version, "4.3.1");
        assert_eq!(
            facts.conmon_version,
            "conmon version 2.1.6, commit: unknown"
        );
        assert_eq!(facts.runtime_version, "runsc version 0.0~20240729.0");
        assert_eq!(facts.unenforced_limits, ["memory", "cpu", "pids"]);
    }

    #[test]
    fn each_fault_is_a_refusal_that_names_it() {
        let faults: [(&str, Value, &str); 12] = [
            ("/host/security/rootless", json!(false), "runs as root"),
            ("/host/security/rootless", Value::Null, "runs as root"),
            (
                "/host/idMappings/uidmap/0/host_id",
                json!(0),
                "runs as root",
            ),
            ("/host/idMappings/uidmap/1/size", json!(1000), "sub-uids"),
            ("/host/idMappings/uidmap", json!([]), "sub-uids"),
            (
                "/host/ociRuntime/path",
                json!("/usr/bin/crun"),
                "/usr/bin/crun",
            ),
            ("/host/ociRuntime/path", Value::Null, "OCI runtime"),
            (
                "/host/ociRuntime/version",
                json!("crun version 1.8.1"),
                "crun version",
            ),
            (
                "/host/ociRuntime/version",
                json!("runsc version 0.0~20221219.0"),
                "20221219",
            ),
            (
                "/host/ociRuntime/version",
                json!("runsc version VERSION_MISSING"),
                "MISSING",
            ),
            (
                "/host/ociRuntime/version",
                Value::Null,
                "the OCI runtime says",
            ),
            (
                "/store/runRoot",
                json!("/run/".repeat(11)),
                "longer than 50",
            ),
        ];
        for (field, value, says) in faults {
            let mut info = good();
            *info.pointer_mut(field).unwrap() = value;
            match judged(info) {
                Err(RuntimeError::Unfit { what, mend }) => {
                    assert!(what.contains(says), "{field}: {what}");
                    assert!(!mend.is_empty());
                }
                other => panic!("{field}: {other:?}"),
            }
        }
        assert!(judged(json!({})).is_err());
    }

    /// What the kernel says of groups is tried where there are some: `tests/runtime`.
    #[test]
    fn podmans_word_for_controllers_is_no_limit() {
        for said in ["", "\ncgroup: /tmp memory cpu pids"] {
            let mut info = good();
            let version = format!("runsc version 0.0~20240729.0{said}");
            info["host"]["ociRuntime"]["version"] = json!(version);
            let facts = judged(info).unwrap();
            assert_eq!(facts.unenforced_limits, ["memory", "cpu", "pids"]);
        }
    }

    #[test]
    fn versions_of_both_packagers_are_read() {
        assert_eq!(runsc_date("runsc version 0.0~20240729.0"), Some(20_240_729));
        assert_eq!(
            runsc_date("runsc version release-20251103.0"),
            Some(20_251_103)
        );
        assert_eq!(runsc_date("runsc version 1.2.3"), None);
    }

    #[tokio::test]
    async fn a_guest_that_podmans_user_owns_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut info = good();
        let judge = async |info: &Value| {
            judge_guest(&serde_json::from_value(info.clone()).unwrap(), file.path()).await
        };
        judge(&info).await.unwrap();
        info["host"]["idMappings"]["uidmap"][0]["host_id"] =
            json!(file.path().metadata().unwrap().uid());
        assert!(matches!(
            judge(&info).await,
            Err(RuntimeError::Unfit { .. })
        ));
    }
}
