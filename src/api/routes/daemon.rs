//! Routes of the daemon: its record, its health, its description.

use http::Method;

use crate::api::openapi;
use crate::api::route::{Access, Answer, QueryParameter, Request, Route, schema_of};
use crate::api::v1::{audit, health};

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::GET,
        path: "/v1/audit",
        name: "read_audit",
        about: "Read what was recorded of a session, in its order.",
        access: Access::Key,
        request: Request::None,
        query: &[
            QueryParameter {
                name: "session",
                about: "Only of this session; members must name one.",
            },
            QueryParameter {
                name: "cursor",
                about: "`next_cursor` of the page before.",
            },
            QueryParameter {
                name: "limit",
                about: "At most so many, 1 to 200; 50 when absent.",
            },
        ],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<audit::AuditPage>),
        others: &[],
        failures: &[403, 404],
        handler: |call| Box::pin(audit::list(call)),
    },
    Route {
        method: Method::GET,
        path: "/health",
        name: "health",
        about: "Whether the daemon is alive.",
        access: Access::Open,
        request: Request::None,
        query: &[],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<health::HealthView>),
        others: &[],
        failures: &[],
        handler: |_| Box::pin(std::future::ready(Ok(health::health()))),
    },
    Route {
        method: Method::GET,
        path: "/ready",
        name: "ready",
        about: "Whether the daemon can do its work: 200, or 503 with what it lacks.",
        access: Access::Open,
        request: Request::None,
        query: &[],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<health::ReadyView>),
        others: &[(
            503,
            "Something is wrong.",
            Answer::Json(schema_of::<health::ReadyView>),
        )],
        failures: &[],
        handler: |call| Box::pin(health::ready(call)),
    },
    Route {
        method: Method::GET,
        path: "/openapi.json",
        name: "openapi",
        about: "This document.",
        access: Access::Open,
        request: Request::None,
        query: &[],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<serde_json::Map<String, serde_json::Value>>),
        others: &[],
        failures: &[],
        handler: |_| Box::pin(std::future::ready(openapi::serve())),
    },
];
