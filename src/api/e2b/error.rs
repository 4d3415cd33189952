//! Failures in the words that E2B's clients act upon: `{code, message}`, and texts that say what became of a sandbox.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use super::connect::{Fault, stream_type};
use crate::api::error::Problem;
use crate::api::reply::Reply;
use crate::base::id::{RequestId, SessionId};

/// Whether a client may try again by itself: nothing was done.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");

/// In whose words a route answers, and fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Ours: RFC 9457.
    #[default]
    Casemate,
    /// Of E2B's control routes.
    E2b,
    /// Of what E2B's clients find in a sandbox.
    Sandbox,
    /// Of its services there, over Connect.
    Connect,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox_id: Option<&'a str>,
    code: u16,
    message: &'a str,
    #[serde(rename = "error_code")]
    error_code: &'static str,
}

/// The answer to a request that failed; `session` is the sandbox that it was for.
pub(in crate::api) fn answer(
    problem: Problem,
    request: RequestId,
    dialect: Dialect,
    session: Option<SessionId>,
    asked: &HeaderMap,
) -> Reply {
    if dialect == Dialect::Casemate {
        return problem.into_reply(request);
    }
    let (mut status, code, detail, headers) = problem.into_parts(request);
    // Clients tell by the status alone that what they ask for is at fault.
    if dialect == Dialect::Sandbox && matches!(code, "wrong_file_kind" | "program_refused") {
        status = StatusCode::BAD_REQUEST;
    }
    let is_gone = matches!(code, "session_not_found" | "session_not_ready");
    let mut reply = if dialect != Dialect::E2b && is_gone {
        // These very words tell clients that it is not there, and is not merely out of reach.
        plain(
            StatusCode::BAD_GATEWAY,
            code,
            "The sandbox was not found",
            session,
        )
    } else if dialect == Dialect::Connect && status != StatusCode::UNAUTHORIZED {
        let fault = Fault::of(status, code, detail);
        match stream_type(asked) {
            Some(content_type) => Reply::bytes(StatusCode::OK, content_type, fault.last()),
            None => Reply::json(status, &fault),
        }
    } else {
        plain(status, code, &detail, None)
    };
    let later = headers.iter().any(|(name, _)| *name == header::RETRY_AFTER);
    if later {
        reply
            .headers_mut()
            .insert(SHOULD_RETRY, HeaderValue::from_static("true"));
    }
    for (name, value) in headers {
        reply.headers_mut().insert(name, value);
    }
    reply
}

fn plain(
    status: StatusCode,
    code: &'static str,
    message: &str,
    session: Option<SessionId>,
) -> Reply {
    let id = session.map(SessionId::suffix);
    let body = Body {
        sandbox_id: id.as_deref(),
        code: status.as_u16(),
        message,
        error_code: code,
    };
    Reply::json(status, &body)
}
