//! Podman with gVisor for real: the contract, and that the promise of `src/runtime/` is true.
//!
//! Not part of a plain `cargo test`: it needs a rootless podman service and root, to start a second
//! service beside it. `scripts/test` prepares both and says where they are, in the environment.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod archive;
mod contract;
mod service;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use casemate::model::image::ImageDigest;
use casemate::model::sandbox::{GIB, Limits, SandboxId, SandboxPhase, SandboxSpec};
use casemate::runtime::podman::Podman;
use casemate::runtime::{Dialler, RuntimeConfig, RuntimeError, SandboxRuntime};
use contract::Bench;
use futures_util::{StreamExt, stream};
use serde_json::json;

/// A guest in shell: says so, ends with 42 when asked to.
const GUEST: &str = "#!/bin/sh
echo \"guest of $(hostname) is awake\"
echo 'it complains' >&2
trap 'exit 42' TERM
>/tmp/ready
while :; do sleep 1000 & wait $!; done
";

/// A guest that says a mebibyte before it comes to the point.
const TALKATIVE_GUEST: &str = "#!/bin/sh
i=0
while [ $i -lt 10000 ]; do
    echo 'line after line of a hundred characters, all of which nobody wants to keep, none of which ends here'
    i=$((i + 1))
done
echo 'the point'
exit 7
";

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test"))
}

fn image() -> ImageDigest {
    env("CASEMATE_TEST_IMAGE").parse().unwrap()
}

/// A directory of this test's own that podman's user reaches; removed when dropped.
fn work_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in(env("CASEMATE_TEST_LINK_ROOT")).unwrap();
    chmod(dir.path(), 0o755);
    dir
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn config(socket: &Path, guest: &Path) -> RuntimeConfig {
    RuntimeConfig {
        socket: socket.to_owned(),
        runtime: env("CASEMATE_TEST_RUNTIME").into(),
        guest: guest.to_owned(),
        call_deadline: Duration::from_secs(10),
        sandbox_deadline: Duration::from_secs(30),
        load_deadline: Duration::from_secs(120),
    }
}

fn socket() -> PathBuf {
    env("CASEMATE_TEST_PODMAN_SOCKET").into()
}

/// Podman with a guest in shell.
fn podman_with(dir: &Path, guest: &str) -> Podman {
    let path = dir.join("guest");
    std::fs::write(&path, guest).unwrap();
    chmod(&path, 0o755);
    Podman::new(config(&socket(), &path))
}

/// Podman with the guest that is shipped.
fn podman_as_shipped() -> Podman {
    Podman::new(config(&socket(), Path::new(&env("CASEMATE_TEST_GUEST"))))
}

async fn sh(podman: &Podman, id: &SandboxId, script: &str) -> (i32, String) {
    let outcome = podman.exec(id, &["sh", "-c", script]).await.unwrap();
    (
        outcome.exit_code,
        String::from_utf8(outcome.output).unwrap(),
    )
}

/// Waits for a condition; the bound only says when to give up.
async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
        }
    })
    .await
    .expect("it never came true")
}

#[tokio::test]
async fn podman_keeps_the_contract() {
    let dir = work_dir();
    let podman = podman_with(dir.path(), GUEST);
    contract::contract(&Bench::new(&podman, image(), dir.path())).await;
}

#[tokio::test]
async fn the_machine_is_found_fit() {
    let facts = podman_as_shipped().probe().await.unwrap();
    assert_eq!(facts.runtime_path, env("CASEMATE_TEST_RUNTIME"));
    assert!(
        facts.runtime_version.starts_with("runsc version "),
        "{facts:?}"
    );
    assert!(!facts.podman_version.is_empty());
}

#[tokio::test]
async fn a_guest_that_is_not_safe_makes_the_machine_unfit() {
    let dir = work_dir();
    let podman = podman_with(dir.path(), GUEST);
    podman.probe().await.unwrap();
    for (mode, says) in [
        (0o644, "may run"),
        (0o775, "written by others"),
        (0o757, "written by others"),
    ] {
        chmod(&dir.path().join("guest"), mode);
        match podman.probe().await {
            Err(RuntimeError::Unfit { what, .. }) => assert!(what.contains(says), "{what}"),
            other => panic!("{other:?}"),
        }
    }
    std::fs::remove_file(dir.path().join("guest")).unwrap();
    assert!(matches!(
        podman.probe().await,
        Err(RuntimeError::Unfit { .. })
    ));
}

