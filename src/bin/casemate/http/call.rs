//! What to ask the HTTP API for: a method, a path, a body, and how long and how large an answer may
//! be.

use std::time::Duration;

use ::http::header::{self, HeaderName};
use ::http::{HeaderValue, Method};
use bytes::Bytes;

/// How long an answer may take that waits for nothing.
const DEADLINE: Duration = Duration::from_secs(30);

/// Longest answer that holds no program's output.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// What to ask for.
pub struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
    pub(super) deadline: Duration,
    pub(super) max_bytes: usize,
}

impl Call {
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            headers: Vec::new(),
            body: Bytes::new(),
            deadline: DEADLINE,
            max_bytes: MAX_ANSWER_BYTES,
        }
    }

    /// Asks for a page under `path`, filtered by these pairs.
    pub fn get(path: &str, query: &[(&str, String)]) -> Self {
        Self::ask(Method::GET, path, query)
    }

    /// Asks for something under `path`, as these pairs say.
    pub fn ask(method: Method, path: &str, query: &[(&str, String)]) -> Self {
        let pairs: Vec<_> = query
            .iter()
            .map(|(name, value)| format!("{name}={}", percent(value)))
            .collect();
        let mark = if pairs.is_empty() { "" } else { "?" };
        Self::new(method, format!("{path}{mark}{}", pairs.join("&")))
    }

    /// With a JSON body.
    pub fn json(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.with(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )
    }

    /// With a header.
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Waits so long for the answer.
    pub const fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Takes so long an answer.
    pub const fn at_most(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }
}

/// Percent-encodes everything but the unreserved characters of RFC 3986 section 2.3.
pub fn percent(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_survives_every_character() {
        let call = Call::get("/v1/sessions", &[("label", "a b=ü&c".into())]);
        assert_eq!(call.path, "/v1/sessions?label=a%20b%3D%C3%BC%26c");
        assert_eq!(Call::get("/ready", &[]).path, "/ready");
    }
}
