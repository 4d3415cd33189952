//! Large files over connections of their own: the real guest, the real daemon end.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use casemate_link::daemon::{FileReader, FileWriter, Link};
use casemate_link::file::{ReadRange, ReadRequest};
use casemate_link::limits::{CHANNEL_PART_BYTES, MAX_CHANNELS, MIN_CHANNEL_BYTES};
use tokio::time::Instant;

use crate::support::{Bench, all, at, names_in, pattern, put, refused, soon, until, writing};

/// More than every buffer on the way together.
const LARGE: usize = 8 << 20;

async fn open(link: &Link, path: &Path) -> FileReader {
    let place = at(path);
    let request = ReadRequest { place, range: None };
    soon(link.read(&request)).await.unwrap()
}

async fn begin(link: &Link, path: &Path, expected: Option<u64>) -> FileWriter {
    soon(link.write(&writing(path), expected)).await.unwrap()
}

#[tokio::test]
async fn large_files_take_a_channel_both_ways_and_small_ones_do_not() {
    let (_bench, link) = Bench::start_with_channels().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let least = usize::try_from(MIN_CHANNEL_BYTES).unwrap();
    for (length, is_large) in [(least - 1, false), (least, true), (LARGE + 7, true)] {
        let data = pattern(length);
        let mut writer = begin(&link, &file, Some(length as u64)).await;
        assert_eq!(writer.has_channel(), is_large, "{length}");
        // In pieces that fit nothing.
        for piece in data.chunks(CHANNEL_PART_BYTES / 3 + 1) {
            soon(writer.write(data.slice_ref(piece))).await.unwrap();
        }
        let entry = soon(writer.commit()).await.unwrap();
        assert_eq!(entry.size_bytes, length as u64);
        assert!(fs::read(&file).unwrap() == data);
        let reader = open(&link, &file).await;
        assert_eq!(reader.has_channel(), is_large, "{length}");
        assert!(all(reader).await.unwrap() == data);
    }
    // Of a part its own length counts, and nobody knows how much of a stream is to come.
    for (range, is_large) in [
        (ReadRange::From(3, Some(1000)), false),
        (ReadRange::Last(MIN_CHANNEL_BYTES), true),
        (ReadRange::From(5, None), true),
    ] {
        let request = ReadRequest {
            place: at(&file),
            range: Some(range),
        };
        let reader = soon(link.read(&request)).await.unwrap();
        assert_eq!(reader.has_channel(), is_large, "{range:?}");
        let (from, length) = range.within(LARGE as u64 + 7).unwrap();
        let (from, length) = (
            usize::try_from(from).unwrap(),
            usize::try_from(length).unwrap(),
        );
        let expected = pattern(LARGE + 7);
        assert!(all(reader).await.unwrap() == expected[from..from + length]);
    }
    assert!(begin(&link, &file, None).await.has_channel());
}

#[tokio::test]
async fn who_finds_no_channel_left_goes_over_the_link_and_gets_the_same() {
    let (_bench, link) = Bench::start_with_channels().await;
    let dir = tempfile::tempdir().unwrap();
    let (file, data) = (dir.path().join("file"), pattern(LARGE));
    fs::write(&file, &data).unwrap();
    let mut unread = Vec::new();
    for _ in 0..MAX_CHANNELS {
        unread.push(open(&link, &file).await);
    }
    assert!(unread.iter().all(FileReader::has_channel));
    let reader = open(&link, &file).await;
    assert!(!reader.has_channel());
    assert!(all(reader).await.unwrap() == data);
    let copy = dir.path().join("copy");
    soon(put(&link, &writing(&copy), data.clone()))
        .await
        .unwrap();
    assert!(fs::read(&copy).unwrap() == data);
    // Dropped, they give their places back; read late, they are whole.
    let late = unread.pop().unwrap();
    drop(unread);
    let freed = async { while !open(&link, &file).await.has_channel() {} };
    soon(freed).await;
    assert!(all(late).await.unwrap() == data);
}

#[tokio::test]
async fn a_guest_that_is_not_let_in_again_goes_over_the_link() {
    // Nobody waits at the door.
    let (_bench, link) = Bench::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (file, data) = (dir.path().join("file"), pattern(LARGE));
    fs::write(&file, &data).unwrap();
    let began = Instant::now();
    let reader = open(&link, &file).await;
    assert!(!reader.has_channel());
    assert!(all(reader).await.unwrap() == data);
    assert!(began.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn a_write_that_is_cut_leaves_what_was_there() {
    let (_bench, link) = Bench::start_with_channels().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "old").unwrap();
    for _ in 0..2 * MAX_CHANNELS {
        let mut writer = begin(&link, &file, Some(LARGE as u64)).await;
        soon(writer.write(pattern(3 << 20))).await.unwrap();
        drop(writer);
    }
    until("nothing half is left", || names_in(dir.path()) == ["file"]).await;
    assert_eq!(fs::read(&file).unwrap(), b"old");
    // The link goes meanwhile.
    let mut writer = begin(&link, &file, Some(LARGE as u64)).await;
    soon(writer.write(pattern(3 << 20))).await.unwrap();
    link.close();
    assert!(soon(writer.commit()).await.is_err());
    until("nothing half is left", || names_in(dir.path()) == ["file"]).await;
    assert_eq!(fs::read(&file).unwrap(), b"old");
}

#[tokio::test]
async fn what_a_file_loses_while_it_is_read_is_told() {
    let (_bench, link) = Bench::start_with_channels().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let file = fs::File::create(&path).unwrap();
    file.set_len(100 << 20).unwrap();
    file.write_all_at(b"begins", 0).unwrap();
    let mut reader = open(&link, &path).await;
    assert!(reader.has_channel());
    let first = soon(reader.next()).await.unwrap().unwrap();
    assert!(first.starts_with(b"begins"));
    file.set_len(1000).unwrap();
    assert_eq!(refused(all(reader).await), "file_failed");
}
