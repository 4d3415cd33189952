//! Every key of a rule's file, one line each. What a rule may say is the policy's, and the same for rules of the store.

use std::fmt::Display;
use std::str::FromStr;

use super::document::Value;
use super::section::Section;
use crate::base::clock::Timestamp;
use crate::policy::{Effect, Rule};

/// The directory beside the main file, and what its files are called in problems.
pub(super) const DIRECTORY: &str = "policy";

/// One rule. `None` when it does not say whether it allows or denies, which was noted.
pub(super) fn rule(keys: &Section<'_>) -> Option<Rule> {
    let effect = keys.single("effect", |value| {
        let text = text(value)?;
        let effect = text.parse::<Effect>().map_err(str::to_owned)?;
        Ok(Shown(text, effect))
    });
    if effect.is_none() && !keys.is_set("effect") {
        keys.problem("effect", "is missing; write allow or deny");
    }
    let rule = Rule {
        effect: effect.as_ref().map_or(Effect::Deny, |shown| shown.1),
        reason: keys.optional("reason"),
        teams: set(keys, "teams"),
        roles: set(keys, "roles"),
        principals: set(keys, "principals"),
        actions: set(keys, "actions"),
        templates: set(keys, "templates"),
        from: instant(keys, "from"),
        until: instant(keys, "until"),
        hours: keys.single("hours", parsed),
        days: set(keys, "days"),
    };
    for problem in rule.problems() {
        keys.problem_at(&[problem.field.to_owned()], problem.problem);
    }
    effect.map(|_| rule)
}

/// Something with the text that it was read from.
struct Shown<T>(String, T);

impl<T> Display for Shown<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn set<T: FromStr<Err: Display> + Ord>(
    keys: &Section<'_>,
    key: &'static str,
) -> Option<std::collections::BTreeSet<T>> {
    let entries = keys.list(key, parsed);
    entries.map(|entries| entries.into_iter().collect())
}

fn instant(keys: &Section<'_>, key: &'static str) -> Option<Timestamp> {
    keys.single(key, |value| {
        let text = serde_json::Value::String(text(value)?);
        let read = serde_json::from_value::<Timestamp>(text);
        read.map_err(|_| "is not an instant of RFC 3339, as in 2026-03-29T08:00:00Z".to_owned())
    })
}

fn parsed<T: FromStr<Err: Display>>(value: &Value) -> Result<T, String> {
    text(value)?.parse().map_err(|why: T::Err| why.to_string())
}

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::Text(text) => Ok(text.clone()),
        _ => Err("expected text; put it in quotes".to_owned()),
    }
}
