//! Routes of the sessions themselves.

use http::Method;

use crate::api::route::{
    Access, Answer, HeaderParameter, QueryParameter, Request, Route, schema_of,
};
use crate::api::v1::{run, sessions};

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::POST,
        path: "/v1/sessions",
        name: "create_session",
        about: "Make a session; answers when its guest does, unless `wait` is false.",
        access: Access::Key,
        request: Request::Json(schema_of::<sessions::CreateSession>),
        query: &[],
        headers: &[HeaderParameter {
            name: "Idempotency-Key",
            about: "The same key and body within 24 h give the same session; another body is refused.",
        }],
        status: 201,
        answer: Answer::Json(schema_of::<sessions::SessionView>),
        others: &[],
        failures: &[409, 429, 502],
        handler: |call| Box::pin(sessions::create(call)),
    },
    Route {
        method: Method::GET,
        path: "/v1/sessions",
        name: "list_sessions",
        about: "List the team's sessions, newest first.",
        access: Access::Key,
        request: Request::None,
        query: &[
            QueryParameter {
                name: "limit",
                about: "At most so many, 1 to 200; 50 when absent.",
            },
            QueryParameter {
                name: "cursor",
                about: "`next_cursor` of the page before.",
            },
            QueryParameter {
                name: "phase",
                about: "Only in this phase; may be repeated.",
            },
            QueryParameter {
                name: "name",
                about: "Only with this name.",
            },
            QueryParameter {
                name: "label",
                about: "Only with this label, as k=v; may be repeated.",
            },
        ],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<sessions::SessionPage>),
        others: &[],
        failures: &[],
        handler: |call| Box::pin(sessions::list(call)),
    },
    Route {
        method: Method::GET,
        path: "/v1/sessions/{id}",
        name: "get_session",
        about: "One session, live or ended.",
        access: Access::Key,
        request: Request::None,
        query: &[],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<sessions::SessionView>),
        others: &[],
        failures: &[404],
        handler: |call| Box::pin(sessions::get(call)),
    },
    Route {
        method: Method::DELETE,
        path: "/v1/sessions/{id}",
        name: "delete_session",
        about: "End a session; 204 when nothing of it is left, 202 while it still stops.",
        access: Access::Key,
        request: Request::None,
        query: &[],
        headers: &[],
        status: 204,
        answer: Answer::Empty,
        others: &[(
            202,
            "It still stops.",
            Answer::Json(schema_of::<sessions::SessionView>),
        )],
        failures: &[404],
        handler: |call| Box::pin(sessions::delete(call)),
    },
    Route {
        method: Method::POST,
        path: "/v1/sessions/{id}/run",
        name: "run",
        about: "Run a program in the session to its end.",
        access: Access::Key,
        request: Request::Json(schema_of::<run::RunRequest>),
        query: &[],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<run::RunAnswer>),
        others: &[],
        failures: &[404, 409, 422, 502],
        handler: |call| Box::pin(run::run(call)),
    },
];
