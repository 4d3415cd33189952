//! What browsers may do here: under which names the door is addressed, which pages may call, what an answer forbids.
//!
//! Three dangers. A page whose name is bound to this machine's address reads from it as from its own (DNS rebinding): the door answers to
//! its own names only. A page of another site sends requests from a network that it is not in: it may not, unless its origin is listed. An answer
//! is taken for a page, a script, a frame: it is none. Nothing here is a credential: programs send no origin, and keys are asked for in any case.

use std::net::IpAddr;

use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::error::Problem;
use super::reply::Reply;
use super::route::Route;
use crate::model::web::{Authority, HostPattern, Origin, OriginPattern};

/// How long a browser may remember what a path takes, in seconds.
const MAX_AGE: &str = "600";

/// What a page may send.
const ALLOWED_HEADERS: &str = "authorization, x-api-key, content-type, if-match, if-none-match, if-range, idempotency-key, last-event-id, \
     range, x-request-id";

/// Files have metadata in headers with such names.
const METADATA: &str = "x-metadata-";

/// Most headers of metadata that are allowed at once.
const MAX_METADATA: usize = 64;

/// What of an answer a page may read beside its body.
const EXPOSED_HEADERS: &str = "accept-ranges, content-disposition, content-length, content-range, etag, last-modified, location, \
     retry-after, x-request-id";

/// Each answer says these.
const ALWAYS: [(HeaderName, &str); 8] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'",
    ),
    (
        HeaderName::from_static("permissions-policy"),
        "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (header::VARY, "origin"),
];

/// For a year this name is asked for by TLS only (RFC 6797). Other names of the domain are not ours to decide about.
const STRICT_TRANSPORT: &str = "max-age=31536000";

/// Which names the door answers to and whose pages may call.
#[derive(Clone, Debug, Default)]
pub struct Browsers {
    /// Beside the address that a connection came to, and this machine's own names where it came from this machine.
    pub hosts: Vec<HostPattern>,
    /// Beside the door's own.
    pub origins: Vec<OriginPattern>,
}

/// The page that a request comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Site {
    /// None that says so: programs, and browsers that go somewhere.
    #[default]
    None,
    /// One of our own.
    Same,
    /// One that is listed, as it named itself.
    Listed(HeaderValue),
    /// Any other.
    Foreign,
}

impl Browsers {
    /// Judges a request by its head: who is addressed, and from which page.
    pub(super) fn judge(
        &self,
        head: &Parts,
        local: Option<IpAddr>,
        is_tls: bool,
    ) -> Result<Site, Problem> {
        let addressed = addressed(head, is_tls)?;
        if !self.answers_to(&addressed, local) {
            return Err(Problem::new(
                StatusCode::MISDIRECTED_REQUEST,
                "host_not_allowed",
                "this door does not answer to the name that it was addressed by; an operator lists its names in http.hosts",
            ));
        }
        let site = self.site(&head.headers, &addressed, is_tls);
        if site == Site::Foreign && !is_plain(head) {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "origin_not_allowed",
                "a page of another site may not do this; an operator lists those that may in http.origins",
            ));
        }
        Ok(site)
    }

    fn answers_to(&self, addressed: &Authority, local: Option<IpAddr>) -> bool {
        let local = local.map(|address| address.to_canonical());
        // No name service had a say in any of these.
        let is_own = local.is_some_and(|local| {
            addressed.host == crate::model::web::Host::Address(local)
                || (local.is_loopback() && addressed.host.is_loopback())
        });
        is_own || self.hosts.iter().any(|pattern| pattern.takes(addressed))
    }

    fn site(&self, headers: &HeaderMap, addressed: &Authority, is_tls: bool) -> Site {
        if !headers.contains_key(header::ORIGIN) {
            return Site::None;
        }
        let Ok(value) = only(headers, &header::ORIGIN) else {
            return Site::Foreign;
        };
        // `null` among them: an opaque origin is everybody's.
        let Some(origin) = value
            .to_str()
            .ok()
            .and_then(|text| text.parse::<Origin>().ok())
        else {
            return Site::Foreign;
        };
        if origin.is_of(addressed, is_tls) {
            Site::Same
        } else if self.origins.iter().any(|pattern| pattern.takes(&origin)) {
            Site::Listed(value.clone())
        } else {
            Site::Foreign
        }
    }
}

/// What a page can have in any case, without being able to read the answer: nothing is changed, no secret is tried, nothing stays open.
fn is_plain(head: &Parts) -> bool {
    let speaks = [
        header::AUTHORIZATION,
        HeaderName::from_static("x-api-key"),
        header::COOKIE,
        header::UPGRADE,
    ];
    [Method::GET, Method::HEAD].contains(&head.method)
        && speaks.iter().all(|name| !head.headers.contains_key(name))
}

