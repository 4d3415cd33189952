//! The door to ports in sessions: which requests are for one, who asks, what browsers may do, and what is said when there is no answer.
//!
//! The order is fixed: addressed -> plain in form -> who asks, and what is ours goes -> browsers -> allowed, recorded, awake -> what we say to
//! programs -> passed on. By host name a session's content has an origin of its own; by path it shares the API's, so that there no cookie is
//! taken or given, and browsers are told to treat it as of no origin at all.

pub(super) mod page;
mod who;

use std::time::Duration;

use futures_util::future::BoxFuture;
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version};
use http_body::Body;
use hyper::upgrade::OnUpgrade;
use tracing::info;

use self::page::Told;
pub(in crate::api) use self::who::LINK;
use self::who::Presented;
use super::browser;
use super::conversation::Conversation;
use super::e2b;
use super::error::Problem;
use super::handshake;
use super::intake::Intake;
use super::reply::Reply;
use super::server::Server;
use crate::app::{App, AppError, Authenticated, EndpointRefusal, Opens, PassKind};
use crate::base::id::{RequestId, SessionId};
use crate::endpoint::address;
use crate::endpoint::headers::{self, Journey};
use crate::endpoint::{Answered, Visit};
use crate::model::endpoint::{Target, Via};
use crate::model::web::{Authority, Origin};

/// What a page by path may do at most: it runs, and is of no origin (HTML, section 7.1.5; CSP 3, section 6.2.2).
const SANDBOX: HeaderValue = HeaderValue::from_static(
    "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts",
);

const SERVICE_WORKER: HeaderName = HeaderName::from_static("service-worker");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Whose port is meant, and how.
#[derive(Clone, Debug)]
pub(super) struct Place {
    target: Target,
    /// How long the beginning of the path is that names it; 0 where it is not named there.
    prefix: usize,
    /// Whether it is reached at the API's own origin: by path, or by E2B's headers.
    is_at_ours: bool,
    addressed: Authority,
    is_tls: bool,
}

/// The place that a request is for by its host name.
///
/// # Errors
/// When the name is one of the endpoints' domain, and of none.
pub(super) fn by_host(app: &App, head: &Parts, is_tls: bool) -> Result<Option<Place>, Problem> {
    let Some(domain) = &app.endpoints().domain else {
        return Ok(None);
    };
    let addressed = browser::addressed(head, is_tls)?;
    let target = address::by_host(&addressed, domain)
        .map_err(|no| Problem::new(StatusCode::NOT_FOUND, "no_such_endpoint", no.to_string()))?;
    Ok(target.map(|target| Place {
        target,
        prefix: 0,
        is_at_ours: false,
        addressed,
        is_tls,
    }))
}

/// The place that a request is for by its path.
pub(super) fn by_path(head: &Parts, is_tls: bool) -> Option<Place> {
    let (target, prefix) = address::by_path(head.uri.path())?;
    let addressed = browser::addressed(head, is_tls).ok()?;
    Some(Place {
        target,
        prefix,
        is_at_ours: true,
        addressed,
        is_tls,
    })
}

/// The place that a request names in E2B's headers.
///
/// # Errors
/// When they name none.
pub(super) fn by_headers(head: &mut Parts, is_tls: bool) -> Result<Option<Place>, Problem> {
    let Some(target) = e2b::by_headers(&mut head.headers)? else {
        return Ok(None);
    };
    Ok(Some(Place {
        target,
        prefix: 0,
        is_at_ours: true,
        addressed: browser::addressed(head, is_tls)?,
        is_tls,
    }))
}

/// A request as it came.
pub(super) struct Arrived {
    pub(super) head: Parts,
    pub(super) intake: Intake,
    pub(super) on: OnUpgrade,
}

/// A request for a port.
pub(super) struct Visitor {
    pub(super) place: Place,
    pub(super) arrived: Arrived,
    /// For how long the address has nothing left.
    pub(super) crowded: Option<Duration>,
}

impl Place {
    /// The session where it is what is inside that is meant, as E2B's clients do.
    pub(super) fn inside(&self) -> Option<SessionId> {
        (self.target.port == e2b::envd::PORT).then_some(self.target.session)
    }

