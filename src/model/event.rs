//! What an auditor reads: one variant for each thing an auditor asks about.
//!
//! Each change to the world leaves two records: an *intent*, written before the effect, and an
//! *outcome*, written after it. What merely happened leaves one *fact*. The JSON form is a promise:
//! fields are added, never renamed.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::egress::Scheme;
use super::endpoint::Via;
use super::grant::{Role, Scope};
use super::image::ImageDigest;
use super::lease::OnTimeout;
use super::limit::Limit;
use super::name::Name;
use super::record::{hex, sum};
use super::session::{Phase, Reason};
use super::settings::ArgvRecord;
use super::volume::VolumeMode;
use crate::base::clock::Timestamp;
use crate::base::id::{EventId, KeyId, SessionId};

/// What happened, or is about to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum AuditEvent {
    /// A session was asked for.
    #[serde(rename = "session.create")]
    SessionCreate {
        /// The recipe.
        template: Name,
        /// The recipe's version; absent in records from before there were versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u32>,
        /// The pinned image.
        image: ImageDigest,
        /// The name that was asked for.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<Name>,
    },
    /// A session changed its phase.
    #[serde(rename = "session.phase")]
    SessionPhase {
        /// The phase it left.
        from: Phase,
        /// The phase it is in.
        to: Phase,
        /// Why.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<Reason>,
    },
    /// A session reached one of its bounds. At most one record a minute for each bound.
    #[serde(rename = "session.limit")]
    SessionLimit {
        /// Which.
        limit: Limit,
    },
    /// A session was asked to end.
    #[serde(rename = "session.delete")]
    SessionDelete {},
    /// A session was asked to stand still.
    #[serde(rename = "session.pause")]
    SessionPause {},
    /// A session was to be woken, or to go on for longer.
    #[serde(rename = "session.resume")]
    SessionResume {
        /// For how many seconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        timeout_s: Option<u64>,
    },
    /// A session was to have other deadlines or labels.
    #[serde(rename = "session.change")]
    SessionChange {
        /// Seconds until its time is over.
        #[serde(skip_serializing_if = "Option::is_none")]
        timeout_s: Option<u64>,
        /// Seconds that it may be idle; 0: for as long as it lives.
        #[serde(skip_serializing_if = "Option::is_none")]
        idle_timeout_s: Option<u64>,
        /// What happens then.
        #[serde(skip_serializing_if = "Option::is_none")]
        on_timeout: Option<OnTimeout>,
        /// Whether it got other labels.
        labels: bool,
        /// The names of its own rules for what it reaches, where it got others.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        egress: Option<BTreeSet<Name>>,
    },
    /// A program was asked for.
    #[serde(rename = "session.run")]
    SessionRun {
        /// The program's name; absent for a command line of the user's login shell.
        #[serde(skip_serializing_if = "Option::is_none")]
        program: Option<String>,
        /// How many arguments followed it.
        arguments: usize,
        /// All of it, as far as the settings say; arguments may hold secrets.
        #[serde(flatten)]
        line: CommandLine,
        /// Who it runs as inside.
        user: String,
        /// Its time limit.
        timeout_s: u64,
    },
    /// A program was asked for that may outlive the call.
    #[serde(rename = "process.start")]
    ProcessStart {
        /// The program's name; absent for the user's login shell.
        #[serde(skip_serializing_if = "Option::is_none")]
        program: Option<String>,
        /// How many arguments followed it.
        arguments: usize,
        /// All of it, as far as the settings say; arguments may hold secrets.
        #[serde(flatten)]
        line: CommandLine,
        /// Who it runs as inside.
        user: String,
        /// What its starter calls it.
        #[serde(skip_serializing_if = "Option::is_none")]
        tag: Option<String>,
        /// Whether it has a terminal.
        pty: bool,
    },
    /// Somebody asked to read from a process, and maybe to write to it.
    #[serde(rename = "process.attach")]
    ProcessAttach {
        /// Which one, by pid or tag.
        process: String,
    },
    /// Input was sent to a process.
    #[serde(rename = "process.input")]
    ProcessInput {
        /// Which one, by pid or tag.
        process: String,
    },
    /// A signal was sent to a process group.
    #[serde(rename = "process.signal")]
    ProcessSignal {
        /// Which one, by pid or tag.
        process: String,
        /// The signal's number.
        signal: i32,
    },
    /// A file's content was asked for.
    #[serde(rename = "file.read")]
    FileRead {
        /// Its path in the sandbox.
        path: String,
        /// Who reads it inside.
        user: String,
    },
    /// A file's content was sent.
    #[serde(rename = "file.write")]
    FileWrite {
        /// Its path in the sandbox.
        path: String,
        /// Who writes it inside.
        user: String,
    },
    /// A file was to be changed without its content.
    #[serde(rename = "file.change")]
    FileChange {
        /// How.
        change: FileChangeKind,
        /// Its path in the sandbox.
        path: String,
        /// Where it goes, or leads.
        #[serde(skip_serializing_if = "Option::is_none")]
        to: Option<String>,
        /// Who changes it inside.
        user: String,
    },
    /// A directory's files were asked for as an archive.
    #[serde(rename = "archive.read")]
    ArchiveRead {
        /// The directory in the sandbox.
        path: String,
        /// Who reads it inside.
        user: String,
    },
    /// An archive was sent to be unpacked.
    #[serde(rename = "archive.write")]
    ArchiveWrite {
        /// The directory in the sandbox.
        path: String,
        /// Who writes it inside.
        user: String,
    },
    /// A port in a session was to be reached. One record for all requests of one principal to one port by one way, until a moment
    /// passes without any.
    #[serde(rename = "endpoint.access")]
    EndpointAccess {
        /// The port.
        port: u16,
        /// By what they were let in.
        via: Via,
    },
    /// A signed link to a port in a session was to be made.
    #[serde(rename = "endpoint.link")]
    EndpointLink {
        /// The port.
        port: u16,
        /// Until when it is good.
        expires_at: Timestamp,
    },
    /// An API key was made, or a token of a session.
    #[serde(rename = "key.create")]
    KeyCreate {
        /// Its public part.
        key: KeyId,
        /// What it is for.
        name: Name,
        /// The team that it acts for; absent in records from before there were roles.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        team: Option<Name>,
        /// What whoever has it is; likewise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<Role>,
        /// What it is narrowed to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scopes: Option<BTreeSet<Scope>>,
        /// Until when it is valid.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<Timestamp>,
    },
    /// An API key was to be revoked.
    #[serde(rename = "key.revoke")]
    KeyRevoke {
        /// Its public part.
        key: KeyId,
    },
    /// A rule of the operator's was to be kept in the store.
    #[serde(rename = "policy.put")]
    PolicyPut {
        /// Its name.
        rule: Name,
        /// What it says.
        says: String,
    },
    /// A rule was to be removed from the store.
    #[serde(rename = "policy.remove")]
    PolicyRemove {
        /// Its name.
        rule: Name,
    },
    /// A credential was to be made, or to have another value.
    #[serde(rename = "credential.put")]
    CredentialPut {
        /// Its name.
        credential: Name,
        /// Whose it is.
        team: Name,
    },
    /// A credential was to be removed.
    #[serde(rename = "credential.delete")]
    CredentialDelete {
        /// Its name.
        credential: Name,
        /// Whose it is.
        team: Name,
    },
    /// A credential's value was given out, to be used by casemated itself.
    #[serde(rename = "credential.use")]
    CredentialUse {
        /// Its name.
        credential: Name,
        /// Whose it is.
        team: Name,
        /// Which of its values.
        version: u32,
        /// For what.
        purpose: Name,
    },
    /// All that is sealed was to come under another root key.
    #[serde(rename = "vault.rotate")]
    VaultRotate {
        /// The generation of the key that there was.
        generation: u64,
    },
    /// A template was to be made or changed through the API.
    #[serde(rename = "template.put")]
    TemplatePut {
        /// Its name.
        template: Name,
        /// Whose it is.
        team: Name,
        /// The image that it shall have.
        image: ImageDigest,
    },
    /// What a session changed was to become a version of a template.
    #[serde(rename = "session.snapshot")]
    SessionSnapshot {
        /// The template's name.
        template: Name,
        /// Whose it is.
        team: Name,
    },
    /// An image that was made of a session was removed: no template means it any more.
    #[serde(rename = "image.remove")]
    ImageRemove {
        /// The image.
        image: ImageDigest,
    },
    /// A template was to be removed through the API.
    #[serde(rename = "template.remove")]
    TemplateRemove {
        /// Its name.
        template: Name,
        /// Whose it is.
        team: Name,
    },
    /// A volume was asked for.
    #[serde(rename = "volume.create")]
    VolumeCreate {
        /// Its name.
        volume: Name,
        /// Whose it is.
        team: Name,
        /// How large it shall be.
        size_bytes: u64,
    },
    /// A volume was to be removed, with all that is in it.
    #[serde(rename = "volume.delete")]
    VolumeDelete {
        /// Its name.
        volume: Name,
        /// Whose it is.
        team: Name,
    },
    /// A session was given a volume.
    #[serde(rename = "volume.attach")]
    VolumeAttach {
        /// Its name.
        volume: Name,
        /// How.
        mode: VolumeMode,
    },
    /// An image was loaded into the store.
    #[serde(rename = "image.import")]
    ImageImport {},
    /// A backup was to be made.
    #[serde(rename = "backup.make")]
    BackupMake {
        /// Whether for a recipient alone.
        encrypted: bool,
    },
    /// The state is one that was restored from a backup: what was recorded after that is not in this log.
    #[serde(rename = "state.restore")]
    StateRestore {
        /// When the backup was made.
        made_at: Timestamp,
        /// When it was restored.
        restored_at: Timestamp,
    },
    /// Somebody asked at the admin socket.
    #[serde(rename = "admin.command")]
    AdminCommand {
        /// The command's name.
        command: String,
    },
    /// A peer of the admin socket was turned away.
    #[serde(rename = "admin.refused")]
    AdminRefused {
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// A container without a session was removed.
    #[serde(rename = "sandbox.orphan")]
    SandboxOrphan {
        /// The container.
        container: String,
    },
    /// The daemon became ready.
    #[serde(rename = "daemon.start")]
    DaemonStart {
        /// Its version.
        version: String,
    },
    /// The daemon ended in order.
    #[serde(rename = "daemon.stop")]
    DaemonStop {},
    /// Settings were read again.
    #[serde(rename = "daemon.reload")]
    DaemonReload {
        /// The names of the keys that changed, never what they say.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        changed: Vec<String>,
    },
    /// Somebody presented no valid credentials. At most one record a minute for each address.
    #[serde(rename = "auth.failed")]
    AuthFailed {
        /// Where from; `others` when there are too many to tell apart.
        address: String,
        /// How often since the record before.
        attempts: u64,
    },
    /// The policy said no. At most one record a minute for each who, what and rule.
    #[serde(rename = "access.denied")]
    AccessDenied {
        /// What was asked for.
        action: String,
        /// The rule that said no.
        rule: String,
        /// How often since the record before.
        attempts: u64,
    },
    /// Somebody asked for more than the limits of the HTTP door let them. At most one record a minute for each who and limit.
    #[serde(rename = "access.limited")]
    AccessLimited {
        /// The limit.
        limit: DoorLimit,
        /// Where from, when it was nobody known; `others` when there are too many to tell apart.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<String>,
        /// How often since the record before.
        attempts: u64,
    },
    /// A program in a session was to reach something outside. Its outcome says how many bytes went, and for how long.
    #[serde(rename = "egress.connect")]
    EgressConnect {
        /// The host, in its one spelling.
        host: String,
        /// The port.
        port: u16,
        /// How.
        scheme: Scheme,
        /// With which method, where that can be read.
        #[serde(skip_serializing_if = "Option::is_none")]
        method: Option<String>,
        /// The rule that allows it.
        rule: String,
    },
    /// A program in a session was kept from reaching something outside. At most one record a minute for each host, port and
    /// rule.
    #[serde(rename = "egress.denied")]
    EgressDenied {
        /// The host, in its one spelling; `others` when there are too many to tell apart, absent where what was said is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// The port.
        port: u16,
        /// The rule that said no.
        rule: String,
        /// How often since the record before.
        attempts: u64,
    },
    /// Records were to leave the database for a file.
    #[serde(rename = "audit.archive")]
    AuditArchive {
        /// The position of the first.
        first: i64,
        /// The position of the last.
        last: i64,
    },
    /// The record is not what it was.
    #[serde(rename = "audit.alarm")]
    AuditAlarm {
        /// The position from which on it is not to be trusted.
        position: i64,
        /// What was found.
        found: String,
    },
}

