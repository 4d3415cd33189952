//! A client of the HTTP API: one request, one connection, one bounded answer before a deadline.
//!
//! Whoever answers is not trusted: bytes, headers and time are bounded, and an answer that is not
//! casemated's is told apart from one that is.

mod call;

use std::io;
use std::time::Duration;

use ::http::uri::{Authority, Scheme};
use ::http::{HeaderValue, Request, StatusCode, Uri, header};
use bytes::Bytes;
use casemate::base::exit::Exit;
use casemate::base::secret::Secret;
use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

pub use self::call::Call;
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
    key: Option<Secret<String>>,
}

/// What came back.
pub struct Answer {
    pub status: StatusCode,
    is_problem: bool,
    retry_after_s: Option<u64>,
    pub body: Bytes,
}

/// RFC 9457, as far as people are told.
#[derive(Deserialize)]
struct Problem {
    code: String,
    detail: String,
    request_id: Option<String>,
}

impl Client {
    /// A client of the casemated at `url`.
    ///
    /// # Errors
    /// When the URL is not `http://host[:port]`.
    pub fn new(url: &str, key: Option<Secret<String>>) -> Result<Self, Failure> {
        let bad = || {
            Failure::usage(format!(
                "--url: {url} is not a URL like http://127.0.0.1:7272"
            ))
        };
        let parts = url.parse::<Uri>().map_err(|_| bad())?.into_parts();
        match &parts.scheme {
            Some(scheme) if *scheme == Scheme::HTTP => {}
            Some(scheme) if *scheme == Scheme::HTTPS => {
                return Err(Failure::usage(
                    "--url: https is not supported yet; reach casemated over http on its own machine or through a tunnel (ssh -L 7272:127.0.0.1:7272 HOST)",
                ));
            }
            _ => return Err(bad()),
        }
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
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?,
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

    /// The answer's body as `T`.
    pub fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, Failure> {
        serde_json::from_slice(&answer.body).map_err(|_| self.stranger(answer.status))
    }

    /// Asks, and gives back whatever came.
    pub async fn exchange(&self, call: Call) -> Result<Answer, Failure> {
        let deadline = call.deadline;
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = match tokio::time::timeout(CONNECT_DEADLINE, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(self.unreachable(&error)),
            Err(_) => return Err(self.unreachable(&io::ErrorKind::TimedOut.into())),
        };
        match tokio::time::timeout(deadline, self.converse(stream, call)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::unavailable(format!(
                "casemated at {} did not answer within {} s; it may still do what it was asked to",
                self.url,
                deadline.as_secs()
            ))),
        }
    }

    async fn converse(&self, stream: TcpStream, call: Call) -> Result<Answer, Failure> {
        let max_bytes = call.max_bytes;
        let request = self.request(call)?;
        let broken = |_| {
            Failure::unavailable(format!(
                "casemated at {} broke the connection off; it may or may not have done what it was asked to",
                self.url
            ))
        };
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(64)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let exchange = Box::pin(async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let (head, body) = response.into_parts();
            let body = match Limited::new(body, max_bytes).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) if error.is::<LengthLimitError>() => {
                    return Err(Failure::unavailable(format!(
                        "the answer of {} has more than {max_bytes} bytes",
                        self.url
                    )));
                }
                Err(_) => {
                    return Err(Failure::unavailable(format!(
                        "casemated at {} broke its answer off",
                        self.url
                    )));
                }
            };
            let text = |name| {
                head.headers
                    .get(name)
                    .and_then(|value: &HeaderValue| value.to_str().ok())
            };
            Ok(Answer {
                status: head.status,
                is_problem: text(header::CONTENT_TYPE)
                    .is_some_and(|essence| essence.starts_with("application/problem+json")),
                retry_after_s: text(header::RETRY_AFTER).and_then(|value| value.parse().ok()),
                body,
            })
        });
        // The connection moves the bytes; it is done with the answer or before it.
        match select(exchange, Box::pin(connection)).await {
            Either::Left((answer, _)) => answer,
            Either::Right((_, exchange)) => exchange.await,
        }
    }

    fn request(&self, call: Call) -> Result<Request<Full<Bytes>>, Failure> {
        let mut builder = Request::builder()
            .method(call.method)
            .uri(call.path)
            .header(header::HOST, &self.authority)
            .header(
                header::USER_AGENT,
                concat!("casemate/", env!("CARGO_PKG_VERSION")),
            );
        if !call.body.is_empty() {
            builder = builder.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(key) = &self.key {
            let bearer = Secret::new(format!("Bearer {}", key.expose()));
            let mut value = HeaderValue::from_str(bearer.expose())
                .map_err(|_| Failure::usage("the API key cannot be sent in a header"))?;
            value.set_sensitive(true);
            builder = builder.header(header::AUTHORIZATION, value);
        }
        builder
            .body(Full::new(call.body))
            .map_err(|error| Failure::new(Exit::Software, error.to_string()))
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
    fn only_a_plain_http_url_is_taken() {
        for good in [
            "http://127.0.0.1:7272",
            "http://localhost/",
            "http://[::1]:7272",
        ] {
            assert!(Client::new(good, None).is_ok(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1:7272",
            "ftp://h",
            "http://",
            "http://h/v1",
            "http://u:p@h",
            "http://h/?q",
        ] {
            let failure = Client::new(bad, None).err().unwrap();
            assert_eq!(failure.exit, Exit::Usage, "{bad}");
        }
        let failure = Client::new("https://h", None).err().unwrap();
        assert!(failure.message.contains("not supported yet"));
    }

    #[test]
    fn an_ipv6_host_is_dialled_without_its_brackets() {
        let client = Client::new("http://[::1]:7272", None).unwrap();
        assert_eq!((client.host.as_str(), client.port), ("::1", 7272));
        assert_eq!(client.authority, "[::1]:7272");
    }
}
