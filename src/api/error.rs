//! The one place where a failure becomes a status, a code and a sentence for the caller.
//!
//! Causes inside the daemon go to the log under the request's id, never into an answer.

use std::time::Duration;

use casemate_link::refusal::code as refusal;
use http::{HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;

use super::endpoint::page;
use super::route::Reply;
use crate::app::snapshot::BadLayer;
use crate::app::{AppError, EndpointRefusal, KeyRefusal, SnapshotRefusal, TemplateRefusal};
use crate::base::id::RequestId;
use crate::credential::CredentialError;
use crate::endpoint::Refusal;
use crate::model::session::Reason;
use crate::session::gate::Refused;
use crate::session::{SessionError, VolumeRefusal};

/// The code of whoever asks too often.
pub(super) const RATE_LIMITED: &str = "rate_limited";

/// Seconds that a client should wait before it tries again when the daemon is merely busy.
const RETRY_AFTER_S: &str = "2";

/// Headers of an answer.
pub(super) type Headers = Vec<(header::HeaderName, HeaderValue)>;

/// A failure as the caller sees it.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    headers: Headers,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The body of every failure: `application/problem+json`, RFC 9457.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct ProblemBody {
    /// `about:blank`: the code says more than a link would.
    r#type: &'static str,
    /// The status in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// A stable word for programs.
    code: &'static str,
    /// A sentence for people.
    detail: String,
    /// Find the whole story in the daemon's log with this.
    request_id: String,
}

/// A problem, and what else is to be said of it.
#[derive(Serialize)]
struct With<'a, T> {
    #[serde(flatten)]
    body: ProblemBody,
    #[serde(flatten)]
    more: &'a T,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            headers: Vec::new(),
            cause: None,
        }
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    }

    pub(super) fn body_too_large(max_bytes: u64) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body has more than {max_bytes} bytes"),
        )
    }

    pub(super) fn internal(what: impl Into<String>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "something failed inside casemated; its log has the story under this request_id",
        )
        .because(std::io::Error::other(what.into()))
    }

    pub(super) fn unauthenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "send a valid API key or token as Authorization: Bearer, or an API key as X-API-Key; an operator makes one with `casemate admin key create`",
        )
        .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// Too many requests, counted like this; there is a place for the next after `wait`.
    pub(super) fn rate_limited(how: &str, wait: Duration) -> Self {
        let seconds = wait.as_nanos().div_ceil(1_000_000_000).max(1);
        let problem = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            RATE_LIMITED,
            format!("there are too many requests {how}; try again in {seconds} s"),
        );
        match HeaderValue::from_str(&seconds.to_string()) {
            Ok(value) => problem.header(header::RETRY_AFTER, value),
            Err(_) => problem.again_later(),
        }
    }

    pub(super) fn header(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    pub(super) fn again_later(self) -> Self {
        self.header(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S))
    }

    /// The sentence for the caller.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The stable word.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        self.code
    }

    /// The answer, after the cause has gone to the log.
    pub(super) fn into_reply(self, request: RequestId) -> Reply {
        self.into_reply_with(request, &())
    }

    /// What it is made of, after the cause has gone to the log: for whoever answers in other words than ours.
    pub(super) fn into_parts(
        self,
        request: RequestId,
    ) -> (StatusCode, &'static str, String, Headers) {
        if let Some(cause) = &self.cause {
            crate::app::report(&request, cause.as_ref());
        }
        (self.status, self.code, self.detail, self.headers)
    }

    /// The same as a page for people.
    pub(super) fn into_page(self, request: RequestId) -> Reply {
        if let Some(cause) = &self.cause {
            crate::app::report(&request, cause.as_ref());
        }
        let page = page::page(self.status, &self.detail, &request.to_string());
        let mut reply = Reply::bytes(self.status, "text/html", page.into());
        reply.headers_mut().insert(header::CONTENT_TYPE, page::PAGE);
        for (name, value) in self.headers {
            reply.headers_mut().insert(name, value);
        }
        reply
    }

    /// The answer with what else is to be said in it.
    pub(super) fn into_reply_with(self, request: RequestId, more: &impl Serialize) -> Reply {
        if let Some(cause) = &self.cause {
            crate::app::report(&request, cause.as_ref());
        }
        let body = ProblemBody {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: self.detail,
            request_id: request.to_string(),
        };
        let mut reply = Reply::json(self.status, &With { body, more });
        reply.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        for (name, value) in self.headers {
            reply.headers_mut().insert(name, value);
        }
        reply
    }
}

