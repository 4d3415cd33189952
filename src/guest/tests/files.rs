//! What the guest promises of files, kept over a real link. Nothing here needs a sandbox.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test is a panic"
)]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use casemate_link::daemon::{Link, LinkError};
use casemate_link::file::{
    FileKind, LinkRequest, ListRequest, MkdirRequest, MoveRequest, Place, ReadRange, ReadRequest,
    RemoveRequest, SetRequest, StatRequest, WriteCondition,
};
use casemate_link::refusal::code;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use support::{
    Bench, all, at, names_in, pattern, put, refused, resident_kib, soon, until, writing,
};
use tempfile::{TempDir, tempdir};

/// A guest, and a directory of the test's own that every user may enter.
async fn bench() -> (Bench, Link, TempDir) {
    let (bench, link) = Bench::start_with_channels().await;
    let dir = tempdir().unwrap();
    chmod(dir.path(), 0o755);
    (bench, link, dir)
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A place, acted on by the user who may do least.
fn as_nobody(path: &Path) -> Place {
    Place {
        user: Some("nobody".into()),
        ..at(path)
    }
}

async fn get(link: &Link, path: &Path, range: Option<ReadRange>) -> Result<Vec<u8>, LinkError> {
    let place = at(path);
    all(soon(link.read(&ReadRequest { place, range })).await?).await
}

async fn rename(link: &Link, from: &Path, to: &Path, overwrite: bool) -> Result<(), LinkError> {
    let request = MoveRequest {
        place: at(from),
        to: to.to_str().unwrap().into(),
        overwrite,
        create_parents: false,
    };
    let entry = soon(link.rename(&request)).await?;
    assert_eq!(Path::new(&entry.path), to);
    Ok(())
}

async fn remove(link: &Link, path: &Path, recursive: bool) -> Result<(), LinkError> {
    let place = at(path);
    soon(link.remove(&RemoveRequest { place, recursive })).await
}

async fn list(link: &Link, path: &Path, depth: u32, limit: u32) -> (Vec<String>, bool) {
    let place = at(path);
    let request = ListRequest {
        place,
        depth,
        limit,
    };
    let listing = soon(link.list(&request)).await.unwrap();
    let below = |path: &str| {
        path.strip_prefix(&format!("{}/", request.place.path))
            .unwrap()
            .to_owned()
    };
    (
        listing
            .entries
            .iter()
            .map(|entry| below(&entry.path))
            .collect(),
        listing.is_cut,
    )
}

#[tokio::test]
async fn what_is_known_of_a_file_is_told() {
    let (_bench, link, dir) = bench().await;
    let file = dir.path().join("file");
    fs::write(&file, "12345").unwrap();
    chmod(&file, 0o640);
    symlink("file", dir.path().join("link")).unwrap();
    let stat = async |name: &str, follow| {
        let place = at(dir.path().join(name));
        soon(link.stat(&StatRequest { place, follow })).await
    };
    let entry = stat("./file", false).await.unwrap();
    let known = fs::metadata(&file).unwrap();
    assert_eq!(entry.path, file.to_str().unwrap());
    assert_eq!(
        (entry.kind, entry.size_bytes, entry.mode),
        (FileKind::File, 5, 0o640)
    );
    assert_eq!((entry.uid, entry.gid), (known.uid(), known.gid()));
    assert_eq!(
        entry.modified_ms,
        known.mtime() * 1000 + known.mtime_nsec() / 1_000_000
    );
    assert!(entry.is_exact && entry.metadata.is_empty() && entry.target.is_none());
    if is_root() {
        assert_eq!(
            (entry.owner.as_deref(), entry.group.as_deref()),
            (Some("root"), Some("root"))
        );
    }
    let link_itself = stat("link", false).await.unwrap();
    assert_eq!(
        (link_itself.kind, link_itself.target.as_deref()),
        (FileKind::Symlink, Some("file"))
    );
    let followed = stat("link", true).await.unwrap();
    assert_eq!(
        (followed.kind, &followed.etag),
        (FileKind::File, &entry.etag)
    );
    assert_eq!(stat("", false).await.unwrap().kind, FileKind::Directory);
    assert_eq!(refused(stat("none", false).await), code::FILE_NOT_FOUND);
    assert_eq!(
        refused(stat("file/none", false).await),
        code::FILE_NOT_FOUND
    );

    fs::write(&file, "54321").unwrap();
    assert_ne!(stat("file", false).await.unwrap().etag, entry.etag);
}

#[tokio::test]
async fn places_that_cannot_be_are_refused() {
    let (_bench, link, dir) = bench().await;
    let stat = async |place: Place| {
        refused(
            soon(link.stat(&StatRequest {
                place,
                follow: true,
            }))
            .await,
        )
    };
    assert_eq!(stat(Place::new("")).await, code::BAD_SPEC);
    assert_eq!(stat(Place::new("a\0b")).await, code::BAD_SPEC);
    assert_eq!(stat(Place::new("x".repeat(4096))).await, code::BAD_SPEC);
    assert_eq!(
        stat(at(dir.path().join("x".repeat(300)))).await,
        code::FILE_FAILED
    );
    let unknown = Place {
        user: Some("no-such-user".into()),
        ..Place::new("/")
    };
    assert_eq!(stat(unknown).await, code::UNKNOWN_USER);
}

#[tokio::test]
async fn relative_paths_begin_at_home() {
    let (_bench, link, _dir) = bench().await;
    let place = Place {
        path: ".".into(),
        ..at("/")
    };
    let entry = soon(link.stat(&StatRequest {
        place,
        follow: true,
    }))
    .await
    .unwrap();
    let home = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .unwrap()
        .unwrap()
        .dir;
    assert_eq!(Path::new(&entry.path), home);
}

#[tokio::test]
async fn a_list_is_in_order_and_bounded() {
    let (_bench, link, dir) = bench().await;
    fs::create_dir_all(dir.path().join("b/c/d")).unwrap();
    for file in ["a", "b/2", "b/1", "b/c/x", "z"] {
        fs::write(dir.path().join(file), "").unwrap();
    }
    symlink(".", dir.path().join("loop")).unwrap();
    assert_eq!(
        list(&link, dir.path(), 1, 100).await,
        (
            vec!["a".into(), "b".into(), "loop".into(), "z".into()],
            false
        )
    );
    let deep = ["a", "b", "b/1", "b/2", "b/c", "b/c/d", "b/c/x", "loop", "z"]
        .map(str::to_owned)
        .to_vec();
    assert_eq!(list(&link, dir.path(), 64, 9).await, (deep.clone(), false));
    assert_eq!(
        list(&link, dir.path(), 64, 8).await,
        (deep[..8].to_vec(), true)
    );
    assert_eq!(list(&link, dir.path(), 2, 100).await.0.len(), 7);

    let file = dir.path().join("a");
    let of = async |path: &Path, depth, limit| {
        let place = at(path);
        refused(
            soon(link.list(&ListRequest {
                place,
                depth,
                limit,
            }))
            .await,
        )
    };
    assert_eq!(of(&file, 1, 1).await, code::WRONG_FILE_KIND);
    assert_eq!(
        of(&dir.path().join("none"), 1, 1).await,
        code::FILE_NOT_FOUND
    );
    assert_eq!(of(dir.path(), 0, 1).await, code::BAD_SPEC);
}

#[tokio::test]
async fn a_list_of_many_comes_whole() {
    let (_bench, link, dir) = bench().await;
    for number in 0..3000 {
        File::create(dir.path().join(format!("{number:04}"))).unwrap();
    }
    let (names, is_cut) = list(&link, dir.path(), 1, 10_000).await;
    assert!(names.len() == 3000 && names.is_sorted() && !is_cut);
    let (names, is_cut) = list(&link, dir.path(), 1, 2000).await;
    assert!(names.len() == 2000 && names[1999] == "1999" && is_cut);
}

#[tokio::test]
async fn a_name_that_is_no_text_is_listed_as_such() {
    let (_bench, link, dir) = bench().await;
    fs::write(dir.path().join(OsStr::from_bytes(b"a\xff")), "").unwrap();
    let place = at(dir.path());
    let listing = soon(link.list(&ListRequest {
        place,
        depth: 1,
        limit: 5,
    }))
    .await
    .unwrap();
    assert!(listing.entries[0].path.ends_with("a\u{fffd}") && !listing.entries[0].is_exact);
}

#[tokio::test]
async fn files_come_whole_and_in_parts() {
    let (_bench, link, dir) = bench().await;
    let (file, data) = (dir.path().join("file"), pattern(1_000_003));
    fs::write(&file, &data).unwrap();
    assert!(get(&link, &file, None).await.unwrap() == data);
    let part = async |range| get(&link, &file, Some(range)).await;
    assert!(part(ReadRange::From(262_143, Some(300_000))).await.unwrap() == data[262_143..562_143]);
    assert!(part(ReadRange::From(1_000_000, None)).await.unwrap() == data[1_000_000..]);
    assert!(part(ReadRange::Last(5)).await.unwrap() == data[999_998..]);
    assert!(
        part(ReadRange::From(1_000_002, Some(u64::MAX)))
            .await
            .unwrap()
            == data[1_000_002..]
    );
    for outside in [ReadRange::From(1_000_003, None), ReadRange::Last(0)] {
        assert_eq!(refused(part(outside).await), code::BAD_RANGE);
    }
    fs::write(&file, "").unwrap();
    assert!(get(&link, &file, None).await.unwrap().is_empty());
}

#[tokio::test]
async fn only_files_are_read_and_nothing_blocks() {
    let (_bench, link, dir) = bench().await;
    let fifo = dir.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    assert_eq!(
        refused(get(&link, &fifo, None).await),
        code::WRONG_FILE_KIND
    );
    assert_eq!(
        refused(get(&link, dir.path(), None).await),
        code::WRONG_FILE_KIND
    );
    assert_eq!(
        refused(get(&link, Path::new("/dev/zero"), None).await),
        code::WRONG_FILE_KIND
    );
    assert_eq!(
        refused(get(&link, &dir.path().join("none"), None).await),
        code::FILE_NOT_FOUND
    );
    for append in [false, true] {
        let mut request = writing(&fifo);
        request.append = append;
        assert_eq!(
            refused(put(&link, &request, Bytes::new()).await),
            code::WRONG_FILE_KIND
        );
    }
}

#[tokio::test]
async fn a_file_that_shrinks_meanwhile_is_not_passed_off_as_whole() {
    let (_bench, link, dir) = bench().await;
    let path = dir.path().join("file");
    let file = File::create(&path).unwrap();
    file.set_len(100 << 20).unwrap();
    let place = at(&path);
    let reader = soon(link.read(&ReadRequest { place, range: None }))
        .await
        .unwrap();
    file.set_len(1000).unwrap();
    assert_eq!(refused(all(reader).await), code::FILE_FAILED);
}

#[tokio::test]
async fn huge_files_take_no_memory() {
    let (bench, link, dir) = bench().await;
    let path = dir.path().join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(3 << 30).unwrap();
    file.write_all_at(b"end", (3 << 30) - 3).unwrap();
    let place = at(&path);
    let mut reader = soon(link.read(&ReadRequest { place, range: None }))
        .await
        .unwrap();
    let (mut seen, mut most, mut last) = (0_u64, 0, Bytes::new());
    while let Some(data) = soon(reader.next()).await {
        last = data.unwrap();
        if seen.is_multiple_of(512) {
            most = most.max(resident_kib(bench.guest.id()));
        }
        seen += last.len() as u64;
    }
    assert_eq!(seen, 3 << 30);
    assert!(last.ends_with(b"end"));
    assert!(most < 24 * 1024, "{most} KiB");
}

#[tokio::test]
async fn a_hundred_unread_files_do_not_hold_up_another() {
    let (_bench, link, dir) = bench().await;
    let path = dir.path().join("file");
    fs::write(&path, pattern(2_000_000)).unwrap();
    let mut stalled = Vec::new();
    for _ in 0..100 {
        let place = at(&path);
        stalled.push(
            soon(link.read(&ReadRequest { place, range: None }))
                .await
                .unwrap(),
        );
        let writer = soon(link.write(&writing(dir.path().join("other")), None)).await;
        // The daemon's bound is on both together.
        drop(writer);
    }
    let small = dir.path().join("small");
    fs::write(&small, "x").unwrap();
    assert_eq!(get(&link, &small, None).await.unwrap(), b"x");
    drop(stalled);
    until("nothing half is left", || {
        names_in(dir.path()) == ["file", "small"]
    })
    .await;
}

#[tokio::test]
async fn a_written_file_has_what_was_asked_for() {
    let (_bench, link, dir) = bench().await;
    let (file, data) = (dir.path().join("file"), pattern(3_000_000));
    let mut request = writing(&file);
    request.metadata = Some(BTreeMap::from([("project".into(), "Ä 1".into())]));
    request.sync = true;
    let entry = put(&link, &request, data.clone()).await.unwrap();
    assert!(fs::read(&file).unwrap() == data);
    assert_eq!(
        (entry.mode, entry.size_bytes, &entry.metadata["project"][..]),
        (0o644, 3_000_000, "Ä 1")
    );
    assert_eq!(names_in(dir.path()), ["file"]);

    // Replaced, it keeps mode and metadata unless others are given, and is another file.
    chmod(&file, 0o4750);
    let inode = fs::metadata(&file).unwrap().ino();
    let entry = put(&link, &writing(&file), "new".into()).await.unwrap();
    assert_eq!((entry.mode, entry.metadata.len()), (0o750, 1));
    assert_ne!(fs::metadata(&file).unwrap().ino(), inode);
    let mut request = writing(&file);
    (request.mode, request.metadata) = (Some(0o600), Some(BTreeMap::new()));
    let entry = put(&link, &request, Bytes::new()).await.unwrap();
    assert_eq!(
        (entry.mode, entry.size_bytes, entry.metadata.len()),
        (0o600, 0, 0)
    );
}

#[tokio::test]
async fn bytes_are_added_in_place() {
    let (_bench, link, dir) = bench().await;
    let file = dir.path().join("file");
    let mut request = writing(&file);
    request.append = true;
    put(&link, &request, "one ".into()).await.unwrap();
    let inode = fs::metadata(&file).unwrap().ino();
    put(&link, &request, "two".into()).await.unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"one two");
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
    request.only_if = Some(WriteCondition::Absent);
    assert_eq!(
        refused(put(&link, &request, "x".into()).await),
        code::CONDITION_FAILED
    );
}

