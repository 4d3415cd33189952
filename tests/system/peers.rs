//! Ports in sandboxes with servers and clients that we did not write, at both ends (`tests/peers`): WebSocket, gRPC, a web
//! application; each is reached by host name, with a token for its session alone.

use std::process::{Command, Stdio};

use http::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::peer::{Peer, peers};
use crate::support::{Client, Daemon, bench, wait_until};

/// A server on port 8000 of a session, and who may reach it.
struct Served {
    daemon: Daemon,
    id: String,
    /// What is reached with a token for the session.
    token: Client,
    /// The name that its port has, with the door's own port.
    host: String,
}

/// A session in which one of the programs runs, with the Python packages that it needs.
async fn serve(program: &str, packages: &[&str]) -> Served {
    let daemon = Daemon::up_with(&[
        ("endpoints", json!({"domain": "box.localhost"})),
        ("templates.base.ports", json!([8000])),
    ])
    .await;
    let client = &daemon.client;
    let id = client.session(json!({})).await;
    let installed = bench().peers.join("python");
    // With what says their versions, NAME-VERSION.dist-info, for which some ask.
    let needed = std::fs::read_dir(&installed).unwrap();
    let needed = needed
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|entry| packages.iter().any(|package| entry.starts_with(package)));
    let packed = Command::new("tar")
        .args(["--create", "--owner=1000", "--group=1000"])
        .arg("--directory")
        .arg(&installed)
        .args(needed)
        .arg("--directory")
        .arg(peers())
        .arg(program)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(packed.status.success());
    let path = format!("/v1/sessions/{id}/archive?path=/home/user/served");
    let put = client
        .send(Method::PUT, &path, &[], packed.stdout.into())
        .await;
    put.expect(200);
    let command = format!("exec python3 {program} >log 2>&1");
    let run = json!({"command": command, "cwd": "/home/user/served", "tag": "server"});
    client
        .post(&format!("/v1/sessions/{id}/processes"), run)
        .await
        .expect(201);
    wait_until("it listens", async || {
        let running = client.get(&format!("/v1/sessions/{id}/processes")).await;
        let running = running.expect(200);
        let has_ended = running["processes"][0]["running"] != true;
        assert!(!has_ended, "{}", client.out(&id, "cat served/log").await);
        let ports = client.get(&format!("/v1/sessions/{id}/ports")).await;
        let ports = ports.expect(200);
        let ports = ports["ports"].as_array().unwrap();
        ports.iter().any(|open| open["port"] == 8000)
    })
    .await;
    let token = client
        .post(
            &format!("/v1/sessions/{id}/tokens"),
            json!({"expires_in_s": 600}),
        )
        .await
        .expect(201);
    let token = client.with_key(token["key"].as_str().unwrap());
    let (_, port) = client.address.split_once(':').unwrap();
    let name = id.strip_prefix("ses_").unwrap();
    let host = format!("8000-{name}.box.localhost:{port}");
    Served {
        daemon,
        id,
        token,
        host,
    }
}

impl Served {
    /// Changes the settings while everything runs, as `systemctl reload` does.
    async fn reload(&mut self) {
        self.daemon
            .set("templates.base.env", json!({"RELOADED": "yes"}));
        self.daemon.signal(Signal::SIGHUP);
        wait_until("it was reloaded", async || {
            self.daemon.log().contains("changed=\"templates.base\"")
        })
        .await;
    }

    fn key(&self) -> &str {
        self.token.key.as_deref().unwrap()
    }

    /// How a peer is told to open a connection.
    fn open(&self, key: Option<&str>) -> Value {
        json!({
            "do": "open",
            "url": format!("ws://{}/", self.host),
            "at": self.token.address,
            "authority": self.host,
            "key": key,
        })
    }
}

#[tokio::test]
async fn a_public_websocket_client_reaches_a_public_server_and_stays_through_a_reload() {
    let mut served = serve("socket_server.py", &["websockets"]).await;
    let mut socket = Peer::start("socket.mjs");
    assert_eq!(socket.ask(&served.open(None)), json!({"status": 401}));
    let mut open = served.open(Some(served.key()));
    open["protocols"] = json!(["echo.v1", "echo.v0"]);
    // What the two have agreed on came through as it was said.
    let agreed = socket.ask(&open);
    assert_eq!(
        agreed,
        json!({"protocol": "echo.v1", "extensions": "permessage-deflate"})
    );
    let both_ways = |socket: &mut Peer, word: &str| {
        let said = socket.ask(&json!({"do": "text", "text": word}));
        assert_eq!(said["text"], word);
        let same = socket.ask(&json!({"do": "bytes", "count": 3 << 20}));
        assert_eq!(same["same"], true);
        let pong = socket.ask(&json!({"do": "ping"}));
        assert_eq!(pong["pong"], "are you there");
    };
    both_ways(&mut socket, "grüß dich");
    served.reload().await;
    both_ways(&mut socket, "noch da");
    let closed = socket.ask(&json!({"do": "bye"}));
    assert_eq!(closed, json!({"code": 4002, "reason": "as you wish"}));
    // A session made now is of the new settings: it really was reloaded.
    let later = served.daemon.client.session(json!({})).await;
    let env = served.daemon.client.out(&later, "echo $RELOADED").await;
    assert_eq!(env, "yes\n");
    // And one ends it from this side.
    let opened = socket.ask(&open);
    assert_eq!(opened, agreed);
    let closed = socket.ask(&json!({"do": "close", "code": 4001, "reason": "enough"}));
    assert_eq!(closed["code"], 4001);
}

