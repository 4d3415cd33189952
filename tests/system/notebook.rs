//! The template for notebooks as it is shipped, in a real browser: what a person with a link gets.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::support::peer::Peer;
use crate::support::{Daemon, bench, wait_until};

/// The shipped template, of the image that was made for it.
fn template() -> Value {
    let mut template: Value =
        serde_yaml::from_str(include_str!("../../config/templates/notebook.yaml")).unwrap();
    template["image"] = json!(bench().notebook);
    template
}

/// A notebook with one cell.
fn notebook(code: &str) -> Bytes {
    let cell = json!({"cell_type": "code", "id": "first", "metadata": {}, "source": code, "outputs": [], "execution_count": null});
    let kernel = json!({"name": "python3", "display_name": "Python 3", "language": "python"});
    json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": [cell]})
        .to_string()
        .into()
}

/// What `casemate open` prints where there is a display, and the page that it has the desktop open.
async fn open(daemon: &Daemon, id: &str, key: &str) -> (String, String) {
    let desktop = daemon.home.join("desktop");
    std::fs::create_dir(&desktop).unwrap();
    let opener = desktop.join("xdg-open");
    // What it is told is there all at once, or not at all.
    std::fs::write(
        &opener,
        "#!/bin/sh\nprintf %s \"$1\" >\"${0%/*}/new\" && mv \"${0%/*}/new\" \"${0%/*}/told\"\n",
    )
    .unwrap();
    std::fs::set_permissions(&opener, Permissions::from_mode(0o755)).unwrap();
    let run = |display: &str, more: &[&str]| {
        let said = Command::new(bench().bin.join("casemate"))
            .args(["--url", &format!("http://{}", daemon.client.address)])
            .args(["open", "8888", "--session", id])
            .args(more)
            .env("CASEMATE_API_KEY", key)
            .env("PATH", format!("{}:/usr/bin:/bin", desktop.display()))
            .env_remove("WAYLAND_DISPLAY")
            .env("DISPLAY", display)
            .env("XDG_RUNTIME_DIR", &desktop)
            .output()
            .unwrap();
        assert!(said.status.success(), "{said:?}");
        String::from_utf8(said.stdout).unwrap()
    };
    let pages = || {
        let files = std::fs::read_dir(&desktop).unwrap();
        let files = files.map(|file| file.unwrap().path());
        files
            .filter(|file| file.extension().is_some_and(|end| end == "html"))
            .count()
    };
    // Without a display, or where only the link is wanted, there is only the link.
    for (display, more) in [("", &[][..]), (":0", &["--print"])] {
        let said = run(display, more);
        assert!(said.starts_with("http://8888-"), "{said}");
        assert_eq!(pages(), 0);
    }
    let link = run(":0", &[]).trim().to_owned();
    assert_eq!(pages(), 1);
    let told = desktop.join("told");
    wait_until("the desktop is told", async || told.exists()).await;
    (link, std::fs::read_to_string(told).unwrap())
}

#[tokio::test]
async fn a_notebook_is_opened_in_a_browser_by_a_link_and_its_cells_run() {
    let domain = json!({"domain": "box.localhost"});
    let daemon =
        Daemon::up_with(&[("endpoints", domain), ("templates.notebook", template())]).await;
    let client = &daemon.client;
    let id = client.session(json!({"template": "notebook"})).await;
    let path = format!("/v1/sessions/{id}/files?path=/home/user/work.ipynb");
    let code = "import sys, platform\nprint('kernel', platform.release(), 6 * 7)";
    let put = client.send(Method::PUT, &path, &[], notebook(code)).await;
    assert!(put.status.is_success(), "{put:?}");

    // Who has a token for this session alone opens it with the command line, at a desktop.
    let token = client
        .post(
            &format!("/v1/sessions/{id}/tokens"),
            json!({"expires_in_s": 600}),
        )
        .await
        .expect(201);
    let (link, page) = open(&daemon, &id, token["key"].as_str().unwrap()).await;
    let (origin, _) = link.split_once("/?").unwrap();
    let (_, host) = origin.split_once("//").unwrap();

    let mut browser = Peer::start("browser.mjs");
    // Without it there is nothing to see.
    let refused = browser.ask(&json!({"do": "visit", "url": format!("{origin}/lab")}));
    assert_eq!(refused["status"], 401, "{refused}");
    let lands = format!("{origin}/lab");
    let visited =
        browser.ask(&json!({"do": "visit", "url": format!("file://{page}"), "lands": lands}));
    assert_eq!(visited["url"], lands);
    let notebook = format!("{origin}/lab/tree/work.ipynb");
    let visited = browser.ask(&json!({"do": "visit", "url": notebook}));
    assert_eq!(visited, json!({"status": 200, "url": notebook}));
    let ran = browser.ask(&json!({"do": "run", "shows": "kernel"}));
    let kernel = client.out(&id, "uname -r").await;
    assert_eq!(ran["output"], format!("kernel {} 42", kernel.trim()));
    // The same kernel goes on with what is typed.
    let more =
        json!({"do": "run", "code": "print('typed', sys.version_info.major)", "shows": "typed"});
    assert_eq!(browser.ask(&more)["output"], "typed 3");
    assert_eq!(browser.ask(&json!({"do": "save"}))["status"], 200);
    let saved = client.out(&id, "cat work.ipynb").await;
    assert!(saved.contains("typed 3"), "{saved}");

    // All of it went through the endpoint, kernels by WebSocket, and by a cookie of this name alone.
    let sockets = browser.ask(&json!({"do": "sockets"}));
    let sockets: Vec<String> = serde_json::from_value(sockets["sockets"].clone()).unwrap();
    let kernels = format!("ws://{host}/api/kernels/");
    assert!(
        sockets.iter().any(|url| url.starts_with(&kernels)),
        "{sockets:?}"
    );
    let cookies = browser.ask(&json!({"do": "cookies"}));
    let cookies = cookies["cookies"].as_array().unwrap();
    assert!(!cookies.is_empty());
    for cookie in cookies {
        let domain = host.split(':').next().unwrap();
        assert_eq!(cookie["domain"], domain, "{cookie}");
    }
}