impl AuditEvent {
    /// The word in the field `kind`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::SessionCreate { .. } => "session.create",
            Self::SessionPhase { .. } => "session.phase",
            Self::SessionLimit { .. } => "session.limit",
            Self::SessionDelete {} => "session.delete",
            Self::SessionPause {} => "session.pause",
            Self::SessionResume { .. } => "session.resume",
            Self::SessionChange { .. } => "session.change",
            Self::SessionRun { .. } => "session.run",
            Self::ProcessStart { .. } => "process.start",
            Self::ProcessAttach { .. } => "process.attach",
            Self::ProcessInput { .. } => "process.input",
            Self::ProcessSignal { .. } => "process.signal",
            Self::FileRead { .. } => "file.read",
            Self::FileWrite { .. } => "file.write",
            Self::FileChange { .. } => "file.change",
            Self::ArchiveRead { .. } => "archive.read",
            Self::ArchiveWrite { .. } => "archive.write",
            Self::EndpointAccess { .. } => "endpoint.access",
            Self::EndpointLink { .. } => "endpoint.link",
            Self::KeyCreate { .. } => "key.create",
            Self::KeyRevoke { .. } => "key.revoke",
            Self::PolicyPut { .. } => "policy.put",
            Self::PolicyRemove { .. } => "policy.remove",
            Self::CredentialPut { .. } => "credential.put",
            Self::CredentialDelete { .. } => "credential.delete",
            Self::CredentialUse { .. } => "credential.use",
            Self::VaultRotate { .. } => "vault.rotate",
            Self::TemplatePut { .. } => "template.put",
            Self::TemplateRemove { .. } => "template.remove",
            Self::SessionSnapshot { .. } => "session.snapshot",
            Self::VolumeCreate { .. } => "volume.create",
            Self::VolumeDelete { .. } => "volume.delete",
            Self::VolumeAttach { .. } => "volume.attach",
            Self::ImageImport {} => "image.import",
            Self::ImageRemove { .. } => "image.remove",
            Self::BackupMake { .. } => "backup.make",
            Self::StateRestore { .. } => "state.restore",
            Self::AdminCommand { .. } => "admin.command",
            Self::AdminRefused { .. } => "admin.refused",
            Self::SandboxOrphan { .. } => "sandbox.orphan",
            Self::DaemonStart { .. } => "daemon.start",
            Self::DaemonStop {} => "daemon.stop",
            Self::DaemonReload { .. } => "daemon.reload",
            Self::AuthFailed { .. } => "auth.failed",
            Self::AccessDenied { .. } => "access.denied",
            Self::AccessLimited { .. } => "access.limited",
            Self::EgressConnect { .. } => "egress.connect",
            Self::EgressDenied { .. } => "egress.denied",
            Self::AuditArchive { .. } => "audit.archive",
            Self::AuditAlarm { .. } => "audit.alarm",
        }
    }
}

