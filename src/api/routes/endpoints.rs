//! Routes of links to ports in sessions, and of byte streams to them. The ports themselves are no routes: `api::endpoint`.

use http::Method;

use crate::api::route::{Answer, Request, Route, schema_of};
use crate::api::v1::endpoints;

pub(super) const ROUTES: &[Route] = &[
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/links/{port}",
        "create_link",
        "Make a signed link to a port in a session, for a browser or for others; it ends with the session and with the key that made it. \
         The port itself is at the link's host name, or below /v1/sessions/{id}/ports/{port}/ with every method and an API key.",
        |call| Box::pin(endpoints::link(call)),
    )
    .request(Request::Json(schema_of::<endpoints::CreateLink>))
    .answer(201, Answer::Json(schema_of::<endpoints::LinkView>))
    .failures(&[403, 404, 409, 422]),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/streams/{port}",
        "open_stream",
        "A byte stream to a port in a session: binary messages are its bytes, the text end says that no more come.",
        |call| Box::pin(endpoints::stream(call)),
    )
    .answer(101, Answer::WebSocket(Some(endpoints::PROTOCOL)))
    .failures(&[403, 404, 409, 502]),
];
