//! The opening handshake of a WebSocket (RFC 6455 section 4.2), checked before a handler is called.
//!
//! A browser sends a page's cookies and reaches a person's own network from any page, and the rule of
//! same origin does not hold for a WebSocket: the server must look at `Origin` (section 10.2). Programs
//! send none.

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

/// Checks a handshake. `authority` is the target's own, where the request line has one; `protocol` is
/// what the route speaks.
pub(super) fn check(
    version: Version,
    headers: &HeaderMap,
    authority: Option<&str>,
    protocol: Option<&'static str>,
) -> Result<Agreed, Problem> {
    if version > Version::HTTP_11 {
        return Err(Problem::new(
            StatusCode::NOT_IMPLEMENTED,
            "websocket_needs_http1",
            "this is a WebSocket: open it over HTTP/1.1",
        ));
    }
    check_origin(headers, authority)?;
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

fn check_origin(headers: &HeaderMap, authority: Option<&str>) -> Result<(), Problem> {
    if !headers.contains_key(header::ORIGIN) {
        return Ok(());
    }
    let host = authority.or_else(|| only(headers, &header::HOST));
    let same = only(headers, &header::ORIGIN)
        .zip(host)
        .is_some_and(|(origin, host)| is_same(origin, host));
    if same {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "origin_not_allowed",
        "a page of another site may not open this",
    ))
}

/// Whether an origin (RFC 6454 section 6.1) is that of a host. An opaque one, `null`, is nobody's.
fn is_same(origin: &str, host: &str) -> bool {
    let Some((scheme, place)) = origin.split_once("://") else {
        return false;
    };
    let default_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let bare = |text: &str| {
        let text = text.strip_suffix(default_port).unwrap_or(text);
        text.to_ascii_lowercase()
    };
    !place.is_empty() && bare(place) == bare(host)
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

fn has_word(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    words(headers, name).any(|word| word.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        let checked = check(Version::HTTP_11, &headers(changed), None, Some("superchat"));
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
        assert!(check(Version::HTTP_11, &twice, None, None).is_err());
        let old = check(Version::HTTP_10, &headers(&[]), None, None);
        assert_eq!(old.unwrap_err().code(), "upgrade_required");
        let new = check(Version::HTTP_2, &headers(&[]), None, None);
        assert_eq!(new.unwrap_err().code(), "websocket_needs_http1");
    }

    #[test]
    fn only_the_same_site_or_no_site_may_come_in() {
        for (origin, host) in [
            ("", "a.example"),
            ("http://a.example", "a.example"),
            ("https://a.example", "A.Example:443"),
            ("http://a.example", "a.example:80"),
            ("http://a.example:7272", "a.example:7272"),
            ("http://[::1]:7272", "[::1]:7272"),
        ] {
            let changed = [("origin", origin), ("host", host)];
            assert!(code(&changed).is_ok(), "{changed:?}");
        }
        for (origin, host) in [
            ("null", "a.example"),
            ("a.example", "a.example"),
            ("http://", "a.example"),
            ("http://b.example", "a.example"),
            ("http://a.example.b.example", "a.example"),
            ("http://a.example:81", "a.example"),
            ("https://a.example", "a.example:80"),
            ("http://a.example", "a.example:443"),
            ("file://a.example", "a.example"),
            ("http://x@a.example", "a.example"),
            ("http://a.example", ""),
        ] {
            let changed = [("origin", origin), ("host", host)];
            assert_eq!(code(&changed), Err("origin_not_allowed"), "{changed:?}");
        }
        let mut twice = headers(&[]);
        twice.append(header::ORIGIN, HeaderValue::from_static("http://b.example"));
        assert!(check(Version::HTTP_11, &twice, None, None).is_err());
    }

    proptest! {
        #[test]
        fn an_origin_is_the_same_only_where_its_host_is(a in "[a-z.]{1,9}", b in "[a-z.]{1,9}") {
            prop_assert_eq!(is_same(&format!("https://{a}"), &b), a == b);
        }
    }
}
