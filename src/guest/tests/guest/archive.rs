//! What the guest promises of archives, kept over a real link: trees come back as they went, and hostile streams do
//! nothing outside their directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use casemate_link::daemon::{Link, LinkError};
use casemate_link::file::{ArchiveRequest, ArchiveSummary, UnpackRequest};
use casemate_link::refusal::code;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use proptest::prelude::*;
use tar::{EntryType, Header};
use tempfile::tempdir;

use crate::support::{Bench, all, at, names_in, pattern, refused, resident_bytes, soon, until};

async fn pack(link: &Link, path: &Path) -> Result<Vec<u8>, LinkError> {
    all(soon(link.pack(&ArchiveRequest { place: at(path) })).await?).await
}

async fn unpack(link: &Link, path: &Path, archive: &[u8]) -> Result<ArchiveSummary, LinkError> {
    let work = async {
        let mut writer = link.unpack(&UnpackRequest { place: at(path) }).await?;
        writer.write(Bytes::copy_from_slice(archive)).await?;
        writer.commit().await
    };
    soon(work).await
}

/// All that matters of a tree, by path: mode, time, and what it is.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut rest = vec![root.to_owned()];
    while let Some(dir) = rest.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let known = fs::symlink_metadata(&path).unwrap();
            let what = if known.is_symlink() {
                [b"-> ", fs::read_link(&path).unwrap().as_os_str().as_bytes()].concat()
            } else if known.is_dir() {
                rest.push(path.clone());
                b"directory".to_vec()
            } else {
                fs::read(&path).unwrap()
            };
            let mtime = if known.is_symlink() { 0 } else { known.mtime() };
            found.insert(
                path.strip_prefix(root).unwrap().to_owned(),
                (known.mode(), mtime, what),
            );
        }
    }
    found
}

/// One entry, made as no proper program would.
fn entry(kind: EntryType, name: &str, target: &str, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o6755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut all = entries.concat();
    all.resize(all.len() + 1024, 0);
    all
}

#[tokio::test]
async fn a_tree_comes_back_as_it_went() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("deep/to"));
    let long = "long name ".repeat(20);
    fs::create_dir_all(from.join(&long).join(&long)).unwrap();
    fs::write(
        from.join(&long).join(&long).join("x".repeat(255)),
        pattern(300_000),
    )
    .unwrap();
    fs::write(from.join(OsStr::from_bytes(b"no \xff text\n")), "").unwrap();
    fs::write(from.join("x".repeat(100)), "a").unwrap();
    fs::write(from.join("y".repeat(101)), "b").unwrap();
    fs::write(from.join("exactly"), vec![7; 512]).unwrap();
    symlink("t".repeat(2000), from.join("link")).unwrap();
    fs::create_dir(from.join("sealed")).unwrap();
    fs::write(from.join("sealed/file"), "x").unwrap();
    fs::set_permissions(from.join("sealed/file"), Permissions::from_mode(0o400)).unwrap();
    fs::set_permissions(from.join("sealed"), Permissions::from_mode(0o500)).unwrap();
    fs::hard_link(from.join("exactly"), from.join("twin")).unwrap();
    for path in ["exactly", "sealed/file", "sealed"] {
        let file = File::open(from.join(path)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_234_567_890))
            .unwrap();
    }
    let packed = pack(&link, &from).await.unwrap();
    let before = tree(&from);
    mkfifo(&from.join("fifo"), Mode::S_IRWXU).unwrap();
    assert!(
        pack(&link, &from).await.unwrap() == packed,
        "a fifo is passed over"
    );
    let summary = unpack(&link, &to, &packed).await.unwrap();
    assert_eq!(tree(&to), before);
    assert_eq!((summary.entries, summary.skipped), (11, 0));
    assert_eq!(summary.bytes, 300_000 + 1 + 1 + 512 + 512 + 1);
}