#[tokio::test]
async fn parents_are_made_when_asked_for() {
    let (_bench, link, dir) = bench().await;
    let mut request = writing(dir.path().join("a/b/file"));
    assert_eq!(
        refused(put(&link, &request, "x".into()).await),
        code::FILE_NOT_FOUND
    );
    request.create_parents = true;
    put(&link, &request, "x".into()).await.unwrap();
    request.place = at(dir.path().join("a/b/file/c"));
    let failure = put(&link, &request, "x".into()).await.unwrap_err();
    assert!(
        failure.to_string().contains("directories on the way"),
        "{failure}"
    );
    for path in ["a/b", "a/b/", "new/"] {
        let place = Place {
            path: format!("{}/{path}", dir.path().display()),
            ..at("/")
        };
        let request = casemate_link::file::WriteRequest {
            place,
            ..writing("/")
        };
        assert_eq!(
            refused(put(&link, &request, "x".into()).await),
            code::WRONG_FILE_KIND,
            "{path}"
        );
    }
}

#[tokio::test]
async fn writes_go_where_a_symbolic_link_leads() {
    let (_bench, link, dir) = bench().await;
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("real")).unwrap();
    symlink("real/file", path("link")).unwrap();
    symlink(path("link"), path("again")).unwrap();
    put(&link, &writing(path("again")), "new".into())
        .await
        .unwrap();
    assert_eq!(fs::read(path("real/file")).unwrap(), b"new");
    assert!(path("again").is_symlink() && path("link").is_symlink());
    assert_eq!(names_in(&path("real")), ["file"]);
    symlink("loop", path("loop")).unwrap();
    assert_eq!(
        refused(put(&link, &writing(path("loop")), "x".into()).await),
        code::WRONG_FILE_KIND
    );
}

