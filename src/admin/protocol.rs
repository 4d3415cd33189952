//! What is said on the admin socket, by both sides.
//!
//! Frames are a 32-bit big-endian length and that many bytes (at most [`MAX_FRAME_BYTES`]). The
//! client sends one [`Envelope`]; for [`Request::ImageImport`] the archive follows in frames, ended
//! by an empty one. The daemon answers with any number of [`Answer::Progress`] or [`Answer::AuditLines`] and
//! one last answer.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio_util::codec::LengthDelimitedCodec;

use crate::base::clock::Timestamp;
use crate::base::id::{KeyId, SessionId};
use crate::model::check::Examined;
use crate::model::grant::{Role, Scope};
use crate::model::image::{Image, ImageDigest};
use crate::model::name::Name;
use crate::model::query::AuditFilter;
use crate::model::record::Archive;
use crate::model::session::{Phase, Reason};
use crate::model::verify::{Finding, Verified};

pub use crate::app::{Explained, Reach, Whom};
pub use crate::policy::egress::EgressDecision;
pub use crate::policy::{Action, NamedRule, Origin as RuleOrigin, Rule};

/// The protocol's version. Another one is refused with a sentence.
pub const VERSION: u32 = 1;

/// Longest frame: 1 MiB.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// Frames as both sides cut them.
#[must_use]
pub fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .max_frame_length(MAX_FRAME_BYTES)
        .new_codec()
}

/// The first frame.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// What it wants.
    pub request: Request,
}

/// What an operator may ask for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the daemon is.
    Status,
    /// Make an API key.
    KeyCreate {
        /// What it is for.
        name: Name,
        /// The team that it acts for.
        team: Name,
        /// What whoever has it is.
        #[serde(default)]
        role: Role,
        /// What it is narrowed to; `None`: all that the role may do.
        #[serde(default)]
        scopes: Option<BTreeSet<Scope>>,
        /// How long it is valid; `None`: until it is revoked.
        #[serde(default)]
        expires_in_s: Option<u64>,
    },
    /// List API keys in the order of their making, without their texts.
    KeyList {
        /// Only those of this team.
        team: Option<Name>,
        /// Only those after this one.
        after: Option<KeyId>,
        /// At most so many.
        limit: u32,
    },
    /// Revoke an API key.
    KeyRevoke {
        /// Which.
        id: KeyId,
    },
    /// List the operator's rules.
    PolicyList,
    /// Keep a rule in the store.
    PolicyPut {
        /// Its name.
        name: Name,
        /// What it says.
        rule: Rule,
    },
    /// Remove a rule of the store.
    PolicyRemove {
        /// Its name.
        name: Name,
    },
    /// Say what would be decided, and why.
    PolicyExplain {
        /// Of whom.
        whom: Whom,
        /// What they want.
        action: Action,
        /// Of which team's.
        team: Option<Name>,
        /// In which session.
        session: Option<SessionId>,
        /// With which template.
        template: Option<Name>,
        /// When; now when absent.
        at: Option<Timestamp>,
    },
    /// Say what a session would be told of something that it wants to reach.
    EgressExplain {
        /// Which session.
        session: SessionId,
        /// What.
        reach: Reach,
    },
    /// List sessions of all teams, newest first.
    SessionList {
        /// Only those that have not ended.
        live: bool,
        /// At most so many.
        limit: u32,
    },
    /// End a session.
    SessionStop {
        /// Which.
        id: SessionId,
    },
    /// Load the image archive that follows.
    ImageImport,
    /// List the images that templates can name.
    ImageList,
    /// Read the audit log, as lines.
    AuditList {
        /// Which records, and at most how many of them.
        filter: AuditFilter,
    },
    /// Read the end of the audit log, as lines, and what is added when it is followed.
    AuditTail {
        /// Begin with what matches of so many records.
        last: u32,
        /// Which records; it has no times and no limit.
        filter: AuditFilter,
        /// Whether to go on.
        follow: bool,
    },
    /// Take the audit log away, as lines to be verified elsewhere.
    AuditExport {
        /// Only records after this position; 0: all that are kept.
        after: i64,
        /// Only records up to this position.
        until: Option<i64>,
        /// As events of OCSF, which cannot be verified.
        #[serde(default)]
        ocsf: bool,
    },
    /// Look whether the audit log is what was written.
    AuditVerify,
    /// Show the public key that the audit log is verified with.
    AuditKey,
    /// Make every hardening check.
    Doctor,
    /// List the files that what left the database is in.
    AuditArchives {
        /// Only those that end after this position.
        after: i64,
        /// At most so many.
        limit: u32,
    },
    /// Move records to files.
    AuditArchive {
        /// Those that were made before this time; without it what the settings say.
        before: Option<Timestamp>,
    },
    /// Read the settings again.
    Reload,
    /// Put all that is sealed under another root key.
    RotateKey,
    /// Make a backup.
    Backup {
        /// As this file, by its absolute path; in the directory of the configuration without it.
        to: Option<PathBuf>,
        /// With the images of templates, also where the configuration does not say so.
        #[serde(default)]
        images: bool,
    },
}

