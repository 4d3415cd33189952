//! Files and archives: over the API, in gVisor.

use bytes::Bytes;
use futures_util::stream;
use http::Method;
use http_body_util::BodyExt;
use serde_json::json;

use crate::support::{Daemon, wait_until};

#[tokio::test]
async fn files_go_in_and_out_with_parts_conditions_and_metadata() {
    let daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let base = format!("/v1/sessions/{id}/files");
    let path = format!("{base}?path=deep/er/a.txt");

    let headers = [("x-metadata-project", "casemate"), ("if-none-match", "*")];
    let put = client
        .send(Method::PUT, &path, &headers, "0123456789".into())
        .await;
    let entry = put.expect(200);
    assert_eq!(
        (&entry["path"], &entry["size_bytes"]),
        (&json!("/home/user/deep/er/a.txt"), &json!(10))
    );
    assert_eq!(
        (&entry["owner"], &entry["mode"]),
        (&json!("user"), &json!("0644"))
    );
    let tag = put.headers["etag"].to_str().unwrap().to_owned();

    let got = client.get(&path).await;
    assert_eq!(
        (&got.body[..], got.status.as_u16()),
        (&b"0123456789"[..], 200)
    );
    assert_eq!(got.headers["etag"], tag.as_str());
    assert_eq!(got.headers["x-metadata-project"], "casemate");
    assert_eq!(got.headers["content-length"], "10");

    let part = client
        .send(Method::GET, &path, &[("range", "bytes=-4")], Bytes::new())
        .await;
    assert_eq!((part.status.as_u16(), &part.body[..]), (206, &b"6789"[..]));
    assert_eq!(part.headers["content-range"], "bytes 6-9/10");
    let beyond = client
        .send(Method::GET, &path, &[("range", "bytes=10-")], Bytes::new())
        .await;
    beyond.problem(416, "range_not_satisfiable");
    let known = client
        .send(Method::GET, &path, &[("if-none-match", &tag)], Bytes::new())
        .await;
    assert_eq!(known.status.as_u16(), 304);
    let head = client.send(Method::HEAD, &path, &[], Bytes::new()).await;
    assert_eq!(
        (head.status.as_u16(), &head.headers["content-length"]),
        (200, &"10".parse().unwrap())
    );

    let again = client
        .send(Method::PUT, &path, &[("if-none-match", "*")], "x".into())
        .await;
    again.problem(412, "condition_failed");
    let stale = client
        .send(Method::PUT, &path, &[("if-match", "\"0-0-0\"")], "x".into())
        .await;
    stale.problem(412, "condition_failed");
    let good = client
        .send(Method::PUT, &path, &[("if-match", &tag)], "new".into())
        .await;
    good.expect(200);
    let more = client
        .send(
            Method::PUT,
            &format!("{path}&append=true"),
            &[],
            "er".into(),
        )
        .await;
    more.expect(200);
    assert_eq!(client.get(&path).await.body, "newer");
    assert_eq!(
        client.out(&id, "cat deep/er/a.txt; ls -A deep/er").await,
        "newera.txt\n"
    );

    client.delete(&path).await.expect(204);
    client.delete(&path).await.problem(404, "file_not_found");
    client.end(&id).await;
}

