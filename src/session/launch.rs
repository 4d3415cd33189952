//! From nothing to a guest that answers, and back.
//!
//! Bringing up is a chain in which each step needs what the one before gave: [`Door`] (directory,
//! token, socket) -> [`create`] -> [`start`] -> link. The [`Remains`] are brought up to date
//! *before* each step; whichever fails or is interrupted, they can be cleared, as often as it takes.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use casemate_link::LinkToken;
use casemate_link::daemon::{Link, LinkError, LinkListener};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use super::manager::House;
use super::pool::Edition;
use super::volumes;
use crate::base::chain::Chain;
use crate::base::id::SessionId;
use crate::model::name::Name;
use crate::model::sandbox::{Limits, SandboxId, SandboxSpec, Warmth};
use crate::model::session::{Reason, Session};
use crate::model::template::TemplateSpec;
use crate::runtime::{Dialler, RuntimeError};

/// Longest explanation of an end: it is shown in lists, and part of it is what a sandbox said.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Random bytes in a link's token.
const TOKEN_BYTES: usize = 32;

/// Pauses after tries to clear up a sandbox that nobody has yet.
const UNOWNED_PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1600),
    Duration::ZERO,
];

/// What the daemon's own copy of a token is called: the session's name and this.
const TOKEN_SUFFIX: &str = ".token";

/// Pause before the runtime is asked again whether a sandbox still runs.
const WAIT_AGAIN: Duration = Duration::from_millis(200);

/// Why a session has to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// For programs.
    pub reason: Reason,
    /// For people.
    pub message: Option<String>,
}

impl End {
    /// An end with an explanation, of which [`MAX_MESSAGE_BYTES`] are kept, on one line that no terminal obeys.
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        let message = message.replace(char::is_control, " ");
        Self {
            reason,
            message: Some(message),
        }
    }
}

/// What may exist of a session on this machine.
#[derive(Debug)]
pub(super) struct Remains {
    pub(super) sandbox: Traces,
    pub(super) door: bool,
}

/// What is known about a session's container.
#[derive(Debug)]
pub(super) enum Traces {
    /// There is none.
    None,
    /// It is being made. podman finishes what it was asked for even if nobody waits, so a look
    /// before the answer proves nothing: whoever clears up waits for the answer first.
    Making(JoinHandle<Result<SandboxId, RuntimeError>>),
    /// There may be some: it was asked for and the answer is not known.
    Unknown,
    /// This one.
    Known(SandboxId),
}

impl Traces {
    /// Waits for the answer to a creation under way, at most until the runtime's own deadline; the
    /// error, if it failed. When the wait is dropped, the creation is still under way.
    async fn settle(&mut self) -> Option<RuntimeError> {
        let Self::Making(creation) = self else {
            return None;
        };
        let (traces, error) = match creation.await {
            Ok(Ok(sandbox)) => (Self::Known(sandbox), None),
            Ok(Err(error)) => (Self::Unknown, Some(error)),
            // A panic, which is logged where it happens.
            Err(_) => (Self::Unknown, None),
        };
        *self = traces;
        error
    }
}

impl Remains {
    pub(super) const fn nothing() -> Self {
        Self {
            sandbox: Traces::None,
            door: false,
        }
    }

    /// Everything that a session could have left behind.
    pub(super) const fn anything() -> Self {
        Self {
            sandbox: Traces::Unknown,
            door: true,
        }
    }

    /// Removes what may exist. May be repeated; what is gone already is success.
    pub(super) async fn clear(&mut self, house: &House, id: SessionId) -> Result<(), RuntimeError> {
        self.sandbox.settle().await;
        match &self.sandbox {
            Traces::None | Traces::Making(_) => {}
            Traces::Known(sandbox) => house.runtime.remove(sandbox).await?,
            Traces::Unknown => {
                for found in house.runtime.list(house.store.installation()).await? {
                    if found.session == Some(id) {
                        house.runtime.remove(&found.id).await?;
                    }
                }
            }
        }
        self.sandbox = Traces::None;
        if self.door {
            let left = volumes::let_go(&house.link_root, id).await;
            left.map_err(|source| RuntimeError::Unavailable {
                doing: "let the volumes go",
                source: source.into(),
            })?;
            Door::remove(&house.link_root, id).map_err(|source| RuntimeError::Unavailable {
                doing: "remove the link directory",
                source: source.into(),
            })?;
            self.door = false;
        }
        Ok(())
    }

