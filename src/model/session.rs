//! A principal's lease on one sandbox.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::egress::SessionEgress;
use super::image::ImageDigest;
use super::lease::Lease;
use super::name::Name;
use super::sandbox::{Limits, SandboxId};
use super::setup::Setup;
use super::volume::SessionVolume;
use crate::base::clock::Timestamp;
use crate::base::id::SessionId;

/// How far a session has come. Drawn in `session/mod.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Admitted and recorded; nothing runs yet.
    Pending,
    /// Its sandbox is being made, started and linked.
    Starting,
    /// Its guest answers.
    Ready,
    /// Its sandbox stands still; whoever uses it wakes it.
    Paused,
    /// Its sandbox is being taken down.
    Stopping,
    /// Ended as somebody wished; nothing is left of it.
    Stopped,
    /// Ended as nobody wished; the reason says why.
    Failed,
}

impl Phase {
    /// Every phase, in the order of a life.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Starting,
        Self::Ready,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
    ];

    /// Whether nothing can follow.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }

    /// The word on the wire and in the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == text)
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a session is in its phase, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A client asked for it.
    Client,
    /// An operator asked for it.
    Operator,
    /// Its time was over.
    Deadline,
    /// Nobody used it for as long as it may be idle.
    Idle,
    /// The sandbox could not be brought up.
    LaunchFailed,
    /// podman did not answer, or not in time.
    RuntimeUnavailable,
    /// The template's image is no longer in podman's store.
    ImageMissing,
    /// The sandbox ended by itself.
    SandboxDied,
    /// The sandbox used all the memory that it may, and was ended for it.
    LimitMemory,
    /// After a restart there was no sandbox left to adopt.
    SandboxMissing,
    /// The sandbox runs, but its guest did not come back in time.
    GuestLost,
    /// What served one of its volumes has ended.
    VolumeLost,
    /// Its launch could not be written down: the disk of the state is full, or fails.
    StoreFailed,
    /// The state was restored from a backup, and the sandbox that it knew is no more.
    Restored,
    /// A defect in Casemate.
    Internal,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 15] = [
        Self::Client,
        Self::Operator,
        Self::Deadline,
        Self::Idle,
        Self::LaunchFailed,
        Self::RuntimeUnavailable,
        Self::ImageMissing,
        Self::SandboxDied,
        Self::LimitMemory,
        Self::SandboxMissing,
        Self::GuestLost,
        Self::VolumeLost,
        Self::StoreFailed,
        Self::Restored,
        Self::Internal,
    ];

    /// Whether somebody wished the end, who asked for it or set the time.
    #[must_use]
    pub const fn is_wished(self) -> bool {
        match self {
            Self::Client | Self::Operator | Self::Deadline | Self::Idle => true,
            Self::LaunchFailed
            | Self::RuntimeUnavailable
            | Self::ImageMissing
            | Self::SandboxDied
            | Self::LimitMemory
            | Self::SandboxMissing
            | Self::GuestLost
            | Self::VolumeLost
            | Self::StoreFailed
            | Self::Restored
            | Self::Internal => false,
        }
    }

    /// The word on the wire and in the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Operator => "operator",
            Self::Deadline => "deadline",
            Self::Idle => "idle",
            Self::LaunchFailed => "launch_failed",
            Self::RuntimeUnavailable => "runtime_unavailable",
            Self::ImageMissing => "image_missing",
            Self::SandboxDied => "sandbox_died",
            Self::LimitMemory => "limit_memory",
            Self::SandboxMissing => "sandbox_missing",
            Self::GuestLost => "guest_lost",
            Self::VolumeLost => "volume_lost",
            Self::StoreFailed => "store_failed",
            Self::Restored => "restored",
            Self::Internal => "internal",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// Where a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// How far it has come.
    pub phase: Phase,
    /// Why, for programs; `None` while nothing needs a reason.
    pub reason: Option<Reason>,
    /// Why, for people.
    pub message: Option<String>,
    /// Grows by one with each change of the status.
    pub generation: u64,
}

/// What was asked for, after defaults and checks. But for its labels and its own rules for what it reaches it never changes in a session's life.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionSpec {
    /// A name that no other live session of the team has.
    pub name: Option<Name>,
    /// The recipe's name.
    pub template: Name,
    /// The recipe's version when the session was admitted; 0 in records from before there were versions.
    pub template_version: u32,
    /// The image, pinned when the session was admitted.
    pub image: ImageDigest,
    /// The team that owns it.
    pub team: Name,
    /// Who asked, as the audit log writes principals.
    pub created_by: String,
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
    /// Given to every process. May hold what the client wants kept quiet: never logged.
    pub env: BTreeMap<String, String>,
    /// Where processes start when they do not say.
    pub workdir: Option<String>,
    /// What the sandbox may use.
    pub limits: Limits,
    /// Whether programs may run as root in it, as the template said when the session was admitted.
    pub allow_root: bool,
    /// Lifetime that was asked for, in seconds: from its admission, and from each time that it is woken.
    pub timeout_s: u64,
    /// What the template said of programs when the session was admitted.
    pub setup: Setup,
    /// What it finds below `/volumes`.
    pub volumes: Vec<SessionVolume>,
    /// What it may reach.
    pub egress: SessionEgress,
}

/// A session as the store keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Its name for programs.
    pub id: SessionId,
    /// What was asked for.
    pub spec: SessionSpec,
    /// Where it stands.
    pub status: Status,
    /// Its container, from creation to removal.
    pub sandbox: Option<SandboxId>,
    /// When it was admitted.
    pub created_at: Timestamp,
    /// When its guest first answered.
    pub ready_at: Option<Timestamp>,
    /// How long it may go on.
    pub lease: Lease,
    /// When it reached its final phase.
    pub ended_at: Option<Timestamp>,
}

/// Most labels of a session.
pub const MAX_LABELS: usize = 64;
/// Longest label key or value, in bytes.
pub const MAX_LABEL_BYTES: usize = 256;
/// Longest lifetime: 30 days.
pub const MAX_TIMEOUT_S: u64 = 30 * 24 * 3600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reads_back_and_is_the_wire_word() {
        for phase in Phase::ALL {
            assert_eq!(Phase::parse(phase.as_str()), Some(phase));
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.as_str());
        }
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }
}