#[tokio::test]
async fn other_programs_understand_the_archive_and_are_understood() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("sub").join("n".repeat(200)), pattern(70_000)).unwrap();
    symlink("s".repeat(150), from.join("link")).unwrap();
    let sparse = File::create(from.join("sparse")).unwrap();
    for at in 0..60_u64 {
        sparse.write_all_at(b"data", at * 1_000_000).unwrap();
    }
    sparse.set_len(70_000_000).unwrap();
    let mut untar = Command::new("tar")
        .args(["-x", "-C"])
        .arg(&to)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let packed = pack(&link, &from).await.unwrap();
    untar.stdin.take().unwrap().write_all(&packed).unwrap();
    assert!(untar.wait().unwrap().success());
    assert_eq!(tree(&to), tree(&from));
    for options in [
        &["--format=gnu"][..],
        &["--format=pax"],
        &["--format=v7"],
        &["--format=gnu", "-S"],
        &["--format=pax", "-S"],
    ] {
        let is_old = options[0] == "--format=v7";
        let name = if is_old { "sparse" } else { "." };
        let made = Command::new("tar")
            .args(["-c", "-C"])
            .arg(&from)
            .args(options)
            .arg(name)
            .output()
            .unwrap();
        assert!(made.status.success());
        let to = dir.path().join(options.concat().replace('/', ""));
        unpack(&link, &to, &made.stdout)
            .await
            .unwrap_or_else(|error| panic!("{options:?}: {error:?}"));
        if is_old {
            assert!(fs::read(to.join("sparse")).unwrap() == fs::read(from.join("sparse")).unwrap());
        } else {
            assert_eq!(tree(&to), tree(&from), "{options:?}");
        }
        if options.contains(&"-S") {
            assert!(fs::metadata(to.join("sparse")).unwrap().blocks() * 512 < 10_000_000);
        }
    }
}

#[tokio::test]
async fn a_file_alone_is_an_archive_of_one() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    symlink("file", dir.path().join("link")).unwrap();
    let packed = pack(&link, &dir.path().join("link")).await.unwrap();
    let to = dir.path().join("to");
    assert_eq!(unpack(&link, &to, &packed).await.unwrap().entries, 1);
    assert_eq!(names_in(&to), ["file"]);
    assert_eq!(
        refused(pack(&link, &dir.path().join("none")).await),
        code::FILE_NOT_FOUND
    );
    assert_eq!(
        refused(pack(&link, Path::new("/dev/null")).await),
        code::WRONG_FILE_KIND
    );
    assert_eq!(
        refused(unpack(&link, &to.join("file"), &packed).await),
        code::WRONG_FILE_KIND
    );
}

#[tokio::test]
async fn a_file_that_changes_its_size_never_breaks_the_stream() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("from")).unwrap();
    let file = File::create(dir.path().join("from/big")).unwrap();
    for (before, after) in [(50_000_000, 1000), (50_000_000, 90_000_000)] {
        file.set_len(before).unwrap();
        let mut reader = soon(link.pack(&ArchiveRequest {
            place: at(dir.path().join("from")),
        }))
        .await
        .unwrap();
        // Its header is on its way.
        let begun = soon(reader.next()).await.unwrap().unwrap();
        file.set_len(after).unwrap();
        let packed = [&begun[..], &all(reader).await.unwrap()].concat();
        let to = dir.path().join(after.to_string());
        assert_eq!(unpack(&link, &to, &packed).await.unwrap().bytes, before);
    }
}

