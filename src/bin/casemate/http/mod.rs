//! A client of the HTTP API: one request, one connection; an answer that is bounded and comes before
//! a deadline, or one that is read as it comes.
//!
//! Whoever answers is not trusted: bytes, headers and time are bounded, and an answer that is not
//! casemated's is told apart from one that is.

mod call;
mod events;
mod stream;
mod tls;
mod websocket;

use std::io;
use std::time::Duration;

use ::http::uri::{Authority, Scheme};
use ::http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use bytes::Bytes;
use casemate::base::exit::Exit;
use casemate::base::secret::Secret;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

pub use self::call::{Call, percent};
pub use self::events::{Event, Events};
pub use self::stream::{Body, Outgoing};
use self::tls::Tls;
pub use self::tls::{Line, Papers};
pub use self::websocket::{Message, SocketReceiver, SocketSender};
use crate::failure::Failure;

/// How long a connection may take to come about.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Longest head of an answer.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// casemated on the other end.
pub struct Client {
    url: String,
    host: String,
    port: u16,
    authority: HeaderValue,
    /// `None`: it is reached in the clear.
    tls: Option<Tls>,
    key: Option<Secret<String>>,
}

/// What came back.
pub struct Answer {
    pub status: StatusCode,
    is_problem: bool,
    retry_after_s: Option<u64>,
    pub body: Bytes,
}

/// What a request carries.
type Payload = UnsyncBoxBody<Bytes, io::Error>;

/// An answer of which the head has come.
struct Begun {
    head: ::http::response::Parts,
    body: Incoming,
    connection: AbortOnDropHandle<()>,
}

/// RFC 9457, as far as people are told.
#[derive(Deserialize)]
struct Problem {
    code: String,
    detail: String,
    request_id: Option<String>,
}

