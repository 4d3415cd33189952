//! Making, moving, removing and changing what is there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use casemate_link::daemon::{Link, LinkError};
use casemate_link::file::{
    FileKind, LinkRequest, MkdirRequest, MoveRequest, RemoveRequest, SetRequest,
};
use casemate_link::refusal::code;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::{bench, chmod, is_root};
use crate::support::{at, names_in, pattern, refused, soon};

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
