//! Headers on their way through the gate, both ways: what belongs to one connection goes, what is ours to say is said by us alone.
//!
//! Pure. Sources: RFC 9110 sections 7.6.1 and 7.8 (what is hop by hop), RFC 7239 (`Forwarded`), W3C Baggage and Trace Context.

use std::collections::BTreeMap;
use std::net::IpAddr;

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};

use crate::model::endpoint::Target;

/// The session, for the program.
pub const SESSION: HeaderName = HeaderName::from_static("x-casemate-session");

/// The member of `baggage` that says the session.
const BAGGAGE_KEY: &str = "casemate-session";
/// The member of `tracestate` that says it.
const TRACESTATE_KEY: &str = "casemate";
/// Most members and bytes of `tracestate` (Trace Context, section 3.3.1.1 and 3.3.1.5).
const TRACESTATE_MEMBERS: usize = 32;
const TRACESTATE_BYTES: usize = 512;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// What is between two ends of one connection, beside what `Connection` names.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// What nobody but us says to a program.
const OURS: &str = "x-casemate-";

/// What a proxy says of whom it speaks for.
const OF_PROXIES: [&str; 3] = ["forwarded", "x-forwarded-", "x-real-ip"];

/// What no trailer may say: framing, routing, who somebody is (RFC 9110 section 6.5.1), and what is ours.
const NO_TRAILER: [&str; 22] = [
    "authorization",
    "baggage",
    "cache-control",
    "clear-site-data",
    "content-encoding",
    "content-length",
    "content-range",
    "content-security-policy",
    "content-type",
    "cookie",
    "host",
    "location",
    "max-forwards",
    "set-cookie",
    "strict-transport-security",
    "tracestate",
    "trailer",
    "www-authenticate",
    "x-api-key",
    "x-frame-options",
    "access-control-allow-origin",
    "access-control-allow-credentials",
];

/// What an answer may not say of more than itself: where else its site is, and what browsers keep of this name.
const NO_ANSWER: [&str; 3] = ["alt-svc", "proxy-status", "public-key-pins"];

/// The same where the answer shares an origin with the API.
const NO_ANSWER_BY_PATH: [&str; 8] = [
    "clear-site-data",
    "nel",
    "report-to",
    "reporting-endpoints",
    "service-worker-allowed",
    "set-cookie",
    "sourcemap",
    "strict-transport-security",
];

/// By what a request came, as far as the program is told.
#[derive(Clone, Debug)]
pub struct Journey {
    /// Who spoke to us.
    pub peer: Option<IpAddr>,
    /// Whether that is a proxy whose word on others is taken.
    pub is_trusted: bool,
    /// Whether it came by TLS, to us.
    pub is_tls: bool,
    /// The name that was addressed, with its port where one was said.
    pub host: String,
    /// What the path began with that the program does not see; empty where it came by host name.
    pub prefix: String,
}

/// Takes away what belongs to the connection that a message came by.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Makes a request's headers what the program gets: hop by hop and what is ours or a proxy's goes, then ours is said.
pub fn inject(
    headers: &mut HeaderMap,
    target: Target,
    journey: &Journey,
    extra: Option<&BTreeMap<String, String>>,
) {
    strip_hop_by_hop(headers);
    let before = journey.is_trusted.then(|| Before::read(headers));
    retain(headers, |name| {
        !name.starts_with(OURS) && !OF_PROXIES.iter().any(|of| name.starts_with(of))
    });
    let id = target.session.to_string();
    set(headers, SESSION, &id);
    let members = other_members(headers, &BAGGAGE, BAGGAGE_KEY);
    set(
        headers,
        BAGGAGE,
        &joined(&members, &format!("{BAGGAGE_KEY}={id}"), false),
    );
    let mut members = other_members(headers, &TRACESTATE, TRACESTATE_KEY);
    let own = format!("{TRACESTATE_KEY}={id}");
    members.truncate(TRACESTATE_MEMBERS - 1);
    while own.len() + members.iter().map(|member| member.len() + 1).sum::<usize>()
        > TRACESTATE_BYTES
        && members.pop().is_some()
    {}
    set(headers, TRACESTATE, &joined(&members, &own, true));
    say_journey(headers, journey, before.unwrap_or_default());
    for (name, value) in extra.into_iter().flatten() {
        if let Ok(name) = name.parse::<HeaderName>() {
            set(headers, name, value);
        }
    }
}

