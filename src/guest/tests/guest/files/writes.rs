//! Writing files: whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use bytes::Bytes;
use casemate_link::file::{Place, WriteCondition};
use casemate_link::refusal::code;

use super::{bench, chmod};
use crate::support::{at, names_in, pattern, put, refused, soon, until, writing};

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
    let outcome = crate::support::run(&link, crate::support::shell(&script)).await;
    assert_eq!(outcome.exit.exit_code, Some(128 + 25), "{outcome:?}");
}
