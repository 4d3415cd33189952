//! `casemate admin status`: how casemated is, and what it lacks.

use casemate::admin::protocol::{Answer, Request, StatusView};
use casemate::base::exit::Exit;
use casemate::model::name::Name;
use serde_json::json;

use super::Context;
use crate::failure::Failure;
use crate::output;
use crate::screen::or_absent;

/// 0 when casemated can do its work, 69 when it cannot.
pub async fn execute(context: &Context) -> Result<u8, Failure> {
    let Answer::Status(view) = context.admin().ask(Request::Status).await? else {
        return Err(Failure::mismatch());
    };
    let ready = view.ready;
    if context.json {
        let checks: Vec<_> = view
            .checks
            .iter()
            .map(|(name, problem)| json!({"name": name, "ok": problem.is_none(), "problem": problem}))
            .collect();
        let mut whole = json!(view);
        if let Some(fields) = whole.as_object_mut() {
            fields.insert("checks".to_owned(), checks.into());
        }
        output::json(&whole)?;
    } else {
        output::fields(&fields(&view))?;
        let rows: Vec<_> = view
            .checks
            .into_iter()
            .map(|(name, problem)| vec![name, problem.unwrap_or_else(|| "ok".to_owned())])
            .collect();
        output::table(&["CHECK", "STATE"], &rows)?;
    }
    if ready {
        Ok(Exit::Ok.code())
    } else {
        Err(Failure::unavailable(
            "casemated cannot do its work; the checks above say what is wrong, journalctl -u casemated tells the whole story",
        ))
    }
}

fn fields(view: &StatusView) -> Vec<(&'static str, String)> {
    let list = |words: Vec<&str>| or_absent((!words.is_empty()).then(|| words.join(" ")));
    let templates = view.templates.iter().map(Name::as_str).collect();
    let unenforced = view.unenforced_limits.iter().map(String::as_str).collect();
    let ready = if view.ready { "yes" } else { "no" };
    vec![
        ("ready", ready.to_owned()),
        ("version", view.version.clone()),
        ("podman", view.podman_version.clone()),
        ("runtime", view.runtime_version.clone()),
        (
            "sessions",
            format!("{} of {}", view.live_sessions, view.max_sessions),
        ),
        ("templates", list(templates)),
        ("limits not enforced here", list(unenforced)),
        (
            "last backup",
            or_absent(view.last_backup_at.map(|at| at.to_string())),
        ),
    ]
}
