//! A record in the Open Cybersecurity Schema Framework (schema.ocsf.io, version 1.3.0): class 6003, API Activity.
//!
//! For programs that collect security events. It cannot be verified: what is, are the lines themselves.

use serde_json::{Value, json};

use crate::base::clock::Timestamp;

const CLASS: u64 = 6003;

/// The same event as OCSF says it; `None` when the line is no record.
#[must_use]
pub fn event(line: &str) -> Option<Value> {
    let record: Value = serde_json::from_str(line).ok()?;
    let text = |name: &str| record.get(name).and_then(Value::as_str);
    let kind = record.get("event")?.get("kind")?.as_str()?;
    let at: Timestamp = serde_json::from_value(record.get("at")?.clone()).ok()?;
    let (activity_id, activity_name) = activity(kind);
    let (status_id, status) = match record.get("outcome").and_then(|found| found.get("result")) {
        Some(result) if result == "ok" => (1, "Success"),
        Some(_) => (2, "Failure"),
        None if is_refusal(kind) => (2, "Failure"),
        None => (0, "Unknown"),
    };
    let (severity_id, severity) = match kind {
        "audit.alarm" => (5, "Critical"),
        kind if is_refusal(kind) => (3, "Medium"),
        _ => (1, "Informational"),
    };
    let address = record.get("event").and_then(|event| event.get("address"));
    Some(json!({
        "class_uid": CLASS,
        "class_name": "API Activity",
        "category_uid": 6,
        "category_name": "Application Activity",
        "activity_id": activity_id,
        "activity_name": activity_name,
        "type_uid": CLASS * 100 + activity_id,
        "time": at.as_millis(),
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status_id,
        "status": status,
        "status_code": record.get("outcome").and_then(|outcome| outcome.get("code")),
        "actor": {"user": {"uid": text("principal")}},
        "src_endpoint": {"ip": address},
        "api": {
            "operation": kind,
            "request": {"uid": text("intent").or(text("id"))},
        },
        "resources": text("session").map(|session| json!([{"type": "session", "uid": session}])),
        "metadata": {
            "version": "1.3.0",
            "product": {"name": "Casemate", "vendor_name": "Casemate"},
            "log_name": "audit",
            "uid": text("id"),
            "sequence": record.get("seq"),
        },
        "unmapped": {
            "stage": text("stage"),
            "event": record.get("event"),
            "outcome": record.get("outcome"),
            "digest": text("digest"),
        },
    }))
}

fn is_refusal(kind: &str) -> bool {
    matches!(
        kind,
        "auth.failed" | "access.denied" | "access.limited" | "admin.refused" | "egress.denied"
    )
}

fn activity(kind: &str) -> (u64, &'static str) {
    let verb = kind.rsplit('.').next().unwrap_or_default();
    match verb {
        "create" | "put" | "start" | "import" | "attach" => (1, "Create"),
        "read" => (2, "Read"),
        "change" | "write" | "pause" | "resume" | "reload" | "phase" | "snapshot" | "input" => {
            (3, "Update")
        }
        "delete" | "remove" | "stop" | "orphan" => (4, "Delete"),
        _ => (99, "Other"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_an_api_activity() {
        let line = r#"{"seq":7,"id":"evt_a","at":"1970-01-01T00:00:01.000Z","stage":"outcome","intent":"evt_b","principal":"key_x","session":"ses_x","event":{"kind":"session.delete"},"outcome":{"result":"failed","code":"x"},"digest":"00"}"#;
        let event = event(line).unwrap();
        assert_eq!(event["type_uid"], 600_304);
        assert_eq!(event["time"], 1000);
        assert_eq!(event["status"], "Failure");
        assert_eq!(event["actor"]["user"]["uid"], "key_x");
        assert_eq!(event["api"]["request"]["uid"], "evt_b");
        assert_eq!(event["resources"][0]["uid"], "ses_x");
        assert_eq!(super::event("{}"), None);
    }
}
