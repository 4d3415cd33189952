//! Which of many a caller wants to see.

use serde::{Deserialize, Serialize};

use super::event::{KINDS, OutcomeResult};
use super::name::Name;
use super::session::Phase;
use crate::base::clock::Timestamp;
use crate::base::id::{EventId, SessionId};

/// Which sessions to list.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    /// Only of this team.
    pub team: Option<Name>,
    /// Only in one of these phases; empty means any.
    pub phases: Vec<Phase>,
    /// Only with this name.
    pub name: Option<Name>,
    /// Only with all of these labels.
    pub labels: Vec<(String, String)>,
    /// Only those made before this one; newest come first.
    pub before: Option<SessionId>,
    /// At most so many.
    pub limit: u32,
}

/// Most kinds in one question.
const MAX_KINDS: usize = 16;

/// Longest name of a principal that is looked for.
const MAX_PRINCIPAL_BYTES: usize = 256;

/// Which records to read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditFilter {
    /// Only of this session.
    pub session: Option<SessionId>,
    /// Only of these kinds; empty means any.
    pub kinds: Vec<String>,
    /// Only of who asked, as the record writes it.
    pub principal: Option<String>,
    /// Only outcomes that ended like this.
    pub result: Option<OutcomeResult>,
    /// Only the outcome of this intent.
    pub intent: Option<EventId>,
    /// Only written at this time or later.
    pub from: Option<Timestamp>,
    /// Only written before this time.
    pub to: Option<Timestamp>,
    /// Only records after this position.
    pub after: i64,
    /// Only records up to this position.
    pub until: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

/// A filter that asks for what no record can be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadFilter {
    /// Each costs a search of its own.
    #[error("kind: at most {MAX_KINDS}")]
    ManyKinds,
    /// Nothing is ever recorded under this name.
    #[error("kind: there is no {kind:?}; there are {}", KINDS.join(", "))]
    NoSuchKind {
        /// What was asked for.
        kind: String,
    },
    /// What is followed begins at a position.
    #[error("from, to: what is followed begins at a position and has no end; a list takes times")]
    TimesFollowed,
    /// Nobody is called so.
    #[error("principal: nobody's name is so long")]
    LongPrincipal,
}

impl AuditFilter {
    /// Makes sure that it asks for what there can be, in bounds: what a caller sent passes here.
    ///
    /// # Errors
    /// [`BadFilter`], a sentence for the caller.
    pub fn check(&self) -> Result<(), BadFilter> {
        if self.kinds.len() > MAX_KINDS {
            return Err(BadFilter::ManyKinds);
        }
        let unknown = |kind: &&String| !KINDS.contains(&kind.as_str());
        if let Some(kind) = self.kinds.iter().find(unknown) {
            return Err(BadFilter::NoSuchKind { kind: kind.clone() });
        }
        let who = self.principal.as_ref();
        if who.is_some_and(|who| who.len() > MAX_PRINCIPAL_BYTES) {
            return Err(BadFilter::LongPrincipal);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_record_can_be_is_not_looked_for() {
        let of = |kinds: &[&str], who: usize| {
            let filter = AuditFilter {
                kinds: kinds.iter().map(|&kind| kind.to_owned()).collect(),
                principal: Some("x".repeat(who)),
                ..AuditFilter::default()
            };
            filter.check()
        };
        assert_eq!(of(&["session.create", "key.create"], 256), Ok(()));
        assert_eq!(of(&["key.create"; 17], 1), Err(BadFilter::ManyKinds));
        let said = of(&["no.such"], 1).unwrap_err().to_string();
        assert!(said.contains("\"no.such\"") && said.contains("session.create"));
        assert_eq!(of(&[], 257), Err(BadFilter::LongPrincipal));
    }
}
