//! What is asked of a session's guest, beside running a program to its end.
//!
//! Goes straight over the link, without the session's task: a transfer of many GiB holds nobody up. What a guest says no
//! to is a [`SessionError::Refused`] with a code that we know, whatever it said.

use std::sync::Arc;
use std::time::Duration;

use casemate_link::ProcessSpec;
use casemate_link::daemon::{Link, LinkError, Process};
use casemate_link::refusal::code;

use super::SessionError;
use super::activity::Use;
use super::handle::SessionHandle;
use super::reached::Reached;
use crate::model::session::Session;

/// How long a call waits for a link that is being established again.
const LINK_PATIENCE: Duration = Duration::from_secs(5);

/// Code of a refusal that no guest of ours gives.
const MADE_UP: &str = "guest_refused";

/// The guest of a session that is ready. While it is held, the session is used.
#[derive(Clone)]
pub struct Guest {
    link: Link,
    session: Arc<Session>,
    using: Arc<Use>,
    reached: Reached,
}

impl SessionHandle {
    /// The session's guest. A session that is paused is woken; a link that is being established is waited for a moment.
    ///
    /// # Errors
    /// [`SessionError::NotReady`], [`SessionError::Overloaded`], [`SessionError::Runtime`].
    pub async fn guest(&self) -> Result<Guest, SessionError> {
        let (link, using) = self.begin(LINK_PATIENCE).await?;
        let session = self.snapshot();
        let using = Arc::new(using);
        Ok(Guest {
            link,
            session,
            using,
            reached: self.reached().clone(),
        })
    }

    /// The link to the guest of a session that is awake, for whoever only looks.
    ///
    /// # Errors
    /// [`SessionError::NotReady`].
    pub async fn watched(&self) -> Result<Link, SessionError> {
        self.link(LINK_PATIENCE).await
    }
}

impl Guest {
    /// Starts a process with the session's environment, below its own, in the session's directory and as its template's user,
    /// unless it has one.
    ///
    /// # Errors
    /// As [`Link::start`].
    pub async fn start(&self, mut spec: ProcessSpec) -> Result<Process, LinkError> {
        let given = &self.session.spec;
        for (name, value) in &given.env {
            if !spec.env.contains_key(name) {
                spec.env.insert(name.clone(), value.clone());
            }
        }
        spec.cwd = spec.cwd.or_else(|| given.workdir.clone());
        spec.user = spec.user.or_else(|| given.setup.user.clone());
        self.link.start(spec).await
    }

    /// What makes the session count as used, to be held for as long as it is.
    #[must_use]
    pub fn using(&self) -> Arc<Use> {
        Arc::clone(&self.using)
    }

    /// Where it is noted which bounds the session reaches.
    #[must_use]
    pub fn reached(&self) -> Reached {
        self.reached.clone()
    }

    /// The link, for everything else.
    #[must_use]
    pub const fn link(&self) -> &Link {
        &self.link
    }
}

/// What became of a call, by what the caller does next.
#[must_use]
pub fn failed(error: LinkError) -> SessionError {
    match error {
        LinkError::Refused { code, message } => SessionError::Refused {
            code: code::ALL
                .iter()
                .find(|known| **known == code)
                .unwrap_or(&MADE_UP),
            message,
        },
        other => SessionError::GuestGone(other),
    }
}
