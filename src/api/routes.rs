//! The one list of routes. Dispatch, authentication, 404, 405 and the OpenAPI document come from it.

use std::sync::LazyLock;

use http::Method;

use super::openapi;
use super::route::{Access, Answer, HeaderParameter, QueryParameter, Request, Route, schema_of};
use super::v1::{audit, health, run, sessions};

/// Every route.
pub static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    vec![
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
    ]
});

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_places_are_unique_and_documented() {
        let mut names = BTreeSet::new();
        let mut places = BTreeSet::new();
        for route in ROUTES.iter() {
            assert!(names.insert(route.name), "{}", route.name);
            assert!(
                places.insert((route.path, route.method.as_str())),
                "{}",
                route.path
            );
            assert!(route.about.ends_with('.'), "{}", route.name);
        }
    }

    #[test]
    fn only_these_routes_answer_strangers() {
        let open: Vec<_> = ROUTES
            .iter()
            .filter(|route| route.access == Access::Open)
            .map(|route| route.path)
            .collect();
        assert_eq!(open, ["/health", "/ready", "/openapi.json"]);
    }
}