#[tokio::test]
async fn conditions_are_kept() {
    let (_bench, link, dir) = bench().await;
    let file = dir.path().join("file");
    let put_if = async |condition, text: &'static str| {
        let mut request = writing(&file);
        request.only_if = Some(condition);
        put(&link, &request, text.into()).await
    };
    assert_eq!(
        refused(put_if(WriteCondition::Present, "0").await),
        code::CONDITION_FAILED
    );
    let first = put_if(WriteCondition::Absent, "1").await.unwrap();
    assert_eq!(
        refused(put_if(WriteCondition::Absent, "2").await),
        code::CONDITION_FAILED
    );
    put_if(WriteCondition::Present, "3").await.unwrap();
    let stale = WriteCondition::Etag(vec![first.etag]);
    assert_eq!(refused(put_if(stale, "4").await), code::CONDITION_FAILED);
    assert_eq!(fs::read(&file).unwrap(), b"3");

    // What comes to be while the bytes come counts, too.
    let mut request = writing(dir.path().join("late"));
    request.only_if = Some(WriteCondition::Absent);
    let mut writer = soon(link.write(&request, None)).await.unwrap();
    writer.write("theirs".into()).await.unwrap();
    fs::write(dir.path().join("late"), "mine").unwrap();
    assert_eq!(refused(soon(writer.commit()).await), code::CONDITION_FAILED);
    assert_eq!(fs::read(dir.path().join("late")).unwrap(), b"mine");
    assert_eq!(names_in(dir.path()), ["file", "late"]);
}

