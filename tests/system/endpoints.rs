//! Ports in real sandboxes, reached by host name, by link, as WebSocket, as stream of events and as bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{Client, Daemon, bench};

/// A server of the standard library alone: a page, a stream of events without an end, a WebSocket that says again what it hears.
const PROGRAM: &str = r#"
import asyncio, base64, hashlib, json

async def frame(reader):
    first, second = await reader.readexactly(2)
    length = second & 127
    if length == 126:
        length = int.from_bytes(await reader.readexactly(2), "big")
    elif length == 127:
        length = int.from_bytes(await reader.readexactly(8), "big")
    mask = await reader.readexactly(4)
    data = await reader.readexactly(length)
    return first, bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))

async def serve(reader, writer):
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    line, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    path = line.split(" ")[1]
    if headers.get("upgrade") == "websocket":
        key = headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        writer.write(f"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode())
        while True:
            first, data = await frame(reader)
            if first & 15 == 8:
                break
            size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + len(data).to_bytes(2, "big")
            writer.write(bytes([first]) + size + data)
            await writer.drain()
    elif path == "/events":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        n = 0
        while not writer.is_closing():
            writer.write(f"event: tick\ndata: {n}\n\n".encode())
            await writer.drain()
            n += 1
            await asyncio.sleep(0.05)
    else:
        body = json.dumps({"path": path, "headers": headers}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()

async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", 8000) as server:
        await server.serve_forever()

asyncio.run(main())
"#;

/// A daemon with endpoints, and a session in which the program runs.
async fn up() -> (Daemon, String) {
    let mut daemon = Daemon::new();
    daemon.set("endpoints", json!({"domain": "box.test"}));
    let start = json!({"argv": ["python3", "-c", PROGRAM]});
    daemon.set("templates.base.start", start);
    daemon.set("templates.base.ready", json!({"port": 8000}));
    daemon.set("templates.base.ports", json!([8000]));
    daemon.start().await;
    daemon.client.key = Some(daemon.key("tests").await);
    let id = daemon.client.session(json!({})).await;
    (daemon, id)
}

fn host(id: &str) -> String {
    format!("8000-{}.box.test", id.strip_prefix("ses_").unwrap())
}

async fn get(
    client: &Client,
    path: &str,
    headers: &[(&str, &str)],
) -> crate::support::client::Answer {
    let got = client
        .try_send(Method::GET, path, headers, Bytes::new())
        .await;
    got.unwrap()
}

#[tokio::test]
async fn a_page_is_reached_by_path_by_name_and_by_link_also_of_a_session_that_stood_still() {
    let (mut daemon, id) = up().await;
    let client = &daemon.client;
    let page = get(client, &format!("/v1/sessions/{id}/ports/8000/a?b=c"), &[]).await;
    let told = page.expect(200);
    assert_eq!(told["path"], "/a?b=c");
    assert_eq!(told["headers"]["x-casemate-session"], id);
    assert!(told["headers"].get("authorization").is_none(), "{told}");
    // Each of these wakes it.
    for way in ["key", "link"] {
        client
            .post(&format!("/v1/sessions/{id}/pause"), json!({}))
            .await
            .expect(200);
        let stranger = client.stranger();
        let made = client
            .post(&format!("/v1/sessions/{id}/links/8000"), json!({}))
            .await
            .expect(201);
        let url = made["url"].as_str().unwrap();
        let (name, link) = url
            .strip_prefix("http://")
            .unwrap()
            .split_once("/?")
            .unwrap();
        let at = daemon.client.address.rsplit(':').next().unwrap();
        assert_eq!(name, format!("{}:{at}", host(&id)));
        let named = name.to_owned();
        let answer = match way {
            "key" => send(client, &named, "/", &[]).await,
            _ => send(&stranger, &named, &format!("/?{link}"), &[]).await,
        };
        assert_eq!(answer.0, 200, "{way}: {}", answer.2);
        // A browser gets a cookie for it, and goes on with that.
        let (status, headers, _) = send(
            &stranger,
            &named,
            &format!("/x?{link}"),
            &[("accept", "text/html")],
        )
        .await;
        assert_eq!(status, 303);
        assert_eq!(headers["location"], format!("http://{named}/x"));
        let cookie = headers["set-cookie"]
            .to_str()
            .unwrap()
            .split(';')
            .next()
            .unwrap()
            .to_owned();
        let (status, _, body) = send(&stranger, &named, "/x", &[("cookie", &cookie)]).await;
        assert_eq!(status, 200, "{body}");
        assert!(!body.contains("cookie"), "{body}");
    }
    let (status, _, body) = send(&client.stranger(), &host(&id), "/", &[]).await;
    assert_eq!(status, 401, "{body}");
    // Another team's key reaches nothing, and learns nothing.
    let key = daemon.key("red").await;
    let red = daemon.client.with_key(&key);
    let (status, _, body) = send(&red, &host(&id), "/", &[]).await;
    assert_eq!(status, 502, "{body}");
    assert!(body.contains("The sandbox was not found"), "{body}");
    let other = host(&id).replacen("8000", "8001", 1);
    let (status, _, body) = send(&daemon.client, &other, "/", &[]).await;
    assert!(
        status == 403 && body.contains("port_not_declared"),
        "{body}"
    );
    daemon.client.end(&id).await;
    let (status, _, body) = send(&daemon.client, &host(&id), "/", &[]).await;
    assert!(status == 502 && body.contains("was not found"), "{body}");
}

/// A request to a name that only the header says.
async fn send(
    client: &Client,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, http::HeaderMap, String) {
    use http_body_util::BodyExt;
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(&client.address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::get(path).header("host", host);
    if let Some(key) = &client.key {
        request = request.header("x-api-key", key);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (
        head.status.as_u16(),
        head.headers,
        String::from_utf8_lossy(&body).into_owned(),
    )
}

#[tokio::test]
async fn sockets_and_events_flow_and_a_reload_of_the_daemon_is_not_noticed() {
    let (daemon, id) = up().await;
    let client = &daemon.client;
    let mut request = format!("ws://{}/", host(&id))
        .into_client_request()
        .unwrap();
    let key = client.key.clone().unwrap();
    request
        .headers_mut()
        .insert("x-api-key", key.parse().unwrap());
    let io = TcpStream::connect(&client.address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, io).await.unwrap();
    let mut echo = async |text: &str| {
        socket.send(Message::text(text)).await.unwrap();
        let said = socket.next().await.unwrap().unwrap();
        assert_eq!(said.into_text().unwrap().as_str(), text);
    };
    echo("one").await;
    let path = format!("/v1/sessions/{id}/ports/8000/events");
    let mut events = client.events(&path, &[]).await;
    for n in 0..3 {
        assert_eq!(events.next().await.unwrap().data, json!(n));
    }
    let answer = daemon
        .admin(casemate::admin::protocol::Request::Reload)
        .await;
    assert!(
        !matches!(answer, casemate::admin::protocol::Answer::Refused { .. }),
        "{answer:?}"
    );
    echo(&"two".repeat(10_000)).await;
    assert!(events.next().await.is_some());
    drop((events, socket));
    let records =
        daemon.sql::<String>("SELECT principal FROM audit WHERE kind = 'endpoint.access'");
    assert!(!records.is_empty());
}

#[tokio::test]
async fn a_port_of_this_machine_leads_to_one_in_the_session() {
    let (daemon, id) = up().await;
    let mut forward = Command::new(bench().bin.join("casemate"))
        .args([
            "--url",
            &format!("http://{}", daemon.client.address),
            "--json",
        ])
        .args(["forward", "8000", "--session", &id, "--local-port", "0"])
        .env("CASEMATE_API_KEY", daemon.client.key.as_deref().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let asked = std::thread::spawn(move || {
        let mut line = String::new();
        let mut reader = BufReader::new(forward.stdout.take().unwrap());
        // One JSON value, maybe of several lines.
        while serde_json::from_str::<Value>(&line).is_err() {
            assert_ne!(reader.read_line(&mut line).unwrap(), 0, "{line}");
        }
        let said: Value = serde_json::from_str(&line).unwrap();
        let mut stream = std::net::TcpStream::connect(said["address"].as_str().unwrap()).unwrap();
        stream
            .write_all(b"GET /forwarded HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let pid = nix::unistd::Pid::from_raw(forward.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        (answer, forward.wait().unwrap())
    });
    let (answer, ended) = asked.join().unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.contains("/forwarded"),
        "{answer}"
    );
    assert_eq!(ended.code(), Some(130));
    let link = Command::new(bench().bin.join("casemate"))
        .args(["--url", &format!("http://{}", daemon.client.address)])
        .args(["open", "8000", "--expires-in", "1m", "--print"])
        .env("CASEMATE_API_KEY", daemon.client.key.as_deref().unwrap())
        .output()
        .unwrap();
    let link = String::from_utf8(link.stdout).unwrap();
    assert!(
        link.starts_with(&format!("http://{}:", host(&id))),
        "{link}"
    );
}