impl From<AppError> for Problem {
    fn from(error: AppError) -> Self {
        if let Some((code, detail)) = error.of_the_state() {
            return unavailable(code, detail).because(error);
        }
        match error {
            AppError::Unauthenticated => Self::unauthenticated(),
            AppError::Denied { rule, reason } => Self::new(
                StatusCode::FORBIDDEN,
                "denied",
                format!("the rule {rule} denies this: {reason}"),
            ),
            AppError::Session(error) => error.into(),
            AppError::Store(error) => {
                unavailable("store_failed", "the state cannot be reached").because(error)
            }
            AppError::Audit(error) => unavailable(
                "audit_failed",
                "the audit log cannot be written, so nothing was done",
            )
            .because(error),
            AppError::NoRecord(seq) => Self::new(
                StatusCode::NOT_FOUND,
                "no_record",
                format!("the audit log has no record {seq}"),
            ),
            AppError::BadFilter(error) => Self::bad_request(error.to_string()),
            AppError::Archived { after, up_to, file } => Self::new(
                StatusCode::GONE,
                "audit_archived",
                format!(
                    "record {} is in the archive {file}: records up to {up_to} are in such files, which operators have; go on after {up_to}",
                    after + 1
                ),
            ),
            // Only operators ask for one, and not here.
            AppError::Archive(error) => {
                unavailable("not_archived", "nothing was archived").because(error)
            }
            AppError::BadArchive(what) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "bad_archive",
                format!("this is not an OCI or docker archive that podman takes: {what}"),
            ),
            AppError::Runtime(error) => runtime_unavailable(error),
            AppError::Template(refusal) => refusal.into(),
            AppError::Key(refusal) => {
                let status = match refusal {
                    KeyRefusal::NotFound => StatusCode::NOT_FOUND,
                    KeyRefusal::Beyond | KeyRefusal::Auditor => StatusCode::FORBIDDEN,
                    KeyRefusal::TooMany(_) => StatusCode::CONFLICT,
                    KeyRefusal::Over | KeyRefusal::TokenLife => StatusCode::UNPROCESSABLE_ENTITY,
                };
                Self::new(status, refusal.code(), refusal.to_string())
            }
            AppError::Rule(refusal) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                refusal.code(),
                refusal.to_string(),
            ),
            AppError::Credential(error) => error.into(),
            AppError::Endpoint(refusal) => refusal.into(),
            AppError::Snapshot(refusal) => refusal.into(),
            // Only operators ask for one, and not here.
            AppError::Backup(error) => {
                unavailable("no_backup", "no backup was made").because(error)
            }
            AppError::Reload(problems) => Self::new(StatusCode::CONFLICT, "not_reloaded", problems),
            AppError::Internal(what) => Self::internal(what),
        }
    }
}

impl From<TemplateRefusal> for Problem {
    fn from(refusal: TemplateRefusal) -> Self {
        let status = match &refusal {
            TemplateRefusal::NotFound(_) | TemplateRefusal::NoSuchVersion(..) => {
                StatusCode::NOT_FOUND
            }
            TemplateRefusal::Invalid(_) => StatusCode::BAD_REQUEST,
            TemplateRefusal::FromFile(_) | TemplateRefusal::Full(_) => StatusCode::CONFLICT,
            TemplateRefusal::ImageMissing(_) => StatusCode::UNPROCESSABLE_ENTITY,
            TemplateRefusal::Conflict(_) => StatusCode::PRECONDITION_FAILED,
        };
        Self::new(status, refusal.code(), refusal.to_string())
    }
}

