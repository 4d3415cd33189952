//! What every sandbox runtime does, whatever it is made of. One suite, run against the fake and
//! against podman, so that neither can drift from the other.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use casemate::base::clock::Timestamp;
use casemate::base::id::{InstallationId, SessionId};
use casemate::model::image::ImageDigest;
use casemate::model::sandbox::{GIB, Limits, SandboxId, SandboxPhase, SandboxSpec, Warmth};
use casemate::runtime::{RuntimeError, SandboxRuntime};
use futures_util::{FutureExt, StreamExt, stream};

use crate::archive;

/// A runtime under test, and what it can be asked for.
pub struct Bench<'a> {
    pub runtime: &'a dyn SandboxRuntime,
    /// An image that it has, with `sh`, `true`, `false` and `echo`. The guest makes `/tmp/ready` and
    /// then ends with 42 on SIGTERM.
    pub image: ImageDigest,
    /// Below it each sandbox gets its link directory.
    pub link_root: PathBuf,
    /// Fresh for each bench.
    pub installation: InstallationId,
}

/// Anything that hangs fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Ends the guest with 42, once it is ready to be asked.
const END_GUEST: &str = "while ! test -e /tmp/ready; do :; done; kill -TERM 1";

/// Random bits of their own make ids of one millisecond differ; the time only sorts.
pub fn session() -> SessionId {
    static MILLIS: AtomicI64 = AtomicI64::new(1_800_000_000_000);
    SessionId::generate(Timestamp::from_millis(
        MILLIS.fetch_add(1, Ordering::Relaxed),
    ))
    .unwrap()
}

pub fn installation() -> InstallationId {
    InstallationId::generate(Timestamp::from_millis(1_800_000_000_000)).unwrap()
}

impl<'a> Bench<'a> {
    pub fn new(runtime: &'a dyn SandboxRuntime, image: ImageDigest, link_root: &Path) -> Self {
        let link_root = link_root.to_owned();
        Self {
            runtime,
            image,
            link_root,
            installation: installation(),
        }
    }

    /// What to build for a session of its own.
    pub fn spec(&self) -> SandboxSpec {
        let session = session();
        let link_dir = self.link_root.join(session.to_string());
        std::fs::create_dir_all(&link_dir).unwrap();
        let volumes_dir = link_dir.with_added_extension("volumes");
        std::fs::create_dir_all(volumes_dir.join("mounts")).unwrap();
        SandboxSpec {
            installation: self.installation,
            session,
            image: self.image,
            limits: Limits {
                disk_bytes: GIB,
                ..Limits::default()
            },
            allow_root: false,
            hostname: "box".into(),
            link_dir,
            volumes_dir,
            warmth: Warmth::None,
        }
    }

    /// The same for one in which programs may be root.
    pub fn root_spec(&self) -> SandboxSpec {
        SandboxSpec {
            allow_root: true,
            ..self.spec()
        }
    }

    pub async fn running(&self) -> SandboxId {
        let id = self.runtime.create(&self.spec()).await.unwrap();
        self.runtime.start(&id).await.unwrap();
        id
    }

    pub async fn phase(&self, id: &SandboxId) -> Option<SandboxPhase> {
        self.runtime
            .inspect(id)
            .await
            .unwrap()
            .map(|state| state.phase)
    }

    /// Removes whatever a check left behind, and tells how much that was.
    pub async fn sweep(&self) -> usize {
        let left = self.runtime.list(self.installation).await.unwrap();
        for sandbox in &left {
            self.runtime.remove(&sandbox.id).await.unwrap();
        }
        left.len()
    }
}

