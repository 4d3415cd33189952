//! `casemate cp`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use async_compression::tokio::bufread::{ZstdDecoder, ZstdEncoder};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tar::{Archive, Builder, EntryType, Header};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::door::{Door, Heard, begin, chunk, say, say_json, say_problem};
use super::shell::Terminal;
use super::{ID, ended, interrupt, text};

/// 2020-01-02 03:04:05.
const THEN: u64 = 1_577_934_245;

fn all(mut reader: impl AsyncRead + Unpin) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut bytes = Vec::new();
    runtime.block_on(reader.read_to_end(&mut bytes)).unwrap();
    bytes
}

fn squeezed(bytes: &[u8]) -> Vec<u8> {
    all(ZstdEncoder::new(bytes))
}

fn stretched(bytes: &[u8]) -> Vec<u8> {
    all(ZstdDecoder::new(bytes))
}

fn look(kind: &str, size: usize) -> Value {
    json!({"path": "/p", "is_exact": true, "kind": kind, "size_bytes": size, "mode": "4750",
        "uid": 1, "gid": 1, "modified_at": "2020-01-02T03:04:05.678Z", "etag": "e"})
}

/// The parts of a request's target.
fn asked(heard: &Heard) -> (String, String) {
    let rest = heard.line.replace(&format!("/v1/sessions/{ID}/"), "");
    let (what, query) = rest.split_once('?').unwrap_or((&rest, ""));
    (
        what.to_owned(),
        query.replace("%2F", "/").replace("%2E", "."),
    )
}

/// A session in which are these, by path: directories and files.
fn session(
    known: &[(&'static str, &'static str)],
    answer: impl Fn(&str, &Heard, TcpStream) + Send + Sync + 'static,
) -> Door {
    let known: BTreeMap<_, _> = known.iter().copied().collect();
    Door::open(move |heard, stream| {
        let (what, query) = asked(heard);
        if what != "GET files/stat" {
            return answer(&what, heard, stream);
        }
        let path = query.split(['=', '&']).nth(1).unwrap();
        match known.get(path) {
            Some(kind) => say_json(stream, 200, &look(kind, 5)),
            None => say_problem(stream, 404, "file_not_found"),
        }
    })
}

fn entry(kind: EntryType, name: &str, target: &str, content: &[u8], mode: u32) -> Vec<u8> {
    let mut header = Header::new_gnu();
    let fields = header.as_old_mut();
    fields.name[..name.len()].copy_from_slice(name.as_bytes());
    fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len().try_into().unwrap());
    header.set_mtime(THEN);
    header.set_cksum();
    let padding = vec![0; content.len().wrapping_neg() % 512];
    [header.as_bytes().as_slice(), content, &padding].concat()
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

/// A session with a directory `/d` that sends this as its archive.
fn sending(tar: &[u8]) -> Door {
    let squeezed = squeezed(tar);
    let known = [("/d", "directory"), ("/d/.", "directory")];
    session(&known, move |what, _, stream| {
        assert_eq!(what, "GET archive");
        begin(&stream, "application/zstd");
        for piece in squeezed.chunks(1000) {
            chunk(&stream, piece);
        }
        chunk(&stream, b"");
    })
}

fn place() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn copy(door: &Door, directory: &Path, from: &str, to: &str) -> Output {
    let mut command = door.command(&["cp", from, to]);
    command.current_dir(directory).output().unwrap()
}

fn there(path: &str) -> String {
    format!("{ID}:{path}")
}

fn names(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn bytes() -> Vec<u8> {
    let bytes = (0..700_003_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]);
    bytes.collect()
}

#[test]
fn a_file_goes_in_whole_with_its_mode_and_time() {
    let door = session(
        &[("/d", "directory"), ("/f", "file")],
        |what, _, stream| match what {
            "PUT archive" => say_json(stream, 200, &json!({})),
            "POST files/move" => say_json(stream, 200, &look("file", 5)),
            other => panic!("{other}"),
        },
    );
    let here = place();
    let file = here.path().join("x");
    fs::write(&file, bytes()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4750)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(THEN);
    fs::File::open(&file).unwrap().set_modified(then).unwrap();
    for (to, parent, name) in [
        ("/d", "/d", "/d/x"),
        ("/f", "/", "/f"),
        ("/new", "/", "/new"),
    ] {
        let before = door.heard().len();
        let output = copy(&door, here.path(), "x", &there(to));
        ended(&output, 0);
        assert_eq!(text(&output.stderr), "");
        let heard = &door.heard()[before..];
        let sent = &heard[heard.len() - 2];
        let (_, query) = asked(sent);
        assert_eq!(query, format!("path={parent}&compression=zstd"));
        let mut tar = Archive::new(Cursor::new(stretched(&sent.body)));
        let mut entries = tar.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        let temporary = entry.path().unwrap().to_str().unwrap().to_owned();
        assert!(temporary.starts_with(".casemate-cp-"));
        let header = entry.header().clone();
        assert_eq!(
            (header.mode().unwrap(), header.mtime().unwrap()),
            (0o750, THEN)
        );
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert!(content == bytes());
        drop(entry);
        assert!(entries.next().is_none());
        let moved = heard.last().unwrap().json();
        let below = Path::new(parent).join(&temporary);
        assert_eq!(
            moved,
            json!({"path": below, "to": name, "overwrite": true, "parents": false})
        );
    }
}