impl From<CredentialError> for Problem {
    fn from(error: CredentialError) -> Self {
        let (code, text) = (error.code(), error.to_string());
        let plain = |status| Self::new(status, code, text.clone());
        match error {
            CredentialError::NotFound(_) => plain(StatusCode::NOT_FOUND),
            CredentialError::Invalid(_) => plain(StatusCode::BAD_REQUEST),
            CredentialError::Conflict(_) => plain(StatusCode::PRECONDITION_FAILED),
            CredentialError::Full(_) => plain(StatusCode::CONFLICT),
            CredentialError::Contended | CredentialError::Rotating => {
                plain(StatusCode::SERVICE_UNAVAILABLE).again_later()
            }
            CredentialError::Envelope(_)
            | CredentialError::Vault(_)
            | CredentialError::Store(_)
            | CredentialError::Audit(_) => {
                unavailable(code, "the vault cannot do it now, so nothing was changed")
                    .because(error)
            }
        }
    }
}

impl From<EndpointRefusal> for Problem {
    fn from(refusal: EndpointRefusal) -> Self {
        let (code, text) = (refusal.code(), refusal.to_string());
        let plain = |status| Self::new(status, code, text.clone());
        match refusal {
            EndpointRefusal::NotDeclared(_) | EndpointRefusal::NotAKey => {
                plain(StatusCode::FORBIDDEN)
            }
            EndpointRefusal::LinkLife => plain(StatusCode::UNPROCESSABLE_ENTITY),
            EndpointRefusal::Way(way) => match way {
                Refusal::Crowded => plain(StatusCode::TOO_MANY_REQUESTS).again_later(),
                Refusal::NoAnswer(_) => plain(StatusCode::GATEWAY_TIMEOUT),
                Refusal::Over => Self::unauthenticated(),
                Refusal::BadRequest(_) | Refusal::CutShort => plain(StatusCode::BAD_REQUEST),
                Refusal::NotOpen => plain(StatusCode::BAD_GATEWAY),
                Refusal::Link(_) | Refusal::BadAnswer(_) | Refusal::Unasked => {
                    plain(StatusCode::BAD_GATEWAY).because(way)
                }
            },
        }
    }
}

impl From<SnapshotRefusal> for Problem {
    fn from(refusal: SnapshotRefusal) -> Self {
        let status = match &refusal {
            SnapshotRefusal::UnderWay => StatusCode::CONFLICT,
            SnapshotRefusal::Crowded => StatusCode::SERVICE_UNAVAILABLE,
            SnapshotRefusal::Layer(BadLayer::TooLarge(_) | BadLayer::TooMany) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            SnapshotRefusal::Layer(BadLayer::Unfit(_)) => StatusCode::UNPROCESSABLE_ENTITY,
            SnapshotRefusal::Late
            | SnapshotRefusal::Layer(BadLayer::Damaged(_))
            | SnapshotRefusal::NotTaken => StatusCode::BAD_GATEWAY,
        };
        let problem = Self::new(status, refusal.code(), refusal.to_string());
        match refusal {
            SnapshotRefusal::Crowded => problem.again_later(),
            _ => problem,
        }
    }
}

