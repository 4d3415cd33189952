//! Floor 6: a session from admission to the last clean-up.
//!
//! ```text
//!   Pending --Begin--> Starting --Linked--> Ready <--Resume-- Paused     (Pending --Claimed--> Ready, from the [`pool`])
//!      |                  |                   |  --Pause-->     |
//!      +------------------+-------End---------+-----------------+   (client, operator, deadline, idle,
//!                         v                           launch failed, sandbox died or missing, guest lost)
//!                      Stopping --TornDown--> Stopped   if somebody wished it
//!                                         \-> Failed    if nobody did
//! ```
//!
//! *Who owns what.* One task, the [`runner`], owns one session: its record, its sandbox, its link
//! directory and its link. Everybody else holds a [`handle`]: it reads what the runner publishes on
//! a `watch` channel, asks it to end (which interrupts whatever it does), has [`wish`]es, which wait in
//! a short queue, and runs programs over the current link without going through the runner. Whoever
//! uses a session that is paused wakes it; who uses it, and since when nobody does, is its [`activity`]. The [`manager`] owns the table of handles.
//!
//! *What is kept when.* A change is written to the store before it is published, with its audit
//! record in the same transaction. Only an end goes on without: a full disk must not keep a sandbox
//! alive, so the sandbox is torn down while the record is retried.
//!
//! *After a crash* [`reconcile`] starts a runner for every session that the store calls live and
//! removes every sandbox and link directory that no such session owns. The runner adopts what runs,
//! launches again what had not come to run, and ends what is gone.

pub mod activity;
pub mod canary;
pub mod checkpoints;
pub mod egress;
pub mod gate;
pub mod guest;
pub mod handle;
pub mod images;
pub mod launch;
pub mod lease;
pub mod manager;
pub mod pool;
pub mod reached;
pub mod ready;
pub mod reconcile;
pub mod run;
pub mod runner;
pub mod state;
pub mod templates;
pub mod trust;
pub mod usage;
pub mod volumes;
pub mod wish;

use self::gate::Refused;
use crate::audit::AuditError;
use crate::base::id::SessionId;
use crate::model::name::Name;
use crate::model::session::{Phase, Reason};
use crate::model::volume::{Holder, VolumeMode};
use crate::runtime::RuntimeError;
use crate::store::StoreError;
use crate::volume::VolumeError;