/// The whole contract. Leaves nothing.
pub async fn contract(bench: &Bench<'_>) {
    let checks = async {
        a_life_from_create_to_gone(bench).await;
        starting_and_removing_are_idempotent(bench).await;
        a_running_sandbox_can_be_removed_and_its_waiter_hears(bench).await;
        an_end_of_its_own_gives_its_exit_code(bench).await;
        what_is_unknown_is_none(bench).await;
        the_list_has_only_the_installations_own(bench).await;
        an_unknown_image_is_missing(bench).await;
        a_session_has_one_sandbox(bench).await;
        exec_tells_exit_code_and_output(bench).await;
        what_stands_still_goes_on_and_can_be_removed(bench).await;
        what_cannot_be_attached_is_refused_and_may_be_asked_again(bench).await;
        a_checkpoint_ends_its_sandbox_and_goes_with_its_file(bench).await;
        a_sandbox_holds_what_its_kind_holds_and_the_guest_knows_which(bench).await;
        garbage_is_a_bad_archive(bench).await;
        the_image_is_listed(bench).await;
        an_image_on_top_of_another_is_loaded_listed_and_removed(bench).await;
    };
    let checks = tokio::time::timeout(DEADLINE, checks);
    // Whatever happens, nothing is left for the next run.
    let result = AssertUnwindSafe(checks).catch_unwind().await;
    let left = bench.sweep().await;
    match result {
        Err(panic) => resume_unwind(panic),
        Ok(result) => result.expect("the contract suite hangs"),
    }
    assert_eq!(left, 0, "a check left sandboxes behind");
}

async fn what_cannot_be_attached_is_refused_and_may_be_asked_again(bench: &Bench<'_>) {
    let spec = bench.spec();
    let id = bench.runtime.create(&spec).await.unwrap();
    let wanted = spec.volumes_dir.join("wanted");
    std::fs::write(&wanted, "").unwrap();
    // Not before it runs.
    let early = bench.runtime.attach(&id).await;
    assert!(
        matches!(early, Err(RuntimeError::Failed { .. })),
        "{early:?}"
    );
    bench.runtime.start(&id).await.unwrap();
    bench.runtime.attach(&id).await.unwrap();
    std::fs::create_dir(spec.volumes_dir.join("mounts/data")).unwrap();
    std::fs::write(spec.volumes_dir.join("data.lock"), "").unwrap();
    let missing = spec.volumes_dir.join("nothing.img");
    std::fs::write(&wanted, format!("rw data {}\n", missing.display())).unwrap();
    let refused = bench.runtime.attach(&id).await;
    assert!(
        matches!(refused, Err(RuntimeError::Failed { .. })),
        "{refused:?}"
    );
    std::fs::write(&wanted, "").unwrap();
    bench.runtime.attach(&id).await.unwrap();
    bench.runtime.remove(&id).await.unwrap();
    let gone = bench.runtime.attach(&id).await;
    assert!(matches!(gone, Err(RuntimeError::Failed { .. })), "{gone:?}");
}

async fn a_checkpoint_ends_its_sandbox_and_goes_with_its_file(bench: &Bench<'_>) {
    let runtime = bench.runtime;
    let refused = |result: Result<(), RuntimeError>| {
        assert!(
            matches!(result, Err(RuntimeError::Failed { .. })),
            "{result:?}"
        );
    };
    // Not of a sandbox that was not made for it, nor of one that does not run.
    let plain = bench.running().await;
    refused(runtime.checkpoint(&plain).await);
    assert_eq!(bench.phase(&plain).await, Some(SandboxPhase::Running));
    runtime.remove(&plain).await.unwrap();

    let spec = bench.spec();
    let file = spec.link_dir.with_added_extension("checkpoint");
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    std::fs::write(&file, "").unwrap();
    let known = async || {
        let all = runtime.checkpoints().await.unwrap();
        all.into_iter().find(|checkpoint| checkpoint.name == name)
    };
    let source = SandboxSpec {
        warmth: Warmth::Source(file.clone()),
        ..spec
    };
    let id = runtime.create(&source).await.unwrap();
    refused(runtime.checkpoint(&id).await);
    runtime.start(&id).await.unwrap();
    assert_eq!(known().await, None);
    runtime.checkpoint(&id).await.unwrap();
    assert!(known().await.unwrap().size_bytes > 0);
    assert!(runtime.wait(&id).await.unwrap().is_some());
    runtime.remove(&id).await.unwrap();
    assert!(known().await.is_some());

    let begun = SandboxSpec {
        warmth: Warmth::Restored(file.clone()),
        ..bench.spec()
    };
    let id = runtime.create(&begun).await.unwrap();
    runtime.start(&id).await.unwrap();
    assert_eq!(bench.phase(&id).await, Some(SandboxPhase::Running));
    assert_eq!(runtime.exec(&id, &["true"]).await.unwrap().exit_code, 0);
    std::fs::remove_file(&file).unwrap();
    runtime.tidy().await.unwrap();
    assert_eq!(known().await, None);
    runtime.remove(&id).await.unwrap();
    // Without one it begins as any other.
    let id = runtime.create(&begun).await.unwrap();
    runtime.start(&id).await.unwrap();
    assert_eq!(bench.phase(&id).await, Some(SandboxPhase::Running));
    runtime.remove(&id).await.unwrap();
}

