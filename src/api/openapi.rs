//! The OpenAPI 3.1 document, made from the table that dispatches.

use bytes::Bytes;
use http::StatusCode;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::error::{Problem, ProblemBody};
use super::route::{Access, Answer, Reply, Request, Route, schema_of};
use super::routes::ROUTES;

/// Failures that every route may answer with.
const COMMON_FAILURES: [u16; 8] = [400, 403, 408, 413, 415, 421, 429, 503];

/// Failures of every route that asks a session's guest: whatever a guest may refuse, it may refuse anywhere, and one that
/// is too old refuses all that it does not know.
const GUEST_FAILURES: [u16; 10] = [403, 404, 409, 412, 416, 422, 501, 502, 503, 507];

/// Failures of the opening handshake of a WebSocket.
const HANDSHAKE_FAILURES: [u16; 2] = [426, 501];

/// Answers with the document.
pub(super) fn serve() -> Result<Reply, Problem> {
    let text = serde_json::to_vec_pretty(&document())
        .map_err(|error| Problem::internal(error.to_string()))?;
    Ok(Reply::bytes(
        StatusCode::OK,
        "application/json",
        Bytes::from(text),
    ))
}

/// The document.
#[must_use]
pub fn document() -> Value {
    document_of(&ROUTES)
}

/// The document of a table.
pub(super) fn document_of(routes: &[Route]) -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for route in routes {
        let item = paths
            .entry(route.path)
            .or_insert_with(|| Value::Object(Map::new()));
        if let Some(item) = item.as_object_mut() {
            let method = route.method.as_str().to_ascii_lowercase();
            item.insert(method, operation(route, &mut generator));
        }
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Casemate",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut parameters: Vec<Value> = route
        .path
        .split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    for (place, named) in [("query", route.query), ("header", route.headers)] {
        parameters.extend(named.iter().map(|parameter| {
            json!({
                "name": parameter.name,
                "in": place,
                "description": parameter.about,
                "schema": {"type": "string"},
            })
        }));
    }
    let mut responses = Map::new();
    let problem = schema_of::<ProblemBody>(generator);
    let answers = [(route.status, "As asked.", route.answer)];
    for (status, about, answer) in answers.iter().chain(route.others) {
        let mut response = json!({"description": about});
        if let (Some(content), Some(response)) =
            (content(*answer, generator), response.as_object_mut())
        {
            response.insert("content".into(), content);
        }
        responses.insert(status.to_string(), response);
    }
    let handshake: &[u16] = match route.answer {
        Answer::WebSocket(_) => &HANDSHAKE_FAILURES,
        _ => &[],
    };
    let guest: &[u16] = if route.path.contains("{id}/") && route.failures.contains(&502) {
        &GUEST_FAILURES
    } else {
        &[]
    };
    let unauthenticated = (route.access == Access::Key).then_some(401);
    for status in route
        .failures
        .iter()
        .chain(&COMMON_FAILURES)
        .chain(handshake)
        .chain(guest)
        .copied()
        .chain(unauthenticated)
    {
        if responses.contains_key(&status.to_string()) {
            continue;
        }
        let title = StatusCode::from_u16(status)
            .ok()
            .and_then(|status| status.canonical_reason())
            .unwrap_or("Failure");
        responses.insert(
            status.to_string(),
            json!({
                "description": title,
                "content": {"application/problem+json": {"schema": problem}},
            }),
        );
    }
    let mut operation = json!({
        "operationId": route.name,
        "summary": route.about,
        "parameters": parameters,
        "responses": responses,
        "security": match route.access {
            Access::Open => json!([]),
            Access::Key | Access::Sandbox => json!([{"bearer": []}, {"key": []}]),
        },
    });
    let taken = match route.request {
        Request::None => None,
        Request::Json(schema) => Some(json!({"application/json": {"schema": schema(generator)}})),
        // Bytes as they are have no schema (OpenAPI 3.1.0, "Considerations for File Uploads").
        Request::Bytes { content_type, .. } => Some(json!({content_type: {}})),
    };
    if let (Some(content), Some(operation)) = (taken, operation.as_object_mut()) {
        operation.insert(
            "requestBody".into(),
            json!({"required": true, "content": content}),
        );
    }
    operation
}

/// What an answer carries, by content type.
fn content(answer: Answer, generator: &mut SchemaGenerator) -> Option<Value> {
    match answer {
        Answer::Empty | Answer::WebSocket(_) => None,
        Answer::Json(schema) => Some(json!({"application/json": {"schema": schema(generator)}})),
        Answer::Bytes(content_types) => {
            let contents = content_types
                .iter()
                .map(|content_type| ((*content_type).to_owned(), json!({})));
            Some(Value::Object(contents.collect()))
        }
        // 3.1 describes the stream as one text; the schema of each event's data is an extension.
        Answer::Events(schema) => Some(json!({
            "text/event-stream": {
                "schema": {"type": "string"},
                "x-event-data": schema(generator),
            },
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_guest_may_refuse_is_described() {
        let document = document();
        let answers = &document["paths"]["/v1/sessions/{id}/usage"]["get"]["responses"];
        for status in GUEST_FAILURES {
            assert!(answers[status.to_string()].is_object(), "{status}");
        }
        let answers = &document["paths"]["/v1/sessions"]["get"]["responses"];
        assert!(answers["507"].is_null());
    }

    #[test]
    fn every_route_is_described_and_every_reference_resolves() {
        let document = document();
        for route in ROUTES.iter() {
            let method = route.method.as_str().to_ascii_lowercase();
            assert!(
                document["paths"][route.path][method].is_object(),
                "{}",
                route.name
            );
        }
        let text = document.to_string();
        let mut seen = 0;
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
            seen += 1;
        }
        assert!(seen > 5);
    }
}
