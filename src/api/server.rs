//! Accepts connections, reads requests, finds the route, lets its handler answer.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::body;
use super::browser::{self, Browsers, Site};
use super::conversation::{Conversation, Ends};
use super::e2b::envd::watchers::Watchers;
use super::e2b::{self, error::Dialect};
use super::endpoint::{self, Arrived, Place, Visitor};
use super::error::{Problem, RATE_LIMITED};
use super::handshake::{self, Handshake};
use super::intake::{BodyReader, Intake};
use super::limit::Limits;
use super::line::{Cut, Line};
use super::reply::ReplyBody;
use super::route::{Access, Answer, Call, Once, Reply, Request as Taken, Route};
use super::routes::ROUTES;
use super::tls::{self, Greeted, Shown, Tls};
use super::who::presents;
use crate::app::{App, Authenticated};
use crate::base::id::{RequestId, SessionId};
use crate::host::accept::{Bounds, accept};
use crate::model::event::DoorLimit;
use crate::model::settings::HttpLimits;

/// Longest head of a request: 32 KiB hold every sensible header and the largest token.
pub(super) const MAX_HEAD_BYTES: usize = 32 * 1024;

/// What is read of a connection at once: of a large body as much as goes into a sandbox at once.
const MAX_READ_BYTES: usize = 256 * 1024;

/// Most headers of a request.
const MAX_HEADERS: usize = 100;

/// Most requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;

/// What an HTTP/2 connection begins with (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is read of a connection before it is given to hyper: the first request, as a rule.
const FIRST_BYTES: usize = 4096;

/// How the door is set up.
#[derive(Clone)]
pub struct ServerConfig {
    /// Longest body that is held in memory.
    pub max_body_bytes: u64,
    /// Connections at one time.
    pub max_connections: usize,
    /// How long a client may take to send a request's head.
    pub header_timeout: Duration,
    /// The certificate; `None`: HTTP in the clear.
    pub tls: Option<Arc<Tls>>,
    /// Its names, and the pages that may call.
    pub browsers: Browsers,
    /// How much may be asked.
    pub limits: HttpLimits,
}

/// The HTTP door.
pub struct Server {
    pub(super) app: App,
    config: ServerConfig,
    pub(super) limits: Limits,
    /// Places of handshakes of TLS: half of those of connections, as whoever is slow with them holds a connection's too.
    handshakes: Semaphore,
    pub(super) table: Table,
    /// What E2B's clients find in every sandbox.
    pub(super) sandboxes: Table,
    /// Their watchers of files there.
    watchers: Arc<Watchers>,
}

/// What is known of how a request is to be answered, also when it fails.
#[derive(Default)]
pub(super) struct Answering {
    /// The page that asks.
    pub(super) site: Site,
    /// In whose words.
    pub(super) dialect: Dialect,
    /// The sandbox that an E2B client means.
    pub(super) session: Option<SessionId>,
    /// For how long the address has nothing left.
    pub(super) crowded: Option<Duration>,
    /// What was asked, where the words depend on it.
    headers: HeaderMap,
}

/// What the log says in place of a path that leads nowhere.
const NO_ROUTE: &str = "none of the API's";

/// The path of routes that share it.
fn route_path(routes: &[Route]) -> &'static str {
    routes.first().map_or(NO_ROUTE, |route| route.path)
}

/// Paths to the routes that share them.
type Table = matchit::Router<Vec<Route>>;