async fn a_life_from_create_to_gone(bench: &Bench<'_>) {
    let runtime = bench.runtime;
    let spec = bench.spec();
    let id = runtime.create(&spec).await.unwrap();
    let state = runtime.inspect(&id).await.unwrap().unwrap();
    assert_eq!(
        (state.phase, state.exit_code),
        (SandboxPhase::Created, None)
    );
    assert_eq!((state.id, state.session), (id.clone(), Some(spec.session)));

    runtime.start(&id).await.unwrap();
    assert_eq!(bench.phase(&id).await, Some(SandboxPhase::Running));
    runtime.remove(&id).await.unwrap();
    assert_eq!(bench.phase(&id).await, None);
}

async fn starting_and_removing_are_idempotent(bench: &Bench<'_>) {
    let id = bench.running().await;
    bench.runtime.start(&id).await.unwrap();
    bench.runtime.remove(&id).await.unwrap();
    bench.runtime.remove(&id).await.unwrap();
}

async fn a_running_sandbox_can_be_removed_and_its_waiter_hears(bench: &Bench<'_>) {
    let id = bench.running().await;
    let (waited, ()) = tokio::join!(bench.runtime.wait(&id), async {
        bench.runtime.remove(&id).await.unwrap();
    });
    // Killed, or gone before that could be told.
    assert!(matches!(waited.unwrap(), None | Some(137)));
}

async fn an_end_of_its_own_gives_its_exit_code(bench: &Bench<'_>) {
    let runtime = bench.runtime;
    let id = bench.running().await;
    let (waited, _) = tokio::join!(
        runtime.wait(&id),
        runtime.exec(&id, &["sh", "-c", END_GUEST])
    );
    assert_eq!(waited.unwrap(), Some(42));
    // Asked again, it says so again.
    assert_eq!(runtime.wait(&id).await.unwrap(), Some(42));
    let state = runtime.inspect(&id).await.unwrap().unwrap();
    assert_eq!(
        (state.phase, state.exit_code),
        (SandboxPhase::Exited, Some(42))
    );
    // A sandbox has one life.
    let again = runtime.start(&id).await;
    assert!(
        matches!(again, Err(RuntimeError::Failed { .. })),
        "{again:?}"
    );
    runtime.remove(&id).await.unwrap();
}

async fn what_is_unknown_is_none(bench: &Bench<'_>) {
    let unknown = SandboxId::try_from("f".repeat(64)).unwrap();
    assert_eq!(bench.runtime.inspect(&unknown).await.unwrap(), None);
    assert_eq!(bench.runtime.wait(&unknown).await.unwrap(), None);
    assert_eq!(bench.runtime.last_words(&unknown).await, "");
    bench.runtime.remove(&unknown).await.unwrap();
    assert!(matches!(
        bench.runtime.start(&unknown).await,
        Err(RuntimeError::Failed { .. })
    ));
    assert!(matches!(
        bench.runtime.exec(&unknown, &["true"]).await,
        Err(RuntimeError::Failed { .. })
    ));
}

async fn the_list_has_only_the_installations_own(bench: &Bench<'_>) {
    let runtime = bench.runtime;
    let other = Bench::new(runtime, bench.image, &bench.link_root);
    let (spec, other_spec) = (bench.spec(), other.spec());
    let ours = runtime.create(&spec).await.unwrap();
    let theirs = runtime.create(&other_spec).await.unwrap();
    let list = runtime.list(bench.installation).await.unwrap();
    runtime.remove(&ours).await.unwrap();
    runtime.remove(&theirs).await.unwrap();
    let [sandbox] = &list[..] else {
        panic!("{list:?}")
    };
    assert_eq!((&sandbox.id, sandbox.session), (&ours, Some(spec.session)));
    assert_eq!(
        (sandbox.phase, sandbox.exit_code),
        (SandboxPhase::Created, None)
    );
    assert_eq!(runtime.list(bench.installation).await.unwrap(), []);
}