/// Why a session cannot do what was asked, split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// There is no such session. Tell the caller.
    #[error("there is no such session")]
    NotFound,
    /// There is no such template. Tell the caller.
    #[error("there is no template {0}")]
    UnknownTemplate(Name),
    /// The request cannot be granted as it is. Tell the caller which field.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field on the wire.
        field: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// A live session of the team has the name. Tell the caller.
    #[error("another live session has the name {0}")]
    NameTaken(Name),
    /// A volume cannot be had, made or removed. Tell the caller.
    #[error(transparent)]
    Volume(VolumeRefusal),
    /// A volume's file cannot be made.
    #[error("make the volume's file")]
    VolumeFile(#[source] VolumeError),
    /// Another request came under the same idempotency key. Tell the caller.
    #[error("another request was made with this Idempotency-Key")]
    KeyReused,
    /// The budget of sessions is used up, and it did not get better while the request waited. Try again later.
    #[error("{}", full(*.0))]
    Full(Refused),
    /// The session is not ready. Tell the caller, who may wait.
    #[error("the session is {phase}")]
    NotReady {
        /// Where it stands.
        phase: Phase,
        /// Why.
        reason: Option<Reason>,
    },
    /// Too much runs in the session already. Try again later.
    #[error("{0} programs run in the session already")]
    Busy(usize),
    /// More is asked of the session at once than can wait. Try again later.
    #[error("too much is asked of the session at once")]
    Overloaded,
    /// The daemon is stopping. Try again later.
    #[error("casemated is stopping")]
    Draining,
    /// The guest refused, for a reason that the caller can mend.
    #[error("{message}")]
    Refused {
        /// One of [`casemate_link::refusal::code`], or `guest_refused` for what a guest made up.
        code: &'static str,
        /// The guest's sentence.
        message: String,
    },
    /// The link was lost or misbehaved. The program may have run.
    #[error("the session's guest is gone")]
    GuestGone(#[source] casemate_link::daemon::LinkError),
    /// The sandbox could not be brought up. The session's message and the log say why.
    #[error("the sandbox of {session} could not be brought up ({})", reason.as_str())]
    LaunchFailed {
        /// The session, which stays to be looked at.
        session: SessionId,
        /// Why, for programs.
        reason: Reason,
    },
    /// The runtime failed.
    #[error("run the session's sandbox")]
    Runtime(#[source] RuntimeError),
    /// The store failed.
    #[error("keep the session")]
    Store(#[source] StoreError),
    /// The record cannot be written; nothing was done.
    #[error("record the session")]
    Audit(#[source] AuditError),
    /// The machine failed us: a directory, a socket, randomness.
    #[error("{doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// Why a volume cannot be had, made or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeRefusal {
    /// The team has none of this name, and it is not what was asked about: a session wants it.
    #[error("the team has no volume {0}; make it first, or take it out of volumes")]
    Unknown(Name),
    /// The team has none of this name.
    #[error("there is no volume {0}")]
    NotFound(Name),
    /// A session that lives has it.
    #[error("the volume {0} is attached {how} to the session {session}: end that first{mend}", how = .1.mode.as_str(), session = .1.session, mend = instead(.1.mode))]
    Held(Name, Holder),
    /// Another volume of the team has the name.
    #[error("the team has a volume {0} already")]
    NameTaken(Name),
    /// The team has as many as it may.
    #[error("the team has {0} volumes already, which is the most; remove one first")]
    Full(u32),
    /// They would be larger together than they may be.
    #[error(
        "the team's volumes may be {0} bytes larger together, and no more; take a smaller size, or remove one first"
    )]
    TooLarge(u64),
    /// This machine cannot have volumes.
    #[error("this machine cannot have volumes: {0}")]
    Unavailable(String),
}

const fn instead(mode: VolumeMode) -> &'static str {
    match mode {
        VolumeMode::Rw => "",
        VolumeMode::Ro => ", or ask for ro",
    }
}

impl VolumeRefusal {
    /// A stable word for programs and for the record.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown_volume",
            Self::NotFound(_) => "volume_not_found",
            Self::Held(..) => "volume_in_use",
            Self::NameTaken(_) => "name_taken",
            Self::Full(_) => "too_many_volumes",
            Self::TooLarge(_) => "volumes_too_large",
            Self::Unavailable(_) => "volumes_unavailable",
        }
    }
}

const fn full(refused: Refused) -> &'static str {
    match refused {
        Refused::Full => "as many sessions are live as this machine may have",
        Refused::TeamFull => "the team has as many sessions as it may have",
        Refused::Machine => "the machine is short of memory",
        Refused::Queue => "too many requests wait for a session already",
    }
}

impl SessionError {
    /// A stable word for programs and for the record.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound => "session_not_found",
            Self::UnknownTemplate(_) => "unknown_template",
            Self::Invalid { .. } => "invalid_request",
            Self::NameTaken(_) => "name_taken",
            Self::Volume(refusal) => refusal.code(),
            Self::VolumeFile(_) => "volume_failed",
            Self::KeyReused => "idempotency_key_reused",
            Self::Full(Refused::Machine) => "machine_full",
            Self::Full(_) => "too_many_sessions",
            Self::NotReady { .. } => "session_not_ready",
            Self::Busy(_) => "session_busy",
            Self::Overloaded => "session_overloaded",
            Self::Draining => "draining",
            Self::Refused { code, .. } => code,
            Self::GuestGone(_) => "guest_gone",
            Self::LaunchFailed { .. } => "launch_failed",
            Self::Runtime(_) => "runtime_unavailable",
            Self::Store(_) => "store_failed",
            Self::Audit(_) => "audit_failed",
            Self::System { .. } => "internal",
        }
    }
}