#[tokio::test]
async fn of_many_with_one_condition_one_wins() {
    let (_bench, link, dir) = bench().await;
    let file = dir.path().join("file");
    for round in 0..100_u32 {
        let mut request = writing(&file);
        let before = put(&link, &request, round.to_string().into())
            .await
            .unwrap();
        request.only_if = Some(WriteCondition::Etag(vec![before.etag]));
        let mut writers = Vec::new();
        for writer in 0..16 {
            let mut open = soon(link.write(&request, None)).await.unwrap();
            let text = format!("{round} {writer}");
            soon(open.write(text.into())).await.unwrap();
            writers.push(open);
        }
        // All at once, when nothing is left to do but to take the name.
        let commits = writers
            .into_iter()
            .map(|writer| tokio::spawn(writer.commit()));
        let mut won = 0;
        for commit in commits.collect::<Vec<_>>() {
            won += usize::from(soon(commit).await.unwrap().is_ok());
        }
        assert_eq!(won, 1);
    }
}

#[tokio::test]
async fn of_many_writers_one_wins_whole() {
    let (_bench, link, dir) = bench().await;
    let file = dir.path().join("file");
    let mut tasks = tokio::task::JoinSet::new();
    for letter in b'a'..b'q' {
        let (link, request) = (link.clone(), writing(&file));
        tasks.spawn(async move {
            put(&link, &request, vec![letter; 400_000].into())
                .await
                .unwrap()
        });
    }
    tasks.join_all().await;
    let data = fs::read(&file).unwrap();
    assert!(data.len() == 400_000 && data.iter().all(|byte| *byte == data[0]));
    assert_eq!(names_in(dir.path()), ["file"]);
}

