//! Which of many a caller wants to see.

use super::name::Name;
use super::session::Phase;
use crate::base::id::SessionId;

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
    pub kinds: &'static [&'static str],
    /// Only records after this position.
    pub after: i64,
    /// At most so many.
    pub limit: u32,
}
