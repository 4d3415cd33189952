//! Whether this machine can run sandboxes: what podman says of itself, judged. Each refusal says
//! what was found and what to do.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use podman_api::models::{IdMap, Info};

use super::spec::Enforced;
use super::{RuntimeConfig, RuntimeError, RuntimeFacts};

/// The oldest runsc that runs ordinary images, by its date: 20221219 breaks `ls` and `stat`.
///
/// Debian sid's rebuild of 20240729 (`-7+b1`) panics and prints the same version, so it cannot be
/// told apart here; `casemate doctor` runs a sandbox.
const OLDEST_RUNSC: u32 = 20_240_729;
/// Sub-uids that an ordinary image needs: ids up to `nobody`.
const SUB_UIDS: i64 = 65_535;

/// Which limits podman can enforce here: those of cgroup v2 controllers that are delegated to it.
pub(super) fn enforced(info: &Info) -> Enforced {
    let Some(host) = &info.host else {
        return Enforced::default();
    };
    let v2 = host.cgroup_version.as_deref() == Some("v2");
    let controllers = host.cgroup_controllers.as_deref().unwrap_or_default();
    let has = |name: &str| v2 && controllers.iter().any(|controller| controller == name);
    Enforced {
        memory: has("memory"),
        cpu: has("cpu"),
        pids: has("pids"),
    }
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

    let unenforced_limits = enforced(info).missing();
    if config.require_limits && !unenforced_limits.is_empty() {
        let controllers = unenforced_limits.join(", ");
        return unfit(
            format!("podman cannot enforce limits of: {controllers}"),
            "boot with cgroup v2 and delegate these controllers to podman's unit (Delegate=yes)",
        );
    }
    Ok(RuntimeFacts {
        podman_version: info
            .version
            .as_ref()
            .and_then(|v| v.version.clone())
            .unwrap_or_default(),
        runtime_path: path.to_owned(),
        runtime_version: version.to_owned(),
        unenforced_limits,
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