#[test]
fn what_is_refused_on_its_way_in_is_told_and_leaves_nothing() {
    let door = session(&[("/d", "directory")], |what, _, stream| match what {
        "PUT archive" => say_problem(stream, 507, "disk_full"),
        "DELETE files" => say_json(stream, 204, &Value::Null),
        other => panic!("{other}"),
    });
    let here = place();
    fs::write(here.path().join("x"), "hello").unwrap();
    let output = copy(&door, here.path(), "x", &there("/d"));
    ended(&output, 1);
    assert!(text(&output.stderr).contains("disk_full"));
    let (what, query) = asked(door.heard().last().unwrap());
    assert_eq!(what, "DELETE files");
    assert!(query.starts_with("path=/d/.casemate-cp-"));
    for (from, to, told) in [
        ("x", "/none/", "no directory /none/"),
        ("nothing", "/d", "cannot read nothing"),
    ] {
        let output = copy(&door, here.path(), from, &there(to));
        assert!(text(&output.stderr).contains(told));
    }
}

#[test]
fn a_stream_goes_in_and_out() {
    let content = bytes();
    let expected = content.clone();
    let door = session(
        &[("/f", "file"), ("/d", "directory")],
        move |what, heard, stream| match what {
            "PUT files" => {
                assert_eq!(asked(heard).1, "path=/new&user=root");
                assert!(heard.body == expected);
                say_json(stream, 200, &look("file", 5));
            }
            "GET files" => say(stream, 200, "application/octet-stream", &expected),
            other => panic!("{other}"),
        },
    );
    let here = place();
    fs::write(here.path().join("x"), &content).unwrap();
    let output = door
        .command(&["cp", "-u", "root", "-", &there("/new")])
        .stdin(fs::File::open(here.path().join("x")).unwrap())
        .output()
        .unwrap();
    ended(&output, 0);
    let output = copy(&door, here.path(), &there("/f"), "-");
    ended(&output, 0);
    assert!(output.stdout == content);
    assert_eq!(text(&output.stderr), "");
    let output = copy(&door, here.path(), "-", &there("/d"));
    ended(&output, 64);
    let output = copy(&door, here.path(), &there("/d"), "-");
    ended(&output, 64);
}

#[test]
fn a_file_comes_out_whole_with_its_mode_and_time() {
    let content = bytes();
    let expected = content.clone();
    let door = session(&[("/x/f", "file")], move |_, _, stream| {
        say(stream, 200, "application/octet-stream", &expected);
    });
    let here = place();
    fs::create_dir(here.path().join("d")).unwrap();
    fs::write(here.path().join("old"), "old").unwrap();
    symlink("old", here.path().join("link")).unwrap();
    for (to, file) in [("d", "d/f"), (".", "f"), ("new", "new"), ("link", "old")] {
        let output = copy(&door, here.path(), &there("/x/f"), to);
        ended(&output, 0);
        assert_eq!(text(&output.stderr), "");
        let file = here.path().join(file);
        assert!(fs::read(&file).unwrap() == content, "{to}");
        let about = fs::symlink_metadata(&file).unwrap();
        assert_eq!(about.mode() & 0o7777, 0o750, "{to}");
        assert_eq!(u64::try_from(about.mtime()), Ok(THEN), "{to}");
        assert_eq!(about.mtime_nsec(), 678_000_000);
    }
    assert_eq!(names(here.path()), ["d", "f", "link", "new", "old"]);
    ended(&copy(&door, here.path(), &there("/x/f"), "/dev/null"), 0);
    assert!(!Path::new("/dev/null").is_file());
    ended(&copy(&door, here.path(), &there("/x/f"), "none/"), 73);
    ended(&copy(&door, here.path(), &there("/none"), "x"), 1);
}

