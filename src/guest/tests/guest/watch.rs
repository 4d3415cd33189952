//! What the guest promises of watches, kept over a real link.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use casemate_link::daemon::{Link, Watch};
use casemate_link::file::{FileChange, FileEvent, Place, WatchRequest};
use casemate_link::refusal::code;
use tempfile::tempdir;

use crate::support::{Bench, at, put, refused, soon, writing};

async fn watch(link: &Link, path: &Path, recursive: bool) -> Watch {
    let place = at(path);
    soon(link.watch(&WatchRequest { place, recursive }))
        .await
        .unwrap()
}

/// The next event as text.
async fn next(watch: &mut Watch) -> String {
    match soon(watch.next()).await {
        Some(event) => shown(&event.unwrap()),
        None => "end".into(),
    }
}

fn shown(event: &FileEvent) -> String {
    let kind = if event.is_directory { "/" } else { "" };
    let to = event
        .to
        .as_ref()
        .map(|to| format!(" {to}"))
        .unwrap_or_default();
    format!("{:?} {}{kind}{to}", event.change, event.path)
}

/// All events up to the creation of a file that says so.
async fn until_now(watch: &mut Watch, dir: &Path) -> Vec<String> {
    let mark = dir.join("mark");
    fs::create_dir(&mark).unwrap();
    let mut events = Vec::new();
    loop {
        let event = next(watch).await;
        if event == "Create mark/" {
            fs::remove_dir(&mark).unwrap();
            assert_eq!(next(watch).await, "Remove mark/");
            return events;
        }
        events.push(event);
    }
}

#[tokio::test]
async fn what_happens_in_a_directory_is_told() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    let mut watch = watch(&link, dir.path(), false).await;
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    assert_eq!(
        until_now(&mut watch, dir.path()).await,
        ["Create file", "Write file"]
    );
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    fs::rename(&file, dir.path().join("other")).unwrap();
    fs::rename(dir.path().join("other"), dir.path().join("sub/out")).unwrap();
    fs::rename(dir.path().join("sub/out"), dir.path().join("back")).unwrap();
    fs::remove_file(dir.path().join("back")).unwrap();
    fs::create_dir(dir.path().join("new")).unwrap();
    fs::write(dir.path().join("new/unseen"), "").unwrap();
    let events = until_now(&mut watch, dir.path()).await;
    let expected = [
        "Chmod file",
        "Rename file other",
        "Remove other",
        "Create back",
        "Remove back",
        "Create new/",
    ];
    assert_eq!(events, expected);
}

#[tokio::test]
async fn a_burst_of_writes_is_one_event() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let file = dir.path().join("file");
    File::create(&file).unwrap();
    let mut watch = watch(&link, dir.path(), false).await;
    let mut open = OpenOptions::new().append(true).open(&file).unwrap();
    let began = std::time::Instant::now();
    for _ in 0..1000 {
        open.write_all(b"x").unwrap();
    }
    drop(open);
    // One for as long as the burst lasts on a slow machine.
    let most = usize::try_from(began.elapsed().as_millis() / 50).unwrap() + 1;
    let events = until_now(&mut watch, dir.path()).await;
    assert!((1..=most).contains(&events.len()), "{events:?}");
    assert!(events.iter().all(|event| event == "Write file"));
}

#[tokio::test]
async fn directories_below_are_watched_when_asked_for_also_new_ones() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("a/b")).unwrap();
    fs::create_dir(path("elsewhere")).unwrap();
    let outside = tempdir().unwrap();
    symlink(outside.path(), path("door")).unwrap();
    let mut watch = watch(&link, dir.path(), true).await;
    fs::write(outside.path().join("unseen"), "").unwrap();
    fs::create_dir(path("a/b/c")).unwrap();
    let mut events = until_now(&mut watch, dir.path()).await;
    assert_eq!(events, ["Create a/b/c/"]);
    File::create(path("a/b/c/file")).unwrap();
    events = until_now(&mut watch, dir.path()).await;
    assert_eq!(events, ["Create a/b/c/file", "Write a/b/c/file"]);
    // A directory that is renamed takes its own along.
    fs::rename(path("a/b"), path("moved")).unwrap();
    fs::remove_file(path("moved/c/file")).unwrap();
    events = until_now(&mut watch, dir.path()).await;
    assert_eq!(events, ["Rename a/b/ moved", "Remove moved/c/file"]);
    // One that leaves is not heard of any more.
    fs::rename(path("moved"), outside.path().join("gone")).unwrap();
    events = until_now(&mut watch, dir.path()).await;
    assert_eq!(events, ["Remove moved/"]);
    File::create(outside.path().join("gone/c/unseen")).unwrap();
    assert_eq!(until_now(&mut watch, dir.path()).await, [""; 0]);
    // One that arrives is looked into.
    fs::rename(outside.path().join("gone"), path("back")).unwrap();
    events = until_now(&mut watch, dir.path()).await;
    events.sort();
    assert_eq!(
        events,
        ["Create back/", "Create back/c/", "Create back/c/unseen"]
    );
}

