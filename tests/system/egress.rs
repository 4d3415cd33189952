//! The way out of real sandboxes: programs that know nothing of it, rules, and those who try to get around them.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use base64::Engine;
use http::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::support::client::Client;
use crate::support::{Daemon, wait_until};

/// Of this machine, and not among what programs reach without a proxy.
const ADDRESS: &str = "127.0.0.2";

/// A server of files on this machine, with a repository of git in it.
pub(crate) struct Files {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) port: u16,
    server: Child,
}

impl Files {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((ADDRESS, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        std::fs::write(directory.path().join("hello"), "hello from outside\n").unwrap();
        std::fs::File::create(directory.path().join("large"))
            .unwrap()
            .write_all(&vec![b'x'; 8 << 20])
            .unwrap();
        let server = Command::new("python3")
            .args(["-m", "http.server", "--bind", ADDRESS, &port.to_string()])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let files = Self {
            directory,
            port,
            server,
        };
        wait_until("the server listens", async || {
            tokio::net::TcpStream::connect((ADDRESS, port))
                .await
                .is_ok()
        })
        .await;
        files
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{ADDRESS}:{}/{path}", self.port)
    }

    /// A repository that can be cloned from a server of files.
    fn repository(&self) {
        let git = |words: &[&str]| {
            let done = Command::new("git")
                .args([
                    "-c",
                    "user.name=x",
                    "-c",
                    "user.email=x@example.org",
                    "-c",
                    "init.defaultBranch=main",
                ])
                .args(words)
                .current_dir(self.directory.path())
                .output()
                .unwrap();
            assert!(done.status.success(), "{words:?}: {done:?}");
        };
        git(&["init", "--quiet", "work"]);
        git(&[
            "-C",
            "work",
            "commit",
            "--quiet",
            "--allow-empty",
            "-m",
            "first",
        ]);
        git(&["clone", "--quiet", "--bare", "work", "repo.git"]);
        git(&["-C", "repo.git", "update-server-info"]);
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A daemon whose sessions may reach these ports of this machine.
async fn daemon(ports: &[u16]) -> Daemon {
    Daemon::up_with(&[("templates.base.egress", reaching(ports))]).await
}

pub(crate) fn reaching(ports: &[u16]) -> Value {
    json!({
        "here": {"hosts": [ADDRESS, "localhost"], "ports": ports, "schemes": ["http", "https"], "networks": ["127.0.0.0/8"]},
    })
}

/// The events of a kind in a session's record, with their outcomes.
async fn events(client: &Client, id: &str, kind: &str) -> Vec<Value> {
    let all = client.audit(id).await;
    all.into_iter()
        .filter(|record| record["event"]["kind"] == kind)
        .collect()
}

/// Waits until so much was denied by a rule.
async fn denied(client: &Client, id: &str, host: Option<&str>, rule: &str) {
    wait_until(&format!("{host:?} is denied by {rule}"), async || {
        let found = events(client, id, "egress.denied").await;
        found.iter().any(|record| {
            let event = &record["event"];
            event["rule"] == rule
                && event["host"].as_str() == host
                && record["principal"] == format!("session:{id}")
        })
    })
    .await;
}

#[tokio::test]
async fn nothing_is_reached_unless_a_rule_allows_it() {
    let files = Files::new().await;
    let daemon = Daemon::up().await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    assert_eq!(client.out(&id, "env | grep -ci proxy || true").await, "0\n");
    // There is no network, and the proxy says no.
    let (code, _) = client
        .sh(
            &id,
            &format!("curl -sS --max-time 20 {}", files.url("hello")),
        )
        .await;
    assert_ne!(code, 0);
    let said = client
        .out(
            &id,
            &format!(
                "curl -sS --max-time 20 -x http://127.0.0.1:3128 {}",
                files.url("hello")
            ),
        )
        .await;
    assert!(
        said.contains("nothing-allows") && said.contains(ADDRESS),
        "{said}"
    );
    denied(&client, &id, Some(ADDRESS), "nothing-allows").await;
    // Programs cannot go around their guest.
    let (code, said) = client.sh(&id, "ls -l /run/casemate/link/ 2>&1; python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('/run/casemate/link/egress.sock')\" 2>&1").await;
    assert!(code != 0 && said.contains("Permission denied"), "{said}");
    assert_eq!(
        events(&client, &id, "egress.connect").await,
        [] as [Value; 0]
    );
}

#[tokio::test]
async fn programs_find_the_way_out_by_themselves() {
    let files = Files::new().await;
    files.repository();
    let daemon = daemon(&[files.port]).await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let hello = "hello from outside\n";
    assert_eq!(
        client
            .out(
                &id,
                &format!("curl -sS --max-time 20 {}", files.url("hello"))
            )
            .await,
        hello
    );
    let urllib = format!(
        "python3 -c 'import urllib.request as u; print(u.urlopen(\"{}\").read().decode(), end=\"\")'",
        files.url("hello")
    );
    assert_eq!(client.out(&id, &urllib).await, hello);
    let clone = format!(
        "cd /tmp && git clone --quiet {} x && git -C x log --format=%s",
        files.url("repo.git")
    );
    assert_eq!(client.out(&id, &clone).await, "first\n");
    let socks = format!(
        "curl -sS --max-time 20 --noproxy '' -x socks5h://127.0.0.1:3128 {} 2>&1 || true",
        files.url("hello")
    );
    assert!(
        client.out(&id, &socks).await.contains("curl: "),
        "any bytes went through"
    );
    denied(&client, &id, Some(ADDRESS), "tunnels-are-tls").await;
    let sum = client
        .out(
            &id,
            &format!(
                "for i in 1 2 3 4; do curl -sS --max-time 60 {} | wc -c & done; wait",
                files.url("large")
            ),
        )
        .await;
    assert_eq!(sum, "8388608\n".repeat(4));

    wait_until("the ends are recorded", async || {
        let found = events(&client, &id, "egress.connect").await;
        let outcomes = found
            .iter()
            .filter(|record| record["stage"] == "outcome")
            .count();
        outcomes * 2 == found.len()
    })
    .await;
    let found = events(&client, &id, "egress.connect").await;
    let first = &found[0];
    assert_eq!(
        (&first["stage"], &first["principal"]),
        (&json!("intent"), &json!(format!("session:{id}")))
    );
    let event = json!({"kind": "egress.connect", "host": ADDRESS, "port": files.port, "scheme": "http", "method": "GET", "rule": "here"});
    assert_eq!(first["event"], event);
    let detail = found[1]["outcome"]["detail"].as_str().unwrap();
    assert!(
        detail.starts_with(&format!("address={ADDRESS} sent=")) && detail.contains(" received="),
        "{detail}"
    );
}

#[tokio::test]
async fn those_who_try_to_get_around_the_rules_are_denied_and_recorded() {
    let files = Files::new().await;
    let daemon = daemon(&[files.port, 80]).await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let port = files.port;
    let proxy = "curl -sS --max-time 20 --noproxy '' -x http://127.0.0.1:3128";
    // A forged Host, other spellings of the address, names that only look allowed, and the machine's other addresses.
    for (what, host, rule) in [
        (
            format!("{proxy} -H 'Host: evil.example' http://{ADDRESS}:{port}/hello"),
            Some(ADDRESS),
            "host-is-the-target",
        ),
        (
            format!("{proxy} http://127.0.0.1:{port}/hello"),
            Some("127.0.0.1"),
            "nothing-allows",
        ),
        (
            format!("{proxy} -p http://localhost.evil.example:{port}/"),
            Some("localhost.evil.example"),
            "nothing-allows",
        ),
        (
            format!("{proxy} 'http://[::ffff:127.0.0.2]:{port}/hello'"),
            Some("[::ffff:127.0.0.2]"),
            "nothing-allows",
        ),
        (
            format!("{proxy} http://169.254.169.254/latest/meta-data/"),
            Some("169.254.169.254"),
            "nothing-allows",
        ),
    ] {
        let said = client.out(&id, &format!("{what} 2>&1 || true")).await;
        assert!(!said.contains("hello from outside"), "{what}: {said}");
        denied(&client, &id, host, rule).await;
    }
    // What clients would not send by themselves.
    let raw = r#"
import socket, sys
def say(data):
    s = socket.create_connection(("127.0.0.1", 3128), 20)
    s.settimeout(20)
    s.sendall(data)
    got = b""
    try:
        while True:
            more = s.recv(65536)
            if not more: break
            got += more
    except OSError: pass
    return got
port = int(sys.argv[1])
p = port.to_bytes(2, "big")
def socks(name): return say(b"\5\1\0" + b"\5\1\0\3" + bytes([len(name)]) + name + p)[2:4]
print(socks(b"127.0.0.2\0.evil.example"), socks(b"0x7f.0.0.2"), socks(b"user@127.0.0.2"), socks(b"evil.example"))
print(say(b"GET http://2130706434:%d/hello HTTP/1.1\r\nHost: x\r\n\r\n" % port).split()[1])
print(say(b"CONNECT a@127.0.0.2:%d HTTP/1.1\r\n\r\n" % port).split()[1])
print(say(b"POST http://127.0.0.2:%d/ HTTP/1.1\r\nHost: 127.0.0.2:%d\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET http://127.0.0.2:%d/hello HTTP/1.1\r\nHost: 127.0.0.2:%d\r\n\r\n" % (port, port, port, port)).count(b"HTTP/1.1 "))
print(say(b"\0\1\2\3" * 100)[:12])
"#;
    let run = json!({"argv": ["python3", "-c", raw, port.to_string()]});
    let done = client.run(&id, run).await;
    let said = done["stdout"].as_str().unwrap();
    assert_eq!(
        said,
        "b'\\x05\\x02' b'\\x05\\x02' b'\\x05\\x02' b'\\x05\\x02'\nb'403'\nb'403'\n1\nb'HTTP/1.1 400'\n",
        "{done}"
    );
    denied(&client, &id, None, "hosts-have-one-spelling").await;
    denied(&client, &id, None, "messages-have-one-framing").await;

    // A redirect to where nobody may go is followed by the client, and denied.
    let (listener, elsewhere) = redirecting(port).await;
    let said = client
        .out(
            &id,
            &format!("curl -sSL --max-time 20 {elsewhere} 2>&1 || true"),
        )
        .await;
    assert!(!said.contains("hello from outside"), "{said}");
    listener.abort();
}

/// A server on an allowed port of `ADDRESS` that sends whoever asks to 127.0.0.1, where nothing is allowed. It has the port 80.
async fn redirecting(port: u16) -> (tokio::task::JoinHandle<()>, String) {
    let listener = tokio::net::TcpListener::bind((ADDRESS, 80)).await.unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = format!(
                "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{port}/hello\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let mut head = [0; 4096];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (task, format!("http://{ADDRESS}/"))
}

/// A server with TLS whose certificate is for `localhost`; it says hello to whoever asks.
async fn tls() -> (tokio::task::JoinHandle<()>, u16, String) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let made = rcgen::CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.der().clone()], private)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut head = [0; 4096];
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await;
                let _ = stream
                    .write_all(
                        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecure",
                    )
                    .await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (task, port, pem(made.der()))
}

#[tokio::test]
async fn tls_passes_unread_and_names_the_host_that_was_asked_for() {
    let (server, port, certificate) = tls().await;
    let daemon = daemon(&[port]).await;
    let client = daemon.client.clone();
    let id = client
        .session(json!({"env": {"no_proxy": "", "NO_PROXY": ""}}))
        .await;
    let write = format!("cat > /tmp/ca.pem <<'X'\n{certificate}X\n");
    client.out(&id, &write).await;
    // The client verifies the server's own certificate: nobody is in between.
    let said = client
        .out(
            &id,
            &format!("curl -sS --max-time 20 --cacert /tmp/ca.pem https://localhost:{port}/"),
        )
        .await;
    assert_eq!(said, "secure");
    let urllib = format!(
        "python3 -c 'import ssl, urllib.request as u; print(u.urlopen(\"https://localhost:{port}/\", context=ssl.create_default_context(cafile=\"/tmp/ca.pem\")).read().decode())'"
    );
    assert_eq!(client.out(&id, &urllib).await, "secure\n");
    let socks = format!(
        "curl -sS --max-time 20 --cacert /tmp/ca.pem -x socks5h://127.0.0.1:3128 https://localhost:{port}/"
    );
    assert_eq!(client.out(&id, &socks).await, "secure");
    // Another name within than without.
    let fronting = format!(
        "curl -sSk --max-time 20 --connect-to evil.example:443:localhost:{port} https://evil.example/ 2>&1 || true"
    );
    let said = client.out(&id, &fronting).await;
    assert!(!said.contains("secure"), "{said}");
    denied(&client, &id, Some("localhost"), "tls-names-the-host").await;
    server.abort();
}

#[tokio::test]
async fn a_session_narrows_what_its_template_allows_and_its_rules_change_while_it_runs() {
    let files = Files::new().await;
    let mut daemon = daemon(&[files.port]).await;
    let client = daemon.client.clone();
    let fetch = format!("curl -sS --max-time 20 {}", files.url("hello"));
    let own = |host: &str| json!({"mine": {"hosts": [host], "ports": [files.port]}});
    let id = client.session(json!({"egress": own("example.org")})).await;
    assert!(client.out(&id, &fetch).await.contains("nothing-allows"));
    assert_eq!(
        client.look(&id).await["egress"]["mine"]["hosts"],
        json!(["example.org"])
    );
    let path = format!("/v1/sessions/{id}");
    let headers = [("content-type", "application/json")];
    let change = |rules: Value| {
        client.send(
            Method::PATCH,
            &path,
            &headers,
            json!({"egress": rules}).to_string().into(),
        )
    };
    change(own(ADDRESS)).await.expect(200);
    assert_eq!(client.out(&id, &fetch).await, "hello from outside\n");
    let (code, told) = reach(&daemon, &id, &files.url("hello"));
    assert_eq!(
        (code, told.starts_with("allowed by here: ")),
        (0, true),
        "{told}"
    );
    let (code, told) = reach(&daemon, &id, "https://example.org");
    assert_eq!(
        (code, told.starts_with("denied by nothing-allows: ")),
        (1, true),
        "{told}"
    );
    let wrong = json!({"mine": {"hosts": ["*.*.org"]}});
    assert_eq!(change(wrong).await.status, 400);
    change(json!({})).await.expect(200);
    assert!(client.out(&id, &fetch).await.contains("nothing-allows"));
    change(own(ADDRESS)).await.expect(200);

    // What runs goes on under the next daemon, by the rules that it had.
    daemon.restart().await;
    assert_eq!(client.out(&id, &fetch).await, "hello from outside\n");

    // A team's own template reaches what the operator allows the team, and not a byte more.
    let template = json!({"image": crate::support::bench().image, "limits": {"disk_bytes": 1_u64 << 30}, "egress": reaching(&[files.port])});
    let made = client
        .send(
            Method::PUT,
            "/v1/templates/own",
            &headers,
            template.to_string().into(),
        )
        .await;
    made.expect(201);
    let id = client.session(json!({"template": "own"})).await;
    assert!(client.out(&id, &fetch).await.contains("nothing-allows"));
    daemon.set(
        "egress",
        json!({"teams": {"tests": reaching(&[files.port])}}),
    );
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    wait_until("the operator's rules hold", async || {
        client.out(&id, &fetch).await == "hello from outside\n"
    })
    .await;
}

#[tokio::test]
async fn sandboxes_that_stood_ready_have_a_way_out_too() {
    let files = Files::new().await;
    let daemon = Daemon::up_with(&[
        ("templates.base.egress", reaching(&[files.port])),
        ("templates.base.pool", json!(1)),
        ("templates.base.warm_up", json!({"command": "true"})),
    ])
    .await;
    let client = daemon.client.clone();
    wait_until("a sandbox stands ready", async || {
        let listed = client.get("/v1/templates").await.expect(200);
        listed["items"][0]["pool_ready"] == 1
            && listed["items"][0]["checkpoint"]["is_there"] == true
    })
    .await;
    let id = client.session(json!({})).await;
    let fetch = format!("curl -sS --max-time 20 {}", files.url("hello"));
    assert_eq!(client.out(&id, &fetch).await, "hello from outside\n");
}

/// What the command line says of something that a session wants to reach, and the exit code.
fn reach(daemon: &Daemon, id: &str, url: &str) -> (i32, String) {
    let done = Command::new(crate::support::bench().bin.join("casemate"))
        .args(["policy", "reach", id, url])
        .arg("--socket")
        .arg(daemon.admin_socket())
        .output()
        .unwrap();
    let said = [done.stdout, done.stderr].concat();
    (
        done.status.code().unwrap(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// A certificate as clients read it (RFC 7468).
fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}
