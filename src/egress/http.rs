//! HTTP/1.1 as a proxy speaks it: `CONNECT`, and requests with a whole URL (RFC 9110 section 9.3.6, RFC 9112 section 3.2).
//!
//! A request that goes on is written anew: its target's path, its target's `Host`, no header that is for this hop, and a
//! framing of our own. It goes over a connection of its own to the address that was judged. Redirects go back to whoever asked.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tracing::warn;

use super::gate::{REQUEST_PATIENCE, Turn, no_host, tunnel_to};
use super::inject::{Blotter, ask_plainly, is_plain, written};
use super::visit::{Shared, Visit};
use super::{Kind, Refusal, Warden, always};
use crate::model::egress::Scheme;
use crate::model::host::{Host, HostName};
use crate::policy::egress::Asked;

/// Most bytes of a head, and most headers.
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 128;

/// Headers for one hop (RFC 9110 section 7.6.1), and those that only a proxy reads.
const HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::EXPECT,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// In which a refusal names its rule.
const RULE: HeaderName = HeaderName::from_static("x-casemate-rule");

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Serves the requests of one connection, one after the other.
pub(super) async fn serve<W, S>(stream: S, shared: &Arc<Shared<W>>, turn: &Arc<Turn>)
where
    W: Warden,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let answered = |request| {
        let (shared, turn) = (Arc::clone(shared), Arc::clone(turn));
        async move { answer(&shared, &turn, request).await }
    };
    converse(stream, shared, None, answered).await;
}

/// Serves the requests that were within TLS to this host. `turn` is held as long as that lasts.
pub(super) async fn serve_opened<W, S>(
    stream: S,
    shared: &Arc<Shared<W>>,
    host: HostName,
    port: u16,
    turn: Arc<Turn>,
) where
    W: Warden,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let host = Host::Name(host);
    let answered = |request: Request<Incoming>| {
        let (shared, host) = (Arc::clone(shared), host.clone());
        async move {
            let asked = format!(
                "{} https://{host}{}",
                request.method(),
                request.uri().path()
            );
            let answered = opened(&shared, &host, port, request).await;
            answered.unwrap_or_else(|refusal| refused(&asked, &refusal))
        }
    };
    converse(stream, shared, Some((&host, port)), answered).await;
    drop(turn);
}

/// HTTP/1.1 with a sandbox; `within` says to which host, where that is known.
async fn converse<W, S, F>(
    stream: S,
    shared: &Arc<Shared<W>>,
    within: Option<(&Host, u16)>,
    answered: impl Fn(Request<Incoming>) -> F,
) where
    W: Warden,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let answered = answered(request);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_PATIENCE)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await
        && error.is_parse()
    {
        let (host, port) = within.map_or((None, 0), |(host, port)| (Some(host), port));
        shared.warden.denied(host, port, always::ONE_FRAMING);
    }
}

async fn answer<W: Warden>(
    shared: &Arc<Shared<W>>,
    turn: &Arc<Turn>,
    request: Request<Incoming>,
) -> Response<Body> {
    let asked = format!("{} {}", request.method(), shown(request.uri()));
    let answered = if request.method() == Method::CONNECT {
        connect(shared, turn, request).await
    } else {
        forward(shared, request).await
    };
    answered.unwrap_or_else(|refusal| refused(&asked, &refusal))
}

/// The target without what may be a secret in it.
fn shown(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit('@').next().unwrap_or_default();
    match uri.scheme_str() {
        Some(scheme) => format!("{scheme}://{host}{}", uri.path()),
        None => host.to_owned(),
    }
}

async fn connect<W: Warden>(
    shared: &Arc<Shared<W>>,
    turn: &Arc<Turn>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let target = request
        .uri()
        .authority()
        .map_or("", |authority| authority.as_str());
    let read = Host::parse_with_port(target.as_bytes(), None);
    let (host, port) = read.map_err(|why| shared.note(None, 0, no_host(&why)))?;
    check_host(request.headers(), &host, port).map_err(|no| shared.note(Some(&host), port, no))?;
    let way = tunnel_to(shared, &host, port).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    let (task, turn) = (Arc::clone(shared), Arc::clone(turn));
    shared.tasks.spawn(async move {
        // What was not upgraded is cut, which its visit records.
        if let Ok(client) = upgrade.await {
            way.carry(&task, host, port, TokioIo::new(client), turn)
                .await;
        }
    });
    Ok(Response::new(empty()))
}