/// What a trusted proxy said.
#[derive(Default)]
struct Before {
    forwarded: Option<String>,
    chain: Option<String>,
    host: Option<String>,
    proto: Option<String>,
}

impl Before {
    fn read(headers: &HeaderMap) -> Self {
        let listed = |name: &str| {
            let values = headers.get_all(name).iter();
            let values: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
            (!values.is_empty()).then(|| values.join(", "))
        };
        let single = |name: &HeaderName| {
            let mut values = headers.get_all(name).iter();
            let (value, None) = (values.next()?, values.next()) else {
                return None;
            };
            let text = value.to_str().ok()?.trim();
            (!text.is_empty() && !text.contains([',', '"', ' '])).then(|| text.to_owned())
        };
        Self {
            forwarded: listed("forwarded"),
            chain: listed("x-forwarded-for"),
            host: single(&FORWARDED_HOST),
            proto: single(&FORWARDED_PROTO).filter(|proto| proto == "http" || proto == "https"),
        }
    }
}

/// Whether a request came to the outermost of those we trust by TLS.
#[must_use]
pub fn came_by_tls(headers: &HeaderMap, is_tls: bool, is_trusted: bool) -> bool {
    let said = is_trusted.then(|| Before::read(headers).proto).flatten();
    said.map_or(is_tls, |proto| proto == "https")
}

fn say_journey(headers: &mut HeaderMap, journey: &Journey, before: Before) {
    let host = before.host.as_deref().unwrap_or(&journey.host);
    let own = if journey.is_tls { "https" } else { "http" };
    let proto = before.proto.as_deref().unwrap_or(own);
    let by = journey.peer.map_or_else(
        || "unknown".to_owned(),
        |peer| peer.to_canonical().to_string(),
    );
    let node = if by.contains(':') {
        format!("\"[{by}]\"")
    } else {
        by.clone()
    };
    let element = format!("for={node};host=\"{host}\";proto={proto}");
    let forwarded = before
        .forwarded
        .map_or_else(|| element.clone(), |others| format!("{others}, {element}"));
    set(headers, header::FORWARDED, &forwarded);
    let first = before
        .chain
        .as_deref()
        .and_then(|chain| chain.split(',').next());
    let client = first.map_or_else(|| by.clone(), |first| first.trim().to_owned());
    set(headers, REAL_IP, &client);
    let chain = before
        .chain
        .map_or_else(|| by.clone(), |chain| format!("{chain}, {by}"));
    set(headers, FORWARDED_FOR, &chain);
    set(headers, FORWARDED_HOST, host);
    set(headers, FORWARDED_PROTO, proto);
    let port = host.rsplit_once(':').map(|(_, port)| port);
    let is_number =
        |port: &&str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let default = if proto == "https" { "443" } else { "80" };
    set(
        headers,
        FORWARDED_PORT,
        port.filter(is_number).unwrap_or(default),
    );
    if !journey.prefix.is_empty() {
        set(headers, FORWARDED_PREFIX, &journey.prefix);
    }
}

/// The members of a list that are not `key`'s.
fn other_members(headers: &HeaderMap, name: &HeaderName, key: &str) -> Vec<String> {
    let values = headers.get_all(name).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|member| {
            let named = member.split(['=', ';']).next().unwrap_or_default();
            !member.is_empty() && !named.trim().eq_ignore_ascii_case(key)
        })
        .map(str::to_owned)
        .collect()
}

fn joined(members: &[String], own: &str, is_first: bool) -> String {
    let mut all: Vec<&str> = members.iter().map(String::as_str).collect();
    all.insert(if is_first { 0 } else { all.len() }, own);
    all.join(",")
}

/// Says one value, and no other. What cannot be said is not.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => drop(headers.remove(name)),
    }
}

fn retain(headers: &mut HeaderMap, keep: impl Fn(&str) -> bool) {
    let gone: Vec<HeaderName> = headers
        .keys()
        .filter(|name| !keep(name.as_str()))
        .cloned()
        .collect();
    for name in gone {
        headers.remove(name);
    }
}