#[test]
fn a_file_that_breaks_off_leaves_what_was_there() {
    let door = session(&[("/f", "file")], |_, _, mut stream| {
        let head = b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nhalf";
        std::io::Write::write_all(&mut stream, head).unwrap();
        let _ = stream.shutdown(Shutdown::Both);
    });
    let here = place();
    fs::write(here.path().join("f"), "old").unwrap();
    let output = copy(&door, here.path(), &there("/f"), ".");
    ended(&output, 69);
    assert_eq!(fs::read(here.path().join("f")).unwrap(), b"old");
    assert_eq!(names(here.path()), ["f"]);
}

#[test]
fn an_interrupted_copy_leaves_nothing_behind() {
    let (begun, waiting) = mpsc::channel();
    let door = session(&[("/f", "file")], move |_, _, mut stream| {
        let head = b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nhalf";
        std::io::Write::write_all(&mut stream, head).unwrap();
        begun.send(()).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let here = place();
    let child = door
        .command(&["cp", &there("/f"), "."])
        .current_dir(here.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    waiting.recv_timeout(super::door::PATIENCE).unwrap();
    interrupt(&child, Signal::SIGINT);
    ended(&child.wait_with_output().unwrap(), 130);
    assert!(names(here.path()).is_empty());
}

#[test]
fn a_directory_goes_in_and_comes_out_as_it_was() {
    let here = place();
    let tree = here.path().join("tree");
    fs::create_dir_all(tree.join("e/empty")).unwrap();
    let long = "n".repeat(150);
    fs::write(tree.join("e").join(&long), bytes()).unwrap();
    symlink("../x", tree.join("e/link")).unwrap();
    fs::write(tree.join("x"), "x").unwrap();
    fs::set_permissions(tree.join("x"), fs::Permissions::from_mode(0o711)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(THEN);
    for name in ["x", "e/empty", "e"] {
        fs::File::open(tree.join(name))
            .unwrap()
            .set_modified(then)
            .unwrap();
    }
    fs::set_permissions(tree.join("e"), fs::Permissions::from_mode(0o555)).unwrap();
    let door = session(&[("/d", "directory")], |_, _, stream| {
        say_json(stream, 200, &json!({}));
    });
    for (from, to, parent, root) in [
        ("tree", "/d", "/d", "tree/"),
        ("tree", "/new", "/", "new/"),
        ("tree/.", "/d", "/d", ""),
    ] {
        let output = copy(&door, here.path(), from, &there(to));
        ended(&output, 0);
        let sent = door.heard().last().unwrap().clone();
        assert_eq!(asked(&sent).1, format!("path={parent}&compression=zstd"));
        let tar = stretched(&sent.body);
        let mut entries = Archive::new(tar.as_slice());
        let mut found: Vec<_> = entries
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned())
            .collect();
        if root.is_empty() {
            found.insert(0, String::new());
        }
        let expected = ["", "e/", "e/empty/", "e/link", &format!("e/{long}"), "x"];
        assert_eq!(found, expected.map(|name| format!("{root}{name}")));
    }
    // What a session sends has no root.
    let contents = stretched(&door.heard().last().unwrap().body);
    let door = sending(&contents);
    fs::create_dir(here.path().join("into")).unwrap();
    for (to, path) in [("back", "back"), ("into", "into/d")] {
        let output = copy(&door, here.path(), &there("/d"), to);
        ended(&output, 0);
        assert_eq!(text(&output.stderr), "");
        let back = here.path().join(path);
        assert!(fs::read(back.join("e").join(&long)).unwrap() == bytes());
        assert_eq!(
            fs::read_link(back.join("e/link")).unwrap(),
            Path::new("../x")
        );
        for (name, mode) in [("x", 0o711), ("e", 0o555)] {
            let about = fs::metadata(back.join(name)).unwrap();
            assert_eq!(about.mode() & 0o7777, mode);
            assert_eq!(u64::try_from(about.mtime()), Ok(THEN), "{name}");
        }
        assert_eq!(fs::metadata(&back).unwrap().mode() & 0o7777, 0o750);
        fs::set_permissions(back.join("e"), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(tree.join("e"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_hostile_archive_is_refused_and_nothing_is_made_outside() {
    use EntryType as T;
    let file = |name: &str| entry(T::Regular, name, "", b"evil", 0o644);
    let mut pax = Builder::new(Vec::new());
    pax.append_pax_extensions([("path", b"../evil".as_slice())])
        .unwrap();
    let pax = pax.get_ref().clone();
    let endless = {
        let mut header = Header::new_gnu();
        header.set_entry_type(T::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    for (what, entries) in [
        ("leads out", vec![file("../evil")]),
        ("leads out", vec![file("a/../../evil")]),
        ("absolute", vec![file("/tmp/casemate-test-evil")]),
        ("leads out", vec![pax, file("x")]),
        ("without end", vec![endless]),
        (
            "second name",
            vec![entry(T::Link, "l", "/etc/passwd", b"", 0o644)],
        ),
        ("device", vec![entry(T::Char, "null", "", b"", 0o666)]),
        ("device", vec![entry(T::Fifo, "pipe", "", b"", 0o666)]),
        (
            "unknown kind",
            vec![entry(T::GNUSparse, "holes", "", b"", 0o666)],
        ),
        // Through a link that stays within.
        (
            "stands where",
            vec![entry(T::Symlink, "l", "in", b"", 0o777), file("l/evil")],
        ),
        // Through a link of this machine's, which leads elsewhere.
        ("stands where", vec![file("elsewhere/evil")]),
        (
            "stands where",
            vec![entry(T::Directory, "elsewhere/evil/", "", b"", 0o777)],
        ),
        ("archive", vec![vec![7; 512]]),
    ] {
        let door = sending(&archive(&entries));
        let here = place();
        let into = here.path().join("into");
        fs::create_dir_all(into.join("in")).unwrap();
        fs::create_dir(here.path().join("outside")).unwrap();
        symlink("../outside", into.join("elsewhere")).unwrap();
        let mut command = door.command(&["cp", &there("/d/."), "into"]);
        let output = command.current_dir(here.path()).output().unwrap();
        assert_ne!(output.status.code(), Some(0), "{what}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(what), "{what}: {told}");
        assert!(names(&here.path().join("outside")).is_empty());
        assert_eq!(names(here.path()), ["into", "outside"]);
        assert!(!Path::new("/tmp/casemate-test-evil").exists());
        let kept = names(&into);
        assert!(
            kept.iter()
                .all(|name| ["elsewhere", "in", "l"].contains(&name.as_str())),
            "{kept:?}"
        );
        assert!(names(&into.join("in")).is_empty());
    }
}

#[test]
fn links_that_lead_out_are_left_out_and_bits_that_make_somebody_else_are_dropped() {
    let door = sending(&archive(&[
        entry(EntryType::Regular, "su", "", b"x", 0o6755),
        entry(EntryType::Directory, "tmp/", "", b"", 0o1777),
        entry(EntryType::Symlink, "out", "/etc/passwd", b"", 0o777),
        entry(EntryType::Symlink, "up", "../\u{1b}x", b"", 0o777),
        entry(EntryType::Symlink, "tmp/in", "../su", b"", 0o777),
    ]));
    let here = place();
    let output = copy(&door, here.path(), &there("/d"), "new");
    ended(&output, 1);
    let told = text(&output.stderr);
    assert!(
        told.contains("left out the link out, which leads out, to /etc/passwd"),
        "{told}"
    );
    assert!(
        told.contains("2 of 5 were left out") && !told.contains('\u{1b}'),
        "{told}"
    );
    let new = here.path().join("new");
    assert_eq!(names(&new), ["su", "tmp"]);
    assert_eq!(fs::metadata(new.join("su")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(
        fs::metadata(new.join("tmp")).unwrap().mode() & 0o7777,
        0o777
    );
    assert_eq!(fs::read(new.join("tmp/in")).unwrap(), b"x");
}

#[test]
fn an_archive_that_breaks_off_is_told() {
    let whole = archive(&[entry(EntryType::Regular, "a", "", &bytes(), 0o644)]);
    let half = squeezed(&whole);
    let half = half[..half.len() / 2].to_vec();
    for is_proper in [true, false] {
        let half = half.clone();
        let door = session(&[("/d", "directory")], move |_, _, stream| {
            begin(&stream, "application/zstd");
            chunk(&stream, &half);
            if is_proper {
                chunk(&stream, b"");
            } else {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        let here = place();
        let output = copy(&door, here.path(), &there("/d"), "new");
        let code = if is_proper { 74 } else { 69 };
        ended(&output, code);
        assert!(names(&here.path().join("new")).is_empty());
    }
}

#[test]
fn progress_is_for_terminals_only() {
    let content = bytes();
    let door = session(&[("/f", "file")], move |_, _, stream| {
        say(stream, 200, "application/octet-stream", &content);
    });
    let here = place();
    for (option, is_seen) in [("--user=user", true), ("--quiet", false), ("--json", false)] {
        let terminal = Terminal::open(24, 80);
        let mut seen = terminal.watch();
        let mut command: Command = door.command(&["cp", option, &there("/f"), "x"]);
        command.current_dir(here.path()).env("TERM", "xterm");
        let output = command.stderr(terminal.stdio()).output().unwrap();
        ended(&output, 0);
        // Whatever was to be seen is there before this.
        std::io::Write::write_all(&mut terminal.theirs(), b"over").unwrap();
        seen.wait("over");
        assert_eq!(
            seen.text().contains("/f"),
            is_seen,
            "{option}: {:?}",
            seen.text()
        );
    }
}
