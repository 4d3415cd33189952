//! Images in backups of a fake runtime: all of them or no backup, and loaded as what was listed or not at all.

use std::io::Write;
use std::path::Path;

use super::{WAITING, load, waiting};
use crate::backup::restore::Wish;
use crate::backup::tests::{Bench, IMAGE, names, place, take};
use crate::backup::{BackupError, archive};
use crate::base::clock::Timestamp;
use crate::model::image::{Image, ImageDigest};
use crate::model::name::Name;
use crate::model::query::AuditFilter;
use crate::model::template::{Precondition, TemplateSpec};
use crate::runtime::SandboxRuntime;
use crate::runtime::fake::{FakeCall, FakeFailure, FakeRuntime};
use crate::store::NewTemplate;

const OF_TEAM: ImageDigest = ImageDigest::from_bytes([8; 32]);
const STRANGER: ImageDigest = ImageDigest::from_bytes([9; 32]);

/// One whose backups have images: of the templates' files, and of a team's that is a snapshot. podman has one more.
async fn bench(change: impl FnOnce(&mut crate::model::settings::BackupConfig)) -> Bench {
    let bench = Bench::with(|config| {
        config.images = true;
        change(config);
    });
    let snapshot_of = Some(bench.store.installation().to_string());
    for (digest, snapshot_of) in [(OF_TEAM, snapshot_of), (STRANGER, None)] {
        bench.runtime.put_image(image(digest, snapshot_of));
    }
    put(&bench, OF_TEAM).await;
    bench
}

fn image(digest: ImageDigest, snapshot_of: Option<String>) -> Image {
    Image {
        digest,
        names: Vec::new(),
        size_bytes: 300_000,
        snapshot_of,
    }
}

/// A team's template of an image.
async fn put(bench: &Bench, image: ImageDigest) {
    let new = NewTemplate {
        team: "red".parse::<Name>().unwrap(),
        name: "a".parse().unwrap(),
        spec: TemplateSpec::new(image),
        precondition: Precondition::None,
        max: 9,
        by: "key".to_owned(),
        at: Timestamp::from_millis(1),
    };
    bench.store.put_template(new).await.unwrap();
}

async fn digests(runtime: &FakeRuntime) -> Vec<ImageDigest> {
    let mut images = runtime.images().await.unwrap();
    images.sort_by_key(|image| image.digest);
    images.into_iter().map(|image| image.digest).collect()
}

/// What was recorded of loads.
async fn loads(bench: &Bench) -> Vec<String> {
    let filter = AuditFilter {
        kinds: vec!["image.import".to_owned()],
        limit: 100,
        ..AuditFilter::default()
    };
    let lines = bench.store.audit_lines(filter).await.unwrap();
    let outcome = |(_, line): (i64, String)| {
        let record: serde_json::Value = serde_json::from_str(&line).unwrap();
        let outcome = record.get("outcome")?;
        let word = outcome.get("detail").or(outcome.get("code"));
        word?.as_str().map(str::to_owned)
    };
    lines.into_iter().filter_map(outcome).collect()
}

