//! Who asks for a port, and what of a request is our business and not the program's.
//!
//! Ours is: a key of ours in `X-API-Key` or `Authorization`, a JSON web token there that we take, the link in the query, our cookie. It goes,
//! whichever of it let somebody in. Anything else in the same places is the program's own.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};

use crate::api::e2b::{ACCESS_TOKEN, TRAFFIC_TOKEN};
use crate::api::error::Problem;
use crate::app::App;

/// The query parameter of a link.
pub(in crate::api) const LINK: &str = "casemate-link";

/// Our cookie: where it was sent by TLS, one that no other name and no path can set (RFC 6265bis section 4.1.3.2).
const SECURE_COOKIE: &str = "__Host-casemate-endpoint";
const PLAIN_COOKIE: &str = "casemate-endpoint";

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// What was presented, in the order in which it counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Presented {
    /// A key of ours, or a token in `X-API-Key`.
    pub(super) key: Option<String>,
    /// A signed link.
    pub(super) link: Option<String>,
    /// Our cookie.
    pub(super) cookie: Option<String>,
    /// A bearer that may be a token of an issuer's, and may be the program's.
    pub(super) bearer: Option<String>,
    /// An access token of a session, of either kind.
    pub(super) access: Option<String>,
}

/// The name of our cookie.
pub(super) const fn cookie_name(is_tls: bool) -> &'static str {
    if is_tls { SECURE_COOKIE } else { PLAIN_COOKIE }
}

/// Whether a cookie's name is one of ours.
pub(super) fn is_own_cookie(name: &str) -> bool {
    name.eq_ignore_ascii_case(SECURE_COOKIE) || name.eq_ignore_ascii_case(PLAIN_COOKIE)
}

/// What sets our cookie.
pub(super) fn set_cookie(is_tls: bool, text: &str, life_s: u64) -> Option<HeaderValue> {
    let name = cookie_name(is_tls);
    let secure = if is_tls { "; Secure" } else { "" };
    let cookie = format!("{name}={text}; Path=/; Max-Age={life_s}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::from_str(&cookie).ok()
}

/// Takes what is ours out of the headers. A bearer that may be somebody else's stays until it is known whose it is.
///
/// # Errors
/// When there is more than one of a kind: which of them counts must not be a matter of taste.
pub(super) fn take_from_headers(
    headers: &mut HeaderMap,
    is_tls: bool,
) -> Result<Presented, Problem> {
    let mut presented = Presented::default();
    for value in take(headers, &API_KEY, is_ours) {
        once(&mut presented.key, value)?;
    }
    for value in take(headers, &header::AUTHORIZATION, |value| {
        bearer(value).is_some_and(is_ours_as_bearer)
    }) {
        once(
            &mut presented.key,
            bearer(&value).unwrap_or_default().to_owned(),
        )?;
    }
    let mut bearers = headers.get_all(header::AUTHORIZATION).iter();
    if let (Some(value), None) = (bearers.next(), bearers.next()) {
        let token = value.to_str().ok().and_then(bearer);
        presented.bearer = token
            .filter(|token| App::is_spelled_like_a_token(token))
            .map(str::to_owned);
    }
    presented.cookie = take_cookie(headers, cookie_name(is_tls))?;
    // E2B's clients send both, and either is enough.
    for name in [&ACCESS_TOKEN, &TRAFFIC_TOKEN] {
        for value in take(headers, name, App::is_spelled_like_an_access_token) {
            presented.access.get_or_insert(value);
        }
    }
    Ok(presented)
}

fn is_ours(value: &str) -> bool {
    App::is_spelled_like_a_key(value) || App::is_spelled_like_a_token(value)
}

fn is_ours_as_bearer(value: &str) -> bool {
    App::is_spelled_like_a_key(value)
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

fn once(slot: &mut Option<String>, value: String) -> Result<(), Problem> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Problem::unauthenticated()),
    }
}

/// Takes out the values that are ours; the others stay.
fn take(headers: &mut HeaderMap, name: &HeaderName, is_ours: impl Fn(&str) -> bool) -> Vec<String> {
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for value in headers.get_all(name) {
        match value.to_str() {
            Ok(text) if is_ours(text.trim()) => ours.push(text.trim().to_owned()),
            _ => others.push(value.clone()),
        }
    }
    headers.remove(name);
    for value in others {
        headers.append(name, value);
    }
    ours
}

