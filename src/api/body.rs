//! Bodies and queries: bounded, strict, with a sentence for whoever got them wrong.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::error::Problem;
use super::intake::Intake;
use super::route::Call;

/// How long a client may take to send a body that fits into memory.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// Reads a whole body, at most `max_bytes` of it.
pub(super) async fn read(body: Intake, max_bytes: u64) -> Result<Bytes, Problem> {
    let limit = usize::try_from(max_bytes).unwrap_or(usize::MAX);
    if body.size_hint().lower() > max_bytes {
        return Err(Problem::body_too_large(max_bytes));
    }
    match tokio::time::timeout(BODY_DEADLINE, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::body_too_large(max_bytes)),
        Ok(Err(_)) => Err(Problem::bad_request("the body ended before its time")),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_too_slow",
            format!(
                "the body did not arrive within {} s",
                BODY_DEADLINE.as_secs()
            ),
        )),
    }
}

/// Reads a JSON body. An empty body reads as `{}`.
pub(super) fn json<T: DeserializeOwned>(call: &Call) -> Result<T, Problem> {
    if call.body.is_empty() {
        return parse(b"{}");
    }
    if !is_json(&call.headers) {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send JSON with Content-Type: application/json",
        ));
    }
    parse(&call.body)
}

/// The same for a body with a secret in it: what is wrong is said by its place, since what serde says repeats what was sent.
pub(super) fn secret_json<T: DeserializeOwned>(call: &Call, takes: &str) -> Result<T, Problem> {
    if !call.body.is_empty() && !is_json(&call.headers) {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send JSON with Content-Type: application/json",
        ));
    }
    serde_json::from_slice(&call.body).map_err(|error| {
        let what = if error.is_syntax() || error.is_eof() {
            "the body is not JSON"
        } else {
            "the body is not what this route takes"
        };
        Problem::bad_request(format!(
            "{what} ({takes}), from line {}, column {} on; what was sent is not repeated here",
            error.line(),
            error.column()
        ))
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        let what = if error.is_syntax() || error.is_eof() {
            "the body is not JSON"
        } else {
            "the body is not what this route takes"
        };
        Problem::bad_request(format!("{what}: {error}"))
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return false;
    };
    let essence = value.to_str().unwrap_or("").split(';').next().unwrap_or("");
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// The pairs of a query, percent-decoded; every name must be one of `known`.
pub(super) fn query(call: &Call, known: &[&str]) -> Result<Vec<(String, String)>, Problem> {
    let pairs = pairs(&call.query)?;
    for (name, _) in &pairs {
        if !known.contains(&name.as_str()) {
            return Err(Problem::bad_request(format!(
                "there is no query parameter {name:?}; there are {}",
                known.join(", ")
            )));
        }
    }
    Ok(pairs)
}

/// The pairs of a query, percent-decoded.
pub(super) fn pairs(query: &str) -> Result<Vec<(String, String)>, Problem> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

/// A query whose parameters are there at most once, read by name.
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    /// Reads a query; every name must be one of `known`, and none twice.
    pub(super) fn read(call: &Call, known: &[&str]) -> Result<Self, Problem> {
        let mut by_name = BTreeMap::new();
        for (name, value) in query(call, known)? {
            if by_name.contains_key(&name) {
                return Err(Problem::bad_request(format!("{name}: give it once")));
            }
            by_name.insert(name, value);
        }
        Ok(Self(by_name))
    }

    /// A parameter's text.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// A parameter that must be there.
    pub(super) fn required(&mut self, name: &str) -> Result<String, Problem> {
        let missing = || Problem::bad_request(format!("{name}: this query parameter is missing"));
        self.text(name).ok_or_else(missing)
    }

    /// A parameter that is a number.
    pub(super) fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        let read = self.text(name).map(|text| text.parse());
        let bad = |_| Problem::bad_request(format!("{name}: not a number that fits"));
        read.transpose().map_err(bad)
    }

    /// A parameter that is `true` or `false`.
    pub(super) fn flag(&mut self, name: &str, default: bool) -> Result<bool, Problem> {
        match self.text(name).as_deref() {
            None => Ok(default),
            // `?recursive` means what it says.
            Some("true" | "") => Ok(true),
            Some("false") => Ok(false),
            Some(_) => Err(Problem::bad_request(format!("{name}: true or false"))),
        }
    }
}

/// What was percent-encoded, or encoded as in a form.
pub(super) fn decode(text: &str) -> Result<String, Problem> {
    let bad = || Problem::bad_request("the query is not percent-encoded UTF-8");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || {
                    rest.next()
                        .and_then(|b| char::from(b).to_digit(16))
                        .ok_or_else(bad)
                };
                let value = digit()? * 16 + digit()?;
                u8::try_from(value).map_err(|_| bad())?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn percent_encoding_is_undone_once() {
        assert_eq!(decode("a%2Bb+c%25").unwrap(), "a+b c%");
        assert!(decode("%").is_err());
        assert!(decode("%zz").is_err());
        assert!(decode("%ff").is_err());
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic(text in "\\PC{0,60}") {
            let _ = decode(&text);
        }
    }
}
