//! What was found when the daemon looked whether this machine and its settings are fit.

use serde::{Deserialize, Serialize};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is as it must be.
    Passed,
    /// It should be otherwise, and nothing stands still because of it.
    Warned,
    /// It must be otherwise: production mode does not start like this.
    Failed,
}

impl Verdict {
    /// Its word, for people and programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Warned => "warned",
            Self::Failed => "failed",
        }
    }
}

/// One check that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examined {
    /// Its stable name.
    pub name: String,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found: effective values, never a secret.
    pub found: String,
    /// What to do, unless it passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}
