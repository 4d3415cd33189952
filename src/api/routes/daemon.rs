//! Routes of the daemon: its record, its health, its description.

use http::Method;

use crate::api::openapi;
use crate::api::route::{Answer, Route, parameter, schema_of};
use crate::api::v1::{audit, health};

pub(super) const ROUTES: &[Route] = &[
    Route::new(
        Method::GET,
        "/v1/audit",
        "read_audit",
        "Read what was recorded of a session, in its order.",
        |call| Box::pin(audit::list(call)),
    )
    .query(&[
        parameter("session", "Only of this session; members must name one."),
        parameter("cursor", "`next_cursor` of the page before."),
        parameter("limit", "At most so many, 1 to 200; 50 when absent."),
    ])
    .answer(200, Answer::Json(schema_of::<audit::AuditPage>))
    .failures(&[403, 404]),
    Route::new(
        Method::GET,
        "/health",
        "health",
        "Whether the daemon is alive.",
        |_| Box::pin(std::future::ready(Ok(health::health()))),
    )
    .open()
    .answer(200, Answer::Json(schema_of::<health::HealthView>)),
    Route::new(
        Method::GET,
        "/ready",
        "ready",
        "Whether the daemon can do its work: 200, or 503 with what it lacks.",
        |call| Box::pin(health::ready(call)),
    )
    .open()
    .answer(200, Answer::Json(schema_of::<health::ReadyView>))
    .others(&[(
        503,
        "Something is wrong.",
        Answer::Json(schema_of::<health::ReadyView>),
    )]),
    Route::new(
        Method::GET,
        "/health/detailed",
        "health_detailed",
        "Everything that the daemon looks at, and whether it is well.",
        |call| Box::pin(health::detailed(call)),
    )
    .answer(200, Answer::Json(schema_of::<health::DetailedView>)),
    Route::new(
        Method::GET,
        "/openapi.json",
        "openapi",
        "This document.",
        |_| Box::pin(std::future::ready(openapi::serve())),
    )
    .open()
    .answer(
        200,
        Answer::Json(schema_of::<serde_json::Map<String, serde_json::Value>>),
    ),
];
