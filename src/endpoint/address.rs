//! Which port of which session is meant: by host name, `{port}-{session}.{domain}`, or by path, `/v1/sessions/{id}/ports/{port}/…`.
//!
//! Each has one spelling. What has another is no endpoint.

use crate::base::id::SessionId;
use crate::model::endpoint::Target;
use crate::model::web::{Authority, Host};

/// The label below the domain that is the API's own: E2B's clients look for it there.
const API: &str = "api";

/// What paths of endpoints begin with.
const SESSIONS: &str = "/v1/sessions/";

/// The target of a host name below `domain`, which is in lower case.
///
/// `Err` says that the name is one of the domain's, and of no endpoint.
///
/// # Errors
/// As said.
pub fn by_host(addressed: &Authority, domain: &str) -> Result<Option<Target>, NoEndpoint> {
    let Host::Name(name) = &addressed.host else {
        return Ok(None);
    };
    let below = |name: &str| {
        let label = name.strip_suffix(domain)?.strip_suffix('.')?;
        Some(label.to_owned())
    };
    let Some(label) = below(name).filter(|label| label != API) else {
        return Ok(None);
    };
    let target = label.split_once('-').and_then(|(port, session)| {
        Some(Target {
            session: format!("ses_{session}").parse().ok()?,
            port: port_of(port)?,
        })
    });
    target.map(Some).ok_or(NoEndpoint)
}

/// The host name of a target.
#[must_use]
pub fn host_of(target: Target, domain: &str) -> String {
    format!("{}-{}.{domain}", target.port, target.session.suffix())
}

/// The target of a path, and how long the beginning is that names it; the rest begins with a slash, or is nothing.
#[must_use]
pub fn by_path(path: &str) -> Option<(Target, usize)> {
    let rest = path.strip_prefix(SESSIONS)?;
    let (id, rest) = rest.split_once('/')?;
    let rest = rest.strip_prefix("ports/")?;
    let port = rest.split('/').next()?;
    let target = Target {
        session: id.parse::<SessionId>().ok()?,
        port: port_of(port)?,
    };
    let length = SESSIONS.len() + id.len() + "/ports/".len() + port.len();
    Some((target, length))
}

/// The beginning of the paths of a target.
#[must_use]
pub fn path_of(target: Target) -> String {
    format!("{SESSIONS}{}/ports/{}", target.session, target.port)
}

/// It is below the domain of endpoints, and none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an endpoint's name is PORT-SESSION, as in 8888-01j9z3k4m5n6p7q8r9s0t1v2w3")]
pub struct NoEndpoint;

/// 1 to 65535, in its only spelling.
fn port_of(digits: &str) -> Option<u16> {
    let is_plain = !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "01j9z3k4m5n6p7q8r9s0t1v2w3";

    fn host(text: &str) -> Result<Option<Target>, NoEndpoint> {
        by_host(&text.parse().unwrap(), "box.example.com")
    }

    #[test]
    fn a_host_name_has_one_spelling_below_the_domain() {
        let target = Target {
            session: format!("ses_{ID}").parse().unwrap(),
            port: 8888,
        };
        for same in ["", ":7272", "."] {
            assert_eq!(
                host(&format!("8888-{ID}.box.example.com{same}")),
                Ok(Some(target))
            );
        }
        assert_eq!(
            host(&format!("8888-{}.BOX.example.com", ID.to_uppercase())),
            Ok(Some(target))
        );
        assert_eq!(
            host_of(target, "box.example.com"),
            format!("8888-{ID}.box.example.com")
        );
        for other in [
            "box.example.com",
            "api.box.example.com",
            "example.com",
            "127.0.0.1",
            "[::1]",
        ] {
            assert_eq!(host(other), Ok(None), "{other}");
        }
        assert_eq!(host(&format!("8888-{ID}.mailbox.example.com")), Ok(None));
        assert_eq!(
            host(&format!("8888-{ID}.box.example.com.evil.example")),
            Ok(None)
        );
        for wrong in [
            format!("08888-{ID}"),
            format!("0-{ID}"),
            format!("65536-{ID}"),
            format!("8888-ses_{ID}"),
            format!("a.8888-{ID}"),
            format!("8888_{ID}"),
            ID.to_owned(),
            format!("8888-{ID}x"),
        ] {
            assert_eq!(
                host(&format!("{wrong}.box.example.com")),
                Err(NoEndpoint),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_path_names_a_port_and_leaves_the_rest() {
        let begins = format!("/v1/sessions/ses_{ID}/ports/80");
        for rest in ["", "/", "/a/../b", "/%2e%2e/x", "//x"] {
            let path = format!("{begins}{rest}");
            let (target, length) = by_path(&path).unwrap();
            assert_eq!((target.port, path.get(length..)), (80, Some(rest)));
            assert_eq!(path_of(target), begins);
        }
        for wrong in [
            "/v1/sessions".to_owned(),
            format!("/v1/sessions/ses_{ID}/ports"),
            format!("/v1/sessions/ses_{ID}/ports/"),
            format!("/v1/sessions/ses_{ID}/ports/080"),
            format!("/v1/sessions/ses_{ID}/ports/+80/"),
            format!("/v1/sessions/ses_{ID}/ports/80x/"),
            format!("/v1/sessions/{ID}/ports/80/"),
            format!("//v1/sessions/ses_{ID}/ports/80/"),
            format!("/v1/sessions/x/../ses_{ID}/ports/80/"),
        ] {
            assert_eq!(by_path(&wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_is_a_target_in_one_spelling_or_none(text in ".{0,80}") {
            if let Some((target, length)) = by_path(&text) {
                prop_assert_eq!(path_of(target), &text[..length]);
            }
            if let Ok(authority) = text.parse::<Authority>() {
                let _ = by_host(&authority, "box.example.com");
            }
        }
    }
}