#[tokio::test]
async fn huge_trees_take_no_memory() {
    let (bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    File::create(dir.path().join("huge"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let mut reader = soon(link.pack(&ArchiveRequest {
        place: at(dir.path()),
    }))
    .await
    .unwrap();
    let (mut seen, mut most) = (0, 0);
    while let Some(data) = soon(reader.next()).await {
        seen += data.unwrap().len();
        most = most.max(resident_bytes(bench.guest.id()));
    }
    assert_eq!(seen, (1 << 30) + 512 + 1024);
    assert!(most < 24 << 20, "{most} bytes");
}

#[tokio::test]
async fn no_entry_leaves_the_directory() {
    use EntryType::{Directory, Link, Regular, Symlink};

    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "mine").unwrap();
    let out = outside.to_str().unwrap();
    let secret = format!("{out}/file");
    let file = |name: &str| entry(Regular, name, "", b"theirs");
    let hostile = [
        archive(&[file("../outside/file")]),
        archive(&[file("a/../../outside/file")]),
        archive(&[file("..")]),
        archive(&[file(&secret)]),
        archive(&[entry(Directory, "../outside/new", "", b"")]),
        archive(&[entry(Symlink, "door", "../outside", b""), file("door/file")]),
        archive(&[
            entry(Symlink, "door", out, b""),
            entry(Directory, "door/new", "", b""),
        ]),
        archive(&[
            entry(Symlink, "door", out, b""),
            entry(Symlink, "door/new", "x", b""),
        ]),
        archive(&[
            entry(Directory, "a", "", b""),
            entry(Symlink, "a/b", "../../outside", b""),
            file("a/b/file"),
        ]),
        archive(&[entry(Link, "mine", &secret, b"")]),
        archive(&[entry(Link, "mine", "../outside/file", b"")]),
        archive(&[
            entry(Symlink, "door", out, b""),
            entry(Link, "mine", "door/file", b""),
        ]),
        archive(&[
            entry(Symlink, "door", out, b""),
            entry(Link, "door/new", "door", b""),
        ]),
    ];
    for (number, hostile) in hostile.iter().enumerate() {
        let to = dir.path().join(format!("to{number}"));
        assert_eq!(
            refused(unpack(&link, &to, hostile).await),
            code::BAD_ARCHIVE,
            "{number}"
        );
        assert_eq!(names_in(&outside), ["file"], "{number}");
        assert_eq!(
            fs::metadata(outside.join("file")).unwrap().nlink(),
            1,
            "{number}"
        );
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"mine", "{number}");
    }
    // A link that was there before is no way out either, but may be replaced.
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    symlink(&outside, to.join("door")).unwrap();
    assert_eq!(
        refused(unpack(&link, &to, &archive(&[file("door/file")])).await),
        code::BAD_ARCHIVE
    );
    unpack(
        &link,
        &to,
        &archive(&[entry(Directory, "door", "", b""), file("door/file")]),
    )
    .await
    .unwrap();
    assert!(to.join("door").is_dir() && !to.join("door").is_symlink());
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"mine");
}

#[tokio::test]
async fn nothing_is_written_through_what_stands_in_the_way() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let (outside, to) = (dir.path().join("outside"), dir.path().join("to"));
    fs::create_dir(&to).unwrap();
    fs::write(&outside, "mine").unwrap();
    symlink(&outside, to.join("link")).unwrap();
    fs::hard_link(&outside, to.join("hard")).unwrap();
    let file = |name: &str| entry(EntryType::Regular, name, "", b"theirs");
    let twice = entry(EntryType::Symlink, "twice", outside.to_str().unwrap(), b"");
    let all = archive(&[file("link"), file("hard"), twice, file("twice")]);
    unpack(&link, &to, &all).await.unwrap();
    assert_eq!(fs::read(&outside).unwrap(), b"mine");
    for name in ["link", "hard", "twice"] {
        assert!(!to.join(name).is_symlink());
        assert_eq!(fs::read(to.join(name)).unwrap(), b"theirs");
        assert_eq!(fs::metadata(to.join(name)).unwrap().mode() & 0o7777, 0o755);
    }
    fs::create_dir(to.join("directory")).unwrap();
    assert_eq!(
        refused(unpack(&link, &to, &archive(&[file("directory")])).await),
        code::WRONG_FILE_KIND
    );
    assert_eq!(
        refused(unpack(&link, &to, &archive(&[file("link/x")])).await),
        code::WRONG_FILE_KIND
    );
}

#[tokio::test]
async fn links_inside_are_made_and_devices_are_not() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let all = archive(&[
        entry(EntryType::Regular, "./a/file", "", b"x"),
        entry(EntryType::Link, "b/twin", "./a/file", b""),
        entry(EntryType::Link, "a/file", "a/file", b""),
        entry(EntryType::Symlink, "anywhere", "/etc/passwd", b""),
        entry(EntryType::Char, "zero", "", b""),
        entry(EntryType::Block, "disk", "", b""),
        entry(EntryType::Fifo, "fifo", "", b""),
    ]);
    let summary = unpack(&link, dir.path(), &all).await.unwrap();
    assert_eq!(
        summary,
        ArchiveSummary {
            entries: 7,
            bytes: 1,
            skipped: 3
        }
    );
    assert_eq!(names_in(dir.path()), ["a", "anywhere", "b"]);
    assert_eq!(fs::metadata(dir.path().join("b/twin")).unwrap().nlink(), 2);
    let lost = archive(&[entry(EntryType::Link, "c", "not/there", b"")]);
    assert_eq!(
        refused(unpack(&link, dir.path(), &lost).await),
        code::BAD_ARCHIVE
    );
}

