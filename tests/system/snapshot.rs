//! Snapshots, on podman and gVisor: what a session changed comes back as it was, and what nobody means any more goes.

use std::time::Duration;

use serde_json::json;

use crate::archive;
use crate::support::client::Answer;
use crate::support::{Client, Daemon, bench, podman, wait_for, wait_until};

/// A daemon with the template `base`, and `rooted` in which programs may be root, also in templates of teams.
async fn daemon() -> Daemon {
    let mut daemon = Daemon::new();
    let mut rooted = daemon.config["templates"]["base"].clone();
    rooted["allow_root"] = json!(true);
    daemon.set("templates.rooted", rooted);
    daemon.set("sessions", json!({"team_templates": {"allow_root": true}}));
    daemon.start().await;
    daemon.client.key = Some(daemon.key("tests").await);
    daemon
}

async fn try_snapshot(client: &Client, id: &str, template: &str) -> Answer {
    let path = format!("/v1/sessions/{id}/snapshot");
    client.post(&path, json!({"template": template})).await
}

/// Images of snapshots of this installation.
async fn images(daemon: &Daemon) -> Vec<String> {
    podman::snapshots(&daemon.installation()).await
}

async fn root(client: &Client, id: &str, command: &str) -> String {
    let (code, output) = client.sh_as(id, "root", command).await;
    assert_eq!(code, 0, "{command}: {output}");
    output
}

/// Writes to `/tmp/listing` all that matters of the root file system, a line for each path. Times of directories are those
/// of the last change in them, which looking for a place for a file may be. `/etc/mtab` is made by podman for each container.
const LIST: &str = r#"
import os, stat, hashlib
lines, links = [], {}
skip = {"/proc", "/sys", "/dev", "/tmp", "/run/casemate"}
mounts = {line.split()[1] for line in open("/proc/mounts")} - {"/"} | {"/etc/mtab"}
for top, directories, files in os.walk(b"/"):
    directories[:] = sorted(d for d in directories if os.path.join(top, d).decode("utf-8", "replace") not in skip)
    for name in sorted(directories + files):
        path = os.path.join(top, name)
        if path.decode("utf-8", "replace") in mounts:
            continue
        s = os.lstat(path)
        what = ""
        if stat.S_ISLNK(s.st_mode):
            what = os.readlink(path)
        elif stat.S_ISREG(s.st_mode):
            hash = hashlib.sha256()
            with open(path, "rb") as file:
                while data := file.read(1 << 20):
                    hash.update(data)
            what = hash.hexdigest()
            if s.st_nlink > 1:
                what += " with " + repr(links.setdefault((s.st_dev, s.st_ino), path))
        time = 0 if stat.S_ISDIR(s.st_mode) else int(s.st_mtime)
        size = 0 if stat.S_ISDIR(s.st_mode) else s.st_size
        lines.append(f"{path!r} {oct(s.st_mode)} {s.st_uid}:{s.st_gid} {size} {time} {what!r}")
open("/tmp/listing", "w").write("\n".join(lines) + "\n")
"#;

