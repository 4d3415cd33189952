//! Which of many a caller wants to see.

use super::event::OutcomeResult;
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

/// Which records to read.
#[derive(Clone, Debug, Default)]
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