impl Request {
    /// The command's name, for the record.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::KeyCreate { .. } => "key-create",
            Self::KeyList { .. } => "key-list",
            Self::KeyRevoke { .. } => "key-revoke",
            Self::PolicyList => "policy-list",
            Self::PolicyPut { .. } => "policy-put",
            Self::PolicyRemove { .. } => "policy-remove",
            Self::PolicyExplain { .. } => "policy-explain",
            Self::EgressExplain { .. } => "egress-explain",
            Self::SessionList { .. } => "session-list",
            Self::SessionStop { .. } => "session-stop",
            Self::ImageImport => "image-import",
            Self::ImageList => "image-list",
            Self::AuditList { .. } => "audit-list",
            Self::AuditTail { .. } => "audit-tail",
            Self::AuditExport { .. } => "audit-export",
            Self::AuditVerify => "audit-verify",
            Self::AuditKey => "audit-key",
            Self::Doctor => "doctor",
            Self::AuditArchives { .. } => "audit-archives",
            Self::AuditArchive { .. } => "audit-archive",
            Self::Reload => "reload",
            Self::RotateKey => "rotate-key",
            Self::Backup { .. } => "backup",
        }
    }
}

/// What the daemon answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// So far; more answers follow.
    Progress {
        /// Bytes that arrived, or were carried.
        received_bytes: u64,
        /// All of them, where that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total_bytes: Option<u64>,
    },
    /// A backup.
    Backup(BackupView),
    /// Done; there is nothing to tell.
    Done,
    /// How the daemon is.
    Status(StatusView),
    /// A new key. Shown now and never again.
    Key(KeyView),
    /// API keys.
    Keys {
        /// In the order of their making.
        items: Vec<KeyLine>,
    },
    /// The operator's rules.
    Rules {
        /// Those of files first.
        items: Vec<NamedRule>,
    },
    /// What would be decided.
    Explained(Explained),
    /// What would be decided of something outside.
    Reached(EgressDecision),
    /// Sessions.
    Sessions {
        /// Newest first.
        items: Vec<SessionLine>,
    },
    /// The image that was loaded.
    Image {
        /// What templates call it.
        digest: ImageDigest,
    },
    /// Images.
    Images {
        /// In no order.
        items: Vec<Image>,
    },
    /// Lines of the audit log; more answers follow.
    AuditLines {
        /// In its order.
        lines: Vec<String>,
    },
    /// The records that were asked for were those.
    AuditListed {
        /// Records up to this position are in files and were not looked at.
        archived_up_to: Option<i64>,
    },
    /// What was found in the audit log.
    AuditVerified {
        /// What is right.
        verified: Verified,
        /// The first thing that is wrong.
        finding: Option<Finding>,
    },
    /// Files of the audit log.
    AuditArchives {
        /// In the log's order.
        items: Vec<ArchiveView>,
    },
    /// Records were moved to files.
    AuditArchived {
        /// Files that were made.
        archives: u64,
        /// Records in them.
        records: u64,
        /// The position up to which the log is in files.
        up_to: i64,
    },
    /// The key that the audit log is verified with.
    AuditKey {
        /// An Ed25519 public key (RFC 8032): 32 bytes, hexadecimal.
        public: String,
        /// What checkpoints call it.
        name: String,
    },
    /// All that is sealed is under another root key.
    Rotated(RotatedView),
    /// What the hardening checks found.
    Doctor(DoctorView),
    /// It was not done.
    Refused {
        /// A stable word.
        code: String,
        /// A sentence that says what to do.
        message: String,
    },
}