#[tokio::test]
async fn a_cut_upload_leaves_the_old_file() {
    let (_bench, link, dir) = bench().await;
    let file = dir.path().join("file");
    fs::write(&file, "old").unwrap();
    let mut writer = soon(link.write(&writing(&file), None)).await.unwrap();
    soon(writer.write(pattern(1_000_000))).await.unwrap();
    assert_eq!(names_in(dir.path()).len(), 2);
    drop(writer);
    until("the temporary file is gone", || {
        names_in(dir.path()) == ["file"]
    })
    .await;
    assert_eq!(fs::read(&file).unwrap(), b"old");
    // So does the loss of the link.
    let mut writer = soon(link.write(&writing(&file), None)).await.unwrap();
    soon(writer.write(pattern(1_000_000))).await.unwrap();
    link.close();
    until("the temporary file is gone", || {
        names_in(dir.path()) == ["file"]
    })
    .await;
    assert_eq!(fs::read(&file).unwrap(), b"old");
}

#[tokio::test]
async fn a_full_disk_leaves_the_old_file() {
    let (bench, link, dir) = bench().await;
    let file = dir.path().join("file");
    fs::write(&file, "old").unwrap();
    let limit = std::process::Command::new("prlimit")
        .args(["--pid", &bench.guest.id().to_string(), "--fsize=1000000"])
        .status();
    assert!(limit.unwrap().success());
    assert_eq!(
        refused(put(&link, &writing(&file), pattern(5_000_000)).await),
        code::DISK_FULL
    );
    until("the temporary file is gone", || {
        names_in(dir.path()) == ["file"]
    })
    .await;
    assert_eq!(fs::read(&file).unwrap(), b"old");
    put(&link, &writing(&file), pattern(1_000_000))
        .await
        .unwrap();
    // The signal that says so is for programs as it always was.
    let script = format!("head -c 2000000 /dev/zero > {}/big", dir.path().display());
    let outcome = support::run(&link, support::shell(&script)).await;
    assert_eq!(outcome.exit.exit_code, Some(128 + 25), "{outcome:?}");
}

#[tokio::test]
async fn directories_are_made_once() {
    let (_bench, link, dir) = bench().await;
    let mkdir = async |name: &str, mode, parents| {
        let place = at(dir.path().join(name));
        soon(link.mkdir(&MkdirRequest {
            place,
            mode,
            parents,
        }))
        .await
    };
    let made = mkdir("a", None, false).await.unwrap();
    assert!(made.created && made.entry.kind == FileKind::Directory && made.entry.mode == 0o755);
    assert!(!mkdir("a", Some(0o700), false).await.unwrap().created);
    assert_eq!(
        mkdir("b", Some(0o1777), false).await.unwrap().entry.mode,
        0o1777
    );
    assert_eq!(
        refused(mkdir("c/d", None, false).await),
        code::FILE_NOT_FOUND
    );
    assert!(mkdir("c/d", None, true).await.unwrap().created);
    fs::write(dir.path().join("file"), "").unwrap();
    assert_eq!(refused(mkdir("file", None, false).await), code::FILE_EXISTS);
    assert_eq!(
        refused(mkdir("x", Some(0o10000), false).await),
        code::BAD_SPEC
    );
}