/// Makes a program's headers what the client gets. `own_cookie` tells the names of our own cookies, which no program sets.
pub fn release(headers: &mut HeaderMap, is_by_path: bool, own_cookie: impl Fn(&str) -> bool) {
    strip_hop_by_hop(headers);
    retain(headers, |name| {
        !name.starts_with(OURS)
            && !NO_ANSWER.contains(&name)
            && !(is_by_path
                && (NO_ANSWER_BY_PATH.contains(&name) || name.starts_with("access-control-")))
    });
    let cookies: Vec<HeaderValue> = headers
        .get_all(header::SET_COOKIE)
        .iter()
        .filter_map(|cookie| host_only(cookie, &own_cookie))
        .collect();
    headers.remove(header::SET_COOKIE);
    for cookie in cookies {
        headers.append(header::SET_COOKIE, cookie);
    }
}

/// A program's cookie without `Domain`, so that it is for that host name alone; none where it would be one of ours.
fn host_only(cookie: &HeaderValue, own: impl Fn(&str) -> bool) -> Option<HeaderValue> {
    let text = std::str::from_utf8(cookie.as_bytes()).ok()?;
    let mut parts = text.split(';');
    let pair = parts.next()?;
    if own(pair.split('=').next().unwrap_or_default().trim()) {
        return None;
    }
    let others = parts.filter(|attribute| {
        let name = attribute.split('=').next().unwrap_or_default();
        !name.trim().eq_ignore_ascii_case("domain")
    });
    let kept: Vec<&str> = std::iter::once(pair).chain(others).collect();
    HeaderValue::from_str(&kept.join(";")).ok()
}

