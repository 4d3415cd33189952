//! What a route is, what a handler gets, and what it gives back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use tokio_util::sync::CancellationToken;

use super::e2b::envd::watchers::Watchers;
pub use super::e2b::error::Dialect;
use super::error::Problem;
use super::handshake::Handshake;
use super::intake::BodyReader;
pub use super::reply::Reply;
use crate::app::{App, Validity};
use crate::base::id::RequestId;
use crate::model::principal::Principal;

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody: it tells nothing that a stranger may not know.
    Open,
    /// Whoever presents a valid key.
    Key,
    /// Whoever presents the access token of the session that is addressed, a key of its team, or an address that was signed with that token.
    Sandbox,
}

/// Makes the JSON schema of a type.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// The schema of `T`, by name.
pub fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Any error, where only the log learns what it was.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a route takes, and how it is read.
#[derive(Clone, Copy)]
pub enum Request {
    /// Nothing that it looks at.
    None,
    /// JSON, whole and bounded: [`Call::body`].
    Json(SchemaOf),
    /// Bytes, as they come: [`Call::reader`].
    Bytes {
        /// What the document calls them; a client may send another `Content-Type`.
        content_type: &'static str,
        /// Most of them, where the route has a bound of its own.
        max_bytes: Option<u64>,
    },
}

impl Request {
    /// Bytes of this content type, as many as the client likes.
    #[must_use]
    pub const fn bytes(content_type: &'static str) -> Self {
        Self::Bytes {
            content_type,
            max_bytes: None,
        }
    }
}

/// What a route answers with.
#[derive(Clone, Copy)]
pub enum Answer {
    /// No body.
    Empty,
    /// JSON.
    Json(SchemaOf),
    /// Bytes of one of these content types.
    Bytes(&'static [&'static str]),
    /// Server-sent events, each with data of this schema.
    Events(SchemaOf),
    /// The connection becomes a WebSocket, with this sub-protocol where there is one. The handshake is
    /// checked before the handler is called; [`Reply::upgrade`] completes it.
    WebSocket(Option<&'static str>),
}

/// A query parameter or a header that a route reads, for the document.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
}

/// A parameter of this name, that does this.
#[must_use]
pub const fn parameter(name: &'static str, about: &'static str) -> Parameter {
    Parameter { name, about }
}

/// One line of the table.
#[derive(Clone)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, with `{name}` for a segment.
    pub path: &'static str,
    /// The operation's name in the document.
    pub name: &'static str,
    /// One sentence for the document.
    pub about: &'static str,
    /// Who may call it.
    pub access: Access,
    /// What it takes.
    pub request: Request,
    /// Its query parameters.
    pub query: &'static [Parameter],
    /// The headers that it reads.
    pub headers: &'static [Parameter],
    /// What it answers when all is well.
    pub status: u16,
    /// That answer.
    pub answer: Answer,
    /// Other answers that are no failures of the daemon's, and what they mean.
    pub others: &'static [(u16, &'static str, Answer)],
    /// Failures that a caller must expect, beside those of every route.
    pub failures: &'static [u16],
    /// In whose words it answers, and fails.
    pub dialect: Dialect,
    /// What does it.
    pub handler: Handler,
}

impl Route {
    /// A route for whoever has a key, which takes nothing, answers 204 and fails as every route may: what a line of the
    /// table says beside that is what is special about it.
    #[must_use]
    pub const fn new(
        method: Method,
        path: &'static str,
        name: &'static str,
        about: &'static str,
        handler: Handler,
    ) -> Self {
        Self {
            method,
            path,
            name,
            about,
            access: Access::Key,
            request: Request::None,
            query: &[],
            headers: &[],
            status: 204,
            answer: Answer::Empty,
            others: &[],
            failures: &[],
            dialect: Dialect::Casemate,
            handler,
        }
    }

    /// For anybody.
    #[must_use]
    pub const fn open(mut self) -> Self {
        self.access = Access::Open;
        self
    }

    /// With a body.
    #[must_use]
    pub const fn request(mut self, request: Request) -> Self {
        self.request = request;
        self
    }