#[tokio::test]
async fn things_are_moved_and_nothing_is_replaced_unasked() {
    let (_bench, link, dir) = bench().await;
    let path = |name: &str| dir.path().join(name);
    for file in ["a", "b"] {
        fs::write(path(file), file).unwrap();
    }
    fs::create_dir_all(path("d/e")).unwrap();
    assert_eq!(
        refused(rename(&link, &path("a"), &path("b"), false).await),
        code::FILE_EXISTS
    );
    rename(&link, &path("a"), &path("b"), true).await.unwrap();
    assert_eq!(fs::read(path("b")).unwrap(), b"a");
    assert_eq!(
        refused(rename(&link, &path("a"), &path("c"), false).await),
        code::FILE_NOT_FOUND
    );
    assert_eq!(
        refused(rename(&link, &path("b"), &path("d"), true).await),
        code::WRONG_FILE_KIND
    );
    assert_eq!(
        refused(rename(&link, &path("d"), &path("b"), true).await),
        code::WRONG_FILE_KIND
    );
    fs::create_dir(path("f")).unwrap();
    assert_eq!(
        refused(rename(&link, &path("f"), &path("d"), true).await),
        code::FILE_EXISTS
    );
    rename(&link, &path("d"), &path("g"), false).await.unwrap();
    assert!(path("g/e").is_dir());
}

#[tokio::test]
async fn things_are_moved_to_another_file_system() {
    let (_bench, link, dir) = bench().await;
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    let (from, to) = (dir.path().join("tree"), other.path().join("tree"));
    assert_ne!(
        fs::metadata(dir.path()).unwrap().dev(),
        fs::metadata(other.path()).unwrap().dev()
    );
    fs::create_dir_all(from.join("sub/deep")).unwrap();
    fs::write(from.join("sub/file"), pattern(700_000)).unwrap();
    chmod(&from.join("sub/file"), 0o640);
    chmod(&from.join("sub/deep"), 0o500);
    symlink("/nowhere", from.join("link")).unwrap();
    let time = fs::metadata(from.join("sub/file")).unwrap().mtime();
    rename(&link, &from, &to, false).await.unwrap();
    assert!(!from.exists());
    assert!(fs::read(to.join("sub/file")).unwrap() == pattern(700_000));
    let copied = fs::metadata(to.join("sub/file")).unwrap();
    assert_eq!((copied.mode() & 0o7777, copied.mtime()), (0o640, time));
    assert_eq!(
        fs::metadata(to.join("sub/deep")).unwrap().mode() & 0o7777,
        0o500
    );
    assert_eq!(
        fs::read_link(to.join("link")).unwrap(),
        Path::new("/nowhere")
    );
    assert_eq!(names_in(other.path()), ["tree"]);

    // What cannot be moved stays, and leaves nothing.
    let odd = other.path().join("odd");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("file"), "x").unwrap();
    mkfifo(&odd.join("fifo"), Mode::S_IRWXU).unwrap();
    let target = dir.path().join("odd");
    assert_eq!(
        refused(rename(&link, &odd, &target, false).await),
        code::WRONG_FILE_KIND
    );
    assert_eq!(
        (names_in(&odd), names_in(dir.path())),
        (vec!["fifo".into(), "file".into()], vec![])
    );
    fs::write(&target, "there").unwrap();
    assert_eq!(
        refused(rename(&link, &odd.join("file"), &target, false).await),
        code::FILE_EXISTS
    );
    assert_eq!(
        (fs::read(&target).unwrap(), names_in(dir.path())),
        (b"there".to_vec(), vec!["odd".to_owned()])
    );
    rename(&link, &odd.join("file"), &target, true)
        .await
        .unwrap();
    assert_eq!(
        (fs::read(&target).unwrap(), names_in(&odd)),
        (b"x".to_vec(), vec!["fifo".to_owned()])
    );
}