    /// Whether a page is this endpoint's own.
    fn is_own(&self, origin: &HeaderValue, is_secure: bool) -> bool {
        let origin = origin
            .to_str()
            .ok()
            .and_then(|text| text.parse::<Origin>().ok());
        origin.is_some_and(|origin| origin.is_of(&self.addressed, is_secure))
    }
}

impl Server {
    /// Answers a request for a port.
    pub(super) async fn visit(
        &self,
        conversation: &Conversation,
        request_id: RequestId,
        visitor: Visitor,
    ) -> Reply {
        let asked = visitor.arrived.head.headers.clone();
        match self.pass_on(conversation, visitor).await {
            Ok(reply) => reply,
            Err(told) => {
                info!(request = %request_id, code = told.code(), "refused a request for a port");
                told.into_reply(request_id, &asked)
            }
        }
    }

    async fn pass_on(&self, conversation: &Conversation, visitor: Visitor) -> Result<Reply, Told> {
        let Visitor {
            place,
            arrived:
                Arrived {
                    mut head,
                    intake,
                    on,
                },
            crowded,
        } = visitor;
        let target = place.target;
        let plain = |problem| Told::new(problem, Some(target));
        check_form(&head, &place).map_err(plain)?;
        let peer = conversation.ends.peer;
        let is_trusted = self.is_trusted(conversation);
        let is_secure = headers::came_by_tls(&head.headers, place.is_tls, is_trusted);
        let is_upgrade = asks_for_socket(&head) && intake.is_end_stream();
        let (link, query) = who::take_link(head.uri.query()).map_err(plain)?;
        let mut presented = who::take_from_headers(&mut head.headers, is_secure).map_err(plain)?;
        presented.link.clone_from(&link);
        if place.is_at_ours {
            presented.cookie = None;
            head.headers.remove(header::COOKIE);
        }
        let (asked, via) = self
            .admit(conversation, crowded, presented, &mut head.headers, target)
            .await?;
        if via == Via::Public && place.is_at_ours {
            return Err(plain(Problem::unauthenticated()));
        }
        if via == Via::Cookie {
            check_page(&head, &place, is_upgrade, is_secure).map_err(plain)?;
        }
        if via == Via::Link
            && let Some(link) = link
            && !place.is_at_ours
            && head.method == Method::GET
            && page::wants_page(&head.headers)
            && let Some(reply) = self.exchange(&link, &place, &head, query.as_deref(), is_secure)
        {
            return Ok(reply);
        }
        let principal = asked.as_ref().map(|asked| &asked.principal);
        let told = |error| Told::of(error, target);
        let opened = self
            .app
            .open_endpoint(principal, target, via)
            .await
            .map_err(told)?;
        let journey = journey(&place, &head, peer, is_trusted);
        let host = if place.is_at_ours {
            format!("localhost:{}", target.port)
        } else {
            journey.host.clone()
        };
        let is_http2 = speaks_grpc(&head);
        headers::inject(&mut head.headers, target, &journey, opened.headers.as_ref());
        let mut request = Request::new(intake);
        *request.method_mut() = head.method;
        *request.uri_mut() =
            rest(head.uri.path(), place.prefix, query.as_deref()).map_err(plain)?;
        *request.headers_mut() = head.headers;
        let visit = Visit {
            target,
            ticket: opened.ticket(),
            guest: opened.guest,
            over: self.over(asked),
            is_upgrade,
            is_http2,
            is_by_path: place.is_at_ours,
            own_cookie: who::is_own_cookie,
        };
        let passed = self.app.pool().forward(visit, request, &host).await;
        let way = |refusal| told(AppError::Endpoint(EndpointRefusal::Way(refusal)));
        let Answered { response, tunnel } = passed.map_err(way)?;
        let mut reply = Reply::passed(response);
        dress(reply.headers_mut(), &place, via);
        if let Some(tunnel) = tunnel {
            let stop = conversation.stop.clone();
            reply.upgraded = Some(Box::pin(tunnel.carry(on, stop)));
        }
        Ok(reply)
    }