#[tokio::test]
async fn directories_are_made_listed_moved_watched_and_removed() {
    let daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let base = format!("/v1/sessions/{id}/files");

    let made = client
        .post(
            &format!("{base}/mkdir"),
            json!({"path": "tree/sub", "mode": "0750"}),
        )
        .await
        .expect(200);
    assert_eq!(
        (&made["created"], &made["entry"]["mode"]),
        (&json!(true), &json!("0750"))
    );
    let made = client
        .post(&format!("{base}/mkdir"), json!({"path": "tree/sub"}))
        .await
        .expect(200);
    assert_eq!(made["created"], false);

    let mut events = client
        .events(&format!("{base}/watch?path=tree&recursive=true"), &[])
        .await;
    client
        .send(
            Method::PUT,
            &format!("{base}?path=tree/sub/a"),
            &[],
            "a".into(),
        )
        .await
        .expect(200);
    let body = json!({"path": "tree/sub/a", "to": "tree/b"});
    client.post(&format!("{base}/move"), body).await.expect(200);
    let renamed = loop {
        let event = events.next().await.unwrap();
        if event.name == "rename" && event.data["path"] == "sub/a" {
            break event;
        }
    };
    assert_eq!(renamed.data["to"], "b");
    let body = json!({"path": "tree/link", "target": "b"});
    client.post(&format!("{base}/link"), body).await.expect(200);
    let body = json!({"path": "tree/b", "mode": "0600", "metadata": {"k": "v"}});
    let set = client.post(&format!("{base}/set"), body).await.expect(200);
    assert_eq!(
        (&set["mode"], &set["metadata"]),
        (&json!("0600"), &json!({"k": "v"}))
    );

    let list = client
        .get(&format!("{base}/list?path=tree&depth=2"))
        .await
        .expect(200);
    let names: Vec<_> = list["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (
                entry["path"].as_str().unwrap().to_owned(),
                entry["kind"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let wanted = [("b", "file"), ("link", "symlink"), ("sub", "directory")];
    let wanted = wanted.map(|(name, kind)| (format!("/home/user/tree/{name}"), kind.to_owned()));
    assert_eq!(names, wanted);

    client
        .delete(&format!("{base}?path=tree"))
        .await
        .problem(409, "file_exists");
    client
        .delete(&format!("{base}?path=tree&recursive=true"))
        .await
        .expect(204);
    client
        .get(&format!("{base}/stat?path=tree"))
        .await
        .problem(404, "file_not_found");
    client.end(&id).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_file_is_said() {
    let mut daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let base = format!("/v1/sessions/{id}/files");
    for (path, status, code) in [
        ("", 400, "bad_spec"),
        ("a%00b", 400, "bad_spec"),
        (&"x".repeat(5000), 400, "bad_spec"),
        ("/no/such/file", 404, "file_not_found"),
        ("/tmp", 409, "wrong_file_kind"),
        ("/dev/null", 409, "wrong_file_kind"),
        ("/etc/shadow", 403, "file_denied"),
    ] {
        client
            .get(&format!("{base}?path={path}"))
            .await
            .problem(status, code);
    }
    client.get(&base).await.problem(400, "invalid_request");
    client
        .get(&format!("{base}?path=/tmp&path=/"))
        .await
        .problem(400, "invalid_request");
    client
        .get(&format!("{base}?path=/tmp/x&user=nobody-here"))
        .await
        .problem(422, "program_refused");
    client
        .get(&format!("{base}?path=/tmp/x&user=root"))
        .await
        .problem(422, "program_refused");
    for path in ["/etc/x", "/proc/x"] {
        let put = client
            .send(Method::PUT, &format!("{base}?path={path}"), &[], "x".into())
            .await;
        put.problem(403, "file_denied");
    }
    let put = client
        .send(Method::PUT, &format!("{base}?path=/tmp"), &[], "x".into())
        .await;
    put.problem(409, "wrong_file_kind");
    let put = client
        .send(
            Method::PUT,
            &format!("{base}?path=/tmp/x&mode=999"),
            &[],
            "x".into(),
        )
        .await;
    put.problem(400, "invalid_request");
    for depth in ["0", "65", "x"] {
        let list = client
            .get(&format!("{base}/list?path=/&depth={depth}"))
            .await;
        assert_eq!(list.status.as_u16(), 400, "{depth}");
    }
    let other = daemon.key("others").await;
    let stranger = client.with_key(&other);
    stranger
        .get(&format!("{base}?path=/etc/passwd"))
        .await
        .problem(404, "session_not_found");
    client.end(&id).await;
}

#[tokio::test]
async fn a_full_disk_and_a_cut_upload_leave_what_was_there() {
    let daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client
        .session(json!({"limits": {"disk_bytes": 1_u64 << 30}}))
        .await;
    let path = format!("/v1/sessions/{id}/files?path=/home/user/precious");
    client
        .send(Method::PUT, &path, &[], "precious".into())
        .await
        .expect(200);

    let piece = Bytes::from(vec![7; 1 << 20]);
    let endless = stream::iter((0..3000).map(move |_| Ok(piece.clone())));
    client
        .upload(Method::PUT, &path, endless)
        .await
        .problem(507, "disk_full");
    assert_eq!(client.get(&path).await.body, "precious");

    let cut = stream::iter([
        Ok(Bytes::from_static(b"half")),
        Err(std::io::Error::other("gone")),
    ]);
    let sent = tokio::spawn({
        let (client, path) = (client.clone(), path.clone());
        async move { client.upload(Method::PUT, &path, cut).await }
    });
    // The client breaks off in the middle, so that it has no answer.
    assert!(sent.await.is_err());
    assert_eq!(client.get(&path).await.body, "precious");
    wait_until("no half file is left", async || {
        client
            .out(
                &id,
                "ls -A /home/user | grep -v -e '^\\.bash' -e '^\\.profile'",
            )
            .await
            .trim()
            == "precious"
    })
    .await;
    client.end(&id).await;
}

#[tokio::test]
async fn a_tree_goes_out_and_in_as_an_archive() {
    let daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let make = "mkdir -p src/a/b && echo one > src/a/one && ln -s a/one src/link && chmod 700 src/a/b && head -c 3000000 /dev/urandom > src/a/b/big";
    client.out(&id, make).await;
    for compression in ["none", "zstd"] {
        let base = format!("/v1/sessions/{id}/archive");
        let got = client
            .get(&format!("{base}?path=src&compression={compression}"))
            .await;
        assert_eq!(got.status.as_u16(), 200);
        let path = format!("{base}?path=dst-{compression}&compression={compression}");
        let put = client.send(Method::PUT, &path, &[], got.body).await;
        let unpacked = put.expect(200);
        assert!(
            unpacked["bytes"].as_u64().unwrap() >= 3_000_000,
            "{unpacked}"
        );
        let compare = format!(
            "diff -r --no-dereference src dst-{compression} && stat -c %a dst-{compression}/a/b"
        );
        assert_eq!(client.out(&id, &compare).await, "700\n");
    }
    let bad = format!("/v1/sessions/{id}/archive?path=bad");
    client
        .send(Method::PUT, &bad, &[], Bytes::from(vec![1; 5000]))
        .await
        .problem(422, "bad_archive");
    let bad = format!("{bad}&compression=zstd");
    client
        .send(Method::PUT, &bad, &[], Bytes::from(vec![1; 5000]))
        .await
        .problem(422, "bad_archive");
    client.end(&id).await;
}

#[tokio::test]
async fn a_slow_reader_of_a_large_file_costs_the_daemon_no_memory() {
    let daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    client.out(&id, "truncate -s 1G /home/user/large").await;
    let before = daemon.resident_kb();
    let answer = client
        .download(&format!("/v1/sessions/{id}/files?path=/home/user/large"))
        .await;
    assert_eq!(
        answer.headers()["content-length"],
        (1_u64 << 30).to_string().as_str()
    );
    let mut body = answer.into_body();
    let (mut read, mut looked, mut most) = (0_u64, 0_u64, 0);
    while let Some(frame) = body.frame().await {
        read += u64::try_from(frame.unwrap().into_data().unwrap().len()).unwrap();
        // The daemon is always ahead of a client that stops to look at it.
        if read / (8 << 20) > looked {
            looked = read / (8 << 20);
            most = most.max(daemon.resident_kb());
        }
    }
    assert_eq!(read, 1 << 30);
    assert!(
        most < before + 16 * 1024,
        "{before} kB before, {most} kB at most"
    );
    client.end(&id).await;
}