/// Takes our cookies out, both names of them; the one that counts, which must be there once.
fn take_cookie(headers: &mut HeaderMap, wanted: &str) -> Result<Option<String>, Problem> {
    let mut found = None;
    let mut kept = Vec::new();
    for value in headers.get_all(header::COOKIE) {
        let Ok(text) = std::str::from_utf8(value.as_bytes()) else {
            // Not to be read, so not to be passed on: ours could be in it.
            continue;
        };
        let mut others = Vec::new();
        for pair in text.split(';').map(str::trim) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !is_own_cookie(name.trim()) {
                others.push(pair);
            } else if name.trim() == wanted {
                once(&mut found, value.trim().to_owned())?;
            }
        }
        others.retain(|pair| !pair.is_empty());
        kept.extend(
            HeaderValue::from_str(&others.join("; "))
                .ok()
                .filter(|value| !value.is_empty()),
        );
    }
    headers.remove(header::COOKIE);
    for value in kept {
        headers.append(header::COOKIE, value);
    }
    Ok(found)
}

/// Takes the link out of a query; the query without it.
///
/// # Errors
/// When there is more than one.
pub(super) fn take_link(query: Option<&str>) -> Result<(Option<String>, Option<String>), Problem> {
    let Some(query) = query else {
        return Ok((None, None));
    };
    let mut link = None;
    let mut others = Vec::new();
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some((LINK, value)) => once(&mut link, value.to_owned())?,
            _ if pair == LINK => {}
            _ => others.push(pair),
        }
    }
    if link.is_none() {
        return Ok((None, Some(query.to_owned())));
    }
    Ok((link, (!others.is_empty()).then(|| others.join("&"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "cmk_01j9z3k4m5n6p7q8r9s0t1v2w3";

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_programs_own_credentials_stay() {
        let own = [
            ("authorization", "Basic dXNlcjpwYXNz"),
            ("authorization", "token abc"),
            ("x-api-key", "sk-of-the-program"),
            ("cookie", "a=b; session=c"),
        ];
        let mut map = headers(&own);
        let presented = take_from_headers(&mut map, true).unwrap();
        assert_eq!(presented, Presented::default());
        assert_eq!(map, headers(&own));
        assert!(!is_ours(KEY), "not the whole of a key: {KEY}");
    }

    #[test]
    fn our_cookie_goes_and_those_of_the_program_stay() {
        let mut map = headers(&[
            ("cookie", "a=b; __Host-casemate-endpoint=x; c=d"),
            ("cookie", "casemate-endpoint=y"),
        ]);
        let presented = take_from_headers(&mut map, true).unwrap();
        assert_eq!(presented.cookie.as_deref(), Some("x"));
        assert_eq!(map, headers(&[("cookie", "a=b; c=d")]));
        let mut twice = headers(&[("cookie", "casemate-endpoint=x; casemate-endpoint=y")]);
        assert!(take_from_headers(&mut twice, false).is_err());
        // By TLS the name that another site could have set counts for nothing.
        let mut tossed = headers(&[("cookie", "casemate-endpoint=x")]);
        assert_eq!(take_from_headers(&mut tossed, true).unwrap().cookie, None);
        assert!(tossed.is_empty());
    }

    #[test]
    fn the_link_goes_and_the_rest_of_the_query_stays_as_it_was() {
        let taken = |query: &str| take_link(Some(query)).unwrap();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            taken("a=1&casemate-link=x&b=%20&&c"),
            (some("x"), some("a=1&b=%20&&c"))
        );
        assert_eq!(taken("casemate-link=x"), (some("x"), None));
        assert_eq!(
            taken("a=casemate-link=x"),
            (None, some("a=casemate-link=x"))
        );
        assert_eq!(taken(""), (None, some("")));
        assert!(take_link(Some("casemate-link=x&casemate-link=y")).is_err());
        assert_eq!(take_link(None).unwrap(), (None, None));
    }
}