#[tokio::test]
async fn trees_are_removed_and_what_links_lead_to_is_not() {
    let (_bench, link, dir) = bench().await;
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("tree/sub")).unwrap();
    fs::create_dir(path("safe")).unwrap();
    fs::write(path("safe/file"), "x").unwrap();
    symlink(path("safe"), path("tree/sub/link")).unwrap();
    symlink(path("safe"), path("link")).unwrap();
    for number in 0..1500 {
        File::create(path("tree").join(number.to_string())).unwrap();
    }
    assert_eq!(
        refused(remove(&link, &path("tree"), false).await),
        code::FILE_EXISTS
    );
    assert_eq!(
        refused(remove(&link, &path("none"), true).await),
        code::FILE_NOT_FOUND
    );
    assert_eq!(
        refused(remove(&link, &path("none"), false).await),
        code::FILE_NOT_FOUND
    );
    remove(&link, &path("tree"), true).await.unwrap();
    remove(&link, &path("link"), true).await.unwrap();
    assert_eq!(names_in(dir.path()), ["safe"]);
    remove(&link, &path("safe/file"), false).await.unwrap();
    remove(&link, &path("safe"), false).await.unwrap();
    for root in ["/", "/..", "/usr/.."] {
        assert_eq!(
            refused(remove(&link, Path::new(root), true).await),
            code::WRONG_FILE_KIND
        );
    }
}

#[tokio::test]
async fn a_deep_tree_is_removed() {
    let (_bench, link, dir) = bench().await;
    let tree = dir.path().join("tree");
    let mut path = tree.clone();
    for _ in 0..500 {
        path.push("deep");
    }
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("file"), "x").unwrap();
    remove(&link, &tree, true).await.unwrap();
    assert_eq!(names_in(dir.path()), [""; 0]);
}

#[tokio::test]
async fn removing_never_leaves_the_tree_whatever_is_swapped() {
    let (_bench, link, dir) = bench().await;
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("safe")).unwrap();
    for number in 0..50 {
        fs::write(path("safe").join(number.to_string()), "x").unwrap();
    }
    let over = Arc::new(AtomicBool::new(false));
    let (seen, root) = (Arc::clone(&over), dir.path().to_owned());
    let swapper = std::thread::spawn(move || {
        // A directory, a link to what must stay, in turn.
        let (real, link) = (root.join("tree/swapped"), root.join("tree/link"));
        while !seen.load(Ordering::Relaxed) {
            let _ = fs::create_dir(&real);
            let _ = fs::write(real.join("x"), "");
            let _ = symlink(root.join("safe"), &link);
            let _ = fs::rename(&real, root.join("tree/aside"));
            let _ = fs::rename(&link, &real);
        }
    });
    for _ in 0..300 {
        fs::create_dir_all(path("tree/swapped")).ok();
        // It may find something new again and again, and give up.
        let _ = remove(&link, &path("tree"), true).await;
    }
    over.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    // The swapper itself writes one more through its link.
    let left = names_in(&path("safe"));
    assert_eq!(left.iter().filter(|name| *name != "x").count(), 50);
}

#[tokio::test]
async fn links_are_made_as_they_are_said() {
    let (_bench, link, dir) = bench().await;
    let place = at(dir.path().join("link"));
    let request = LinkRequest {
        place,
        target: "../no where".into(),
    };
    let entry = soon(link.symlink(&request)).await.unwrap();
    assert_eq!(
        (entry.kind, entry.target.as_deref()),
        (FileKind::Symlink, Some("../no where"))
    );
    assert_eq!(
        refused(soon(link.symlink(&request)).await),
        code::FILE_EXISTS
    );
}

#[tokio::test]
async fn what_is_known_of_a_file_is_set() {
    let (_bench, link, dir) = bench().await;
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let set = async |change: fn(&mut SetRequest)| {
        let mut request = SetRequest {
            place: at(&file),
            ..SetRequest::default()
        };
        change(&mut request);
        soon(link.set(&request)).await
    };
    let entry = set(|set| {
        set.mode = Some(0o604);
        set.metadata = Some(BTreeMap::from([
            ("a".into(), "1".into()),
            ("b".into(), "2".into()),
        ]));
    });
    let entry = entry.await.unwrap();
    assert_eq!((entry.mode, entry.metadata.len()), (0o604, 2));
    let entry = set(|set| set.metadata = Some(BTreeMap::from([("b".into(), "3".into())])))
        .await
        .unwrap();
    assert_eq!(
        (entry.mode, entry.metadata),
        (0o604, BTreeMap::from([("b".into(), "3".into())]))
    );
    let unknown = set(|set| set.owner = Some("no-such-user".into())).await;
    assert_eq!(refused(unknown), code::UNKNOWN_USER);
    if is_root() {
        let entry = set(|set| {
            set.owner = Some("nobody".into());
            set.group = Some("12".into());
        });
        let entry = entry.await.unwrap();
        assert_eq!((entry.owner.as_deref(), entry.gid), (Some("nobody"), 12));
    }
}

