//! What does not come whole: events, sockets, and bodies of many bytes.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, Stream, StreamExt};
use http::{Method, Request};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::client::{Answer, Client, Line};

/// Nothing that is waited for here takes longer.
const DEADLINE: Duration = Duration::from_secs(20);

type Body = BoxBody<Bytes, std::io::Error>;

/// One server-sent event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: String,
    pub id: Option<String>,
    pub data: Value,
}

/// Events as they come.
pub struct Events {
    body: Incoming,
    text: String,
}

impl Events {
    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Event> {
        timeout(DEADLINE, async {
            loop {
                if let Some((event, rest)) = self.text.split_once("\n\n") {
                    let event = read_event(event);
                    let read = self.text.len() - rest.len();
                    self.text.drain(..read);
                    if event.is_some() {
                        return event;
                    }
                    continue;
                }
                let frame = self.body.frame().await?.unwrap();
                let data = frame.into_data().unwrap_or_default();
                self.text.push_str(std::str::from_utf8(&data).unwrap());
            }
        })
        .await
        .expect("an event comes in time")
    }

    /// Everything to the end.
    pub async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }

    /// Events until one of this name, which is the last of them.
    pub async fn until(&mut self, name: &str) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self
                .next()
                .await
                .unwrap_or_else(|| panic!("no {name} in {events:?}"));
            let is_last = event.name == name;
            events.push(event);
            if is_last {
                return events;
            }
        }
    }
}

/// Nothing for a comment.
fn read_event(text: &str) -> Option<Event> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    Some(Event {
        name: field("event")?.to_owned(),
        id: field("id").map(str::to_owned),
        data: serde_json::from_str(field("data")?).unwrap(),
    })
}

/// What a process said on an output, put together.
pub fn said(events: &[Event], name: &str) -> String {
    let of = events.iter().filter(|event| event.name == name);
    of.map(|event| {
        assert_eq!(event.data["encoding"], "utf-8");
        event.data["data"].as_str().unwrap()
    })
    .collect()
}

/// A WebSocket to a process.
pub struct Terminal(WebSocketStream<Box<dyn Line>>);

/// What comes from it.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Json(Value),
}

impl Terminal {
    pub async fn tell(&mut self, value: Value) {
        self.0.send(Message::text(value.to_string())).await.unwrap();
    }

    pub async fn write(&mut self, data: &[u8]) {
        self.0.send(Message::binary(data.to_vec())).await.unwrap();
    }

    /// The next thing said; `None` when the socket closed.
    pub async fn next(&mut self) -> Option<Said> {
        let said = timeout(DEADLINE, self.hear()).await;
        said.expect("something is said in time")
    }

    async fn hear(&mut self) -> Option<Said> {
        loop {
            return match self.0.next().await? {
                Ok(Message::Binary(data)) => Some(match data.split_first().unwrap() {
                    (1, rest) => Said::Stdout(rest.to_vec()),
                    (2, rest) => Said::Stderr(rest.to_vec()),
                    other => panic!("{other:?}"),
                }),
                Ok(Message::Text(text)) => Some(Said::Json(serde_json::from_str(&text).unwrap())),
                Ok(Message::Close(_)) => None,
                Ok(_) => continue,
                Err(error) => panic!("{error}"),
            };
        }
    }

    /// Both outputs until a JSON message of this type, and that message.
    pub async fn until(&mut self, kind: &str) -> (String, String, Value) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.next().await {
                Some(Said::Stdout(data)) => out.extend(data),
                Some(Said::Stderr(data)) => err.extend(data),
                Some(Said::Json(value)) if value["type"] == kind => {
                    let text = |bytes| String::from_utf8(bytes).unwrap();
                    return (text(out), text(err), value);
                }
                other => panic!("{other:?} before {kind}"),
            }
        }
    }

    /// Standard output until it holds this text.
    pub async fn until_out(&mut self, wanted: &str) -> String {
        let mut out = String::new();
        while !out.contains(wanted) {
            match timeout(DEADLINE, self.hear()).await {
                Ok(Some(Said::Stdout(data))) => out.push_str(&String::from_utf8_lossy(&data)),
                other => panic!("{other:?} after {out:?}, before {wanted:?}"),
            }
        }
        out
    }
}

impl Client {
    /// Opens a stream of events.
    pub async fn events(&self, path: &str, headers: &[(&str, &str)]) -> Events {
        let empty = Empty::new().map_err(|never| match never {}).boxed();
        let (head, body) = self
            .open(Method::GET, path, headers, empty)
            .await
            .into_parts();
        assert_eq!(head.status, 200, "{path}");
        assert_eq!(head.headers["content-type"], "text/event-stream");
        Events {
            body,
            text: String::new(),
        }
    }

    /// Opens a WebSocket.
    pub async fn terminal(&self, path: &str) -> Result<Terminal, u16> {
        let mut request = format!("ws://{}{path}", self.address)
            .into_client_request()
            .unwrap();
        let key = format!("Bearer {}", self.key.as_deref().unwrap_or_default());
        request
            .headers_mut()
            .insert("authorization", key.parse().unwrap());
        let protocol = "casemate.process.v1".parse().unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", protocol);
        let io = self.dial().await.unwrap();
        match tokio_tungstenite::client_async(request, io).await {
            Ok((socket, _)) => Ok(Terminal(socket)),
            Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => {
                Err(answer.status().as_u16())
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Sends bytes as they are made; the answer, whole.
    pub async fn upload(
        &self,
        method: Method,
        path: &str,
        pieces: impl Stream<Item = Result<Bytes, std::io::Error>> + Send + Sync + 'static,
    ) -> Answer {
        let body = BodyExt::boxed(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))));
        let (head, body) = self.open(method, path, &[], body).await.into_parts();
        Answer {
            status: head.status,
            headers: head.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    /// Asks for bytes, which come as they are read.
    pub async fn download(&self, path: &str) -> http::Response<Incoming> {
        let empty = Empty::new().map_err(|never| match never {}).boxed();
        self.open(Method::GET, path, &[], empty).await
    }

    /// Sends JSON; the answer's bytes come as they are read. Who drops it hangs up.
    pub async fn ask(&self, path: &str, body: &Value) -> http::Response<Incoming> {
        let body = Full::from(body.to_string());
        let body = body.map_err(|never| match never {}).boxed();
        let headers = [("content-type", "application/json")];
        self.open(Method::POST, path, &headers, body).await
    }

    async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> http::Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.address)
            .header(
                "authorization",
                format!("Bearer {}", self.key.as_deref().unwrap()),
            );
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let io = self.dial().await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
        // Lives as long as its answer is read.
        tokio::spawn(connection);
        sender
            .send_request(request.body(body).unwrap())
            .await
            .unwrap()
    }
}
