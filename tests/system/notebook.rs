//! The template for notebooks as it is shipped, in a real browser: what a person with a link gets.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::support::peer::Peer;
use crate::support::{Daemon, bench};

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

    // A token for this session alone makes the link.
    let token = client
        .post(
            &format!("/v1/sessions/{id}/tokens"),
            json!({"expires_in_s": 600}),
        )
        .await
        .expect(201);
    let token = client.with_key(token["key"].as_str().unwrap());
    let made = token
        .post(&format!("/v1/sessions/{id}/links/8888"), json!({}))
        .await
        .expect(201);
    let (origin, link) = made["url"].as_str().unwrap().split_once("/?").unwrap();
    let (_, host) = origin.split_once("//").unwrap();

    let mut browser = Peer::start("browser.mjs");
    // Without it there is nothing to see.
    let refused = browser.ask(&json!({"do": "visit", "url": format!("{origin}/lab")}));
    assert_eq!(refused["status"], 401, "{refused}");
    let page = format!("{origin}/lab/tree/work.ipynb");
    let visited = browser.ask(&json!({"do": "visit", "url": format!("{page}?{link}")}));
    assert_eq!(visited, json!({"status": 200, "url": page}));
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