impl From<SessionError> for Problem {
    fn from(error: SessionError) -> Self {
        let (code, text) = (error.code(), error.to_string());
        let plain = |status| Self::new(status, code, text.clone());
        match error {
            SessionError::NotFound => plain(StatusCode::NOT_FOUND),
            SessionError::UnknownTemplate(_) | SessionError::Invalid { .. } => {
                plain(StatusCode::BAD_REQUEST)
            }
            SessionError::NameTaken(_) | SessionError::NotReady { .. } => {
                plain(StatusCode::CONFLICT)
            }
            SessionError::Volume(refusal) => plain(match refusal {
                VolumeRefusal::Unknown(_) => StatusCode::BAD_REQUEST,
                VolumeRefusal::NotFound(_) => StatusCode::NOT_FOUND,
                VolumeRefusal::Held(..)
                | VolumeRefusal::NameTaken(_)
                | VolumeRefusal::Full(_)
                | VolumeRefusal::TooLarge(_) => StatusCode::CONFLICT,
                VolumeRefusal::Unavailable(_) => StatusCode::NOT_IMPLEMENTED,
            }),
            SessionError::VolumeFile(error) => {
                unavailable(code, "the volume's file cannot be made").because(error)
            }
            SessionError::KeyReused => plain(StatusCode::CONFLICT),
            SessionError::Full(Refused::Full | Refused::TeamFull | Refused::Queue) => {
                plain(StatusCode::TOO_MANY_REQUESTS).again_later()
            }
            SessionError::Full(Refused::Machine)
            | SessionError::Busy(_)
            | SessionError::Overloaded
            | SessionError::Draining => plain(StatusCode::SERVICE_UNAVAILABLE).again_later(),
            SessionError::Refused { code, message } => guest_refused(code, message),
            SessionError::GuestGone(error) => Self::new(
                StatusCode::BAD_GATEWAY,
                code,
                "the session's guest went away; the program may or may not have run",
            )
            .because(error),
            // podman may be back soon; what is left of the session goes then.
            SessionError::LaunchFailed {
                reason: Reason::RuntimeUnavailable,
                ..
            } => Self::new(StatusCode::SERVICE_UNAVAILABLE, "runtime_unavailable", text)
                .again_later(),
            SessionError::LaunchFailed {
                reason: Reason::StoreFailed,
                ..
            } => unavailable(
                "store_failed",
                "the state cannot be written, so nothing was started",
            ),
            SessionError::LaunchFailed { .. } => plain(StatusCode::BAD_GATEWAY),
            SessionError::Runtime(error) => runtime_unavailable(error),
            SessionError::Store(error) => {
                unavailable(code, "the state cannot be reached").because(error)
            }
            SessionError::Audit(error) => {
                unavailable(code, "the audit log cannot be written, so nothing was done")
                    .because(error)
            }
            SessionError::System { .. } => Self::internal(text),
        }
    }
}

/// What the guest says no to. What it refuses about programs is one code for callers: the words say which.
fn guest_refused(code: &'static str, message: String) -> Problem {
    let status = match code {
        refusal::BAD_SPEC | refusal::BAD_REQUEST => StatusCode::BAD_REQUEST,
        refusal::FILE_NOT_FOUND | refusal::NO_SUCH_PROCESS => StatusCode::NOT_FOUND,
        refusal::FILE_DENIED | refusal::PORT_NOT_ALLOWED => StatusCode::FORBIDDEN,
        refusal::FILE_EXISTS
        | refusal::WRONG_FILE_KIND
        | refusal::NO_INPUT
        | refusal::INPUT_STALLED
        | refusal::NO_PTY => StatusCode::CONFLICT,
        refusal::CONDITION_FAILED => StatusCode::PRECONDITION_FAILED,
        refusal::BAD_RANGE => StatusCode::RANGE_NOT_SATISFIABLE,
        refusal::DISK_FULL => StatusCode::INSUFFICIENT_STORAGE,
        refusal::BAD_ARCHIVE => StatusCode::UNPROCESSABLE_ENTITY,
        refusal::UNSUPPORTED => StatusCode::NOT_IMPLEMENTED,
        refusal::NOT_LISTENING => StatusCode::BAD_GATEWAY,
        refusal::BUSY | refusal::STOPPING => {
            return Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, message).again_later();
        }
        _ => {
            return Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "program_refused",
                format!("{message} ({code})"),
            );
        }
    };
    Problem::new(status, code, message)
}

fn runtime_unavailable(error: impl std::error::Error + Send + Sync + 'static) -> Problem {
    unavailable(
        "runtime_unavailable",
        "the sandbox runtime cannot do it now",
    )
    .because(error)
}

fn unavailable(code: &'static str, detail: &str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).again_later()
}
