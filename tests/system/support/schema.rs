//! Holds answers against the OpenAPI document: types, required fields, words of enumerations. Only
//! the part of JSON Schema that the document uses. Of what is not JSON, the content type.

use std::sync::OnceLock;

use http::Method;
use serde_json::Value;

use super::client::Answer;

/// The document that the daemon serves, from the same table.
pub fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(casemate::api::openapi::document)
}

/// Fails when an answer of a route is not as the document says. Paths and methods that no route has
/// are answered by the dispatcher and not in it.
#[track_caller]
pub fn check(method: &Method, path: &str, answer: &Answer) {
    let path = path.split('?').next().unwrap();
    let paths = document()["paths"].as_object().unwrap();
    let Some((template, item)) = paths.iter().find(|(template, _)| fits(template, path)) else {
        return;
    };
    let operation = &item[method.as_str().to_ascii_lowercase()];
    if operation.is_null() {
        return;
    }
    let status = answer.status.as_u16().to_string();
    let response = &operation["responses"][&status];
    assert!(
        response.is_object(),
        "{method} {template} answered {status}, which the document does not name: {:?}",
        answer.body
    );
    let Some(content) = response["content"].as_object() else {
        return;
    };
    let kind = answer.headers["content-type"].to_str().unwrap();
    let media = content
        .get(kind)
        .unwrap_or_else(|| panic!("{method} {template} answered {status} with {kind}"));
    if !matches!(kind, "application/json" | "application/problem+json") {
        // Bytes and events are what they are: the document names their type, and no more.
        return;
    }
    let mut problems = Vec::new();
    judge(&media["schema"], &answer.json(), "", &mut problems);
    assert!(
        problems.is_empty(),
        "{method} {template} {status}: {problems:?} in {:?}",
        answer.body
    );
}

fn fits(template: &str, path: &str) -> bool {
    let (mut wanted, mut found) = (template.split('/'), path.split('/'));
    loop {
        match (wanted.next(), found.next()) {
            (None, None) => return true,
            (Some(w), Some(f)) if w == f || (w.starts_with('{') && !f.is_empty()) => {}
            _ => return false,
        }
    }
}

fn judge(schema: &Value, value: &Value, at: &str, problems: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document()
            .pointer(reference.trim_start_matches('#'))
            .unwrap_or_else(|| panic!("{reference} leads nowhere"));
        return judge(target, value, at, problems);
    }
    for alternatives in ["anyOf", "oneOf"] {
        if let Some(schemas) = schema[alternatives].as_array() {
            let fits = schemas.iter().any(|schema| {
                let mut problems = Vec::new();
                judge(schema, value, at, &mut problems);
                problems.is_empty()
            });
            if !fits {
                problems.push(format!("{at}: {value} fits none of the alternatives"));
            }
        }
    }
    if schema.get("const").is_some_and(|only| only != value) {
        problems.push(format!("{at}: {value} is not {}", schema["const"]));
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        problems.push(format!("{at}: {value} is none of {words:?}"));
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !types.is_empty() && !types.iter().any(|name| is(name, value)) {
        problems.push(format!("{at}: {value} is no {types:?}"));
    }
    if let Some(object) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten() {
            if !object.contains_key(name.as_str().unwrap()) {
                problems.push(format!("{at}: {name} is missing"));
            }
        }
        let known = schema["properties"].as_object();
        for (name, value) in object {
            match known.and_then(|known| known.get(name)) {
                Some(schema) => judge(schema, value, &format!("{at}/{name}"), problems),
                None if schema["additionalProperties"].is_object() => {
                    let more = &schema["additionalProperties"];
                    judge(more, value, &format!("{at}/{name}"), problems);
                }
                None if known.is_some() => problems.push(format!("{at}: {name} is not described")),
                None => {}
            }
        }
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (index, value) in values.iter().enumerate() {
            judge(items, value, &format!("{at}/{index}"), problems);
        }
    }
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the document has a type {other}"),
    }
}