#[tokio::test]
async fn damaged_archives_are_refused_and_leave_no_half_file() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let whole = archive(&[
        entry(EntryType::Regular, "first", "", &pattern(2000)),
        entry(EntryType::Regular, "second", "", &pattern(100_000)),
    ]);
    let mut turned = whole.clone();
    turned[2560 + 5] ^= 1;
    let mut lying = entry(EntryType::Regular, "second", "", b"");
    let mut header = Header::new_gnu();
    header.as_mut_bytes().copy_from_slice(&lying);
    header.set_size(u64::MAX);
    header.set_cksum();
    lying = [&whole[..2560], header.as_bytes(), &[1; 5000]].concat();
    let mut huge = Header::new_gnu();
    huge.set_entry_type(EntryType::GNULongName);
    huge.set_size(1 << 40);
    huge.set_cksum();
    let cuts =
        [0, 100, 512, 2560, 2600, 3072, 4000, whole.len() - 1024].map(|at| whole[..at].to_vec());
    let others = [
        turned,
        lying,
        [&huge.as_bytes()[..], &[65; 3000]].concat(),
        b"no archive".repeat(100),
    ];
    for (number, bad) in cuts.iter().chain(&others).enumerate() {
        let to = dir.path().join(number.to_string());
        assert_eq!(
            refused(unpack(&link, &to, bad).await),
            code::BAD_ARCHIVE,
            "{number}"
        );
        for name in names_in(&to) {
            let expected = if name == "first" { 2000 } else { 100_000 };
            assert_eq!(
                fs::metadata(to.join(name)).unwrap().len(),
                expected,
                "{number}"
            );
        }
    }
    assert_eq!(unpack(&link, dir.path(), &whole).await.unwrap().entries, 2);
}

#[tokio::test]
async fn of_a_cut_upload_what_is_whole_stays() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let all = archive(&[
        entry(EntryType::Directory, "sub", "", b""),
        entry(EntryType::Regular, "sub/first", "", b"x"),
        entry(EntryType::Regular, "second", "", &pattern(2_000_000)),
    ]);
    let mut writer = soon(link.unpack(&UnpackRequest {
        place: at(dir.path()),
    }))
    .await
    .unwrap();
    soon(writer.write(Bytes::copy_from_slice(&all[..1_000_000])))
        .await
        .unwrap();
    until("the second has begun", || names_in(dir.path()).len() == 2).await;
    drop(writer);
    until("the half is gone", || names_in(dir.path()) == ["sub"]).await;
    assert_eq!(fs::read(dir.path().join("sub/first")).unwrap(), b"x");
}

#[tokio::test]
async fn a_directory_swapped_for_a_link_is_never_passed_through() {
    let (_bench, link) = Bench::start().await;
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("outside")).unwrap();
    fs::create_dir_all(path("to/a")).unwrap();
    symlink(path("outside"), path("door")).unwrap();
    let mut entries = Vec::new();
    for number in 0..200 {
        entries.push(entry(
            EntryType::Regular,
            &format!("a/{number}/{number}"),
            "",
            b"x",
        ));
        entries.push(entry(EntryType::Regular, &format!("b{number}"), "", b"x"));
    }
    let all = archive(&entries);
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (seen, root) = (over.clone(), dir.path().to_owned());
    let swapper = std::thread::spawn(move || {
        let (real, door) = (root.join("to/a"), root.join("door"));
        while !seen.load(std::sync::atomic::Ordering::Relaxed) {
            let flags = RenameFlags::RENAME_EXCHANGE;
            let _ = renameat2(AT_FDCWD, &real, AT_FDCWD, &door, flags);
        }
    });
    for _ in 0..100 {
        let _ = unpack(&link, &path("to"), &all).await;
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    swapper.join().unwrap();
    assert_eq!(names_in(&path("outside")), [""; 0]);
}

