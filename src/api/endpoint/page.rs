//! What is said instead of a program's answer: JSON for programs, a small page for those who look at it.
//!
//! The two sentences about sandboxes that are not there and ports that are not open are part of what E2B's clients read.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::api::error::Problem;
use crate::api::reply::Reply;
use crate::app::{AppError, EndpointRefusal};
use crate::base::id::RequestId;
use crate::endpoint::Refusal as Way;
use crate::model::endpoint::Target;
use crate::session::SessionError;

/// What E2B's clients take for a sandbox that does not run any more.
const NOT_FOUND: &str = "The sandbox was not found";

/// What they take for one that runs without the program.
const NOT_OPEN: &str = "The sandbox is running but port is not open";

/// A refusal, and of what.
#[derive(Debug)]
pub(in crate::api) struct Told {
    problem: Problem,
    target: Option<Target>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Extra {
    /// As E2B's clients know it.
    sandbox_id: String,
    message: String,
    port: u16,
}

impl Told {
    pub(super) fn new(problem: Problem, target: Option<Target>) -> Self {
        Self { problem, target }
    }

    pub(super) fn of(error: AppError, target: Target) -> Self {
        let gone = |code, text: String| Problem::new(StatusCode::BAD_GATEWAY, code, text);
        let problem = match error {
            AppError::Session(SessionError::NotFound) => {
                gone("session_not_found", NOT_FOUND.to_owned())
            }
            AppError::Session(SessionError::NotReady { phase, .. }) if phase.is_final() => {
                gone("session_not_running", format!("{NOT_FOUND}: it is {phase}"))
            }
            AppError::Session(SessionError::NotReady { phase, .. }) => Problem::new(
                StatusCode::CONFLICT,
                "session_not_ready",
                format!("the sandbox is {phase}; try again in a moment"),
            )
            .again_later(),
            AppError::Endpoint(EndpointRefusal::Way(Way::NotOpen)) => {
                gone("port_not_open", NOT_OPEN.to_owned())
            }
            other => other.into(),
        };
        Self::new(problem, Some(target))
    }

    pub(in crate::api) fn code(&self) -> &'static str {
        self.problem.code()
    }

    /// The answer to a request with these headers.
    pub(in crate::api) fn into_reply(self, request: RequestId, asked: &HeaderMap) -> Reply {
        let Self { problem, target } = self;
        if wants_page(asked) {
            return problem.into_page(request);
        }
        match target {
            None => problem.into_reply(request),
            Some(target) => {
                let extra = Extra {
                    sandbox_id: target.session.suffix(),
                    message: problem.detail().to_owned(),
                    port: target.port,
                };
                problem.into_reply_with(request, &extra)
            }
        }
    }
}

/// Whether whoever asks is a browser that shows what it gets.
pub(super) fn wants_page(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(header::ACCEPT).iter();
    let mut accepts = accepts.filter_map(|value| value.to_str().ok());
    accepts.any(|value| value.contains("text/html"))
}

/// The page that says it: no script, no style, nothing of the request but what was made of it by us.
pub(in crate::api) fn page(status: StatusCode, detail: &str, request: &str) -> String {
    let title = status.canonical_reason().unwrap_or("Error");
    let escaped = |text: &str| {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        text.replace('>', "&gt;").replace('"', "&quot;")
    };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{status} {title}</title></head>\n<body><h1>{title}</h1>\n<p>{detail}</p>\n<p><small>{request}</small></p></body></html>\n",
        status = status.as_u16(),
        detail = escaped(detail),
        request = escaped(request),
    )
}

/// The content type of the page.
pub(in crate::api) const PAGE: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