/// How the daemon is.
#[derive(Debug, Serialize, Deserialize)]
pub struct StatusView {
    /// Its version.
    pub version: String,
    /// Whether it can do its work.
    pub ready: bool,
    /// What it stands on: name, and what is wrong.
    pub checks: Vec<(String, Option<String>)>,
    /// When the newest backup was made.
    #[serde(default)]
    pub last_backup_at: Option<Timestamp>,
    /// Sessions that have not ended.
    pub live_sessions: usize,
    /// The most there may be.
    pub max_sessions: usize,
    /// Templates by name.
    pub templates: Vec<Name>,
    /// podman's version.
    pub podman_version: String,
    /// gVisor's version, as the OCI runtime prints it.
    pub runtime_version: String,
    /// Limits that this machine does not enforce from outside the sandbox.
    pub unenforced_limits: Vec<String>,
}

/// What the hardening checks found.
#[derive(Debug, Serialize, Deserialize)]
pub struct DoctorView {
    /// Whether none failed.
    pub fit: bool,
    /// Each of them.
    pub checks: Vec<Examined>,
}

/// A backup that was made.
#[derive(Debug, Serialize, Deserialize)]
pub struct BackupView {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub size_bytes: u64,
    /// When it was made: what was acknowledged before is in it.
    pub made_at: Timestamp,
    /// Whether it is encrypted for the recipient of the configuration.
    pub encrypted: bool,
    /// How many images are in it.
    #[serde(default)]
    pub images: usize,
    /// Images of templates that podman does not have, where images were wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images_missing: Vec<ImageDigest>,
}

/// Another root key.
#[derive(Debug, Serialize, Deserialize)]
pub struct RotatedView {
    /// Counts the vault's keys, from one.
    pub generation: u64,
    /// How much was sealed anew.
    pub sealed: u64,
    /// Where the key is.
    pub origin: String,
}

/// A file of the audit log.
#[derive(Debug, Serialize, Deserialize)]
pub struct ArchiveView {
    /// Where it was put.
    pub path: PathBuf,
    /// Whether a file of its length is there.
    pub present: bool,
    /// What was signed of it.
    #[serde(flatten)]
    pub archive: Archive,
}

/// A new key.
#[derive(Serialize, Deserialize)]
pub struct KeyView {
    /// Its public part.
    pub id: KeyId,
    /// Its whole text.
    pub key: String,
}

impl fmt::Debug for KeyView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyView")
            .field("id", &self.id)
            .field("key", &"[redacted]")
            .finish()
    }
}

/// A key in a list.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeyLine {
    /// Its public part.
    pub id: KeyId,
    /// What it is for.
    pub name: Name,
    /// The team that it acts for.
    pub team: Name,
    /// What whoever has it is.
    pub role: Role,
    /// What it is narrowed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<BTreeSet<Scope>>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Until when it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
}

/// A session in a list.
#[derive(Debug, Serialize, Deserialize)]
pub struct SessionLine {
    /// Its name for programs.
    pub id: SessionId,
    /// Its name for people.
    pub name: Option<Name>,
    /// Its team.
    pub team: Name,
    /// Its template.
    pub template: Name,
    /// How far it has come.
    pub phase: Phase,
    /// Why.
    pub reason: Option<Reason>,
    /// Why, for people.
    pub message: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it will be stopped.
    pub ends_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_printed() {
        let view = Answer::Key(KeyView {
            id: KeyId::from_bytes([1; 16]),
            key: "cmk_secret".into(),
        });
        assert!(!format!("{view:?}").contains("cmk_secret"));
    }

    #[test]
    fn the_name_is_the_command_on_the_wire() {
        let requests = [
            Request::Status,
            Request::PolicyList,
            Request::KeyList {
                team: None,
                after: None,
                limit: 1,
            },
            Request::ImageImport,
            Request::ImageList,
            Request::Reload,
            Request::RotateKey,
            Request::AuditVerify,
            Request::AuditKey,
            Request::AuditExport {
                after: 0,
                until: None,
                ocsf: false,
            },
            Request::AuditList {
                filter: AuditFilter::default(),
            },
            Request::AuditTail {
                last: 1,
                filter: AuditFilter::default(),
                follow: false,
            },
            Request::Backup {
                to: None,
                images: true,
            },
            Request::AuditArchives { after: 0, limit: 1 },
            Request::AuditArchive { before: None },
            Request::SessionList {
                live: true,
                limit: 1,
            },
        ];
        for request in requests {
            let wire = serde_json::to_value(&request).unwrap();
            assert_eq!(wire["command"], request.name());
        }
    }
}