async fn forward<W: Warden>(
    shared: &Arc<Shared<W>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let uri = request.uri();
    let Some(authority) = uri.authority() else {
        let reason = "this is a proxy: a request names its whole URL";
        return Err(shared.note(
            None,
            0,
            Refusal::new(Kind::Malformed, always::ONE_FRAMING, reason),
        ));
    };
    let is_tls = uri.scheme_str() == Some("https");
    let default = if is_tls { 443 } else { 80 };
    let read = Host::parse_with_port(authority.as_str().as_bytes(), Some(default));
    let (host, port) = read.map_err(|why| shared.note(None, 0, no_host(&why)))?;
    let noted = |refusal| shared.note(Some(&host), port, refusal);
    check_host(request.headers(), &host, port).map_err(noted)?;
    check_framing(request.headers()).map_err(noted)?;
    let asked = |scheme, port| Asked {
        host: &host,
        port,
        scheme,
        request: Some((request.method().as_str(), uri.path())),
    };
    // What gets something added goes over TLS, however it was asked for.
    let secure = match (is_tls, port) {
        (true, port) => Some(port),
        (false, 80) => Some(443),
        (false, _) => None,
    };
    let is_added_to = |port: &u16| {
        !shared
            .warden
            .injections(&asked(Scheme::Https, *port))
            .is_empty()
    };
    if let Some(port) = secure.filter(is_added_to) {
        return secured(shared, &host, port, request).await;
    }
    if is_tls || uri.scheme_str() != Some("http") {
        let reason = "only http is asked for with a whole URL, and https where a rule adds something to the request; CONNECT is for the rest";
        return Err(noted(Refusal::new(
            Kind::Malformed,
            always::ONE_FRAMING,
            reason,
        )));
    }
    let (visit, upstream) = shared.visit(&asked(Scheme::Http, port)).await?;
    let request = anew(request, &authority_of(&host, port, 80))?;
    exchange(shared, visit, upstream, request, Blotter::default()).await
}

/// A request within TLS that was opened: its target is its `Host`'s.
async fn opened<W: Warden>(
    shared: &Arc<Shared<W>>,
    host: &Host,
    port: u16,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let noted = |refusal| shared.note(Some(host), port, refusal);
    let is_of_origin = request.uri().authority().is_none() && request.uri().path().starts_with('/');
    if request.method() == Method::CONNECT || !is_of_origin {
        let reason = "within TLS a request names a path and nothing else";
        return Err(noted(Refusal::new(
            Kind::Malformed,
            always::ONE_FRAMING,
            reason,
        )));
    }
    if !request.headers().contains_key(header::HOST) {
        let reason = "the request has no Host";
        return Err(noted(Refusal::new(
            Kind::Denied,
            always::HOST_IS_THE_TARGET,
            reason,
        )));
    }
    check_host(request.headers(), host, port).map_err(noted)?;
    check_framing(request.headers()).map_err(noted)?;
    secured(shared, host, port, request).await
}

/// Sends a request over TLS to where its host's certificate was seen, with whatever rules add to it.
async fn secured<W: Warden>(
    shared: &Arc<Shared<W>>,
    host: &Host,
    port: u16,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let asked = Asked {
        host,
        port,
        scheme: Scheme::Https,
        request: Some((method.as_str(), &path)),
    };
    let (visit, upstream) = shared.visit(&asked).await?;
    let readied = async {
        let upstream = secure(shared, host, upstream).await?;
        let mut request = anew(request, &authority_of(host, port, 443))?;
        let blotter = add(shared, &asked, request.headers_mut()).await?;
        Ok((upstream, request, blotter))
    };
    let readied = tokio::select! {
        biased;
        () = shared.stop.cancelled() => Err(Refusal::new(Kind::Unreachable, "", "the session ends")),
        readied = readied => readied,
    };
    match readied {
        Ok((upstream, request, blotter)) => {
            exchange(shared, visit, upstream, request, blotter).await
        }
        Err(refusal) => {
            visit.end(Some(refusal.kind.code()));
            Err(refusal)
        }
    }
}