#[tokio::test]
async fn a_sandbox_is_gvisor_and_has_no_network_and_nothing_of_the_hosts() {
    let dir = work_dir();
    let podman = podman_as_shipped();
    let bench = Bench::new(&podman, image(), dir.path());
    let id = bench.running().await;

    let (_, kernel) = sh(&podman, &id, "dmesg").await;
    assert!(kernel.contains("Starting gVisor"), "{kernel}");

    let (_, devices) = sh(&podman, &id, "tail -n +3 /proc/net/dev").await;
    let devices: Vec<&str> = devices
        .lines()
        .filter_map(|line| line.split(':').next())
        .map(str::trim)
        .collect();
    assert_eq!(devices, ["lo"]);

    let (_, status) = sh(&podman, &id, "cat /proc/1/status").await;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    // CAP_DAC_READ_SEARCH is bit 2, CAP_KILL, CAP_SETGID, CAP_SETUID and CAP_SETPCAP are bits 5 to 8 (capabilities(7)); the guest
    // may have emptied its bounding set by now.
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        let held = u64::from_str_radix(field(set).unwrap(), 16).unwrap();
        assert_eq!(held & !0x1e4, 0, "{set} {held:x}");
    }

    // gVisor calls what comes from the host by its protocol for files, 9p.
    let (_, mounts) = sh(&podman, &id, "cat /proc/1/mounts").await;
    let from_host: BTreeMap<&str, bool> = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|words| words[2] == "9p")
        .map(|words| (words[1], words[3].split(',').any(|option| option == "ro")))
        .collect();
    // podman's own two files, which hold the host name and nothing.
    let wanted = [
        ("/etc/hostname", false),
        ("/run/.containerenv", false),
        ("/run/casemate/guest", true),
        ("/run/casemate/link", true),
        // Read-only on the host's side, since volumes come below it.
        ("/volumes", false),
    ];
    assert_eq!(from_host, wanted.into());
    let (code, _) = sh(&podman, &id, "touch /volumes/x || mkdir /volumes/y").await;
    assert_ne!(code, 0);

    let (_, name) = sh(&podman, &id, "hostname; cat /etc/hostname").await;
    assert_eq!(name.trim_end(), "box\nbox");
    let (code, _) = sh(
        &podman,
        &id,
        "touch /run/casemate/link/x || touch /run/casemate/guest",
    )
    .await;
    assert_ne!(code, 0);
    podman.remove(&id).await.unwrap();
}

/// Both kinds of sandbox, as the shipped guest has them: it holds exactly what was granted, and keeps the bounding set
/// only where programs may be root.
#[tokio::test]
async fn either_kind_of_sandbox_has_exactly_its_capabilities() {
    let dir = work_dir();
    let podman = podman_as_shipped();
    let bench = Bench::new(&podman, image(), dir.path());
    for (spec, held, bounding) in [
        (bench.spec(), 0x1e4, 0),
        (bench.root_spec(), 0x405fb, 0x405fb),
    ] {
        let id = podman.create(&spec).await.unwrap();
        podman.start(&id).await.unwrap();
        let sets = until(async || {
            let (_, status) = sh(&podman, &id, "grep '^Cap' /proc/1/status").await;
            let sets: BTreeMap<String, u64> = status
                .lines()
                .filter_map(|line| line.split_once(":\t"))
                .map(|(set, bits)| (set.to_owned(), u64::from_str_radix(bits, 16).unwrap()))
                .collect();
            // Emptied by the guest itself, soon after its start.
            (sets["CapBnd"] == bounding).then_some(sets)
        })
        .await;
        for (set, wanted) in [("CapInh", 0), ("CapPrm", held), ("CapEff", held)] {
            assert_eq!(sets[set], wanted, "{set} {sets:x?}");
        }
        // What is run around the guest has the same.
        let (_, status) = sh(&podman, &id, "grep '^CapBnd' /proc/self/status").await;
        assert_eq!(status, format!("CapBnd:\t{held:016x}\n"));
        podman.remove(&id).await.unwrap();
    }
}