/// Takes away what a trailer must not say.
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    retain(trailers, |name| {
        !name.starts_with(OURS)
            && !NO_TRAILER.contains(&name)
            && !OF_PROXIES.iter().any(|of| name.starts_with(of))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn target() -> Target {
        Target {
            session: "ses_01j9z3k4m5n6p7q8r9s0t1v2w3".parse().unwrap(),
            port: 80,
        }
    }

    fn journey(is_trusted: bool) -> Journey {
        Journey {
            peer: Some("::ffff:10.0.0.7".parse().unwrap()),
            is_trusted,
            is_tls: true,
            host: "80-x.box.example.com:7272".into(),
            prefix: String::new(),
        }
    }

    fn all(headers: &HeaderMap, name: &str) -> Vec<String> {
        let values = headers.get_all(name).iter();
        values
            .map(|value| value.to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn what_belongs_to_a_connection_goes_with_what_it_names() {
        let mut map = headers(&[
            ("connection", "close, X-One"),
            ("connection", "x-two"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("keep-alive", "1"),
            ("te", "trailers"),
            ("proxy-connection", "close"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("expect", "100-continue"),
            ("x-three", "3"),
        ]);
        strip_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("x-three", "3")]));
    }

    #[test]
    fn who_claims_to_be_another_session_or_a_proxy_is_not_believed() {
        let mut map = headers(&[
            ("x-casemate-session", "ses_other"),
            ("X-Casemate-Anything", "x"),
            // Named to be dropped on the way: ours is said after that.
            ("connection", "x-casemate-session, baggage"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-email", "root@example.com"),
            ("x-real-ip", "1.2.3.4"),
            ("baggage", "casemate-session=ses_other;x=y, a=b"),
            ("baggage", "Casemate-Session = ses_other , c=d"),
            ("tracestate", "casemate=ses_other,vendor=1"),
            ("x-team", "red"),
        ]);
        let extra = [("x-team".to_owned(), "blue".to_owned())].into();
        inject(&mut map, target(), &journey(false), Some(&extra));
        let id = target().session.to_string();
        assert_eq!(all(&map, "x-casemate-session"), [id.as_str()]);
        assert_eq!(all(&map, "x-casemate-anything"), Vec::<String>::new());
        // Dropped with what `connection` named; only ours is there.
        assert_eq!(all(&map, "baggage"), [format!("casemate-session={id}")]);
        assert_eq!(all(&map, "tracestate"), [format!("casemate={id},vendor=1")]);
        assert_eq!(
            all(&map, "forwarded"),
            ["for=10.0.0.7;host=\"80-x.box.example.com:7272\";proto=https"]
        );
        assert_eq!(all(&map, "x-forwarded-for"), ["10.0.0.7"]);
        assert_eq!(all(&map, "x-forwarded-port"), ["7272"]);
        assert_eq!(all(&map, "x-real-ip"), ["10.0.0.7"]);
        assert_eq!(all(&map, "x-forwarded-email"), Vec::<String>::new());
        assert_eq!(all(&map, "x-team"), ["blue"]);

        let mut map = headers(&[("baggage", "casemate-session=x, a=b;p"), ("baggage", "c=d")]);
        inject(&mut map, target(), &journey(false), None);
        assert_eq!(
            all(&map, "baggage"),
            [format!("a=b;p,c=d,casemate-session={id}")]
        );
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_added_to() {
        let mut map = headers(&[
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "outside.example"),
        ]);
        assert!(!came_by_tls(&map, true, true) && came_by_tls(&map, true, false));
        inject(&mut map, target(), &journey(true), None);
        assert_eq!(
            all(&map, "forwarded"),
            ["for=1.2.3.4, for=10.0.0.7;host=\"outside.example\";proto=http"]
        );
        assert_eq!(all(&map, "x-forwarded-for"), ["1.2.3.4, 10.0.0.7"]);
        assert_eq!(all(&map, "x-real-ip"), ["1.2.3.4"]);
        assert_eq!(all(&map, "x-forwarded-host"), ["outside.example"]);
        assert_eq!(all(&map, "x-forwarded-port"), ["80"]);
    }

    #[test]
    fn trace_state_stays_within_its_bounds() {
        let members: Vec<String> = (0..60).map(|n| format!("vendor{n}=0123456789")).collect();
        let mut map = headers(&[("tracestate", &members.join(","))]);
        inject(&mut map, target(), &journey(false), None);
        let state = all(&map, "tracestate").remove(0);
        assert!(state.len() <= TRACESTATE_BYTES && state.split(',').count() <= TRACESTATE_MEMBERS);
        assert!(state.starts_with("casemate=") && state.contains("vendor0="));
    }

    #[test]
    fn a_program_sets_cookies_for_its_own_name_only_and_none_of_ours() {
        let own = |name: &str| name == "__Host-casemate";
        let pairs = [
            ("set-cookie", "a=b; Domain=box.example.com; Path=/"),
            ("set-cookie", "c=d; DOMAIN =.example.com;Secure"),
            ("set-cookie", "__Host-casemate=forged; Path=/; Secure"),
            ("set-cookie", " __Host-casemate =forged"),
            ("set-cookie", "e=domain=x"),
            ("alt-svc", "h2=\"evil.example:443\""),
            ("x-casemate-session", "x"),
            ("access-control-allow-origin", "*"),
            ("content-type", "text/html"),
        ];
        let mut map = headers(&pairs);
        release(&mut map, false, own);
        assert_eq!(
            all(&map, "set-cookie"),
            ["a=b; Path=/", "c=d;Secure", "e=domain=x"]
        );
        assert!(!map.contains_key("alt-svc") && !map.contains_key("x-casemate-session"));
        assert!(map.contains_key("access-control-allow-origin"));
        let mut map = headers(&pairs);
        release(&mut map, true, own);
        assert_eq!(map, headers(&[("content-type", "text/html")]));
    }

    #[test]
    fn trailers_say_nothing_of_framing_or_of_who_somebody_is() {
        let mut map = headers(&[
            ("grpc-status", "0"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("set-cookie", "a=b"),
            ("authorization", "x"),
            ("x-casemate-session", "x"),
            ("x-forwarded-for", "x"),
            ("host", "x"),
            ("x-checksum", "1"),
        ]);
        strip_trailers(&mut map);
        assert_eq!(map, headers(&[("grpc-status", "0"), ("x-checksum", "1")]));
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_changes_what_we_say(
            pairs in proptest::collection::vec(("(x-casemate-session|baggage|tracestate|forwarded|x-forwarded-for|connection|x-a)", "[ -~]{0,40}"), 0..8)
        ) {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let mut map = headers(&pairs);
            inject(&mut map, target(), &journey(false), None);
            let id = target().session.to_string();
            prop_assert_eq!(all(&map, "x-casemate-session"), vec![id.clone()]);
            let baggage = all(&map, "baggage").remove(0);
            let own = baggage.split(',').filter(|member| member.trim().to_ascii_lowercase().starts_with("casemate-session=")).count();
            prop_assert_eq!(own, 1);
            let suffix = format!("casemate-session={id}");
            prop_assert!(baggage.ends_with(&suffix));
            prop_assert_eq!(all(&map, "x-forwarded-for"), vec!["10.0.0.7".to_owned()]);
            prop_assert!(!map.contains_key("connection"));
        }
    }
}