/// Every kind of event, as the field `kind` has it.
pub const KINDS: &[&str] = &[
    "access.denied",
    "access.limited",
    "admin.command",
    "admin.refused",
    "archive.read",
    "archive.write",
    "audit.alarm",
    "audit.archive",
    "auth.failed",
    "backup.make",
    "credential.delete",
    "credential.put",
    "credential.use",
    "daemon.reload",
    "daemon.start",
    "daemon.stop",
    "egress.connect",
    "egress.denied",
    "endpoint.access",
    "endpoint.link",
    "file.change",
    "file.read",
    "file.write",
    "image.import",
    "image.remove",
    "key.create",
    "key.revoke",
    "policy.put",
    "policy.remove",
    "process.attach",
    "process.input",
    "process.signal",
    "process.start",
    "sandbox.orphan",
    "session.change",
    "session.create",
    "session.delete",
    "session.limit",
    "session.pause",
    "session.phase",
    "session.resume",
    "session.run",
    "session.snapshot",
    "state.restore",
    "template.put",
    "template.remove",
    "vault.rotate",
    "volume.attach",
    "volume.create",
    "volume.delete",
];

/// Whether this is a kind of event, or what some begin with up to the dot.
#[must_use]
pub fn is_kind(word: &str) -> bool {
    let family = |kind: &&str| {
        kind.split_once('.')
            .is_some_and(|(family, _)| family == word)
    };
    KINDS.contains(&word) || KINDS.iter().any(family)
}

