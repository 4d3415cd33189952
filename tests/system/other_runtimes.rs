//! No session ever runs outside gVisor: neither under another runtime from the start, nor under one
//! that takes its place, by its own name or by the right one.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::podman::{Mood, Proxy, Service};
use crate::support::{Daemon, bench, wait_until};

/// The flags that the bench's podman gives to runsc.
fn runsc_flags() -> Vec<String> {
    let state = std::env::var("CASEMATE_TEST_PODMAN_STATE").expect("run scripts/test");
    let flags = std::fs::read_to_string(Path::new(&state).join("podman.flags")).unwrap();
    flags
        .lines()
        .filter(|flag| !flag.starts_with("--runtime="))
        .map(str::to_owned)
        .collect()
}

/// A program where podman can run it and tests can change it, under the name of our wrapper.
pub struct Wrapper(PathBuf);

impl Wrapper {
    fn new(script: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("wrapper.")
            .tempdir_in(&bench().dir)
            .unwrap()
            .keep();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let this = Self(dir.join("casemate-runsc"));
        this.becomes(script);
        this
    }

    /// As it is shipped.
    pub fn shipped() -> Self {
        Self::new(&std::fs::read_to_string(&bench().runtime).unwrap())
    }

    /// Replaces it in one step, as a package's update does.
    pub fn becomes(&self, script: &str) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, script).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &self.0).unwrap();
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub async fn service(&self) -> Service {
        let flags = runsc_flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Service::start(&self.0, &flags).await
    }
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

/// crun under our wrapper's name: it drops runsc's flags, and says whatever version it is told to.
/// So that it does start something on any machine, it is not shown the cgroups (crun 1.8 refuses
/// where v1 and v2 are mixed), nor limits above those of podman's user.
fn crun_that_says(version: &str) -> String {
    format!(
        r#"#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
bundle= previous=
for word; do
    shift
    [ "$previous" != --bundle ] || bundle=$word
    previous=$word
    case $word in
        --platform=* | --ignore-cgroups* | --systemd-cgroup) ;;
        --version) echo "{version}"; exit ;;
        *) set -- "$@" "$word" ;;
    esac
done
[ -z "$bundle" ] || sed -i 's/"rlimits":\[[^]]*\],*//' "$bundle/config.json"
exec unshare --mount sh -c 'mount -t tmpfs none /sys/fs/cgroup 2>/dev/null; exec crun --cgroup-manager=disabled "$@"' crun "$@"
"#
    )
}

const RUNSC_VERSION: &str = "runsc version 0.0~20240729.0";

/// The end of a session that could not be brought up, with its message.
async fn refused_session(daemon: &Daemon) -> Value {
    let answer = daemon.client.post("/v1/sessions", json!({})).await;
    answer.problem(502, "launch_failed");
    let page = daemon.client.get("/v1/sessions?limit=1").await.expect(200);
    let id = page["items"][0]["id"].as_str().unwrap().to_owned();
    let session = daemon.phase(&id, "failed").await;
    assert_eq!(session["reason"], "launch_failed", "{session}");
    assert_eq!(session["ready_at"], Value::Null);
    assert!(daemon.containers().await.is_empty());
    assert!(daemon.links().is_empty());
    let runs = "SELECT count(*) FROM audit WHERE kind = 'session.run'";
    assert_eq!(daemon.sql::<i64>(runs), [0]);
    session
}

#[tokio::test]
async fn podman_with_another_runtime_as_its_default_is_refused_at_the_start() {
    let crun = Service::start(Path::new("/usr/bin/crun"), &[]).await;
    let mut daemon = Daemon::new();
    daemon.set("podman.socket", json!(crun.socket));
    let text = daemon.refuses(77).await;
    let last = text.lines().last().unwrap();
    assert!(last.contains("/usr/bin/crun"), "{last}");
    assert!(last.contains(bench().runtime.to_str().unwrap()), "{last}");

    // Nor when the settings agree with it: it is not gVisor.
    daemon.set("podman.runtime", json!("/usr/bin/crun"));
    let text = daemon.refuses(77).await;
    assert!(
        text.lines().last().unwrap().contains("crun version"),
        "{text}"
    );
}

#[tokio::test]
async fn a_runtime_that_is_missing_is_refused_at_the_start() {
    let mut daemon = Daemon::new();
    daemon.set("podman.runtime", json!("/usr/lib/no-such/casemate-runsc"));
    let text = daemon.refuses(77).await;
    let last = text.lines().last().unwrap();
    assert!(last.contains("/usr/lib/no-such/casemate-runsc"), "{last}");

    // The wrapper is there, and what it runs is not.
    let wrapper = Wrapper::new("#!/bin/sh\nexec /usr/bin/no-such-runsc \"$@\"\n");
    let podman = wrapper.service().await;
    daemon.set("podman.socket", json!(podman.socket));
    daemon.set("podman.runtime", json!(wrapper.0));
    let (code, text) = daemon.run_to_end("casemate", &[]).await;
    assert!([69, 77].contains(&code), "{code}: {text}");
    assert!(text.lines().last().unwrap().contains("ERROR"), "{text}");
}

