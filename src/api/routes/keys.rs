//! Routes of API keys.

use http::Method;

use crate::api::route::{Answer, Request, Route, parameter, schema_of};
use crate::api::v1::keys;

pub(super) const ROUTES: &[Route] = &[
    Route::new(
        Method::GET,
        "/v1/keys",
        "list_keys",
        "List the team's API keys in the order of their making, without their texts; team admins may.",
        |call| Box::pin(keys::list(call)),
    )
    .query(&[
        parameter("limit", "At most so many, 1 to 200; 50 when absent."),
        parameter("cursor", "`next_cursor` of the page before."),
    ])
    .answer(200, Answer::Json(schema_of::<keys::KeyPage>))
    .failures(&[403]),
    Route::new(
        Method::POST,
        "/v1/keys",
        "create_key",
        "Make an API key of the team, which may do no more than its maker; its text is in this answer and never again.",
        |call| Box::pin(keys::create(call)),
    )
    .request(Request::Json(schema_of::<keys::CreateKey>))
    .answer(201, Answer::Json(schema_of::<keys::MadeKeyView>))
    .failures(&[403, 409, 422]),
    Route::new(
        Method::DELETE,
        "/v1/keys/{id}",
        "revoke_key",
        "Revoke a key of the team, at once: what it had opened ends. Revoked already is success.",
        |call| Box::pin(keys::revoke(call)),
    )
    .failures(&[403, 404]),
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/tokens",
        "create_session_token",
        "Make a token that reaches this session only, for programs in it or for a browser; it ends with the session.",
        |call| Box::pin(keys::create_token(call)),
    )
    .request(Request::Json(schema_of::<keys::CreateToken>))
    .answer(201, Answer::Json(schema_of::<keys::MadeKeyView>))
    .failures(&[403, 404, 409, 422]),
];
