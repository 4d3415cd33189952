//! What a guest says and what comes of it, for every kind of thing that it can say.

use proptest::prelude::*;

use super::*;

const MOST: u64 = 1 << 20;

/// One entry, made as no proper program would.
fn entry(kind: u8, path: &[u8], target: &[u8], data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::new(kind));
    header.set_size(data.len() as u64);
    header.set_mode(0o4755);
    header.set_uid(1000);
    header.set_gid(1001);
    header.set_mtime(77);
    let mut out = Vec::new();
    seal(header, path, target, &mut out);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

fn file(path: &str) -> Vec<u8> {
    entry(b'0', path.as_bytes(), b"", b"content")
}

fn dir(path: &str) -> Vec<u8> {
    entry(b'5', path.as_bytes(), b"", b"")
}

fn kept(path: &str) -> Vec<u8> {
    entry(KEPT, path.as_bytes(), b"", b"")
}

fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

fn run(names: &[&str], stream: &[u8], pieces: usize) -> Result<(Held, Vec<u8>), BadLayer> {
    let names = names.iter().map(|&name| name.to_owned());
    let mut layering = Layering::new(names, MOST);
    let mut out = Vec::new();
    for piece in stream.chunks(pieces.max(1)) {
        layering.feed(piece, &mut out)?;
    }
    let held = layering.finish(&mut out)?;
    assert_eq!(held.bytes, out.len() as u64);
    Ok((held, out))
}

fn layer(names: &[&str], parts: &[Vec<u8>]) -> Result<Vec<(u8, String, Vec<u8>)>, BadLayer> {
    let stream = [parts.concat(), end()].concat();
    let (held, out) = run(names, &stream, 100)?;
    let told = told(&out);
    assert_eq!(held.entries, told.len() as u64);
    Ok(told)
}

/// What another program reads in the layer.
fn told(layer: &[u8]) -> Vec<(u8, String, Vec<u8>)> {
    let mut archive = tar::Archive::new(layer);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut data).unwrap();
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            (entry.header().entry_type().as_byte(), path, data)
        })
        .collect()
}

fn paths(told: &[(u8, String, Vec<u8>)]) -> Vec<&str> {
    told.iter().map(|(_, path, _)| path.as_str()).collect()
}

#[test]
fn what_is_kept_is_not_in_the_layer_and_what_is_not_named_is_gone() {
    let names = [
        "/etc",
        "/etc/motd",
        "/etc/passwd",
        "/etc/old",
        "/etc/old/in",
        "/dev/fd",
    ];
    let parts = [
        dir("etc/"),
        kept("etc/passwd"),
        file("etc/new"),
        kept("dev"),
    ];
    let told = layer(&names, &parts).unwrap();
    // Within what is gone, and below what is not looked into, nothing is told.
    assert_eq!(
        paths(&told),
        ["etc/", "etc/new", "etc/.wh.motd", "etc/.wh.old"]
    );
    assert_eq!(told[1].2, b"content");
}

#[test]
fn what_was_a_directory_and_is_none_hides_all_that_was_in_it() {
    let names = ["/a", "/a/b", "/c", "/d", "/d/e"];
    let parts = [file("a"), dir("c/"), file("c/x"), dir("d/")];
    let told = layer(&names, &parts).unwrap();
    assert_eq!(paths(&told), ["a", "c/", "c/x", "d/", "d/.wh.e"]);
}

#[test]
fn owners_modes_times_and_links_are_passed_on() {
    let stream = [
        file("a"),
        entry(b'1', b"b", b"a", b""),
        entry(b'2', b"c", b"../../x", b""),
        entry(b'6', b"d", b"", b""),
        end(),
    ]
    .concat();
    let (_, out) = run(&[], &stream, 512).unwrap();
    let mut archive = tar::Archive::new(out.as_slice());
    let mut kinds = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!(
            (header.mode().unwrap(), header.mtime().unwrap()),
            (0o4755, 77)
        );
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (1000, 1001));
        let link = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
        kinds.push((header.entry_type().as_byte(), link));
    }
    let wanted = [
        (b'0', None),
        (b'1', Some(b"a".to_vec())),
        (b'2', Some(b"../../x".to_vec())),
        (b'6', None),
    ];
    assert_eq!(kinds, wanted);
}

#[test]
fn long_names_and_targets_arrive() {
    let name = "x".repeat(255);
    let header = |kind: u8, text: &str| {
        let data = [text.as_bytes(), b"\0"].concat();
        entry(kind, b"././@LongLink", b"", &data)
    };
    let parts = [
        header(b'L', &name),
        file(&name[..100]),
        header(b'K', &"y/".repeat(300)),
        entry(b'2', b"link", b"y", b""),
    ];
    let told = layer(&[], &parts).unwrap();
    assert_eq!(paths(&told), [name.as_str(), "link"]);
    let too_long = header(b'L', &"x".repeat(256));
    assert_eq!(
        layer(&[], &[too_long, file("x")]),
        Err(BadLayer::Damaged("a path is too long"))
    );
}

