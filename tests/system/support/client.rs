//! A client of the HTTP API: one connection for each request, a deadline on each, and every answer
//! held against the OpenAPI document.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::schema;

/// Nothing that is asked here takes longer.
const DEADLINE: Duration = Duration::from_secs(150);

/// Speaks for one API key, or for nobody.
#[derive(Clone, Debug)]
pub struct Client {
    pub address: String,
    pub key: Option<String>,
    /// How it speaks TLS, where it does: to whom, and what it trusts.
    pub tls: Option<(String, Arc<ClientConfig>)>,
}

/// A connection, with TLS or without.
pub trait Line: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug> Line for T {}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {} {:?}", self.status, self.body))
    }

    /// Makes sure of the status; gives the body as JSON, or null where there is none.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.body);
        if self.body.is_empty() {
            Value::Null
        } else {
            self.json()
        }
    }

    /// Makes sure that it is a problem document of this status and code; gives its sentence.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.body);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert!(problem["request_id"].as_str().unwrap().starts_with("req_"));
        if matches!(status, 429 | 503) {
            assert!(
                self.headers.contains_key("retry-after"),
                "no Retry-After: {problem}"
            );
        }
        problem["detail"].as_str().unwrap().to_owned()
    }
}

impl Client {
    /// The same door, another key.
    pub fn with_key(&self, key: &str) -> Self {
        Self {
            key: Some(key.to_owned()),
            ..self.clone()
        }
    }

    /// A connection to the door.
    pub async fn dial(&self) -> io::Result<Box<dyn Line>> {
        let stream = TcpStream::connect(&self.address).await?;
        let Some((name, config)) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let name = ServerName::try_from(name.clone()).unwrap();
        let connector = TlsConnector::from(Arc::clone(config));
        Ok(Box::new(connector.connect(name, stream).await?))
    }

    /// The same door, no key.
    pub fn stranger(&self) -> Self {
        Self {
            key: None,
            ..self.clone()
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], Bytes::new()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_with(path, &[], body).await
    }

    pub async fn post_with(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        let headers = [&[("content-type", "application/json")], headers].concat();
        self.send(Method::POST, path, &headers, body.to_string().into())
            .await
    }

    /// Sends bytes.
    pub async fn post_bytes(&self, path: &str, body: &'static str) -> Answer {
        self.send(Method::POST, path, &[], body.into()).await
    }

    /// Sends a request and holds the answer against the document.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        let answer = self
            .try_send(method.clone(), path, headers, body)
            .await
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        schema::check(&method, path, &answer);
        answer
    }

    /// The same, where no answer is an answer too.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.address);
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).unwrap();
        let line = self.dial().await;
        let line = line.map_err(|error| format!("connect: {error}"))?;
        exchange(line, request).await
    }

    // --- sessions ---

    /// Asks for a session and waits until it is ready; its id.
    pub async fn session(&self, wanted: Value) -> String {
        let session = self.post("/v1/sessions", wanted).await.expect(201);
        assert_eq!(session["phase"], "ready", "{session}");
        session["id"].as_str().unwrap().to_owned()
    }

    /// The session as it is now.
    pub async fn look(&self, id: &str) -> Value {
        self.get(&format!("/v1/sessions/{id}")).await.expect(200)
    }

    /// Ends a session and waits until nothing of it is left.
    pub async fn end(&self, id: &str) {
        self.delete(&format!("/v1/sessions/{id}")).await.expect(204);
    }

    /// Runs a program; the answer, whatever it is.
    pub async fn try_run(&self, id: &str, run: Value) -> Answer {
        self.post(&format!("/v1/sessions/{id}/run"), run).await
    }

    /// Runs a program; its outcome.
    pub async fn run(&self, id: &str, run: Value) -> Value {
        self.try_run(id, run).await.expect(200)
    }

    /// Runs a shell's command as the user; its exit code and what it wrote to both outputs.
    pub async fn sh(&self, id: &str, command: &str) -> (i64, String) {
        self.sh_as(id, "user", command).await
    }

    /// The same as another user.
    pub async fn sh_as(&self, id: &str, user: &str, command: &str) -> (i64, String) {
        let run = json!({"argv": ["/bin/sh", "-c", format!("exec 2>&1; {command}")], "user": user});
        let outcome = self.run(id, run).await;
        assert_eq!(outcome["stdout_encoding"], "utf-8", "{outcome}");
        (
            outcome["exit_code"].as_i64().unwrap_or(-1),
            outcome["stdout"].as_str().unwrap().to_owned(),
        )
    }

    /// What a shell's command wrote; it must succeed.
    pub async fn out(&self, id: &str, command: &str) -> String {
        let (code, output) = self.sh(id, command).await;
        assert_eq!(code, 0, "{command}: {output}");
        output
    }

    /// What was recorded of a session, as `kind stage` in the log's order.
    pub async fn audit(&self, id: &str) -> Vec<Value> {
        let page = self.get(&format!("/v1/audit?session={id}&limit=200")).await;
        page.expect(200)["items"].as_array().unwrap().clone()
    }
}

/// Talks to a service behind a Unix socket, as to podman.
#[derive(Clone, Debug)]
pub struct UnixClient(pub PathBuf);

impl UnixClient {
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.try_post(path, body).await.unwrap()
    }

    /// The same, where no answer is an answer too.
    pub async fn try_post(&self, path: &str, body: Value) -> Result<Answer, String> {
        let body = body.to_string().into();
        self.send_body(Method::POST, path, body).await
    }

    pub async fn send(&self, method: Method, path: &str) -> Result<Answer, String> {
        self.send_body(method, path, Bytes::new()).await
    }

    pub async fn send_body(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, String> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "podman")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .unwrap();
        let socket: &Path = &self.0;
        let io = UnixStream::connect(socket)
            .await
            .map_err(|error| format!("connect: {error}"))?;
        exchange(io, request).await
    }
}

async fn exchange(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answer, String> {
    let work = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        // Ends with the sender.
        let connection = tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        drop(sender);
        connection.abort();
        Ok::<_, hyper::Error>(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    };
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(answer) => answer.map_err(|error| format!("{error:?}")),
        Err(_) => Err(format!("no answer within {DEADLINE:?}")),
    }
}
