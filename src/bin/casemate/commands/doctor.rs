//! `casemate doctor`: whether this machine and its settings are fit, and what to do where they are not.

use casemate::admin::protocol::{Answer, Request};
use casemate::base::exit::Exit;
use casemate::model::check::Examined;

use super::Context;
use crate::failure::Failure;
use crate::output;

/// 0 when every check passed or warned, 1 when one failed.
pub async fn execute(context: &Context) -> Result<u8, Failure> {
    let Answer::Doctor(view) = context.admin().ask(Request::Doctor).await? else {
        return Err(Failure::mismatch());
    };
    if context.json {
        output::json(&view)?;
    } else {
        let rows: Vec<_> = view.checks.iter().map(row).collect();
        output::table(&["CHECK", "VERDICT", "FOUND", "MS"], &rows)?;
        for check in &view.checks {
            if let Some(mend) = &check.mend {
                output::line(&format!(
                    "{} {}: {mend}",
                    check.name,
                    check.verdict.as_str()
                ))?;
            }
        }
    }
    if view.fit {
        Ok(Exit::Ok.code())
    } else {
        Err(Failure::new(
            Exit::Failed,
            "this machine is not fit for production mode; the lines above say what to do, docs/hardening.md why",
        ))
    }
}

fn row(check: &Examined) -> Vec<String> {
    vec![
        check.name.clone(),
        check.verdict.as_str().to_owned(),
        check.found.clone(),
        check.took_ms.to_string(),
    ]
}
