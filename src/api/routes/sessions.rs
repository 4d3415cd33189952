//! Routes of the sessions themselves.

use http::Method;

use crate::api::route::{Answer, Request, Route, parameter, schema_of};
use crate::api::v1::{lease, run, sessions, snapshot};

pub(super) const ROUTES: &[Route] = &[
    Route::new(
        Method::POST,
        "/v1/sessions",
        "create_session",
        "Make a session; answers when its guest does, unless `wait` is false.",
        |call| Box::pin(sessions::create(call)),
    )
    .request(Request::Json(schema_of::<sessions::CreateSession>))
    .headers(&[parameter(
        "Idempotency-Key",
        "The same key and body within 24 h give the same session; another body is refused.",
    )])
    .answer(201, Answer::Json(schema_of::<sessions::SessionView>))
    .failures(&[409, 429, 501, 502]),
    Route::new(
        Method::GET,
        "/v1/sessions",
        "list_sessions",
        "List the team's sessions, newest first.",
        |call| Box::pin(sessions::list(call)),
    )
    .query(&[
        parameter("limit", "At most so many, 1 to 200; 50 when absent."),
        parameter("cursor", "`next_cursor` of the page before."),
        parameter("phase", "Only in this phase; may be repeated."),
        parameter("name", "Only with this name."),
        parameter("label", "Only with this label, as k=v; may be repeated."),
    ])
    .answer(200, Answer::Json(schema_of::<sessions::SessionPage>)),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}",
        "get_session",
        "One session, live or ended.",
        |call| Box::pin(sessions::get(call)),
    )
    .answer(200, Answer::Json(schema_of::<sessions::SessionView>))
    .failures(&[404]),
    Route::new(
        Method::DELETE,
        "/v1/sessions/{id}",
        "delete_session",
        "End a session; 204 when nothing of it is left, 202 while it still stops.",
        |call| Box::pin(sessions::delete(call)),
    )
    .others(&[(
        202,
        "It still stops.",
        Answer::Json(schema_of::<sessions::SessionView>),
    )])
    .failures(&[404]),
    Route::new(
        Method::PATCH,
        "/v1/sessions/{id}",
        "change_session",
        "Give a session other deadlines or labels.",
        |call| Box::pin(lease::change(call)),
    )
    .request(Request::Json(schema_of::<lease::ChangeSession>))
    .answer(200, Answer::Json(schema_of::<sessions::SessionView>))
    .failures(&[404, 409]),
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/pause",
        "pause_session",
        "Make a session stand still; whoever uses it wakes it. Paused already is success.",
        |call| Box::pin(lease::pause(call)),
    )
    .answer(200, Answer::Json(schema_of::<sessions::SessionView>))
    .failures(&[404, 409, 502]),
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/resume",
        "resume_session",
        "Wake a session, or let one that is awake go on for longer.",
        |call| Box::pin(lease::resume(call)),
    )
    .request(Request::Json(schema_of::<lease::ResumeSession>))
    .answer(200, Answer::Json(schema_of::<sessions::SessionView>))
    .failures(&[404, 409, 502]),
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/snapshot",
        "snapshot_session",
        "Make a version of a template of the team from what the session changed in its files; the session goes on.",
        |call| Box::pin(snapshot::make(call)),
    )
    .request(Request::Json(schema_of::<snapshot::SnapshotSession>))
    .headers(&[
        parameter("If-Match", "Only if the template is of this version, or with * if there is one."),
        parameter("If-None-Match", "With *: only if there is none."),
    ])
    .answer(200, Answer::Json(schema_of::<snapshot::SnapshotView>))
    .others(&[(
        201,
        "There was no template of this name.",
        Answer::Json(schema_of::<snapshot::SnapshotView>),
    )])
    .failures(&[403, 404, 409, 412, 413, 422, 502]),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/events",
        "session_events",
        "What happens to a session, from its beginning, as it happens; ends with the session.",
        |call| Box::pin(lease::events(call)),
    )
    .headers(&[parameter("Last-Event-ID", "Go on after this event.")])
    .answer(200, Answer::Events(schema_of::<lease::PhaseView>))
    .failures(&[404]),
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/run",
        "run",
        "Run a program in the session to its end.",
        |call| Box::pin(run::run(call)),
    )
    .request(Request::Json(schema_of::<run::RunRequest>))
    .answer(200, Answer::Json(schema_of::<run::RunAnswer>))
    .failures(&[404, 409, 422, 502]),
];