#[tokio::test]
async fn limits_of_gvisors_own_hold() {
    let dir = work_dir();
    let podman = podman_as_shipped();
    let bench = Bench::new(&podman, image(), dir.path());
    let limits = Limits {
        memory_bytes: 256 << 20,
        disk_bytes: GIB,
        pids: 64,
        ..Limits::default()
    };
    let spec = SandboxSpec {
        limits,
        ..bench.spec()
    };
    let id = podman.create(&spec).await.unwrap();
    podman.start(&id).await.unwrap();

    let (_, rlimits) = sh(
        &podman,
        &id,
        "grep -E 'processes|open files|core' /proc/self/limits",
    )
    .await;
    let numbers: Vec<&str> = rlimits
        .split_whitespace()
        .filter(|word| word.parse::<u64>().is_ok())
        .collect();
    assert_eq!(
        numbers,
        ["0", "0", "64", "64", "65536", "65536"],
        "{rlimits}"
    );

    // Half of the memory each, and no room past it.
    for dir in ["/tmp", "/dev/shm"] {
        let (code, says) = sh(
            &podman,
            &id,
            &format!("dd if=/dev/zero of={dir}/x bs=1M count=200; stat -c %s {dir}/x; rm {dir}/x"),
        )
        .await;
        assert_eq!(code, 0);
        assert!(
            says.contains("No space left") && says.contains("134217728"),
            "{says}"
        );
    }
    // The writable layer ends where its one file on the host does; the sandbox goes on.
    let (_, says) = sh(
        &podman,
        &id,
        "dd if=/dev/zero of=/var/tmp/x bs=1M count=1500; stat -c %s /var/tmp/x; rm /var/tmp/x",
    )
    .await;
    let written = says
        .lines()
        .find_map(|line| line.parse::<u64>().ok())
        .unwrap();
    assert!((GIB / 2..=GIB).contains(&written), "{says}");
    assert_eq!(bench.phase(&id).await, Some(SandboxPhase::Running));
    podman.remove(&id).await.unwrap();
}

#[tokio::test]
async fn last_words_are_the_end_of_what_was_said() {
    let dir = work_dir();
    let podman = podman_with(dir.path(), GUEST);
    let bench = Bench::new(&podman, image(), dir.path());
    let id = bench.running().await;
    let words = until(async || {
        let words = podman.last_words(&id).await;
        (words.lines().count() == 2).then_some(words)
    })
    .await;
    assert!(
        words.contains("guest of box is awake\n") && words.contains("it complains\n"),
        "{words}"
    );
    podman.remove(&id).await.unwrap();
    assert_eq!(podman.last_words(&id).await, "");

    let podman = podman_with(dir.path(), TALKATIVE_GUEST);
    let bench = Bench::new(&podman, image(), dir.path());
    let id = bench.running().await;
    assert_eq!(podman.wait(&id).await.unwrap(), Some(7));
    let words = podman.last_words(&id).await;
    assert!(words.ends_with("\nthe point\n"), "{words}");
    assert!(
        (4 << 10..=8 << 10).contains(&words.len()),
        "{}",
        words.len()
    );
    podman.remove(&id).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_cannot_run_fails_the_start() {
    let dir = work_dir();
    let podman = podman_with(dir.path(), "#!/no/such/shell\n");
    let bench = Bench::new(&podman, image(), dir.path());
    let id = podman.create(&bench.spec()).await.unwrap();
    let failed = podman.start(&id).await;
    assert!(
        matches!(failed, Err(RuntimeError::Failed { .. })),
        "{failed:?}"
    );
    podman.remove(&id).await.unwrap();
    assert_eq!(bench.sweep().await, 0);
}

#[tokio::test]
async fn a_link_directory_that_is_missing_fails_and_leaves_nothing() {
    let dir = work_dir();
    let podman = podman_as_shipped();
    let bench = Bench::new(&podman, image(), dir.path());
    let spec = SandboxSpec {
        link_dir: dir.path().join("nowhere"),
        ..bench.spec()
    };
    let id = podman.create(&spec).await;
    if let Ok(id) = &id {
        // podman 4.3 looks only at start.
        assert!(matches!(
            podman.start(id).await,
            Err(RuntimeError::Failed { .. })
        ));
        podman.remove(id).await.unwrap();
    }
    assert_eq!(bench.sweep().await, 0);
}

#[tokio::test]
async fn podman_with_another_runtime_is_unfit_and_makes_nothing() {
    let dir = work_dir();
    let guest = env("CASEMATE_TEST_GUEST");
    let other = service::Service::start(&socket(), "crun").await;
    let podman = Podman::new(config(&other.socket, Path::new(&guest)));
    match podman.probe().await {
        Err(RuntimeError::Unfit { what, mend }) => {
            assert!(what.contains("crun"), "{what}");
            assert!(mend.contains(&env("CASEMATE_TEST_RUNTIME")), "{mend}");
        }
        found => panic!("{found:?}"),
    }
    let bench = Bench::new(&podman, image(), dir.path());
    match podman.create(&bench.spec()).await {
        Err(RuntimeError::NotAsAsked { field, found, .. }) => {
            assert_eq!(field, "OCIRuntime");
            assert!(found.contains("crun"), "{found}");
        }
        found => panic!("{found:?}"),
    }
    assert_eq!(bench.sweep().await, 0);
}

#[tokio::test]
async fn a_sandbox_is_in_groups_of_its_own_or_not_vouched_for() {
    let dir = work_dir();
    let podman = podman_with(dir.path(), GUEST);
    assert_eq!(
        podman.probe().await.unwrap().unenforced_limits,
        Vec::<&str>::new(),
        "scripts/test-bench makes control groups"
    );
    let bench = Bench::new(&podman, image(), dir.path());
    let spec = bench.spec();
    let id = podman.create(&spec).await.unwrap();
    podman.start(&id).await.unwrap();
    let dialler = Dialler {
        pid: Some(gofer_of(&id)),
        kernel_banner: "Starting gVisor...".into(),
    };
    podman.vouch(&id, &dialler, &spec.limits).await.unwrap();
    assert_eq!(podman.strain(&id).memory_kills, 0);
    let field =
        async |podman: &Podman, limits: Limits| match podman.vouch(&id, &dialler, &limits).await {
            Err(RuntimeError::NotAsAsked { field, .. }) => field,
            other => panic!("{other:?}"),
        };
    for (limits, wanted) in [
        (
            Limits {
                memory_bytes: spec.limits.memory_bytes / 2,
                ..spec.limits
            },
            "memory bound",
        ),
        (
            Limits {
                cpus: spec.limits.cpus / 2.0,
                ..spec.limits
            },
            "processor bound",
        ),
        (
            Limits {
                pids: spec.limits.pids + 1,
                memory_bytes: spec.limits.memory_bytes - (384 << 10),
                ..spec.limits
            },
            "thread bound",
        ),
    ] {
        assert_eq!(field(&podman, limits).await, wanted);
    }

    // A podman whose runtime says that there are groups where there are none of this sandbox's.
    let boaster = service::Boaster::start(&socket(), dir.path());
    let guest = env("CASEMATE_TEST_GUEST");
    let lied_to = Podman::new(config(&boaster.socket, Path::new(&guest)));
    let found = lied_to.probe().await.unwrap().unenforced_limits;
    assert_eq!(found, Vec::<&str>::new());
    let found = field(&lied_to, spec.limits).await;
    assert_eq!(found, "control group's gofer");
    podman.remove(&id).await.unwrap();
    assert_eq!(bench.sweep().await, 0);
}

/// The process by which a sandbox reaches the host.
fn gofer_of(id: &SandboxId) -> i32 {
    let processes = std::fs::read_dir("/proc").unwrap().map(Result::unwrap);
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let gofer = pids.find(|pid: &i32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with("runsc-gofer\0") && line.contains(id.as_str())
    });
    gofer.unwrap()
}