/// Whether a page of somebody else's made a browser send this (Fetch Metadata, section 2.3), as far as the browser says. What it adds by itself is
/// then not that page's to use.
pub(super) fn is_sent_by_another_page(headers: &HeaderMap, site: &Site) -> bool {
    let said = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    match site {
        Site::Foreign => true,
        Site::Same | Site::Listed(_) => false,
        Site::None => !matches!(said, None | Some(b"same-origin" | b"none")),
    }
}

/// Who is addressed: by `Host`, and by the target where it says so itself, which must be the same (RFC 9110 section 7.2, RFC 9113 section 8.3.1).
pub(super) fn addressed(head: &Parts, is_tls: bool) -> Result<Authority, Problem> {
    let bad = |what: &str| Err(Problem::new(StatusCode::BAD_REQUEST, "bad_host", what));
    let host = match only(&head.headers, &header::HOST) {
        Ok(value) => match value.to_str().ok().and_then(|text| text.parse().ok()) {
            Some(host) => Some(host),
            None => return bad("Host is no name or address with or without a port"),
        },
        Err(0) => None,
        Err(_) => return bad("Host is there more than once"),
    };
    let target: Option<Authority> = match head.uri.authority() {
        None => None,
        Some(authority) => match authority.as_str().parse() {
            Ok(authority) => Some(authority),
            Err(_) => return bad("the target is at no name or address with or without a port"),
        },
    };
    let is_https = head
        .uri
        .scheme_str()
        .map_or(is_tls, |scheme| scheme == "https");
    let same = |one: &Authority, other: &Authority| {
        one.host == other.host && one.port_under(is_https) == other.port_under(is_https)
    };
    match (target, host) {
        (Some(target), Some(host)) if !same(&target, &host) => {
            bad("Host and the request's target are not the same")
        }
        (Some(one), _) | (None, Some(one)) => Ok(one),
        (None, None) => bad("say whom you address: a request has a Host"),
    }
}

/// A header that is there once; otherwise how often it is.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a HeaderValue, usize> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value),
        (None, _) => Err(0),
        _ => Err(2),
    }
}

/// Whether a browser asks what it may ask (Fetch, section 3.2.2).
pub(super) fn is_preflight(head: &Parts, site: &Site) -> bool {
    head.method == Method::OPTIONS
        && matches!(site, Site::Same | Site::Listed(_))
        && head
            .headers
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// What a path takes, for a browser.
pub(super) fn preflight(head: &Parts, routes: &[Route]) -> Reply {
    let mut methods: Vec<&str> = routes.iter().map(|route| route.method.as_str()).collect();
    if routes.iter().any(Route::has_head) {
        methods.push(Method::HEAD.as_str());
    }
    preflight_of(head, &methods)
}

/// What a path takes below which a session's program answers.
pub(super) fn preflight_to_programs(head: &Parts) -> Reply {
    preflight_of(head, &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
}

fn preflight_of(head: &Parts, methods: &[&str]) -> Reply {
    let asked = head.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    let asked = asked
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let metadata = asked.split(',').map(str::trim).filter(|name| {
        name.strip_prefix(METADATA).is_some_and(|rest| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            !rest.is_empty() && rest.bytes().all(is_plain)
        })
    });
    let mut headers = vec![ALLOWED_HEADERS];
    headers.extend(metadata.take(MAX_METADATA));
    let mut reply = Reply::empty(StatusCode::NO_CONTENT).with(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static(MAX_AGE),
    );
    for (name, list) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, methods.join(", ")),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, headers.join(", ")),
    ] {
        if let Ok(value) = HeaderValue::from_str(&list) {
            reply = reply.with(name, value);
        }
    }
    reply
}

/// Says in an answer what browsers may do with it. No page sends cookies or the like here, and so none is let.
pub(super) fn dress(headers: &mut HeaderMap, site: &Site, is_tls: bool) {
    for (name, value) in ALWAYS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if is_tls {
        headers.insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static(STRICT_TRANSPORT),
        );
    }
    let_listed(headers, site);
}

/// Lets a page that is listed read an answer.
pub(super) fn let_listed(headers: &mut HeaderMap, site: &Site) {
    if let Site::Listed(origin) = site {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(EXPOSED_HEADERS),
        );
        headers.insert(
            HeaderName::from_static("cross-origin-resource-policy"),
            HeaderValue::from_static("cross-origin"),
        );
    }
}