#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>, u32),
    Directory(BTreeMap<Vec<u8>, Node>, u32),
    Link(Vec<u8>),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("no name has it", |byte| !matches!(byte, 0 | b'/'));
    let long = prop_oneof![4 => 1..20_usize, 1 => 90..120_usize, 1 => 200..255_usize];
    long.prop_flat_map(move |length| proptest::collection::vec(byte.clone(), length))
        .prop_filter("not a name", |name| name != b"." && name != b"..")
}

fn node() -> impl Strategy<Value = Node> {
    let size = prop_oneof![3 => 0..2000_usize, 1 => Just(512_usize), 1 => 200_000..600_000_usize];
    let file = (size, any::<u8>(), 0..0o1000_u32)
        .prop_map(|(size, byte, mode)| Node::File(vec![byte; size], mode));
    let target = proptest::collection::vec(1..=255_u8, 1..300);
    let leaf = prop_oneof![3 => file, 1 => target.prop_map(Node::Link)];
    leaf.prop_recursive(4, 24, 6, |inner| {
        let children = proptest::collection::btree_map(name(), inner, 0..6);
        (children, 0o700..0o1000_u32).prop_map(|(children, mode)| Node::Directory(children, mode))
    })
}

fn plant(path: &Path, node: &Node) {
    match node {
        Node::File(data, mode) => {
            fs::write(path, data).unwrap();
            fs::set_permissions(path, Permissions::from_mode(*mode)).unwrap();
        }
        Node::Link(target) => symlink(OsStr::from_bytes(target), path).unwrap(),
        Node::Directory(children, mode) => {
            fs::create_dir(path).unwrap();
            for (name, child) in children {
                plant(&path.join(OsStr::from_bytes(name)), child);
            }
            fs::set_permissions(path, Permissions::from_mode(*mode)).unwrap();
        }
    }
}

#[test]
fn any_tree_comes_back_as_it_went() {
    if !nix::unistd::geteuid().is_root() {
        // Files that their owner may not read cannot be packed by that owner.
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (_bench, link) = runtime.block_on(Bench::start());
    let config = ProptestConfig {
        cases: 60,
        ..ProptestConfig::default()
    };
    proptest!(config, |(children in proptest::collection::btree_map(name(), node(), 0..6))| {
        let dir = tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        plant(&from, &Node::Directory(children, 0o755));
        runtime.block_on(async {
            let packed = pack(&link, &from).await.unwrap();
            unpack(&link, &to, &packed).await.unwrap();
        });
        prop_assert_eq!(tree(&to), tree(&from));
    });
}

#[test]
fn any_bytes_are_refused_or_unpacked_and_nothing_breaks() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (_bench, link) = runtime.block_on(Bench::start());
    let names = prop_oneof![
        Just("a"),
        Just("a/b"),
        Just("../x"),
        Just("/x"),
        Just("b/"),
        Just("."),
        Just("")
    ];
    let kinds = proptest::sample::select(b"0123457LKxgSVX".to_vec());
    let entry = (
        kinds,
        names.clone(),
        names,
        proptest::collection::vec(any::<u8>(), 0..700),
        any::<u64>(),
        any::<bool>(),
    );
    let config = ProptestConfig {
        cases: 300,
        ..ProptestConfig::default()
    };
    proptest!(config, |(entries in proptest::collection::vec(entry, 0..8))| {
        let dir = tempdir().unwrap();
        let mut bytes = Vec::new();
        for (kind, name, target, data, size, lies) in entries {
            let mut made = entry_of(EntryType::new(kind), name, target, &data);
            if lies {
                let mut header = Header::new_gnu();
                header.as_mut_bytes().copy_from_slice(&made[..512]);
                header.set_size(size);
                header.set_cksum();
                made[..512].copy_from_slice(header.as_bytes());
            }
            bytes.extend(made);
        }
        bytes.resize(bytes.len() + 1024, 0);
        fs::create_dir(dir.path().join("to")).unwrap();
        runtime.block_on(async {
            match unpack(&link, &dir.path().join("to"), &bytes).await {
                Ok(_) | Err(LinkError::Refused { .. }) => {}
                other => panic!("{other:?}"),
            }
        });
        prop_assert_eq!(names_in(dir.path()), ["to"]);
    });
}

fn entry_of(kind: EntryType, name: &str, target: &str, data: &[u8]) -> Vec<u8> {
    entry(kind, name, target, data)
}