#[tokio::test]
async fn a_create_that_nobody_waits_for_is_found_by_the_list() {
    let dir = work_dir();
    let podman = podman_as_shipped();
    let bench = Bench::new(&podman, image(), dir.path());
    let specs: Vec<SandboxSpec> = (0..8).map(|_| bench.spec()).collect();
    for (spec, patience_ms) in specs.iter().zip([0, 1, 2, 5, 10, 20, 40, 80]) {
        let _ = tokio::time::timeout(Duration::from_millis(patience_ms), podman.create(spec)).await;
    }
    // Each session's name is free or its leftover is ours to remove.
    for spec in &specs {
        podman.create(spec).await.unwrap();
    }
    assert_eq!(
        podman.list(bench.installation).await.unwrap().len(),
        specs.len()
    );
    assert_eq!(bench.sweep().await, specs.len());
    assert_eq!(bench.sweep().await, 0);
}

#[tokio::test]
async fn ten_lives_at_once() {
    let dir = work_dir();
    let podman = podman_as_shipped();
    let bench = Bench::new(&podman, image(), dir.path());
    let lives = stream::iter(0..10).map(async |_| {
        let id = bench.running().await;
        assert_eq!(bench.phase(&id).await, Some(SandboxPhase::Running));
        podman.remove(&id).await.unwrap();
    });
    lives.buffer_unordered(10).collect::<Vec<()>>().await;
    assert_eq!(bench.sweep().await, 0);
}