#[tokio::test]
async fn nothing_in_a_new_tree_is_missed_or_told_twice() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let mut watch = watch(&link, dir.path(), true).await;
    let mut expected = Vec::new();
    for tree in 0..30 {
        let mut path = dir.path().to_owned();
        let mut relative = String::new();
        for level in 0..6 {
            relative = format!("{relative}{tree}-{level}");
            path.push(format!("{tree}-{level}"));
            fs::create_dir(&path).unwrap();
            expected.push(format!("Create {relative}/"));
            File::create(path.join("file")).unwrap();
            relative.push('/');
            expected.push(format!("Create {relative}file"));
        }
    }
    let mut events = until_now(&mut watch, dir.path()).await;
    // Of a file that is found nothing is known of its writing.
    events.retain(|event| event.starts_with("Create"));
    events.sort();
    expected.sort();
    assert_eq!(events, expected);
}

#[tokio::test]
async fn the_guests_own_writes_look_like_anybodys() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let mut watch = watch(&link, dir.path(), true).await;
    let file = dir.path().join("file");
    for expected in [&["Create file", "Write file"][..], &["Write file"]] {
        put(&link, &writing(&file), "x".into()).await.unwrap();
        assert_eq!(until_now(&mut watch, dir.path()).await, expected);
    }
}

#[tokio::test]
async fn a_file_alone_can_be_watched() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let mut watch = watch(&link, &file, false).await;
    fs::write(dir.path().join("other"), "x").unwrap();
    put(&link, &writing(&file), "y".into()).await.unwrap();
    assert_eq!(next(&mut watch).await, "Write ");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(next(&mut watch).await, "Chmod ");
    fs::remove_file(&file).unwrap();
    assert_eq!(next(&mut watch).await, "Remove ");
    assert_eq!(next(&mut watch).await, "end");
}

#[tokio::test]
async fn the_roots_own_end_is_the_end() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut first = watch(&link, &root, true).await;
    fs::remove_dir(&root).unwrap();
    let mut event = next(&mut first).await;
    while event == "Chmod /" {
        event = next(&mut first).await;
    }
    assert_eq!(event, "Remove /");
    assert_eq!(next(&mut first).await, "end");
    let place = at(&root);
    assert_eq!(
        refused(
            soon(link.watch(&WatchRequest {
                place,
                recursive: false
            }))
            .await
        ),
        code::FILE_NOT_FOUND
    );
}

#[tokio::test]
async fn a_slow_reader_hears_that_it_missed_something() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let mut watch = watch(&link, dir.path(), false).await;
    for number in 0..30_000 {
        File::create(dir.path().join(number.to_string())).unwrap();
    }
    let mut told = 0;
    loop {
        let event = soon(watch.next()).await.unwrap().unwrap();
        told += 1;
        if event.change == FileChange::Overflow {
            break;
        }
    }
    assert!(told < 30_000);
}

#[tokio::test]
async fn who_may_not_read_a_directory_may_not_watch_it() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
    let place = Place {
        user: Some("nobody".into()),
        ..at(dir.path())
    };
    let request = WatchRequest {
        place,
        recursive: true,
    };
    assert_eq!(refused(soon(link.watch(&request)).await), code::FILE_DENIED);
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(dir.path().join("closed")).unwrap();
    fs::set_permissions(dir.path().join("closed"), Permissions::from_mode(0o700)).unwrap();
    let mut watch = soon(link.watch(&request)).await.unwrap();
    File::create(dir.path().join("closed/unseen")).unwrap();
    assert_eq!(until_now(&mut watch, dir.path()).await, [""; 0]);
}
