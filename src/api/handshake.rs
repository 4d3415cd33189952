//! The opening handshake of a WebSocket (RFC 6455 section 4.2), checked before a handler is called. Where it comes from
//! (section 10.2) was judged before, as that of every request: `browser`.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::error::Problem;
use super::line::Parting;

/// The only version that there is.
const VERSION: &str = "13";

/// Length of the nonce in `Sec-WebSocket-Key`.
const KEY_BYTES: usize = 16;

/// A handshake that was found good.
pub(super) struct Handshake {
    pub(super) on: OnUpgrade,
    pub(super) agreed: Agreed,
    pub(super) parting: Arc<Parting>,
}

/// What the answer to a handshake says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// `Sec-WebSocket-Accept`.
    pub(super) accept: String,
    /// `Sec-WebSocket-Protocol`.
    pub(super) protocol: Option<&'static str>,
}

/// Checks a handshake. `protocol` is what the route speaks.
pub(super) fn check(
    version: Version,
    headers: &HeaderMap,
    protocol: Option<&'static str>,
) -> Result<Agreed, Problem> {
    if version > Version::HTTP_11 {
        return Err(Problem::new(
            StatusCode::NOT_IMPLEMENTED,
            "websocket_needs_http1",
            "this is a WebSocket: open it over HTTP/1.1",
        ));
    }
    let asks = version == Version::HTTP_11
        && has_word(headers, &header::CONNECTION, "upgrade")
        && has_word(headers, &header::UPGRADE, "websocket");
    if !asks {
        let sentence = "this is a WebSocket: open it as one (RFC 6455)";
        let problem = Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", sentence);
        return Err(upgrade(problem));
    }
    if only(headers, &header::SEC_WEBSOCKET_VERSION) != Some(VERSION) {
        let problem = Problem::new(
            StatusCode::UPGRADE_REQUIRED,
            "websocket_version",
            format!("this door speaks version {VERSION} of the WebSocket protocol"),
        );
        return Err(upgrade(problem).header(
            header::SEC_WEBSOCKET_VERSION,
            HeaderValue::from_static(VERSION),
        ));
    }
    let key = only(headers, &header::SEC_WEBSOCKET_KEY)
        .filter(|key| STANDARD.decode(key).is_ok_and(|key| key.len() == KEY_BYTES))
        .ok_or_else(|| {
            Problem::bad_request(format!(
                "Sec-WebSocket-Key: {KEY_BYTES} bytes in base 64, once"
            ))
        })?;
    Ok(Agreed {
        accept: derive_accept_key(key.as_bytes()),
        // A sub-protocol is case-sensitive. A client that asks only for others sees that it got none.
        protocol: protocol.filter(|ours| {
            words(headers, &header::SEC_WEBSOCKET_PROTOCOL).any(|theirs| theirs == *ours)
        }),
    })
}

fn upgrade(problem: Problem) -> Problem {
    problem
        .header(header::UPGRADE, HeaderValue::from_static("websocket"))
        .header(header::CONNECTION, HeaderValue::from_static("upgrade"))
}

/// A header that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().map(str::trim),
        _ => None,
    }
}

fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
}

pub(super) fn has_word(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    words(headers, name).any(|word| word.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455 section 1.2.
    const GOOD: &[(&str, &str)] = &[
        ("host", "server.example.com"),
        ("upgrade", "websocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("origin", "http://server.example.com"),
        ("sec-websocket-protocol", "chat, superchat"),
        ("sec-websocket-version", "13"),
    ];

    fn headers(changed: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in GOOD.iter().chain(changed) {
            let name: HeaderName = name.parse().unwrap();
            headers.remove(&name);
            if !value.is_empty() {
                headers.insert(name, value.parse().unwrap());
            }
        }
        headers
    }

    fn code(changed: &[(&str, &str)]) -> Result<Agreed, &'static str> {
        let checked = check(Version::HTTP_11, &headers(changed), Some("superchat"));
        checked.map_err(|problem| problem.code())
    }

    #[test]
    fn the_example_of_the_rfc_is_agreed_to() {
        let agreed = code(&[]).unwrap();
        assert_eq!(agreed.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(agreed.protocol, Some("superchat"));
        for other in ["", "chat", "SuperChat"] {
            let agreed = code(&[("sec-websocket-protocol", other)]).unwrap();
            assert_eq!(agreed.protocol, None, "{other}");
        }
    }

    #[test]
    fn what_is_no_handshake_is_told_why() {
        for (changed, told) in [
            (("upgrade", ""), "upgrade_required"),
            (("upgrade", "h2c"), "upgrade_required"),
            (("connection", ""), "upgrade_required"),
            (("connection", "close"), "upgrade_required"),
            (("sec-websocket-version", ""), "websocket_version"),
            (("sec-websocket-version", "8"), "websocket_version"),
            (("sec-websocket-version", "8, 13"), "websocket_version"),
            (("sec-websocket-key", ""), "invalid_request"),
            (("sec-websocket-key", "short"), "invalid_request"),
            (("sec-websocket-key", "dGhlIHNhbXBsZQ=="), "invalid_request"),
        ] {
            assert_eq!(code(&[changed]), Err(told), "{changed:?}");
        }
        let mut twice = headers(&[]);
        let key = twice[header::SEC_WEBSOCKET_KEY].clone();
        twice.append(header::SEC_WEBSOCKET_KEY, key);
        assert!(check(Version::HTTP_11, &twice, None).is_err());
        let old = check(Version::HTTP_10, &headers(&[]), None);
        assert_eq!(old.unwrap_err().code(), "upgrade_required");
        let new = check(Version::HTTP_2, &headers(&[]), None);
        assert_eq!(new.unwrap_err().code(), "websocket_needs_http1");
    }
}