/// The table cannot be built: two routes contradict each other.
#[derive(Debug, thiserror::Error)]
#[error("the routes contradict each other")]
pub struct BadRoutes(#[source] matchit::InsertError);

impl Server {
    /// A door to this app.
    ///
    /// # Errors
    /// When the table of routes is broken, which a test would have found.
    pub fn new(app: App, config: ServerConfig) -> Result<Self, BadRoutes> {
        let routes = [&ROUTES[..], e2b::ROUTES].concat();
        Self::with_routes(app, config, &routes)
    }

    /// The same with a table of its own, for tests and measurements.
    ///
    /// # Errors
    /// When two routes contradict each other.
    pub fn with_routes(
        app: App,
        config: ServerConfig,
        routes: &[Route],
    ) -> Result<Self, BadRoutes> {
        let limits = Limits::new(&config.limits);
        let handshakes = Semaphore::new((config.max_connections / 2).max(1));
        Ok(Self {
            app,
            config,
            limits,
            handshakes,
            table: table_of(routes)?,
            sandboxes: table_of(e2b::envd::ROUTES)?,
            watchers: Arc::default(),
        })
    }

    /// Serves until `stop` is cancelled; then finishes what is in flight, for at most `grace`.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken, grace: Duration) {
        let this = Arc::new(self);
        let bounds = Bounds {
            connections: this.config.max_connections,
            grace,
        };
        accept("http", listener, bounds, stop.clone(), move |stream| {
            Arc::clone(&this).converse(stream, stop.clone())
        })
        .await;
    }

    /// What becomes of a connection. Its place among those of its address is taken at once, not when its task comes to run: who comes first has it.
    fn converse(
        self: Arc<Self>,
        stream: TcpStream,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send {
        let ends = Ends {
            peer: stream.peer_addr().ok().map(|address| address.ip()),
            local: stream.local_addr().ok().map(|address| address.ip()),
            is_tls: self.config.tls.is_some(),
            shown: None,
        };
        // Before anything is read: whoever has too many costs no more than this.
        let place = self.limits.connect(ends.peer);
        if place.is_none() {
            self.app.crowded(ends.peer, DoorLimit::Connections);
            if self.limits.is_time_to_tell() {
                info!(peer = ?ends.peer, "refused connections of an address that has too many");
            }
        }
        async move {
            let Some(_place) = place else { return };
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "cannot set TCP_NODELAY");
            }
            self.hear_out(stream, ends, stop).await;
        }
    }

    async fn hear_out(self: Arc<Self>, stream: TcpStream, ends: Ends, stop: CancellationToken) {
        let begun = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            begun = tokio::time::timeout(self.config.header_timeout, self.begin(stream)) => begun,
        };
        match begun {
            Ok(Ok(Begun::Plain(stream, seen))) => self.talk_to(stream, seen, ends, stop).await,
            Ok(Ok(Begun::Tls(stream, shown, seen))) => {
                self.talk_to(*stream, seen, Ends { shown, ..ends }, stop)
                    .await;
            }
            Ok(Ok(Begun::Refused)) => {}
            Ok(Err(error)) => debug!(%error, "a connection came to nothing"),
            Err(_) => debug!("a client was too slow to begin"),
        }
    }

    /// The handshake, and the first that is said after it.
    async fn begin(&self, mut stream: TcpStream) -> std::io::Result<Begun> {
        let Some(tls) = &self.config.tls else {
            let seen = first_bytes(&mut stream).await?;
            return Ok(Begun::Plain(stream, seen));
        };
        let place = self.handshakes.acquire().await;
        let place = place.map_err(std::io::Error::other)?;
        match tls::greet(tls, stream).await? {
            Greeted::Tls(mut stream, shown) => {
                drop(place);
                let seen = first_bytes(&mut stream).await?;
                Ok(Begun::Tls(stream, shown, seen))
            }
            Greeted::Refused => Ok(Begun::Refused),
        }
    }

    /// Serves a connection of nobody in particular.
    #[cfg(test)]
    pub(super) async fn talk(self: Arc<Self>, stream: impl Cut, stop: CancellationToken) {
        self.talk_to(stream, Bytes::new(), Ends::default(), stop)
            .await;
    }

    /// Serves one connection, and the socket that it may become, to the end.
    async fn talk_to(
        self: Arc<Self>,
        stream: impl Cut,
        seen: Bytes,
        ends: Ends,
        stop: CancellationToken,
    ) {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.config.header_timeout)
            .max_buf_size(MAX_READ_BYTES)
            .max_headers(MAX_HEADERS);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(Some(Duration::from_secs(30)));
        let conversation = Arc::new(Conversation::between(ends, stop.clone()));
        let service = {
            let conversation = Arc::clone(&conversation);
            service_fn(move |request| {
                let (this, conversation) = (Arc::clone(&self), Arc::clone(&conversation));
                async move { Ok::<_, Infallible>(this.answer(&conversation, request).await) }
            })
        };
        let line = Line::new(stream, Arc::clone(&conversation.parting)).after(seen);
        let outcome = {
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(line), service);
            let mut connection = std::pin::pin!(connection);
            let talked = async {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = conversation.forgotten() => {}
                    outcome = connection.as_mut() => return outcome,
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            };
            tokio::select! {
                biased;
                outcome = talked => outcome.map_err(|error| error.to_string()),
                () = conversation.stalled() => {
                    conversation.parting.break_off();
                    Err("the client took nothing of an answer for too long".to_owned())
                }
            }
        };
        if let Err(error) = outcome {
            debug!(error, "a connection ended badly");
        }
        // The connection is gone by now, or somebody else's: an upgrade is complete, or will never be.
        let upgraded = locked(&conversation.upgraded).take();
        if let Some(upgraded) = upgraded {
            upgraded.await;
        }
    }

    async fn answer(
        &self,
        conversation: &Conversation,
        request: Request<Incoming>,
    ) -> Response<ReplyBody> {
        *locked(&conversation.last) = Some(Instant::now());
        let Ok(request_id) = RequestId::generate(self.app.now()) else {
            return Reply::empty(StatusCode::SERVICE_UNAVAILABLE).response;
        };
        let echoed = request
            .headers()
            .get("x-request-id")
            .filter(|value| is_request_id(value))
            .cloned();
        let (method, version) = (request.method().clone(), request.version());
        // Of a path only the route's: clients put keys into the rest, and it is in the log for longer than they last.
        let route = self.table.at(request.uri().path());
        let path = route.map_or(NO_ROUTE, |found| route_path(found.value));
        let mut answering = Answering::default();
        let answered =
            AssertUnwindSafe(self.dispatch(conversation, request_id, request, &mut answering))
                .catch_unwind()
                .await;
        let in_words = |problem: Problem| {
            let Answering {
                dialect, session, ..
            } = answering;
            e2b::error::answer(problem, request_id, dialect, session, &answering.headers)
        };
        let mut reply = match answered {
            Ok(Ok(reply)) => reply,
            Ok(Err(problem)) => {
                // A flood is not one in the log.
                if problem.code() != RATE_LIMITED || self.limits.is_time_to_tell() {
                    info!(request = %request_id, %method, path, code = problem.code(), "refused a request");
                }
                in_words(problem)
            }
            Err(_) => {
                error!(request = %request_id, %method, path, "a handler panicked");
                in_words(Problem::internal("a handler panicked"))
            }
        };
        let ours = HeaderValue::from_str(&request_id.to_string()).ok();
        let is_passed = reply.is_passed();
        let headers = reply.headers_mut();
        if let Some(value) = echoed.or(ours) {
            headers.insert("x-request-id", value);
        }
        if is_passed {
            browser::let_listed(headers, &answering.site);
        } else {
            browser::dress(headers, &answering.site, conversation.ends.is_tls);
            if method == Method::HEAD {
                reply = reply.without_body();
            }
        }
        if let Some(upgraded) = reply.upgraded.take() {
            *locked(&conversation.upgraded) = Some(upgraded);
        }
        conversation.bind(request_id, version, &mut reply);
        reply.response
    }

    async fn dispatch(
        &self,
        conversation: &Conversation,
        request_id: RequestId,
        mut request: Request<Incoming>,
        answering: &mut Answering,
    ) -> Result<Reply, Problem> {
        let on = hyper::upgrade::on(&mut request);
        let (mut head, incoming) = request.into_parts();
        if head_bytes(&head) > MAX_HEAD_BYTES {
            return Err(head_too_large());
        }
        // From here on somebody knows what was left unread.
        let intake = Intake::new(incoming, Arc::clone(&conversation.parting));
        let Ends {
            peer,
            local,
            is_tls,
            ..
        } = conversation.ends;
        let crowded = self.limits.request(peer);
        answering.crowded = crowded;
        let is_nobody = !presents(&head.headers) && conversation.ends.shown.is_none();
        if let Some(wait) = crowded.filter(|_| is_nobody) {
            return Err(self.crowded(peer, wait));
        }
        let mut place = endpoint::by_host(&self.app, &head, is_tls)?;
        if place.is_none() {
            answering.site = self.config.browsers.judge(&head, local, is_tls)?;
            place = match endpoint::by_path(&head, is_tls) {
                Some(place) => Some(place),
                None => endpoint::by_headers(&mut head, is_tls)?,
            };
        }
        let inside = place.as_ref().and_then(Place::inside);
        // Older clients of E2B's name a sandbox to control routes too.
        let is_control = inside.is_some() && self.is_control(head.uri.path());
        if is_control {
            place = None;
        }
        let says_itself = place.is_none() && !is_control && self.says_which_sandbox(&head);
        if (inside.is_some() && !is_control) || says_itself {
            answering.headers.clone_from(&head.headers);
            let arrived = Arrived { head, intake, on };
            return self
                .inside(conversation, request_id, inside, arrived, answering)
                .await;
        }
        let site = &answering.site;
        if let Some(place) = place {
            if browser::is_preflight(&head, site) {
                return Ok(browser::preflight_to_programs(&head));
            }
            let visitor = Visitor {
                place,
                arrived: Arrived { head, intake, on },
                crowded,
            };
            return Ok(self.visit(conversation, request_id, visitor).await);
        }
        let found = self.table.at(head.uri.path());
        let found = found.map_err(|_| no_such_route())?;
        if browser::is_preflight(&head, site) {
            return Ok(browser::preflight(&head, found.value));
        }
        let route = found
            .value
            .iter()
            .find(|route| route.takes(&head.method))
            .ok_or_else(|| method_not_allowed(found.value))?;
        answering.dialect = route.dialect;
        let asked = match route.access {
            Access::Open => match crowded {
                Some(wait) => return Err(self.crowded(peer, wait)),
                None => None,
            },
            Access::Key | Access::Sandbox => {
                let asked = self
                    .authenticate(&conversation.ends, &head.headers, site, crowded)
                    .await?;
                conversation.know();
                self.admit_principal(&asked)?;
                Some(asked)
            }
        };
        let path = found
            .params
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let arrived = Arrived { head, intake, on };
        self.call(conversation, request_id, route, path, arrived, asked)
            .await
    }

    /// Calls a route's handler for whoever asks.
    pub(super) async fn call(
        &self,
        conversation: &Conversation,
        request_id: RequestId,
        route: &Route,
        path: BTreeMap<String, String>,
        arrived: Arrived,
        asked: Option<Authenticated>,
    ) -> Result<Reply, Problem> {
        let Arrived { head, intake, on } = arrived;
        let (principal, validity) = asked.map_or_else(Default::default, |asked| {
            (Some(asked.principal), asked.validity)
        });
        let mut once = Once::default();
        if let Answer::WebSocket(protocol) = route.answer {
            once.handshake = Some(Handshake {
                agreed: handshake::check(head.version, &head.headers, protocol)?,
                on,
                parting: Arc::clone(&conversation.parting),
            });
        }
        // Read only now: a stranger's body is not.
        let body = match route.request {
            Taken::Bytes { max_bytes, .. } => {
                once.reader = Some(BodyReader::new(intake, max_bytes)?);
                Bytes::new()
            }
            Taken::None | Taken::Json(_) => body::read(intake, self.config.max_body_bytes).await?,
        };
        let call = Call {
            app: self.app.clone(),
            request_id,
            principal,
            validity,
            path,
            query: head.uri.query().unwrap_or("").to_owned(),
            authority: head.uri.authority().map(ToString::to_string),
            is_tls: self.is_secure(conversation, &head.headers),
            headers: head.headers,
            is_head: head.method == Method::HEAD,
            body,
            watchers: Arc::clone(&self.watchers),
            stop: conversation.stop.clone(),
            once: Mutex::new(once),
        };
        let over = self.app.outlives(&call.validity);
        let mut reply = tokio::select! {
            biased;
            () = over => return Err(Problem::unauthenticated()),
            reply = (route.handler)(&call) => reply?,
        };
        if reply.response.body().is_streamed() && call.principal.is_some() {
            let (app, validity) = (call.app, call.validity);
            let over = async move { app.outlives(&validity).await };
            reply.response.body_mut().until(over);
        }
        Ok(reply)
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a connection began, and what was read of it.
enum Begun {
    Plain(TcpStream, Bytes),
    Tls(Box<tls::Stream>, Option<Shown>, Bytes),
    /// It speaks something else.
    Refused,
}

/// Waits for enough of a connection to tell HTTP/1 from HTTP/2. Until then hyper keeps no time, and a
/// stranger who says nothing would have the place for ever.
async fn first_bytes(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Bytes> {
    let mut seen = BytesMut::with_capacity(FIRST_BYTES);
    loop {
        let read = stream.read_buf(&mut seen).await?;
        if read == 0 || seen.len() >= HTTP2_PREFACE.len() || !HTTP2_PREFACE.starts_with(&seen) {
            return Ok(seen.freeze());
        }
    }
}

/// Routes by their paths.
fn table_of(routes: &[Route]) -> Result<Table, BadRoutes> {
    let mut by_path: BTreeMap<&'static str, Vec<Route>> = BTreeMap::new();
    for route in routes {
        by_path.entry(route.path).or_default().push(route.clone());
    }
    let mut table = Table::new();
    for (path, routes) in by_path {
        table.insert(path, routes).map_err(BadRoutes)?;
    }
    Ok(table)
}

pub(super) fn no_such_route() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no_such_route",
        "there is nothing at this path; /openapi.json lists what there is",
    )
}

pub(super) fn method_not_allowed(routes: &[Route]) -> Problem {
    let mut allowed: Vec<&str> = routes.iter().map(|route| route.method.as_str()).collect();
    if routes.iter().any(Route::has_head) {
        allowed.push(Method::HEAD.as_str());
    }
    let problem = Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("this path takes {}", allowed.join(", ")),
    );
    match HeaderValue::from_str(&allowed.join(", ")) {
        Ok(value) => problem.header(header::ALLOW, value),
        Err(_) => problem,
    }
}

/// The length of a head, without what HTTP puts around its parts.
fn head_bytes(head: &http::request::Parts) -> usize {
    let headers = head.headers.iter();
    let headers: usize = headers
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    let target = head.uri.path_and_query();
    headers + target.map_or(0, |target| target.as_str().len())
}

fn head_too_large() -> Problem {
    Problem::new(
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        "head_too_large",
        format!("the request's head has more than {MAX_HEAD_BYTES} bytes"),
    )
}

fn is_request_id(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    (1..=128).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_a_known_method() {
        let known = [
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ];
        for route in ROUTES.iter() {
            assert!(known.contains(&route.method), "{}", route.name);
        }
    }
}
