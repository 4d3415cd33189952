//! Routes of the daemon: its record, its health, its description.

use http::Method;

use crate::api::openapi;
use crate::api::route::{Answer, Parameter, Route, parameter, schema_of};
use crate::api::v1::{admin, audit, health};

const SESSION: Parameter = parameter("session", "Only of this session; members must name one.");
const KIND: Parameter = parameter(
    "kind",
    "Only of these kinds, with commas between them, 16 at most.",
);
const PRINCIPAL: Parameter = parameter("principal", "Only of who asked, as the record writes it.");
const OUTCOME: Parameter = parameter("outcome", "Only outcomes that are `ok`, or `failed`.");
const INTENT: Parameter = parameter("intent", "Only the outcome of this intent.");
const FROM: Parameter = parameter(
    "from",
    "Only what was written at this time (RFC 3339) or later.",
);
const TO: Parameter = parameter("to", "Only what was written before this time (RFC 3339).");
const AFTER: Parameter = parameter(
    "after",
    "Only records after this position; all that are not archived when absent, or 0.",
);

pub(super) const ROUTES: &[Route] = &[
    Route::new(
        Method::GET,
        "/v1/audit",
        "read_audit",
        "Read what was recorded, in its order.",
        |call| Box::pin(audit::list(call)),
    )
    .query(&[
        SESSION,
        KIND,
        PRINCIPAL,
        OUTCOME,
        INTENT,
        FROM,
        TO,
        parameter("cursor", "`next_cursor` of the page before."),
        parameter("limit", "At most so many, 1 to 200; 50 when absent."),
    ])
    .answer(200, Answer::Json(schema_of::<audit::AuditPage>))
    .failures(&[403, 404, 410]),
    Route::new(
        Method::GET,
        "/v1/audit/stream",
        "follow_audit",
        "Read what was recorded and what will be, as events `record` whose `id` is the record's position; each one's data is the record's line as it is exported.",
        |call| Box::pin(audit::stream(call)),
    )
    .query(&[
        SESSION,
        KIND,
        PRINCIPAL,
        OUTCOME,
        INTENT,
        AFTER,
        parameter("last", "Begin with what matches of the last so many records, 0 to 10000, instead."),
    ])
    .headers(&[parameter(
        "Last-Event-ID",
        "Go on after this event: none is missed, and none comes twice.",
    )])
    .answer(200, Answer::Events(schema_of::<audit::RecordView>))
    .failures(&[403, 404, 410]),
    Route::new(
        Method::GET,
        "/v1/audit/export",
        "export_audit",
        "Take the record away: a line of JSON for each, then a signed checkpoint. With `after` the first line says what they follow.",
        |call| Box::pin(audit::export(call)),
    )
    .query(&[
        AFTER,
        parameter("until", "Only records up to this position; all there are when absent."),
        parameter(
            "format",
            "`jsonl`, which can be verified, or `ocsf`: events of the Open Cybersecurity Schema Framework, which cannot.",
        ),
    ])
    .answer(200, Answer::Bytes(&["application/x-ndjson"]))
    .failures(&[403, 404, 410]),
    Route::new(
        Method::GET,
        "/v1/audit/verify",
        "verify_audit",
        "Whether the record is what was written. What is wrong is an answer, not a failure.",
        |call| Box::pin(audit::verify(call)),
    )
    .query(&[
        AFTER,
        parameter("limit", "At most so many records, 1 to 100000, which is what it is when absent; then `next` says where to go on."),
    ])
    .answer(200, Answer::Json(schema_of::<audit::VerifyView>))
    .failures(&[403, 404, 410]),
    Route::new(
        Method::GET,
        "/v1/admin",
        "administer",
        "Carry out one command of an operator's, who presents the operator token, over a WebSocket whose binary messages are the bytes of the admin socket's protocol: casemate --operator-file FILE admin.",
        |call| Box::pin(admin::open(call)),
    )
    .answer(101, Answer::WebSocket(Some(admin::PROTOCOL)))
    .failures(&[403]),
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