/// TLS to a host, whose certificate is for that very name.
async fn secure<W: Warden, S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Arc<Shared<W>>,
    host: &Host,
    upstream: S,
) -> Result<TlsStream<S>, Refusal> {
    let unverified = |why: &dyn std::fmt::Display| {
        Refusal::new(Kind::Unverified, "", format!("TLS to there: {why}"))
    };
    let settings = shared.warden.settings();
    let Some(opener) = shared.warden.opener() else {
        return Err(unverified(&"is not set up"));
    };
    let config = opener.verify(&settings.ca).await.map_err(|error| {
        warn!(path = %settings.ca.display(), %error, "cannot read the certificates that servers are verified by (egress.ca_file)");
        unverified(&"there are no certificates to verify it by; ask the operator")
    })?;
    let name = ServerName::try_from(host.to_string()).map_err(|error| unverified(&error))?;
    let handshake = TlsConnector::from(config).connect(name, upstream);
    match timeout(settings.connect_timeout, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(unverified(&error)),
        Err(_) => Err(Refusal::new(Kind::Late, "", "TLS to there takes too long")),
    }
}

/// Adds to a request what rules say; what is to be blotted out of its answer.
async fn add<W: Warden>(
    shared: &Arc<Shared<W>>,
    asked: &Asked<'_>,
    headers: &mut HeaderMap,
) -> Result<Blotter, Refusal> {
    let mut blotter = Blotter::default();
    for (rule, injection) in shared.warden.injections(asked) {
        let name = &injection.credential;
        let refused = |why: &str| {
            let rule = rule.to_string();
            Refusal::new(
                Kind::NoCredential,
                rule,
                format!("the credential {name} {why}"),
            )
        };
        let lent = shared.warden.lend(name).await;
        let value = lent.map_err(|why| refused(&why))?;
        let written = written(&injection.form, &value);
        let written = written.ok_or_else(|| refused("has bytes that no header may have"))?;
        let header = HeaderName::from_bytes(injection.header.as_bytes());
        let header = header.map_err(|_| refused("is for a header that cannot be one"))?;
        headers.insert(header, written);
        if injection.scrub {
            blotter.add(&injection.form, &value);
        }
    }
    if !blotter.is_idle() {
        ask_plainly(headers);
    }
    Ok(blotter)
}

/// As `Host` names it.
fn authority_of(host: &Host, port: u16, default: u16) -> String {
    if port == default {
        host.to_string()
    } else {
        format!("{host}:{port}")
    }
}

/// Sends a request over a connection, and gives back the answer, whose body comes as it comes.
async fn exchange<W, S>(
    shared: &Arc<Shared<W>>,
    visit: Visit<W>,
    upstream: S,
    request: Request<Incoming>,
    blotter: Blotter,
) -> Result<Response<Body>, Refusal>
where
    W: Warden,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broken = |_| Refusal::new(Kind::Unreachable, "", "the connection broke");
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(upstream))
        .await
        .map_err(broken)?;
    let (stop, idle) = (shared.stop.clone(), shared.warden.settings().idle_timeout);
    shared.tasks.spawn(async move {
        let failure = tokio::select! {
            biased;
            () = stop.cancelled() => Some("cut"),
            over = connection => over.is_err().then_some("broken"),
            () = visit.meter.idle(idle) => Some("idle"),
        };
        visit.end(failure);
    });
    let response = sender.send_request(request).await.map_err(broken)?;
    let (mut head, body) = response.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::new(
            Kind::Unreachable,
            "",
            "the answer switches protocols",
        ));
    }
    strip(&mut head.headers);
    head.version = Version::HTTP_11;
    head.extensions.clear();
    let body = without_trailers(body);
    if blotter.is_idle() {
        return Ok(Response::from_parts(head, body));
    }
    if !is_plain(&head.headers) {
        let reason = "the answer is compressed, so that nothing can be blotted out of it";
        return Err(Refusal::new(Kind::Unreachable, "", reason));
    }
    blotter.clean(&mut head.headers);
    Ok(Response::from_parts(head, blotted(body, blotter)))
}