#[tokio::test]
async fn the_images_of_templates_come_along_and_are_loaded_where_they_are_restored() {
    let bench = bench(|_| {}).await;
    let made = bench.make(None).await.unwrap();
    assert_eq!((made.images, &made.images_missing[..]), (2, &[][..]));
    assert!(
        names(&bench.path("state"))
            .iter()
            .all(|name| !name.contains("partial"))
    );

    let elsewhere = tempfile::tempdir().unwrap();
    let place = place(elsewhere.path());
    let done = take(&made.path, None, &place, Wish::default()).unwrap();
    let inside: Vec<_> = done.manifest.images_in_it().collect();
    assert_eq!(done.manifest.format, 2);
    assert_eq!(done.manifest.images.len(), 3, "podman had one more");
    assert!(
        matches!(inside[..], [(IMAGE, small), (OF_TEAM, large)] if small < large && large > 300_000),
        "{inside:?}"
    );
    let found: Vec<_> = waiting(&place.state_dir)
        .into_iter()
        .map(|(image, _)| image)
        .collect();
    assert_eq!(found, [IMAGE, OF_TEAM]);

    // One of them is there already; the other comes with its label.
    let machine = FakeRuntime::new([IMAGE]);
    let began = std::sync::Mutex::new(Vec::new());
    load(&machine, &bench.audit, &place.state_dir, |image| {
        began.lock().unwrap().push(image);
    })
    .await
    .unwrap();
    assert_eq!(*began.lock().unwrap(), [OF_TEAM]);
    assert_eq!(digests(&machine).await, [IMAGE, OF_TEAM]);
    let snapshot = machine.images().await.unwrap().pop().unwrap();
    assert_eq!(
        snapshot.snapshot_of,
        Some(bench.store.installation().to_string())
    );
    assert_eq!(loads(&bench).await, [OF_TEAM.to_string()]);
    assert!(!place.state_dir.join(WAITING).exists());
    load(&machine, &bench.audit, &place.state_dir, |_| {
        panic!("there is nothing")
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_look_at_a_backup_leaves_no_image_and_a_state_put_aside_keeps_its_own() {
    let bench = bench(|_| {}).await;
    let made = bench.make(None).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let place = place(elsewhere.path());
    let wish = |replace, dry_run| Wish {
        replace,
        dry_run,
        ..Wish::default()
    };
    take(&made.path, None, &place, wish(false, true)).unwrap();
    assert!(names(&place.state_dir).is_empty());
    let done = take(&made.path, None, &place, wish(false, false)).unwrap();
    bench.runtime.remove_image(OF_TEAM).await.unwrap();
    put(&bench, STRANGER).await;
    // Within this millisecond they would have the same name.
    std::fs::remove_dir_all(done.templates.unwrap()).unwrap();
    let second = bench
        .make(Some(bench.path("elsewhere/second")))
        .await
        .unwrap();
    let done = take(&second.path, None, &place, wish(true, false)).unwrap();
    let of = |directory: &Path| {
        let found = waiting(directory).into_iter();
        found.map(|(image, _)| image).collect::<Vec<_>>()
    };
    assert_eq!(of(&place.state_dir), [IMAGE, STRANGER]);
    assert_eq!(of(&done.before.unwrap()), [IMAGE, OF_TEAM]);
}

#[tokio::test]
async fn without_an_image_or_with_half_of_one_there_is_no_backup() {
    let calls: [(FakeCall, FakeFailure); 3] = [
        (FakeCall::SaveImage, FakeFailure::Unavailable),
        (FakeCall::SaveImage, FakeFailure::AnswerLost),
        (FakeCall::SaveImage, FakeFailure::Refused),
    ];
    for (call, failure) in calls {
        let bench = bench(|_| {}).await;
        bench.runtime.fail(call, 2, failure);
        let refused = bench.make(None).await.unwrap_err();
        assert!(
            matches!(refused, BackupError::Image { image: OF_TEAM, .. }),
            "{failure:?}: {refused:?}"
        );
        nothing_is_left(&bench);
        let problem = bench.backups.problem().unwrap();
        assert!(problem.contains(&OF_TEAM.to_string()), "{problem}");
        bench.make(None).await.unwrap();
    }
}

#[tokio::test]
async fn a_daemon_that_stops_waits_for_no_image() {
    let bench = bench(|_| {}).await;
    bench
        .runtime
        .fail(FakeCall::SaveImage, 2, FakeFailure::Hangs);
    let (made, ()) = tokio::join!(bench.make(None), async {
        while bench.runtime.calls(FakeCall::SaveImage) < 2 {
            tokio::task::yield_now().await;
        }
        bench.backups.close().await;
    });
    assert!(matches!(made, Err(BackupError::Stopping)), "{made:?}");
    nothing_is_left(&bench);
}

fn nothing_is_left(bench: &Bench) {
    assert!(
        bench.names("backups").is_empty(),
        "{:?}",
        bench.names("backups")
    );
    let left = bench.names("state");
    assert!(
        left.iter().all(|name| !name.contains("partial")),
        "{left:?}"
    );
}

#[tokio::test]
async fn more_bytes_than_allowed_are_refused_with_the_key_that_allows_more() {
    let bench = bench(|config| config.max_images_bytes = 300_000).await;
    let refused = bench.make(None).await.unwrap_err();
    assert!(matches!(refused, BackupError::ImagesTooLarge(300_000)));
    assert!(refused.to_string().contains("backup.max_images_bytes"));
    nothing_is_left(&bench);
}

#[tokio::test]
async fn an_image_that_podman_has_no_more_is_named_and_the_rest_is_kept() {
    let bench = bench(|_| {}).await;
    bench.runtime.remove_image(OF_TEAM).await.unwrap();
    let made = bench.make(None).await.unwrap();
    assert_eq!((made.images, &made.images_missing[..]), (1, &[OF_TEAM][..]));
}

#[tokio::test]
async fn what_is_not_the_image_that_was_listed_is_not_kept() {
    let bench = bench(|_| {}).await;
    let directory = tempfile::tempdir().unwrap();
    let rooms = directory.path().join(WAITING);
    std::fs::create_dir(&rooms).unwrap();
    let file = |image: ImageDigest| rooms.join(format!("{}.tar", image.hex()));
    std::fs::write(file(OF_TEAM), STRANGER.to_string()).unwrap();
    std::fs::write(file(STRANGER), "no image at all").unwrap();
    std::fs::write(rooms.join("README"), "nothing of ours").unwrap();
    let machine = FakeRuntime::new([IMAGE]);
    load(&machine, &bench.audit, directory.path(), |_| {})
        .await
        .unwrap();
    assert_eq!(digests(&machine).await, [IMAGE]);
    assert_eq!(loads(&bench).await, ["other_image", "bad_archive"]);
    let left = [
        format!("{}.refused", OF_TEAM.hex()),
        format!("{}.tar", STRANGER.hex()),
        "README".to_owned(),
    ];
    assert_eq!(names(&rooms), left);
    // podman does not answer: it is tried again.
    machine.fail(FakeCall::LoadImage, 1, FakeFailure::Unavailable);
    let failed = load(&machine, &bench.audit, directory.path(), |_| {}).await;
    assert!(
        matches!(
            failed,
            Err(BackupError::Image {
                image: STRANGER,
                ..
            })
        ),
        "{failed:?}"
    );
    // What somebody had already is not taken away for being called otherwise.
    std::fs::write(file(OF_TEAM), IMAGE.to_string()).unwrap();
    std::fs::remove_file(file(STRANGER)).unwrap();
    load(&machine, &bench.audit, directory.path(), |_| {})
        .await
        .unwrap();
    assert_eq!(digests(&machine).await, [IMAGE]);
}

#[test]
fn an_archive_is_of_the_image_whose_configuration_it_holds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.tar");
    let hex = IMAGE.hex();
    for (name, is_it) in [
        (format!("blobs/sha256/{hex}"), true),
        (format!("{hex}.json"), true),
        (format!("blobs/sha256/{}", OF_TEAM.hex()), false),
        (format!("x/{hex}.json"), false),
    ] {
        let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        tar.append_data(&mut header, "large", &b"x"[..]).unwrap();
        tar.append_data(&mut header, &name, &b"x"[..]).unwrap();
        tar.into_inner().unwrap().flush().unwrap();
        assert_eq!(archive::holds_image(&path, IMAGE).unwrap(), is_it, "{name}");
    }
    std::fs::write(
        &path,
        "no archive, but as long as a block of one would be".repeat(20),
    )
    .unwrap();
    assert!(archive::holds_image(&path, IMAGE).is_err());
}

/// A disk that takes only so much of an image: no backup, and the next one is whole.
#[test]
fn where_the_disk_ends_in_an_image_there_is_no_backup() {
    use crate::host::child;
    const NAME: &str = "backup::images::tests::where_the_disk_ends_in_an_image_there_is_no_backup";
    if !child::is_child() {
        child::run(NAME, &[]);
        return;
    }
    let seen = std::sync::Arc::default();
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, seen).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let bench = bench(|_| {}).await;
        let mut large = image(OF_TEAM, None);
        large.size_bytes = 8 << 20;
        bench.runtime.put_image(large);
        let resource = nix::sys::resource::Resource::RLIMIT_FSIZE;
        let (soft, hard) = nix::sys::resource::getrlimit(resource).unwrap();
        nix::sys::resource::setrlimit(resource, 4 << 20, hard).unwrap();
        let refused = bench.make(None).await.unwrap_err();
        assert!(
            matches!(&refused, BackupError::File { doing: "write", path, .. } if path.ends_with(OF_TEAM.hex())),
            "{refused:?}"
        );
        nothing_is_left(&bench);
        nix::sys::resource::setrlimit(resource, soft, hard).unwrap();
        assert_eq!(bench.make(None).await.unwrap().images, 2);
    });
}
