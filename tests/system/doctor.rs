//! Hardening checks, on a machine that passes them and on one that does not.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use casemate::admin::protocol::{Answer, DoctorView, Request};
use casemate::model::check::Verdict;
use serde_json::{Value, json};

use crate::other_runtimes::Wrapper;
use crate::support::{Daemon, bench, wait_until};

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

async fn doctor(daemon: &Daemon) -> DoctorView {
    match daemon.admin(Request::Doctor).await {
        Answer::Doctor(view) => view,
        other => panic!("{other:?}"),
    }
}

fn casemate(daemon: &Daemon, arguments: &[&str]) -> Output {
    Command::new(bench().bin.join("casemate"))
        .arg("--socket")
        .arg(daemon.run.join("admin.sock"))
        .args(arguments)
        .output()
        .unwrap()
}

#[tokio::test]
async fn this_machine_passes_in_production_mode_and_what_is_broken_later_is_seen() {
    let daemon = Daemon::up_with(&[("mode", json!("production"))]).await;
    let view = doctor(&daemon).await;
    let failed: Vec<_> = view
        .checks
        .iter()
        .filter(|check| check.verdict == Verdict::Failed)
        .collect();
    assert!(view.fit && failed.is_empty(), "{failed:?}");
    let found = |name: &str| {
        let mut checks = view.checks.iter();
        let check = checks.find(|check| check.name == name).unwrap();
        assert_eq!(check.verdict, Verdict::Passed, "{check:?}");
        check.found.clone()
    };
    assert!(found("user").contains("(casemate)"));
    assert!(found("runtime").contains("runsc"));
    assert_eq!(found("new_privileges"), "no_new_privs true");
    assert_eq!(found("core_dumps"), "dumpable false, core files of 0 bytes");
    assert_eq!(found("umask"), "0077");
    assert!(found("open_files").contains("may be needed"));
    assert!(found("conmon_version").starts_with("2."));
    for name in ["landlock", "landlock_kernel"] {
        assert!(found(name).starts_with("ABI "), "{}", found(name));
    }
    assert!(found("seccomp").ends_with("what was tried was refused"));
    assert_eq!(found("limits"), "cpu, memory and pids are enforced");
    found("canary");
    assert!(found("canary_kernel").starts_with("Linux version "));
    assert_eq!(found("canary_network"), "loopback");
    let limits = found("canary_limits");
    assert!(
        limits.contains("memory: ended for lack of memory"),
        "{limits}"
    );
    assert!(limits.contains("processes: one more than "), "{limits}");
    // Unless the disk is too slow to tell.
    assert!(
        limits.contains("disk: full at about ")
            || limits.contains("disk not measured: its disk took"),
        "{limits}"
    );
    // It was nobody's, and is gone.
    assert!(daemon.containers().await.is_empty() && daemon.link_entries().is_empty());
    assert!(daemon.sql::<String>("SELECT id FROM sessions").is_empty());
    let orphans = "SELECT id FROM audit WHERE kind = 'sandbox.orphan'";
    assert!(daemon.sql::<String>(orphans).is_empty());
    assert!(found("sub_ids").contains("/etc/subgid 100000-165535"));

    let told = casemate(&daemon, &["doctor"]);
    let text = String::from_utf8(told.stdout).unwrap();
    assert_eq!(told.status.code(), Some(0), "{text}");
    assert!(
        text.starts_with("CHECK") && text.contains("key_files"),
        "{text}"
    );

    // It looks again each time, and says no secret.
    let key = daemon.state_dir().join("vault.key");
    chmod(&key, 0o644);
    let told = casemate(&daemon, &["doctor", "--json"]);
    assert_eq!(told.status.code(), Some(1), "{told:?}");
    let view: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(view["fit"], false);
    let checks = view["checks"].as_array().unwrap();
    let broken = checks
        .iter()
        .find(|check| check["name"] == "key_files")
        .unwrap();
    assert_eq!(broken["verdict"], "failed");
    assert!(
        broken["found"]
            .as_str()
            .unwrap()
            .contains("vault.key 0644 of casemate"),
        "{broken}"
    );
    assert!(
        broken["mend"].as_str().unwrap().contains("chmod 0600"),
        "{broken}"
    );
}

#[tokio::test]
async fn production_mode_refuses_by_name_and_development_mode_says_it() {
    let mut daemon = Daemon::new();
    daemon.set("mode", json!("production"));
    daemon.set("backup", json!({"every_s": 0}));
    let settings = daemon.config_path();
    let (code, text) = daemon.run_to_end("casemate", &[]).await;
    assert_eq!(code, 77, "{text}");
    assert!(text.contains("1 of "), "{text}");
    assert!(
        text.contains("backups: set backup.every_s or backup.at"),
        "{text}"
    );

    chmod(&settings, 0o664);
    let (code, text) = daemon.run_to_end("casemate", &["--check"]).await;
    assert_eq!(code, 77, "{text}");
    for name in ["settings_files: ", "backups: "] {
        assert!(text.contains(name), "{text}");
    }
    let refusal = text.split("hardening checks fail").last().unwrap();
    assert!(
        !refusal.contains(&*settings.to_string_lossy()),
        "a value: {refusal}"
    );

    daemon.set("mode", json!("development"));
    daemon.start().await;
    assert!(!doctor(&daemon).await.fit);
}

/// A daemon whose wrapper of runsc is the shipped one with something taken out after the start; what the doctor says of
/// what it then made.
async fn with_less(taken: &str, instead: &str) -> Vec<(String, Verdict, String)> {
    let wrapper = Wrapper::shipped();
    let podman = wrapper.service().await;
    let daemon = Daemon::up_with(&[
        ("podman.socket", json!(podman.socket)),
        ("podman.runtime", json!(wrapper.path())),
    ])
    .await;
    let shipped = std::fs::read_to_string(wrapper.path()).unwrap();
    assert!(shipped.contains(taken));
    wrapper.becomes(&shipped.replace(taken, instead));
    let view = doctor(&daemon).await;
    // What a sandbox was refused in the making, podman may hold for a moment.
    wait_until("nothing is left", async || {
        daemon.containers().await.is_empty() && daemon.link_entries().is_empty()
    })
    .await;
    wrapper.becomes(&shipped);
    let canaries = view
        .checks
        .into_iter()
        .filter(|check| check.name.starts_with("canary"));
    canaries
        .map(|check| (check.name, check.verdict, check.found))
        .collect()
}

#[tokio::test]
async fn a_wrapper_that_bounds_less_is_found_out_by_name() {
    // No cap on what gVisor keeps on the disk.
    let seen = with_less("    ulimit -f $((bytes / 512)) ||", "    true ||").await;
    let (_, verdict, found) = seen
        .iter()
        .find(|(name, ..)| name == "canary_limits")
        .unwrap();
    if found.contains("disk not measured: its disk took") {
        eprintln!("the disk is too slow to tell");
    } else {
        assert!(found.contains("disk exceeded: "), "{found}");
        assert_eq!(*verdict, Verdict::Failed, "{found}");
    }

    // No group of its own: nobody vouches for it.
    let seen = with_less("join \"$tree/$id\"", "true").await;
    let (_, verdict, found) = seen
        .iter()
        .find(|(name, ..)| name == "canary_kernel")
        .unwrap();
    assert_eq!(*verdict, Verdict::Failed, "{seen:?}");
    assert!(found.contains("control group"), "{found}");
}