/// What bounds how much may be asked at the HTTP door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DoorLimit {
    /// Requests with one key, token or certificate.
    Key,
    /// Requests for one team.
    Team,
    /// Requests of one address, of those who are not known.
    Address,
    /// Connections of one address at one time.
    Connections,
}

/// What is recorded of a command line beyond its program's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandLine {
    /// SHA-256 over the program and its arguments, a NUL after each, or over the shell's command line; hexadecimal. Tells
    /// equal ones from others without showing them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv_sha256: Option<String>,
    /// The program and its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// The shell's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

impl CommandLine {
    /// What the settings want of it.
    #[must_use]
    pub fn of(wanted: ArgvRecord, argv: &[String], command: Option<&str>) -> Self {
        match wanted {
            ArgvRecord::Name => Self::default(),
            ArgvRecord::Clear => Self {
                argv: (!argv.is_empty()).then(|| argv.to_vec()),
                command: command.map(str::to_owned),
                argv_sha256: None,
            },
            ArgvRecord::Digest => {
                let whole = match command {
                    Some(command) => command.to_owned(),
                    None => argv.iter().flat_map(|part| [part, "\0"]).collect(),
                };
                Self {
                    argv_sha256: Some(hex(&sum(whole.as_bytes()))),
                    ..Self::default()
                }
            }
        }
    }
}