/// A body without what is to be blotted out of it.
fn blotted(body: Body, blotter: Blotter) -> Body {
    let pieces = futures_util::stream::unfold(Some((body, blotter)), |state| async {
        let (mut body, mut blotter) = state?;
        Some(match body.frame().await {
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                let ready = blotter.push(&data);
                (Ok(Frame::data(ready)), Some((body, blotter)))
            }
            Some(Err(error)) => (Err(error), None),
            None => (Ok(Frame::data(blotter.rest())), None),
        })
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// The request as it goes on.
fn anew(request: Request<Incoming>, authority: &str) -> Result<Request<Incoming>, Refusal> {
    let written = rewritten(request, authority);
    written.ok_or_else(|| {
        let reason = "the request cannot be written";
        Refusal::new(Kind::Malformed, always::ONE_FRAMING, reason)
    })
}

fn rewritten(request: Request<Incoming>, authority: &str) -> Option<Request<Incoming>> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let path = if path.is_empty() { "/" } else { path };
    head.uri = path.parse().ok()?;
    head.version = Version::HTTP_11;
    strip(&mut head.headers);
    // hyper frames the body by its own size.
    head.headers.remove(header::CONTENT_LENGTH);
    if let Some(length) = body.size_hint().exact()
        && (length > 0 || has_body(&head.method))
    {
        head.headers
            .insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    head.headers
        .insert(header::HOST, HeaderValue::from_str(authority).ok()?);
    head.headers
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    head.extensions.clear();
    Some(Request::from_parts(head, body))
}

/// Whether a request of this method says how long its body is, even if it has none (RFC 9110 section 8.6).
fn has_body(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}

/// Takes away what is for this hop: the headers that are known to be, and those that `Connection` names.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Whoever names these wants to take away what is not this hop's.
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    for name in HOP.iter().chain([&PROXY_CONNECTION]).chain(&named) {
        headers.remove(name);
    }
}

/// Trailers could be taken for headers by whoever is next.
fn without_trailers(body: Incoming) -> Body {
    let data = body.map_frame(|frame| match frame.into_data() {
        Ok(data) => Frame::data(data),
        Err(_) => Frame::data(Bytes::new()),
    });
    data.boxed_unsync()
}

/// A request has one `Host`, or none, and it is its target's (RFC 9112 section 3.2.2).
fn check_host(headers: &HeaderMap, host: &Host, port: u16) -> Result<(), Refusal> {
    let mut said = headers.get_all(header::HOST).iter();
    let refused = |reason: &str| {
        Err(Refusal::new(
            Kind::Denied,
            always::HOST_IS_THE_TARGET,
            reason,
        ))
    };
    let Some(first) = said.next() else {
        return Ok(());
    };
    if said.next().is_some() {
        return refused("the request has more than one Host");
    }
    match Host::parse_with_port(first.as_bytes(), Some(port)) {
        Ok((said, said_port)) if said == *host && said_port == port => Ok(()),
        Ok(_) | Err(_) => refused("the request's Host is not that of its target"),
    }
}

/// Where two lengths are said, two readers could end a message at two places (RFC 9112 section 6.3).
fn check_framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
    let codings = headers.get_all(header::TRANSFER_ENCODING).iter().count();
    if lengths + codings > 1 {
        let reason = "the request says more than once how long it is";
        return Err(Refusal::new(Kind::Malformed, always::ONE_FRAMING, reason));
    }
    Ok(())
}

fn empty() -> Body {
    Full::new(Bytes::new())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A refusal in words that name its rule.
fn refused(asked: &str, refusal: &Refusal) -> Response<Body> {
    let status = match refusal.kind {
        Kind::Malformed => StatusCode::BAD_REQUEST,
        Kind::Denied => StatusCode::FORBIDDEN,
        Kind::TooMuch => StatusCode::TOO_MANY_REQUESTS,
        Kind::NoSuchHost | Kind::Unreachable | Kind::Unverified | Kind::NoCredential => {
            StatusCode::BAD_GATEWAY
        }
        Kind::Late => StatusCode::GATEWAY_TIMEOUT,
        Kind::Unrecorded => StatusCode::SERVICE_UNAVAILABLE,
    };
    let asked: String = asked
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect();
    let rule = if refusal.rule.is_empty() {
        String::new()
    } else {
        format!(" ({})", refusal.rule)
    };
    let mut text = format!("casemate: {asked}: {}{rule}\n", refusal.reason);
    if refusal.kind == Kind::Denied {
        text.push_str("Ask whoever made the session's template, or the operator, for a rule that allows it.\n");
    }
    let mut response = Response::new(
        Full::from(text)
            .map_err(|never| match never {})
            .boxed_unsync(),
    );
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    // So that whoever asked through a tunnel that is none asks anew.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if let Ok(rule) = HeaderValue::from_str(&refusal.rule)
        && !rule.is_empty()
    {
        headers.insert(RULE, rule);
    }
    response
}