#[tokio::test]
async fn a_grpc_service_is_found_by_reflection_and_called_in_every_way() {
    let packages = ["grpc", "google", "typing_extensions"];
    let mut served = serve("grpc_server.py", &packages).await;
    let mut client = Peer::start("grpc_client.py");
    client.ask(&served.open(None));
    let refused = client.ask(&json!({"do": "services"}));
    assert_eq!(refused["code"], "UNAUTHENTICATED", "{refused}");
    client.ask(&served.open(Some(served.key())));
    let services = client.ask(&json!({"do": "services"}));
    assert_eq!(
        services["services"],
        json!({
            "casemate.peers.Words": ["Upper", "Letters", "Join", "Talk", "Refuse"],
            "grpc.reflection.v1alpha.ServerReflection": ["ServerReflectionInfo"],
        })
    );
    let upper = client.ask(&json!({"do": "upper", "text": "loud"}));
    assert_eq!(
        upper,
        json!({"text": "LOUD", "first": "early", "last": "late"})
    );
    let letters = client.ask(&json!({"do": "letters", "text": "abc"}));
    assert_eq!(letters["texts"], json!(["a", "b", "c"]));
    let texts: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    let joined = client.ask(&json!({"do": "join", "texts": texts}));
    assert_eq!(joined["text"], texts.concat());
    // An error is a status in the trailers, or in the head where nothing came before, with what the service says of it.
    let bytes: Vec<u8> = (0..=255).collect();
    for text in ["this", "at once"] {
        let refused = client.ask(&json!({"do": "refuse", "text": text}));
        let details = format!("not „{text}“, 100 %");
        assert_eq!(
            refused,
            json!({"code": "FAILED_PRECONDITION", "details": details, "why": "told to", "bytes": bytes})
        );
    }
    let talk = |client: &mut Peer, word: &str| {
        let said = client.ask(&json!({"do": "talk", "text": word}));
        assert_eq!(said["text"], format!("you said {word}"));
    };
    talk(&mut client, "before");
    served.reload().await;
    talk(&mut client, "after");
    assert_eq!(client.ask(&json!({"do": "hang-up"}))["code"], "OK");
}

#[tokio::test]
async fn a_flask_application_knows_where_it_is_and_who_came_back() {
    let packages = [
        "flask",
        "werkzeug",
        "jinja2",
        "markupsafe",
        "itsdangerous",
        "click",
        "blinker",
        "typing_extensions",
    ];
    let served = serve("flask_app.py", &packages).await;
    let links = format!("/v1/sessions/{}/links/8000", served.id);
    let made = served.token.post(&links, json!({})).await.expect(201);
    let link = made["url"].as_str().unwrap();
    let home = format!("http://{}/", served.host);
    let jar = served.daemon.home.join("cookies");
    let curl = |arguments: &[&str]| {
        let said = Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--max-time",
                "50",
                "--noproxy",
                "*",
            ])
            .args(["--location", "--fail-with-body"])
            // As the pages of a browser say where they are.
            .args(["--header", &format!("origin: http://{}", served.host)])
            .args(["--resolve", &format!("{}:127.0.0.1", served.host)])
            .args(["--cookie", jar.to_str().unwrap()])
            .args(["--cookie-jar", jar.to_str().unwrap()])
            .args(arguments)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        (said.status.code(), String::from_utf8(said.stdout).unwrap())
    };
    let json_of = |arguments: &[&str]| -> Value {
        let (code, text) = curl(arguments);
        assert_eq!(code, Some(0), "{text}");
        serde_json::from_str(&text).unwrap()
    };
    // 22: the status was an error.
    assert_eq!(curl(&[&home]).0, Some(22));
    // As a browser comes, with a link: it gets a cookie, and goes on with that and its own.
    let page = json_of(&["--header", "accept: text/html", link]);
    assert_eq!(page, json!({"who": null, "at": home, "from": "127.0.0.1"}));
    let signed_in = json_of(&["--form-string", "who=Ada", &format!("{home}login")]);
    assert_eq!(signed_in["who"], "Ada");
    assert_eq!(json_of(&[&home])["who"], "Ada");
    let image = std::fs::read(bench().bin.join("casemate-guest")).unwrap();
    let file = format!("file=@{}", bench().bin.join("casemate-guest").display());
    let sent = json_of(&["--form", &file, &format!("{home}upload")]);
    let digest = Sha256::digest(&image).to_vec();
    assert_eq!(sent["sha256"], json!(digest));
    let (_, counted) = curl(&[&format!("{home}count/10000")]);
    assert_eq!(counted.lines().count(), 10_000);
    // Its own errors are its own.
    let (code, text) = curl(&[&format!("{home}nowhere")]);
    assert!(code == Some(22) && text.contains("Not Found"), "{text}");
}