    /// Whether a client came by TLS, to us or to a proxy that is trusted.
    pub(super) fn is_secure(&self, conversation: &Conversation, headers: &HeaderMap) -> bool {
        let is_trusted = self.is_trusted(conversation);
        headers::came_by_tls(headers, conversation.ends.is_tls, is_trusted)
    }

    fn is_trusted(&self, conversation: &Conversation) -> bool {
        let trusted = &self.app.endpoints().trusted_proxies;
        // A socket of both kinds says IPv4 as IPv6.
        let peer = conversation.ends.peer.map(|peer| peer.to_canonical());
        peer.is_some_and(|peer| trusted.iter().any(|network| network.contains(peer)))
    }

    /// Ready when whoever asked may not any more. Whoever comes to a public port may for ever.
    fn over(&self, asked: Option<Authenticated>) -> BoxFuture<'static, ()> {
        match asked {
            None => Box::pin(std::future::pending()),
            Some(asked) => {
                let app = self.app.clone();
                Box::pin(async move { app.outlives(&asked.validity).await })
            }
        }
    }

    /// Who asks, and by what. Nobody, where nothing of ours was presented: then the port must be public.
    async fn admit(
        &self,
        conversation: &Conversation,
        crowded: Option<Duration>,
        presented: Presented,
        headers: &mut HeaderMap,
        target: Target,
    ) -> Result<(Option<Authenticated>, Via), Told> {
        let app = &self.app;
        let peer = conversation.ends.peer;
        let told = |problem| Told::new(problem, Some(target));
        let Presented {
            key,
            link,
            cookie,
            bearer,
            access,
        } = presented;
        let is_sole = key.is_none() && link.is_none() && cookie.is_none() && access.is_none();
        if !is_sole
            && let Some(bearer) = &bearer
            && app.authenticate(bearer).await.is_ok()
        {
            // Ours as well, and none of the program's business.
            headers.remove(header::AUTHORIZATION);
        }
        let (asked, via) = if let Some(key) = &key {
            (
                self.vouch(peer, crowded, app.authenticate(key)).await,
                Via::Credential,
            )
        } else if let Some(access) = &access {
            let known = app.by_access_token(access, Opens::Ports);
            if let Err(gone @ AppError::Session(_)) = known {
                return Err(Told::of(gone, target));
            }
            let known = self.vouch(peer, crowded, async { known });
            (known.await, Via::Credential)
        } else if let Some(link) = &link {
            let looked_up = app.by_pass(PassKind::Link, link, target);
            (self.vouch(peer, crowded, looked_up).await, Via::Link)
        } else if let Some(cookie) = &cookie {
            let looked_up = app.by_pass(PassKind::Cookie, cookie, target);
            (self.vouch(peer, crowded, looked_up).await, Via::Cookie)
        } else if let Some(bearer) = &bearer
            && let Ok(asked) = app.authenticate(bearer).await
        {
            headers.remove(header::AUTHORIZATION);
            (Ok(asked), Via::Credential)
        } else {
            if let Some(wait) = crowded {
                return Err(told(self.crowded(peer, wait)));
            }
            return Ok((None, Via::Public));
        };
        let asked = asked.map_err(told)?;
        conversation.know();
        self.admit_principal(&asked).map_err(told)?;
        Ok((Some(asked), via))
    }

    /// The cookie for a link, and the way to where it leads.
    fn exchange(
        &self,
        link: &str,
        place: &Place,
        head: &Parts,
        query: Option<&str>,
        is_secure: bool,
    ) -> Option<Reply> {
        let (cookie, life) = self.app.cookie_for(link)?;
        let scheme = if is_secure { "https" } else { "http" };
        let host = host_text(place);
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        // With scheme and host: what begins with two slashes would lead to somebody else.
        let to = format!("{scheme}://{host}{}{query}", head.uri.path());
        let to = HeaderValue::from_str(&to).ok()?;
        let cookie = who::set_cookie(is_secure, &cookie, life.as_secs())?;
        let reply = Reply::empty(StatusCode::SEE_OTHER).with(header::LOCATION, to);
        Some(reply.with(header::SET_COOKIE, cookie))
    }
}