async fn listing(client: &Client, id: &str) -> Vec<String> {
    let run = json!({"argv": ["python3", "-c", LIST], "user": "root", "timeout_s": 120});
    let outcome = client.run(id, run).await;
    assert_eq!(outcome["exit_code"], 0, "{outcome}");
    let path = format!("/v1/sessions/{id}/files?path=/tmp/listing");
    let text = client.get(&path).await.body;
    let text = String::from_utf8(text.to_vec()).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
fn same(left: &[String], right: &[String]) {
    let lost: Vec<_> = left
        .iter()
        .filter(|line| !right.contains(line))
        .take(20)
        .collect();
    let new: Vec<_> = right
        .iter()
        .filter(|line| !left.contains(line))
        .take(20)
        .collect();
    assert!(
        lost.is_empty() && new.is_empty(),
        "lost {lost:#?}\nnew {new:#?}"
    );
    assert!(left.len() > 1000, "{}", left.len());
}

/// Everything that a file system can hold, by the hand of root.
const MAKE: &str = r#"
set -e
mkdir -p /srv/tree/empty /srv/tree/deep/er
echo setuid >/srv/tree/setuid && chown 1000:1001 /srv/tree/setuid && chmod 6755 /srv/tree/setuid
echo closed >/srv/tree/closed && chown 4000:4001 /srv/tree/closed && chmod 0 /srv/tree/closed
mkdir /srv/tree/private && echo mine >/srv/tree/private/file && chown -R 1234:1234 /srv/tree/private && chmod 700 /srv/tree/private
mkdir -m 1777 /srv/tree/sticky
ln -s ../somewhere/else /srv/tree/link
ln -s /absolute /srv/tree/absolute
echo twice >/srv/tree/one && ln /srv/tree/one /srv/tree/deep/two
mkfifo /srv/tree/pipe
touch /srv/tree/nothing
touch -d @1000000000 /srv/tree/old
: >"/srv/tree/$(printf 'ünï \303\244\n\377')"
long=$(printf 'x%.0s' $(seq 200))
mkdir -p /srv/tree/$long/$long && echo far >/srv/tree/$long/$long/$long
dd if=/dev/urandom of=/srv/tree/large bs=1M count=100 2>/dev/null
truncate -s 10M /srv/tree/sparse && echo end >>/srv/tree/sparse
rm /etc/motd && rm -r /usr/share/doc
rm -r /etc/default && mkdir /etc/default && echo new >/etc/default/mine
rm /etc/debian_version && mkdir /etc/debian_version && echo in >/etc/debian_version/in
rm -r /etc/skel && echo file >/etc/skel
mv /etc/bash.bashrc /etc/moved
chmod 700 /usr/bin/ls
echo more >>/etc/passwd
"#;

/// Makes a file that takes a snapshot some time.
const LARGE: &str = "dd if=/dev/zero of=/srv/large bs=1M count=400 2>/dev/null";

#[tokio::test]
async fn a_snapshot_gives_back_exactly_what_the_session_had() {
    let mut daemon = daemon().await;
    let client = daemon.client.clone();
    let id = client.session(json!({"template": "rooted"})).await;
    root(&client, &id, MAKE).await;
    let made = try_snapshot(&client, &id, "mine").await;
    let view = made.expect(201);
    assert_eq!(
        (&view["template"], &view["template_version"]),
        (&json!("mine"), &json!(1))
    );
    assert_eq!(made.headers["etag"], "\"1\"");
    // The changes alone, and no second copy of the image.
    let bytes = view["bytes"].as_u64().unwrap();
    assert!((100 << 20..130 << 20).contains(&bytes), "{bytes}");
    assert_eq!(images(&daemon).await, [view["image"].as_str().unwrap()]);
    let before = listing(&client, &id).await;

    // The session goes on, and what it does now is no part of it.
    root(&client, &id, "echo later >/srv/tree/later").await;
    let restored = client.session(json!({"template": "mine"})).await;
    assert_eq!(client.look(&restored).await["image"], view["image"]);
    let after = listing(&client, &restored).await;
    same(&before, &after);

    // A snapshot of what came of a snapshot, as the next version; those of the one before live on.
    root(
        &client,
        &restored,
        "rm -r /srv/tree/deep /srv/tree/large; echo second >/srv/tree/one; echo back >/etc/motd",
    )
    .await;
    let second = try_snapshot(&client, &restored, "mine").await.expect(200);
    assert_eq!(second["template_version"], 2);
    assert!(second["bytes"].as_u64().unwrap() < 4 << 20, "{second}");
    let before = listing(&client, &restored).await;
    let again = client.session(json!({"template": "mine"})).await;
    same(&before, &listing(&client, &again).await);
    assert_eq!(client.look(&restored).await["template_version"], 1);
    root(&client, &restored, "test -e /srv/tree/one").await;

    let template = client.get("/v1/templates/mine").await.expect(200);
    assert_eq!(
        (&template["allow_root"], &template["origin"]),
        (&json!(true), &json!("api"))
    );
    assert_eq!(template["limits"]["disk_bytes"], 1_u64 << 30);
    let records = client.audit(&id).await;
    let record = records
        .iter()
        .find(|one| one["event"]["kind"] == "session.snapshot" && one["stage"] == "outcome");
    let told = record.map(ToString::to_string).unwrap_or_default();
    assert!(
        told.contains("version 1") && told.contains(view["image"].as_str().unwrap()),
        "{records:#?}"
    );

    // What is in use stays, what nobody means goes.
    client.delete("/v1/templates/mine").await.expect(204);
    daemon.restart().await;
    let client = daemon.client.clone();
    wait_until("what lives keeps its image", async || {
        images(&daemon).await.len() == 2
    })
    .await;
    client.end(&restored).await;
    client.end(&again).await;
    // At the second look after that; there are two in a minute.
    let looks = Duration::from_secs(120);
    wait_for("the images go", looks, async || {
        images(&daemon).await.is_empty().then_some(())
    })
    .await;
    client.end(&id).await;
}

#[tokio::test]
async fn a_user_without_root_has_a_snapshot_of_all_that_is_there() {
    let daemon = daemon().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    // Installed as a user does, and a file that not even its owner can read.
    let install = r#"
        d=$(python3 -c 'import site; print(site.getusersitepackages())') && mkdir -p "$d/greeting" &&
        echo 'WORD = "hello from the package"' >"$d/greeting/__init__.py" &&
        mkdir -m 0 ~/closed && echo secret >~/shut && chmod 0 ~/shut && mkdir -p ~/bin && ln -s /usr/bin/python3 ~/bin/py"#;
    client.out(&id, install).await;
    // A paused session is woken.
    let path = format!("/v1/sessions/{id}/pause");
    client.post(&path, json!({})).await.expect(200);
    let view = try_snapshot(&client, &id, "mine").await.expect(201);
    assert!(view["bytes"].as_u64().unwrap() < 4 << 20, "{view}");
    let restored = client.session(json!({"template": "mine"})).await;
    let greet = "~/bin/py -c 'import greeting; print(greeting.WORD)'; stat -c '%n %a %U' ~/closed ~/shut; cat ~/shut; chmod 600 ~/shut; cat ~/shut";
    let (_, said) = client.sh(&restored, greet).await;
    assert!(
        said.starts_with(
            "hello from the package\n/home/user/closed 0 user\n/home/user/shut 0 user\n"
        ),
        "{said}"
    );
    assert!(
        said.contains("Permission denied") && said.ends_with("secret\n"),
        "{said}"
    );
    // The same content is the same image, and no new version.
    let again = try_snapshot(&client, &restored, "other").await.expect(201);
    assert_ne!(again["image"], view["image"]);
    // A name of a file's is the operator's.
    try_snapshot(&client, &id, "base")
        .await
        .problem(409, "template_from_file");
    client
        .stranger()
        .post(
            &format!("/v1/sessions/{id}/snapshot"),
            json!({"template": "a"}),
        )
        .await
        .problem(401, "unauthenticated");
    client
        .post(
            &format!("/v1/sessions/{id}/snapshot"),
            json!({"template": "A/b"}),
        )
        .await
        .problem(400, "invalid_request");
}

#[tokio::test]
async fn too_much_is_refused_and_leaves_nothing() {
    let mut daemon = Daemon::new();
    daemon.set(
        "sessions",
        json!({"team_templates": {"max_snapshot_bytes": 8 << 20}}),
    );
    daemon.start().await;
    daemon.client.key = Some(daemon.key("tests").await);
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    client.out(&id, "truncate -s 1000M ~/large").await;
    let said = try_snapshot(&client, &id, "mine")
        .await
        .problem(413, "snapshot_too_large");
    assert!(
        said.contains("8388608 bytes") && said.contains("max_snapshot_bytes"),
        "{said}"
    );
    client.out(&id, "rm ~/large; touch ~/.wh.odd").await;
    let said = try_snapshot(&client, &id, "mine")
        .await
        .problem(422, "snapshot_unfit");
    assert!(said.contains("/home/user/.wh.odd"), "{said}");
    client
        .get("/v1/templates/mine")
        .await
        .problem(404, "template_not_found");
    assert_eq!(images(&daemon).await, [""; 0]);
    client.out(&id, "rm ~/.wh.odd").await;
    try_snapshot(&client, &id, "mine").await.expect(201);
}

#[tokio::test]
async fn one_snapshot_of_a_session_at_a_time_and_a_caller_may_go_away() {
    let daemon = daemon().await;
    let client = daemon.client.clone();
    let id = client.session(json!({"template": "rooted"})).await;
    root(&client, &id, LARGE).await;
    let (one, other) = tokio::join!(
        try_snapshot(&client, &id, "a"),
        try_snapshot(&client, &id, "b")
    );
    let (made, refused) = if one.status.is_success() {
        (one, other)
    } else {
        (other, one)
    };
    made.expect(201);
    refused.problem(409, "snapshot_under_way");
    // Given up while it is read.
    {
        let snapshot = try_snapshot(&client, &id, "gone");
        tokio::pin!(snapshot);
        let begun = wait_until("it is begun", async || {
            let records = client.audit(&id).await;
            records.iter().any(|one| one["event"]["template"] == "gone")
        });
        tokio::select! {
            _ = &mut snapshot => panic!("it was too quick"),
            () = begun => {}
        }
    }
    wait_until("it is recorded", async || {
        let records = client.audit(&id).await;
        records
            .iter()
            .any(|one| one.to_string().contains("cut_short"))
    })
    .await;
    client
        .get("/v1/templates/gone")
        .await
        .problem(404, "template_not_found");
    assert_eq!(images(&daemon).await.len(), 1);
}

#[tokio::test]
async fn a_daemon_that_is_killed_in_the_middle_leaves_nothing() {
    let mut daemon = daemon().await;
    let client = daemon.client.clone();
    let id = client.session(json!({"template": "rooted"})).await;
    root(&client, &id, LARGE).await;
    let before = std::fs::read_dir(daemon.state_dir()).unwrap().count();
    let asking = {
        let (client, id) = (client.clone(), id.clone());
        tokio::spawn(async move {
            let path = format!("/v1/sessions/{id}/snapshot");
            let body = json!({"template": "mine"}).to_string().into();
            let headers = [("content-type", "application/json")];
            client
                .try_send(http::Method::POST, &path, &headers, body)
                .await
        })
    };
    wait_until("it is begun", async || {
        let records = client.audit(&id).await;
        records.iter().any(|one| one["event"]["template"] == "mine")
    })
    .await;
    daemon.kill9();
    asking.await.unwrap().unwrap_err();
    // As if it had been killed right after podman had taken the image.
    podman::leave_snapshot(&daemon.installation()).await;
    assert!(!images(&daemon).await.is_empty());
    daemon.start().await;
    wait_until("what was left goes", async || {
        images(&daemon).await.is_empty()
    })
    .await;
    assert!(std::fs::read_dir(daemon.state_dir()).unwrap().count() <= before);
    // The session lives, and can be saved.
    daemon.phase(&id, "ready").await;
    try_snapshot(&daemon.client, &id, "mine").await.expect(201);
}

#[tokio::test]
async fn a_session_of_an_image_with_many_layers_becomes_one_layer_with_everything() {
    let mut daemon = Daemon::new();
    let base = podman::layers(&bench().image).await;
    let more = 32 - base.len();
    let layer = |n: usize| {
        let mut layer = Vec::new();
        archive::file(&mut layer, &format!("srv/layer-{n}"), b"of a layer");
        layer.extend([0; 1024]);
        layer
    };
    let tops: Vec<_> = (0..more).map(layer).collect();
    let (archive, image) = archive::stacked(&base, &tops, &json!({}));
    podman::load(archive).await;
    let mut deep = daemon.config["templates"]["base"].clone();
    deep["image"] = json!(image);
    deep["allow_root"] = json!(true);
    daemon.set("templates.deep", deep);
    daemon.set("sessions", json!({"team_templates": {"allow_root": true}}));
    daemon.start().await;
    daemon.client.key = Some(daemon.key("tests").await);
    let client = daemon.client.clone();
    let id = client.session(json!({"template": "deep"})).await;
    root(
        &client,
        &id,
        "rm /srv/layer-0 /etc/motd; echo new >/srv/new",
    )
    .await;
    let view = try_snapshot(&client, &id, "flat").await.expect(201);
    let flat = view["image"].as_str().unwrap();
    assert_eq!(podman::layers(flat).await.len(), 1);
    let before = listing(&client, &id).await;
    let restored = client.session(json!({"template": "flat"})).await;
    same(&before, &listing(&client, &restored).await);
    client.end(&id).await;
    client.end(&restored).await;
    client.delete("/v1/templates/flat").await.expect(204);
    drop(daemon);
    podman::remove_image(flat).await;
    podman::remove_image(&image.to_string()).await;
}