/// How a file was to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileChangeKind {
    /// A directory made.
    Mkdir,
    /// Another name.
    Move,
    /// Removed.
    Remove,
    /// A symbolic link made.
    Link,
    /// Mode, owner, group or metadata.
    Set,
}

/// Where a record stands to the effect it tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Written before the effect; without it there is none.
    Intent,
    /// Written after the effect; names its intent.
    Outcome,
    /// Something that happened; nothing was asked.
    Fact,
}

/// How an intent ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum Outcome {
    /// As asked.
    Ok {
        /// Figures that an auditor wants, for example an exit code.
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// Not as asked.
    Failed {
        /// The stable code of the failure.
        code: String,
    },
}

/// An outcome in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutcomeResult {
    /// As asked.
    Ok,
    /// Not as asked.
    Failed,
}

impl OutcomeResult {
    /// The word in the field `result`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
        }
    }
}

impl Outcome {
    /// In a word.
    #[must_use]
    pub const fn result(&self) -> OutcomeResult {
        match self {
            Self::Ok { .. } => OutcomeResult::Ok,
            Self::Failed { .. } => OutcomeResult::Failed,
        }
    }
}

/// One line of the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Its name.
    pub id: EventId,
    /// When it was written.
    pub at: Timestamp,
    /// Where it stands to the effect.
    pub stage: Stage,
    /// The intent that an outcome belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<EventId>,
    /// Who asked.
    pub principal: String,
    /// The session it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// What.
    pub event: AuditEvent,
    /// How it ended, in an outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_the_tag_on_the_wire() {
        let events = [
            AuditEvent::SessionDelete {},
            AuditEvent::SessionLimit {
                limit: Limit::OpenFiles,
            },
            AuditEvent::AdminRefused { uid: 1, gid: 2 },
            AuditEvent::DaemonStart {
                version: "1".into(),
            },
            AuditEvent::SessionPhase {
                from: Phase::Pending,
                to: Phase::Starting,
                reason: None,
            },
        ];
        for event in events {
            assert_eq!(serde_json::to_value(&event).unwrap()["kind"], event.kind());
        }
    }
}