/// What no request for a port may be.
fn check_form(head: &Parts, place: &Place) -> Result<(), Problem> {
    if head.version < Version::HTTP_2 && head.uri.authority().is_some() {
        return Err(Problem::bad_request(
            "say the path alone in the first line (RFC 9112 section 3.2.1)",
        ));
    }
    if [Method::CONNECT, Method::TRACE].contains(&head.method) {
        return Err(Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "CONNECT and TRACE are not passed on",
        ));
    }
    if place.is_at_ours && head.headers.contains_key(SERVICE_WORKER) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "no_service_worker",
            "a service worker would be one of the API's; use the endpoint's host name",
        ));
    }
    Ok(())
}

/// What a page may do with a cookie of ours (CSRF): its own, everything; others lead people here, and nothing else.
fn check_page(
    head: &Parts,
    place: &Place,
    is_upgrade: bool,
    is_secure: bool,
) -> Result<(), Problem> {
    let refused = || {
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "origin_not_allowed",
            "a page of another site may not do this with somebody's cookie",
        ))
    };
    let mut origins = head.headers.get_all(header::ORIGIN).iter();
    let is_safe =
        [Method::GET, Method::HEAD, Method::OPTIONS].contains(&head.method) && !is_upgrade;
    match (origins.next(), origins.next()) {
        (Some(origin), None) if place.is_own(origin, is_secure) => return Ok(()),
        (Some(_), _) => return refused(),
        (None, _) if !is_safe => return refused(),
        (None, _) => {}
    }
    let said = |name: &str| head.headers.get(name).map(HeaderValue::as_bytes);
    let goes_here = head.method == Method::GET
        && said("sec-fetch-mode") == Some(b"navigate")
        && said("sec-fetch-dest") == Some(b"document");
    match said("sec-fetch-site") {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) if goes_here => Ok(()),
        Some(_) => refused(),
    }
}

fn asks_for_socket(head: &Parts) -> bool {
    head.version == Version::HTTP_11
        && head.method == Method::GET
        && handshake::has_word(&head.headers, &header::CONNECTION, "upgrade")
        && handshake::has_word(&head.headers, &header::UPGRADE, "websocket")
}

/// gRPC, which is HTTP/2 on both sides. Other HTTP/2 is passed on as HTTP/1.1, which every program speaks.
fn speaks_grpc(head: &Parts) -> bool {
    let content = head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let rest = content.and_then(|content| content.strip_prefix("application/grpc"));
    head.version == Version::HTTP_2
        && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

/// The name that was addressed, as it was written.
fn host_text(place: &Place) -> String {
    let port = place
        .addressed
        .port
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    match &place.addressed.host {
        crate::model::web::Host::Name(name) => format!("{name}{port}"),
        crate::model::web::Host::Address(address) if address.is_ipv6() => {
            format!("[{address}]{port}")
        }
        crate::model::web::Host::Address(address) => format!("{address}{port}"),
    }
}

fn journey(
    place: &Place,
    head: &Parts,
    peer: Option<std::net::IpAddr>,
    is_trusted: bool,
) -> Journey {
    Journey {
        peer,
        is_trusted,
        is_tls: place.is_tls,
        host: host_text(place),
        prefix: head
            .uri
            .path()
            .get(..place.prefix)
            .unwrap_or_default()
            .to_owned(),
    }
}

/// What the program sees of the target.
fn rest(path: &str, prefix: usize, query: Option<&str>) -> Result<http::Uri, Problem> {
    let path = path.get(prefix..).unwrap_or_default();
    let path = if path.is_empty() { "/" } else { path };
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let target = http::uri::PathAndQuery::try_from(format!("{path}{query}"));
    target
        .map(http::Uri::from)
        .map_err(|_| Problem::bad_request("the path is none"))
}

/// What browsers are told of a program's answer.
fn dress(headers: &mut HeaderMap, place: &Place, via: Via) {
    if place.is_at_ours {
        // One more policy: both hold.
        headers.append(header::CONTENT_SECURITY_POLICY, SANDBOX);
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    } else if via == Via::Cookie && !headers.contains_key(RESOURCE_POLICY) {
        headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    }
}
