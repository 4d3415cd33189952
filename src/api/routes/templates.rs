//! Routes of templates.

use http::Method;

use crate::api::route::{Answer, Request, Route, parameter, schema_of};
use crate::api::v1::templates;

pub(super) const ROUTES: &[Route] = &[
    Route::new(
        Method::GET,
        "/v1/templates",
        "list_templates",
        "List the templates that the team may use, by name.",
        |call| Box::pin(templates::list(call)),
    )
    .answer(200, Answer::Json(schema_of::<templates::TemplateList>)),
    Route::new(
        Method::GET,
        "/v1/templates/{name}",
        "get_template",
        "One template as it is, or as it was in a version that is still kept; its version is its entity tag.",
        |call| Box::pin(templates::get(call)),
    )
    .query(&[parameter(
        "version",
        "This version instead of the latest, also of a template that was removed.",
    )])
    .headers(&[parameter("If-None-Match", "Only if it is another version.")])
    .answer(200, Answer::Json(schema_of::<templates::TemplateView>))
    .others(&[(304, "It is that version.", Answer::Empty)])
    .failures(&[404]),
    Route::new(
        Method::PUT,
        "/v1/templates/{name}",
        "put_template",
        "Make a template of the team, or its next version; sessions that live keep what they were made of.",
        |call| Box::pin(templates::put(call)),
    )
    .request(Request::Json(schema_of::<templates::PutTemplate>))
    .headers(&[
        parameter("If-Match", "Only if it is this version, or with * if there is one."),
        parameter("If-None-Match", "With *: only if there is none."),
    ])
    .answer(200, Answer::Json(schema_of::<templates::TemplateView>))
    .others(&[(
        201,
        "There was none of this name.",
        Answer::Json(schema_of::<templates::TemplateView>),
    )])
    .failures(&[403, 404, 409, 412, 422]),
    Route::new(
        Method::DELETE,
        "/v1/templates/{name}",
        "delete_template",
        "Remove a template of the team; sessions that live keep what they were made of.",
        |call| Box::pin(templates::delete(call)),
    )
    .headers(&[parameter(
        "If-Match",
        "Only if it is this version, or with * if there is one.",
    )])
    .failures(&[403, 404, 409, 412]),
];