#[test]
fn what_no_honest_guest_says_is_damaged() {
    let of = |kind: u8, path: &str| entry(kind, path.as_bytes(), b"a", b"");
    let mut unsound = file("a");
    unsound[3] ^= 1;
    let mut sparse = Header::new_gnu();
    sparse.set_entry_type(EntryType::GNUSparse);
    sparse.set_size(0);
    sparse.set_mode(0);
    sparse.set_uid(0);
    sparse.set_gid(0);
    sparse.set_mtime(0);
    let mut sparse_entry = Vec::new();
    seal(sparse, b"a", b"", &mut sparse_entry);
    for parts in [
        vec![file("../a")],
        vec![file("/a")],
        vec![file("a/../b")],
        vec![file("./a")],
        vec![file("a//b")],
        vec![file("")],
        vec![dir("/")],
        // Through a symbolic link, or through nothing.
        vec![of(b'2', "etc"), file("etc/passwd")],
        vec![kept("etc"), file("etc/passwd")],
        vec![file("a/b")],
        vec![file("a"), file("a")],
        vec![dir("a/"), of(b'2', "a")],
        vec![of(b'1', "b")],
        vec![of(b'2', "a"), of(b'1', "b")],
        vec![of(b'3', "a")],
        vec![of(b'4', "a")],
        vec![of(b'x', "a")],
        vec![of(b'g', "a")],
        vec![entry(b'5', b"a/", b"", b"content")],
        vec![entry(b'2', b"a", b"", b"")],
        vec![unsound],
        vec![sparse_entry],
        vec![end(), file("a")],
        vec![vec![0; BLOCK], file("a")],
        vec![entry(b'L', b"", b"", b"a\0")],
        vec![entry(b'L', b"", b"", b"a\0"), entry(b'L', b"", b"", b"b\0")],
        vec![entry(b'L', b"", b"", b"a"), file("b")],
    ] {
        let made = layer(&[], &parts);
        assert!(
            matches!(made, Err(BadLayer::Damaged(_))),
            "{made:?} {parts:?}"
        );
    }
    for cut in [0, 1, 511, 512, 600, 1024, 1536] {
        let whole = [file("a"), end()].concat();
        let made = run(&[], &whole[..cut], 100).map(drop);
        assert_eq!(made, Err(BadLayer::Damaged("it is cut short")), "{cut}");
    }
}

#[test]
fn what_cannot_be_in_an_image_is_named() {
    let unfit = |parts: &[Vec<u8>]| match layer(&[], parts) {
        Err(BadLayer::Unfit(what)) => what,
        other => panic!("{other:?}"),
    };
    assert!(unfit(&[file(".wh.a\n")]).starts_with("/.wh.a has a name"));
    let mut header = Header::from_byte_slice(&file("a")[..BLOCK]).clone();
    header.set_uid(65_536);
    let mut out = Vec::new();
    seal(header, b"a", b"", &mut out);
    assert!(unfit(&[out]).starts_with("/a belongs to"));
}

#[test]
fn too_much_is_refused_before_it_came() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    for size in [MOST + 1, 1 << 40, u64::MAX] {
        header.set_size(size);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let mut stream = file("first");
        seal(header.clone(), b"a", b"", &mut stream);
        let refused = Layering::new([], MOST).feed(&stream, &mut Vec::new());
        assert_eq!(refused, Err(BadLayer::TooLarge(MOST)));
    }
    // Headers count too.
    let many: Vec<u8> = (0..2100).flat_map(|n| dir(&format!("{n}/"))).collect();
    let refused = Layering::new([], MOST).feed(&many, &mut Vec::new());
    assert_eq!(refused, Err(BadLayer::TooLarge(MOST)));
}

#[test]
fn there_are_not_more_entries_than_may_be() {
    let mut layering = Layering::new([], MOST);
    layering.entries = MAX_ENTRIES - 1;
    let mut out = Vec::new();
    layering.feed(&kept("a"), &mut out).unwrap();
    assert_eq!(layering.feed(&kept("a"), &mut out), Err(BadLayer::TooMany));
}

/// Streams that are nearly right.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        "[ab]",
        "[ab]/",
        "[ab]/[ab]",
        "[ab]/[ab]/[.]{1,2}",
        "\\PC{0,20}"
    ];
    let kind = prop_oneof![
        proptest::sample::select(b"0012556UULK34xgS\0".to_vec()),
        any::<u8>()
    ];
    let one = (
        kind,
        name,
        "[ab/.]{0,4}\0?",
        proptest::collection::vec(any::<u8>(), 0..700),
    );
    let one = one.prop_map(|(kind, name, target, data)| {
        let data = if matches!(kind, b'0' | b'L' | b'K') {
            data
        } else {
            Vec::new()
        };
        let name: Vec<u8> = name.bytes().take(100).collect();
        entry(kind, &name, target.as_bytes(), &data)
    });
    let torn = (any::<prop::sample::Index>(), any::<u8>(), 0..8_u8);
    (proptest::collection::vec(one, 0..8), torn).prop_map(|(parts, (at, byte, chance))| {
        let mut stream = [parts.concat(), end()].concat();
        if chance == 0 {
            *at.get_mut(&mut stream) = byte;
        }
        stream
    })
}

proptest! {
    #[test]
    fn whatever_a_guest_says_the_layer_is_plain_and_pieces_do_not_matter(
        stream in stream(),
        pieces in 1..2000_usize,
    ) {
        let names = ["/a", "/a/b", "/b", "/b/a"];
        let made = run(&names, &stream, pieces);
        prop_assert_eq!(&made, &run(&names, &stream, usize::MAX));
        let Ok((held, out)) = made else { return Ok(()) };
        let told = told(&out);
        prop_assert_eq!(held.entries, told.len() as u64);
        let mut dirs = vec![String::new()];
        for (kind, path, data) in &told {
            prop_assert!(b"01256".contains(kind));
            prop_assert!(*kind == b'0' || data.is_empty());
            let plain = path.trim_end_matches('/');
            prop_assert!(plain.split('/').all(|name| !matches!(name, "" | "." | "..")));
            let parent = plain.rsplit_once('/').map_or("", |(parent, _)| parent);
            prop_assert!(dirs.iter().any(|dir| dir == parent), "{} {:?}", path, dirs);
            if *kind == b'5' {
                dirs.push(plain.to_owned());
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(stream in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = run(&["/a"], &stream, 700);
    }
}
