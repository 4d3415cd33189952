//! The document: what each kind of route says of itself.

use serde_json::Value;

use super::bodies_in::swallow;
use super::bodies_out::fail;
use super::events::count;
use super::sockets::echoes;
use super::{BYTES, get, put};
use crate::api::openapi;
use crate::api::route::{Answer, parameter, schema_of};

#[test]
fn every_kind_of_route_is_described() {
    let mut all = [
        echoes(),
        get(Answer::Events(schema_of::<u64>), |call| {
            Box::pin(count(call))
        }),
        put(|call| Box::pin(swallow(call))),
        get(BYTES, |call| Box::pin(fail(call))),
    ]
    .concat();
    for (route, path) in all.iter_mut().zip(["/socket", "/events", "/put", "/get"]) {
        route.path = path;
    }
    all[0].status = 101;
    all[1].headers = const { &[parameter("Last-Event-ID", "Where to go on.")] };
    all[3].others = &[
        (206, "A part.", BYTES),
        (304, "It is the same.", Answer::Empty),
    ];
    let document = openapi::document_of(&all);
    let at = |pointer: &str| {
        document
            .pointer(&format!("/paths/{pointer}"))
            .unwrap_or(&Value::Null)
    };
    assert!(at("~1socket/get/responses/101").is_object());
    assert!(at("~1socket/get/responses/101/content").is_null());
    for status in [426, 501] {
        assert!(at(&format!("~1socket/get/responses/{status}")).is_object());
        assert!(at(&format!("~1events/get/responses/{status}")).is_null());
    }
    assert_eq!(at("~1events/get/parameters/0/in"), "header");
    assert_eq!(at("~1events/get/parameters/0/name"), "Last-Event-ID");
    let content = at("~1events/get/responses/200/content");
    assert_eq!(content["text/event-stream"]["schema"]["type"], "string");
    assert_eq!(
        content["text/event-stream"]["x-event-data"]["type"],
        "integer"
    );
    let binary = "application~1octet-stream";
    assert!(at(&format!("~1put/put/requestBody/content/{binary}")).is_object());
    assert!(at("~1put/put/responses/408").is_object());
    for status in [200, 206] {
        assert!(at(&format!("~1get/get/responses/{status}/content/{binary}")).is_object());
    }
    assert!(at("~1get/get/responses/304/content").is_null());
}