#[tokio::test]
async fn runsc_that_goes_missing_fails_the_next_create_and_no_other() {
    let wrapper = Wrapper::shipped();
    let podman = wrapper.service().await;
    let daemon = Daemon::up_with(&[
        ("podman.socket", json!(podman.socket)),
        ("podman.runtime", json!(wrapper.0)),
    ])
    .await;
    let good = std::fs::read_to_string(&wrapper.0).unwrap();
    wrapper.becomes("#!/bin/sh\nexec /usr/bin/no-such-runsc \"$@\"\n");
    refused_session(&daemon).await;
    wrapper.becomes(&good);
    let id = daemon.client.session(json!({})).await;
    daemon.client.end(&id).await;
}

#[tokio::test]
async fn another_runtime_behind_the_same_socket_starts_nothing() {
    let proxy = Proxy::before_podman().await;
    let crun = Service::start(Path::new("/usr/bin/crun"), &[]).await;
    let daemon = Daemon::up_with(&[("podman.socket", json!(proxy.socket))]).await;
    proxy.set(Mood::Pass(crun.socket.clone())).await;
    let session = refused_session(&daemon).await;
    let message = session["message"].as_str().unwrap();
    assert!(message.contains("crun"), "{message}");
    wait_until("readiness says so", async || {
        daemon.client.get("/ready").await.status == 503
    })
    .await;
    proxy.mend().await;
    let id = daemon.client.session(json!({})).await;
    daemon.client.end(&id).await;
}

#[tokio::test]
async fn another_runtime_under_the_right_name_is_refused_at_the_start() {
    let wrapper = Wrapper::new(&crun_that_says("crun version 1.8.1"));
    let podman = wrapper.service().await;
    let mut daemon = Daemon::new();
    daemon.set("podman.socket", json!(podman.socket));
    daemon.set("podman.runtime", json!(wrapper.0));
    let text = daemon.refuses(77).await;
    assert!(
        text.lines().last().unwrap().contains("crun version 1.8.1"),
        "{text}"
    );
}

#[tokio::test]
async fn another_runtime_under_the_right_name_with_the_right_version_never_gets_a_session_ready() {
    let wrapper = Wrapper::shipped();
    let podman = wrapper.service().await;
    let daemon = Daemon::up_with(&[
        ("podman.socket", json!(podman.socket)),
        ("podman.runtime", json!(wrapper.0)),
    ])
    .await;
    let id = daemon.client.session(json!({})).await;
    daemon.client.end(&id).await;
    wrapper.becomes(&crun_that_says(RUNSC_VERSION));
    let session = refused_session(&daemon).await;
    // crun did start the guest, outside gVisor; whoever dials is not believed.
    let message = session["message"].as_str().unwrap();
    assert!(message.contains("dialling process"), "{message}");
}

#[tokio::test]
async fn a_wrapper_that_switches_the_network_on_gives_a_sandbox_none() {
    // It is off twice: by the wrapper's flag, and because the container's namespace has no device.
    let wrapper =
        Wrapper::new("#!/bin/sh\nexec /usr/bin/runsc --network=host --host-uds=open \"$@\"\n");
    let podman = wrapper.service().await;
    let daemon = Daemon::up_with(&[
        ("podman.socket", json!(podman.socket)),
        ("podman.runtime", json!(wrapper.0)),
    ])
    .await;
    let answer = daemon.client.post("/v1/sessions", json!({})).await;
    if answer.status == 201 {
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        let devices = daemon
            .client
            .out(&id, "tail -n +3 /proc/net/dev | cut -d: -f1")
            .await;
        assert_eq!(devices.trim(), "lo", "the network namespace is empty");
    } else {
        answer.problem(502, "launch_failed");
    }
}

#[tokio::test]
async fn a_machine_without_fuse2fs_has_no_volumes_and_says_what_to_install() {
    let shipped = std::fs::read_to_string(&bench().runtime).unwrap();
    let wrapper = Wrapper::new("");
    // All programs of the machine but the one.
    let programs = wrapper.0.with_file_name("programs");
    std::fs::create_dir(&programs).unwrap();
    for place in ["/usr/sbin", "/usr/bin", "/sbin", "/bin"] {
        for entry in std::fs::read_dir(place).unwrap().map(Result::unwrap) {
            if entry.file_name() != "fuse2fs" {
                // Some are in two of the places.
                let _ = std::os::unix::fs::symlink(entry.path(), programs.join(entry.file_name()));
            }
        }
    }
    let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin\n";
    assert!(shipped.contains(path));
    let other = format!("PATH={}\n", programs.display());
    wrapper.becomes(&shipped.replacen(path, &other, 1));
    let podman = wrapper.service().await;
    let daemon = Daemon::up_with(&[
        ("podman.socket", json!(podman.socket)),
        ("podman.runtime", json!(wrapper.0)),
    ])
    .await;
    let client = &daemon.client;
    let ready = client.get("/ready").await.expect(200);
    assert_eq!(ready["volumes"], false, "{ready}");
    let said = client
        .post(
            "/v1/volumes",
            json!({"name": "data", "size_bytes": 64 << 20}),
        )
        .await
        .problem(501, "volumes_unavailable");
    assert!(said.contains("install fuse2fs and e2fsprogs"), "{said}");
    let wanted = json!({"volumes": [{"name": "data"}]});
    let answer = client.post("/v1/sessions", wanted).await;
    answer.problem(501, "volumes_unavailable");
    // Everything else is none the worse.
    let id = client.session(json!({})).await;
    assert_eq!(client.out(&id, "echo on").await, "on\n");
    client.end(&id).await;
}