#[tokio::test]
async fn each_user_has_their_own_rights_and_no_others() {
    if !is_root() {
        return;
    }
    let (_bench, link, dir) = bench().await;
    let path = |name: &str| dir.path().join(name);
    fs::write(path("secret"), "x").unwrap();
    chmod(&path("secret"), 0o600);
    fs::create_dir(path("open")).unwrap();
    chmod(&path("open"), 0o777);
    fs::write(path("open/roots"), "x").unwrap();
    fs::create_dir(path("closed")).unwrap();
    chmod(&path("closed"), 0o700);
    let denied = code::FILE_DENIED;
    for _ in 0..20 {
        // On threads that were root a moment ago.
        assert_eq!(get(&link, &path("secret"), None).await.unwrap(), b"x");
        let place = as_nobody(&path("secret"));
        assert_eq!(
            refused(soon(link.read(&ReadRequest { place, range: None })).await),
            denied
        );
    }
    let writing_as_nobody = |name: &str| casemate_link::file::WriteRequest {
        place: as_nobody(&path(name)),
        ..writing("/")
    };
    assert_eq!(
        refused(put(&link, &writing_as_nobody("new"), "x".into()).await),
        denied
    );
    assert_eq!(
        refused(put(&link, &writing_as_nobody("open/roots"), "x".into()).await),
        denied
    );
    assert_eq!(
        refused(put(&link, &writing_as_nobody("closed/x"), "x".into()).await),
        denied
    );
    let place = as_nobody(&path("closed"));
    assert_eq!(
        refused(
            soon(link.list(&ListRequest {
                place,
                depth: 1,
                limit: 1
            }))
            .await
        ),
        denied
    );
    let place = as_nobody(&path("open"));
    assert_eq!(
        refused(
            soon(link.remove(&RemoveRequest {
                place,
                recursive: true
            }))
            .await
        ),
        denied
    );
    let request = SetRequest {
        place: as_nobody(&path("open/roots")),
        mode: Some(0o666),
        ..SetRequest::default()
    };
    assert_eq!(refused(soon(link.set(&request)).await), denied);

    let entry = put(&link, &writing_as_nobody("open/theirs"), "x".into())
        .await
        .unwrap();
    assert_eq!((entry.owner.as_deref(), entry.uid), (Some("nobody"), 65534));
    let request = SetRequest {
        place: as_nobody(&path("open/theirs")),
        owner: Some("root".into()),
        ..SetRequest::default()
    };
    assert_eq!(refused(soon(link.set(&request)).await), denied);
    // A tree with a closed directory is listed, but for what is in that.
    let place = as_nobody(dir.path());
    let listing = soon(link.list(&ListRequest {
        place,
        depth: 5,
        limit: 50,
    }))
    .await
    .unwrap();
    assert!(
        listing
            .entries
            .iter()
            .any(|entry| entry.path.ends_with("/closed"))
    );
}

#[tokio::test]
async fn many_users_at_once_are_never_mistaken_for_one_another() {
    if !is_root() {
        return;
    }
    let (_bench, link, dir) = bench().await;
    chmod(dir.path(), 0o777);
    let mut tasks = tokio::task::JoinSet::new();
    for uid in 20_000..20_040_u32 {
        let (link, dir) = (link.clone(), dir.path().to_owned());
        tasks.spawn(async move {
            for round in 0..10 {
                let place = Place {
                    user: Some(uid.to_string()),
                    ..at(dir.join(format!("{uid}-{round}")))
                };
                let request = casemate_link::file::WriteRequest {
                    place,
                    ..writing("/")
                };
                let entry = put(&link, &request, pattern(10_000)).await.unwrap();
                assert_eq!((entry.uid, entry.gid), (uid, uid));
                if round % 3 == 0 {
                    let mut spec = support::spec(&["id", "-u"]);
                    spec.user = Some(uid.to_string());
                    let outcome = support::run(&link, spec).await;
                    assert_eq!(outcome.stdout, format!("{uid}\n").as_bytes());
                }
            }
        });
    }
    tasks.join_all().await;
}
