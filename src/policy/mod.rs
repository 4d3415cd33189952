//! Floor 2: pure decisions on the nouns. No I/O, no clock; the same question has the same answer.
//!
//! Deny is the default: what nothing allows is denied. What denies wins over what allows, in this order:
//!
//! 1. another team's resource is answered as if it did not exist, so that nobody can probe for names;
//! 2. a token of one session reaches that session only;
//! 3. what no client may ever do (administer; make things for other teams), and an auditor nothing but read the record;
//! 4. scopes that a key or token was narrowed to;
//! 5. the operator's rules that deny;
//! 6. the role, or a rule of the operator's that allows.
//!
//! Operators, who own the machine, and Casemate itself are allowed everything: a rule that could lock out operators would only
//! make them edit the file.

mod action;
pub mod egress;
pub mod rate;
mod rule;
#[cfg(test)]
mod tests;

pub use self::action::{ACTIONS, Action, Resource, UnknownAction};
pub use self::rule::{
    Condition, Day, Effect, Hours, MAX_ENTRIES, MAX_REASON_BYTES, MAX_RULES, NotADay, NotHours,
    Rule, RuleProblem,
};

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::base::clock::Timestamp;
use crate::model::grant::{Role, Scope};
use crate::model::name::Name;
use crate::model::principal::{Client, Principal};

/// The operator's rules, by name: those of files and those of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<NamedRule>);

/// A rule and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedRule {
    /// Its name.
    pub name: Name,
    /// Where it is written.
    pub origin: Origin,
    /// What it says.
    pub rule: Rule,
}

/// Where a rule is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// In a file of the configuration.
    File,
    /// In the store.
    Store,
}

/// The answer, with the rule that gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
    /// The rule's name, for the refusal and the record.
    pub rule: Cow<'static, str>,
    /// Why, for people.
    pub reason: Cow<'static, str>,
    /// Whether the caller must be told that the thing does not exist.
    pub hidden: bool,
}

/// A rule that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Considered {
    /// Its name.
    pub name: Name,
    /// Where it is written.
    pub origin: Origin,
    /// What it says.
    pub effect: Effect,
    /// The first of its conditions that does not hold; `None`: it speaks.
    pub misses: Option<Condition>,
}

impl Rules {
    /// These rules.
    #[must_use]
    pub fn new(rules: Vec<NamedRule>) -> Self {
        Self(rules)
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[NamedRule] {
        &self.0
    }

    /// The first that says so.
    fn first(&self, effect: Effect, speaks: impl Fn(&Rule) -> bool) -> Option<&NamedRule> {
        let mut rules = self.0.iter();
        rules.find(|named| named.rule.effect == effect && speaks(&named.rule))
    }
}

fn answer(allowed: bool, rule: &'static str, reason: impl Into<Cow<'static, str>>) -> Decision {
    Decision {
        allowed,
        rule: Cow::Borrowed(rule),
        reason: reason.into(),
        hidden: false,
    }
}

fn hide(rule: &'static str, reason: &'static str) -> Decision {
    Decision {
        hidden: true,
        ..answer(false, rule, reason)
    }
}

/// What an operator's rule says.
fn said(named: &NamedRule) -> Decision {
    let reason = named.rule.reason.clone();
    Decision {
        allowed: named.rule.effect == Effect::Allow,
        rule: Cow::Owned(named.name.to_string()),
        reason: reason.map_or(Cow::Borrowed("the operator's rule says so"), Cow::Owned),
        hidden: false,
    }
}

/// Decides whether `principal` may do `action` to `resource` at this time.
#[must_use]
pub fn decide(
    rules: &Rules,
    principal: &Principal,
    action: Action,
    resource: &Resource<'_>,
    now: Timestamp,
) -> Decision {
    match principal {
        Principal::Operator { .. } | Principal::Remote { .. } => {
            answer(true, "operators-administer", "operators own this machine")
        }
        Principal::Daemon => answer(true, "casemate-keeps-house", "Casemate itself"),
        Principal::Client(client) => decide_for(rules, client, action, resource, now),
    }
}

fn decide_for(
    rules: &Rules,
    client: &Client,
    action: Action,
    resource: &Resource<'_>,
    now: Timestamp,
) -> Decision {
    if resource.team.is_some_and(|team| *team != client.team) {
        return hide("teams-are-apart", "it belongs to another team");
    }
    if let Some(own) = client.session {
        if resource.session.is_some_and(|session| session != own) {
            return hide(
                "tokens-are-for-one-session",
                "the token is for another session",
            );
        }
        if resource.session.is_none() {
            return answer(
                false,
                "tokens-are-for-one-session",
                "the token is for one session, and this is more",
            );
        }
    }
    let Some(scope) = action.scope() else {
        return answer(
            false,
            "only-operators-administer",
            "operators do this, at the admin socket or with the operator token",
        );
    };
    if resource.is_shared {
        return answer(
            false,
            "members-make-templates-for-their-own-team-only",
            "what every team gets is the operator's to say",
        );
    }
    if client.grant.role == Role::Auditor && scope != Scope::AuditRead {
        let reason = "an auditor reads the record and does nothing else";
        return answer(false, "auditors-read-the-record", reason);
    }
    let named = client.grant.scopes.as_ref();
    if named.is_some_and(|scopes| !scopes.contains(&scope)) {
        return answer(
            false,
            "scopes-narrow",
            format!("the key or token was made without the scope {scope}"),
        );
    }
    let speaks = |rule: &Rule| rule.misses(client, action, resource, now).is_none();
    if let Some(denies) = rules.first(Effect::Deny, speaks) {
        return said(denies);
    }
    if client.grant.role.may(scope) {
        return answer(
            true,
            "roles-allow",
            format!("a {} has the scope {scope}", client.grant.role),
        );
    }
    match rules.first(Effect::Allow, speaks) {
        Some(allows) => said(allows),
        None => answer(
            false,
            "nothing-allows",
            format!(
                "a {} does not have the scope {scope}, and no rule gives it",
                client.grant.role
            ),
        ),
    }
}

/// Every rule of the operator's, and whether it speaks here.
#[must_use]
pub fn consider(
    rules: &Rules,
    client: &Client,
    action: Action,
    resource: &Resource<'_>,
    now: Timestamp,
) -> Vec<Considered> {
    let rules = rules.all().iter();
    rules
        .map(|named| Considered {
            name: named.name.clone(),
            origin: named.origin,
            effect: named.rule.effect,
            misses: named.rule.misses(client, action, resource, now),
        })
        .collect()
}