async fn an_unknown_image_is_missing(bench: &Bench<'_>) {
    let image = ImageDigest::from_bytes([0xab; 32]);
    let spec = SandboxSpec {
        image,
        ..bench.spec()
    };
    match bench.runtime.create(&spec).await {
        Err(RuntimeError::ImageMissing(missing)) => assert_eq!(missing, image),
        other => panic!("{other:?}"),
    }
}

async fn a_session_has_one_sandbox(bench: &Bench<'_>) {
    let spec = bench.spec();
    let first = bench.runtime.create(&spec).await.unwrap();
    bench.runtime.start(&first).await.unwrap();
    let second = bench.runtime.create(&spec).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(bench.phase(&first).await, None);
    assert_eq!(bench.phase(&second).await, Some(SandboxPhase::Created));
    bench.runtime.remove(&second).await.unwrap();
}

async fn what_stands_still_goes_on_and_can_be_removed(bench: &Bench<'_>) {
    let runtime = bench.runtime;
    let id = runtime.create(&bench.spec()).await.unwrap();
    let refused = |result: Result<(), RuntimeError>| {
        assert!(
            matches!(result, Err(RuntimeError::Failed { .. })),
            "{result:?}"
        );
    };
    refused(runtime.pause(&id).await);
    runtime.start(&id).await.unwrap();
    for _ in 0..2 {
        runtime.pause(&id).await.unwrap();
    }
    assert_eq!(bench.phase(&id).await, Some(SandboxPhase::Running));
    for _ in 0..2 {
        runtime.resume(&id).await.unwrap();
    }
    let outcome = runtime.exec(&id, &["echo", "a"]).await.unwrap();
    assert_eq!(&outcome.output[..], b"a\n");
    runtime.pause(&id).await.unwrap();
    runtime.remove(&id).await.unwrap();
    assert_eq!(bench.phase(&id).await, None);
    refused(runtime.resume(&id).await);
}

async fn exec_tells_exit_code_and_output(bench: &Bench<'_>) {
    let runtime = bench.runtime;
    let id = runtime.create(&bench.spec()).await.unwrap();
    assert!(matches!(
        runtime.exec(&id, &["true"]).await,
        Err(RuntimeError::Failed { .. })
    ));
    runtime.start(&id).await.unwrap();
    let outcome = runtime.exec(&id, &["echo", "a", "b"]).await.unwrap();
    assert_eq!((outcome.exit_code, &outcome.output[..]), (0, &b"a b\n"[..]));
    assert_eq!(runtime.exec(&id, &["false"]).await.unwrap().exit_code, 1);
    runtime.remove(&id).await.unwrap();
}

// CAP_DAC_READ_SEARCH is bit 2, CAP_KILL, CAP_SETGID, CAP_SETUID and CAP_SETPCAP are bits 5 to 8 (capabilities(7)); with
// root instead of the first CAP_CHOWN,
// CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID (0, 1, 3, 4), CAP_NET_BIND_SERVICE (10) and CAP_SYS_CHROOT (18).
async fn a_sandbox_holds_what_its_kind_holds_and_the_guest_knows_which(bench: &Bench<'_>) {
    let runtime = bench.runtime;
    for (spec, held, is_told) in [
        (bench.spec(), "00000000000001e4", false),
        (bench.root_spec(), "00000000000405fb", true),
    ] {
        let id = runtime.create(&spec).await.unwrap();
        runtime.start(&id).await.unwrap();
        let read = async |argv: &[&str]| {
            let outcome = runtime.exec(&id, argv).await.unwrap();
            String::from_utf8(outcome.output).unwrap()
        };
        let found = read(&["grep", "^CapEff:", "/proc/self/status"]).await;
        assert_eq!(found, format!("CapEff:\t{held}\n"));
        let words = read(&["cat", "/proc/1/cmdline"]).await;
        let told = format!(
            "/run/casemate/guest\0--open-files\0{}\0--max-started\0{}\0--egress-port\03128\0{}",
            spec.limits.open_files,
            spec.limits.processes_started,
            if is_told { "--allow-root\0" } else { "" },
        );
        assert!(words.ends_with(&told), "{words:?}");
        runtime.remove(&id).await.unwrap();
    }
}

