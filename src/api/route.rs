//! What a route is, what a handler gets, and what it gives back.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::Full;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;

use super::error::Problem;
use crate::app::App;
use crate::base::id::RequestId;
use crate::model::principal::Principal;

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody: it tells nothing that a stranger may not know.
    Open,
    /// Whoever presents a valid key.
    Key,
}

/// Makes the JSON schema of a type.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// The schema of `T`, by name.
pub fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// A query parameter, for the document.
#[derive(Clone, Copy, Debug)]
pub struct QueryParameter {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
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
    pub request: Option<SchemaOf>,
    /// Its query parameters.
    pub query: &'static [QueryParameter],
    /// What it answers when all is well.
    pub status: u16,
    /// The schema of that answer.
    pub answer: Option<SchemaOf>,
    /// Other answers with a schema of their own, and what they mean.
    pub others: &'static [(u16, &'static str, SchemaOf)],
    /// Failures that a caller must expect, beside those of every route.
    pub failures: &'static [u16],
    /// What does it.
    pub handler: Handler,
}

/// A handler: decodes, calls the app once, encodes.
pub type Handler = for<'a> fn(&'a Call) -> BoxFuture<'a, Result<Reply, Problem>>;

/// One request as a handler sees it: whole and bounded.
pub struct Call {
    /// What it can reach.
    pub app: App,
    /// Names the request in answers and logs.
    pub request_id: RequestId,
    /// Who asks; `None` only on [`Access::Open`] routes.
    pub principal: Option<Principal>,
    /// The `{…}` segments of the path.
    pub path: BTreeMap<String, String>,
    /// The raw query.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Call {
    /// Who asks.
    ///
    /// # Errors
    /// When nobody authenticated, which the dispatcher has refused before.
    pub fn principal(&self) -> Result<&Principal, Problem> {
        self.principal.as_ref().ok_or_else(Problem::unauthenticated)
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

/// An answer.
#[derive(Debug)]
pub struct Reply(pub(super) http::Response<Full<Bytes>>);

impl Reply {
    /// A JSON answer.
    pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::bytes(status, "application/json", body.into()),
            // Our own types always serialise; a defect here must not look like success.
            Err(_) => Self::empty(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// An answer of raw bytes.
    #[must_use]
    pub fn bytes(status: StatusCode, content_type: &'static str, body: Bytes) -> Self {
        let mut response = http::Response::new(Full::new(body));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self(response)
    }

    /// An answer without a body.
    #[must_use]
    pub fn empty(status: StatusCode) -> Self {
        let mut response = http::Response::new(Full::new(Bytes::new()));
        *response.status_mut() = status;
        Self(response)
    }

    pub(super) fn headers_mut(&mut self) -> &mut HeaderMap {
        self.0.headers_mut()
    }

    /// With one more header.
    #[must_use]
    pub fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers_mut().insert(name, value);
        self
    }
}
