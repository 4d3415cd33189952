//! Looking at files and reading them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use bytes::Bytes;
use casemate_link::daemon::Link;
use casemate_link::file::{FileKind, ListRequest, Place, ReadRange, ReadRequest, StatRequest};
use casemate_link::refusal::code;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::{bench, chmod, get, is_root};
use crate::support::{
    all, at, names_in, pattern, put, refused, resident_bytes, soon, until, writing,
};

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
            most = most.max(resident_bytes(bench.guest.id()));
        }
        seen += last.len() as u64;
    }
    assert_eq!(seen, 3 << 30);
    assert!(last.ends_with(b"end"));
    assert!(most < 24 << 20, "{most} bytes");
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
