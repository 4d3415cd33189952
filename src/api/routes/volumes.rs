//! Routes of volumes.

use http::Method;

use crate::api::route::{Answer, Request, Route, schema_of};
use crate::api::v1::volumes;

pub(super) const ROUTES: &[Route] = &[
    Route::new(
        Method::GET,
        "/v1/volumes",
        "list_volumes",
        "List the team's volumes, by name.",
        |call| Box::pin(volumes::list(call)),
    )
    .answer(200, Answer::Json(schema_of::<volumes::VolumeList>)),
    Route::new(
        Method::POST,
        "/v1/volumes",
        "create_volume",
        "Make a volume of the team: files that outlive sessions, in a file system of a fixed size.",
        |call| Box::pin(volumes::create(call)),
    )
    .request(Request::Json(schema_of::<volumes::CreateVolume>))
    .answer(201, Answer::Json(schema_of::<volumes::VolumeView>))
    .failures(&[409, 501]),
    Route::new(
        Method::GET,
        "/v1/volumes/{name}",
        "get_volume",
        "One volume, with the sessions that have it.",
        |call| Box::pin(volumes::get(call)),
    )
    .answer(200, Answer::Json(schema_of::<volumes::VolumeView>))
    .failures(&[404]),
    Route::new(
        Method::DELETE,
        "/v1/volumes/{name}",
        "delete_volume",
        "Remove a volume that no session has, with all that is in it.",
        |call| Box::pin(volumes::delete(call)),
    )
    .failures(&[404, 409]),
];