async fn garbage_is_a_bad_archive(bench: &Bench<'_>) {
    let before = bench.runtime.images().await.unwrap().len();
    let garbage = stream::iter((0..3).map(|_| Ok(vec![0xA5_u8; 70_000].into()))).boxed();
    let result = bench.runtime.load_image(garbage).await;
    assert!(
        matches!(result, Err(RuntimeError::BadArchive(_))),
        "{result:?}"
    );

    let broken = stream::iter([Err(std::io::Error::other("the client went away"))]).boxed();
    assert!(bench.runtime.load_image(broken).await.is_err());
    assert_eq!(bench.runtime.images().await.unwrap().len(), before);
}

async fn the_image_is_listed(bench: &Bench<'_>) {
    let images = bench.runtime.images().await.unwrap();
    assert!(images.iter().any(|image| image.digest == bench.image));
}

/// An image is made on top of another, without the layers that the runtime has, and goes again.
async fn an_image_on_top_of_another_is_loaded_listed_and_removed(bench: &Bench<'_>) {
    let runtime = bench.runtime;
    let below = runtime.makeup(bench.image).await.unwrap();
    assert!(!below.layers.is_empty());
    let (nothing, empty) = archive::on_top(&[], "installation");
    let loaded = runtime.load_image(whole(nothing)).await.unwrap();
    assert_eq!(loaded, empty);
    let names = runtime.names(bench.image, empty).await.unwrap();
    assert!(names.iter().any(|name| name == "/etc/motd"), "{names:?}");

    let (archive, digest) = archive::on_top(&below.layers, "installation");
    let loaded = runtime.load_image(whole(archive)).await.unwrap();
    assert_eq!(loaded, digest);
    let made = runtime.makeup(digest).await.unwrap();
    assert_eq!(made.layers[..below.layers.len()], below.layers);
    assert_eq!(made.layers.len(), below.layers.len() + 1);
    let images = runtime.images().await.unwrap();
    let found = images.iter().find(|image| image.digest == digest).unwrap();
    assert_eq!(found.snapshot_of.as_deref(), Some("installation"));

    let saved = runtime.save_image(digest).await.unwrap();
    let saved: Vec<_> = saved.map(Result::unwrap).collect().await;

    // Not while a sandbox is made of it.
    let spec = SandboxSpec {
        image: digest,
        ..bench.spec()
    };
    let sandbox = runtime.create(&spec).await.unwrap();
    assert!(!runtime.remove_image(digest).await.unwrap());
    runtime.remove(&sandbox).await.unwrap();
    for image in [digest, empty] {
        assert!(runtime.remove_image(image).await.unwrap());
        assert!(runtime.remove_image(image).await.unwrap());
        let missing = runtime.makeup(image).await;
        assert!(
            matches!(missing, Err(RuntimeError::ImageMissing(_))),
            "{missing:?}"
        );
    }
    // What was saved is the same image again, with its label and all of its layers.
    let again = stream::iter(saved.into_iter().map(Ok)).boxed();
    assert_eq!(runtime.load_image(again).await.unwrap(), digest);
    assert_eq!(runtime.makeup(digest).await.unwrap(), made);
    let images = runtime.images().await.unwrap();
    let found = images.iter().find(|image| image.digest == digest).unwrap();
    assert_eq!(found.snapshot_of.as_deref(), Some("installation"));
    assert!(runtime.remove_image(digest).await.unwrap());
    let missing = runtime.save_image(digest).await.err();
    assert!(
        matches!(missing, Some(RuntimeError::ImageMissing(gone)) if gone == digest),
        "{missing:?}"
    );
    // A layer that nobody has.
    let (archive, _) = archive::on_top(&[digest], "installation");
    let refused = runtime.load_image(whole(archive)).await;
    assert!(
        matches!(refused, Err(RuntimeError::BadArchive(_))),
        "{refused:?}"
    );
}

fn whole(archive: Vec<u8>) -> casemate::runtime::ArchiveStream {
    stream::iter([Ok(bytes::Bytes::from(archive))]).boxed()
}