    /// With these query parameters.
    #[must_use]
    pub const fn query(mut self, query: &'static [Parameter]) -> Self {
        self.query = query;
        self
    }

    /// Reading these headers.
    #[must_use]
    pub const fn headers(mut self, headers: &'static [Parameter]) -> Self {
        self.headers = headers;
        self
    }

    /// Answering with this when all is well.
    #[must_use]
    pub const fn answer(mut self, status: u16, answer: Answer) -> Self {
        self.status = status;
        self.answer = answer;
        self
    }

    /// Answering with one of these otherwise.
    #[must_use]
    pub const fn others(mut self, others: &'static [(u16, &'static str, Answer)]) -> Self {
        self.others = others;
        self
    }

    /// Failing with these beside what every route may fail with.
    #[must_use]
    pub const fn failures(mut self, failures: &'static [u16]) -> Self {
        self.failures = failures;
        self
    }

    /// Whether it answers to this method. `HEAD` is `GET` without the body, where there is a body.
    pub(super) fn takes(&self, method: &Method) -> bool {
        self.method == *method || (*method == Method::HEAD && self.has_head())
    }

    /// Whether it answers to `HEAD` as well.
    pub(super) fn has_head(&self) -> bool {
        self.method == Method::GET && !matches!(self.answer, Answer::WebSocket(_))
    }
}

/// A handler: decodes, calls the app once, encodes.
pub type Handler = for<'a> fn(&'a Call) -> BoxFuture<'a, Result<Reply, Problem>>;

/// One request as a handler sees it.
pub struct Call {
    /// What it can reach.
    pub app: App,
    /// Names the request in answers and logs.
    pub request_id: RequestId,
    /// Who asks; `None` only on [`Access::Open`] routes.
    pub principal: Option<Principal>,
    /// When who asks may not any more.
    pub validity: Validity,
    /// The `{…}` segments of the path.
    pub path: BTreeMap<String, String>,
    /// The raw query.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// Who was addressed, where the target says so itself.
    pub authority: Option<String>,
    /// Whether the client came by TLS.
    pub is_tls: bool,
    /// Whether only the headers of the answer are wanted. Its body is not sent in any case: this is
    /// for who can save itself the work.
    pub is_head: bool,
    /// The body, whole and bounded; empty where the route takes [`Request::Bytes`].
    pub body: Bytes,
    /// The watchers of files that clients come back to.
    pub(super) watchers: Arc<Watchers>,
    /// Cancelled when the daemon stops: what has no end of its own ends then.
    pub stop: CancellationToken,
    pub(super) once: Mutex<Once>,
}

/// What of a request can be had only once.
#[derive(Default)]
pub(super) struct Once {
    pub(super) reader: Option<BodyReader>,
    pub(super) handshake: Option<Handshake>,
}

impl Call {
    /// Who asks.
    ///
    /// # Errors
    /// When nobody authenticated, which the dispatcher has refused before.
    pub fn principal(&self) -> Result<&Principal, Problem> {
        self.principal.as_ref().ok_or_else(Problem::unauthenticated)
    }

    /// The body of a route that takes [`Request::Bytes`]. What is not read of it is nobody's concern.
    ///
    /// # Errors
    /// When the route takes none or it was had before: a defect.
    pub fn reader(&self) -> Result<BodyReader, Problem> {
        let reader = self.once(|once| once.reader.take());
        reader.ok_or_else(|| Problem::internal("a handler asked for a body that is not there"))
    }

    pub(super) fn once<T>(&self, take: impl FnOnce(&mut Once) -> Option<T>) -> Option<T> {
        take(&mut self.once.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A segment of the path, read as `T`. What cannot be one names nothing: 404.
    ///
    /// # Errors
    /// 404.
    pub fn segment<T: std::str::FromStr>(&self, name: &str) -> Result<T, Problem> {
        self.path
            .get(name)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| {
                Problem::new(
                    StatusCode::NOT_FOUND,
                    "session_not_found",
                    "there is no such session",
                )
            })
    }
}
