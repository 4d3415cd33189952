//! Routes of credentials. None of them answers with a value.

use http::Method;

use crate::api::route::{Answer, Request, Route, parameter, schema_of};
use crate::api::v1::credentials;

pub(super) const ROUTES: &[Route] = &[
    Route::new(
        Method::GET,
        "/v1/credentials",
        "list_credentials",
        "List the team's credentials, by name, without their values, which no route shows.",
        |call| Box::pin(credentials::list(call)),
    )
    .answer(200, Answer::Json(schema_of::<credentials::CredentialList>))
    .failures(&[403]),
    Route::new(
        Method::PUT,
        "/v1/credentials/{name}",
        "put_credential",
        "Set the value of a credential of the team; its version is its entity tag.",
        |call| Box::pin(credentials::put(call)),
    )
    .request(Request::Json(schema_of::<credentials::PutCredential>))
    .headers(&[
        parameter(
            "If-Match",
            "Only if it is this version, or with * if there is one.",
        ),
        parameter("If-None-Match", "With *: only if there is none."),
    ])
    .answer(200, Answer::Json(schema_of::<credentials::CredentialView>))
    .others(&[(
        201,
        "There was none of this name.",
        Answer::Json(schema_of::<credentials::CredentialView>),
    )])
    .failures(&[403, 409, 412]),
    Route::new(
        Method::DELETE,
        "/v1/credentials/{name}",
        "delete_credential",
        "Remove a credential of the team; a later one of this name goes on counting versions.",
        |call| Box::pin(credentials::delete(call)),
    )
    .headers(&[parameter(
        "If-Match",
        "Only if it is this version, or with * if there is one.",
    )])
    .failures(&[403, 404, 412]),
];