    /// The same for what was nobody's yet: tried a few times, as podman may be on its way back. What is left then is found by
    /// the next look for orphans, of this daemon or the next.
    pub(super) async fn clear_unowned(mut self, house: &House, id: SessionId) {
        for pause in UNOWNED_PAUSES {
            match self.clear(house, id).await {
                Ok(()) => return,
                Err(error) => {
                    warn!(session = %id, error = %Chain(&error), "cannot clear up a sandbox that nobody has yet");
                }
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// The host's side of a sandbox's only way out: a directory with a listening socket and, until the guest has
/// come in, the token by which it is known. What the daemon itself knows the guest by again lies beside the
/// directory, where no sandbox sees it.
pub(super) struct Door {
    pub(super) directory: PathBuf,
    /// What the sandbox behind it must be within.
    limits: Limits,
    token: LinkToken,
    listener: LinkListener,
    /// How many were turned away.
    strangers: u64,
}

impl Door {
    /// Makes the directory of a new session. The link root has the sandbox group and the
    /// set-group-id bit, so that everything below is readable for that group and no other.
    ///
    /// The daemon's copy of the token is whole before there is a directory that a sandbox could be
    /// given: whichever guest runs after a crash, its token is known.
    pub(super) async fn build(root: &Path, id: SessionId, limits: Limits) -> io::Result<Self> {
        let directory = root.join(id.to_string());
        let token = new_token()?;
        write_token(&token_path(root, id), &token)?;
        volumes::build(root, id)?;
        DirBuilder::new().mode(0o700).create(&directory)?;
        show_token(&directory, &token)?;
        std::fs::set_permissions(&directory, Permissions::from_mode(0o2750))?;
        Self::open(directory, limits, token).await
    }

    /// Opens the door of a session that a former daemon left running. The directory stays the one
    /// that the sandbox has mounted; only the socket in it is new.
    pub(super) async fn reopen(root: &Path, session: &Session) -> io::Result<Self> {
        let id = session.id;
        let token = LinkToken::read(&token_path(root, id))?;
        Self::open(root.join(id.to_string()), session.spec.limits, token).await
    }

    async fn open(directory: PathBuf, limits: Limits, token: LinkToken) -> io::Result<Self> {
        let listener = LinkListener::bind(&directory)
            .await
            .map_err(io::Error::other)?;
        Ok(Self {
            directory,
            limits,
            token,
            listener,
            strangers: 0,
        })
    }

    /// Lays the token out again, for another sandbox behind the same door.
    fn invite(&mut self) -> io::Result<()> {
        gone(std::fs::remove_file(self.directory.join("token")))?;
        show_token(&self.directory, &self.token)
    }

    /// Removes the directory of a session and the token beside it; none is success.
    pub(super) fn remove(root: &Path, id: SessionId) -> io::Result<()> {
        volumes::remove(root, id)?;
        gone(std::fs::remove_dir_all(root.join(id.to_string())))?;
        gone(std::fs::remove_file(token_path(root, id)))
    }

    /// Which session's door something in the link root is of.
    pub(super) fn owner_of(name: &str) -> Option<SessionId> {
        let mut ends = [TOKEN_SUFFIX, volumes::ROOM_SUFFIX].into_iter();
        let id = ends.find_map(|end| name.strip_suffix(end));
        id.unwrap_or(name).parse().ok()
    }

    /// Waits until the sandbox's own guest has dialled, or the sandbox is dead, or time is over.
    pub(super) async fn await_guest(
        &mut self,
        house: &House,
        sandbox: &SandboxId,
        patience: Duration,
    ) -> Result<Link, End> {
        let deadline = Instant::now() + patience;
        tokio::select! {
            // A guest that has dialled counts even if its sandbox dies at the same moment: the
            // lost link will tell.
            biased;
            link = self.accept(house, sandbox) => link,
            end = death_of(house, sandbox) => Err(end),
            () = tokio::time::sleep_until(deadline) => Err(End::new(
                Reason::GuestLost,
                format!("the guest did not dial within {} s", patience.as_secs()),
            )),
        }
    }

    /// Waits, while a link lives, for the guest to come with another: it has lost the one that we
    /// still believe in. Everybody else is turned away, so that dials of whoever may dial do not pile up at the
    /// socket and keep the guest waiting when it needs it.
    pub(super) async fn guest_again(&mut self, house: &House, sandbox: &SandboxId) -> Link {
        loop {
            match self.accept(house, sandbox).await {
                Ok(link) => return link,
                // Nothing that a dialler does is the end of a session that has its link.
                Err(end) => {
                    warn!(sandbox = %sandbox, error = end.message, "cannot listen for a guest");
                    tokio::time::sleep(WAIT_AGAIN).await;
                }
            }
        }
    }

    /// Lets the sandbox's own guest in. When this returns, the token is no longer in the sandbox: it
    /// is in the guest's memory, and every program starts after that.
    async fn accept(&mut self, house: &House, sandbox: &SandboxId) -> Result<Link, End> {
        loop {
            match self.listener.accept_one(&self.token).await {
                Ok((link, hello, peer)) => {
                    let dialler = Dialler {
                        pid: peer.pid,
                        kernel_banner: hello.kernel.banner,
                    };
                    let vouched = house.runtime.vouch(sandbox, &dialler, &self.limits).await;
                    if let Err(error) = vouched {
                        link.close();
                        return Err(End::new(Reason::LaunchFailed, Chain(&error).to_string()));
                    }
                    if let Err(error) = gone(std::fs::remove_file(self.directory.join("token"))) {
                        link.close();
                        return Err(End::new(
                            Reason::LaunchFailed,
                            format!("take the token out of the sandbox: {error}"),
                        ));
                    }
                    info!(sandbox = %sandbox, guest = %hello.guest_version.escape_debug(), "guest linked");
                    return Ok(link);
                }
                // Somebody who is not the guest, or a guest that talks nonsense: the next one may
                // be right. The listener paces itself.
                Err(error @ LinkError::Rejected { .. }) => {
                    self.strangers += 1;
                    // A program that dials without end must not fill the log.
                    if self.strangers.is_power_of_two() {
                        let so_far = self.strangers;
                        warn!(sandbox = %sandbox, so_far, error = %Chain(&error), "turned a dialler away");
                    }
                }
                Err(error) => {
                    return Err(End::new(Reason::LaunchFailed, Chain(&error).to_string()));
                }
            }
        }
    }
}

/// What is asked of the runtime for a sandbox that is nobody's yet.
pub(super) fn unowned(
    house: &House,
    id: SessionId,
    template: &TemplateSpec,
    link_dir: PathBuf,
    warmth: Warmth,
) -> SandboxSpec {
    SandboxSpec {
        installation: house.store.installation(),
        session: id,
        image: template.image,
        limits: template.limits,
        allow_root: template.allow_root,
        hostname: hostname(id, None),
        link_dir,
        volumes_dir: volumes::room(&house.link_root, id),
        warmth,
    }
}

/// What to make for a session.
pub(super) fn spec(house: &House, session: &Session, link_dir: PathBuf) -> SandboxSpec {
    SandboxSpec {
        installation: house.store.installation(),
        session: session.id,
        image: session.spec.image,
        limits: session.spec.limits,
        allow_root: session.spec.allow_root,
        hostname: hostname(session.id, session.spec.name.as_ref()),
        link_dir,
        volumes_dir: volumes::room(&house.link_root, session.id),
        warmth: Warmth::None,
    }
}

/// What to make when a sandbox could not be started: where that began as a checkpoint, the same without it. The first is
/// removed, and the checkpoint is not used again.
pub(super) async fn without(
    house: &House,
    spec: SandboxSpec,
    edition: Option<&Edition>,
    sandbox: &SandboxId,
    door: &mut Door,
    end: End,
) -> Result<SandboxSpec, End> {
    let is_its_fault = matches!(spec.warmth, Warmth::Restored(_))
        && !matches!(
            end.reason,
            Reason::RuntimeUnavailable | Reason::ImageMissing
        );
    if !is_its_fault {
        return Err(end);
    }
    warn!(session = %spec.session, error = end.message, "a sandbox could not begin as its checkpoint; making one without");
    if let Some(edition) = edition {
        let why = end.message.unwrap_or_default();
        let message = format!("it could not be restored: {why}");
        house.checkpoints.spoil(edition, message);
    }
    let removed = house.runtime.remove(sandbox).await;
    removed.map_err(|error| refused(&error))?;
    door.invite().map_err(|error| failed(&error))?;
    Ok(SandboxSpec {
        warmth: Warmth::Live,
        ..spec
    })
}

/// Makes and verifies a sandbox behind its door.
pub(super) async fn create(
    house: &House,
    spec: SandboxSpec,
    traces: &mut Traces,
) -> Result<SandboxId, End> {
    let runtime = Arc::clone(&house.runtime);
    *traces = Traces::Making(tokio::spawn(async move { runtime.create(&spec).await }));
    let error = traces.settle().await;
    match (traces, error) {
        (Traces::Known(sandbox), _) => Ok(sandbox.clone()),
        (_, Some(error)) => Err(refused(&error)),
        (_, None) => Err(End::new(Reason::Internal, "a defect; see the log")),
    }
}

/// Starts the sandbox and waits for its guest. When it does not come, its last words are the best
/// explanation there is.
pub(super) async fn start(
    house: &House,
    sandbox: &SandboxId,
    door: &mut Door,
) -> Result<Link, End> {
    house
        .runtime
        .start(sandbox)
        .await
        .map_err(|error| refused(&error))?;
    let patience = house.settings().link_timeout;
    match door.await_guest(house, sandbox, patience).await {
        Ok(link) => Ok(link),
        Err(end) => {
            let mut message = end.message.unwrap_or_default();
            let words = house.runtime.last_words(sandbox).await;
            if !words.trim().is_empty() {
                message = format!("{message}; it said: {}", words.trim().escape_debug());
            }
            // Whatever kept it from linking, it never came up.
            Err(End::new(Reason::LaunchFailed, message))
        }
    }
}

/// What the runtime would not do, told apart by who can mend it.
pub(super) fn refused(error: &RuntimeError) -> End {
    let reason = match error {
        RuntimeError::Unavailable { .. } => Reason::RuntimeUnavailable,
        RuntimeError::ImageMissing(_) => Reason::ImageMissing,
        _ => Reason::LaunchFailed,
    };
    End::new(reason, Chain(error).to_string())
}

/// A failure of a launch, with all its causes: the operator's and the client's only explanation.
pub(super) fn failed(error: &(dyn std::error::Error + 'static)) -> End {
    End::new(Reason::LaunchFailed, Chain(error).to_string())
}

/// Resolves when the sandbox has ended. A runtime that does not answer is asked again: its silence
/// says nothing about the sandbox.
pub(super) async fn death_of(house: &House, sandbox: &SandboxId) -> End {
    loop {
        match house.runtime.wait(sandbox).await {
            Ok(Some(code)) => return ended_with(house, sandbox, code),
            Ok(None) => return End::new(Reason::SandboxDied, "the sandbox is gone"),
            Err(error) => {
                warn!(sandbox = %sandbox, error = %Chain(&error), "cannot watch a sandbox");
                tokio::time::sleep(WAIT_AGAIN).await;
            }
        }
    }
}

/// Why a sandbox ended with that code: for the memory that it used, if the kernel says so.
pub(super) fn ended_with(house: &House, sandbox: &SandboxId, code: i32) -> End {
    let strain = house.runtime.strain(sandbox);
    if strain.memory_kills > 0 {
        return End::new(
            Reason::LimitMemory,
            "the sandbox used all the memory that it may",
        );
    }
    let why = if strain.pids_refused > 0 {
        ": gVisor needed more threads on the host than it may have"
    } else {
        ""
    };
    End::new(
        Reason::SandboxDied,
        format!("the sandbox ended with exit code {code}{why}"),
    )
}

/// A host name for the sandbox: the session's own name where it has one.
pub(super) fn hostname(id: SessionId, name: Option<&Name>) -> String {
    match name {
        // Underscores and dots are no part of a host name's label (RFC 952).
        Some(name) => name
            .as_str()
            .replace(['_', '.'], "-")
            .trim_end_matches('-')
            .to_owned(),
        None => format!("ses-{}", id.suffix()),
    }
}

/// Nothing is launched any more.
pub(super) fn stopping() -> End {
    End::new(Reason::Operator, "casemated is stopping")
}

/// Where the daemon keeps the token of a session for itself.
fn token_path(root: &Path, id: SessionId) -> PathBuf {
    root.join(format!("{id}{TOKEN_SUFFIX}"))
}

/// Writes a token to a new file that is the daemon's alone.
fn write_token(path: &Path, token: &LinkToken) -> io::Result<std::fs::File> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(token.expose().as_bytes())?;
    Ok(file)
}

/// Puts the token where the guest looks for it.
fn show_token(directory: &Path, token: &LinkToken) -> io::Result<()> {
    // The process's umask keeps the group out of new files; here it is let in on purpose.
    write_token(&directory.join("token"), token)?.set_permissions(Permissions::from_mode(0o640))
}

/// What is gone already has been removed.
pub(super) fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn new_token() -> io::Result<LinkToken> {
    use std::fmt::Write;
    let mut bytes = zeroize::Zeroizing::new([0_u8; TOKEN_BYTES]);
    getrandom::fill(bytes.as_mut_slice()).map_err(io::Error::other)?;
    let mut text = zeroize::Zeroizing::new(String::with_capacity(2 * TOKEN_BYTES));
    for byte in bytes.iter() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    LinkToken::parse(&text).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sandbox_said_comes_into_an_explanation_without_its_orders_to_terminals() {
        let end = End::new(
            Reason::LaunchFailed,
            format!("\x1b[31mred\n{}", "ä".repeat(1000)),
        );
        let message = end.message.unwrap();
        assert!(message.starts_with(" [31mred ä"), "{message}");
        assert!(message.len() <= MAX_MESSAGE_BYTES);
    }
}
