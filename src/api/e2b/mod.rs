//! The door for clients that were made for E2B: its control routes ([`control`]), and what they find in a sandbox ([`envd`]). It translates and
//! decides nothing; sandboxes are sessions, and everything that is done to them is done, decided and recorded as for everybody else.
//!
//! A request for something in a sandbox names it by host, `{port}-{id}.{domain}`, or in two headers; a signed address names it by its
//! signature alone.

pub(super) mod connect;
mod control;
pub(super) mod envd;
pub(super) mod error;
pub(super) mod inside;
mod proto;
mod signed;
mod views;

use http::HeaderMap;
use http::header::HeaderName;

use crate::api::error::Problem;
use crate::base::id::SessionId;
use crate::model::endpoint::Target;

pub(super) use self::control::ROUTES;

const SANDBOX: HeaderName = HeaderName::from_static("e2b-sandbox-id");
const PORT: HeaderName = HeaderName::from_static("e2b-sandbox-port");

/// The token for all that is inside a sandbox.
pub(super) const ACCESS_TOKEN: HeaderName = HeaderName::from_static("x-access-token");
/// The token for its ports.
pub(super) const TRAFFIC_TOKEN: HeaderName = HeaderName::from_static("e2b-traffic-access-token");

/// The port of a sandbox that a request names in its headers; such headers are of this door, and go no further.
///
/// # Errors
/// When they name none.
pub(super) fn by_headers(headers: &mut HeaderMap) -> Result<Option<Target>, Problem> {
    let (Some(sandbox), port) = (headers.remove(SANDBOX), headers.remove(PORT)) else {
        return Ok(None);
    };
    let session = sandbox.to_str().ok().and_then(session_of);
    let port = match port {
        None => Some(envd::PORT),
        Some(port) => port
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|port| *port > 0),
    };
    let target = session
        .zip(port)
        .map(|(session, port)| Target { session, port });
    target.map(Some).ok_or_else(|| {
        Problem::bad_request(
            "E2b-Sandbox-Id and E2b-Sandbox-Port: a sandbox's id, and a port of it",
        )
    })
}

/// The session of a sandbox's id, which is a session's without its first letters: it can be a part of a host name.
fn session_of(id: &str) -> Option<SessionId> {
    let is_plain = id
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    format!("ses_{id}").parse().ok().filter(|_| is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01j9z3k4m5n6p7q8r9s0t1v2w3";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        pairs.collect()
    }

    #[test]
    fn headers_name_a_port_of_a_sandbox_and_are_taken_away() {
        let mut both = headers(&[
            ("e2b-sandbox-id", ID),
            ("e2b-sandbox-port", "49999"),
            ("x-other", "y"),
        ]);
        let target = by_headers(&mut both).unwrap().unwrap();
        assert_eq!(
            (target.session.suffix(), target.port),
            (ID.to_owned(), 49999)
        );
        assert_eq!(both, headers(&[("x-other", "y")]));
        let mut one = headers(&[("e2b-sandbox-id", ID)]);
        assert_eq!(by_headers(&mut one).unwrap().unwrap().port, envd::PORT);
        assert_eq!(
            by_headers(&mut headers(&[("e2b-sandbox-port", "1")])).unwrap(),
            None
        );
        for (id, port) in [
            ("", "1"),
            ("ses_01j9z3k4m5n6p7q8r9s0t1v2w3", "1"),
            (ID, "0"),
            (ID, "65536"),
            (ID, "x"),
            ("01J9Z3K4M5N6P7Q8R9S0T1V2W3", "1"),
        ] {
            let mut bad = headers(&[("e2b-sandbox-id", id), ("e2b-sandbox-port", port)]);
            assert!(by_headers(&mut bad).is_err(), "{id} {port}");
        }
    }
}