impl Client {
    /// A client of the casemated at `url`; `papers` are for `https`. Blocks on the disk.
    ///
    /// # Errors
    /// When the URL is not `http://host[:port]` or `https://host[:port]`, or the papers cannot be used.
    pub fn new(url: &str, key: Option<Secret<String>>, papers: &Papers) -> Result<Self, Failure> {
        let bad = || {
            Failure::usage(format!(
                "--url: {url} is not a URL like http://127.0.0.1:7272 or https://casemate.example.com"
            ))
        };
        let parts = url.parse::<Uri>().map_err(|_| bad())?.into_parts();
        let is_tls = match &parts.scheme {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(bad()),
        };
        let authority: Authority = parts.authority.ok_or_else(bad)?;
        let at_root = parts
            .path_and_query
            .is_none_or(|path| matches!(path.as_str(), "" | "/"));
        if !at_root || authority.as_str().contains('@') {
            return Err(bad());
        }
        let host = authority.host();
        let host = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        let tls = is_tls.then(|| Tls::new(host, papers)).transpose()?;
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            host: host.to_owned(),
            port: authority
                .port_u16()
                .unwrap_or(if is_tls { 443 } else { 80 }),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?,
            tls,
            key,
        })
    }

    /// Asks, and takes anything but success as a failure.
    pub async fn call(&self, call: Call) -> Result<Answer, Failure> {
        let answer = self.exchange(call).await?;
        if answer.status.is_success() {
            Ok(answer)
        } else {
            Err(self.refusal(&answer))
        }
    }

    /// The same for what may not be there: `None` when the answer is 404 with this code.
    pub async fn find(&self, call: Call, absent: &str) -> Result<Option<Answer>, Failure> {
        let answer = self.exchange(call).await?;
        if answer.status.is_success() {
            return Ok(Some(answer));
        }
        let problem = serde_json::from_slice::<Problem>(&answer.body);
        match problem {
            Ok(problem)
                if answer.is_problem
                    && answer.status == StatusCode::NOT_FOUND
                    && problem.code == absent =>
            {
                Ok(None)
            }
            _ => Err(self.refusal(&answer)),
        }
    }

    /// The answer's body as `T`.
    pub fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, Failure> {
        serde_json::from_slice(&answer.body).map_err(|_| self.stranger(answer.status))
    }

    /// Asks, and gives back whatever came.
    pub async fn exchange(&self, call: Call) -> Result<Answer, Failure> {
        let (deadline, max_bytes) = (call.deadline, call.max_bytes);
        let stream = self.dial().await?;
        let conversing = async {
            let body = payload(call.body.clone());
            let begun = self.begin(stream, call, body).await?;
            self.collect(begun, max_bytes).await
        };
        match tokio::time::timeout(deadline, conversing).await {
            Ok(answer) => answer,
            Err(_) => Err(self.silent(deadline)),
        }
    }

    async fn dial(&self) -> Result<Box<dyn Line>, Failure> {
        let connecting = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            // What is typed is sent at once.
            let _ = stream.set_nodelay(true);
            match &self.tls {
                None => Ok(Box::new(stream) as Box<dyn Line>),
                Some(tls) => tls.begin(stream).await,
            }
        };
        match tokio::time::timeout(CONNECT_DEADLINE, connecting).await {
            Ok(Ok(line)) => Ok(line),
            Ok(Err(error)) => Err(self
                .untrusted(&error)
                .unwrap_or_else(|| self.unreachable(&error))),
            Err(_) => Err(self.unreachable(&io::ErrorKind::TimedOut.into())),
        }
    }

    /// What is told when TLS did not come about, if that is it.
    fn untrusted(&self, error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
        let why = tls::complaint(error)?;
        Some(Failure::unavailable(format!(
            "there is no TLS with {}: {why}; --ca names a file with those who vouch for casemated, --cert and --cert-key what it wants to see",
            self.url
        )))
    }

    /// Sends a request, and waits until an answer begins.
    async fn begin(
        &self,
        stream: Box<dyn Line>,
        call: Call,
        body: Payload,
    ) -> Result<Begun, Failure> {
        let request = self.request(call, body)?;
        let broken = |error: hyper::Error| {
            self.untrusted(&error).unwrap_or_else(|| Failure::unavailable(format!(
                "casemated at {} broke the connection off; it may or may not have done what it was asked to",
                self.url
            )))
        };
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(64)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // Moves the bytes as long as somebody has the answer. What goes wrong is seen there.
        let connection = AbortOnDropHandle::new(tokio::spawn(async {
            let _ = connection.with_upgrades().await;
        }));
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        Ok(Begun {
            head,
            body,
            connection,
        })
    }

    /// Reads the rest of an answer.
    async fn collect(&self, begun: Begun, max_bytes: usize) -> Result<Answer, Failure> {
        let Begun {
            head,
            body,
            connection: _connection,
        } = begun;
        let body = match Limited::new(body, max_bytes).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(Failure::unavailable(format!(
                    "the answer of {} has more than {max_bytes} bytes",
                    self.url
                )));
            }
            Err(_) => return Err(self.cut_off()),
        };
        Ok(Answer {
            status: head.status,
            is_problem: text(&head.headers, &header::CONTENT_TYPE)
                .is_some_and(|essence| essence.starts_with("application/problem+json")),
            retry_after_s: text(&head.headers, &header::RETRY_AFTER)
                .and_then(|value| value.parse().ok()),
            body,
        })
    }

    fn request(&self, call: Call, body: Payload) -> Result<Request<Payload>, Failure> {
        let mut builder = Request::builder()
            .method(call.method)
            .uri(call.path)
            .header(header::HOST, &self.authority)
            .header(
                header::USER_AGENT,
                concat!("casemate/", env!("CARGO_PKG_VERSION")),
            );
        for (name, value) in call.headers {
            builder = builder.header(name, value);
        }
        if let Some(key) = &self.key {
            let bearer = Secret::new(format!("Bearer {}", key.expose()));
            let mut value = HeaderValue::from_str(bearer.expose())
                .map_err(|_| Failure::usage("the API key cannot be sent in a header"))?;
            value.set_sensitive(true);
            builder = builder.header(header::AUTHORIZATION, value);
        }
        builder
            .body(body)
            .map_err(|error| Failure::new(Exit::Software, error.to_string()))
    }

    fn silent(&self, deadline: Duration) -> Failure {
        Failure::unavailable(format!(
            "casemated at {} did not answer within {} s; it may still do what it was asked to",
            self.url,
            deadline.as_secs()
        ))
    }

    fn cut_off(&self) -> Failure {
        Failure::unavailable(format!("casemated at {} broke its answer off", self.url))
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let why = match error.kind() {
            io::ErrorKind::ConnectionRefused => String::new(),
            io::ErrorKind::TimedOut => " in time".to_owned(),
            _ => format!(" ({error})"),
        };
        Failure::unavailable(format!(
            "casemated does not answer at {}{why}; is it running? (systemctl status casemated, or scripts/dev up)",
            self.url
        ))
    }

    fn stranger(&self, status: StatusCode) -> Failure {
        Failure::unavailable(format!(
            "something answers at {} with status {}, but not as casemated does; check --url",
            self.url,
            status.as_u16()
        ))
    }

    fn refusal(&self, answer: &Answer) -> Failure {
        let problem = match serde_json::from_slice::<Problem>(&answer.body) {
            Ok(problem) if answer.is_problem => problem,
            _ => return self.stranger(answer.status),
        };
        let sentence = if answer.status == StatusCode::UNAUTHORIZED {
            "casemated does not know the API key; an operator makes one with `casemate admin key create NAME`"
        } else {
            &problem.detail
        };
        let again = answer
            .retry_after_s
            .map_or_else(String::new, |secs| format!("; try again in {secs} s"));
        let request = problem
            .request_id
            .map_or_else(String::new, |id| format!(", request_id {id}"));
        let message = format!("{sentence}{again} ({}{request})", problem.code);
        Failure::new(exit_for(answer.status), message)
    }
}

/// A body that is there already.
fn payload(bytes: Bytes) -> Payload {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

const fn exit_for(status: StatusCode) -> Exit {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Exit::Refused,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Exit::Unavailable,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_url_of_a_door_is_taken() {
        for good in [
            "http://127.0.0.1:7272",
            "http://localhost/",
            "http://[::1]:7272",
            "https://casemate.example.com",
            "https://127.0.0.1:7272/",
        ] {
            assert!(
                Client::new(good, None, &Papers::default()).is_ok(),
                "{good}"
            );
        }
        for bad in [
            "",
            "127.0.0.1:7272",
            "ftp://h",
            "http://",
            "http://h/v1",
            "http://u:p@h",
            "http://h/?q",
            "https://",
            "https://u@h",
            "https://a_b c",
        ] {
            let failure = Client::new(bad, None, &Papers::default()).err().unwrap();
            assert_eq!(failure.exit, Exit::Usage, "{bad}");
        }
        let client = Client::new("https://h", None, &Papers::default()).unwrap();
        assert_eq!(client.port, 443);
    }

    #[test]
    fn an_ipv6_host_is_dialled_without_its_brackets() {
        let client = Client::new("http://[::1]:7272", None, &Papers::default()).unwrap();
        assert_eq!((client.host.as_str(), client.port), ("::1", 7272));
        assert_eq!(client.authority, "[::1]:7272");
    }
}