#[tokio::test]
async fn an_image_is_loaded_as_it_arrives() {
    let archive = PathBuf::from(env("CASEMATE_TEST_ARCHIVE"));
    let dir = work_dir();
    let podman = podman_as_shipped();
    let stream = |bytes: u64| {
        let archive = archive.clone();
        async move {
            use tokio::io::AsyncReadExt;
            let file = tokio::fs::File::open(&archive).await.unwrap();
            tokio_util::io::ReaderStream::with_capacity(file.take(bytes), 256 << 10).boxed()
        }
    };
    assert_eq!(
        podman.load_image(stream(u64::MAX).await).await.unwrap(),
        image()
    );
    // The first half of one is not one.
    let half = std::fs::metadata(&archive).unwrap().len() / 2;
    let result = podman.load_image(stream(half).await).await;
    assert!(
        matches!(result, Err(RuntimeError::BadArchive(_))),
        "{result:?}"
    );
    drop(dir);
}

/// An image whose maker wants to be root, to have volumes, health checks, another entry point, and
/// labels that are ours to give.
#[tokio::test]
async fn an_image_decides_nothing_of_how_it_is_run() {
    let config = json!({
        "Entrypoint": ["/bin/sh"],
        "Cmd": ["-c", "evil"],
        "User": "12345",
        "WorkingDir": "/evil",
        "Volumes": {"/data": {}},
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGUSR1",
        "Healthcheck": {"Test": ["CMD", "/evil"], "Interval": 1_000_000_000},
        "Labels": {"io.casemate.session": "evil", "io.casemate.installation": "evil"},
        "Env": ["LD_PRELOAD=/evil.so"],
    });
    let annotations = json!({"io.casemate.file-limit-bytes": "1", "run.oci.handler": "krun"});
    let (archive, image) = archive::image(&config, &annotations, None);
    let dir = work_dir();
    let podman = podman_as_shipped();
    // It has no name either.
    assert_eq!(podman.load_image(once(archive)).await.unwrap(), image);
    let bench = Bench::new(&podman, image, dir.path());
    let spec = bench.spec();
    let id = podman.create(&spec).await.unwrap();
    podman.start(&id).await.unwrap();
    let state = podman.inspect(&id).await.unwrap().unwrap();
    assert_eq!(
        (state.phase, state.session),
        (SandboxPhase::Running, Some(spec.session))
    );
    podman.remove(&id).await.unwrap();
    service::forget_image(&socket(), image).await;
}

/// podman 4 copies an image's annotations to where runsc looks for flags; podman 5 does not.
#[tokio::test]
async fn an_image_with_flags_for_gvisor_is_refused() {
    let annotations = json!({"dev.gvisor.flag.network": "host"});
    let (archive, image) = archive::image(&json!({}), &annotations, Some("localhost/evil:latest"));
    let dir = work_dir();
    let podman = podman_as_shipped();
    assert_eq!(podman.load_image(once(archive)).await.unwrap(), image);
    let bench = Bench::new(&podman, image, dir.path());
    match podman.create(&bench.spec()).await {
        Err(RuntimeError::NotAsAsked { field, .. }) => assert_eq!(field, "Config.Annotations"),
        // Had they come through, runsc, which is not told to obey them, would not start.
        Ok(id) => {
            podman.start(&id).await.unwrap();
            podman.remove(&id).await.unwrap();
        }
        Err(other) => panic!("{other:?}"),
    }
    assert_eq!(bench.sweep().await, 0);
    service::forget_image(&socket(), image).await;
}

fn once(archive: Vec<u8>) -> casemate::runtime::ArchiveStream {
    stream::iter([Ok(archive.into())]).boxed()
}

/// Prints what the parts of a life take. Compare ratios; the machine is noisy.
#[tokio::test]
#[expect(clippy::print_stdout, reason = "it is a measurement")]
async fn what_a_life_takes() {
    let dir = work_dir();
    let podman = podman_as_shipped();
    let bench = Bench::new(&podman, image(), dir.path());
    let mut took: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for _ in 0..15 {
        let spec = bench.spec();
        let began = Instant::now();
        let id = podman.create(&spec).await.unwrap();
        took.entry("create").or_default().push(began.elapsed());
        let began = Instant::now();
        podman.start(&id).await.unwrap();
        took.entry("start").or_default().push(began.elapsed());
        let began = Instant::now();
        podman.inspect(&id).await.unwrap();
        took.entry("inspect").or_default().push(began.elapsed());
        let began = Instant::now();
        podman.exec(&id, &["true"]).await.unwrap();
        took.entry("exec").or_default().push(began.elapsed());
        let began = Instant::now();
        podman.remove(&id).await.unwrap();
        took.entry("remove").or_default().push(began.elapsed());
    }
    for (what, times) in &mut took {
        times.sort();
        println!(
            "{what}: median {:?}, least {:?}, most {:?}",
            times[7], times[0], times[14]
        );
    }
}
